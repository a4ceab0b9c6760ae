"""Ray Tune: one trial a candidate, on the cluster that is joined or on a local Ray that starts and ends here."""

import contextlib
import logging
import os
import pickle
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from ray_ft.backends.placement import Allocation, choose_allocation
from ray_ft.backends.preflight import check_folder, check_reachable
from ray_ft.backends.rounds import Shared
from ray_ft.backends.successive_halving import SuccessiveHalving
from ray_ft.backends.trial import train_trial
from ray_ft.backends.workers import fetch, prepare_strategies
from ray_ft.config import ComputeSection
from ray_ft.errors import ConfigError, RunError, StorageError, first_line
from ray_ft.fitting.candidate import write_failure
from ray_ft.fitting.preparation import prepare_strategy
from ray_ft.results.records import load_result
from ray_ft.runs.folder import RunFolder
from ray_ft.runs.journal import read_log
from ray_ft.search.plan import CandidateSpec

LOCAL: dict[str, Any] = {"address": "local", "_node_ip_address": "127.0.0.1", "include_dashboard": False}
OBJECT_STORE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class RayRounds:
    """Trains rounds of candidates as Tune trials; Ray starts with the first that has something to train."""

    shared: Shared
    open_loggers: Callable[[Sequence[CandidateSpec]], list[tune.Callback]]
    session: contextlib.ExitStack  # it ends with the last round
    prepared: dict[str, Any] = field(default_factory=dict)  # references of the strategies that are

    def train(self, left: Sequence[CandidateSpec]) -> dict[str, float]:
        """Train candidates; return the seconds that each took."""
        own, watcher = self.shared, Watcher(self.shared, left)
        loggers = self.open_loggers(left)
        # By trained parameters x epochs, so that no long one is left over at the end.
        cost = {name: strategy.n_trained * strategy.longest for name, strategy in own.strategies.items()}
        ordered = sorted(left, key=lambda spec: -cost[spec.strategy])
        allocation = self.prepare(ordered)
        trial = tune.with_parameters(
            train_trial, problem=own.problem, run=own.run, specs=tuple(left), prepared=self.prepared,
            settings=own.settings, allocation=allocation, max_silence_s=own.compute.max_silence_s,
        )  # fmt: skip
        tuner = tune.Tuner(
            tune.with_resources(trial, allocation.request()),
            param_space={"candidate": tune.grid_search([spec.name for spec in ordered])},
            tune_config=tune.TuneConfig(
                scheduler=OrderedHalving(own.halving), reuse_actors=True, trial_name_creator=name_trial
            ),
            run_config=tune.RunConfig(
                **build_storage(own.run),
                verbose=0,
                callbacks=[watcher, *loggers],
                stop=watcher,
                failure_config=tune.FailureConfig(max_failures=own.compute.max_failures),
            ),
        )
        grid = tuner.fit()
        watcher.raise_faults()
        if any(load_result(own.run, spec) is None and own.halving.stopped_at(spec.name) is None for spec in left):
            if not grid.errors:
                raise KeyboardInterrupt  # Tune swallows it and returns what it has
            raise RunError("Ray Tune ended before all candidates did; repeat the command to go on")
        return watcher.seconds

    def prepare(self, left: Sequence[CandidateSpec]) -> Allocation:
        """Connect, and start to prepare the strategies that are not; the first of them here, while Ray starts."""
        own = self.shared
        names = dict.fromkeys(spec.strategy for spec in left)
        wanted = [own.strategies[name] for name in names if name not in self.prepared]
        place = own.settings.precision, torch.device("cpu"), os.cpu_count() or 1
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            first = [pool.submit(prepare_strategy, own.problem, own.pretrained, one, *place) for one in wanted[:1]]
            if not self.prepared:
                self.session.enter_context(connect(own.compute))
                if own.compute.address:
                    check_folder(own.run)
            allocation = choose_allocation(own, len(left))
            if wanted:
                self.prepared.update(prepare_strategies(own, wanted, allocation, first[0]))
        return allocation


@contextlib.contextmanager
def connect(compute: ComputeSection) -> Iterator[None]:
    """Join the cluster, or start a local Ray on the loopback interface; leave or end it."""
    on_terminate = signal.getsignal(signal.SIGTERM)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if compute.address is None:
        ray.init(num_cpus=os.cpu_count(), object_store_memory=OBJECT_STORE_BYTES, **LOCAL, **quiet)
    else:
        check_reachable(compute.address)
        try:
            ray.init(address=compute.address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"compute.address must name a running Ray cluster, got {compute.address}: {first_line(error)}; "
                "if it asks for a token, set RAY_AUTH_MODE=token and have its token in ~/.ray/auth_token"
            ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray has set its own, which ends the process at once
    try:
        yield
    finally:
        ray.shutdown()


def run_task(compute: ComputeSection, function: Callable[..., Any], *args: Any) -> Any:
    """Run a function once, on a node that has a CPU to spare; what it raises is raised here."""
    with connect(compute):
        task: Any = ray.remote(num_cpus=1)(function)
        return fetch(task.remote(*args))


def name_trial(trial: Any) -> str:
    return f"{trial.config['candidate']}-{trial.trial_id}"


def build_storage(run: RunFolder) -> dict[str, Any]:
    """Where Tune keeps its own files; each call has a folder, as what is done is known from the run folder alone."""
    name = f"attempt-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
    if run.mirror is None:
        return {"name": name, "storage_path": str(run.tune.absolute())}
    system, path = run.mirror.storage
    return {"name": name, "storage_path": f"{path}/{run.tune.name}", "storage_filesystem": system}


class OrderedHalving(FIFOScheduler):
    """Passes each result on to successive halving, and its verdict to Tune."""

    def __init__(self, halving: SuccessiveHalving) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Ray leaves it unannotated
        self.halving = halving

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        name = trial.config["candidate"]
        if "epoch" in result:
            self.halving.record(name, result["epoch"], result["loss"], result["final"])
        return TrialScheduler.STOP if self.halving.stopped_at(name) is not None else TrialScheduler.CONTINUE


class Watcher(tune.Callback, tune.Stopper):
    """Shows and logs progress, keeps the time, and records candidates whose retries are used up.

    It ends all trials when files of the run can no longer be written; `broken` then says why. `lost` says, by name, why
    the process of a candidate died too often.
    """

    def __init__(self, shared: Shared, left: Sequence[CandidateSpec]) -> None:
        self.shared, self.specs = shared, {spec.name: spec for spec in left}
        self.started: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.broken = ""
        self.lost: dict[str, str] = {}
        self.lost_before = {event["candidate"] for event in read_log(shared.run.log) if event["event"] == "lost"}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks with its state, which is never restored here

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return bool(self.broken)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.started.setdefault(trial.config["candidate"], time.monotonic())

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        self.broken = self.broken or result.get("broken", "")
        if "epoch" in result and not result.get("recalled"):
            where = {"node": result["node"], "pid": result["pid"]}
            self.shared.show_epoch(trial.config["candidate"], result["epoch"], result["loss"], **where)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if not self.broken:
            self.finish(trial.config["candidate"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.shared.note("retry", candidate=trial.config["candidate"], reason=self.explain(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name, reason, own = trial.config["candidate"], self.explain(trial), self.shared
        if has_died(load_error(trial)) and name not in self.lost_before:
            own.note("lost", candidate=name, reason=reason)
            self.lost[name] = reason
            own.halving.finish(name)
            return
        text = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        write_failure(own.run, self.specs[name], own.problem.splits.hash, f"{text}\n{reason}")
        self.finish(name)

    def explain(self, trial: Any) -> str:
        """Say in a line why a candidate's process ended."""
        silence = self.shared.run.candidate(trial.config["candidate"]).silence
        if silence.exists() and silence.stat().st_size:
            seconds = self.shared.compute.max_silence_s
            return f"no epoch within {seconds:g} s (compute.max_silence_s); {silence} says where it stood"
        error = load_error(trial)
        cause = getattr(error, "cause", None) or error
        return "its process died" if cause is None else f"{type(cause).__name__}: {first_line(cause)}"

    def finish(self, name: str) -> None:
        """Take note of an end here, as Tune tells its scheduler of an error before a retry too."""
        self.seconds[name] = time.monotonic() - self.started.get(name, time.monotonic())
        self.shared.run.pull(self.shared.run.candidate(name).root)
        self.shared.finish(self.specs[name])

    def raise_faults(self) -> None:
        """Raise what is no candidate's own failure, so that the same command goes on from here."""
        if self.broken:
            raise StorageError(self.broken)
        if self.lost:
            listed = "\n".join(f"  {name}: {reason}" for name, reason in self.lost.items())
            raise RunError(
                f"a candidate's process may die {self.shared.compute.max_failures} times "
                f"(compute.max_failures), but it died once more\n{listed}\nwhat was trained is kept: repeat the "
                "command to try these again; if they die as often once more, they count as failed"
            )


def load_error(trial: Any) -> Exception | None:
    """What was raised in a trial, as Tune has it in the driver's own folder; its method looks in the storage."""
    path = trial.pickled_error_file
    error: Exception | None = pickle.loads(Path(path).read_bytes()) if path and Path(path).exists() else None
    return error


def has_died(error: Exception | None) -> bool:
    """Whether a process went away, rather than an exception was raised in it."""
    if isinstance(error, RayTaskError):
        error = error.cause
    return isinstance(error, RayActorError | NodeDiedError | OutOfMemoryError | WorkerCrashedError)
