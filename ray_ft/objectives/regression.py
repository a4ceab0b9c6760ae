"""Regression: numbers that should be near the truth, by an error that has a name; NaN is a missing label."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Shaped

from ray_ft.domains import Tensor
from ray_ft.errors import ConfigError, DataError
from ray_ft.objectives import (
    LOSSES,
    REGRESSION,
    STANDARDISED,
    ZERO_SHOT,
    ByColumn,
    Columns,
    Objective,
    OneResponse,
    OwnLoss,
    Targets,
)
from ray_ft.objectives.regression_answers import RegressionAnswers
from ray_ft.objectives.regression_losses import (
    Values,
    ValueTensor,
    compute_losses,
    measure_deviations,
    measure_fit,
    score_predictions,
    score_values,
)
from ray_ft.objectives.regression_presentation import RegressionPresentation

PENALTIES = np.concatenate([[0.0], np.logspace(-2, 4, 25)])


@dataclass(frozen=True)
class Regression:
    """The mean error over the target values that a sample has, in the target's unit (squared, for `mse`).

    Attributes:
        loss: What training minimises: the name of an error, or a function of the user's own.
        deviations: Standard deviation of each target value over the samples; empty where no error is standardised.
        has_gaps: Whether targets may be missing.
    """

    metric: str
    loss: str | OwnLoss
    deviations: tuple[float, ...] = ()
    has_gaps: bool = True
    baselines: tuple[str, ...] = (ZERO_SHOT, "training_mean", "gain_offset")

    @property
    def scales(self) -> tuple[float, ...]:
        return self.deviations if self.metric.startswith(STANDARDISED) else ()

    @property
    def answers(self) -> RegressionAnswers:
        return RegressionAnswers(self.metric, self.scales)

    @property
    def presentation(self) -> RegressionPresentation:
        return RegressionPresentation(self.metric, self.scales)

    def encode_targets(
        self, array: Shaped[np.ndarray, "..."], source: str, classes: tuple[str, ...] = ()
    ) -> tuple[Shaped[np.ndarray, "..."], tuple[str, ...]]:
        """Take any numbers."""
        if array.dtype.kind == "U":
            raise DataError(
                f"targets of cv.metric: {self.metric} must be numbers, got text in {source}; for classes say log_loss"
            )
        return array, ()

    def widen_targets(
        self, targets: Targets, classes: tuple[str, ...], n_outputs: int
    ) -> tuple[Targets, tuple[str, ...]]:
        return targets, classes

    def settle(
        self,
        targets: Targets,
        loss: str | OwnLoss | None = None,
        balanced: bool = False,
    ) -> Objective:
        if balanced:
            raise ConfigError(
                f"class weights need classes, got cv.metric: {self.metric}; leave training.class_weights out"
            )
        if isinstance(loss, str) and LOSSES[loss] != REGRESSION:
            raise ConfigError(f"training.loss: {loss} is of classes, got cv.metric: {self.metric}; leave it out")
        minimised = loss or self.metric
        names = [name for name in (self.metric, minimised) if isinstance(name, str)]
        deviations = (
            measure_deviations(targets) if any(name.startswith(STANDARDISED) for name in names) else np.empty(0)
        )
        has_gaps = bool(np.isnan(targets).any())
        return replace(self, loss=minimised, deviations=tuple(deviations.ravel().tolist()), has_gaps=has_gaps)

    def smooth(self, share: float) -> Objective:
        raise ConfigError(f"smooth labels need classes, got cv.metric: {self.metric}; leave label_smoothing out")

    def find_fault(self, outputs: Float[np.ndarray, "sample *output"]) -> str:
        return ""

    def find_output_shape(self, found: tuple[int, ...], target_shape: tuple[int, ...]) -> tuple[int, ...]:
        return target_shape

    def find_misfit(self, response_shape: tuple[int, ...], target_shape: tuple[int, ...]) -> str:
        if response_shape == target_shape:
            return ""
        return f"the network's outputs must have the shape of the targets, got {response_shape} for {target_shape}"

    def losses(self, outputs: ValueTensor, targets: ValueTensor) -> Float[Tensor, " sample"]:
        if isinstance(self.loss, str):
            return compute_losses(self.loss, outputs, targets, self.deviations, self.has_gaps)
        return self.loss(outputs, targets)  # type: ignore[no-any-return]  # it was tried

    def respond(self, outputs: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        return outputs

    def linear_residual(self, base: Values, targets: Values) -> Values:
        return np.asarray(targets - base)

    def score(self, predicted: Values, targets: Values) -> Float[np.ndarray, " sample"]:
        return score_predictions(self.metric, predicted, targets, self.scales)

    def measure_errors(self, predicted: Values, targets: Values) -> Values:
        return score_values(self.metric, predicted, targets, self.scales)

    def measure_beside(self, predicted: Values, targets: Values) -> dict[str, float]:
        """Measure what `measure_fit` does."""
        return measure_fit(predicted, targets)

    def predict_baselines(
        self,
        zero_shot: Float[np.ndarray, "training *target"],
        targets: Float[np.ndarray, "training *target"],
        new: Values,
    ) -> dict[str, Values]:
        """Predict by the network as it is, the mean target of the training part, and `fit_gain_offset`.

        Of a target value that has no label in the training part, all say what the network says.
        """
        unit = self.shape_scales(targets)
        gain, offset = fit_gain_offset(zero_shot / unit, targets / unit)
        there = ~np.isnan(targets)
        mean = np.mean(targets, 0, where=there | ~there.any(0))
        told = np.where(there.any(0), mean, new)
        return dict(zip(self.baselines, (new, told, gain * new + offset * unit), strict=True))

    def shape_scales(self, targets: Values) -> Float[np.ndarray, "*target"]:
        """Lay the scales out as a target is; 1 where there are none."""
        return np.reshape(self.scales or np.ones(targets[0].size), targets.shape[1:]).astype(targets.dtype)

    def stack(self, columns: Columns, targets: Values) -> ByColumn:
        """Fit non-negative least squares, as Breiman, "Stacked regressions", Machine Learning 24 (1996)."""
        from scipy.optimize import nnls

        unit, there = self.shape_scales(targets), ~np.isnan(targets.ravel())
        flat, wanted = (columns / unit).reshape(len(columns), -1).T[there], (targets / unit).ravel()[there]
        return np.asarray(nnls(flat.astype(np.float64), wanted.astype(np.float64))[0])


def build_objective(metric: str, scales: tuple[float, ...] = ()) -> Objective:
    """Build the objective of a metric, the name of an error; one that is standardised is told by what."""
    return Regression(metric, metric, scales)


def fit_gain_offset(predicted: Values, targets: Values) -> tuple[OneResponse, OneResponse]:
    """Fit `targets = gain * predicted + offset` for each target value, the gain shrunk towards 1.

    It is ridge regression of the residual on the standardised prediction, over the samples that have the value; one
    penalty, for all target values together, is chosen by leave-one-out error in closed form. A constant prediction, or
    a value that no sample has, gets gain 1.
    """
    there = ~np.isnan(targets)
    n = np.maximum(there.sum(0), 1)
    x, residual = np.asarray(predicted, np.float64), np.asarray(np.where(there, targets - predicted, 0), np.float64)
    centre = np.sum(x, 0, where=there) / n
    scale = np.sqrt(np.sum((x - centre) ** 2, 0, where=there) / n)
    z = np.divide(x - centre, scale, out=np.zeros_like(x), where=there & (scale > 0))
    mean = residual.sum(0) / n
    moment = np.sum(z * (residual - mean), 0)

    def leave_one_out(penalty: float) -> float:
        leverage = 1 / n + z**2 / (n + penalty)
        error = residual - mean - z * (moment / (n + penalty))
        return float(np.mean((error / np.maximum(1 - leverage, 1e-9)) ** 2, where=there))

    penalty = min(PENALTIES, key=leave_one_out)
    slope = np.divide(moment / (n + penalty), scale, out=np.zeros_like(scale), where=scale > 0)
    return np.asarray(1 + slope), np.asarray(mean - slope * centre)
