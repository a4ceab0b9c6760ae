"""What a candidate holds of a cluster: so many processes, each with so many CPUs and GPUs."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from ray import tune
from ray.exceptions import RayError

from ray_ft.backends.preflight import WAIT_S, ask_nodes, list_gpu_nodes, list_nodes
from ray_ft.backends.rounds import Shared
from ray_ft.config import SMALLEST_SHARE, ComputeSection
from ray_ft.errors import ConfigError
from ray_ft.files.memory import find_available
from ray_ft.fitting.determinism import set_deterministic
from ray_ft.fitting.memory_need import estimate_bytes, estimate_gpu_bytes

N_SHARING = 4  # candidates on one GPU, at most
USABLE = 0.9  # share of a GPU's memory that candidates may fill, as they were told of it


@dataclass(frozen=True)
class Allocation:
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

    def widen(self) -> "Allocation":
        """Twice the share of a node, so that fewer train there at a time; several processes hold what they can."""
        if self.n_workers > 1:
            return self
        if self.gpus:
            return replace(self, gpus=max(self.gpus, min(1.0, 2 * self.gpus)))
        largest = max((int(node["Resources"].get("CPU", 0)) for node in list_nodes()), default=0)
        return replace(self, cpus=max(self.cpus, min(2 * self.cpus, largest)))


def choose_allocation(shared: Shared, n_left: int, n_members: int) -> Allocation:
    """Divide what the cluster has among the candidates that may train, unless the config says otherwise."""
    compute, nodes = shared.compute, list_nodes()
    has = {name: [node["Resources"].get(name, 0.0) for node in nodes] for name in ("CPU", "GPU")}
    if compute.device == "cuda" and not sum(has["GPU"]) and compute.address is None:
        raise ConfigError("compute.device: cuda needs GPUs, but no node of the cluster has any; set device: auto")
    if compute.device == "cuda" or (compute.device == "auto" and (sum(has["GPU"]) or compute.gpus_per_candidate)):
        n_gpus = max(1.0, sum(has["GPU"]))
        may_share = compute.gpus_per_candidate is None and n_left > n_gpus
        n_fitting = count_fitting(shared, n_members, n_gpus, find_card_bytes()) if may_share else 1
        allocation = share_gpus(compute, n_left, n_members, n_gpus, n_fitting)
    else:
        allocation = share_cpus(compute, n_left, n_members, has["CPU"])
    for name, asked in (("CPU", allocation.cpus), ("GPU", allocation.gpus)):
        largest_node, asked = max(has[name], default=0), round(asked * allocation.n_workers, 4)
        if asked > largest_node and compute.address is None:  # to a cluster, nodes may yet be added
            raise ConfigError(
                f"one node must hold a candidate, but it asks for {asked:g} {name} and the largest node has "
                f"{largest_node:g}; lower compute.{name.lower()}s_per_candidate or compute.workers_per_candidate"
            )
    return allocation


def count_fitting(shared: Shared, n_members: int, n_gpus: float, card_bytes: int) -> int:
    """Count the candidates of any strategy that fit on one GPU together, and those of all GPUs into this machine."""
    problem, n_noisy = shared.problem, shared.settings.n_noisy_views
    n_seeds = n_members // (problem.splits.n_repeats * problem.splits.n_folds)
    network, every = shared.pretrained.build(), shared.strategies.values()
    on_card = max(estimate_gpu_bytes(problem, network, own, n_noisy, n_members) for own in every)
    fitting = int(USABLE * card_bytes) // on_card
    if shared.compute.address is None:  # of other machines this one's memory says nothing
        on_host = max(estimate_bytes(problem, own, n_noisy, n_seeds) for own in every)
        fitting = min(fitting, int(find_available() / (on_host * n_gpus)))
    return max(1, fitting)


def find_card_bytes() -> int:
    """Find the memory of the smallest GPU; 0 where torch sees none, or a node does not answer."""
    asked = ask_nodes(list_gpu_nodes(), list_card_bytes)
    try:
        found = ray.get(list(asked.values()), timeout=WAIT_S)
    except RayError:
        return 0
    return min((n_bytes for of_node in found for n_bytes in of_node), default=0)


def list_card_bytes() -> list[int]:
    """On a node: list the memory of its GPUs."""
    return [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]


def share_gpus(compute: ComputeSection, n_left: int, n_members: int, n_gpus: float, n_fitting: int) -> Allocation:
    """Several GPUs for each of few candidates; of many, several on one GPU if so many fit.

    A process trains on one GPU, so it holds no more. Where several processes are on one, their number divides it: Ray
    gives out what is left of one GPU only, never of two together.
    """
    gpus = compute.gpus_per_candidate
    if gpus is None:
        n_sharing = min(N_SHARING, n_fitting, math.ceil(n_left / n_gpus))
        gpus = max(1, n_gpus // n_left) if n_left <= n_gpus else 1 / n_sharing
    n_workers = min(n_members, compute.workers_per_candidate or max(1, math.floor(gpus)))
    share = 1 / math.ceil(n_workers / gpus) if gpus > 1 else gpus / n_workers
    cpus = math.ceil((compute.cpus_per_candidate or 1) / n_workers)
    return Allocation(n_workers, cpus, max(SMALLEST_SHARE, share) if gpus else 0.0)


def share_cpus(compute: ComputeSection, n_left: int, n_members: int, cpus_of_nodes: Sequence[float]) -> Allocation:
    """One CPU each for many candidates; for few of them more, each of which trains members of its own."""
    largest = max(1, int(max(cpus_of_nodes, default=1)))
    cpus = compute.cpus_per_candidate or min(n_members, max(1, int(sum(cpus_of_nodes)) // n_left))
    n_workers = min(n_members, compute.workers_per_candidate or math.ceil(cpus / largest))
    if compute.cpus_per_candidate and not compute.workers_per_candidate:
        n_workers = 1  # as many as asked for, on one node
    return Allocation(n_workers, max(1, cpus // n_workers), 0.0)


def find_device(deterministic: bool = False) -> torch.device:
    """The GPU that this process holds; a process that holds none sees none."""
    if deterministic:
        set_deterministic()
    torch.set_num_threads(1)  # one a member, so that sums are taken in the same order whatever there is
    if ray.get_gpu_ids():
        return torch.device("cuda")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # which Ray leaves as it was
    return torch.device("cpu")
