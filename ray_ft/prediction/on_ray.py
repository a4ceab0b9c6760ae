"""Predictions over a cluster by Ray Data: its workers take parts of the inputs and write a Parquet file for each.

Files of inputs, the ensemble and the output must have the same paths on all nodes.
"""

import contextlib
import hashlib
import json
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
from ray_ft.files.json_text import parse_json
from ray_ft.prediction.folder import (
    OutputFolder,
    Progress,
    build_plan,
    check_space,
    extend_sum,
    open_folder,
    write_progress,
)
from ray_ft.prediction.pace import Pace
from ray_ft.prediction.quantities import Request, choose_chunk, choose_quantities, predict_chunks, try_first
from ray_ft.prediction.sources import read_chunks
from ray_ft.prediction.streams import Source, Streamed
from ray_ft.runs.folder import replace_file

__all__ = ["PartPredictor", "cut_parts", "predict_on_ray"]

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
    """Predict into a folder of Parquet parts, in order by their names; the same call goes on where one was cut off.

    A part has the number of each sample in the column `sample`, and each quantity flattened; its shape is in the
    file's metadata.

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
        DataError: The inputs are not as the run's were (what was done before is kept), or the folder cannot be used.
    """
    started = time.monotonic()
    set_up_ray(compute.address if compute else None)
    request = choose_quantities(ensemble, quantities, level)
    plan = build_plan(ensemble.card, source, request, try_first(ensemble, source, request), "parquet")
    folder = OutputFolder(output)
    worker = {"path": path.absolute(), "method": ensemble.card.method, "source": source, "request": request}
    with open_folder(output, plan, source):
        known = {span: read_flagged(folder, span, source) for span in cut_parts(source, part_size)}
        left = [span for span, flagged in known.items() if flagged is None]
        n_before = len(source) - sum(stop - start for start, stop in left)
        clear_partial(output)
        if left:
            check_space(output, plan, n_before)
            rows = run_parts({**worker, "output": output.absolute()}, left, compute or ComputeSection())
            known |= collect_parts(rows, Pace(console or Console(quiet=True), len(source), n_before))
        n_flagged = sum(flagged or 0 for flagged in known.values()) if "flag" in request.quantities else None
        write_progress(folder.done, Progress(len(source), n_flagged))
    return Streamed(len(source), n_before, n_flagged, time.monotonic() - started)


def clear_partial(output: Path) -> None:
    """Remove what workers that were killed have left."""
    for path in output.glob(".part-*"):
        path.unlink()


def collect_parts(rows: Generator[dict[str, Any], None, None], pace: Pace) -> dict[tuple[int, int], int]:
    """Take note of each part that is done.

    Raises:
        DataError: A worker refuses one.
    """
    known = {}
    with pace, contextlib.closing(rows):
        for row in rows:
            if row["error"]:
                raise DataError(row["error"])
            known[row["start"], row["stop"]] = row["flagged"]
            pace.advance(row["stop"] - row["start"])
    return known


def cut_parts(source: Source, size: int) -> list[tuple[int, int]]:
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


def read_flagged(folder: OutputFolder, span: tuple[int, int], source: Source) -> int | None:
    """Read how many samples of a part are flagged; None where it is not done, or the files have changed since."""
    record = read_record(folder.part(span[0]))
    if record is None or record["files"] != hash_files(source) or record["stop"] != span[1]:
        return None
    return int(record["flagged"])


class Record(BaseModel):
    """What of a part's own record is read back."""

    stop: int
    flagged: int
    checksum: int
    files: str


def read_record(path: Path) -> dict[str, Any] | None:
    """Read what a part says of itself; None where it is missing or damaged, and so to be made."""
    from pyarrow import parquet

    try:
        record = parse_json(parquet.read_metadata(path).metadata[b"ray_ft"])
        Record.model_validate(record)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(record)


def hash_files(source: Source) -> str:
    return hashlib.sha256(json.dumps(source.files).encode()).hexdigest()


def run_parts(
    worker: Mapping[str, Any], parts: Sequence[tuple[int, int]], compute: ComputeSection
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
        request: What is asked of them.
        output: Folder of the parts.
        device: Where it computes.
    """

    def __init__(self, path: Path, method: str, source: Source, request: Request, output: Path, device: str) -> None:
        torch.set_num_threads(1)
        self.ensemble = Ensemble.load(path, device, trust=True).use_method(method)  # the command has asked
        self.source, self.request, self.folder = source, request, OutputFolder(output)

    def __call__(self, batch: dict[str, Int[np.ndarray, " part"]]) -> dict[str, Shaped[np.ndarray, " part"]]:
        ((start, stop),) = zip(batch["start"].tolist(), batch["stop"].tolist(), strict=True)
        flagged, error = 0, ""
        try:
            flagged = self.make_part(start, stop)
        except DataError as problem:  # as text, because Ray would wrap it
            error = str(problem)
        except OSError as problem:
            error = f"--output must be writable from every node, got {self.folder.root}: {problem.strerror}"
        said = {"start": start, "stop": stop, "flagged": flagged, "error": error}
        return {key: np.array([value]) for key, value in said.items()}

    def make_part(self, start: int, stop: int) -> int:
        """Write a part, or check that one of before the files changed is of these inputs; return how many are flagged.

        Raises:
            DataError: A sample is refused, or the part is one of other inputs.
        """
        path, size = self.folder.part(start), choose_chunk(self.ensemble)
        record = read_record(path)
        if record is None or record["stop"] != stop:
            try:
                return self.write_part(path, start, stop, size)
            except DataError as error:
                raise DataError(f"{error}; other parts are kept, and the same command does the rest") from error
        checksum = 0
        for chunk in read_chunks(self.source, start, stop, size):
            checksum = extend_sum(chunk, checksum)
        if checksum != record["checksum"]:
            raise DataError(
                f"predictions go on as they began, but samples {start} to {stop - 1} are not those of {path}; give the "
                "same inputs again, or another --output"
            )
        return int(record["flagged"])

    def write_part(self, path: Path, start: int, stop: int, size: int) -> int:
        from pyarrow import parquet

        record: dict[str, Any] = {"stop": stop, "flagged": 0, "checksum": 0, "files": hash_files(self.source)}
        writer, first = None, start
        with replace_file(path) as partial:
            for chunk, found in predict_chunks(self.ensemble, self.source, self.request, start, stop, size):
                table = build_table(first, found)
                writer = writer or parquet.ParquetWriter(partial, table.schema)
                writer.write_table(table)
                record["checksum"] = extend_sum(chunk, record["checksum"])
                record["flagged"] += int(found["flag"].sum()) if "flag" in found else 0
                record["shapes"] = {name: array.shape[1:] for name, array in found.items()}
                first += len(chunk)
            assert writer is not None
            writer.add_key_value_metadata({"ray_ft": json.dumps(record)})
            writer.close()
        return int(record["flagged"])


def build_table(first: int, found: Mapping[str, Shaped[np.ndarray, "sample ..."]]) -> Any:
    """Lay out predictions as columns, those of several values flattened."""
    import pyarrow as pa

    n_samples = len(next(iter(found.values())))
    table: dict[str, Any] = {"sample": np.arange(first, first + n_samples)}
    for name, array in found.items():
        flat = pa.array(array.ravel())
        table[name] = pa.FixedSizeListArray.from_arrays(flat, math.prod(array.shape[1:])) if array.ndim > 1 else flat
    return pa.table(table)
