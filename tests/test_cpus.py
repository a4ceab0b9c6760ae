"""The CPUs of this process: by its affinity, by the quota of a container of either version, by its job."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from ray_ft.backends.tune import connect
from ray_ft.config import ComputeSection
from ray_ft.files import cpus, memory
from ray_ft.files.cpus import count_cpus


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 CPUs, whose files can be changed."""
    (tmp_path / "proc/self").mkdir(parents=True)
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    for name in cpus.OF_SLURM:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write_all(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "max 100000\n"}, 64),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "400000 100000\n"}, 4),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "150000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "20000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "9900000 100000\n"}, 64),
        (
            {"proc/self/cgroup": "0::/job/step\n", "cgroup/job/cpu.max": "8 1\n", "cgroup/job/step/cpu.max": "max 1\n"},
            8,
        ),
        ({"proc/self/cgroup": "0::/job/step\n", "cgroup/job/cpu.max": "8 1\n", "cgroup/job/step/cpu.max": "3 1\n"}, 3),
        ({"proc/self/cgroup": "0::/of/the/host\n", "cgroup/cpu.max": "500 100\n"}, 5),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "nonsense\n"}, 64),
        (
            {
                "proc/self/cgroup": "9:name=systemd:/\n4:cpu,cpuacct:/docker/01\n0::/\n",
                "cgroup/cpu,cpuacct/docker/01/cpu.cfs_quota_us": "250000\n",
                "cgroup/cpu,cpuacct/docker/01/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "4:cpuacct,cpu:/docker/01\n5:cpuset:/\n",
                "cgroup/cpu/cpu.cfs_quota_us": "600000\n",
                "cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            6,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            64,
        ),
    ],
)
def test_a_quota_of_either_version_counts(files: dict[str, str], expected: int, machine: Path) -> None:
    write_all(machine, files)
    assert count_cpus() == expected


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_CPUS_PER_TASK": "4"}, 4),
        ({"SLURM_CPUS_ON_NODE": "8"}, 8),
        ({"SLURM_CPUS_PER_TASK": "4", "SLURM_CPUS_ON_NODE": "8"}, 4),
        ({"SLURM_CPUS_PER_TASK": "96"}, 64),
        ({"SLURM_CPUS_PER_TASK": "many"}, 64),
        ({"SLURM_CPUS_PER_TASK": "0"}, 1),
    ],
)
def test_the_cpus_of_a_job_of_slurm_count(
    variables: dict[str, str], expected: int, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert count_cpus() == expected


def test_memory_of_controllers_that_are_mounted_together(machine: Path) -> None:
    files = {"memory.limit_in_bytes": "2000000", "memory.usage_in_bytes": "500000"}
    write_all(machine, {f"cgroup/cpu,memory/x/{name}": text for name, text in files.items()})
    write_all(machine, {"proc/self/cgroup": "4:cpu,memory:/x\n", "proc/meminfo": "MemAvailable: 8000000 kB\n"})
    assert memory.find_available() == 1_500_000


@pytest.fixture
def one_cpu() -> Iterator[None]:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity on this system")
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(every)})
    yield
    os.sched_setaffinity(0, every)


@pytest.mark.usefixtures("one_cpu")
def test_affinity_counts() -> None:
    command = [sys.executable, "-c", "from ray_ft.files.cpus import count_cpus; print(count_cpus())"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("one_cpu")
def test_a_ray_that_is_started_here_has_the_cpus_of_the_process() -> None:
    with connect(ComputeSection()):
        assert ray.cluster_resources()["CPU"] == 1
