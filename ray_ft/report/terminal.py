"""A run in the terminal: its table, its winner, what to do next; and a plan before it runs."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from ray_ft.data.ragged import is_ragged
from ray_ft.ensemble.artefact import read_card
from ray_ft.errors import write_share
from ray_ft.report import words
from ray_ft.report.candidates import describe_candidate, list_columns
from ray_ft.report.using import find_place, name_output
from ray_ft.report.words import Unit, choose_unit, describe_shape, describe_trained, label, say_pair
from ray_ft.results.learning_curve import LearningCurve, StrategyCurve, describe_sizes
from ray_ft.results.run_comparison import RunComparison
from ray_ft.results.summary import StrategySummary, Summary
from ray_ft.runs.folder import RunFolder
from ray_ft.search.plan import CandidateSpec


def start_table(first: str, *others: str) -> Table:
    """Start a table without lines, whose columns but the first are numbers."""
    numbers = (Column(header, justify="right") for header in others)
    return Table(first, *numbers, box=None, pad_edge=False, header_style="bold")


def join_lines(*parts: str | Text | Table | Group) -> Group:
    """Put lines and tables below one another; what is plain text is no markup, as a folder's name may look like it."""
    return Group(*(Text(part) if isinstance(part, str) else part for part in parts))


def render_summary(summary: Summary, run: RunFolder, own_code: bool = False) -> Group:
    """Draw the table of a finished run, its winner, and what to do next, which may need code of the user's own."""
    commands = suggest_commands(summary, run, own_code)
    lines = ["", "next:", *(f"  ray-ft {shlex.join(command)}" for command in commands)] if commands else []
    return join_lines(render_findings(summary, run), *lines)


def render_findings(summary: Summary, run: RunFolder) -> Group:
    """Draw the table of a finished run and its winner."""
    unit = words.unit_of(summary)
    title = f"{summary.name}: {describe_shape(summary)}; {summary.metric}{unit.suffix}, lower is better"
    table, lines = build_table(summary, unit), describe_outcome(summary, run, unit)
    beside = build_beside_table(summary)
    return join_lines(Text(title, style="bold"), table, "", *beside, build_search_table(summary, unit), "", *lines)


def build_table(summary: Summary, unit: Unit) -> Table:
    headers = ("trained", "done/stop/fail", "members", "score", "best epoch*", "optimism", "stops at")
    table = start_table("strategy", *headers)
    table.collapse_padding = True
    for column in table.columns[1:]:
        column.no_wrap = True
    scored = {name: row for name, row in summary.strategies.items() if row.score_mean is not None}
    for name, row in sorted(scored.items(), key=lambda item: item[1].score_mean or 0.0):
        table.add_row(Text(name), *describe_row(row, unit), style="green" if name == summary.winner else None)
    for name, row in summary.strategies.items():
        if name not in scored:
            hole = ("0", "no candidate completed", "", "", "")
            table.add_row(Text(name), describe_trained(row), describe_states(row), *hole)
    table.add_section()
    for name, baseline in sorted(summary.baselines.items(), key=lambda item: item[1].score_mean):
        score = unit.spread(baseline.score_mean, baseline.score_std)
        table.add_row(Text(label(name)), "0", "", "", score, "", "", "", style="dim")
    return table


def build_beside_table(summary: Summary) -> tuple[Table | str, ...]:
    """What is measured beside the score, and a line to part it from what follows; nothing of an older run."""
    headers, rows = words.list_beside(summary)
    table = start_table("beside the score", *headers)
    for name, cells in rows.items():
        table.add_row(Text(name), *cells, style="green" if name == summary.winner else None)
    return (table, "") if rows else ()


def build_search_table(summary: Summary, unit: Unit) -> Table:
    """What was tried of each strategy, and what was best."""
    headers, rows = words.list_search(summary, unit)
    table = start_table("search", *headers)
    for name, cells in rows.items():
        table.add_row(Text(name), *cells)
    return table


def describe_row(row: StrategySummary, unit: Unit) -> tuple[str, ...]:
    return (
        describe_trained(row), describe_states(row), str(row.n_members),
        unit.spread(row.score_mean, row.score_std), unit.write(row.best_epoch_mean),
        words.describe_optimism(row, unit), words.describe_stops(row),
    )  # fmt: skip


def describe_states(row: StrategySummary) -> str:
    return "/".join(str(row.candidates[state]) for state in ("completed", "stopped", "failed"))


def describe_outcome(summary: Summary, run: RunFolder, unit: Unit) -> list[str]:
    failures = [
        f"failed: {candidate} ({verdict.reason}), log {run.candidate(candidate).error}"
        for row in summary.strategies.values()
        for candidate, verdict in row.verdicts.items()
        if verdict.state == "failed"
    ]
    pairs = summary.of(summary.lowest)
    return [
        "* each fold's own best epoch, which most tools print; optimism is what that omits"
        + "; both are of the seeds that were searched, the score of all" * (summary.n_seeds > 1),
        *(f"! {line}" for line in words.say_unsettled(summary)),
        *(f"  {line}" for line in words.say_way_on(summary)),
        *words.say_method(summary),
        *(f"note: {note}" for note in summary.all_notes),
        *failures,
        "",
        f"winner    {words.say_crown(summary)}",
        *(f"          {say_pair(pair, unit)}" for pair in pairs),
        *(f"          corrected for having been picked: {said}" for said in words.say_corrected(summary, unit)),
        *(f"          {line}" for line in words.say_few_folds(summary)),
        *(f"depth     {line}" for line in words.say_depth(summary, unit)),
        f"spread    {words.describe_spread(summary.strategies[summary.lowest], unit)}",
        *head_lines("ensemble", words.say_ensemble(summary.ensemble, unit)),
        *([f"report    {run.place.rstrip('/')}/{run.report.name}"] if run.report.exists() else []),
        *say_interruptions(summary),
        f"time      {summary.wall_s:.0f} s; members trained {describe_training(summary)}",
    ]


def head_lines(head: str, lines: Iterable[str]) -> Iterator[str]:
    """Write a head before the first of some lines, and set the others below it."""
    return (f"{own:<10}{line}" for own, line in zip_longest([head], lines, fillvalue=""))


def suggest_commands(summary: Summary, run: RunFolder, own_code: bool) -> list[tuple[str, ...]]:
    """Write what can follow; its output has a name of the run's own, so that it takes the place of no other file."""
    folder = find_place(summary, run)
    card = read_card(run.ensemble) if run.ensemble.card.is_file() else None
    trust = ["--trust"] if card and card.needs_code else []
    fetch: list[tuple[str, ...]] = [("fetch", run.place, str(folder))] if run.mirror else []
    if card is None:
        return [*fetch, ("ensemble", str(folder), *(["--trust"] if own_code else []))]
    if is_ragged(card.inputs):  # samples of unequal shapes stand in no file
        return fetch
    predict = ("predict", str(folder), "--inputs", "x.npy", "--out", name_output(folder, "predictions"), *trust)
    return [*fetch, predict, ("evaluate", str(folder), "--inputs", "x.npy", "--targets", "y.npy", *trust)]


def say_interruptions(summary: Summary) -> list[str]:
    if not summary.n_interruptions:
        return []
    times = "once" if summary.n_interruptions == 1 else f"{summary.n_interruptions} times"
    return [f"faults    interrupted {times}; {summary.n_epochs_again} epochs of candidates were trained again"]


def describe_training(summary: Summary) -> str:
    ways = dict.fromkeys(way for row in summary.strategies.values() for way in row.training)
    users = {way: ", ".join(name for name, row in summary.strategies.items() if way in row.training) for way in ways}
    return "; ".join(f"{way} ({names})" if len(ways) > 1 else way for way, names in users.items())


def render_comparison(found: RunComparison) -> Group:
    """Draw the scores of several runs and what their comparison says."""
    unit = choose_unit(mean for mean, _ in found.scores.values())
    table = start_table("run/strategy", f"{found.metric}{unit.suffix}")
    for name, (mean, std) in sorted(found.scores.items(), key=lambda item: item[1]):
        table.add_row(Text(name), unit.spread(mean, std))
    pairs = (say_pair(pair, unit) for pair in found.comparisons)
    return join_lines(table, "", *pairs, *(f"note: {note}" for note in found.notes))


def render_curve(curve: LearningCurve) -> Group:
    """Draw the scores by size of the training parts, and what more samples would buy."""
    unit = words.unit_of_curve(curve)
    headers = (*(describe_sizes([size]) for size in curve.sizes), "floor", "excess over it falls as n to the power of")
    table = start_table(f"{curve.metric}{unit.suffix}, training samples", *headers)
    for name, each in sort_curves(curve):
        scores = (unit.spread(*pair) for pair in zip(each.score_mean, each.score_std, strict=True))
        low, high = each.exponent_interval
        power = f"{write_power(each.fit.exponent)} [{write_power(high)}, {write_power(low)}]"
        table.add_row(Text(label(name)), *scores, unit.write(each.fit.floor), Text(power))
    return join_lines(table, "", build_forecasts(curve, unit), "", *(f"note: {note}" for note in curve.notes))


def sort_curves(curve: LearningCurve) -> list[tuple[str, StrategyCurve]]:
    return sorted(curve.curves.items(), key=lambda item: item[1].score_mean[-1])


def write_power(exponent: float) -> str:
    return f"-{exponent:.2f}" if exponent else "0"


def build_forecasts(curve: LearningCurve, unit: Unit) -> Table | Text:
    largest = curve.sizes[-1]
    ahead = {name: [f for f in each.forecasts if f.size > largest] for name, each in sort_curves(curve)}
    more = (f"+{describe_sizes([forecast.size - largest])}" for forecast in next(iter(ahead.values()), ()))
    table = start_table(f"forecast for more than {describe_sizes([largest])}", *more)
    for name, forecasts in ahead.items():
        changes = (f"{f.change:+.1%} [{f.change_interval[0]:+.1%}, {f.change_interval[1]:+.1%}]" for f in forecasts)
        said = (f"{unit.write(f.score)}, {change}" for f, change in zip(forecasts, changes, strict=True))
        table.add_row(Text(label(name)), *map(Text, said))
    return table if any(ahead.values()) else Text()


def render_plan(
    plan: Sequence[CandidateSpec],
    parts: Mapping[str, Mapping[str, tuple[int, int]]],
    told: Sequence[str],
    shape: str,
    budget: str,
) -> Group:
    """Draw what a config would train: by strategy and part of the network, by what, then the candidates it knows."""
    by_part = start_table("trained parameters", *parts, "(parameters)")
    for part in next(iter(parts.values())):
        learning = [f"{counts[part][0]:,}" if counts[part][0] else "frozen" for counts in parts.values()]
        by_part.add_row(Text(part), *learning, f"{next(iter(parts.values()))[part][1]:,}")
    totals = [sum(learning for learning, _ in counts.values()) for counts in parts.values()]
    total = sum(count for _, count in next(iter(parts.values())).values())
    by_part.add_row("total", *(f"{n:,} ({write_share(n / total, 1)})" for n in totals), f"{total:,}", style="bold")
    columns = list_columns(plan)
    candidates = start_table("candidate", *(declared.column for declared in columns.values()))
    for spec in plan:
        for row in describe_candidate(spec, columns):
            candidates.add_row(*row)
    known = (candidates, "") if plan else ()
    return join_lines(Text(shape, style="bold"), "", by_part, "", *told, "", *known, budget)
