"""How regressions are shown: predicted against measured with intervals, errors along the target's axes, coverage.

A target of few values is shown value by value, another as curves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ray_ft.domains import TargetAxes
from ray_ft.errors import count, write_share
from ray_ft.objectives import STANDARDISED, BlindAnswer, Column, Figure, OneResponse, OneTarget
from ray_ft.objectives.regression_losses import Values, score_values

MANY_NAMES = 12  # of bars, above which they bear none
MOST_PANELS, MOST_DOTS = 6, 300  # of a figure, and of a panel
ENDS = ("lower", "upper")
N_BINS = 40  # of measured and of predicted values
BESIDE = (
    Column("rmse", "rmse, lower is better", ".4g"),
    Column("mae", "mae, lower", ".4g"),
    Column("r2", "R², higher", ".3f"),
)
COLUMNS = (
    Column("mse", "mse"),
    Column("mae", "mae", ".4g"),
    Column("coverage", "coverage", ".1%"),
    Column("width", "width", ".4g"),
    Column("band_coverage", "whole samples", ".1%"),
    Column("band_width", "width of band", ".4g"),
)


@dataclass(frozen=True)
class RegressionPresentation:
    """Curves, errors by the metric, and coverage."""

    metric: str
    scales: tuple[float, ...] = ()
    beside: tuple[Column, ...] = BESIDE

    @property
    def columns(self) -> tuple[Column, ...]:
        return COLUMNS if self.metric in ("mse", "mae") else (Column(self.metric, self.metric, ".4g"), *COLUMNS)

    def describe_evaluation(self, found: Mapping[str, Any]) -> tuple[str, ...]:
        around = f"intervals of {100 * found['nominal']:.6g} % (CV+) around {count(found['n_samples'], 'sample')}"
        said = (
            f"{found['lack'] or around}; two standard deviations of the members alone hold "
            f"{write_share(found['spread_coverage'], 1)} of the values",
        )
        if "band_coverage" not in found:
            return said
        return (*said, describe_chance(found["band_coverage"], found["n_samples"]))

    def draw_calibration(self, points: Sequence[Mapping[str, float]], n_samples: int) -> Figure:
        """Coverage measured against the level asked for."""
        from ray_ft.drawing import COLORS, MUTED, draw_grid

        figure, (axes,) = draw_grid(1, 3.2)
        names = ("nominal", "coverage", "band_coverage")
        nominal, single, whole = ([point[name] for point in points] for name in names)
        axes.plot([0.5, 1], [0.5, 1], "--", color=MUTED, linewidth=0.8, label="as promised")
        axes.plot(nominal, single, "o-", color=COLORS[0], label="single values")
        axes.plot(nominal, whole, "s-", color=COLORS[1], label="whole samples, by their bands")
        axes.set_xlabel("level")
        axes.set_ylabel(f"coverage of {n_samples} samples")
        axes.legend()
        return figure

    def draw_predictions(
        self, axes_of: TargetAxes, responses: Mapping[str, Values], targets: Values, answer: BlindAnswer
    ) -> tuple[str, Figure]:
        """A dot a sample with its interval, for each of a few values; of curves, how many values fall where."""
        blind = next(iter(responses.values()))
        return (draw_scatter if axes_of.has_few else draw_density)(axes_of, blind, targets, answer)

    def draw_sample(
        self, axes_of: TargetAxes, truth: OneTarget, mean: OneResponse, own: Mapping[str, OneResponse]
    ) -> Figure | None:
        """A curve, and the blind ensemble with its intervals and its band, channel by channel."""
        from ray_ft.drawing import COLORS, INK, add_legend, draw_grid

        if axes_of.has_few:
            return None
        names = axes_of.channels[:4]
        figure, panels = draw_grid(len(names), 1.55)
        marker = "o" if np.isnan(truth).any() else ""  # a value between missing ones has no line
        drawn = {**own, "truth": truth, "mean": mean}
        rows = {name: axes_of.flatten(values[None])[0] for name, values in drawn.items()}
        shades = {("band_lower", "band_upper"): 0.18, ("lower", "upper"): 0.3} if own else {}
        for i, (axes, name) in enumerate(zip(panels, names, strict=True)):
            axes.plot(axes_of.x, rows["truth"][i], color=INK, linewidth=1, marker=marker, markersize=4)
            axes.plot(axes_of.x, rows["mean"][i], color=COLORS[0])
            for (low, high), alpha in shades.items():
                axes.fill_between(axes_of.x, rows[low][i], rows[high][i], color=COLORS[0], alpha=alpha, linewidth=0)
            axes.set_title(name)
            if i >= len(names) - 2:
                axes.set_xlabel(axes_of.label)
        looks = [("measured", {"color": INK, "linewidth": 1}), ("predicted", {"color": COLORS[0]})]
        for said, alpha in (("interval", 0.48), ("band", 0.18)):
            looks += [(said, {"color": COLORS[0], "alpha": alpha, "linewidth": 6})] if own else []
        add_legend(figure, looks, 4)
        return figure

    def draw_errors(
        self, axes_of: TargetAxes, responses: Mapping[str, Values], targets: Values
    ) -> tuple[str, Figure] | None:
        """Error by value of the last axis, and by channel; a bar for each of a few values."""
        from ray_ft.drawing import COLORS, MUTED, add_legend, draw_grid

        if len(axes_of.x) * len(axes_of.channels) == 1:
            return None
        errors = {name: self.average_errors(axes_of, own, targets) for name, own in responses.items()}
        colors = dict(zip(errors, (COLORS[0], MUTED), strict=True))
        kind = self.metric.removeprefix(STANDARDISED)
        quantity = {"mse": "rms error", "mae": "mean absolute error"}.get(kind, self.metric)
        quantity += " in standard deviations" * (kind != self.metric)
        root = np.sqrt if kind == "mse" else np.asarray
        few, several = axes_of.has_few, len(axes_of.channels) > 1
        places = axes_of.value_names if few else axes_of.channels
        figure, panels = draw_grid(1 if few or not several else 2, 0.8 + 0.3 * min(len(places), 12) if few else 2.2)
        for shift, (name, values) in zip((-0.2, 0.2), errors.items(), strict=True):
            if few or several:
                lengths = root(values.ravel() if few else average_known(values, 1))
                panels[-1].barh(np.arange(len(places)) + shift, lengths, 0.38, color=colors[name])
            if not few:
                panels[0].plot(axes_of.x, root(average_known(values, 0)), color=colors[name])
        if few or several:
            panels[-1].invert_yaxis()
            panels[-1].set_xlabel(quantity)
            panels[-1].set_yticks(range(len(places)), places) if len(places) <= MANY_NAMES else None
        if not few:
            panels[0].set_xlabel(axes_of.label)
            panels[0].set_ylabel(quantity)
            panels[0].set_ylim(bottom=0)
        add_legend(figure, [(name, {"color": color, "linewidth": 4}) for name, color in colors.items()], 2)
        return "Over all samples" + ("." if few else ", along the targets' last axis and by channel."), figure

    def average_errors(self, axes_of: TargetAxes, own: Values, targets: Values) -> Float[np.ndarray, "channel value"]:
        """Mean loss of each target value over the samples that have it."""
        errors = average_known(score_values(self.metric, own, targets, self.scales), 0)
        return errors.reshape(len(axes_of.channels), len(axes_of.x))


def describe_chance(share: float, n_samples: int) -> str:
    """Say what share of many samples this one of a few speaks for, by Wilson's interval."""
    from scipy.stats import binomtest

    found = binomtest(round(share * n_samples), n_samples).proportion_ci(0.95, method="wilson")
    return (
        f"the share of whole samples, {write_share(share, 1)} of {n_samples}, may be {write_share(found.low)} to "
        f"{write_share(found.high)} of many more (95 % confidence)"
    )


def draw_scatter(axes_of: TargetAxes, blind: Values, targets: Values, answer: BlindAnswer) -> tuple[str, Figure]:
    """A panel a value: a dot a sample, and a bar from end to end of its interval."""
    from ray_ft.drawing import COLORS, MUTED, draw_grid, name_dots

    names, n = axes_of.value_names, len(targets)
    labelled = np.flatnonzero(~np.isnan(targets.reshape(n, -1)).all(0))
    n_panels = min(len(labelled), MOST_PANELS)
    figure, panels = draw_grid(n_panels, 2.0 if n_panels > 1 else 3.4)
    true, predicted, low, high = (
        array.reshape(n, -1)
        for array in (targets, blind, *(answer.quantities.get(end, np.full_like(blind, np.nan)) for end in ENDS))
    )
    for i, axes in zip(labelled, panels, strict=False):
        known = np.flatnonzero(~np.isnan(true[:, i]))
        shown = known[np.unique(np.linspace(0, len(known) - 1, min(len(known), MOST_DOTS)).astype(int))]
        x, y, *ends = (array[shown, i] for array in (true, predicted, low, high))
        axes.plot([x.min(), x.max()], [x.min(), x.max()], "--", color=MUTED, linewidth=0.8)
        axes.vlines(x, *ends, color=COLORS[0], alpha=0.35, linewidth=0.8)
        (dots,) = axes.plot(x, y, "o", color=COLORS[0], markersize=4, markeredgewidth=0)
        said = (
            f"sample {sample}: measured {true:.4g}, predicted {guess:.4g}"
            + f" [{lower:.4g}, {upper:.4g}]" * bool(np.isfinite(upper - lower))
            for sample, true, guess, lower, upper in zip(shown, x, y, *ends, strict=True)
        )
        name_dots(dots, said)
        axes.set_title(names[i] if len(names) > 1 else "")
    figure.supxlabel("measured", fontsize="medium")
    figure.supylabel("predicted", fontsize="medium")
    some = f" {n_panels} of {len(names)} values are shown." if n_panels < len(names) else ""
    some += f" {MOST_DOTS} samples at most are shown of each." if n > MOST_DOTS else ""
    return (
        f"A dot is a sample, as the members that never saw it predict it. On the dashed line they are right.{some} "
        f"{say_intervals(answer, targets, 'The bars, intervals')}",
        figure,
    )


def draw_density(axes_of: TargetAxes, blind: Values, targets: Values, answer: BlindAnswer) -> tuple[str, Figure]:
    """A panel a channel: how many values of all samples were measured as this and predicted as that."""
    from matplotlib.colors import LogNorm

    from ray_ft.drawing import MUTED, draw_grid

    true, predicted = axes_of.flatten(targets), axes_of.flatten(blind)
    labelled = [i for i in range(len(axes_of.channels)) if not np.isnan(true[:, i]).all()][:MOST_PANELS]
    figure, panels = draw_grid(len(labelled), 2.0 if len(labelled) > 1 else 3.4)
    for i, axes in zip(labelled, panels, strict=False):
        known = ~np.isnan(true[:, i])
        x, y = true[:, i][known], predicted[:, i][known]
        edges = np.linspace(min(x.min(), y.min()), max(x.max(), y.max()), N_BINS + 1)
        counts = np.histogram2d(x, y, (edges, edges))[0]
        span = (edges[0], edges[-1])
        shown = np.where(counts > 0, counts, np.nan).T
        axes.imshow(shown, cmap="viridis", norm=LogNorm(), origin="lower", extent=span * 2, aspect="auto")
        axes.plot(span, span, "--", color=MUTED, linewidth=0.8)
        axes.set_title(axes_of.channels[i])
    figure.supxlabel("measured", fontsize="medium")
    figure.supylabel("predicted", fontsize="medium")
    return (
        "Every value of every sample, as the members that never saw it predict it: the lighter, the more values. On "
        f"the dashed line they are right. {say_intervals(answer, targets, 'Intervals')}",
        figure,
    )


def say_intervals(answer: BlindAnswer, targets: Values, what: str) -> str:
    """Say of which level intervals are, what they hold, and by what that was measured."""
    level = f"{100 * answer.level:.6g} %"
    if not answer.measures:
        return f"There are no intervals of {level}, as the samples are too few."
    there = np.isfinite(answer.quantities["lower"] - targets).reshape(len(targets), -1).any(1)
    single, whole = (write_share(answer.measures[name]) for name in ("coverage", "band_coverage"))
    return (
        f"{what} of {level}, by the rule of CV+ from the blind errors on the other folds, hold {single} of the values; "
        f"bands of {level} hold {whole} of the whole samples, as counted on the {there.sum()} that have both "
        "intervals and labels. These samples judge one another; ray-ft evaluate measures the shares on fresh ones."
    )


def average_known(values: Float[np.ndarray, "*axes"], axis: int) -> Float[np.ndarray, "*others"]:
    """Average along an axis what is there; NaN where nothing is."""
    there = ~np.isnan(values)
    return np.asarray(np.mean(values, axis, where=there | ~there.any(axis, keepdims=True)))
