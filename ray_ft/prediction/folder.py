"""The output folder: a file for each quantity, filled chunk by chunk; what stands in it is never half a chunk."""

import fcntl
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Shaped
from pydantic import BaseModel, ConfigDict, Field

from ray_ft.ensemble.artefact import Card
from ray_ft.errors import DataError, first_few, first_line
from ray_ft.files.arrays import map_array
from ray_ft.files.json_text import read_json
from ray_ft.files.writing import write_json
from ray_ft.prediction.quantities import PredictionSpec
from ray_ft.prediction.sources import Source, read_chunks

PLAN, PROGRESS, DONE = "plan.json", "progress.json", "done.json"  # written first, in between, and last


def locate_array(root: Path, quantity: str) -> Path:
    return root / f"{quantity}.npy"


class StreamPosition(BaseModel):
    """How far predictions are.

    Attributes:
        n_done: Samples.
        n_flagged: Of them unlike the training samples; None where that was not asked for.
        checksum: CRC-32 of the inputs of these samples.
    """

    model_config = ConfigDict(frozen=True)

    n_done: int = Field(default=0, ge=0)
    n_flagged: int | None = None
    checksum: int = 0


class ArrayKind(BaseModel):
    shape: tuple[int, ...]
    dtype: str


class SampleKind(ArrayKind):
    """How many samples there are, and the shape and type of each."""

    n: int


class OutputPlan(BaseModel):
    """What is predicted, as `plan.json` has it."""

    ensemble: str
    run: str
    form: str
    level: float
    arrays: dict[str, ArrayKind]
    samples: SampleKind
    files: tuple[tuple[str, int, int], ...] = Field(min_length=1)
    blocks: tuple[tuple[str, int], ...]


def plan_output(
    card: Card, source: Source, spec: PredictionSpec, first: Mapping[str, Shaped[np.ndarray, "1 ..."]], form: str
) -> OutputPlan:
    """Write down what is predicted.

    Args:
        card: Of the ensemble.
        source: The inputs.
        spec: What is asked of them.
        first: Predictions of the first sample.
        form: `npy` or `parquet`.
    """
    n = len(source)
    return OutputPlan(
        ensemble=hashlib.sha256(card.model_dump_json().encode()).hexdigest(),
        run=card.run,
        form=form,
        level=spec.level,
        arrays={name: ArrayKind(shape=(n, *own.shape[1:]), dtype=own.dtype.str) for name, own in first.items()},
        samples=SampleKind(n=n, shape=source.shape, dtype=source.dtype),
        files=source.files,
        blocks=tuple((Path(block.path).name, block.n_samples) for block in source.blocks),
    )


@contextmanager
def open_folder(root: Path, plan: OutputPlan, are_same: Callable[[StreamPosition], bool]) -> Iterator[StreamPosition]:
    """Make a folder, or make sure that it holds the beginning of these very predictions; keep others out meanwhile.

    Args:
        root: The folder.
        plan: What is to be in it.
        are_same: Says, where the files of inputs have changed, whether the samples that are done have not.

    Yields:
        How far they are.

    Raises:
        DataError: It cannot be written, is in use, or holds something else.
    """
    begun = read_model(root / PLAN, OutputPlan) if (root / PLAN).exists() else None
    if begun is None and root.is_dir():
        strangers = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
        if strangers:
            raise DataError(f"--output needs a new folder, got {root} with {first_few(strangers)}; choose another")
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("a")
    except OSError as error:
        raise DataError(f"--output must be a folder to write in, got {root}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with this process, however it ends
        except OSError as error:
            raise DataError(f"one command at a time may write into a folder, got {root}, which is in use") from error
        known = (path for path in (root / DONE, root / PROGRESS) if path.exists())
        position = next((read_model(path, StreamPosition) for path in known), StreamPosition())
        if begun is not None:
            check_same(root, begun, plan, position, are_same)
        if not (root / DONE).exists():
            write_model(root / PLAN, plan)
        yield position


Model = TypeVar("Model", bound=BaseModel)


def read_model(path: Path, kind: type[Model]) -> Model:
    try:
        return kind.model_validate(read_json(path))
    except (OSError, ValueError) as error:
        text = (
            f"an output folder's files must be its own, and readable, got {path} of another kind: {first_line(error)}"
        )
        raise DataError(f"{text}; choose another") from error


def write_model(path: Path, model: BaseModel) -> None:
    write_json(path, model.model_dump(mode="json"))


def check_same(
    root: Path,
    begun: OutputPlan,
    plan: OutputPlan,
    position: StreamPosition,
    are_same: Callable[[StreamPosition], bool],
) -> None:
    """Refuse a folder that began otherwise; files that changed may do so after what is done.

    Raises:
        DataError: It names what differs.
    """
    changes = [f"{what}: {was} there, {now} now" for (what, was), (_, now)
               in zip(describe_plan(begun), describe_plan(plan), strict=True) if was != now]  # fmt: skip
    if not changes and position.n_done > plan.samples.n:
        changes = [f"samples: {position.n_done:,} are done there, and there are {plan.samples.n:,}"]
    if not changes and begun.files != plan.files and not are_same(position):
        other = next((path for path, *stamp in plan.files if (path, *stamp) not in begun.files), "fewer files")
        changes = [f"inputs: other samples than those that are done, or changed since, in {other}"]
    if changes:
        differ = "\n  ".join(changes)
        raise DataError(
            f"predictions go on as they began, got {root} with\n  {differ}\ngive the same again, or another --output"
        )


def describe_plan(plan: OutputPlan) -> list[tuple[str, str]]:
    """What must stay as it began, by its name for the user, in a few words."""
    own = plan.samples
    arrays = [f"{name} {kind.shape[1:]} {kind.dtype}" for name, kind in plan.arrays.items()]
    return [
        ("form", plan.form),
        ("ensemble", plan.ensemble[:12]),
        ("level", str(plan.level)),
        ("quantities", ", ".join(arrays)),
        ("inputs", f"{own.n:,} x {own.shape} {own.dtype}"),
    ]


def sum_inputs(source: Source, start: int, stop: int) -> int:
    """Checksum of some of the samples."""
    checksum = 0
    for chunk in read_chunks(source, start, stop, 1024):
        checksum = extend_sum(chunk, checksum)
    return checksum


def extend_sum(chunk: Shaped[np.ndarray, "sample ..."], checksum: int) -> int:
    return zlib.crc32(np.ascontiguousarray(chunk).tobytes(), checksum)


def check_space(root: Path, plan: OutputPlan, n_left: int) -> None:
    """Refuse what does not fit on the disk before it is begun.

    Raises:
        DataError: It has the numbers.
    """
    kinds = plan.arrays.values()
    needed = n_left * sum(np.dtype(kind.dtype).itemsize * int(np.prod(kind.shape[1:])) for kind in kinds)
    free = shutil.disk_usage(next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())).free
    if needed > free:
        raise DataError(
            f"{n_left:,} samples need {needed / 1e6:,.2f} MB for {', '.join(plan.arrays)}, got {free / 1e6:,.2f} MB "
            f"free for {root}; ask for fewer --quantities, or another --output"
        )


def make_arrays(root: Path, plan: OutputPlan, n_done: int) -> None:
    """Make the files in their full size, or make sure that they are still there.

    Raises:
        DataError: One is gone or another.
    """
    for name, kind in plan.arrays.items():
        path, dtype = locate_array(root, name), np.dtype(kind.dtype)
        if n_done == 0:
            np.lib.format.open_memmap(path, "w+", dtype, kind.shape)
            continue
        try:
            found = map_array(path)
        except (OSError, ValueError) as error:
            raise DataError(f"an output folder must be whole to go on, got {path}: {error}") from error
        if (found.shape, found.dtype) != (kind.shape, dtype):
            raise DataError(f"{path} must be {kind.shape} {dtype} to go on, got {found.shape} {found.dtype}")


def write_rows(path: Path, first: int, rows: Shaped[np.ndarray, "sample ..."]) -> None:
    """Write samples into a file of all, down to the disk; not through the map, where a full disk kills the process."""
    whole = np.load(path, mmap_mode="r", allow_pickle=False)
    with path.open("r+b") as file:
        file.seek(whole.offset + first * rows[0].nbytes)
        file.write(rows.astype(whole.dtype, copy=False).tobytes())
        file.flush()
        os.fsync(file.fileno())
