"""Errors of numbers by name, on tensors and on arrays alike."""

import numpy as np
from jaxtyping import Float

from ray_ft.domains import Tensor

ValueTensor = Float[Tensor, "sample *target"]
Values = Float[np.ndarray, "sample *target"]  # predictions or the truth


def compute_losses(metric: str, predicted: ValueTensor, targets: ValueTensor) -> Float[Tensor, " sample"]:
    """Average the error, squared for `mse` and absolute for `mae`, over each sample's target values."""
    assert predicted.shape == targets.shape, (predicted.shape, targets.shape)  # (n,) less (n, 1) would be (n, n)
    error = predicted - targets
    return (error.square() if metric == "mse" else error.abs()).reshape(error.shape[0], -1).mean(1)


def score_predictions(metric: str, predicted: Values, targets: Values) -> Float[np.ndarray, " sample"]:
    """Do the same on arrays, in double precision."""
    import torch

    pair = (torch.from_numpy(np.array(array, np.float64)) for array in (predicted, targets))
    return np.asarray(compute_losses(metric, *pair).numpy())
