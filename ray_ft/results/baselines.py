"""What a strategy has to beat, at no training cost; anything fitted is fitted on the training part alone."""

import numpy as np
from jaxtyping import Float, Shaped

from ray_ft.data.folds import Splits
from ray_ft.objectives import Objective


def score_baselines(
    objective: Objective,
    zero_shot: Float[np.ndarray, "sample *response"],
    targets: Shaped[np.ndarray, "sample *target"],
    splits: Splits,
) -> dict[str, Float[np.ndarray, "repeat fold"]]:
    """Score each baseline on each held-out fold.

    Args:
        objective: It knows them.
        zero_shot: What the pretrained network says.
        targets: Truth.
        splits: The run's folds.

    Returns:
        Mean scores by name.
    """
    scores: dict[str, Float[np.ndarray, "repeat fold"]] = {
        name: np.empty((splits.n_repeats, splits.n_folds)) for name in objective.baselines
    }
    for r, k in np.ndindex(splits.n_repeats, splits.n_folds):
        train, held_out = splits.training_part(r, k), splits.held_out(r, k)  # they need no inner part
        predictions = objective.predict_baselines(zero_shot[train], targets[train], zero_shot[held_out])
        for name, predicted in predictions.items():
            scores[name][r, k] = objective.score(predicted, targets[held_out]).mean()
    return scores
