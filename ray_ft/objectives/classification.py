"""Classification: one class a sample, or several yes-or-no labels, by cross-entropy.

Targets are shares: of one class a sample, 1 in its column and 0 in the others; of several labels, 0 or 1 in each
column, or NaN where it is not known. Outputs are logits, one a column, or a single one for two classes. Responses are
probabilities, which may be averaged over members.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Shaped

from ray_ft.domains import Tensor
from ray_ft.errors import ConfigError
from ray_ft.objectives import CLASSIFICATION, LOSSES, ZERO_SHOT, ByColumn, Columns, Objective, OwnLoss, Targets
from ray_ft.objectives.classification_answers import ClassAnswers, LabelAnswers, measure_chances, measure_labels
from ray_ft.objectives.classification_labels import encode_classes, encode_labels, widen_classes
from ray_ft.objectives.classification_losses import Chances, Shares, average_labels, score_chances, shape_logits
from ray_ft.objectives.classification_presentation import ClassificationPresentation

Training = Float[np.ndarray, "training class"]
SHARPNESS = 1.0  # inverse penalty of the baseline that recalibrates, on standardised log-probabilities
N_ROUNDS = 200  # of stacking


@dataclass(frozen=True)
class Classification:
    """By `log_loss`, the mean of -log p of the true class, in nats; or by `error_rate`, the share that is not the class
    of the highest probability. Both are trained by cross-entropy. `multilabel_log_loss` is the mean over the labels
    that are known of a sample.

    Attributes:
        class_weights: Of the classes in training, of mean 1 over the samples; empty where they are all 1.
        label_smoothing: Share of the targets that is spread evenly over the classes in training.
        own_loss: What training minimises in place of cross-entropy.
    """

    metric: str
    answers: ClassAnswers | LabelAnswers
    presentation: ClassificationPresentation
    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    own_loss: OwnLoss | None = None
    baselines: tuple[str, ...] = (ZERO_SHOT, "class_shares", "recalibrated")
    scales: tuple[float, ...] = ()

    @property
    def is_multilabel(self) -> bool:
        return self.metric == "multilabel_log_loss"

    def encode_targets(
        self, array: Shaped[np.ndarray, "..."], source: str, classes: tuple[str, ...] = ()
    ) -> tuple[Float[np.ndarray, "sample class"], tuple[str, ...]]:
        return (encode_labels if self.is_multilabel else encode_classes)(array, source, classes)

    def widen_targets(
        self, targets: Float[np.ndarray, "sample class"], classes: tuple[str, ...], n_outputs: int
    ) -> tuple[Float[np.ndarray, "sample output"], tuple[str, ...]]:
        return (targets, classes) if self.is_multilabel else widen_classes(targets, classes, n_outputs)

    def settle(
        self,
        targets: Targets,
        loss: str | OwnLoss | None = None,
        balanced: bool = False,
    ) -> Objective:
        if isinstance(loss, str) and LOSSES[loss] != CLASSIFICATION:
            raise ConfigError(f"training.loss: {loss} is of numbers, got cv.metric: {self.metric}; leave it out")
        own = loss if callable(loss) else None
        if own and balanced:
            raise ConfigError(
                "class weights are those of cross-entropy, got a training.loss of your own; leave "
                "training.class_weights out"
            )
        return replace(self, class_weights=self.weigh_classes(targets) if balanced else (), own_loss=own)

    def smooth(self, share: float) -> Objective:
        if self.own_loss:
            raise ConfigError(
                "smooth labels are those of cross-entropy, got a training.loss of your own; leave label_smoothing out"
            )
        return replace(self, label_smoothing=share)

    def weigh_classes(self, targets: Chances) -> tuple[float, ...]:
        if self.is_multilabel:
            raise ConfigError(
                "class weights need one class a sample, got cv.metric: multilabel_log_loss; leave them out"
            )
        counts = targets.sum(0, dtype=np.float64)
        # a class without samples is met in what is replayed alone, and weighs 1 there
        weights = np.divide(len(targets), counts * (counts > 0).sum(), out=np.ones_like(counts), where=counts > 0)
        return tuple(float(weight) for weight in weights)

    def find_output_shape(self, found: tuple[int, ...], target_shape: tuple[int, ...]) -> tuple[int, ...]:
        """One output may be enough for two classes."""
        return (1,) if target_shape == (2,) and not self.is_multilabel and math.prod(found) == 1 else target_shape

    def find_misfit(self, response_shape: tuple[int, ...], target_shape: tuple[int, ...]) -> str:
        if response_shape == target_shape:
            return ""
        what = "label" if self.is_multilabel else "class"
        return (
            f"the network must answer with one logit a {what}, {target_shape[-1]} in all, got the shape "
            f"{response_shape} for a sample"
        )

    def find_fault(self, outputs: Float[np.ndarray, "sample *output"]) -> str:
        """Say why outputs are no logits."""
        are_shares = (
            outputs.ndim > 1
            and outputs.shape[-1] > 1
            and (outputs >= 0).all()
            and np.allclose(outputs.sum(-1), 1, atol=1e-3)
        )
        return (
            "the network must answer with logits, got probabilities: take its last softmax away" if are_shares else ""
        )

    def losses(self, outputs: Float[Tensor, "sample output"], targets: Shares) -> Float[Tensor, " sample"]:
        import torch

        if self.own_loss:
            return self.own_loss(outputs, targets)  # type: ignore[no-any-return]  # it was tried
        n_ways = 2 if self.is_multilabel else targets.shape[-1]
        wanted = (
            targets * (1 - self.label_smoothing) + self.label_smoothing / n_ways if self.label_smoothing else targets
        )
        if self.is_multilabel:
            return average_labels(outputs, wanted)
        if self.class_weights:
            wanted = wanted * torch.tensor(self.class_weights, dtype=targets.dtype, device=targets.device)
        return -(wanted * shape_logits(outputs, targets.shape[-1]).log_softmax(-1)).sum(-1)

    def respond(self, outputs: Float[Tensor, "*axes"]) -> Float[Tensor, "*same"]:
        if self.is_multilabel:
            return outputs.sigmoid()
        return shape_logits(outputs, 2 if outputs.shape[-1] == 1 else outputs.shape[-1]).softmax(-1)

    def linear_residual(self, base: Float[np.ndarray, "sample *output"], targets: Chances) -> None:
        """Return None: there is no closed form."""

    def score(self, predicted: Chances, targets: Chances) -> Float[np.ndarray, " sample"]:
        return score_chances(self.metric, predicted, targets)

    def measure_errors(self, predicted: Chances, targets: Chances) -> None:
        """Return None: no class has an error of its own."""

    def measure_beside(self, predicted: Chances, targets: Chances) -> dict[str, float]:
        """Measure what `measure_chances` or `measure_labels` does, but for the score."""
        found = (measure_labels if self.is_multilabel else measure_chances)(predicted, targets)
        return {name: value for name, value in found.items() if name != self.metric.removeprefix("multilabel_")}

    def predict_baselines(
        self, zero_shot: Training, targets: Training, new: Float[np.ndarray, "new class"]
    ) -> dict[str, Float[np.ndarray, "new class"]]:
        """Predict by the network as it is, the shares of the classes in the training part, and `recalibrate`."""
        n_values = 2 if self.is_multilabel else targets.shape[1]
        known = ~np.isnan(targets)
        shares = (np.sum(targets, 0, where=known) + 1) / (known.sum(0) + n_values).astype(
            targets.dtype
        )  # by Laplace: none is 0
        prior = np.broadcast_to(shares, new.shape)
        if self.is_multilabel:
            said, truth, asked = (np.stack([1 - own, own], -1) for own in (zero_shot, targets, new))
            parts = ((said[own, i], truth[own, i], asked[:, i]) for i, own in enumerate(known.T))
            again = np.stack([recalibrate(*part)[:, 1] for part in parts], 1)
        else:
            again = recalibrate(zero_shot, targets, new)
        return dict(zip(self.baselines, (new, prior, again), strict=True))

    def stack(self, columns: Columns, targets: Chances) -> ByColumn:
        """Find the weighted mean of the lowest log-loss by expectation maximisation, as of a mixture's weights."""
        flat = self.pick_true(columns, targets)
        weights = np.full(len(flat), 1 / len(flat))
        for _ in range(N_ROUNDS):
            shares = weights[:, None] * flat
            weights = (shares / shares.sum(0)).mean(1)
        return np.asarray(weights)

    def pick_true(self, columns: Columns, targets: Chances) -> Float[np.ndarray, "column value"]:
        """What each column says of what is true."""
        true = columns * targets + (1 - columns) * (1 - targets) if self.is_multilabel else (columns * targets).sum(-1)
        flat = true.reshape(len(columns), -1)
        known = flat[:, ~np.isnan(flat).any(0)]
        return np.asarray(np.maximum(known.astype(np.float64), np.finfo(np.float32).eps))


def build_objective(metric: str, scales: tuple[float, ...] = ()) -> Objective:
    """Build the objective of a metric: `log_loss`, `error_rate` or `multilabel_log_loss`; it needs no scales."""
    answers = LabelAnswers() if metric == "multilabel_log_loss" else ClassAnswers()
    return Classification(metric, answers, ClassificationPresentation(metric))


def recalibrate(
    zero_shot: Training, targets: Training, new: Float[np.ndarray, "new class"]
) -> Float[np.ndarray, "new class"]:
    """Fit multinomial logistic regression from the log-probabilities that the network gives; the rare get a little.

    Classes that the training part lacks keep the share that `class_shares` gives them.
    """
    from sklearn.linear_model import LogisticRegression

    seen = np.flatnonzero(targets.sum(0) > 0)
    floor = 1 / (len(targets) + targets.shape[1])
    if len(seen) < 2:
        shares = (targets.sum(0) + 1) / (len(targets) + targets.shape[1])
        return np.asarray(np.broadcast_to(shares, new.shape))
    logs, of_new = (np.log(np.maximum(own, np.finfo(np.float32).eps)) for own in (zero_shot, new))
    centre, scale = logs.mean(0), np.maximum(logs.std(0), 1e-6)
    fitted = LogisticRegression(C=SHARPNESS, max_iter=1000).fit((logs - centre) / scale, targets.argmax(1))
    found = np.full(new.shape, floor)
    found[:, seen] = fitted.predict_proba((of_new - centre) / scale)
    return np.asarray(found / found.sum(1, keepdims=True))
