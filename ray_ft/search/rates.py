"""Learning rates of single parameters, as factors on that of their stage: by name pattern, and by depth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from ray_ft.errors import StrategyError, first_few


@dataclass(frozen=True)
class Rates:
    """What the learning rates of parameters hang on, by their names."""

    scales: Mapping[str, float] = field(default_factory=dict)  # where the config gives one
    depths: Mapping[str, int] = field(default_factory=dict)  # blocks to the answer, where the config asks for a decay

    def scale(self, lr_decay: float) -> dict[str, float]:
        """Find the factors on the learning rate, by name; 1 where there is none."""
        names = dict.fromkeys((*self.scales, *self.depths))
        return {name: self.scales.get(name, 1.0) * lr_decay ** self.depths.get(name, 0) for name in names}


def match_scales(strategy: str, patterns: Mapping[str, float], trained: Sequence[str]) -> dict[str, float]:
    """Find the factors that patterns give trained parameters.

    Raises:
        StrategyError: A pattern matches none of them, or two match one.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        matched = [name for name in trained if fnmatchcase(name, pattern)]
        if not matched:
            law = "each pattern of lr_scale must match a parameter that learns"
            raise StrategyError(f"strategy {strategy}: {law}, got {pattern}; what learns is {first_few(trained, 12)}")
        if twice := [name for name in matched if name in found]:
            law = "each parameter may have one factor of lr_scale"
            both = f"{found[twice[0]]} and {pattern}"
            raise StrategyError(f"strategy {strategy}: {law}, got {both} for {first_few(twice)}; narrow one of them")
        found.update(dict.fromkeys(matched, pattern))
    return {name: patterns[pattern] for name, pattern in found.items()}
