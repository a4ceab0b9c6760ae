"""Arrays out of the objects that a Python process has: tensors, pandas frames and series, lists, masked arrays."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from ray_ft.errors import DataError, first_line
from ray_ft.files.column_names import join_names

NUMBERS = bool | int | float | np.number | np.bool_
ABSENT = ("NoneType", "NAType")  # what pandas and lists say of a value that is missing
NUMPY_HAS = (torch.float16, torch.float32, torch.float64)


def as_array(values: Any, name: str) -> Shaped[np.ndarray, "..."]:
    """Turn a tensor, a pandas object, a list or an array into an array of numbers or texts.

    A number that is missing becomes NaN, as it is under the mask of a masked array.

    Raises:
        DataError: It is neither, or a text is missing.
    """
    try:
        if isinstance(values, Tensor):
            return read_tensor(values)
        if isinstance(values, list | tuple) and any(isinstance(value, Tensor) for value in values):
            return np.asarray([as_array(value, name) for value in values])
        array = values.to_numpy() if hasattr(values, "to_numpy") else values
        array = fill_mask(array) if isinstance(array, np.ma.MaskedArray) else np.asarray(array)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{name} must be arrays of one shape: {first_line(error)}") from error
    if array.dtype.kind == "O":
        array = name_objects(array, name)
    if array.dtype.kind not in "biufSU":
        raise DataError(f"{name} must be numbers or texts, got {array.dtype} ({type(values).__name__})")
    return array


def name_columns(values: Any) -> str:
    """Name the columns of a pandas frame as a table's are; nothing where they have no names of their own."""
    columns = getattr(values, "columns", ())
    if hasattr(values, "to_numpy") and all(isinstance(name, str) for name in columns):
        return join_names(list(columns))
    return ""


def check_order(columns: Mapping[str, Any]) -> None:
    """Refuse pandas objects whose rows have the same labels in another order: samples are taken by their places.

    Raises:
        DataError: There are two such, named by their keys.
    """
    found = {name: getattr(own, "index", None) for name, own in columns.items()}
    indexes: dict[str, Any] = {name: index for name, index in found.items() if hasattr(index, "isin")}  # else a method
    first = next(iter(indexes), "")
    for name, index in indexes.items():
        known = indexes[first]
        if not index.equals(known) and Counter(index) == Counter(known):
            one = f" (.loc[{first}.index])" if known.is_unique else ""
            raise DataError(
                f"samples are taken by their places, but the rows of {name} have the labels of {first} in another "
                f"order; put them into one order{one}, or drop labels that say nothing (.reset_index(drop=True))"
            )


def read_tensor(tensor: Tensor) -> Shaped[np.ndarray, "..."]:
    tensor = tensor.detach().cpu()
    tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
    if tensor.is_floating_point() and tensor.dtype not in NUMPY_HAS:
        tensor = tensor.float()
    array: np.ndarray = tensor.numpy(force=True)
    return array


def fill_mask(array: Any) -> Shaped[np.ndarray, "..."]:
    """Take what a mask hides for missing."""
    if not np.ma.is_masked(array):
        return np.asarray(array)
    filled: np.ndarray = array.astype(np.float64 if array.dtype.kind in "biu" else array.dtype).filled(np.nan)
    return filled


def name_objects(array: Shaped[np.ndarray, "..."], name: str) -> Shaped[np.ndarray, "..."]:
    """Take an array of Python objects for texts, or for numbers, if all that are there are."""
    absent = np.array([is_absent(value) for value in array.ravel()], bool).reshape(array.shape)
    kinds = {type(value) for value in array[~absent]}
    if kinds and all(issubclass(kind, str) for kind in kinds):
        if absent.any():
            row = np.argwhere(absent)[0][0] if array.ndim else 0
            raise DataError(f"{name} of text must be complete, got none for sample {row}; leave such samples out")
        return array.astype(str)
    if kinds and all(issubclass(kind, NUMBERS) for kind in kinds):
        return np.where(absent, np.nan, array).astype(np.float64)
    named = ", ".join(sorted({type(value).__name__ for value in array.ravel()}))
    raise DataError(f"{name} must be numbers or texts, got objects: {named}")


def is_absent(value: object) -> bool:
    return type(value).__name__ in ABSENT or (isinstance(value, float) and math.isnan(value))
