"""Whether two strategies differ: tests for scores whose training parts overlap, and what they say in words.

Scores are paired fold means, seeds averaged first. Folds of one deal share most of their training samples, so their
scores are no independent draws; both tests widen the variance of the mean difference by n_test / n_train for that.

References:
    Nadeau & Bengio, "Inference for the Generalization Error", Machine Learning 52 (2003): the corrected resampled
    t-test. Benavoli et al., "Time for a Change", JMLR 18 (2017): the Bayesian correlated t-test; its correlation is
    n_test / n, as there. Holm, Scand. J. Statist. 6 (1979). We depart from none of them.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

__all__ = ["Comparison", "adjust_holm", "compare_all", "compare_pair", "count_repeats"]

LEVEL = 0.05  # of the tests; intervals are 1 - LEVEL
POWER = 0.8
MOST_REPEATS = 100


@dataclass(frozen=True)
class Comparison:
    """Two strategies, or a strategy and a baseline; lower scores are better.

    Attributes:
        first: Name of the one.
        second: Name of the other.
        difference: Mean score of the first minus that of the second.
        interval: 95 % confidence interval of the difference.
        p_value: Two-sided, corrected resampled t-test, by itself.
        p_adjusted: The same after Holm's adjustment for all comparisons of the run.
        rope: Half the width of the region of practical equivalence.
        probabilities: Posterior probabilities that the first is better, that both are equal within the rope, that
            the second is better.
        n_repeats: Re-deals of the folds that would settle it with a power of 80 %, if the difference is as seen;
            None where no number up to 100 does, or it is settled.
    """

    first: str
    second: str
    difference: float
    interval: tuple[float, float]
    p_value: float
    p_adjusted: float
    rope: float
    probabilities: tuple[float, float, float]
    n_repeats: int | None

    @property
    def verdict(self) -> str:
        """One of `better`, `worse` (of the first), `practically equal`, `no evidence of a difference`."""
        if self.p_adjusted < LEVEL and self.probabilities[1] < 1 - LEVEL:
            return "better" if self.difference < 0 else "worse"
        return "practically equal" if self.probabilities[1] >= 1 - LEVEL else "no evidence of a difference"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict}


def compare_all(
    scores: Mapping[str, Float[np.ndarray, "repeat fold"]], rope_share: float = 0.01
) -> tuple[Comparison, ...]:
    """Compare each pair.

    Args:
        scores: Fold means by name, on the same folds.
        rope_share: Half-width of the region of practical equivalence, as a share of the better mean.
    """
    pairs = list(combinations(scores, 2))
    alone = [compare_pair(a, b, scores[a], scores[b], rope_share) for a, b in pairs]
    adjusted = adjust_holm([comparison.p_value for comparison in alone])
    return tuple(
        Comparison(**(vars(comparison) | {"p_adjusted": p})) for comparison, p in zip(alone, adjusted, strict=True)
    )


def compare_pair(
    first: str,
    second: str,
    a: Float[np.ndarray, "repeat fold"],
    b: Float[np.ndarray, "repeat fold"],
    rope_share: float = 0.01,
) -> Comparison:
    """Compare two by themselves, as if no others were tested."""
    from scipy import stats  # half a second, which nothing else of a run needs

    differences = np.asarray(a - b, np.float64)
    n_folds = differences.shape[1]
    n, ratio = differences.size, 1 / (n_folds - 1)
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    rope = rope_share * min(float(a.mean()), float(b.mean()))
    error = deviation * math.sqrt(1 / n + ratio)
    if error == 0:
        certain = (float(mean < -rope), float(abs(mean) <= rope), float(mean > rope))
        return Comparison(first, second, mean, (mean, mean), float(mean == 0), float(mean == 0), rope, certain, None)
    t = stats.t(n - 1)
    p_value = float(2 * t.sf(abs(mean) / error))
    half = float(t.ppf(1 - LEVEL / 2)) * error
    below, above = float(t.cdf((-rope - mean) / error)), float(t.sf((rope - mean) / error))
    n_repeats = None if p_value < LEVEL else count_repeats(mean, deviation, n_folds)
    probabilities = (below, max(0.0, 1 - below - above), above)
    interval = (mean - half, mean + half)
    return Comparison(first, second, mean, interval, p_value, p_value, rope, probabilities, n_repeats)


def count_repeats(difference: float, deviation: float, n_folds: int) -> int | None:
    """Find how many re-deals of the folds give the corrected test a power of 80 % for this difference.

    As each re-deal uses the same samples, the error has a floor: more repeats cannot settle every difference.
    """
    from scipy import stats

    for n_repeats in range(1, MOST_REPEATS + 1):
        n = n_repeats * n_folds
        shift = abs(difference) / (deviation * math.sqrt(1 / n + 1 / (n_folds - 1)))
        critical = stats.t.ppf(1 - LEVEL / 2, n - 1)
        power = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
        if power >= POWER:
            return n_repeats
    return None


def adjust_holm(p_values: list[float]) -> list[float]:
    """Adjust p-values for the number of tests, step by step from the smallest."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
