"""Ray Tune: one trial a candidate, on the cluster that is joined or on a local Ray that starts and ends here."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from ray_ft.candidate import run_candidate, write_failure
from ray_ft.config import ComputeSection
from ray_ft.errors import ConfigError, RunError
from ray_ft.paths import RunFolder
from ray_ft.plan import CandidateSpec
from ray_ft.progress import Display
from ray_ft.results import load_result
from ray_ft.runner.judge import Judge
from ray_ft.runner.loggers import build_loggers
from ray_ft.runner.shares import Share, choose_share, fetch, prepare_parts, raise_squads
from ray_ft.task import Task, count_trained, prepare_part

__all__ = ["run_on_ray", "run_task"]

OBJECT_STORE_BYTES = 512 * 2**20


def run_on_ray(
    task: Task, plan: Sequence[CandidateSpec], left: Sequence[CandidateSpec], judge: Judge, display: Display
) -> dict[str, float]:
    """Train candidates as Tune trials; return the seconds that each took.

    Raises:
        ConfigError: A logger or the cluster cannot be reached, or no node has what a candidate needs.
        KeyboardInterrupt: Ctrl-C came in between.
    """
    watcher = Watcher(task, plan, judge, display)
    loggers = build_loggers(task, left, display)
    left = start_longest_first(task, left)
    strategies = list(dict.fromkeys(spec.strategy for spec in left))
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        cpu, n_threads = torch.device("cpu"), os.cpu_count() or 1
        first = pool.submit(prepare_part, task, strategies[0], cpu, n_threads)  # while Ray starts
        with connect(task.config.compute):
            share = choose_share(task, len(left))
            parts = prepare_parts(task, strategies, share, first)
            train = tune.with_parameters(train_trial, task=task, plan=tuple(plan), parts=parts, share=share)
            trainable = tune.with_resources(train, share.request())
            grid = build_tuner(trainable, task, left, OrderedHalving(judge), watcher, loggers).fit()
    if any(load_result(task.run, spec) is None and judge.stopped_at(spec.name) is None for spec in left):
        if not grid.errors:
            raise KeyboardInterrupt  # Tune swallows it and returns what it has
        raise RunError("Ray Tune ended before all candidates did; repeat the command to go on")
    return watcher.seconds


def build_tuner(
    trainable: Any,
    task: Task,
    left: Sequence[CandidateSpec],
    scheduler: TrialScheduler,
    watcher: tune.Callback,
    loggers: Sequence[tune.Callback],
) -> tune.Tuner:
    return tune.Tuner(
        trainable,
        param_space={"candidate": tune.grid_search([spec.name for spec in left])},
        tune_config=tune.TuneConfig(scheduler=scheduler, reuse_actors=True, trial_name_creator=name_trial),
        run_config=tune.RunConfig(
            name=name_attempt(task.run),
            storage_path=str(task.run.tune.absolute()),
            verbose=0,
            callbacks=[watcher, *loggers],
            failure_config=tune.FailureConfig(max_failures=task.config.compute.max_failures),
        ),
    )


@contextlib.contextmanager
def connect(compute: ComputeSection) -> Iterator[None]:
    """Join the cluster, or start a local Ray on the loopback interface; leave or end it."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    if compute.address is None:
        ray.init(
            address="local",
            _node_ip_address="127.0.0.1",
            include_dashboard=False,
            num_cpus=os.cpu_count(),
            object_store_memory=OBJECT_STORE_BYTES,
            **quiet,
        )
    else:
        check_reachable(compute.address)
        try:
            ray.init(address=compute.address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ConfigError(
                f"compute.address must name a running Ray cluster, got {compute.address}: {reason}"
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


def run_task(compute: ComputeSection, function: Callable[..., Any], *args: Any) -> Any:
    """Run a function once, on a node that has a CPU to spare; what it raises is raised here."""
    with connect(compute):
        task: Any = ray.remote(num_cpus=1)(function)
        return fetch(task.remote(*args))


def check_reachable(address: str) -> None:
    """Knock at host:port before Ray does, which would go on knocking for minutes.

    Raises:
        ConfigError: Nobody answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # `auto`, which Ray resolves
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"compute.address must name a running Ray cluster, got {address}, where nobody answers ({error}); "
            "leave it out for a local Ray"
        ) from error


def train_trial(
    params: dict[str, Any], task: Task, plan: Sequence[CandidateSpec], parts: Mapping[str, Any], share: Share
) -> None:
    """Train one candidate in a worker of Ray."""
    (spec,) = (spec for spec in plan if spec.name == params["candidate"])

    def report(epoch: int, mean: float, final: bool) -> None:
        tune.report({"epoch": epoch, "loss": mean, "final": final})

    with raise_squads(task, spec, parts, share) as broadcast:
        run_candidate(task, spec, report, broadcast)


def start_longest_first(task: Task, left: Sequence[CandidateSpec]) -> list[CandidateSpec]:
    """Order the strategies by trained parameters x epochs, so that no long one is left over at the end."""
    cost = {
        spec.strategy: count_trained(task, spec.strategy) * task.config.selected[spec.strategy].stages[0].epochs[1]
        for spec in left
    }
    return sorted(left, key=lambda spec: -cost[spec.strategy])


def name_trial(trial: Any) -> str:
    return f"{trial.config['candidate']}-{trial.trial_id}"


def name_attempt(run: RunFolder) -> str:
    """Each call of a run has a Tune folder of its own: what is done is known from the run folder, not from Tune."""
    return f"attempt-{len(list(run.tune.glob('attempt-*'))) + 1:03d}"


class OrderedHalving(FIFOScheduler):
    """Passes each result to the judge and the judge's verdict to Tune."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Ray leaves it unannotated
        self.judge = judge

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        name = trial.config["candidate"]
        if "epoch" in result:
            self.judge.hear(name, result["epoch"], result["loss"], result["final"])
        return TrialScheduler.STOP if self.judge.stopped_at(name) is not None else TrialScheduler.CONTINUE


class Watcher(tune.Callback):
    """Shows progress, keeps the time, and records candidates whose retries are used up."""

    def __init__(self, task: Task, plan: Sequence[CandidateSpec], judge: Judge, display: Display) -> None:
        self.task, self.judge, self.display = task, judge, display
        self.specs: Mapping[str, CandidateSpec] = {spec.name: spec for spec in plan}
        self.started: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks with its state, which is never restored here

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.started.setdefault(trial.config["candidate"], time.monotonic())

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "epoch" in result:
            self.display.show_epoch(trial.config["candidate"], result["epoch"], result["loss"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.finish(trial.config["candidate"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["candidate"]
        spec, folder = self.specs[name], self.task.run.candidate(name)
        error_file = Path(trial.error_file) if trial.error_file else None
        text = error_file.read_text(encoding="utf-8") if error_file and error_file.exists() else "its process died"
        write_failure(folder, spec, self.task, text)
        self.finish(name)

    def finish(self, name: str) -> None:
        self.judge.end(name)  # here, as Tune tells its scheduler of an error before a retry too
        self.seconds[name] = time.monotonic() - self.started.get(name, time.monotonic())
        result = load_result(self.task.run, self.specs[name])
        stopped = self.judge.stopped_at(name) is not None
        self.display.show_end(name, "stopped" if stopped else result["state"] if result else "stopped")
