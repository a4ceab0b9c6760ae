"""Strategies meet a network: which of its parameters learn, by name patterns."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from jaxtyping import Float
from torch import nn

from ray_ft.config import (
    Config,
    RidgeHyperparameters,
    StageConfig,
    StrategyConfig,
    fill_strategies,
    list_declared,
)
from ray_ft.errors import StrategyError, first_few, suggest
from ray_ft.models import propose_strategies


@dataclass(frozen=True)
class Stage:
    """A stage of a strategy on a network."""

    fit: str  # how it is fitted
    trained: tuple[str, ...]  # names of the parameters that learn, or that a closed form takes the place of
    dropouts: tuple[str, ...] = ()  # names of the dropout modules whose share a candidate sets
    longest: int = 1  # the most epochs that a candidate may take
    noisy: bool = False  # whether a candidate may train on noisy copies
    batch_size: int = 1  # the most samples of a member's step
    smoothing: float = 0.0  # the largest share of a class's target that all classes may get
    closed: RidgeHyperparameters | None = None  # of a closed form, which has nothing to draw
    lr_is_open: bool = False  # whether there is a learning rate, and the config fixes it to no value


@dataclass(frozen=True)
class Strategy:
    """A strategy on a network."""

    name: str
    stages: tuple[Stage, ...]  # in their order
    parts: Mapping[str, tuple[int, int]]  # trained and all parameters of each part of the network, in its order

    @property
    def n_trained(self) -> int:
        return sum(learning for learning, _ in self.parts.values())

    @property
    def n_params(self) -> int:
        return sum(total for _, total in self.parts.values())

    @property
    def searched_before(self) -> tuple[int, ...]:
        """Places of the stages before the last one whose learning rate the config leaves open."""
        return tuple(i for i, stage in enumerate(self.stages[:-1]) if stage.lr_is_open)

    def describe_stages(self) -> str:
        """Say what each stage trains, by what, where there are several."""
        ways = (f"stage {i} {own.fit} on {first_few(own.trained)}" for i, own in enumerate(self.stages, start=1))
        return f"; {'; '.join(ways)}" if len(self.stages) > 1 else ""

    @property
    def longest(self) -> int:
        return sum(stage.longest for stage in self.stages)


def propose(config: Config, network: nn.Module, inputs: Float[np.ndarray, "sample *input"], splits: bool) -> Config:
    """Return the config with what the network itself says may learn, where it names no strategies.

    Args:
        config: It stays as it is where it names some.
        network: It takes the inputs.
        inputs: Samples, shape (sample, *input).
        splits: Whether the network may be split, without which there is nothing to solve in closed form.

    Raises:
        ConfigError: What the config says does not go with them.
    """
    if config.strategies:
        return config
    proposed = propose_strategies(network, inputs)
    return fill_strategies(config, {name: own for name, own in proposed.items() if splits or "fit" not in own})


def match_strategies(strategies: Mapping[str, StrategyConfig], network: nn.Module) -> dict[str, Strategy]:
    """Match all strategies of a run with its network.

    Raises:
        StrategyError: One does not fit.
    """
    return {name: match_strategy(name, strategy, network) for name, strategy in strategies.items()}


def match_strategy(name: str, strategy: StrategyConfig, network: nn.Module) -> Strategy:
    """Match a strategy's patterns with a network.

    Raises:
        StrategyError: A pattern matches nothing, nothing is left to learn, or a dropout is to be set and there is none.
    """
    places = name_stages(name, len(strategy.stages))
    stages = tuple(match_stage(place, stage, network) for place, stage in zip(places, strategy.stages, strict=True))
    learning = {own for stage in stages if not stage.closed for own in stage.trained}
    return Strategy(name, stages, count_by_part(network, learning))


def name_stages(strategy: str, n_stages: int) -> list[str]:
    """Name the stages of a strategy for messages; one that is alone has the strategy's name."""
    return [strategy] if n_stages == 1 else [f"{strategy}, stage {i}" for i in range(1, 1 + n_stages)]


def match_stage(place: str, stage: StageConfig, network: nn.Module) -> Stage:
    fixed = {name: getattr(stage, name, None) for name, _ in list_declared(RidgeHyperparameters)}
    return Stage(
        stage.fit,
        select_trained(place, stage, [own for own, _ in network.named_parameters()]),
        find_head_dropouts(network) if stage.bounds("head_dropout") is not None else (),
        stage.longest,
        (stage.bounds("noise_std") or (0.0, 0.0))[1] > 0,
        int((stage.bounds("batch_size") or (1, 1))[1]),
        (stage.bounds("label_smoothing") or (0.0, 0.0))[1],
        RidgeHyperparameters(**fixed) if stage.fit == RidgeHyperparameters.fit else None,  # type: ignore[arg-type]
        stage.fit != RidgeHyperparameters.fit and not stage.is_single("lr"),
    )


def select_trained(strategy: str, stage: StageConfig, names: Sequence[str]) -> tuple[str, ...]:
    """Name the parameters that learn.

    Args:
        strategy: Name of the strategy, and of the stage where there are several, for messages.
        stage: Patterns of what learns and of what is taken out again.
        names: The network's parameters.

    Raises:
        StrategyError: A pattern matches nothing, or nothing is left to learn.
    """
    for pattern in (*stage.train, *stage.freeze):
        if not match_any(names, [pattern]):
            near = suggest(pattern, {*names, *(name.split(".")[0] + ".*" for name in names)})
            near = near or f"; the network has {first_few(sorted({name.split('.')[0] for name in names}), 12)}"
            raise StrategyError(f"strategy {strategy}: each pattern must match a parameter, got {pattern}{near}")
    frozen = set(match_any(names, stage.freeze))
    trained = tuple(name for name in match_any(names, stage.train) if name not in frozen)
    if not trained:
        raise StrategyError(
            f"strategy {strategy}: some parameter must learn, got train {list(stage.train)} without "
            f"freeze {list(stage.freeze)}, which leaves none"
        )
    return trained


def match_any(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def count_by_part(network: nn.Module, trained: Iterable[str]) -> Mapping[str, tuple[int, int]]:
    """Count the trained and all parameters of each part (first word of the names), in the network's order."""
    chosen, total, learning = set(trained), Counter[str](), Counter[str]()
    for name, parameter in network.named_parameters():
        part = name.split(".")[0]
        total[part] += parameter.numel()
        learning[part] += parameter.numel() * (name in chosen)
    return {part: (learning[part], total[part]) for part in total}


def find_head_dropouts(network: nn.Module) -> tuple[str, ...]:
    """Name the dropout modules inside the module `head`.

    Raises:
        StrategyError: There is none.
    """
    names = tuple(
        name
        for name, module in network.named_modules()
        if name.split(".")[0] == "head" and isinstance(module, nn.Dropout)
    )
    if not names:
        raise StrategyError("head_dropout needs a torch.nn.Dropout inside a module named head; set head_dropout: null")
    return names
