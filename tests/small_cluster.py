"""A Ray cluster of several nodes in one process tree, which does what it is told on its standard input.

    add CPUS [GPUS]    a node joins; its id is printed
    kill ID            a node dies at once
    leave ID SECONDS   a node is given notice, as a spot instance is, and dies when the time is over

Python starts it, as Ray may start nodes from a main thread only: `with SmallCluster(cpus=[1, 1]) as cluster: ...`
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # else the head takes a user's token, and its nodes do not
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # stay on the loopback address
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


class SmallCluster:
    """A handle on it.

    Args:
        cpus: Of each node; the first is the head.
        gpus: The same; they exist by name alone.
        more: Further arguments of each node.
    """

    def __init__(self, cpus: list[int], gpus: list[int] | None = None, **more: Any) -> None:
        nodes = {"cpus": cpus, "gpus": gpus or [0] * len(cpus), "more": more}
        command = [sys.executable, "-W", "ignore", __file__, json.dumps(nodes)]
        self.process = subprocess.Popen(
            command,
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": list_paths()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address, *self.nodes = self.read()

    def __enter__(self) -> "SmallCluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=60)  # closes its input, at which it ends

    def read(self) -> list[str]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("* "):  # Ray prints too
                return line.split()[1:]
        raise RuntimeError("the cluster did not start")

    def tell(self, *words: object) -> list[str]:
        assert self.process.stdin is not None
        print(*words, file=self.process.stdin, flush=True)
        return self.read()


def list_paths() -> str:
    """Where nodes find the toy, and this package rather than one that is installed."""
    return os.pathsep.join([os.getcwd(), str(Path(__file__).parents[1])])


def serve(cpus: list[int], gpus: list[int], more: dict[str, Any]) -> None:
    from ray._raylet import GcsClient
    from ray.cluster_utils import Cluster
    from ray.core.generated import autoscaler_pb2

    common = {"node_ip_address": "127.0.0.1", "include_dashboard": False, **more}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus[0], "num_gpus": gpus[0], **common})
    nodes = {cluster.head_node.node_id: cluster.head_node}
    try:
        for n_cpus, n_gpus in zip(cpus[1:], gpus[1:], strict=True):
            node = cluster.add_node(num_cpus=n_cpus, num_gpus=n_gpus, **common)
            nodes[node.node_id] = node
        print("*", cluster.address, *nodes, flush=True)
        for line in sys.stdin:
            verb, *words = line.split()
            if verb == "add":
                n_cpus, n_gpus = (*map(int, words), 0)[:2]
                node = cluster.add_node(num_cpus=n_cpus, num_gpus=n_gpus, **common)
                nodes[node.node_id] = node
                words = [node.node_id]
            elif verb == "kill":
                cluster.remove_node(nodes.pop(words[0]), allow_graceful=False)
            elif verb == "leave":
                seconds = float(words[1])
                deadline_ms = int((time.time() + seconds) * 1000)
                reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
                accepted, why = GcsClient(address=cluster.address).drain_node(words[0], reason, "spot", deadline_ms)
                assert accepted, why
                time.sleep(seconds)
                cluster.remove_node(nodes.pop(words[0]), allow_graceful=False)
            print("*", *words, flush=True)
    finally:
        cluster.shutdown()


def join(address: str) -> None:
    """Have a node of one CPU join, until this process is ended; it is in the namespaces of this process."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    params = RayParams(gcs_address=address, node_ip_address="127.0.0.1", num_cpus=1, include_dashboard=False)
    node = Node(params, head=False, shutdown_at_exit=False, spawn_reaper=True)
    print("*", node.node_id, flush=True)
    sys.stdin.read()
    node.kill_all_processes(check_alive=False, allow_graceful=False)


if __name__ == "__main__":
    if sys.argv[1] == "join":
        join(sys.argv[2])
    else:
        serve(**json.loads(sys.argv[1]))
