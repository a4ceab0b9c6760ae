"""Strategies meet a network: patterns, counts, and messages."""

import pytest
from torch import nn

from ray_ft import DiffractionNet
from ray_ft.config import load_config
from ray_ft.config.sections import GradientStage
from ray_ft.errors import StrategyError
from ray_ft.search.strategies import count_by_part, find_head_dropouts, select_trained


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
    assert sum(learning for learning, _ in count_by_part(network, trained).values()) == n_trained


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
