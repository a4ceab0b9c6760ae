"""Errors of numbers by name, on tensors and on arrays alike; a target that is NaN is a missing label.

A sample's loss is the mean over the target values that it has, so every sample counts the same.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ray_ft.domains import Tensor
from ray_ft.objectives import STANDARDISED

ValueTensor = Float[Tensor, "sample *target"]
Values = Float[np.ndarray, "sample *target"]  # predictions or the truth


def measure_errors(
    name: str, predicted: ValueTensor, targets: ValueTensor, scales: Sequence[float] = ()
) -> Float[Tensor, "sample *target"]:
    """Compute the error of each target value, in units of `scales`, one a value, where the name is standardised."""
    import torch
    from torch.nn import functional

    assert predicted.shape == targets.shape, (predicted.shape, targets.shape)  # (n,) less (n, 1) would be (n, n)
    if name.startswith(STANDARDISED):
        unit = torch.tensor(scales, dtype=targets.dtype, device=targets.device).reshape(targets.shape[1:])
        predicted, targets = predicted / unit, targets / unit
    match name.removeprefix(STANDARDISED):
        case "mse":
            return (predicted - targets).square()
        case "mae":
            return (predicted - targets).abs()
        case "huber":
            return functional.huber_loss(predicted, targets, reduction="none")
        case "smooth_l1":
            return functional.smooth_l1_loss(predicted, targets, reduction="none")
    size = (predicted - targets).abs()
    return size + functional.softplus(-2 * size) - math.log(2)  # log cosh, which does not overflow


def compute_losses(
    name: str, predicted: ValueTensor, targets: ValueTensor, scales: Sequence[float] = (), has_gaps: bool = True
) -> Float[Tensor, " sample"]:
    """Average the errors over each sample's target values; over those that there are, where some may be missing."""
    if not has_gaps:
        errors = measure_errors(name, predicted, targets, scales)
        return errors.reshape(errors.shape[0], -1).mean(1)
    missing = targets.isnan()
    errors = measure_errors(name, predicted, targets.masked_fill(missing, 0.0), scales).masked_fill(missing, 0.0)
    n_there = (~missing).reshape(errors.shape[0], -1).sum(1)
    return errors.reshape(errors.shape[0], -1).sum(1) / n_there


def score_values(name: str, predicted: Values, targets: Values, scales: Sequence[float] = ()) -> Values:
    """Compute the error of each target value in double precision; NaN where it is missing."""
    import torch

    told, truth = (torch.from_numpy(np.array(array, np.float64)) for array in (predicted, targets))
    return np.asarray(measure_errors(name, told, truth, scales).numpy())


def score_predictions(
    name: str, predicted: Values, targets: Values, scales: Sequence[float] = ()
) -> Float[np.ndarray, " sample"]:
    """Do what `compute_losses` does on arrays, in double precision; a sample without any label has no score, NaN."""
    import torch

    told, truth = (torch.from_numpy(np.array(array, np.float64)) for array in (predicted, targets))
    return np.asarray(compute_losses(name, told, truth, scales, bool(truth.isnan().any())).numpy())


def measure_deviations(targets: Values) -> Float[np.ndarray, "*target"]:
    """Standard deviation of each target value over the samples that have it; 1 where it does not vary."""
    there = ~np.isnan(targets)
    n = np.maximum(there.sum(0), 1)
    known = np.where(there, targets, 0.0).astype(np.float64)
    spread = np.sqrt((np.where(there, known - known.sum(0) / n, 0.0) ** 2).sum(0) / n)
    return np.asarray(np.where(spread > np.finfo(np.float32).eps * np.abs(known).max(0), spread, 1.0))


def measure_fit(predicted: Values, targets: Values) -> dict[str, float]:
    """Measure the root of the mean squared error, the mean absolute error, and R².

    The last is averaged over the target values that vary, and left out where none does.
    """
    found = {
        "rmse": math.sqrt(float(score_predictions("mse", predicted, targets).mean())),
        "mae": float(score_predictions("mae", predicted, targets).mean()),
    }
    there = ~np.isnan(targets)
    known, told = (np.where(there, array, 0.0).astype(np.float64) for array in (targets, predicted))
    around = np.where(there, known - known.sum(0) / np.maximum(there.sum(0), 1), 0.0)
    left, whole = ((known - told) ** 2).sum(0), (around**2).sum(0)
    varies = whole > 0
    return found | ({"r2": float((1 - left[varies] / whole[varies]).mean())} if varies.any() else {})
