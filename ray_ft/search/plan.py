"""The plan of a run as data: candidates with their hyperparameters, and the members that each trains."""

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ray_ft.config import SearchSection, StageConfig, StrategyConfig

__all__ = [
    "CandidateSpec",
    "Hyperparameters",
    "MemberKey",
    "build_plan",
    "list_members",
    "name_candidate",
    "resolve_grace",
]


@dataclass(frozen=True)
class Hyperparameters:
    """One draw from a stage's ranges."""

    lr: float
    epochs: int
    batch_size: int
    weight_decay: float
    head_dropout: float | None
    warmup_epochs: int
    noise_std: float
    patience: int


@dataclass(frozen=True)
class CandidateSpec:
    """A strategy with one draw of its hyperparameters."""

    strategy: str
    index: int
    stages: tuple[Hyperparameters, ...]

    @property
    def name(self) -> str:
        return name_candidate(self.strategy, self.index)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def name_candidate(strategy: str, index: int) -> str:
    return f"{strategy}-{index:03d}"


@dataclass(frozen=True, order=True)
class MemberKey:
    """Names a member within its candidate."""

    repeat: int
    fold: int
    seed: int

    def __str__(self) -> str:
        return f"repeat {self.repeat}, fold {self.fold}, seed {self.seed}"


def build_plan(strategies: Mapping[str, StrategyConfig], n_candidates: int, seed: int) -> tuple[CandidateSpec, ...]:
    """Draw the candidates; those of one strategy do not depend on which others run or how many.

    Args:
        strategies: By name.
        n_candidates: Of each strategy; the first takes the middle of each range.
        seed: Of the draws.
    """
    return tuple(
        CandidateSpec(
            name,
            index,
            tuple(draw_stage(stage, index, [seed, zlib.crc32(name.encode()), index]) for stage in strategy.stages),
        )
        for name, strategy in strategies.items()
        for index in range(n_candidates)
    )


def list_members(n_repeats: int, n_folds: int, n_seeds: int) -> tuple[MemberKey, ...]:
    return tuple(
        MemberKey(repeat, fold, seed)
        for repeat in range(n_repeats)
        for fold in range(n_folds)
        for seed in range(n_seeds)
    )


def draw_stage(stage: StageConfig, index: int, entropy: list[int]) -> Hyperparameters:
    """Take the middle of each range (index 0) or a point drawn from it, uniform but for lr, which is log-uniform."""
    rng = np.random.default_rng(entropy)

    def draw(bounds: tuple[int | float, int | float]) -> float:
        low, high = bounds
        share = rng.random() if index else 0.5
        return low + share * (high - low)

    lr = float(np.exp(draw((np.log(stage.lr[0]), np.log(stage.lr[1])))))
    epochs, batch_size = round(draw(stage.epochs)), round(draw(stage.batch_size))
    weight_decay, noise_std = draw(stage.weight_decay), draw(stage.noise_std)
    head_dropout = None if stage.head_dropout is None else draw(stage.head_dropout)
    warmup, patience = draw(stage.warmup_epochs), round(draw(stage.patience))
    if stage.warmup_ratio is not None:
        warmup = stage.warmup_ratio * epochs
    warmup_epochs = min(round(warmup), epochs // 2)  # a run cut short still reaches its learning rate
    return Hyperparameters(lr, epochs, batch_size, weight_decay, head_dropout, warmup_epochs, noise_std, patience)


def resolve_grace(search: SearchSection, strategy: StrategyConfig) -> int:
    """The epoch at which candidates of a strategy are first compared."""
    longest: int = sum(stage.epochs[1] for stage in strategy.stages)
    return search.grace_epochs or max(1, -(-longest // 4))
