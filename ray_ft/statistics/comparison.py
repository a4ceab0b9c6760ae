"""Whether two strategies differ: tests for scores whose training parts overlap, and what they say in words.

Scores are paired fold means, seeds and copies of a deal averaged first. Folds of one deal share most of their training
samples, so their scores are no independent draws; both tests widen the variance of the mean difference by n_test /
n_train for that. Where all fold means are positive the tests look at their ratios, by logarithms: losses of hard folds
are large and far apart, so that plain differences would hide a difference that every fold shows.

References:
    Nadeau & Bengio, "Inference for the Generalization Error", Machine Learning 52 (2003): the corrected resampled
    t-test. Benavoli et al., "Time for a Change", JMLR 18 (2017): the Bayesian correlated t-test; its correlation is
    n_test / n, as there. Holm, Scand. J. Statist. 6 (1979). We depart from them in the logarithms, and in that folds
    count by their sizes; with folds of one size this is the tests as they are written.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import BaseModel, computed_field

from ray_ft.data.folds import Deals

LEVEL = 0.05  # of the tests; intervals are 1 - LEVEL
POWER = 0.8
MOST_REPEATS = 20  # where the error has come within 2 % of its floor
Means = Float[np.ndarray, "repeat fold"]  # of the scores of each fold
Interval = tuple[float, float]

Verdict = Literal["better", "worse", "practically equal", "no evidence of a difference", "not settled"]


class Comparison(BaseModel, frozen=True):
    """Two strategies, or a strategy and a baseline; lower scores are better.

    Attributes:
        difference: Mean score of the first minus that of the second, both over samples.
        interval: Confidence interval of the difference, of 95 % after Holm's adjustment: it leaves out 0 where the
            adjusted p-value is below 5 % (but where `ratio` has the other sign). Of a ratio r it is the difference that
            r makes of the same sum of both scores, (r - 1) / (r + 1) times it, and holds the difference in any case.
        ratio: Mean ratio of the first to the second, fold by fold: geometric. None where a fold mean is not positive.
        ratio_interval: The same interval of it.
        p_value: Two-sided, corrected resampled t-test, by itself.
        p_adjusted: The same after Holm's adjustment for all comparisons made together.
        rope: Half the width of the region of practical equivalence, as a difference.
        probabilities: Posterior probabilities that the first is better, that both are equal within the rope, that
            the second is better.
        n_repeats: Re-deals of the folds that would settle it with a power of 80 %, after Holm's adjustment, if the
            difference is as seen; None where no number up to 20 does, or it is settled.
        n_repeats_range: The same if the difference is as large, and as small, as the ends of its 50 % interval.
        unsettled: Those of the two that have not had their best chance, so of which no loss can be told.
    """

    first: str
    second: str
    difference: float
    interval: Interval
    ratio: float | None = None
    ratio_interval: Interval | None = None
    p_value: float
    p_adjusted: float
    rope: float
    probabilities: tuple[float, float, float]
    n_repeats: int | None
    n_repeats_range: tuple[int | None, int | None] = (None, None)
    unsettled: tuple[str, ...] = ()

    @computed_field  # type: ignore[prop-decorator]  # pydantic's way
    @property
    def verdict(self) -> Verdict:
        """What the first is, compared with the second; a loser must have had its best chance."""
        better, equal, worse = (chance >= 1 - LEVEL for chance in self.probabilities)
        agreed = self.ratio is None or (self.ratio < 1) == (self.difference < 0)
        if self.p_adjusted < LEVEL and agreed and (better or worse):
            loser = self.second if better else self.first
            return "not settled" if loser in self.unsettled else "better" if better else "worse"
        if equal:
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
        turned: dict[str, Any] = {"first": self.second, "second": self.first, "difference": -self.difference}
        turned |= {"interval": (-high, -low), "probabilities": self.probabilities[::-1]}
        if self.ratio is not None and self.ratio_interval is not None:
            turned |= {"ratio": 1 / self.ratio, "ratio_interval": tuple(1 / end for end in self.ratio_interval[::-1])}
        return self.model_copy(update=turned)


Comparisons = tuple[Comparison, ...]


@dataclass(frozen=True)
class Effect:
    """What the tests see of a pair, in differences of scores or of their logarithms.

    Attributes:
        differences: Of the folds, moved so that their plain mean is the mean over samples.
        rope: Half-width of the region of practical equivalence, in the same terms.
        test_share: n_test / n_train.
        sum: Of both mean scores, by which logarithms are turned into differences; None where these are none.
    """

    differences: Means
    rope: float
    test_share: float
    sum: float | None

    @cached_property
    def mean(self) -> float:
        return float(self.differences.mean())

    @cached_property
    def deviation(self) -> float:
        return float(self.differences.std(ddof=1))

    @property
    def error(self) -> float:
        return self.deviation * math.sqrt(1 / self.differences.size + self.test_share)

    @cached_property
    def t(self) -> Any:
        from scipy import stats  # half a second, which nothing else of a run needs

        return stats.t(self.differences.size - 1)

    @cached_property
    def p_value(self) -> float:
        if self.error == 0:  # the same difference on every fold
            return float(self.mean == 0)
        return float(2 * self.t.sf(abs(self.mean) / self.error))

    @cached_property
    def probabilities(self) -> tuple[float, float, float]:
        """That the mean is below, within and above the region of practical equivalence."""
        mean, rope, error = self.mean, self.rope, self.error
        if error == 0:
            return float(mean < -rope), float(abs(mean) <= rope), float(mean > rope)
        below, above = float(self.t.cdf((-rope - mean) / error)), float(self.t.sf((rope - mean) / error))
        return below, max(0.0, 1 - below - above), above

    def bound(self, level: float) -> Interval:
        """Build the confidence interval of the mean, of 1 - level."""
        half = float(self.t.ppf(1 - level / 2)) * self.error
        return self.mean - half, self.mean + half

    def as_difference(self, value: float) -> float:
        return value if self.sum is None else self.sum * math.tanh(value / 2)


def compare_all(
    scores: Mapping[str, Means],
    rope_share: float,
    test_share: float,
    pairs: Sequence[tuple[str, str]] | None = None,
    deals: Deals | None = None,
) -> Comparisons:
    """Compare several pairs, all where left out, by their means on the same folds; adjusted for their number.

    Args:
        scores: By name.
        rope_share: Half-width of the region of practical equivalence, as a share of the better mean.
        test_share: n_test / n_train.
        pairs: Of names.
        deals: Sizes of the folds, and repeats that are the same deal; where left out, folds are alike and no repeat is.
    """
    pairs = list(combinations(scores, 2)) if pairs is None else pairs
    deals = Deals.even(*next(iter(scores.values())).shape) if deals is None and scores else deals
    if deals is None:
        return ()
    merged = {name: deals.merge(values) for name, values in scores.items()}
    sizes = deals.merged_sizes
    effects = [measure_effect(merged[a], merged[b], sizes, rope_share, test_share) for a, b in pairs]
    p_values = [effect.p_value for effect in effects]
    found = []
    for (a, b), effect, p, n_left in zip(pairs, effects, adjust_holm(p_values), count_left(p_values), strict=True):
        difference = float(np.average(merged[a] - merged[b], weights=sizes))
        pair = describe_effect(a, b, effect, difference, p, LEVEL / int(n_left))
        lone = {"n_repeats": None, "n_repeats_range": (None, None)}
        found.append(pair.model_copy(update=lone) if deals.only_one else pair)
    return tuple(found)


def mark_unsettled(comparisons: Comparisons, unsettled: Collection[str]) -> Comparisons:
    """Say of each pair which of the two have not had their best chance."""
    return tuple(
        pair.model_copy(update={"unsettled": tuple(name for name in (pair.first, pair.second) if name in unsettled)})
        for pair in comparisons
    )


def compare_pair(
    first: str, second: str, a: Means, b: Means, rope_share: float, test_share: float, ratios: bool = True
) -> Comparison:
    """Compare two by themselves, as if no others were tested, on folds of one size; `ratios` may be left out."""
    effect = measure_effect(a, b, np.ones(a.shape), rope_share, test_share, ratios)
    return describe_effect(first, second, effect, float((a - b).mean()), effect.p_value, LEVEL)


def measure_effect(
    a: Means, b: Means, sizes: Means, rope_share: float, test_share: float, ratios: bool = True
) -> Effect:
    """Take differences, of logarithms where all means are positive, and weigh folds by their sizes."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    means = [float(np.average(each, weights=sizes)) for each in (a, b)]
    if ratios and min(a.min(), b.min()) > 0:
        return Effect(weigh_folds(np.log(a) - np.log(b), sizes), math.log1p(rope_share), test_share, sum(means))
    return Effect(weigh_folds(a - b, sizes), rope_share * min(means), test_share, None)


def weigh_folds(values: Means, sizes: Means) -> Means:
    """Move the values of folds so that their plain mean is that over samples.

    The variance of the mean is then that of w (value - mean), with w the size of a fold over the mean size: a fold of
    few samples adds little to the mean, and little to its error.
    """
    weights = sizes * (sizes.size / sizes.sum())
    mean = (weights * values).mean()
    return values if np.ptp(sizes) == 0 else mean + weights * (values - mean)


def describe_effect(
    first: str, second: str, effect: Effect, difference: float, p_adjusted: float, level: float
) -> Comparison:
    """Put together what is said of a pair whose own test, at its step of Holm's adjustment, has this level."""
    p_value = effect.p_value
    bounds = effect.bound(LEVEL * p_value / p_adjusted if p_adjusted else level)
    ends = [effect.as_difference(end) for end in bounds]
    n_repeats, n_repeats_range = plan_repeats(effect, p_adjusted, level)
    logarithms = effect.sum is not None
    return Comparison(
        first=first, second=second, difference=difference, p_value=p_value, p_adjusted=p_adjusted,
        interval=(min(difference, *ends), max(difference, *ends)) if logarithms else (ends[0], ends[1]),
        ratio=math.exp(effect.mean) if logarithms else None,
        ratio_interval=(write_ratio(bounds[0]), write_ratio(bounds[1])) if logarithms else None,
        rope=effect.as_difference(effect.rope), probabilities=effect.probabilities,
        n_repeats=n_repeats, n_repeats_range=n_repeats_range,
    )  # fmt: skip


def write_ratio(logarithm: float) -> float:
    """Undo a logarithm; of two folds an interval may be wider than numbers reach."""
    return math.exp(min(max(logarithm, -700.0), 700.0))


def plan_repeats(effect: Effect, p_adjusted: float, level: float) -> tuple[int | None, tuple[int | None, int | None]]:
    """Find the re-deals, more than there are, that would settle a pair, if the difference is as seen, large, small.

    There are none, or more than 20, where it is None, or the pair is settled. The p-value is adjusted for all
    comparisons made together, the level is that of this pair's own test among them.
    """
    if p_adjusted < LEVEL or effect.deviation == 0:
        return None, (None, None)
    n_repeats, n_folds = effect.differences.shape
    low, high = (end * math.copysign(1, effect.mean) for end in effect.bound(0.5))

    def count(size: float) -> int | None:
        needed = count_repeats(max(size, 0.0), effect.deviation, n_folds, effect.test_share, level, effect.rope)
        return None if needed is None else max(needed, n_repeats + 1)

    return count(abs(effect.mean)), (count(max(low, high)), count(min(low, high)))


def count_repeats(
    difference: float, deviation: float, n_folds: int, test_share: float, level: float = LEVEL, rope: float = 0.0
) -> int | None:
    """Find how many re-deals of the folds give a verdict with a power of 80 % for this difference.

    The corrected test has to reject, and the posterior to leave the rope. As each re-deal uses the same samples, the
    error has a floor: more repeats cannot settle every difference.
    """
    from scipy import stats

    for n_repeats in range(1, MOST_REPEATS + 1):
        n = n_repeats * n_folds
        error = deviation * math.sqrt(1 / n + test_share)
        critical = [stats.t.ppf(1 - level / 2, n - 1), stats.t.ppf(1 - LEVEL, n - 1)]
        shifts = [abs(difference) / error, max(0.0, abs(difference) - rope) / error]
        power = stats.nct.sf(critical, n - 1, shifts)  # on the other side next to none is left, where scipy has NaN
        if power.min() >= POWER:
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
