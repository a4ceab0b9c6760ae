"""What a network itself says may learn: from its last layer to everything."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from ray_ft.config import build_config, load_config
from ray_ft.cross_validation import cross_validate, prepare
from ray_ft.models import DiffractionNet, measure_depths, propose_strategies
from ray_ft.models.calling import call_as_one
from ray_ft.search.strategies import count_last, match_any, match_strategies


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class ResidualNet(nn.Module):
    """Named as torchvision names its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(ResidualBlock(8), ResidualBlock(8)) for _ in range(4)
        )
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        answer: Tensor = self.fc(x.mean((2, 3)))
        return answer


class AttentionBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm2, self.mlp = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))

    def forward(self, x: Tensor) -> Tensor:
        own = self.norm1(x)
        x = x + self.attn(own, own, own)[0]
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Named as timm names its own, with a token that belongs to no layer; its head is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.norm = nn.Linear(8, 2), nn.LayerNorm(8)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.patch_embed = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(*(AttentionBlock(8) for _ in range(6)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        answer: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return answer


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 5, 2, batch_first=True), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.gru(x)[0][:, -1])
        return answer


IMAGES, SERIES, ROWS = (
    np.random.default_rng(0).random(shape, np.float32) for shape in ((2, 3, 16, 16), (2, 6, 3), (2, 4))
)
PERCEPTRON = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
CASES = {
    "residual": (ResidualNet(), IMAGES, ["fc.*"], ["layer4.*", "fc.*"], ["layer3.*", "layer4.*", "fc.*"]),
    "transformer": (
        VisionTransformer(),
        IMAGES,
        ["head.*"],
        ["blocks.5.*", "norm.*", "head.*"],
        [*(f"blocks.{i}.*" for i in (3, 4, 5)), "norm.*", "head.*"],
    ),
    "recurrent": (Recurrent(), SERIES, ["head.*"], None, None),
    "perceptron": (PERCEPTRON, ROWS, ["4.*"], ["2.*", "4.*"], None),
}


@pytest.mark.parametrize("name", CASES)
def test_strategies_go_from_the_last_layer_to_everything(name: str) -> None:
    network, inputs, *expected = CASES[name]
    found = propose_strategies(network.eval(), inputs)
    names = [own for own, _ in network.named_parameters()]
    by_depth = [found.get(own, {}).get("train") for own in ("last_layer", "last_block", "last_half")]
    assert by_depth == expected
    trained = [set(match_any(names, own["train"])) for own in found.values() if "fit" not in own]
    assert len({frozenset(own) for own in trained}) == len(trained), "no two train the same"
    depth = [set(match_any(names, patterns)) for patterns in by_depth if patterns]
    assert all(one < other for one, other in zip(depth, [*depth[1:], set(names)], strict=True))
    assert found["ridge"] == {"description": found["ridge"]["description"], "fit": "ridge", "train": expected[0]}


@pytest.mark.parametrize("name", CASES)
def test_a_strategy_that_trains_the_last_layers_alone_says_how_many(name: str) -> None:
    network, inputs, *_ = CASES[name]
    proposed = propose_strategies(network.eval(), inputs)
    config = build_config({"model.factory": "own:own", "data": {"inputs": "x", "targets": "y"}, "strategies": proposed})
    matched = match_strategies(config.strategies, network, inputs)
    depth = [matched[own].layers for own in ("last_layer", "last_block", "last_half", "everything") if own in matched]
    counts, (n_layers,) = [own[0] for own in depth if own], {own[1] for own in depth if own}
    assert len(counts) == len(depth)
    assert counts == sorted(set(counts))
    assert (counts[0], counts[-1]) == (1, n_layers)
    assert matched["norms_and_biases"].layers is None
    assert matched["ridge"].layers is None


@pytest.mark.parametrize(
    ("learning", "expected"),
    [("c", (1, 3)), ("bc", (2, 3)), ("abc", (3, 3)), ("ac", None), ("b", None), ("", None)],
)
def test_the_last_layers_count_where_no_other_learns(learning: str, expected: object) -> None:
    names = [f"{layer}.{kind}" for layer in "abc" for kind in ("weight", "bias")]
    own = {name for name in names if name[0] in learning}
    assert count_last("abc", names, own) == expected
    assert count_last("abc", names, own - {"c.bias"}) is None, "a layer in part"


@pytest.mark.parametrize("name", CASES)
def test_norms_and_biases_are_those_alone(name: str) -> None:
    network, inputs, *_ = CASES[name]
    names = [own for own, _ in network.named_parameters()]
    found = set(match_any(names, propose_strategies(network.eval(), inputs)["norms_and_biases"]["train"]))
    modules = dict(network.named_modules())
    kinds = (nn.BatchNorm2d, nn.LayerNorm)
    expected = {own for own in names if "bias" in own or isinstance(modules[own.rpartition(".")[0]], kinds)}
    assert found == expected


class Tower(nn.Module):
    """A backbone in a wrapper, whose offset is no layer's and whose second way nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(1))
        self.parts = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)), nn.Linear(8, 1))
        self.idle = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.parts(x) + self.offset
        return answer


def count_depths(network: nn.Module, inputs: np.ndarray) -> dict[str, int]:
    """Depths by the first two words of the names."""
    found = measure_depths(network.eval(), inputs)
    assert list(found) == [name for name, _ in network.named_parameters()]
    return {".".join(name.split(".")[:2]): depth for name, depth in found.items()}


def test_depths_count_blocks_in_the_order_of_the_pass_and_the_rest_by_where_it_is_read() -> None:
    residual = count_depths(ResidualNet(), IMAGES)
    blocks = [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]
    assert [residual[name] for name in blocks] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert [residual[f"{name}.weight"] for name in ("conv1", "bn1", "fc")] == [9, 9, 0]
    transformer = count_depths(VisionTransformer(), IMAGES)
    assert [transformer[f"blocks.{i}"] for i in range(6)] == [6, 5, 4, 3, 2, 1]
    own = ("patch_embed.weight", "cls_token", "norm.weight", "head.weight")
    assert [transformer[name] for name in own] == [8, 7, 1, 0], "its head is registered first, and ends last"
    assert count_depths(Recurrent(), SERIES)["gru.weight_hh_l1"] == 1
    assert count_depths(PERCEPTRON, ROWS) == {
        f"{i}.{kind}": 2 - i // 2 for i in (0, 2, 4) for kind in ("weight", "bias")
    }
    tower = measure_depths(Tower().eval(), ROWS)
    assert [tower[f"parts.{name}.weight"] for name in ("0.0", "0.1", "0.2", "1")] == [2, 2, 1, 0]
    assert (tower["offset"], tower["idle.weight"]) == (0, 0)


def test_the_shipped_network_has_a_depth_for_each_block_and_its_offset_ends_it() -> None:
    found = count_depths(DiffractionNet(), np.zeros((1, 1, 128, 128), np.float32))
    stages = ["stem_conv.weight", "stage1.0", "stage1.1", "stage2.0", "stage2.1", "fourier_mix.norm", "stage3.0"]
    in_order = [*stages, "stage4.0", "dec.0", "dec.1", "dec.2", "dec.3", "head.0", "head.3", "spec_bias"]
    depths = [found[name] for name in in_order]
    assert depths == sorted(depths, reverse=True)
    assert len(set(depths)) == len(depths)
    assert depths[-1] == 0


def test_a_config_without_strategies_has_those_of_its_network(toy_folder: Path) -> None:
    config = yaml.safe_load(Path("toy.yaml").read_text())
    config["cv"] |= {"candidates": 1}
    for own in (None, "auto"):
        config["strategies"] = own
        config["cv"]["strategies"], config["search"] = None, {"method": "best"}
        Path("auto.yaml").write_text(yaml.safe_dump(config))
        prepared = prepare(load_config("auto.yaml"))
        assert {"last_layer", "everything", "ridge"} <= prepared.strategies.keys()
        config["cv"]["strategies"] = ["last_layer", "ridge"]  # a shipped strategy has the name of the latter
        Path("auto.yaml").write_text(yaml.safe_dump(config))
        assert list(prepare(load_config("auto.yaml")).strategies) == ["last_layer", "ridge"]
        config["cv"]["strategies"] = ["ridge"]
        Path("auto.yaml").write_text(yaml.safe_dump(config))
        ridge = prepare(load_config("auto.yaml")).strategies["ridge"].stages[0]
        assert set(ridge.trained) == {"head.3.weight", "head.3.bias"}
    config["cv"]["strategies"] = ["last_layer"]
    Path("auto.yaml").write_text(yaml.safe_dump(config))
    summary = cross_validate(load_config("auto.yaml"), "run", inline=True)
    assert list(summary.strategies) == ["last_layer"]
    assert "train" in Path("run/config.yaml").read_text(), "the run names what was proposed"
    assert cross_validate(load_config("auto.yaml"), "run", inline=True).winner == summary.winner


class TwoAnswers(nn.Module):
    """What ends last is no part of the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.aux = nn.Sequential(nn.Linear(4, 8), nn.SiLU()), nn.Linear(8, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        return {"answer": self.head(features), "aux": self.aux(features)}


def test_what_the_answer_does_not_hang_on_is_not_proposed() -> None:
    network = call_as_one(TwoAnswers(), (), "answer", None)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    found = propose_strategies(network, np.ones((2, 4), np.float32))
    assert found["last_layer"]["train"] == found["ridge"]["train"] == ["head.*"]
    assert not any(parameter.requires_grad for parameter in network.parameters())
