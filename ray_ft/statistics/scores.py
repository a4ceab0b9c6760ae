"""Scores by epochs and candidates that the scored fold did not choose: cross-fitted, or nested.

Arrays of losses have the axes repeat, seed, sample (each sample is held out once a repeat), those of fold means the
axes repeat, fold, seed; an epoch axis may stand before. Every mean is one over samples: folds count by their sizes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int, Shaped

from ray_ft.data.folds import Splits


@dataclass(frozen=True)
class Spread:
    """Standard deviations of a score's parts: due to folds, and to seeds (None where there is one seed)."""

    folds: float | None
    seeds: float | None


@dataclass(frozen=True)
class Curves:
    """A candidate over its epochs, from epoch 0 on, the pretrained network.

    Attributes:
        held_out: Fold means of the held-out losses, which score.
        guide: What chooses epoch and candidate of each fold, averaged over seeds: the mean over the samples of the
            other folds, or of the inner part under the nested protocol.
        sizes: Held-out samples of each fold.
    """

    held_out: Float[np.ndarray, "*epoch repeat fold seed"]
    guide: Float[np.ndarray, "*epoch repeat fold"]
    sizes: Int[np.ndarray, "repeat fold"]


@dataclass(frozen=True)
class Choice:
    """The candidate, by its index, and the epoch that each fold has chosen; epoch 0 is the pretrained network."""

    candidate: Int[np.ndarray, "repeat fold"]
    epoch: Int[np.ndarray, "repeat fold"]


@dataclass(frozen=True)
class StrategyScore(Choice):
    """A strategy's cross-fitted scores and the choices behind them.

    `best_epoch_mean` is the mean of each curve's own minimum, of the members that were searched, and `optimism` by how
    much it is below their score.
    """

    values: Float[np.ndarray, "repeat fold seed"]
    best_epoch_mean: float
    optimism: float
    sizes: Int[np.ndarray, "repeat fold"]

    @cached_property
    def mean(self) -> float:
        return float(average_samples(self.values.mean(-1), self.sizes))

    @cached_property
    def std(self) -> float:
        """Sample standard deviation over folds x seeds: a spread, not an error of the mean."""
        return float(self.values.std(ddof=1))

    @property
    def spread(self) -> Spread:
        return divide_spread(self.values)


Scores = Mapping[str, StrategyScore | None]  # by strategy; None where it has a hole


def divide_spread(values: Float[np.ndarray, "repeat fold seed"]) -> Spread:
    """Divide the variance of the scores into the parts of folds and of seeds: a random effect of the fold.

    References:
        One-way analysis of variance with random effects: Searle, Casella & McCulloch, "Variance Components" (1992),
        chapter 3; a negative estimate counts as 0. Repeats count as further folds.
    """
    by_fold = values.reshape(-1, values.shape[-1])
    n_seeds = by_fold.shape[1]
    if n_seeds == 1:
        return Spread(None, None)
    within = float(by_fold.var(axis=1, ddof=1).mean())
    between = float(by_fold.mean(1).var(ddof=1)) - within / n_seeds
    return Spread(max(0.0, between) ** 0.5, within**0.5)


def average_folds(
    losses: Float[np.ndarray, "*epoch repeat seed sample"], splits: Splits
) -> Float[np.ndarray, "*epoch repeat fold seed"]:
    """Average per-sample losses over each held-out fold."""
    means = [
        [losses[..., r, :, :][..., splits.held_out(r, k)].mean(-1) for k in range(splits.n_folds)]
        for r in range(splits.n_repeats)
    ]
    return np.moveaxis(np.array(means), (0, 1), (-3, -2))


def average_samples(
    means: Float[np.ndarray, "*epoch repeat fold"], sizes: Shaped[np.ndarray, "repeat fold"]
) -> Float[np.ndarray, "*epoch"]:
    """Average fold means over the samples that the folds hold out."""
    return np.asarray((means * (sizes / sizes.sum())).sum((-2, -1)))


def average_other_folds(
    means: Float[np.ndarray, "*epoch repeat fold seed"], sizes: Int[np.ndarray, "repeat fold"]
) -> Float[np.ndarray, "*epoch repeat fold"]:
    """Average, for each fold, over the seeds and the samples of the *other* folds of its repeat."""
    by_fold = means.mean(-1)
    n_folds = by_fold.shape[-1]
    weights = sizes[:, None] * ~np.eye(n_folds, dtype=bool)  # of the last axis, for each fold of the one before
    weights = weights / weights.sum(-1, keepdims=True)
    return np.asarray(np.einsum("...rj,rkj->...rk", by_fold, weights))


def build_curves(
    losses: Float[np.ndarray, "*epoch repeat seed sample"],
    inner: Float[np.ndarray, "*epoch repeat fold seed"] | None,
    splits: Splits,
) -> Curves:
    """Turn a candidate's held-out losses, and under the nested protocol those of the inner parts, into curves."""
    held_out = average_folds(losses, splits)
    guide = average_other_folds(held_out, splits.sizes) if inner is None else inner.mean(-1)
    return Curves(held_out, guide, splits.sizes)


def choose(curves: Mapping[int, Curves]) -> Choice:
    """Choose the candidate, by its index, and the stopping epoch of each fold by its guide."""
    indices, guides = list(curves), [curve.guide for curve in curves.values()]
    chosen = np.stack([guide.min(0) for guide in guides]).argmin(0)  # of (candidate, repeat, fold)
    epochs = np.stack([guide.argmin(0) for guide in guides])  # the first of equals, as the snapshots are
    return Choice(np.array(indices)[chosen], np.take_along_axis(epochs, chosen[None], 0)[0])


def score_choice(
    choice: Choice, curves: Mapping[int, Curves], later: Float[np.ndarray, "repeat fold later_seed"] | None = None
) -> StrategyScore:
    """Read each fold's score where it has chosen; `later` has those of seeds that trained only then.

    References:
        Cross-fitting as in Chernozhukov et al., Econom. J. 21, C1 (2018), here for early stopping and selection. We
        depart from it in that the members of the other folds did see this fold in training, though their
        held-out losses did not; the nested protocol avoids that.
    """
    candidate, epoch, sizes = choice.candidate, choice.epoch, next(iter(curves.values())).sizes
    scores = [curves[int(candidate[at])].held_out[epoch[at], *at] for at in np.ndindex(candidate.shape)]
    values = np.reshape(scores, (*candidate.shape, -1))
    best_epoch_mean = min(float(average_samples(curve.held_out.min(0).mean(-1), sizes)) for curve in curves.values())
    optimism = float(average_samples(values.mean(-1), sizes)) - best_epoch_mean
    if later is not None:
        values = np.concatenate([values, later], axis=-1)
    return StrategyScore(candidate, epoch, values, best_epoch_mean, optimism, sizes)


def pick_lowest(scores: Scores) -> str | None:
    """Name the strategy of the lowest mean score among those without a hole."""
    complete = [(score.mean, name) for name, score in scores.items() if score is not None]
    return min(complete)[1] if complete else None
