"""What the winner's score is worth after it was picked for being the lowest.

References:
    Tsamardinos, Greasidou & Borboudakis, "Bootstrapping the out-of-sample predictions for efficient and accurate
    cross-validation", Machine Learning 107 (2018), algorithm 2. We depart from it in that whole groups of samples are
    drawn, that losses are averaged over seeds and repeats first, and that the configurations among which it picks are
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
    shares: dict[str, float]  # how often each strategy is the best


def correct_selection(losses: Mapping[str, Losses], groups: Int[np.ndarray, " sample"], seed: int) -> Selection:
    """Repeat the choice of the winner on bootstrap samples of groups and score it on what each leaves out.

    Strategies that tie share a win.
    """
    names, rng = list(losses), np.random.default_rng(seed)
    table = np.stack([losses[name] for name in names])
    labels, index = np.unique(groups, return_inverse=True)
    wins, left_out = np.zeros(len(names)), list[float]()
    while len(left_out) < N_RESAMPLES:
        weights = np.bincount(rng.integers(len(labels), size=len(labels)), minlength=len(labels))[index]
        if weights.all():
            continue  # of very few groups, all may be drawn
        sums = table @ weights
        best = sums <= sums.min() * (1 + ROUNDING)
        wins[best] += 1 / best.sum()
        left_out.append(float(table[best][:, weights == 0].mean()))
    low, high = np.quantile(left_out, (0.025, 0.975))
    shares = {name: float(share) for name, share in zip(names, wins / N_RESAMPLES, strict=True)}
    return Selection(score=float(np.mean(left_out)), interval=(float(low), float(high)), shares=shares)
