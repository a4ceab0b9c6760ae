"""Predictions over a cluster by Ray Data: its workers take parts of the inputs and write a Parquet file for each.

Files of inputs, the ensemble and the output must have the same paths on all nodes.
"""

import contextlib
import logging
import math
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from pydantic import BaseModel
from rich.console import Console

from ray_ft.backends.running import set_up_ray
from ray_ft.config import ComputeSection
from ray_ft.ensemble import Ensemble
from ray_ft.errors import DataError
from ray_ft.files.writing import replace_file
from ray_ft.prediction.folder import (
    DONE,
    StreamPosition,
    check_space,
    extend_sum,
    open_folder,
    plan_output,
    sum_inputs,
    write_model,
)
from ray_ft.prediction.pace import show_pace
from ray_ft.prediction.quantities import PredictionSpec, choose_chunk, choose_quantities, predict_chunks, try_first
from ray_ft.prediction.sources import Source
from ray_ft.prediction.streams import Streamed, count_flagged

PART_SIZE = 2048  # samples of a part, the most that a worker loses
Span = tuple[int, int]


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

    A part has the number of each sample in the column `sample`, and each quantity flattened.

    Args:
        ensemble: What `path` holds.
        path: From which the workers load it.
        source: The inputs, which `open_source` finds.
        output: The folder.
        quantities: Some of `Ensemble.quantities`; all where left out.
        level: Of the intervals; the card's where left out.
        compute: Cluster and device; a local Ray where left out.
        console: For the progress; silent where left out.
        part_size: Samples of a part; a group of rows of Parquet stays whole.

    Raises:
        ConfigError: A quantity or the level is not one, or the cluster cannot be reached.
        DataError: The inputs are not as the run's were (other parts are kept), or the folder cannot be used.
    """
    started, compute = time.monotonic(), compute or ComputeSection()
    set_up_ray(compute.address)
    spec = choose_quantities(ensemble, quantities, level)
    plan = plan_output(ensemble.card, source, spec, try_first(ensemble, source, spec), "parquet")
    spans = cut_parts(source, part_size)
    done = {span: record for span in spans if (record := read_record(output, span))}

    def are_same(_: StreamPosition) -> bool:
        return all(sum_inputs(source, *span) == record.checksum for span, record in done.items())

    with open_folder(output, plan, are_same):
        left = [span for span in spans if span not in done]
        n_left = sum(stop - start for start, stop in left)
        for partial in output.glob(".part-*"):  # of workers that were killed
            partial.unlink()
        if left:
            check_space(output, plan, n_left)
            worker = {"path": path.absolute(), "method": ensemble.card.method, "source": source, "spec": spec}
            rows = run_parts({**worker, "output": output.absolute()}, left, compute)
            with show_pace(console, len(source), len(source) - n_left) as advance, contextlib.closing(rows):
                for row in rows:
                    if row["error"]:
                        raise DataError(row["error"])
                    advance(row["n_samples"])
        records = [read_record(output, span) for span in spans]
        n_flagged = sum(record.n_flagged for record in records if record) if "flag" in spec.quantities else None
        write_model(output / DONE, StreamPosition(n_done=len(source), n_flagged=n_flagged))
    return Streamed(len(source), len(source) - n_left, n_flagged, time.monotonic() - started)


def cut_parts(source: Source, size: int) -> list[Span]:
    """Cut all samples into parts of `size`, or of whole groups of rows of Parquet, as many as reach it."""
    if not source.blocks[0].path.endswith(".parquet"):
        return [(start, min(start + size, len(source))) for start in range(0, len(source), size)]
    parts, start, stop = [], 0, 0
    for block in source.blocks:
        stop += block.n_samples
        if stop - start >= size:
            parts.append((start, stop))
            start = stop
    return [*parts, (start, stop)] if stop > start else parts


def locate_part(output: Path, span: Span) -> Path:
    """Sorted by name, parts are in order."""
    return output / f"part-{span[0]:012d}.parquet"


class PartRecord(BaseModel):
    """What the metadata of a part say: how many samples are flagged, and a checksum of the inputs."""

    n_flagged: int
    checksum: int


def read_record(output: Path, span: Span) -> PartRecord | None:
    """Read a part's record; None where the part is missing, damaged or of other samples, and so to be made."""
    from pyarrow import parquet

    try:
        found = parquet.read_metadata(locate_part(output, span))
        record = PartRecord.model_validate({key.decode(): value.decode() for key, value in found.metadata.items()})
    except (OSError, ValueError, AttributeError):  # the last where there are no metadata
        return None
    return record if found.num_rows == span[1] - span[0] else None


def run_parts(
    worker: Mapping[str, Any], parts: Sequence[Span], compute: ComputeSection
) -> Generator[dict[str, Any], None, None]:
    """Let Ray Data spread the parts over actors, one a CPU or a GPU; yield what each says."""
    import ray
    import ray.data

    from ray_ft.backends.tune import connect

    with connect(compute):
        have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves it unannotated
        on_gpu = have.get("GPU", 0) >= 1 and compute.device != "cpu"
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
    """Predicts parts in a worker of Ray.

    Args:
        path: Of the ensemble.
        method: Weights of its members.
        source: The inputs.
        spec: What is asked of them.
        output: Folder of the parts.
        device: Where it computes.
    """

    def __init__(
        self, path: Path, method: str, source: Source, spec: PredictionSpec, output: Path, device: str
    ) -> None:
        torch.set_num_threads(1)
        self.ensemble = Ensemble.load(path, device, trust=True).use_method(method)  # the command has asked
        self.source, self.spec, self.output = source, spec, output

    def __call__(self, batch: dict[str, Int[np.ndarray, " part"]]) -> dict[str, Shaped[np.ndarray, " part"]]:
        start, stop = int(batch["start"][0]), int(batch["stop"][0])
        error = ""
        try:
            self.write_part(start, stop)
        except DataError as problem:  # as text, because Ray would wrap it
            error = f"{problem}; other parts are kept, and the same command does the rest"
        except OSError as problem:
            error = f"--output must be writable from every node, got {self.output}: {problem.strerror}"
        return {"n_samples": np.array([stop - start]), "error": np.array([error])}

    def write_part(self, start: int, stop: int) -> None:
        """Write the predictions of a part, in one step.

        Raises:
            DataError: A sample is refused.
        """
        import pyarrow as pa
        from pyarrow import parquet

        parts, n_flagged, checksum = [], 0, 0
        for chunk, found in predict_chunks(
            self.ensemble, self.source, self.spec, start, stop, choose_chunk(self.ensemble)
        ):
            parts.append(pa.table({name: flatten_rows(rows) for name, rows in found.items()}))
            n_flagged, checksum = n_flagged + (count_flagged(found) or 0), extend_sum(chunk, checksum)
        table = pa.concat_tables(parts).add_column(0, "sample", pa.array(np.arange(start, stop)))
        table = table.replace_schema_metadata({"n_flagged": str(n_flagged), "checksum": str(checksum)})
        with replace_file(locate_part(self.output, (start, stop))) as partial:
            parquet.write_table(table, partial)


def flatten_rows(rows: Shaped[np.ndarray, "sample ..."]) -> Any:
    """Lay predictions out as a column, those of several values a sample as lists of one length."""
    import pyarrow as pa

    flat = pa.array(rows.ravel())
    return pa.FixedSizeListArray.from_arrays(flat, math.prod(rows.shape[1:])) if rows.ndim > 1 else flat
