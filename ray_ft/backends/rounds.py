"""The search: rounds of candidates that a proposer asks for, trained by a backend, each round told before the next.

The plan grows round by round and is written before a round is trained, so a run that goes on repeats nothing and
changes nothing: rounds that are recorded are taken as they are.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_ft.backends.progress import Display
from ray_ft.config import ComputeSection
from ray_ft.errors import RunError, RunFolderError
from ray_ft.files.writing import write_record
from ray_ft.fitting.fitter import FitSettings
from ray_ft.models import Pretrained
from ray_ft.results.records import Verdict, load_means, load_plan, load_result
from ray_ft.runs.folder import RunFolder
from ray_ft.runs.journal import Journal
from ray_ft.search.plan import CandidateSpec
from ray_ft.search.problem import Problem
from ray_ft.search.proposer import Outcome, Proposer
from ray_ft.search.strategies import Strategy

if TYPE_CHECKING:
    from ray_ft.backends.successive_halving import SuccessiveHalving

TrainRound = Callable[[Sequence[CandidateSpec]], dict[str, float]]  # trains these; seconds that each took


@dataclass(frozen=True)
class Shared:
    """What all candidates are trained with; the scheduler, the display and the log are told of epochs and ends."""

    problem: Problem
    pretrained: Pretrained
    run: RunFolder
    strategies: Mapping[str, Strategy]
    settings: FitSettings
    compute: ComputeSection
    halving: "SuccessiveHalving"
    display: Display
    journal: Journal

    def show_epoch(self, name: str, epoch: int, mean: float, **fields: Any) -> None:
        """Show and log an epoch of a candidate."""
        self.display.show_epoch(name, epoch, mean)
        self.journal.write_epoch(name, epoch, mean, **fields)

    def finish(self, spec: CandidateSpec) -> None:
        """Take note that a candidate has ended."""
        self.halving.finish(spec.name)
        result = load_result(self.run, spec)
        stopped = self.halving.stopped_at(spec.name) is not None
        state = "stopped" if stopped or result is None else result["state"]
        self.display.show_end(spec.name, state)
        self.note("end of candidate", candidate=spec.name, state=state)

    def note(self, event: str, **fields: Any) -> None:
        """Log what must not be lost with this process."""
        self.journal.write(event, **fields)
        self.run.push()


def run_rounds(
    shared: Shared, proposer: Proposer, train: TrainRound
) -> tuple[tuple[CandidateSpec, ...], dict[str, Verdict]]:
    """Train candidates until the proposer asks for none; return all of them, and how each ended.

    Raises:
        KeyboardInterrupt: It was interrupted; the same call goes on.
        RunError: The process of a candidate kept dying, or files cannot be written; the same call goes on.
    """
    run, halving = shared.run, shared.halving
    recorded: tuple[CandidateSpec, ...] = ()
    with contextlib.suppress(RunFolderError):  # there is none, or it is damaged and asked for anew
        recorded = load_plan(run)
    plan: tuple[CandidateSpec, ...] = ()
    verdicts: dict[str, Verdict] = {}
    while asked := proposer.ask():
        specs = recorded[len(plan) : len(plan) + len(asked)] or asked
        plan += specs
        if len(plan) > len(recorded):
            write_record(run.plan, {"candidates": [spec.as_dict() for spec in plan]})
            run.push()
        replay(shared, specs)
        left = [spec for spec in specs if halving.stopped_at(spec.name) is None and load_result(run, spec) is None]
        seconds = train(left) if left else {}
        for spec in specs:
            verdicts[spec.name] = read_verdict(run, spec, halving.stopped_at(spec.name), seconds.get(spec.name, 0.0))
            proposer.tell(spec, find_outcome(shared.problem, run, spec, verdicts[spec.name]))
    write_record(run.verdicts, {name: verdict.as_dict() for name, verdict in verdicts.items()})
    return plan, verdicts


def replay(shared: Shared, specs: Sequence[CandidateSpec]) -> None:
    """Tell of new candidates, and of what an earlier call has seen of them."""
    shared.halving.add(specs)
    shared.display.add(specs)
    for spec in specs:
        means, result = load_means(shared.run, spec, shared.problem.splits), load_result(shared.run, spec)
        shared.journal.resume(spec.name, len(means))
        for epoch, mean in enumerate(means, start=1):
            shared.halving.record(spec.name, epoch, mean, final=result is not None and epoch == len(means))
            shared.display.show_epoch(spec.name, epoch, mean)
        if result is not None:
            shared.halving.finish(spec.name)
            shared.display.show_end(spec.name, result["state"])


def read_verdict(run: RunFolder, spec: CandidateSpec, stopped_at: int | None, seconds: float) -> Verdict:
    """Read how a candidate ended; RunError where it has left no result."""
    if stopped_at is not None:
        return Verdict("stopped", stopped_at, "", seconds)
    result = load_result(run, spec)
    if result is None:
        raise RunError(f"candidate {spec.name} ended without a result; repeat the command to go on with it")
    return Verdict(result["state"], result["n_epochs"], result.get("reason", ""), seconds)


def find_outcome(problem: Problem, run: RunFolder, spec: CandidateSpec, verdict: Verdict) -> Outcome:
    """What a proposer is told; what a candidate did past the epoch at which it was stopped does not count."""
    means = load_means(run, spec, problem.splits)
    counted = means[: verdict.epoch] if verdict.state == "stopped" else means
    return Outcome(verdict.state, min(counted) if counted and verdict.state != "failed" else None)
