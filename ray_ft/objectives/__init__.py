"""Objectives: what a task wants of its predictions."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

__all__ = ["Objective", "find_objective"]


@runtime_checkable
class Objective(Protocol):
    """What a task wants."""

    @property
    def name(self) -> str: ...

    def losses(self, predicted: Tensor, targets: Tensor) -> Float[Tensor, " sample"]: ...

    def score(
        self, predicted: Float[np.ndarray, "sample *target"], targets: Float[np.ndarray, "sample *target"]
    ) -> Float[np.ndarray, " sample"]: ...

    def linear_residual(
        self, base: Float[np.ndarray, "sample *target"], targets: Float[np.ndarray, "sample *target"]
    ) -> Float[np.ndarray, "sample *target"]: ...


def find_objective(metric: str) -> Objective:
    from ray_ft.objectives.regression import Regression

    return Regression(metric)
