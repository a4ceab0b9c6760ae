"""Strategies in a config: what learns in each of their stages, and by which hyperparameters."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, create_model, model_validator

from ray_ft.config.base import Section
from ray_ft.config.hyperparameters import (
    FITS,
    Bounds,
    Count,
    Declaration,
    Hyperparameters,
    Range,
    Share,
    list_declared,
    refuse_flags,
)
from ray_ft.errors import show_value


def as_list(patterns: object) -> object:
    return [patterns] if isinstance(patterns, str) else patterns


def refuse_flag(value: object) -> object:
    refuse_flags(value)
    return value


Scale = Annotated[float, BeforeValidator(refuse_flag), Field(gt=0, le=1e6)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(as_list, json_schema_input_type=str | list[str])]


class StageConfig(Section):
    """What learns in a stage of a strategy; the hyperparameters of its way to fit are keys beside these."""

    fit: str
    train: Patterns = Field(min_length=1, description="Name patterns of the parameters that learn.")
    freeze: Patterns = Field(default=(), description="Name patterns taken out of `train`.")

    @property
    def hyperparameters(self) -> type[Hyperparameters]:
        return FITS[self.fit]

    def range_of(self, name: str) -> Range | None:
        """Range of a hyperparameter; None where it has none."""
        found = getattr(self, name, None)
        return found if isinstance(found, Range) else None

    def bounds(self, name: str) -> Bounds | None:
        """Ends of a hyperparameter's range; None where it has none."""
        found = self.range_of(name)
        return found and found.bounds

    def space(self, name: str) -> Bounds | None:
        """Where the search of a hyperparameter looks; None where the config says nothing of it."""
        declared, own = dict(list_declared(self.hyperparameters))[name], self.range_of(name)
        if own is None or own.fixed or declared.wide is None:
            return own and own.bounds
        return min(own.low, declared.wide[0]), max(own.high, declared.wide[1])

    def is_single(self, name: str) -> bool:
        """Whether a hyperparameter is fixed to one value."""
        own = self.range_of(name)
        return own is not None and own.fixed and own.low == own.high

    @property
    def longest(self) -> int:
        """The most epochs that a candidate may take."""
        return int((self.bounds("epochs") or (1, 1))[1])

    @property
    def varies(self) -> bool:
        """Whether there is anything to draw."""
        ranges = (self.bounds(name) for name, _ in list_declared(self.hyperparameters))
        return any(bounds is not None and bounds[0] < bounds[1] for bounds in ranges)

    def describe(self) -> str:
        """Say what it trains, by what it is fitted, and what the config says of its hyperparameters, but defaults."""
        said = {name: self.describe_key(name, declared) for name, declared in list_declared(self.hyperparameters)}
        shown = (f"{key} {value}" for key, value in said.items() if value)
        without = f" without {' '.join(self.freeze)}" if self.freeze else ""
        return ", ".join((f"train {' '.join(self.train)}{without}", f"fit {self.fit}", *shown, *self.describe_more()))

    def describe_key(self, name: str, declared: Declaration) -> str:
        own = getattr(self, name, None)
        if own is None or own == declared.default:
            return ""
        if not isinstance(own, Range):
            return str(own)
        if own.bounds == declared.default:
            return ""
        return " to ".join(format(value, ".3g") for value in dict.fromkeys(own.bounds))

    def describe_more(self) -> tuple[str, ...]:
        """Say what else its way to fit was told."""
        return ()


class AdapterSection(Section):
    """What weights learn by in place of themselves: the form `lora` is short for `{kind: lora}`."""

    kind: Literal["lora", "scale"]
    """lora adds a product of two small matrices to each weight; scale multiplies each output."""
    rank: Count | None = Field(default=None, description="Rank of what lora adds to a weight. Without it, 4.")

    @model_validator(mode="before")
    @classmethod
    def read_short_form(cls, value: object) -> object:
        if not isinstance(value, str | Mapping):
            raise ValueError(f"it should be lora, scale, or a section with a kind, got {show_value(value)}")
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def check_rank(self) -> "AdapterSection":
        if self.kind != "lora" and self.rank is not None:
            raise ValueError(f"rank is lora's alone, got {self.rank} for {self.kind}; leave it out")
        return self


class GradientBase(StageConfig):
    fit: Literal["gradient"] = Field(default="gradient", description="By what it is fitted: gradient descent.")
    warmup_ratio: Share | None = Field(
        default=None, description="Warm-up as a share of the epochs, in place of warmup_epochs."
    )
    adapter: AdapterSection | None = Field(
        default=None, description="What weights learn by in place of themselves: lora, scale, or the keys below."
    )
    lr_scale: dict[str, Scale] = Field(
        default_factory=dict, description="Factors on the learning rate, by name pattern of trained parameters."
    )

    def describe_more(self) -> tuple[str, ...]:
        rank = f" of rank {self.adapter.rank}" if self.adapter and self.adapter.rank else ""
        said = {
            "warm-up": self.warmup_ratio and f"{self.warmup_ratio:.3g} of the epochs",
            "adapter": self.adapter and f"{self.adapter.kind}{rank}",
            "lr_scale": ", ".join(f"{value:.3g} for {pattern}" for pattern, value in self.lr_scale.items()),
        }
        return tuple(f"{key} {value}" for key, value in said.items() if value)


class RidgeBase(StageConfig):
    fit: Literal["ridge"] = Field(description="By what it is fitted: ridge regression in closed form.")


def add_keys(base: type[StageConfig], hyperparameters: type) -> type[StageConfig]:
    """Make a section whose keys are the declared hyperparameters."""
    keys: dict[str, Any] = {
        name: (declared.annotation, Field(default=declared.default, description=declared.help, validate_default=True))
        for name, declared in list_declared(hyperparameters)
    }
    return create_model(base.__name__.replace("Base", "Stage"), __base__=base, __module__=__name__, **keys)


GradientStage, RidgeStage = add_keys(GradientBase, FITS["gradient"]), add_keys(RidgeBase, FITS["ridge"])


def pick_fit(stage: Any) -> str:
    return str(stage.get("fit", "gradient") if isinstance(stage, Mapping) else getattr(stage, "fit", "gradient"))


if TYPE_CHECKING:
    AnyStage = StageConfig
else:
    AnyStage = Annotated[
        Annotated[GradientStage, Tag("gradient")] | Annotated[RidgeStage, Tag("ridge")], Discriminator(pick_fit)
    ]


class StrategyConfig(Section):
    """A strategy: a tuple of stages; a mapping without `stages` is the one stage itself."""

    description: str = Field(default="", description="What it is for, in words.")
    stages: tuple[AnyStage, ...] = Field(min_length=1, description="Stages in their order; each has the keys below.")

    def describe(self) -> str:
        """Say what each stage learns, by what, and by which values of its own."""
        if len(self.stages) == 1:
            return self.stages[0].describe()
        return "; ".join(f"stage {i}: {own.describe()}" for i, own in enumerate(self.stages, start=1))

    def most(self, name: str) -> float:
        """The largest value that a hyperparameter may take in a stage; 0 where it has none."""
        return max(float((stage.bounds(name) or (0, 0))[1]) for stage in self.stages)

    @model_validator(mode="before")
    @classmethod
    def read_flat_form(cls, value: object) -> object:
        if isinstance(value, Mapping) and "stages" not in value:
            stage = {key: part for key, part in value.items() if key != "description"}
            return {"description": value.get("description", ""), "stages": (stage,)}
        return value

    @model_validator(mode="after")
    def check_order(self) -> "StrategyConfig":
        for number, stage in enumerate(self.stages[1:], start=2):
            if stage.fit == FITS["ridge"].fit:
                raise ValueError(
                    "fit: ridge must be the first stage, as it is solved on features that all members share, got it as "
                    f"stage {number} of {len(self.stages)}; move it to the front, or fit this stage by gradient"
                )
        return self
