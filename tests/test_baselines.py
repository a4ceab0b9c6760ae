"""Baselines against scikit-learn and against a peeking one."""

import numpy as np
from sklearn.linear_model import Ridge

from ray_ft.data.folds import deal_folds
from ray_ft.objectives import find_objective
from ray_ft.objectives.regression import fit_gain_offset
from ray_ft.results.baselines import score_baselines


def test_gain_and_offset_are_ridge_regression() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(2, 3, (40, 5))
    y = x * rng.normal(1, 0.3, 5) + rng.normal(size=5) + rng.normal(0, 2, (40, 5))
    gain, offset = fit_gain_offset(x, y)
    z = (x - x.mean(0)) / x.std(0)
    fits = [
        [Ridge(alpha=alpha).fit(z[:, [j]], (y - x)[:, j]) for j in range(5)]
        for alpha in (1e-9, *np.logspace(-2, 4, 25))
    ]
    slopes = np.array([[fit.coef_[0] for fit in row] for row in fits]) / x.std(0)
    assert np.abs(slopes + 1 - gain).max(1).min() < 1e-6
    np.testing.assert_allclose((gain * x + offset).mean(0), y.mean(0))


def test_nothing_is_fitted_on_the_held_out_fold() -> None:
    rng = np.random.default_rng(2)
    zero_shot, targets = rng.normal(size=(12, 4)), rng.normal(size=(12, 4))
    splits = deal_folds(np.arange(12), 3, 1, 0)
    scores = score_baselines(find_objective("mse"), zero_shot, targets, splits)
    train, held_out = splits.training(0, 1), splits.held_out(0, 1)
    expected = ((targets[held_out] - targets[train].mean(0)) ** 2).mean()
    np.testing.assert_allclose(scores["training_mean"][0, 1], expected)
    np.testing.assert_allclose(scores["zero_shot"][0, 1], ((targets - zero_shot)[held_out] ** 2).mean())
