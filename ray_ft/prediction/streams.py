"""Predictions of more samples than fit in memory: read, predicted and written a chunk at a time, and gone on with."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from ray_ft.ensemble import Ensemble
from ray_ft.errors import DataError
from ray_ft.files.memory import describe_excess
from ray_ft.files.writing import write_arrays, write_json
from ray_ft.prediction import folder
from ray_ft.prediction.folder import DONE, PROGRESS, StreamPosition
from ray_ft.prediction.pace import show_pace
from ray_ft.prediction.quantities import Found, choose_quantities, predict_chunks, try_first
from ray_ft.prediction.sources import Source


@dataclass(frozen=True)
class Streamed:
    """How many samples are predicted now, how many of them were before, and how many are flagged, if that was asked."""

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

    Chunks of `chunk_size` samples, the most that a cut-off call loses, are cut into batches for `n_threads` threads.
    Where the inputs are not as the run's were, what was done before is kept.
    """
    spec, n_samples = choose_quantities(ensemble, quantities, level), len(source)
    first = try_first(ensemble, source, spec)
    plan = folder.describe_plan(ensemble.card, source, spec, first, "npy")
    with folder.open_folder(output, plan, n_samples) as begun:
        folder.check_space(output, first, n_samples - begun.n_done)
        folder.make_arrays(output, first, n_samples, begun.n_done)
        chunks = predict_chunks(ensemble, source, spec, (begun.n_done, n_samples), chunk_size, n_threads)
        with show_pace(console, n_samples, begun.n_done) as advance:
            position = write_chunks(output, chunks, begun, advance)
    return Streamed(n_samples, begun.n_done, position.n_flagged)


def write_chunks(
    output: Path, chunks: Iterator[tuple[int, Found]], position: StreamPosition, advance: Callable[[int], None]
) -> StreamPosition:
    """Write chunk after chunk, each time how far they are, at the end that all are done; an error says how far."""
    try:
        for n_new, found in chunks:
            for name, rows in found.items():
                folder.write_rows(output / f"{name}.npy", position.n_done, rows)
            n_flagged = count_flagged(found, position.n_flagged)
            position = StreamPosition(n_done=position.n_done + n_new, n_flagged=n_flagged)
            write_json(output / PROGRESS, position.model_dump())
            advance(n_new)
        write_json(output / DONE, position.model_dump())
        (output / PROGRESS).unlink(missing_ok=True)
    except DataError as error:
        kept = f"{position.n_done:,} samples are done; corrected inputs need another --out"
        raise DataError(f"{error}; {kept}") from error
    except OSError as error:
        kept = f"{position.n_done:,} samples are done, and the same command goes on after them"
        raise DataError(f"--out must be writable, got {output}: {error.strerror}; {kept}") from error
    return position


def count_flagged(found: Found, before: int | None = 0) -> int | None:
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
    """Predict into one `.npz`, which is written at the end; predictions wait in memory."""
    if output.exists() and any(output.samefile(path) for path, *_ in source.files):
        raise DataError(f"--out must be another file than the inputs, got {output}; name another")
    spec, n_samples = choose_quantities(ensemble, quantities, level), len(source)
    of_sample = sum(array.nbytes for array in try_first(ensemble, source, spec).values())
    if excess := describe_excess(2 * n_samples * of_sample):  # in parts, and whole
        rule = f"what goes into one file must fit into memory, got {n_samples:,} samples: {excess}"
        raise DataError(f"{rule}; give --out as a folder, or fewer --quantities")
    parts = []
    with show_pace(console, n_samples) as advance:
        for n_new, found in predict_chunks(ensemble, source, spec, (0, n_samples), None, n_threads):
            parts.append(found)
            advance(n_new)
    whole = {name: np.concatenate([part[name] for part in parts]) for name in spec.quantities}
    try:
        write_arrays(output, **whole)
    except OSError as error:
        raise DataError(f"--out must be writable, got {output}: {error.strerror}") from error
    return Streamed(n_samples, 0, count_flagged(whole))
