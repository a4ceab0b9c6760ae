"""The device that an ensemble computes on."""

import torch

from ray_ft.errors import ConfigError


def pick_device(device: str) -> str:
    """Name the device that this process computes on: `auto` is `cuda` where torch can use a GPU.

    Raises:
        ConfigError: It is none, or there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda needs a GPU that torch can use, got none; leave it out")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
