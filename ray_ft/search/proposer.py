"""Proposers: which candidates to train next, asked for in rounds and told of in the order of the candidates.

A round is asked for when all of the one before has been told. What a proposer asks for depends on its arguments and on
what it was told, never on the order in which candidates end: so the plan is the same on one worker or eight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from ray_ft.config import GradientHyperparameters, Hyperparameters, StageConfig, StrategyConfig, list_declared
from ray_ft.data.randomness import name_stream
from ray_ft.search.plan import CandidateSpec


@dataclass(frozen=True)
class Outcome:
    """How a candidate ended, and the lowest mean over folds of what guided it; None where it has none."""

    state: Literal["completed", "stopped", "failed"]
    lowest: float | None


@runtime_checkable
class Proposer(Protocol):
    """Asked for rounds of candidates, and told how each ended."""

    def ask(self) -> tuple[CandidateSpec, ...]:
        """Return the candidates of the next round; none when the search is over."""
        ...

    def tell(self, spec: CandidateSpec, outcome: Outcome) -> None:
        """Take note of how a candidate ended: all of a round, in its order, before the next is asked for."""
        ...


class RandomProposer:
    """Asks once for all candidates: of each strategy the middle of its ranges, then random draws.

    The candidates of one strategy do not depend on which others run or how many. A way to fit that has nothing to draw
    and nothing random gets one candidate.

    Args:
        strategies: By name.
        n_candidates: Of each strategy.
        seed: Of the draws.
    """

    def __init__(self, strategies: Mapping[str, StrategyConfig], n_candidates: int, seed: int) -> None:
        self.left = tuple(
            CandidateSpec(name, index, draw_stages(strategy, index, name_stream(seed, name, index)))
            for name, strategy in strategies.items()
            for index in range(n_candidates if is_random(strategy) else 1)
        )

    def ask(self) -> tuple[CandidateSpec, ...]:
        asked, self.left = self.left, ()
        return asked

    def tell(self, spec: CandidateSpec, outcome: Outcome) -> None:
        pass  # what was drawn before it began cannot change


def is_random(strategy: StrategyConfig) -> bool:
    return any(stage.varies or stage.hyperparameters is GradientHyperparameters for stage in strategy.stages)


def draw_stages(strategy: StrategyConfig, index: int, entropy: list[int]) -> tuple[Hyperparameters, ...]:
    rng = np.random.default_rng(entropy)
    return tuple(draw_stage(stage, index, rng) for stage in strategy.stages)


def draw_stage(stage: StageConfig, index: int, rng: np.random.Generator) -> Hyperparameters:
    """Take the middle of each range (index 0), or a point drawn from it."""
    values: dict[str, object] = {}
    for name, declared in list_declared(stage.hyperparameters):
        bounds = stage.bounds(name)
        if bounds is None:
            values[name] = getattr(stage, name)
            continue
        low, high = np.log(bounds) if declared.log else bounds
        drawn = low + (rng.random() if index else 0.5) * (high - low)
        values[name] = float(np.exp(drawn)) if declared.log else round(drawn) if declared.form == "" else drawn
    hyper = stage.hyperparameters(**values)  # type: ignore[arg-type]  # as they are declared
    if isinstance(hyper, GradientHyperparameters):
        return hyper.settle(getattr(stage, "warmup_ratio", None))
    return hyper
