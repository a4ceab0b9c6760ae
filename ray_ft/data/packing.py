"""Several inputs of a sample in one row of numbers, so that all that moves and keeps samples has one array to move."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped

from ray_ft.data.objects import as_array
from ray_ft.errors import DataError, first_few

LARGEST_WHOLE = 2**24  # up to which float32 holds every whole number


class Part(NamedTuple):
    """An input of several: the argument of `forward` that takes it, or its place there in digits."""

    name: str
    shape: tuple[int, ...]  # of one sample
    kind: Literal["float", "int", "bool"]


Layout = tuple[Part, ...]
KINDS_IN_ORDER = ("bool", "int", "float")  # each holds the one before it
KINDS = {"float": torch.float32, "int": torch.int64, "bool": torch.bool}


def pack(
    parts: Mapping[str, Shaped[np.ndarray, "..."]], source: str
) -> tuple[Float[np.ndarray, "sample value"], Layout]:
    """Lay out arrays by name beside one another, and say how.

    Raises:
        DataError: They are of unequal lengths, no numbers, or whole numbers that float32 does not hold.
    """
    lengths = {name: len(array) if array.ndim else 0 for name, array in parts.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        told = ", ".join(f"{n} in {name}" for name, n in lengths.items())
        raise DataError(f"the inputs must have equally many samples, and some, got {told or 'none'} of {source}")
    layout = tuple(Part(name, tuple(array.shape[1:]), find_kind(name, array, source)) for name, array in parts.items())
    rows = [array.reshape(len(array), -1).astype(np.float32) for array in parts.values()]
    return np.concatenate(rows, axis=1), layout


def find_kind(name: str, array: Shaped[np.ndarray, "..."], source: str) -> Literal["float", "int", "bool"]:
    if array.dtype.kind == "f":
        return "float"
    if array.dtype.kind == "b":
        return "bool"
    if array.dtype.kind not in "iu":
        raise DataError(f"data must be real numbers, got {array.dtype} in {name} of {source}")
    if array.size and max(int(array.max()), -int(array.min())) > LARGEST_WHOLE:
        raise DataError(f"whole numbers of inputs must be within {LARGEST_WHOLE:,}, got more in {name} of {source}")
    return "int"


def pack_alike(
    parts: Mapping[str, Shaped[np.ndarray, "..."]], layout: Layout, source: str
) -> Float[np.ndarray, "sample value"]:
    """Lay out new samples as others were.

    Raises:
        DataError: Names or shapes are others.
    """
    if not layout:
        raise DataError(f"the inputs must be one array, as the run's were, got {first_few(list(parts))} in {source}")
    wanted = {part.name: part for part in layout}
    if parts.keys() != wanted.keys():
        given, known = (first_few(list(names)) for names in (parts, wanted))
        raise DataError(f"the inputs must be those of the run, {known}, got {given} in {source}")
    for name, part in wanted.items():
        if (found := parts[name].shape[1:]) != part.shape:
            raise DataError(f"{name} must have the shape {part.shape} for a sample, got {found} in {source}")
    packed, found = pack({name: parts[name] for name in wanted}, source)
    for part in found:
        if KINDS_IN_ORDER.index(part.kind) > KINDS_IN_ORDER.index(wanted[part.name].kind):
            raise DataError(f"{part.name} must be {wanted[part.name].kind}, as in the run, got {part.kind} in {source}")
    return packed


def name_parts(inputs: Mapping[str, Any] | tuple[Any, ...]) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Name several inputs as a network takes them: by the names of its arguments, or by their places."""
    named = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    return {str(name): as_array(array, str(name)) for name, array in named}
