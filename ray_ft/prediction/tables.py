"""Arrays out of Parquet columns, by pyarrow, and zarr stores; both are loaded where such a file is opened."""

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Shaped

from ray_ft.errors import DataError, first_few, suggest
from ray_ft.files.memory import describe_excess

VALUE_BYTES = 8
Zarr: TypeAlias = Any  # zarr.Array, without loading zarr


def open_zarr(path: Path, key: str) -> Zarr:
    """Open an array of a store.

    Raises:
        DataError: It is none, or zarr is not installed.
    """
    try:
        import zarr
    except ImportError as error:
        raise DataError(f"zarr must be installed to read {path}; pip install 'ray-ft[zarr]'") from error
    store: Any = zarr.open(str(path), mode="r")
    found = store[key] if key else store
    if not hasattr(found, "dtype"):
        raise DataError(f"a zarr group needs ::key out of {first_few(sorted(found))}, got none for {path}")
    if excess := describe_excess(math.prod(found.chunks) * found.dtype.itemsize):
        raise DataError(f"a chunk of a zarr array must fit into memory, got {found.chunks} in {path}: {excess}")
    return found


def open_parquet(path: Path, column: str) -> list[tuple[int, tuple[int, ...], str, str, int]]:
    """Read samples, shape, type, column and number of each group of rows; the first row gives the shape.

    Raises:
        DataError: It has no such column, or the column is none of numbers in lists.
    """
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        column = column or (names[0] if len(names) == 1 else "")
        if column not in names:
            asked = f"{column!r}{suggest(column, names)}" if column else "none"
            raise DataError(f"Parquet needs --column out of {first_few(names, 8)}, got {asked} for {path}")
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        if excess := describe_excess(max((count_values(group, column) for group in groups), default=0) * VALUE_BYTES):
            raise DataError(f"a row group of Parquet must fit into memory, got {path}: {excess}; write smaller ones")
        first = next(file.iter_batches(1, columns=[column]), None)
    if not first:
        return []
    shape, dtype = describe_sample(first.column(0), path)
    return [(group.num_rows, shape, dtype, column, number) for number, group in enumerate(groups)]


def count_values(group: Any, column: str) -> int:
    """Count the values of a column in a group of rows; few bytes may hold many that are alike."""
    chunks = (group.column(i) for i in range(group.num_columns))
    return sum(chunk.num_values for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)


def describe_sample(column: Any, path: Path) -> tuple[tuple[int, ...], str]:
    """Read shape and type of the one sample of a column."""
    import pyarrow as pa

    sizes, level = [1], get_storage(column)
    while isinstance(level, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        level = level.flatten()
        sizes.append(len(level))
    dtype = np.dtype(level.type.to_pandas_dtype())
    if len(sizes) == 1 or dtype.kind not in "biuf":
        raise DataError(f"a column of inputs must be lists of numbers, got {column.type} in {path}")
    return tuple(inner // max(outer, 1) for outer, inner in pairwise(sizes)), str(dtype)


def get_storage(column: Any) -> Any:
    """What an extension type, such as a tensor, is stored as: its own conversions could run code."""
    return getattr(column, "storage", column)


def read_parquet(
    path: Path, column: str, group: int, start: int, stop: int, size: int, shape: tuple[int, ...]
) -> Iterator[Shaped[np.ndarray, "sample ..."]]:
    """Read samples of a group of rows; those before `start` are decoded and dropped."""
    from pyarrow import parquet

    with parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
        first = 0
        for batch in file.iter_batches(size, row_groups=[group], columns=[column]):
            low, high = max(start - first, 0), min(stop - first, len(batch))
            if low < high:
                yield lay_out(batch.column(0).slice(low, high - low), shape)
            first += len(batch)
            if first >= stop:
                return


def lay_out(column: Any, shape: tuple[int, ...]) -> Shaped[np.ndarray, "sample ..."]:
    """Turn nested lists of one shape into an array; a number that is missing becomes NaN.

    Raises:
        ValueError: A list has another length, or is missing.
    """
    import pyarrow as pa

    level = get_storage(column)
    for n in shape:
        level = level.cast(pa.list_(level.type.value_type, n)).flatten()  # leaves out what is missing
    array: np.ndarray = level.to_numpy(zero_copy_only=False).reshape(len(column), *shape)
    return array
