"""The ensemble: tails of many members on one backbone; reduced from a run, saved as a folder, loaded to predict."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ray_ft.errors import EnsembleError
from ray_ft.features import SplitNetwork, split_network
from ray_ft.metrics import score_predictions
from ray_ft.models import build_network
from ray_ft.paths import EnsembleFolder, RunFolder, replace_file, write_arrays, write_json
from ray_ft.plan import CandidateSpec, list_members
from ray_ft.provenance import hash_arrays
from ray_ft.results import load_members, load_predictions
from ray_ft.scores import StrategyScore
from ray_ft.summary import EnsembleSummary
from ray_ft.task import Task

__all__ = ["Ensemble", "Prediction", "reduce_members"]

FORMAT, VERSION = "ray-ft ensemble", 1


@dataclass(frozen=True)
class Prediction:
    """Mean of the members, and their standard deviation: their disagreement alone, without the noise of the data."""

    mean: Float[np.ndarray, "sample *target"]
    std: Float[np.ndarray, "sample *target"]


@dataclass(frozen=True)
class Ensemble:
    """Members that share a backbone.

    Attributes:
        card: What the folder's `card.json` says.
        split: The network.
        states: Each member's tensors.
    """

    card: Mapping[str, Any]
    split: SplitNetwork
    states: Sequence[Mapping[str, Tensor]]

    @classmethod
    def load(cls, path: str | Path) -> "Ensemble":
        """Load an ensemble from its folder or from that of its run.

        Raises:
            EnsembleError: It is no ensemble, of a newer version, or damaged.
        """
        folder = find_folder(Path(path))
        card = read_card(folder)
        backbone, stacked = read_tensors(folder.backbone, card), read_tensors(folder.members, card)
        states = [{name: tensor[i] for name, tensor in stacked.items()} for i in range(len(card["members"]))]
        network = build_network(card["model"]["factory"], card["model"]["params"], backbone | states[0])
        shape = (2, *card["input_shape"])
        example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return cls(card, split_network(network, card["trained"], example), states)

    @torch.no_grad()
    def predict(self, inputs: Float[np.ndarray, "sample *input"], batch_size: int = 256) -> Prediction:
        """Predict with every member; the backbone runs once.

        Args:
            inputs: As `data.prepare_inputs` returns them.
            batch_size: Samples at a time.
        """
        parts = [
            self.predict_batch(torch.from_numpy(part)) for part in np.array_split(inputs, -(-len(inputs) // batch_size))
        ]
        return Prediction(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("mean", "std")))

    def predict_batch(self, inputs: Tensor) -> Prediction:
        features = self.split.compute_features(inputs)
        rows = torch.arange(len(inputs))
        members = torch.stack(
            [self.split.apply_tail(state, self.split.take(features, rows), training=False) for state in self.states]
        ).double()
        return Prediction(
            members.mean(0).numpy().astype(np.float32), members.std(0, correction=0).numpy().astype(np.float32)
        )


def find_folder(path: Path) -> EnsembleFolder:
    for folder in (EnsembleFolder(path), RunFolder(path).ensemble):
        if folder.card.is_file():
            return folder
    raise EnsembleError(
        f"an ensemble is a folder with card.json, or a finished run, got {path} without one; "
        "give the run's folder, or rebuild it with: ray-ft ensemble RUN"
    )


def read_card(folder: EnsembleFolder) -> dict[str, Any]:
    try:
        card = json.loads(folder.card.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EnsembleError(f"an ensemble's card must be JSON, got {folder.card}: {error}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise EnsembleError(f'an ensemble\'s card says "format": "{FORMAT}", got {folder.card} without it')
    if card.get("version") != VERSION:
        raise EnsembleError(
            f"this release reads ensembles of version {VERSION}, got version {card.get('version')} in {folder.card}; "
            "load it with the release that wrote it"
        )
    return card


def read_tensors(path: Path, card: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() != card["files"][path.name]:
            raise EnsembleError(
                f"{path} must be the file that card.json names by its hash, but it was changed; rebuild it"
            )
        return load_file(path)
    except (OSError, SafetensorError, KeyError) as error:
        raise EnsembleError(f"an ensemble's tensors must be readable, got {path}: {error}") from error


def reduce_members(
    task: Task,
    plan: Sequence[CandidateSpec],
    strategy: str,
    score: StrategyScore,
    trained: Sequence[str],
    zero_shot: Float[np.ndarray, "sample *target"],
) -> EnsembleSummary:
    """Build the ensemble of a strategy: for each fold, the members of the candidate chosen on the other folds.

    What the blind members say of each sample, mean and standard deviation, goes to the run's `blind.npz`, beside the
    truth and what the pretrained network says.
    """
    cv, folder = task.config.cv, task.run.ensemble
    names = {spec.index: spec.name for spec in plan if spec.strategy == strategy}
    keys = list_members(cv.repeats, cv.folds, cv.seeds)
    chosen = [names[int(score.candidate[key.repeat, key.fold])] for key in keys]
    stacks = {name: load_members(task.run, name) for name in set(chosen)}
    members = {
        tensor: torch.stack([stacks[name][tensor][i] for i, name in enumerate(chosen)]) for tensor in stacks[chosen[0]]
    }
    blind = gather_blind(task, names, score)
    mean = blind.mean(0)
    result = EnsembleSummary(
        score=float(score_predictions(cv.metric, mean, task.dataset.targets).mean()),
        n_members=len(keys),
        n_blind=len(blind),
        path=str(folder.root),
    )
    write_arrays(task.run.blind, mean=mean, std=blind.std(0), targets=task.dataset.targets, zero_shot=zero_shot)
    files = {
        folder.members.name: write_tensors(folder.members, members),
        folder.backbone.name: write_tensors(
            folder.backbone, {name: tensor for name, tensor in task.weights.items() if name not in members}
        ),
    }
    card = {
        "format": FORMAT,
        "version": VERSION,
        "strategy": strategy,
        "model": task.config.model.model_dump(include={"factory", "params"}),
        "layout": task.config.layout,
        "input_shape": list(task.dataset.inputs.shape[1:]),
        "trained": list(trained),
        "metric": cv.metric,
        **result.model_dump(include={"score", "n_blind"}),
        "members": [
            {"candidate": name, "repeat": key.repeat, "fold": key.fold, "seed": key.seed,
             "epoch": int(score.epoch[key.repeat, key.fold])}
            for name, key in zip(chosen, keys, strict=True)
        ],
        "splits_hash": task.splits.hash,
        "data_hash": hash_arrays(task.dataset.inputs, task.dataset.targets),
        "files": files,
    }  # fmt: skip
    write_json(folder.card, card)
    return result


def gather_blind(
    task: Task, names: Mapping[int, str], score: StrategyScore
) -> Float[np.ndarray, "member sample *target"]:
    """Collect, for each sample, what the members say that never saw it: one a repeat and seed."""
    predictions = {index: load_predictions(task.run, names[int(index)]) for index in np.unique(score.candidate)}
    blind = np.empty((len(score.candidate), task.config.cv.seeds, *task.dataset.targets.shape))
    for repeat, fold in np.ndindex(score.candidate.shape):
        held_out = task.splits.held_out(repeat, fold)
        blind[repeat][:, held_out] = predictions[score.candidate[repeat, fold]][repeat][:, held_out]
    return blind.reshape(-1, *task.dataset.targets.shape)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    with replace_file(path) as partial:
        partial.write_bytes(content)
    return hashlib.sha256(content).hexdigest()
