"""Training in parts: the schedule, batches and clipping against closed forms and torch."""

import math
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

from ray_ft.config import GradientHyperparameters, scale_lr
from ray_ft.fitting.training import (
    Recipe,
    clip_stacked,
    create_pack,
    draw_batches,
    group_names,
    predict_watched,
    train_epoch,
    update,
)
from ray_ft.fitting.views import ViewBank, add_noisy_copies
from ray_ft.objectives import find_objective
from ray_ft.search.problem import MemberKey
from ray_ft.split.network import split_network

MSE = find_objective("mse")
HYPER = GradientHyperparameters(0.1, 4, 3, 0.0, 0.0, None, 1, 10, None, "zero")


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


def test_an_epoch_draws_so_many_different_views_of_each_sample_and_others_the_next_time() -> None:
    _, split, bank = build_bank(n_views=8)
    (member,) = create_pack([MemberKey(0, 0, 0)], (1,), split, HYPER, [np.array([0, 2, 3])]).members
    recipe = Recipe(split, bank, replace(HYPER, views=3), MSE)
    seen = []
    for epoch in range(60):
        rows = torch.cat([batch.rows for batch in draw_batches(member, recipe, epoch)]).tolist()
        assert len(set(rows)) == 9
        assert Counter(row % 5 for row in rows) == {0: 3, 2: 3, 3: 3}
        seen += rows
    counts = Counter(seen)
    assert len(counts) == 24, "any view of any sample comes"
    assert chisquare(list(counts.values())).pvalue > 1e-3, "and as often"
    again = torch.cat([batch.rows for batch in draw_batches(member, recipe, 59)]).tolist()
    assert again == rows, "the same epoch draws the same"


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
@pytest.mark.parametrize("scales", [{}, {"1.bias": 0.3}])
def test_members_of_one_learning_rate_share_a_call_of_the_optimizer(
    lrs: tuple[float, ...], n_calls: int, scales: dict[str, float]
) -> None:
    _, split, bank = build_bank()
    recipe, keys = Recipe(split, bank, HYPER, MSE, scales=scales), [MemberKey(0, fold, 0) for fold in range(3)]
    samples, factors = [np.arange(5)] * 3, group_names(split.trained_names, scales)
    together, alone = (create_pack(keys, (1,), split, HYPER, samples, scales) for _ in range(2))
    for step in range(3):
        for pack in (together, alone):
            generator = torch.Generator().manual_seed(step)
            for member in pack.members:
                for name in split.trained_names:
                    member.state[name].grad = torch.randn(member.state[name].shape, generator=generator)
        with OptimizerCalls() as counter:
            update(together.members, lrs, recipe)
        assert counter.n_calls == n_calls * (1 + len(scales))
        for member, lr in zip(alone.members, lrs, strict=True):
            for group, scale in zip(member.optimizer.param_groups, factors, strict=True):
                group["lr"] = lr * scale
            member.optimizer.step()
    for name, tensor in alone.state.items():
        assert torch.equal(together.state[name], tensor), name


def test_autocast_is_on_for_bf16_alone() -> None:
    _, split, bank = build_bank()
    for dtype in (torch.float32, torch.bfloat16):
        with Recipe(split, bank, HYPER, MSE, 1.0, dtype).autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


class Spectral(nn.Module):
    """The layer of a Fourier neural operator."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4, 3, dtype=torch.cfloat) / 4)

    def forward(self, x: Tensor) -> Tensor:
        f = torch.fft.rfft(x)
        out = torch.zeros_like(f)
        out[..., :3] = torch.einsum("bim,iom->bom", f[..., :3], self.w)
        return torch.fft.irfft(out, n=x.shape[-1])


class Operator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift, self.mix, self.last = nn.Conv1d(1, 4, 1), Spectral(), nn.Conv1d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.mix(self.lift(x[:, None]))))[:, 0]


class Held(nn.Module):
    """Its buffers are written in training beside a trained layer: in place, by new ones, and from call to call."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.body, self.last, self.again = nn.Linear(6, 8), nn.ModuleDict({"linear": nn.Linear(8, 3)}), again
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.body(x))
        if self.training:
            self.calls = self.calls + 1
            if self.again:
                self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
            else:
                self.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
        return self.last["linear"](h - self.mean) * (1 + 0.1 * self.calls)


class Kept(nn.Module):
    """Its batch norms keep their pretrained statistics, as those of detection libraries do."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.last = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
        if inside:
            self.last = Kept(False)
        self.inside = inside

    def train(self, mode: bool = True) -> "Kept":
        super().train(mode)
        if not self.inside:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nn.Linear(6, 8), nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)])

    def forward(self, x: Tensor) -> Tensor:
        return self.last[0](torch.tanh(self.body(x)))


class Scaled(nn.Module):
    """Its scale is a number of no axis, as of a contrastive network's logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nn.Linear(6, 3), nn.Linear(3, 3)
        self.last_scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.body(x))) * self.last_scale.exp()


class Twice(nn.Module):
    """One module under two names, which is called twice; what looks at its values runs whole."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.last_shared = nn.Linear(6, 6)
        self.first, self.last = nn.Sequential(self.last_shared, nn.Tanh()), nn.Linear(6, 3)
        self.second, self.looks = nn.Sequential(self.last_shared, nn.Tanh()), whole

    def forward(self, x: Tensor) -> Tensor:
        assert not self.looks or float(x.sum()) < 1e9
        return self.last(self.second(self.first(x)))


def build_normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    parts = {"body": nn.Linear(6, 8), "act": nn.Tanh(), "last": norm(nn.Linear(8, 3))}
    network = nn.Sequential()
    for name, part in parts.items():
        network.add_module(name, part)
    with torch.no_grad():
        network.eval()(torch.randn(2, 6))
    return network


def train_plainly(network: nn.Module, trained: list[str], recipe: Recipe, member: object, x: Tensor, y: Tensor) -> dict:
    """Train as anybody would, on the member's batches; the frozen part stays in eval mode.

    Decay towards the pretrained weights (L2-SP) is written as a pull of its own. What is predicted is by the average of
    the weights, where one is kept.
    """
    network = deepcopy(network).requires_grad_(False)
    own = [network.get_parameter(name).requires_grad_() for name in trained]
    hyper, starts = recipe.hyper, [parameter.detach().clone() for parameter in own]
    averages = [start.clone() for start in starts]
    to_zero, scales = hyper.decay_to == "zero", [recipe.scales.get(name, 1.0) for name in trained]
    groups = [{"params": [parameter]} for parameter in own]
    optimizer = torch.optim.AdamW(groups, lr=hyper.lr, weight_decay=hyper.weight_decay if to_zero else 0.0)
    for epoch in range(hyper.epochs):
        for batch in draw_batches(member, recipe, epoch):
            network.train()
            for module in network.children():
                if not any(parameter.requires_grad for parameter in module.parameters()):
                    module.eval()
            for group, scale in zip(optimizer.param_groups, scales, strict=True):
                group["lr"] = batch.lr * scale
            optimizer.zero_grad()
            ((network(x[batch.rows]) - y[batch.rows]) ** 2).mean().backward()
            nn.utils.clip_grad_norm_(own, recipe.grad_clip)
            decay = 0.0 if to_zero else batch.lr * hyper.weight_decay
            with torch.no_grad():
                pulls = [decay * scale * (now - start) for now, start, scale in zip(own, starts, scales, strict=True)]
            optimizer.step()
            with torch.no_grad():
                for parameter, pull in zip(own, pulls, strict=True):
                    parameter -= pull if parameter.grad is not None else 0.0
                averages = [hyper.ema * old + (1 - hyper.ema) * now for old, now in zip(averages, own, strict=True)]
    with torch.no_grad():
        tensors = dict((*network.named_parameters(), *network.named_buffers()))
        trained_tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for parameter, average in zip(own, averages, strict=True):
            parameter.copy_(average)
        return {"predicted": network.eval()(x), **trained_tensors}


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "complex": Operator,
    "in_place": partial(Held, False),
    "replaced": partial(Held, True),
    "train": partial(Kept, False),
    "inner_train": partial(Kept, True),
    "unused": Unused,
    "scaled": Scaled,
    "twice": partial(Twice, False),
    "twice_whole": partial(Twice, True),
    "weight_norm": partial(build_normed, nn.utils.weight_norm),
    "parametrized_weight_norm": partial(build_normed, parametrizations.weight_norm),
    "spectral_norm": partial(build_normed, nn.utils.spectral_norm),
    "parametrized_spectral_norm": partial(build_normed, parametrizations.spectral_norm),
}
# They read a buffer in the pass that writes it, so they run whole, and their members train one by one.
WHOLE = {"in_place", "replaced", "twice_whole", "spectral_norm", "parametrized_spectral_norm"}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize(("decay_to", "ema"), [("zero", 0.0), ("pretrained", 0.8)])
@pytest.mark.parametrize(
    ("name", "packed"),
    [(name, packed) for name in NETWORKS for packed in (False, True) if not (packed and name in WHOLE)],
)
def test_members_of_any_network_are_those_of_a_plain_loop(name: str, packed: bool, decay_to: Any, ema: float) -> None:
    torch.manual_seed(0)
    network, x = NETWORKS[name]().eval(), torch.randn(11, 6)
    with torch.no_grad():
        y = network(x) + torch.randn_like(network(x))
    names = [name for name, _ in network.named_parameters()]
    trained = [name for name in names if "last" in name or "mix" in name]
    split = split_network(network, trained, x[:4])
    hyper = replace(GradientHyperparameters(0.05, 3, 4, 0.5, 0.0, None, 1, 10, None, decay_to), ema=ema)
    scales = {own: 0.5 ** (i % 3) for i, own in enumerate(trained)}
    recipe = Recipe(split, ViewBank(split.compute_features(x), y[None]), hyper, MSE, grad_clip=0.5, scales=scales)
    assert (split.draws, bool(split.reason)) == (name in WHOLE, name in WHOLE), split.reason
    keys = [MemberKey(0, 0, seed) for seed in range(2)]
    pack = create_pack(keys, (1,), split, hyper, [np.arange(9), np.arange(2, 11)], scales)
    for epoch in range(hyper.epochs):
        for part in pack.divide(2 if packed else 1):
            train_epoch(part, recipe, epoch)
    parts = pack.divide(1 if split.draws else 2)
    predicted = [own for part in parts for own in predict_watched(part, recipe, lambda key: np.arange(11))]
    for member, answer in zip(pack.members, predicted, strict=True):
        plain = train_plainly(network, trained, recipe, member, x, y)
        torch.testing.assert_close(answer, plain["predicted"], rtol=1e-4, atol=1e-5)
        for name, tensor in member.state.items():
            torch.testing.assert_close(tensor.detach(), plain[name], rtol=1e-4, atol=1e-5)
        for name, tensor in split.tensors.items():
            if name in plain:
                torch.testing.assert_close(tensor, plain[name], rtol=0, atol=0)
