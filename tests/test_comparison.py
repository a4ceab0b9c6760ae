"""Comparisons against formulas as scikit-learn's guide writes them, closed forms, and simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ray_ft.comparison import adjust_holm, compare_all, compare_pair, count_repeats


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
    found = compare_pair("a", "b", a, b, 0.01)
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


def test_the_order_changes_the_sign_alone() -> None:
    a, b = draw_scores(0, 0.05)
    one, other = compare_pair("a", "b", a, b), compare_pair("b", "a", b, a)
    assert one.difference == -other.difference
    assert one.p_value == other.p_value
    assert one.probabilities == pytest.approx(other.probabilities[::-1])
    assert (one.verdict, other.verdict) == ("worse", "better")


def test_holm_is_the_textbook_example() -> None:
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_holm([0.9, 0.8]) == [1.0, 1.0]


def test_all_pairs_are_adjusted_for_each_other() -> None:
    a, b = draw_scores(1, 0.08)
    comparisons = compare_all({"a": a, "b": b, "c": b + 0.001})
    assert [(c.first, c.second) for c in comparisons] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert all(c.p_adjusted >= c.p_value for c in comparisons)
    assert comparisons[2].verdict == "practically equal", "a constant difference of a tenth of the rope"


def test_noise_alone_is_no_evidence() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 0.2, (2, 1, 5))
    assert compare_pair("a", "b", a, b).verdict == "no evidence of a difference"


def test_repeats_reach_their_power_in_simulation() -> None:
    n_repeats = count_repeats(1.6, 1.0, 5)
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


def test_repeats_cannot_settle_what_the_samples_do_not_hold() -> None:
    assert count_repeats(0.1, 1.0, 5) is None
