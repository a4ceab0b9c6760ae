"""Where a result was made: versions, the command, the time."""

import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ray_ft.files.cpus import count_cpus

PACKAGES = ("ray-ft", "torch", "ray", "numpy", "scikit-learn")


def describe_environment() -> dict[str, Any]:
    return {
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "n_cpus": count_cpus(),
        "versions": {name: find_version(name) for name in PACKAGES},
    }


def find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
