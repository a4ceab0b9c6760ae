"""A candidate's checkpoint: everything that its next epoch depends on, in one file that is whole or absent."""

from pathlib import Path
from typing import Any

import torch

from ray_ft.paths import replace_file

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write nested dicts and lists of tensors and plain values."""
    with replace_file(path) as partial:
        torch.save(content, partial)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint; one that is missing or damaged is none, and the candidate starts anew."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # of any class: torch's reader trusts the structure of what it reads
        return None
    return content if isinstance(content, dict) else None
