"""How far the search stays behind an exhaustive sweep: `python -m benchmarks.regret [CASE] [--candidates N]`.

For each strategy that learns by gradient descent, the sweep trains 13 learning rates, half a decade apart from 1e-7 to
0.1, times three lengths of schedule (half, one and two of those with which the search begins), on all folds by one
seed. The search is `ray-ft cv` of that strategy in the same process by one seed, its recipe, its ensemble and all. The
regret is by how much the lowest mean of the search is above the lowest of the sweep (0 where it is below). Seconds are
of the process's CPU.

Cases: `demo`, the embedded demo; `novel` and `precise`, the other data of `examples/color_router`; `toy`, a small
network on 30 samples, in seconds.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ray_ft.config import Config, GradientHyperparameters, load_config
from ray_ft.cross_validation import cross_validate, prepare
from ray_ft.errors import DivergedError
from ray_ft.fitting.fitter import FitSettings
from ray_ft.fitting.gradient import GradientFitter
from ray_ft.fitting.preparation import prepare_strategy
from ray_ft.results.records import load_attempts, load_judged, load_splits
from ray_ft.runs.folder import RunFolder
from ray_ft.search.best import BestProposer

EXAMPLES = Path(__file__).parents[1] / "examples" / "color_router"
NAMES = {"inputs": "structure", "targets": "spectra"}
RATES = np.logspace(-7, -1, 13)
CPU = torch.device("cpu")


def load_case(case: str, strategy: str | None, n_candidates: int) -> Config:
    values: dict[str, Any] = {"cv.seeds": 1, "search.candidates": n_candidates, "training.precision": "float32"}
    values["compute.packing"] = "looped"
    if strategy:
        values["cv.strategies"] = [strategy]
    if case in ("novel", "precise"):
        values |= {f"data.{key}": f"{EXAMPLES / case}.npz::{array}" for key, array in NAMES.items()}
    return load_config("toy.yaml" if case == "toy" else None, values)


TOY = """
name: toy
model: {factory: "torch.nn:Linear", params: {in_features: 6, out_features: 3}}
data: {inputs: x.npy, targets: y.npy}
strategies:
  all_of_it: {train: ["*"]}
  bias: {train: ["bias"]}
cv: {strategies: [all_of_it, bias]}
"""


def write_toy() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 6)).astype(np.float32)
    np.save("x.npy", x)
    np.save("y.npy", np.tanh(x @ rng.normal(size=(6, 3))).astype(np.float32))
    Path("toy.yaml").write_text(TOY)


def sweep(case: str, strategy: str, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Train every learning rate with every length; return what each came to."""
    torch.set_num_threads(1)
    prepared = prepare(load_case(case, strategy, 1))
    problem, config = prepared.problem, prepared.config
    shared = prepare_strategy(problem, prepared.pretrained, prepared.strategies[strategy], "float32", CPU)
    proposer = BestProposer(strategy, config.selected[strategy], 1, 0, 0.01)
    rows = []
    for n_epochs in lengths:
        for lr in RATES:
            hyper = proposer.build(float(lr), n_epochs)
            assert isinstance(hyper, GradientHyperparameters)
            started = time.process_time()
            fitter = GradientFitter(
                problem, shared, f"{strategy}-sweep", replace(hyper, patience=10**6), problem.keys,
                FitSettings(packing="looped"), CPU,
            )  # fmt: skip
            rows.append({"lr": float(lr), "epochs": n_epochs, "lowest": train(fitter, problem, n_epochs)})
            rows[-1]["cpu_s"] = time.process_time() - started
    return rows


def train(fitter: GradientFitter, problem: Any, n_epochs: int) -> float:
    """The lowest mean held-out loss of a candidate over its epochs; infinite where it diverges."""
    lowest = np.inf
    try:
        for epoch in range(n_epochs):
            fitter.run_epoch(epoch)
            losses = [
                problem.objective.score(predicted, problem.samples.targets[problem.splits.watched(*key.place)]).mean()
                for key, predicted in fitter.predict().items()
            ]
            lowest = min(lowest, float(np.mean(losses))) if np.isfinite(losses).all() else lowest
    except DivergedError:
        pass
    return lowest


def search(case: str, strategy: str, n_candidates: int, folder: str) -> dict[str, Any]:
    """Search a strategy as `ray-ft cv` does."""
    torch.set_num_threads(1)
    config, run, started = load_case(case, strategy, n_candidates), RunFolder(Path(folder)), time.process_time()
    summary = cross_validate(config, run, inline=True)
    cpu_s, own = time.process_time() - started, summary.strategies[strategy]
    attempts = load_attempts(run, *load_judged(run), strategy, load_splits(run))
    lowest = min((attempt.lowest, attempt.spec.lr, attempt.spec.n_epochs) for attempt in attempts if attempt.lowest)
    ladder = [attempt.spec.n_epochs for attempt in attempts if attempt.spec.origin == "lr"]
    return {
        "lowest": lowest[0], "lr": lowest[1], "epochs": lowest[2], "first": ladder[0], "cpu_s": cpu_s,
        "settled": own.settled, "lr_tried": own.lr_tried,
    }  # fmt: skip


def measure(case: str, strategy: str, n_candidates: int) -> dict[str, Any]:
    """Search, then sweep; say both and the regret."""
    with tempfile.TemporaryDirectory() as folder:
        found = search(case, strategy, n_candidates, f"{folder}/run")
    lengths = [found["first"] // 2, found["first"], 2 * found["first"]]
    rows = sweep(case, strategy, lengths)
    best = min(rows, key=lambda row: row["lowest"])
    cpu_s = sum(row["cpu_s"] for row in rows)
    regret = found["lowest"] / min(best["lowest"], found["lowest"]) - 1
    row = {"case": case, "strategy": strategy, "regret": regret, "time_share": found["cpu_s"] / cpu_s}
    return row | {"search": found, "sweep": best | {"cpu_s": cpu_s, "lengths": lengths}, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", nargs="?", default="demo", choices=["demo", "novel", "precise", "toy"])
    parser.add_argument("--candidates", type=int, default=6)
    parser.add_argument("--strategies", help="comma-separated; all where left out")
    parser.add_argument("--out", type=Path, help="a JSON file for all that was measured")
    options = parser.parse_args()
    if options.case == "toy":
        write_toy()
    selected = load_case(options.case, None, 1).selected
    gradient = [name for name, own in selected.items() if own.stages[-1].fit == "gradient"]
    names = options.strategies.split(",") if options.strategies else gradient
    with ProcessPoolExecutor(2) as pool:
        jobs = [pool.submit(measure, options.case, name, options.candidates) for name in names]
        rows = [job.result() for job in jobs]
    for row in rows:
        own, best = row["search"], row["sweep"]
        print(
            f"{row['strategy']}: {own['lowest']:.4g} (lr {own['lr']:.1e}, {own['epochs']} epochs), sweep "
            f"{best['lowest']:.4g} (lr {best['lr']:.1e}, {best['epochs']}); regret {row['regret']:.1%}; "
            f"{own['cpu_s']:.0f} s of {best['cpu_s']:.0f} s, {row['time_share']:.0%}"
        )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
