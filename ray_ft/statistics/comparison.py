"""Whether two strategies differ: tests for scores whose training parts overlap, and what they say in words.

Scores are paired fold means, seeds averaged first. Folds of one deal share most of their training samples, so their
scores are no independent draws; both tests widen the variance of the mean difference by n_test / n_train for that.

References:
    Nadeau & Bengio, "Inference for the Generalization Error", Machine Learning 52 (2003): the corrected resampled
    t-test. Benavoli et al., "Time for a Change", JMLR 18 (2017): the Bayesian correlated t-test; its correlation is
    n_test / n, as there. Holm, Scand. J. Statist. 6 (1979). We depart from none of them.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import BaseModel, computed_field

LEVEL = 0.05  # of the tests; intervals are 1 - LEVEL
POWER = 0.8
MOST_REPEATS = 20  # where the error has come within 2 % of its floor
Means = Float[np.ndarray, "repeat fold"]  # of the scores of each fold

Verdict = Literal["better", "worse", "practically equal", "no evidence of a difference", "not settled"]


class Comparison(BaseModel, frozen=True):
    """Two strategies, or a strategy and a baseline; lower scores are better.

    Attributes:
        difference: Mean score of the first minus that of the second.
        interval: 95 % confidence interval of the difference, of this pair by itself.
        p_value: Two-sided, corrected resampled t-test, by itself.
        p_adjusted: The same after Holm's adjustment for all comparisons made together.
        rope: Half the width of the region of practical equivalence.
        probabilities: Posterior probabilities that the first is better, that both are equal within the rope, that
            the second is better.
        n_repeats: Re-deals of the folds that would settle it with a power of 80 %, after Holm's adjustment, if the
            difference is as seen; None where no number up to 20 does, or it is settled.
        unsettled: Those of the two that have not had their best chance, so of which no loss can be told.
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
    unsettled: tuple[str, ...] = ()

    @computed_field  # type: ignore[prop-decorator]  # pydantic's way
    @property
    def verdict(self) -> Verdict:
        """What the first is, compared with the second; a loser must have had its best chance."""
        if self.p_adjusted < LEVEL and self.probabilities[1] < 1 - LEVEL:
            loser = self.second if self.difference < 0 else self.first
            return "not settled" if loser in self.unsettled else "better" if self.difference < 0 else "worse"
        if self.probabilities[1] >= 1 - LEVEL:
            return "not settled" if self.unsettled else "practically equal"
        return "no evidence of a difference"

    def seen_from(self, name: str) -> "Comparison":
        """The same with this name as the first.

        Raises:
            KeyError: It is none of the two.
        """
        if name not in (self.first, self.second):
            raise KeyError(name)
        if name == self.first:
            return self
        low, high = self.interval
        turned = {"first": self.second, "second": self.first, "difference": -self.difference}
        return self.model_copy(update=turned | {"interval": (-high, -low), "probabilities": self.probabilities[::-1]})


Comparisons = tuple[Comparison, ...]


def compare_all(
    scores: Mapping[str, Means], rope_share: float, test_share: float, pairs: Sequence[tuple[str, str]] | None = None
) -> Comparisons:
    """Compare several pairs, all where left out, by their means on the same folds; p-values adjusted for their number.

    Args:
        scores: By name.
        rope_share: Half-width of the region of practical equivalence, as a share of the better mean.
        test_share: n_test / n_train.
        pairs: Of names.
    """
    pairs = list(combinations(scores, 2)) if pairs is None else pairs
    alone = [compare_pair(a, b, scores[a], scores[b], rope_share, test_share) for a, b in pairs]
    p_values = [comparison.p_value for comparison in alone]
    found = []
    for pair, p, level in zip(alone, adjust_holm(p_values), LEVEL / count_left(p_values), strict=True):
        n_repeats = plan_repeats(scores[pair.first] - scores[pair.second], test_share, p, level)
        found.append(pair.model_copy(update={"p_adjusted": p, "n_repeats": n_repeats}))
    return tuple(found)


def mark_unsettled(comparisons: Comparisons, unsettled: Collection[str]) -> Comparisons:
    """Say of each pair which of the two have not had their best chance."""
    return tuple(
        pair.model_copy(update={"unsettled": tuple(name for name in (pair.first, pair.second) if name in unsettled)})
        for pair in comparisons
    )


def compare_pair(first: str, second: str, a: Means, b: Means, rope_share: float, test_share: float) -> Comparison:
    """Compare two by themselves, as if no others were tested."""
    from scipy import stats  # half a second, which nothing else of a run needs

    differences = np.asarray(a - b, np.float64)
    n = differences.size
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    rope = rope_share * min(float(a.mean()), float(b.mean()))
    error = deviation * math.sqrt(1 / n + test_share)
    if error == 0:  # the same difference on every fold
        interval, p_value = (mean, mean), float(mean == 0)
        probabilities = (float(mean < -rope), float(abs(mean) <= rope), float(mean > rope))
    else:
        t = stats.t(n - 1)
        p_value, half = float(2 * t.sf(abs(mean) / error)), float(t.ppf(1 - LEVEL / 2)) * error
        interval = (mean - half, mean + half)
        below, above = float(t.cdf((-rope - mean) / error)), float(t.sf((rope - mean) / error))
        probabilities = (below, max(0.0, 1 - below - above), above)
    return Comparison(
        first=first, second=second, difference=mean, interval=interval, p_value=p_value, p_adjusted=p_value,
        rope=rope, probabilities=probabilities, n_repeats=plan_repeats(differences, test_share, p_value, LEVEL),
    )  # fmt: skip


def plan_repeats(differences: Means, test_share: float, p_value: float, level: float) -> int | None:
    """Find the re-deals, more than there are, that would likely settle a pair; None if none do, or it is settled.

    The p-value is adjusted for all comparisons made together, the level that of this pair's own test among them.
    """
    n_repeats, n_folds = differences.shape
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    if p_value < LEVEL or deviation == 0:
        return None
    needed = count_repeats(mean, deviation, n_folds, test_share, level)
    return None if needed is None else max(needed, n_repeats + 1)


def count_repeats(
    difference: float, deviation: float, n_folds: int, test_share: float, level: float = LEVEL
) -> int | None:
    """Find how many re-deals of the folds give the corrected test a power of 80 % for this difference.

    As each re-deal uses the same samples, the error has a floor: more repeats cannot settle every difference.
    """
    from scipy import stats

    for n_repeats in range(1, MOST_REPEATS + 1):
        n = n_repeats * n_folds
        shift = abs(difference) / (deviation * math.sqrt(1 / n + test_share))
        critical = stats.t.ppf(1 - level / 2, n - 1)
        power = stats.nct.sf(critical, n - 1, shift)  # on the other side next to none is left, where scipy has NaN
        if power >= POWER:
            return n_repeats
    return None


def adjust_holm(p_values: list[float]) -> list[float]:
    """Adjust p-values for the number of tests, step by step from the smallest."""
    adjusted, highest, n_left = [0.0] * len(p_values), 0.0, count_left(p_values)
    for i in np.argsort(p_values, kind="stable"):
        highest = max(highest, min(1.0, int(n_left[i]) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def count_left(p_values: list[float]) -> Int[np.ndarray, " test"]:
    """Count, for each test, those of no smaller p-value, itself included: they share the level at Holm's step."""
    return len(p_values) - np.argsort(p_values, kind="stable").argsort(kind="stable")
