"""Members of one candidate end to end, epoch by epoch, to files in a folder.

Each epoch fits every member and scores all held-out losses together. Where a candidate is searched, the weights of a
fold's members are kept when the fold's guide is at its lowest (the mean of the *other* folds, or of its inner part
under the nested protocol): no more than one snapshot a member is needed. Members that follow for a fold that has chosen
are kept at the epoch that it chose. Epoch 0 is the pretrained network, which may be chosen too.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save

from ray_ft.errors import DivergedError, FrozenDriftError
from ray_ft.files.arrays import read_arrays
from ray_ft.files.hashes import hash_file
from ray_ft.files.writing import replace_file, write_arrays, write_record, write_text
from ray_ft.fitting.checkpoint import load_checkpoint, save_checkpoint
from ray_ft.fitting.fitter import Fitter, Predictions
from ray_ft.fitting.range_test import RangeTest
from ray_ft.runs.folder import RunFolder, keep_files
from ray_ft.search.plan import Assignment
from ray_ft.search.problem import Problem
from ray_ft.statistics.scores import build_curves

Report = Callable[[int, float, bool], None]


@dataclass
class History:
    """What changes from epoch to epoch beside the members."""

    losses: list[Float[np.ndarray, "repeat seed sample"]]  # from epoch 0 on
    inner: list[Float[np.ndarray, "repeat fold seed"]]  # under the nested protocol
    predictions: Float[np.ndarray, "repeat seed sample *response"]  # of the snapshots
    lowest: Float[np.ndarray, "repeat fold"]  # the guide at the snapshot
    stop_epoch: Int[np.ndarray, "repeat fold"]
    best_mean: float = float("inf")
    best_epoch: int = 0

    def stack(self) -> dict[str, Float[np.ndarray, "epoch ..."]]:
        stacked = {"losses": np.stack(self.losses)}
        return stacked | {"inner": np.stack(self.inner)} if self.inner else stacked


def run_members(
    problem: Problem,
    run: RunFolder,
    own: Assignment,
    fitter: Fitter,
    report: Report,
    checkpoint_every: int,
    must_leave: Callable[[], bool] = lambda: False,
) -> None:
    """Train the members of an assignment, or go on with them, until their schedule or their patience ends.

    Args:
        problem: What is to be learned.
        run: Where its files go.
        own: Which members of which candidate.
        fitter: Holds all of them, at their start.
        report: Called after each epoch with its number, from 1, the mean loss that guides (held-out, or
            of the inner parts), and whether it is the last; it may raise to stop.
        checkpoint_every: Epochs between checkpoints.
        must_leave: Says that this machine will soon be gone: each epoch then ends with a checkpoint.

    Raises:
        StorageError: Its files cannot be written.

    A loss that is no number, or a frozen parameter that moved, ends the candidate as failed: another try would end
    the same way. Any other error is raised.
    """
    folder, history = run.candidate(own.name), start_history(problem, own)
    done = restore(run, own, history, fitter)
    try:
        if done < 0:
            mean, done = record_epoch(problem, own, fitter.predict(), history, fitter), 0
            if own.n_epochs == 0:
                conclude(problem, run, own, history, fitter)
                report(0, mean, True)
        for epoch in range(done, own.n_epochs):
            fitter.run_epoch(epoch)
            mean = record_epoch(problem, own, fitter.predict(), history, fitter)
            with keep_files(folder.root):
                write_arrays(folder.history, **history.stack())
            since = max(history.best_epoch, own.spec.n_before)  # a stage ends by its schedule, but the last
            waited = epoch + 1 - since
            impatient = own.until is None and waited >= own.spec.patience
            if epoch + 1 == own.n_epochs or impatient:
                conclude(problem, run, own, history, fitter)
                report(epoch + 1, mean, True)
                return
            if (epoch + 1) % checkpoint_every == 0 or must_leave():
                save_progress(run, own, history, fitter)
            report(epoch + 1, mean, False)
    except (DivergedError, FrozenDriftError) as error:
        write_failure(run, own, problem.splits.hash, f"{type(error).__name__}: {error}")


def conclude(problem: Problem, run: RunFolder, own: Assignment, history: History, fitter: Fitter) -> None:
    if fitter.has_drifted():
        raise FrozenDriftError(f"frozen parameters and buffers must not move, but those of {own.name} did")
    write_members(problem, run, own, history, fitter)


def start_history(problem: Problem, own: Assignment) -> History:
    shape = (problem.splits.n_repeats, len(own.seeds), len(problem.samples), *problem.response_shape)
    return History(
        losses=[],
        inner=[],
        predictions=np.zeros(shape, np.float32),
        lowest=np.full(problem.by_fold, np.inf),
        stop_epoch=np.zeros(problem.by_fold, int),
    )


def record_epoch(
    problem: Problem, own: Assignment, predictions: Predictions, history: History, fitter: Fitter
) -> float:
    """Take the losses of all members, and snapshot those that are to be kept so far; return the mean of what guides."""
    splits, nested, epoch = problem.splits, bool(problem.splits.inner_of), len(history.losses)
    losses, inner = score_members(problem, own, predictions, epoch)
    history.losses.append(losses)
    if nested:
        history.inner.append(inner)
    if own.until is None:
        guide = build_curves(losses, inner if nested else None, splits).guide
        kept, mean = guide < history.lowest, float(guide.mean())
        history.lowest[kept] = guide[kept]
    else:
        kept, mean = np.full(problem.by_fold, epoch == own.until), float(np.nanmean(losses))
    history.stop_epoch[kept] = epoch
    for key, predicted in predictions.items():
        if kept[key.place]:
            held_out = splits.held_out(*key.place)
            history.predictions[key.repeat, key.seed - own.seeds[0], held_out] = predicted[: len(held_out)]
    fitter.take_snapshots(kept)
    if epoch and mean < history.best_mean:
        history.best_mean, history.best_epoch = mean, epoch
    return mean


def score_members(
    problem: Problem, own: Assignment, predictions: Predictions, epoch: int
) -> tuple[Float[np.ndarray, "repeat seed sample"], Float[np.ndarray, "repeat fold seed"]]:
    """Score each held-out sample, and under the nested protocol the means of the inner parts; NaN where none trains.

    Raises:
        DivergedError: A score is infinite or not a number.
    """
    splits, targets = problem.splits, problem.samples.targets
    losses = np.full((splits.n_repeats, len(own.seeds), len(targets)), np.nan)
    inner = np.full((*problem.by_fold, len(own.seeds)), np.nan)
    for key, predicted in predictions.items():
        watched, n_held_out = splits.watched(*key.place), len(splits.held_out(*key.place))
        scores, seed = problem.objective.score(predicted, targets[watched]), key.seed - own.seeds[0]
        if not np.isfinite(scores).all():
            raise DivergedError(
                f"the loss of {key} on unseen samples became {scores.max()} in epoch {epoch}; lower the lr"
            )
        losses[key.repeat, seed, watched[:n_held_out]] = scores[:n_held_out]
        if splits.inner_of:
            inner[key.repeat, key.fold, seed] = scores[n_held_out:].mean()
    return losses, inner


def save_progress(run: RunFolder, own: Assignment, history: History, fitter: Fitter) -> None:
    """Write all that the next epoch depends on."""
    members, folder = fitter.save(), run.candidate(own.name)
    arrays = {name: torch.from_numpy(getattr(history, name)) for name in ("predictions", "lowest", "stop_epoch")}
    content = {
        "members": [members[key] for key in own.keys],
        "history": {name: torch.from_numpy(array) for name, array in history.stack().items()},
        "best": [history.best_mean, history.best_epoch],
        **arrays,
    }
    with keep_files(folder.root):
        save_checkpoint(folder.checkpoint, content)
        run.push()


def restore(run: RunFolder, own: Assignment, history: History, fitter: Fitter) -> int:
    """Go back to the last checkpoint; return how many epochs are done, -1 where there is none."""
    folder = run.candidate(own.name)
    for partial in folder.root.glob(".*"):  # of a process that was killed while it wrote
        partial.unlink(missing_ok=True)
    try:
        read_arrays(folder.history)
    except (OSError, ValueError):
        return -1  # there is none, or what judges its epochs was not told of them: they are made again
    saved: Mapping[str, Any] | None = load_checkpoint(folder.checkpoint)
    if saved is None:
        return -1
    fitter.load(dict(zip(own.keys, saved["members"], strict=True)))
    history.losses = list(saved["history"]["losses"].numpy())
    history.inner = list(saved["history"]["inner"].numpy()) if "inner" in saved["history"] else []
    history.best_mean, history.best_epoch = saved["best"]
    for name in ("predictions", "lowest", "stop_epoch"):
        setattr(history, name, saved[name].numpy())
    return len(history.losses) - 1


def write_members(problem: Problem, run: RunFolder, own: Assignment, history: History, fitter: Fitter) -> None:
    """Write the snapshots, what they predict of their held-out samples, and last the marker that they stand."""
    folder, snapshots = run.candidate(own.name), fitter.collect_snapshots()
    states = [snapshots[key] for key in own.keys]
    stacked = {name: torch.stack([state[name] for state in states]).contiguous() for name in states[0]}
    with keep_files(folder.root):
        write_arrays(folder.history, **history.stack())
        with replace_file(folder.members) as path:
            path.write_bytes(save(stacked))
        write_arrays(folder.predictions, predictions=history.predictions)
        files = {path.name: hash_file(path) for path in (folder.history, folder.members, folder.predictions)}
        more = {"stop_epochs": history.stop_epoch.tolist(), **asdict(fitter.describe()), "files": files}
        write_result(run, own, problem.splits.hash, "completed", len(history.losses) - 1, **more)


def write_failure(run: RunFolder, own: Assignment, splits_hash: str, text: str) -> None:
    """Record that it failed; the last line of the text is the reason shown.

    Raises:
        StorageError: It cannot be written.
    """
    folder = run.candidate(own.name)
    with keep_files(folder.root):
        write_text(folder.error, text.strip() + "\n")
        write_result(run, own, splits_hash, "failed", 0, reason=text.strip().split("\n")[-1])


def write_range(run: RunFolder, own: Assignment, splits_hash: str, found: RangeTest) -> None:
    """Write what a range test found."""
    with keep_files(run.candidate(own.name).root):
        write_result(run, own, splits_hash, "completed", 1, **asdict(found))


def write_result(run: RunFolder, own: Assignment, splits_hash: str, state: str, n_epochs: int, **more: Any) -> None:
    folder = run.candidate(own.name)
    content = {"state": state, "n_epochs": n_epochs, "splits_hash": splits_hash, "spec": own.spec.as_dict()}
    write_record(folder.result, content | more)
    folder.checkpoint.unlink(missing_ok=True)
    run.push()
