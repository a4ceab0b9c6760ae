"""That torch can use the GPUs which Ray has: known before training, as a candidate would fail there at each try."""

import re
from pathlib import Path

import torch

from ray_ft.backends.preflight import ask_nodes, list_gpu_nodes, list_problems
from ray_ft.errors import ConfigError, first_line

DRIVER = Path("/proc/driver/nvidia/version")


def check_gpus(to_leave_out: str) -> None:
    """Have every node that has GPUs compute on one, or say which cannot.

    Args:
        to_leave_out: What the user sets to do without GPUs.

    Raises:
        ConfigError: Torch cannot compute on a GPU of a node; the message names its driver and its build of torch.
    """
    if problems := list_problems(ask_nodes(list_gpu_nodes(), describe_problem)):
        raise ConfigError(
            f"torch must be able to use the GPUs that Ray has, which it cannot on these nodes\n{problems}\n"
            f"set {to_leave_out} to do without them, or install there a torch that is built for CUDA, and for none "
            "newer than the driver knows: https://pytorch.org/get-started/locally names the wheels"
        )


def describe_problem() -> str:
    """On a node: compute on a GPU; return why that cannot be, with the driver and the build of torch, if so."""
    try:
        torch.ones(1, device="cuda").add(1).item()
    except torch.OutOfMemoryError:  # others train there
        return ""
    except (AssertionError, RuntimeError) as error:
        built_for = torch.version.cuda or torch.version.hip
        build = f"torch {torch.__version__}, built " + (f"for CUDA {built_for}" if built_for else "without CUDA")
        return f"driver {find_driver()}; {build}: {first_line(error)}"
    return ""


def find_driver() -> str:
    """Find the version of the NVIDIA driver of this machine."""
    found = re.search(r"\d+\.\d+(\.\d+)?", DRIVER.read_text()) if DRIVER.exists() else None
    return found[0] if found else "not found"
