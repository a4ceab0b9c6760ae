"""What fits: the seam between a candidate, which watches the losses, and a way to make its members.

A fitter holds all of a candidate's members, or some of them, on one device. It knows nothing of folds that compete, of
patience or of files. `JoinedFitter` makes one of several, wherever these are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from ray_ft.search.problem import MemberKey

Packing = Literal["auto", "packed", "looped"]
Predictions = dict[MemberKey, Float[np.ndarray, "_ *target"]]
States = dict[MemberKey, dict[str, Tensor]]


@dataclass(frozen=True)
class FitSettings:
    """How members are fitted, whatever the candidate."""

    grad_clip: float = 1.0  # largest norm of a member's gradient
    n_noisy_views: int = 4  # noisy copies of each view to draw from
    precision: Literal["auto", "float32", "bf16"] = "auto"  # of the products; auto: bf16 where the device gains from it
    packing: Packing = "auto"  # whether members train in one step or one after the other; auto times both
    checkpoint_every: int = 5  # epochs between checkpoints of a candidate
    deterministic: bool = False  # whether the same steps give the same bits, and nothing is chosen by timing


@dataclass(frozen=True)
class FitterDescription:
    """Why the network could not be split, if so; and how the members are fitted."""

    note: str
    training: str


@runtime_checkable
class Fitter(Protocol):
    """Makes the members of a candidate, epoch by epoch, from the pretrained network that it started with."""

    def run_epoch(self, epoch: int) -> None:
        """Fit for an epoch, from 0; a closed form has one.

        Raises:
            DivergedError: A loss is infinite or not a number.
        """
        ...

    def predict(self) -> Predictions:
        """Predict, by each member, the samples that it is watched on."""
        ...

    def take_snapshots(self, improved: Bool[np.ndarray, "repeat fold"]) -> None:
        """Keep the members of these folds as they are now."""
        ...

    def collect_snapshots(self) -> States:
        """Return the members as they were kept."""
        ...

    def save(self) -> dict[MemberKey, dict[str, Any]]:
        """Return all that the next epoch depends on, in the memory that it will change where that is the CPU's."""
        ...

    def load(self, saved: Mapping[MemberKey, dict[str, Any]]) -> None:
        """Go back to what `save` returned, here or in another fitter."""
        ...

    def has_drifted(self) -> bool:
        """Whether a frozen parameter or buffer has moved, in the memory that is computed with."""
        ...

    def describe(self) -> FitterDescription:
        """Say how it works."""
        ...


Ask = Callable[[Callable[[Fitter], Any]], list[Any]]  # puts a question to each of several fitters


class JoinedFitter:
    """Several fitters, which share a candidate's members, as one; `ask` knows where they are."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask

    def merge(self, question: Callable[[Fitter], dict[MemberKey, Any]]) -> dict[MemberKey, Any]:
        return {key: value for answer in self.ask(question) for key, value in answer.items()}

    def run_epoch(self, epoch: int) -> None:
        self.ask(lambda fitter: fitter.run_epoch(epoch))

    def predict(self) -> Predictions:
        return self.merge(lambda fitter: fitter.predict())

    def take_snapshots(self, improved: Bool[np.ndarray, "repeat fold"]) -> None:
        self.ask(lambda fitter: fitter.take_snapshots(improved))

    def collect_snapshots(self) -> States:
        return self.merge(lambda fitter: fitter.collect_snapshots())

    def save(self) -> dict[MemberKey, dict[str, Any]]:
        return self.merge(lambda fitter: fitter.save())

    def load(self, saved: Mapping[MemberKey, dict[str, Any]]) -> None:
        self.ask(lambda fitter: fitter.load(saved))

    def has_drifted(self) -> bool:
        return any(self.ask(lambda fitter: fitter.has_drifted()))

    def describe(self) -> FitterDescription:
        described: FitterDescription = self.ask(lambda fitter: fitter.describe())[0]
        return described
