"""What an ensemble answers a classification with: probabilities, the class, and sets that hold the true one.

A set is CV+ (cross-conformal). A training sample i has a blind model, as in `statistics.intervals`; its residual is one
less the probability that this model gives to its true class. A class y of a new sample is left out where so many
training samples have lower residuals than y has by their blind models that a true class would rarely be so far out:
with C(x) = {y : (1 + #{i : r_i >= 1 - p_i(y | x)}) / (n + 1) > alpha}. What is proven for intervals holds for these
sets, as the proof is of comparisons alone. The class of the highest probability is always in, so no set is empty.

References:
    Romano, Sesia & Candès, "Classification with valid and adaptive coverage", NeurIPS 2020, for CV+ with classes.
    Sadinle, Lei & Wasserman, "Least ambiguous set-valued classifiers with bounded error levels", JASA 114 (2019), for
    the residual. We depart from them in that the means over re-deals of the folds take the place of one model.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ray_ft.domains import Tensor
from ray_ft.objectives import BlindAnswer, FoldOf, Folds, Measures, Members, Residuals, Shares
from ray_ft.objectives.averaging import average_members, measure_std, pick_blind, walk_folds
from ray_ft.objectives.classification_losses import Chances, score_chances
from ray_ft.statistics.intervals import ALPHAS, SLACK, find_rank


@dataclass(frozen=True)
class ClassPrediction:
    """What an ensemble says of each input, class by class in the order of the card's `classes`.

    Attributes:
        mean: Probabilities, the weighted mean of the members'.
        std: Their standard deviation: the members' disagreement alone.
        predicted: Number of the class of the highest probability.
        in_set: Whether a class is in the prediction set, which holds the true one about as often as its level says;
            None where the training samples are too few for the level.
        novelty: How unlike the training samples the input is, higher is more unlike; its unit is arbitrary.
        p_value: Share of inputs like the training samples that are as unlike them as this one.
        flag: Whether that is 5 % or less. Sets hold for inputs like the training samples: do not trust these.
    """

    mean: Chances
    std: Chances
    predicted: Int[np.ndarray, " sample"]
    in_set: Bool[np.ndarray, "sample class"] | None
    novelty: Float[np.ndarray, " sample"]
    p_value: Float[np.ndarray, " sample"]
    flag: Bool[np.ndarray, " sample"]


@dataclass(frozen=True)
class LabelPrediction:
    """What an ensemble says of each input, label by label in the order of the card's `classes`.

    Attributes:
        mean: Probability that a label holds.
        std: Standard deviation of the members'.
        predicted: Whether it is above one half.
        novelty: As of `ClassPrediction`.
        p_value: The same.
        flag: The same.
    """

    mean: Chances
    std: Chances
    predicted: Bool[np.ndarray, "sample label"]
    novelty: Float[np.ndarray, " sample"]
    p_value: Float[np.ndarray, " sample"]
    flag: Bool[np.ndarray, " sample"]


@dataclass(frozen=True)
class ClassAnswers:
    """Probabilities and sets; what is kept of a training sample is one less the chance of its true class."""

    prediction: type[ClassPrediction] = ClassPrediction
    exported: tuple[str, ...] = ("mean", "std", "predicted", "in_set")
    leveled: tuple[str, ...] = ("in_set",)

    def measure_residuals(self, blind: Chances, targets: Chances) -> Float[np.ndarray, " sample"]:
        return np.asarray((1 - (blind * targets).sum(-1)).astype(np.float32))

    def find_residual_shape(self, target_shape: tuple[int, ...]) -> tuple[int, ...]:
        return ()

    def measure_spread(self, members: Members, shares: Shares) -> Chances:
        return measure_std(members, shares)

    def answer(
        self,
        asked: Collection[str],
        folds: Folds,
        members: Members,
        shares: Shares,
        residuals: Residuals,
        fold_of: FoldOf,
        alpha: float,
    ) -> dict[str, Any]:
        mean = folds.mean((0, 1))
        found: dict[str, Any] = {"mean": mean, "predicted": mean.argmax(-1)}
        if "std" in asked:
            found["std"] = self.measure_spread(members, shares)
        if "in_set" in asked:
            found["in_set"] = build_sets(folds, residuals, fold_of, alpha)
        return found

    def answer_blind(
        self, blind: Chances, targets: Chances, fold_of: Int[np.ndarray, " sample"], level: float
    ) -> BlindAnswer:
        """Choose the sets, where the samples of the other folds are enough for every fold."""
        residuals, n_most = self.measure_residuals(blind, targets), int(np.bincount(fold_of).max())
        if find_rank(1 - level, len(blind) - n_most) < 1:
            return BlindAnswer(level, {}, {})
        sets = np.empty(blind.shape, bool)
        for own, folds, others in walk_folds(blind, fold_of):
            sets[own] = build_sets(folds, residuals[~own], others, 1 - level)
        return BlindAnswer(level, {"in_set": sets}, measure_sets(sets, targets))

    def evaluate(
        self,
        folds: Mapping[str, Folds],
        residuals: Mapping[str, Residuals],
        fold_of: FoldOf,
        spread: Chances,
        targets: Chances,
        method: str,
        level: float,
        outputs: Mapping[str, slice],
    ) -> Measures:
        """Measure scores and sets; by level, what the sets hold and how large they are."""
        ranks = {name: rank_classes(own, residuals[name], fold_of) for name, own in folds.items()}
        methods = {name: measure_chances(own.mean((0, 1)), targets) for name, own in folds.items()}
        if find_rank(1 - level, fold_of.shape[1]) >= 1:
            for name, own in folds.items():
                methods[name] |= measure_sets(choose_sets(ranks[name], own.mean((0, 1)), 1 - level), targets)
        mean = folds[method].mean((0, 1))
        alphas = [alpha for alpha in ALPHAS if find_rank(alpha, fold_of.shape[1]) >= 1]
        points = {1 - alpha: measure_sets(choose_sets(ranks[method], mean, alpha), targets) for alpha in alphas}
        return Measures(methods, {"spread": float(spread.mean())}, points)

    def export(
        self,
        members: Float[Tensor, "strategy repeat fold seed sample class"],
        weights: Float[Tensor, "strategy repeat fold seed"],
        residuals: Float[Tensor, " training"],
        fold_of: Int[Tensor, "repeat training"],
        alpha: float,
        n_labels: Int[np.ndarray, ""],
    ) -> tuple[Tensor, ...]:
        folds, mean, std = average_members(members, weights)
        if find_rank(alpha, len(residuals)) < 1:
            return mean, std, mean.argmax(-1)
        n_as_far = (residuals.view(-1, 1, 1) >= 1 - pick_blind(folds, fold_of)).sum(0)
        in_set = ((1 + n_as_far) / (len(residuals) + 1) > alpha + SLACK) | (mean >= mean.amax(-1, keepdim=True))
        return mean, std, mean.argmax(-1), in_set


def rank_classes(
    folds: Folds, residuals: Float[np.ndarray, " training"], fold_of: FoldOf
) -> Float[np.ndarray, "sample class"]:
    """Compute the share of training samples, the new one among them, whose true class is as far out as each class."""
    found = np.empty(folds.shape[2:])
    for sample in range(folds.shape[2]):  # one at a time, as a blind model is kept for each training sample
        deals = [deal[own, sample] for deal, own in zip(folds, fold_of, strict=True)]
        found[sample] = (residuals[:, None] >= (1 - np.mean(deals, 0)).astype(np.float32)).sum(0)
    return (1 + found) / (len(residuals) + 1)


def choose_sets(
    ranks: Float[np.ndarray, "sample class"], mean: Chances, alpha: float
) -> Bool[np.ndarray, "sample class"]:
    return np.asarray((ranks > alpha + SLACK) | (mean >= mean.max(-1, keepdims=True)))


def build_sets(
    folds: Folds, residuals: Float[np.ndarray, " training"], fold_of: FoldOf, alpha: float
) -> Bool[np.ndarray, "sample class"]:
    """Choose the classes of which the true one is among, at a level of 1 - alpha."""
    return choose_sets(rank_classes(folds, residuals, fold_of), folds.mean((0, 1)), alpha)


def measure_sets(sets: Bool[np.ndarray, "sample class"], targets: Chances) -> dict[str, float]:
    """Measure how often sets hold the true class, and how many classes they have."""
    return {"coverage": float((sets * targets).sum(-1).mean()), "set_size": float(sets.sum(-1).mean())}


def measure_chances(chances: Chances, targets: Chances) -> dict[str, float]:
    """Measure log-loss, accuracy, the mean accuracy of the classes, and the area under the ROC curve, one against rest.

    Means over classes are of those that the samples have.
    """
    from sklearn.metrics import roc_auc_score

    true, predicted = targets.argmax(-1), chances.argmax(-1)
    seen = np.unique(true)
    recalls = [float((predicted[true == own] == own).mean()) for own in seen]
    areas = [roc_auc_score(true == own, chances[:, own]) for own in seen if len(seen) > 1]
    return {
        "log_loss": float(score_chances("log_loss", chances, targets).mean()),
        "accuracy": 1 - float(score_chances("error_rate", chances, targets).mean()),
        "balanced_accuracy": float(np.mean(recalls)),
        "auroc": float(np.mean(areas)) if areas else 0.5,  # of one class alone, nothing can be told apart
    }


@dataclass(frozen=True)
class LabelAnswers:
    """Probabilities of several labels; what is kept of a training sample is how far they were from the truth."""

    prediction: type[LabelPrediction] = LabelPrediction
    exported: tuple[str, ...] = ("mean", "std", "predicted")
    leveled: tuple[str, ...] = ()

    def measure_residuals(self, blind: Chances, targets: Chances) -> Chances:
        return np.asarray(np.abs(targets - blind).astype(np.float32))

    def find_residual_shape(self, target_shape: tuple[int, ...]) -> tuple[int, ...]:
        return target_shape

    def measure_spread(self, members: Members, shares: Shares) -> Chances:
        return measure_std(members, shares)

    def answer(self, asked: Collection[str], folds: Folds, members: Members, shares: Shares, *_: Any) -> dict[str, Any]:
        mean = folds.mean((0, 1))
        found: dict[str, Any] = {"mean": mean, "predicted": mean > 0.5}
        return found | ({"std": self.measure_spread(members, shares)} if "std" in asked else {})

    def answer_blind(
        self, blind: Chances, targets: Chances, fold_of: Int[np.ndarray, " sample"], level: float
    ) -> BlindAnswer:
        """Nothing: labels have no sets."""
        return BlindAnswer(level, {}, {})

    def evaluate(
        self,
        folds: Mapping[str, Folds],
        residuals: Mapping[str, Residuals],
        fold_of: FoldOf,
        spread: Chances,
        targets: Chances,
        method: str,
        level: float,
        outputs: Mapping[str, slice],
    ) -> Measures:
        """Measure by label, and average over those that are true of some samples and not of others."""
        methods = {name: measure_labels(own.mean((0, 1)), targets) for name, own in folds.items()}
        return Measures(methods, {"spread": float(spread.mean())}, {})

    def export(
        self,
        members: Float[Tensor, "strategy repeat fold seed sample label"],
        weights: Float[Tensor, "strategy repeat fold seed"],
        residuals: Float[Tensor, "training label"],
        fold_of: Int[Tensor, "repeat training"],
        alpha: float,
        n_labels: Int[np.ndarray, " label"],
    ) -> tuple[Tensor, ...]:
        _, mean, std = average_members(members, weights)
        return mean, std, mean > 0.5


def measure_labels(chances: Chances, targets: Chances) -> dict[str, float]:
    """Measure log-loss, the shares of known labels that are right and of samples with all of them right, and AUROC.

    The last is averaged over labels that are true of some samples and not of others.
    """
    from sklearn.metrics import roc_auc_score

    known = ~np.isnan(targets)
    right = (chances > 0.5) == (targets > 0.5)
    pairs = [(own[there] > 0.5, said[there]) for own, said, there in zip(targets.T, chances.T, known.T, strict=True)]
    areas = [roc_auc_score(true, said) for true, said in pairs if len(np.unique(true)) > 1]
    return {
        "log_loss": float(score_chances("multilabel_log_loss", chances, targets).mean()),
        "accuracy": float(right[known].mean()),
        "whole_accuracy": float((right | ~known).all(-1).mean()),
        "auroc": float(np.mean(areas)) if areas else 0.5,
    }
