"""Predictions of more samples than fit in memory: read, predicted and written a chunk at a time, and gone on with."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from ray_ft.ensemble import Ensemble
from ray_ft.errors import DataError
from ray_ft.files.memory import describe_excess
from ray_ft.files.writing import write_arrays, write_json
from ray_ft.prediction.folder import (
    DONE,
    PROGRESS,
    StreamPosition,
    check_space,
    describe_plan,
    locate_array,
    make_arrays,
    open_folder,
    write_rows,
)
from ray_ft.prediction.pace import show_pace
from ray_ft.prediction.quantities import choose_quantities, predict_chunks, try_first
from ray_ft.prediction.sources import Source


@dataclass(frozen=True)
class Streamed:
    """How many samples are predicted now, how many of them were before, and how many are unlike the training samples.

    The last is None where that was not asked for.
    """

    n_samples: int
    n_before: int
    n_flagged: int | None


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
    spec, n_samples = choose_quantities(ensemble, quantities, level), len(source)
    first = try_first(ensemble, source, spec)
    with open_folder(output, describe_plan(ensemble.card, source, spec, first, "npy"), n_samples) as begun:
        position, is_done = begun, (output / DONE).exists()
        if not is_done:
            check_space(output, first, n_samples - begun.n_done)
        make_arrays(output, first, n_samples, begun.n_done)
        if not is_done:
            chunks = predict_chunks(ensemble, source, spec, begun.n_done, n_samples, chunk_size, n_threads)
            with show_pace(console, n_samples, begun.n_done) as advance:
                position = write_chunks(output, chunks, begun, advance)
    return Streamed(n_samples, begun.n_done, position.n_flagged)


def write_chunks(
    output: Path,
    chunks: Iterator[tuple[int, dict[str, np.ndarray]]],
    position: StreamPosition,
    advance: Callable[[int], None],
) -> StreamPosition:
    """Write the predictions of chunk after chunk, each time how far they are, at the end that all are done.

    Raises:
        DataError: A sample is refused, or the disk is full; it says how far the folder is.
    """
    try:
        for n_new, found in chunks:
            for name, rows in found.items():
                write_rows(locate_array(output, name), position.n_done, rows)
            n_flagged = count_flagged(found, position.n_flagged)
            position = StreamPosition(n_done=position.n_done + n_new, n_flagged=n_flagged)
            write_json(output / PROGRESS, position.model_dump())
            advance(n_new)
        write_json(output / DONE, position.model_dump())
        (output / PROGRESS).unlink(missing_ok=True)
    except (DataError, OSError) as error:
        text = f"--output must be writable, got {output}: {getattr(error, 'strerror', '')}"
        kept = f"{position.n_done:,} samples are done, and the same command goes on after them if no file changes"
        raise DataError(f"{error if isinstance(error, DataError) else text}; {kept}") from error
    return position


def count_flagged(found: Mapping[str, np.ndarray], before: int | None = 0) -> int | None:
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
    spec, n_samples = choose_quantities(ensemble, quantities, level), len(source)
    if output.resolve() in [Path(block.path).resolve() for block in source.blocks]:
        raise DataError(f"--output must be another file than the inputs, got {output}")
    of_sample = sum(array.nbytes for array in try_first(ensemble, source, spec).values())
    if excess := describe_excess(2 * n_samples * of_sample):  # in parts, and whole
        raise DataError(
            f"what goes into one file must fit into memory, got {n_samples:,} samples: {excess}; "
            "give --output as a folder, or fewer --quantities"
        )
    parts = []
    with show_pace(console, n_samples) as advance:
        for n_new, found in predict_chunks(ensemble, source, spec, 0, n_samples, n_threads=n_threads):
            parts.append(found)
            advance(n_new)
    whole = {name: np.concatenate([part[name] for part in parts]) for name in spec.quantities}
    try:
        write_arrays(output, **whole)
    except OSError as error:
        raise DataError(f"--output must be writable, got {output}: {error.strerror}") from error
    return Streamed(n_samples, 0, count_flagged(whole))
