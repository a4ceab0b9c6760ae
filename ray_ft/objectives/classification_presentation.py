"""How classifications are shown: probabilities by class, a confusion matrix, and whether probabilities are honest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ray_ft.domains import TargetAxes
from ray_ft.errors import write_share
from ray_ft.objectives import BlindAnswer, Column, Figure, OneResponse, OneTarget
from ray_ft.objectives.classification_losses import Chances

N_BINS = 10  # of probabilities
MOST_NUMBERED = 12  # classes, above which a matrix bears no numbers
CLASSES = (
    Column("log_loss", "log-loss"),
    Column("accuracy", "accuracy", ".1%"),
    Column("balanced_accuracy", "by class", ".1%"),
    Column("auroc", "AUROC", ".3f"),
    Column("coverage", "in the set", ".1%"),
    Column("set_size", "classes in a set", ".2f"),
)
LABELS = (
    Column("log_loss", "log-loss"),
    Column("accuracy", "labels right", ".1%"),
    Column("whole_accuracy", "samples right", ".1%"),
    Column("auroc", "AUROC", ".3f"),
)
CLASSES_BESIDE = (
    Column("log_loss", "log-loss, lower is better", ".3f"),
    Column("accuracy", "accuracy, higher is better", ".1%"),
    Column("balanced_accuracy", "balanced accuracy, higher", ".1%"),
    Column("auroc", "AUROC, higher", ".3f"),
)
LABELS_BESIDE = (
    Column("accuracy", "labels right, higher is better", ".1%"),
    Column("whole_accuracy", "samples right, higher", ".1%"),
    Column("auroc", "AUROC, higher", ".3f"),
)


@dataclass(frozen=True)
class ClassificationPresentation:
    """Of one class a sample, or of several labels."""

    metric: str

    @property
    def is_multilabel(self) -> bool:
        return self.metric == "multilabel_log_loss"

    @property
    def columns(self) -> tuple[Column, ...]:
        return LABELS if self.is_multilabel else CLASSES

    @property
    def beside(self) -> tuple[Column, ...]:
        return LABELS_BESIDE if self.is_multilabel else CLASSES_BESIDE

    def describe_evaluation(self, found: Mapping[str, Any]) -> tuple[str, ...]:
        spread = f"members differ by {found['spread']:.3f} in their probabilities (standard deviation)"
        if self.is_multilabel:
            return (spread,)
        sets = f"prediction sets of {100 * found['nominal']:.6g} % (CV+) of {found['n_samples']} samples"
        return (f"{found['lack'] or sets}; {spread}",)

    def draw_calibration(self, points: Sequence[Mapping[str, float]], n_samples: int) -> Figure:
        """What the prediction sets hold against the level asked for, and their size."""
        from ray_ft.drawing import COLORS, MUTED, draw_grid

        figure, panels = draw_grid(2, 3.2)
        nominal = [point["nominal"] for point in points]
        panels[0].plot([0.5, 1], [0.5, 1], "--", color=MUTED, linewidth=0.8, label="as promised")
        panels[0].plot(nominal, [point["coverage"] for point in points], "o-", color=COLORS[0], label="measured")
        panels[0].set_ylabel(f"sets of {n_samples} samples that hold the true class")
        panels[0].legend()
        panels[1].plot(nominal, [point["set_size"] for point in points], "o-", color=COLORS[1])
        panels[1].set_ylabel("classes in a set")
        for axes in panels:
            axes.set_xlabel("level")
        return figure

    def draw_predictions(
        self, axes_of: TargetAxes, responses: Mapping[str, Chances], targets: Chances, answer: BlindAnswer
    ) -> tuple[str, Figure]:
        """A confusion matrix of the first, and how often each probability comes true, of all."""
        from ray_ft.drawing import COLORS, MUTED, add_legend, draw_grid, name_dots

        figure, panels = draw_grid(1 if self.is_multilabel else 2, 2.6)
        honest = panels[-1]
        colors = dict(zip(responses, (COLORS[0], MUTED), strict=True))
        honest.plot([0, 1], [0, 1], "--", color=MUTED, linewidth=0.8)
        for name, chances in responses.items():
            said, came_true, n = bin_chances(chances, targets)
            honest.plot(said, came_true, color=colors[name])
            (dots,) = honest.plot(said, came_true, "o", color=colors[name], markersize=4)
            points = zip(said, came_true, n, strict=True)
            name_dots(
                dots, (f"{name}: {chance:.2f} said, {share:.2f} true, of {count}" for chance, share, count in points)
            )
        honest.set_xlabel("probability")
        honest.set_ylabel("share that is true")
        add_legend(figure, [(name, {"color": color, "linewidth": 4}) for name, color in colors.items()], 2)
        if self.is_multilabel:
            return (
                "How often what has a probability is true, over all labels and samples, by members that never saw the "
                "sample: on the dashed line probabilities are honest.",
                figure,
            )
        first = next(iter(responses))
        draw_confusion(panels[0], axes_of, responses[first], targets)
        return (
            f"Left, how many samples of a class (row) the {first} takes for which (column). Right, how often what has "
            "a probability is true, over all classes and samples: on the dashed line probabilities are honest. "
            f"{say_sets(answer, len(targets))}",
            figure,
        )

    def draw_sample(
        self, axes_of: TargetAxes, truth: OneTarget, mean: OneResponse, own: Mapping[str, Bool[np.ndarray, " class"]]
    ) -> Figure:
        """Probability of each class; the true ones are dark, and those in the prediction set have a mark."""
        from ray_ft.drawing import COLORS, INK, add_legend, draw_grid

        figure, (axes,) = draw_grid(1, 1.8)
        places = np.arange(len(mean))
        shown = np.where(np.isnan(truth), np.nan, mean)  # not of a label that is not known
        axes.bar(places, shown, color=[INK if own else COLORS[0] for own in truth > 0.5], width=0.7)
        axes.set_ylim(0, 1)
        axes.set_ylabel("probability")
        name_classes(axes, axes_of, places)
        what = "label" if self.is_multilabel else "class"
        looks: list[tuple[str, Any]] = [(f"true {what}", {"color": INK, "linewidth": 6})]
        looks.append((f"other {what}", {"color": COLORS[0], "linewidth": 6}))
        if "in_set" in own:
            mark: dict[str, Any] = {"color": COLORS[1], "marker": "v", "linestyle": "", "markersize": 5}
            axes.plot(places[own["in_set"]], np.full(own["in_set"].sum(), 1.05), clip_on=False, **mark)
            looks.append(("in the prediction set", mark))
        add_legend(figure, looks, 3)
        return figure

    def draw_errors(self, axes_of: TargetAxes, responses: Mapping[str, Chances], targets: Chances) -> None:
        """Nothing: the confusion matrix says it."""


def say_sets(answer: BlindAnswer, n: int) -> str:
    """Say of which level prediction sets are, what they hold, and by what that was measured."""
    level = f"{100 * answer.level:.6g} %"
    if not answer.measures:
        return f"There are no prediction sets of {level}, as the samples are too few."
    held, size = write_share(answer.measures["coverage"]), answer.measures["set_size"]
    return (
        f"Prediction sets of {level}, by the rule of CV+ from the blind errors on the other folds, hold the true class "
        f"of {held} of these {n} samples, and have {size:.2f} classes on average. As the samples judge one another, "
        "the share lies near the level; ray-ft evaluate measures it on fresh ones."
    )


def draw_confusion(axes: Any, axes_of: TargetAxes, chances: Chances, targets: Chances) -> None:
    from sklearn.metrics import confusion_matrix

    n_classes = targets.shape[1]
    counts = confusion_matrix(targets.argmax(1), chances.argmax(1), labels=range(n_classes))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if n_classes <= MOST_NUMBERED:
        for row, column in np.ndindex(counts.shape):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=color)
    name_classes(axes, axes_of, np.arange(n_classes))
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")


def name_classes(axes: Any, axes_of: TargetAxes, places: Int[np.ndarray, " class"]) -> None:
    if axes_of.ticks and len(axes_of.ticks) <= MOST_NUMBERED:
        turn = {"rotation": 45, "ha": "right"} if max(map(len, axes_of.ticks)) > 3 else {}
        axes.set_xticks(places, axes_of.ticks, **turn)
        if axes.images:
            axes.set_yticks(places, axes_of.ticks)


def bin_chances(
    chances: Chances, targets: Chances
) -> tuple[Float[np.ndarray, " bin"], Float[np.ndarray, " bin"], Int[np.ndarray, " bin"]]:
    """Mean of the probabilities, the share that is true and how many there are, in bins of one width with any."""
    known = ~np.isnan(targets)
    chances, targets = chances[known], targets[known]
    bins = np.minimum((chances * N_BINS).astype(int), N_BINS - 1)
    _, place, n = np.unique(bins, return_inverse=True, return_counts=True)
    return np.bincount(place, chances) / n, np.bincount(place, targets) / n, n
