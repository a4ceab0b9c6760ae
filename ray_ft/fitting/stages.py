"""Several stages as one fitter: each takes over the members where the one before it has left them.

All epochs count on, over all stages. What is kept of a member has one set of tensors whatever the stage that it was
kept in: what any stage changes, with the pretrained values of what was not changed yet.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from ray_ft.errors import FrozenDriftError
from ray_ft.fitting.fitter import Fitter, FitterDescription, Predictions, States
from ray_ft.search.problem import MemberKey

State = dict[str, Tensor]


class StagedFitter:
    """The members of a candidate of several stages.

    Args:
        starts: Start the fitter of each stage, from the pretrained network.
        lengths: Epochs of each stage.
        keys: The members.
        pretrained: What a member of the last stage starts from, on the CPU.
        translate: Names a member's tensors in the first stage as later stages do.
    """

    def __init__(
        self,
        starts: Sequence[Callable[[], Fitter]],
        lengths: Sequence[int],
        keys: Sequence[MemberKey],
        pretrained: State,
        translate: Callable[[State], State],
    ) -> None:
        self.starts, self.keys, self.pretrained, self.translate = starts, tuple(keys), pretrained, translate
        self.begins = [0, *accumulate(lengths)][:-1]  # the first epoch of each stage
        self.stage, self.fitter = 0, starts[0]()
        self.kept: States = dict.fromkeys(self.keys, pretrained)  # in earlier stages
        self.improved: set[MemberKey] = set()  # those that the fitter of this stage has kept since

    def run_epoch(self, epoch: int) -> None:
        """Fit for an epoch; where a stage begins, its fitter takes over first.

        Raises:
            DivergedError: A loss is infinite or not a number.
            FrozenDriftError: A frozen parameter or buffer has moved in the stage before.
        """
        while self.stage + 1 < len(self.starts) and epoch >= self.begins[self.stage + 1]:
            self.go_on()
        self.fitter.run_epoch(epoch - self.begins[self.stage])

    def go_on(self) -> None:
        """Hand the members over to the next stage, as they are now."""
        if self.fitter.has_drifted():
            raise FrozenDriftError(f"frozen parameters and buffers must not move, but did in stage {self.stage + 1}")
        self.kept = self.collect_snapshots()
        self.improved = set()
        self.fitter.take_snapshots(np.ones([1 + max(key.place[axis] for key in self.keys) for axis in (0, 1)], bool))
        members = {key: self.complete(own) for key, own in self.fitter.collect_snapshots().items()}
        self.stage += 1
        self.fitter = self.starts[self.stage]()
        fresh = self.fitter.save()
        for key, own in fresh.items():
            for part in ("state", "average"):
                own[part] = {name: members[key][name] for name in own[part]}
        self.fitter.load(fresh)

    def complete(self, state: State) -> State:
        """Return a member's tensors of this stage as one of the last stage has them."""
        return self.pretrained | (state if self.stage else self.translate(state))

    def predict(self) -> Predictions:
        return self.fitter.predict()

    def take_snapshots(self, improved: Bool[np.ndarray, "repeat fold"]) -> None:
        self.fitter.take_snapshots(improved)
        self.improved |= {key for key in self.keys if improved[key.place]}

    def collect_snapshots(self) -> States:
        found = self.fitter.collect_snapshots() if self.improved else {}
        return self.kept | {key: self.complete(found[key]) for key in self.keys if key in self.improved}

    def save(self) -> dict[MemberKey, dict[str, Any]]:
        return {
            key: {"stage": self.stage, "fitter": own, "kept": self.kept[key], "improved": key in self.improved}
            for key, own in self.fitter.save().items()
        }

    def load(self, saved: Mapping[MemberKey, dict[str, Any]]) -> None:
        stage = saved[self.keys[0]]["stage"]
        if stage != self.stage:
            self.stage, self.fitter = stage, self.starts[stage]()
        self.fitter.load({key: saved[key]["fitter"] for key in self.keys})
        self.kept = {key: saved[key]["kept"] for key in self.keys}
        self.improved = {key for key in self.keys if saved[key]["improved"]}

    def has_drifted(self) -> bool:
        return self.fitter.has_drifted()

    def describe(self) -> FitterDescription:
        """Say how the stage works that it is in."""
        return self.fitter.describe()


def keep_state(state: State) -> State:
    """Name the tensors of a member whose first stage trains the network itself."""
    return state
