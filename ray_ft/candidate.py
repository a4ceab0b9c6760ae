"""One candidate end to end: all of its members, epoch by epoch, to files in its folder.

Each epoch trains every member, looks at all held-out losses together, and keeps the weights of a fold's members when
the mean of the *other* folds is at its lowest: the cross-fitted epoch needs no more than one snapshot a member.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor, nn

from ray_ft.checkpoint import load_checkpoint, save_checkpoint
from ray_ft.config import Config
from ray_ft.data import Dataset, build_views
from ray_ft.errors import DivergedError, FrozenDriftError
from ray_ft.features import SplitNetwork, split_network
from ray_ft.folds import Splits
from ray_ft.metrics import compute_losses
from ray_ft.models import build_network
from ray_ft.paths import CandidateFolder, RunFolder, replace_file, write_arrays, write_json, write_text
from ray_ft.plan import CandidateSpec, Hyperparameters, list_members
from ray_ft.provenance import hash_tensors
from ray_ft.scores import average_folds, average_other_folds
from ray_ft.strategies import select_trained, set_head_dropout
from ray_ft.training import Member, ViewBank, build_bank, create_member, predict_samples, train_epoch

__all__ = ["Task", "run_candidate", "split_for"]

Report = Callable[[int, float, bool], None]


@dataclass(frozen=True)
class Task:
    """What all candidates of a run share; it reaches their processes by the object store."""

    config: Config
    weights: Mapping[str, Tensor]
    dataset: Dataset
    splits: Splits
    run: RunFolder

    def build_network(self) -> nn.Module:
        return build_network(self.config.model.factory, self.config.model.params, self.weights)


@dataclass
class Progress:
    """What changes from epoch to epoch beside the members."""

    losses: list[Float[np.ndarray, "repeat seed sample"]]
    predictions: Float[np.ndarray, "repeat seed sample *target"]  # of the snapshots
    lowest: Float[np.ndarray, "repeat fold"]  # mean of the other folds at the snapshot
    stop_epoch: Int[np.ndarray, "repeat fold"]
    snapshots: list[dict[str, Tensor]] = field(default_factory=list)
    best_mean: float = float("inf")
    best_epoch: int = 0


def run_candidate(task: Task, spec: CandidateSpec, report: Report, device: torch.device) -> None:
    """Train a candidate, or go on with it, until its schedule or its patience ends.

    Args:
        task: What the candidates share.
        spec: This one.
        report: Called after each epoch with its number, from 1, the mean held-out loss, and whether it is the
            last; it may raise to stop.
        device: Where to train.

    A loss that is no number, or a frozen parameter that moved, ends the candidate as failed: another try would end
    the same way. Any other error is raised.
    """
    folder = task.run.candidate(spec.name)
    try:
        train_candidate(task, spec, folder, report, device)
    except (DivergedError, FrozenDriftError) as error:
        write_failure(folder, spec, task, f"{type(error).__name__}: {error}")


def train_candidate(
    task: Task, spec: CandidateSpec, folder: CandidateFolder, report: Report, device: torch.device
) -> None:
    (hyper,) = spec.stages
    split = split_for(task, spec, device)
    frozen_before = hash_tensors(split.frozen)
    bank = prepare_bank(task, split, hyper, device)
    members = create_members(task, spec, split, hyper)
    progress = create_progress(task, split, members, bank)
    start = restore(folder, members, progress, device)
    train = partial(train_epoch, split=split, bank=bank, hyper=hyper, metric=task.config.cv.metric)
    for epoch in range(start, hyper.epochs):
        for member in members:
            train(member, epoch=epoch, grad_clip=task.config.training.grad_clip)
        mean = look(task, members, split, bank, progress)
        write_arrays(folder.history, losses=np.stack(progress.losses))
        if epoch + 1 == hyper.epochs or epoch + 1 - progress.best_epoch >= hyper.patience:
            if hash_tensors(split.frozen) != frozen_before:
                raise FrozenDriftError(f"frozen parameters and buffers must not move, but those of {spec.name} did")
            write_results(folder, spec, task, split, progress)
            report(epoch + 1, mean, True)
            return
        if (epoch + 1) % task.config.training.checkpoint_every == 0:
            save_progress(folder, members, progress)
        report(epoch + 1, mean, False)


def split_for(task: Task, spec: CandidateSpec, device: torch.device) -> SplitNetwork:
    """Split the network of a task where a candidate's trained parameters begin."""
    network = task.build_network()
    (hyper,), (stage,) = spec.stages, task.config.selected[spec.strategy].stages
    trained = select_trained(spec.strategy, stage, [name for name, _ in network.named_parameters()])
    if hyper.head_dropout is not None:
        set_head_dropout(network, hyper.head_dropout)
    return split_network(network.to(device), trained, torch.from_numpy(task.dataset.inputs[:4]).to(device))


def prepare_bank(task: Task, split: SplitNetwork, hyper: Hyperparameters, device: torch.device) -> ViewBank:
    inputs, targets = (torch.from_numpy(views).to(device) for views in build_views(task.dataset, task.config.symmetry))
    return build_bank(
        split, inputs, targets, hyper.noise_std, task.config.training.n_noisy_views, seed=task.config.cv.seed
    )


def create_members(task: Task, spec: CandidateSpec, split: SplitNetwork, hyper: Hyperparameters) -> list[Member]:
    cv = task.config.cv
    entropy = (cv.seed, zlib.crc32(spec.name.encode()))
    return [
        create_member(key, entropy, split, hyper, task.splits.training(key.repeat, key.fold))
        for key in list_members(cv.repeats, cv.folds, cv.seeds)
    ]


def create_progress(task: Task, split: SplitNetwork, members: list[Member], bank: ViewBank) -> Progress:
    cv, by_fold = task.config.cv, (task.config.cv.repeats, task.config.cv.folds)
    return Progress(
        losses=[],
        predictions=np.zeros((cv.repeats, cv.seeds, len(task.dataset), *bank.targets.shape[2:]), np.float32),
        lowest=np.full(by_fold, np.inf),
        stop_epoch=np.zeros(by_fold, int),
        snapshots=[split.state for _ in members],
    )


def look(task: Task, members: list[Member], split: SplitNetwork, bank: ViewBank, progress: Progress) -> float:
    """Take the held-out losses of all members, and snapshot those whose other folds have improved."""
    losses = np.empty(progress.predictions.shape[:3])
    predictions = np.empty_like(progress.predictions)
    for member in members:
        key = member.key
        held_out = task.splits.held_out(key.repeat, key.fold)
        predicted = predict_samples(member, split, bank, held_out)
        predictions[key.repeat, key.seed, held_out] = predicted.cpu().numpy()
        losses[key.repeat, key.seed, held_out] = (
            compute_losses(task.config.cv.metric, predicted, bank.targets[0, held_out]).cpu().numpy()
        )
    if not np.isfinite(losses).all():
        raise DivergedError(f"a held-out loss became {losses.max()} in epoch {len(progress.losses) + 1}; lower the lr")
    progress.losses.append(losses)
    means = average_folds(losses, task.splits)
    take_snapshots(task, members, progress, predictions, average_other_folds(means))
    mean = float(means.mean())
    if mean < progress.best_mean:
        progress.best_mean, progress.best_epoch = mean, len(progress.losses)
    return mean


def take_snapshots(
    task: Task,
    members: list[Member],
    progress: Progress,
    predictions: Float[np.ndarray, "repeat seed sample *target"],
    others: Float[np.ndarray, "repeat fold"],
) -> None:
    improved = others < progress.lowest
    progress.lowest[improved] = others[improved]
    progress.stop_epoch[improved] = len(progress.losses)
    for i, member in enumerate(members):
        key = member.key
        if improved[key.repeat, key.fold]:
            progress.snapshots[i] = {name: tensor.detach().clone() for name, tensor in member.state.items()}
            held_out = task.splits.held_out(key.repeat, key.fold)
            progress.predictions[key.repeat, key.seed, held_out] = predictions[key.repeat, key.seed, held_out]


def save_progress(folder: CandidateFolder, members: list[Member], progress: Progress) -> None:
    arrays = {name: torch.from_numpy(getattr(progress, name)) for name in ("predictions", "lowest", "stop_epoch")}
    save_checkpoint(
        folder.checkpoint,
        {
            "members": [{"state": m.state, "optimizer": m.optimizer.state_dict()} for m in members],
            "snapshots": progress.snapshots,
            "losses": torch.from_numpy(np.stack(progress.losses)),
            "best": [progress.best_mean, progress.best_epoch],
            **arrays,
        },
    )


def restore(folder: CandidateFolder, members: list[Member], progress: Progress, device: torch.device) -> int:
    """Go back to the last checkpoint; return how many epochs are done."""
    saved = load_checkpoint(folder.checkpoint, device)
    if saved is None:
        return 0
    with torch.no_grad():
        for member, content in zip(members, saved["members"], strict=True):
            for name, tensor in member.state.items():
                tensor.copy_(content["state"][name])
            member.optimizer.load_state_dict(content["optimizer"])
    progress.snapshots = saved["snapshots"]
    progress.losses = list(saved["losses"].cpu().numpy())
    progress.best_mean, progress.best_epoch = saved["best"]
    for name in ("predictions", "lowest", "stop_epoch"):
        setattr(progress, name, saved[name].cpu().numpy())
    return len(progress.losses)


def write_results(
    folder: CandidateFolder, spec: CandidateSpec, task: Task, split: SplitNetwork, progress: Progress
) -> None:
    """Write the snapshots, what they predict of their held-out samples, and last the marker that they stand."""
    stacked = {
        name: torch.stack([snapshot[name] for snapshot in progress.snapshots]).cpu().contiguous()
        for name in split.state
    }
    with replace_file(folder.members) as path:
        path.write_bytes(save(stacked))
    write_arrays(folder.predictions, predictions=progress.predictions)
    stops = progress.stop_epoch.tolist()
    write_result(folder, spec, task, "completed", len(progress.losses), stop_epochs=stops, note=split.reason)
    folder.checkpoint.unlink(missing_ok=True)


def write_failure(folder: CandidateFolder, spec: CandidateSpec, task: Task, text: str) -> None:
    """Record that a candidate failed; the last line of the text is the reason shown."""
    write_text(folder.error, text.strip() + "\n")
    write_result(folder, spec, task, "failed", 0, reason=text.strip().split("\n")[-1])
    folder.checkpoint.unlink(missing_ok=True)


def write_result(
    folder: CandidateFolder, spec: CandidateSpec, task: Task, state: str, n_epochs: int, **more: Any
) -> None:
    content = {"state": state, "n_epochs": n_epochs, "splits_hash": task.splits.hash, "spec": asdict(spec)}
    write_json(folder.result, content | more)
