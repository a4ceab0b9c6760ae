"""What more samples would buy: one cross-validation for each of several sizes of the training parts, and a power law.

Smaller training parts are subsets of larger ones, and the held-out folds stay the same. Uncertainty is that of the mean
scores as the corrected tests have it, carried through the fit by drawing scores and fitting again.

References:
    Viering & Loog, "The Shape of Learning Curves: a Review", IEEE TPAMI 45 (2023): the power law with a floor. Nadeau &
    Bengio, Machine Learning 52 (2003), for the variance; that of two sizes is joined as the geometric mean of theirs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from rich.console import Console

from ray_ft.config import Config
from ray_ft.cross_validation import cross_validate, prepare
from ray_ft.errors import ConfigError
from ray_ft.paths import CurveFolder, write_text
from ray_ft.plan import name_candidate
from ray_ft.summary import StrategySummary, Summary

__all__ = ["Forecast", "LearningCurve", "PowerLaw", "StrategyCurve", "fit_power_law", "learning_curve"]

N_DRAWS = 1000
EXPONENTS = np.linspace(0, 3, 301)
MORE = (25, 50, 100)


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class PowerLaw(Frozen):
    """score(n) = floor + scale * n ** -exponent."""

    scale: float
    exponent: float
    floor: float

    def predict(self, n: Float[np.ndarray, " size"]) -> Float[np.ndarray, " size"]:
        score: np.ndarray = self.floor + self.scale * n**-self.exponent
        return score


class Forecast(Frozen):
    """The score that the fit expects of a training part of `size` samples.

    Attributes:
        interval: Middle 95 % of the draws, which differ in their level too: in which samples there happen to be.
        change: From the fit at the largest size measured, as a share of it.
        change_interval: Middle 95 % of the draws' own changes.
    """

    size: int
    score: float
    interval: tuple[float, float]
    change: float
    change_interval: tuple[float, float]


class StrategyCurve(Frozen):
    """Scores by size, the fit, and what it says of the sizes measured and of larger ones."""

    score_mean: list[float]
    score_std: list[float]
    fit: PowerLaw
    exponent_interval: tuple[float, float]
    forecasts: list[Forecast]


class LearningCurve(Frozen):
    """Learning curves of the strategies, and of the baseline that learns; `notes` say what makes one misleading."""

    metric: str
    sizes: list[int]
    curves: dict[str, StrategyCurve]
    notes: list[str]

    def table(self) -> Any:
        """One row a strategy and size, measured or forecast, as a `pandas.DataFrame`."""
        import pandas as pd

        rows = []
        for name, curve in self.curves.items():
            measured = zip(self.sizes, curve.score_mean, curve.score_std, strict=True)
            rows += [{"strategy": name, "size": n, "score_mean": m, "score_std": s} for n, m, s in measured]
            rows += [
                {
                    "strategy": name,
                    "size": f.size,
                    "forecast": f.score,
                    "low": f.interval[0],
                    "high": f.interval[1],
                    "change": f.change,
                    "change_low": f.change_interval[0],
                    "change_high": f.change_interval[1],
                }
                for f in curve.forecasts
            ]
        return pd.DataFrame(rows).sort_values(["strategy", "size"], kind="stable", ignore_index=True)


def learning_curve(
    config: Config,
    out: str | Path,
    sizes: Sequence[int],
    more: Sequence[int] = MORE,
    inline: bool = False,
    console: Console | None = None,
) -> LearningCurve:
    """Cross-validate on training parts of several sizes, each a run of its own in a folder; go on where there are some.

    Args:
        config: What to run; its `cv.train_size` is set by each size.
        out: The folder.
        sizes: Three or more, at most the smallest training part.
        more: Forecasts are for the largest size and so many samples more.
        inline: Train in this process, without Ray.
        console: Where to show progress.

    Raises:
        UserError: A size does not fit, or something in the config breaks a rule; nothing was trained.
        RunError: A strategy has no score at some size.
    """
    if len(set(sizes)) < max(3, len(sizes)) or min(sizes) < 1:
        raise ConfigError(
            f"a learning curve needs three or more different sizes from 1 on, got {', '.join(map(str, sizes))}"
        )
    folder, ordered = CurveFolder(Path(out)), sorted(sizes)
    for size in (ordered[0], ordered[-1]):
        prepare(limit(config, size), folder.run(size))  # so that nothing starts that could not end
    console = console or Console(quiet=True)
    summaries = {}
    for size in ordered:
        console.print(f"training parts of {size} samples", highlight=False)
        summaries[size] = cross_validate(limit(config, size), folder.run(size), inline, console)
    found = fit_curves(summaries, more, config.cv.seed)
    write_text(folder.table, found.table().to_csv(index=False, lineterminator="\n"))
    write_text(folder.result, found.model_dump_json(indent=2) + "\n")
    return found


def limit(config: Config, size: int) -> Config:
    return config.model_copy(update={"cv": config.cv.model_copy(update={"train_size": size})})


def fit_curves(summaries: Mapping[int, Summary], more: Sequence[int], seed: int) -> LearningCurve:
    """Fit the strategies that have a score at every size, and the best baseline of the largest."""
    sizes, every = list(summaries), list(summaries.values())
    names = [name for name in every[-1].strategies if all(s.strategies[name].scores for s in every)]
    by_fold = {name: np.stack([s.strategies[name].fold_means.ravel() for s in every]) for name in names}
    spread = {name: [s.strategies[name].score_std or 0.0 for s in every] for name in names}
    baseline = every[-1].best_baseline
    by_fold[baseline] = np.stack([np.ravel(s.baselines[baseline].scores) for s in every])
    spread[baseline] = [s.baselines[baseline].score_std for s in every]
    shares = np.array([summary.test_share for summary in every])
    asked = [*sizes, *(sizes[-1] + extra for extra in more)]
    curves = {name: fit_curve(sizes, scores, spread[name], shares, asked, seed) for name, scores in by_fold.items()}
    notes = [
        f"{name} was best at the end of its schedule in every fold: smaller training parts took fewer steps too, so "
        "its curve may be too steep; raise its epochs"
        for name in names
        if all(ends_with_schedule(name, summary.strategies[name]) for summary in every)
    ]
    return LearningCurve(metric=every[-1].metric, sizes=sizes, curves=curves, notes=notes)


def ends_with_schedule(name: str, strategy: StrategySummary) -> bool:
    """Whether every fold stopped at the last epoch that its candidate trained."""
    chosen, stops = np.array(strategy.chosen_candidates), np.array(strategy.stop_epochs)
    last = [strategy.verdicts[name_candidate(name, int(index))].epoch for index in chosen.flat]
    return bool((stops.ravel() == last).all())


def fit_curve(
    sizes: Sequence[int],
    scores: Float[np.ndarray, "size fold"],
    score_std: list[float],
    test_shares: Float[np.ndarray, " size"],
    asked: Sequence[int],
    seed: int,
) -> StrategyCurve:
    from scipy import stats

    n, means, n_folds = np.array(sizes, float), scores.mean(1), scores.shape[1]
    factor = 1 / n_folds + np.sqrt(np.outer(test_shares, test_shares))
    draws = stats.multivariate_t(means, np.cov(scores) * factor, df=n_folds - 1, allow_singular=True, seed=seed)
    drawn_scores = draws.rvs(N_DRAWS)
    fits = fit_power_laws(n, drawn_scores[(drawn_scores > 0).all(-1)])
    fit = fit_power_law(n, means)
    at = np.array(asked, float)
    drawn = np.stack([each.predict(at) for each in fits])
    changes = drawn / np.stack([each.predict(n[-1:]) for each in fits]) - 1
    scores_at, changes_at = fit.predict(at), fit.predict(at) / fit.predict(n[-1:]) - 1
    forecasts = [
        Forecast(
            size=size, score=float(scores_at[i]), interval=middle(drawn[:, i]),
            change=float(changes_at[i]), change_interval=middle(changes[:, i]),
        )
        for i, size in enumerate(asked)
    ]  # fmt: skip
    return StrategyCurve(
        score_mean=means.tolist(),
        score_std=score_std,
        fit=fit,
        exponent_interval=middle(np.array([each.exponent for each in fits])),
        forecasts=forecasts,
    )


def middle(draws: Float[np.ndarray, " draw"]) -> tuple[float, float]:
    """The middle 95 %."""
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def fit_power_law(n: Float[np.ndarray, " size"], scores: Float[np.ndarray, " size"]) -> PowerLaw:
    """Fit one curve; see `fit_power_laws`."""
    (fit,) = fit_power_laws(n, scores[None])
    return fit


def fit_power_laws(n: Float[np.ndarray, " size"], scores: Float[np.ndarray, "draw size"]) -> list[PowerLaw]:
    """Fit by least squares of the relative errors, with 0 <= floor, 0 <= scale and 0 <= exponent <= 3.

    For each exponent of a fine grid the other two are linear, so the lowest of all is found.

    Args:
        n: Sizes.
        scores: Their scores, above 0.
    """
    falls = (n / n[0]) ** -EXPONENTS[:, None]  # (exponent, size)
    by_scale, by_floor = falls / scores[:, None], 1 / scores[:, None]  # (draw, exponent, size); both should sum to 1
    aa, ab, bb = ((x * y).sum(-1) for x, y in ((by_scale, by_scale), (by_scale, by_floor), (by_floor, by_floor)))
    a, b = by_scale.sum(-1), by_floor.sum(-1)
    determinant = np.maximum(aa * bb - ab**2, 1e-12 * aa * bb)
    pairs = [  # inside, and on either edge of what is allowed
        ((a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant),
        (a / aa, np.zeros_like(a)),
        (np.zeros_like(a), np.broadcast_to(b / bb, a.shape)),
    ]
    heights, floors = (np.stack(values) for values in zip(*pairs, strict=True))
    errors = heights**2 * aa + 2 * heights * floors * ab + floors**2 * bb - 2 * (heights * a + floors * b)
    errors = np.where((heights >= 0) & (floors >= 0), errors, np.inf)
    fits = []
    for draw in range(len(scores)):
        pair, k = np.unravel_index(errors[:, draw].argmin(), errors[:, draw].shape)
        height, exponent = heights[pair, draw, k], EXPONENTS[k]
        scale = float(height * n[0] ** exponent)
        fits.append(PowerLaw(scale=scale, exponent=float(exponent), floor=float(floors[pair, draw, k])))
    return fits
