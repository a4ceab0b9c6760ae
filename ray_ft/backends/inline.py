"""Candidates one after the other in this process, without Ray: for a debugger, and to compare with."""

import os
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from ray_ft.backends.rounds import Monitor, read_verdict
from ray_ft.config import ComputeSection
from ray_ft.errors import StorageError
from ray_ft.fitting.candidate import run_candidate, write_failure
from ray_ft.fitting.fitter import FitSettings, Fitter
from ray_ft.fitting.preparation import PreparedStrategy, prepare_strategy
from ray_ft.fitting.starting import start_fitter
from ray_ft.models import Pretrained
from ray_ft.runs.folder import RunFolder
from ray_ft.search.plan import CandidateSpec
from ray_ft.search.problem import Problem
from ray_ft.search.strategies import Strategy


class StopCandidate(Exception):  # noqa: N818  # no error: it ends a candidate
    """Ends a candidate in this process, as Ray Tune ends a trial."""


@dataclass(frozen=True)
class InlineRounds:
    """Trains rounds of candidates in this process; its attributes are those of `tune.RayRounds`."""

    problem: Problem
    pretrained: Pretrained
    run: RunFolder
    strategies: Mapping[str, Strategy]
    settings: FitSettings
    compute: ComputeSection
    monitor: Monitor
    prepared: dict[str, PreparedStrategy] = field(default_factory=dict)

    def train(self, left: Sequence[CandidateSpec]) -> dict[str, float]:
        """Train candidates; return the seconds that each took."""
        torch.set_num_threads(1)  # one a member, so that sums are taken in the same order whatever there is
        return {spec.name: self.train_one(spec) for spec in left}

    def train_one(self, spec: CandidateSpec) -> float:
        started = time.monotonic()
        halving = self.monitor.halving

        def report(epoch: int, mean: float, final: bool) -> None:
            halving.record(spec.name, epoch, mean, final)
            self.monitor.display.show_epoch(spec.name, epoch, mean)
            self.monitor.journal.write_epoch(spec.name, epoch, mean)
            if halving.stopped_at(spec.name):
                raise StopCandidate

        try:
            run_candidate(self.problem, self.run, spec, self.start(spec), report, self.settings.checkpoint_every)
        except StopCandidate:
            pass
        except StorageError:  # the next candidate's could not be written either
            raise
        except Exception:  # the border of a candidate: the others go on, as on Ray
            write_failure(self.run, spec, self.problem.splits.hash, traceback.format_exc())
        halving.finish(spec.name)
        state = read_verdict(self.run, spec, halving.stopped_at(spec.name), 0.0).state
        self.monitor.display.show_end(spec.name, state)
        self.monitor.journal.write("end of candidate", candidate=spec.name, state=state)
        return time.monotonic() - started

    def start(self, spec: CandidateSpec) -> Fitter:
        """Start the members of a candidate; its strategy is prepared for the first."""
        where, name = (self.device, self.compute.cpus_per_candidate or os.cpu_count() or 1), spec.strategy
        if name not in self.prepared:
            precision = self.settings.precision
            prepared = prepare_strategy(self.problem, self.pretrained, self.strategies[name], precision, *where)
            self.prepared[name] = prepared
        return start_fitter(self.problem, self.prepared[name], spec, self.problem.keys, self.settings, *where)

    @cached_property
    def device(self) -> torch.device:
        has_gpu = torch.cuda.is_available()
        return torch.device(("cuda" if has_gpu else "cpu") if self.compute.device == "auto" else self.compute.device)
