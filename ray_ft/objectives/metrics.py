"""Losses by name; the one place that resolves a metric, on tensors and on arrays alike."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["METRICS", "compute_losses", "score_predictions"]

METRICS: dict[str, Callable[[Tensor], Tensor]] = {"mse": torch.square, "mae": torch.abs}


def compute_losses(
    metric: str, predicted: Float[Tensor, "sample *target"], target: Float[Tensor, "sample *target"]
) -> Float[Tensor, " sample"]:
    """Average an elementwise loss over each sample's targets.

    Args:
        metric: Key of `METRICS`; its unit is the target's, squared for `mse`.
        predicted: Predictions.
        target: Truth, of the same shape.
    """
    return METRICS[metric](predicted - target).flatten(1).mean(1)


def score_predictions(
    metric: str, predicted: Float[np.ndarray, "sample *target"], target: Float[np.ndarray, "sample *target"]
) -> Float[np.ndarray, " sample"]:
    """Do the same on arrays, in double precision."""
    pair: list[Any] = [torch.from_numpy(np.array(array, np.float64)) for array in (predicted, target)]
    losses: np.ndarray = compute_losses(metric, *pair).numpy()
    return losses
