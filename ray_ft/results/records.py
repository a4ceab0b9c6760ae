"""A run folder read back: verdicts, curves, members and out-of-fold predictions of its candidates.

What is missing or damaged is a `RunFolderError`, but where a candidate in training is asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ray_ft.data.folds import Splits
from ray_ft.errors import DivergedError, NetworkError, RayFTError, RunError, RunFolderError, first_few
from ray_ft.files.arrays import read_arrays
from ray_ft.files.hashes import hash_file
from ray_ft.files.writing import read_record
from ray_ft.objectives import Objective, Targets
from ray_ft.runs.folder import RunFolder
from ray_ft.search.plan import Assignment, CandidateSpec, name_candidate, name_finish
from ray_ft.search.problem import Place
from ray_ft.search.settling import Attempt
from ray_ft.statistics.scores import Choice, Curves, Scores, StrategyScore, build_curves, choose, score_choice
from ray_ft.statistics.selection import Losses


class Environment(BaseModel):
    """Where a run was made; of `provenance.json`."""

    command: list[str]
    started: str
    python: str
    platform: str
    n_cpus: int | None
    versions: dict[str, str | None]


class Provenance(BaseModel):
    """What a run came from, as `provenance.json` has it."""

    format: int = 1
    config: dict[str, Any]
    splits_hash: str
    data_hash: str
    weights_hash: str
    first_losses: list[float] = []
    classes: list[str] | None = None  # of older runs it is not known
    environment: Environment


class Ending(BaseModel):
    """What of `result.json` is read."""

    state: Literal["completed", "failed"]
    n_epochs: int
    reason: str = ""
    note: str = ""
    training: str = ""


@dataclass(frozen=True)
class Verdict:
    """How a candidate ended, after which epoch, why, and the seconds that its search took, over all calls."""

    state: Literal["completed", "stopped", "failed"]
    epoch: int
    reason: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Plan = Sequence[CandidateSpec]
Verdicts = Mapping[str, Verdict]


@dataclass(frozen=True)
class History:
    """Losses of members after each epoch from 0 on: held out by sample, and means of the inner parts if nested."""

    losses: Float[np.ndarray, "epoch repeat seed sample"]
    inner: Float[np.ndarray, "epoch repeat fold seed"] | None


@contextmanager
def refuse_damage(rule: str, remedy: str) -> Iterator[None]:
    """Turn what reading a file raises into the rule that it breaks."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunFolderError(f"{rule} missing or damaged; {remedy}") from error


def holding(what: str, path: Path) -> AbstractContextManager[None]:
    return refuse_damage(f"a run holds {what}, got {path}, which is", "restore it, or run again into another --out")


def load_judged(run: RunFolder) -> tuple[tuple[CandidateSpec, ...], dict[str, Verdict]]:
    """Read the candidates of a finished run and how they ended; not those that a larger budget has begun since."""
    rule = f"a finished run holds {run.verdicts.name}, got {run.root} where it is"
    with refuse_damage(rule, f"remove its {run.summary.name}, if any, and repeat its cv command"):
        verdicts = TypeAdapter(dict[str, Verdict]).validate_python(read_record(run.verdicts))
        plan = {spec.name: spec for spec in load_plan(run)}
        judged = tuple(plan[name] for name in verdicts)
    return judged, verdicts


def load_plan(run: RunFolder) -> tuple[CandidateSpec, ...]:
    """Read the plan."""
    with holding("its plan", run.plan):
        plan = TypeAdapter(tuple[CandidateSpec, ...]).validate_python(read_record(run.plan)["candidates"])
    for spec in plan:
        run.candidate(spec.name)  # refuses a name that would be no folder of the run's
    return plan


def load_provenance(run: RunFolder) -> dict[str, Any]:
    """Read what a run came from."""
    with holding("its provenance", run.provenance):
        provenance = Provenance.model_validate(read_record(run.provenance))
    return provenance.model_dump()


def load_splits(run: RunFolder) -> Splits:
    """Read the folds."""
    with holding("its splits", run.splits):
        splits = TypeAdapter(Splits).validate_python(read_record(run.splits))
        splits.check()
    return splits


def load_blind(run: RunFolder, objective: Objective) -> dict[str, Float[np.ndarray, "_ *values"]]:
    """Read what the winner's blind members say (`mean`, `std`), the `targets`, and the `zero_shot` responses."""
    rule = f"a finished run holds {run.blind.name}, got {run.root} where it is"
    with refuse_damage(rule, f"write it again with: ray-ft ensemble {run.root}"):
        arrays = read_arrays(run.blind)
        blind = {name: arrays[name] for name in ("mean", "std", "targets", "zero_shot")}
        mean, _, targets, _ = blind.values()
        shapes = {blind[name].shape for name in ("mean", "std", "zero_shot")}
        if len(shapes) > 1 or len(targets) != len(mean) or any(array.dtype.kind != "f" for array in blind.values()):
            raise ValueError("its arrays must be numbers, and those of responses of one shape")
        if misfit := objective.find_misfit(mean.shape[1:], targets.shape[1:]):
            raise ValueError(misfit)
    return blind


def load_result(run: RunFolder, name: str) -> dict[str, Any] | None:
    """Read how an assignment ended; None where it has not, or where this can no longer be told."""
    try:
        result = read_record(run.candidate(name).result)
        Ending.model_validate(result)
        return result
    except (OSError, ValueError):  # damaged: it is trained again, which ends the same way
        return None


def read_spec(content: object) -> CandidateSpec | None:
    """Read a candidate as a record has it; None where it is none."""
    try:
        return TypeAdapter(CandidateSpec).validate_python(content)
    except ValueError:
        return None


def load_history(run: RunFolder, name: str, splits: Splits) -> History | None:
    """Read the losses of an assignment; None where there are none to be read yet, or they are not of these folds."""
    try:
        arrays = read_arrays(run.candidate(name).history)
        losses, inner = arrays["losses"], arrays.get("inner")
    except (OSError, ValueError, KeyError):
        return None  # it is written again from the last checkpoint
    if losses.dtype.kind != "f" or losses.ndim != 4 or losses.size == 0:
        return None
    n_epochs, n_repeats, n_seeds, n_samples = losses.shape
    fits = (n_repeats, n_samples) == (splits.n_repeats, splits.n_samples)
    if inner is not None:
        fits &= inner.dtype.kind == "f" and inner.shape == (n_epochs, n_repeats, splits.n_folds, n_seeds)
    return History(losses, inner) if fits else None


def load_guide(run: RunFolder, name: str, splits: Splits) -> Float[np.ndarray, "epoch repeat fold"]:
    """Read a candidate's guide after each epoch from 0 on, as far as it is known."""
    history = load_history(run, name, splits)
    if history is None:
        return np.empty((0, splits.n_repeats, splits.n_folds))
    guide: np.ndarray = build_curves(history.losses, history.inner, splits).guide
    return guide


def load_means(run: RunFolder, own: Assignment, splits: Splits) -> list[float]:
    """Read the mean that an assignment reported after each epoch from 1 on, as far as it is known."""
    if own.until is None:
        return [float(guide.mean()) for guide in load_guide(run, own.name, splits)[1:]]
    history = load_history(run, own.name, splits)
    return [] if history is None else [float(np.nanmean(losses)) for losses in history.losses[1:]]


def load_attempt(run: RunFolder, spec: CandidateSpec, verdict: Verdict, splits: Splits) -> Attempt:
    """Read how a candidate that was searched has ended; what it did past the epoch where it was stopped is left out."""
    if verdict.state == "completed":
        load_whole_history(run, spec, splits)  # which says what to do where it is damaged
    guide = load_guide(run, spec.name, splits)
    counted = guide[: verdict.epoch + 1] if verdict.state == "stopped" else guide
    return Attempt(spec, verdict.state, counted, verdict.reason.startswith(DivergedError.__name__))


def load_attempts(run: RunFolder, plan: Plan, verdicts: Verdicts, strategy: str, splits: Splits) -> list[Attempt]:
    """Read how all candidates of a strategy have ended."""
    specs = [spec for spec in plan if spec.strategy == strategy]
    return [load_attempt(run, spec, verdicts[spec.name], splits) for spec in specs]


def load_members(run: RunFolder, name: str) -> dict[str, Tensor]:
    """Read the snapshots of an assignment, stacked along a first axis of members."""
    folder = run.candidate(name)
    path = folder.members
    with completed(run, name, "snapshots"):
        run.pull(path)
        if hash_file(path) != read_record(folder.result)["files"][path.name]:
            raise ValueError(f"{path} is not as it was written")
        members = load_file(path)
    return members


def load_predictions(run: RunFolder, name: str) -> Float[np.ndarray, "repeat seed sample *target"]:
    """Read what the snapshots of an assignment say of their held-out samples."""
    with completed(run, name, "predictions"):
        predictions = read_arrays(run.candidate(name).predictions)["predictions"]
        if predictions.dtype.kind != "f" or predictions.ndim < 3:
            raise ValueError(f"predictions have the shape {predictions.shape}")
    return predictions


def completed(run: RunFolder, name: str, what: str) -> AbstractContextManager[None]:
    rule = f"a completed candidate has {what}, got {run.candidate(name).root} where they are"
    return refuse_damage(rule, f"remove it, {say_again(run)}")


def say_again(run: RunFolder) -> str:
    """Say what makes a run go on that may have ended."""
    return f"and {run.summary.name} if there is one, and repeat the cv command"


def load_curves(run: RunFolder, plan: Plan, verdicts: Verdicts, strategy: str, splits: Splits) -> dict[int, Curves]:
    """Read the curves of a strategy's completed candidates, by index."""
    specs = [spec for spec in plan if spec.strategy == strategy and verdicts[spec.name].state == "completed"]
    histories = {spec.index: load_whole_history(run, spec, splits) for spec in specs}
    return {index: build_curves(history.losses, history.inner, splits) for index, history in histories.items()}


def score_strategies(run: RunFolder, plan: Plan, verdicts: Verdicts, splits: Splits, n_seeds: int) -> Scores:
    """Score each strategy by its completed candidates; None where it has none, so no folds x seeds."""
    scores: dict[str, StrategyScore | None] = {}
    for strategy in dict.fromkeys(spec.strategy for spec in plan):
        curves = load_curves(run, plan, verdicts, strategy, splits)
        scores[strategy] = None
        if curves:
            choice, n_searched = choose(curves), next(iter(curves.values())).held_out.shape[-1]
            later = load_later(run, strategy, choice, splits) if n_searched < n_seeds else None
            scores[strategy] = score_choice(choice, curves, later)
    return scores


def load_later(
    run: RunFolder, strategy: str, choice: Choice, splits: Splits
) -> Float[np.ndarray, "repeat fold later_seed"]:
    """Read the held-out means of the seeds that trained only where a fold has chosen."""
    places = list(np.ndindex(choice.epoch.shape))
    means = [load_later_losses(run, name_later(strategy, choice, at), splits, at).mean(-1) for at in places]
    return np.reshape(means, (*choice.epoch.shape, -1))


def name_later(strategy: str, choice: Choice, place: Place) -> str:
    """Name the assignment of the seeds that trained where a fold has chosen."""
    return name_finish(name_candidate(strategy, int(choice.candidate[place])), place, int(choice.epoch[place]))


def load_later_losses(
    run: RunFolder, name: str, splits: Splits, place: Place
) -> Float[np.ndarray, "later_seed held_out"]:
    history = load_history(run, name, splits)
    if history is None:
        raise RunFolderError(
            f"a completed candidate has a loss for every fold and seed, got {run.candidate(name).root}, where they are "
            f"missing or damaged; remove it, {say_again(run)}"
        )
    found: np.ndarray = history.losses[-1, place[0]][:, splits.held_out(*place)]
    return found


def gather_columns(
    run: RunFolder, strategy: str, score: StrategyScore, splits: Splits
) -> Float[np.ndarray, "seed repeat sample *response"]:
    """Read what the members behind a score say of each sample that never saw it: a column a seed."""
    places = list(np.ndindex(score.epoch.shape))
    folders = {place: list_folders(run, strategy, score, place) for place in places}
    predictions = {name: load_predictions(run, name) for names in folders.values() for name in names}
    shape = next(iter(predictions.values())).shape[2:]
    columns = np.empty((score.values.shape[-1], len(score.epoch), *shape))
    for place, names in folders.items():
        held_out, repeat = splits.held_out(*place), place[0]
        columns[:, repeat, held_out] = np.concatenate([predictions[name][repeat][:, held_out] for name in names])
    return columns


def list_folders(run: RunFolder, strategy: str, score: StrategyScore, place: Place) -> list[str]:
    """Name what trained the members of a fold, in the order of their seeds."""
    searched, later = name_candidate(strategy, int(score.candidate[place])), name_later(strategy, score, place)
    return [searched, later] if run.candidate(later).result.exists() else [searched]


def measure_strategies(
    run: RunFolder, scores: Scores, splits: Splits, objective: Objective, targets: Targets
) -> dict[str, dict[str, float]]:
    """Measure what is told beside the score, for each seed and repeat by what members say that never saw a sample."""
    found = {}
    for name, score in scores.items():
        columns = () if score is None else gather_columns(run, name, score, splits)
        found[name] = average_measures([objective.measure_beside(own, targets) for seed in columns for own in seed])
    return found


def average_measures(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average each measure over those that have it."""
    names = dict.fromkeys(name for own in found for name in own)
    return {name: float(np.mean([own[name] for own in found if name in own])) for name in names}


def gather_losses(run: RunFolder, strategy: str, score: StrategyScore, splits: Splits) -> Losses:
    """Read each sample's held-out loss at the choices behind a score, averaged over seeds and repeats."""
    total = np.zeros(splits.n_samples)
    for place in np.ndindex(score.candidate.shape):
        name, held_out = name_candidate(strategy, int(score.candidate[place])), splits.held_out(*place)
        history = load_history(run, name, splits)
        assert history is not None, "it was read to score"
        losses = history.losses[score.epoch[place], place[0]][:, held_out]
        if len(losses) < score.values.shape[-1]:
            later = load_later_losses(run, name_later(strategy, score, place), splits, place)
            losses = np.concatenate([losses, later])
        total[held_out] += losses.mean(0)
    return total / splits.n_repeats


def load_whole_history(run: RunFolder, spec: CandidateSpec, splits: Splits) -> History:
    """Read the losses of a completed candidate, of which none may be missing."""
    history, path = load_history(run, spec.name, splits), run.candidate(spec.name).history
    rule = f"a completed candidate has a loss for every fold and seed, got {path}"
    remedy = f"remove {path.parent}, {say_again(run)}"
    if history is None:
        raise RunFolderError(f"{rule}, which is missing or damaged; {remedy}")
    holes = [
        f"repeat {r}, fold {k}, seed {s}"
        for r, k, s in np.ndindex(splits.n_repeats, splits.n_folds, history.losses.shape[2])
        if not np.isfinite(history.losses[:, r, s, splits.held_out(r, k)]).all()
    ]
    if holes:
        raise RunFolderError(f"{rule} without those of {first_few(holes)}; {remedy}")
    return history


def describe_defeat(run: RunFolder, verdicts: Mapping[str, Verdict]) -> RayFTError:
    """Say why nothing was completed; where it was the network alone, the user can mend it."""
    reasons = {verdict.reason for verdict in verdicts.values() if verdict.reason}
    listed = "\n".join(f"  {reason}" for reason in sorted(reasons))
    by_network = bool(reasons) and all(f"{NetworkError.__name__}: " in reason for reason in reasons)
    return (NetworkError if by_network else RunError)(
        f"no strategy has a completed candidate\n{listed}\n"
        f"the logs are {run.candidates}/*/error.txt; remove a candidate's folder to try it again"
    )
