"""A trial, in a worker of Ray: one assignment, watched over, and told of what has become of it before."""

import contextlib
import faulthandler
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import ray
import torch
from ray import tune

from ray_ft.backends.placement import Allocation
from ray_ft.backends.workers import Preparation, find_range, open_fitter
from ray_ft.errors import StorageError
from ray_ft.fitting.candidate import run_members, write_range
from ray_ft.fitting.fitter import FitSettings
from ray_ft.results.records import load_means, load_result
from ray_ft.runs.folder import CandidateFolder, RunFolder, keep_files
from ray_ft.search.plan import Assignment
from ray_ft.search.problem import Problem


@contextlib.contextmanager
def free_device() -> Iterator[None]:
    """Give back at the end what torch keeps of a GPU's memory: others share it, and this process may wait for work."""
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # which hold the members
        raise
    finally:
        torch.cuda.empty_cache()


@free_device()
def train_trial(
    params: dict[str, Any],
    problem: Problem,
    run: RunFolder,
    prepared: Mapping[str, Preparation],
    settings: FitSettings,
    allocation: Allocation,
    max_silence_s: float,
) -> None:
    """Train one assignment in a worker of Ray; one that memory did not suffice for, a member at a time."""
    own: Assignment = params["assignment"]
    if "roomier" in params:
        settings = replace(settings, packing="looped")
        allocation = replace(allocation, cpus=1) if allocation.n_workers == 1 else allocation
    node = ray.get_runtime_context().get_node_id()

    def report(epoch: int, mean: float, final: bool) -> None:
        reset()
        tune.report({"epoch": epoch, "loss": mean, "final": final, "node": node})

    try:
        check_there(run)
        with run.check_out(own.name) as folder, limit_silence(folder.candidate(own.name), max_silence_s) as reset:
            if recall(problem, folder, own):
                return
            strategy, every = prepared[own.spec.strategy], settings.checkpoint_every
            if own.is_range_test:
                found = find_range(problem, own, strategy, settings, allocation)
                write_range(folder, own, problem.splits.hash, found)
                tune.report({"node": node})  # of a trial that reports nothing, Tune prints that it has ended
                return
            with open_fitter(problem, own, strategy, settings, allocation) as fitter:
                run_members(problem, folder, own, fitter, report, every, lambda: is_leaving(node, allocation))
    except StorageError as error:  # of the run, not of this candidate: another try would end the same way
        tune.report({"broken": str(error), "node": node})


def recall(problem: Problem, run: RunFolder, own: Assignment) -> bool:
    """Report the epochs that another process has left, some of which may not have been heard; was it done?"""
    means, done = load_means(run, own, problem.splits), load_result(run, own.name) is not None
    for epoch, mean in enumerate(means, start=1):
        tune.report({"epoch": epoch, "loss": mean, "final": done and epoch == len(means), "recalled": True})
    return done


def check_there(run: RunFolder) -> None:
    """Make sure that this node, which may have joined since the run began, has the run folder."""
    if run.mirror is None and not run.provenance.exists():
        raise StorageError(
            f"every node must read and write the run folder, got {run.root}, which is not on "
            f"{socket.gethostname()}; mount it there, and repeat the command to go on"
        )


def is_leaving(node: str, allocation: Allocation) -> bool:
    """Whether the cluster has been told that this node will soon be gone, as a spot instance is."""
    leaving: Mapping[str, int] = ray._private.state.state.get_draining_nodes()  # there is no public way
    return node in leaving or (allocation.n_workers > 1 and bool(leaving))


@contextlib.contextmanager
def limit_silence(folder: CandidateFolder, seconds: float) -> Iterator[Callable[[], None]]:
    """End this process when it has been silent for too long; Ray then tries its candidate again.

    What it gives begins to wait anew. It needs no lock of Python's, so that a call that hangs while it holds one is
    ended too.
    """
    with keep_files(folder.root):
        folder.root.mkdir(parents=True, exist_ok=True)
        file = folder.silence.open("w", encoding="utf-8")
    reset = partial(faulthandler.dump_traceback_later, seconds, exit=True, file=file)
    reset()
    try:
        yield reset
    finally:
        faulthandler.cancel_dump_traceback_later()
        with keep_files(folder.root):
            file.close()
            folder.silence.unlink(missing_ok=True)
