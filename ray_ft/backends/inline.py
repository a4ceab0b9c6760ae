"""Candidates one after the other in this process, without Ray: for a debugger, and to compare with."""

import os
import time
import traceback
from collections.abc import Mapping, Sequence

import torch

from ray_ft.backends.rounds import Monitor, TrainRound, read_verdict
from ray_ft.config import ComputeSection
from ray_ft.data.problem import Problem
from ray_ft.errors import StorageError
from ray_ft.fitting.candidate import run_candidate, write_failure
from ray_ft.fitting.fitter import FitSettings
from ray_ft.fitting.preparation import PreparedStrategy, prepare_strategy
from ray_ft.fitting.starting import start_fitter
from ray_ft.models import Pretrained
from ray_ft.runs.folder import RunFolder
from ray_ft.search.plan import CandidateSpec
from ray_ft.search.strategies import Strategy

__all__ = ["train_inline"]


class StopCandidate(Exception):  # noqa: N818  # no error: it ends a candidate
    """Ends a candidate in this process, as Ray Tune ends a trial."""


def train_inline(
    problem: Problem,
    pretrained: Pretrained,
    run: RunFolder,
    strategies: Mapping[str, Strategy],
    settings: FitSettings,
    checkpoint_every: int,
    compute: ComputeSection,
    monitor: Monitor,
) -> TrainRound:
    """Return what trains candidates in this process.

    Args:
        problem: What is to be learned.
        pretrained: The network.
        run: Where files go.
        strategies: By name.
        settings: How members are fitted.
        checkpoint_every: Epochs between checkpoints.
        compute: Which device, how many threads.
        monitor: Told of what happens.
    """
    device = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if compute.device == "auto" else compute.device
    )
    torch.set_num_threads(1)  # one a member, so that sums are taken in the same order whatever there is
    n_threads = compute.cpus_per_candidate or os.cpu_count() or 1
    prepared: dict[str, PreparedStrategy] = {}

    def train(left: Sequence[CandidateSpec]) -> dict[str, float]:
        return {spec.name: train_one(spec) for spec in left}

    def train_one(spec: CandidateSpec) -> float:
        started = time.monotonic()

        def report(epoch: int, mean: float, final: bool) -> None:
            monitor.halving.record(spec.name, epoch, mean, final)
            monitor.display.show_epoch(spec.name, epoch, mean)
            monitor.journal.write_epoch(spec.name, epoch, mean)
            if monitor.halving.stopped_at(spec.name):
                raise StopCandidate

        try:
            if spec.strategy not in prepared:
                strategy = strategies[spec.strategy]
                prepared[spec.strategy] = prepare_strategy(
                    problem, pretrained, strategy, settings.precision, device, n_threads
                )
            fitter = start_fitter(problem, prepared[spec.strategy], spec, problem.keys, settings, device, n_threads)
            run_candidate(problem, run, spec, fitter, report, checkpoint_every)
        except StopCandidate:
            pass
        except StorageError:  # the next candidate's could not be written either
            raise
        except Exception:  # the border of a candidate: the others go on, as on Ray
            write_failure(run, spec, problem.splits.hash, traceback.format_exc())
        monitor.halving.finish(spec.name)
        state = read_verdict(run, spec, monitor.halving.stopped_at(spec.name), 0.0).state
        monitor.display.show_end(spec.name, state)
        monitor.journal.write("end of candidate", candidate=spec.name, state=state)
        return time.monotonic() - started

    return train
