"""Gradient descent as a fitter: members on one device, trained packed or one after the other."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ray_ft.config import GradientHyperparameters
from ray_ft.data.randomness import name_stream
from ray_ft.errors import first_line
from ray_ft.files.hashes import hash_tensors
from ray_ft.files.memory import is_out_of_memory
from ray_ft.fitting.fitter import FitSettings, FitterDescription, Packing, Predictions, States
from ray_ft.fitting.preparation import PreparedStrategy
from ray_ft.fitting.training import (
    Batch,
    Member,
    Pack,
    Recipe,
    create_pack,
    draw_batches,
    predict_watched,
    step_pack,
    train_epoch,
)
from ray_ft.fitting.views import ViewBank, add_noisy_copies
from ray_ft.search.problem import MemberKey, Problem
from ray_ft.split.adapters import name_part

N_TIMED = 3  # steps
# On a CPU packing saves the start of operations, microseconds each; a step as long as this is arithmetic.
LONG_STEP_S = 0.02
GAIN = 1.2  # below this, packing is not worth numbers that differ in their last digits


T = TypeVar("T")


class GradientFitter:
    """Members that learn by gradient descent."""

    def __init__(
        self,
        problem: Problem,
        prepared: PreparedStrategy,
        name: str,
        hyper: GradientHyperparameters,
        keys: Sequence[MemberKey],
        settings: FitSettings,
        device: torch.device,
        n_threads: int = 1,
    ) -> None:
        # On a GPU threads would take turns at one stream, with packs that are smaller by their number.
        n_threads = n_threads if device.type == "cpu" else 1
        self.keys, self.n_threads, self.splits = tuple(keys), n_threads, problem.splits
        split = prepared.split.to(device).set_dropout(dict.fromkeys(prepared.stage.dropouts, hyper.head_dropout or 0.0))
        split = split.adapt(prepared.stage.adapter) if prepared.stage.adapter else split
        targets = torch.from_numpy(problem.move_targets(replayed=True)).to(device)
        features = tuple(feature.to(device) for feature in prepared.features)
        clean = ViewBank(features, targets, n_replayed=len(problem.replayed or ()))
        bank = clean
        if hyper.noise_std:
            inputs = torch.from_numpy(problem.move_inputs(replayed=True)).to(device)
            noise = (hyper.noise_std, settings.n_noisy_views, problem.seed)
            bank = add_noisy_copies(clean, split, inputs, *noise, prepared.dtype, n_threads)
        objective = problem.objective.smooth(hyper.label_smoothing) if hyper.label_smoothing else problem.objective
        scales = prepared.stage.rates.scale(hyper.lr_decay)
        for weight, parts in split.adapted.items():
            scales |= {name_part(weight, part): scales.get(weight, 1.0) for part in parts}
        self.recipe = Recipe(split, bank, hyper, objective, settings.grad_clip, prepared.dtype, scales)
        self.frozen_hash = hash_tensors(self.recipe.split.tensors)
        self.stream = tuple(name_stream(problem.seed, name))
        self.whole = self.create_members(self.keys)
        self.snapshots: list[dict[str, Tensor]] = [self.recipe.split.state for _ in self.keys]
        self.obstacle = ""  # why the members cannot be packed
        self.reasons = [
            self.recipe.split.reason and f"the whole network runs at each step, as {self.recipe.split.reason}"
        ]
        self.reasons.append(prepared.note)
        self.too_many = 0  # members in one step, for which memory did not suffice
        self.packing, self.pack_size = settings.packing, 1
        self.pack_size = self.choose_pack_size(settings.packing, settings.deterministic)

    def create_members(self, keys: Sequence[MemberKey]) -> Pack:
        samples = [self.splits.training(key.repeat, key.fold) for key in keys]
        return create_pack(keys, self.stream, self.recipe.split, self.recipe.hyper, samples, self.recipe.scales)

    def choose_pack_size(self, packing: Packing, deterministic: bool) -> int:
        """Time a few steps of fresh members, packed and not; if nothing may hang on time, the device decides."""
        evenly, on_cpu = -(-len(self.keys) // self.n_threads), self.recipe.bank.targets.device.type == "cpu"
        if evenly == 1 or packing == "looped" or (packing == "auto" and deterministic and on_cpu):
            return 1
        if self.recipe.split.draws:
            self.obstacle = "the network may draw random numbers itself"
            return 1
        if packing == "packed":
            return evenly
        alone = self.time_steps(self.create_members(self.keys[:1]))
        if on_cpu and alone > LONG_STEP_S:
            return 1
        torch._C._functorch._set_vmap_fallback_warning_enabled(False)  # type: ignore[attr-defined]  # it is timed
        self.pack_size = evenly
        try:
            packed = self.within_memory(self.time_pack)
        except (RuntimeError, NotImplementedError) as error:  # an operation that `vmap` cannot pack
            if is_out_of_memory(error):
                raise
            self.obstacle = first_line(error)
            return 1
        return self.pack_size if deterministic or packed * GAIN < alone else 1

    def time_pack(self) -> float:
        """Seconds of a step, by the member, of members that are packed."""
        return self.time_steps(self.create_members(self.keys[: self.pack_size])) / self.pack_size

    def time_steps(self, pack: Pack) -> float:
        """Seconds of a step, after one to warm up; the members are changed."""
        batches = [self.draw_steps(member) for member in pack.members]
        times = []
        for _ in range(N_TIMED):
            step = [next(of_member) for of_member in batches]
            started = time.perf_counter()
            step_pack(pack, self.recipe, step).sum().item()  # it waits
            times.append(time.perf_counter() - started)
        return min(times[1:])

    def draw_steps(self, member: Member) -> Iterator[Batch]:
        """Deal the batches of as many epochs as make up the steps that are timed."""
        epochs = (draw_batches(member, self.recipe, epoch) for epoch in range(N_TIMED))
        return chain.from_iterable(epochs)

    def run_epoch(self, epoch: int) -> None:
        """Train an epoch, from 0.

        Raises:
            DivergedError: A loss is infinite or not a number.
        """
        rewind = self.within_memory(self.remember)
        self.within_memory(lambda: self.map_packs(lambda pack: train_epoch(pack, self.recipe, epoch)), rewind)

    def predict(self) -> Predictions:
        """Predict, by each member, the samples that it is watched on."""

        def predict_pack(pack: Pack) -> list[np.ndarray]:
            return [own.cpu().numpy() for own in predict_watched(pack, self.recipe, self.list_watched)]

        of_packs = self.within_memory(lambda: self.map_packs(predict_pack))
        return dict(zip(self.keys, chain.from_iterable(of_packs), strict=True))

    def within_memory(self, work: Callable[[], T], undo: Callable[[], None] = lambda: None) -> T:
        """Do something with packs; where memory does not suffice undo it, and do it again with packs of half the size.

        Members that are alone already are all that fits here: whoever holds this fitter finds a roomier place.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError, OSError) as error:
                if self.pack_size == 1 or not is_out_of_memory(error):
                    raise
            undo()  # out of the handler, as the error holds what was computed
            self.too_many = max(self.too_many, self.pack_size)
            self.pack_size = -(-self.pack_size // 2)

    def remember(self) -> Callable[[], None]:
        """Copy what an epoch changes, and return what puts it back, where packs can be made smaller.

        An epoch that has run out of memory may have changed some of the members, some of their tensors, and in a step
        of an optimizer anything; so it is all or nothing by copies. They take 0.3 % of the time of a packed epoch of
        the demo; members that train alone make none, as they cannot be made smaller.
        """
        if self.pack_size == 1:
            return lambda: None
        state, average = (
            {name: tensor.detach().clone() for name, tensor in own.items()}
            for own in (self.whole.state, self.whole.average)
        )
        moments = [copy_moments(member.optimizer) for member in self.whole.members]

        @torch.no_grad()
        def rewind() -> None:
            for now, before in ((self.whole.state, state), (self.whole.average, average)):
                for name, tensor in now.items():
                    tensor.copy_(before[name])
            for member, own in zip(self.whole.members, moments, strict=True):
                member.optimizer.zero_grad()
                member.optimizer.state.clear()
                member.optimizer.state.update(own)
            moments[:] = [copy_moments(member.optimizer) for member in self.whole.members]  # they may be needed again

        return rewind

    def map_packs(self, work: Callable[[Pack], T]) -> list[T]:
        """Do the same with each pack, several at a time where there are threads."""
        packs = self.whole.divide(self.pack_size)
        if self.n_threads == 1 or self.recipe.split.draws:
            return list(map(work, packs))
        with ThreadPoolExecutor(self.n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, packs))

    def list_watched(self, key: MemberKey) -> Int[np.ndarray, " watched"]:
        return self.splits.watched(key.repeat, key.fold)

    def take_snapshots(self, improved: Bool[np.ndarray, "repeat fold"]) -> None:
        """Keep the weights of these folds' members as they are now."""
        for i, member in enumerate(self.whole.members):
            if improved[member.key.repeat, member.key.fold]:
                self.snapshots[i] = {name: tensor.detach().clone() for name, tensor in member.answering.items()}

    def collect_snapshots(self) -> States:
        """Return the members' snapshots."""
        return dict(zip(self.keys, (to_cpu(self.recipe.split.merge(own)) for own in self.snapshots), strict=True))

    def has_drifted(self) -> bool:
        """Whether a frozen parameter or buffer has moved."""
        return hash_tensors(self.recipe.split.tensors) != self.frozen_hash

    def save(self) -> dict[MemberKey, dict[str, Any]]:
        """Return all that the next epoch depends on, in the memory that it will change where that is the CPU's."""
        return {
            member.key: {
                "state": to_cpu(member.state),
                "average": to_cpu(member.average),
                "optimizer": save_optimizer(member.optimizer),
                "snapshot": to_cpu(snapshot),
                "pack_size": self.pack_size,
            }
            for member, snapshot in zip(self.whole.members, self.snapshots, strict=True)
        }

    @torch.no_grad()
    def load(self, saved: Mapping[MemberKey, dict[str, Any]]) -> None:
        """Go back to what `save` returned, here or in another fitter."""
        for i, member in enumerate(self.whole.members):
            content = saved[member.key]
            for name, tensor in member.state.items():
                tensor.copy_(content["state"][name])
            for name, tensor in member.average.items():
                tensor.copy_(content["average"][name])
            member.optimizer.load_state_dict(content["optimizer"])
            self.snapshots[i] = {
                name: tensor.to(self.recipe.split.device) for name, tensor in content["snapshot"].items()
            }
            if self.packing != "looped":
                self.pack_size = content["pack_size"]

    def describe(self) -> FitterDescription:
        """Say why the network could not be split, if so, and how the members train."""
        how = "looped" if self.pack_size == 1 else f"packed by {self.pack_size}"
        why = f" (cannot be packed: {self.obstacle})" if self.obstacle else ""
        dtype = str(self.recipe.dtype).removeprefix("torch.")
        short = f"memory did not suffice to train {self.too_many} members in one step, so {self.pack_size} were"
        notes = [*self.reasons, short if self.too_many else ""]
        return FitterDescription("; ".join(filter(None, notes)), f"{how}, {dtype}{why}")


def copy_moments(optimizer: torch.optim.Optimizer) -> dict[Tensor, dict[str, Tensor]]:
    """Copy what an optimizer keeps of each parameter."""
    return {leaf: {name: slot.clone() for name, slot in slots.items()} for leaf, slots in optimizer.state.items()}


def to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def save_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    content = optimizer.state_dict()
    return content | {"state": {index: to_cpu(slots) for index, slots in content["state"].items()}}
