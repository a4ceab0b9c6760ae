"""Is the strategy that 100 samples name the best on fresh ones? `python -m benchmarks.fresh` (an hour on two cores).

A row for each strategy of each of `benchmarks.problems`: what the run says of it, and the error of the uniform ensemble
of its members on samples that no run has seen. `behind` is by how much that is above the error of the run's own pick on
the same samples, with its standard error. `split_chance` is how often one split into 80 and 20 would pick it: of 200
draws of 20 samples to validate by, the share in which one of its candidates has, at its best epoch, the lowest loss of
all, each sample judged by a network that was not trained on it.

A run that is there is not made again, and problems that are not asked for keep their rows. `--list` trains nothing; it
also prints what each rule that picks a strategy costs (`benchmarks.rules`).
"""

import argparse
import csv
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from benchmarks.problems import NAMES, Problem, choose, load_problem
from benchmarks.rules import print_costs, print_draws, print_verdicts
from ray_ft import Ensemble
from ray_ft.cross_validation import cross_validate, prepare, rebuild_ensemble
from ray_ft.objectives import ZERO_SHOT
from ray_ft.results.records import load_history, load_judged, load_splits
from ray_ft.results.summary import StrategySummary, Summary
from ray_ft.runs.folder import RunFolder

RESULTS = Path(__file__).parent / "results" / "fresh.csv"
ENSEMBLE = "ensemble"  # what the run builds by itself
COLUMNS = ("problem", "strategy", "score", "settled", "verdict", "p", "fresh", "fresh_se", "behind", "behind_se")
COLUMNS += ("split_chance", "picked", "coverage", "seconds")
N_SPLITS, N_HELD_OUT = 200, 20
Row = dict[str, Any]


def measure(job: tuple[str, Path, int]) -> list[Row]:
    """Run, or go on, and judge what was found by fresh samples."""
    name, root, n_candidates = job
    torch.set_num_threads(1)
    problem, run = load_problem(name, n_candidates), root / name
    summary = cross_validate(problem.config, run, inline=True)
    chances = draw_splits(RunFolder(run))
    losses, rows = {}, {}
    for strategy, own in summary.strategies.items():
        if own.score_mean is not None:
            rebuild_ensemble(run, trust=True, strategies=[strategy], method="uniform", pull_back=False)
            losses[strategy], coverage = judge(run, problem)
            rows[strategy] = describe(summary, strategy, own) | {"coverage": coverage}
            rows[strategy]["split_chance"] = chances.get(strategy, 0.0)
    ensemble = rebuild_ensemble(run, trust=True)  # as the config says, for whoever uses the run later
    losses[ENSEMBLE], coverage = judge(run, problem)
    rows[ENSEMBLE] = {"score": ensemble.score, "coverage": coverage, "seconds": summary.wall_s}
    losses[ZERO_SHOT] = judge_pretrained(problem)
    rows[ZERO_SHOT] = {"score": summary.baselines[ZERO_SHOT].score_mean}
    for strategy, row in rows.items():
        row |= {"problem": name, "strategy": strategy} | measure_loss(losses[strategy], losses[summary.lowest])
    return list(rows.values())


def describe(summary: Summary, strategy: str, own: StrategySummary) -> Row:
    """What the run says of a strategy: its verdict is on it and the one of the lowest score."""
    row: Row = {"score": own.score_mean, "settled": own.settled, "picked": strategy == summary.lowest}
    pairs = {frozenset((pair.first, pair.second)): pair for pair in summary.comparisons}
    if pair := pairs.get(frozenset((strategy, summary.lowest))):
        row |= {"verdict": pair.seen_from(strategy).verdict, "p": pair.p_adjusted}
    return row


def measure_loss(own: Float[np.ndarray, " sample"], picked: Float[np.ndarray, " sample"]) -> Row:
    behind = own - picked
    root = len(own) ** 0.5
    spread = {"fresh_se": own.std(ddof=1) / root, "behind_se": behind.std(ddof=1) / root}
    return {"fresh": own.mean(), "behind": behind.mean()} | spread


def judge(run: Path, problem: Problem) -> tuple[Float[np.ndarray, " sample"], float | None]:
    """Losses of the run's ensemble on fresh samples, and the share of their values that its intervals hold."""
    ensemble, targets = Ensemble.load(run, trust=True), problem.test[1]
    predicted = ensemble.predict(problem.test_inputs)
    inside = None
    if predicted.lower is not None:
        inside = float(((predicted.lower <= targets) & (targets <= predicted.upper)).mean())
    return ensemble.objective.score(predicted.mean, targets), inside


def judge_pretrained(problem: Problem) -> Float[np.ndarray, " sample"]:
    objective = prepare(problem.config).problem.objective
    network = problem.build().eval()
    with torch.no_grad():
        said = network(*map(torch.from_numpy, problem.test[0])).numpy()
    return objective.score(said, problem.test[1])


def draw_splits(run: RunFolder) -> dict[str, float]:
    """How often each strategy would be picked by one split with early stopping, by one network a candidate."""
    plan, verdicts = load_judged(run)
    splits = load_splits(run)
    rng = np.random.default_rng(0)
    held_out = np.stack([rng.permutation(splits.n_samples)[:N_HELD_OUT] for _ in range(N_SPLITS)])
    lowest: dict[str, np.ndarray] = {}
    for spec in plan:
        history = None if verdicts[spec.name].state == "failed" else load_history(run, spec.name, splits)
        if history is not None:
            losses = history.losses[:, 0, 0][:, held_out].mean(-1)  # (epoch, draw)
            lowest[spec.strategy] = np.fmin(np.nanmin(losses, 0), lowest.get(spec.strategy, np.inf))
    winners = np.argmin([*lowest.values()], 0)
    return {name: float((winners == place).mean()) for place, name in enumerate(lowest)}


def read_rows(path: Path = RESULTS) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(rows: Sequence[Row], path: Path = RESULTS) -> None:
    """Write rows, and keep those of other problems; in the order of the problems."""
    new = {row["problem"] for row in rows}
    kept = [row for row in read_rows(path) if row["problem"] not in new]
    known = {name: place for place, name in enumerate(NAMES)}
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*kept, *map(shorten, rows)], key=lambda row: known.get(row["problem"], len(known))))


def shorten(row: Row) -> Row:
    return {key: f"{value:.5g}" if isinstance(value, float | np.floating) else value for key, value in row.items()}


def print_rows(rows: Sequence[dict[str, str]]) -> None:
    """Print, as Markdown, errors on fresh samples; the run's pick in bold, which the ensemble mostly is made of."""
    named = dict.fromkeys(row["strategy"] for row in rows)
    picked = {row["problem"]: row["fresh"] for row in rows if row["picked"] == "True"}
    mixed = [row["problem"] for row in rows if row["strategy"] == ENSEMBLE and row["fresh"] != picked[row["problem"]]]
    others = [ENSEMBLE, ZERO_SHOT] if mixed else [ZERO_SHOT]
    strategies = [name for name in named if name not in (ENSEMBLE, ZERO_SHOT)] + others
    print(f"| problem | {' | '.join(strategies)} | intervals hold |\n|---|{'---|' * (len(strategies) + 1)}")
    for name in dict.fromkeys(row["problem"] for row in rows):
        found = {row["strategy"]: row for row in rows if row["problem"] == name}
        told = [say(found[strategy]) if strategy in found else "" for strategy in strategies]
        covered = found[ENSEMBLE]["coverage"]
        print(
            f"| {name} | {' | '.join(told)} | {float(covered):.1%} |"
            if covered
            else f"| {name} | {' | '.join(told)} | |"
        )


def say(row: dict[str, str]) -> str:
    text = f"{float(row['fresh']):.4f} ± {float(row['fresh_se']):.4f}"
    return f"**{text}**" if row["picked"] == "True" else text


def list_jobs(options: argparse.Namespace) -> Iterator[tuple[str, Path, int]]:
    for name in choose(options.problems):
        yield name, options.out.resolve(), options.candidates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", default="", help="comma-separated; all where left out")
    parser.add_argument("--candidates", type=int, default=6, help="how many a strategy")
    parser.add_argument("--out", type=Path, default=Path("runs/fresh"), help="the folder that keeps the runs")
    parser.add_argument("--list", action="store_true", help="print what the table of results has; train nothing")
    options = parser.parse_args()
    if not options.list:
        options.out.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            for rows in pool.map(measure, list_jobs(options)):
                write_rows(rows)
                print(f"done: {rows[0]['problem']}", flush=True)
    rows = read_rows()
    print_rows(rows)
    print_costs(rows)
    print_draws(rows)
    print_verdicts(rows)


if __name__ == "__main__":
    main()
