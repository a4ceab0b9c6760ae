"""Successive halving whose verdicts do not depend on timing: Ray's own scheduler, fed in candidate order.

ASHA judges by arrival, so the same seeds on another machine would give other survivors. Here a candidate that ran ahead
waits for its verdict at a rung until those before it have reached the rung or ended; what it did past a rung at
which it is then stopped does not count.

References:
    Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020. We depart from it in the order.
"""

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from ray_ft.search.plan import CandidateSpec

# Its name, the first rung, the longest schedule, and the epoch before which this candidate is not stopped.
Group = tuple[str, int, int, int]


class SuccessiveHalving:
    """Decides which candidates are stopped, one stock ASHAScheduler a group; what is in no group runs to its end.

    `group_of` gives the group of a candidate. The best `1 / reduction_factor` at a rung go on: by their lowest loss so
    far, as the scores are, or by that of the rung's epoch.
    """

    def __init__(
        self, group_of: Callable[[CandidateSpec], Group | None], reduction_factor: float, by_lowest: bool = False
    ) -> None:
        self.group_of, self.reduction_factor, self.by_lowest = group_of, reduction_factor, by_lowest
        self._halvings: dict[str, GroupHalving] = {}
        self._halving_of: dict[str, GroupHalving] = {}

    def add(self, specs: Iterable[CandidateSpec]) -> None:
        """Take candidates in, behind those that are there."""
        for spec in specs:
            if group := self.group_of(spec):
                name, grace, longest, protected = group
                halving = self._halvings.setdefault(name, GroupHalving(grace, longest, self.reduction_factor))
                self._halving_of[spec.name] = halving
                halving.add(spec.name, protected)

    def record(self, name: str, epoch: int, mean: float, final: bool) -> None:
        """Take a candidate's mean loss after an epoch; `final` where it is its last."""
        if halving := self._halving_of.get(name):
            curve = halving.curves[name]
            curve.setdefault(epoch, min(mean, curve.get(epoch - 1, mean)) if self.by_lowest else mean)
            if final:
                halving.last[name] = halving.complete[name] = epoch
            halving.advance(name)

    def finish(self, name: str) -> None:
        """Take note that nothing more comes from a candidate."""
        if halving := self._halving_of.get(name):
            halving.last.setdefault(name, len(halving.curves[name]))
            halving.advance(name)

    def stopped_at(self, name: str) -> int | None:
        """The epoch at which a candidate was stopped."""
        halving = self._halving_of.get(name)
        return None if halving is None else halving.stopped.get(name)


class GroupHalving:
    """Candidates that are compared with one another."""

    def __init__(self, grace: int, longest: int, reduction_factor: float) -> None:
        longest = max(grace, longest) + 1  # at `max_t` the scheduler would stop what has only finished
        self.scheduler: Any = ASHAScheduler("epoch", "loss", "min", longest, grace, reduction_factor)
        self.names: list[str] = []
        self.protected: dict[str, int] = {}  # the epoch before which a candidate is not stopped
        self.position: dict[str, int] = {}
        self.n_past = dict.fromkeys(list_rungs(grace, longest, reduction_factor), 0)  # of the first, all are past it
        self.curves: dict[str, dict[int, float]] = {}
        self.judged: dict[str, int] = {}  # the last epoch that the scheduler has seen
        self.last: dict[str, int] = {}
        self.complete: dict[str, int] = {}  # the last epoch of those that came to their end, and did not fail there
        self.stopped: dict[str, int] = {}
        self.trials: dict[str, Any] = {}

    def add(self, name: str, protected: int = 0) -> None:
        self.protected[name] = protected
        self.position[name] = len(self.names)
        self.names.append(name)
        self.curves[name], self.judged[name] = {}, 0
        self.trials[name] = SimpleNamespace(trial_id=name)  # all that the scheduler reads
        self.scheduler.on_trial_add(None, self.trials[name])  # it reads no controller

    def advance(self, name: str) -> None:
        """Feed the scheduler all that can be judged now that something has come of a candidate."""
        self.judge(name)
        for rung in self.n_past:  # upwards, as a verdict lets others pass at this rung and higher ones
            while (n := self.n_past[rung]) < len(self.names) and self.is_past(self.names[n], rung):
                self.n_past[rung] += 1
                for waiting in self.names[n + 1 : n + 2]:
                    self.judge(waiting)

    def judge(self, name: str) -> None:
        """Feed a candidate's epochs until there are no more, it is stopped, or it has to wait at a rung."""
        while name not in self.stopped and (epoch := self.judged[name] + 1) in self.curves[name]:
            if self.n_past.get(epoch, len(self.names)) < self.position[name]:
                break
            result = {"epoch": epoch, "loss": self.curves[name][epoch]}
            action = self.scheduler.on_trial_result(None, self.trials[name], result)
            self.judged[name] = epoch
            ended = self.complete.get(name) == epoch  # nothing is left to stop
            due = epoch >= self.protected[name] and not ended
            if action == TrialScheduler.STOP and due:
                self.stopped[name] = epoch

    def is_past(self, name: str, epoch: int) -> bool:
        ended = name in self.last and self.judged[name] >= self.last[name]
        return self.judged[name] >= epoch or name in self.stopped or ended


def list_rungs(grace: int, longest: int, reduction_factor: float) -> list[int]:
    """First epochs at or after `grace * reduction_factor**k`, where the scheduler records."""
    rungs, rung = [], float(grace)
    while rung <= longest:
        rungs.append(-int(-rung // 1))
        rung *= reduction_factor
    return rungs
