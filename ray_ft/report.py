"""A run's summary: as `summary.json`, as `leaderboard.csv`, and as tables in the terminal."""

import csv
import io
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ray_ft.paths import RunFolder, write_json, write_text
from ray_ft.plan import CandidateSpec
from ray_ft.results import Verdict, load_result
from ray_ft.scores import StrategyScore
from ray_ft.task import Task

__all__ = ["build_summary", "render_plan", "render_summary", "write_summary"]

OPPOSITES = {"better": "worse", "worse": "better"}
BASELINE_LABELS = {
    "zero_shot": "zero-shot (the pretrained network as it is)",
    "training_mean": "mean target of the training part",
    "gain_offset": "ridge-shrunk gain and offset on zero-shot",
}


def build_summary(
    task: Task,
    plan: Sequence[CandidateSpec],
    verdicts: Mapping[str, Verdict],
    scores: Mapping[str, StrategyScore | None],
    baselines: Mapping[str, Float[np.ndarray, "repeat fold"]],
    n_trained: Mapping[str, int],
) -> dict[str, Any]:
    """Put a run's results together; the ensemble and the wall time are added by who knows them."""
    cv = task.config.cv
    n_params = sum(tensor.numel() for tensor in dict(task.build_network().named_parameters()).values())
    strategies = {
        name: describe_score(score, cv.folds * cv.seeds * cv.repeats)
        | {"n_trained_params": n_trained[name], "trained_share": n_trained[name] / n_params}
        | describe_candidates({s.name: verdicts[s.name] for s in plan if s.strategy == name})
        | {"training": sorted(find_results(task.run, [s for s in plan if s.strategy == name], "training"))}
        for name, score in scores.items()
    }
    return {
        "name": task.config.name,
        "metric": cv.metric,
        "n_samples": len(task.dataset),
        "n_folds": cv.folds,
        "n_seeds": cv.seeds,
        "n_repeats": cv.repeats,
        "n_params": n_params,
        "splits_hash": task.splits.hash,
        "strategies": strategies,
        "baselines": {
            name: {"score_mean": float(values.mean()), "score_std": float(values.std(ddof=1))}
            for name, values in baselines.items()
        },
        "notes": [*task.dataset.notes, *find_notes(task.run, plan)],
    }


def find_notes(run: RunFolder, plan: Sequence[CandidateSpec]) -> list[str]:
    """Collect what training said, once a strategy."""
    strategies = dict.fromkeys(spec.strategy for spec in plan)
    return [
        f"{name}: {note}"
        for name in strategies
        for note in find_results(run, [spec for spec in plan if spec.strategy == name], "note")
    ]


def find_results(run: RunFolder, plan: Sequence[CandidateSpec], key: str) -> set[str]:
    """Collect what completed candidates recorded under a key."""
    return {result[key] for spec in plan if (result := load_result(run, spec) or {}).get(key)}


def describe_score(score: StrategyScore | None, n_expected: int) -> dict[str, Any]:
    if score is None:
        return {"score_mean": None, "score_std": None, "best_epoch_mean": None, "n_members": 0, "stop_epochs": []}
    assert score.values.size == n_expected, "a completed candidate has all folds x seeds"
    return {
        "score_mean": score.mean,
        "score_std": score.std,
        "best_epoch_mean": score.best_epoch_mean,
        "n_members": score.values.size,
        "stop_epochs": score.epoch.ravel().tolist(),
        "chosen_candidates": score.candidate.ravel().tolist(),
        "scores": score.values.tolist(),
    }


def describe_candidates(verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    states = Counter(verdict.state for verdict in verdicts.values())
    return {
        "candidates": {state: states[state] for state in ("completed", "stopped", "failed")},
        "seconds": sum(verdict.seconds for verdict in verdicts.values()),
        "verdicts": {name: verdict.as_dict() for name, verdict in verdicts.items()},
    }


def write_summary(run: RunFolder, summary: Mapping[str, Any]) -> None:
    """Write the leaderboard, then the summary: where it stands, the run is finished."""
    columns = ["strategy", "score_mean", "score_std", "best_epoch_mean", "n_members", "n_trained_params"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["kind", *columns, "completed", "stopped", "failed"])
    for name, row in sort_rows(summary["strategies"]):
        writer.writerow(["strategy", name, *(row[c] for c in columns[1:]), *row["candidates"].values()])
    for name, row in sort_rows(summary["baselines"]):
        writer.writerow(["baseline", name, row["score_mean"], row["score_std"], *[""] * 6])
    write_text(run.leaderboard, text.getvalue())
    write_json(run.summary, summary)


def sort_rows(rows: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    return sorted(rows.items(), key=lambda row: np.inf if row[1]["score_mean"] is None else row[1]["score_mean"])


def render_summary(summary: Mapping[str, Any], run: RunFolder) -> Group:
    """Draw the table of a finished run, its winner, and what to do next."""
    unit = choose_unit([row["score_mean"] for row in summary["baselines"].values()])
    shape = f"{summary['n_folds']} folds × {summary['n_seeds']} seeds"
    if summary["n_repeats"] > 1:
        shape += f" × {summary['n_repeats']} repeats"
    title = f"{summary['name']}: {summary['n_samples']} samples, {shape}; {summary['metric']}{unit[1]}, lower is better"
    parts: list[Any] = [Text(title, style="bold"), build_table(summary, unit), Text()]
    parts += [Text(line) for line in describe_outcome(summary, run, unit)]
    return Group(*parts)


def build_table(summary: Mapping[str, Any], unit: tuple[float, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    table.add_column("strategy")
    for header in ("trained", "done/stop/fail", "members", "score", "best epoch*", "stops at", "time"):
        table.add_column(header, justify="right", no_wrap=True)
    for name, row in sort_rows(summary["strategies"]):
        table.add_row(*describe_row(name, row, unit), style="green" if name == summary["winner"] else None)
    table.add_section()
    for name, row in sort_rows(summary["baselines"]):
        score = f"{row['score_mean'] / unit[0]:.3f} ± {row['score_std'] / unit[0]:.3f}"
        table.add_row(name.replace("_", "-"), "0", "", "", score, "", "", "", style="dim")
    return table


def describe_row(name: str, row: Mapping[str, Any], unit: tuple[float, str]) -> tuple[str, ...]:
    trained = f"{row['n_trained_params']:,} ({row['trained_share']:.1%})"
    counts = "/".join(str(row["candidates"][state]) for state in ("completed", "stopped", "failed"))
    if row["score_mean"] is None:
        return (name, trained, counts, "0", "no candidate completed", "", "", f"{row['seconds']:.0f} s")
    score = f"{row['score_mean'] / unit[0]:.3f} ± {row['score_std'] / unit[0]:.3f}"
    best = f"{row['best_epoch_mean'] / unit[0]:.3f}"
    stops = f"{min(row['stop_epochs'])}–{max(row['stop_epochs'])}"
    return (name, trained, counts, str(row["n_members"]), score, best, stops, f"{row['seconds']:.0f} s")


def choose_unit(values: Sequence[float]) -> tuple[float, str]:
    """A power of a thousand that makes the values easy to read, and how to write it."""
    exponent = 3 * int(np.floor(np.log10(max(*values, 1e-300)) / 3))
    return (10.0**exponent, f" in 1e{exponent}") if exponent else (1.0, "")


def describe_outcome(summary: Mapping[str, Any], run: RunFolder, unit: tuple[float, str]) -> list[str]:
    lines = [
        "* mean over folds × seeds of each one's best epoch: what most tools print, optimistic",
        *(f"note: {note}" for note in summary["notes"]),
    ]
    failures = [
        f"failed: {candidate} ({verdict['reason']}), log {run.candidate(candidate).error}"
        for row in summary["strategies"].values()
        for candidate, verdict in row["verdicts"].items()
        if verdict["state"] == "failed"
    ]
    ensemble, winner, folder = summary["ensemble"], summary["winner"], shlex.quote(str(run.root))
    score = f"{ensemble['score'] / unit[0]:.3f}"
    baseline = min(row["score_mean"] for row in summary["baselines"].values())
    verdict = "below" if summary["strategies"][winner]["score_mean"] < baseline else "NOT below"
    return [
        *lines,
        *failures,
        "",
        f"winner    {winner} (lowest mean score, {verdict} the best baseline)",
        *describe_comparisons(summary, unit),
        f"ensemble  {ensemble['n_members']} members in {ensemble['path']}; score {score} by the "
        f"{ensemble['n_blind']} of them that never saw a sample",
        f"time      {summary['wall_s']:.0f} s; members trained {describe_training(summary)}",
        "",
        "next:",
        f"  ray-ft predict {folder} --inputs x.npy --output y.npz",
        f"  ray-ft ensemble {folder}",
    ]


def describe_comparisons(summary: Mapping[str, Any], unit: tuple[float, str]) -> list[str]:
    """Say how the winner compares with each other, in words and figures."""
    winner, lines = summary["winner"], []
    for pair in summary["comparisons"]:
        if winner not in (pair["first"], pair["second"]):
            continue
        sign = 1 if pair["first"] == winner else -1
        other = pair["second"] if sign == 1 else pair["first"]
        low, high = sorted(sign * value / unit[0] for value in pair["interval"])
        chances = ", ".join(f"{chance:.0%}" for chance in pair["probabilities"][::sign])
        verdict = pair["verdict"] if sign == 1 else OPPOSITES.get(pair["verdict"], pair["verdict"])
        lines.append(
            f"          vs {other.replace('_', '-') if other in BASELINE_LABELS else other}: {verdict}, by "
            f"{sign * pair['difference'] / unit[0]:+.3f} [{low:+.3f}, {high:+.3f}], p {pair['p_adjusted']:.2g}; "
            f"better, equal, worse with {chances}" + describe_repeats(pair)
        )
    return lines


def describe_repeats(pair: Mapping[str, Any]) -> str:
    if pair["verdict"] != "no evidence of a difference":
        return ""
    if pair["n_repeats"] is None:
        return "; more repeats would not settle it, more samples might"
    return f"; --set cv.repeats={pair['n_repeats']} would likely settle it"


def describe_training(summary: Mapping[str, Any]) -> str:
    by_way: dict[str, list[str]] = {}
    for name, row in summary["strategies"].items():
        for way in row["training"]:
            by_way.setdefault(way, []).append(name)
    if len(by_way) == 1:
        return next(iter(by_way))
    return "; ".join(f"{way} ({', '.join(names)})" for way, names in by_way.items())


def render_plan(
    plan: Sequence[CandidateSpec], parts: Mapping[str, Mapping[str, tuple[int, int]]], n_members: int, shape: str
) -> Group:
    """Draw what a config would train: by strategy and part of the network, then every candidate.

    Args:
        plan: All candidates.
        parts: Trained and all parameters by strategy and part.
        n_members: Members of a candidate.
        shape: Samples, folds and seeds in words.
    """
    by_part = Table(box=None, pad_edge=False, header_style="bold")
    by_part.add_column("trained parameters")
    for strategy in parts:
        by_part.add_column(strategy, justify="right")
    by_part.add_column("all", justify="right")
    for part in next(iter(parts.values())):
        learning = [f"{counts[part][0]:,}" if counts[part][0] else "frozen" for counts in parts.values()]
        by_part.add_row(part, *learning, f"{next(iter(parts.values()))[part][1]:,}")
    totals = [sum(learning for learning, _ in counts.values()) for counts in parts.values()]
    total = sum(count for _, count in next(iter(parts.values())).values())
    by_part.add_row("total", *(f"{n:,} ({n / total:.1%})" for n in totals), f"{total:,}", style="bold")
    candidates = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("candidate", "lr", "epochs", "batch", "decay", "dropout", "warm-up", "noise", "patience"):
        candidates.add_column(column, justify="left" if column == "candidate" else "right")
    for spec in plan:
        for hyper in spec.stages:
            dropout = "" if hyper.head_dropout is None else f"{hyper.head_dropout:.3f}"
            candidates.add_row(
                spec.name, f"{hyper.lr:.2e}", str(hyper.epochs), str(hyper.batch_size), f"{hyper.weight_decay:.3f}",
                dropout, str(hyper.warmup_epochs), f"{hyper.noise_std:.3f}", str(hyper.patience),
            )  # fmt: skip
    count = f"{len(plan)} candidates × {n_members} members = {len(plan) * n_members} members in all"
    return Group(Text(shape, style="bold"), Text(), by_part, Text(), candidates, Text(), Text(count))
