"""How unlike the training samples an input is: its distance, in features, from what they span.

The score is the variance that Bayesian linear regression on the features would have left there: close to zero along
directions in which the training samples vary a lot, all of the squared distance where they do not vary at all. Each
training sample is scored by the others, in closed form, and a new one is ranked among those scores.

References:
    Tipping & Bishop, "Probabilistic Principal Component Analysis", J. R. Stat. Soc. B 61 (1999): the score is the
    Mahalanobis distance of their model, times its noise variance. We depart from it in that all components are kept
    and the noise is a fixed share, as the noise fitted to the training samples is too low for others where features
    outnumber them. Rasmussen & Williams, "Gaussian Processes for Machine Learning" (2006), 5.4.2, for leaving a
    sample out. Vovk et al., "Algorithmic Learning in a Random World" (2005), for the p-value. Theirs lets the new input
    score the training samples too and is exact; without, 0.05 is reached in 0.03 to 0.05 of simulations.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ray_ft.errors import DataError

NOISE_SHARE = 0.03  # of the mean squared distance from the mean; from 0.003 to 0.1 it hardly matters


@dataclass(frozen=True)
class Density:
    """Where in the space of features the training samples are."""

    mean: Float[np.ndarray, " feature"]  # of the training samples
    basis: Float[np.ndarray, "direction feature"]  # what they span, each direction shrunk by how little they vary
    reference: Float[np.ndarray, " training"]  # score of each training sample, left out with its group

    def score(self, features: Float[np.ndarray, "sample feature"]) -> Float[np.ndarray, " sample"]:
        """Measure how unlike the training samples each is, in squared units of the features; it works in float64."""
        centred = features - self.mean.astype(np.float64)
        return np.asarray((centred**2).sum(1) - ((centred @ self.basis.T) ** 2).sum(1))

    def p_value(self, scores: Float[np.ndarray, " sample"]) -> Float[np.ndarray, " sample"]:
        """Compute how often, at most, a sample of the same kind as the training ones would score as high.

        It is at least 1 / (n + 1) for n training samples, so fewer than 19 never give 0.05.
        """
        n = len(self.reference)
        n_below = np.searchsorted(np.sort(self.reference), scores)
        return (1 + n - n_below) / (n + 1)


def fit_density(features: Float[np.ndarray, "training feature"], groups: Int[np.ndarray, " training"]) -> Density:
    """Fit to the features of the training samples at the frozen boundary; those of a group are left out together.

    Raises:
        DataError: The samples make a single group.
    """
    n, mean = len(features), features.mean(0, dtype=np.float64)
    if len(np.unique(groups)) < 2:
        raise DataError(f"the samples must make at least two groups, got {n} samples in one; check data.groups")
    centred = features - mean
    gram = centred @ centred.T
    noise = NOISE_SHARE * float(np.trace(gram)) / n
    if noise == 0:  # all alike: whatever differs from them is new
        return Density(mean.astype(np.float32), np.zeros((1, features.shape[1]), np.float32), np.zeros(n))
    shrunk = gram + noise * np.eye(n)
    basis = np.linalg.solve(np.linalg.cholesky(shrunk), centred)
    precision = np.linalg.inv(shrunk) - 1 / (n * noise)  # of a sample given the others, the mean unknown to them
    reference = np.empty(n)
    for group in np.unique(groups):
        own = np.flatnonzero(groups == group)
        reference[own] = np.diag(np.linalg.inv(precision[np.ix_(own, own)])) - noise * (1 + 1 / n)
    return Density(mean.astype(np.float32), basis.astype(np.float32), reference)
