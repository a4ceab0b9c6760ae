"""The same bits from the same steps on one kind of GPU: what torch is told, for this process."""

import contextlib
import os
from collections.abc import Iterator

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # without it cuBLAS may sum in another order from call to call


def set_deterministic() -> None:
    """Take but operations that give the same bits each time; those that have no such way raise a RuntimeError by name.

    Products of float32 are then of float32: by default cuDNN rounds their factors to TF32, of 10 bits.
    """
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # it would pick an algorithm by timing
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Do so for a while, in a process that is not the package's own."""
    cudnn, matmul, workspace = torch.backends.cudnn, torch.backends.cuda.matmul, os.environ.get(WORKSPACE)
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    others = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    if wanted:
        set_deterministic()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = others
        if workspace is None:
            os.environ.pop(WORKSPACE, None)
