"""What each choice beyond plain fine-tuning buys: `python -m benchmarks.ablation` (hours; one cell, `--cases measured
--sizes 0`, half an hour on two idle cores).

Each row is a whole search by `ray-ft cv` of one strategy, by one seed, on the demo's network: with a choice, and
without it. Both have the same budget. Differences are paired by fold, with intervals and p-values as in a report, after
Holm's adjustment for all rows of a data set and size.
What needs no training (averaging over the symmetry, pulling weights back) is read off the ensemble of `full`.

A run that is there is not made again, so the command goes on where it was stopped; `ablation.csv` has all fold means.
"""

import argparse
import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.color_router.make_dataset import make_dataset, save_dataset
from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate
from ray_ft.ensemble import Ensemble
from ray_ft.results.summary import Summary
from ray_ft.statistics.comparison import Comparison, compare_all, mark_unsettled

EXAMPLES = Path(__file__).parents[1] / "examples" / "color_router"
CASES = ("measured", "novel", "precise")
ALL = {"train": ["*"], "weight_decay": [0.0, 0.05], "head_dropout": 0.1}
HEAD = {"train": ["head.*", "spec_bias"], "head_dropout": 0.1}
BASE = "full"
OLD, FRESH, N_OLD, N_FRESH = "old.npz", "fresh.npz", 200, 500  # samples of the pretraining: to replay, and to measure
ARMS: dict[str, dict[str, Any]] = {  # the strategy, and other keys of the config with a dot
    BASE: ALL,
    "views of the half turn alone": ALL | {"data.symmetry": ["rot180"]},
    "no views": ALL | {"data.symmetry": []},
    "learning rates fall with depth": ALL | {"lr_decay": 0.9},
    "decay towards the pretrained weights": ALL | {"decay_to": "pretrained", "weight_decay": 1.0},
    "decay towards zero": ALL | {"weight_decay": 1.0},
    "average of the weights": ALL | {"ema": 0.98},
    "head first": {"stages": [HEAD, ALL]},
    "ridge first": {"stages": [{"fit": "ridge", "train": HEAD["train"]}, ALL]},
    "LoRA of rank 8": ALL | {"adapter": {"kind": "lora", "rank": 8}},
    "a scale of each output": ALL | {"adapter": "scale"},
    "norms and biases": ALL | {"train": ["*bias*", "*norm*", "*gn*"]},
    "replay": ALL | {"data.replay": {"inputs": f"{OLD}::structure", "targets": f"{OLD}::spectra"}},
    "replay of the network's own answers": ALL | {"data.replay": {"inputs": f"{OLD}::structure"}},
}  # fmt: skip


def make(job: tuple[str, int, str, Path, int]) -> tuple[str, int, str]:
    """Carry out one run, or find it done; then measure what it is worth elsewhere."""
    case, size, arm, root, n_candidates = job
    torch.set_num_threads(1)
    described = {key: value for key, value in ARMS[arm].items() if "." not in key}
    values: dict[str, Any] = {
        "name": "ablation", "cv.strategies": ["own"], "cv.seeds": 1, "search.candidates": n_candidates,
        "training.precision": "float32", "compute.packing": "looped", "strategies": {"own": described},
    }  # fmt: skip
    values |= {key: value for key, value in ARMS[arm].items() if key.startswith("data.")}
    values["ensemble.pull_back"] = None if arm == BASE else False
    if replay := values.get("data.replay"):
        values["data.replay"] = {key: str(root / source) for key, source in replay.items()}
    if case != "measured":
        source = EXAMPLES / f"{case}.npz"
        values |= {"data.inputs": f"{source}::structure", "data.targets": f"{source}::spectra"}
    if size:
        values["cv.train_size"] = size
    folder = place(root, case, size, arm)
    cross_validate(load_config(None, values), folder, inline=True)
    measured = folder / "elsewhere.json"
    if not measured.exists() or measured.stat().st_mtime < (folder / "summary.json").stat().st_mtime:
        ensemble = Ensemble.load(folder).use_symmetry(False)
        others = {"pretraining": root / FRESH, "novel": EXAMPLES / "novel.npz"}
        found = {name: measure(ensemble, path) for name, path in others.items()}
        measured.write_text(json.dumps(found))
    return case, size, arm


def measure(ensemble: Ensemble, path: Path) -> float:
    """Mean squared error of an ensemble on the samples of a file."""
    with np.load(path) as archive:
        structure, spectra = archive["structure"], archive["spectra"]
    return float(np.mean((ensemble.predict(structure).mean - spectra) ** 2))


def place(root: Path, case: str, size: int, arm: str) -> Path:
    return root / f"{case}-{size or 'all'}-{arm.replace(' ', '_').replace(',', '')}"


def list_rows(root: Path, case: str, size: int) -> Iterator[tuple[str, Summary]]:
    for arm in ARMS:
        folder = place(root, case, size, arm)
        if (folder / "elsewhere.json").exists():
            yield arm, Summary.load(folder)


def compare(found: Mapping[str, Summary]) -> Sequence[Comparison]:
    """Compare each choice with full fine-tuning without it, fold by fold, members and not ensembles."""
    means = {name: own.strategies["own"].fold_means for name, own in found.items()}
    pairs, base = [(name, BASE) for name in means if name != BASE], found[BASE]
    unsettled = [name for name, own in found.items() if not own.strategies["own"].settled]
    return mark_unsettled(compare_all(means, base.rope, base.test_share, pairs), unsettled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--sizes", default="20,40,0", help="training parts; 0 for all samples there are")
    parser.add_argument("--choices", help="comma-separated; all where left out")
    parser.add_argument("--candidates", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    options = parser.parse_args()
    cells = [(case, int(size)) for case in options.cases.split(",") for size in options.sizes.split(",")]
    options.out.mkdir(parents=True, exist_ok=True)
    for name, n, seed in ((OLD, N_OLD, 11), (FRESH, N_FRESH, 12)):
        if not (options.out / name).exists():
            save_dataset(options.out / name, *make_dataset(n, seed))
    arms = [BASE, *options.choices.split(",")] if options.choices else list(ARMS)
    jobs = [(case, size, arm, options.out.resolve(), options.candidates) for case, size in cells for arm in arms]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for case, size, arm in pool.map(make, jobs):
            print(f"done: {case}, {size or 'all'}, {arm}", flush=True)
    write_table(options.out, cells)


def write_table(root: Path, cells: Sequence[tuple[str, int]]) -> None:
    """Write what was found as CSV, and print it with the comparisons."""
    with (root / "ablation.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "size", "choice", "fold", "mse", "averaged", "pretraining", "novel", "settled"])
        for case, size in cells:
            found = dict(list_rows(root, case, size))
            pairs = {pair.first: pair for pair in compare(found)}
            print(f"\n{case}, training parts of {size or 'all'}; mse in 1e-3")
            for name, own in found.items():
                row, ensemble = own.strategies["own"], own.ensemble
                elsewhere = json.loads((place(root, case, size, name) / "elsewhere.json").read_text())
                told = [row.score_mean, ensemble.symmetric_score, *elsewhere.values()]
                for fold, value in enumerate(row.fold_means.ravel()):
                    writer.writerow([case, size, name, fold, value, *told[1:], row.settled])
                said = "  ".join("     -" if value is None else f"{1e3 * value:6.3f}" for value in told)
                print(f"  {said}  {'' if row.settled else '!':1} {name}{say(pairs.get(name))}")
            for pair in (found[BASE].ensemble.pulled_pair, found[BASE].ensemble.symmetric_pair):
                print(f"  {pair.first if pair else ''}{say(pair)}")


def say(pair: Comparison | None) -> str:
    if pair is None or pair.ratio is None or pair.ratio_interval is None:
        return ""
    low, high = pair.ratio_interval
    return (
        f": {pair.ratio:.3f} [{low:.3f}, {high:.3f}] of that of {pair.second}, p {pair.p_adjusted:.2g}, {pair.verdict}"
    )


if __name__ == "__main__":
    main()
