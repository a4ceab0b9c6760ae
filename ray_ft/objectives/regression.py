"""Regression: numbers that should be near the truth, by squared or by absolute error."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from ray_ft.domains import Tensor
from ray_ft.errors import ConfigError, DataError
from ray_ft.objectives import ZERO_SHOT, ByColumn, Columns, Objective, OneResponse, Targets
from ray_ft.objectives.regression_answers import RegressionAnswers
from ray_ft.objectives.regression_losses import Values, ValueTensor, compute_losses, score_predictions
from ray_ft.objectives.regression_presentation import RegressionPresentation

PENALTIES = np.concatenate([[0.0], np.logspace(-2, 4, 25)])


@dataclass(frozen=True)
class Regression:
    """The mean error over a sample's target values: `mse` squared, in the target's unit squared, or `mae` absolute."""

    metric: str
    answers: RegressionAnswers
    presentation: RegressionPresentation
    baselines: tuple[str, ...] = (ZERO_SHOT, "training_mean", "gain_offset")
    is_separable: bool = True

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

    def weigh_classes(self, targets: Targets) -> Objective:
        raise ConfigError(f"class weights need classes, got cv.metric: {self.metric}; leave training.class_weights out")

    def find_fault(self, outputs: Values) -> str:
        return ""

    def find_output_shape(self, found: tuple[int, ...], target_shape: tuple[int, ...]) -> tuple[int, ...]:
        return target_shape

    def find_misfit(self, response_shape: tuple[int, ...], target_shape: tuple[int, ...]) -> str:
        if response_shape == target_shape:
            return ""
        return f"the network's outputs must have the shape of the targets, got {response_shape} for {target_shape}"

    def losses(self, outputs: ValueTensor, targets: ValueTensor) -> Float[Tensor, " sample"]:
        return compute_losses(self.metric, outputs, targets)

    def respond(self, outputs: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        return outputs

    def linear_residual(self, base: Values, targets: Values) -> Values:
        return np.asarray(targets - base)

    def score(self, predicted: Values, targets: Values) -> Float[np.ndarray, " sample"]:
        return score_predictions(self.metric, predicted, targets)

    def predict_baselines(
        self,
        zero_shot: Float[np.ndarray, "training *target"],
        targets: Float[np.ndarray, "training *target"],
        new: Values,
    ) -> dict[str, Values]:
        """Predict by the network as it is, the mean target of the training part, and `fit_gain_offset`."""
        gain, offset = fit_gain_offset(zero_shot, targets)
        mean = np.broadcast_to(targets.mean(0), new.shape)
        return dict(zip(self.baselines, (new, mean, gain * new + offset), strict=True))

    def stack(self, columns: Columns, targets: Values) -> ByColumn:
        """Fit non-negative least squares, as Breiman, "Stacked regressions", Machine Learning 24 (1996)."""
        from scipy.optimize import nnls

        flat = columns.reshape(len(columns), -1).T
        return np.asarray(nnls(flat.astype(np.float64), targets.ravel().astype(np.float64))[0])


def build_objective(metric: str) -> Objective:
    """Build the objective of a metric, `mse` or `mae`."""
    assert metric in ("mse", "mae")
    return Regression(metric, RegressionAnswers(), RegressionPresentation(metric))


def fit_gain_offset(predicted: Values, targets: Values) -> tuple[OneResponse, OneResponse]:
    """Fit `targets = gain * predicted + offset` for each target value, the gain shrunk towards 1.

    It is ridge regression of the residual on the standardised prediction; one penalty, for all target values
    together, is chosen by leave-one-out error in closed form. A constant prediction gets gain 1.
    """
    x, residual = np.asarray(predicted, np.float64), np.asarray(targets - predicted, np.float64)
    centre, scale = x.mean(0), x.std(0)
    z = np.divide(x - centre, scale, out=np.zeros_like(x), where=scale > 0)
    mean, n = residual.mean(0), len(x)
    moment = (z * (residual - mean)).sum(0)

    def leave_one_out(penalty: float) -> float:
        leverage = 1 / n + z**2 / (n + penalty)
        error = residual - mean - z * (moment / (n + penalty))
        return float(((error / np.maximum(1 - leverage, 1e-9)) ** 2).mean())

    penalty = min(PENALTIES, key=leave_one_out)
    slope = np.divide(moment / (n + penalty), scale, out=np.zeros_like(scale), where=scale > 0)
    return np.asarray(1 + slope), np.asarray(mean - slope * centre)
