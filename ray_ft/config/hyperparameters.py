"""The hyperparameters of each way to fit, each declared once: what it is, its range, its default, how it is shown.

The config's keys, the draws of the search, the tables and the axes of the figures all follow from what stands here.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Bounds = tuple[int | float, int | float]
REQUIRED: Any = ...


@dataclass(frozen=True)
class Declaration:
    """A hyperparameter.

    Attributes:
        kind: Type and limits of a value.
        title: What it is, for the axis of a figure.
        column: The same for the head of a table.
        help: The same for the config.
        form: How a value is written.
        default: Range in the config; REQUIRED where there is none.
        log: Whether it is drawn log-uniformly.
        ranged: Whether it has a range; else the config names one value.
        optional: Whether the config may say null.
    """

    kind: Any
    title: str
    column: str
    help: str
    form: str
    default: Any = REQUIRED
    log: bool = False
    ranged: bool = True
    optional: bool = False

    @property
    def annotation(self) -> Any:
        """Type of its key in the config."""
        kind = range_of(self.kind) if self.ranged else self.kind
        return kind | None if self.optional else kind

    def show(self, value: Any) -> str:
        return "" if value is None else format(value, self.form)


def declare(kind: Any, title: str, column: str, help: str, form: str = "", **more: Any) -> Any:
    return field(metadata={"declaration": Declaration(kind, title, column, help, form, **more)})


def list_declared(hyperparameters: type) -> Iterator[tuple[str, Declaration]]:
    """List the hyperparameters of a way to fit by name, in the order in which they are drawn."""
    for own in fields(hyperparameters):
        yield own.name, own.metadata["declaration"]


def range_of(kind: Any) -> Any:
    """The type of a range in the config: two values in order, or one for both."""
    return Annotated[tuple[kind, kind], BeforeValidator(widen), AfterValidator(check_order)]


def widen(value: object) -> object:
    """Take a single value for a range that holds it alone."""
    return value if isinstance(value, list | tuple) else (value, value)


def check_order(bounds: Bounds) -> Bounds:
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"finite low <= high must hold, got [{low}, {high}]")
    return bounds


@dataclass(frozen=True)
class GradientHyperparameters:
    """Gradient descent: AdamW on a cosine schedule."""

    fit: ClassVar[str] = "gradient"

    lr: float = declare(
        Positive, "learning rate", "lr", "Peak learning rate. It is drawn log-uniformly.", ".2e", log=True
    )
    epochs: int = declare(Count, "epochs", "epochs", "Epochs of the cosine schedule.")
    batch_size: int = declare(Count, "batch size", "batch", "Samples of a step.", default=(8, 16))
    weight_decay: float = declare(
        NonNegative, "weight decay", "decay", "Weight decay of AdamW.", ".3f", default=(0.01, 0.05)
    )
    noise_std: float = declare(
        NonNegative, "input noise", "noise", "Standard deviation of Gaussian noise on training inputs.", ".3f",
        default=(0.0, 0.0),
    )  # fmt: skip
    head_dropout: float | None = declare(
        Share, "head dropout", "dropout", "Dropout inside the module `head`; null leaves it as it is.", ".3f",
        default=None, optional=True,
    )  # fmt: skip
    warmup_epochs: int = declare(
        Whole, "warm-up epochs", "warm-up", "Epochs of a linear warm-up before the cosine.", default=(0, 0)
    )
    patience: int = declare(
        Count, "patience", "patience", "Epochs without a better mean after which a candidate ends.", default=(10, 10)
    )

    @property
    def n_epochs(self) -> int:
        return self.epochs

    def settle(self, warmup_ratio: float | None = None) -> "GradientHyperparameters":
        """Return it with a warm-up that is a share of the epochs, if one is given, and half of them at most."""
        warmup = self.warmup_epochs if warmup_ratio is None else round(warmup_ratio * self.epochs)
        return replace(self, warmup_epochs=min(warmup, self.epochs // 2))  # a short run still reaches its learning rate


@dataclass(frozen=True)
class RidgeHyperparameters:
    """Ridge regression in closed form, on what the trained part reads; its penalty is chosen where it is fitted."""

    fit: ClassVar[str] = "ridge"
    n_epochs: ClassVar[int] = 1
    patience: ClassVar[int] = 1

    kernel: Literal["linear", "rbf"] = declare(
        Literal["linear", "rbf"], "kernel", "kernel", "linear, or rbf for a Gaussian kernel.", default="linear",
        ranged=False,
    )  # fmt: skip
    onto: Literal["residual", "targets"] = declare(
        Literal["residual", "targets"], "fitted to", "onto",
        "residual: what the pretrained network leaves; targets: the targets themselves.", default="residual",
        ranged=False,
    )  # fmt: skip


Hyperparameters = GradientHyperparameters | RidgeHyperparameters
FITS: dict[str, type[GradientHyperparameters] | type[RidgeHyperparameters]] = {
    kind.fit: kind for kind in (GradientHyperparameters, RidgeHyperparameters)
}
