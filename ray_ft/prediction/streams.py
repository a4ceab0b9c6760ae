"""Predictions of more samples than fit in memory: read, predicted and written a chunk at a time, and gone on with."""

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from ray_ft.ensemble import Ensemble
from ray_ft.errors import DataError
from ray_ft.files.memory import describe_excess
from ray_ft.prediction.folder import (
    OutputFolder,
    Progress,
    build_plan,
    check_space,
    extend_sum,
    make_arrays,
    open_folder,
    write_progress,
    write_rows,
)
from ray_ft.prediction.pace import Pace
from ray_ft.prediction.quantities import choose_chunk, choose_quantities, predict_chunks, try_first
from ray_ft.prediction.sources import Source, open_source
from ray_ft.runs.folder import write_arrays

__all__ = ["Source", "Streamed", "open_source", "predict_to_archive", "predict_to_folder"]


@dataclass(frozen=True)
class Streamed:
    """What a call did.

    Attributes:
        n_samples: All that are predicted now.
        n_before: Of them, by earlier calls.
        n_flagged: Of all, unlike the training samples; None where that was not asked for.
        seconds: Of this call.
    """

    n_samples: int
    n_before: int
    n_flagged: int | None
    seconds: float


def predict_to_folder(
    ensemble: Ensemble,
    source: Source,
    output: Path,
    quantities: Collection[str] | None = None,
    level: float | None = None,
    console: Console | None = None,
    n_threads: int = 1,
    chunk_size: int | None = None,
) -> Streamed:
    """Predict into a folder, one `.npy` a quantity, in constant memory; the same call goes on where one was cut off.

    Args:
        ensemble: On its device.
        source: The inputs, which `open_source` finds.
        output: The folder.
        quantities: Some of `Ensemble.quantities`; all where left out.
        level: Of the intervals; the card's where left out.
        console: For the progress; silent where left out.
        n_threads: Batches at a time; one on a GPU.
        chunk_size: Samples between two writes, the most that a cut-off call loses.

    Raises:
        ConfigError: A quantity or the level is not one.
        DataError: The inputs are not as the run's were (what was done before is kept), or the folder cannot be used.
    """
    started = time.monotonic()
    request = choose_quantities(ensemble, quantities, level)
    plan = build_plan(ensemble.card, source, request, try_first(ensemble, source, request), "npy")
    folder, size = OutputFolder(output), chunk_size or choose_chunk(ensemble)
    with open_folder(output, plan, source) as begun:
        progress = begun
        if not folder.done.exists():
            check_space(output, plan, begun.n_done)
        make_arrays(folder, plan, begun.n_done)
        if not folder.done.exists():
            chunks = predict_chunks(ensemble, source, request, begun.n_done, len(source), size, n_threads)
            progress = write_chunks(folder, chunks, begun, Pace(console or quiet(), len(source), begun.n_done))
    return Streamed(len(source), begun.n_done, progress.n_flagged, time.monotonic() - started)


def quiet() -> Console:
    return Console(quiet=True)


def write_chunks(
    folder: OutputFolder, chunks: Iterator[tuple[np.ndarray, dict[str, np.ndarray]]], progress: Progress, pace: Pace
) -> Progress:
    """Write chunk after chunk, then that all are done.

    Raises:
        DataError: A sample is refused, or the disk is full; it says how far the folder is.
    """
    try:
        with pace:
            for chunk, found in chunks:
                progress = write_chunk(folder, progress, chunk, found)
                pace.advance(len(chunk))
        write_progress(folder.done, progress)
        folder.progress.unlink(missing_ok=True)
    except DataError as error:
        raise DataError(f"{error}; {describe_kept(progress.n_done)}") from error
    except OSError as error:
        raise DataError(
            f"--output must be writable, got {folder.root}: {error.strerror}; {describe_kept(progress.n_done)}"
        ) from error
    return progress


def describe_kept(n_done: int) -> str:
    return f"{n_done:,} samples are done, and the same command goes on after them"


def write_chunk(folder: OutputFolder, progress: Progress, chunk: np.ndarray, found: dict[str, np.ndarray]) -> Progress:
    """Write the predictions of a chunk, then how far they are."""
    for name, rows in found.items():
        write_rows(folder.array(name), progress.n_done, rows)
    progress = Progress(
        progress.n_done + len(chunk), add_flagged(progress.n_flagged, found), extend_sum(chunk, progress.checksum)
    )
    write_progress(folder.progress, progress)
    return progress


def add_flagged(before: int | None, found: dict[str, np.ndarray]) -> int | None:
    return (before or 0) + int(found["flag"].sum()) if "flag" in found else None


def predict_to_archive(
    ensemble: Ensemble,
    source: Source,
    output: Path,
    quantities: Collection[str] | None = None,
    level: float | None = None,
    console: Console | None = None,
    n_threads: int = 1,
) -> Streamed:
    """Predict into one `.npz`, which is written at the end; predictions wait in memory.

    Args and Raises are those of `predict_to_folder`.
    """
    started = time.monotonic()
    if output.resolve() in [Path(block.path).resolve() for block in source.blocks]:
        raise DataError(f"--output must be another file than the inputs, got {output}")
    request = choose_quantities(ensemble, quantities, level)
    of_sample = sum(array.nbytes for array in try_first(ensemble, source, request).values())
    if excess := describe_excess(2 * len(source) * of_sample):  # in parts, and whole
        raise DataError(
            f"what goes into one file must fit into memory, got {len(source):,} samples: {excess}; "
            "give --output as a folder, or fewer --quantities"
        )
    size, parts = choose_chunk(ensemble), []
    with Pace(console or quiet(), len(source)) as pace:
        for chunk, found in predict_chunks(ensemble, source, request, 0, len(source), size, n_threads):
            parts.append(found)
            pace.advance(len(chunk))
    whole = {name: np.concatenate([part[name] for part in parts]) for name in request.quantities}
    try:
        write_arrays(output, **whole)
    except OSError as error:
        raise DataError(f"--output must be writable, got {output}: {error.strerror}") from error
    return Streamed(len(source), 0, add_flagged(0, whole), time.monotonic() - started)
