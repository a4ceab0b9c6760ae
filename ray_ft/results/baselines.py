"""What a strategy has to beat, at no training cost; anything fitted is fitted on the training part alone."""

import numpy as np

from ray_ft.data.folds import Splits
from ray_ft.objectives import Objective, Responses, Targets
from ray_ft.statistics.comparison import Means


def score_baselines(objective: Objective, zero_shot: Responses, targets: Targets, splits: Splits) -> dict[str, Means]:
    """Score each baseline on each held-out fold; means by name."""
    scores: dict[str, Means] = {name: np.empty((splits.n_repeats, splits.n_folds)) for name in objective.baselines}
    for r, k in np.ndindex(splits.n_repeats, splits.n_folds):
        train, held_out = splits.training_part(r, k), splits.held_out(r, k)  # they need no inner part
        predictions = objective.predict_baselines(zero_shot[train], targets[train], zero_shot[held_out])
        for name, predicted in predictions.items():
            scores[name][r, k] = objective.score(predicted, targets[held_out]).mean()
    return scores
