"""Objectives: what a task wants of its predictions, each in a module of its own that `find_objective` imports by name.

An objective speaks of three things. *Outputs* are tensors as the network gives them. *Responses* are what outputs mean,
in the form in which they may be averaged over members, folds and views: for regression the same numbers, for classes
their probabilities. *Targets* are the truth. Their first axis is the sample where no other is named.

Nothing outside this folder compares a prediction with its target. No module here imports torch, scipy or matplotlib
before it computes or draws something, so that a config can ask for names.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Shaped

from ray_ft.domains import Tensor

__all__ = ["METRICS", "ZERO_SHOT", "Objective", "find_objective", "list_baselines"]

METRICS = {"mse": "ray_ft.objectives.regression", "mae": "ray_ft.objectives.regression"}  # whose module each is
ZERO_SHOT = "zero_shot"  # the baseline that learns nothing: what the pretrained network says


@runtime_checkable  # for the checks of types in tests
class Objective(Protocol):
    """What training and search need to know of a task."""

    @property
    def metric(self) -> str:
        """Name of the score, as `cv.metric` has it."""

    @property
    def baselines(self) -> tuple[str, ...]:
        """Names of what costs no training: `ZERO_SHOT` first, then those that are fitted."""

    def check_targets(self, targets: Shaped[np.ndarray, "sample *target"], source: str) -> None:
        """Make sure that targets are what the objective is about.

        Args:
            targets: Finite numbers.
            source: Name of their file, for messages.

        Raises:
            DataError: They are not.
        """

    def find_misfit(self, response_shape: tuple[int, ...], target_shape: tuple[int, ...]) -> str:
        """Say what is wrong with the shape of a response for such a target; nothing where they fit."""

    def losses(
        self, outputs: Float[Tensor, "sample *output"], targets: Shaped[Tensor, "sample *target"]
    ) -> Float[Tensor, " sample"]:
        """Compute the training loss of each sample; it works under `torch.vmap`."""

    def respond(self, outputs: Float[Tensor, "*axes"]) -> Float[Tensor, "*same"]:
        """Turn outputs into responses; axes may stand before that of the sample. It can be exported."""

    def linear_residual(
        self, base: Float[np.ndarray, "sample *output"], targets: Shaped[np.ndarray, "sample *target"]
    ) -> Float[np.ndarray, "sample *output"]:
        """Compute what is to be added to outputs so that they are right, for fits in closed form."""

    def score(
        self, predicted: Float[np.ndarray, "sample *response"], targets: Shaped[np.ndarray, "sample *target"]
    ) -> Float[np.ndarray, " sample"]:
        """Score each sample in double precision; lower is better for every objective."""

    def predict_baselines(
        self,
        zero_shot: Float[np.ndarray, "training *response"],
        targets: Shaped[np.ndarray, "training *target"],
        new: Float[np.ndarray, "sample *response"],
    ) -> Mapping[str, Float[np.ndarray, "sample *response"]]:
        """Predict by each baseline, fitted on the training part that is given and on nothing else.

        Args:
            zero_shot: What the pretrained network says of the training part.
            targets: Of the training part.
            new: What the pretrained network says of the samples to predict.
        """

    def stack(
        self, columns: Float[np.ndarray, "column sample *response"], targets: Shaped[np.ndarray, "sample *target"]
    ) -> Float[np.ndarray, " column"]:
        """Choose weights of columns of responses for the best weighted mean.

        Returns:
            Weights that are not negative; all 0 where no column is worth any.
        """


def find_objective(metric: str) -> Objective:
    """Import the objective whose score has this name, a key of `METRICS`."""
    objective: Objective = import_module(METRICS[metric]).build_objective(metric)
    return objective


def list_baselines() -> tuple[str, ...]:
    """Name the baselines of every objective; no strategy may be called so."""
    return tuple(dict.fromkeys(name for metric in METRICS for name in find_objective(metric).baselines))
