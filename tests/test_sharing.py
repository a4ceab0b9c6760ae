"""One backbone for several strategies, against each member's whole network."""

import json
import pickle
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

from ray_ft.config import load_config
from ray_ft.models import DiffractionNet
from ray_ft.search.strategies import select_trained
from ray_ft.split.network import SplitNetwork, split_network
from ray_ft.split.sharing import describe_obstacle, describe_splits, list_tensors, read_splits, share_backbone


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


def split_all(
    network: nn.Module, names: Mapping[str, tuple[str, ...]], inputs: torch.Tensor
) -> dict[str, SplitNetwork]:
    return {name: split_network(network, own, inputs) for name, own in names.items()}


def write_and_read(shared: dict[str, SplitNetwork]) -> dict[str, SplitNetwork]:
    """A trip through JSON, as an artefact has it."""
    content = json.loads(json.dumps(describe_splits(shared)))
    return read_splits(content, list_tensors(shared), {name: split.state for name, split in shared.items()})


@pytest.mark.parametrize("strategies", [["head"], ["spec_bias", "full", "decoder_head"]])
def test_every_strategy_computes_its_whole_networks(network: DiffractionNet, strategies: list[str]) -> None:
    names = {name: names_of(network)[name] for name in strategies}
    inputs = torch.randn(5, 1, 128, 128)
    shared = share_backbone(split_all(network, names, inputs), inputs)
    assert describe_obstacle(shared, inputs) == ""
    again = write_and_read(shared)
    with torch.no_grad():
        features = again[strategies[0]].run_backbone(inputs)
        for strategy, own in names.items():
            state = {name: network.state_dict()[name] * 1.1 for name in own}
            expected = functional_call(network, state, (inputs,))
            found = again[strategy].apply_tail(state, again[strategy].take(features))
            np.testing.assert_allclose(found, expected, atol=1e-5)
            assert all(features[index].shape[axis] == 5 for index, axis in again[strategy].sampled)


@pytest.mark.slow
def test_strategies_share_the_deepest_common_part(network: DiffractionNet) -> None:
    """The tail of the head has nothing of the decoder, which is computed once, on the way."""
    inputs = torch.randn(4, 1, 128, 128)
    splits = split_all(network, {name: names_of(network)[name] for name in ("head", "decoder_head")}, inputs)
    shared = share_backbone(splits, inputs)
    assert len(shared["head"].evaluation.steps) == len(splits["head"].evaluation.steps) < 30
    assert shared["head"].backbone == shared["decoder_head"].backbone
    assert len(shared["head"].backbone.steps) <= len(splits["head"].backbone.steps), "one pass of the network"


class InPlace(nn.Module):
    """What one strategy reads before it is written in place, another reads afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.middle, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        return self.head(self.middle(x.add_(1.0)))


def test_a_value_that_one_writes_in_place_is_not_shared() -> None:
    torch.manual_seed(0)
    network, inputs = InPlace().eval(), torch.randn(4, 4)
    splits = split_all(network, {"head": ("head.weight",), "body": ("body.bias",), "middle": ("middle.bias",)}, inputs)
    shared = write_and_read(share_backbone(splits, inputs))
    with torch.no_grad():
        features = shared["head"].run_backbone(inputs)
        for split in shared.values():
            np.testing.assert_allclose(split.apply_tail(split.state, split.take(features)), network(inputs), rtol=1e-5)


class Picking(nn.Module):
    """As language models do, it masks words, by a mask that is made anew each time, and answers from one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.middle, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def mask(self, x: torch.Tensor) -> torch.Tensor:
        return (x[..., :1] > 0).to(device=x.device, dtype=x.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.body(x)
        for _ in range(2):
            h = torch.tanh(self.middle(h)) * self.mask(x)
        return self.head(h[torch.arange(x.shape[0], device=x.device), x[..., 1].argmax(1)])


def test_places_in_the_batch_and_masks_that_are_alike_go_all_the_way() -> None:
    torch.manual_seed(0)
    network, inputs = Picking().eval(), torch.randn(7, 3, 4)
    names = {"head": ("head.weight",), "middle": ("middle.weight", "head.weight")}
    splits = split_all(network, names, inputs)
    assert [split.reason for split in splits.values()] == ["", ""]
    shared = share_backbone(splits, inputs)
    assert describe_obstacle(shared, inputs) == ""
    rows = torch.tensor([5, 1, 3])
    for split in write_and_read(shared).values():
        found = split.apply_tail(split.state, split.take(split.compute_features(inputs, 4), rows)).detach()
        torch.testing.assert_close(found, network(inputs[rows]).detach())


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x) if float(x.sum()) < 1e9 else x)


def test_what_cannot_be_traced_runs_whole_and_names_its_tensors() -> None:
    network, inputs = Branching(), torch.randn(4, 4)
    splits = split_all(network, {"head": ("head.weight", "head.bias")}, inputs)
    assert "it cannot be split" in describe_obstacle(splits, inputs)
    assert describe_splits(splits) == {}
    assert list_tensors(splits).keys() == network.state_dict().keys()
    state = {"head.weight": torch.ones(2, 4), "head.bias": torch.zeros(2)}
    found = splits["head"].apply_tail(state, splits["head"].take(splits["head"].run_backbone(inputs))).detach()
    np.testing.assert_allclose(found, network.body(inputs).sum(1, keepdim=True).expand(4, 2).detach(), rtol=1e-5)


@pytest.mark.parametrize("kind", [Branching, InPlace])
def test_a_network_is_one_memory_also_after_pickling(kind: type[nn.Module]) -> None:
    """What is hashed for drift is what is computed with, and it is sent once."""
    torch.manual_seed(0)
    network, inputs = kind().eval(), torch.randn(4, 4)
    split = pickle.loads(pickle.dumps(split_network(network, ["head.weight"], inputs)))
    before = split.apply_tail(split.state, split.take(split.run_backbone(inputs)))
    with torch.no_grad():
        split.tensors["head.bias"].add_(1.0)
    after = split.apply_tail(split.state, split.take(split.run_backbone(inputs)))
    np.testing.assert_allclose((after - before).detach(), 1.0, rtol=1e-5)


def test_a_parametrized_network_that_runs_whole_can_be_sent() -> None:
    """PyTorch refuses to pickle one."""
    network = nn.Sequential(nn.Linear(4, 4), parametrizations.spectral_norm(nn.Linear(4, 2)), Stubborn()).eval()
    inputs = torch.randn(4, 4)
    split = split_network(network, ["1.bias", "1.parametrizations.weight.original"], inputs)
    sent = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(split))))
    assert split.reason
    for training in (False, True):
        found, right = (own.apply_tail(own.state, own.take((inputs,)), training) for own in (sent, split))
        torch.testing.assert_close(found, right)


def test_a_network_is_sent_once() -> None:
    network = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 2)).eval()
    for kind in (network, nn.Sequential(network, Stubborn())):
        names = [name for name, _ in kind.named_parameters()][-2:]
        sent = len(pickle.dumps(split_network(kind, names, torch.randn(4, 300))))
        assert sent < 1.2 * 4 * sum(parameter.numel() for parameter in network.parameters())


class Stubborn(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) < 1e9 else -x


@pytest.mark.parametrize("change", [{"batch_axes": []}, {"tails": {"head": {}}}, {"backbone": None}])
def test_a_damaged_network_is_refused(change: dict) -> None:
    network, inputs = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval(), torch.randn(4, 4)
    shared = share_backbone(split_all(network, {"head": ("1.weight", "1.bias")}, inputs), inputs)
    content, states = json.loads(json.dumps(describe_splits(shared))), {"head": shared["head"].state}
    with pytest.raises(ValueError, match=r"network has|axis of samples|a program has"):
        read_splits(content | change, list_tensors(shared), states)
    with pytest.raises(ValueError, match="read tensors that are not there"):
        read_splits(content, {}, states)
