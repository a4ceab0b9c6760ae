"""A run folder read back: verdicts, curves, members and out-of-fold predictions of its candidates."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from ray_ft.errors import RunFolderError
from ray_ft.folds import Splits
from ray_ft.paths import RunFolder
from ray_ft.plan import CandidateSpec
from ray_ft.scores import StrategyScore, average_folds, crossfit

__all__ = [
    "Verdict",
    "load_history",
    "load_members",
    "load_predictions",
    "load_result",
    "load_splits",
    "load_verdicts",
    "score_strategies",
]


@dataclass(frozen=True)
class Verdict:
    """How a candidate ended, after which epoch, why, and the seconds that this call spent on it."""

    state: Literal["completed", "stopped", "failed"]
    epoch: int
    reason: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_verdicts(run: RunFolder) -> dict[str, Verdict]:
    """Read the verdicts.

    Raises:
        RunFolderError: There are none: the folder is no run, or the run is not finished.
    """
    if not run.verdicts.exists():
        raise RunFolderError(
            f"a finished run holds {run.verdicts.name}, got {run.root} without it; repeat its cv command"
        )
    return {name: Verdict(**verdict) for name, verdict in json.loads(run.verdicts.read_text()).items()}


def load_splits(run: RunFolder) -> Splits:
    content = json.loads(run.splits.read_text())
    return Splits(tuple(tuple(repeat) for repeat in content["fold_of"]), content["seed"])


def load_result(run: RunFolder, spec: CandidateSpec) -> dict[str, Any] | None:
    """Read how a candidate's training ended; None where it has not."""
    path = run.candidate(spec.name).result
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def load_history(run: RunFolder, spec: CandidateSpec) -> Float[np.ndarray, "epoch repeat seed sample"] | None:
    """Read a candidate's held-out losses; None where there are none to be read yet."""
    try:
        with np.load(run.candidate(spec.name).history, allow_pickle=False) as archive:
            losses: np.ndarray = archive["losses"]
            return losses
    except (FileNotFoundError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # it is written again from the last checkpoint


def load_members(run: RunFolder, candidate: str) -> dict[str, Tensor]:
    """Read a candidate's snapshots, stacked along a first axis of members."""
    return load_file(run.candidate(candidate).members)


def load_predictions(run: RunFolder, candidate: str) -> Float[np.ndarray, "repeat seed sample *target"]:
    with np.load(run.candidate(candidate).predictions, allow_pickle=False) as archive:
        predictions: np.ndarray = archive["predictions"]
        return predictions


def score_strategies(
    run: RunFolder, plan: Sequence[CandidateSpec], verdicts: dict[str, Verdict], splits: Splits
) -> dict[str, StrategyScore | None]:
    """Score each strategy by its completed candidates; None where it has none, so no folds x seeds."""
    scores: dict[str, StrategyScore | None] = {}
    for strategy in dict.fromkeys(spec.strategy for spec in plan):
        curves = {}
        for spec in plan:
            losses = load_history(run, spec)
            if spec.strategy == strategy and verdicts[spec.name].state == "completed" and losses is not None:
                curves[spec.index] = average_folds(losses, splits)
        scores[strategy] = crossfit(curves) if curves else None
    return scores
