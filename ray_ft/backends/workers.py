"""Processes of Ray that share the work: one prepares the strategies, several may hold the members of a candidate."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_ft.backends.placement import Allocation, find_device
from ray_ft.backends.rounds import Shared
from ray_ft.fitting.fitter import FitSettings, Fitter, JoinedFitter
from ray_ft.fitting.preparation import PreparedStrategy, prepare_strategy
from ray_ft.fitting.starting import start_fitter
from ray_ft.models import Pretrained
from ray_ft.search.plan import Assignment, CandidateSpec
from ray_ft.search.problem import MemberKey, Problem
from ray_ft.search.strategies import Strategy

Keys = Sequence[MemberKey]
Shipped = tuple[PreparedStrategy, list[np.ndarray]]  # without features, and those as arrays, which are shared


class Preparer:
    """Prepares the strategies, one after the other, while the first candidates train."""

    def __init__(self) -> None:
        os.nice(10)  # what trains goes first

    def prepare(self, problem: Problem, pretrained: Pretrained, strategy: Strategy, precision: Any) -> Shipped:
        return ship(prepare_strategy(problem, pretrained, strategy, precision, find_device()))


def prepare_strategies(
    shared: Shared, strategies: Sequence[Strategy], allocation: Allocation, first: Future[PreparedStrategy]
) -> dict[str, Any]:
    """Start to prepare strategies, in the order of need; return the references by name.

    The first comes as prepared on the CPU of this process while Ray started. The preparer takes no CPU of its own, as
    the candidates that hold them wait for it. On a GPU it is there before them. As nothing refers to it afterwards, it
    ends when it is done.
    """
    prepared = {} if allocation.gpus else {strategies[0].name: ray.put(ship(first.result()))}
    if left := [strategy for strategy in strategies if strategy.name not in prepared]:
        options = {"num_cpus": 0, "num_gpus": min(1.0, allocation.gpus), "max_restarts": 2, "max_task_retries": 2}
        preparer = start_actor(Preparer, options)
        given, precision = (ray.put(shared.problem), ray.put(shared.pretrained)), shared.settings.precision
        prepared |= {strategy.name: preparer.prepare.remote(*given, strategy, precision) for strategy in left}
    return prepared


def start_actor(kind: type, options: dict[str, Any], *args: Any) -> Any:
    """Start an actor of a plain class; Ray's decorator would hide it from type checks."""
    remote: Any = ray.remote(**options)
    return remote(kind).remote(*args)


def ship(prepared: PreparedStrategy) -> Shipped:
    return replace(prepared, features=()), [feature.cpu().numpy() for feature in prepared.features]


def receive(reference: Any) -> PreparedStrategy:
    shipped, arrays = fetch(reference)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the shared arrays cannot be written to; they are not
        features = tuple(torch.from_numpy(array) for array in arrays)
    received: PreparedStrategy = replace(shipped, features=features)
    return received


@contextlib.contextmanager
def open_fitter(
    problem: Problem, own: Assignment, reference: Any, settings: FitSettings, allocation: Allocation
) -> Iterator[Fitter]:
    """Start the members of an assignment in this process or, a share of them each, in those of its placement group.

    The reference is that of its strategy, from `prepare_strategies`.
    """
    start = partial(start_here, own.spec, reference, settings, allocation)
    if allocation.n_workers == 1:
        yield start(problem, own.keys)
        return
    shared = ray.put(problem)
    group = ray.util.get_current_placement_group()
    assert group is not None, "Ray Tune made it, as `Allocation.request` asks for"
    workers = []
    for i in range(min(allocation.n_workers, len(own.keys))):
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i)
        options = {"num_cpus": allocation.cpus, "num_gpus": allocation.gpus, "scheduling_strategy": place}
        workers.append(start_actor(Worker, options, start, shared, own.keys[i :: allocation.n_workers]))
    try:
        yield JoinedFitter(partial(ask_all, workers))
    finally:
        for worker in workers:
            ray.kill(worker)  # the process that leads them may go on to the next candidate


def start_here(
    spec: CandidateSpec, reference: Any, settings: FitSettings, held: Allocation, problem: Problem, keys: Keys
) -> Fitter:
    return start_fitter(problem, receive(reference), spec, keys, settings, find_device(), held.cpus)


class Worker:
    """A fitter in a process of its own; it is started there, so that what it needs is fetched there."""

    def __init__(self, start: Callable[..., Fitter], problem: Problem, keys: Keys) -> None:
        self.fitter = start(problem, keys)

    def answer(self, question: Callable[[Fitter], Any]) -> Any:
        return question(self.fitter)


def ask_all(workers: Sequence[Any], question: Callable[[Fitter], Any]) -> list[Any]:
    """Put a question to the fitters of all workers, what it carries once for all of them."""
    shared = ray.put(question)
    answers: list[Any] = fetch([worker.answer.remote(shared) for worker in workers])
    return answers


def fetch(references: Any) -> Any:
    """Wait for results; what went wrong there is raised here, as it was."""
    try:
        return ray.get(references)
    except RayTaskError as error:
        raise error.cause from error
