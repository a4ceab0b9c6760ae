"""What a candidate is given of a cluster."""

import os

import pytest
import ray

from ray_ft.backends.placement import Allocation, find_device, share_cpus, share_gpus
from ray_ft.backends.tune import connect
from ray_ft.config import ComputeSection


@pytest.mark.parametrize(
    ("n_left", "nodes", "expected"),
    [
        (8, [2.0], Allocation(1, 1, 0.0)),  # many candidates: one CPU each
        (1, [2.0], Allocation(1, 2, 0.0)),  # one alone: all of its node
        (1, [4.0, 4.0], Allocation(2, 4, 0.0)),  # and of the others
        (1, [1.0, 1.0], Allocation(2, 1, 0.0)),
        (2, [1.0, 1.0], Allocation(1, 1, 0.0)),
        (2, [16.0], Allocation(1, 8, 0.0)),
        (1, [64.0], Allocation(1, 15, 0.0)),  # no more than it has members
    ],
)
def test_cpus_are_divided_among_the_candidates_that_wait(n_left: int, nodes: list[float], expected: Allocation) -> None:
    assert share_cpus(ComputeSection(), n_left, 15, nodes) == expected


@pytest.mark.parametrize(
    ("n_left", "n_gpus", "small", "expected"),
    [
        (16, 1.0, True, Allocation(1, 1, 0.25)),  # small ones share a GPU
        (16, 1.0, False, Allocation(1, 1, 1.0)),
        (2, 1.0, True, Allocation(1, 1, 0.5)),
        (4, 4.0, True, Allocation(1, 1, 1.0)),
        (1, 4.0, True, Allocation(4, 1, 1.0)),  # one candidate over several
        (2, 8.0, False, Allocation(4, 1, 1.0)),
    ],
)
def test_gpus_are_shared_by_many_and_joined_for_few(
    n_left: int, n_gpus: float, small: bool, expected: Allocation
) -> None:
    assert share_gpus(ComputeSection(), n_left, 15, n_gpus, small) == expected


def test_what_the_config_asks_for_is_given() -> None:
    asked = ComputeSection(cpus_per_candidate=4, workers_per_candidate=2)
    assert share_cpus(asked, 8, 15, [2.0]) == Allocation(2, 2, 0.0)
    assert share_gpus(ComputeSection(gpus_per_candidate=0.1), 1, 15, 8.0, True) == Allocation(1, 1, 0.1)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_a_process_that_holds_no_gpu_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")

    def look() -> tuple[str, str]:
        return str(find_device()), os.environ["CUDA_VISIBLE_DEVICES"]

    with connect(ComputeSection()):
        assert ray.get(ray.remote(look).remote()) == ("cpu", "")
