"""Errors of numbers by name, on tensors and on arrays alike."""

import numpy as np
from jaxtyping import Float

from ray_ft.domains import Tensor


def compute_losses(
    metric: str, predicted: Float[Tensor, "sample *target"], targets: Float[Tensor, "sample *target"]
) -> Float[Tensor, " sample"]:
    """Average the error over each sample's target values.

    Args:
        metric: `mse`, squared, or `mae`, absolute.
        predicted: Predictions.
        targets: Truth, of the same shape.
    """
    error = predicted - targets
    return (error.square() if metric == "mse" else error.abs()).flatten(1).mean(1)


def score_predictions(
    metric: str, predicted: Float[np.ndarray, "sample *target"], targets: Float[np.ndarray, "sample *target"]
) -> Float[np.ndarray, " sample"]:
    """Do the same on arrays, in double precision."""
    import torch

    pair = (torch.from_numpy(np.array(array, np.float64)) for array in (predicted, targets))
    losses: np.ndarray = compute_losses(metric, *pair).numpy()
    return losses
