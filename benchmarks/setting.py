"""A squad of members in this process, for benchmarks of what happens inside a candidate."""

import tempfile
from pathlib import Path

import torch

from benchmarks.vs_ray_tune import COMMON, ROWS, describe_ours, write_inputs
from ray_ft.config import Config, load_config
from ray_ft.cross_validation import Prepared, prepare
from ray_ft.fitting.gradient import Packing, Squad
from ray_ft.fitting.task import prepare_part
from ray_ft.search.plan import list_members


def prepare_row(row: str, precision: str) -> Prepared:
    """Prepare a row of `benchmarks.vs_ray_tune`: the full-size network with random weights on 100 samples."""
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        described = describe_ours(Path(folder), row, COMMON | ROWS[row], precision)
        return prepare(Config.model_validate(described), Path(folder) / "run")


def prepare_demo(strategy: str, precision: str) -> Prepared:
    """Prepare the embedded demo with one strategy."""
    config = load_config(None, {"cv.strategies": [strategy], "training.precision": precision})
    return prepare(config, Path(tempfile.gettempdir()) / "not_written")


def build_squad(prepared: Prepared, n_members: int, packing: Packing, device: torch.device) -> Squad:
    """Make the first candidate's members, of folds and seeds in their order."""
    (spec, *_) = prepared.plan
    part = prepare_part(prepared.task, spec.strategy, device)
    keys = list_members(1, COMMON["folds"], -(-n_members // COMMON["folds"]))[:n_members]
    return Squad(prepared.task, part, spec, keys, device, packing=packing)
