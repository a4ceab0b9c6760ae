"""Cross-fitted scores against a plain loop."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ray_ft.folds import deal_folds
from ray_ft.scores import average_folds, crossfit


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(1, 3), st.integers(1, 2))
def test_crossfit_is_the_plain_loop(seed: int, n_folds: int, n_seeds: int, n_repeats: int) -> None:
    rng = np.random.default_rng(seed)
    curves = {i: rng.random((int(rng.integers(1, 6)), n_repeats, n_folds, n_seeds)) for i in (0, 3)}
    score = crossfit(curves)
    for r in range(n_repeats):
        for k in range(n_folds):
            others = [other for other in range(n_folds) if other != k]
            means = {(i, e): curve[e, r, others].mean() for i, curve in curves.items() for e in range(len(curve))}
            i, e = min(means, key=lambda key: means[key])
            assert (score.candidate[r, k], score.epoch[r, k]) == (i, e + 1)
            np.testing.assert_array_equal(score.values[r, k], curves[i][e, r, k])


@given(st.integers(0, 1000), st.integers(2, 6))
def test_a_fold_does_not_choose_its_own_epoch(seed: int, n_folds: int) -> None:
    rng = np.random.default_rng(seed)
    curves = rng.random((5, 1, n_folds, 2))
    changed = curves.copy()
    changed[:, :, 0] = rng.random((5, 1, 2))
    assert crossfit({0: curves}).epoch[0, 0] == crossfit({0: changed}).epoch[0, 0]


def test_fold_means_are_means_over_held_out_samples() -> None:
    splits = deal_folds(np.arange(10), 3, 2, 0)
    losses = np.random.default_rng(0).random((4, 2, 3, 10))
    means = average_folds(losses, splits)
    assert means.shape == (4, 2, 3, 3)
    assert means[1, 1, 2, 0] == losses[1, 1, 0, splits.held_out(1, 2)].mean()
