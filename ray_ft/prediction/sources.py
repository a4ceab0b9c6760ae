"""Inputs on disk, read a few samples at a time: `.npy`, `.npz`, a folder of `.npy`, Parquet by pyarrow, zarr."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Shaped

from ray_ft.data.samples import read_array
from ray_ft.errors import DataError, first_few, first_line, shorten, suggest
from ray_ft.files.arrays import map_array
from ray_ft.files.memory import describe_excess

VALUE_BYTES = 8
Zarr: TypeAlias = Any  # zarr.Array, without loading zarr
KINDS = ".npy, .npz, .npz::key, .parquet, .zarr, .zarr::key, or a folder of .npy or of .parquet files"


@dataclass(frozen=True)
class Block:
    """Samples that follow one another in a file; `shape` and `dtype` are those of one.

    `key` is the array or the column, empty where the file holds one; `group` counts the row groups of a Parquet file.
    """

    path: str
    n_samples: int
    shape: tuple[int, ...]
    dtype: str
    key: str = ""
    group: int = 0


@dataclass(frozen=True)
class Source:
    """Inputs in their order, by the name that the user gave them; all blocks have one shape and type.

    `files` are the absolute path, the bytes and the time of change in ns of each file.
    """

    name: str
    blocks: tuple[Block, ...]
    files: tuple[tuple[str, int, int], ...]

    def __len__(self) -> int:
        return sum(block.n_samples for block in self.blocks)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.blocks[0].shape

    @property
    def dtype(self) -> str:
        return self.blocks[0].dtype

    def locate(self, row: int) -> str:
        """Write which sample a row is, for messages."""
        if len(self.files) == 1:
            return f"sample {row} of {self.name}"
        known = [(first, block.path) for first, block in walk_blocks(self.blocks) if first <= row]
        path = known[-1][1]
        start = next(first for first, own in known if own == path)
        return f"sample {row - start} of {path}, which is number {row} of all"


def open_source(name: str, column: str | None = None) -> Source:
    """Find the files of inputs, of a kind in `KINDS`, and check their headers; no samples are read, but of `.npz`.

    The column is one of Parquet; it may be left out where there is one.
    """
    text, _, key = name.partition("::")
    path = Path(text)
    with reading(f"inputs must be whole files of numbers, got {shorten(name)}"):
        if not path.exists():
            raise DataError(f"inputs must exist, got {text}; check the path")
        paths = list_files(path)
        blocks = tuple(block for own in paths for block in open_file(own, key or column or ""))
        check_blocks(blocks, name)
        return Source(name, blocks, tuple(map(stamp_file, paths)))


@contextmanager
def reading(rule: str) -> Iterator[None]:
    """Turn whatever the packages that read files raise on damaged ones into a `DataError`."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # of any class
        raise DataError(f"{rule}: {first_line(error)}") from error


def list_files(path: Path) -> list[Path]:
    """List a folder's files by name; they come in this order."""
    if path.is_file() or path.suffix == ".zarr":
        return [path]
    found = {suffix: sorted(path.glob(f"[!._]*{suffix}")) for suffix in (".npy", ".parquet")}
    kinds = [suffix for suffix, paths in found.items() if paths]
    if len(kinds) != 1:
        raise DataError(f"inputs must be {KINDS}, got {path} with {' and '.join(kinds) or 'neither'}")
    return found[kinds[0]]


def open_file(path: Path, key: str) -> list[Block]:
    if path.suffix == ".parquet":
        return [Block(str(path), *own) for own in open_parquet(path, key)]
    array = open_array(path, key)
    if array.ndim < 2:
        raise DataError(f"inputs must have a sample axis and at least one more, got shape {array.shape} in {path}")
    n_samples, *shape = map(int, array.shape)
    return [Block(str(path), n_samples, tuple(shape), str(array.dtype), "" if path.suffix == ".npy" else key)]


def open_array(path: Path, key: str) -> Shaped[np.ndarray, "..."] | Zarr:
    """Open what holds one array; only a `.npz` is read whole."""
    match path.suffix:
        case ".npy":
            return map_array(path)
        case ".npz":
            return read_array(f"{path}::{key}" if key else str(path))
        case ".zarr":
            return open_zarr(path, key)
    raise DataError(f"inputs must be {KINDS}, got {path}")


def stamp_file(path: Path) -> tuple[str, int, int]:
    """Path, bytes and time of change; of a zarr folder, all of its files together."""
    stats = [own.stat() for own in ([path] if path.is_file() else path.rglob("*"))]
    return str(path.absolute()), sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)


def check_blocks(blocks: tuple[Block, ...], name: str) -> None:
    if sum(block.n_samples * math.prod(block.shape) for block in blocks) == 0:
        raise DataError(f"inputs must not be empty, got none in {name}")
    first = blocks[0]
    for block in blocks:
        if (block.shape, block.dtype) != (first.shape, first.dtype):
            text = f"got {block.shape} {block.dtype} in {block.path} and {first.shape} {first.dtype} in {first.path}"
            raise DataError(f"files of inputs must agree in shape and type, {text}")
    if np.dtype(first.dtype).kind not in "biuf":
        raise DataError(f"data must be real numbers, got {first.dtype} in {name}")


def walk_blocks(blocks: Iterable[Block]) -> Iterator[tuple[int, Block]]:
    """Yield each block with the number of its first sample."""
    first = 0
    for block in blocks:
        yield first, block
        first += block.n_samples


def read_chunks(source: Source, start: int, stop: int, size: int) -> Iterator[Shaped[np.ndarray, "sample ..."]]:
    """Read samples `start` to `stop`, `size` at a time, the last time fewer; chunks run across files."""
    waiting: list[np.ndarray] = []
    for array in read_blocks(source, start, stop, size):
        waiting.append(array)
        if sum(map(len, waiting)) >= size:
            joined = np.concatenate(waiting)  # of less than two chunks, as each array is one at most
            yield joined[:size]
            waiting = [joined[size:]] if len(joined) > size else []
    if waiting:
        yield np.concatenate(waiting)


def read_blocks(source: Source, start: int, stop: int, size: int) -> Iterator[Shaped[np.ndarray, "sample ..."]]:
    for first, block in walk_blocks(source.blocks):
        low, high = max(start - first, 0), min(stop - first, block.n_samples)
        if low < high:
            with reading(f"inputs must be whole, of one shape, and stay as they are while read, got {block.path}"):
                yield from read_block(block, low, high, size)


def read_block(block: Block, start: int, stop: int, size: int) -> Iterator[Shaped[np.ndarray, "sample ..."]]:
    path = Path(block.path)
    if path.suffix == ".parquet":
        yield from read_parquet(path, block.key, block.group, start, stop, size, block.shape)
        return
    whole = None if path.suffix == ".npy" else open_array(path, block.key)
    for low in range(start, stop, size):  # a .npy is mapped anew: pages once read would count as this process's memory
        yield np.array((map_array(path) if whole is None else whole)[low : min(low + size, stop)])


def open_zarr(path: Path, key: str) -> Zarr:
    """Open an array of a store."""
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
    """Read samples, shape, type, column and number of each group of rows; the first row gives the shape."""
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

    sizes, level = [1], getattr(column, "storage", column)  # of a tensor, whose own conversions could run code
    while isinstance(level, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        level = level.flatten()
        sizes.append(len(level))
    if 0 in sizes:
        raise DataError(f"samples must be lists of equal lengths and without nulls, got another in row 0 of {path}")
    dtype = np.dtype(level.type.to_pandas_dtype())
    if len(sizes) == 1 or dtype.kind not in "biuf":
        raise DataError(f"a column of inputs must be lists of numbers, got {column.type} in {path}")
    return tuple(inner // max(outer, 1) for outer, inner in pairwise(sizes)), str(dtype)


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
    """Turn nested lists of one shape into an array, with NaN for missing numbers; others raise a `ValueError`."""
    import pyarrow as pa

    level = getattr(column, "storage", column)
    for n in shape:
        if level.null_count:
            raise ValueError("a sample, or a list in it, is missing (null)")
        level = level.cast(pa.list_(level.type.value_type, n)).flatten()
    array: np.ndarray = level.to_numpy(zero_copy_only=False).reshape(len(column), *shape)
    return array
