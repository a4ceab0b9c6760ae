"""How members are weighed: uniform, greedy or stacked, by weights that the scored fold did not choose.

A column is what the members of one strategy and seed say of every sample, each by the member that never saw it. For
each fold the columns' weights are chosen on the samples of the other folds; the fold's members, so weighed, are one
fold model, and the ensemble is the mean of the fold models. So no fold chose the weights that it is scored by; it has a
part in them, as members of the other folds trained on it.
"""

import numpy as np
from jaxtyping import Float

from ray_ft.data.folds import Splits
from ray_ft.objectives import ByColumn, Columns, Objective, Targets
from ray_ft.statistics.comparison import Means

METHODS = ("uniform", "greedy", "stacked", "single")
N_PICKS = 50  # of the greedy method; a weight is a multiple of 1 / N_PICKS

OutOfFold = Float[np.ndarray, "column repeat sample *response"]
Weights = Float[np.ndarray, "repeat fold column"]
Blind = Float[np.ndarray, "repeat sample *response"]  # what fold models say of the samples that they never saw


def choose_weights(method: str, columns: OutOfFold, targets: Targets, splits: Splits, objective: Objective) -> Weights:
    """Choose each fold's weights on the other folds; they are not negative and sum to 1.

    Methods are `uniform`; `greedy`, picks with replacement; `stacked`, as the objective stacks, scaled to a sum of 1;
    `single`, the best column alone.

    References:
        Caruana, Niculescu-Mizil, Crew & Ksikes, "Ensemble selection from libraries of models", ICML 2004. Breiman,
        "Stacked regressions", Machine Learning 24 (1996). We depart from both in that no weights are chosen on the fold
        that they are scored on.
    """
    weights = np.empty((splits.n_repeats, splits.n_folds, len(columns)))
    for r, k in np.ndindex(weights.shape[:2]):
        others = np.setdiff1d(np.arange(splits.n_samples), splits.held_out(r, k))
        weights[r, k] = weigh(method, columns[:, r, others], targets[others], objective)
    return weights


def weigh(method: str, columns: Columns, targets: Targets, objective: Objective) -> ByColumn:
    match method:
        case "greedy":
            return pick_greedily(columns, targets, objective, N_PICKS)
        case "single":
            return pick_greedily(columns, targets, objective, 1)
        case "stacked":
            weights = objective.stack(columns, targets)
            if weights.any():
                return np.asarray(weights / weights.sum())
    return np.full(len(columns), 1 / len(columns))


def pick_greedily(columns: Columns, targets: Targets, objective: Objective, n_picks: int) -> ByColumn:
    """Add, again and again, the column that most lowers the loss of the mean; the first of equals."""
    counts, total = np.zeros(len(columns)), np.zeros(columns.shape[1:])
    wanted = np.concatenate([targets] * len(columns))
    for n in range(1, n_picks + 1):
        tried = ((total + columns) / n).reshape(-1, *columns.shape[2:])
        losses = objective.score(tried, wanted).reshape(len(columns), -1).mean(1)
        best = int(np.argmin(losses))
        counts[best] += 1
        total += columns[best]
    return np.asarray(counts / n_picks)


def blend(columns: OutOfFold, weights: Weights, splits: Splits) -> Blind:
    """What each repeat's fold models say of the samples that they never saw."""
    blended = np.empty(columns.shape[1:])
    for r, k in np.ndindex(weights.shape[:2]):
        held_out = splits.held_out(r, k)
        blended[r, held_out] = np.tensordot(weights[r, k], columns[:, r, held_out], 1)
    return blended


def score_folds(blended: Blind, targets: Targets, splits: Splits, objective: Objective) -> Means:
    """Mean score of each fold model on its held-out fold, for comparisons between methods."""
    scores = np.empty((splits.n_repeats, splits.n_folds))
    for r, k in np.ndindex(scores.shape):
        held_out = splits.held_out(r, k)
        scores[r, k] = objective.score(blended[r, held_out], targets[held_out]).mean()
    return scores
