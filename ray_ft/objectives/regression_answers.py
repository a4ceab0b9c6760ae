"""What an ensemble answers a regression with: the mean, the spread of its members, and CV+ intervals around it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ray_ft.domains import Tensor
from ray_ft.objectives import Measures
from ray_ft.objectives.regression_losses import score_predictions
from ray_ft.statistics.intervals import (
    build_pointwise,
    build_simultaneous,
    find_rank,
    measure_coverage,
    trace_calibration,
)


@dataclass(frozen=True)
class Prediction:
    """What an ensemble says of each input.

    Attributes:
        mean: Weighted mean of the members.
        std: Their standard deviation: their disagreement alone. It leaves out the noise of the data and is no interval.
        lower: Of the interval of each target value by itself (CV+).
        upper: The same.
        band_lower: Of the band that holds all values of a target together.
        band_upper: The same.
        novelty: How unlike the training samples the input is, higher is more unlike; its unit is arbitrary.
        p_value: Share of inputs like the training samples that are as unlike them as this one.
        flag: Whether that is 5 % or less. Intervals hold for inputs like the training samples: do not trust these.
    """

    mean: Float[np.ndarray, "sample *target"]
    std: Float[np.ndarray, "sample *target"]
    lower: Float[np.ndarray, "sample *target"]
    upper: Float[np.ndarray, "sample *target"]
    band_lower: Float[np.ndarray, "sample *target"]
    band_upper: Float[np.ndarray, "sample *target"]
    novelty: Float[np.ndarray, " sample"]
    p_value: Float[np.ndarray, " sample"]
    flag: Bool[np.ndarray, " sample"]


@dataclass(frozen=True)
class RegressionAnswers:
    """Numbers and intervals; what is kept of a training sample is the truth less its blind prediction."""

    prediction: type[Prediction] = Prediction
    exported: tuple[str, ...] = ("mean", "std", "lower", "upper")

    def measure_residuals(
        self, blind: Float[np.ndarray, "sample *target"], targets: Float[np.ndarray, "sample *target"]
    ) -> Float[np.ndarray, "sample *target"]:
        residuals: np.ndarray = (targets - blind).astype(np.float32)
        return residuals

    def find_residual_shape(self, target_shape: tuple[int, ...]) -> tuple[int, ...]:
        return target_shape

    def measure_spread(
        self,
        members: Float[np.ndarray, "strategy repeat fold seed sample *target"],
        shares: Float[np.ndarray, "strategy repeat fold seed"],
    ) -> Float[np.ndarray, "sample *target"]:
        """Weighted standard deviation of all members."""
        mean = np.einsum("crks,crks...->...", shares, members)
        spread: np.ndarray = np.sqrt(np.einsum("crks,crks...->...", shares, (members - mean) ** 2))
        return spread

    def answer(
        self,
        asked: Collection[str],
        folds: Float[np.ndarray, "repeat fold sample *target"],
        members: Float[np.ndarray, "strategy repeat fold seed sample *target"],
        shares: Float[np.ndarray, "strategy repeat fold seed"],
        residuals: Float[np.ndarray, "training *target"],
        fold_of: Int[np.ndarray, "repeat training"],
        alpha: float,
    ) -> dict[str, Any]:
        around = (folds, residuals, fold_of, alpha)
        found: dict[str, Any] = {"mean": folds.mean((0, 1))}
        if "std" in asked:
            found["std"] = self.measure_spread(members, shares)
        if {"lower", "upper"} & set(asked):
            found["lower"], found["upper"] = build_pointwise(*around)
        if {"band_lower", "band_upper"} & set(asked):
            found["band_lower"], found["band_upper"] = build_simultaneous(*around)
        return found

    def evaluate(
        self,
        folds: Mapping[str, Float[np.ndarray, "repeat fold sample *target"]],
        residuals: Mapping[str, Float[np.ndarray, "training *target"]],
        fold_of: Int[np.ndarray, "repeat training"],
        spread: Float[np.ndarray, "sample *target"],
        targets: Float[np.ndarray, "sample *target"],
        method: str,
        level: float,
    ) -> Measures:
        """Measure errors, and what intervals and bands hold.

        Returns:
            By method `mse` and `mae` of the mean; `coverage`, the share of target values inside their intervals, which
            are `width` wide on average; `band_coverage`, the share of samples wholly inside their bands, and
            `band_width`. Beside them `spread_coverage`, the share of target values within two standard deviations of
            the members, which are no interval.
        """
        within = np.abs(targets - folds[method].mean((0, 1))) <= 2 * spread
        points = trace_calibration(folds[method], residuals[method], fold_of, targets)
        return Measures(
            methods={
                name: measure_method(own, residuals[name], fold_of, targets, 1 - level) for name, own in folds.items()
            },
            beside={"spread_coverage": float(within.mean())},
            calibration={p.level: {"coverage": p.values, "band_coverage": p.samples} for p in points},
        )

    def export(
        self,
        members: Float[Tensor, "strategy repeat fold seed sample *target"],
        weights: Float[Tensor, "strategy repeat fold seed"],
        residuals: Float[Tensor, "training *target"],
        fold_of: Int[Tensor, "repeat training"],
        alpha: float,
    ) -> tuple[Tensor, ...]:
        import torch

        shares = weights.view(*weights.shape, *[1] * (members.dim() - weights.dim()))
        folds = (shares * members).sum((0, 3))
        mean = folds.mean((0, 1))
        variance = (shares * (members - mean) ** 2).sum((0, 3)).mean((0, 1))
        deals = [deal.index_select(0, own) for deal, own in zip(folds.unbind(), fold_of.unbind(), strict=True)]
        blind, margins = torch.stack(deals).mean(0), residuals.abs().unsqueeze(1)
        rank = find_rank(alpha, len(residuals))
        lower = (blind - margins).sort(0).values[rank - 1]
        upper = (blind + margins).sort(0).values[-rank]
        return mean, variance.sqrt(), lower, upper


def measure_method(
    folds: Float[np.ndarray, "repeat fold sample *target"],
    residuals: Float[np.ndarray, "training *target"],
    fold_of: Int[np.ndarray, "repeat training"],
    targets: Float[np.ndarray, "sample *target"],
    alpha: float,
) -> dict[str, float]:
    around = (folds, residuals, fold_of, alpha)
    pointwise, together = (
        measure_coverage(*build(*around), targets) for build in (build_pointwise, build_simultaneous)
    )
    mean = folds.mean((0, 1))
    return {
        "mse": float(score_predictions("mse", mean, targets).mean()),
        "mae": float(score_predictions("mae", mean, targets).mean()),
        "coverage": pointwise.values,
        "width": pointwise.width,
        "band_coverage": together.samples,
        "band_width": together.width,
    }
