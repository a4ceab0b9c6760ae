"""The figures of a report that are about scores; those of samples are the objective's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ray_ft.drawing import COLORS, INK, MUTED, draw_grid, use_log
from ray_ft.objectives import ZERO_SHOT, list_baselines
from ray_ft.report.candidates import list_columns
from ray_ft.report.words import Unit, label
from ray_ft.results.learning_curve import LearningCurve
from ray_ft.results.records import Verdict
from ray_ft.results.summary import Summary
from ray_ft.search.plan import CandidateSpec
from ray_ft.statistics.comparison import Comparison
from ray_ft.statistics.scores import Curves

MARKERS = ("o", "s", "D", "^", "v", "P")  # of strategies that share a colour
BETTER, WORSE = "#2a9d78", "#c2483d"
MANY_ROWS, MANY_SEEDS = 40, 5  # of a heat map, above which it grows no more and some bear no names
MANY_CELLS = 80  # of a heat map, above which its numbers are not written


def color_of(summary: Summary) -> dict[str, str]:
    return {name: COLORS[i % len(COLORS)] for i, name in enumerate(summary.strategies)}


def marker_of(summary: Summary) -> dict[str, str]:
    return {name: choose_marker(i) for i, name in enumerate(summary.strategies)}


def choose_marker(i: int) -> str:
    return MARKERS[i // len(COLORS) % len(MARKERS)]


def draw_members(summary: Summary, unit: Unit) -> Figure:
    """Every member as a dot, mean ± std beside it; baselines by their folds."""
    rows: dict[str, tuple[Float[np.ndarray, " score"], float, float, str]] = {}
    for name, strategy in summary.strategies.items():
        if strategy.score_mean is not None and strategy.score_std is not None:
            scores = np.ravel(strategy.scores)
            rows[name] = (scores, strategy.score_mean, strategy.score_std, color_of(summary)[name])
    for name, baseline in summary.baselines.items():
        rows[label(name)] = (np.ravel(baseline.scores), baseline.score_mean, baseline.score_std, MUTED)
    ordered = sorted(rows.items(), key=lambda item: -item[1][1])
    figure, (axes,) = draw_grid(1, 0.8 + 0.36 * len(rows))
    rng = np.random.default_rng(0)
    for y, (_, (scores, mean, std, color)) in enumerate(ordered):
        jitter = y + rng.uniform(-0.22, 0.02, len(scores))
        axes.scatter(unit.factor * scores, jitter, s=14, color=color, alpha=0.65, linewidths=0)
        axes.errorbar(unit.scale(mean), y + 0.2, xerr=unit.scale(std), fmt="D", color=color, markersize=4.5, capsize=3)
    axes.set_yticks(range(len(ordered)), [name for name, _ in ordered])
    axes.set_xlabel(f"held-out {summary.metric}{unit.suffix}, lower is better")
    axes.grid(axis="x", alpha=0.25)
    return figure


def draw_differences(comparisons: Sequence[Comparison], unit: Unit) -> Figure:
    """Each paired difference with its interval, over the region of practical equivalence."""
    figure, (axes,) = draw_grid(1, 0.8 + 0.32 * len(comparisons))
    for y, pair in enumerate(reversed(comparisons)):
        color = {"better": BETTER, "worse": WORSE}.get(pair.verdict, MUTED)
        low, high = (unit.scale(value) for value in pair.interval)
        axes.plot([low, high], [y, y], color=color, linewidth=2)
        axes.plot(unit.scale(pair.difference), y, "o", color=color, markersize=5)
        rope = unit.scale(pair.rope)
        numbers = f"{unit.write(pair.difference, '+')} {unit.interval(pair.interval, '+')}"
        axes.text(1.02, y, numbers, transform=axes.get_yaxis_transform(), va="center", fontsize=7)
        axes.fill_betweenx([y - 0.35, y + 0.35], -rope, rope, color=MUTED, alpha=0.3, linewidth=0)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_yticks(
        range(len(comparisons)), [f"{label(pair.first)} − {label(pair.second)}" for pair in reversed(comparisons)]
    )
    axes.set_xlabel(f"difference{unit.suffix}: below 0, the first is better")
    axes.grid(axis="x", alpha=0.25)
    return figure


def draw_folds(summary: Summary, unit: Unit) -> Figure:
    """The score of each fold and seed, a map for each strategy."""
    scored = {name: np.array(s.scores) for name, s in summary.strategies.items() if s.scores}
    n_rows = summary.n_folds * summary.n_repeats
    figure, panels = draw_grid(len(scored), 0.9 + 0.24 * min(n_rows, MANY_ROWS))
    for axes, (name, scores) in zip(panels, scored.items(), strict=True):
        cells = unit.factor * scores.reshape(n_rows, -1)
        image = axes.imshow(cells, cmap="cividis", aspect="auto")
        figure.colorbar(image, ax=axes, pad=0.02).outline.set_visible(False)
        middle = (cells.min() + cells.max()) / 2
        for (row, seed), value in np.ndenumerate(cells):
            if cells.size <= MANY_CELLS:
                color = "white" if value < middle else "black"
                axes.text(seed, row, f"{value:.3f}", ha="center", va="center", fontsize=7, color=color)
        axes.set_title(name)
        seeds = range(0, summary.n_seeds, -(-summary.n_seeds // MANY_SEEDS))
        axes.set_xticks(seeds, [f"seed {s}" for s in seeds])
        several = summary.n_repeats > 1
        names = [f"{r}.{k}" if several else f"fold {k}" for r, k in np.ndindex(summary.n_repeats, summary.n_folds)]
        shown = range(0, n_rows, -(-n_rows // MANY_ROWS))
        axes.set_yticks(shown, [names[i] for i in shown])
        axes.tick_params(length=0)
    return figure


def draw_curves(summary: Summary, plan: Sequence[CandidateSpec], curves: Mapping[str, Curves], unit: Unit) -> Figure:
    """Held-out loss by epoch: a line a candidate, the range of its folds, where folds and ASHA stopped it."""
    figure, panels = draw_grid(len(summary.strategies), 2.1)
    zero_shot = unit.scale(summary.baselines[ZERO_SHOT].score_mean)
    for axes, (name, strategy) in zip(panels, summary.strategies.items(), strict=True):
        color = color_of(summary)[name]
        specs = [spec for spec in plan if spec.strategy == name and spec.name in curves]
        for spec in specs:
            verdict = strategy.verdicts[spec.name]
            stopped = verdict.state == "stopped"
            by_fold = unit.factor * curves[spec.name].held_out.mean(-1)
            if stopped:
                by_fold = by_fold[: verdict.epoch]  # what it did past the rung does not count
            mean = by_fold.mean((1, 2))
            epochs = np.arange(1, len(mean) + 1)
            axes.plot(epochs, mean, color=color, alpha=0.55 if stopped else 1)
            axes.fill_between(epochs, by_fold.min((1, 2)), by_fold.max((1, 2)), color=color, alpha=0.12, linewidth=0)
            if stopped:
                axes.plot(epochs[-1], mean[-1], "x", color=color, markersize=7, markeredgewidth=2)
        stops = [epoch for repeat in strategy.stop_epochs for epoch in repeat]
        if stops:
            axes.plot(stops, [0.03] * len(stops), "|", color=INK, markersize=8, transform=axes.get_xaxis_transform())
        axes.axhline(zero_shot, color=MUTED, linestyle="--", linewidth=0.8)
        use_log(axes)
        axes.set_title(name)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    figure.supylabel(f"held-out {summary.metric}{unit.suffix}", fontsize="medium")
    handles = [
        Line2D([], [], color=INK, marker="|", linestyle="", markersize=8, label="a fold's stop"),
        Line2D([], [], color=INK, marker="x", linestyle="", label="stopped by ASHA"),
        Line2D([], [], color=MUTED, linestyle="--", label="zero-shot"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def draw_search(
    summary: Summary,
    plan: Sequence[CandidateSpec],
    verdicts: Mapping[str, Verdict],
    curves: Mapping[str, Curves],
    unit: Unit,
) -> Figure | None:
    """Each candidate's lowest mean against each hyperparameter that was searched; None where none was."""
    seen = [spec for spec in plan if spec.name in curves]
    varied = {
        key: declared
        for key, declared in list_columns(seen).items()
        if any(
            len({read_value(spec, key) for spec in seen if spec.strategy == name}) > 1 for name in summary.strategies
        )
    }
    if not varied:
        return None
    lowest = {spec.name: find_lowest(curves[spec.name], verdicts[spec.name]) for spec in seen}
    figure, panels = draw_grid(len(varied), 1.9)
    for axes, (key, declared) in zip(panels, varied.items(), strict=True):
        points: dict[tuple[str, str], list[tuple[float, float]]] = {}  # of one look each, as drawing costs by the call
        for spec in seen:
            verdict, value = verdicts[spec.name], read_value(spec, key)
            if value is not None:
                points.setdefault((spec.strategy, verdict.state), []).append((value, unit.scale(lowest[spec.name])))
        for (name, state), own in points.items():
            axes.plot(*zip(*own, strict=True), markersize=6, **style_candidate(summary, name, state))
        use_log(axes)
        if declared.log:
            use_log(axes, "x")
        axes.set_xlabel(declared.title)
    figure.supylabel(f"lowest mean {summary.metric}{unit.suffix}", fontsize="medium")
    handles = [Line2D([], [], label=name, **style_candidate(summary, name, "completed")) for name in summary.strategies]
    handles.append(Line2D([], [], color=MUTED, marker="o", linestyle="", fillstyle="none", label="stopped by ASHA"))
    if any(verdicts[spec.name].state == "failed" for spec in seen):
        handles.append(Line2D([], [], color=MUTED, marker="x", linestyle="", label="failed"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def read_value(spec: CandidateSpec, key: str) -> Any:
    """A hyperparameter of the last stage that has it."""
    return next((value for stage in reversed(spec.stages) if (value := getattr(stage, key, None)) is not None), None)


def find_lowest(curves: Curves, verdict: Verdict) -> float:
    # What a candidate did past the rung at which it was stopped does not count.
    guide = curves.guide[: verdict.epoch] if verdict.state == "stopped" else curves.guide
    return float(guide.mean((1, 2)).min())


def style_candidate(summary: Summary, strategy: str, state: str) -> Any:
    marker = "x" if state == "failed" else marker_of(summary)[strategy]
    filled = "none" if state == "stopped" else "full"
    return {"color": color_of(summary)[strategy], "marker": marker, "linestyle": "", "fillstyle": filled}


def draw_learning_curve(curve: LearningCurve, unit: Unit) -> Figure:
    """Scores by size of the training parts with the fitted power laws, and the band of their draws."""
    figure, (axes,) = draw_grid(1, 3.4)
    for i, (name, each) in enumerate(curve.curves.items()):
        color = COLORS[i % len(COLORS)] if name not in list_baselines() else MUTED
        sizes = [forecast.size for forecast in each.forecasts]
        fine = np.geomspace(sizes[0], sizes[-1], 100)
        low, high = (unit.factor * np.array([f.interval[end] for f in each.forecasts]) for end in (0, 1))
        axes.errorbar(
            curve.sizes, unit.factor * np.array(each.score_mean), yerr=unit.factor * np.array(each.score_std),
            fmt=choose_marker(i), color=color, markersize=4, capsize=2, label=label(name),
        )  # fmt: skip
        axes.plot(fine, unit.factor * each.fit.predict(fine), color=color)
        axes.fill_between(sizes, low, high, color=color, alpha=0.15, linewidth=0)
    axes.axvline(curve.sizes[-1], color=MUTED, linestyle=":", linewidth=0.8)
    use_log(axes)
    axes.set_xlabel("training samples; right of the dotted line, forecast")
    axes.set_ylabel(f"held-out {curve.metric}{unit.suffix}")
    if curve.curves:
        figure.legend(loc="outside lower center", ncols=4)
    return figure
