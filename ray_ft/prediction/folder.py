"""The output folder: a file for each quantity, filled chunk by chunk; what stands in it is never half a chunk."""

import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from pydantic import BaseModel, TypeAdapter, ValidationError

from ray_ft.ensemble.artefact import Card
from ray_ft.errors import DataError, first_few, first_line
from ray_ft.files.arrays import map_array
from ray_ft.files.json_text import read_json
from ray_ft.prediction.quantities import PredictionSpec
from ray_ft.prediction.sources import Source, read_chunks
from ray_ft.runs.folder import write_json

__all__ = ["OutputFolder", "Progress", "build_plan", "check_space", "extend_sum", "open_folder", "write_rows"]


@dataclass(frozen=True)
class OutputFolder:
    """Files of predictions; `done.json` is written last."""

    root: Path

    @property
    def plan(self) -> Path:
        """What is predicted, of what, by which ensemble; written first."""
        return self.root / "plan.json"

    @property
    def progress(self) -> Path:
        return self.root / "progress.json"

    @property
    def done(self) -> Path:
        return self.root / "done.json"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    def array(self, quantity: str) -> Path:
        return self.root / f"{quantity}.npy"

    def part(self, first: int) -> Path:
        """Predictions from a sample on, by Ray; sorted by name they are in order."""
        return self.root / f"part-{first:012d}.parquet"


@dataclass(frozen=True)
class Progress:
    """How far predictions are.

    Attributes:
        n_done: Samples.
        n_flagged: Of them unlike the training samples; None where that was not asked for.
        checksum: CRC-32 of the inputs of these samples.
    """

    n_done: int = 0
    n_flagged: int | None = None
    checksum: int = 0


def build_plan(
    card: Card, source: Source, spec: PredictionSpec, first: Mapping[str, Shaped[np.ndarray, "1 ..."]], form: str
) -> dict[str, Any]:
    """Write down what is predicted, as `plan.json` has it.

    Args:
        card: Of the ensemble.
        source: The inputs.
        spec: What is asked of them.
        first: Predictions of the first sample.
        form: `npy` or `parquet`.
    """
    plan = {
        "ensemble": hashlib.sha256(card.model_dump_json().encode()).hexdigest(),
        "run": card.run,
        "form": form,
        "level": spec.level,
        "arrays": {
            name: {"shape": (len(source), *array.shape[1:]), "dtype": array.dtype.str} for name, array in first.items()
        },
        "samples": {"n": len(source), "shape": source.shape, "dtype": source.dtype},
        "files": source.files,
        "blocks": [(Path(block.path).name, block.n_samples) for block in source.blocks],
    }
    return json.loads(json.dumps(plan))  # type: ignore[no-any-return]  # lists for tuples, as it is read back


@contextmanager
def open_folder(root: Path, plan: dict[str, Any], source: Source) -> Iterator[Progress]:
    """Make a folder, or make sure that it holds the beginning of these very predictions; keep others out meanwhile.

    Yields:
        How far they are.

    Raises:
        DataError: It cannot be written, is in use, or holds something else.
    """
    folder = OutputFolder(root)
    if folder.plan.exists() and not is_plan(read_own(folder.plan)):
        raise DataError(f"--output needs a new folder, got {root} with a plan.json of another kind; choose another")
    if not folder.plan.exists() and root.is_dir():
        strangers = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
        if strangers:
            raise DataError(f"--output needs a new folder, got {root} with {first_few(strangers)}; choose another")
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = folder.lock.open("a")
    except OSError as error:
        raise DataError(f"--output must be a folder to write in, got {root}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with this process, however it ends
        except OSError as error:
            raise DataError(f"one command at a time may write into a folder, got {root}, which is in use") from error
        progress = read_progress(folder)
        if folder.plan.exists():
            check_plan(folder, plan, source, progress)
        if not folder.done.exists():
            write_json(folder.plan, plan)
        yield progress


class Samples(BaseModel):
    n: int
    shape: tuple[int, ...]
    dtype: str


class Plan(BaseModel):
    """What of `plan.json` is read back."""

    ensemble: str
    form: str
    level: float
    arrays: dict[str, Any]
    samples: Samples
    files: list[tuple[str, int, int]]


def is_plan(content: Any) -> bool:
    try:
        Plan.model_validate(content)
    except ValidationError:
        return False
    return True


def read_progress(folder: OutputFolder) -> Progress:
    for path in (folder.done, folder.progress):
        if path.exists():
            try:
                return TypeAdapter(Progress).validate_python(read_own(path))
            except ValidationError as error:
                raise DataError(f"an output folder's files must be its own, got {path}; choose another") from error
    return Progress()


def read_own(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"an output folder's files must be readable, got {path}: {first_line(error)}; choose another"
        ) from error


def check_plan(folder: OutputFolder, plan: Mapping[str, Any], source: Source, progress: Progress) -> None:
    """Refuse a folder that began otherwise; files that changed may do so after what is done.

    Raises:
        DataError: It names what differs.
    """
    old = read_own(folder.plan)
    names = {"form": "form", "ensemble": "ensemble", "level": "level", "arrays": "quantities", "samples": "inputs"}
    changes = [f"{what}: {show(old.get(key))} there, {show(plan[key])} now"
               for key, what in names.items() if old.get(key) != plan[key]]  # fmt: skip
    own = plan["form"] == "npy" and old.get("files") != plan["files"]  # a part of Parquet has its own checksum
    if not changes and own and sum_inputs(source, progress) != progress.checksum:
        pairs = zip(old.get("files", []), plan["files"], strict=False)
        changed = next(((was, now) for was, now in pairs if was != now), (["other files"], ["these"]))
        changes = [f"inputs: the first {progress.n_done:,} samples, of {changed[0][0]} there, of {changed[1][0]} now"]
    if changes:
        differ = "\n  ".join(changes)
        raise DataError(
            f"predictions go on as they began, got {folder.root} with\n  {differ}\ngive the same again, or another "
            "--output"
        )
    if not 0 <= progress.n_done <= len(source):
        raise DataError(
            f"of {len(source):,} samples so many cannot be done, got {progress.n_done:,} in {folder.root}; "
            "choose another --output"
        )


def show(content: Any) -> str:
    """Write an entry of a plan in a few words."""
    if not isinstance(content, dict):
        return str(content)[:12]
    return f"{content['n']:,} x {tuple(content['shape'])} {content['dtype']}" if "n" in content else ", ".join(content)


def sum_inputs(source: Source, progress: Progress) -> int:
    checksum = 0
    for chunk in read_chunks(source, 0, progress.n_done, 1024):
        checksum = extend_sum(chunk, checksum)
    return checksum


def extend_sum(chunk: Shaped[np.ndarray, "sample ..."], checksum: int) -> int:
    return zlib.crc32(np.ascontiguousarray(chunk).tobytes(), checksum)


def check_space(root: Path, plan: Mapping[str, Any], n_done: int) -> None:
    """Refuse what does not fit on the disk before it is begun.

    Raises:
        DataError: It has the numbers.
    """
    n_samples = plan["samples"]["n"]
    needed = (n_samples - n_done) * sum(
        np.dtype(array["dtype"]).itemsize * int(np.prod(array["shape"][1:])) for array in plan["arrays"].values()
    )
    free = shutil.disk_usage(next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())).free
    if needed > free:
        raise DataError(
            f"{n_samples - n_done:,} samples need {needed / 1e6:,.2f} MB for {', '.join(plan['arrays'])}, got "
            f"{free / 1e6:,.2f} MB free for {root}; ask for fewer --quantities, or another --output"
        )


def make_arrays(folder: OutputFolder, plan: Mapping[str, Any], n_done: int) -> None:
    """Make the files in their full size, or make sure that they are still there.

    Raises:
        DataError: One is gone or another.
    """
    for name, array in plan["arrays"].items():
        shape, dtype = tuple(array["shape"]), np.dtype(array["dtype"])
        if n_done == 0:
            np.lib.format.open_memmap(folder.array(name), "w+", dtype, shape)
            continue
        try:
            found = map_array(folder.array(name))
        except (OSError, ValueError) as error:
            raise DataError(f"an output folder must be whole to go on, got {folder.array(name)}: {error}") from error
        if (found.shape, found.dtype) != (shape, dtype):
            raise DataError(f"{folder.array(name)} must be {shape} {dtype} to go on, got {found.shape} {found.dtype}")


def write_rows(path: Path, first: int, rows: Shaped[np.ndarray, "sample ..."]) -> None:
    """Write samples into a file of all, down to the disk; not through the map, where a full disk kills the process."""
    whole = np.load(path, mmap_mode="r", allow_pickle=False)
    with path.open("r+b") as file:
        file.seek(whole.offset + first * rows[0].nbytes)
        file.write(rows.astype(whole.dtype, copy=False).tobytes())
        file.flush()
        os.fsync(file.fileno())


def write_progress(path: Path, progress: Progress) -> None:
    write_json(path, asdict(progress))
