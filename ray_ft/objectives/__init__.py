"""Objectives: what a task wants of its predictions, each in a module of its own that `find_objective` imports by name.

An objective speaks of three things. *Outputs* are tensors as the network gives them. *Responses* are what outputs mean,
in the form in which they may be averaged over members, folds and views: for regression the same numbers, for classes
their probabilities. *Targets* are the truth. Their first axis is the sample where no other is named.

Nothing outside this folder compares a prediction with its target. No module here imports torch, scipy or matplotlib
before it computes or draws something, so that a config can ask for names.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped

from ray_ft.domains import TargetAxes, Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any

__all__ = [
    "METRICS",
    "ZERO_SHOT",
    "Answers",
    "Column",
    "Figure",
    "Measures",
    "Objective",
    "Presentation",
    "find_objective",
    "list_baselines",
]

METRICS = {"mse": "ray_ft.objectives.regression", "mae": "ray_ft.objectives.regression"}  # whose module each is
ZERO_SHOT = "zero_shot"  # the baseline that learns nothing: what the pretrained network says


@runtime_checkable  # for the checks of types in tests
class Objective(Protocol):
    """What training and search need to know of a task."""

    @property
    def metric(self) -> str:
        """Name of the score, as `cv.metric` has it."""

    @property
    def answers(self) -> "Answers":
        """What an ensemble answers with."""

    @property
    def presentation(self) -> "Presentation":
        """How it is shown."""

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


@dataclass(frozen=True)
class Measures:
    """What fresh samples say of an ensemble.

    Attributes:
        methods: Measures by their names, for each method of weighing the members.
        beside: Further ones, of the method in use alone.
        calibration: What was measured at each of several levels, by the method in use.
    """

    methods: Mapping[str, Mapping[str, float]]
    beside: Mapping[str, float]
    calibration: Mapping[float, Mapping[str, float]]


@runtime_checkable
class Answers(Protocol):
    """What an ensemble answers with, and what it keeps to do so.

    Everywhere `folds` are the responses of the fold models, `residuals` what is kept of the training samples, and
    `fold_of` says which fold of each repeat held each of them out. A level is 1 - alpha.
    """

    @property
    def prediction(self) -> type[Any]:
        """The frozen dataclass of all quantities, of which `answer` computes most.

        It has `mean`, the mean response of the fold models, and `novelty`, `p_value` and `flag`, which the ensemble
        adds: how unlike the training samples an input is.
        """

    @property
    def exported(self) -> tuple[str, ...]:
        """Names of what `export` returns, `mean` first."""

    def measure_residuals(
        self, blind: Float[np.ndarray, "sample *response"], targets: Shaped[np.ndarray, "sample *target"]
    ) -> Float[np.ndarray, "sample *residual"]:
        """Measure what is kept of the training samples, from what models that never saw them say of each."""

    def find_residual_shape(self, target_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Find the shape of what is kept of one sample."""

    def measure_spread(
        self,
        members: Float[np.ndarray, "strategy repeat fold seed sample *response"],
        shares: Float[np.ndarray, "strategy repeat fold seed"],
    ) -> Float[np.ndarray, "sample *spread"]:
        """Measure how far the members, which have these shares in the whole, are from one another."""

    def answer(
        self,
        asked: Collection[str],
        folds: Float[np.ndarray, "repeat fold sample *response"],
        members: Float[np.ndarray, "strategy repeat fold seed sample *response"],
        shares: Float[np.ndarray, "strategy repeat fold seed"],
        residuals: Float[np.ndarray, "training *residual"],
        fold_of: Int[np.ndarray, "repeat training"],
        alpha: float,
    ) -> dict[str, Any]:
        """Compute the quantities that are asked for; others may be among what is returned if they cost nothing."""

    def evaluate(
        self,
        folds: Mapping[str, Float[np.ndarray, "repeat fold sample *response"]],
        residuals: Mapping[str, Float[np.ndarray, "training *residual"]],
        fold_of: Int[np.ndarray, "repeat training"],
        spread: Float[np.ndarray, "sample *spread"],
        targets: Shaped[np.ndarray, "sample *target"],
        method: str,
        level: float,
    ) -> Measures:
        """Measure an ensemble on fresh samples.

        Args:
            folds: By method of weighing.
            residuals: By method.
            fold_of: Of the training samples.
            spread: Of the members, by the method in use.
            targets: Of the fresh samples.
            method: In use.
            level: What is asked for.
        """

    def export(
        self,
        members: Float[Tensor, "strategy repeat fold seed sample *response"],
        weights: Float[Tensor, "strategy repeat fold seed"],
        residuals: Float[Tensor, "training *residual"],
        fold_of: Int[Tensor, "repeat training"],
        alpha: float,
    ) -> tuple[Tensor, ...]:
        """Compute `exported` with operations that can be exported; the weights of a fold model sum to 1."""


@dataclass(frozen=True)
class Column:
    """A measure in a table.

    Attributes:
        measure: Its name.
        header: What stands above it.
        form: How its numbers are written, as `format` takes it; empty where they are scores, which share a unit.
    """

    measure: str
    header: str
    form: str = ""


@runtime_checkable
class Presentation(Protocol):
    """How samples, errors and what fresh samples say are shown."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Measures of each method that are worth a column."""

    def describe_evaluation(self, found: Mapping[str, Any]) -> tuple[str, ...]:
        """Say in lines below the table what an evaluation, key by key, found."""

    def draw_calibration(self, points: Sequence[Mapping[str, float]], n_samples: int) -> Figure:
        """Draw what was measured against the level, `nominal`, that was asked for."""

    def draw_sample(
        self,
        axes_of: TargetAxes,
        truth: Shaped[np.ndarray, " *target"],
        mean: Float[np.ndarray, " *response"],
        std: Float[np.ndarray, " *response"],
    ) -> Figure:
        """Draw a sample: truth, response of the members that never saw it, and their standard deviation."""

    def draw_errors(
        self,
        axes_of: TargetAxes,
        responses: Mapping[str, Float[np.ndarray, "sample *response"]],
        targets: Shaped[np.ndarray, "sample *target"],
    ) -> tuple[str, Figure]:
        """Draw where the errors of each of two are, named by who made them; the text is a caption."""


def find_objective(metric: str) -> Objective:
    """Import the objective whose score has this name, a key of `METRICS`."""
    objective: Objective = import_module(METRICS[metric]).build_objective(metric)
    return objective


def list_baselines() -> tuple[str, ...]:
    """Name the baselines of every objective; no strategy may be called so."""
    return tuple(dict.fromkeys(name for metric in METRICS for name in find_objective(metric).baselines))
