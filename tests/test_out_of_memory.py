"""Memory that does not suffice, at any operation: the weights and scores are those of an undisturbed run.

The suite tries some of the operations, `-m slow` every one of an epoch and each seventh of a candidate.
"""

import errno
import gc
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from rich.console import Console
from safetensors.torch import load_file
from test_gradient import build_parts, start
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from toy import break_toy, table

from ray_ft.backends.tune import is_short_of_memory
from ray_ft.backends.workers import is_of_machine
from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate, prepare, search
from ray_ft.errors import RunError
from ray_ft.files.memory import is_out_of_memory
from ray_ft.fitting.gradient import GradientFitter
from ray_ft.results.records import load_result
from ray_ft.runs.folder import RunFolder
from ray_ft.runs.journal import Journal, read_log
from ray_ft.search.problem import MemberKey

KEYS = (MemberKey(0, 0, 0), MemberKey(0, 2, 1))  # 22 and 23 samples for training
SOME = 23  # a prime, so that the operations of a step take turns
NO_MORE = "CUDA out of memory. Tried to allocate 2.00 MiB."  # as torch says it; some of its errors quote others


class Short(TorchDispatchMode):
    """A device that has no memory for operation number `at`, from 0; every other one is done before it is told."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.n_calls = at, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.is_view or FakeTensor in types:  # which take no memory
            return func(*args, **(kwargs or {}))
        self.n_calls += 1
        short = self.n_calls == self.at + 1
        if short and self.at % 2 == 0:
            raise torch.OutOfMemoryError(NO_MORE)
        found = func(*args, **(kwargs or {}))
        if short:
            raise torch.OutOfMemoryError(NO_MORE)
        return found


def list_points(n: int, stride: int) -> Iterator[int]:
    """The operations to fail at, of so many; garbage is collected between them, as errors hold what was computed."""
    for at in range(0, n, stride):
        yield at
        if at % 50 == 0:
            gc.collect()


EVERY = [pytest.param(SOME, id="some"), pytest.param(1, marks=pytest.mark.slow, id="every")]


@pytest.mark.parametrize("stride", EVERY)
@pytest.mark.parametrize("strategy", ["top", "all"])
def test_an_epoch_is_all_or_nothing(strategy: str, stride: int, toy_folder: Path) -> None:
    """Two packed members, of which the last batches differ, so that they step together and alone."""
    parts = build_parts(toy_folder, strategy, training__batch_size=15)
    begun = start(parts, KEYS, "packed")
    for epoch in (0, 1):  # before the first, the optimizers have kept nothing
        saved = deepcopy(begun.save())
        begun.run_epoch(epoch)
        looped = start(parts, KEYS, "looped")
        looped.load(deepcopy(saved))
        expected, _ = train(looped, epoch, -1)
        fitter = start(parts, KEYS, "packed")
        refresh(fitter, saved)
        for at in list_points(train(fitter, epoch, -1)[1], stride):
            refresh(fitter, saved)
            found, _ = train(fitter, epoch, at)
            assert fitter.pack_size == 1
            compare(found, expected, at)
        assert "memory did not suffice to train 2 members in one step, so 1 were" in fitter.describe().note


def refresh(fitter: GradientFitter, saved: dict[MemberKey, dict[str, Any]]) -> None:
    fitter.load(deepcopy(saved))
    fitter.pack_size = 2


def train(fitter: GradientFitter, epoch: int, at: int) -> tuple[dict[str, Any], int]:
    """Train an epoch and predict, with no memory for one operation; return what came of it, and their number."""
    with Short(at) as calls:
        fitter.run_epoch(epoch)
        predicted = fitter.predict()
    assert all(member.state[name].grad is None for member in fitter.whole.members for name in member.state)
    saved = deepcopy(fitter.save())
    found = {str(key): (predicted[key], own["state"], own["optimizer"]["state"]) for key, own in saved.items()}
    return found, calls.n_calls


def compare(found: dict[str, Any], expected: dict[str, Any], at: int) -> None:
    """Once the packs are smaller, they are the looped run's, to the bit; predictions may come before that."""
    for key, (predicted, state, moments) in expected.items():
        np.testing.assert_allclose(found[key][0], predicted, rtol=1e-5, atol=1e-5, err_msg=f"at {at}")
        for name, tensor in state.items():
            torch.testing.assert_close(found[key][1][name], tensor, rtol=1e-5, atol=1e-5, msg=f"{name} at {at}")
        for index, slots in moments.items():
            assert all(torch.allclose(found[key][2][index][name], slot, atol=1e-5) for name, slot in slots.items()), at


@pytest.mark.long
@pytest.mark.parametrize("stride", [pytest.param(199, id="some"), pytest.param(7, marks=pytest.mark.slow, id="many")])
def test_a_candidate_is_tried_again_and_ends_to_the_bit_the_same(stride: int, toy_folder: Path) -> None:
    """From its preparation to its files, members one after the other."""
    run_search("calm", -1)
    calm = read_files("calm")
    for at in list_points(run_search("counted", -1), stride):
        run_search(f"run-{at}", at)
        found = read_files(f"run-{at}")
        for name, tensor in calm.items():
            assert torch.equal(found[name], tensor), (name, at)
        (retry,) = [event for event in read_log(Path(f"run-{at}/log.jsonl")) if event["event"] == "retry"]
        assert retry["memory"], at


def run_search(out: str, at: int) -> int:
    """Run one candidate here, with no memory for one operation; return how many there were."""
    values = {"cv.strategies": ["top"], "cv.candidates": 1, "cv.seeds": 1, "strategies.top.epochs": 3}
    config = load_config("toy.yaml", values | {"compute.cpus_per_candidate": 1})
    run = RunFolder(Path(out))
    run.root.mkdir()
    prepared = prepare(config)
    with Short(at) as calls:
        search(prepared, run, True, Journal(run.log), Console(quiet=True))
    result = load_result(run, "top-000")
    assert result is not None
    assert result["state"] == "completed", at
    return calls.n_calls


SHORT = """
    import pathlib
    if len(x) > 4 and x.sum() < 1e30 and self.training and pathlib.Path("short").exists():
        raise MemoryError("no more memory")
"""


@pytest.mark.long
def test_memory_that_never_suffices_is_no_failure_of_a_first_call(toy_folder: Path) -> None:
    break_toy(toy_folder, "    def forward(self, x):", SHORT)
    values = {"cv.strategies": ["last"], "cv.candidates": 1, "cv.seeds": 1, "compute.max_failures": 1}
    config = load_config("toy.yaml", values)
    calm = cross_validate(config, "calm", inline=True)
    Path("short").touch()
    for out, words in (("run", "die 1 times"), ("other", "last-000: MemoryError: no more memory")):
        with pytest.raises(RunError, match=words):
            cross_validate(config, out, inline=True)
        assert load_result(RunFolder(Path(out)), "last-000") is None
    with pytest.raises(RunError, match="no strategy has a completed candidate"):
        cross_validate(config, "other", inline=True)  # as the first call has said
    Path("short").unlink()
    found = cross_validate(config, "run", inline=True)
    assert table(found) == table(calm)
    assert any("memory did not suffice for last-000 at first" in note for note in found.notes)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (np.exceptions.AxisError("a"), False),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ray.exceptions.OutOfMemoryError("ended for it"), True),
        (None, False),
    ],
)
def test_what_memory_says_is_told_from_what_a_network_raises(error: BaseException | None, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
    assert is_of_machine(error) is expected
    if isinstance(error, Exception):
        told = ray.exceptions.RayTaskError("train", "traceback", error)
        assert is_of_machine(told) is is_short_of_memory(told) is expected


def test_what_ray_has_lost_is_the_machines() -> None:
    for lost in (ray.exceptions.ObjectLostError("00" * 28, "", ""), ray.exceptions.ActorDiedError()):
        assert is_of_machine(lost)
        assert is_of_machine(ray.exceptions.RayTaskError("train", "traceback", lost))
        assert not is_short_of_memory(lost)


def read_files(out: str) -> dict[str, torch.Tensor]:
    folder = Path(out) / "candidates/top-000"
    found = load_file(folder / "members.safetensors")
    for name in ("history", "oof"):
        with np.load(folder / f"{name}.npz") as arrays:
            found |= {key: torch.from_numpy(arrays[key]) for key in arrays}
    return found
