"""Novelty against scikit-learn's covariances and Gaussian processes, and its p-values by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import ShrunkCovariance
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct

from ray_ft.errors import DataError
from ray_ft.statistics.novelty import NOISE_SHARE, Density, fit_density


def draw_features(seed: int, n: int, n_features: int = 60) -> np.ndarray:
    """Heavy-tailed samples, of a spread that falls with the component, in rotated axes."""
    rng = np.random.default_rng([seed, n_features])
    latent = rng.standard_t(5, (n, n_features)) / np.arange(1, n_features + 1)
    rotation, _ = np.linalg.qr(np.random.default_rng(n_features).normal(size=(n_features, n_features)))
    return latent @ rotation


def measure_noise(features: np.ndarray) -> float:
    return NOISE_SHARE * features.var(0).sum()


@pytest.mark.parametrize("n_features", [5, 60])
def test_scores_are_distances_of_a_shrunk_covariance(n_features: int) -> None:
    x, new = draw_features(0, 30, n_features), draw_features(1, 20, n_features)
    variance = measure_noise(x) / len(x)
    ratio = variance / (x.var(0).sum() / n_features)
    shrinkage = ratio / (1 + ratio)
    covariance = ShrunkCovariance(shrinkage=shrinkage).fit(x)
    expected = variance * (1 - shrinkage) * covariance.mahalanobis(new)
    np.testing.assert_allclose(fit_density(x, np.arange(30)).score(new), expected, rtol=1e-4)


def score_by_regression(x: np.ndarray, new: np.ndarray, noise: float) -> np.ndarray:
    """Variance of Bayesian linear regression with a free intercept."""
    kernel = DotProduct(sigma_0=1e3, sigma_0_bounds="fixed")
    regression = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None).fit(x, np.zeros(len(x)))
    return regression.predict(new, return_std=True)[1] ** 2


def test_scores_and_reference_are_variances_of_linear_regression() -> None:
    x, new = draw_features(0, 30), draw_features(1, 20)
    groups = np.minimum(np.arange(30), 26)  # the last four belong together
    density, noise = fit_density(x, groups), measure_noise(x)
    np.testing.assert_allclose(density.score(new) + noise / 30, score_by_regression(x, new, noise), rtol=1e-4)
    for i in range(30):
        (expected,) = score_by_regression(x[groups != groups[i]], x[i : i + 1], noise)
        assert density.reference[i] + noise / 30 == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("n_features", [10, pytest.param(150, marks=pytest.mark.slow)])
def test_new_samples_of_the_same_kind_are_flagged_as_rarely_as_said(n_features: int) -> None:
    p_values = []
    for seed in range(120):
        x = draw_features(seed, 60, n_features)
        density = fit_density(x[:39], np.arange(39))
        p_values.append(density.p_value(density.score(x[39:])))
    for level in (0.05, 0.1, 0.25, 0.5):
        assert 0.6 * level < np.mean(np.array(p_values) <= level) < level + 0.015


def test_a_shift_that_training_samples_never_show_is_flagged() -> None:
    rng = np.random.default_rng(0)
    x = draw_features(0, 180)
    x[:, :5] *= 0.01
    density = fit_density(x[:80], np.arange(80))
    shifted = x[80:] + np.where(np.arange(60) < 5, 0.3 * rng.normal(size=(100, 60)), 0)
    assert np.mean(density.p_value(density.score(x[80:])) <= 0.05) < 0.12
    assert np.mean(density.p_value(density.score(shifted)) <= 0.05) > 0.9


def test_copies_in_a_group_do_not_make_new_samples_look_unlike() -> None:
    x = draw_features(0, 120)
    doubled = np.concatenate([x[:40], x[:40]])
    alone, grouped = (fit_density(doubled, groups) for groups in (np.arange(80), np.arange(80) % 40))
    flagged = [np.mean(density.p_value(density.score(x[40:])) <= 0.05) for density in (alone, grouped)]
    assert flagged[0] > 0.5
    assert flagged[1] < 0.12


@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-10, 10))
def test_units_and_axes_of_the_features_do_not_matter(seed: int, scale: float, offset: float) -> None:
    x, new = draw_features(seed, 20, 12), draw_features(seed + 1, 10, 12)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(12, 12)))
    one = fit_density(x, np.arange(20))
    other = fit_density(scale * (x @ rotation) + scale * offset, np.arange(20))
    np.testing.assert_allclose(other.score(scale * (new @ rotation + offset)), scale**2 * one.score(new), rtol=1e-3)
    np.testing.assert_allclose(other.reference, scale**2 * one.reference, rtol=1e-6)


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=1, max_size=30), st.floats(-1, 4))
def test_p_values_count_the_training_samples_that_score_as_high(reference: list[float], score: float) -> None:
    density = Density(np.zeros(1), np.zeros((1, 1)), np.array(reference))
    expected = (1 + sum(each >= score for each in reference)) / (len(reference) + 1)
    assert density.p_value(np.array([score])) == pytest.approx([expected])


def test_what_cannot_be_fitted_is_refused() -> None:
    x = draw_features(0, 20)
    with pytest.raises(DataError, match=r"at least two groups, got 20 samples in one; check data\.groups"):
        fit_density(x, np.zeros(20, int))


def test_of_samples_that_are_all_alike_whatever_differs_is_new() -> None:
    density = fit_density(np.ones((20, 3)), np.arange(20))
    p_values = density.p_value(density.score(np.array([[1.0, 1.0, 1.0], [1.0, 1.1, 1.0]])))
    np.testing.assert_allclose(p_values, [1.0, 1 / 21])
