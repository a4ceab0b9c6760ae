"""The figures of a report that are about scores; those of samples are the objective's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ray_ft.drawing import COLORS, INK, MUTED, add_legend, draw_grid, name_dots, use_log
from ray_ft.objectives import ZERO_SHOT, list_baselines
from ray_ft.report.candidates import list_columns
from ray_ft.report.words import Unit, label, say_pair
from ray_ft.results.learning_curve import LearningCurve
from ray_ft.results.records import Plan, Verdict, Verdicts
from ray_ft.results.summary import Summary
from ray_ft.search.plan import RECIPE, CandidateSpec
from ray_ft.statistics.comparison import Comparison
from ray_ft.statistics.scores import Curves, average_samples

MARKERS = ("o", "s", "D", "^", "v", "P")  # of strategies that share a colour
BETTER, WORSE = "#2a9d78", "#c2483d"
RING: Any = {"color": INK, "marker": "o", "linestyle": "", "fillstyle": "none", "markersize": 12}  # around a recipe
MANY_ROWS, MANY_SEEDS = 40, 5  # of a heat map, above which it grows no more and some bear no names
MANY_CELLS, MANY_NUMBERS = 80, 3  # of a heat map, and in its row, above which they bear no numbers
WIDE = 30  # ratio of the highest score and the lowest, above which their axis is logarithmic
LONG = 8  # letters of a metric, which has a line of its own from there on
SMALL = 8  # size of text in a panel


def name_score(metric: str, unit: Unit, which: str = "held-out") -> str:
    """Name an axis of scores, in two lines where one is longer than the axis."""
    separator = "\n" if len(metric) > LONG else " "
    return f"{which}{separator}{metric}{unit.suffix}"


def color_of(summary: Summary) -> dict[str, str]:
    return {name: choose_look(i)[0] for i, name in enumerate(summary.strategies)}


def choose_look(i: int) -> tuple[str, str]:
    """Colour and marker of the i-th."""
    return COLORS[i % len(COLORS)], MARKERS[i // len(COLORS) % len(MARKERS)]


def draw_members(summary: Summary, unit: Unit) -> Figure:
    """Every member as a dot, mean ± std beside it; baselines by their folds."""
    rows = [
        (row.score_mean, row.score_std, np.array(row.scores), label(name), color_of(summary).get(name, MUTED))
        for name, row in (summary.strategies | summary.baselines).items()
        if row.score_mean is not None and row.score_std is not None
    ]
    rows.sort(key=lambda row: -row[0])
    figure, (axes,) = draw_grid(1, 0.8 + 0.36 * len(rows))
    rng = np.random.default_rng(0)
    for y, (mean, std, scores, name, color) in enumerate(rows):
        jitter = y + rng.uniform(-0.22, 0.02, scores.size)
        look: Any = {"color": color, "alpha": 0.65, "markersize": 3.7, "markeredgewidth": 0}
        (dots,) = axes.plot(unit.factor * scores.ravel(), jitter, "o", **look)
        name_dots(dots, (name_member(name, place, score, unit) for place, score in np.ndenumerate(scores)))
        axes.errorbar(unit.scale(mean), y + 0.2, xerr=unit.scale(std), fmt="D", color=color, markersize=4.5, capsize=3)
    axes.set_yticks(range(len(rows)), [name for _, _, _, name, _ in rows])
    axes.set_xlabel(f"held-out {summary.metric}{unit.suffix}, lower is better")
    if rows and rows[0][0] > WIDE * rows[-1][0] > 0:
        use_log(axes, "x")
    axes.grid(axis="x", alpha=0.25)
    return figure


def name_member(name: str, place: tuple[int, ...], score: float, unit: Unit) -> str:
    """Say of which strategy or baseline, repeat, fold and seed a score is."""
    where = ", ".join(f"{axis} {i}" for axis, i in zip(("repeat", "fold", "seed"), place, strict=False))
    return f"{name}, {where}: {unit.write(score)}{unit.suffix}"


def draw_differences(comparisons: Sequence[Comparison], unit: Unit) -> Figure:
    """Each paired difference with its interval, over the region of practical equivalence."""
    figure, (axes,) = draw_grid(1, 0.8 + 0.42 * len(comparisons))
    pairs = comparisons[::-1]
    for y, pair in enumerate(pairs):
        color = {"better": BETTER, "worse": WORSE}.get(pair.verdict, MUTED)
        low, high = (unit.scale(value) for value in pair.interval)
        axes.plot([low, high], [y, y], color=color, linewidth=2)
        (dot,) = axes.plot(unit.scale(pair.difference), y, "o", color=color, markersize=5)
        name_dots(dot, [say_pair(pair, unit)])
        rope = unit.scale(pair.rope)
        numbers = f"{unit.write(pair.difference, '+')} {unit.interval(pair.interval, '+')}"
        said = f"{label(pair.first)} − {label(pair.second)}: {numbers}"
        axes.text(0, y + 0.2, said, transform=axes.get_yaxis_transform(), fontsize=SMALL)
        axes.fill_betweenx([y - 0.25, y + 0.15], -rope, rope, color=MUTED, alpha=0.3, linewidth=0)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(-0.5, len(pairs) - 0.3)
    axes.set_xlabel(f"difference{unit.suffix}: below 0, the first is better")
    axes.grid(axis="x", alpha=0.25)
    return figure


def draw_depth(summary: Summary, unit: Unit) -> Figure | None:
    """Scores of the strategies by how many of the last layers learn; None where there are no two to compare."""
    names = summary.by_depth
    if len(names) < 2:
        return None
    rows = [summary.strategies[name] for name in names]
    means, stds = ([unit.scale(getattr(row, key)) for row in rows] for key in ("score_mean", "score_std"))
    figure, (axes,) = draw_grid(1, 2.6)
    axes.plot(means, color=MUTED, linewidth=0.8)
    for x, (name, mean, std) in enumerate(zip(names, means, stds, strict=True)):
        axes.errorbar(x, mean, yerr=std, fmt="D", color=color_of(summary)[name], markersize=4.5, capsize=3)
    shares = [f"{n} of {n_all}" for n, n_all in (row.layers or (0, 0) for row in rows)]
    axes.set_xticks(range(len(names)), [f"{name}\n{share}" for name, share in zip(names, shares, strict=True)])
    axes.set_xlim(-0.4, len(names) - 0.6)
    axes.set_xlabel("layers that learn, from the last on")
    axes.set_ylabel(name_score(summary.metric, unit))
    axes.grid(axis="y", alpha=0.25)
    return figure


def draw_folds(summary: Summary, unit: Unit) -> Figure:
    """The score of each fold and seed, a map for each strategy."""
    scored = {name: np.array(s.scores) for name, s in summary.strategies.items() if s.scores}
    n_rows = summary.n_folds * summary.n_repeats
    figure, panels = draw_grid(len(scored), 0.9 + 0.24 * min(n_rows, MANY_ROWS))
    for axes, (name, scores) in zip(panels, scored.items(), strict=True):
        cells = unit.factor * scores.reshape(n_rows, -1)
        image = axes.imshow(cells, cmap="cividis", aspect="auto")
        numbered = cells.size <= MANY_CELLS and cells.shape[1] <= MANY_NUMBERS
        if not numbered:
            figure.colorbar(image, ax=axes, pad=0.02).outline.set_visible(False)
        middle = (cells.min() + cells.max()) / 2
        for (row, seed), value in np.ndenumerate(cells):
            if numbered:
                color = "white" if value < middle else "black"
                axes.text(seed, row, f"{value:.3f}", ha="center", va="center", fontsize=SMALL, color=color)
        axes.set_title(name)
        seeds = range(0, summary.n_seeds, -(-summary.n_seeds // MANY_SEEDS))
        axes.set_xticks(seeds, [f"seed {s}" for s in seeds])
        several = summary.n_repeats > 1
        names = [f"{r}.{k}" if several else f"fold {k}" for r, k in np.ndindex(summary.n_repeats, summary.n_folds)]
        shown = range(0, n_rows, -(-n_rows // MANY_ROWS))
        axes.set_yticks(shown, [names[i] for i in shown])
        axes.tick_params(length=0)
    return figure


def draw_curves(summary: Summary, plan: Plan, curves: Mapping[str, Curves], unit: Unit) -> Figure:
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
                by_fold = by_fold[: verdict.epoch + 1]  # what it did past the rung does not count
            mean = average_samples(by_fold, curves[spec.name].sizes)
            epochs = np.arange(len(mean))
            axes.plot(epochs, mean, color=color, alpha=0.55 if stopped else 1)
            axes.fill_between(epochs, by_fold.min((1, 2)), by_fold.max((1, 2)), color=color, alpha=0.12, linewidth=0)
            if stopped:
                axes.plot(epochs[-1], mean[-1], "x", color=color, markersize=7, markeredgewidth=2)
        if stops := [epoch for repeat in strategy.stop_epochs for epoch in repeat]:
            axes.plot(stops, [0.03] * len(stops), "|", color=INK, markersize=8, transform=axes.get_xaxis_transform())
        axes.axhline(zero_shot, color=MUTED, linestyle="--", linewidth=0.8)
        use_log(axes)
        axes.set_title(name)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    figure.supylabel(name_score(summary.metric, unit), fontsize="medium")
    looks: dict[str, Any] = {
        "a fold's stop": {"color": INK, "marker": "|", "linestyle": "", "markersize": 8},
        "stopped by ASHA": {"color": INK, "marker": "x", "linestyle": ""},
        "zero-shot": {"color": MUTED, "linestyle": "--"},
    }
    add_legend(figure, looks.items(), 3)
    return figure


def draw_search(
    summary: Summary, plan: Plan, verdicts: Verdicts, curves: Mapping[str, Curves], unit: Unit
) -> Figure | None:
    """Each candidate's lowest mean against each hyperparameter that was searched; None where none was."""
    seen = [spec for spec in plan if spec.name in curves]
    drawn = {key: {(spec.strategy, read_value(spec, key)) for spec in seen} for key in list_columns(seen)}
    n_strategies = len({spec.strategy for spec in seen})
    varied = {key: declared for key, declared in list_columns(seen).items() if len(drawn[key]) > n_strategies}
    if not varied:
        return None
    lowest = {spec.name: find_lowest(curves[spec.name], verdicts[spec.name]) for spec in seen}
    figure, panels = draw_grid(len(varied), 1.9)
    for axes, (key, declared) in zip(panels, varied.items(), strict=True):
        points: dict[tuple[str, str], list[tuple[float, float, str]]] = {}  # of one look, as drawing costs by the call
        for spec in seen:
            verdict, value = verdicts[spec.name], read_value(spec, key)
            if value is not None:
                said = f"{spec.name}, {declared.title} {declared.show(value)}, {verdict.state}"
                said += f": {unit.write(lowest[spec.name])}{unit.suffix}"
                mark = value, unit.scale(lowest[spec.name]), said
                points.setdefault((spec.strategy, verdict.state), []).append(mark)
        for (name, state), own in points.items():
            x, y, names = zip(*own, strict=True)
            (dots,) = axes.plot(x, y, markersize=5, **style_candidate(summary, name, state))
            name_dots(dots, names)
        for spec in seen:
            if spec.origin == RECIPE and (value := read_value(spec, key)) is not None:
                axes.plot(value, unit.scale(lowest[spec.name]), **RING)
        use_log(axes)
        if declared.log:
            use_log(axes, "x")
        axes.set_xlabel(declared.title)
    figure.supylabel(name_score(summary.metric, unit, "lowest mean"), fontsize="medium")
    looks = [(name, style_candidate(summary, name, "completed")) for name in summary.strategies]
    looks.append(("stopped by ASHA", {"color": MUTED, "marker": "o", "linestyle": "", "fillstyle": "none"}))
    looks.append(("recipe", RING))
    if any(verdicts[spec.name].state == "failed" for spec in seen):
        looks.append(("failed", {"color": MUTED, "marker": "x", "linestyle": ""}))
    add_legend(figure, looks, 3)
    return figure


def read_value(spec: CandidateSpec, key: str) -> Any:
    """A hyperparameter of the last stage that has it."""
    return next((value for stage in reversed(spec.stages) if (value := getattr(stage, key, None)) is not None), None)


def find_lowest(curves: Curves, verdict: Verdict) -> float:
    """What a candidate did past the rung at which it was stopped does not count."""
    guide = curves.guide[: verdict.epoch + 1] if verdict.state == "stopped" else curves.guide
    return float(guide.mean((1, 2)).min())


def style_candidate(summary: Summary, strategy: str, state: str) -> Any:
    color, marker = choose_look(list(summary.strategies).index(strategy))
    filled = "none" if state == "stopped" else "full"
    return {"color": color, "marker": "x" if state == "failed" else marker, "linestyle": "", "fillstyle": filled}


def draw_learning_curve(curve: LearningCurve, unit: Unit) -> Figure:
    """Scores by size of the training parts with the fitted power laws, and the band of their draws."""
    figure, (axes,) = draw_grid(1, 3.4)
    for i, (name, each) in enumerate(curve.curves.items()):
        color, marker = choose_look(i)
        color = MUTED if name in list_baselines() else color
        sizes = [forecast.size for forecast in each.forecasts]
        fine = np.geomspace(sizes[0], sizes[-1], 100)
        low, high = (unit.factor * np.array([f.interval[end] for f in each.forecasts]) for end in (0, 1))
        axes.errorbar(
            curve.sizes, unit.factor * np.array(each.score_mean), yerr=unit.factor * np.array(each.score_std),
            fmt=marker, color=color, markersize=4, capsize=2, label=label(name),
        )  # fmt: skip
        axes.plot(fine, unit.factor * each.fit.predict(fine), color=color)
        axes.fill_between(sizes, low, high, color=color, alpha=0.15, linewidth=0)
    axes.axvline(curve.sizes[-1], color=MUTED, linestyle=":", linewidth=0.8)
    use_log(axes)
    axes.set_xlabel("training samples; right of the dotted line, forecast")
    axes.set_ylabel(name_score(curve.metric, unit))
    if curve.curves:
        figure.legend(loc="outside lower center", ncols=4)
    return figure
