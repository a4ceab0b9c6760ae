"""Held-out folds, dealt once by scikit-learn and named by a hash that every result carries.

A training part is what a fold leaves; its members train on it, but for an inner part that stops and selects under the
nested protocol, and for what a learning curve does without.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int, Shaped

from ray_ft.data.randomness import name_stream
from ray_ft.errors import DataError

Parts = tuple[tuple[tuple[int, ...], ...], ...]  # samples of a part of each repeat and fold
ByFold = tuple[tuple[int, ...], ...]  # by repeat and fold


@dataclass(frozen=True)
class Deals:
    """What means over samples and tests need to know of the folds.

    Attributes:
        sizes: Samples that each repeat and fold holds out.
        held_out: Number of the set of samples that it holds out, the same for the same set.
        only_one: Whether there is but one way to deal the groups into the folds.
    """

    sizes: ByFold
    held_out: ByFold
    only_one: bool = False

    @classmethod
    def even(cls, n_repeats: int, n_folds: int) -> "Deals":
        """Folds of one size, each repeat another deal."""
        numbers = np.arange(n_repeats * n_folds).reshape(n_repeats, n_folds)
        return cls(((1,) * n_folds,) * n_repeats, tuple(map(tuple, numbers.tolist())))

    @cached_property
    def copies(self) -> dict[tuple[int, ...], list[int]]:
        """The repeats that are the same deal, whatever the numbers of its folds, by the sets that it holds out."""
        found: dict[tuple[int, ...], list[int]] = {}
        for repeat, sets in enumerate(self.held_out):
            found.setdefault(tuple(sorted(sets)), []).append(repeat)
        return found

    def merge(self, values: Float[np.ndarray, "repeat fold"]) -> Float[np.ndarray, "deal fold"]:
        """Average the repeats that are the same deal: they are like further seeds, and no further evidence."""
        aligned = np.take_along_axis(np.asarray(values, np.float64), np.argsort(self.held_out, axis=1), 1)
        return np.stack([aligned[repeats].mean(0) for repeats in self.copies.values()])

    @cached_property
    def merged_sizes(self) -> Float[np.ndarray, "deal fold"]:
        """Samples of the folds of each different deal, counted as often as it was dealt."""
        n_copies = np.array([len(repeats) for repeats in self.copies.values()])
        return np.asarray(self.merge(np.array(self.sizes, np.float64)) * n_copies[:, None])


@dataclass(frozen=True)
class Splits:
    """Who stands where."""

    fold_of: tuple[tuple[int, ...], ...]  # which fold holds out each sample: `fold_of[repeat][sample]`
    seed: int  # of the deal
    inner_of: Parts = ()  # what stops and selects; empty where other folds do
    unused_of: Parts = ()  # what neither trains nor stops

    @property
    def n_repeats(self) -> int:
        return len(self.fold_of)

    @property
    def n_samples(self) -> int:
        return len(self.fold_of[0])

    @property
    def n_folds(self) -> int:
        return max(self.fold_of[0]) + 1

    @cached_property
    def hash(self) -> str:
        """Sixteen hexadecimal digits that name the folds."""
        return hashlib.sha256(json.dumps(self.fold_of).encode()).hexdigest()[:16]

    def check(self) -> None:
        """Make sure that folds read from a file are some; raise ValueError where they are not."""
        folds = np.array(self.fold_of)  # refuses repeats of unequal lengths
        every = np.unique(folds)
        dealt = folds.ndim == 2 and all(np.array_equal(np.unique(row), every) for row in folds)
        if not dealt or len(every) < 2 or not np.array_equal(every, np.arange(len(every))):
            raise ValueError("each repeat must deal every sample to one of two or more folds")
        for parts in (self.inner_of, self.unused_of):
            shaped = not parts or [len(repeat) for repeat in parts] == [len(every)] * self.n_repeats
            if not shaped or any(not 0 <= i < self.n_samples for repeat in parts for part in repeat for i in part):
                raise ValueError("inner and unused parts must name samples, for each repeat and fold")

    def held_out(self, repeat: int, fold: int) -> Int[np.ndarray, " held_out"]:
        return np.flatnonzero(np.array(self.fold_of[repeat]) == fold)

    def inner(self, repeat: int, fold: int) -> Int[np.ndarray, " inner"]:
        return np.array(self.inner_of[repeat][fold] if self.inner_of else (), int)

    def training_part(self, repeat: int, fold: int) -> Int[np.ndarray, " part"]:
        """What may be learned from, by training or by stopping."""
        rest = np.flatnonzero(np.array(self.fold_of[repeat]) != fold)
        return np.setdiff1d(rest, self.unused_of[repeat][fold]) if self.unused_of else rest

    def training(self, repeat: int, fold: int) -> Int[np.ndarray, " training"]:
        return np.setdiff1d(self.training_part(repeat, fold), self.inner(repeat, fold))

    def watched(self, repeat: int, fold: int) -> Int[np.ndarray, " watched"]:
        """What members predict after each epoch: the held-out samples, then the inner part."""
        return np.concatenate([self.held_out(repeat, fold), self.inner(repeat, fold)])

    @cached_property
    def sizes(self) -> Int[np.ndarray, "repeat fold"]:
        """Held-out samples of each fold."""
        return np.stack([np.bincount(row, minlength=self.n_folds) for row in self.fold_of])

    @property
    def n_train(self) -> float:
        """Mean samples of the training parts."""
        return self.n_samples / self.n_folds / self.test_share

    @cached_property
    def test_share(self) -> float:
        """Held-out samples for each that may be learned from, n_test / n_train of the corrected tests."""
        both = [(r, k) for r in range(self.n_repeats) for k in range(self.n_folds)]
        return sum(len(self.held_out(*key)) for key in both) / sum(len(self.training_part(*key)) for key in both)


def deal_folds(
    groups: Int[np.ndarray, " sample"],
    n_folds: int,
    n_repeats: int,
    seed: int,
    strata: Shaped[np.ndarray, " sample"] | None = None,
) -> Splits:
    """Deal the samples into folds; a group stays together, and folds get equal shares of each stratum.

    The seed is that of the first deal; a later repeat adds its number.

    Raises:
        DataError: There are fewer groups than folds, or no stratum has a sample for each fold.
    """
    n_groups = len(np.unique(groups))
    if n_groups < n_folds:
        raise DataError(
            f"the samples must make at least as many groups as there are folds, got {len(groups)} samples in "
            f"{n_groups} groups for {n_folds} folds; lower cv.folds or add samples"
        )
    largest = n_folds if strata is None else int(np.unique(strata, return_counts=True)[1].max())
    if largest < n_folds:
        raise DataError(
            f"some class of data.stratify must have a sample for each of {n_folds} folds, got {largest} in the largest "
            "one; bin the column, lower cv.folds, or leave data.stratify out"
        )
    return Splits(tuple(deal_once(groups, n_folds, seed + repeat, strata) for repeat in range(n_repeats)), seed)


def describe_deals(splits: Splits, groups: Int[np.ndarray, " sample"]) -> Deals:
    """Find the sizes of the folds, and which of the repeats are the same deal."""
    numbers: dict[bytes, int] = {}
    held_out = [
        tuple(numbers.setdefault(splits.held_out(r, k).tobytes(), len(numbers)) for k in range(splits.n_folds))
        for r in range(splits.n_repeats)
    ]
    only_one = len(np.unique(groups)) == splits.n_folds
    return Deals(tuple(map(tuple, splits.sizes.tolist())), tuple(held_out), only_one)


def limit_training(splits: Splits, groups: Int[np.ndarray, " sample"], size: int) -> Splits:
    """Leave this many samples in each training part, or a few less where groups stay whole.

    Smaller sizes leave subsets of what larger ones leave.
    """
    smallest = min(len(splits.training_part(r, k)) for r in range(splits.n_repeats) for k in range(splits.n_folds))
    if size > smallest:
        raise DataError(
            f"cv.train_size (or --sizes) must be at most the smallest training part, {smallest} samples, got {size}; "
            "lower it"
        )

    def choose_unused(repeat: int, fold: int) -> tuple[int, ...]:
        part = splits.training_part(repeat, fold)
        rng = np.random.default_rng(name_stream(splits.seed, "train_size/", repeat, fold))
        labels, index = np.unique(groups[part], return_inverse=True)
        rank = rng.permutation(len(labels))[index]
        kept = rank < np.searchsorted(np.bincount(rank).cumsum(), size, side="right")
        if not kept.any():
            raise DataError(f"cv.train_size (or --sizes) must hold at least one group of samples, got {size}; raise it")
        return tuple(part[~kept].tolist())

    return replace(splits, unused_of=map_folds(choose_unused, splits))


def deal_inner(
    splits: Splits, groups: Int[np.ndarray, " sample"], strata: Shaped[np.ndarray, " sample"] | None = None
) -> Splits:
    """Set an inner part of each training part aside, as large a share of it as a fold is of all samples."""

    def choose_inner(repeat: int, fold: int) -> tuple[int, ...]:
        part = splits.training_part(repeat, fold)
        if len(np.unique(groups[part])) < splits.n_folds:
            raise DataError(
                f"the nested protocol deals each training part again into {splits.n_folds} folds, got "
                f"{len(np.unique(groups[part]))} groups in one; lower cv.folds, or use cv.protocol: crossfit"
            )
        seed = int(np.random.default_rng(name_stream(splits.seed, repeat, fold)).integers(2**31))
        dealt = deal_once(groups[part], splits.n_folds, seed, None if strata is None else strata[part])
        return tuple(part[np.array(dealt) == 0].tolist())

    return replace(splits, inner_of=map_folds(choose_inner, splits))


def map_folds(choose: Callable[[int, int], tuple[int, ...]], splits: Splits) -> Parts:
    return tuple(tuple(choose(r, k) for k in range(splits.n_folds)) for r in range(splits.n_repeats))


def deal_once(
    groups: Int[np.ndarray, " sample"], n_folds: int, seed: int, strata: Shaped[np.ndarray, " sample"] | None
) -> tuple[int, ...]:
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold  # a second, which only the dealer pays

    # Of inner and limited parts, which are small, all classes may have fewer samples than there are folds.
    stratified = strata is not None and np.unique(strata, return_counts=True)[1].max() >= n_folds
    splitter = (StratifiedGroupKFold if stratified else GroupKFold)(n_folds, shuffle=True, random_state=seed)
    fold_of = np.empty(len(groups), int)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # it is in as many folds as it has samples
        for fold, (_, held_out) in enumerate(splitter.split(groups, strata, groups)):
            fold_of[held_out] = fold
    return tuple(fold_of.tolist())


def join_groups(columns: Sequence[Shaped[np.ndarray, " sample"]]) -> Int[np.ndarray, " sample"]:
    """Number the groups that result when samples equal in any of the columns belong together."""
    parent = np.arange(len(columns[0]))
    for column in columns:
        _, labels = np.unique(column, return_inverse=True)
        for label in range(labels.max() + 1):
            joined = np.unique(parent[labels == label])
            parent[np.isin(parent, joined)] = joined[0]
    return np.unique(parent, return_inverse=True)[1]
