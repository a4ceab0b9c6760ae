"""Members in this process, for benchmarks of what happens inside a candidate."""

import tempfile
from pathlib import Path

import torch

from benchmarks.vs_ray_tune import COMMON, ROWS, describe_ours, write_inputs
from ray_ft.config import Config, load_config
from ray_ft.cross_validation import Prepared, prepare
from ray_ft.fitting.fitter import FitSettings, Packing
from ray_ft.fitting.gradient import GradientFitter
from ray_ft.fitting.preparation import prepare_strategy
from ray_ft.fitting.starting import start_fitter
from ray_ft.search.problem import list_members


def prepare_row(row: str, precision: str) -> Prepared:
    """Prepare a row of `benchmarks.vs_ray_tune`: the full-size network with random weights on 100 samples."""
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        described = describe_ours(Path(folder), row, COMMON | ROWS[row], precision)
        return prepare(Config.model_validate(described))


def prepare_demo(strategy: str, precision: str) -> Prepared:
    """Prepare the embedded demo with one strategy."""
    return prepare(load_config(None, {"cv.strategies": [strategy], "training.precision": precision}))


def start_members(prepared: Prepared, n_members: int, packing: Packing, device: torch.device) -> GradientFitter:
    """Start the first candidate's members, of folds and seeds in their order."""
    (spec, *_), problem = prepared.first_round, prepared.problem
    precision, strategy = prepared.config.training.precision, prepared.strategies[spec.strategy]
    shared = prepare_strategy(problem, prepared.pretrained, strategy, precision, device)
    keys = list_members(1, COMMON["folds"], -(-n_members // COMMON["folds"]))[:n_members]
    fitter = start_fitter(problem, shared, spec, keys, FitSettings(packing=packing), device)
    assert isinstance(fitter, GradientFitter)
    return fitter
