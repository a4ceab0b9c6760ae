"""Ray Tune: one trial a candidate, on the cluster that is joined or on a local Ray that starts and ends here."""

import contextlib
import logging
import pickle
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ray_ft.backends.gpu_check import check_gpus
from ray_ft.backends.local_ray import start_ray
from ray_ft.backends.placement import Allocation, choose_allocation
from ray_ft.backends.preflight import await_node, check_folder, check_reachable
from ray_ft.backends.rounds import Rounds
from ray_ft.backends.successive_halving import SuccessiveHalving
from ray_ft.backends.trial import train_trial
from ray_ft.backends.workers import Preparation, fetch, is_of_machine, prepare_strategies
from ray_ft.config import ComputeSection
from ray_ft.errors import ConfigError, RunError, StorageError, first_line
from ray_ft.files.cpus import count_cpus
from ray_ft.files.memory import is_out_of_memory
from ray_ft.fitting.candidate import write_failure
from ray_ft.fitting.preparation import prepare_strategy
from ray_ft.runs.folder import RunFolder
from ray_ft.search.plan import Assignment

LOW = "running low on memory"  # what Ray says of an actor that it has ended for it


def train_on_ray(rounds: Rounds, first: Assignment, open_loggers: Callable[[], list[tune.Callback]]) -> None:
    """Train until nothing is left, each assignment a trial of one call of Tune."""
    own, watcher, loggers = rounds.shared, Watcher(rounds), open_loggers()
    with contextlib.ExitStack() as session:
        allocation, prepared = prepare(rounds, session)
        trial = tune.with_parameters(
            train_trial, problem=own.problem, run=own.run, prepared=prepared, settings=own.settings,
            allocation=allocation, max_silence_s=own.compute.max_silence_s,
        )  # fmt: skip
        tuner = tune.Tuner(
            tune.with_resources(trial, allocation.request()),
            tune_config=tune.TuneConfig(
                search_alg=HandOut(rounds, first),
                num_samples=-1,
                scheduler=OrderedHalving(own.halving, allocation),
                reuse_actors=True,
                trial_name_creator=name_trial,
                trial_dirname_creator=name_trial,
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
    if not rounds.is_over:
        if not grid.errors:
            raise KeyboardInterrupt  # Tune swallows it and returns what it has
        raise RunError("Ray Tune ended before all candidates did; repeat the command to go on")


def prepare(rounds: Rounds, session: contextlib.ExitStack) -> tuple[Allocation, dict[str, Preparation]]:
    """Connect, and start to prepare the strategies; the first of them here, while Ray starts."""
    own = rounds.shared
    wanted = [own.strategies[name] for name in rounds.list_left()]
    place = own.settings.precision, torch.device("cpu"), count_cpus()
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        first = pool.submit(prepare_strategy, own.problem, own.pretrained, wanted[0], *place)
        own.display.say(f"joining {own.compute.address} …" if own.compute.address else "starting Ray …")
        session.enter_context(connect(own.compute))
        if own.compute.address:
            await_node(own.compute, own.display.say)
            check_folder(own.run)
        n_members = own.problem.splits.n_repeats * own.problem.splits.n_folds * max(rounds.n_seeds.values())
        allocation = choose_allocation(own, rounds.width, n_members)
        if allocation.gpus:
            check_gpus("compute.device: cpu")
        own.display.say("preparing the strategies, and looking for the scale of their learning rates …")
        return allocation, prepare_strategies(own, wanted, allocation, first)


class HandOut(Searcher):
    """Gives Tune what is to be trained next, when something may be; all else that a searcher is told is known."""

    def __init__(self, rounds: Rounds, first: Assignment) -> None:
        super().__init__()
        self.rounds, self.first = rounds, [first]

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher with its state, which is never restored here

    def suggest(self, trial_id: str) -> Any:
        own = self.first.pop() if self.first else self.rounds.take()
        if own is None:
            return Searcher.FINISHED if self.rounds.is_over else None
        return {"candidate": own.name, "assignment": own}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The watcher has been told."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing is ever restored from Tune's own files."""


@contextlib.contextmanager
def connect(compute: ComputeSection) -> Iterator[None]:
    """Join the cluster, or start a local Ray on the loopback interface; leave or end it."""
    on_terminate = signal.getsignal(signal.SIGTERM)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if compute.address is None:
        start_ray(**quiet)
    else:
        check_reachable(compute.address)
        try:
            ray.init(address=compute.address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"compute.address must name a running Ray cluster, got {compute.address}: {first_line(error)}; "
                "if it asks for a token, set RAY_AUTH_MODE=token and have its token in ~/.ray/auth_token"
            ) from error
    handle_again(on_terminate)  # Ray has set its own, which ends the process at once
    try:
        yield
    finally:
        ray.shutdown()
        handle_again(on_terminate)  # Ray has left none, whatever Python says


def handle_again(handler: Any) -> None:
    """Set the handler of SIGTERM, which the main thread alone can."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


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
    """Passes each result on to successive halving, and its verdict to Tune; makes room for what ran out of memory."""

    def __init__(self, halving: SuccessiveHalving, allocation: Allocation) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Ray leaves it unannotated
        self.halving, self.allocation = halving, allocation

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its scheduler with its state, which is never restored here

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        name = trial.config["candidate"]
        if "epoch" in result:
            self.halving.record(name, result["epoch"], result["loss"], result["final"])
        return TrialScheduler.STOP if self.halving.stopped_at(name) is not None else TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Have what is tried again, for want of memory, hold more of a node than before."""
        if trial.status == Trial.ERROR and is_short_of_memory(load_error(trial)):  # else nothing follows
            roomier: Allocation = trial.config.get("roomier", self.allocation).widen()
            trial.config["roomier"] = roomier
            trial.update_resources(roomier.request())


class Watcher(tune.Callback, tune.Stopper):
    """Shows and logs progress, keeps the time, and records candidates whose retries are used up.

    It ends all trials when files of the run can no longer be written; `broken` then says why.
    """

    def __init__(self, rounds: Rounds) -> None:
        self.rounds, self.shared = rounds, rounds.shared
        self.started: dict[str, float] = {}
        self.broken = ""

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
            self.finish(trial)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        memory = {"memory": True} if is_short_of_memory(load_error(trial)) else {}
        self.shared.note("retry", candidate=trial.config["candidate"], reason=self.explain(trial), **memory)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name, reason, own = trial.config["candidate"], self.explain(trial), self.shared
        if is_of_machine(load_error(trial)) and name not in self.rounds.lost_before:
            self.rounds.give_up(trial.config["assignment"], reason)
            return
        text = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        write_failure(own.run, trial.config["assignment"], own.problem.splits.hash, f"{text}\n{reason}")
        self.finish(trial)

    def explain(self, trial: Any) -> str:
        """Say in a line why a candidate's process ended."""
        silence = self.shared.run.candidate(trial.config["candidate"]).silence
        if silence.exists() and silence.stat().st_size:
            seconds = self.shared.compute.max_silence_s
            return f"no epoch within {seconds:g} s (compute.max_silence_s); {silence} says where it stood"
        error = load_error(trial)
        cause = getattr(error, "cause", None) or error
        return "its process died" if cause is None else f"{type(cause).__name__}: {first_line(cause)}"

    def finish(self, trial: Any) -> None:
        """Take note of an end here, as Tune tells its scheduler of an error before a retry too."""
        own: Assignment = trial.config["assignment"]
        self.shared.run.pull(self.shared.run.candidate(own.name).root)
        self.rounds.end(own, time.monotonic() - self.started.get(own.name, time.monotonic()))

    def raise_faults(self) -> None:
        """Raise what is no candidate's own failure, so that the same command goes on from here."""
        if self.broken:
            raise StorageError(self.broken)
        self.rounds.raise_lost()


def load_error(trial: Any) -> Exception | None:
    """What was raised in a trial, as Tune has it in the driver's own folder; its method looks in the storage."""
    path = trial.pickled_error_file
    error: Exception | None = pickle.loads(Path(path).read_bytes()) if path and Path(path).exists() else None
    return error


def is_short_of_memory(error: Exception | None) -> bool:
    """Whether memory did not suffice, or Ray has ended a process before that."""
    if isinstance(error, RayTaskError):
        error = error.cause
    return LOW in str(error) or is_out_of_memory(error)
