"""What a run found, as a typed object: `summary.json` in the run folder, and tables for pandas."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, Field, computed_field, model_validator

from ray_ft.data.folds import Deals
from ray_ft.errors import RunFolderError
from ray_ft.files.writing import read_record
from ray_ft.objectives import METRICS, ZERO_SHOT
from ray_ft.results.records import Verdict
from ray_ft.runs.folder import RunFolder
from ray_ft.search.plan import name_candidate
from ray_ft.statistics.comparison import Comparison
from ray_ft.statistics.selection import Selection

COLUMNS = (
    "score_mean", "score_std", "fold_std", "seed_std", "best_epoch_mean", "optimism", "n_members", "n_trained_params",
)  # fmt: skip


class StrategySummary(BaseModel, frozen=True):
    """One strategy; scores are None and lists empty where no candidate completed, as folds x seeds have a hole.

    Attributes:
        score_mean: Mean over samples, repeats and seeds of the held-out loss, by choices that the fold did not make.
        score_std: Sample standard deviation of the members' scores, a spread; `fold_std` and `seed_std` are its parts,
            None with one seed.
        best_epoch_mean: Mean over samples of each curve's own minimum: what most tools print, too low.
        scores: By repeat, fold and seed.
        stop_epochs: By repeat and fold; epoch 0 is the pretrained network. As the candidates that were chosen.
        parts: Trained and all parameters by part of the network.
        layers: How many of the last layers learn, and no others, and of how many; None where it is not so, or unknown.
        candidates: How many completed, were stopped, failed.
        seconds: That its candidates took while they were searched, over all calls.
        optimism: By how much the best-epoch value is below the score, of the seeds that were searched.
        stops_early: Whether some fold stopped before its candidate's last epoch.
        settled: Whether it has had its best chance: what was tried brackets its best learning rate and length.
        unsettled_because: Why not, in words.
        n_candidates: How many were tried.
        lr_tried: Lowest and highest learning rate of them; None where it has none.
        best: Hyperparameters of the candidate of the lowest mean.
        second_half_share: Share of that candidate's progress in the second half of the summed learning rate.
        guide_score: Score of the recipe, the middle of the ranges that the config gives, at its own best epochs; None
            where there is none, or it was not completed.
        beside: Other measures of the same members on all samples that they never saw, which chose nothing, averaged
            over repeats and seeds.
    """

    score_mean: float | None
    score_std: float | None
    fold_std: float | None
    seed_std: float | None
    best_epoch_mean: float | None
    scores: list[list[list[float]]]
    stop_epochs: list[list[int]]
    chosen_candidates: list[list[int]]
    n_trained_params: int
    trained_share: float
    parts: dict[str, tuple[int, int]] = Field(min_length=1)
    candidates: dict[str, int]
    verdicts: dict[str, Verdict]
    seconds: float
    training: list[str]
    optimism: float | None
    stops_early: bool
    settled: bool
    unsettled_because: list[str]
    n_candidates: int
    lr_tried: tuple[float, float] | None
    best: dict[str, Any]
    second_half_share: float | None
    guide_score: float | None
    beside: dict[str, float] = {}
    layers: tuple[int, int] | None = None

    @computed_field  # type: ignore[prop-decorator]  # pydantic's way
    @property
    def n_members(self) -> int:
        return int(np.size(self.scores))

    @property
    def fold_means(self) -> Float[np.ndarray, "repeat fold"]:
        return np.asarray(np.mean(self.scores, axis=-1))


class BaselineSummary(BaseModel, frozen=True):
    """What costs no training; `scores` by repeat and fold, `beside` as of a strategy."""

    score_mean: float
    score_std: float
    scores: list[list[float]]
    beside: dict[str, float] = {}


class EnsembleSummary(BaseModel, frozen=True):
    """The ensemble; all scores are of blind members alone, weighed by what the scored fold did not choose.

    Attributes:
        score: Of the method that was taken.
        n_blind: Members that never saw a sample.
        scores: By method of weighing; `single` is the best member alone, chosen on the other folds.
        by_strategy: Scores of each strategy's members, averaged over members, and of their uniform ensemble.
        comparisons: Of each method, and of the mixes, with `uniform`.
        options: Scores of what could have been built, not averaged over the symmetry, the plain one first.
        pulled_score: Of the same members, weights pulled back to the pretrained ones by a share that the other folds
            chose; None where it was not tried.
        pulled_pair: The comparison with the same members as they were trained.
        pulled_shares: Of the way from the pretrained weights that is left, by repeat and fold; none where it is all.
        symmetric: Whether predictions are averaged over the symmetry.
        symmetric_score: Of the same members, predictions averaged over the symmetry; None where it was not tried.
        symmetric_pair: The comparison with the same members without it.
        n_views: Views of an input that a prediction averages over.
        cost: Products of a prediction, in multiples of those of the network's; None where it has none.
        soup_score: Of one network for each fold, its members' weights averaged; None where there is one seed.
    """

    score: float
    n_members: int
    n_blind: int
    path: str
    strategies: tuple[str, ...]
    method: str
    scores: dict[str, float]
    by_strategy: dict[str, tuple[float, float]]
    comparisons: tuple[Comparison, ...]
    options: dict[str, float] = {}
    pulled_score: float | None = None
    pulled_pair: Comparison | None = None
    pulled_shares: tuple[float, ...] = ()
    symmetric: bool = False
    symmetric_score: float | None = None
    symmetric_pair: Comparison | None = None
    n_views: int = 1
    cost: float | None = None
    soup_score: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def mixes(self) -> dict[str, float]:
        """The options that are mixes of all strategies."""
        return {name: score for name, score in self.options.items() if name not in self.scores}


class SearchSummary(BaseModel, frozen=True):
    """How the hyperparameters were searched, and with what budget."""

    method: str
    candidates: int  # of each strategy
    minutes: float | None

    def covers(self, asked: "SearchSummary") -> bool:
        """Whether a search that has spent this budget has nothing left of another one to spend."""
        enough = self.minutes is None or (asked.minutes is not None and asked.minutes <= self.minutes)
        return enough and asked.candidates <= self.candidates


class Summary(BaseModel, frozen=True):
    """A finished run."""

    name: str
    metric: str  # of all scores; lower is better
    classes: tuple[str, ...] = ()  # names of the targets' columns, where these are classes or labels
    protocol: str
    n_samples: int
    n_folds: int
    n_seeds: int
    n_repeats: int
    n_params: int
    test_share: float  # held-out samples for each that may be learned from, n_test / n_train of the corrected tests
    rope: float  # half-width of the region of practical equivalence, as a share of the better mean
    splits_hash: str
    data_hash: str
    strategies: dict[str, StrategySummary]
    baselines: dict[str, BaselineSummary]
    winner: str | None  # `lowest`, unless it does not beat the best baseline
    lowest: str  # the strategy of the lowest mean, of which the ensemble is built
    deals: Deals
    comparisons: tuple[Comparison, ...]  # of each pair of strategies, and of each with the best baseline
    selection: Selection  # the score of `lowest`, corrected for its having been picked
    ensemble: EnsembleSummary
    notes: list[str]
    wall_s: float  # seconds of the call that finished the run
    search: SearchSummary
    n_epochs_again: int = 0  # epochs of candidates that were trained again after interruptions
    n_interruptions: int = 0  # processes that died, and calls that went on with the run

    @classmethod
    def load(cls, run: str | Path) -> "Summary":
        """Read the summary of a finished run.

        Raises:
            RunFolderError: The folder holds none, or one that this release cannot read.
        """
        path = RunFolder(Path(run)).summary
        try:
            return cls.model_validate(read_record(path))
        except OSError as error:
            raise RunFolderError(
                f"a finished run holds {path.name}, got {run} without it; finish it by repeating its cv command"
            ) from error
        except ValueError as error:
            raise RunFolderError(
                f"{path} must be a summary as this release writes it, but it is damaged or another's; "
                "remove it and repeat the cv command"
            ) from error

    @model_validator(mode="before")
    @classmethod
    def fill_in(cls, content: Any) -> Any:
        """Add to a summary of release 0.1 what it lacks: it crowned a winner in any case, and counted folds evenly."""
        with suppress(KeyError, TypeError, ValueError):  # of what is no summary, which is refused below
            if "lowest" not in content:
                lowest, means = content["winner"], [each["score_mean"] for each in content["baselines"].values()]
                beats = content["strategies"][lowest]["score_mean"] < min(means)
                deals = Deals.even(content["n_repeats"], content["n_folds"])
                return content | {"winner": lowest if beats else None, "lowest": lowest, "deals": deals}
        return content

    @model_validator(mode="after")
    def check_together(self) -> "Summary":
        """Make sure that what was read from a file is one run's, so that nothing needs to look twice."""
        by_fold = (self.n_repeats, self.n_folds)
        scored = {name: each for name, each in self.strategies.items() if each.score_mean is not None}
        if any(each.candidates.keys() != {"completed", "stopped", "failed"} for each in self.strategies.values()):
            raise ValueError("candidates are completed, stopped and failed")
        shapes = [np.shape(baseline.scores) for baseline in self.baselines.values()]
        shapes += [np.shape(self.deals.sizes), np.shape(self.deals.held_out)]
        for name, each in scored.items():
            shapes += [np.shape(each.scores)[:-1], np.shape(each.stop_epochs), np.shape(each.chosen_candidates)]
            chosen = {name_candidate(name, index) for row in each.chosen_candidates for index in row}
            if not chosen <= each.verdicts.keys():
                raise ValueError("the candidates that were chosen must have verdicts")
        if not (
            self.lowest in scored
            and self.winner in (None, self.lowest)
            and set(shapes) == {by_fold}
            and min(by_fold) > 0
            and self.test_share > 0
        ):
            raise ValueError("the scores must be by repeat and fold, and the lowest strategy have some")
        pairs = [{pair.first, pair.second} for pair in self.comparisons]
        known = self.strategies.keys() | self.baselines.keys()
        if ZERO_SHOT not in self.baselines or pairs.count({self.lowest, self.best_baseline}) != 1:
            raise ValueError("the lowest strategy must be compared with the best baseline")
        if self.metric not in METRICS or not all(pair <= known for pair in pairs):
            raise ValueError("comparisons must be of strategies and baselines, by a metric")
        return self

    @computed_field  # type: ignore[prop-decorator]
    @property
    def n_train(self) -> float:
        """Mean samples of the training parts."""
        return round(self.n_samples / self.n_folds / self.test_share, 6)

    @property
    def best_baseline(self) -> str:
        return min(self.baselines, key=lambda name: self.baselines[name].score_mean)

    @property
    def all_notes(self) -> tuple[str, ...]:
        """Notes on the run and on its ensemble, each once."""
        return tuple(dict.fromkeys((*self.notes, *self.ensemble.notes)))

    @property
    def against_baseline(self) -> Comparison:
        """The lowest strategy against the best baseline."""
        (found,) = (pair for pair in self.of(self.lowest) if pair.second == self.best_baseline)
        return found

    def of(self, name: str) -> list[Comparison]:
        """The comparisons of one strategy or baseline, seen from it."""
        return [pair.seen_from(name) for pair in self.comparisons if name in (pair.first, pair.second)]

    @property
    def by_depth(self) -> tuple[str, ...]:
        """Strategies of which each trains the layers of the one before it and earlier ones, the fewest first.

        Of those that train the same, it is the one of the lowest score.
        """
        found: dict[int, str] = {}
        for name, row in sorted(self.strategies.items(), key=lambda item: item[1].score_mean or 0.0):
            if row.layers and row.score_mean is not None:
                found.setdefault(row.layers[0], name)
        return tuple(found[n] for n in sorted(found))

    def leaderboard(self) -> Any:
        """One row a strategy and baseline, best first, as a `pandas.DataFrame`."""
        import pandas as pd

        return pd.DataFrame(list(self.rows())).sort_values("score_mean", kind="stable", ignore_index=True)

    def rows(self) -> Iterator[dict[str, Any]]:
        for name, strategy in self.strategies.items():
            own = {column: getattr(strategy, column) for column in COLUMNS}
            yield {"kind": "strategy", "strategy": name, **own, **strategy.candidates, **strategy.beside}
        for name, baseline in self.baselines.items():
            own = baseline.model_dump(exclude={"scores", "beside"})
            yield {"kind": "baseline", "strategy": name, **own, **baseline.beside}

    def members(self) -> Any:
        """One row a strategy, repeat, fold and seed, with its score, epoch and candidate, as a `pandas.DataFrame`."""
        import pandas as pd

        rows = [
            {"strategy": name, "repeat": r, "fold": k, "seed": s, "score": score,
             "epoch": strategy.stop_epochs[r][k], "candidate": strategy.chosen_candidates[r][k]}
            for name, strategy in self.strategies.items()
            for (r, k, s), score in np.ndenumerate(np.array(strategy.scores))
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def comparison_table(self) -> Any:
        """One row a comparison, as a `pandas.DataFrame`."""
        return tabulate_comparisons(self.comparisons)


def tabulate_comparisons(comparisons: Sequence[Comparison]) -> Any:
    """Spread the tuples of comparisons over columns."""
    import pandas as pd

    rows = [pair.model_dump() for pair in comparisons]
    for row in rows:
        row["low"], row["high"] = row.pop("interval")
        row["ratio_low"], row["ratio_high"] = row.pop("ratio_interval") or (None, None)
        row["n_repeats_low"], row["n_repeats_high"] = row.pop("n_repeats_range")
        row["p_better"], row["p_equal"], row["p_worse"] = row.pop("probabilities")
    return pd.DataFrame(rows)
