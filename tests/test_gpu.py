"""On a GPU: the members of a CPU, packed or looped (on request: -m gpu)."""

from pathlib import Path

import pytest
import torch

from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate, prepare
from ray_ft.fitting.gradient import Squad
from ray_ft.fitting.task import prepare_part
from ray_ft.search.plan import list_members

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("packing", ["looped", "packed"])
def test_members_without_dropout_are_those_of_the_cpu(toy_folder: Path, packing: str) -> None:
    overrides = {"cv.strategies": ["top"], "training.head_dropout": 0.0, "training.precision": "float32"}
    prepared = prepare(load_config(toy_folder / "toy.yaml", overrides), toy_folder / "run")
    states = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        part = prepare_part(prepared.task, "top", device)
        squad = Squad(prepared.task, part, prepared.plan[0], list_members(1, 3, 2), device, 1, packing)
        squad.train(0)
        states.append(squad.whole.state)
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name].cpu(), tensor, rtol=1e-3, atol=1e-4)


def test_packed_members_are_the_looped_ones_with_dropout(toy_folder: Path) -> None:
    overrides = {"cv.strategies": ["top"], "training.precision": "float32"}
    prepared = prepare(load_config(toy_folder / "toy.yaml", overrides), toy_folder / "run")
    device = torch.device("cuda")
    part = prepare_part(prepared.task, "top", device)
    packed, looped = (
        Squad(prepared.task, part, prepared.plan[0], list_members(1, 3, 2), device, 1, how)
        for how in ("packed", "looped")
    )
    packed.train(0)
    looped.train(0)
    for name, tensor in looped.whole.state.items():
        torch.testing.assert_close(packed.whole.state[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_candidates_share_a_gpu(toy_folder: Path) -> None:
    config = load_config(toy_folder / "toy.yaml", {"cv.strategies": ["top", "last"], "compute.packing": "auto"})
    summary = cross_validate(config, toy_folder / "run")
    assert all("bfloat16" in way for row in summary.strategies.values() for way in row.training)
