"""Which parts should learn: the guide's advice, baselines and this tool's answer: `python -m benchmarks.study`.

A cell is a run of `ray-ft cv` with its default strategies on one of the demo's data sets, with training parts of one
size, and one deal of the folds. What a rule would pick in one deal is then judged by the scores of the other deals: its
regret is by how much its pick is above the lowest there. Another deal divides the same samples, which favours a little
those rules that look at them. The rules:

- ours: the strategy of the lowest cross-fitted score;
- guide: the strategy that the guide names for such data; full, head, ridge: always the same;
- one split: as `benchmarks.fresh` draws it, one split into 80 and 20 with early stopping, as it is used by hand.

With `--checkpoint FILE` the cells are of another pretrained DiffractionNet, and its rows bear the file's name. On a
machine with a GPU they train there, as many at once as it has CPUs.

A run that is there is not made again. All scores are kept in `benchmarks/results/study.csv`; `--draw` needs that alone.
The whole takes an hour and a half on two cores: name `--cases` and `--sizes` for a part of it.
"""

import argparse
import csv
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.ablation import CASES, EXAMPLES
from benchmarks.fresh import draw_splits
from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate
from ray_ft.drawing import COLORS, add_legend, draw_grid, use_log, use_style
from ray_ft.results.summary import Summary
from ray_ft.runs.folder import RunFolder

ADVICE = {"measured": "head", "novel": "decoder_head", "precise": "head"}
GUIDED = ("head", "decoder_head", "full", "spec_bias")  # the guide's own strategies, each with a recipe
RESULTS = Path(__file__).parent / "results" / "study.csv"
FIGURE = Path(__file__).parents[1] / "docs" / "study.png"
DEMO = "demo"  # the network that ships with the package
COLUMNS = ("network", "case", "size", "deal", "seeds", "strategy", "score", "std", "settled", "recipe", "verdict")
COLUMNS += ("ratio", "low", "high", "p", "split_chance")
Row = dict[str, Any]
Cell = tuple[str, int]  # a data set, and the samples of a training part
FULL_SIZES = {"measured": 80, "novel": 80, "precise": 64}  # all but a fifth


class Job(NamedTuple):
    case: str
    size: int
    deal: int
    n_seeds: int
    checkpoint: Path | None
    root: Path
    alone: bool  # on all cores


def make(job: Job) -> Job:
    """Carry out a run, or find it done."""
    case, size, deal, n_seeds, checkpoint, root, alone = job
    torch.set_num_threads(1)
    values: dict[str, Any] = {"cv.seeds": n_seeds, "cv.seed": deal}
    if not torch.cuda.is_available():  # beside other runs nothing is chosen by timing
        values["compute.packing"] = "looped"
    if case != "measured":
        source = EXAMPLES / f"{case}.npz"
        values |= {"data.inputs": f"{source}::structure", "data.targets": f"{source}::spectra"}
    if size < FULL_SIZES[case]:
        values["cv.train_size"] = size
    if checkpoint:
        values["model.checkpoint"] = str(checkpoint)
    cross_validate(load_config(None, values), root / f"{case}-{size}-{deal}", inline=not alone)
    return job


def read_rows(root: Path, network: str) -> Iterator[Row]:
    """Read what finished runs found, a row a strategy."""
    for folder in sorted(root.glob("*-*-*")):
        if not (folder / "summary.json").exists():
            continue
        case, size, deal = folder.name.split("-")
        found, chances = Summary.load(folder), draw_splits(RunFolder(folder))
        pairs = {(pair.first, pair.second): pair for pair in found.comparisons}
        for name, own in found.strategies.items():
            row: Row = {"network": network, "case": case, "size": int(size), "deal": int(deal), "strategy": name}
            row["seeds"] = found.n_seeds
            row["split_chance"] = chances.get(name, 0.0)
            row |= {"score": own.score_mean, "std": own.score_std, "settled": own.settled, "recipe": own.guide_score}
            pair = pairs.get((name, found.lowest)) or pairs.get((found.lowest, name))
            if pair and (pair := pair.seen_from(name)).ratio_interval:
                row |= {"verdict": pair.verdict, "ratio": pair.ratio, "p": pair.p_adjusted}
                row |= dict(zip(("low", "high"), pair.ratio_interval, strict=True))
            yield row


def group(rows: Sequence[Row]) -> dict[Cell, dict[int, dict[str, Row]]]:
    cells: dict[Cell, dict[int, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        cells[row["case"], row["size"]][row["deal"]][row["strategy"]] = row
    return cells


def pick_by_rule(case: str, found: dict[str, Row]) -> dict[str, dict[str, float]]:
    """With which chance each rule picks which strategy, from what one deal shows."""
    return {
        "ours": {min(found, key=lambda name: found[name]["score"]): 1.0},
        "guide": {ADVICE[case]: 1.0},
        "always full": {"full": 1.0},
        "always head": {"head": 1.0},
        "always ridge": {"ridge": 1.0},
        "one split": {name: row["split_chance"] for name, row in found.items()},
    }


def measure_regrets(rows: Sequence[Row]) -> dict[str, dict[Cell, float]]:
    """By how much what each rule picks in a deal is above the lowest of another deal, on average."""
    regrets: dict[str, dict[Cell, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell, deals in group(rows).items():
        for here, there in permutations(deals, 2):
            judged = {name: row["score"] for name, row in deals[there].items()}
            best = min(judged.values())
            for rule, picks in pick_by_rule(cell[0], deals[here]).items():
                regret = sum(chance * (judged[name] / best - 1) for name, chance in picks.items())
                regrets[rule][cell].append(regret)
    return {rule: {cell: float(np.mean(own)) for cell, own in cells.items()} for rule, cells in regrets.items()}


def print_tables(rows: Sequence[Row]) -> None:
    """Print, as Markdown, scores, what was advised and found, and the regrets of the rules."""
    cells = group(rows)
    names = list(dict.fromkeys(row["strategy"] for row in rows))
    print(f"| data, training part | {' | '.join(names)} | lowest by the recipes |")
    print(f"|---|{'---|' * (len(names) + 1)}")
    for (case, size), deals in cells.items():
        for deal, found in deals.items():
            told = [say_score(found, name) for name in names]
            recipes = {name: found[name]["recipe"] for name in GUIDED if found[name]["recipe"] is not None}
            lowest = min(recipes, key=lambda name: recipes[name]) if recipes else ""
            print(f"| {name_run(case, size, deal, deals)} | {' | '.join(told)} | {lowest} |")
    print("\n| data, training part | advised | found | advised beside found |\n|---|---|---|---|")
    for (case, size), deals in cells.items():
        for deal, found in deals.items():
            lowest = min(found, key=lambda name: found[name]["score"])
            beside = say_beside(found[ADVICE[case]], lowest)
            print(f"| {name_run(case, size, deal, deals)} | {ADVICE[case]} | {lowest} | {beside} |")
    if regrets := measure_regrets(rows):
        print(f"\n| rule | {' | '.join(f'{case}, {size}' for case, size in cells)} | mean | largest |")
        print(f"|---|{'---|' * (len(cells) + 2)}")
        for rule, by_cell in regrets.items():
            shown = [f"{by_cell[cell]:.1%}" if cell in by_cell else "" for cell in cells]
            print(
                f"| {rule} | {' | '.join(shown)} | {np.mean([*by_cell.values()]):.1%} | {max(by_cell.values()):.1%} |"
            )


def name_run(case: str, size: int, deal: int, deals: Collection[int]) -> str:
    return f"{case}, {size}, deal {deal}" if len(deals) > 1 else f"{case}, {size}"


def say_score(found: dict[str, Row], name: str) -> str:
    row = found[name]
    text = f"{1e3 * row['score']:.3f}{'' if row['settled'] else ' (not settled)'}"
    return f"**{text}**" if row["score"] == min(own["score"] for own in found.values()) else text


def say_beside(row: Row, lowest: str) -> str:
    if row["strategy"] == lowest:
        return "the same"
    if row["ratio"] is None:
        return ""
    return (
        f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}] times the error, p {row['p']:.2g}: {row['verdict']}"
    )


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the error against the size of the training parts by strategy; a point that is not settled is hollow."""
    cells = group(rows)
    names = list(dict.fromkeys(row["strategy"] for row in rows))
    looks = {name: {"color": color, "marker": "o", "markersize": 3} for name, color in zip(names, COLORS, strict=False)}
    with use_style():
        cases = list(dict.fromkeys(case for case, _ in cells))
        figure, panels = draw_grid(len(cases), 2.6, len(cases))
        for case, axes in zip(cases, panels, strict=True):
            sizes = sorted(size for own, size in cells if own == case)
            for name in names:
                means = [1e3 * np.mean([found[name]["score"] for found in cells[case, n].values()]) for n in sizes]
                axes.plot(sizes, means, **looks[name])
                hollow = [(n, mean) for n, mean in zip(sizes, means, strict=True)
                          if not all(found[name]["settled"] for found in cells[case, n].values())]  # fmt: skip
                if hollow:
                    axes.plot(*zip(*hollow, strict=True), **looks[name], linestyle="", markerfacecolor="white")
            axes.set_title(case)
            axes.set_xlabel("training samples")
            use_log(axes)
        panels[0].set_ylabel("mse of held-out folds, 1e-3")
        add_legend(figure, looks.items(), 3)
        figure.savefig(path, dpi=160, facecolor="white")


def read_csv(path: Path) -> list[Row]:
    def read(column: str, text: str) -> Any:
        if column in ("network", "case", "strategy", "verdict"):
            return text
        if column == "settled":
            return text == "True"
        if column in ("size", "deal", "seeds"):
            return int(text)
        return float(text) if text else None

    with path.open(newline="") as file:
        return [{column: read(column, text) for column, text in row.items()} for row in csv.DictReader(file)]


def write_rows(rows: list[Row]) -> None:
    """Write what runs found; cells that are not among them keep their rows."""

    def cell(row: Row) -> tuple[str, str, int, int]:
        return row["network"], row["case"], int(row["size"]), int(row["deal"])

    found = {cell(row) for row in rows}
    kept = [row for row in read_csv(RESULTS) if cell(row) not in found] if RESULTS.exists() else []
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*kept, *rows], key=cell))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--sizes", default="20,40,80", help="samples of a training part; 80 for all but a fifth")
    parser.add_argument("--deals", default="0,1", help="seeds of the deals of the folds")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each fold")
    parser.add_argument("--checkpoint", type=Path, help="another pretrained DiffractionNet; by itself, the demo's")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument(
        "--draw",
        action="store_true",
        help="print what the table of results has, and write docs/study.png; train nothing",
    )
    options = parser.parse_args()
    if not options.draw:
        run(options)
    rows = read_csv(RESULTS) if RESULTS.exists() else []
    for network in dict.fromkeys(row["network"] for row in rows):
        print(f"\n{network}\n")
        print_tables([row for row in rows if row["network"] == network])
    draw([row for row in rows if row["network"] == DEMO], FIGURE)


def run(options: argparse.Namespace) -> None:
    """Make the runs that were asked for, and keep what they found."""
    checkpoint = options.checkpoint and options.checkpoint.resolve()
    network = checkpoint.stem if checkpoint else DEMO
    root = options.out.resolve() / (network if checkpoint else "")
    root.mkdir(parents=True, exist_ok=True)
    wanted = [(case, min(int(size), FULL_SIZES[case]), int(deal)) for deal in options.deals.split(",")
              for case in options.cases.split(",") for size in options.sizes.split(",")]  # fmt: skip
    jobs = [Job(*cell, options.seeds, checkpoint, root, alone=len(wanted) == 1) for cell in wanted]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for done in pool.map(make, jobs):
            print(f"done: {done.case}, {done.size}, deal {done.deal}", flush=True)
    write_rows([*read_rows(root, network)])


if __name__ == "__main__":
    main()
