"""Arrays inside HDF5, NetCDF and zarr, opened by their packages without being read."""

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Shaped

from ray_ft.errors import DataError, first_few, show_value, suggest
from ray_ft.files.arrays import check_fits
from ray_ft.files.memory import describe_excess
from ray_ft.files.suffixes import read_suffix

Opened: TypeAlias = Any  # of h5py, xarray or zarr: has a shape and a dtype, and is read by slices
N_TEXTS = 100  # of unknown length that are read at a time


def read_container(path: Path, key: str) -> tuple[Shaped[np.ndarray, "..."], str]:
    """Read an array whole, and write out its key."""
    found, key = CONTAINERS[read_suffix(path)](path, key)
    if found.dtype.kind in "OT":
        return read_texts(found), key
    check_fits(found.shape, found.dtype)
    return np.asarray(found[...]), key


def read_texts(found: Opened) -> Shaped[np.ndarray, " sample"]:
    """Read texts of any length, a few at a time, as labels; other objects are refused."""
    if len(found.shape) != 1:
        raise ValueError(f"text must be one label a sample, got shape {found.shape}")
    check_fits(found.shape, np.dtype(object))
    labels, longest = [], 1
    for start in range(0, len(found), N_TEXTS):
        for value in np.asarray(found[start : start + N_TEXTS]).tolist():
            text = value.decode() if isinstance(value, bytes) else value
            if not isinstance(text, str):
                raise ValueError(f"it holds Python objects, got one of {type(text).__name__}")
            labels.append(text)
            longest = max(longest, len(text))
        check_fits(found.shape, np.dtype(f"U{longest}"))
    return np.array(labels, f"U{longest}")


def open_hdf5(path: Path, key: str) -> tuple[Opened, str]:
    """Open a data set of HDF5 by its path in the file; links and data sets that lead to other files do not count."""
    h5py = import_extra("h5py", "hdf5", path)
    file, names = h5py.File(path, "r"), []

    def note(name: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset) and (key or not found.is_scale):
            names.append(name)

    file.visititems(note)  # follows no soft or external link
    key = pick_key(names, key.strip("/"), str(path))
    found = file[key]
    if found.external or found.is_virtual:
        raise ValueError(f"{key} stands in other files; copy it into this one")
    if found.shape is None:
        raise ValueError(f"{key} has no shape")
    return check_chunks(found, path), key


def open_netcdf(path: Path, key: str) -> tuple[Opened, str]:
    """Open a variable of NetCDF by its name, or by its path where there are groups; missing values become NaN."""
    xarray = import_extra("xarray", "netcdf", path)
    with path.open("rb") as file:
        is_classic = file.read(3) == b"CDF"
    options: dict[str, Any] = {"decode_times": False, "decode_coords": False}
    if is_classic:
        opened = xarray.open_dataset(path, engine="scipy", **options)
        key = pick_key(list(map(str, opened.variables if key else opened.data_vars)), key, str(path))
        return opened.variables[key], key
    import_extra("h5netcdf", "netcdf", path)
    found, key = open_hdf5(path, key)
    group, _, name = key.rpartition("/")
    others = [other for other in found.parent if other != name]  # of which some would be read at once
    opened = xarray.open_dataset(path, engine="h5netcdf", group=group or None, drop_variables=others, **options)
    return opened.variables[name], key


def open_zarr(path: Path, key: str) -> tuple[Opened, str]:
    """Open an array of a store of zarr by its path."""
    zarr = import_extra("zarr", "zarr", path)
    store = zarr.open(str(path), mode="r")
    if not hasattr(store, "dtype"):
        key = pick_key(sorted(list_zarr(store)), key.strip("/"), str(path))
        store = store[key]
    return check_chunks(store, path), key


def list_zarr(store: Any) -> Iterator[str]:
    for name, found in store.members(max_depth=None):
        if hasattr(found, "dtype"):
            yield name


def check_chunks(found: Opened, path: Path) -> Opened:
    """Refuse what is stored in chunks of which one does not fit into memory: they are read as a whole."""
    if found.chunks and (excess := describe_excess(math.prod(found.chunks) * found.dtype.itemsize)):
        raise DataError(f"a chunk of an array must fit into memory, got {found.chunks} in {path}: {excess}")
    return found


def pick_key(keys: Sequence[str], key: str, name: str) -> str:
    if list(keys) == [""] or (len(keys) == 1 and not key):
        return keys[0]
    if key not in keys:
        asked = f"{show_value(key)}{suggest(key, keys)}" if key else "none"
        listed = first_few(keys, 8) or "none"
        raise DataError(f"a file with several arrays needs ::key out of {listed}, got {asked} for {name}")
    return key


def import_extra(module: str, extra: str, path: Path) -> Any:
    """Import a package that is installed on request."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{module} must be installed to read {path}; pip install 'ray-ft[{extra}]'") from error


CONTAINERS: Mapping[str, Callable[[Path, str], tuple[Opened, str]]] = {
    ".h5": open_hdf5,
    ".hdf5": open_hdf5,
    ".nc": open_netcdf,
    ".zarr": open_zarr,
}
