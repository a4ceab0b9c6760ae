"""A trial, in a worker of Ray: one candidate, watched over, and told of what has become of it before."""

import faulthandler
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray import tune

from ray_ft.backends.placement import Share, raise_squads
from ray_ft.config import ComputeSection
from ray_ft.errors import StorageError
from ray_ft.fitting.candidate import run_candidate
from ray_ft.fitting.task import Task
from ray_ft.results.records import load_means, load_result
from ray_ft.runs.folder import CandidateFolder, RunFolder, keep_files
from ray_ft.search.plan import CandidateSpec

__all__ = ["train_trial"]


def train_trial(
    params: dict[str, Any], task: Task, plan: Sequence[CandidateSpec], parts: Mapping[str, Any], share: Share
) -> None:
    """Train one candidate in a worker of Ray."""
    (spec,) = (spec for spec in plan if spec.name == params["candidate"])
    node = ray.get_runtime_context().get_node_id()

    def report(epoch: int, mean: float, final: bool) -> None:
        guard.hear()
        tune.report({"epoch": epoch, "loss": mean, "final": final, "node": node})

    try:
        check_there(task.run)
        with task.run.lend(spec.name) as run, Guard(run.candidate(spec.name), task.config.compute) as guard:
            own = replace(task, run=run)
            if recall(own, spec):
                return
            with raise_squads(own, spec, parts, share) as broadcast:
                run_candidate(own, spec, report, broadcast, lambda: is_leaving(node, share))
    except StorageError as error:  # of the run, not of this candidate: another try would end the same way
        tune.report({"broken": str(error), "node": node})


def recall(task: Task, spec: CandidateSpec) -> bool:
    """Report the epochs that another process has left, some of which may not have been heard; was it done?"""
    means, done = load_means(task.run, spec, task.splits), load_result(task.run, spec) is not None
    for epoch, mean in enumerate(means, start=1):
        tune.report({"epoch": epoch, "loss": mean, "final": done and epoch == len(means), "recalled": True})
    return done


def check_there(run: RunFolder) -> None:
    """Make sure that this node, which may have joined since the run began, has the run folder.

    Raises:
        StorageError: It has not.
    """
    if run.mirror is None and not run.provenance.exists():
        raise StorageError(
            f"every node must read and write the run folder, got {run.root}, which is not on "
            f"{socket.gethostname()}; mount it there, and repeat the command to go on"
        )


def is_leaving(node: str, share: Share) -> bool:
    """Whether the cluster has been told that this node will soon be gone, as a spot instance is."""
    leaving: Mapping[str, int] = ray._private.state.state.get_draining_nodes()  # there is no public way
    return node in leaving or (share.n_workers > 1 and bool(leaving))


class Guard:
    """Ends this process when it has been silent for too long; Ray then tries its candidate again.

    It needs no lock of Python's, so that a call that hangs while it holds one is ended too.
    """

    def __init__(self, folder: CandidateFolder, compute: ComputeSection) -> None:
        self.folder, self.seconds = folder, compute.max_silence_s

    def __enter__(self) -> "Guard":
        with keep_files(self.folder.root):
            self.folder.root.mkdir(parents=True, exist_ok=True)
            self.file = self.folder.silence.open("w", encoding="utf-8")
        self.hear()
        return self

    def hear(self) -> None:
        """Begin to wait anew."""
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.file)

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        with keep_files(self.folder.root):
            self.file.close()
            self.folder.silence.unlink(missing_ok=True)
