"""What each choice beyond plain fine-tuning buys: `python -m benchmarks.ablation` (hours; one cell, `--cases measured
--sizes 0`, half an hour on two idle cores).

Each row is a whole search by `ray-ft cv` of one strategy, by one seed, on the demo's network: with a choice, and
without it. Both are at their best, by the same budget. Differences are paired by fold, with intervals as in a report.
What needs no training (averaging over the symmetry, pulling weights back) is read off the ensemble of `full`.

A run that is there is not made again, so the command goes on where it was stopped; `ablation.csv` has all fold means.
"""

import argparse
import csv
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate
from ray_ft.results.summary import Summary
from ray_ft.statistics.comparison import Comparison, compare_all

EXAMPLES = Path(__file__).parents[1] / "examples" / "color_router"
CASES = ("measured", "novel", "precise")
ALL = {"train": ["*"], "weight_decay": [0.0, 0.05], "head_dropout": 0.1}
HEAD = ["head.*", "spec_bias"]
BASE = "full"
ARMS: dict[str, tuple[dict[str, Any], str]] = {  # the strategy, other keys with a dot, and what it is told beside
    BASE: (ALL, ""),
    "two views, of the half turn alone": (ALL | {"data.symmetry": ["rot180"]}, BASE),
    "no views": (ALL | {"data.symmetry": [], "epochs.of": None}, BASE),
    "weight decay towards the pretrained weights": (
        ALL | {"decay_to": "pretrained", "weight_decay": [0.01, 0.1]},
        BASE,
    ),
}


def make(job: tuple[str, int, str, str, int]) -> tuple[str, int, str]:
    """Carry out one run, or find it done."""
    case, size, arm, folder, n_candidates = job
    torch.set_num_threads(1)
    described = {key: value for key, value in ARMS[arm][0].items() if "." not in key}
    values: dict[str, Any] = {
        "name": "ablation", "cv.strategies": ["own"], "cv.seeds": 1, "search.candidates": n_candidates,
        "training.precision": "float32", "compute.packing": "looped", "strategies": {"own": described},
    }  # fmt: skip
    values |= {key: value for key, value in ARMS[arm][0].items() if key.startswith(("data.", "ensemble."))}
    if case != "measured":
        values |= {
            "data.inputs": f"{EXAMPLES / case}.npz::structure",
            "data.targets": f"{EXAMPLES / case}.npz::spectra",
        }
    if size:
        values["cv.train_size"] = size
    cross_validate(load_config(None, values), folder, inline=True)
    return case, size, arm


def place(root: Path, case: str, size: int, arm: str) -> Path:
    return root / f"{case}-{size or 'all'}-{arm.replace(' ', '_').replace(',', '')}"


def list_rows(root: Path, case: str, size: int) -> Iterator[tuple[str, Summary]]:
    for arm in ARMS:
        folder = place(root, case, size, arm)
        if (folder / "summary.json").exists():
            yield arm, Summary.load(folder)


def compare(found: Mapping[str, Summary]) -> Iterator[Comparison]:
    """Compare each choice with what it is told beside, fold by fold, members and not ensembles."""
    means = {name: own.strategies["own"].fold_means for name, own in found.items()}
    for name, (_, beside) in ARMS.items():
        if beside and name in means and beside in means:
            own, pair = found[name], {name: means[name], beside: means[beside]}
            yield from compare_all(pair, own.rope, own.test_share, [(name, beside)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--sizes", default="20,40,0", help="training parts; 0 for all samples there are")
    parser.add_argument("--candidates", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    options = parser.parse_args()
    cells = [(case, int(size)) for case in options.cases.split(",") for size in options.sizes.split(",")]
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = [
        (case, size, arm, str(place(options.out, case, size, arm)), options.candidates)
        for case, size in cells
        for arm in ARMS
    ]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for case, size, arm in pool.map(make, jobs):
            print(f"done: {case}, {size or 'all'}, {arm}", flush=True)
    write_table(options.out, cells)


def write_table(root: Path, cells: list[tuple[str, int]]) -> None:
    """Write the fold means as CSV, and print the comparisons."""
    with (root / "ablation.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "size", "choice", "fold", "mse", "ensemble", "averaged"])
        for case, size in cells:
            found = dict(list_rows(root, case, size))
            for name, own in found.items():
                ensemble = own.ensemble
                for fold, value in enumerate(own.strategies["own"].fold_means.ravel()):
                    row = [case, size, name, fold, value, ensemble.options["uniform"], ensemble.symmetric_score]
                    writer.writerow(row)
            print(f"\n{case}, training parts of {size or 'all'}")
            for name, own in found.items():
                print(f"  {name}: {1e3 * np.mean(own.strategies['own'].fold_means):.4f}", flush=True)
            pairs = list(compare(found))
            base = found[BASE].ensemble
            pairs += [pair for pair in (base.pulled_pair, base.symmetric_pair) if pair]
            for pair in pairs:
                low, high = pair.ratio_interval or (np.nan, np.nan)
                print(f"  {pair.first} / {pair.second}: {pair.ratio:.3f} [{low:.3f}, {high:.3f}], p {pair.p_value:.2g}")


if __name__ == "__main__":
    main()
