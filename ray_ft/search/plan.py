"""The plan of a run as data: candidates with their hyperparameters."""

from dataclasses import asdict, dataclass
from typing import Any

from ray_ft.config import Hyperparameters


@dataclass(frozen=True)
class CandidateSpec:
    """A strategy with one choice of its hyperparameters, stage by stage."""

    strategy: str
    index: int
    stages: tuple[Hyperparameters, ...]

    @property
    def name(self) -> str:
        return name_candidate(self.strategy, self.index)

    @property
    def n_epochs(self) -> int:
        return sum(stage.n_epochs for stage in self.stages)

    @property
    def patience(self) -> int:
        """Epochs without a better mean after which it ends, in its last stage."""
        return self.stages[-1].patience

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def name_candidate(strategy: str, index: int) -> str:
    return f"{strategy}-{index:03d}"
