"""Strategies meet a network: patterns, counts, and messages."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from ray_ft import DiffractionNet
from ray_ft.config import StrategyConfig, load_config
from ray_ft.config.strategies import GradientStage
from ray_ft.errors import StrategyError
from ray_ft.models import propose_strategies
from ray_ft.search.rates import Rates, match_scales
from ray_ft.search.strategies import count_by_part, find_head_dropouts, match_strategies, select_trained


def select(network: nn.Module, **stage: object) -> tuple[str, ...]:
    names = [name for name, _ in network.named_parameters()]
    return select_trained("mine", GradientStage(lr=1, epochs=1, **stage), names)


@pytest.mark.parametrize(
    ("strategy", "n_trained"),
    [("head", 68_024), ("decoder_head", 3_638_200), ("spec_bias", 1_204), ("full", 6_416_504)],
)
def test_shipped_strategies_train_what_they_say(strategy: str, n_trained: int) -> None:
    network = DiffractionNet()
    stage = load_config().strategies[strategy].stages[0]
    trained = select_trained(strategy, stage, [name for name, _ in network.named_parameters()])
    counts = {name: network.get_parameter(name).numel() for name in trained}
    assert sum(learning for learning, _ in count_by_part(network, counts).values()) == n_trained


def test_freeze_takes_out_of_train() -> None:
    network = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})
    assert select(network, train=("*",), freeze=("a.*",)) == ("b.weight", "b.bias")
    with pytest.raises(StrategyError, match="some parameter must learn"):
        select(network, train=("a.*",), freeze=("*",))
    with pytest.raises(StrategyError, match=r"got c\.\*"):
        select(network, train=("c.*",))


def test_head_dropouts_are_found_by_name() -> None:
    assert find_head_dropouts(DiffractionNet()) == ("head.2",)
    with pytest.raises(StrategyError, match="head_dropout needs"):
        find_head_dropouts(nn.Sequential(nn.Dropout()))


def test_factors_on_the_learning_rate_are_by_pattern_and_by_depth() -> None:
    trained = ("a.weight", "a.bias", "head.weight", "head.bias")
    assert match_scales("mine", {"head.*": 10.0}, trained) == {"head.weight": 10.0, "head.bias": 10.0}
    rates = Rates({"head.bias": 10.0}, {"a.weight": 2, "head.bias": 1})
    assert rates.scale(0.5) == {"head.bias": 5.0, "a.weight": 0.25}
    for patterns, said in (
        (
            {"body.*": 2.0},
            r"each pattern of lr_scale must match a parameter that learns, got body\.\*; what learns is a",
        ),
        (
            {"head.*": 2.0, "*.bias": 3.0},
            r"one factor of lr_scale, got head\.\* and \*\.bias for head\.bias; narrow one",
        ),
    ):
        with pytest.raises(StrategyError, match=said):
            match_scales("mine", patterns, trained)


def test_depths_are_measured_where_a_decay_is_asked_for() -> None:
    network, inputs = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), np.zeros((2, 4), np.float32)
    fixed = {"train": ["*"], "lr": 0.1, "epochs": 1}
    for lr_decay, depths in ((None, {}), (0.5, {"0.weight": 1, "0.bias": 1, "1.weight": 0, "1.bias": 0})):
        own = StrategyConfig.model_validate(fixed | ({"lr_decay": lr_decay} if lr_decay else {}))
        found = match_strategies({"mine": own}, network, inputs)["mine"].stages[0].rates
        assert found.depths == depths


class Tied(nn.Module):
    """The last layer's weight is that of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mid, self.head = (nn.Linear(4, 4) for _ in range(3))
        self.head.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.mid(self.first(x)).relu())
        return answer


def test_a_tied_parameter_goes_by_its_first_name() -> None:
    inputs = np.ones((2, 4), np.float32)
    said = "a tied parameter goes by its first name, got head.weight, which is the same as first.weight; name that"
    own = {"own": StrategyConfig.model_validate({"train": ["head.weight"]})}
    with pytest.raises(StrategyError, match=re.escape(said)):
        match_strategies(own, Tied(), inputs)
    assert not {"last_layer", "ridge"} & propose_strategies(Tied(), inputs).keys()
