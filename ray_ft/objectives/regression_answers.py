"""What an ensemble answers a regression with: the mean, the spread of its members, and CV+ intervals around it."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ray_ft.domains import Tensor
from ray_ft.objectives import BlindAnswer, FoldOf, Folds, Measures, Members, Residuals, Shares
from ray_ft.objectives.averaging import average_members, measure_std, pick_blind, walk_folds
from ray_ft.objectives.regression_losses import Values, measure_fit, score_predictions
from ray_ft.statistics import intervals

MOST_OUTPUTS = 24  # that are measured one by one


@dataclass(frozen=True)
class Prediction:
    """What an ensemble says of each input.

    Attributes:
        mean: Weighted mean of the members.
        std: Their standard deviation: their disagreement alone. It leaves out the noise of the data and is no interval.
        lower: Of the interval of each target value by itself (CV+); None where the training samples are too few, and
            NaN where those that have this value are.
        upper: The same.
        band_lower: Of the band that holds all values of a target together.
        band_upper: The same.
        novelty: How unlike the training samples the input is, higher is more unlike; its unit is arbitrary.
        p_value: Share of inputs like the training samples that are as unlike them as this one.
        flag: Whether that is 5 % or less. Intervals hold for inputs like the training samples: do not trust these.
    """

    mean: Values
    std: Values
    lower: Values | None
    upper: Values | None
    band_lower: Values | None
    band_upper: Values | None
    novelty: Float[np.ndarray, " sample"]
    p_value: Float[np.ndarray, " sample"]
    flag: Bool[np.ndarray, " sample"]


@dataclass(frozen=True)
class RegressionAnswers:
    """Numbers and intervals; what is kept of a training sample is the truth less its blind prediction.

    That is NaN where the truth is missing.
    """

    metric: str = "mse"
    scales: tuple[float, ...] = ()
    prediction: type[Prediction] = Prediction
    exported: tuple[str, ...] = ("mean", "std", "lower", "upper")
    leveled: tuple[str, ...] = ("lower", "upper", "band_lower", "band_upper")

    def measure_residuals(self, blind: Values, targets: Values) -> Values:
        return np.asarray((targets - blind).astype(np.float32))

    def find_residual_shape(self, target_shape: tuple[int, ...]) -> tuple[int, ...]:
        return target_shape

    def measure_spread(self, members: Members, shares: Shares) -> Values:
        return measure_std(members, shares)

    def answer(
        self,
        asked: Collection[str],
        folds: Folds,
        members: Members,
        shares: Shares,
        residuals: Residuals,
        fold_of: FoldOf,
        alpha: float,
    ) -> dict[str, Any]:
        around = (folds, residuals, fold_of, alpha)
        found: dict[str, Any] = {"mean": folds.mean((0, 1))}
        if "std" in asked:
            found["std"] = self.measure_spread(members, shares)
        if {"lower", "upper"} & set(asked):
            found["lower"], found["upper"] = intervals.build_pointwise(*around)
        if {"band_lower", "band_upper"} & set(asked):
            found["band_lower"], found["band_upper"] = intervals.build_simultaneous(*around)
        return found

    def answer_blind(
        self, blind: Values, targets: Values, fold_of: Int[np.ndarray, " sample"], level: float
    ) -> BlindAnswer:
        """Build intervals and bands; those of a fold for which the samples of the others are too few are NaN."""
        residuals = self.measure_residuals(blind, targets)
        found = {name: np.full(blind.shape, np.nan, np.float32) for name in self.leveled}
        for own, folds, others in walk_folds(blind, fold_of):
            left = residuals[~own]
            if not intervals.describe_lack(1 - level, intervals.count_most(left)):
                around = (folds, left, others, 1 - level)
                found["lower"][own], found["upper"][own] = intervals.build_pointwise(*around)
                found["band_lower"][own], found["band_upper"][own] = intervals.build_simultaneous(*around)
        if np.isnan(targets - found["lower"]).all():
            return BlindAnswer(level, {}, {})
        single = intervals.measure_coverage(found["lower"], found["upper"], targets)
        whole = intervals.measure_coverage(found["band_lower"], found["band_upper"], targets)
        return BlindAnswer(level, found, {"coverage": single.values, "band_coverage": whole.samples})

    def evaluate(
        self,
        folds: Mapping[str, Folds],
        residuals: Mapping[str, Residuals],
        fold_of: FoldOf,
        spread: Values,
        targets: Values,
        method: str,
        level: float,
        outputs: Mapping[str, slice],
    ) -> Measures:
        """Measure what `measure_one` does, and the share of target values within two standard deviations."""
        there = ~np.isnan(targets)
        within = (np.abs(targets - folds[method].mean((0, 1))) <= 2 * spread)[there]
        points = intervals.trace_calibration(folds[method], residuals[method], fold_of, targets)
        methods = {name: self.measure_one(own, residuals[name], fold_of, targets, level) for name, own in folds.items()}
        calibration = {p.level: {"coverage": p.values, "band_coverage": p.samples} for p in points}
        by_output = {}
        if 1 < len(outputs) <= MOST_OUTPUTS:
            by_output = {
                name: self.measure_output(place, folds[method], residuals[method], fold_of, targets, level)
                for name, place in outputs.items()
            }
        return Measures(methods, {"spread_coverage": float(within.mean())}, calibration, by_output)

    def measure_output(
        self, place: slice, folds: Folds, residuals: Residuals, fold_of: FoldOf, targets: Values, level: float
    ) -> dict[str, float]:
        """Measure one output as if there were no other; nothing where no sample has it."""
        own = (
            array.reshape(*array.shape[: array.ndim - targets.ndim + 1], -1)[..., place]
            for array in (folds, residuals, targets)
        )
        folds, residuals, targets = own
        there = ~np.isnan(targets).all(1)
        if not there.any():
            return {}
        known = ~np.isnan(residuals).all(1)  # of the training samples, or those without it would narrow its bands
        around = folds[:, :, there], residuals[known], fold_of[:, known], targets[there]
        return replace(self, metric="mse", scales=()).measure_one(*around, level)

    def measure_one(
        self, folds: Folds, residuals: Residuals, fold_of: FoldOf, targets: Values, level: float
    ) -> dict[str, float]:
        """Errors of the mean; where there are intervals, shares of values and of samples inside of them, and widths."""
        mean = folds.mean((0, 1))
        score = float(score_predictions(self.metric, mean, targets, self.scales).mean())
        errors = {self.metric: score, "mse": float(score_predictions("mse", mean, targets).mean())}
        errors |= measure_fit(mean, targets)
        ranks = intervals.find_ranks(1 - level, intervals.count_labels(residuals))
        if not ((ranks >= 1) & ~np.isnan(targets)).any():
            return errors
        around = (folds, residuals, fold_of, 1 - level)
        single = intervals.measure_coverage(*intervals.build_pointwise(*around), targets)
        whole = intervals.measure_coverage(*intervals.build_simultaneous(*around), targets)
        coverage = {"coverage": single.values, "width": single.width}
        return {**errors, **coverage, "band_coverage": whole.samples, "band_width": whole.width}

    def export(
        self,
        members: Float[Tensor, "strategy repeat fold seed sample *target"],
        weights: Float[Tensor, "strategy repeat fold seed"],
        residuals: Float[Tensor, "training *target"],
        fold_of: Int[Tensor, "repeat training"],
        alpha: float,
        n_labels: Int[np.ndarray, "*target"],
    ) -> tuple[Tensor, ...]:
        import torch

        folds, mean, std = average_members(members, weights)
        ranks = intervals.find_ranks(alpha, n_labels)
        if ranks.max() < 1:
            return mean, std
        blind, margins = pick_blind(folds, fold_of), residuals.abs().unsqueeze(1)
        below, above = blind - margins, blind + margins
        if (n_labels == len(residuals)).all():
            rank = int(ranks.max())
            return mean, std, below.sort(0).values[rank - 1], above.sort(0).values[-rank]
        missing = margins.isnan()
        ends = (edges.masked_fill(missing, math.inf).sort(0).values for edges in (below, above))
        places = (
            torch.tensor(np.maximum(own, 0)) for own in (ranks - 1, np.minimum(n_labels - ranks, len(residuals) - 1))
        )
        lower, upper = (
            own.gather(0, place.to(own.device).expand(1, *own.shape[1:]))[0].masked_fill(
                torch.tensor(ranks < 1, device=own.device), math.nan
            )
            for own, place in zip(ends, places, strict=True)
        )
        return mean, std, lower, upper
