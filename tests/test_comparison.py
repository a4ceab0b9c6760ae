"""Comparisons against scikit-learn's published example, baycomp, statsmodels, closed forms, and simulation."""

import baycomp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.datasets import make_moons
from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score
from sklearn.svm import SVC
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from ray_ft.data.folds import Deals, deal_folds, describe_deals
from ray_ft.statistics.comparison import Comparison, adjust_holm, compare_all, compare_pair, count_repeats


def draw_scores(seed: int, shift: float = 0.0, n_repeats: int = 2, n_folds: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    common = rng.normal(1, 0.1, (n_repeats, n_folds))
    return common + rng.normal(0, 0.02, common.shape) + shift, common + rng.normal(0, 0.02, common.shape)


def corrected_std(differences: np.ndarray, n_train: int, n_test: int) -> float:
    """As in scikit-learn's "Statistical comparison of models using grid search"."""
    return np.sqrt(np.var(differences, ddof=1) * (1 / len(differences) + n_test / n_train))


@given(st.integers(0, 1000), st.floats(-0.1, 0.1), st.integers(1, 4), st.integers(2, 8))
def test_both_tests_are_those_of_the_guide(seed: int, shift: float, n_repeats: int, n_folds: int) -> None:
    a, b = draw_scores(seed, shift, n_repeats, n_folds)
    found = compare_pair("a", "b", a, b, 0.01, 1 / (n_folds - 1), ratios=False)
    differences = (a - b).ravel()
    n_samples = 100 * n_folds
    error = corrected_std(differences, n_samples - 100, 100)
    degrees = len(differences) - 1
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(differences.mean()) / error, degrees))
    posterior = stats.t(degrees, loc=differences.mean(), scale=error)
    rope = 0.01 * min(a.mean(), b.mean())
    expected = (posterior.cdf(-rope), posterior.cdf(rope) - posterior.cdf(-rope), 1 - posterior.cdf(rope))
    assert found.probabilities == pytest.approx(expected, abs=1e-9)
    assert found.interval == pytest.approx(posterior.interval(0.95))


@pytest.fixture(scope="module")
def example() -> tuple[np.ndarray, np.ndarray]:
    """Losses of the two best models of scikit-learn's example, "Statistical comparison of models using grid search"."""
    x, y = make_moons(noise=0.352, random_state=1, n_samples=100)
    folds = RepeatedStratifiedKFold(n_splits=10, n_repeats=10, random_state=0)
    models = SVC(kernel="rbf", random_state=0), SVC(kernel="linear", random_state=0)
    rbf, linear = (1 - cross_val_score(model, x, y, scoring="roc_auc", cv=folds).reshape(10, 10) for model in models)
    return rbf, linear


def test_the_published_example(example: tuple[np.ndarray, np.ndarray]) -> None:
    found = compare_pair(
        "rbf", "linear", *example, rope_share=0.01 / min(each.mean() for each in example), test_share=1 / 9,
        ratios=False,
    )  # fmt: skip
    assert found.rope == pytest.approx(0.01)
    assert found.p_value / 2 == pytest.approx(0.227, abs=5e-4), "the example's test has one side"
    assert stats.t.isf(found.p_value / 2, 99) == pytest.approx(0.750, abs=5e-4)
    assert found.probabilities[1] == pytest.approx(0.432, abs=5e-4)
    without_rope = compare_pair("rbf", "linear", *example, rope_share=0.0, test_share=1 / 9, ratios=False)
    assert without_rope.probabilities[0] == pytest.approx(0.773, abs=5e-4)
    assert found.verdict == "no evidence of a difference"


@given(st.integers(0, 1000), st.floats(-0.1, 0.1), st.integers(1, 4), st.integers(2, 8))
def test_the_bayesian_test_is_that_of_baycomp(seed: int, shift: float, n_repeats: int, n_folds: int) -> None:
    a, b = draw_scores(seed, shift, n_repeats, n_folds)
    found = compare_pair("a", "b", a, b, 0.01, 1 / (n_folds - 1), ratios=False)
    expected = baycomp.two_on_single(-a.ravel(), -b.ravel(), rope=found.rope, runs=n_repeats)
    assert found.probabilities == pytest.approx(expected, abs=1e-9)
    found = compare_pair("a", "b", a, b, 0.01, 1 / (n_folds - 1))
    logs = (-np.log(each).ravel() for each in (a, b))
    expected = baycomp.two_on_single(*logs, rope=np.log(1.01), runs=n_repeats)
    assert found.probabilities == pytest.approx(expected, abs=1e-9), "of ratios, the same test of their logarithms"


def test_holm_and_power_are_those_of_statsmodels() -> None:
    p_values = np.random.default_rng(0).uniform(0, 0.1, 12).tolist()
    assert adjust_holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    n_repeats = count_repeats(0.9, 1.0, 5, 0.05)
    assert n_repeats is not None
    assert n_repeats > 1
    powers = [TTestPower().power(0.9, 1 / (1 / n + 0.05), 0.05, df=n - 1) for n in (5 * (n_repeats - 1), 5 * n_repeats)]
    assert powers[0] < 0.8 <= powers[1]


def test_the_order_changes_the_sign_alone() -> None:
    a, b = draw_scores(0, 0.05)
    one, other = compare_pair("a", "b", a, b, 0.01, 0.25), compare_pair("b", "a", b, a, 0.01, 0.25)
    assert one.difference == -other.difference
    assert one.p_value == other.p_value
    assert one.probabilities == pytest.approx(other.probabilities[::-1])
    assert (one.verdict, other.verdict) == ("worse", "better")
    turned = one.seen_from("b")
    assert turned.verdict == "better"
    assert turned.interval == pytest.approx(other.interval)
    assert turned.ratio == pytest.approx(other.ratio)
    assert turned.ratio_interval == pytest.approx(other.ratio_interval)
    assert one.seen_from("a") == one
    with pytest.raises(KeyError):
        one.seen_from("c")


def test_holm_is_the_textbook_example() -> None:
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_holm([0.9, 0.8]) == [1.0, 1.0]


def test_all_pairs_are_adjusted_for_each_other() -> None:
    a, b = draw_scores(1, 0.08)
    comparisons = compare_all({"a": a, "b": b, "c": b + 0.001}, 0.01, 0.25)
    assert [(c.first, c.second) for c in comparisons] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert all(c.p_adjusted >= c.p_value for c in comparisons)
    deal = compare_all({"a": a, "b": b, "c": b + 0.001}, 0.01, 0.25, deals=Deals.even(2, 5))
    assert deal == comparisons, "folds of one size, and deals that differ, change nothing"
    assert comparisons[2].verdict == "practically equal", "a constant difference of a tenth of the rope"


def test_repeats_to_settle_a_pair_are_those_of_its_step_of_holm() -> None:
    """A pair that would be settled by itself, and is not among three."""
    differences = np.array([-0.12, -0.05, -0.1, -0.03, -0.09])
    base = np.full(5, 1.0)
    scores = {"a": (base + differences)[None], "b": base[None], "c": (base + differences[::-1] / 4)[None]}
    pair = compare_all(scores, 0.01, 0.25)[0]
    alone = compare_pair("a", "b", scores["a"], scores["b"], 0.01, 0.25)
    assert alone.p_value < 0.05 < pair.p_adjusted
    assert alone.n_repeats is None
    assert pair.n_repeats is not None
    n = 5 * pair.n_repeats
    effect = abs(differences.mean()) / differences.std(ddof=1)
    power = TTestPower().power(effect, 1 / (1 / n + 0.25), 0.05 * pair.p_value / pair.p_adjusted, df=n - 1)
    assert power >= 0.8
    assert pair.n_repeats > 1


def test_noise_alone_is_no_evidence() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 0.2, (2, 1, 5))
    assert compare_pair("a", "b", a, b, 0.01, 0.25).verdict == "no evidence of a difference"


def test_repeats_reach_their_power_in_simulation() -> None:
    n_repeats = count_repeats(1.6, 1.0, 5, 0.25)
    assert n_repeats is not None
    rng = np.random.default_rng(0)
    rejected = []
    for n in (n_repeats - 1, n_repeats):
        differences = rng.normal(0, 1, (4000, 5 * n))
        # The mean has the variance that the correction supposes, the deviations about it are those of the folds.
        mean = rng.normal(1.6, np.sqrt(1 / (5 * n) + 1 / 4), 4000)
        t = mean / (differences.std(1, ddof=1) * np.sqrt(1 / (5 * n) + 1 / 4))
        rejected.append((2 * stats.t.sf(abs(t), 5 * n - 1) < 0.05).mean())
    assert rejected[0] < 0.82
    assert rejected[1] > 0.78


def test_repeats_are_the_least_of_their_power_where_the_other_side_is_out_of_reach() -> None:
    """Of two folds scipy has no number for the far tail, of 1e-9 and less."""
    assert count_repeats(11.3, 1.0, 2, 1.0) == 2
    powers = [TTestPower().power(11.3, 1 / (1 / n + 1), 0.025, df=n - 1, alternative="larger") for n in (2, 4)]
    assert powers[0] < 0.8 <= powers[1]


def test_repeats_cannot_settle_what_the_samples_do_not_hold() -> None:
    assert count_repeats(0.1, 1.0, 5, 0.25) is None


def test_a_difference_that_hard_folds_hide_is_seen_in_ratios() -> None:
    """A seventh of the loss in every fold, of which one is many times the others: an audit's 7.6 against 57."""
    b = np.array([[5.0, 12.0, 20.0, 40.0, 208.0]])
    a = b / np.array([6, 9, 7, 8, 7.6])
    raw, found = (compare_pair("a", "b", a, b, 0.01, 0.25, ratios) for ratios in (False, True))
    assert (raw.verdict, found.verdict) == ("no evidence of a difference", "better")
    assert raw.ratio is None
    assert found.ratio == pytest.approx(stats.gmean((a / b).ravel()))
    logs = np.log(a / b).ravel()
    error = corrected_std(logs, 4, 1)
    assert found.ratio_interval == pytest.approx(np.exp(stats.t(4, logs.mean(), error).interval(0.95)))
    assert found.difference == pytest.approx((a - b).mean())
    for end, ratio in zip(found.interval, found.ratio_interval, strict=True):
        second = (a.mean() + b.mean()) / (1 + ratio)  # of the same sum
        assert end == pytest.approx((ratio - 1) * second) or end == pytest.approx(found.difference)


def test_a_verdict_needs_ratio_and_difference_to_agree() -> None:
    """Lower in most folds by far, and higher in the mean over samples."""
    b = np.ones((2, 5))
    a = np.full((2, 5), 0.1)
    a[0, 0], a[1, 0] = 5.5, 4.9
    found = compare_pair("a", "b", a, b, 0.01, 0.01)
    assert found.ratio is not None
    assert found.ratio < 1
    assert found.difference > 0
    assert found.p_adjusted < 0.05
    assert found.probabilities[0] > 0.95
    assert found.verdict == "no evidence of a difference"


@given(st.integers(0, 1000), st.floats(0, 0.1), st.booleans())
def test_an_interval_leaves_out_zero_where_the_adjusted_p_value_is_small(seed: int, shift: float, below: bool) -> None:
    a, b = draw_scores(seed, shift, 1)
    c, _ = draw_scores(seed + 1, shift / 2, 1)
    offset = 5 * below  # scores below 0 have no ratios
    for pair in compare_all({"a": a - offset, "b": b - offset, "c": c - offset}, 0.01, 0.25):
        low, high = pair.interval
        assert low <= pair.difference <= high
        if pair.ratio is None:
            assert (low > 0 or high < 0) == (pair.p_adjusted < 0.05)
        else:
            assert (pair.ratio_interval[0] > 1 or pair.ratio_interval[1] < 1) == (pair.p_adjusted < 0.05)
            agreed = (pair.ratio < 1) == (pair.difference < 0)
            assert (low > 0 or high < 0) == (pair.p_adjusted < 0.05 and agreed)


def test_better_is_better_by_more_than_the_rope() -> None:
    """Surely below, and by hardly more than half a percent: not worth a verdict, at a rope of 1 %."""
    differences = np.array([-0.0080, -0.0111, -0.0118, -0.0105, -0.0121, -0.0130, -0.0119, -0.0096])
    b = np.full((1, 8), 1.0)
    found = compare_pair("a", "b", b + differences, b, 0.01, 1 / 7)
    assert found.p_adjusted < 0.05
    assert found.probabilities[1] < 0.95
    assert found.probabilities[0] < 0.95
    assert found.verdict == "no evidence of a difference"


def test_copies_of_a_deal_count_once() -> None:
    """Leave-one-out dealt five times is one deal; each copy's seeds have other noise."""
    groups = np.arange(10)
    rng = np.random.default_rng(3)
    a, b = rng.uniform(1, 2, (2, 10))
    splits = deal_folds(groups, 10, 5, 0)
    deals = describe_deals(splits, groups)
    assert deals.only_one
    assert len(deals.copies) == 1
    sample = np.argsort(np.array(splits.fold_of), axis=1)  # which each fold holds out
    noise = rng.normal(0, 0.01, (5, 10))
    (five,) = compare_all({"a": a[sample] + noise, "b": b[sample]}, 0.01, 1 / 9, deals=deals)
    by_sample = a + np.take_along_axis(noise, np.array(splits.fold_of), 1).mean(0)
    (one,) = compare_all({"a": by_sample[None], "b": b[None]}, 0.01, 1 / 9)
    assert five.p_value == pytest.approx(one.p_value)
    assert five.interval == pytest.approx(one.interval)
    assert five.n_repeats is None
    assert five.n_repeats_range == (None, None), "there is no other deal"


def test_a_deal_is_the_same_whatever_its_folds_are_called() -> None:
    sets = ((0, 1, 2), (2, 0, 1), (3, 4, 5))
    deals = Deals(((1, 2, 3), (3, 1, 2), (2, 2, 2)), sets)
    values = np.array([[1.0, 2, 3], [5, 3, 4], [7, 8, 9]])
    np.testing.assert_array_equal(deals.merge(values), [[2, 3, 4], [7, 8, 9]])
    np.testing.assert_array_equal(deals.merged_sizes, [[2, 4, 6], [2, 2, 2]])


def compare_uneven(a: np.ndarray, b: np.ndarray, sizes: list[int], ratios: bool) -> Comparison:
    deals = Deals((tuple(sizes),), (tuple(range(len(sizes))),))
    offset = 0 if ratios else 100
    (found,) = compare_all({"a": a[None] - offset, "b": b[None] - offset}, 0.01, 0.25, deals=deals)
    return found


def test_uneven_folds_count_by_their_samples() -> None:
    rng = np.random.default_rng(0)
    a, b, sizes = rng.uniform(1, 2, 5), rng.uniform(1, 2, 5), [2, 3, 5, 10, 30]
    found = compare_uneven(a, b, sizes, ratios=False)
    mean = np.average(a - b, weights=sizes)
    assert found.difference == pytest.approx(mean)
    parts = np.array(sizes) / 10 * (a - b - mean)
    error = np.sqrt((parts**2).sum() / 4 * (1 / 5 + 0.25))
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(mean) / error, 4))
    assert compare_uneven(a, b, sizes, ratios=True).difference == pytest.approx(mean)


def test_advice_is_a_range() -> None:
    rng = np.random.default_rng(5)
    b = rng.uniform(1, 1.2, (1, 5))
    a = b + np.array([-0.12, -0.05, -0.1, -0.02, -0.01])
    found = compare_pair("a", "b", a, b, 0.01, 0.25, ratios=False)
    low, high = found.n_repeats_range
    differences = (a - b).ravel()
    half = stats.t(4).ppf(0.75) * corrected_std(differences, 4, 1)
    ends = [count_repeats(abs(differences.mean()) + sign * half, differences.std(ddof=1), 5, 0.25, 0.05, found.rope)
            for sign in (1, -1)]  # fmt: skip
    assert low == max(2, ends[0])
    assert high == ends[1]
    assert found.n_repeats is None or low <= found.n_repeats
