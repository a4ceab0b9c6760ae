"""Processes of Ray that share the work: one prepares the strategies, several may hold the members of a candidate."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import torch
from jaxtyping import Bool
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_ft.backends.placement import Allocation, find_device
from ray_ft.fitting.fitter import (
    FitSettings,
    Fitter,
    FitterDescription,
    JoinedFitter,
    Predictions,
    States,
    merge,
)
from ray_ft.fitting.preparation import PreparedStrategy, prepare_strategy
from ray_ft.fitting.starting import start_fitter
from ray_ft.models import Pretrained
from ray_ft.search.plan import CandidateSpec
from ray_ft.search.problem import MemberKey, Problem
from ray_ft.search.strategies import Strategy

Shipped = tuple[PreparedStrategy, list[np.ndarray]]  # without features, and those as arrays, which are shared


class Preparer:
    """Prepares the strategies, one after the other, while the first candidates train."""

    def __init__(self) -> None:
        os.nice(10)  # what trains goes first

    def prepare(self, problem: Problem, pretrained: Pretrained, strategy: Strategy, precision: Any) -> Shipped:
        return ship(prepare_strategy(problem, pretrained, strategy, precision, find_device()))


def prepare_strategies(
    problem: Problem,
    pretrained: Pretrained,
    strategies: Sequence[Strategy],
    precision: str,
    allocation: Allocation,
    first: Future[PreparedStrategy],
) -> dict[str, Any]:
    """Start to prepare; return the references by strategy.

    Args:
        problem: Has the samples.
        pretrained: The network.
        strategies: Which, in the order of need.
        precision: Of the products.
        allocation: What a candidate holds.
        first: The first strategy, as prepared on the CPU of this process while Ray started.

    The preparer takes no CPU of its own, as the candidates that hold them wait for it. On a GPU it is there before
    them. As nothing refers to it afterwards, it ends when it is done.
    """
    prepared = {} if allocation.gpus else {strategies[0].name: ray.put(ship(first.result()))}
    if left := [strategy for strategy in strategies if strategy.name not in prepared]:
        options = {"num_cpus": 0, "num_gpus": min(1.0, allocation.gpus), "max_restarts": 2, "max_task_retries": 2}
        preparer = start_actor(Preparer, options)
        shared = ray.put(problem), ray.put(pretrained)
        prepared |= {strategy.name: preparer.prepare.remote(*shared, strategy, precision) for strategy in left}
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
    problem: Problem, spec: CandidateSpec, reference: Any, settings: FitSettings, allocation: Allocation
) -> Iterator[Fitter]:
    """Start a candidate's members in this process or, a share of them each, in those of its placement group.

    Args:
        problem: What is to be learned.
        spec: The candidate.
        reference: Its strategy, as `prepare_strategies` returned it.
        settings: How members are fitted.
        allocation: What the candidate holds.
    """
    if allocation.n_workers == 1:
        yield start_here(problem, spec, reference, problem.keys, settings, allocation.cpus)
        return
    shared = ray.put(problem)
    group = ray.util.get_current_placement_group()
    assert group is not None, "Ray Tune made it, as `Allocation.request` asks for"
    workers = []
    for i in range(allocation.n_workers):
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i)
        options = {"num_cpus": allocation.cpus, "num_gpus": allocation.gpus, "scheduling_strategy": place}
        own = problem.keys[i :: allocation.n_workers]
        workers.append(start_actor(Worker, options, shared, spec, [reference], own, settings, allocation.cpus))
    try:
        yield SpreadFitter(workers)
    finally:
        for worker in workers:
            ray.kill(worker)  # the process that leads them may go on to the next candidate


def start_here(
    problem: Problem,
    spec: CandidateSpec,
    reference: Any,
    keys: Sequence[MemberKey],
    settings: FitSettings,
    n_threads: int,
) -> Fitter:
    device = find_device()
    return start_fitter(problem, receive(reference), spec, keys, settings, device, n_threads)


class Worker(JoinedFitter):
    """A fitter in a process of its own; the reference comes in a list, so that it is fetched there."""

    def __init__(
        self,
        problem: Problem,
        spec: CandidateSpec,
        reference: Sequence[Any],
        keys: Sequence[MemberKey],
        settings: FitSettings,
        n_threads: int,
    ) -> None:
        super().__init__([start_here(problem, spec, reference[0], keys, settings, n_threads)])


class SpreadFitter:
    """The fitters of several workers as one.

    Args:
        workers: Handles of the actors.
    """

    def __init__(self, workers: Sequence[Any]) -> None:
        self.workers = workers

    def run_epoch(self, epoch: int) -> None:
        fetch([worker.run_epoch.remote(epoch) for worker in self.workers])

    def predict(self) -> Predictions:
        return merge(fetch([worker.predict.remote() for worker in self.workers]))

    def take_snapshots(self, improved: Bool[np.ndarray, "repeat fold"]) -> None:
        fetch([worker.take_snapshots.remote(improved) for worker in self.workers])

    def collect_snapshots(self) -> States:
        return merge(fetch([worker.collect_snapshots.remote() for worker in self.workers]))

    def save(self) -> dict[MemberKey, dict[str, Any]]:
        return merge(fetch([worker.save.remote() for worker in self.workers]))

    def load(self, saved: Mapping[MemberKey, dict[str, Any]]) -> None:
        shared = ray.put(saved)
        fetch([worker.load.remote(shared) for worker in self.workers])

    def has_drifted(self) -> bool:
        return any(fetch([worker.has_drifted.remote() for worker in self.workers]))

    def describe(self) -> FitterDescription:
        described: FitterDescription = fetch(self.workers[0].describe.remote())
        return described


def fetch(references: Any) -> Any:
    """Wait for results; what went wrong there is raised here, as it was."""
    try:
        return ray.get(references)
    except RayTaskError as error:
        raise error.cause from error
