"""What a candidate is given of a cluster."""

import io
import math
import os
from pathlib import Path

import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ray._common.ray_option_utils import _resource_option
from ray.util.placement_group import placement_group
from rich.console import Console

from ray_ft.backends import local_ray, placement
from ray_ft.backends.placement import Allocation, find_device, share_cpus, share_gpus
from ray_ft.backends.progress import Display
from ray_ft.backends.rounds import Shared
from ray_ft.backends.running import start_halving
from ray_ft.backends.tune import connect
from ray_ft.config import ComputeSection, Config, load_config
from ray_ft.cross_validation import prepare
from ray_ft.errors import ConfigError
from ray_ft.fitting.fitter import FitSettings
from ray_ft.fitting.memory_need import BYTES_PER_WEIGHT, CONTEXT_BYTES, STEP_SLACK, estimate_gpu_bytes
from ray_ft.runs.folder import RunFolder
from ray_ft.runs.journal import Journal


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
    ("n_left", "n_gpus", "n_fitting", "expected"),
    [
        (16, 1.0, 99, Allocation(1, 1, 0.25)),  # small ones share a GPU
        (16, 1.0, 3, Allocation(1, 1, 1 / 3)),  # as far as they fit
        (16, 1.0, 1, Allocation(1, 1, 1.0)),
        (2, 1.0, 99, Allocation(1, 1, 0.5)),
        (4, 4.0, 99, Allocation(1, 1, 1.0)),
        (1, 4.0, 99, Allocation(4, 1, 1.0)),  # one candidate over several
        (2, 8.0, 1, Allocation(4, 1, 1.0)),
        (1, 32.0, 1, Allocation(15, 1, 1.0)),  # no more than it has members
    ],
)
def test_gpus_are_shared_by_many_and_joined_for_few(
    n_left: int, n_gpus: float, n_fitting: int, expected: Allocation
) -> None:
    assert share_gpus(ComputeSection(), n_left, 15, n_gpus, n_fitting) == expected


def test_what_the_config_asks_for_is_given() -> None:
    asked = ComputeSection(cpus_per_candidate=4, workers_per_candidate=2)
    assert share_cpus(asked, 8, 15, [2.0]) == Allocation(2, 2, 0.0)
    assert share_gpus(ComputeSection(gpus_per_candidate=0.1), 1, 15, 8.0, 99) == Allocation(1, 1, 0.1)
    assert share_gpus(ComputeSection(gpus_per_candidate=4), 1, 3, 8.0, 99) == Allocation(3, 1, 1.0)


@settings(max_examples=500)
@given(
    n_gpus=st.integers(1, 64),
    n_left=st.integers(1, 64),
    n_members=st.integers(1, 64),
    n_fitting=st.integers(1, 8),
    asked=st.none() | st.integers(0, 64) | st.floats(0, 64),
    n_workers=st.none() | st.integers(1, 64),
)
def test_every_share_of_gpus_is_one_that_ray_gives_or_is_refused_at_load(
    n_gpus: int, n_left: int, n_members: int, n_fitting: int, asked: float | None, n_workers: int | None
) -> None:
    values = {"gpus_per_candidate": asked, "workers_per_candidate": n_workers}
    if asked and not (0.0001 <= asked <= 1 or (float(asked).is_integer() and asked <= (n_workers or asked))):
        with pytest.raises(ValidationError, match="should be"):
            ComputeSection.model_validate(values)
        return
    compute = ComputeSection.model_validate(values)
    own = share_gpus(compute, n_left, n_members, float(n_gpus), n_fitting)
    _resource_option("num_gpus").validate("num_gpus", own.gpus)
    own.request()
    assert own.gpus <= 1, "a process trains on one GPU"
    assert own.n_workers <= n_members
    if own.gpus:
        n_held = math.ceil(own.n_workers / math.floor(1 / own.gpus + 1e-9))  # GPUs, none of which is given in pieces
        assert n_held <= math.ceil(n_gpus if asked is None else asked)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"gpus_per_candidate": 2.5},
            "compute.gpus_per_candidate: it should be a share of one GPU, from 0.0001 to 1, or a whole number of GPUs, "
            "got 2.5",
        ),
        (
            {"gpus_per_candidate": 3, "workers_per_candidate": 2},
            "compute: workers_per_candidate should be 3 or more where gpus_per_candidate is 3, as a process trains on "
            "one GPU, got 2; leave it out",
        ),
        (
            {"gpus_per_candidate": 0, "device": "cuda"},
            "compute: gpus_per_candidate should be more than 0 where device is cuda, got 0; leave it out",
        ),
    ],
)
def test_shares_that_ray_does_not_give_are_refused_at_load(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, {f"compute.{key}": value for key, value in values.items()})
    assert str(caught.value).splitlines()[1:] == [f"  {said}"]


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_processes_that_share_gpus_are_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thirds of a GPU for each of six on four GPUs would never be: Ray gives no share out of two GPUs."""
    monkeypatch.setattr(local_ray, "LOCAL", local_ray.LOCAL | {"num_gpus": 4})
    own = share_gpus(ComputeSection(gpus_per_candidate=4, workers_per_candidate=6), 1, 15, 4.0, 99)
    with connect(ComputeSection()):
        group = placement_group([{"GPU": own.gpus}] * own.n_workers, strategy="PACK")
        assert group.wait(20)


def share(config: Config, monkeypatch: pytest.MonkeyPatch) -> Shared:
    """What the candidates of a run share, on a machine with a terabyte free."""
    prepared, run = prepare(config), RunFolder(Path("run"))
    monkeypatch.setattr(placement, "find_available", lambda: 10**12)
    display = Display(Console(file=io.StringIO()), "mse", dict.fromkeys(prepared.strategies, 1))
    halving, journal = start_halving(prepared.strategies, config.search, None), Journal(run.log)
    given = (prepared.problem, prepared.pretrained, run, prepared.strategies, FitSettings(), config.compute)
    return Shared(*given, halving, display, journal)


def test_candidates_share_a_gpu_by_all_that_they_take(toy_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = share(toy_config, monkeypatch)
    of_context = CONTEXT_BYTES + 2**20  # a toy takes next to nothing beside
    assert placement.count_fitting(shared, 6, 1.0, 10 * of_context) == 9, "a tenth is left free"
    assert placement.count_fitting(shared, 6, 1.0, 0) == 1, "of a GPU that nobody has seen"
    monkeypatch.setattr(placement, "find_available", lambda: 10**6)
    assert placement.count_fitting(shared, 6, 2.0, 100 * of_context) == 3, "they are collected in the host's memory"


def test_a_step_and_its_features_count(toy_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = share(toy_config, monkeypatch)
    problem, top = shared.problem, shared.strategies["top"]
    small, large = (estimate_gpu_bytes(problem, shared.pretrained.build(), top, 4, n) for n in (6, 12))
    of_sample = 8 + 8 + 8  # the features, what SiLU is given, what dropout gives
    assert large - small == 6 * (top.n_trained * BYTES_PER_WEIGHT + STEP_SLACK * 4 * of_sample * 16)
    weights = sum(tensor.nbytes for tensor in shared.pretrained.build().state_dict().values())
    assert 2 * small - large == CONTEXT_BYTES + weights + 30 * 4 * (8 + 6 + 3)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_a_process_that_holds_no_gpu_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")

    def look() -> tuple[str, str]:
        return str(find_device()), os.environ["CUDA_VISIBLE_DEVICES"]

    with connect(ComputeSection()):
        assert placement.find_card_bytes() == 0
        assert ray.get(ray.remote(look).remote()) == ("cpu", "")
