"""What a candidate holds of a cluster, the processes that share its members, and the parts that strategies share."""

import contextlib
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch
from ray import tune
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_ft.backends.preflight import list_nodes
from ray_ft.config import ComputeSection
from ray_ft.errors import ConfigError
from ray_ft.fitting.candidate import Broadcast, command
from ray_ft.fitting.gradient import Packing, Squad
from ray_ft.fitting.task import BYTES_PER_WEIGHT, Part, Task, count_trained, prepare_part
from ray_ft.search.plan import CandidateSpec, MemberKey, list_members

__all__ = ["Share", "choose_share", "fetch", "prepare_parts", "raise_squads"]

N_SHARING = 4  # candidates on one GPU, at most
SMALL_BYTES = 2 * 2**30  # of a candidate's members with their optimizers, to share a GPU


@dataclass(frozen=True)
class Share:
    """What a candidate holds: so many processes, each with so many CPUs and GPUs."""

    n_workers: int
    cpus: int
    gpus: float

    def request(self) -> Any:
        """Say it to Ray Tune; where there are several processes, the one that leads them needs nothing."""
        bundle = {"CPU": float(self.cpus), "GPU": self.gpus}
        if self.n_workers == 1:
            return bundle
        return tune.PlacementGroupFactory([{}, *[bundle] * self.n_workers], strategy="PACK")


def choose_share(task: Task, n_left: int) -> Share:
    """Divide what the cluster has among the candidates that wait, unless the config says otherwise.

    Raises:
        ConfigError: No node has what one process of a candidate is to hold.
    """
    compute, cv = task.config.compute, task.config.cv
    nodes = list_nodes()
    has = {name: [node["Resources"].get(name, 0.0) for node in nodes] for name in ("CPU", "GPU")}
    if compute.device == "cuda" and not sum(has["GPU"]) and compute.address is None:
        raise ConfigError("compute.device: cuda needs GPUs, but no node of the cluster has any; set device: auto")
    n_members = cv.folds * cv.seeds * cv.repeats
    if compute.device == "cuda" or (compute.device == "auto" and (sum(has["GPU"]) or compute.gpus_per_candidate)):
        largest = max(count_trained(task, name) for name in task.config.selected)
        small = largest * BYTES_PER_WEIGHT * n_members < SMALL_BYTES
        share = share_gpus(compute, n_left, n_members, max(1.0, sum(has["GPU"])), small)
    else:
        share = share_cpus(compute, n_left, n_members, has["CPU"])
    for name, asked in (("CPU", share.cpus), ("GPU", share.gpus)):
        largest_node = max(has[name], default=0)
        if asked > largest_node and compute.address is None:  # to a cluster, nodes may yet be added
            raise ConfigError(
                f"one node must hold a candidate, but it asks for {asked:g} {name} and the largest node has "
                f"{largest_node:g}; lower compute.{name.lower()}s_per_candidate"
            )
    return share


def share_gpus(compute: ComputeSection, n_left: int, n_members: int, n_gpus: float, small: bool) -> Share:
    """Several GPUs for each of few candidates; of many, several on one GPU if they are small."""
    gpus = compute.gpus_per_candidate
    if gpus is None:
        n_sharing = min(N_SHARING, math.ceil(n_left / n_gpus)) if small else 1
        gpus = max(1, n_gpus // n_left) if n_left <= n_gpus else 1 / n_sharing
    n_workers = min(n_members, compute.workers_per_candidate or max(1, math.floor(gpus)))
    return Share(n_workers, math.ceil((compute.cpus_per_candidate or 1) / n_workers), gpus / n_workers)


def share_cpus(compute: ComputeSection, n_left: int, n_members: int, cpus_of_nodes: Sequence[float]) -> Share:
    """One CPU each for many candidates; for few of them more, each of which trains members of its own."""
    largest = max(1, int(max(cpus_of_nodes, default=1)))
    cpus = compute.cpus_per_candidate or min(n_members, max(1, int(sum(cpus_of_nodes)) // n_left))
    n_workers = min(n_members, compute.workers_per_candidate or math.ceil(cpus / largest))
    if compute.cpus_per_candidate and not compute.workers_per_candidate:
        n_workers = 1  # as many as asked for, on one node
    return Share(n_workers, max(1, cpus // n_workers), 0.0)


def find_device() -> torch.device:
    """The GPU that this process holds; a process that holds none sees none."""
    torch.set_num_threads(1)  # one a member, so that sums are taken in the same order whatever there is
    if ray.get_gpu_ids():
        return torch.device("cuda")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # which Ray leaves as it was
    return torch.device("cpu")


Shipped = tuple[Part, list[np.ndarray]]  # without its features, and those as arrays, which the object store shares


class Preparer:
    """Prepares the strategies' parts, one after the other, while the first candidates train."""

    def __init__(self) -> None:
        os.nice(10)  # what trains goes first

    def prepare(self, task: Task, strategy: str) -> Shipped:
        return ship(prepare_part(task, strategy, find_device()))


def prepare_parts(task: Task, strategies: Sequence[str], share: Share, first: Future[Part]) -> dict[str, Any]:
    """Start to prepare; return the references by strategy.

    Args:
        task: What all candidates share.
        strategies: Which, in the order of need.
        share: What a candidate holds.
        first: The first strategy's, as prepared on the CPU of this process while Ray started.

    The preparer takes no CPU of its own, as the candidates that hold them wait for it. On a GPU it is there before
    them. As nothing refers to it afterwards, it ends when it is done.
    """
    parts = {} if share.gpus else {strategies[0]: ray.put(ship(first.result()))}
    if left := [strategy for strategy in strategies if strategy not in parts]:
        options = {"num_cpus": 0, "num_gpus": min(1.0, share.gpus), "max_restarts": 2, "max_task_retries": 2}
        preparer = start_actor(Preparer, options)
        shared = ray.put(task)
        parts |= {strategy: preparer.prepare.remote(shared, strategy) for strategy in left}
    return parts


def start_actor(kind: type, options: dict[str, Any], *args: Any) -> Any:
    """Start an actor of a plain class; Ray's decorator would hide it from type checks."""
    remote: Any = ray.remote(**options)
    return remote(kind).remote(*args)


def ship(part: Part) -> Shipped:
    return replace(part, features=()), [feature.cpu().numpy() for feature in part.features]


@contextlib.contextmanager
def raise_squads(task: Task, spec: CandidateSpec, parts: Mapping[str, Any], share: Share) -> Iterator[Broadcast]:
    """Make the squads of a candidate, in this process or, in those of its placement group, one each."""
    cv, packing = task.config.cv, task.config.compute.packing
    keys = list_members(cv.repeats, cv.folds, cv.seeds)
    if share.n_workers == 1:
        yield command([build_squad(task, parts[spec.strategy], spec, keys, share.cpus, packing)])
        return
    shared = ray.put(task)
    group = ray.util.get_current_placement_group()
    assert group is not None, "Ray Tune made it, as `Share.request` asks for"
    workers = []
    for i in range(share.n_workers):
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i)
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "scheduling_strategy": place}
        own_keys = keys[i :: share.n_workers]
        workers.append(start_actor(RemoteSquad, options, shared, parts, spec, own_keys, share.cpus, packing))
    try:
        yield lambda method, *args: fetch([worker.run.remote(method, *args) for worker in workers])
    finally:
        for worker in workers:
            ray.kill(worker)  # the process that leads them may go on to the next candidate


def build_squad(
    task: Task, part: Any, spec: CandidateSpec, keys: Sequence[MemberKey], n_threads: int, packing: Packing
) -> Squad:
    device = find_device()
    shipped, arrays = fetch(part)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the shared arrays cannot be written to; they are not
        features = tuple(torch.from_numpy(array) for array in arrays)
    return Squad(task, replace(shipped, features=features), spec, keys, device, n_threads, packing)


class RemoteSquad:
    """A squad in a process of its own."""

    def __init__(
        self,
        task: Task,
        parts: Mapping[str, Any],
        spec: CandidateSpec,
        keys: Sequence[MemberKey],
        n_threads: int,
        packing: Packing,
    ) -> None:
        self.squad = build_squad(task, parts[spec.strategy], spec, keys, n_threads, packing)

    def run(self, method: str, *args: Any) -> Any:
        return getattr(self.squad, method)(*args)


def fetch(references: Any) -> Any:
    """Wait for results; what went wrong there is raised here, as it was."""
    try:
        return ray.get(references)
    except RayTaskError as error:
        raise error.cause from error
