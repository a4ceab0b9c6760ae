"""What is left to train, strategy by strategy: a range test, rounds of candidates, then the other seeds of the chosen.

The strategies go on side by side, and each waits for its own rounds alone. The plan grows round by round and is written
before a round is trained, so a run that goes on repeats nothing and changes nothing: rounds that are recorded are taken
as they are, and what has ended is read from its files.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_ft.backends.progress import Display
from ray_ft.config import ComputeSection
from ray_ft.errors import RunError, RunFolderError
from ray_ft.files.writing import write_record, write_text
from ray_ft.fitting.fitter import FitSettings
from ray_ft.models import Pretrained
from ray_ft.results.records import (
    Verdict,
    load_attempt,
    load_curves,
    load_means,
    load_plan,
    load_result,
    read_spec,
)
from ray_ft.runs.folder import RunFolder
from ray_ft.runs.journal import Journal, read_log, sum_seconds
from ray_ft.search.plan import Assignment, CandidateSpec, assign_finish, assign_range_test, assign_search
from ray_ft.search.problem import Problem
from ray_ft.search.proposer import Proposer
from ray_ft.search.strategies import Strategy
from ray_ft.statistics.scores import choose

if TYPE_CHECKING:
    from ray_ft.backends.successive_halving import SuccessiveHalving

Batch = Sequence[Assignment]  # what may train side by side; all of it ends before the next


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
        """Show and log an epoch."""
        self.display.show_epoch(name, epoch, mean)
        self.journal.write_epoch(name, epoch, mean, **fields)

    def finish(self, own: Assignment, seconds: float) -> None:
        """Take note that an assignment has ended."""
        self.halving.finish(own.name)
        result = load_result(self.run, own.name)
        stopped = self.halving.stopped_at(own.name) is not None
        state = "stopped" if stopped or result is None else result["state"]
        self.display.show_end(own.name, state)
        note = {"note": result["note"]} if result and result.get("note") else {}
        self.note("end of candidate", candidate=own.name, state=state, spent_s=round(seconds, 3), **note)

    def note(self, event: str, **fields: Any) -> None:
        """Log what must not be lost with this process."""
        self.journal.write(event, **fields)
        self.run.push()

    def has_ended(self, own: Assignment) -> bool:
        return self.halving.stopped_at(own.name) is not None or load_result(self.run, own.name) is not None


@dataclass
class Lane:
    """A strategy on its way: what of its batch waits and what trains."""

    batches: Iterator[Batch]
    waiting: list[Assignment] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    is_over: bool = False


class Rounds:
    """Hands out what is to be trained, and is told when it has ended.

    Args:
        shared: What all candidates are trained with.
        proposers: By strategy.
        n_seeds: Seeds of a candidate while it is searched, by strategy.
        limit_s: Seconds that the candidates of one strategy may take in all; None where only their number counts.
    """

    def __init__(
        self, shared: Shared, proposers: Mapping[str, Proposer], n_seeds: Mapping[str, int], limit_s: float | None
    ) -> None:
        self.shared, self.proposers, self.n_seeds, self.limit_s = shared, proposers, n_seeds, limit_s
        self.recorded: tuple[CandidateSpec, ...] = ()
        with contextlib.suppress(RunFolderError):  # there is none, or it is damaged and asked for anew
            self.recorded = load_plan(shared.run)
        self.plan: dict[str, list[CandidateSpec]] = {name: [] for name in proposers}
        self.verdicts: dict[str, Verdict] = {}
        self.seconds = sum_seconds(shared.run.log)
        self.lost: dict[str, str] = {}  # by the name of what has no result in this call: what the machine did to it
        self.lost_before = {event.get("candidate") for event in read_log(shared.run.log) if event["event"] == "lost"}
        costs = {name: own.n_trained for name, own in shared.strategies.items()}
        self.lanes = {name: Lane(self.go_on(name)) for name in sorted(proposers, key=lambda name: -costs[name])}

    def take(self) -> Assignment | None:
        """What to train next, the costliest strategy's first; None while all that is left waits for what trains."""
        for lane in self.lanes.values():
            while not (lane.waiting or lane.running or lane.is_over):
                batch = next(lane.batches, None)
                lane.is_over = batch is None
                self.enter(batch or ())
                lane.waiting = [own for own in batch or () if not self.shared.has_ended(own)]
        for lane in self.lanes.values():
            if lane.waiting:
                own = lane.waiting.pop(0)
                lane.running.add(own.name)
                return own
        return None

    def list_left(self) -> list[str]:
        """Name the strategies that are not over, the costliest first."""
        return [name for name, lane in self.lanes.items() if not lane.is_over]

    @property
    def width(self) -> int:
        """How many candidates may train at a time, at most."""
        return sum(proposer.width for proposer in self.proposers.values())

    @property
    def is_over(self) -> bool:
        return all(lane.is_over for lane in self.lanes.values())

    def end(self, own: Assignment, seconds: float) -> None:
        """Take note that an assignment has ended."""
        self.seconds[own.name] = self.seconds.get(own.name, 0.0) + seconds
        self.shared.finish(own, seconds)
        self.lanes[own.spec.strategy].running.discard(own.name)

    def give_up(self, own: Assignment, reason: str) -> None:
        """Take note that an assignment has no result in this call, so its strategy goes no further in it."""
        self.shared.note("lost", candidate=own.name, reason=reason)
        self.lost[own.name] = reason
        self.shared.halving.finish(own.name)
        lane = self.lanes[own.spec.strategy]
        lane.running.discard(own.name)
        lane.batches = iter(())

    def raise_lost(self) -> None:
        """Raise what is no candidate's own failure, so that the same command goes on from here."""
        if self.lost:
            listed = "\n".join(f"  {name}: {reason}" for name, reason in self.lost.items())
            raise RunError(
                f"a candidate's process may die {self.shared.compute.max_failures} times "
                f"(compute.max_failures), but it died once more\n{listed}\nwhat was trained is kept: repeat the "
                "command to try these again; if they die as often once more, they count as failed"
            )

    def conclude(self) -> tuple[tuple[CandidateSpec, ...], dict[str, Verdict]]:
        """Write how all candidates ended; return them and that. What a larger budget has planned is planned again."""
        plan = self.list_plan()
        self.shared.run.summary.unlink(missing_ok=True)  # that of a smaller budget; from here on another is made
        write_record(self.shared.run.plan, {"candidates": [spec.as_dict() for spec in plan]})
        verdicts = {spec.name: self.verdicts[spec.name] for spec in plan}
        write_record(self.shared.run.verdicts, {name: verdict.as_dict() for name, verdict in verdicts.items()})
        return plan, verdicts

    def list_plan(self) -> tuple[CandidateSpec, ...]:
        return tuple(spec for specs in self.plan.values() for spec in specs)

    def go_on(self, name: str) -> Iterator[Batch]:
        """Yield the batches of a strategy, one after the other."""
        shared, proposer = self.shared, self.proposers[name]
        if tests := [assign_range_test(spec) for spec in proposer.range_tests]:
            yield tests
            for own in tests:
                result = load_result(shared.run, own.name) or {}
                if result.get("state") == "completed":
                    proposer.tell_range(result["lr"], result["work"], len(own.spec.stages) - 1)
        n_begun = self.count_begun(name)
        proposer.n_candidates = max(proposer.n_candidates, n_begun)
        while (len(self.plan[name]) < n_begun or not self.is_out_of_time(name)) and (asked := proposer.ask()):
            specs = self.record(name, asked)
            yield [assign_search(spec, shared.problem, self.n_seeds[name]) for spec in specs]
            for spec in specs:
                self.verdicts[spec.name] = self.read_verdict(spec)
                proposer.tell(load_attempt(shared.run, spec, self.verdicts[spec.name], shared.problem.splits))
            shared.display.show_standing(name, proposer.is_settled)
        yield from self.complete(name)

    def count_begun(self, name: str) -> int:
        """How many an earlier call has begun, perhaps with a larger budget: they count whatever the budget is now."""
        run = self.shared.run
        begun = (
            load_result(run, own.name) or run.candidate(own.name).history.exists() for own in self.list_recorded(name)
        )
        return max((i for i, is_begun in enumerate(begun, start=1) if is_begun), default=0)

    def is_out_of_time(self, name: str) -> bool:
        spent = sum(self.seconds.get(spec.name, 0.0) for spec in self.plan[name])
        return self.limit_s is not None and bool(self.plan[name]) and spent >= self.limit_s

    def list_recorded(self, name: str) -> list[CandidateSpec]:
        return [spec for spec in self.recorded if spec.strategy == name]

    def record(self, name: str, asked: Sequence[CandidateSpec]) -> Sequence[CandidateSpec]:
        """Write a round of a strategy into the plan, or take it from there."""
        known = self.list_recorded(name)[len(self.plan[name]) :]
        specs = known[: len(asked)] or list(asked)
        self.plan[name] += specs
        if not known:
            ahead = [spec for spec in self.recorded if spec not in self.list_plan()]
            content = [spec.as_dict() for spec in (*self.list_plan(), *ahead)]
            write_record(self.shared.run.plan, {"candidates": content})
            self.shared.run.push()
        return specs

    def complete(self, name: str) -> Iterator[Batch]:
        """Train the other seeds where each fold has chosen; a candidate that fails there has failed."""
        shared, n_before = self.shared, self.n_seeds[name]
        run, problem, specs = shared.run, shared.problem, {spec.index: spec for spec in self.plan[name]}
        while n_before < problem.n_seeds:
            curves = load_curves(run, self.plan[name], self.verdicts, name, problem.splits)
            if not curves:
                return
            choice = choose(curves)
            batch = [
                assign_finish(specs[int(choice.candidate[at])], problem, at, int(choice.epoch[at]), n_before)
                for at in np.ndindex(choice.epoch.shape)
            ]
            yield batch
            results = {own: load_result(run, own.name) or {} for own in batch}
            failed = {own: result["reason"] for own, result in results.items() if result.get("state") == "failed"}
            for own, reason in failed.items():
                candidate = own.spec.name
                text = f"{own.name}: {reason}; see {run.candidate(own.name).error}\n"
                write_text(run.candidate(candidate).error, text)
                self.verdicts[candidate] = Verdict("failed", 0, reason, self.seconds.get(candidate, 0.0))
            if not failed:
                return

    def enter(self, batch: Batch) -> None:
        """Tell of what comes, and of what an earlier call has seen of it."""
        shared = self.shared
        shared.halving.add(own.spec for own in batch if own.is_search)
        shared.display.add(batch)
        for own in batch:
            means, result = load_means(shared.run, own, shared.problem.splits), load_result(shared.run, own.name)
            shared.journal.resume(own.name, len(means))
            for epoch, mean in enumerate(means, start=1):
                shared.halving.record(own.name, epoch, mean, final=result is not None and epoch == len(means))
                shared.display.show_epoch(own.name, epoch, mean)
            if result is not None:
                shared.halving.finish(own.name)
                shared.display.show_end(own.name, result["state"])

    def read_verdict(self, spec: CandidateSpec) -> Verdict:
        """Read how a candidate ended; RunError where it has left no result."""
        stopped_at, seconds = self.shared.halving.stopped_at(spec.name), self.seconds.get(spec.name, 0.0)
        if stopped_at is not None:
            return Verdict("stopped", stopped_at, "", seconds)
        result = load_result(self.shared.run, spec.name)
        if result is None:
            raise RunError(f"candidate {spec.name} ended without a result; repeat the command to go on with it")
        if read_spec(result["spec"]) != spec:
            raise RunFolderError(
                f"a result must be that of the planned candidate, got one with other hyperparameters in "
                f"{self.shared.run.candidate(spec.name).root}; restore the plan, or remove that folder and repeat "
                "the command"
            )
        return Verdict(result["state"], result["n_epochs"], result.get("reason", ""), seconds)
