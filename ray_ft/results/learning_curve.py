"""What more samples would buy: a power law through the scores by size of the training parts.

Uncertainty is that of the mean scores as the corrected tests have it, carried through the fit by drawing scores and
fitting again.

References:
    Viering & Loog, "The Shape of Learning Curves: a Review", IEEE TPAMI 45 (2023): the power law with a floor. Nadeau &
    Bengio, Machine Learning 52 (2003), for the variance. We depart from it in that the correction of the largest size
    holds for all: with one of its own for each, levels that move together would look like a fall, and smaller parts of
    the same samples overlap less, not more.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel

from ray_ft.objectives import ZERO_SHOT, find_objective
from ray_ft.results.summary import BaselineSummary, StrategySummary, Summary
from ray_ft.search.plan import name_candidate
from ray_ft.statistics.comparison import weigh_folds

N_DRAWS = 1000
EXPONENTS = np.linspace(0, 3, 301)
TIED = 1e-9  # squared relative errors that differ by less are equal
COLUMNS = (
    "strategy", "size", "score_mean", "score_std", "forecast", "low", "high", "change", "change_low", "change_high",
)  # fmt: skip


class PowerLaw(BaseModel, frozen=True):
    """score(n) = floor + scale * n ** -exponent."""

    scale: float
    exponent: float
    floor: float

    def predict(self, n: Float[np.ndarray, " size"]) -> Float[np.ndarray, " size"]:
        return np.asarray(self.floor + self.scale * n**-self.exponent)


class Forecast(BaseModel, frozen=True):
    """The score that the fit expects of a training part of `size` samples.

    Attributes:
        interval: Middle 95 % of the draws, which differ in their level too: in which samples there happen to be.
        change: From the fit at the largest size measured, as a share of it.
        change_interval: Middle 95 % of the draws' own changes.
    """

    size: float
    score: float
    interval: tuple[float, float]
    change: float
    change_interval: tuple[float, float]


class StrategyCurve(BaseModel, frozen=True):
    """Scores by size, the fit, and what it says of the sizes measured and of larger ones."""

    score_mean: list[float]
    score_std: list[float]
    fit: PowerLaw
    exponent_interval: tuple[float, float]
    forecasts: list[Forecast]


class LearningCurve(BaseModel, frozen=True):
    """Learning curves of the strategies, and of the best baseline that learns."""

    metric: str
    sizes: list[float]  # mean samples of the training parts; fewer than asked for where groups stay whole
    curves: dict[str, StrategyCurve]
    notes: list[str]  # what makes a curve misleading, or has none

    def table(self) -> Any:
        """One row a strategy and size, measured or forecast, as a `pandas.DataFrame`."""
        import pandas as pd

        rows: list[tuple[Any, ...]] = []
        for name, curve in self.curves.items():
            for size, mean, std in zip(self.sizes, curve.score_mean, curve.score_std, strict=True):
                rows.append((name, size, mean, std, *[np.nan] * 6))
            for f in curve.forecasts:
                rows.append((name, f.size, np.nan, np.nan, f.score, *f.interval, f.change, *f.change_interval))
        return pd.DataFrame(rows, columns=COLUMNS).sort_values(["strategy", "size"], kind="stable", ignore_index=True)


def fit_curves(summaries: Sequence[Summary], more: Sequence[int], seed: int) -> LearningCurve:
    """Fit the strategies, and of the baselines that learn the best at the largest size, where scores allow for it."""
    sizes, largest = [summary.n_train for summary in summaries], summaries[-1]
    asked = [*sizes, *(sizes[-1] + extra for extra in more)]
    learned = (name for name in find_objective(largest.metric).baselines if name != ZERO_SHOT)
    baseline = min(learned, key=lambda name: largest.baselines[name].score_mean)
    curves, notes = {}, []
    for name in (*largest.strategies, baseline):
        rows = [(summary.strategies | summary.baselines)[name] for summary in summaries]
        if gap := find_gap(name, sizes, rows):
            notes.append(gap)
            continue
        shape, deals = (largest.n_repeats, largest.n_folds, -1), largest.deals
        merged = [deals.merge(np.reshape(row.scores, shape).mean(-1)) for row in rows]
        by_fold = np.stack([weigh_folds(means, deals.merged_sizes).ravel() for means in merged])
        spread = [row.score_std or 0.0 for row in rows]
        curves[name] = fit_curve(sizes, by_fold, spread, largest.test_share, asked, seed)
        notes += note_search(name, sizes, rows)
    return LearningCurve(metric=largest.metric, sizes=sizes, curves=curves, notes=notes)


def find_gap(name: str, sizes: Sequence[float], rows: Sequence[StrategySummary | BaselineSummary]) -> str | None:
    """Say at which sizes a score is missing, or 0, of which a power law knows nothing."""
    holes = [size for size, row in zip(sizes, rows, strict=True) if row.score_mean is None]
    if holes:
        return f"{name} has no score at {describe_sizes(holes)}, so no curve"
    zeros = [size for size, row in zip(sizes, rows, strict=True) if row.score_mean == 0]
    return f"{name} has a score of 0 at {describe_sizes(zeros)}, so no power law fits" if zeros else None


def note_search(name: str, sizes: Sequence[float], rows: Sequence[StrategySummary | BaselineSummary]) -> Iterator[str]:
    """Say where a strategy has not had its best chance: its curve is then that of a budget."""
    strategies = [row for row in rows if isinstance(row, StrategySummary)]
    if open_at := [size for size, row in zip(sizes, strategies, strict=False) if not row.settled]:
        yield f"{name} is not settled at {describe_sizes(open_at)} samples, so a larger budget may move its curve"
    if strategies and all(ends_with_schedule(name, row) for row in strategies):
        yield (
            f"{name} was best at the end of its schedule in every fold: smaller training parts took fewer steps "
            "too, so its curve may be too steep"
        )


def ends_with_schedule(name: str, strategy: StrategySummary) -> bool:
    """Whether every fold stopped at the last epoch that its candidate trained."""
    chosen, stops = np.array(strategy.chosen_candidates), np.array(strategy.stop_epochs)
    last = [strategy.verdicts[name_candidate(name, int(index))].epoch for index in chosen.flat]
    return bool((stops.ravel() == last).all())


def fit_curve(
    sizes: Sequence[int | float],
    scores: Float[np.ndarray, "size fold"],
    score_std: list[float],
    test_share: float,
    asked: Sequence[int | float],
    seed: int,
) -> StrategyCurve:
    """Fit a curve to the scores at each size, on the same folds, and carry its uncertainty to the sizes asked for.

    `test_share` is n_test / n_train at the largest size, `score_std` for the record.
    """
    from scipy import stats

    n, means, n_folds = np.array(sizes, float), scores.mean(1), scores.shape[1]
    factor = 1 / n_folds + test_share
    draws = stats.multivariate_t(means, np.cov(scores) * factor, df=n_folds - 1, allow_singular=True, seed=seed)
    drawn_scores = draws.rvs(N_DRAWS)
    fits, fit = fit_power_laws(n, drawn_scores[(drawn_scores > 0).all(-1)]), fit_power_law(n, means)
    at = np.array(asked, float)
    drawn = np.stack([each.predict(at) for each in fits])
    changes = drawn / np.stack([each.predict(n[-1:]) for each in fits]) - 1
    scores_at, changes_at = fit.predict(at), fit.predict(at) / fit.predict(n[-1:]) - 1
    by_size = zip(asked, scores_at.tolist(), drawn.T, changes_at.tolist(), changes.T, strict=True)
    forecasts = [
        Forecast(size=size, score=score, interval=middle(own), change=change, change_interval=middle(moved))
        for size, score, own, change, moved in by_size
    ]
    exponents = middle(np.array([each.exponent for each in fits]))
    return StrategyCurve(
        score_mean=means.tolist(), score_std=score_std, fit=fit, exponent_interval=exponents, forecasts=forecasts
    )


def middle(draws: Float[np.ndarray, " draw"]) -> tuple[float, float]:
    """The middle 95 %."""
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def fit_power_law(n: Float[np.ndarray, " size"], scores: Float[np.ndarray, " size"]) -> PowerLaw:
    return fit_power_laws(n, scores[None])[0]


def fit_power_laws(n: Float[np.ndarray, " size"], scores: Float[np.ndarray, "draw size"]) -> list[PowerLaw]:
    """Fit scores above 0 by least squares of the relative errors, with 0 <= floor, 0 <= scale and 0 <= exponent <= 3.

    For each exponent of a fine grid the other two are linear, so the lowest of all is found; of fits that are equally
    good, that of the smallest exponent, and a floor alone before all others.
    """
    falls = (n / n[0]) ** -EXPONENTS[:, None]  # (exponent, size)
    by_scale, by_floor = falls / scores[:, None], 1 / scores[:, None]  # (draw, exponent, size); both should sum to 1
    aa, ab, bb = ((x * y).sum(-1) for x, y in ((by_scale, by_scale), (by_scale, by_floor), (by_floor, by_floor)))
    a, b = by_scale.sum(-1), by_floor.sum(-1)
    determinant = np.maximum(aa * bb - ab**2, 1e-12 * aa * bb)
    pairs = [  # on either edge of what is allowed, and inside
        (np.zeros_like(a), np.broadcast_to(b / bb, a.shape)),
        (a / aa, np.zeros_like(a)),
        ((a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant),
    ]
    heights, floors = (np.stack(values, -1) for values in zip(*pairs, strict=True))  # (draw, exponent, pair)
    aa, ab, bb, a, b = (values[..., None] for values in (aa, ab, bb, a, b))
    errors = heights**2 * aa + 2 * heights * floors * ab + floors**2 * bb - 2 * (heights * a + floors * b)
    errors = np.where((heights >= 0) & (floors >= 0), errors, np.inf).reshape(len(scores), -1)
    best = (errors <= errors.min(1, keepdims=True) + TIED).argmax(1)  # the first of equals
    fits = []
    for draw, (k, pair) in enumerate(zip(*np.unravel_index(best, heights.shape[1:]), strict=True)):
        exponent = float(EXPONENTS[k])
        scale = float(heights[draw, k, pair] * n[0] ** exponent)
        fits.append(PowerLaw(scale=scale, exponent=exponent, floor=float(floors[draw, k, pair])))
    return fits


def describe_sizes(sizes: Sequence[int | float]) -> str:
    """Parts of a sample are of a mean over folds."""
    return ", ".join(f"{round(size, 1):g}" for size in sizes)
