"""The plan of a run as data: candidates with their hyperparameters, and what a process trains at a time."""

from dataclasses import asdict, dataclass
from typing import Any

from ray_ft.config import Hyperparameters
from ray_ft.search.problem import MemberKey, Place, Problem

RECIPE = "recipe"  # the origin of the candidate in the middle of the ranges that the config gives


@dataclass(frozen=True)
class CandidateSpec:
    """A strategy with one choice of its hyperparameters, stage by stage."""

    strategy: str
    index: int
    stages: tuple[Hyperparameters, ...]
    origin: str = ""  # why it was proposed

    @property
    def name(self) -> str:
        return name_candidate(self.strategy, self.index)

    @property
    def n_epochs(self) -> int:
        return sum(stage.n_epochs for stage in self.stages)

    @property
    def n_before(self) -> int:
        """Epochs of the stages before the last one."""
        return sum(stage.n_epochs for stage in self.stages[:-1])

    @property
    def patience(self) -> int:
        """Epochs without a better mean after which it ends, in its last stage."""
        return self.stages[-1].patience

    @property
    def lr(self) -> float | None:
        """Peak learning rate of the last stage; None where it has none."""
        return getattr(self.stages[-1], "lr", None)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def name_candidate(strategy: str, index: int) -> str:
    return f"{strategy}-{index:03d}"


@dataclass(frozen=True)
class Assignment:
    """What one process trains at a time: members of a candidate, or the range test of its strategy.

    The members of a candidate that is searched train until its schedule, its patience or ASHA ends them; those that
    follow where it was chosen (`until`) train up to that epoch of the same schedule, and keep what they are then.
    """

    spec: CandidateSpec
    name: str  # of its folder
    keys: tuple[MemberKey, ...] = ()  # none in a range test
    until: int | None = None  # the epoch at which they end, where it is known

    @property
    def is_range_test(self) -> bool:
        return not self.keys

    @property
    def is_search(self) -> bool:
        """Whether a candidate is searched, so that ASHA may stop it."""
        return bool(self.keys) and self.until is None

    @property
    def n_epochs(self) -> int:
        """The most epochs that it takes."""
        return 1 if self.is_range_test else self.spec.n_epochs if self.until is None else self.until

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({key.seed for key in self.keys}))


def assign_range_test(spec: CandidateSpec) -> Assignment:
    """That of the last stage of `spec`, which may lack the stages after it."""
    number = f"-{len(spec.stages)}" if len(spec.stages) > 1 else ""
    return Assignment(spec, f"{spec.strategy}-range{number}")


def assign_search(spec: CandidateSpec, problem: Problem, n_seeds: int) -> Assignment:
    """All folds of a candidate, by its first seeds."""
    return Assignment(spec, spec.name, tuple(key for key in problem.keys if key.seed < n_seeds))


def assign_finish(spec: CandidateSpec, problem: Problem, place: Place, epoch: int, n_before: int) -> Assignment:
    """The seeds of a candidate that have not trained yet, for a fold that has chosen it at an epoch."""
    keys = tuple(key for key in problem.keys if key.place == place and key.seed >= n_before)
    return Assignment(spec, name_finish(spec.name, place, epoch), keys, epoch)


def name_finish(candidate: str, place: Place, epoch: int) -> str:
    return f"{candidate}-r{place[0]}-f{place[1]}-e{epoch}"
