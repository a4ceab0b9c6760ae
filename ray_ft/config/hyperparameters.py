"""The hyperparameters of each way to fit, each declared once: what it is, its range, its default, how it is shown.

The config's keys, the draws of the search, the tables and the axes of the figures all follow from what stands here.

A key in the config is one value, which fixes it; a range `[low, high]`, whose middle is tried first and which the
search may leave; or `{low: .., high: .., fixed: true}`, which it may not leave. What is not given is searched.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Factor = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
DRAWN_VIEWS = 2  # of a sample in an epoch, unless the config says so
Bounds = tuple[int | float, int | float]


class Range(NamedTuple):
    """Where a value lies in the config."""

    low: int | float
    high: int | float
    fixed: bool = False  # whether the search may not leave it

    @property
    def bounds(self) -> Bounds:
        return self.low, self.high


@dataclass(frozen=True)
class Declaration:
    """A hyperparameter: what it is, for the axis of a figure, the head of a table and the config."""

    title: str
    column: str
    help: str
    form: str  # how a value is written
    default: Any = ...  # range in the config; `...` where there is none, and None where the config may say null
    log: bool = False  # whether it is drawn log-uniformly
    wide: Bounds | None = None  # where a search looks besides, unless the config fixes it; None where nowhere
    kind: Any = None  # type and limits of a value, as it is annotated

    @property
    def annotation(self) -> Any:
        """Type of its key in the config: a range of numbers, or one of a few words."""
        if get_origin(self.kind) is Literal:
            return self.kind
        parts = get_args(self.kind)
        kind = range_of(parts[0] if type(None) in parts else self.kind)
        return kind | None if self.default is None else kind

    def show(self, value: Any) -> str:
        return "" if value is None else format(value, self.form)


def declare(title: str, column: str, help: str, form: str = "", absent: Any = MISSING, **more: Any) -> Any:
    """Declare a hyperparameter; `absent` is its value in records of runs that did not know it."""
    return field(default=absent, metadata={"declaration": Declaration(title, column, help, form, **more)})


def list_declared(hyperparameters: type) -> Iterator[tuple[str, Declaration]]:
    """List the hyperparameters of a way to fit by name, in the order in which they are drawn."""
    for own in fields(hyperparameters):
        yield own.name, replace(own.metadata["declaration"], kind=own.type)


def range_of(kind: Any) -> Any:
    """The type of a range in the config: two values in order, or one for both."""
    checks = BeforeValidator(widen), AfterValidator(check_order), PlainSerializer(write_range)
    return Annotated[(tuple[kind, kind, bool], *checks)]


def widen(value: object) -> object:
    """Read `value`, `[low, high]` or `{low: .., high: .., fixed: true}`."""
    if isinstance(value, Mapping):
        if not {"low", "high"} <= value.keys() <= {"low", "high", "fixed"}:
            raise ValueError(f"a range has low and high, and may be fixed, got {', '.join(map(str, value)) or 'none'}")
        refuse_flags(value["low"], value["high"])
        return value["low"], value["high"], value.get("fixed", False)
    if isinstance(value, Range):
        return tuple(value)
    if not isinstance(value, list | tuple):
        refuse_flags(value)
        return value, value, True
    if len(value) != 2:
        raise ValueError(f"a range has two ends, [low, high], got {len(value)}")
    refuse_flags(*value)
    return *value, False


def refuse_flags(*values: object) -> None:
    """Refuse true and false, which Python takes for 1 and 0."""
    if any(isinstance(value, bool) for value in values):
        raise ValueError("it should be a number, got true or false")


def check_order(values: tuple[Any, Any, bool]) -> Range:
    low, high, _ = values
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"finite low <= high must hold, got [{low}, {high}]")
    return Range(*values)


def write_range(own: Range) -> Any:
    return {"low": own.low, "high": own.high, "fixed": True} if own.fixed else [own.low, own.high]


@dataclass(frozen=True)
class GradientHyperparameters:
    """Gradient descent: AdamW on a cosine schedule."""

    fit: ClassVar[str] = "gradient"

    lr: Positive = declare(
        "learning rate", "lr", "Peak learning rate. It is drawn log-uniformly.", ".2e", default=None, log=True
    )
    epochs: Count = declare("epochs", "epochs", "Epochs of the cosine schedule.", default=None)
    batch_size: Count = declare("batch size", "batch", "Samples of a step.", default=(8, 16), wide=(8, 16))
    weight_decay: NonNegative = declare(
        "weight decay", "decay", "Weight decay of AdamW.", ".3f", default=(0.01, 0.05), wide=(0.0, 0.1)
    )
    noise_std: NonNegative = declare(
        "input noise", "noise", "Standard deviation of Gaussian noise on training inputs.", ".3f", default=(0.0, 0.0),
        wide=(0.0, 0.0),
    )  # fmt: skip
    head_dropout: Share | None = declare(
        "head dropout", "dropout", "Dropout inside the module `head`; null leaves it as it is.", ".3f", default=None,
        wide=(0.0, 0.0),
    )  # fmt: skip
    warmup_epochs: Whole = declare(
        "warm-up epochs", "warm-up", "Epochs of a linear warm-up before the cosine.", default=(0, 0), wide=(0, 0)
    )
    patience: Count = declare(
        "patience", "patience", "Epochs without a better mean after which a candidate ends.", default=(10, 10)
    )
    label_smoothing: Share | None = declare(
        "label smoothing",
        "smoothing",
        "Share of a class's target that all classes get.",
        ".3f",
        absent=None,
        default=None,
    )

    decay_to: Literal["zero", "pretrained"] = declare(
        "decay towards", "decay to", "What weight decay pulls towards: zero, or pretrained for where training began.",
        absent="zero", default="zero",
    )  # fmt: skip
    views: Count | None = declare(
        "views of a sample", "views", "Views of a sample in an epoch, of those of data.symmetry, drawn anew for each.",
        absent=None, default=(DRAWN_VIEWS, DRAWN_VIEWS), wide=(DRAWN_VIEWS, DRAWN_VIEWS),
    )  # fmt: skip
    lr_decay: Factor = declare(
        "decay of the learning rate by depth", "lr decay",
        "Factor on the learning rate for each block between a parameter and the answer.", ".3f",
        absent=1.0, default=(1.0, 1.0), wide=(1.0, 1.0),
    )  # fmt: skip
    replay: Share | None = declare(
        "share of replay", "replay", "Share of replayed samples in the loss; 0.25 where data.replay is given.", ".2f",
        absent=None, default=None,
    )  # fmt: skip
    ema: Share = declare(
        "average of the weights", "average", "Decay, by step, of the average of the weights that predicts; 0 for none.",
        ".3f", absent=0.0, default=(0.0, 0.0), wide=(0.0, 0.0),
    )  # fmt: skip

    @property
    def n_epochs(self) -> int:
        return self.epochs

    def settle(self, warmup_ratio: float | None = None) -> "GradientHyperparameters":
        """Return it with a warm-up that is a share of the epochs, if one is given, and half of them at most."""
        warmup = self.warmup_epochs if warmup_ratio is None else round(warmup_ratio * self.epochs)
        return replace(self, warmup_epochs=min(warmup, self.epochs // 2))  # a short run still reaches its learning rate


def scale_lr(step: int, n_steps: int, n_warmup: int) -> float:
    """Rise linearly to 1 over the warm-up, then fall by a cosine to 0 at `n_steps`."""
    if step < n_warmup:
        return (step + 1) / n_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


def count_replayed(batch_size: int, share: float | None) -> int:
    """Replayed samples of a step, so many that each weighs in the loss about as one of the batch does."""
    return max(1, round(batch_size * share / (1 - share))) if share else 0


@dataclass(frozen=True)
class RidgeHyperparameters:
    """Ridge regression in closed form, on what the trained part reads; its penalty is chosen where it is fitted."""

    fit: ClassVar[str] = "ridge"
    n_epochs: ClassVar[int] = 1
    patience: ClassVar[int] = 1

    kernel: Literal["linear", "rbf"] = declare(
        "kernel", "kernel", "linear, or rbf for a Gaussian kernel.", default="linear"
    )
    onto: Literal["residual", "targets"] = declare(
        "fitted to", "onto", "residual: what the pretrained network leaves; targets: the targets themselves.",
        default="residual",
    )  # fmt: skip


Hyperparameters = GradientHyperparameters | RidgeHyperparameters
FITS: dict[str, type[Hyperparameters]] = {own.fit: own for own in (GradientHyperparameters, RidgeHyperparameters)}
