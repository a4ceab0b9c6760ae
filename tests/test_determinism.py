"""What torch is told where the same bits are to come again."""

import os
from pathlib import Path

import pytest
import ray
import torch
from toy import table

from ray_ft.backends.placement import find_device
from ray_ft.backends.tune import connect
from ray_ft.config import ComputeSection, load_config
from ray_ft.cross_validation import cross_validate
from ray_ft.fitting.determinism import WORKSPACE, deterministic

VALUES = {"cv.strategies": ["top"], "cv.candidates": 1, "compute.packing": "auto", "compute.deterministic": True}


def look() -> tuple[bool, ...]:
    """What is set in this process."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.benchmark,
        cudnn.allow_tf32,
        matmul.allow_tf32,
        WORKSPACE in os.environ,
    )


def test_it_is_set_and_undone() -> None:
    before = look()
    with deterministic(True):
        assert look() == (True, False, False, False, False, True)
        with pytest.raises(RuntimeError, match="put_"):  # an operation without a deterministic way, on a CPU too
            torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2))
    assert look() == before
    with deterministic(False):
        assert look() == before


@pytest.mark.parametrize("seen", [False, True])
def test_a_process_keeps_what_its_user_has_set(monkeypatch: pytest.MonkeyPatch, seen: bool) -> None:
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with deterministic(seen):
        assert os.environ[WORKSPACE] == ":16:8"
    assert os.environ[WORKSPACE] == ":16:8"


def test_nothing_hangs_on_time(toy_folder: Path) -> None:
    summaries = [cross_validate(load_config("toy.yaml", VALUES), out, inline=True) for out in ("one", "other")]
    assert table(summaries[0]) == table(summaries[1])
    assert summaries[0].strategies["top"].training == ["looped, float32"]
    assert not torch.are_deterministic_algorithms_enabled()
    assert (
        load_config("toy.yaml", VALUES).identity()
        == load_config("toy.yaml", {**VALUES, "compute.deterministic": False}).identity()
    )


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_process_of_ray_is_told() -> None:
    def start() -> tuple[bool, bool]:
        find_device(deterministic=True)
        return torch.are_deterministic_algorithms_enabled(), WORKSPACE in os.environ

    with connect(ComputeSection()):
        assert ray.get(ray.remote(start).remote()) == (True, True)
