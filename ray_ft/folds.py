"""Held-out folds, dealt once by scikit-learn and named by a hash that every result carries."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int, Shaped

from ray_ft.errors import DataError

__all__ = ["Splits", "deal_folds", "join_groups"]


@dataclass(frozen=True)
class Splits:
    """Which fold of each repeat holds out each sample: `fold_of[repeat][sample]`."""

    fold_of: tuple[tuple[int, ...], ...]
    seed: int

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
        """Sixteen hexadecimal digits that name the deal."""
        return hashlib.sha256(json.dumps(self.fold_of).encode()).hexdigest()[:16]

    def held_out(self, repeat: int, fold: int) -> Int[np.ndarray, " held_out"]:
        return np.flatnonzero(np.array(self.fold_of[repeat]) == fold)

    def training(self, repeat: int, fold: int) -> Int[np.ndarray, " training"]:
        return np.flatnonzero(np.array(self.fold_of[repeat]) != fold)


def deal_folds(
    groups: Int[np.ndarray, " sample"],
    n_folds: int,
    n_repeats: int,
    seed: int,
    strata: Shaped[np.ndarray, " sample"] | None = None,
) -> Splits:
    """Deal the samples into folds; a group stays together, and folds get equal shares of each stratum.

    Args:
        groups: Group of each sample, as numbers from 0.
        n_folds: Folds of a repeat.
        n_repeats: Independent deals.
        seed: Of the first deal; a later repeat adds its number.
        strata: Class of each sample.

    Raises:
        DataError: There are fewer groups than folds.
    """
    n_groups = len(np.unique(groups))
    if n_groups < n_folds:
        raise DataError(
            f"the samples must make at least as many groups as there are folds, got {len(groups)} samples in "
            f"{n_groups} groups for {n_folds} folds; lower cv.folds or add samples"
        )
    return Splits(tuple(deal_once(groups, n_folds, seed + repeat, strata) for repeat in range(n_repeats)), seed)


def deal_once(
    groups: Int[np.ndarray, " sample"], n_folds: int, seed: int, strata: Shaped[np.ndarray, " sample"] | None
) -> tuple[int, ...]:
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold  # a second, which only the dealer pays

    splitter = (GroupKFold if strata is None else StratifiedGroupKFold)(n_folds, shuffle=True, random_state=seed)
    fold_of = np.empty(len(groups), int)
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
