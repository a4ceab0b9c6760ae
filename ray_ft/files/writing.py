"""Files that are written whole or not at all, and records that carry a digest of themselves."""

import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ray_ft.files.hashes import hash_text
from ray_ft.files.json_text import read_json


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; what stands there at the end takes the name of `path` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}-{uuid.uuid4().hex}{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def is_partial_of(path: Path, name: str) -> bool:
    """Whether a file is what `replace_file` leaves of another where its process is killed."""
    return re.fullmatch(rf"\.{re.escape(path.stem)}-[0-9a-f]{{32}}{re.escape(path.suffix)}", name) is not None


def write_text(path: Path, text: str) -> None:
    with replace_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, default: Callable[[Any], Any] | None = None) -> None:
    write_text(path, json.dumps(content, indent=2, default=default) + "\n")


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with a digest of itself, so that a bit that flips is noticed."""
    write_json(path, {**content, "sha256": hash_text(json.dumps(content))})


def read_record(path: Path) -> dict[str, Any]:
    """Read what `write_record` wrote; what is damaged is a `ValueError`."""
    content = read_json(path)
    if not isinstance(content, dict) or content.pop("sha256", None) != hash_text(json.dumps(content)):
        raise ValueError(f"{path} is not as it was written")
    return content


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    with replace_file(path) as partial:
        np.savez(partial, allow_pickle=False, **arrays)
