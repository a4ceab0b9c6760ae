"""Arrays out of .npy and .npz files, or their bytes, that nobody vouches for.

Nothing is unpickled, and nothing is allocated for what a header claims before that is compared with the file and with
the memory that there is. A file that cannot be read raises an `OSError`; one that is damaged, holds objects, or does
not fit into memory, a `ValueError`.
"""

import io
import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ray_ft.errors import first_line
from ray_ft.files.memory import describe_excess

SUFFIX = ".npy"  # of the members of an archive


@contextmanager
def parsing() -> Iterator[None]:
    """Turn whatever a damaged file makes the parsers of numpy and zipfile raise into a `ValueError`."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # of any class: they trust what they read
        raise ValueError(first_line(error)) from error


def list_arrays(path: Path) -> list[str]:
    """List the arrays of a `.npz`; a `.npy` has one without a name."""
    with parsing():
        names = [SUFFIX]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        return [name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)]


def read_one(path: Path, key: str = "") -> Shaped[np.ndarray, "..."]:
    """Read an array that `list_arrays` names."""
    if key:
        with parsing(), zipfile.ZipFile(path) as archive:
            return read_member(archive, key)
    with parsing(), path.open("rb") as file:
        return read_whole(file)


def parse_array(content: bytes) -> Shaped[np.ndarray, "..."]:
    """Read an array from the bytes of a `.npy`."""
    with parsing():
        return read_whole(io.BytesIO(content))


def read_whole(file: Any) -> Shaped[np.ndarray, "..."]:
    """Read the array of a `.npy`, once its header is known to agree with the bytes that follow."""
    shape, dtype = read_header(file)
    n_bytes, start = math.prod(shape) * dtype.itemsize, file.tell()
    n_given = file.seek(0, os.SEEK_END) - start
    if n_bytes > n_given:
        raise ValueError(f"its header says {shape} of {dtype}, {n_bytes} bytes, and {n_given} follow")
    check_fits(shape, dtype)
    file.seek(0)
    array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return array


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of a `.npz`."""
    with parsing(), zipfile.ZipFile(path) as archive:
        return {name: read_member(archive, name) for name in (own.removesuffix(SUFFIX) for own in archive.namelist())}


def read_member(archive: zipfile.ZipFile, name: str) -> Shaped[np.ndarray, "..."]:
    with archive.open(name + SUFFIX) as member:
        check_fits(*read_header(member))
    with archive.open(name + SUFFIX) as member:
        array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
        member.read(1)  # at the end its checksum is compared
        return array


def map_array(path: Path) -> Shaped[np.ndarray, "..."]:
    """Map a `.npy` file, of which nothing is read but the header."""
    with parsing():
        with path.open("rb") as file:
            read_header(file)
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)  # refuses a file shorter than that says
        return array


def read_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read shape and type of an array."""
    formats = np.lib.format
    is_first = formats.read_magic(file) == (1, 0)
    shape, _, dtype = (formats.read_array_header_1_0 if is_first else formats.read_array_header_2_0)(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which only unpickling would read")
    if min(shape, default=0) < 0:
        raise ValueError(f"it has the shape {shape}")
    return shape, dtype


def check_fits(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if excess := describe_excess(math.prod(shape) * dtype.itemsize):
        raise ValueError(f"{excess}, for {shape} of {dtype}")
