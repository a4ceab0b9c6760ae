"""What a strategy has to beat, at no training cost; anything fitted is fitted on the training part alone."""

import numpy as np
from jaxtyping import Float

from ray_ft.config import BASELINES
from ray_ft.data.folds import Splits
from ray_ft.objectives.metrics import score_predictions

__all__ = ["fit_gain_offset", "score_baselines"]

PENALTIES = np.concatenate([[0.0], np.logspace(-2, 4, 25)])


def score_baselines(
    zero_shot: Float[np.ndarray, "sample *target"],
    targets: Float[np.ndarray, "sample *target"],
    splits: Splits,
    metric: str,
) -> dict[str, Float[np.ndarray, "repeat fold"]]:
    """Score each baseline on each held-out fold.

    Args:
        zero_shot: What the pretrained network says.
        targets: Truth.
        splits: The run's folds.
        metric: Key of `metrics.METRICS`.

    Returns:
        Mean losses of `zero_shot`, `training_mean` (the mean target of the training part) and `gain_offset` (a
        ridge-shrunk gain and an offset of each target value, on top of zero-shot).
    """
    scores: dict[str, Float[np.ndarray, "repeat fold"]] = {
        name: np.empty((splits.n_repeats, splits.n_folds)) for name in BASELINES
    }
    for r, k in np.ndindex(splits.n_repeats, splits.n_folds):
        train, held_out = splits.training_part(r, k), splits.held_out(r, k)  # they need no inner part
        gain, offset = fit_gain_offset(zero_shot[train], targets[train])
        predictions = {
            "zero_shot": zero_shot[held_out],
            "training_mean": np.broadcast_to(targets[train].mean(0), targets[held_out].shape),
            "gain_offset": gain * zero_shot[held_out] + offset,
        }
        for name, predicted in predictions.items():
            scores[name][r, k] = score_predictions(metric, predicted, targets[held_out]).mean()
    return scores


def fit_gain_offset(
    predicted: Float[np.ndarray, "sample *target"], targets: Float[np.ndarray, "sample *target"]
) -> tuple[Float[np.ndarray, "*target"], Float[np.ndarray, "*target"]]:
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
    return 1 + slope, mean - slope * centre
