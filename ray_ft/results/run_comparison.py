"""Runs on the same data and splits, compared as strategies of one run are: other checkpoints, augmentations, code."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from ray_ft.errors import RunFolderError
from ray_ft.results.summary import Summary, tabulate_comparisons
from ray_ft.statistics.comparison import Comparison, compare_all, mark_unsettled

SHARED = {
    "data_hash": "the data",
    "splits_hash": "the splits",
    "metric": "the metric",
    "protocol": "the protocol",
    "test_share": "the size of the training parts",
}


class RunComparison(BaseModel, frozen=True):
    """Strategies of several runs, named `RUN/STRATEGY`, each with mean and standard deviation over folds x seeds.

    Compared are strategies of one name, and those of the lowest mean of each run.
    """

    metric: str
    scores: dict[str, tuple[float, float]]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]

    def table(self) -> Any:
        """One row a comparison, as a `pandas.DataFrame`."""
        return tabulate_comparisons(self.comparisons)


def compare(runs: Iterable[str | Path]) -> RunComparison:
    """Compare two or more finished runs by the corrected resampled and the Bayesian correlated t-test.

    Raises:
        RunFolderError: A run is not finished, given twice, or of other data or splits.
    """
    runs = list(runs)
    folders = [Path(run).resolve() for run in runs]
    if len(folders) < 2 or len(set(folders)) < len(folders):
        raise RunFolderError(f"runs to compare are two or more different ones, got {', '.join(map(str, runs))}")
    summaries = dict(zip(name_runs(runs), map(Summary.load, runs), strict=True))
    check_shared(summaries)
    first = next(iter(summaries.values()))
    scored = {
        f"{run}/{name}": strategy
        for run, summary in summaries.items()
        for name, strategy in summary.strategies.items()
        if strategy.score_mean is not None
    }
    means = {name: strategy.fold_means for name, strategy in scored.items()}
    pairs = list(choose_pairs(summaries, scored))
    comparisons = compare_all(means, first.rope, first.test_share, pairs, first.deals)
    comparisons = mark_unsettled(comparisons, {name for name, own in scored.items() if not own.settled})
    scores = {name: (s.score_mean or 0.0, s.score_std or 0.0) for name, s in scored.items()}
    notes = [f"{run}: no strategy beats its best baseline" for run, own in summaries.items() if own.winner is None]
    notes += [
        f"{pair.first} and {pair.second} are identical on every fold: the same weights, settings and seeds?"
        for pair in comparisons
        if np.array_equal(means[pair.first], means[pair.second])
    ]
    return RunComparison(metric=first.metric, scores=scores, comparisons=comparisons, notes=tuple(notes))


def name_runs(runs: Sequence[str | Path]) -> list[str]:
    """By the names of their folders, or the whole paths where those are alike."""
    names = [Path(run).resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def check_shared(summaries: Mapping[str, Summary]) -> None:
    (one, first), *others = summaries.items()
    for other, summary in others:
        pairs = {what: (getattr(first, key), getattr(summary, key)) for key, what in SHARED.items()}
        if differing := [f"{what} ({own} and {its})" for what, (own, its) in pairs.items() if own != its]:
            raise RunFolderError(
                f"runs can be compared on the same data and splits, but {one} and {other} differ in "
                f"{', '.join(differing)}; repeat one with the other's data, cv.folds, cv.repeats and cv.seed"
            )


def choose_pairs(summaries: Mapping[str, Summary], scored: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Strategies of one name, then those of the lowest mean where they differ in name."""
    for (one, first), (other, second) in combinations(summaries.items(), 2):
        pairs = ((f"{one}/{name}", f"{other}/{name}") for name in first.strategies)
        yield from (pair for pair in pairs if set(pair) <= scored.keys())
        if first.lowest != second.lowest:
            yield f"{one}/{first.lowest}", f"{other}/{second.lowest}"
