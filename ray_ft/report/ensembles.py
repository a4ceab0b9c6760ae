"""What an ensemble is worth, in the terminal and as a figure."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ray_ft.drawing import COLORS, draw_grid, use_style
from ray_ft.ensemble.evaluation import Evaluation
from ray_ft.ensemble.suggestion import Suggestion
from ray_ft.errors import DataError, write_share
from ray_ft.files.writing import write_text
from ray_ft.objectives import find_objective
from ray_ft.report.page import save_figure
from ray_ft.report.terminal import join_lines, start_table
from ray_ft.report.words import choose_unit, say_ensemble, say_pair, write_measure
from ray_ft.results.summary import EnsembleSummary

LABELS = {"single": "best member alone"}


def render_ensemble(summary: EnsembleSummary, before: EnsembleSummary | None = None) -> Group:
    """Draw what an ensemble scores beside what it could have been, and beside a better one whose place it takes."""
    unit = choose_unit([*summary.scores.values()])
    table = start_table("blind members of " + ", ".join(summary.strategies), f"score{unit.suffix}")
    for method, score in sorted(summary.scores.items(), key=lambda item: item[1]):
        style = "green" if method == summary.method else None
        table.add_row(Text(LABELS.get(method, method)), unit.write(score), style=style)
    for name, (members, ensemble) in summary.by_strategy.items():
        table.add_row(Text(f"{name}: members on average"), unit.write(members), style="dim")
        table.add_row(Text(f"{name}: their ensemble"), unit.write(ensemble), style="dim")
    for name, score in summary.mixes.items():
        table.add_row(Text(name), unit.write(score), style="dim")
    more = {
        "pulled back to the pretrained weights": summary.pulled_score,
        "averaged over the symmetry": summary.symmetric_score,
        "seeds of a fold averaged to one network": summary.soup_score,
    }
    for name, other in more.items():
        if other is not None:
            table.add_row(name, unit.write(other), style="dim")
    first, *said = say_ensemble(summary, unit)
    lines = [
        *(f"note: {note}" for note in summary.notes),
        *(say_pair(pair, unit) for pair in summary.comparisons),
        *said,
    ]
    if before is not None and before.score < summary.score:
        kind = f"--strategies {','.join(before.strategies)} --method {before.method}"
        kinds = {"symmetric": (before.symmetric, summary.symmetric)}
        kinds |= {"pull-back": (bool(before.pulled_shares), bool(summary.pulled_shares))}
        kind += "".join(f" --{'' if then else 'no-'}{name}" for name, (then, now) in kinds.items() if then != now)
        lines.append(f"note: the ensemble before it was better, {unit.write(before.score)}; {kind} builds that again")
    return join_lines(f"ensemble  {first}", "", table, "", *lines)


def render_evaluation(found: Evaluation) -> Group:
    """Draw the measures by method."""
    presentation = find_objective(found.metric).presentation
    columns = [column for column in presentation.columns if column.measure in found.methods[found.method]]
    unit = choose_unit(own[c.measure] for own in found.methods.values() for c in columns if not c.form)
    table = start_table("method", *(c.header if c.form else f"{c.header}{unit.suffix}" for c in columns))
    alike = group_alike(found.methods)
    for methods in alike:
        own = found.methods[methods[0]]
        measures = ((own[c.measure], c.form) for c in columns)
        cells = (write_measure(value, form) if form else unit.write(value) for value, form in measures)
        style = "green" if found.method in methods and len(alike) > 1 else None
        table.add_row(", ".join(LABELS.get(method, method) for method in methods), *cells, style=style)
    by_output = (build_output_table(found), "") if found.outputs else ()
    warning = "note: these are the training samples: nothing here says how good the ensemble is"
    gaps = f"note: {found.n_missing} target values of these samples are missing, and not measured"
    return join_lines(
        table,
        "",
        *by_output,
        *([warning] if found.n_known else []),
        *([gaps] if found.n_missing else []),
        *presentation.describe_evaluation(found.model_dump()),
        f"{write_share(found.flagged)} of the samples are flagged as unlike the training samples, where 5 % of samples "
        "like them would be",
    )


def group_alike(methods: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Put methods together that weigh members alike, as their measures are the same."""
    groups: dict[tuple[tuple[str, float], ...], list[str]] = {}
    for name, own in methods.items():
        groups.setdefault(tuple(own.items()), []).append(name)
    return list(groups.values())


def build_output_table(found: Evaluation) -> Table:
    """A row an output, in its own unit."""
    presentation = find_objective(found.metric).presentation
    known = {column.measure: column for column in (*presentation.beside, *presentation.columns)}
    measured = {measure for own in found.outputs.values() for measure in own}
    columns = [known[name] for name in ("rmse", "mae", "r2", "coverage", "width") if name in measured]
    table = start_table("output", *(column.header.partition(",")[0] for column in columns))
    for name, own in found.outputs.items():
        table.add_row(Text(name), *(write_measure(own[c.measure], c.form) if c.measure in own else "" for c in columns))
    return table


def draw_suggestion(found: Suggestion) -> Figure:
    """The pool in the two directions in which its features vary most, and what was chosen of it."""
    centred = found.features - found.features.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    places = centred @ directions[:2].T
    places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    figure, (axes,) = draw_grid(1, 4.0)
    x, y = places.T
    spots = axes.scatter(x, y, c=found.disagreement, s=14, cmap="cividis", linewidths=0)
    figure.colorbar(spots, ax=axes, label="disagreement of the members").outline.set_visible(False)
    axes.scatter(x[found.indices], y[found.indices], s=60, facecolors="none", edgecolors=COLORS[4], linewidths=1.2)
    for rank, index in enumerate(found.indices, start=1):
        axes.annotate(str(rank), places[index], xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set_xlabel("first principal component of the features")
    axes.set_ylabel("second")
    return figure


def name_suggestion(name: Path) -> tuple[Path, Path]:
    """Name the table and the picture of a suggestion."""
    if not name.name:
        raise DataError(f"--out is the name of two files, without their endings, got {name}")
    return name.with_name(f"{name.name}.csv"), name.with_name(f"{name.name}.png")


def write_suggestion(found: Suggestion, name: Path) -> tuple[Path, Path]:
    """Write the chosen samples as a table, and draw them."""
    rows = [
        f"{rank},{index},{found.disagreement[index]:.6g},{found.p_value[index]:.4g}"
        for rank, index in enumerate(found.indices, start=1)
    ]
    table, picture = name_suggestion(name)
    with writing("--out", name):
        write_text(table, "\n".join(["rank,index,disagreement,p_value_of_novelty", *rows]) + "\n")
        save_figure(draw_suggestion(found), picture)
    return table, picture


def write_calibration(found: Evaluation, path: Path) -> Path:
    """Draw the calibration."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise DataError(f"a plot must end in .png, .svg or .pdf, got {path}")
    if not found.calibration:
        raise DataError(f"a plot needs intervals or prediction sets, but {found.metric} has none; leave --plot out")
    points = [point.model_dump() for point in found.calibration]
    with writing("a plot", path):
        save_figure(find_objective(found.metric).presentation.draw_calibration(points, found.n_samples), path)
    return path


@contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """Draw in the style of figures; say what cannot be written as a `DataError`."""
    try:
        with use_style():
            yield
    except OSError as error:
        raise DataError(f"{what} must be writable, got {path}: {error.strerror}") from error
