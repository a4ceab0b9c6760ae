"""Training in parts: the schedule, batches and clipping against closed forms and torch."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ray_ft.config import GradientHyperparameters, scale_lr
from ray_ft.fitting.training import (
    Recipe,
    ViewBank,
    add_noisy_copies,
    clip_stacked,
    create_pack,
    draw_batches,
    update,
)
from ray_ft.objectives import find_objective
from ray_ft.search.problem import MemberKey
from ray_ft.split.network import split_network

MSE = find_objective("mse")
HYPER = GradientHyperparameters(0.1, 4, 3, 0.0, 0.0, None, 1, 10)


def build_bank(n_views: int = 2, n_samples: int = 5) -> tuple:
    torch.manual_seed(0)
    inputs = torch.randn(n_views, n_samples, 4)
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    split = split_network(network, ["1.weight", "1.bias"], inputs[0])
    bank = ViewBank(split.compute_features(inputs.flatten(0, 1)), torch.randn(n_views, n_samples, 2))
    return inputs, split, bank


def test_the_schedule_warms_up_and_falls_to_zero() -> None:
    scales = [scale_lr(step, 20, 5) for step in range(20)]
    assert scales[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert scales[5:] == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 15)) for i in range(15)])


def test_an_epoch_deals_each_view_of_each_training_sample_once() -> None:
    _, split, bank = build_bank()
    (member,) = create_pack([MemberKey(0, 0, 0)], (1,), split, HYPER, [np.array([0, 2, 3])]).members
    batches = list(draw_batches(member, Recipe(split, bank, HYPER, MSE), 0))
    assert [len(batch.rows) for batch in batches] == [3, 3]
    rows = torch.cat([batch.rows for batch in batches])
    assert Counter(rows.tolist()) == Counter([0, 2, 3, 5, 7, 8])
    for batch in batches:
        torch.testing.assert_close(batch.targets, bank.targets.flatten(0, 1)[batch.rows])
    again = torch.cat([batch.rows for batch in draw_batches(member, Recipe(split, bank, HYPER, MSE), 1)])
    assert not torch.equal(again, rows), "each epoch shuffles anew"


def test_noisy_copies_are_features_of_inputs_with_noise() -> None:
    inputs, split, bank = build_bank()
    noisy = add_noisy_copies(bank, split, inputs, 0.5, 2, seed=3)
    noise = torch.randn(10, 4, generator=torch.Generator().manual_seed(3))
    (expected,) = split.compute_features(inputs.flatten(0, 1) + 0.5 * noise)
    assert noisy.n_noisy == 2
    torch.testing.assert_close(noisy.features[0][:10], bank.features[0])
    torch.testing.assert_close(noisy.features[0][10:20], expected)
    (member,) = create_pack([MemberKey(0, 0, 0)], (1,), split, HYPER, [np.arange(5)]).members
    rows = torch.cat([batch.rows for batch in draw_batches(member, Recipe(split, noisy, HYPER, MSE), 0)])
    assert rows.min() >= 10, "where there is noise, every view is a noisy one"


def test_stacked_clipping_is_that_of_torch_for_each_member() -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(3, 4, 2), torch.randn(3, 5) * 0.01]
    clipped = clip_stacked(gradients, 1.5)
    for i in range(3):
        alone = [nn.Parameter(torch.zeros_like(gradient[i])) for gradient in gradients]
        for parameter, gradient in zip(alone, gradients, strict=True):
            parameter.grad = gradient[i].clone()
        nn.utils.clip_grad_norm_(alone, 1.5)
        for parameter, found in zip(alone, clipped, strict=True):
            torch.testing.assert_close(found[i], parameter.grad)


class OptimizerCalls(TorchDispatchMode):
    """Counts the calls of the fused optimizer."""

    n_calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n_calls += "_fused_adamw_" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("lrs", "n_calls"), [((0.1, 0.1, 0.1), 1), ((0.1, 0.2, 0.1), 2)])
def test_members_of_one_learning_rate_share_a_call_of_the_optimizer(lrs: tuple[float, ...], n_calls: int) -> None:
    _, split, _ = build_bank()
    keys, samples = [MemberKey(0, fold, 0) for fold in range(3)], [np.arange(5)] * 3
    together, alone = (create_pack(keys, (1,), split, HYPER, samples) for _ in range(2))
    for step in range(3):
        for pack in (together, alone):
            generator = torch.Generator().manual_seed(step)
            for member in pack.members:
                for name in split.trained_names:
                    member.state[name].grad = torch.randn(member.state[name].shape, generator=generator)
        with OptimizerCalls() as counter:
            update(together.members, lrs)
        assert counter.n_calls == n_calls
        for member, lr in zip(alone.members, lrs, strict=True):
            member.optimizer.param_groups[0]["lr"] = lr
            member.optimizer.step()
    for name, tensor in alone.state.items():
        assert torch.equal(together.state[name], tensor), name


def test_autocast_is_on_for_bf16_alone() -> None:
    _, split, bank = build_bank()
    for dtype in (torch.float32, torch.bfloat16):
        with Recipe(split, bank, HYPER, MSE, 1.0, dtype).autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
