"""Processes of Ray that share the work: one prepares the strategies, several may hold the members of a candidate."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import Tensor
from torch.utils._pytree import tree_map

from ray_ft.backends.placement import Allocation, find_device
from ray_ft.backends.rounds import Shared
from ray_ft.files.memory import is_out_of_memory
from ray_ft.fitting.fitter import FitSettings, Fitter, JoinedFitter
from ray_ft.fitting.preparation import PreparedStrategy, prepare_strategy
from ray_ft.fitting.range_test import RangeTest, run_range_test
from ray_ft.fitting.starting import start_fitter
from ray_ft.models import Pretrained
from ray_ft.search.plan import Assignment, CandidateSpec
from ray_ft.search.problem import MemberKey, Problem
from ray_ft.search.strategies import Strategy

Keys = Sequence[MemberKey]
# Without features, and those of each stage as arrays, which are shared.
Shipped = tuple[PreparedStrategy, list[list[np.ndarray]]]


class Preparer:
    """Prepares the strategies, one after the other, while the first candidates train."""

    def __init__(self) -> None:
        os.nice(10)  # what trains goes first

    def prepare(self, problem: Problem, pretrained: Pretrained, strategy: Strategy, settings: FitSettings) -> Shipped:
        device = find_device(settings.deterministic)
        return ship(prepare_strategy(problem, pretrained, strategy, settings.precision, device))


@dataclass(frozen=True)
class Preparation:
    """A strategy that is prepared once for all, and what it takes to prepare it again.

    What is lost with a node, or was never made for want of memory, is made again by whoever misses it, on the share
    that it holds already. Ray would make it again too, by a preparer that it starts anew; but that one waits for a
    share of its own where candidates hold all of them and wait for it, so neither would ever go on.
    """

    shipped: Any  # reference to what the preparer made
    pretrained: Any  # reference, to what the process of the command keeps
    strategy: Strategy
    settings: FitSettings

    def receive(self, problem: Problem) -> PreparedStrategy:
        """Fetch what was prepared, or else prepare it here."""
        try:
            shipped, arrays = fetch(self.shipped)
        except Exception as error:
            if not is_of_machine(error):
                raise
            lost = type(error).__name__
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the shared arrays cannot be written to; they are not
                features = [tuple(map(torch.from_numpy, of_stage)) for of_stage in arrays]
            *earlier, last = [replace(own, features=f) for own, f in zip(shipped.stages, features, strict=True)]
            received: PreparedStrategy = replace(last, earlier=tuple(earlier))
            return received
        given = problem, fetch(self.pretrained), self.strategy, self.settings.precision
        note = f"what its candidates share was lost ({lost}) and made again where it was missing"
        return replace(prepare_strategy(*given, find_device(self.settings.deterministic)), note=note)


def prepare_strategies(
    shared: Shared, strategies: Sequence[Strategy], allocation: Allocation, first: Future[PreparedStrategy]
) -> dict[str, Preparation]:
    """Start to prepare strategies, in the order of need; return what there is to receive by name.

    The first comes as prepared on the CPU of this process while Ray started. The preparer takes no CPU of its own, as
    the candidates that hold them wait for it. On a GPU it is there before them. As nothing refers to it afterwards, it
    ends when it is done.
    """
    problem, pretrained, settings = ray.put(shared.problem), ray.put(shared.pretrained), shared.settings
    shipped = {}
    if not allocation.gpus:
        try:
            shipped = {strategies[0].name: ray.put(ship(first.result()))}
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    if left := [strategy for strategy in strategies if strategy.name not in shipped]:
        preparer = start_actor(Preparer, {"num_cpus": 0, "num_gpus": min(1.0, allocation.gpus)})
        shipped |= {own.name: preparer.prepare.remote(problem, pretrained, own, settings) for own in left}
    return {own.name: Preparation(shipped[own.name], pretrained, own, settings) for own in strategies}


def start_actor(kind: type, options: dict[str, Any], *args: Any) -> Any:
    """Start an actor of a plain class; Ray's decorator would hide it from type checks."""
    remote: Any = ray.remote(**options)
    return remote(kind).remote(*args)


def ship(prepared: PreparedStrategy) -> Shipped:
    arrays = [[feature.cpu().numpy() for feature in own.features] for own in prepared.stages]
    *earlier, last = [
        replace(own, split=own.split.to("cpu"), features=(), solved=tree_map(Tensor.cpu, own.solved))
        for own in prepared.stages
    ]
    carry = prepared.carry and prepared.carry.to("cpu")
    return replace(last, earlier=tuple(earlier), carry=carry), arrays


@contextlib.contextmanager
def open_fitter(
    problem: Problem, own: Assignment, strategy: Preparation, settings: FitSettings, allocation: Allocation
) -> Iterator[Fitter]:
    """Start the members of an assignment in this process or, a share of them each, in those of its placement group."""
    start = partial(start_here, own.spec, strategy, settings, allocation)
    if allocation.n_workers == 1:
        yield start(problem, own.keys)
        return
    n_workers = min(allocation.n_workers, len(own.keys))
    with start_workers(start, problem, [own.keys[i::n_workers] for i in range(n_workers)], allocation) as workers:
        yield JoinedFitter(partial(ask_all, workers))


def find_range(
    problem: Problem, own: Assignment, strategy: Preparation, settings: FitSettings, allocation: Allocation
) -> RangeTest:
    """Test the range of a strategy in this process or, where its placement group holds the devices, in one of those."""
    test = partial(find_range_here, own.spec, strategy, settings)
    if allocation.n_workers == 1:
        return test(problem, ())
    with start_workers(test, problem, [()], allocation) as workers:
        found: RangeTest = ask_all(workers, lambda own: own)[0]
        return found


@contextlib.contextmanager
def start_workers(
    start: Callable[..., Any], problem: Problem, parts: Sequence[Keys], allocation: Allocation
) -> Iterator[list[Any]]:
    """Start a process in the placement group for each part of the keys; they end with this."""
    shared = ray.put(problem)
    group = ray.util.get_current_placement_group()
    assert group is not None, "Ray Tune made it, as `Allocation.request` asks for"
    workers = []
    for i, keys in enumerate(parts):
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i)
        options = {"num_cpus": allocation.cpus, "num_gpus": allocation.gpus, "scheduling_strategy": place}
        workers.append(start_actor(Worker, options, start, shared, keys))
    try:
        yield workers
    finally:
        for worker in workers:
            ray.kill(worker)  # the process that leads them may go on to the next candidate


def find_range_here(
    spec: CandidateSpec, strategy: Preparation, settings: FitSettings, problem: Problem, _: Keys
) -> RangeTest:
    return run_range_test(problem, strategy.receive(problem), spec, settings, find_device(settings.deterministic))


def start_here(
    spec: CandidateSpec, strategy: Preparation, settings: FitSettings, held: Allocation, problem: Problem, keys: Keys
) -> Fitter:
    device = find_device(settings.deterministic)
    return start_fitter(problem, strategy.receive(problem), spec, keys, settings, device, held.cpus)


class Worker:
    """What is started in a process of its own, where what it needs is fetched: a fitter, or what a test found.

    It starts when it is first asked, as Ray tells of what is raised in a constructor as of a process that has died.
    """

    def __init__(self, start: Callable[..., Any], problem: Problem, keys: Keys) -> None:
        self.start = partial(start, problem, keys)

    @cached_property
    def own(self) -> Any:
        return self.start()

    def answer(self, question: Callable[[Any], Any]) -> Any:
        return question(self.own)


def ask_all(workers: Sequence[Any], question: Callable[[Any], Any]) -> list[Any]:
    """Put a question to what all workers hold; what it carries is sent once for all of them."""
    shared = ray.put(question)
    answers: list[Any] = fetch([worker.answer.remote(shared) for worker in workers])
    return answers


def fetch(references: Any) -> Any:
    """Wait for results; what went wrong there is raised here, as it was."""
    try:
        return ray.get(references)
    except RayTaskError as error:
        raise error.cause from error


def is_of_machine(error: BaseException | None) -> bool:
    """Whether the machine failed, and not what ran on it: Ray lost a process or an object, or memory was short."""
    if isinstance(error, RayTaskError):
        error = error.cause
    return isinstance(error, RayError) or is_out_of_memory(error)
