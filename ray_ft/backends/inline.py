"""Candidates one after the other in this process, without Ray: for a debugger, and to compare with."""

import gc
import time
import traceback
from dataclasses import dataclass, field, replace

import torch

from ray_ft.backends.rounds import Rounds, Shared
from ray_ft.errors import StorageError, first_line
from ray_ft.files.cpus import count_cpus
from ray_ft.files.memory import is_out_of_memory
from ray_ft.fitting.candidate import Report, run_members, write_failure, write_range
from ray_ft.fitting.determinism import deterministic
from ray_ft.fitting.fitter import FitSettings
from ray_ft.fitting.preparation import PreparedStrategy, prepare_strategy
from ray_ft.fitting.range_test import run_range_test
from ray_ft.fitting.starting import start_fitter
from ray_ft.search.plan import Assignment


class StopCandidate(Exception):  # noqa: N818  # no error: it ends a candidate
    """Ends a candidate in this process, as Ray Tune ends a trial."""


def train_inline(rounds: Rounds, first: Assignment) -> None:
    """Train until nothing is left.

    Raises:
        RunError: Memory did not suffice for an assignment; the others have ended.
        StorageError: Files of the run cannot be written.
    """
    torch.set_num_threads(1)  # one a member, so that sums are taken in the same order whatever there is
    trainer = InlineTrainer(rounds.shared)
    own: Assignment | None = first
    with deterministic(rounds.shared.settings.deterministic):
        while own is not None:
            started = time.monotonic()
            reason = trainer.train(own)
            if reason and own.name not in rounds.lost_before:
                rounds.give_up(own, reason)
            else:
                if reason:
                    write_failure(rounds.shared.run, own, rounds.shared.problem.splits.hash, reason)
                rounds.end(own, time.monotonic() - started)
            own = rounds.take()
    rounds.raise_lost()


@dataclass(frozen=True)
class InlineTrainer:
    """Trains assignments in this process."""

    shared: Shared
    prepared: dict[str, PreparedStrategy] = field(default_factory=dict)

    def train(self, own: Assignment) -> str:
        """Train an assignment; where memory does not suffice, anew from its last checkpoint, one member at a time.

        Returns:
            What was said of memory, where it did not suffice for that either; else nothing.
        """
        shared, compute = self.shared, self.shared.compute
        n_threads = compute.cpus_per_candidate or count_cpus()
        reason = self.attempt(own, shared.settings, n_threads)
        for _ in range(compute.max_failures):
            if not reason:
                break
            shared.note("retry", candidate=own.name, reason=reason, memory=True)
            gc.collect()
            torch.cuda.empty_cache()
            reason = self.attempt(own, replace(shared.settings, packing="looped"), 1)
        return reason

    def attempt(self, own: Assignment, settings: FitSettings, n_threads: int) -> str:
        """Train an assignment; return what was said of memory, where it did not suffice."""
        shared = self.shared

        def report(epoch: int, mean: float, final: bool) -> None:
            shared.halving.record(own.name, epoch, mean, final)
            shared.show_epoch(own.name, epoch, mean)
            if shared.halving.stopped_at(own.name):
                raise StopCandidate

        try:
            self.run(own, report, settings, n_threads)
        except StopCandidate:
            pass
        except StorageError:  # the next candidate's could not be written either
            raise
        except Exception as error:  # the border of a candidate: the others go on, as on Ray
            if is_out_of_memory(error):
                return f"{type(error).__name__}: {first_line(error)}"
            write_failure(shared.run, own, shared.problem.splits.hash, traceback.format_exc())
        return ""

    def run(self, own: Assignment, report: Report, settings: FitSettings, n_threads: int) -> None:
        """Train an assignment; its strategy is prepared for the first."""
        shared, asked, name = self.shared, self.shared.compute.device, own.spec.strategy
        problem = shared.problem
        if asked == "auto":
            asked = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(asked)
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
