"""Training through the frozen boundary is training through the whole network."""

from collections.abc import Collection

import pytest
import torch
from torch import Tensor, nn

from ray_ft import DiffractionNet
from ray_ft.split.network import split_network
from ray_ft.split.whole import set_training_modes

SMALL = {"n_blocks": (1, 1, 1, 1), "widths": (4, 8, 8, 8, 16), "d_model": 32, "n_decoder_blocks": 1}
HEAD = ("head.", "spec_bias")
EPS = 1e-4  # a bias of attention keys has no gradient but rounding, which Adam would otherwise blow up


def build_diffraction() -> nn.Module:
    dropouts = {"dropout_cnn": 0.0, "dropout_decoder": 0.0, "dropout_head": 0.0}
    return DiffractionNet(**SMALL, **dropouts, n_wavelengths=11, wav_kernel=3)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.last = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.last(x)
        return self.fc(x.mean((2, 3)))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) if x.sum() > 0 else x)


class Transformer(nn.Module):
    """Its last layer trains; the projection behind it is frozen, and tied to the embedding of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.first, self.last = (nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(self.embed(x))) @ self.embed.weight


class Standardise(nn.Module):
    """Has buffers that nothing writes, and no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.mean


def build_standardised() -> nn.Module:
    """Of what everything trains, the frozen part reads a buffer alone."""
    return nn.Sequential(Standardise(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def match(network: nn.Module, prefixes: Collection[str]) -> list[str]:
    return [name for name, _ in network.named_parameters() if name.startswith(tuple(prefixes))]


def train_whole(network: nn.Module, trained: Collection[str], x: Tensor, y: Tensor) -> list[float]:
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)
    set_training_modes(network, trained)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2, eps=EPS)
    losses = []
    for _ in range(3):
        loss = ((network(x) - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("build", "shape", "prefixes"),
    [
        (build_diffraction, (1, 128, 128), HEAD),
        (build_diffraction, (1, 128, 128), ("film_", "dec.", *HEAD)),
        (build_diffraction, (1, 128, 128), ("",)),
        (build_diffraction, (1, 128, 128), ("spec_bias",)),
        (ResNet, (1, 8, 8), ("last", "fc")),
        (ResNet, (1, 8, 8), ("fc",)),
        (Transformer, (5, 3), ("last",)),
        (Transformer, (5, 3), ("embed",)),
        (build_standardised, (3,), ("",)),
        (build_standardised, (3,), ("3.",)),
    ],
    ids=[
        "head",
        "decoder_head",
        "full",
        "spec_bias",
        "resnet-last",
        "resnet-fc",
        "transformer",
        "transformer-tied",
        "buffer",
        "buffer-last",
    ],
)
def test_split_training_equals_whole_training(build, shape, prefixes) -> None:
    torch.manual_seed(0)
    network = build()
    trained = match(network, prefixes)
    x = torch.randn(5, *shape)
    with torch.no_grad():
        y = network.eval()(x) + 0.1
    split = split_network(network, trained, x[:4])
    assert split.reason == ""
    features = split.compute_features(x, 2)
    for one, other in zip(features, split.compute_features(x, 5), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    state = {name: tensor.clone() for name, tensor in split.state.items()}
    optimizer = torch.optim.AdamW([state[name].requires_grad_() for name in split.trained_names], lr=1e-2, eps=EPS)
    losses = []
    for _ in range(3):
        loss = ((split.apply_tail(state, split.take(features, torch.arange(5)), training=True) - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    frozen = {name: tensor.clone() for name, tensor in split.tensors.items()}
    assert losses == pytest.approx(train_whole(network, trained, x, y), rel=1e-5)
    whole = network.state_dict()
    for name, tensor in state.items():
        if "num_batches" not in name:
            torch.testing.assert_close(tensor.detach(), whole[name], rtol=1e-4, atol=1e-5)
    for name, tensor in frozen.items():
        assert torch.equal(tensor, whole[name]), f"{name} moved"
    predicted = split.apply_tail(state, split.take(features, torch.arange(5)), training=False)
    torch.testing.assert_close(predicted.detach(), network.eval()(x).detach(), rtol=1e-4, atol=1e-5)


def test_a_network_that_cannot_be_exported_runs_whole_and_says_why() -> None:
    network = Branching()
    split = split_network(network, match(network, ["head"]), torch.randn(2, 3))
    assert "cannot be split" in split.reason
    x = torch.randn(4, 3)
    rows = split.take(split.compute_features(x), torch.arange(4))
    torch.testing.assert_close(split.apply_tail(split.state, rows, training=False), network(x).detach())


def test_dropout_of_a_frozen_part_stays_off_and_of_a_trained_part_draws() -> None:
    network = DiffractionNet(**SMALL, n_wavelengths=11, wav_kernel=3, dropout_cnn=0.5, dropout_head=0.5)
    set_training_modes(network, match(network, HEAD))
    assert network.head[2].training
    assert not network.stem_dropout.training
    assert not network.dec[0].cross_attn.training
