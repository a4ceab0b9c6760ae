"""A squad: what one process holds of a candidate, all or some of its members on one device."""

import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ray_ft.fitting.task import Part, Task
from ray_ft.fitting.training import (
    Pack,
    Recipe,
    ViewBank,
    add_noisy_copies,
    create_pack,
    draw_batches,
    predict_watched,
    step_within_memory,
    train_epoch,
)
from ray_ft.objectives import find_objective
from ray_ft.runs.provenance import hash_tensors
from ray_ft.search.plan import CandidateSpec, MemberKey

__all__ = ["Packing", "Squad"]

Packing = Literal["auto", "packed", "looped"]
N_TIMED = 3  # steps
# On a CPU packing saves the start of operations, microseconds each; a step as long as this is arithmetic.
LONG_STEP_S = 0.02
GAIN = 1.2  # below this, packing is not worth numbers that differ in their last digits


class Squad:
    """Members on one device; what it is told, it is told of all members of the candidate, and heeds its own.

    Args:
        task: What all candidates share.
        part: What those of the strategy share.
        spec: The candidate.
        keys: The squad's members.
        device: Where they train.
        n_threads: On a CPU, members that train at the same time.
        packing: Whether they train packed; `auto` times both.
    """

    def __init__(
        self,
        task: Task,
        part: Part,
        spec: CandidateSpec,
        keys: Sequence[MemberKey],
        device: torch.device,
        n_threads: int = 1,
        packing: Packing = "auto",
    ) -> None:
        (hyper,) = spec.stages
        training, splits = task.config.training, task.splits
        self.keys, self.n_threads, self.splits = tuple(keys), n_threads, splits
        self.recipe = Recipe(hyper, find_objective(task.config.cv.metric), training.grad_clip, part.dtype)
        self.split = part.split.set_dropout(dict.fromkeys(part.head_dropouts, hyper.head_dropout or 0.0))
        inputs, targets = (torch.from_numpy(a).to(device) for a in task.dataset.build_views(task.config.symmetry))
        clean = ViewBank(tuple(feature.to(device) for feature in part.features), targets)
        noise = (hyper.noise_std, training.n_noisy_views, task.config.cv.seed)
        self.bank = add_noisy_copies(clean, self.split, inputs, *noise, part.dtype, n_threads)
        self.frozen_hash = hash_tensors(self.split.frozen)
        self.entropy = (task.config.cv.seed, zlib.crc32(spec.name.encode()))
        self.whole = self.enlist(self.keys)
        self.snapshots: list[dict[str, Tensor]] = [self.split.state for _ in self.keys]
        self.obstacle = ""  # why the members cannot be packed
        self.pack_size = self.choose_pack_size(packing)

    def enlist(self, keys: Sequence[MemberKey]) -> Pack:
        samples = [self.splits.training(key.repeat, key.fold) for key in keys]
        return create_pack(keys, self.entropy, self.split, self.recipe.hyper, samples)

    def choose_pack_size(self, packing: Packing) -> int:
        """Time a few steps of fresh members, packed and not."""
        evenly = -(-len(self.keys) // self.n_threads)
        if evenly == 1 or packing == "looped":
            return 1
        if self.split.draws:
            self.obstacle = "the network may draw random numbers itself"
            return 1
        if packing == "packed":
            return evenly
        alone = self.time_steps(self.enlist(self.keys[:1]))
        if self.bank.targets.device.type == "cpu" and alone > LONG_STEP_S:
            return 1
        torch._C._functorch._set_vmap_fallback_warning_enabled(False)  # type: ignore[attr-defined]  # it is timed
        try:
            packed = self.time_steps(self.enlist(self.keys[:evenly])) / evenly
        except (RuntimeError, NotImplementedError) as error:  # an operation that `vmap` cannot pack
            self.obstacle = str(error).strip().split("\n")[0]
            return 1
        return evenly if packed * GAIN < alone else 1

    def time_steps(self, pack: Pack) -> float:
        """Seconds of a step, after one to warm up; the members are changed."""
        batches = [draw_batches(member, self.split, self.bank, self.recipe.hyper, 0) for member in pack.members]
        times = []
        for _ in range(N_TIMED):
            step = [next(of_member, None) for of_member in batches]
            started = time.perf_counter()
            step_within_memory(pack, self.split, self.bank, self.recipe, step, len(step))[0].sum().item()  # it waits
            times.append(time.perf_counter() - started)
        return min(times[1:])

    def train(self, epoch: int) -> dict[MemberKey, Float[np.ndarray, "_ *target"]]:
        """Train an epoch, from 0, and return what each member predicts of the samples that it is watched on.

        Raises:
            DivergedError: A loss is infinite or not a number.
        """
        packs = self.whole.divide(self.pack_size)
        if self.n_threads == 1 or self.split.draws:
            predictions = [self.train_pack(pack, epoch) for pack in packs]
        else:
            with ThreadPoolExecutor(self.n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                predictions = list(pool.map(self.train_pack, packs, [epoch] * len(packs)))
        return dict(zip(self.keys, (own for of_pack in predictions for own in of_pack), strict=True))

    def train_pack(self, pack: Pack, epoch: int) -> list[Float[np.ndarray, "_ *target"]]:
        self.pack_size = min(self.pack_size, train_epoch(pack, self.split, self.bank, self.recipe, epoch))
        predicted = predict_watched(pack, self.split, self.bank, self.recipe, self.watched)
        return [own.cpu().numpy() for own in predicted]

    def watched(self, key: MemberKey) -> Int[np.ndarray, " watched"]:
        return self.splits.watched(key.repeat, key.fold)

    def snapshot(self, improved: Bool[np.ndarray, "repeat fold"]) -> None:
        """Keep the weights of these folds' members as they are now."""
        for i, member in enumerate(self.whole.members):
            if improved[member.key.repeat, member.key.fold]:
                self.snapshots[i] = {name: tensor.detach().clone() for name, tensor in member.state.items()}

    def collect(self) -> dict[MemberKey, dict[str, Tensor]]:
        """Return the members' snapshots."""
        return dict(zip(self.keys, (to_cpu(snapshot) for snapshot in self.snapshots), strict=True))

    def has_drifted(self) -> bool:
        """Whether a frozen parameter or buffer has moved."""
        return hash_tensors(self.split.frozen) != self.frozen_hash

    def save(self) -> dict[MemberKey, dict[str, Any]]:
        """Return all that the next epoch depends on, in the memory that it will change where that is the CPU's."""
        return {
            member.key: {
                "state": to_cpu(member.state),
                "optimizer": save_optimizer(member.optimizer),
                "snapshot": to_cpu(snapshot),
                "pack_size": self.pack_size,
            }
            for member, snapshot in zip(self.whole.members, self.snapshots, strict=True)
        }

    @torch.no_grad()
    def load(self, saved: dict[MemberKey, dict[str, Any]]) -> None:
        """Go back to what `save` returned, here or in another squad."""
        for i, member in enumerate(self.whole.members):
            content = saved[member.key]
            for name, tensor in member.state.items():
                tensor.copy_(content["state"][name])
            member.optimizer.load_state_dict(content["optimizer"])
            self.snapshots[i] = content["snapshot"]
            self.pack_size = content["pack_size"]

    def describe(self) -> tuple[str, str]:
        """Say why the network could not be split, if so, and how the members train."""
        how = "looped" if self.pack_size == 1 else f"packed by {self.pack_size}"
        why = f" (cannot be packed: {self.obstacle})" if self.obstacle else ""
        return self.split.reason, f"{how}, {str(self.recipe.dtype).removeprefix('torch.')}{why}"


def to_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def save_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    content = optimizer.state_dict()
    return content | {"state": {index: to_cpu(slots) for index, slots in content["state"].items()}}
