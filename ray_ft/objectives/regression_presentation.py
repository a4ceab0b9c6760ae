"""How regressions are shown: curves with the spread of the members, errors along the target's axes, coverage."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ray_ft.domains import TargetAxes
from ray_ft.errors import write_share
from ray_ft.objectives import STANDARDISED, Column, Figure, OneResponse, OneTarget
from ray_ft.objectives.regression_losses import Values, score_values

MANY_CHANNELS = 8  # above which bars bear no names
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
        around = f"intervals of {100 * found['nominal']:.6g} % (CV+) around {found['n_samples']} samples"
        return (
            f"{found['lack'] or around}; two standard deviations of the members alone hold "
            f"{write_share(found['spread_coverage'], 1)} of the values",
        )

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

    def draw_sample(self, axes_of: TargetAxes, truth: OneTarget, mean: OneResponse, std: OneResponse) -> Figure:
        """Truth, and the blind ensemble with the spread of its members, channel by channel."""
        from ray_ft.drawing import COLORS, INK, add_legend, draw_grid

        rows = [axes_of.flatten(values[None])[0] for values in (truth, mean, std)]
        names = axes_of.channels[:4]
        figure, panels = draw_grid(len(names), 1.55)
        marker = "o" if len(axes_of.x) < 8 or np.isnan(truth).any() else ""  # a value between missing ones has no line
        for i, (axes, name) in enumerate(zip(panels, names, strict=True)):
            true, predicted, spread = (row[i] for row in rows)
            axes.plot(axes_of.x, true, color=INK, linewidth=1, marker=marker, markersize=4)
            axes.plot(axes_of.x, predicted, color=COLORS[0], marker=marker, markersize=4)
            low, high = predicted - spread, predicted + spread
            axes.fill_between(axes_of.x, low, high, color=COLORS[0], alpha=0.3, linewidth=0)
            axes.set_title(name)
            if i >= len(names) - 2:
                axes.set_xlabel(axes_of.label)
        ensemble = ("blind ensemble ± std of members", {"color": COLORS[0]})
        add_legend(figure, [("truth", {"color": INK, "linewidth": 1}), ensemble], 2)
        return figure

    def draw_errors(self, axes_of: TargetAxes, responses: Mapping[str, Values], targets: Values) -> tuple[str, Figure]:
        """Error by value of the last axis, and by channel."""
        from ray_ft.drawing import COLORS, MUTED, add_legend, draw_grid

        errors = {name: self.average_errors(axes_of, own, targets) for name, own in responses.items()}
        colors = dict(zip(errors, (COLORS[0], MUTED), strict=True))
        n_panels = 2 if len(axes_of.channels) > 1 else 1
        figure, panels = draw_grid(n_panels, 2.2)
        kind = self.metric.removeprefix(STANDARDISED)
        quantity = {"mse": "rms error", "mae": "mean absolute error"}.get(kind, self.metric)
        quantity += " in standard deviations" * (kind != self.metric)
        root = math.sqrt if kind == "mse" else float
        marker = "o" if len(axes_of.x) < 8 else ""
        for name, values in errors.items():
            by_value = [root(value) for value in average_known(values, 0)]
            panels[0].plot(axes_of.x, by_value, color=colors[name], marker=marker, label=name)
        panels[0].set_xlabel(axes_of.label)
        panels[0].set_ylabel(quantity)
        panels[0].set_ylim(bottom=0)
        if n_panels == 2:
            places = np.arange(len(axes_of.channels))
            for shift, (name, values) in zip((-0.2, 0.2), errors.items(), strict=True):
                by_channel = [root(value) for value in average_known(values, 1)]
                panels[1].barh(places + shift, by_channel, 0.38, color=colors[name])
            panels[1].invert_yaxis()
            panels[1].set_xlabel(quantity)
            if len(places) <= MANY_CHANNELS:
                panels[1].set_yticks(places, axes_of.channels)
        add_legend(figure, [(name, {"color": color, "linewidth": 4}) for name, color in colors.items()], 2)
        return "Over all samples, along the targets' last axis and by channel.", figure

    def average_errors(self, axes_of: TargetAxes, own: Values, targets: Values) -> Float[np.ndarray, "channel value"]:
        """Mean loss of each target value over the samples that have it."""
        errors = average_known(score_values(self.metric, own, targets, self.scales), 0)
        return errors.reshape(len(axes_of.channels), len(axes_of.x))


def average_known(values: Float[np.ndarray, "*axes"], axis: int) -> Float[np.ndarray, "*others"]:
    """Average along an axis what is there; NaN where nothing is."""
    there = ~np.isnan(values)
    return np.asarray(np.mean(values, axis, where=there | ~there.any(axis, keepdims=True)))
