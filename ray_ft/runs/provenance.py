"""What a result came from: hashes of the data and weights, versions, the command, the time."""

import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

__all__ = ["describe_environment", "hash_arrays", "hash_tensors"]

PACKAGES = ("ray-ft", "torch", "ray", "numpy", "scikit-learn")


def hash_arrays(*arrays: Shaped[np.ndarray, "..."]) -> str:
    """Name arrays by shape, type and content."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Name tensors by name, shape, type and content, whatever their order and device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def describe_environment() -> dict[str, Any]:
    return {
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "n_cpus": os.cpu_count(),
        "versions": {name: find_version(name) for name in PACKAGES},
    }


def find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
