"""Adapters: the same as layers of their own beside the pretrained ones, and plain weights afterwards."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ray_ft.config import GradientHyperparameters, load_config
from ray_ft.cross_validation import cross_validate, prepare
from ray_ft.errors import ConfigError, StrategyError
from ray_ft.fitting.training import Member, Recipe, create_pack, draw_batches, predict_watched, train_epoch
from ray_ft.fitting.views import ViewBank
from ray_ft.objectives import find_objective
from ray_ft.results.records import load_members
from ray_ft.runs.folder import RunFolder
from ray_ft.search.problem import MemberKey
from ray_ft.split.adapters import Adapter
from ray_ft.split.network import split_network

MSE = find_objective("mse")
HYPER = GradientHyperparameters(0.05, 3, 4, 0.3, 0.0, None, 1, 10, None, "zero")


class Small(nn.Module):
    """Its batch norm is trained, its first convolution is not; where it looks at values it runs whole, a part again."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 8, 3, padding=1, groups=2)
        self.norm, self.linear, self.last = nn.BatchNorm2d(8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        assert not self.whole or float(x.sum()) < 1e9
        h = self.norm(torch.tanh(self.conv(torch.relu(self.stem(x))))).relu().mean((2, 3))
        again = checkpoint(self.linear, h, use_reentrant=False) if self.whole else self.linear(h)
        answer: Tensor = self.last(torch.tanh(again))
        return answer


class Lora(nn.Module):
    """A layer, and beside it a map down to a few values and one up again."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, start: dict[str, Tensor]) -> None:
        super().__init__()
        self.layer, self.down, self.up = layer, nn.Parameter(start["down"]), nn.Parameter(start["up"])

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            beside = x @ self.down.T @ self.up.T
        else:
            n_groups, shape = self.layer.groups, (len(self.down), *self.layer.weight.shape[1:])
            groups = x.chunk(n_groups, 1), self.up.chunk(n_groups, 0)
            parts = (
                nn.functional.conv2d(nn.functional.conv2d(own, self.down.view(shape), padding=1), up[:, :, None, None])
                for own, up in zip(*groups, strict=True)
            )
            beside = torch.cat(list(parts), 1)
        answer: Tensor = self.layer(x) + beside
        return answer


class Scaled(nn.Module):
    """A layer whose outputs are multiplied before its bias, the shift, is added."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, start: dict[str, Tensor]) -> None:
        super().__init__()
        self.layer, self.scale = layer, nn.Parameter(start["scale"])

    def forward(self, x: Tensor) -> Tensor:
        assert self.layer.bias is not None
        shift = self.layer.bias.view(-1, *[1] * (x.dim() - 2))
        answer: Tensor = (self.layer(x) - shift) * (1 + self.scale.view(shift.shape)) + shift
        return answer


def train_plainly(network: nn.Module, recipe: Recipe, member: Member, x: Tensor, y: Tensor) -> Tensor:
    own = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(own, weight_decay=recipe.hyper.weight_decay)
    for epoch in range(recipe.hyper.epochs):
        for batch in draw_batches(member, recipe, epoch):
            optimizer.param_groups[0]["lr"] = batch.lr
            optimizer.zero_grad()
            ((network.train()(x[batch.rows]) - y[batch.rows]) ** 2).mean().backward()
            nn.utils.clip_grad_norm_(own, recipe.grad_clip)
            optimizer.step()
    with torch.no_grad():
        answer: Tensor = network.eval()(x)
    return answer


@pytest.mark.parametrize(
    ("kind", "wrap", "whole", "packed"),
    [
        (kind, wrap, whole, packed)
        for kind, wrap in (("lora", Lora), ("scale", Scaled))
        for whole, packed in ((False, False), (False, True), (True, False))
    ],
)
def test_adapted_members_are_those_of_layers_of_their_own(
    kind: Any, wrap: Callable[..., nn.Module], whole: bool, packed: bool
) -> None:
    torch.manual_seed(0)
    network, x = Small(whole).eval(), torch.randn(11, 2, 5, 5)
    y = network(x).detach() + torch.randn(11, 1)
    trained, adapter = [name for name, _ in network.named_parameters() if "stem" not in name], Adapter(kind, 2)
    plain_split = split_network(network, trained, x[:4])
    split = plain_split.adapt(adapter)
    assert bool(split.reason) == whole
    recipe = Recipe(split, ViewBank(split.compute_features(x), y[None]), HYPER, MSE, grad_clip=0.5)
    pack = create_pack(
        [MemberKey(0, 0, seed) for seed in range(2)], (1,), split, HYPER, [np.arange(9), np.arange(2, 11)]
    )
    for epoch in range(HYPER.epochs):
        for part in pack.divide(2 if packed else 1):
            train_epoch(part, recipe, epoch)
    for part in pack.divide(1):
        (member,), (answer,) = part.members, predict_watched(part, recipe, lambda key: np.arange(11))
        plain = deepcopy(network).requires_grad_(False)
        for name in trained:
            plain.get_parameter(name).requires_grad_()
        for name in ("conv", "linear"):
            layer = plain.get_submodule(name)
            layer.weight.requires_grad_(False)
            setattr(plain, name, wrap(layer, adapter.start(layer.weight)))
        torch.testing.assert_close(answer, train_plainly(plain, recipe, member, x, y), rtol=1e-4, atol=1e-5)
        merged = {name: tensor.detach() for name, tensor in split.merge(member.state).items()}
        assert merged.keys() == plain_split.state.keys(), "they are plain weights of the network"
        assert not torch.equal(merged["conv.weight"], plain_split.state["conv.weight"])
        alone = plain_split.apply_tail(merged, plain_split.take(recipe.bank.features))
        torch.testing.assert_close(alone, answer, rtol=1e-5, atol=1e-6)
    for name in ("conv.weight", "linear.weight"):
        torch.testing.assert_close(split.tensors[name], network.get_parameter(name).detach(), rtol=0, atol=0)


def test_what_an_adapter_would_not_make_smaller_learns_as_it_is() -> None:
    lora, scale = Adapter("lora", 4), Adapter("scale")
    assert lora.shapes((64, 16, 3, 3)) == {"down": (4, 144), "up": (64, 4)}
    assert scale.shapes((64, 16, 3, 3)) == {"scale": (64,)}
    assert lora.count((64, 16, 3, 3)) == 4 * (144 + 64)
    for shape in ((), (8,), (1, 8), (8, 1)):
        assert lora.shapes(shape) == scale.shapes(shape) == {}
        assert lora.count(shape) == scale.count(shape) == max(1, int(np.prod(shape)))
    assert lora.shapes((8, 3)) == {}, "its product would have more numbers than the weight"


TOY = {"train": ["head.*"], "lr": 0.05, "epochs": 4, "patience": 9}


def test_a_run_with_adapters_has_plain_members_and_an_ensemble_that_says_the_same(toy_folder: Path) -> None:
    own = {
        "strategies.low": TOY | {"adapter": {"kind": "lora", "rank": 1}},
        "strategies.rows": TOY | {"adapter": "scale"},
    }
    values = own | {"cv.strategies": ["low", "rows"], "cv.candidates": 1, "cv.seeds": 1}
    summary = cross_validate(load_config("toy.yaml", values), "run", inline=True)
    counts = {name: row.n_trained_params for name, row in summary.strategies.items()}
    assert counts == {"low": 8 + (8 + 8) + 3 + (8 + 3), "rows": 8 + 8 + 3 + 3}
    run, start = RunFolder(Path("run")), prepare(load_config("toy.yaml", values)).pretrained.weights
    for strategy in counts:
        state = load_members(run, f"{strategy}-000")
        assert set(state) == {f"head.{i}.{kind}" for i in (0, 3) for kind in ("weight", "bias")}
        for name in ("head.0.weight", "head.3.weight"):
            moved = state[name] - start[name]
            if strategy == "low":
                assert torch.linalg.matrix_rank(moved, rtol=1e-4).tolist() == [1] * 3
            else:
                torch.testing.assert_close(moved, start[name] * (moved / start[name]).median(-1, keepdim=True).values)
            assert (moved.flatten(1).norm(dim=1) > 1e-3).all()


@pytest.mark.parametrize(
    ("adapter", "train", "said"),
    [
        ("lora", "*.bias", r"an adapter needs a weight .* got lora of rank 4 for body\.0\.bias"),
        ({"kind": "lora", "rank": 9}, "head.*", r"got lora of rank 9 for head\.0\.weight"),
        ("scale", "body.1.*", r"got scale for body\.1\.weight, body\.1\.bias; name such a weight in train, or leave"),
    ],
)
def test_an_adapter_where_none_fits_is_refused(toy_folder: Path, adapter: object, train: str, said: str) -> None:
    values = {"strategies.mine": TOY | {"train": train, "adapter": adapter}, "cv.strategies": ["mine"]}
    with pytest.raises(StrategyError, match=said):
        prepare(load_config("toy.yaml", values))


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ({"kind": "scale", "rank": 2}, "rank is lora's alone, got 2 for scale; leave it out"),
        (
            {"kind": "lora", "rank": 0},
            r"strategies\.mine\.adapter\.rank: it should be greater than or equal to 1, got 0",
        ),
        ("lore", r"strategies\.mine\.adapter\.kind"),
    ],
)
def test_an_adapter_that_is_none_is_no_config(toy_folder: Path, adapter: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config("toy.yaml", {"strategies.mine": TOY | {"adapter": adapter}})


def test_a_closed_form_has_no_adapter(toy_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"strategies\.mine\.adapter: it is no key of fit: ridge; leave it out"):
        load_config("toy.yaml", {"strategies.mine": {"train": "head.*", "fit": "ridge", "adapter": "lora"}})
