"""Weights of members against plain loops, and what they may not know."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

from ray_ft.data.folds import deal_folds
from ray_ft.ensemble.weights import METHODS, N_PICKS, blend, choose_weights, score_folds
from ray_ft.objectives import find_objective

MSE = find_objective("mse")


def draw(seed: int, n_columns: int = 4, n_repeats: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Columns that err differently, around targets of shape (20, 3)."""
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=(20, 3))
    errors = rng.normal(size=(n_columns, n_repeats, 20, 3)) * rng.uniform(0.2, 2, (n_columns, 1, 1, 1))
    return targets + errors, targets


@given(st.integers(0, 1000), st.sampled_from(METHODS), st.integers(2, 5))
@settings(max_examples=25)
def test_weights_are_shares_and_do_not_know_their_fold(seed: int, method: str, n_folds: int) -> None:
    columns, targets = draw(seed)
    splits = deal_folds(np.arange(20), n_folds, 2, seed)
    weights = choose_weights(method, columns, targets, splits, MSE)
    assert weights.shape == (2, n_folds, 4)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1)
    changed = targets.copy()
    changed[splits.held_out(0, 1)] += 100
    again = choose_weights(method, columns, changed, splits, MSE)
    np.testing.assert_array_equal(weights[0, 1], again[0, 1])


def test_stacking_is_non_negative_least_squares() -> None:
    columns, targets = draw(0, n_repeats=1)
    splits = deal_folds(np.arange(20), 4, 1, 0)
    weights = choose_weights("stacked", columns, targets, splits, MSE)
    others = splits.training(0, 2)
    fit = LinearRegression(fit_intercept=False, positive=True)
    fit.fit(columns[:, 0, others].reshape(4, -1).T, targets[others].ravel())
    np.testing.assert_allclose(weights[0, 2], fit.coef_ / fit.coef_.sum(), atol=1e-6)


@pytest.mark.parametrize("metric", ["mse", "mae"])
def test_greedy_picks_are_the_plain_loop(metric: str) -> None:
    columns, targets = draw(1, n_repeats=1)
    splits = deal_folds(np.arange(20), 4, 1, 0)
    weights = choose_weights("greedy", columns, targets, splits, find_objective(metric))
    others = splits.training(0, 0)
    picks: list[int] = []
    for _ in range(N_PICKS):
        errors = [np.mean(columns[[*picks, i], 0][:, others], axis=0) - targets[others] for i in range(4)]
        losses = [(error**2).mean() if metric == "mse" else abs(error).mean() for error in errors]
        picks.append(int(np.argmin(losses)))
    np.testing.assert_allclose(weights[0, 0], np.bincount(picks, minlength=4) / N_PICKS)
    single = choose_weights("single", columns, targets, splits, find_objective(metric))
    assert single[0, 0].argmax() == picks[0]


def test_a_blend_takes_each_samples_own_fold() -> None:
    columns, targets = draw(2)
    splits = deal_folds(np.arange(20), 4, 2, 0)
    weights = np.random.default_rng(0).dirichlet(np.ones(4), (2, 4))
    blended = blend(columns, weights, splits)
    for r in range(2):
        for i in range(20):
            own = weights[r, splits.fold_of[r][i]]
            np.testing.assert_allclose(blended[r, i], sum(w * c for w, c in zip(own, columns[:, r, i], strict=True)))
    scores = score_folds(blended, targets, splits, MSE)
    held_out = splits.held_out(1, 3)
    assert scores[1, 3] == pytest.approx(((blended[1] - targets)[held_out] ** 2).mean())


def test_columns_that_predict_nothing_share_evenly() -> None:
    targets = np.abs(np.random.default_rng(0).normal(size=(20, 3)))
    columns = -np.ones((3, 1, 20, 3))
    weights = choose_weights("stacked", columns, targets, deal_folds(np.arange(20), 4, 1, 0), MSE)
    np.testing.assert_allclose(weights, 1 / 3)
