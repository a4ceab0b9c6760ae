"""One backbone for several strategies, against each member's whole network."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from ray_ft.config import load_config
from ray_ft.models import DiffractionNet
from ray_ft.search.strategies import select_trained
from ray_ft.split.shared import SharedNetwork, WholeNetwork, read_shared, share_backbone


def names_of(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """What the shipped strategies train."""
    names = [name for name, _ in network.named_parameters()]
    return {
        name: select_trained(name, settings.stages[0], names) for name, settings in load_config().strategies.items()
    }


@pytest.fixture(scope="module")
def network() -> DiffractionNet:
    torch.manual_seed(0)
    return DiffractionNet((1, 1, 1, 1), (8, 8, 8, 16, 16), d_model=32, n_wavelengths=9, wav_kernel=3).eval()


@pytest.mark.parametrize("strategies", [["head"], ["head", "decoder_head"], ["spec_bias", "full", "head"]])
def test_every_strategy_computes_its_whole_networks(network: DiffractionNet, strategies: list[str]) -> None:
    names = {name: names_of(network)[name] for name in strategies}
    inputs = torch.randn(5, 1, 128, 128)
    shared = share_backbone(network, names, inputs)
    assert isinstance(shared, SharedNetwork)
    again = read_shared(json.loads(json.dumps(shared.as_dict())), shared.tensors)
    with torch.no_grad():
        features = again.compute_features(inputs)
        for strategy, own in names.items():
            state = {name: network.state_dict()[name] * 1.1 for name in own}
            expected = functional_call(network, state, (inputs,))
            np.testing.assert_allclose(again.apply_tail(strategy, state, features), expected, atol=1e-5)
            assert all(features[index].shape[axis] == 5 for index, axis in again.find_sampled(strategy))


def test_strategies_share_the_deepest_common_part(network: DiffractionNet) -> None:
    """The tail of the head has nothing of the decoder, which is computed once, on the way."""
    names = {name: names_of(network)[name] for name in ("head", "decoder_head")}
    shared = share_backbone(network, names, torch.randn(4, 1, 128, 128))
    assert isinstance(shared, SharedNetwork)
    alone = share_backbone(network, {"head": names["head"]}, torch.randn(4, 1, 128, 128))
    assert isinstance(alone, SharedNetwork)
    assert len(shared.tails["head"].program.steps) == len(alone.tails["head"].program.steps) < 30
    assert len(shared.backbone.steps) == len(alone.backbone.steps), "one pass of the pretrained network"


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x) if float(x.sum()) < 1e9 else x)


def test_what_cannot_be_traced_runs_whole() -> None:
    network, inputs = Branching(), torch.randn(4, 4)
    whole = share_backbone(network, {"head": ["head.weight", "head.bias"]}, inputs)
    assert isinstance(whole, WholeNetwork)
    assert "it cannot be split" in whole.reason
    state = {"head.weight": torch.ones(2, 4), "head.bias": torch.zeros(2)}
    found = whole.apply_tail("head", state, whole.compute_features(inputs)).detach()
    np.testing.assert_allclose(found, network.body(inputs).sum(1, keepdim=True).expand(4, 2).detach(), rtol=1e-5)


@pytest.mark.parametrize("change", [{"batch_axes": []}, {"tails": {"head": {}}}, {"backbone": None}])
def test_a_damaged_network_is_refused(network: DiffractionNet, change: dict) -> None:
    shared = share_backbone(network, {"head": names_of(network)["head"]}, torch.randn(4, 1, 128, 128))
    content = json.loads(json.dumps(shared.as_dict())) | change
    with pytest.raises(ValueError, match=r"network has|axis of samples|a program has"):
        read_shared(content, shared.tensors)
    with pytest.raises(ValueError, match="read tensors that are not there"):
        read_shared(json.loads(json.dumps(shared.as_dict())), {})
