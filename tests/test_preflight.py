"""What is found out before training; the cluster here has Ray's own autoscaler, and no worker until asked for one."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

needs_namespaces = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")

HEAD = "f" * 51 + "00000"  # the id that Ray's provider for one machine knows its head by
CLUSTER = {
    "cluster_name": "scale-to-zero",
    "provider": {"type": "fake_multinode", "head_node_id": HEAD, "gcs_address": "127.0.0.1:6379"},
    "max_workers": 2,
    "idle_timeout_minutes": 5,
    "upscaling_speed": 1.0,
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "gpu_worker": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    **{key: {} for key in ("auth", "docker", "file_mounts")},
    **{key: [] for key in ("initialization_commands", "setup_commands", "head_setup_commands", "cluster_synced_files")},
    **{key: [] for key in ("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")},
}
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
    "RAY_enable_autoscaler_v2": "0",  # the newer one lacks a file that this provider needs
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}
# Everything that starts in namespaces of its own ends with them: Ray's provider leaves its nodes behind.
IN_NAMESPACES = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-euc"]
START = """
    ip link set lo up
    python -m ray.scripts.scripts start --head --num-cpus=0 --port=6379 --node-ip-address=127.0.0.1 \
        --include-dashboard=false --object-store-memory=100000000 --autoscaling-config=cluster.json >/dev/null 2>&1
"""
SHARE = """
from types import SimpleNamespace
from ray_ft.backends.placement import choose_allocation
from ray_ft.backends.preflight import await_node
from ray_ft.backends.tune import connect
from ray_ft.config import ComputeSection

compute = ComputeSection(address="127.0.0.1:6379", gpus_per_candidate=0.25)
with connect(compute):
    await_node(compute, print)
    print(choose_allocation(SimpleNamespace(compute=compute, strategies={"top": SimpleNamespace(n_trained=1)}), 8, 3))
"""
TRAIN = "python -m ray_ft cv -c toy.yaml --strategies top --candidates 1 --seeds 1 --set compute.device=cpu"


def run_on_a_cluster_without_workers(folder: Path, command: str) -> str:
    (folder / "cluster.json").write_text(json.dumps(CLUSTER))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | ENVIRONMENT | {"PATH": path, "PYTHONPATH": f"{Path(__file__).parents[1]}:{folder}"}
    words = [*IN_NAMESPACES, START + command]
    with tempfile.TemporaryDirectory() as short:  # the paths of sockets may have 107 bytes
        env["RAY_TMPDIR"] = short
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    return done.stdout


@pytest.mark.ray
@pytest.mark.slow
@needs_namespaces
def test_a_cluster_without_workers_is_asked_for_one_and_its_gpu_is_shared(tmp_path: Path) -> None:
    (tmp_path / "share.py").write_text(SHARE)
    said, allocation = run_on_a_cluster_without_workers(tmp_path, "python share.py").splitlines()
    assert said.startswith("waiting for a node: none of the cluster has a GPU yet")
    assert allocation == "Allocation(n_workers=1, cpus=1, gpus=0.25)", "what is asked for of what has come"


@pytest.mark.ray
@pytest.mark.slow
@needs_namespaces
def test_a_run_on_a_cluster_without_workers_is_completed(toy_folder: Path) -> None:
    said = run_on_a_cluster_without_workers(toy_folder, f"{TRAIN} --address 127.0.0.1:6379 --out run")
    assert said.startswith("waiting for a node: none of the cluster has a CPU yet")
    assert (toy_folder / "run" / "summary.json").exists()
