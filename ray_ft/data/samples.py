"""Samples: structures and spectra (or any arrays) read, checked, and moved by the symmetry into views."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped

from ray_ft.data.folds import join_groups
from ray_ft.domains.symmetry import OPERATIONS, apply_operation, generate_group
from ray_ft.errors import DataError, first_few, first_line, shorten, show_value, suggest
from ray_ft.files.arrays import list_arrays, read_one

__all__ = [
    "SPECTRA_AXES",
    "STRUCTURE_AXES",
    "Dataset",
    "TargetAxes",
    "build_views",
    "describe_targets",
    "load_dataset",
    "prepare_inputs",
    "read_array",
]

STRUCTURE_AXES, SPECTRA_AXES = (-2, -1), (-3, -2)
SIDE_PX = 128
N_BINS = 5  # into which a column of numbers is cut, at most
RGB_OF_QUADRANT = [[0, 1], [1, 2]]  # a Bayer cell: [[R, G], [G, B]]


@dataclass(frozen=True)
class Dataset:
    """Samples in the network's own terms; `notes` say what was done to the user's files."""

    inputs: Float[np.ndarray, "sample *input"]
    targets: Float[np.ndarray, "sample *target"]
    groups: Int[np.ndarray, " sample"]
    strata: Shaped[np.ndarray, " sample"] | None
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.inputs)


def load_dataset(
    inputs: str, targets: str, layout: str, groups: str | None = None, stratify: str | None = None, n_folds: int = 5
) -> Dataset:
    """Read and check a data set.

    Args:
        inputs: `.npy`, `.npz` or `.npz::key`.
        targets: The same.
        layout: `diffraction`: structures (n, [1,] 128, 128) of 0 and 1, or packed along the last axis, and
            spectra (n, 2, 2, L) or, with reversed sign, (n, 3, L) as R, G, B. `raw`: arrays as they are.
        groups: Column of labels; samples that share one stay on one side of a split.
        stratify: Column of labels or numbers to spread evenly over the folds.
        n_folds: Their number, to which the classes that numbers are cut into are matched.

    Raises:
        DataError: A file is unreadable, or its content breaks a rule.
    """
    x = prepare_inputs(read_array(inputs), layout, inputs)
    y = read_array(targets)
    check_numbers(y, targets)
    if len(x) != len(y):
        raise DataError(
            f"inputs and targets must have equally many samples, got {len(x)} in {inputs} and {len(y)} in {targets}"
        )
    columns = [read_array(column) if column else None for column in (groups, stratify)]
    for column, name in zip(columns, (groups, stratify), strict=True):
        if column is not None and column.shape != (len(x),):
            raise DataError(
                f"a column must have one value a sample, {len(x)} in all, got shape {column.shape} in {name}"
            )
    y, kept = convert_targets(y, layout, targets)
    n_dropped = len(x) - len(kept)
    x, y = x[kept], y[kept].astype(np.float32)
    group_column, strata = (column if column is None else column[kept] for column in columns)
    orbits = label_orbits(x, list(OPERATIONS) if layout == "diffraction" else [])
    joined = join_groups([orbits] if group_column is None else [orbits, group_column])
    binned = None if strata is None else bin_strata(strata, stratify or "", n_folds)
    return Dataset(x, y, joined, binned, describe_changes(n_dropped, orbits))


def read_array(source: str) -> Shaped[np.ndarray, "..."]:
    """Read one array of numbers or labels from `.npy`, `.npz` or `.npz::key`; pickles are refused."""
    name, _, key = source.partition("::")
    path = Path(name)
    if path.suffix not in (".npy", ".npz"):
        raise DataError(f"a data file must be .npy or .npz, got {shorten(source)}")
    try:
        if not path.is_file():
            raise DataError(f"a data file must exist, got {name}; check the path")
        keys = list_arrays(path)
        return read_one(path, pick_key(keys, key, name))
    except (ValueError, OSError) as error:
        raise DataError(
            f"a data file must hold plain arrays by numpy.save or savez, and fit into memory, got {shorten(name)}: "
            f"{first_line(error)}"
        ) from error


def pick_key(keys: list[str], key: str, name: str) -> str:
    if keys == [""] or (len(keys) == 1 and not key):
        return keys[0]
    if key not in keys:
        asked = f"{show_value(key)}{suggest(key, keys)}" if key else "none"
        raise DataError(f"a .npz with several arrays needs ::key out of {first_few(keys, 8)}, got {asked} for {name}")
    return key


def check_numbers(array: Shaped[np.ndarray, "..."], source: str) -> None:
    if array.dtype.kind not in "biuf":
        raise DataError(f"data must be real numbers, got {array.dtype} in {source}")
    if array.ndim < 2 or array.size == 0:
        raise DataError(
            f"data must have a sample axis and at least one more, none empty, got shape {array.shape} in {source}"
        )
    broken = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
    if len(broken):
        raise DataError(
            f"data must be finite, got NaN or infinity in {len(broken)} of {len(array)} samples of {source} "
            f"(samples {first_few([str(i) for i in broken])})"
        )


def prepare_inputs(array: Shaped[np.ndarray, "..."], layout: str, source: str) -> Float[np.ndarray, "sample *input"]:
    """Check inputs and bring them into the network's form: float32, structures as -1 and 1 with a channel axis.

    Raises:
        DataError: The shape or the values are not those of the layout.
    """
    check_numbers(array, source)
    if layout == "raw":
        with np.errstate(over="ignore"):
            converted = array.astype(np.float32)
        if not np.isfinite(converted).all():
            largest = np.finfo(np.float32).max
            raise DataError(f"inputs must be within {largest:.2g} as float32, got larger ones in {source}")
        return converted
    if array.dtype == np.uint8 and array.shape[-2:] == (SIDE_PX, SIDE_PX // 8):
        array = np.unpackbits(array, axis=-1)
    if array.ndim == 3:
        array = array[:, None]
    if array.shape[1:] != (1, SIDE_PX, SIDE_PX):
        raise DataError(
            f"structures must have shape (n, 1, {SIDE_PX}, {SIDE_PX}), (n, {SIDE_PX}, {SIDE_PX}) or packed "
            f"(n, {SIDE_PX}, {SIDE_PX // 8}) uint8, got {array.shape} in {source}"
        )
    if not np.isin(array, (0, 1)).all():
        raise DataError(f"structures must be 0 and 1, got values from {array.min()} to {array.max()} in {source}")
    return array.astype(np.float32) * 2 - 1


def convert_targets(
    targets: Shaped[np.ndarray, "sample *target"], layout: str, source: str
) -> tuple[Shaped[np.ndarray, "sample *converted"], Int[np.ndarray, " kept"]]:
    """Turn R, G, B into quadrants and find the samples that have labels."""
    everything = np.arange(len(targets))
    if layout == "raw":
        return targets, everything
    if targets.ndim == 3 and targets.shape[1] == 3:
        kept = np.flatnonzero((targets != 0).any(-1).all(-1))  # a row of zeros means: not simulated
        targets = -targets[:, RGB_OF_QUADRANT]
    elif targets.ndim == 4 and targets.shape[1:3] == (2, 2):
        kept = everything
    else:
        raise DataError(
            f"spectra must have shape (n, 2, 2, wavelengths) or (n, 3, wavelengths), got {targets.shape} in {source}"
        )
    if len(kept) == 0:
        raise DataError(f"some sample must have all of its spectra, got {source} with an empty row in each")
    low, high = targets[kept].min(), targets[kept].max()
    if low < -0.05 or high > 1.05:  # an instrument's noise may step over the limits a little
        raise DataError(f"spectra are shares of the incident power, 0 to 1, got {low:.3g} to {high:.3g} in {source}")
    return targets, kept


def label_orbits(inputs: Float[np.ndarray, "sample *input"], operations: Sequence[str]) -> Int[np.ndarray, " sample"]:
    """Number the samples so that images of one another under the group, duplicates included, share a number."""
    group = generate_group(operations)
    canonical = [
        min(apply_operation(operation, sample, STRUCTURE_AXES).tobytes() for operation in group)
        if operations
        else sample.tobytes()
        for sample in inputs
    ]
    numbers = {content: number for number, content in enumerate(dict.fromkeys(canonical))}
    return np.array([numbers[content] for content in canonical])


def bin_strata(column: Shaped[np.ndarray, " sample"], source: str, n_folds: int) -> Int[np.ndarray, " sample"]:
    """Number the classes of a column.

    Real numbers are cut at their quantiles, and so are whole ones if their classes have fewer samples than there are
    folds on average: up to five bins, each large enough for all folds.

    Raises:
        DataError: A number is missing.
    """
    broken = list(np.flatnonzero(~np.isfinite(column))) if column.dtype.kind == "f" else []
    if len(broken):
        raise DataError(
            f"data.stratify must have a number for each sample, got NaN or infinity in {source} "
            f"(samples {first_few([str(i) for i in broken])}); fill them in or leave data.stratify out"
        )
    many = len(np.unique(column)) * n_folds > len(column)
    if column.dtype.kind == "f" or (column.dtype.kind in "iu" and many):
        n_bins = max(1, min(N_BINS, len(column) // n_folds))
        column = np.searchsorted(np.quantile(column, np.arange(1, n_bins) / n_bins), column)
    return np.unique(column, return_inverse=True)[1]


def describe_changes(n_dropped: int, orbits: Int[np.ndarray, " sample"]) -> tuple[str, ...]:
    notes = []
    if n_dropped:
        notes.append(f"{n_dropped} samples with an empty row of spectra are left out")
    n_images = len(orbits) - len(np.unique(orbits))
    if n_images:
        notes.append(
            f"{n_images} samples are images of another under the symmetry; each stays in the fold of its original"
        )
    return tuple(notes)


def build_views(
    dataset: Dataset, symmetry: Sequence[str]
) -> tuple[Float[np.ndarray, "view sample *input"], Float[np.ndarray, "view sample *target"]]:
    """Move all samples by each operation of a group, targets permuted along; the first view is the sample itself.

    Args:
        dataset: The samples.
        symmetry: Names of the operations that generate the group.
    """
    group = generate_group(symmetry)
    if len(group) == 1:
        return dataset.inputs[None], dataset.targets[None]
    inputs = np.stack([apply_operation(g, dataset.inputs, STRUCTURE_AXES) for g in group])
    return inputs, np.stack([apply_operation(g, dataset.targets, SPECTRA_AXES) for g in group])


@dataclass(frozen=True)
class TargetAxes:
    """How to show targets: channels, each a curve over `x`."""

    channels: tuple[str, ...]
    x: Float[np.ndarray, " value"]
    label: str

    def flatten(self, values: Float[np.ndarray, "sample *target"]) -> Float[np.ndarray, "sample channel value"]:
        return values.reshape(len(values), len(self.channels), len(self.x))


def describe_targets(layout: str, shape: tuple[int, ...], wavelengths_nm: tuple[float, float]) -> TargetAxes:
    """Name the axes of targets: quadrants and wavelengths in the diffraction layout, else indices.

    Args:
        layout: `diffraction` or `raw`.
        shape: Of one target.
        wavelengths_nm: First and last.
    """
    places = list(np.ndindex(shape[:-1]))
    if layout == "diffraction":
        x = np.linspace(*wavelengths_nm, shape[-1])
        return TargetAxes(tuple(f"quadrant x{i} y{j}" for i, j in places), x, "wavelength (nm)")
    names = tuple("target " + ",".join(map(str, place)) if place else "target" for place in places)
    return TargetAxes(names, np.arange(float(shape[-1])), "index of the target's last axis")
