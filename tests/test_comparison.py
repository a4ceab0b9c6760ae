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

from ray_ft.statistics.comparison import adjust_holm, compare_all, compare_pair, count_repeats


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
    found = compare_pair("a", "b", a, b, 0.01, 1 / (n_folds - 1))
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
        "rbf", "linear", *example, rope_share=0.01 / min(each.mean() for each in example), test_share=1 / 9
    )
    assert found.rope == pytest.approx(0.01)
    assert found.p_value / 2 == pytest.approx(0.227, abs=5e-4), "the example's test has one side"
    assert stats.t.isf(found.p_value / 2, 99) == pytest.approx(0.750, abs=5e-4)
    assert found.probabilities[1] == pytest.approx(0.432, abs=5e-4)
    without_rope = compare_pair("rbf", "linear", *example, rope_share=0.0, test_share=1 / 9)
    assert without_rope.probabilities[0] == pytest.approx(0.773, abs=5e-4)
    assert found.verdict == "no evidence of a difference"


@given(st.integers(0, 1000), st.floats(-0.1, 0.1), st.integers(1, 4), st.integers(2, 8))
def test_the_bayesian_test_is_that_of_baycomp(seed: int, shift: float, n_repeats: int, n_folds: int) -> None:
    a, b = draw_scores(seed, shift, n_repeats, n_folds)
    found = compare_pair("a", "b", a, b, 0.01, 1 / (n_folds - 1))
    expected = baycomp.two_on_single(-a.ravel(), -b.ravel(), rope=found.rope, runs=n_repeats)
    assert found.probabilities == pytest.approx(expected, abs=1e-9)


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
