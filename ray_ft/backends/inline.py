"""Candidates one after the other in this process, without Ray: for a debugger, and to compare with."""

import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ray_ft.backends.rounds import Shared
from ray_ft.errors import StorageError
from ray_ft.fitting.candidate import run_candidate, write_failure
from ray_ft.fitting.fitter import Fitter
from ray_ft.fitting.preparation import PreparedStrategy, prepare_strategy
from ray_ft.fitting.starting import start_fitter
from ray_ft.search.plan import CandidateSpec


class StopCandidate(Exception):  # noqa: N818  # no error: it ends a candidate
    """Ends a candidate in this process, as Ray Tune ends a trial."""


@dataclass(frozen=True)
class InlineRounds:
    """Trains rounds of candidates in this process."""

    shared: Shared
    prepared: dict[str, PreparedStrategy] = field(default_factory=dict)

    def train(self, left: Sequence[CandidateSpec]) -> dict[str, float]:
        """Train candidates; return the seconds that each took."""
        torch.set_num_threads(1)  # one a member, so that sums are taken in the same order whatever there is
        return {spec.name: self.train_one(spec) for spec in left}

    def train_one(self, spec: CandidateSpec) -> float:
        started, own = time.monotonic(), self.shared

        def report(epoch: int, mean: float, final: bool) -> None:
            own.halving.record(spec.name, epoch, mean, final)
            own.show_epoch(spec.name, epoch, mean)
            if own.halving.stopped_at(spec.name):
                raise StopCandidate

        try:
            run_candidate(own.problem, own.run, spec, self.start(spec), report, own.settings.checkpoint_every)
        except StopCandidate:
            pass
        except StorageError:  # the next candidate's could not be written either
            raise
        except Exception:  # the border of a candidate: the others go on, as on Ray
            write_failure(own.run, spec, own.problem.splits.hash, traceback.format_exc())
        own.finish(spec)
        return time.monotonic() - started

    def start(self, spec: CandidateSpec) -> Fitter:
        """Start the members of a candidate; its strategy is prepared for the first."""
        own, asked, name = self.shared, self.shared.compute.device, spec.strategy
        if asked == "auto":
            asked = "cuda" if torch.cuda.is_available() else "cpu"
        where = torch.device(asked), own.compute.cpus_per_candidate or os.cpu_count() or 1
        if name not in self.prepared:
            given = own.problem, own.pretrained, own.strategies[name], own.settings.precision
            self.prepared[name] = prepare_strategy(*given, *where)
        return start_fitter(own.problem, self.prepared[name], spec, own.problem.keys, own.settings, *where)
