"""Cross-fitted scores: no fold chooses the epoch or the candidate by which it is scored.

Arrays of losses have the axes repeat, seed, sample (each sample is held out once a repeat), those of fold means the
axes repeat, fold, seed; an epoch axis may stand before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from ray_ft.folds import Splits

__all__ = ["StrategyScore", "average_folds", "average_other_folds", "crossfit", "pick_winner"]


@dataclass(frozen=True)
class StrategyScore:
    """A strategy's cross-fitted scores and the choices behind them; epochs count from 1."""

    candidate: Int[np.ndarray, "repeat fold"]
    epoch: Int[np.ndarray, "repeat fold"]
    values: Float[np.ndarray, "repeat fold seed"]
    best_epoch_mean: float

    @cached_property
    def mean(self) -> float:
        return float(self.values.mean())

    @cached_property
    def std(self) -> float:
        """Sample standard deviation over folds x seeds."""
        return float(self.values.std(ddof=1))


def average_folds(
    losses: Float[np.ndarray, "*epoch repeat seed sample"], splits: Splits
) -> Float[np.ndarray, "*epoch repeat fold seed"]:
    """Average per-sample losses over each held-out fold."""
    means = [
        [losses[..., r, :, :][..., splits.held_out(r, k)].mean(-1) for k in range(splits.n_folds)]
        for r in range(splits.n_repeats)
    ]
    return np.moveaxis(np.array(means), (0, 1), (-3, -2))


def average_other_folds(means: Float[np.ndarray, "*epoch repeat fold seed"]) -> Float[np.ndarray, "*epoch repeat fold"]:
    """Average, for each fold, over the seeds and the *other* folds of its repeat."""
    by_fold = means.mean(-1)
    n_folds = by_fold.shape[-1]
    others = ~np.eye(n_folds, dtype=bool)
    return np.stack([by_fold[..., others[k]].mean(-1) for k in range(n_folds)], axis=-1)


def crossfit(curves: Mapping[int, Float[np.ndarray, "epoch repeat fold seed"]]) -> StrategyScore:
    """Choose candidate and stopping epoch of each fold on the other folds, then read the fold's score there.

    Args:
        curves: Fold means of each completed candidate, by its index; lengths may differ.

    References:
        Cross-fitting as in Chernozhukov et al., Econom. J. 21, C1 (2018), here for early stopping and selection. We
        depart from it in that the members of the other folds did see this fold in training, though their
        held-out losses did not; `nested` protocols avoid even that.
    """
    indices = list(curves)
    others = [average_other_folds(curves[index]) for index in indices]
    lowest = np.stack([curve.min(0) for curve in others])  # (candidate, repeat, fold)
    chosen = lowest.argmin(0)
    epochs = np.stack([curve.argmin(0) for curve in others])  # the first of equals, as the snapshots are
    epoch = np.take_along_axis(epochs, chosen[None], 0)[0]
    n_repeats, n_folds = chosen.shape
    values = np.stack(
        [np.stack([curves[indices[chosen[r, k]]][epoch[r, k], r, k] for k in range(n_folds)]) for r in range(n_repeats)]
    )
    best_epoch_mean = min(float(curve.min(0).mean()) for curve in curves.values())
    return StrategyScore(np.array(indices)[chosen], epoch + 1, values, best_epoch_mean)


def pick_winner(scores: Mapping[str, StrategyScore | None]) -> str | None:
    """Name the strategy of the lowest mean score among those without a hole."""
    complete: Sequence[tuple[float, str]] = [(s.mean, name) for name, s in scores.items() if s is not None]
    return min(complete)[1] if complete else None
