"""A new head: for classes of another number, and where it is asked for; it is built again wherever the network is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ray_ft
from ray_ft.config import load_config
from ray_ft.cross_validation import prepare
from ray_ft.ensemble import Ensemble
from ray_ft.errors import ConfigError, DataError, NetworkError
from ray_ft.models import find_last_layer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)).astype(np.float32)
LABELS = np.array(["cat", "dog", "owl", "elk"])[(X[:, 0] > 0) * 2 + (X[:, 1] > 0)]
FEW: dict[str, Any] = {"folds": 3, "seeds": 1, "inline": True, "progress": False}
GUIDE = {"search.method": "guide", "search.candidates": 1}
STRATEGIES = {"all": {"train": ["*"], "lr": 0.05, "epochs": 12}, "ridge": {"fit": "ridge", "train": ["2.*"]}}


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 7))


class Turning(nn.Module):
    """A network that no export can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) if x.sum() < 1e30 else self.inner(-x)


def test_classes_of_another_number_get_a_head_that_starts_at_zero() -> None:
    found = ray_ft.cross_validate(build(), (X, LABELS), strategies=STRATEGIES, options=GUIDE, **FEW)
    summary = found.summary
    assert any("2 is a new layer of 4 outputs in place of the pretrained one" in note for note in summary.notes)
    assert summary.baselines["zero_shot"].score_mean == pytest.approx(np.log(4), rel=1e-6)
    assert summary.strategies["all"].score_mean < 0.9 * np.log(4)
    assert summary.strategies["ridge"].score_mean < 0.9 * np.log(4)
    predicted = np.array(found.ensemble.card.classes)[found.ensemble.predict(X).predicted]
    assert (predicted == LABELS).mean() > 0.8


def test_a_network_that_runs_whole_keeps_its_new_head(tmp_path: Path) -> None:
    strategies = {"head": {"train": ["inner.2.*"], "lr": 0.05, "epochs": 3}}
    found = ray_ft.cross_validate(
        Turning, (X, LABELS), strategies=strategies, options=GUIDE, out=tmp_path / "run", **FEW
    )
    assert found.ensemble.card.split
    assert found.ensemble.card.new_head == ("inner.2", 16, 4)
    again = Ensemble.load(tmp_path / "run", factory=Turning)
    np.testing.assert_array_equal(again.predict(X).mean, found.ensemble.predict(X).mean)


@pytest.mark.parametrize("asked", [None, False, True])
def test_numbers_get_a_new_head_where_it_is_asked_for(asked: bool | None, toy_folder: Path) -> None:
    np.save("y.npy", np.load("y.npy")[:, :2])
    config = load_config("toy.yaml", {"cv.strategies": ["last"], "model.new_head": asked})
    if asked:
        prepared = prepare(config)
        assert prepared.problem.samples.targets.shape == (30, 2)
        assert not prepared.zero_shot.any()
    else:
        with pytest.raises(DataError, match="must have the shape of the targets"):
            prepare(config)


def test_a_head_that_fits_stays_unless_another_is_asked_for(toy_folder: Path) -> None:
    values = {"cv.strategies": ["last"], "cv.metric": "log_loss"}
    np.save("y.npy", np.arange(30) % 3)
    fitting = prepare(load_config("toy.yaml", values))
    assert np.ptp(fitting.zero_shot) > 0
    fresh = prepare(load_config("toy.yaml", values | {"model.new_head": True}))
    np.testing.assert_allclose(fresh.zero_shot, 1 / 3, rtol=1e-6)


def test_a_head_that_is_no_linear_layer_is_named() -> None:
    network = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.LayerNorm(8))
    with pytest.raises(NetworkError, match=r"but 2 is a LayerNorm; build the network with 4 outputs"):
        ray_ft.cross_validate(network, (X[:, None], LABELS), strategies={"a": "*"}, **FEW)


def test_a_diffraction_net_has_no_other_head() -> None:
    with pytest.raises(ConfigError, match=r"model\.new_head: it needs model\.factory"):
        load_config(None, {"model.new_head": True})


def test_the_last_layer_is_the_one_that_ends_last() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.utils.parametrizations.weight_norm(nn.Linear(8, 1))
            self.first = nn.Linear(6, 8)
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x)) * self.scale

    assert find_last_layer(Odd(), X) == "last"
    assert find_last_layer(nn.Linear(6, 1), X) == ""
