"""What can be known before training: that the cluster answers and has a node, and that nodes share the run folder."""

import shutil
import socket
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_ft.config import ComputeSection
from ray_ft.errors import ConfigError, RunFolderError, StorageError, first_line
from ray_ft.files.writing import write_text
from ray_ft.runs.folder import RunFolder

WAIT_S = 60.0  # for a node's answer; a file system that hangs gives none


def check_reachable(address: str) -> None:
    """Knock at host:port before Ray does, which would go on knocking for minutes."""
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


def list_nodes() -> list[dict[str, Any]]:
    """List the nodes that are there now."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray leaves it unannotated
    return [node for node in nodes if node["Alive"]]


def await_node(compute: ComputeSection, say: Callable[[str], None]) -> None:
    """Where no node can hold a candidate yet, ask the cluster for one, say so, and wait for it.

    An autoscaler adds nodes for what waits, and nothing waits before it is known from the nodes what candidates hold.
    """
    kind = "GPU" if compute.device == "cuda" or compute.gpus_per_candidate else "CPU"
    if any(node["Resources"].get(kind) for node in list_nodes()):
        return
    say(f"waiting for a node: none of the cluster has a {kind} yet; where no autoscaler adds one, start it")
    there: Any = ray.remote(num_cpus=1, num_gpus=int(kind == "GPU"))(list_nodes)
    ray.get(there.remote())


def ask_nodes(nodes: Iterable[Mapping[str, Any]], function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """Call a function on nodes, beside what holds their CPUs; return the references to its answers by the node's name.

    Its process ends with the call: one that has seen all GPUs must not be taken for a task that holds one of them.
    """
    probe: Any = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(function)
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        name = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
        asked[name] = probe.options(scheduling_strategy=there).remote(*args)
    return asked


def list_problems(asked: Mapping[str, Any]) -> str:
    """List what nodes answer that is a problem, a line each; a node that does not answer is one."""
    problems = {name: problem for name, answer in asked.items() if (problem := wait_for(answer))}
    return "\n".join(f"  {name}: {problem}" for name, problem in problems.items())


def list_gpu_nodes() -> list[dict[str, Any]]:
    return [node for node in list_nodes() if node["Resources"].get("GPU")]


def check_folder(run: RunFolder) -> None:
    """Have every node read a marker from the run folder and leave one of its own, or say which cannot."""
    token = uuid.uuid4().hex
    markers = run.root / f"preflight-{token}"
    write_text(markers / "driver", token)
    run.push()
    problems = list_problems(ask_nodes(list_nodes(), leave_marker, run, token))
    run.pull(markers)
    shutil.rmtree(markers)
    run.push()
    if problems:
        raise RunFolderError(
            f"every node must read and write the run folder, got {run.place}, which these cannot\n{problems}\n"
            "set --out to a path that all nodes share, or to a URI such as s3://bucket/run"
        )


def leave_marker(run: RunFolder, token: str) -> str:
    """On a node: read the driver's marker and leave one; return what went wrong, if anything."""
    try:
        with run.check_out("none") as own:
            markers = own.root / f"preflight-{token}"
            own.pull(markers)
            write_text(
                markers / ray.get_runtime_context().get_node_id(), (markers / "driver").read_text(encoding="utf-8")
            )
    except (OSError, StorageError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def wait_for(answer: Any) -> str:
    try:
        return str(ray.get(answer, timeout=WAIT_S))
    except GetTimeoutError:
        return f"no answer within {WAIT_S:.0f} s"
    except RayError as error:
        return first_line(error.cause if isinstance(error, RayTaskError) else error)
