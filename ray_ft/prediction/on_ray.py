"""Predictions over a cluster by Ray Data: its workers take parts of the inputs and write a Parquet file for each.

Files of inputs, the ensemble and the output must have the same paths on all nodes.
"""

import contextlib
import logging
import math
from collections.abc import Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from rich.console import Console

from ray_ft.backends.running import set_up_ray
from ray_ft.config import ComputeSection
from ray_ft.ensemble import Ensemble
from ray_ft.errors import DataError, UserError
from ray_ft.files.suffixes import read_suffix
from ray_ft.files.writing import replace_file, write_json
from ray_ft.prediction.folder import DONE, StreamPosition, check_space, describe_plan, open_folder
from ray_ft.prediction.pace import show_pace
from ray_ft.prediction.quantities import PredictionSpec, Span, choose_quantities, predict_chunks, try_first
from ray_ft.prediction.sources import Source, walk_blocks
from ray_ft.prediction.streams import Streamed, count_flagged

PART_SIZE = 2048  # samples of a part, the most that a worker loses


def predict_on_ray(
    ensemble: Ensemble,
    path: Path,
    source: Source,
    output: Path,
    quantities: Collection[str] | None = None,
    level: float | None = None,
    compute: ComputeSection | None = None,
    console: Console | None = None,
    part_size: int = PART_SIZE,
) -> Streamed:
    """Predict into a folder of Parquet parts, in order by their names; the same call makes the parts that are missing.

    A part has the number of each sample in the column `sample`, and each quantity flattened. The workers load the
    ensemble from `path`. Where the inputs are not as the run's were, other parts are kept.
    """
    compute = compute or ComputeSection()
    set_up_ray(compute.address)
    spec, n_samples = choose_quantities(ensemble, quantities, level), len(source)
    first, spans = try_first(ensemble, source, spec), cut_parts(source, part_size)
    with open_folder(output, describe_plan(ensemble.card, source, spec, first, "parquet"), n_samples):
        left = [span for span in spans if read_flagged(output, span) is None]
        n_left = sum(stop - start for start, stop in left)
        for partial in output.glob(".part-*"):  # of workers that were killed
            partial.unlink()
        if left:
            check_space(output, first, n_left)
            worker = {"path": path.absolute(), "method": ensemble.card.method, "source": source, "spec": spec}
            worker["trust"] = ensemble.card.needs_code  # what was trusted once; what needs no code gets none to run
            rows = run_parts({**worker, "output": output.absolute()}, left, compute)
            with show_pace(console, n_samples, n_samples - n_left) as advance, contextlib.closing(rows):
                for row in rows:
                    if row["error"]:
                        raise DataError(row["error"])
                    advance(row["n_samples"])
        n_flagged = sum(read_flagged(output, span) or 0 for span in spans) if "flag" in spec.quantities else None
        write_json(output / DONE, StreamPosition(n_done=n_samples, n_flagged=n_flagged).model_dump())
    return Streamed(n_samples, n_samples - n_left, n_flagged)


def cut_parts(source: Source, size: int) -> list[Span]:
    """Cut all samples into parts of `size`, or of whole groups of rows of Parquet, as many as reach it."""
    n_samples, in_groups = len(source), read_suffix(source.blocks[0].path) == ".parquet"
    parts, start = [], 0
    for stop in [first for first, _ in walk_blocks(source.blocks)] if in_groups else range(0, n_samples, size):
        if stop - start >= size:
            parts.append((start, stop))
            start = stop
    return [*parts, (start, n_samples)] if start < n_samples else parts


def locate_part(output: Path, span: Span) -> Path:
    """Sorted by name, parts are in order."""
    return output / f"part-{span[0]:012d}.parquet"


def read_flagged(output: Path, span: Span) -> int | None:
    """Read how many samples of a part are flagged; None where it is to be made: missing, damaged or others."""
    from pyarrow import parquet

    try:
        found = parquet.read_metadata(locate_part(output, span))
        return int(found.metadata[b"n_flagged"]) if found.num_rows == span[1] - span[0] else None
    except (OSError, ValueError, TypeError, KeyError):  # the last two where there are no such metadata
        return None


def run_parts(
    worker: Mapping[str, Any], parts: Sequence[Span], compute: ComputeSection
) -> Generator[dict[str, Any], None, None]:
    """Let Ray Data spread the parts over actors, one a CPU or a GPU; yield what each says."""
    import ray
    import ray.data

    from ray_ft.backends.gpu_check import check_gpus
    from ray_ft.backends.tune import connect

    with connect(compute):
        have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves it unannotated
        on_gpu = have.get("GPU", 0) >= 1 and compute.device != "cpu"
        if on_gpu:
            check_gpus("--device cpu")
        n_workers = min(int(have.get("GPU" if on_gpu else "CPU", 1)), len(parts))
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        items = [{"start": start, "stop": stop} for start, stop in parts]
        rows = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            PartPredictor,
            batch_size=1,
            fn_constructor_kwargs={**worker, "device": "cuda" if on_gpu else "cpu"},
            compute=ray.data.ActorPoolStrategy(size=n_workers),
            num_gpus=1 if on_gpu else None,
        )
        yield from rows.iter_rows()


class PartPredictor:
    """Predicts parts in a worker of Ray, with the ensemble in `path`, into the folder `output`."""

    def __init__(
        self, path: Path, method: str, source: Source, spec: PredictionSpec, trust: bool, output: Path, device: str
    ) -> None:
        torch.set_num_threads(1)
        self.ensemble = Ensemble.load(path, device, trust).use_method(method)
        self.source, self.spec, self.output = source, spec, output

    def __call__(self, batch: dict[str, Int[np.ndarray, " part"]]) -> dict[str, Shaped[np.ndarray, " part"]]:
        start, stop = int(batch["start"][0]), int(batch["stop"][0])
        try:
            self.write_part((start, stop))
            error = ""
        except UserError as problem:  # as text, because Ray would wrap it
            error = f"{problem}; other parts are kept, and the same command does the rest if no file changes"
        except OSError as problem:
            error = f"--out must be writable from every node, got {self.output}: {problem.strerror}"
        return {"n_samples": np.array([stop - start]), "error": np.array([error])}

    def write_part(self, span: Span) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        chunks = [found for _, found in predict_chunks(self.ensemble, self.source, self.spec, span)]
        parts = [pa.table({name: flatten_rows(rows) for name, rows in found.items()}) for found in chunks]
        table = pa.concat_tables(parts).add_column(0, "sample", pa.array(np.arange(*span)))
        n_flagged = sum(count_flagged(found) or 0 for found in chunks)
        with replace_file(locate_part(self.output, span)) as partial:
            parquet.write_table(table.replace_schema_metadata({"n_flagged": str(n_flagged)}), partial)


def flatten_rows(rows: Shaped[np.ndarray, "sample ..."]) -> Any:
    """Lay predictions out as a column, those of several values a sample as lists of one length."""
    import pyarrow as pa

    flat = pa.array(rows.ravel())
    return pa.FixedSizeListArray.from_arrays(flat, math.prod(rows.shape[1:])) if rows.ndim > 1 else flat
