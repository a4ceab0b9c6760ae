"""One candidate end to end: all of its members, epoch by epoch, to files in its folder.

Each epoch trains every member, looks at all held-out losses together, and keeps the weights of a fold's members when
the fold's guide is at its lowest (the mean of the *other* folds, or of its inner part under the nested protocol): no
more than one snapshot a member is needed.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save

from ray_ft.errors import DivergedError, FrozenDriftError
from ray_ft.fitting.checkpoint import load_checkpoint, save_checkpoint
from ray_ft.fitting.gradient import Squad
from ray_ft.fitting.task import Task
from ray_ft.objectives import find_objective
from ray_ft.runs.folder import (
    CandidateFolder,
    hash_file,
    keep_files,
    replace_file,
    write_arrays,
    write_record,
    write_text,
)
from ray_ft.search.plan import CandidateSpec, MemberKey, list_members
from ray_ft.statistics.scores import build_curves

__all__ = ["Broadcast", "command", "run_candidate", "write_failure"]

Report = Callable[[int, float, bool], None]
Broadcast = Callable[..., list[Any]]  # a squad's method and its arguments, to all squads; their answers


@dataclass
class Progress:
    """What changes from epoch to epoch beside the members."""

    losses: list[Float[np.ndarray, "repeat seed sample"]]
    inner: list[Float[np.ndarray, "repeat fold seed"]]  # under the nested protocol
    predictions: Float[np.ndarray, "repeat seed sample *target"]  # of the snapshots
    lowest: Float[np.ndarray, "repeat fold"]  # the guide at the snapshot
    stop_epoch: Int[np.ndarray, "repeat fold"]
    best_mean: float = float("inf")
    best_epoch: int = 0


def command(squads: Sequence[Squad]) -> Broadcast:
    """Broadcast to squads in this process, one after the other."""
    return lambda method, *args: [getattr(squad, method)(*args) for squad in squads]


def run_candidate(
    task: Task,
    spec: CandidateSpec,
    report: Report,
    broadcast: Broadcast,
    must_leave: Callable[[], bool] = lambda: False,
) -> None:
    """Train a candidate, or go on with it, until its schedule or its patience ends.

    Args:
        task: What the candidates share.
        spec: This one.
        report: Called after each epoch with its number, from 1, the mean held-out loss, and whether it is the
            last; it may raise to stop.
        broadcast: Reaches the squads that together hold all members.
        must_leave: Says that this machine will soon be gone: each epoch then ends with a checkpoint.

    Raises:
        StorageError: Its files cannot be written.

    A loss that is no number, or a frozen parameter that moved, ends the candidate as failed: another try would end
    the same way. Any other error is raised.
    """
    folder = task.run.candidate(spec.name)
    try:
        train_candidate(task, spec, folder, report, broadcast, must_leave)
    except (DivergedError, FrozenDriftError) as error:
        write_failure(folder, spec, task, f"{type(error).__name__}: {error}")


def train_candidate(
    task: Task,
    spec: CandidateSpec,
    folder: CandidateFolder,
    report: Report,
    broadcast: Broadcast,
    must_leave: Callable[[], bool],
) -> None:
    (hyper,) = spec.stages
    progress = create_progress(task)
    start = restore(folder, task, progress, broadcast)
    for epoch in range(start, hyper.epochs):
        mean = look(task, merge(broadcast("train", epoch)), progress, broadcast)
        with keep_files(folder.root):
            write_arrays(folder.history, **stack_history(progress))
        if epoch + 1 == hyper.epochs or epoch + 1 - progress.best_epoch >= hyper.patience:
            if any(broadcast("has_drifted")):
                raise FrozenDriftError(f"frozen parameters and buffers must not move, but those of {spec.name} did")
            write_results(folder, spec, task, progress, broadcast)
            report(epoch + 1, mean, True)
            return
        if (epoch + 1) % task.config.training.checkpoint_every == 0 or must_leave():
            save_progress(folder, task, progress, broadcast)
        report(epoch + 1, mean, False)


def merge(answers: Sequence[dict[MemberKey, Any]]) -> dict[MemberKey, Any]:
    return {key: value for answer in answers for key, value in answer.items()}


def keys_of(task: Task) -> tuple[MemberKey, ...]:
    return list_members(task.config.cv.repeats, task.config.cv.folds, task.config.cv.seeds)


def create_progress(task: Task) -> Progress:
    cv, by_fold = task.config.cv, (task.config.cv.repeats, task.config.cv.folds)
    return Progress(
        losses=[],
        inner=[],
        predictions=np.zeros((cv.repeats, cv.seeds, *task.dataset.targets.shape), np.float32),
        lowest=np.full(by_fold, np.inf),
        stop_epoch=np.zeros(by_fold, int),
    )


def look(
    task: Task,
    answers: dict[MemberKey, Float[np.ndarray, "_ *target"]],
    progress: Progress,
    broadcast: Broadcast,
) -> float:
    """Take the losses of all members, and snapshot those whose guide has improved; return the guides' mean."""
    splits, nested = task.splits, bool(task.splits.inner_of)
    objective = find_objective(task.config.cv.metric)
    losses = np.empty(progress.predictions.shape[:3])
    inner = np.empty((*progress.lowest.shape, task.config.cv.seeds))
    for key, predicted in answers.items():
        watched, n_held_out = splits.watched(key.repeat, key.fold), len(splits.held_out(key.repeat, key.fold))
        own = objective.score(predicted, task.dataset.targets[watched])
        if not np.isfinite(own).all():
            raise DivergedError(
                f"the held-out loss of {key} became {own.max()} in epoch {len(progress.losses) + 1}; lower the lr"
            )
        losses[key.repeat, key.seed, watched[:n_held_out]] = own[:n_held_out]
        if nested:
            inner[key.repeat, key.fold, key.seed] = own[n_held_out:].mean()
    progress.losses.append(losses)
    if nested:
        progress.inner.append(inner)
    curves = build_curves(losses, inner if nested else None, splits)
    improved = curves.guide < progress.lowest
    progress.lowest[improved] = curves.guide[improved]
    progress.stop_epoch[improved] = len(progress.losses)
    for key, predicted in answers.items():
        if improved[key.repeat, key.fold]:
            held_out = splits.held_out(key.repeat, key.fold)
            progress.predictions[key.repeat, key.seed, held_out] = predicted[: len(held_out)]
    broadcast("snapshot", improved)
    mean = float(curves.guide.mean())
    if mean < progress.best_mean:
        progress.best_mean, progress.best_epoch = mean, len(progress.losses)
    return mean


def stack_history(progress: Progress) -> dict[str, Float[np.ndarray, "epoch ..."]]:
    history = {"losses": np.stack(progress.losses)}
    return history | {"inner": np.stack(progress.inner)} if progress.inner else history


def save_progress(folder: CandidateFolder, task: Task, progress: Progress, broadcast: Broadcast) -> None:
    members = merge(broadcast("save"))
    arrays = {name: torch.from_numpy(getattr(progress, name)) for name in ("predictions", "lowest", "stop_epoch")}
    content = {
        "members": [members[key] for key in keys_of(task)],
        "history": {name: torch.from_numpy(array) for name, array in stack_history(progress).items()},
        "best": [progress.best_mean, progress.best_epoch],
        **arrays,
    }
    with keep_files(folder.root):
        save_checkpoint(folder.checkpoint, content)
        task.run.push()


def restore(folder: CandidateFolder, task: Task, progress: Progress, broadcast: Broadcast) -> int:
    """Go back to the last checkpoint; return how many epochs are done."""
    for partial in folder.root.glob(".*"):  # of a process that was killed while it wrote
        partial.unlink(missing_ok=True)
    saved = load_checkpoint(folder.checkpoint)
    if saved is None:
        return 0
    broadcast("load", dict(zip(keys_of(task), saved["members"], strict=True)))
    progress.losses = list(saved["history"]["losses"].numpy())
    progress.inner = list(saved["history"]["inner"].numpy()) if "inner" in saved["history"] else []
    progress.best_mean, progress.best_epoch = saved["best"]
    for name in ("predictions", "lowest", "stop_epoch"):
        setattr(progress, name, saved[name].numpy())
    return len(progress.losses)


def write_results(
    folder: CandidateFolder, spec: CandidateSpec, task: Task, progress: Progress, broadcast: Broadcast
) -> None:
    """Write the snapshots, what they predict of their held-out samples, and last the marker that they stand."""
    snapshots = merge(broadcast("collect"))
    states = [snapshots[key] for key in keys_of(task)]
    stacked = {name: torch.stack([state[name] for state in states]).contiguous() for name in states[0]}
    note, how = broadcast("describe")[0]
    stops = progress.stop_epoch.tolist()
    with keep_files(folder.root):
        with replace_file(folder.members) as path:
            path.write_bytes(save(stacked))
        write_arrays(folder.predictions, predictions=progress.predictions)
        files = {path.name: hash_file(path) for path in (folder.history, folder.members, folder.predictions)}
        more = {"stop_epochs": stops, "note": note, "training": how, "files": files}
        write_result(folder, spec, task, "completed", len(progress.losses), **more)


def write_failure(folder: CandidateFolder, spec: CandidateSpec, task: Task, text: str) -> None:
    """Record that a candidate failed; the last line of the text is the reason shown.

    Raises:
        StorageError: It cannot be written.
    """
    with keep_files(folder.root):
        write_text(folder.error, text.strip() + "\n")
        write_result(folder, spec, task, "failed", 0, reason=text.strip().split("\n")[-1])


def write_result(
    folder: CandidateFolder, spec: CandidateSpec, task: Task, state: str, n_epochs: int, **more: Any
) -> None:
    content = {"state": state, "n_epochs": n_epochs, "splits_hash": task.splits.hash, "spec": asdict(spec)}
    write_record(folder.result, content | more)
    folder.checkpoint.unlink(missing_ok=True)
    task.run.push()
