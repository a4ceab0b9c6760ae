"""How members are weighed: uniform, greedy or stacked, by weights that the scored fold did not choose.

A column is what the members of one strategy and seed say of every sample, each by the member that never saw it. For
each fold the columns' weights are chosen on the samples of the other folds; the fold's members, so weighed, are one
fold model, and the ensemble is the mean of the fold models. So a fold's score depends on nothing that it chose.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from ray_ft.data.folds import Splits
from ray_ft.objectives.metrics import score_predictions

__all__ = ["METHODS", "blend", "choose_weights", "score_folds"]

METHODS = ("uniform", "greedy", "stacked", "single")
N_PICKS = 50  # of the greedy method; a weight is a multiple of 1 / N_PICKS

Columns = Float[np.ndarray, "column sample *target"]
Weigher = Callable[[str, Columns, Float[np.ndarray, "sample *target"]], Float[np.ndarray, " column"]]


def choose_weights(
    method: str,
    columns: Float[np.ndarray, "column repeat sample *target"],
    targets: Float[np.ndarray, "sample *target"],
    splits: Splits,
    metric: str,
) -> Float[np.ndarray, "repeat fold column"]:
    """Choose each fold's weights on the other folds; they are not negative and sum to 1.

    Args:
        method: `uniform`; `greedy`, picks with replacement; `stacked`, non-negative least squares whatever the metric,
            scaled to a sum of 1; `single`, the best column alone.
        columns: Out-of-fold predictions.
        targets: Truth.
        splits: The folds.
        metric: Key of `metrics.METRICS`.

    References:
        Caruana, Niculescu-Mizil, Crew & Ksikes, "Ensemble selection from libraries of models", ICML 2004. Breiman,
        "Stacked regressions", Machine Learning 24 (1996). We depart from both in that no weights are chosen on the fold
        that they are scored on.
    """
    weights = np.empty((splits.n_repeats, splits.n_folds, len(columns)))
    for r, k in np.ndindex(weights.shape[:2]):
        others = np.setdiff1d(np.arange(splits.n_samples), splits.held_out(r, k))
        weights[r, k] = WEIGHERS[method](metric, columns[:, r, others], targets[others])
    return weights


def weigh_uniformly(
    metric: str, columns: Columns, targets: Float[np.ndarray, "sample *target"]
) -> Float[np.ndarray, " column"]:
    return np.full(len(columns), 1 / len(columns))


def pick_greedily(
    metric: str, columns: Columns, targets: Float[np.ndarray, "sample *target"], n_picks: int = N_PICKS
) -> Float[np.ndarray, " column"]:
    """Add, again and again, the column that most lowers the loss of the mean; the first of equals."""
    counts, total = np.zeros(len(columns)), np.zeros(targets.shape)
    for n in range(1, n_picks + 1):
        losses = [score_predictions(metric, (total + column) / n, targets).mean() for column in columns]
        best = int(np.argmin(losses))
        counts[best] += 1
        total += columns[best]
    weights: np.ndarray = counts / n_picks
    return weights


def pick_single(
    metric: str, columns: Columns, targets: Float[np.ndarray, "sample *target"]
) -> Float[np.ndarray, " column"]:
    return pick_greedily(metric, columns, targets, 1)


def stack(metric: str, columns: Columns, targets: Float[np.ndarray, "sample *target"]) -> Float[np.ndarray, " column"]:
    from scipy.optimize import nnls

    weights, _ = nnls(columns.reshape(len(columns), -1).T.astype(np.float64), targets.ravel().astype(np.float64))
    total = weights.sum()
    return weights / total if total > 0 else weigh_uniformly(metric, columns, targets)


WEIGHERS: dict[str, Weigher] = {
    "uniform": weigh_uniformly,
    "greedy": pick_greedily,
    "stacked": stack,
    "single": pick_single,
}


def blend(
    columns: Float[np.ndarray, "column repeat sample *target"],
    weights: Float[np.ndarray, "repeat fold column"],
    splits: Splits,
) -> Float[np.ndarray, "repeat sample *target"]:
    """What each repeat's fold models say of the samples that they never saw."""
    blended = np.empty(columns.shape[1:])
    for r, k in np.ndindex(weights.shape[:2]):
        held_out = splits.held_out(r, k)
        blended[r, held_out] = np.tensordot(weights[r, k], columns[:, r, held_out], 1)
    return blended


def score_folds(
    blended: Float[np.ndarray, "repeat sample *target"],
    targets: Float[np.ndarray, "sample *target"],
    splits: Splits,
    metric: str,
) -> Float[np.ndarray, "repeat fold"]:
    """Mean loss of each fold model on its held-out fold, for comparisons between methods."""
    scores = np.empty((splits.n_repeats, splits.n_folds))
    for r, k in np.ndindex(scores.shape):
        held_out = splits.held_out(r, k)
        scores[r, k] = score_predictions(metric, blended[r, held_out], targets[held_out]).mean()
    return scores
