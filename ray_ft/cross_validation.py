"""The main path: config → plan → trials → reduce → report, each step a file in the run folder."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float
from rich.console import Console
from torch import nn

from ray_ft.backends.progress import Display
from ray_ft.backends.running import run_near_storage, run_trials
from ray_ft.config import STRATEGIES_FILE, Config, read_yaml, reload_config
from ray_ft.data.folds import deal_folds, deal_inner, limit_training
from ray_ft.data.samples import load_samples
from ray_ft.domains import find_domain
from ray_ft.ensemble import reduce_members
from ray_ft.errors import (
    ConfigError,
    DataError,
    RunError,
    RunFolderError,
    StrategyError,
    UserError,
    WeightsError,
    first_few,
)
from ray_ft.fitting.task import Task
from ray_ft.models import build_network, read_weights
from ray_ft.objectives import Objective, find_objective
from ray_ft.results.baselines import score_baselines
from ray_ft.results.records import (
    Verdict,
    gather_losses,
    load_plan,
    load_provenance,
    load_splits,
    load_verdicts,
    score_strategies,
)
from ray_ft.results.summary import (
    EnsembleSummary,
    Summary,
    compare_with_baseline,
    find_notes,
    summarize_baselines,
    summarize_strategies,
    write_summary,
)
from ray_ft.runs.folder import RunFolder, hold, keep_files, open_folder, write_record, write_text
from ray_ft.runs.journal import Journal, count_lost
from ray_ft.runs.provenance import describe_environment, hash_arrays, hash_tensors
from ray_ft.search.plan import CandidateSpec, build_plan
from ray_ft.search.strategies import count_by_part, find_head_dropouts, select_trained
from ray_ft.statistics.intervals import check_level
from ray_ft.statistics.scores import pick_winner
from ray_ft.statistics.selection import correct_selection

__all__ = ["Prepared", "check_record", "cross_validate", "open_run", "prepare", "rebuild_ensemble", "reduce_run"]


@dataclass(frozen=True)
class Prepared:
    """A checked config with all that it names, ready to train."""

    task: Task
    plan: tuple[CandidateSpec, ...]
    trained: Mapping[str, tuple[str, ...]]
    parts: Mapping[str, Mapping[str, tuple[int, int]]]
    zero_shot: Float[np.ndarray, "sample *response"]

    @property
    def n_trained(self) -> dict[str, int]:
        return {name: sum(learning for learning, _ in parts.values()) for name, parts in self.parts.items()}


def cross_validate(
    config: Config, out: str | Path | RunFolder, inline: bool = False, console: Console | None = None
) -> Summary:
    """Cross-validate every strategy and build the winner's ensemble; on a run folder in progress, go on.

    Args:
        config: What to run.
        out: The run folder, or the URI of one (`s3://bucket/run`).
        inline: Train in this process, without Ray.
        console: Where to show progress.

    Returns:
        What the run found, as `summary.json` has it.

    Raises:
        UserError: Something in the config, its data or its checkpoint breaks a rule, or the folder holds another run.
        RunError: No strategy has a completed candidate, a candidate's process kept dying, or a file could not be
            written.
    """
    started = time.monotonic()
    with open_folder(out) as run, open_run(prepared := prepare(config, run)), keep_files(run.place):
        with contextlib.suppress(RunFolderError):  # there is none, or it is damaged and made again
            return Summary.load(run.root)
        journal = Journal(run.log)
        journal.write("start", **describe_environment())
        run.push()
        n_members = config.cv.folds * config.cv.seeds * config.cv.repeats
        console = console or Console(quiet=True)
        # An epoch costs roughly in proportion to what learns.
        with Display(console, prepared.plan, n_members, config.cv.metric, prepared.n_trained) as display:
            verdicts = run_trials(prepared.task, prepared.plan, inline, display, journal)
        summary = reduce_run(prepared, verdicts, started, inline)
        journal.write("end", winner=summary.winner)
        return summary


def prepare(config: Config, out: Path | RunFolder) -> Prepared:
    """Check a config against its data, checkpoint and network; write nothing.

    Raises:
        UserError: It breaks a rule.
    """
    data, cv = config.data, config.cv
    dataset = load_samples(data.inputs, data.targets, find_domain(config.layout), data.groups, data.stratify, cv.folds)
    objective = find_objective(cv.metric)
    objective.check_targets(dataset.targets, data.targets)
    splits = deal_folds(dataset.groups, cv.folds, cv.repeats, cv.seed, dataset.strata)
    if cv.train_size is not None:
        splits = limit_training(splits, dataset.groups, cv.train_size)
    if cv.protocol == "nested":
        splits = deal_inner(splits, dataset.groups, dataset.strata)
    weights = read_weights(Path(config.checkpoint)) if config.checkpoint else None
    torch.manual_seed(cv.seed)  # for a factory that draws its weights itself
    network = build_network(config.model.factory, config.model.params, weights)
    trained, parts = match_strategies(config, network)
    zero_shot = predict_zero_shot(network, dataset.inputs, objective)
    if misfit := objective.find_misfit(zero_shot.shape[1:], dataset.targets.shape[1:]):
        raise DataError(f"{misfit}; check data.targets and model.checkpoint")
    if not np.isfinite(zero_shot).all():
        raise WeightsError("the pretrained network must answer with numbers, got NaN or infinity; check its checkpoint")
    run = out if isinstance(out, RunFolder) else RunFolder(out)
    if config.compute.address and run.mirror is None:
        run = RunFolder(run.root.absolute())  # the nodes' processes have other working folders
    task = Task(config, network.state_dict(), dataset, splits, run)
    return Prepared(task, build_plan(config.selected, cv.candidates, cv.seed), trained, parts, zero_shot)


def match_strategies(
    config: Config, network: nn.Module
) -> tuple[dict[str, tuple[str, ...]], dict[str, Mapping[str, tuple[int, int]]]]:
    names = [name for name, _ in network.named_parameters()]
    trained, parts = {}, {}
    for strategy, settings in config.selected.items():
        (stage,) = settings.stages
        try:
            trained[strategy] = select_trained(strategy, stage, names)
            if stage.head_dropout is not None:
                find_head_dropouts(network)  # raises if there is none
        except StrategyError as error:
            shipped = read_yaml(STRATEGIES_FILE).get(strategy, {})
            if config.cv.strategies or list(stage.train) != shipped.get("train"):
                raise
            hint = f"{strategy} is shipped for DiffractionNet: name your own with --strategies (cv.strategies)"
            raise StrategyError(f"{error}; {hint}") from error
        parts[strategy] = count_by_part(network, trained[strategy])
    return trained, parts


@torch.no_grad()
def predict_zero_shot(
    network: nn.Module, inputs: Float[np.ndarray, "sample *input"], objective: Objective
) -> Float[np.ndarray, "_ *response"]:
    try:
        parts = [network(part.clone()) for part in torch.split(torch.from_numpy(inputs), 64)]  # it may change them
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"the network must take the inputs, got shape {inputs.shape}: {reason}") from error
    if not all(isinstance(part, torch.Tensor) for part in parts):
        kind = type(parts[0]).__name__
        raise DataError(f"the network must answer with one tensor, got {kind}; wrap it in a module that does")
    predicted: np.ndarray = objective.respond(torch.cat(parts)).numpy()
    return predicted


@contextmanager
def open_run(prepared: Prepared) -> Iterator[None]:
    """Make the run folder, or make sure that it holds this very run; keep others out while it is open.

    What this call wrote goes again when it turns out that the run cannot start.

    Raises:
        RunFolderError: It cannot be written, is in use, or holds another run or other files.
    """
    task = prepared.task
    run, made = task.run, not task.run.root.exists()
    with contextlib.ExitStack() as stack:
        try:
            record = check_record(task)
            run.root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold(run.lock, run.place))
            known = run.provenance.exists()
            write_setting(prepared, known)
            if not known:
                write_record(run.provenance, record | {"environment": describe_environment()})
            run.push()
        except OSError as error:
            reason = error.strerror or error
            raise RunFolderError(f"the run folder must be writable, got {run.place}: {reason}; set --out") from error
        if not known:
            stack.enter_context(forget_on_user_error(run, made))
        yield


def write_setting(prepared: Prepared, known: bool) -> None:
    """Write what a run is made of; of one that is known, only what is damaged, as all of it follows from its config."""
    task, run = prepared.task, prepared.task.run
    if not known or is_damaged(lambda: reload_config(run.config)):
        write_text(run.config, yaml.safe_dump(task.config.model_dump(mode="json"), sort_keys=False))
    if not known or is_damaged(lambda: load_splits(run)):
        write_record(run.splits, {"hash": task.splits.hash, **asdict(task.splits)})
    if not known or is_damaged(lambda: load_plan(run)):
        write_record(run.plan, {"candidates": [spec.as_dict() for spec in prepared.plan]})


def is_damaged(load: Callable[[], object]) -> bool:
    try:
        load()
    except (RunFolderError, ConfigError):
        return True
    return False


@contextmanager
def forget_on_user_error(run: RunFolder, made: bool) -> Iterator[None]:
    """Remove the files of a run in which nothing was trained, and its folder if it was made for it."""
    try:
        yield
    except UserError:
        if not run.candidates.exists():
            for path in (run.provenance, run.plan, run.splits, run.config, run.log, run.lock):
                path.unlink(missing_ok=True)
            run.push()
            if made and not any(run.root.iterdir()):
                run.root.rmdir()
        raise


def check_record(task: Task) -> dict[str, Any]:
    """Write down what a run is made of, and make sure that its folder holds nothing else.

    Raises:
        RunFolderError: It holds another run, other files, or a record that is damaged.
    """
    run = task.run
    record = {
        "config": task.config.identity(),
        "splits_hash": task.splits.hash,
        "data_hash": hash_arrays(task.dataset.inputs, task.dataset.targets),
        "weights_hash": hash_tensors(task.weights),
    }
    if not run.provenance.exists():
        strangers = list_strangers(run)
        if strangers:
            raise RunFolderError(
                f"a new run needs an empty folder, got {run.place} with {first_few(strangers)}; choose another --out"
            )
        return record
    old = load_provenance(run)
    changes = list(compare(old["config"], record["config"], ""))
    for key, what in (
        ("data_hash", "the data"),
        ("weights_hash", "the pretrained weights"),
        ("splits_hash", "the splits"),
    ):
        if not changes and old[key] != record[key]:
            changes.append(f"{what} have changed since")
    if changes:
        listed = "\n".join(f"  {change}" for change in changes)
        raise RunFolderError(
            f"a run folder goes on with the config that it was made with, but {run.place} differs\n{listed}\n"
            "choose another --out, or remove the folder"
        )
    return record


def list_strangers(run: RunFolder) -> list[str]:
    """Name the files of a folder that are not what a run cut off at its start leaves; that always has a lock."""
    names = sorted(path.name for path in run.root.iterdir()) if run.root.is_dir() else []
    own = (run.lock, run.config, run.splits, run.plan) if run.lock.exists() else ()
    return [name for name in names if name not in {path.name for path in own}]


def compare(old: Any, new: Any, key: str) -> Iterator[str]:
    """List the keys whose values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from compare(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield f"{key}: {json.dumps(old)} there, {json.dumps(new)} here"


def reduce_run(
    prepared: Prepared,
    verdicts: dict[str, Verdict],
    started: float,
    inline: bool = True,
    wall_s: float | None = None,
) -> Summary:
    """Score the strategies, build the winner's ensemble, and write the summary, with the time that is given if any."""
    task, plan, cv = prepared.task, prepared.plan, prepared.task.config.cv
    inline = inline or task.run.mirror is not None  # no other node has what was brought here
    _, again, n_interruptions = count_lost(task.run.log)
    scores = score_strategies(task.run, plan, verdicts, task.splits)
    winner = pick_winner(scores)
    if winner is None:
        raise RunError(describe_defeat(task.run, verdicts))
    complete = {name: score for name, score in scores.items() if score is not None}
    baselines = score_baselines(find_objective(cv.metric), prepared.zero_shot, task.dataset.targets, task.splits)
    losses = {name: gather_losses(task.run, plan, name, score, task.splits) for name, score in complete.items()}
    strategies = summarize_strategies(task, plan, verdicts, scores, prepared.parts)
    summary = Summary(
        name=task.config.name,
        metric=cv.metric,
        protocol=cv.protocol,
        n_samples=len(task.dataset),
        n_folds=cv.folds,
        n_seeds=cv.seeds,
        n_repeats=cv.repeats,
        n_params=sum(total for _, total in prepared.parts[winner].values()),
        test_share=task.splits.test_share,
        rope=cv.rope,
        splits_hash=task.splits.hash,
        data_hash=hash_arrays(task.dataset.inputs, task.dataset.targets),
        strategies=strategies,
        baselines=summarize_baselines(baselines),
        winner=winner,
        comparisons=compare_with_baseline(scores, baselines, cv.rope, task.splits.test_share),
        selection=correct_selection(losses, task.dataset.groups, cv.seed),
        ensemble=run_near_storage(
            task.config.compute,
            inline or task.run.mirror is not None,
            reduce_members,
            task,
            scores,
            winner,
            prepared.zero_shot,
        ),
        notes=[*task.dataset.notes, *find_notes(task.run, plan, scores)],
        wall_s=time.monotonic() - started if wall_s is None else wall_s,
        n_epochs_again=again,
        n_interruptions=n_interruptions,
    )
    write_summary(task.run, summary)
    return summary


def describe_defeat(run: RunFolder, verdicts: Mapping[str, Verdict]) -> str:
    reasons = {verdict.reason for verdict in verdicts.values() if verdict.reason}
    listed = "\n".join(f"  {reason}" for reason in sorted(reasons))
    return (
        f"no strategy has a completed candidate\n{listed}\n"
        f"the logs are {run.candidates}/*/error.txt; remove a candidate's folder to try it again"
    )


def rebuild_ensemble(root: Path, **choice: Any) -> EnsembleSummary:
    """Build the ensemble of a finished run again, from its members and the data and weights that it names.

    Args:
        root: The run folder.
        choice: Values of the config's section `ensemble` that replace the run's.

    Raises:
        ConfigError: A value is not valid.
        RunFolderError: The folder is no finished run, or its data or weights have changed.
    """
    run = RunFolder(root)
    verdicts = load_verdicts(run)
    load_provenance(run)  # without it the folder would pass for one that is not a run's
    prepared = prepare(reload_config(run.config, {f"ensemble.{key}": value for key, value in choice.items()}), run)
    if "level" in choice:
        check_level(1 - choice["level"], len(prepared.task.dataset))
    try:
        trained_s = Summary.load(root).wall_s
    except RunFolderError:  # it has none yet, or that of another release
        trained_s = None
    with open_run(prepared):
        return reduce_run(prepared, verdicts, time.monotonic(), wall_s=trained_s).ensemble
