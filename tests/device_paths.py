"""What commands compute, on a device that no machine has: `python tests/device_paths.py` in a folder with a toy run.

Tensors on it are fake: they have shapes, types and a device, and refuse to compute with those of another device. It
takes the place that torch leaves to backends of other makers, for the whole process, which therefore is one of its own.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from ray_ft.config import GradientHyperparameters, RidgeHyperparameters
from ray_ft.ensemble import Ensemble, apply_stacked
from ray_ft.ensemble.export import EnsembleModule
from ray_ft.fitting.ridge import attach_ridge
from ray_ft.fitting.training import (
    Pack,
    Recipe,
    create_pack,
    draw_batches,
    predict_watched,
    step_pack,
)  # fmt: skip
from ray_ft.fitting.views import ViewBank, add_noisy_copies
from ray_ft.objectives import find_objective
from ray_ft.search.problem import MemberKey
from ray_ft.split.network import SplitNetwork, keep_whole, split_network

NAME = "fakegpu"
KEYS = [MemberKey(0, fold, 0) for fold in range(3)]
SAMPLES = [np.arange(8), np.arange(4, 12), np.arange(12)]


class Building(nn.Module):
    """It builds tensors on its way, before and behind the boundary."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x * torch.linspace(0, 1, 4) + torch.arange(4) + torch.tensor([1.0, 2.0, 3.0, 4.0]))
        x = self.head(x + torch.full((4,), 0.5) @ torch.eye(4))
        return x * torch.hann_window(2) + torch.zeros(x.shape[0], 1)


class Module(backend_registration._DummyBackendModule):
    """What torch asks of a backend."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class CopyCounter(TorchDispatchMode):
    """Counts the copies from the CPU to the device."""

    n_copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        moved = isinstance(out, Tensor) and out.device.type == NAME
        self.n_copies += moved and any(isinstance(arg, Tensor) and arg.device.type == "cpu" for arg in args)
        return out


@contextmanager
def fake_device() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def move(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.empty(tensor.shape, dtype=tensor.dtype, device=NAME) for name, tensor in tensors.items()}


def move_split(split: SplitNetwork) -> SplitNetwork:
    return replace(split, state=move(split.state), tensors=move(split.tensors))


def fit(split: SplitNetwork) -> None:
    """An epoch's batches, a step of all members and of one, and what they predict."""
    drawn = {"batch_size": 4, "weight_decay": 0.0, "noise_std": 0.1, "head_dropout": None, "warmup_epochs": 0}
    hyper = GradientHyperparameters(lr=0.1, epochs=2, patience=9, label_smoothing=None, decay_to="zero", **drawn)
    with fake_device():
        own, inputs, targets = move_split(split), torch.zeros(1, 12, 4, device=NAME), torch.zeros(1, 12, 2, device=NAME)
        bank = ViewBank(own.compute_features(inputs[0], n_threads=2), targets)
        bank = add_noisy_copies(bank, own, inputs, 0.1, 2, 0)
        recipe = Recipe(own, bank, hyper, find_objective("mse"))
        pack = create_pack(KEYS, (0,), own, hyper, SAMPLES)
        with CopyCounter() as counter:
            batches = [list(draw_batches(member, recipe, 0)) for member in pack.members]
        assert counter.n_copies == len(KEYS), f"a copy a member and epoch, got {counter.n_copies}"
        step: Any = [of_member[0] for of_member in batches]
        parts = [(pack.part(slice(i, i + 1)), step[i : i + 1]) for i in range(3)]
        for part, own_step in [*parts] if split.draws else [(pack, step), *parts]:
            losses = step_pack(part, recipe, own_step)
            check(losses, *part.state.values())
        watched = Pack(pack.members[:1], {}, {}) if split.draws else pack
        check(*predict_watched(watched, recipe, lambda key: SAMPLES[0]))


def check(*tensors: Tensor) -> None:
    assert {tensor.device.type for tensor in tensors} == {NAME}


def predict_and_export(ensemble: Ensemble) -> None:
    with fake_device():
        states = {strategy: move(own) for strategy, own in ensemble.states.items()}
        networks = {strategy: move_split(own) for strategy, own in ensemble.networks.items()}
        moved, inputs = replace(ensemble, states=states, networks=networks), torch.zeros(5, 6, device=NAME)
        features = moved.first.run_backbone(inputs)
        for strategy, state in moved.states.items():
            check(apply_stacked(moved.networks[strategy], state, features))
        module = EnsembleModule(moved)
        for buffers in [part._buffers for part in module.modules()]:
            buffers.update(move({name: tensor for name, tensor in buffers.items() if tensor is not None}))
        check(*module(inputs))


def main() -> None:
    backend_registration._setup_privateuseone_for_python_backend(NAME, Module())  # type: ignore[no-untyped-call]
    network, example = Building(), torch.randn(4, 4)
    trained = ["head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias", "head.2.weight", "head.2.bias"]
    split = split_network(network, trained, example)
    assert not split.reason, split.reason
    fit(split)
    linear = attach_ridge(split, split.compute_features(example), RidgeHyperparameters("rbf", "residual"))
    with fake_device():
        own = move_split(linear)
        check(own.apply_tail(own.state, own.take(own.compute_features(torch.zeros(4, 4, device=NAME)))))
    fit(keep_whole(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.Linear(4, 2)), ("2.weight",)))
    predict_and_export(Ensemble.load("run"))


if __name__ == "__main__":
    main()
