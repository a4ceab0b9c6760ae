"""Losses against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error

from ray_ft.objectives import find_objective


@pytest.mark.parametrize(("metric", "reference"), [("mse", mean_squared_error), ("mae", mean_absolute_error)])
def test_losses_are_those_of_scikit_learn(metric, reference) -> None:
    rng = np.random.default_rng(0)
    predicted, target = rng.normal(size=(2, 5, 2, 3))
    expected = [reference(target[i].ravel(), predicted[i].ravel()) for i in range(5)]
    np.testing.assert_allclose(find_objective(metric).score(predicted, target), expected)
    losses = find_objective(metric).losses(torch.from_numpy(predicted), torch.from_numpy(target))
    np.testing.assert_allclose(losses.numpy(), expected)
