"""Predictions of more samples than fit in memory: read, predicted and written a chunk at a time, and gone on with."""

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from ray_ft.ensemble import Ensemble
from ray_ft.errors import DataError
from ray_ft.files.memory import describe_excess
from ray_ft.files.writing import write_arrays
from ray_ft.prediction.folder import (
    DONE,
    PROGRESS,
    StreamPosition,
    check_space,
    extend_sum,
    locate_array,
    make_arrays,
    open_folder,
    plan_output,
    sum_inputs,
    write_model,
    write_rows,
)
from ray_ft.prediction.pace import show_pace
from ray_ft.prediction.quantities import choose_chunk, choose_quantities, predict_chunks, try_first
from ray_ft.prediction.sources import Source


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
    spec = choose_quantities(ensemble, quantities, level)
    plan = plan_output(ensemble.card, source, spec, try_first(ensemble, source, spec), "npy")
    size = chunk_size or choose_chunk(ensemble)

    def are_same(position: StreamPosition) -> bool:
        return sum_inputs(source, 0, position.n_done) == position.checksum

    with open_folder(output, plan, are_same) as begun:
        position, is_done = begun, (output / DONE).exists()
        if not is_done:
            check_space(output, plan, len(source) - begun.n_done)
        make_arrays(output, plan, begun.n_done)
        if not is_done:
            chunks = predict_chunks(ensemble, source, spec, begun.n_done, len(source), size, n_threads)
            with show_pace(console, len(source), begun.n_done) as advance:
                position = write_chunks(output, chunks, begun, advance)
    return Streamed(len(source), begun.n_done, position.n_flagged, time.monotonic() - started)


def write_chunks(
    output: Path,
    chunks: Iterator[tuple[np.ndarray, dict[str, np.ndarray]]],
    position: StreamPosition,
    advance: Callable[[int], None],
) -> StreamPosition:
    """Write the predictions of chunk after chunk, each time how far they are, at the end that all are done.

    Raises:
        DataError: A sample is refused, or the disk is full; it says how far the folder is.
    """
    try:
        for chunk, found in chunks:
            for name, rows in found.items():
                write_rows(locate_array(output, name), position.n_done, rows)
            position = StreamPosition(
                n_done=position.n_done + len(chunk),
                n_flagged=count_flagged(found, position.n_flagged),
                checksum=extend_sum(chunk, position.checksum),
            )
            write_model(output / PROGRESS, position)
            advance(len(chunk))
        write_model(output / DONE, position)
        (output / PROGRESS).unlink(missing_ok=True)
    except (DataError, OSError) as error:
        text = f"--output must be writable, got {output}: {getattr(error, 'strerror', '')}"
        kept = f"{position.n_done:,} samples are done, and the same command goes on after them"
        raise DataError(f"{error if isinstance(error, DataError) else text}; {kept}") from error
    return position


def count_flagged(found: dict[str, np.ndarray], before: int | None = 0) -> int | None:
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
    spec = choose_quantities(ensemble, quantities, level)
    of_sample = sum(array.nbytes for array in try_first(ensemble, source, spec).values())
    if excess := describe_excess(2 * len(source) * of_sample):  # in parts, and whole
        raise DataError(
            f"what goes into one file must fit into memory, got {len(source):,} samples: {excess}; "
            "give --output as a folder, or fewer --quantities"
        )
    parts = []
    with show_pace(console, len(source)) as advance:
        for chunk, found in predict_chunks(ensemble, source, spec, 0, len(source), choose_chunk(ensemble), n_threads):
            parts.append(found)
            advance(len(chunk))
    whole = {name: np.concatenate([part[name] for part in parts]) for name in spec.quantities}
    try:
        write_arrays(output, **whole)
    except OSError as error:
        raise DataError(f"--output must be writable, got {output}: {error.strerror}") from error
    return Streamed(len(source), 0, count_flagged(whole), time.monotonic() - started)
