"""On a GPU: the members of a CPU, packed or looped (on request: -m gpu)."""

from pathlib import Path

import pytest
import torch

from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate, prepare
from ray_ft.fitting.fitter import FitSettings
from ray_ft.fitting.gradient import GradientFitter
from ray_ft.fitting.preparation import prepare_strategy
from ray_ft.fitting.starting import start_fitter

pytestmark = pytest.mark.gpu


def train_epoch(toy_folder: Path, device: torch.device, packing: str, **overrides: object) -> dict[str, torch.Tensor]:
    values = {"cv.strategies": ["top"], "training.precision": "float32", **overrides}
    prepared = prepare(load_config(toy_folder / "toy.yaml", values))
    problem, (spec, *_) = prepared.problem, prepared.first_round
    own = prepare_strategy(problem, prepared.pretrained, prepared.strategies["top"], "float32", device)
    fitter = start_fitter(problem, own, spec, problem.keys, FitSettings(packing=packing), device)
    assert isinstance(fitter, GradientFitter)
    fitter.run_epoch(0)
    return fitter.whole.state


@pytest.mark.parametrize("packing", ["looped", "packed"])
def test_members_without_dropout_are_those_of_the_cpu(toy_folder: Path, packing: str) -> None:
    devices = (torch.device("cpu"), torch.device("cuda"))
    states = [train_epoch(toy_folder, device, packing, **{"training.head_dropout": 0.0}) for device in devices]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name].cpu(), tensor, rtol=1e-3, atol=1e-4)


def test_packed_members_are_the_looped_ones_with_dropout(toy_folder: Path) -> None:
    packed, looped = (train_epoch(toy_folder, torch.device("cuda"), how) for how in ("packed", "looped"))
    for name, tensor in looped.items():
        torch.testing.assert_close(packed[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_candidates_share_a_gpu(toy_folder: Path) -> None:
    config = load_config(toy_folder / "toy.yaml", {"cv.strategies": ["top", "last"], "compute.packing": "auto"})
    summary = cross_validate(config, toy_folder / "run")
    assert all("bfloat16" in way for row in summary.strategies.values() for way in row.training)
