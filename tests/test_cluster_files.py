"""The files of clusters: valid by Ray's own checks, by the clouds' and Kubernetes' schemas, by the shell; and closed.

That of AWS is launched here, by Ray's own launcher and on moto's EC2. None of the others is run: tests/cluster has
scripts that do, on request.
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
AWS_FILE = ROOT / "cluster.yaml"
GCP_FILE, AZURE_FILE = (ROOT / "configs" / "cluster" / f"{cloud}.yaml" for cloud in ("gcp", "azure"))
CLOUD_FILES = {"aws": AWS_FILE, "gcp": GCP_FILE, "azure": AZURE_FILE}
LAUNCHER_FILES = [*CLOUD_FILES.values(), ROOT / "configs" / "cluster" / "ssh_hosts.yaml"]
SPOT_NOTICE = ROOT / "configs" / "cluster" / "spot_notice.py"
KUBERAY_FILE = ROOT / "configs" / "cluster" / "kuberay_job.yaml"
SLURM_FILE = ROOT / "configs" / "cluster" / "slurm.sbatch"
PBS_FILE = ROOT / "configs" / "cluster" / "job.pbs"
SCRIPTS = [ROOT / ".ci" / "run", SLURM_FILE, PBS_FILE, *sorted((ROOT / "tests" / "cluster").glob("*.sh"))]
HEALTH_CHECKS = {"period_ms": 2000, "timeout_ms": 3000, "failure_threshold": 3}


def test_every_file_of_a_cluster_is_tested_here() -> None:
    shipped = {ROOT / "cluster.yaml", *(ROOT / "configs" / "cluster").iterdir()}
    assert {*LAUNCHER_FILES, SPOT_NOTICE, KUBERAY_FILE, SLURM_FILE, PBS_FILE} == shipped


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def check_by_ray(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    commands = [command for key, part in prepared.items() if key.endswith("_commands") for command in part]
    assert not any("ray-wheels" in command for command in commands), "Ray's own commands, which install a nightly Ray"


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
    head, worker = config["head_start_ray_commands"][1], config["worker_start_ray_commands"][1]
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0" in command
    assert "--dashboard-host=127.0.0.1" in head
    for name, value in HEALTH_CHECKS.items():
        assert f"RAY_health_check_{name}={value} " in head
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    assert config["file_mounts"]["~/ray-ft"] == ".", "the constraints and the package are taken from there"


@pytest.mark.parametrize("cloud", CLOUD_FILES)
def test_a_cloud_is_paid_for_what_trains_alone_and_a_notice_is_heeded(cloud: str) -> None:
    config = load(CLOUD_FILES[cloud])
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    worker = config["available_node_types"]["gpu_worker"]
    assert (worker["min_workers"], worker["max_workers"]) == (0, config["max_workers"])
    assert config["idle_timeout_minutes"] == 10
    assert config["provider"]["cache_stopped_nodes"] is False
    watcher = config["worker_start_ray_commands"][-1]
    assert f"~/ray-ft/{SPOT_NOTICE.relative_to(ROOT)} {cloud} $RAY_HEAD_IP:6379 </dev/null" in watcher
    subprocess.run(["bash", "-n", "-c", f"({watcher})"], check=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_cluster_on_aws_is_launched_as_its_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ray's launcher, which looks up subnet, zone, group and profiles, and starts machines; on moto's EC2."""
    for name, value in {"HOME": str(tmp_path), "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(name, value)
    import boto3
    from moto import mock_aws

    with mock_aws():
        config = load(AWS_FILE)
        ec2, iam = boto3.client("ec2", config["provider"]["region"]), boto3.client("iam")
        zone = [{"Name": "availability-zone", "Values": [config["provider"]["availability_zone"]]}]
        subnet = ec2.describe_subnets(Filters=zone)["Subnets"][0]
        group = ec2.create_security_group(GroupName="own", Description="own", VpcId=subnet["VpcId"])["GroupId"]
        image = ec2.describe_images()["Images"][0]["ImageId"]
        for node in config["available_node_types"].values():
            iam.create_instance_profile(InstanceProfileName=node["node_config"]["IamInstanceProfile"]["Name"])
            node["node_config"] |= {"ImageId": image, "SubnetIds": [subnet["SubnetId"]], "SecurityGroupIds": [group]}
        resources = launch_on_aws(config)
        machines = [machine for group in ec2.describe_instances()["Reservations"] for machine in group["Instances"]]
        roles = [role["RoleName"] for role in iam.list_roles()["Roles"]]
    head, worker = machines
    assert resources["CPU"] == 4
    assert resources["GPU"] == 1, "of a node that is not there yet the autoscaler knows that it has a GPU"
    assert head["IamInstanceProfile"]["Arn"].endswith("/ray-ft-head")
    assert worker["IamInstanceProfile"]["Arn"].endswith("/ray-ft-worker")
    assert not any("ray" in role for role in roles), "the launcher's own, which may do all, is not made"
    assert [machine.get("InstanceLifecycle") for machine in machines] == [None, "spot"]
    for machine in machines:
        assert machine["SubnetId"] == subnet["SubnetId"]
        assert [own["GroupId"] for own in machine["SecurityGroups"]] == [group]
        assert machine["MetadataOptions"]["HttpTokens"] == "required"


def launch_on_aws(config: dict[str, Any]) -> dict[str, Any]:
    """Start a head and a worker; return what the autoscaler expects of a worker."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    known = AWSNodeProvider.fillout_available_node_types_resources(prepare_config(config))
    ready = bootstrap_aws(known)
    provider = AWSNodeProvider(ready["provider"], ready["cluster_name"])
    for name, node in ready["available_node_types"].items():
        tags = {"ray-node-name": name, "ray-launch-config": "", "ray-node-status": "", "ray-node-kind": name}
        provider.create_node(node["node_config"], tags | {"ray-user-node-type": name}, 1)
    resources: dict[str, Any] = known["available_node_types"]["gpu_worker"]["resources"]
    return resources


def test_the_machines_on_google_cloud_are_what_its_api_takes() -> None:
    with gzip.open(DATA / "compute-instance.json.gz") as file:
        schema = json.load(file)
    refuse_unknown_keys(schema)
    types = load(GCP_FILE)["available_node_types"]
    for node in types.values():
        jsonschema.validate(node["node_config"], schema)
        assert node["node_config"]["networkInterfaces"], "the launcher's own choice is open to all by ssh"
    assert types["gpu_worker"]["node_config"]["serviceAccounts"]
    spoilt = types["gpu_worker"]["node_config"] | {"scheduling": {"preemptable": True}}
    with pytest.raises(jsonschema.ValidationError, match="preemptable"):
        jsonschema.validate(spoilt, schema)


def test_the_machines_on_azure_are_what_rays_template_takes() -> None:
    import ray

    template = Path(ray.__file__).parent / "autoscaler" / "_private" / "_azure" / "azure-vm-template.json"
    known = json.loads(template.read_text())["parameters"]
    for node in load(AZURE_FILE)["available_node_types"].values():
        given = node["node_config"]["azure_arm_parameters"]
        assert given.keys() <= known.keys()
        for name, value in given.items():
            assert {"string": str, "int": int, "object": dict}[known[name]["type"]] is type(value), name


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
    job, _ = yaml.safe_load_all(KUBERAY_FILE.read_text())
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not cluster["headGroupSpec"].get("enableIngress")
    assert job["spec"]["shutdownAfterJobFinishes"]
    assert job["spec"]["backoffLimit"] > 0
    env = {variable["name"]: variable["value"] for variable in first_container(job)["env"]}
    assert env == {"RAY_USAGE_STATS_ENABLED": "0"} | {f"RAY_health_check_{k}": str(v) for k, v in HEALTH_CHECKS.items()}
    assert "--out /shared/" in job["spec"]["entrypoint"]


def test_the_pods_of_a_rayjob_hold_what_they_ask_for_and_share_a_volume_that_they_may_write() -> None:
    job, _ = yaml.safe_load_all(KUBERAY_FILE.read_text())
    cluster = job["spec"]["rayClusterSpec"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    for pod in pods:
        assert pod["volumes"] == pods[0]["volumes"], "the run folder is shared"
        assert pod["securityContext"] == pods[0]["securityContext"]
        assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
        (container,) = pod["containers"]
        assert container["resources"]["requests"].items() <= container["resources"]["limits"].items()
        for name in container["resources"]["limits"]:
            if name.endswith("/gpu"):
                assert {"key": name, "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]


def test_a_network_policy_is_for_the_pods_of_this_cluster_alone() -> None:
    job, policy = yaml.safe_load_all(KUBERAY_FILE.read_text())
    cluster, own = job["spec"]["rayClusterSpec"], policy["spec"]["podSelector"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert own["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    among, submitter, operator = policy["spec"]["ingress"]
    assert among == {"from": [{"podSelector": own}]}
    assert submitter["ports"] == [{"port": 6379}, {"port": 8265}]
    assert operator["ports"] == [{"port": 8265}]
    name = {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert submitter["from"] == [{"podSelector": {"matchLabels": name}}]
    assert operator["from"][0]["podSelector"]["matchLabels"], "an empty selector is everybody"


@pytest.mark.parametrize("path", [SLURM_FILE, PBS_FILE], ids=lambda path: path.name)
def test_a_batch_job_is_closed_and_leaves_the_rays_of_others_alone(path: Path) -> None:
    code = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("# "))
    assert "RAY_AUTH_MODE=token" in code
    assert "RAY_USAGE_STATS_ENABLED=0" in code
    assert 'chmod 700 "$RAY_TMPDIR"' in code, "Ray opens its own folder to all"
    assert "ray stop" not in code
    assert "symmetric-run" not in code
    for name, value in HEALTH_CHECKS.items():
        assert f"RAY_health_check_{name}={value}" in code


@pytest.mark.parametrize("path", [SLURM_FILE, PBS_FILE], ids=lambda path: path.name)
def test_no_port_of_a_batch_job_can_be_that_of_another(path: Path) -> None:
    """The kernel chooses all of them, and the one that it could not choose is not opened."""
    ports = re.findall(r"--([a-z-]*port)=(\S+?)[\s)]", path.read_text())
    assert dict(ports) == dict.fromkeys(
        ("port", "min-worker-port", "max-worker-port", "dashboard-agent-listen-port"), "0"
    )
    assert 'sys.modules["grpc"] = None' in path.read_text()


def test_a_slurm_job_goes_on() -> None:
    for option in ("--requeue", "--no-kill", "--signal=B:USR1@120"):
        assert f"#SBATCH {option}\n" in SLURM_FILE.read_text()


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
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "configs" / "cluster").iterdir()} | {
        "cluster.yaml"
    } <= named
    for path in named:
        assert (ROOT / path).exists(), path
