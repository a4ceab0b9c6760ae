"""Strategies meet a network: which of its parameters learn, by name patterns."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from ray_ft.config import StageConfig
from ray_ft.errors import StrategyError, first_few, suggest

__all__ = ["count_by_part", "find_head_dropouts", "select_trained"]


def select_trained(strategy: str, stage: StageConfig, names: Sequence[str]) -> tuple[str, ...]:
    """Name the parameters that learn.

    Args:
        strategy: Name of the strategy, for messages.
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
