"""Losses of probabilities by name, and logits brought into one form."""

import numpy as np
from jaxtyping import Float

from ray_ft.domains import Tensor

Shares = Float[Tensor, "sample class"]
Chances = Float[np.ndarray, "sample class"]  # probabilities, or the truth as shares of 0 and 1
LOWEST = float(np.finfo(np.float32).eps)  # probability that a loss is taken of, as scikit-learn clips it


def shape_logits(outputs: Float[Tensor, "*axes output"], n_classes: int) -> Float[Tensor, "*axes class"]:
    """Take a single output for the logit of the second of two classes."""
    import torch

    if outputs.shape[-1] == 1 and n_classes == 2:
        return torch.cat([torch.zeros_like(outputs), outputs], -1)
    return outputs


def average_labels(outputs: Shares, targets: Shares) -> Float[Tensor, " sample"]:
    """Average binary cross-entropy over the labels of a sample that are known; the others are NaN."""
    from torch.nn import functional

    unknown = targets.isnan()
    losses = functional.binary_cross_entropy_with_logits(outputs, targets.masked_fill(unknown, 0.0), reduction="none")
    return losses.masked_fill(unknown, 0.0).sum(-1) / (~unknown).sum(-1)


def score_chances(metric: str, predicted: Chances, targets: Chances) -> Float[np.ndarray, " sample"]:
    """Score each sample in double precision.

    `log_loss` is -log p of the true class; `error_rate` is 1 where another class has the highest p, shared by classes
    that are equal; `multilabel_log_loss` is the mean of -log p over the labels, each true or false, that
    are known.
    """
    chances, truth = np.asarray(predicted, np.float64), np.asarray(targets, np.float64)
    if metric == "error_rate":
        highest = chances == chances.max(-1, keepdims=True)
        return np.asarray(1 - (truth * highest / highest.sum(-1, keepdims=True)).sum(-1))
    logs = np.log(np.clip(chances, LOWEST, 1))
    if metric == "log_loss":
        return np.asarray(-(truth * logs).sum(-1))
    losses = -(truth * logs + (1 - truth) * np.log(np.clip(1 - chances, LOWEST, 1)))
    return np.asarray(np.mean(losses, -1, where=~np.isnan(truth)))
