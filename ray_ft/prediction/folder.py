"""The output folder: a file for each quantity, filled chunk by chunk; what stands in it is never half a chunk."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Shaped
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ray_ft.ensemble.artefact import Card
from ray_ft.errors import DataError, first_few, first_line, shorten
from ray_ft.files.arrays import map_array
from ray_ft.files.hashes import hash_text
from ray_ft.files.json_text import read_json
from ray_ft.files.writing import write_json
from ray_ft.prediction.quantities import Found, PredictionSpec
from ray_ft.prediction.sources import Source

PLAN, PROGRESS, DONE = "plan.json", "progress.json", "done.json"  # written first, in between, and last
T = TypeVar("T")


class StreamPosition(BaseModel):
    """How many samples are done, and how many of them are unlike the training samples (None if that is not asked)."""

    model_config = ConfigDict(frozen=True)

    n_done: int = Field(default=0, ge=0)
    n_flagged: int | None = None


def describe_plan(card: Card, source: Source, spec: PredictionSpec, first: Found, form: str) -> dict[str, Any]:
    """Say what is predicted, in words that JSON keeps as they are; the first sample has all shapes and types."""
    return {
        "form": form,
        "ensemble": hash_text(card.model_dump_json())[:12],
        "level": spec.level,
        "quantities": ", ".join(f"{name} {own.shape[1:]} {own.dtype.str}" for name, own in first.items()),
        "inputs": f"{len(source):,} x {source.shape} {source.dtype}",
        "files": [list(stamp) for stamp in source.files],
        "blocks": [[Path(block.path).name, block.n_samples] for block in source.blocks],
    }


@contextmanager
def open_folder(root: Path, plan: Mapping[str, Any], n_samples: int) -> Iterator[StreamPosition]:
    """Make a folder, or make sure that it holds the beginning of these very predictions; yield how far they are.

    It is kept from others meanwhile. One that cannot be written, is in use, or holds something else is a `DataError`.
    """
    if root.is_dir() and not (root / PLAN).exists():
        strangers = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
        if strangers:
            raise DataError(f"--out needs a new folder, got {root} with {first_few(strangers)}; choose another")
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("a")
    except OSError as error:
        raise DataError(f"--out must be a folder to write in, got {root}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with this process, however it ends
        except OSError as error:
            raise DataError(f"one command at a time may write into a folder, got {root}, which is in use") from error
        if (root / PLAN).exists():
            check_same(root, read_own(root / PLAN, dict), plan)
        else:
            write_json(root / PLAN, plan)
        known = (path for path in (root / DONE, root / PROGRESS) if path.exists())
        position = next((read_own(path, StreamPosition) for path in known), StreamPosition())
        if position.n_done > n_samples:
            raise DataError(f"{n_samples:,} samples can be done, got {position.n_done:,} in {root}; choose another")
        yield position


def read_own(path: Path, kind: type[T]) -> T:
    try:
        return TypeAdapter(kind).validate_python(read_json(path))
    except (OSError, ValueError) as error:
        rule = "an output folder's files must be its own, and readable"
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else first_line(error)
        raise DataError(f"{rule}, got {path} of another kind: {reason}; choose another") from error


def check_same(root: Path, begun: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Refuse a folder that began otherwise, or whose inputs have another size or time of change; say what differs."""
    if begun.keys() != plan.keys():
        raise DataError(f"an output folder's files must be its own, got {root / PLAN} of another kind; choose another")
    changes = [
        f"{key}: {shorten(str(begun[key]), 400)} there, {plan[key]} now"
        for key in ("form", "ensemble", "level", "quantities", "inputs")
        if begun[key] != plan[key]
    ]
    if not changes and begun["files"] != plan["files"]:
        known = begun["files"] if isinstance(begun["files"], list) else []
        other = next((path for path, *stamp in plan["files"] if [path, *stamp] not in known), "fewer files")
        changes = [f"inputs: other files, or changed since, in {other}"]
    if changes:
        differ = "\n  ".join([f"predictions go on as they began, got {root} with", *changes])
        raise DataError(f"{differ}\ngive the same again, or another --out")


def check_space(root: Path, first: Found, n_left: int) -> None:
    """Refuse what does not fit on the disk before it is begun."""
    needed = n_left * sum(own.nbytes for own in first.values())
    free = shutil.disk_usage(next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())).free
    if needed > free:
        text = f"{n_left:,} samples need {needed / 1e6:,.2f} MB for {', '.join(first)}, got {free / 1e6:,.2f} MB free"
        raise DataError(f"{text} for {root}; ask for fewer --quantities, or another --out")


def make_arrays(root: Path, first: Found, n_samples: int, n_done: int) -> None:
    """Make the files in their full size, or make sure that they are still there, and of their shape and type."""
    for name, own in first.items():
        path, shape = root / f"{name}.npy", (n_samples, *own.shape[1:])
        if n_done == 0:
            np.lib.format.open_memmap(path, "w+", own.dtype, shape)
            continue
        try:
            found = map_array(path)
        except (OSError, ValueError) as error:
            raise DataError(f"an output folder must be whole to go on, got {path}: {error}") from error
        if (found.shape, found.dtype) != (shape, own.dtype):
            raise DataError(f"{path} must be {shape} {own.dtype} to go on, got {found.shape} {found.dtype}")


def write_rows(path: Path, first: int, rows: Shaped[np.ndarray, "sample ..."]) -> None:
    """Write samples into a file of all, down to the disk; not through the map, where a full disk kills the process."""
    whole = np.load(path, mmap_mode="r", allow_pickle=False)
    with path.open("r+b") as file:
        file.seek(whole.offset + first * rows[0].nbytes)
        file.write(rows.astype(whole.dtype, copy=False).tobytes())
        file.flush()
        os.fsync(file.fileno())
