"""A candidate's checkpoint: everything that its next epoch depends on, in one file that is whole or absent."""

import errno
import zipfile
from pathlib import Path
from typing import Any

import torch

from ray_ft.files.memory import is_out_of_memory
from ray_ft.files.writing import replace_file


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write nested dicts and lists of tensors and plain values.

    Raises:
        OSError: It cannot be written.
    """
    with replace_file(path) as partial:
        try:
            torch.save(content, partial)
        except RuntimeError as error:  # as which torch tells of a full disk
            if is_out_of_memory(error):
                raise
            raise OSError(errno.EIO, "torch could not write it; is the disk full?", str(path)) from error


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint; one that is missing or damaged is none, and the candidate starts anew."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch does not look at the checksums that it writes
                return None
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # of any class: torch's reader trusts the structure of what it reads
        return None
    return content if isinstance(content, dict) else None
