"""A run's report: one HTML file that needs nothing else, and its figures as PNG and SVG beside it."""

import io
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Float
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from ray_ft.config import Config, reload_config
from ray_ft.data.folds import Splits
from ray_ft.domains import TargetAxes, find_domain
from ray_ft.drawing import INK, MUTED, add_titles, number_dots, use_style
from ray_ft.ensemble.artefact import Card
from ray_ft.errors import RunFolderError
from ray_ft.files.writing import replace_file, write_text
from ray_ft.objectives import find_objective
from ray_ft.report import figures, using, words
from ray_ft.report.candidates import describe_candidate, list_columns
from ray_ft.results.learning_curve import LearningCurve
from ray_ft.results.records import load_blind, load_history, load_plan, load_provenance, load_splits
from ray_ft.results.summary import Summary
from ray_ft.runs.folder import CurveFolder, RunFolder
from ray_ft.search.plan import CandidateSpec
from ray_ft.statistics.scores import Curves, build_curves

CAPTIONS = {
    "members": (
        "Every member",
        "A dot is a member: one fold and seed (one fold, for baselines, in grey). The diamond is the mean over "
        "samples, the bar one standard deviation over folds × seeds.",
    ),
    "differences": (
        "Paired differences",
        "A dot is the difference of the mean scores, and its line the interval of it, 95 % after Holm's adjustment, by "
        "the corrected resampled t-test; of ratios, where fold means are positive, at the same sum of both scores. "
        "Both are green or red where one is better. Within the grey band two are practically equal.",
    ),
    "depth": (
        "Error by depth",
        "A diamond is the mean score of a strategy that trains so many of the last layers, and no others; the bar is "
        "one standard deviation over folds × seeds. Early layers tend to pay where inputs have changed since the "
        "pretraining, late ones where targets have.",
    ),
    "folds": (
        "Folds and seeds",
        "A cell is the score of one member; each map has a scale of its own. A row that stands out is a hard fold, a "
        "column that does is the luck of a seed.",
    ),
    "curves": (
        "Learning",
        "A line is the mean held-out loss of a candidate by epoch, from the pretrained network on. The shade spans its "
        "folds, lowest to highest.",
    ),
    "search": (
        "Search",
        "A mark is a candidate's lowest mean held-out loss (it chooses, it does not score) over what was tried. A ring "
        "is around the recipe, the middle of the ranges that the config gives.",
    ),
}


@dataclass(frozen=True)
class Findings:
    """A finished run as read from its folder."""

    run: RunFolder
    summary: Summary
    config: Config
    plan: Sequence[CandidateSpec]
    curves: Mapping[str, Curves]  # of every candidate that trained an epoch
    blind: Mapping[str, Float[np.ndarray, "sample *target"]]
    splits: Splits
    card: Card | None  # of the ensemble
    provenance: Mapping[str, Any]

    @cached_property
    def unit(self) -> words.Unit:
        return words.unit_of(self.summary)


def write_report(root: str | Path) -> Path:
    """Write the report of a finished run into its folder; return the path of the page.

    Raises:
        RunFolderError: The run is not finished, a file of it is damaged, or its folder is not writable.
    """
    findings = load_findings(RunFolder(Path(root)))
    with writing(Path(root)):
        plates = [save_plate(findings.run, *drawn) for drawn in draw_plates(findings)]
        write_text(findings.run.report, fill_page(findings, plates))
    return findings.run.report


@contextmanager
def writing(root: Path) -> Iterator[None]:
    try:
        with use_style():
            yield
    except OSError as error:
        raise RunFolderError(
            f"a report goes into its run's folder, got {error.filename or root}: {error.strerror}; "
            "make way and room for it, and repeat the command"
        ) from error


def write_curve_figure(curve: LearningCurve, root: str | Path) -> list[Path]:
    """Draw a learning curve into its folder, as PNG and SVG."""
    with writing(Path(root)):
        figure = figures.draw_learning_curve(curve, words.unit_of_curve(curve))
        return [save_figure(figure, CurveFolder(Path(root)).figure(suffix)) for suffix in ("png", "svg")]


def load_findings(run: RunFolder) -> Findings:
    summary, splits = Summary.load(run.root), load_splits(run)
    judged = {name for strategy in summary.strategies.values() for name in strategy.verdicts}
    plan = tuple(spec for spec in load_plan(run) if spec.name in judged)  # a larger budget may have begun others
    if len(plan) < len(judged):
        raise RunFolderError(
            f"the plan of a finished run must have all candidates of its summary, got {run.root}; remove "
            f"{run.summary.name} there and repeat its cv command"
        )
    histories = {spec.name: load_history(run, spec.name, splits) for spec in plan}
    curves = {name: build_curves(h.losses, h.inner, splits) for name, h in histories.items() if h is not None}
    config, blind = reload_config(run.config), load_blind(run, find_objective(summary.metric))
    card = using.find_card(run)
    return Findings(run, summary, config, plan, curves, blind, splits, card, load_provenance(run))


def draw_plates(findings: Findings) -> Iterator[tuple[str, str, str, Figure]]:
    """Name, title, caption and figure of each plate, in order."""
    summary, unit, plan, curves = findings.summary, findings.unit, findings.plan, findings.curves
    verdicts = {name: v for strategy in summary.strategies.values() for name, v in strategy.verdicts.items()}
    drawn = {
        "members": figures.draw_members(summary, unit),
        "differences": figures.draw_differences(summary.comparisons, unit),
        "depth": figures.draw_depth(summary, unit),
        "folds": figures.draw_folds(summary, unit),
        "curves": figures.draw_curves(summary, plan, curves, unit),
        "search": figures.draw_search(summary, plan, verdicts, curves, unit),
    }
    for name, figure in drawn.items():
        if figure is not None:
            title, caption = CAPTIONS[name]
            if name == "search" and summary.protocol == "nested":
                caption = caption.replace("held-out loss", "loss of the inner parts")
            yield name, title, caption, figure
    yield from draw_samples(findings)


def draw_samples(findings: Findings) -> Iterator[tuple[str, str, str, Figure]]:
    """What members that never saw a sample predict of it, against the truth."""
    blind, summary, axes = findings.blind, findings.summary, name_axes(findings)
    mean, targets = blind["mean"], blind["targets"]
    objective = find_objective(summary.metric).settle(targets)
    level = findings.card.level if findings.card else findings.config.ensemble.level
    answer = objective.answers.answer_blind(mean, targets, np.array(findings.splits.fold_of[0]), level)
    responses = {"blind ensemble": mean, "zero-shot": blind["zero_shot"]}
    yield (
        "predictions",
        "Predicted against measured",
        *objective.presentation.draw_predictions(axes, responses, targets, answer),
    )
    scores = objective.score(mean, targets)
    order = np.argsort(scores)
    for which, sample in {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}.items():
        own = {name: np.asarray(array[sample]) for name, array in answer.quantities.items()}
        truth, said = np.asarray(targets[sample]), np.asarray(mean[sample])
        if figure := objective.presentation.draw_sample(axes, truth, said, own):
            score = f"{summary.metric} {findings.unit.write(scores[sample])}{findings.unit.suffix}"
            caption = f"Sample {sample} has the {score}, as members that never saw it predict it."
            yield f"sample_{which}", f"The {which} sample", caption, figure
    if errors := objective.presentation.draw_errors(axes, responses, targets):
        yield "errors", "Where the error is", *errors


def name_axes(findings: Findings) -> TargetAxes:
    """Name the axes of a target, by classes or columns of a table where it has some."""
    shape, data = findings.blind["targets"].shape[1:], findings.config.data
    if classes := findings.summary.classes:
        ticks = tuple(escape_mathtext(name) for name in classes)
        return TargetAxes(("probability",), np.arange(float(len(classes))), "class", ticks)
    if findings.card is None:
        return find_domain(findings.config.layout).name_axes(shape, data.wavelengths_nm)
    axes = findings.card.name_axes()
    return replace(axes, ticks=tuple(escape_mathtext(name) for name in axes.ticks))


def escape_mathtext(name: str) -> str:
    """Write a user's name so that matplotlib takes none of it for a formula."""
    return name.replace("$", r"\$")


def save_plate(run: RunFolder, name: str, title: str, caption: str, figure: Figure) -> tuple[str, ...]:
    """Write a figure on white as PNG and SVG, and take it without ground for the page."""
    names = number_dots(figure)
    for suffix in ("png", "svg"):
        save_figure(figure, run.figures / f"{name}.{suffix}")
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return name, title, caption, adapt_svg(add_titles(text.getvalue(), names), title)


def save_figure(figure: Figure, path: Path) -> Path:
    with replace_file(path) as partial:
        figure.savefig(partial, facecolor="white", dpi=180, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path


def adapt_svg(text: str, title: str) -> str:
    """Let the page decide over ink and size."""
    svg = text[text.index("<svg") :]
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace(INK, "var(--ink)").replace(MUTED, "var(--muted)")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def fill_page(findings: Findings, plates: Sequence[tuple[str, ...]]) -> str:
    summary, unit, environment = findings.summary, findings.unit, findings.provenance["environment"]
    templates = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    templates.filters |= {"keep_together": keep_together, "wrap_name": wrap_name}
    template = templates.from_string(read_part("page.html.jinja"))
    place = using.find_place(summary, findings.run)
    obstacle = using.say_obstacle(summary, findings.card, place)
    ways = using.list_ways(summary, findings.run, findings.card) if findings.card and not obstacle else ()
    strategies = sorted(summary.strategies.items(), key=lambda item: (item[1].score_mean is None, item[1].score_mean))
    return template.render(
        summary=summary, unit=unit, words=words, plates=plates, strategies=strategies, plan=findings.plan,
        obstacle=obstacle, ways=ways, script=read_part("page.js"), style=read_part("page.css"),
        columns=list_columns(findings.plan), describe_candidate=describe_candidate,
        baselines=sorted(summary.baselines.items(), key=lambda item: item[1].score_mean),
        changes=words.say_changes(summary, unit), beside=words.list_beside(summary),
        search=words.list_search(summary, unit),
        command=shlex.join(map(str, environment["command"])), environment=environment, provenance=findings.provenance,
        config_text=findings.run.config.read_text(encoding="utf-8"),
    )  # fmt: skip


def read_part(name: str) -> Markup:
    return Markup(files("ray_ft.report").joinpath(name).read_text(encoding="utf-8"))


def keep_together(line: str) -> Markup:
    """Let no line break within an option of a command, nor before a percent sign."""
    text = str(escape(line)).replace(" %", "&nbsp;%")
    return Markup(re.sub(r"--[a-z]+ \d+", r"<code>\g<0></code>", text))


def wrap_name(name: str) -> Markup:
    """Let a line break behind the underscores of a name, or a long one would widen its table."""
    return Markup(str(escape(name)).replace("_", "_<wbr>"))
