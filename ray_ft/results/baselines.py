"""What a strategy has to beat, at no training cost; anything fitted is fitted on the training part alone."""

import numpy as np
from jaxtyping import Float

from ray_ft.data.folds import Splits
from ray_ft.objectives import Objective, Responses, Targets
from ray_ft.results.records import average_measures
from ray_ft.statistics.comparison import Means

OutOfFold = Float[np.ndarray, "repeat sample *response"]


def predict_baselines(
    objective: Objective, zero_shot: Responses, targets: Targets, splits: Splits
) -> dict[str, OutOfFold]:
    """Predict each sample by each baseline, fitted where it was held out."""
    found = {name: np.empty((splits.n_repeats, *zero_shot.shape)) for name in objective.baselines}
    for r, k in np.ndindex(splits.n_repeats, splits.n_folds):
        train, held_out = splits.training_part(r, k), splits.held_out(r, k)  # they need no inner part
        predictions = objective.predict_baselines(zero_shot[train], targets[train], zero_shot[held_out])
        for name, predicted in predictions.items():
            found[name][r, held_out] = predicted
    return found


def score_baselines(objective: Objective, zero_shot: Responses, targets: Targets, splits: Splits) -> dict[str, Means]:
    """Score each baseline on each held-out fold; means by name."""
    predicted = predict_baselines(objective, zero_shot, targets, splits)
    scores: dict[str, Means] = {name: np.empty((splits.n_repeats, splits.n_folds)) for name in predicted}
    for r, k in np.ndindex(splits.n_repeats, splits.n_folds):
        held_out = splits.held_out(r, k)
        for name, own in predicted.items():
            scores[name][r, k] = objective.score(own[r, held_out], targets[held_out]).mean()
    return scores


def measure_baselines(
    objective: Objective, zero_shot: Responses, targets: Targets, splits: Splits
) -> dict[str, dict[str, float]]:
    """Measure what is told beside the score, averaged over repeats."""
    return {
        name: average_measures([objective.measure_beside(own, targets) for own in repeats])
        for name, repeats in predict_baselines(objective, zero_shot, targets, splits).items()
    }
