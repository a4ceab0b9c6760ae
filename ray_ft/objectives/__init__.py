"""Objectives: what a task wants of its predictions, each in a module of its own that `find_objective` imports by name.

An objective speaks of three things. *Outputs* are tensors as the network gives them. *Responses* are what outputs mean,
in the form in which they may be averaged over members, folds and views: for regression the same numbers, for classes
their probabilities. *Targets* are the truth. Their first axis is the sample where no other is named.

Nothing outside this folder compares a prediction with its target. No module here imports torch, scipy or matplotlib
before it computes or draws something, so that a config can ask for names.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped

from ray_ft.domains import TargetAxes, Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Figure
else:
    Figure = Any

Responses = Float[np.ndarray, "sample *response"]
Targets = Shaped[np.ndarray, "sample *target"]
OneResponse = Float[np.ndarray, " *response"]
OneTarget = Shaped[np.ndarray, " *target"]
Columns = Float[np.ndarray, "column sample *response"]  # a column is a model that speaks of every sample
ByColumn = Float[np.ndarray, " column"]
Members = Float[np.ndarray, "strategy repeat fold seed sample *response"]
Shares = Float[np.ndarray, "strategy repeat fold seed"]  # of the members in the whole, or in their fold model
Folds = Float[np.ndarray, "repeat fold sample *response"]  # what the fold models say
Residuals = Float[np.ndarray, "training *residual"]  # what is kept of the training samples
FoldOf = Int[np.ndarray, "repeat training"]  # which fold of each repeat held a training sample out

REGRESSION, CLASSIFICATION = "ray_ft.objectives.regression", "ray_ft.objectives.classification"
STANDARDISED = "standardised_"  # before the name of an error that is taken in units of each output's own spread
METRICS = {  # whose module each is
    **dict.fromkeys(("mse", "mae", "huber"), REGRESSION),
    **dict.fromkeys((f"{STANDARDISED}mse", f"{STANDARDISED}mae", f"{STANDARDISED}huber"), REGRESSION),
    **dict.fromkeys(("log_loss", "error_rate", "multilabel_log_loss"), CLASSIFICATION),
}
ERRORS = ("mse", "mae", "huber", "smooth_l1", "log_cosh")
LOSSES = {  # that training may minimise, whatever the metric; whose module each is
    **dict.fromkeys((*ERRORS, *(f"{STANDARDISED}{name}" for name in ERRORS)), REGRESSION),
    "cross_entropy": CLASSIFICATION,
}
OwnLoss = Callable[[Any, Any], Any]  # of outputs and targets, tensors by sample, to the loss of each sample
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

    @property
    def scales(self) -> tuple[float, ...]:
        """Of each target value, in whose units its errors count for the score; empty where they count as they are."""

    def encode_targets(
        self, array: Shaped[np.ndarray, "..."], source: str, classes: tuple[str, ...] = ()
    ) -> tuple[Shaped[np.ndarray, "..."], tuple[str, ...]]:
        """Bring targets of a file named `source` into numbers; name their columns where these are classes.

        Raises:
            DataError: They are not of the objective's kind, or not among the classes that are given.
        """

    def widen_targets(
        self, targets: Targets, classes: tuple[str, ...], n_outputs: int
    ) -> tuple[Targets, tuple[str, ...]]:
        """Give targets further columns, where a network with as many outputs knows classes that they lack."""

    def settle(
        self,
        targets: Targets,
        loss: str | OwnLoss | None = None,
        balanced: bool = False,
    ) -> "Objective":
        """Return it with what it must know of the samples, and with the loss that training minimises.

        Args:
            targets: Of all samples that are learned from.
            loss: One of `LOSSES`, or a function of the user's own; without it, the metric's own.
            balanced: Whether every class weighs the same in the loss.

        Raises:
            ConfigError: The objective has no such loss, or no classes.
        """

    def smooth(self, share: float) -> "Objective":
        """Return it with this share of the targets spread evenly over the classes in the loss.

        Raises:
            ConfigError: The objective has no classes, or its loss is the user's own.
        """

    def find_fault(self, outputs: Float[np.ndarray, "sample *output"]) -> str:
        """Say what is wrong with the outputs of the pretrained network; nothing where they are as they should be."""

    def find_output_shape(self, found: tuple[int, ...], target_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a sample's outputs, for targets of this one and a network that says `found`."""

    def find_misfit(self, response_shape: tuple[int, ...], target_shape: tuple[int, ...]) -> str:
        """Say what is wrong with the shape of a response for such a target; nothing where they fit."""

    def losses(
        self, outputs: Float[Tensor, "sample *output"], targets: Shaped[Tensor, "sample *target"]
    ) -> Float[Tensor, " sample"]:
        """Compute the training loss of each sample; it works under `torch.vmap`."""

    def respond(self, outputs: Float[Tensor, "*axes"]) -> Float[Tensor, "*same"]:
        """Turn outputs into responses; axes may stand before that of the sample. It can be exported."""

    def linear_residual(
        self, base: Float[np.ndarray, "sample *output"], targets: Targets
    ) -> Float[np.ndarray, "sample *output"] | None:
        """Compute what is to be added to outputs so that they are right, for fits in closed form; None without one."""

    def score(self, predicted: Responses, targets: Targets) -> Float[np.ndarray, " sample"]:
        """Score each sample in double precision; lower is better for every objective."""

    def measure_errors(self, predicted: Responses, targets: Targets) -> Float[np.ndarray, "sample *target"] | None:
        """Compute the error of each target value, NaN where it is missing; None where values have none of their own."""

    def measure_beside(self, predicted: Responses, targets: Targets) -> Mapping[str, float]:
        """Measure what people ask for beside the score, which chooses nothing; what is undefined is left out."""

    def predict_baselines(
        self,
        zero_shot: Float[np.ndarray, "training *response"],
        targets: Shaped[np.ndarray, "training *target"],
        new: Float[np.ndarray, "sample *response"],
    ) -> Mapping[str, Responses]:
        """Predict by each baseline, fitted on a training part and nothing else, where the network says `new`."""

    def stack(self, columns: Columns, targets: Targets) -> ByColumn:
        """Choose weights for the best weighted mean, none of them negative; all 0 where no column is worth any."""


@dataclass(frozen=True)
class Measures:
    """What fresh samples say of an ensemble: measures by name; but by method, for the method in use alone.

    Attributes:
        outputs: Of each output by itself, in its own unit, where there are several.
    """

    methods: Mapping[str, Mapping[str, float]]
    beside: Mapping[str, float]
    calibration: Mapping[float, Mapping[str, float]]
    outputs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class BlindAnswer:
    """What is `leveled`, of the training samples themselves, by models that never saw the sample that they speak of.

    Attributes:
        level: At which it holds.
        quantities: By name and sample, as of `Answers.leveled`; none where the training samples are too few.
        measures: What these hold of the truth, as `Measures.methods` has it of fresh samples.
    """

    level: float
    quantities: Mapping[str, Shaped[np.ndarray, "sample ..."]]
    measures: Mapping[str, float]


@runtime_checkable
class Answers(Protocol):
    """What an ensemble answers with, and what it keeps to do so. A level is 1 - alpha."""

    @property
    def prediction(self) -> type[Any]:
        """The frozen dataclass of all quantities, of which `answer` computes most.

        It has `mean`, the mean response of the fold models, and `novelty`, `p_value` and `flag`, which the ensemble
        adds: how unlike the training samples an input is.
        """

    @property
    def exported(self) -> tuple[str, ...]:
        """Names of what `export` returns, `mean` first."""

    @property
    def leveled(self) -> tuple[str, ...]:
        """Names of what holds at a level, for which the training samples may be too few; it is None then."""

    def measure_residuals(self, blind: Responses, targets: Targets) -> Float[np.ndarray, "sample *residual"]:
        """Measure what is kept of the training samples, from what models that never saw them say of each."""

    def find_residual_shape(self, target_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Find the shape of what is kept of one sample."""

    def measure_spread(self, members: Members, shares: Shares) -> Float[np.ndarray, "sample *spread"]:
        """Measure how far the members, which have these shares in the whole, are from one another."""

    def answer(
        self,
        asked: Collection[str],
        folds: Folds,
        members: Members,
        shares: Shares,
        residuals: Residuals,
        fold_of: FoldOf,
        alpha: float,
    ) -> dict[str, Any]:
        """Compute the quantities that are asked for; others may be among what is returned if they cost nothing."""

    def answer_blind(
        self, blind: Responses, targets: Targets, fold_of: Int[np.ndarray, " sample"], level: float
    ) -> BlindAnswer:
        """Compute what is `leveled` for the training samples, from what models that never saw them say.

        CV+ asks for a new sample every fold model; of a training sample all but one have seen it. Here its blind
        prediction stands for them all, and residuals of its own fold are left out.
        """

    def evaluate(
        self,
        folds: Mapping[str, Folds],
        residuals: Mapping[str, Residuals],
        fold_of: FoldOf,
        spread: Float[np.ndarray, "sample *spread"],
        targets: Targets,
        method: str,
        level: float,
        outputs: Mapping[str, slice],
    ) -> Measures:
        """Measure an ensemble on fresh samples, by every method of weighing; `spread` is by the method in use.

        `outputs` says where each output lies among the values of a flat target.

        What the training samples are too few for, at this level, is not among the measures.
        """

    def export(
        self,
        members: Float[Tensor, "strategy repeat fold seed sample *response"],
        weights: Float[Tensor, "strategy repeat fold seed"],
        residuals: Float[Tensor, "training *residual"],
        fold_of: Int[Tensor, "repeat training"],
        alpha: float,
        n_labels: Int[np.ndarray, "*residual"],
    ) -> tuple[Tensor, ...]:
        """Compute `exported` with operations that can be exported; the weights of a fold model sum to 1.

        `n_labels` is of how many training samples each residual is known. What is `leveled` is left out where the
        training samples are too few for it.
        """


@dataclass(frozen=True)
class Column:
    """A measure in a table, its `form` as `format` takes it; that is empty for scores, which share a unit."""

    measure: str
    header: str
    form: str = ""


@runtime_checkable
class Presentation(Protocol):
    """How samples, errors and what fresh samples say are shown."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Measures of each method that are worth a column."""

    @property
    def beside(self) -> tuple[Column, ...]:
        """What `Objective.measure_beside` finds, with its direction in the header."""

    def describe_evaluation(self, found: Mapping[str, Any]) -> tuple[str, ...]:
        """Say in lines below the table what an evaluation, key by key, found; `lack` is why there are no intervals."""

    def draw_calibration(self, points: Sequence[Mapping[str, float]], n_samples: int) -> Figure:
        """Draw what was measured against the level, `nominal`, that was asked for."""

    def draw_predictions(
        self, axes_of: TargetAxes, responses: Mapping[str, Responses], targets: Targets, answer: BlindAnswer
    ) -> tuple[str, Figure]:
        """Draw what was predicted against what was measured; the text is a caption.

        Of the responses, named by who made them, the first are the blind ones that the answer is about.
        """

    def draw_sample(
        self, axes_of: TargetAxes, truth: OneTarget, mean: OneResponse, own: Mapping[str, Shaped[np.ndarray, "..."]]
    ) -> Figure | None:
        """Draw a sample: truth, blind response, and its own quantities of a `BlindAnswer`.

        None where `draw_predictions` shows all of it.
        """

    def draw_errors(
        self, axes_of: TargetAxes, responses: Mapping[str, Responses], targets: Targets
    ) -> tuple[str, Figure] | None:
        """Draw where the errors of each of two are, named by who made them; None where there is one place only."""


def find_objective(metric: str, scales: Sequence[float] = ()) -> Objective:
    """Import the objective whose score has this name, a key of `METRICS`; `scales` are those that it was settled by."""
    objective: Objective = import_module(METRICS[metric]).build_objective(metric, tuple(scales))
    return objective


def list_baselines() -> tuple[str, ...]:
    """Name the baselines of every objective; no strategy may be called so."""
    return tuple(dict.fromkeys(name for metric in METRICS for name in find_objective(metric).baselines))
