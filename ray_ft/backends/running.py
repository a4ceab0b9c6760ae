"""Trials: a plan's candidates trained by Ray Tune, or one after the other in this process, under the same verdicts."""

import os
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ray_ft.backends.progress import Display
from ray_ft.config import ComputeSection
from ray_ft.errors import ConfigError, RunError, StorageError
from ray_ft.files.memory import describe_excess
from ray_ft.files.writing import write_record
from ray_ft.fitting.candidate import command, run_candidate, write_failure
from ray_ft.fitting.gradient import Squad
from ray_ft.fitting.task import Part, Task, count_trained, estimate_bytes, prepare_part
from ray_ft.results.records import Verdict, load_means, load_result
from ray_ft.runs.journal import Journal
from ray_ft.search.plan import CandidateSpec, list_members, resolve_grace

if TYPE_CHECKING:
    from ray_ft.backends.successive_halving import Judge

__all__ = ["run_near_storage", "run_trials", "set_up_ray"]

QUIET_RAY = {
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0; the new output prints a banner all the same
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a user's factory is imported from the working folder
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


# Ray takes the machine's outward address in place of 127.0.0.1, and then listens on all interfaces, but where it forms
# no clusters: by default on Windows and macOS alone.
ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

T = TypeVar("T")


class StopCandidate(Exception):  # noqa: N818  # no error: it ends a candidate
    """Ends a candidate in this process, as Ray Tune ends a trial."""


def run_trials(
    task: Task, plan: Sequence[CandidateSpec], inline: bool, display: Display, journal: Journal
) -> dict[str, Verdict]:
    """Train what is left of a plan and write the verdict on each candidate.

    Args:
        task: What the candidates share.
        plan: All candidates; those done in the run folder are only judged.
        inline: Train in this process, without starting Ray.
        display: Shows the progress.
        journal: Keeps it.

    Raises:
        ConfigError: What trains at a time does not fit into memory, or the config sets loggers, which are Ray's, and
            Ray is not started.
        KeyboardInterrupt: It was interrupted; the same call goes on.
        RunError: The process of a candidate kept dying, or files cannot be written; the same call goes on.
    """
    loggers = [key for key, value in task.config.loggers if value]
    if inline and loggers:
        raise ConfigError(
            f"loggers need Ray, got loggers.{', loggers.'.join(loggers)} with inline (--inline); leave either out"
        )
    set_up_ray(task.config.compute.address)
    from ray_ft.backends.successive_halving import (
        Judge,  # after the settings above, which Ray reads when it is imported
    )

    judge = Judge(plan, build_rungs(task), task.config.search.reduction_factor)
    replay(task, plan, judge, display, journal)
    left = [spec for spec in plan if judge.stopped_at(spec.name) is None and load_result(task.run, spec) is None]
    check_memory(task, left, inline)
    if left and inline:
        seconds = run_inline(task, left, judge, display, journal)
    elif left:
        from ray_ft.backends.tune import run_on_ray

        seconds = run_on_ray(task, plan, left, judge, display, journal)
    else:
        seconds = {}
    verdicts = {spec.name: pass_verdict(task, spec, judge, seconds.get(spec.name, 0.0)) for spec in plan}
    write_record(task.run.verdicts, {name: verdict.as_dict() for name, verdict in verdicts.items()})
    return verdicts


def check_memory(task: Task, left: Sequence[CandidateSpec], inline: bool) -> None:
    """Refuse candidates of which those that train at a time would not fit into the memory of this machine.

    Of a cluster that is joined, and of GPUs, this machine's memory says nothing.

    Raises:
        ConfigError: It has the numbers.
    """
    compute, cv = task.config.compute, task.config.cv
    on_gpu = compute.device == "cuda" or (compute.device == "auto" and torch.cuda.is_available())
    if not left or on_gpu or (compute.address is not None and not inline):
        return
    n_at_a_time = 1 if inline else min(len(left), max(1, (os.cpu_count() or 1) // (compute.cpus_per_candidate or 1)))
    needed = {name: estimate_bytes(task, name) for name in dict.fromkeys(spec.strategy for spec in left)}
    largest = max(needed, key=lambda name: needed[name])
    if excess := describe_excess(needed[largest] * n_at_a_time):
        at_a_time = "a candidate" if n_at_a_time == 1 else f"{n_at_a_time} candidates at a time"
        raise ConfigError(
            f"{at_a_time} must fit into memory, got {largest}, of {cv.folds * cv.seeds * cv.repeats:,} members with "
            f"{count_trained(task, largest):,} trained parameters each, on {len(task.dataset):,} samples: {excess}; "
            "lower cv.seeds, cv.repeats or training.n_noisy_views, train less, or raise compute.cpus_per_candidate, so "
            "that fewer candidates train at a time"
        )


def set_up_ray(address: str | None) -> None:
    """Set what Ray reads when it is imported; what the user has set stays.

    Args:
        address: Of the cluster to join; a local Ray, where it is None, stays on the loopback interface.
    """
    settings = QUIET_RAY | (ON_LOOPBACK if address is None else {})
    os.environ.update({key: os.environ.get(key, value) for key, value in settings.items()})


def run_near_storage(compute: ComputeSection, inline: bool, function: Callable[..., T], *args: Any) -> T:
    """Call a function as a Ray task on the cluster that is joined, whose nodes share the run folder; else here."""
    if inline or compute.address is None:
        return function(*args)
    set_up_ray(compute.address)
    from ray_ft.backends.tune import run_task

    result: T = run_task(compute, function, *args)
    return result


def build_rungs(task: Task) -> dict[str, tuple[int, int]]:
    """First rung and longest schedule of each strategy."""
    return {
        name: (resolve_grace(task.config.search, strategy), sum(stage.epochs[1] for stage in strategy.stages))
        for name, strategy in task.config.selected.items()
    }


def replay(task: Task, plan: Sequence[CandidateSpec], judge: "Judge", display: Display, journal: Journal) -> None:
    """Tell the judge what an earlier call of the run has seen."""
    for spec in plan:
        means = load_means(task.run, spec, task.splits)
        journal.resume(spec.name, len(means))
        result = load_result(task.run, spec)
        for epoch, mean in enumerate(means, start=1):
            judge.hear(spec.name, epoch, mean, final=result is not None and epoch == len(means))
            display.show_epoch(spec.name, epoch, mean)
        if result is not None:
            judge.end(spec.name)
            display.show_end(spec.name, result["state"])


def run_inline(
    task: Task, left: Sequence[CandidateSpec], judge: "Judge", display: Display, journal: Journal
) -> dict[str, float]:
    seconds = {}
    compute, cv = task.config.compute, task.config.cv
    device = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if compute.device == "auto" else compute.device
    )
    torch.set_num_threads(1)  # one a member, so that sums are taken in the same order whatever there is
    n_threads = compute.cpus_per_candidate or os.cpu_count() or 1
    keys = list_members(cv.repeats, cv.folds, cv.seeds)
    parts: dict[str, Part] = {}
    for spec in left:
        started = time.monotonic()

        def report(epoch: int, mean: float, final: bool, name: str = spec.name) -> None:
            judge.hear(name, epoch, mean, final)
            display.show_epoch(name, epoch, mean)
            journal.write_epoch(name, epoch, mean)
            if judge.stopped_at(name):
                raise StopCandidate

        try:
            if spec.strategy not in parts:
                parts[spec.strategy] = prepare_part(task, spec.strategy, device, n_threads)
            squad = Squad(task, parts[spec.strategy], spec, keys, device, n_threads, compute.packing)
            run_candidate(task, spec, report, command([squad]))
        except StopCandidate:
            pass
        except StorageError:  # the next candidate's could not be written either
            raise
        except Exception:  # the border of a candidate: the others go on, as on Ray
            write_failure(task.run.candidate(spec.name), spec, task, traceback.format_exc())
        judge.end(spec.name)
        seconds[spec.name] = time.monotonic() - started
        state = pass_verdict(task, spec, judge, 0.0).state
        display.show_end(spec.name, state)
        journal.write("end of candidate", candidate=spec.name, state=state)
    return seconds


def pass_verdict(task: Task, spec: CandidateSpec, judge: "Judge", seconds: float) -> Verdict:
    stopped, result = judge.stopped_at(spec.name), load_result(task.run, spec)
    if stopped is not None:
        return Verdict("stopped", stopped, "", seconds)
    if result is None:
        raise RunError(f"candidate {spec.name} ended without a result; repeat the command to go on with it")
    return Verdict(result["state"], result["n_epochs"], result.get("reason", ""), seconds)
