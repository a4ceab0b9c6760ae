"""The section of a config that says how members are trained, whatever the strategy."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model, field_validator

from ray_ft.config.base import Section, is_code_name, suggest_module
from ray_ft.config.hyperparameters import FITS, Count, Positive, Share, list_declared
from ray_ft.errors import show_value, suggest
from ray_ft.objectives import LOSSES


class TrainingBase(Section):
    resume: str | None = Field(default=None, description="The same as model.checkpoint.")
    freeze_encoder: bool | None = None
    """Whether the encoder stays as it is. With it or freeze_decoder, the one strategy is as_written."""
    freeze_decoder: bool | None = Field(default=None, description="Whether the decoder stays as it is.")
    warmup_ratio: Share | None = Field(default=None, description="Linear warm-up, as a share of the epochs.")
    grad_clip: Positive = Field(default=1.0, description="Largest norm of a gradient; a longer one is shortened to it.")
    loss: str | None = None
    """What training minimises: mse, mae, huber, smooth_l1, log_cosh, these after standardised_, cross_entropy, or
    `package.module:function` of your own. Without it, the metric's own."""
    class_weights: Literal["balanced"] | None = None
    """With balanced, every class weighs the same in the loss."""
    n_noisy_views: Count = Field(default=4, description="Noisy copies of each view to draw from.")
    checkpoint_every: Count = Field(default=5, description="Epochs between checkpoints of a candidate.")
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Precision of the products. `auto` is bf16 where the device gains from it."""

    @property
    def objective(self) -> dict[str, Any]:
        """What the objective is told, by the arguments of `Objective.settle`."""
        return {"loss": self.loss, "balanced": self.class_weights is not None}

    @field_validator("loss")
    @classmethod
    def check_loss(cls, name: str | None) -> str | None:
        if name is not None and name not in LOSSES and not is_code_name(name):
            known = ", ".join(LOSSES)
            law = f"a loss is one of {known}, or package.module:function of your own"
            raise ValueError(f"{law}, got {show_value(name)}{suggest_module(name) or suggest(name, LOSSES)}")
        return name


if TYPE_CHECKING:
    TrainingSection = TrainingBase
else:
    TrainingSection = create_model(
        "TrainingSection",
        __base__=TrainingBase,
        __module__=__name__,
        __doc__="Values that hold for every strategy in place of its ranges, and what has no range.",
        **{
            name: (declared.kind | None, Field(default=None, description=declared.help))
            for name, declared in list_declared(FITS["gradient"])
            if name != "warmup_epochs"  # a share of the epochs suits strategies of any length
        },
    )
