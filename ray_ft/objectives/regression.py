"""Regression."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ray_ft.objectives.metrics import compute_losses, score_predictions


@dataclass(frozen=True)
class Regression:
    name: str

    def losses(self, predicted: Tensor, targets: Tensor) -> Float[Tensor, " sample"]:
        return compute_losses(self.name, predicted, targets)

    def score(
        self, predicted: Float[np.ndarray, "sample *target"], targets: Float[np.ndarray, "sample *target"]
    ) -> Float[np.ndarray, " sample"]:
        return score_predictions(self.name, predicted, targets)

    def linear_residual(
        self, base: Float[np.ndarray, "sample *target"], targets: Float[np.ndarray, "sample *target"]
    ) -> Float[np.ndarray, "sample *target"]:
        residual: np.ndarray = targets - base
        return residual
