"""Is the winner of 100 samples the best on 1,000 fresh ones? A row for each case, size and strategy.

python -m examples.airfoil.study --cases mach,flap --sizes small --out examples/airfoil/results.csv

Runs are kept in `--runs`, so the same command goes on; a case and size that the file has are not run again.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from examples.airfoil.network import NeuralFoil
from ray_ft import Config, Ensemble, load_config
from ray_ft.cross_validation import cross_validate, rebuild_ensemble
from ray_ft.objectives import ZERO_SHOT

HERE = Path(__file__).parent
COLUMNS = ("case", "size", "strategy", "score", "settled", "fresh_error", "winner")
ENSEMBLE = "ensemble"  # what the run builds by itself


def main() -> None:
    """Read the command line, run what the file does not have yet, and add its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="mach,flap,unusual", help="comma-separated")
    parser.add_argument("--sizes", default="small,xlarge", help="comma-separated; xxxlarge needs its weights")
    parser.add_argument("--candidates", type=int, default=6, help="how many a strategy")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder that keeps the runs")
    parser.add_argument("--out", type=Path, default=Path("runs/airfoil.csv"), help="the table, which grows")
    args = parser.parse_args()
    for size in args.sizes.split(","):
        for case in args.cases.split(","):
            if (case, size) in read_done(args.out):
                continue
            config = configure(case, size, args.candidates)
            rows = [(case, size, *row) for row in measure(config, args.runs / config.name, case)]
            add_rows(args.out, rows)


def configure(case: str, size: str, n_candidates: int) -> Config:
    """Read the example's config for a case and a size; `flap_onesided` is `flap` without the mirror image."""
    data, _, onesided = case.partition("_")
    values: dict[str, Any] = {"name": f"airfoil_{case}_{size}", "search.candidates": n_candidates}
    values |= {f"data.{name}": f"{HERE / 'data' / data}.npz::{name}" for name in ("inputs", "targets")}
    values |= {"model.params": {"size": size} | ({"symmetric": False} if onesided else {})}
    values |= {"model.checkpoint": str(HERE / "weights" / f"{size}.safetensors")}
    return load_config(HERE / "config.yaml", values)


def measure(config: Config, run: Path, case: str) -> Iterator[tuple[Any, ...]]:
    """Run, or go on; yield for each strategy its score, whether it is settled, its error on fresh samples, and more.

    The error is that of the uniform ensemble of the strategy's members, in the unit of the score.
    """
    summary = cross_validate(config, run, inline=True)
    with np.load(HERE / "data" / f"{case.partition('_')[0]}_fresh.npz") as fresh:
        inputs, targets = fresh["inputs"], fresh["targets"]
    for name, own in summary.strategies.items():
        if own.score_mean is not None:
            rebuild_ensemble(run, trust=True, strategies=[name], method="uniform", pull_back=False)
            yield name, own.score_mean, own.settled, find_error(run, inputs, targets), name == summary.winner
    score = rebuild_ensemble(run, trust=True).score  # as the config says, for whoever uses the run later
    yield ENSEMBLE, score, "", find_error(run, inputs, targets), ""
    network = load_pretrained(**config.model.params)
    objective = Ensemble.load(run).objective
    error = objective.score(network(torch.from_numpy(inputs)).numpy(force=True), targets).mean()
    yield ZERO_SHOT, summary.baselines[ZERO_SHOT].score_mean, "", error, ""


def load_pretrained(size: str, symmetric: bool = True) -> NeuralFoil:
    network = NeuralFoil(size, symmetric)
    network.load_state_dict(load_file(HERE / "weights" / f"{size}.safetensors"))
    return network


def find_error(run: Path, inputs: np.ndarray, targets: np.ndarray) -> float:
    ensemble = Ensemble.load(run)
    return float(ensemble.objective.score(ensemble.predict(inputs).mean, targets).mean())


def read_done(path: Path) -> set[tuple[str, str]]:
    """Read which cases and sizes a table has."""
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {(row["case"], row["size"]) for row in csv.DictReader(file)}


def add_rows(path: Path, rows: list[tuple[Any, ...]]) -> None:
    """Print the rows, and add them to the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        for row in rows:
            texts = [f"{value:.5g}" if isinstance(value, float | np.floating) else str(value) for value in row]
            writer.writerow(texts)
            print(*texts, flush=True)


if __name__ == "__main__":
    main()
