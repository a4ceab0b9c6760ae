"""Which backend: candidates trained by Ray Tune, or one after the other in this process, under the same verdicts."""

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ray_ft.backends.rounds import Rounds
from ray_ft.config import ComputeSection, LoggersSection, SearchSection
from ray_ft.errors import ConfigError
from ray_ft.files.cpus import count_cpus
from ray_ft.files.memory import describe_excess
from ray_ft.fitting.memory_need import estimate_bytes
from ray_ft.search.best import OPTUNA
from ray_ft.search.plan import RECIPE, CandidateSpec
from ray_ft.search.problem import Problem
from ray_ft.search.strategies import Strategy

if TYPE_CHECKING:
    from ray_ft.backends.successive_halving import SuccessiveHalving

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


def start_halving(
    strategies: Mapping[str, Strategy], search: SearchSection, address: str | None
) -> "SuccessiveHalving":
    """Make what stops candidates of a strategy against each other.

    By the guide these are all of a strategy. Else they are those of schedules of one length, as a longer one learns
    later; the recipe is compared with none, so that it can be shown beside what was found. What is to bracket the best
    is not stopped in the first half of its schedule, and what Optuna proposes not in the first quarter: a learning rate
    that is right in the end may look worse at first. Nothing is stopped before its last stage.
    """
    set_up_ray(address)
    from ray_ft.backends.successive_halving import Group, SuccessiveHalving  # after the settings, which Ray reads

    def find_group(spec: CandidateSpec) -> Group | None:
        if search.method == "guide":
            own = strategies[spec.strategy]
            return spec.strategy, search.grace_epochs or max(1, -(-own.longest // 4)), own.longest, spec.n_before
        if spec.origin == RECIPE:
            return None
        protected = spec.n_before + math.ceil(spec.stages[-1].n_epochs * (0.25 if spec.origin == OPTUNA else 0.5))
        schedule = "+".join(str(stage.n_epochs) for stage in spec.stages)
        return f"{spec.strategy}/{schedule}", search.grace_epochs or 1, spec.n_epochs, protected

    return SuccessiveHalving(find_group, search.reduction_factor, by_lowest=search.method != "guide")


def train_all(rounds: Rounds, loggers: LoggersSection, name: str, inline: bool) -> None:
    """Train until nothing is left, in this process or by Ray; the name is that under which a run is logged.

    Raises:
        ConfigError: What trains at a time does not fit into memory, or a logger or the cluster cannot be reached.
        KeyboardInterrupt: It was interrupted; the same call goes on.
        RunError: The process of a candidate kept dying, or files cannot be written; the same call goes on.
    """
    shared = rounds.shared
    if (first := rounds.take()) is None:
        return
    needed = {
        name: estimate_bytes(shared.problem, own, shared.settings.n_noisy_views, rounds.n_seeds[name])
        for name, own in shared.strategies.items()
    }
    check_memory(shared.problem, shared.strategies, shared.compute, needed, 1 if inline else rounds.width)
    if inline:
        from ray_ft.backends.inline import train_inline

        train_inline(rounds, first)
    else:
        from ray_ft.backends.loggers import build_loggers
        from ray_ft.backends.tune import train_on_ray

        train_on_ray(rounds, first, partial(build_loggers, loggers, name, shared))


def check_loggers(loggers: LoggersSection, inline: bool) -> None:
    """Refuse loggers without Ray, whose they are."""
    asked = [key for key, value in loggers if value]
    if inline and asked:
        raise ConfigError(
            f"loggers need Ray, got loggers.{', loggers.'.join(asked)} with inline (--inline); leave either out"
        )


def check_memory(
    problem: Problem,
    strategies: Mapping[str, Strategy],
    compute: ComputeSection,
    needed: Mapping[str, int],
    n_left: int,
) -> None:
    """Refuse candidates of which those that train at a time would not fit into the memory of this machine.

    Of a cluster that is joined this machine's memory says nothing. What trains on a GPU is prepared, checkpointed and
    collected here, so it counts as well. `needed` has the bytes of a candidate of each strategy; `n_left` candidates
    may train at a time.
    """
    if compute.address is not None and n_left > 1:
        return
    kind, n_devices, asked = "cpus", count_cpus(), float(compute.cpus_per_candidate or 1)
    if compute.device == "cuda" or (compute.device == "auto" and torch.cuda.is_available()):
        kind, n_devices = "gpus", torch.cuda.device_count()
        asked = compute.gpus_per_candidate or 1.0  # where none is asked for, they share one as far as memory allows
    n_at_a_time = min(n_left, max(1, int(n_devices / asked)))
    largest = max(needed, key=lambda name: needed[name])
    if excess := describe_excess(needed[largest] * n_at_a_time):
        at_a_time = "a candidate" if n_at_a_time == 1 else f"{n_at_a_time} candidates at a time"
        raise ConfigError(
            f"{at_a_time} must fit into memory, got {largest}, of {len(problem.keys):,} members with "
            f"{strategies[largest].n_trained:,} trained parameters each, on {len(problem.samples):,} samples: "
            f"{excess}; lower cv.seeds, cv.repeats or training.n_noisy_views, train less, or raise "
            f"compute.{kind}_per_candidate, so that fewer candidates train at a time"
        )


def set_up_ray(address: str | None) -> None:
    """Set what Ray reads when it is imported, but for what the user has set; a local one stays on the loopback."""
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
