"""Which ensemble to build: of whose members, weighed how, with or without averaging over the symmetry.

Each is scored by blind members, by weights that the scored fold did not choose. The plain one, the mean of the winner's
members, is taken unless another is better beyond noise.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ray_ft.data.folds import Deals, Splits, describe_deals
from ray_ft.ensemble.weights import METHODS, Blind, OutOfFold, Weights, blend, choose_weights, score_folds
from ray_ft.objectives import Targets
from ray_ft.search.problem import Problem
from ray_ft.statistics.comparison import Comparison, compare_all

UNIFORM = METHODS[0]
MIXES = ("greedy", "stacked")  # ways to weigh the members of all strategies
OF_ALL = " of all strategies"


@dataclass(frozen=True)
class Option:
    """An ensemble that could be built; `blind` is what it says of samples that its members never saw."""

    strategies: tuple[str, ...]
    method: str
    weights: Weights
    blind: Blind

    @property
    def used(self) -> tuple[str, ...]:
        """The strategies that have some weight in some fold."""
        shares = self.weights.sum((0, 1)).reshape(len(self.strategies), -1).sum(1)
        return tuple(name for name, share in zip(self.strategies, shares, strict=True) if share > 0)


@dataclass(frozen=True)
class Judge:
    """What ensembles of a run are judged by."""

    problem: Problem
    rope: float  # half-width of the region of practical equivalence, as a share of the better mean

    @property
    def splits(self) -> Splits:
        return self.problem.splits

    @property
    def targets(self) -> Targets:
        return self.problem.samples.targets

    @property
    def deals(self) -> Deals:
        return describe_deals(self.splits, self.problem.samples.groups)

    def score(self, blind: Blind) -> float:
        """Mean loss of the mean over repeats."""
        return float(self.problem.objective.score(blind.mean(0), self.targets).mean())

    def weigh(self, method: str, columns: OutOfFold) -> Weights:
        return choose_weights(method, columns, self.targets, self.splits, self.problem.objective)

    def compare(self, blind: Mapping[str, Blind]) -> tuple[Comparison, ...]:
        """Compare each with the first, by fold models on their held-out folds."""
        scores = {
            name: score_folds(own, self.targets, self.splits, self.problem.objective) for name, own in blind.items()
        }
        first, *others = scores
        pairs = [(name, first) for name in others]
        return compare_all(scores, self.rope, self.splits.test_share, pairs, self.deals)


def list_options(
    judge: Judge, columns: Mapping[str, OutOfFold], own: Sequence[str], mixed: bool
) -> Iterator[tuple[str, Option]]:
    """List by name what could be built, the plain one first.

    Args:
        judge: It weighs them.
        columns: By strategy, what its members say of samples that they never saw.
        own: Strategies whose members are taken.
        mixed: Whether a mix of all strategies may take their place.
    """
    every = tuple(columns)
    kinds = [(method, tuple(own), method) for method in METHODS]
    if mixed and len(every) > len(own):
        kinds += [(method + OF_ALL, every, method) for method in MIXES]
    for name, strategies, method in kinds:
        stacked = np.concatenate([columns[strategy] for strategy in strategies])
        weights = judge.weigh(method, stacked)
        yield name, Option(strategies, method, weights, blend(stacked, weights, judge.splits))


def pick_option(asked: str, comparisons: Sequence[Comparison]) -> str:
    """Name the option to build: what is asked for, or the lowest that is better than the plain one beyond noise."""
    better = [pair for pair in comparisons if pair.verdict == "better" and pair.first != "single"]
    best = min(better, key=lambda pair: pair.difference).first if better else UNIFORM
    return best if asked == "auto" else asked
