"""How many CPUs can be taken: those of the process, which a container or a job gives fewer than the machine has."""

import os
from collections.abc import Iterator

from ray_ft.files.memory import list_cgroups

OF_SLURM = "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"  # the latter where no number a task was asked for


def count_cpus() -> int:
    """Count the CPUs that this process may use, at least one: by its affinity, its quota and its job of SLURM.

    Of a quota of 1.5 CPUs it takes one, as two processes would wait for each other.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS
    of_job = [int(value) for name in OF_SLURM if (value := os.environ.get(name, "")).isdigit()]
    return max(1, int(min(affinity, *find_quotas(), *of_job[:1])))


def find_quotas() -> Iterator[float]:
    """CPUs that the cgroup of this process, and those around it, allow."""
    yield float("inf")
    for folder in list_cgroups("cpu"):
        try:
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:  # it is "max" or -1 where there is none
                yield int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
