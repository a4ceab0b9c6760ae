"""Proposers: which candidates of a strategy to train next, asked in rounds and told how each ended, in their order.

A round is asked for when all of the one before has been told. What a proposer asks for depends on its arguments and on
what it was told, never on the order in which candidates end: so the plan is the same on one worker or eight.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from ray_ft.config import GradientHyperparameters, Hyperparameters, StageConfig, StrategyConfig, list_declared
from ray_ft.data.randomness import name_stream
from ray_ft.search.plan import RECIPE, CandidateSpec
from ray_ft.search.settling import Attempt


@runtime_checkable
class Proposer(Protocol):
    """Asked for rounds of a strategy's candidates, `n_candidates` in all, and told how each ended."""

    n_candidates: int

    @property
    def width(self) -> int:
        """The most candidates of a round."""
        ...

    @property
    def is_settled(self) -> bool | None:
        """Whether the best of what was told has had its chance; None where the search does not look for that."""
        ...

    @property
    def range_tests(self) -> tuple[CandidateSpec, ...]:
        """What to test ranges of learning rates with, before the first round, each that of its last stage."""
        ...

    def tell_range(self, lr: float, work: float, stage: int = -1) -> None:
        """Take note of where most of a stage's training loss was gone, and of how much of the network a step runs."""
        ...

    def ask(self) -> tuple[CandidateSpec, ...]:
        """Return the candidates of the next round; none when the search is over."""
        ...

    def tell(self, attempt: Attempt) -> None:
        """Take note of how a candidate ended: all of a round, in its order, before the next is asked for."""
        ...


@dataclass
class RandomProposer:
    """Asks once for all candidates of a strategy: the middle of its ranges, then random draws.

    They do not depend on how many there are. A way to fit that has nothing to draw and nothing random gets one.
    """

    name: str
    strategy: StrategyConfig
    n_candidates: int
    seed: int
    attempts: list[Attempt] = field(default_factory=list)
    range_tests: tuple[CandidateSpec, ...] = ()
    is_settled: bool | None = None

    @property
    def width(self) -> int:
        return self.n_candidates

    def tell_range(self, lr: float, work: float, stage: int = -1) -> None:
        """Never called, as there is no range test."""

    def ask(self) -> tuple[CandidateSpec, ...]:
        n_wanted = self.n_candidates if is_random(self.strategy) else 1
        return tuple(
            CandidateSpec(
                self.name,
                index,
                draw_stages(self.strategy, index, name_stream(self.seed, self.name, index)),
                "drawn" if index else RECIPE,
            )
            for index in range(len(self.attempts), n_wanted)
        )

    def tell(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)


def is_random(strategy: StrategyConfig) -> bool:
    return any(stage.varies or stage.hyperparameters is GradientHyperparameters for stage in strategy.stages)


def draw_stages(strategy: StrategyConfig, index: int, entropy: list[int]) -> tuple[Hyperparameters, ...]:
    rng = np.random.default_rng(entropy) if index else None
    return tuple(draw_stage(stage, rng) for stage in strategy.stages)


def draw_stage(
    stage: StageConfig, rng: np.random.Generator | None = None, n_epochs: int | None = None
) -> Hyperparameters:
    """Take a point drawn from the ranges, or the middle of each; `n_epochs` where they have no range."""
    values: dict[str, object] = {}
    for name, declared in list_declared(stage.hyperparameters):
        bounds = stage.bounds(name)
        if bounds is None or bounds[0] == bounds[1]:
            values[name] = getattr(stage, name) if bounds is None else bounds[0]
            if name == "epochs" and bounds is None:
                values[name] = n_epochs
            continue
        low, high = np.log(bounds) if declared.log else bounds
        drawn = low + (0.5 if rng is None else rng.random()) * (high - low)
        values[name] = float(np.exp(drawn)) if declared.log else round(drawn) if declared.form == "" else drawn
    return build_hyperparameters(stage, values)


def build_hyperparameters(stage: StageConfig, values: dict[str, object]) -> Hyperparameters:
    hyper = stage.hyperparameters(**values)  # type: ignore[arg-type]  # as they are declared
    if isinstance(hyper, GradientHyperparameters):
        return hyper.settle(getattr(stage, "warmup_ratio", None))
    return hyper
