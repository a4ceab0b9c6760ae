"""The files of clusters: valid by Ray's own checks, by KubeRay's and Kubernetes' schemas, by the shell; and closed.

None of them is run here: tests/cluster has scripts that do, on request.
"""

import copy
import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data"
LAUNCHER_FILES = [ROOT / "cluster.yaml", ROOT / "configs" / "cluster" / "ssh_hosts.yaml"]
KUBERAY_FILE = ROOT / "configs" / "cluster" / "kuberay_job.yaml"
SLURM_FILE = ROOT / "configs" / "cluster" / "slurm.sbatch"
SCRIPTS = [ROOT / ".ci" / "run", SLURM_FILE, *sorted((ROOT / "tests" / "cluster").glob("*.sh"))]
HEALTH_CHECKS = {"period_ms": 2000, "timeout_ms": 3000, "failure_threshold": 3}


def test_every_file_of_a_cluster_is_tested_here() -> None:
    shipped = {ROOT / "cluster.yaml", *(ROOT / "configs" / "cluster").iterdir()}
    assert {*LAUNCHER_FILES, KUBERAY_FILE, SLURM_FILE} == shipped


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def check_by_ray(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", LAUNCHER_FILES, ids=lambda path: path.name)
def test_ray_takes_a_launcher_file_and_no_misspelt_one(path: Path) -> None:
    config = load(path)
    check_by_ray(config)
    with pytest.raises(jsonschema.ValidationError, match="setup_command"):
        check_by_ray(config | {"setup_command": config["setup_commands"]})


@pytest.mark.parametrize("path", LAUNCHER_FILES, ids=lambda path: path.name)
def test_a_launched_cluster_is_closed_and_notices_a_lost_node(path: Path) -> None:
    config = load(path)
    head, worker = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0" in command
    assert "--dashboard-host=127.0.0.1" in head
    for name, value in HEALTH_CHECKS.items():
        assert f"RAY_health_check_{name}={value} " in head
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert config["file_mounts"]["~/ray-ft"] == ".", "the constraints and the package are taken from there"


def test_the_nodes_of_a_cloud_have_a_security_group_of_the_users_own() -> None:
    for node in load(ROOT / "cluster.yaml")["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"], "the launcher's own has its ssh port open to all"


def rayjob_schema() -> dict[str, Any]:
    """KubeRay's part and Kubernetes' part as one; unknown keys are errors, where a cluster would drop them unsaid."""
    schema = load(DATA / "rayjob.schema.yaml")
    with gzip.open(DATA / "kubernetes-v1.34.json.gz") as file:
        schema["$defs"] |= json.load(file)["$defs"]
    refuse_unknown_keys(schema)
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema


def refuse_unknown_keys(schema: Any) -> None:
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            refuse_unknown_keys(part)
    elif isinstance(schema, list):
        for part in schema:
            refuse_unknown_keys(part)


def test_the_kubernetes_objects_are_valid() -> None:
    job, policy = yaml.safe_load_all(KUBERAY_FILE.read_text())
    schema = rayjob_schema()
    jsonschema.validate(job, schema)
    name = "#/$defs/io.k8s.api.networking.v1.NetworkPolicy"
    jsonschema.validate(policy, {"$ref": name, "$defs": schema["$defs"]})


def first_container(job: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return container


@pytest.mark.parametrize(
    "spoil",
    [
        lambda job: job["spec"].update(entryPoint="true"),
        lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(mode="tokens"),
        lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"].update(rayStartParams={"num-cpus": 0}),
        lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"),
        lambda job: first_container(job).update(volumeMount=[]),
        lambda job: first_container(job)["env"].append({"name": "A", "value": 1}),
        lambda job: first_container(job)["resources"].update(limit={}),
    ],
)
def test_a_spoilt_rayjob_is_refused(spoil: Callable[[dict[str, Any]], Any]) -> None:
    job = next(yaml.safe_load_all(KUBERAY_FILE.read_text()))
    spoil(job)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, rayjob_schema())


def test_a_rayjob_is_closed_goes_on_and_notices_a_lost_node() -> None:
    job, policy = yaml.safe_load_all(KUBERAY_FILE.read_text())
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not cluster["headGroupSpec"].get("enableIngress")
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert job["spec"]["shutdownAfterJobFinishes"]
    assert job["spec"]["backoffLimit"] > 0
    env = {variable["name"]: variable["value"] for variable in first_container(job)["env"]}
    assert env == {"RAY_USAGE_STATS_ENABLED": "0"} | {f"RAY_health_check_{k}": str(v) for k, v in HEALTH_CHECKS.items()}
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    assert all(pod["volumes"] == pods[0]["volumes"] for pod in pods), "the run folder is shared"
    assert "--out /shared/" in job["spec"]["entrypoint"]


def test_a_slurm_job_is_closed_goes_on_and_leaves_the_rays_of_others_alone() -> None:
    text = SLURM_FILE.read_text()
    code = "\n".join(line for line in text.splitlines() if not line.startswith("# "))
    for option in ("--requeue", "--no-kill", "--signal=B:USR1@120"):
        assert f"#SBATCH {option}\n" in text
    assert "RAY_AUTH_MODE=token" in code
    assert "RAY_USAGE_STATS_ENABLED=0" in code
    assert "ray stop" not in code
    assert "symmetric-run" not in code
    for name, value in HEALTH_CHECKS.items():
        assert f"RAY_health_check_{name}={value}" in code


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    command = [shellcheck, "--external-sources", path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_the_page_on_clusters_names_files_that_are_there() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text()
    named = set(re.findall(r"(?:configs|tests)/cluster/[\w.]+\w|cluster\.yaml", text))
    assert {str(path.relative_to(ROOT)) for path in (*LAUNCHER_FILES, KUBERAY_FILE, SLURM_FILE)} <= named
    for path in named:
        assert (ROOT / path).exists(), path
