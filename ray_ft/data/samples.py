"""Samples: inputs and targets read, checked, and moved by the symmetry into views."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped

from ray_ft.data.folds import join_groups
from ray_ft.data.packing import Layout
from ray_ft.data.sources import read_array, read_inputs, read_source
from ray_ft.domains import Domain, View
from ray_ft.errors import DataError, first_few, shorten

Encode = Callable[[Shaped[np.ndarray, "..."], str], tuple[Shaped[np.ndarray, "..."], tuple[str, ...]]]
N_BINS = 5  # into which a column of numbers is cut, at most


@dataclass(frozen=True)
class Samples:
    """Samples in the network's own terms; `notes` say what was done to the user's files."""

    inputs: Float[np.ndarray, "sample *input"]
    targets: Float[np.ndarray, "sample *target"]  # NaN where a label is missing; each sample has one at least
    groups: Int[np.ndarray, " sample"]
    strata: Shaped[np.ndarray, " sample"] | None
    notes: tuple[str, ...]
    domain: Domain
    classes: tuple[str, ...] = ()  # names of the targets' columns, where these are classes or labels
    keys: tuple[str, str] = ("", "")  # under which inputs and targets stand in their files: arrays, or names of columns
    layout: Layout = ()  # of the inputs, where several are packed
    answered: bool = False  # whether the targets are what the pretrained network says

    def __len__(self) -> int:
        return len(self.inputs)

    def move_inputs(self, symmetry: Sequence[str], step: int = 1) -> Float[np.ndarray, "view sample *input"]:
        """Move all inputs by the operations of a group, or every `step`-th of them; the first is the sample itself."""
        views = self.domain.list_views(symmetry)[::step]
        if len(views) == 1:
            return self.inputs[None]
        inputs = torch.from_numpy(self.inputs.copy())
        return np.stack([view.move_inputs(inputs).numpy() for view in views])

    def move_targets(self, symmetry: Sequence[str], step: int = 1) -> Float[np.ndarray, "view sample *target"]:
        """Move the targets along with their inputs."""
        views = self.domain.list_views(symmetry)[::step]
        if len(views) == 1 or self.classes:  # which stay what they are
            return np.stack([self.targets] * len(views))
        targets = torch.from_numpy(self.targets.copy())
        return np.stack([view.move_targets(targets).numpy() for view in views])


@dataclass(frozen=True)
class Arrays:
    """A data set as its user has it, before anything is checked; columns have a value a sample."""

    inputs: Shaped[np.ndarray, "..."]
    targets: Shaped[np.ndarray, "..."]
    groups: Shaped[np.ndarray, "..."] | None = None
    stratify: Shaped[np.ndarray, "..."] | None = None
    keys: tuple[str, str] = ("", "")
    layout: Layout = ()  # of the inputs, where several are packed


@dataclass(frozen=True)
class Sources:
    """Where the arrays of a data set come from: files, as `read_array` takes them, or names for messages.

    `keys` are those of a training's inputs and targets, whose columns are taken where a table's are not named.
    """

    inputs: str
    targets: str
    groups: str | None = None
    stratify: str | None = None
    keys: tuple[str, str] = ("", "")

    def read(self) -> Arrays:
        inputs, targets = read_inputs(self.inputs, self.keys[0]), read_source(self.targets, self.keys[1])
        groups, strata = (None if source is None else read_array(source) for source in (self.groups, self.stratify))
        return Arrays(inputs.array, targets.array, groups, strata, (inputs.key, targets.key), inputs.layout)


def load_samples(
    inputs: str,
    targets: str,
    domain: Domain,
    groups: str | None = None,
    stratify: str | None = None,
    n_folds: int = 5,
    encode: Encode = lambda array, source: (array, ()),
) -> Samples:
    """Read and check a data set, from files as `read_array` takes them."""
    sources = Sources(inputs, targets, groups, stratify)
    return build_samples(sources.read(), sources, domain, n_folds, encode)


def build_samples(arrays: Arrays, sources: Sources, domain: Domain, n_folds: int, encode: Encode) -> Samples:
    """Check a data set and bring it into the network's terms.

    Samples that share a label of the column `groups` stay on one side of a split. The labels or numbers of `stratify`
    are to be spread evenly over the folds, to whose number the classes that numbers are cut into are matched; where it
    is left out, one class a sample is. `encode` brings targets into numbers, and names the columns of classes. A target
    that is NaN is a missing label; samples without any are left out.

    Raises:
        DataError: A file is unreadable, or its content breaks a rule.
    """
    inputs, targets = shorten(sources.inputs), shorten(sources.targets)
    x = prepare_inputs(arrays.inputs, domain, inputs)
    y, kept, classes, notes = prepare_targets(arrays.targets, domain, targets, encode)
    n = len(arrays.targets)
    if len(x) != n:
        raise DataError(
            f"inputs and targets must have equally many samples, got {len(x)} in {inputs} and {n} in {targets}"
        )
    group_column, strata = (
        None if column is None else check_column(column, key, source or key, n)
        for key, column, source in (
            ("data.groups", arrays.groups, sources.groups),
            ("data.stratify", arrays.stratify, sources.stratify),
        )
    )
    x = x[kept]
    group_column, strata = (None if column is None else column[kept] for column in (group_column, strata))
    orbits = label_orbits(x, domain.list_views(domain.operations))
    joined = join_groups([orbits] if group_column is None else [orbits, group_column])
    binned = None if strata is None else bin_strata(strata, n_folds)
    if binned is None and classes and np.allclose(y.sum(1), 1):
        binned = y.argmax(1)
    notes = (*notes, *describe_images(orbits), *describe_targets(y))
    return Samples(x, y, joined, binned, notes, domain, classes, arrays.keys, arrays.layout)


def have_same_values(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether shapes of a sample differ in axes of length 1 alone: the same values, in the same order."""
    return [n for n in one if n != 1] == [n for n in other if n != 1]


def find_labelled(
    targets: Shaped[np.ndarray, "sample *target"], kept: Int[np.ndarray, " kept"], source: str
) -> tuple[Int[np.ndarray, " labelled"], tuple[str, ...]]:
    """Find which of some samples have a label, and count what the others and these lack.

    Raises:
        DataError: None has.
    """
    missing = np.isnan(targets[kept]).reshape(len(kept), -1)
    labelled = kept[~missing.all(1)]
    if not len(labelled):
        raise DataError(f"some sample must have a target, got NaN alone in {source}")
    n_without, n_missing, n_never = len(kept) - len(labelled), missing[~missing.all(1)].sum(), missing.all(0).sum()
    which = f"{n_without} samples without any target are" if n_without > 1 else "1 sample without any target is"
    notes = [f"{which} left out"] if n_without else []
    if n_missing:
        notes.append(f"{n_missing} of {missing.shape[1] * len(labelled)} target values are missing")
        notes += [f"{n_never} of the {missing.shape[1]} values of a target have no label at all"] if n_never else []
    return labelled, tuple(notes)


def describe_targets(targets: Float[np.ndarray, "sample *target"]) -> Iterator[str]:
    if not (np.fmax.reduce(targets) > np.fmin.reduce(targets)).any():
        yield "all samples have the same targets, so there is nothing to learn from them; check data.targets"


def check_column(column: Shaped[np.ndarray, "..."], key: str, source: str, n: int) -> Shaped[np.ndarray, " sample"]:
    if column.shape != (n,):
        raise DataError(f"a column must have one value a sample, {n} in all, got shape {column.shape} in {source}")
    if column.dtype.kind == "f" and len(broken := np.flatnonzero(~np.isfinite(column))):
        raise DataError(
            f"{key} must have a value for each sample, got NaN or infinity in {source} "
            f"(samples {first_few([str(i) for i in broken])}); fill them in or leave {key} out"
        )
    return column


def check_numbers(array: Shaped[np.ndarray, "..."], source: str, n_axes: int = 2, with_gaps: bool = False) -> None:
    """Refuse what is not finite, but for NaN where there may be gaps, or does not fit into float32."""
    if array.dtype.kind not in "biuf":
        raise DataError(f"data must be real numbers, got {array.dtype} in {source}")
    if array.ndim < n_axes or array.size == 0:
        more = " and at least one more" if n_axes > 1 else ""
        raise DataError(f"data must have a sample axis{more}, none empty, got shape {array.shape} in {source}")
    sizes = np.abs(array[~np.isnan(array)] if with_gaps else array)
    if not np.isfinite(sizes).all():
        bad = np.isinf(array) if with_gaps else ~np.isfinite(array)
        broken = np.flatnonzero(bad.reshape(len(array), -1).any(1))
        rule, got = ("finite, or NaN where missing", "") if with_gaps else ("finite", "NaN or ")
        raise DataError(
            f"data must be {rule}, got {got}infinity in {len(broken)} of {len(array)} samples of {source} "
            f"(samples {first_few([str(i) for i in broken])})"
        )
    limit, largest = np.finfo(np.float32).max, sizes.max(initial=0)
    if largest > limit:
        raise DataError(f"data must be within {limit:.2g}, as float32, got {largest:.2g} in {source}; use another unit")


def prepare_inputs(array: Shaped[np.ndarray, "..."], domain: Domain, source: str) -> Float[np.ndarray, "sample *input"]:
    """Check inputs and bring them into the network's form."""
    check_numbers(array, source)
    return domain.convert_inputs(array, source)


def prepare_targets(
    array: Shaped[np.ndarray, "..."], domain: Domain, source: str, encode: Encode
) -> tuple[Float[np.ndarray, "kept *target"], Int[np.ndarray, " kept"], tuple[str, ...], tuple[str, ...]]:
    """Check targets and bring them into the network's form.

    Returns:
        Those of the samples that are kept, which samples these are, names of their columns where these are classes, and
        notes on what was done.
    """
    y, classes = encode(array, source)
    check_numbers(y, source, n_axes=1, with_gaps=True)
    kept, notes = np.arange(len(y)), tuple[str, ...]()
    if not classes:
        y, kept, notes = domain.convert_targets(y, source)
    kept, gaps = find_labelled(y, kept, source)
    return y[kept].astype(np.float32), kept, classes, (*notes, *gaps)


def label_orbits(inputs: Float[np.ndarray, "sample *input"], views: Sequence[View]) -> Int[np.ndarray, " sample"]:
    """Number the samples so that images of one another under the group, duplicates included, share a number."""
    moved = (view.move_inputs(torch.from_numpy(inputs)).numpy() for view in views)
    contents = ([sample.tobytes() for sample in image] for image in moved)
    canonical = functools.reduce(lambda lowest, image: list(map(min, lowest, image)), contents)
    numbers = {content: number for number, content in enumerate(dict.fromkeys(canonical))}
    return np.array([numbers[content] for content in canonical])


def bin_strata(column: Shaped[np.ndarray, " sample"], n_folds: int) -> Int[np.ndarray, " sample"]:
    """Number the classes of a column.

    Real numbers are cut at their quantiles, and so are whole ones if their classes have fewer samples than there are
    folds on average: up to five bins, each large enough for all folds.
    """
    many = len(np.unique(column)) * n_folds > len(column)
    if column.dtype.kind == "f" or (column.dtype.kind in "iu" and many):
        n_bins = max(1, min(N_BINS, len(column) // n_folds))
        column = np.searchsorted(np.quantile(column, np.arange(1, n_bins) / n_bins), column)
    return np.unique(column, return_inverse=True)[1]


def describe_images(orbits: Int[np.ndarray, " sample"]) -> tuple[str, ...]:
    n_images = len(orbits) - len(np.unique(orbits))
    note = f"{n_images} samples are images of another under the symmetry; each stays in the fold of its original"
    return (note,) if n_images else ()
