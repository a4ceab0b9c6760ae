"""A training loss of the user's own: found by its name in every process, and tried before anything is trained."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ray_ft.errors import ConfigError, first_few, locate_error, show_value
from ray_ft.models.factory import import_code, is_own
from ray_ft.objectives import Objective, OwnLoss

KEY = "training.loss"
N_WITNESSES = 16  # samples whose first losses are kept
RULE = "a function of your own code, which is neither Python's nor that of an installed package"


@dataclass(frozen=True)
class NamedLoss:
    """A function of (outputs, targets) to the loss of each sample, as `package.module:function`."""

    path: str

    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        return import_loss(self.path)(outputs, targets)


@cache
def import_loss(path: str) -> Any:
    """Import a loss.

    Raises:
        ConfigError: It cannot be imported, or is no code of the user's own.
    """
    found = import_code(path, KEY, RULE)
    if not callable(found) or not is_own(found):
        raise ConfigError(f"{KEY} must be {RULE}; got {path}, which was not called")
    return found


def settle_objective(
    objective: Objective,
    targets: Shaped[np.ndarray, "sample *target"],
    outputs: Float[Tensor, "sample *output"],
    given: OwnLoss | None = None,
    loss: str | None = None,
    balanced: bool = False,
) -> Objective:
    """Tell an objective of the samples and of the loss that training minimises; try one of the user's own.

    Args:
        objective: As it is found by its metric.
        targets: Of all samples.
        outputs: What the pretrained network says of them.
        given: A loss that is an object of this process, in place of `loss`.
        loss: One of `LOSSES`, or `package.module:function`; without it, the metric's own.
        balanced: Whether every class weighs the same.

    Raises:
        ConfigError: The objective has no such loss, or it is none.
    """
    own = given or (NamedLoss(loss) if loss and ":" in loss else None)
    settled = objective.settle(targets, own or loss, balanced)
    if own:
        try_loss(own, outputs, targets)
    return settled


def find_first_losses(
    objective: Objective, outputs: Float[Tensor, "sample *output"], targets: Shaped[np.ndarray, "sample *target"]
) -> tuple[float, ...]:
    """Find what training would minimise of a few samples, before it begins."""
    few = torch.from_numpy(targets[:N_WITNESSES])
    return tuple(objective.losses(outputs[: len(few)].float(), few).double().tolist())


def try_loss(
    loss: OwnLoss, outputs: Float[Tensor, "sample *output"], targets: Shaped[np.ndarray, "sample *target"]
) -> None:
    """Make sure that a loss of the user's own is one: a finite number for each sample, which outputs can lower.

    Raises:
        ConfigError: It is something else.
    """
    asked = outputs.detach().clone().float().requires_grad_()
    try:
        with torch.enable_grad():
            losses = loss(asked, torch.from_numpy(targets))
    except ConfigError:
        raise
    except Exception as error:  # of any class: it is a user's own code
        raise ConfigError(f"{KEY} must take outputs and targets, but it raised {locate_error(error)}") from error
    if not isinstance(losses, Tensor) or losses.shape != (len(targets),):
        found = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else show_value(losses)
        raise ConfigError(
            f"{KEY} must return one loss for each sample, shape ({len(targets)},), got {found}; take the mean over all "
            "axes but the first"
        )
    if len(broken := np.flatnonzero(~losses.detach().isfinite().numpy())):
        gaps = np.isnan(targets[broken]).any()
        remedy = "; targets that are NaN are missing: leave them out of the mean" if gaps else ""
        raise ConfigError(
            f"{KEY} must be finite, got NaN or infinity for samples {first_few([str(i) for i in broken])}{remedy}"
        )
    if not losses.requires_grad:
        raise ConfigError(f"{KEY} must be differentiable, got a loss that does not depend on the outputs by torch")
    (slope,) = torch.autograd.grad(losses.sum(), asked, allow_unused=True)
    if slope is None or not slope.isfinite().all():
        got = "none" if slope is None else "NaN or infinity"
        raise ConfigError(f"{KEY} must have finite derivatives by the outputs, got {got}")
