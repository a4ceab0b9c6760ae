"""Inputs on disk, read a few samples at a time where their files allow it: all but `.npz`, CSV and images do."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ray_ft.data.containers import CONTAINERS, Opened
from ray_ft.data.sources import read_inputs, reading
from ray_ft.data.tables import (
    TABLES,
    VALUE_BYTES,
    choose_columns,
    count_values,
    describe_sample,
    is_nested,
    is_text,
    lay_out_lists,
    lay_out_numbers,
    pick_columns,
)
from ray_ft.errors import DataError, shorten
from ray_ft.files.arrays import map_array
from ray_ft.files.column_names import join_names, split_names
from ray_ft.files.memory import describe_excess
from ray_ft.files.suffixes import read_suffix

KINDS = ".npy, .npz, .csv, .tsv, .parquet, .h5, .hdf5, .nc, .zarr, or a folder of .npy or of .parquet files"


@dataclass(frozen=True)
class Block:
    """Samples that follow one another in a file; `shape` and `dtype` are those of one.

    `key` is the array or the columns, empty where the file holds one; `group` counts the row groups of a Parquet file
    that is read by them.
    """

    path: str
    n_samples: int
    shape: tuple[int, ...]
    dtype: str
    key: str = ""
    group: int | None = None


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


def open_source(name: str, column: str | None = None, trained: str = "") -> Source:
    """Find the files of inputs, of a kind in `KINDS`, and check their headers; few kinds are read before they are used.

    Args:
        name: As `read_array` takes it, or a folder.
        column: Columns of tables, in place of a key in the name.
        trained: The key of the inputs that the ensemble was trained on; of a table, its columns where none are named.
    """
    text, _, key = name.partition("::")
    path = Path(text)
    with reading(f"inputs must be whole files of numbers, got {shorten(name)}"):
        if not path.exists():
            raise DataError(f"inputs must exist, got {text}; check the path")
        paths = list_files(path)
        blocks = tuple(block for own in paths for block in open_file(own, key or column or "", trained))
        check_blocks(blocks, name)
        return Source(name, blocks, tuple(map(stamp_file, paths)))


def list_files(path: Path) -> list[Path]:
    """List a folder's files by name; they come in this order."""
    if path.is_file() or read_suffix(path) == ".zarr":
        return [path]
    own = sorted(path.glob("[!._]*"))
    found = {suffix: [each for each in own if read_suffix(each) == suffix] for suffix in (".npy", ".parquet")}
    kinds = [suffix for suffix, paths in found.items() if paths]
    if len(kinds) != 1:
        raise DataError(f"inputs must be {KINDS}, got {path} with {' and '.join(kinds) or 'neither'}")
    return found[kinds[0]]


def open_file(path: Path, key: str, trained: str) -> list[Block]:
    if read_suffix(path) in TABLES:
        key = choose_columns(path, key, trained)
    if read_suffix(path) == ".npz" and "," in trained:  # several inputs
        key = key or trained
    if read_suffix(path) == ".parquet" and (blocks := open_parquet(path, key)) is not None:
        return [Block(str(path), *own) for own in blocks]
    array = open_array(path, key)
    if array.ndim < 2:
        raise DataError(f"inputs must have a sample axis and at least one more, got shape {array.shape} in {path}")
    n_samples, *shape = map(int, array.shape)
    return [Block(str(path), n_samples, tuple(shape), str(array.dtype), "" if read_suffix(path) == ".npy" else key)]


def open_array(path: Path, key: str) -> Shaped[np.ndarray, "..."] | Opened:
    """Open what holds one array; what its kind does not let be read in parts is read whole."""
    if read_suffix(path) == ".npy":
        return map_array(path)
    if read_suffix(path) in CONTAINERS:
        return CONTAINERS[read_suffix(path)](path, key)[0]
    if read_suffix(path) in TABLES or read_suffix(path) == ".npz":
        return read_inputs(f"{path}::{key}" if key else str(path)).array
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
    if block.group is not None:
        yield from read_parquet(path, block.key, block.group, start, stop, size, block.shape)
        return
    whole = None if read_suffix(path) == ".npy" else open_array(path, block.key)
    for low in range(start, stop, size):  # a .npy is mapped anew: pages once read would count as this process's memory
        yield np.array((map_array(path) if whole is None else whole)[low : min(low + size, stop)])


def open_parquet(path: Path, asked: str) -> list[tuple[int, tuple[int, ...], str, str, int]] | None:
    """Read samples, shape, type, columns and number of each group of rows; None where the column names images.

    Of lists, the first row gives the shape.
    """
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        names = pick_columns(asked, file.schema_arrow.names, path)
        if len(names) == 1 and is_text(file.schema_arrow.field(names[0]).type):
            return None
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        if excess := describe_excess(max((count_values(group, names) for group in groups), default=0) * VALUE_BYTES):
            raise DataError(f"a row group of Parquet must fit into memory, got {path}: {excess}; write smaller ones")
        first = next(file.iter_batches(1, columns=names), None)
    if not first:
        return []
    if len(names) == 1 and is_nested(first[names[0]]):
        shape, dtype = describe_sample(first[names[0]], path)
    else:
        shape, dtype = lay_out_rows(first, names, (), path).shape[1:], "float64"
    return [(group.num_rows, shape, dtype, join_names(names), number) for number, group in enumerate(groups)]


def read_parquet(
    path: Path, key: str, group: int, start: int, stop: int, size: int, shape: tuple[int, ...]
) -> Iterator[Shaped[np.ndarray, "sample ..."]]:
    """Read samples of a group of rows; those before `start` are decoded and dropped."""
    from pyarrow import parquet

    names = split_names(key)
    with parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
        first = 0
        for batch in file.iter_batches(size, row_groups=[group], columns=names):
            low, high = max(start - first, 0), min(stop - first, len(batch))
            if low < high:
                yield lay_out_rows(batch.slice(low, high - low), names, shape, path)
            first += len(batch)
            if first >= stop:
                return


def lay_out_rows(batch: Any, names: list[str], shape: tuple[int, ...], path: Path) -> Shaped[np.ndarray, "sample ..."]:
    """Turn rows into an array: a column of lists of this shape, or columns of numbers."""
    if len(names) == 1 and is_nested(batch[names[0]]):
        return lay_out_lists(batch[names[0]], shape)
    columns = [lay_out_numbers(batch[name], name, path) for name in names]
    return np.column_stack([column.astype(np.float64) for column in columns])
