"""One candidate end to end: all of its members, epoch by epoch, to files in its folder.

Each epoch fits every member, scores all held-out losses together, and keeps the weights of a fold's members when the
fold's guide is at its lowest (the mean of the *other* folds, or of its inner part under the nested protocol): no more
than one snapshot a member is needed.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save

from ray_ft.errors import DivergedError, FrozenDriftError
from ray_ft.files.hashes import hash_file
from ray_ft.files.writing import replace_file, write_arrays, write_record, write_text
from ray_ft.fitting.checkpoint import load_checkpoint, save_checkpoint
from ray_ft.fitting.fitter import Fitter, Predictions
from ray_ft.runs.folder import RunFolder, keep_files
from ray_ft.search.plan import CandidateSpec
from ray_ft.search.problem import Problem
from ray_ft.statistics.scores import build_curves

Report = Callable[[int, float, bool], None]


@dataclass
class History:
    """What changes from epoch to epoch beside the members."""

    losses: list[Float[np.ndarray, "repeat seed sample"]]
    inner: list[Float[np.ndarray, "repeat fold seed"]]  # under the nested protocol
    predictions: Float[np.ndarray, "repeat seed sample *response"]  # of the snapshots
    lowest: Float[np.ndarray, "repeat fold"]  # the guide at the snapshot
    stop_epoch: Int[np.ndarray, "repeat fold"]
    best_mean: float = float("inf")
    best_epoch: int = 0

    def stack(self) -> dict[str, Float[np.ndarray, "epoch ..."]]:
        stacked = {"losses": np.stack(self.losses)}
        return stacked | {"inner": np.stack(self.inner)} if self.inner else stacked


def run_candidate(
    problem: Problem,
    run: RunFolder,
    spec: CandidateSpec,
    fitter: Fitter,
    report: Report,
    checkpoint_every: int,
    must_leave: Callable[[], bool] = lambda: False,
) -> None:
    """Train a candidate, or go on with it, until its schedule or its patience ends.

    Args:
        problem: What is to be learned.
        run: Where its files go.
        spec: Which candidate.
        fitter: Holds all of its members, at their start.
        report: Called after each epoch with its number, from 1, the mean loss that guides (held-out, or
            of the inner parts), and whether it is the last; it may raise to stop.
        checkpoint_every: Epochs between checkpoints.
        must_leave: Says that this machine will soon be gone: each epoch then ends with a checkpoint.

    Raises:
        StorageError: Its files cannot be written.

    A loss that is no number, or a frozen parameter that moved, ends the candidate as failed: another try would end
    the same way. Any other error is raised.
    """
    history = start_history(problem)
    start = restore(problem, run, spec, history, fitter)
    try:
        for epoch in range(start, spec.n_epochs):
            fitter.run_epoch(epoch)
            mean = record_epoch(problem, fitter.predict(), history, fitter)
            with keep_files(run.candidate(spec.name).root):
                write_arrays(run.candidate(spec.name).history, **history.stack())
            if epoch + 1 == spec.n_epochs or epoch + 1 - history.best_epoch >= spec.patience:
                check_frozen(spec, fitter)
                write_members(problem, run, spec, history, fitter)
                report(epoch + 1, mean, True)
                return
            if (epoch + 1) % checkpoint_every == 0 or must_leave():
                save_progress(problem, run, spec, history, fitter)
            report(epoch + 1, mean, False)
    except (DivergedError, FrozenDriftError) as error:
        write_failure(run, spec, problem.splits.hash, f"{type(error).__name__}: {error}")


def check_frozen(spec: CandidateSpec, fitter: Fitter) -> None:
    if fitter.has_drifted():
        raise FrozenDriftError(f"frozen parameters and buffers must not move, but those of {spec.name} did")


def start_history(problem: Problem) -> History:
    shape = (problem.splits.n_repeats, problem.n_seeds, len(problem.samples), *problem.response_shape)
    return History(
        losses=[],
        inner=[],
        predictions=np.zeros(shape, np.float32),
        lowest=np.full(problem.by_fold, np.inf),
        stop_epoch=np.zeros(problem.by_fold, int),
    )


def record_epoch(problem: Problem, predictions: Predictions, history: History, fitter: Fitter) -> float:
    """Take the losses of all members, and snapshot those whose guide has improved; return the guides' mean."""
    splits, nested = problem.splits, bool(problem.splits.inner_of)
    losses, inner = score_members(problem, predictions, len(history.losses) + 1)
    history.losses.append(losses)
    if nested:
        history.inner.append(inner)
    curves = build_curves(losses, inner if nested else None, splits)
    improved = curves.guide < history.lowest
    history.lowest[improved] = curves.guide[improved]
    history.stop_epoch[improved] = len(history.losses)
    for key, predicted in predictions.items():
        if improved[key.repeat, key.fold]:
            held_out = splits.held_out(key.repeat, key.fold)
            history.predictions[key.repeat, key.seed, held_out] = predicted[: len(held_out)]
    fitter.take_snapshots(improved)
    mean = float(curves.guide.mean())
    if mean < history.best_mean:
        history.best_mean, history.best_epoch = mean, len(history.losses)
    return mean


def score_members(
    problem: Problem, predictions: Predictions, epoch: int
) -> tuple[Float[np.ndarray, "repeat seed sample"], Float[np.ndarray, "repeat fold seed"]]:
    """Score each held-out sample, and under the nested protocol the means of the inner parts.

    Raises:
        DivergedError: A score is infinite or not a number.
    """
    splits, targets = problem.splits, problem.samples.targets
    losses = np.empty((splits.n_repeats, problem.n_seeds, len(targets)))
    inner = np.empty((*problem.by_fold, problem.n_seeds))
    for key, predicted in predictions.items():
        watched, n_held_out = splits.watched(key.repeat, key.fold), len(splits.held_out(key.repeat, key.fold))
        own = problem.objective.score(predicted, targets[watched])
        if not np.isfinite(own).all():
            raise DivergedError(
                f"the loss of {key} on unseen samples became {own.max()} in epoch {epoch}; lower the lr"
            )
        losses[key.repeat, key.seed, watched[:n_held_out]] = own[:n_held_out]
        if splits.inner_of:
            inner[key.repeat, key.fold, key.seed] = own[n_held_out:].mean()
    return losses, inner


def save_progress(problem: Problem, run: RunFolder, spec: CandidateSpec, history: History, fitter: Fitter) -> None:
    """Write all that the next epoch depends on."""
    members, folder = fitter.save(), run.candidate(spec.name)
    arrays = {name: torch.from_numpy(getattr(history, name)) for name in ("predictions", "lowest", "stop_epoch")}
    content = {
        "members": [members[key] for key in problem.keys],
        "history": {name: torch.from_numpy(array) for name, array in history.stack().items()},
        "best": [history.best_mean, history.best_epoch],
        **arrays,
    }
    with keep_files(folder.root):
        save_checkpoint(folder.checkpoint, content)
        run.push()


def restore(problem: Problem, run: RunFolder, spec: CandidateSpec, history: History, fitter: Fitter) -> int:
    """Go back to the last checkpoint; return how many epochs are done."""
    folder = run.candidate(spec.name)
    for partial in folder.root.glob(".*"):  # of a process that was killed while it wrote
        partial.unlink(missing_ok=True)
    saved: Mapping[str, Any] | None = load_checkpoint(folder.checkpoint)
    if saved is None:
        return 0
    fitter.load(dict(zip(problem.keys, saved["members"], strict=True)))
    history.losses = list(saved["history"]["losses"].numpy())
    history.inner = list(saved["history"]["inner"].numpy()) if "inner" in saved["history"] else []
    history.best_mean, history.best_epoch = saved["best"]
    for name in ("predictions", "lowest", "stop_epoch"):
        setattr(history, name, saved[name].numpy())
    return len(history.losses)


def write_members(problem: Problem, run: RunFolder, spec: CandidateSpec, history: History, fitter: Fitter) -> None:
    """Write the snapshots, what they predict of their held-out samples, and last the marker that they stand."""
    folder, snapshots = run.candidate(spec.name), fitter.collect_snapshots()
    states = [snapshots[key] for key in problem.keys]
    stacked = {name: torch.stack([state[name] for state in states]).contiguous() for name in states[0]}
    with keep_files(folder.root):
        with replace_file(folder.members) as path:
            path.write_bytes(save(stacked))
        write_arrays(folder.predictions, predictions=history.predictions)
        files = {path.name: hash_file(path) for path in (folder.history, folder.members, folder.predictions)}
        more = {"stop_epochs": history.stop_epoch.tolist(), **asdict(fitter.describe()), "files": files}
        write_result(run, spec, problem.splits.hash, "completed", len(history.losses), **more)


def write_failure(run: RunFolder, spec: CandidateSpec, splits_hash: str, text: str) -> None:
    """Record that a candidate failed; the last line of the text is the reason shown.

    Raises:
        StorageError: It cannot be written.
    """
    folder = run.candidate(spec.name)
    with keep_files(folder.root):
        write_text(folder.error, text.strip() + "\n")
        write_result(run, spec, splits_hash, "failed", 0, reason=text.strip().split("\n")[-1])


def write_result(run: RunFolder, spec: CandidateSpec, splits_hash: str, state: str, n_epochs: int, **more: Any) -> None:
    folder = run.candidate(spec.name)
    content = {"state": state, "n_epochs": n_epochs, "splits_hash": splits_hash, "spec": spec.as_dict()}
    write_record(folder.result, content | more)
    folder.checkpoint.unlink(missing_ok=True)
    run.push()
