"""Candidates one after the other in this process, without Ray: for a debugger, and to compare with."""

import os
import time
import traceback
from dataclasses import dataclass, field

import torch

from ray_ft.backends.rounds import Rounds, Shared
from ray_ft.errors import StorageError
from ray_ft.fitting.candidate import Report, run_members, write_failure, write_range
from ray_ft.fitting.determinism import deterministic
from ray_ft.fitting.preparation import PreparedStrategy, prepare_strategy
from ray_ft.fitting.range_test import run_range_test
from ray_ft.fitting.starting import start_fitter
from ray_ft.search.plan import Assignment


class StopCandidate(Exception):  # noqa: N818  # no error: it ends a candidate
    """Ends a candidate in this process, as Ray Tune ends a trial."""


def train_inline(rounds: Rounds, first: Assignment) -> None:
    """Train until nothing is left."""
    torch.set_num_threads(1)  # one a member, so that sums are taken in the same order whatever there is
    trainer = InlineTrainer(rounds.shared)
    own: Assignment | None = first
    with deterministic(rounds.shared.settings.deterministic):
        while own is not None:
            started = time.monotonic()
            trainer.train(own)
            rounds.end(own, time.monotonic() - started)
            own = rounds.take()


@dataclass(frozen=True)
class InlineTrainer:
    """Trains assignments in this process."""

    shared: Shared
    prepared: dict[str, PreparedStrategy] = field(default_factory=dict)

    def train(self, own: Assignment) -> None:
        shared = self.shared

        def report(epoch: int, mean: float, final: bool) -> None:
            shared.halving.record(own.name, epoch, mean, final)
            shared.show_epoch(own.name, epoch, mean)
            if shared.halving.stopped_at(own.name):
                raise StopCandidate

        try:
            self.run(own, report)
        except StopCandidate:
            pass
        except StorageError:  # the next candidate's could not be written either
            raise
        except Exception:  # the border of a candidate: the others go on, as on Ray
            write_failure(shared.run, own, shared.problem.splits.hash, traceback.format_exc())

    def run(self, own: Assignment, report: Report) -> None:
        """Train an assignment; its strategy is prepared for the first."""
        shared, asked, name = self.shared, self.shared.compute.device, own.spec.strategy
        problem, settings = shared.problem, shared.settings
        if asked == "auto":
            asked = "cuda" if torch.cuda.is_available() else "cpu"
        device, n_threads = torch.device(asked), shared.compute.cpus_per_candidate or os.cpu_count() or 1
        if name not in self.prepared:
            given = problem, shared.pretrained, shared.strategies[name], settings.precision
            self.prepared[name] = prepare_strategy(*given, device, n_threads)
        prepared = self.prepared[name]
        if own.is_range_test:
            found = run_range_test(problem, prepared, own.spec, settings, device)
            write_range(shared.run, own, problem.splits.hash, found)
            return
        fitter = start_fitter(problem, prepared, own.spec, own.keys, settings, device, n_threads)
        run_members(problem, shared.run, own, fitter, report, settings.checkpoint_every)
