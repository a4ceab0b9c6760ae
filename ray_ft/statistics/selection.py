"""What the winner's score is worth after it was picked for being the lowest.

References:
    Tsamardinos, Greasidou & Borboudakis, "Bootstrapping the out-of-sample predictions for efficient and accurate
    cross-validation", Machine Learning 107 (2018), algorithm 2. We depart from it in that whole groups of samples are
    drawn, that losses are averaged over seeds and repeats first, that the mean is over all samples left out by any
    bootstrap sample, so that large groups count by their samples, and that the configurations among which it picks are
    the strategies: their epochs and candidates were not chosen on the samples that score them.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from pydantic import BaseModel

N_RESAMPLES = 1000
ROUNDING = 1e-12  # relative differences below this are none
Losses = Float[np.ndarray, " sample"]


class Selection(BaseModel, frozen=True):
    """The winner's bootstrap-bias-corrected score."""

    score: float  # mean loss, on samples left out of a bootstrap sample, of the strategy that is best in it
    interval: tuple[float, float]  # middle 95 % of those losses


def correct_selection(losses: Mapping[str, Losses], groups: Int[np.ndarray, " sample"], seed: int) -> Selection:
    """Repeat the choice of the winner on bootstrap samples of groups and score it on what each leaves out.

    Strategies that tie are scored together. How often one wins is not said, as it says nothing of other training sets.
    """
    table, rng = np.stack(list(losses.values())), np.random.default_rng(seed)
    labels, index = np.unique(groups, return_inverse=True)
    left_out, n_left_out = list[float](), list[int]()
    while len(left_out) < N_RESAMPLES:
        weights = np.bincount(rng.integers(len(labels), size=len(labels)), minlength=len(labels))[index]
        if weights.all():
            continue  # of very few groups, all may be drawn
        sums = table @ weights
        best = sums <= sums.min() * (1 + ROUNDING)
        left_out.append(float(table[best][:, weights == 0].mean()))
        n_left_out.append(int((weights == 0).sum()))
    low, high = np.quantile(left_out, (0.025, 0.975))
    return Selection(score=float(np.average(left_out, weights=n_left_out)), interval=(float(low), float(high)))
