"""Arrays out of Parquet columns and zarr stores; their packages are loaded where such a file is opened."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Shaped

from ray_ft.errors import DataError, first_few, first_line, suggest
from ray_ft.files.memory import describe_excess

__all__ = ["Zarr", "open_parquet", "open_zarr", "read_parquet"]

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
    try:
        found: Any = zarr.open(str(path), mode="r")
        found = found[key] if key else found
    except Exception as error:  # of any class, as its metadata may be anything
        raise DataError(
            f"inputs must be a zarr array, got {path}{'::' * bool(key)}{key}: {first_line(error)}"
        ) from error
    if not hasattr(found, "dtype"):
        raise DataError(f"a zarr group needs ::key out of {first_few(sorted(found))}, got none for {path}")
    if excess := describe_excess(math.prod(found.chunks) * found.dtype.itemsize):
        raise DataError(f"a chunk of a zarr array must fit into memory, got {found.chunks} in {path}: {excess}")
    return found


def open_parquet(path: Path, column: str) -> list[tuple[int, tuple[int, ...], str, str]]:
    """Read samples, shape and type of each group of rows, and the column's name; the first row gives the shape.

    Raises:
        DataError: It has no such column, or the column is none of numbers in lists.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"inputs must be whole Parquet files, got {path}: {error}") from error
    with file:
        names = file.schema_arrow.names
        if not column and len(names) == 1:
            column = names[0]
        if column not in names:
            asked = f"{column!r}{suggest(column, names)}" if column else "none"
            raise DataError(f"Parquet needs --column out of {first_few(names, 8)}, got {asked} for {path}")
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        sizes = [group.num_rows for group in groups]
        if excess := describe_excess(max((count_values(group, column) for group in groups), default=0) * VALUE_BYTES):
            raise DataError(f"a row group of Parquet must fit into memory, got {path}: {excess}; write smaller ones")
        first = next(file.iter_batches(1, columns=[column]), None)
    if first is None or not len(first):
        return []
    values, shape = unnest(first.column(0), 0, path)
    return [(size, shape, str(values.dtype), column) for size in sizes]


def count_values(group: Any, column: str) -> int:
    """Count the values of a column in a group of rows; few bytes may hold many that are alike."""
    chunks = (group.column(i) for i in range(group.num_columns))
    return sum(chunk.num_values for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)


def read_parquet(
    path: Path, column: str, group: int, start: int, stop: int, size: int, shape: tuple[int, ...]
) -> Iterator[Shaped[np.ndarray, "sample ..."]]:
    """Read samples of a group of rows; those before `start` are decoded and dropped."""
    from pyarrow import parquet

    with parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
        before = sum(file.metadata.row_group(i).num_rows for i in range(group))
        first = 0
        for batch in file.iter_batches(size, row_groups=[group], columns=[column]):
            low, high = max(start - first, 0), min(stop - first, len(batch))
            if low < high:
                row = before + first + low
                values, own = unnest(batch.column(0).slice(low, high - low), row, path)
                if own != shape:
                    raise DataError(f"samples must agree in shape, got {own} after {shape} from row {row} of {path}")
                yield values.reshape(high - low, *shape)
            first += len(batch)
            if first >= stop:
                return


def unnest(column: Any, row: int, path: Path) -> tuple[Shaped[np.ndarray, " value"], tuple[int, ...]]:
    """Lay out nested lists of equal lengths; give all values in a row, and the shape of a sample.

    Args:
        column: Its first sample is row `row` of the file.
        row: For messages.
        path: For messages.
    """
    import pyarrow as pa

    shape: list[int] = []
    level = column.storage if isinstance(column, pa.ExtensionArray) else column
    while pa.types.is_list(level.type) or pa.types.is_large_list(level.type) or pa.types.is_fixed_size_list(level.type):
        lengths = level.value_lengths().to_numpy(zero_copy_only=False)  # of a null: NaN
        odd = np.flatnonzero(lengths != lengths[0]) if level.is_valid()[0].as_py() else np.zeros(1, int)
        if len(odd):
            bad = row + int(odd[0]) // math.prod(shape)
            raise DataError(
                f"samples must be lists of equal lengths and without nulls, got another in row {bad} of {path}"
            )
        shape.append(int(lengths[0]))
        level = level.flatten()
    if not shape or not any(is_kind(level.type) for is_kind in (pa.types.is_integer, pa.types.is_floating)):
        raise DataError(f"a column of inputs must be lists of numbers, got {column.type} in {path}")
    if level.null_count:
        bad = row + int(np.flatnonzero(level.is_null().to_numpy(zero_copy_only=False))[0]) // math.prod(shape)
        raise DataError(f"samples must be without nulls, got one in row {bad} of {path}")
    values: np.ndarray = level.to_numpy(zero_copy_only=False)
    return values, tuple(shape)
