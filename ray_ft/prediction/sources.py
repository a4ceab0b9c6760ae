"""Inputs on disk, read a few samples at a time: `.npy`, `.npz`, a folder of `.npy`, Parquet, zarr."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from ray_ft.data.samples import read_array
from ray_ft.errors import DataError, first_line, shorten
from ray_ft.files.arrays import map_array
from ray_ft.prediction import columns

__all__ = ["Block", "Source", "open_source", "read_chunks"]

KINDS = ".npy, .npz, .npz::key, .parquet, .zarr, .zarr::key, or a folder of .npy or of .parquet files"


@dataclass(frozen=True)
class Block:
    """Samples that follow one another in a file.

    Attributes:
        path: Of the file.
        n_samples: How many.
        shape: Of a sample.
        dtype: Of its values.
        key: Which array or column; empty where the file holds one.
        group: Of the rows of a Parquet file.
    """

    path: str
    n_samples: int
    shape: tuple[int, ...]
    dtype: str
    key: str = ""
    group: int = 0


@dataclass(frozen=True)
class Source:
    """Inputs in their order.

    Attributes:
        name: As the user wrote it.
        blocks: All of one shape and type.
        files: Absolute path, bytes and time of change in ns of each file.
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
        starts: dict[str, int] = {}
        for first, block in walk_blocks(self.blocks):
            start = starts.setdefault(block.path, first)
            if row < first + block.n_samples:
                return f"sample {row - start} of {block.path}, which is number {row} of all"
        raise IndexError(row)


def open_source(name: str, column: str | None = None) -> Source:
    """Find the files of inputs and check their headers; no samples are read, but of `.npz`.

    Args:
        name: A path as the messages list them.
        column: Of Parquet; may be left out where there is one.

    Raises:
        DataError: There are no such inputs, a file is damaged, or files differ in shape or type.
    """
    text, _, key = name.partition("::")
    path = Path(text)
    try:
        if not path.exists():
            raise DataError(f"inputs must exist, got {text}; check the path")
        paths = list_files(path)
        blocks = tuple(block for own in paths for block in open_file(own, key or column or ""))
        files = tuple(stamp_file(own) for own in paths)
    except DataError:
        raise
    except Exception as error:  # of any class, from whichever package reads such a file
        raise DataError(f"inputs must be whole files of numbers, got {shorten(name)}: {first_line(error)}") from error
    check_blocks(blocks, name)
    return Source(name, blocks, files)


def list_files(path: Path) -> list[Path]:
    """List a folder's files by name; they come in this order."""
    if path.is_file() or path.suffix == ".zarr":
        return [path]
    found = {suffix: sorted(path.glob(f"[!._]*{suffix}")) for suffix in (".npy", ".parquet")}
    kinds = [suffix for suffix, paths in found.items() if paths]
    if len(kinds) != 1:
        raise DataError(f"inputs must be {KINDS}, got {path} with {' and '.join(kinds) or 'neither'}")
    return found[kinds[0]]


def open_file(path: Path, key: str) -> Iterator[Block]:
    match path.suffix:
        case ".npy":
            yield Block(str(path), *describe(map_array(path), path))
        case ".npz":
            yield Block(str(path), *describe(read_array(f"{path}::{key}" if key else str(path)), path), key)
        case ".parquet":
            for group, (n_samples, shape, dtype, column) in enumerate(columns.open_parquet(path, key)):
                yield Block(str(path), n_samples, shape, dtype, column, group)
        case ".zarr":
            yield Block(str(path), *describe(columns.open_zarr(path, key), path), key)
        case _:
            raise DataError(f"inputs must be {KINDS}, got {path}")


def describe(array: Shaped[np.ndarray, "..."] | columns.Zarr, path: Path) -> tuple[int, tuple[int, ...], str]:
    if array.ndim < 2:
        raise DataError(f"inputs must have a sample axis and at least one more, got shape {array.shape} in {path}")
    if 0 in array.shape[1:]:
        raise DataError(f"inputs must not be empty, got shape {array.shape} in {path}")
    return int(array.shape[0]), tuple(map(int, array.shape[1:])), str(array.dtype)


def stamp_file(path: Path) -> tuple[str, int, int]:
    """Path, bytes and time of change; of a zarr folder, all of its files together."""
    stats = [own.stat() for own in ([path] if path.is_file() else path.rglob("*"))]
    return str(path.absolute()), sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)


def check_blocks(blocks: tuple[Block, ...], name: str) -> None:
    if sum(block.n_samples for block in blocks) == 0:
        raise DataError(f"inputs must have samples, got none in {name}")
    first = blocks[0]
    for block in blocks:
        if (block.shape, block.dtype) != (first.shape, first.dtype):
            raise DataError(
                f"files of inputs must agree in shape and type, got {block.shape} {block.dtype} in {block.path} and "
                f"{first.shape} {first.dtype} in {first.path}"
            )
    if np.dtype(first.dtype).kind not in "biuf":
        raise DataError(f"data must be real numbers, got {first.dtype} in {name}")


def walk_blocks(blocks: Iterable[Block]) -> Iterator[tuple[int, Block]]:
    """Yield each block with the number of its first sample."""
    first = 0
    for block in blocks:
        yield first, block
        first += block.n_samples


def read_chunks(source: Source, start: int, stop: int, size: int) -> Iterator[Shaped[np.ndarray, "sample ..."]]:
    """Read samples `start` to `stop`, `size` at a time, the last time fewer; chunks run across files.

    Raises:
        DataError: A file can no longer be read.
    """
    waiting: list[np.ndarray] = []
    n_waiting = 0
    for array in read_blocks(source, start, stop, size):
        while len(array):
            taken = array[: size - n_waiting]
            array = array[len(taken) :]
            waiting.append(taken)
            n_waiting += len(taken)
            if n_waiting == size:
                yield np.concatenate(waiting)
                waiting, n_waiting = [], 0
    if waiting:
        yield np.concatenate(waiting)


def read_blocks(source: Source, start: int, stop: int, size: int) -> Iterator[Shaped[np.ndarray, "sample ..."]]:
    for first, block in walk_blocks(source.blocks):
        low, high = max(start - first, 0), min(stop - first, block.n_samples)
        if low < high:
            try:
                yield from read_block(block, low, high, size)
            except DataError:
                raise
            except Exception as error:  # of any class, from whichever package reads such a file
                raise DataError(
                    f"inputs must be whole, and stay as they are while they are read, got {block.path}: "
                    f"{first_line(error)}"
                ) from error


def read_block(block: Block, start: int, stop: int, size: int) -> Iterator[Shaped[np.ndarray, "sample ..."]]:
    path = Path(block.path)
    if path.suffix == ".parquet":
        yield from columns.read_parquet(path, block.key, block.group, start, stop, size, block.shape)
        return
    whole = None
    if path.suffix == ".npz":
        whole = read_array(f"{path}::{block.key}" if block.key else str(path))
    elif path.suffix == ".zarr":
        whole = columns.open_zarr(path, block.key)
    for low in range(start, stop, size):
        part = slice(low, min(low + size, stop))
        if whole is None:  # mapped anew each time: pages once read would count as this process's memory
            yield np.array(map_array(path)[part])
        else:
            yield np.asarray(whole[part])
