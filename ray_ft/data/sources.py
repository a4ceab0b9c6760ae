"""Arrays out of the files that people have, each read by the package for its kind.

A source is `file` or `file::key`. The key is an array of a `.npz`, several (`x.npz::a,b`) that are
packed, the path of one in HDF5, NetCDF or zarr, or names of
columns of a table: `table.csv::a,b,spec_*`, where `*` stands for any letters. Nobody vouches for a file: nothing in it
is unpickled or run, and what would not fit into memory is refused before it is read.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from ray_ft.data.containers import CONTAINERS, pick_key, read_container
from ray_ft.data.images import read_images
from ray_ft.data.packing import Layout, pack
from ray_ft.data.tables import TABLES, choose_columns, read_table
from ray_ft.errors import DataError, first_line, shorten
from ray_ft.files.arrays import list_arrays, read_one
from ray_ft.files.column_names import join_names
from ray_ft.files.suffixes import read_suffix

HERE = "given in Python"  # how a config ends what it says of the objects of a process
KINDS = ".npy, .npz, .csv, .tsv, .parquet, .h5, .hdf5, .nc or .zarr"


@dataclass(frozen=True)
class Read:
    """What stands in a file, the key under which it does, and the columns that this names, if it is a table."""

    array: Shaped[np.ndarray, "..."]
    key: str = ""
    columns: tuple[str, ...] = ()
    layout: Layout = ()  # of several arrays that are packed


def read_array(source: str) -> Shaped[np.ndarray, "..."]:
    """Read one array of numbers or labels; a single column of a table has the shape `(sample,)`."""
    return read_source(source).array


def read_inputs(source: str, trained: str = "") -> Read:
    """Read inputs: a column of text names images, one of numbers has the shape `(sample, 1)`.

    Raises:
        DataError: The file cannot be read, or a number is missing in it.
    """
    read = read_source(source, trained)
    if not read.columns:
        return read
    path, array = Path(source.partition("::")[0]), read.array
    if array.dtype.kind == "U":
        with reading(f"images must be whole, and fit into memory, got those of {path}"):
            return replace(read, array=read_images(array, path))
    array = array[:, None] if array.ndim == 1 else array
    for row, *place in np.argwhere(~np.isfinite(array))[:1]:
        column = read.columns[place[0] if len(read.columns) > 1 else 0]
        raise DataError(
            f"inputs must be finite, got NaN, infinity or an empty cell in column {column} of sample {row} of {path}; "
            "fill it in, or leave the sample or the column out"
        )
    return replace(read, array=array)


def read_source(source: str, trained: str = "") -> Read:
    """Read what a source names; of a table without columns, those of the training.

    Raises:
        DataError: It is of no kind that is known, damaged, larger than memory, or holds no plain numbers and text.
    """
    name, _, key = source.partition("::")
    path = Path(name)
    if source.endswith(HERE):
        rule = "the data of a run from Python stand in no file"
        raise DataError(f"{rule}, got {source}; repeat the call of cross_validate with the same out")
    if read_suffix(path) not in READERS:
        raise DataError(f"a data file must be {KINDS}, got {shorten(source)}")
    with reading(f"a data file must hold plain arrays, be whole and fit into memory, got {shorten(name)}"):
        if not (path.is_file() or (read_suffix(path) == ".zarr" and path.is_dir())):
            raise DataError(f"a data file must exist, got {name}; check the path")
        if read_suffix(path) in TABLES:
            key = choose_columns(path, key, trained)
        if read_suffix(path) == ".npz" and set(trained.split(",")) <= set(list_arrays(path)):
            key = key or trained  # of a training on a table, its columns are none
        return READERS[read_suffix(path)](path, key)


@contextmanager
def reading(rule: str) -> Iterator[None]:
    """Turn whatever the packages that read files raise on damaged ones into a `DataError`."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # of any class
        raise DataError(f"{rule}: {first_line(error)}") from error


def read_numpy(path: Path, key: str) -> Read:
    known, names = list_arrays(path), key.split(",")
    if len(names) > 1 and key not in known:
        parts = {name: read_one(path, pick_key(known, name, str(path))) for name in names}
        array, layout = pack(parts, str(path))
        return Read(array, key, (), layout)
    return Read(read_one(path, pick_key(known, key, str(path))), key)


def read_columns(path: Path, key: str) -> Read:
    array, columns = read_table(path, key)
    return Read(array, join_names(columns), columns)


def read_contained(path: Path, key: str) -> Read:
    return Read(*read_container(path, key))


READERS: Mapping[str, Callable[[Path, str], Read]] = {
    **dict.fromkeys((".npy", ".npz"), read_numpy),
    **dict.fromkeys(TABLES, read_columns),
    **dict.fromkeys(CONTAINERS, read_contained),
}
