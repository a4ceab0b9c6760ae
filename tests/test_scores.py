"""Cross-fitted scores against a plain loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ray_ft.data.folds import deal_folds
from ray_ft.statistics.scores import (
    Curves,
    Spread,
    StrategyScore,
    average_folds,
    average_other_folds,
    build_curves,
    choose,
    divide_spread,
    score_choice,
)


def score_strategy(curves: dict[int, Curves]) -> StrategyScore:
    return score_choice(choose(curves), curves)


def crossfit(held_out: np.ndarray) -> Curves:
    sizes = np.ones(held_out.shape[-3:-1], int)
    return Curves(held_out, average_other_folds(held_out, sizes), sizes)


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(1, 3), st.integers(1, 2))
def test_crossfit_is_the_plain_loop(seed: int, n_folds: int, n_seeds: int, n_repeats: int) -> None:
    rng = np.random.default_rng(seed)
    curves = {i: rng.random((int(rng.integers(1, 6)), n_repeats, n_folds, n_seeds)) for i in (0, 3)}
    score = score_strategy({i: crossfit(curve) for i, curve in curves.items()})
    for r in range(n_repeats):
        for k in range(n_folds):
            others = [other for other in range(n_folds) if other != k]
            means = {(i, e): curve[e, r, others].mean() for i, curve in curves.items() for e in range(len(curve))}
            i, e = min(means, key=lambda key: means[key])
            assert (score.candidate[r, k], score.epoch[r, k]) == (i, e)
            np.testing.assert_array_equal(score.values[r, k], curves[i][e, r, k])


@given(st.integers(0, 1000), st.integers(2, 6))
def test_a_fold_does_not_choose_its_own_epoch(seed: int, n_folds: int) -> None:
    rng = np.random.default_rng(seed)
    curves = rng.random((5, 1, n_folds, 2))
    changed = curves.copy()
    changed[:, :, 0] = rng.random((5, 1, 2))
    first, second = (score_strategy({0: crossfit(each)}) for each in (curves, changed))
    assert first.epoch[0, 0] == second.epoch[0, 0]


def test_fold_means_are_means_over_held_out_samples() -> None:
    splits = deal_folds(np.arange(10), 3, 2, 0)
    losses = np.random.default_rng(0).random((4, 2, 3, 10))
    means = average_folds(losses, splits)
    assert means.shape == (4, 2, 3, 3)
    assert means[1, 1, 2, 0] == losses[1, 1, 0, splits.held_out(1, 2)].mean()


@given(st.integers(0, 1000), st.integers(2, 6))
def test_under_the_nested_protocol_the_inner_part_alone_chooses(seed: int, n_folds: int) -> None:
    rng = np.random.default_rng(seed)
    splits = deal_folds(np.arange(12), n_folds, 1, seed)
    losses, inner = rng.random((5, 1, 2, 12)), rng.random((5, 1, n_folds, 2))
    score = score_strategy({0: build_curves(losses, inner, splits)})
    for k in range(n_folds):
        epoch = inner[:, 0, k].mean(-1).argmin()
        assert score.epoch[0, k] == epoch
        expected = [losses[epoch, 0, s, splits.held_out(0, k)].mean() for s in range(2)]
        np.testing.assert_allclose(score.values[0, k], expected)


def test_the_spread_is_divided_as_by_the_analysis_of_variance() -> None:
    rng = np.random.default_rng(0)
    values = 1 + rng.normal(0, 0.3, (40, 500, 1)) + rng.normal(0, 0.2, (40, 500, 3))
    spread = divide_spread(values)
    assert spread.folds == pytest.approx(0.3, rel=0.02)
    assert spread.seeds == pytest.approx(0.2, rel=0.02)
    small = values[:1, :5]
    within = stats.f_oneway(*small[0])  # F = (n_seeds * folds**2 + seeds**2) / seeds**2, as estimated
    found = divide_spread(small)
    assert (3 * found.folds**2 + found.seeds**2) / found.seeds**2 == pytest.approx(within.statistic)
    assert divide_spread(values[..., :1]) == Spread(None, None)


@given(st.integers(0, 1000))
def test_of_uneven_folds_every_mean_is_one_over_samples(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(5), [1, 2, 3, 7, 11])
    splits = deal_folds(groups, 3, 2, seed)
    losses = rng.exponential(size=(4, 2, 3, 24)) ** 2  # (epoch, repeat, seed, sample)
    score = score_strategy({0: build_curves(losses, None, splits)})
    own = np.empty((2, 24))
    for r, k in np.ndindex(2, 3):
        held_out = splits.held_out(r, k)
        others = np.setdiff1d(np.arange(24), held_out)
        epoch = losses[:, r, :, others].mean((0, 2)).argmin()
        assert score.epoch[r, k] == epoch
        own[r, held_out] = losses[epoch, r][:, held_out].mean(0)
    assert score.mean == pytest.approx(own.mean())
    assert score.std == pytest.approx(np.std(score.values, ddof=1))
    one_epoch = score_strategy({0: build_curves(losses[:1], None, splits)})
    assert one_epoch.best_epoch_mean == pytest.approx(losses[0].mean())
