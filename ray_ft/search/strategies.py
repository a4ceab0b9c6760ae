"""Strategies meet a network: which of its parameters learn, by name patterns."""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import takewhile

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
from ray_ft.models import find_tied, measure_depths, order_layers, propose_strategies
from ray_ft.search.rates import Rates, match_scales
from ray_ft.split.adapters import Adapter

NO_DECAY = (1.0, 1.0)
RANK = 4  # of lora, unless the config says so


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
    replay: float = 0.0  # the largest share of replayed samples in the loss
    rates: Rates = field(default_factory=Rates)  # factors on the learning rate of single parameters
    adapter: Adapter | None = None  # by which weights learn; without one they learn as they are
    closed: RidgeHyperparameters | None = None  # of a closed form, which has nothing to draw
    lr_is_open: bool = False  # whether there is a learning rate, and the config fixes it to no value


@dataclass(frozen=True)
class Strategy:
    """A strategy on a network."""

    name: str
    stages: tuple[Stage, ...]  # in their order
    parts: Mapping[str, tuple[int, int]]  # trained and all parameters of each part of the network, in its order
    layers: tuple[int, int] | None = None  # how many of the last layers learn, and no others, and of how many

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


def match_strategies(
    strategies: Mapping[str, StrategyConfig], network: nn.Module, inputs: Float[np.ndarray, "sample *input"]
) -> dict[str, Strategy]:
    """Match all strategies of a run with its network, which takes the inputs.

    Raises:
        StrategyError: One does not fit.
    """
    stages = (stage for strategy in strategies.values() for stage in strategy.stages)
    by_depth = any((stage.bounds("lr_decay") or NO_DECAY) != NO_DECAY for stage in stages)
    depths = measure_depths(network, inputs) if by_depth else {}
    layers = order_layers(network, inputs) if len(strategies) > 1 else []  # one alone is compared with none
    return {name: match_strategy(name, strategy, network, depths, layers) for name, strategy in strategies.items()}


def match_strategy(
    name: str, strategy: StrategyConfig, network: nn.Module, depths: Mapping[str, int], layers: Sequence[str]
) -> Strategy:
    """Match a strategy's patterns with a network, whose parameters have these depths, and its layers this order.

    Raises:
        StrategyError: A pattern matches nothing, nothing is left to learn, or a dropout is to be set and there is none.
    """
    places, names = name_stages(name, len(strategy.stages)), [own for own, _ in network.named_parameters()]
    pairs = zip(places, strategy.stages, strict=True)
    stages = tuple(match_stage(place, stage, network, depths, len(places)) for place, stage in pairs)
    learning: dict[str, int] = {}
    for stage in (stage for stage in stages if not stage.closed):
        for own in stage.trained:
            shape = network.get_parameter(own).shape
            learning[own] = stage.adapter.count(shape) if stage.adapter else shape.numel()
    plain = len(stages) == 1 and stages[0].adapter is None  # others are no point on a line of depths
    return Strategy(
        name, stages, count_by_part(network, learning), count_last(layers, names, learning) if plain else None
    )


def choose_adapter(place: str, stage: StageConfig, network: nn.Module, trained: Sequence[str]) -> Adapter | None:
    """Take the adapter of a stage, if it has one.

    Raises:
        StrategyError: No weight that learns takes it.
    """
    asked = getattr(stage, "adapter", None)
    if asked is None:
        return None
    adapter = Adapter(asked.kind, asked.rank or RANK)
    if not any(adapter.shapes(network.get_parameter(name).shape) for name in trained):
        law = "an adapter needs a weight of several outputs and inputs, larger than itself"
        rank, lower = (f" of rank {adapter.rank}", ", lower the rank") if adapter.kind == "lora" else ("", "")
        got = f"{adapter.kind}{rank} for {first_few(trained)}"
        remedy = f"name such a weight in train{lower}, or leave adapter out"
        raise StrategyError(f"strategy {place}: {law}, got {got}; {remedy}")
    return adapter


def name_stages(strategy: str, n_stages: int) -> list[str]:
    """Name the stages of a strategy for messages; one that is alone has the strategy's name."""
    return [strategy] if n_stages == 1 else [f"{strategy}, stage {i}" for i in range(1, 1 + n_stages)]


def match_stage(place: str, stage: StageConfig, network: nn.Module, depths: Mapping[str, int], n_stages: int) -> Stage:
    fixed = {name: getattr(stage, name, None) for name, _ in list_declared(RidgeHyperparameters)}
    refuse_tied(place, stage, network)
    trained = select_trained(place, stage, [own for own, _ in network.named_parameters()])
    is_closed, adapter = stage.fit == RidgeHyperparameters.fit, choose_adapter(place, stage, network, trained)
    if adapter and n_stages > 1:
        raise StrategyError(
            f"strategy {place}: an adapter needs a strategy of one stage, got {n_stages}; leave adapter out, or the "
            "other stages"
        )
    return Stage(
        stage.fit,
        trained,
        find_head_dropouts(network) if stage.bounds("head_dropout") is not None else (),
        stage.longest,
        (stage.bounds("noise_std") or (0.0, 0.0))[1] > 0,
        int((stage.bounds("batch_size") or (1, 1))[1]),
        (stage.bounds("label_smoothing") or (0.0, 0.0))[1],
        float((stage.bounds("replay") or (0, 0))[1]),
        Rates(match_scales(place, getattr(stage, "lr_scale", {}), trained), depths),
        adapter,
        RidgeHyperparameters(**fixed) if is_closed else None,  # type: ignore[arg-type]
        not is_closed and not stage.is_single("lr"),
    )


def refuse_tied(place: str, stage: StageConfig, network: nn.Module) -> None:
    """Refuse a pattern that matches nothing but further names of tied parameters."""
    names, first = [name for name, _ in network.named_parameters()], find_tied(network)
    for pattern in (*stage.train, *stage.freeze):
        tied = match_any(list(first), [pattern])
        if tied and not match_any(names, [pattern]):
            raise StrategyError(
                f"strategy {place}: a tied parameter goes by its first name, got {pattern}, which is the same as "
                f"{first[tied[0]]}; name that"
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
            parts = first_few(sorted({name.split(".")[0] for name in names}), 12) or "no parameters"
            near = near or f"; the network has {parts}"
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


def count_by_part(network: nn.Module, trained: Mapping[str, int]) -> Mapping[str, tuple[int, int]]:
    """Count what learns and all parameters of each part (first word of the names), in the network's order.

    Args:
        network: The network.
        trained: The numbers by which parameters learn: as many as they have, or those of an adapter.
    """
    total, learning = Counter[str](), Counter[str]()
    for name, parameter in network.named_parameters():
        part = name.split(".")[0]
        total[part] += parameter.numel()
        learning[part] += trained.get(name, 0)
    return {part: (learning[part], total[part]) for part in total}


def count_last(layers: Sequence[str], names: Sequence[str], learning: Container[str]) -> tuple[int, int] | None:
    """Count the last layers that learn, of how many; None where none does, or where others learn, or one in part."""
    own = [[name in learning for name in names if name.startswith(f"{layer}.")] for layer in reversed(layers)]
    n = sum(1 for _ in takewhile(all, own))
    return (n, len(own)) if n and not any(map(any, own[n:])) else None


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
