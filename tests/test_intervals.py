"""Intervals against MAPIE, plain loops, and simulations in which the truth is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapie.regression import CrossConformalRegressor
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold

from ray_ft.errors import ConfigError
from ray_ft.statistics import intervals
from ray_ft.statistics.intervals import (
    build_pointwise,
    build_simultaneous,
    check_level,
    measure_coverage,
    trace_calibration,
)


def draw_problem(
    seed: int, n: int, n_repeats: int, n_folds: int, n_new: int, shape: tuple[int, ...], dtype: type = np.float64
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions, residuals and folds that mean nothing."""
    rng = np.random.default_rng(seed)
    predictions = rng.normal(size=(n_repeats, n_folds, n_new, *shape)).astype(dtype)
    return predictions, rng.normal(size=(n, *shape)).astype(dtype), rng.integers(0, n_folds, (n_repeats, n))


def loop_bands(
    predictions: np.ndarray, margins: np.ndarray, fold_of: np.ndarray, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sort the ends of every training sample, for every value of every new sample."""
    n_repeats, n = fold_of.shape
    lower, upper = np.empty((2, *predictions.shape[2:]))
    for x, *t in np.ndindex(*lower.shape):
        below, above = [], []
        for i in range(n):
            blind = sum(float(predictions[r, fold_of[r, i], x, *t]) for r in range(n_repeats)) / n_repeats
            below.append(blind - float(margins[i, *t]))
            above.append(blind + float(margins[i, *t]))
        lower[x, *t], upper[x, *t] = sorted(below)[rank - 1], sorted(above)[n - rank]
    return lower, upper


def loop_scores(residuals: np.ndarray) -> np.ndarray:
    """Scale × score of each training sample, the scale being that of the others."""
    n, *shape = residuals.shape
    cells = list(np.ndindex(*shape))
    margins = np.empty(residuals.shape)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        scale = {t: (sum(float(residuals[j, *t]) ** 2 for j in others) / (n - 1)) ** 0.5 for t in cells}
        smallest = 1e-3 * sum(scale.values()) / len(scale)
        scale = {t: max(each, smallest) for t, each in scale.items()}
        score = max(abs(float(residuals[i, *t])) / scale[t] for t in cells)
        for t in cells:
            margins[i, *t] = scale[t] * score
    return margins


@pytest.mark.parametrize(("n", "n_folds"), [(49, 5), (600, 4), (30, 30)])
@pytest.mark.parametrize("level", [0.9, 0.8, 0.65])
def test_pointwise_intervals_are_those_of_mapie(n: int, n_folds: int, level: float) -> None:
    rng = np.random.default_rng(0)
    x, new = rng.normal(size=(n, 8)), rng.normal(size=(40, 8))
    y = x @ rng.normal(size=8) + rng.standard_t(3, size=n)
    folds = KFold(n_folds, shuffle=True, random_state=0)
    mapie = CrossConformalRegressor(Ridge(), confidence_level=level, method="plus", cv=folds).fit_conformalize(x, y)
    _, expected = mapie.predict_interval(new)
    predictions, residuals, fold_of = np.empty((1, n_folds, 40)), np.empty(n), np.empty((1, n), int)
    for k, (train, held_out) in enumerate(folds.split(x)):
        ridge = Ridge().fit(x[train], y[train])
        predictions[0, k], fold_of[0, held_out] = ridge.predict(new), k
        residuals[held_out] = y[held_out] - ridge.predict(x[held_out])
    lower, upper = build_pointwise(predictions, residuals, fold_of, 1 - level)
    np.testing.assert_allclose(lower, expected[:, 0, 0], atol=1e-9)
    np.testing.assert_allclose(upper, expected[:, 1, 0], atol=1e-9)


@given(
    st.integers(0, 1000),
    st.integers(9, 14),
    st.integers(1, 3),
    st.integers(2, 4),
    st.sampled_from([(), (3,), (2, 1, 2)]),
    st.sampled_from([(np.float32, 1e-5), (np.float64, 1e-12)]),
    st.integers(1, 4),
)
def test_both_kinds_are_those_of_plain_loops(
    seed: int,
    n: int,
    n_repeats: int,
    n_folds: int,
    shape: tuple[int, ...],
    precision: tuple[type, float],
    rank: int,
) -> None:
    dtype, tolerance = precision
    predictions, residuals, fold_of = draw_problem(seed, n, n_repeats, n_folds, 2, shape, dtype)
    if shape == (3,):
        residuals[:, 1] = 0  # its scale is the smallest
    alpha = (rank + 0.3) / (n + 1)
    for build, margins in ((build_pointwise, abs(residuals)), (build_simultaneous, loop_scores(residuals))):
        found = build(predictions, residuals, fold_of, alpha)
        for end, expected in zip(found, loop_bands(predictions, margins, fold_of, rank), strict=True):
            assert end.dtype == dtype
            np.testing.assert_allclose(end, expected, atol=tolerance, rtol=tolerance)


@given(st.integers(0, 1000), st.integers(1, 2))
def test_intervals_grow_with_the_level_and_bands_hold_them(seed: int, n_repeats: int) -> None:
    problem = draw_problem(seed, 19, n_repeats, 3, 4, (2, 2))
    inner: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for alpha in (0.45, 0.3, 0.2, 0.1, 0.05):
        pointwise, simultaneous = build_pointwise(*problem, alpha), build_simultaneous(*problem, alpha)
        assert (pointwise[0] <= pointwise[1]).all()
        assert (simultaneous[0] <= pointwise[0] + 1e-9).all()
        assert (simultaneous[1] >= pointwise[1] - 1e-9).all()
        for kind, (lower, upper) in {"pointwise": pointwise, "simultaneous": simultaneous}.items():
            if kind in inner:
                assert (lower <= inner[kind][0]).all()
                assert (upper >= inner[kind][1]).all()
            inner[kind] = lower, upper


@pytest.mark.parametrize("chunk_bytes", [1, 3000])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    problem = draw_problem(0, 12, 2, 3, 7, (2, 3), np.float32)
    targets = np.random.default_rng(1).normal(size=(7, 2, 3))
    whole = *build_pointwise(*problem, 0.2), *build_simultaneous(*problem, 0.2)
    calibration = trace_calibration(*problem, targets)
    monkeypatch.setattr(intervals, "CHUNK_BYTES", chunk_bytes)
    for once, again in zip(whole, (*build_pointwise(*problem, 0.2), *build_simultaneous(*problem, 0.2)), strict=True):
        np.testing.assert_array_equal(once, again)
    assert trace_calibration(*problem, targets) == calibration


def test_no_new_samples_no_intervals() -> None:
    lower, upper = build_simultaneous(*draw_problem(0, 12, 1, 3, 0, (2, 3)), 0.2)
    assert lower.shape == upper.shape == (0, 2, 3)


def test_residuals_of_zero_leave_the_spread_of_the_models() -> None:
    predictions, residuals, fold_of = draw_problem(0, 12, 1, 3, 5, (2,))
    lower, upper = build_simultaneous(predictions, 0 * residuals, fold_of, 0.1)
    np.testing.assert_array_equal(lower, predictions.min((0, 1)))
    np.testing.assert_array_equal(upper, predictions.max((0, 1)))


def simulate(n_features: int, penalty: float, n_repeats: int, n: int = 60, n_folds: int = 5) -> tuple[float, float]:
    """Mean coverage of 90 %, of values and of whole samples, over ridges on data sets drawn anew.

    The noise is heavy-tailed, correlated along the target, and ten times as large at one end as at the other.
    """
    rng, found = np.random.default_rng(0), []
    scale = np.geomspace(0.1, 1, 6).reshape(2, 3)
    for _ in range(60):
        truth = rng.normal(size=(n_features, 6)) / np.sqrt(n_features)
        x = rng.normal(size=(n + 200, n_features))
        noise = rng.standard_t(4, (n + 200, 1)) + rng.standard_t(4, (n + 200, 6))
        y = ((x @ truth + noise).reshape(-1, 2, 3)) * scale
        predictions = np.empty((n_repeats, n_folds, n + 200, 2, 3))
        fold_of = np.stack([rng.permutation(n) % n_folds for _ in range(n_repeats)])
        for r, k in np.ndindex(n_repeats, n_folds):
            train = x[:n][fold_of[r] != k]
            gram = train.T @ train + penalty * np.eye(n_features)
            weights = np.linalg.solve(gram, train.T @ y[:n][fold_of[r] != k].reshape(-1, 6))
            predictions[r, k] = (x @ weights).reshape(-1, 2, 3)
        blind = np.mean([predictions[r, fold_of[r], np.arange(n)] for r in range(n_repeats)], axis=0)
        problem = predictions[:, :, n:], y[:n] - blind, fold_of
        values = measure_coverage(*build_pointwise(*problem, 0.1), y[n:]).values
        found.append((values, measure_coverage(*build_simultaneous(*problem, 0.1), y[n:]).samples))
    return tuple(np.mean(found, axis=0))


@pytest.mark.parametrize("n_repeats", [1, 4])
def test_stable_models_cover_at_the_level(n_repeats: int) -> None:
    for coverage in simulate(5, 1.0, n_repeats):
        assert 0.89 < coverage < 0.92


@pytest.mark.parametrize("n", [20, 100])
def test_bands_of_many_values_cover_at_the_level(n: int) -> None:
    """A sample's own residual in its scale would make its score too small: 12 % and 76 % here."""
    rng, found = np.random.default_rng(0), []
    for _ in range(40):
        noise = rng.standard_t(4, (n + 100, 4, 61)) * np.exp(rng.normal(size=(4, 61)))
        problem = np.zeros((1, 1, 100, 4, 61)), noise[:n], np.zeros((1, n), int)
        found.append(measure_coverage(*build_simultaneous(*problem, 0.1), noise[n:]).samples)
    assert 0.88 < np.mean(found) < 0.93


@pytest.mark.parametrize("n_repeats", [1, 4])
def test_unstable_models_cover_at_the_guarantee(n_repeats: int) -> None:
    """As many features as training samples and hardly a penalty: the fold models agree on nothing."""
    for coverage in simulate(48, 1e-6, n_repeats):
        assert coverage > 0.8


@pytest.mark.parametrize("n_repeats", [1, 3])
def test_calibration_is_that_of_the_intervals(n_repeats: int) -> None:
    problem = draw_problem(0, 15, n_repeats, 3, 50, (2, 3), np.float32)
    targets = np.random.default_rng(1).normal(size=(50, 2, 3))
    targets[0] = build_simultaneous(*problem, 0.1)[0][0]  # an end is inside
    calibration = trace_calibration(*problem, targets)
    assert [round(point.level, 9) for point in calibration] == [0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55], (
        "15 samples"
    )
    for point, alpha in zip(calibration, np.arange(2, 10) / 20, strict=True):
        assert point.values == measure_coverage(*build_pointwise(*problem, alpha), targets).values
        assert point.samples == measure_coverage(*build_simultaneous(*problem, alpha), targets).samples
    assert 0 < calibration[-1].samples < calibration[0].samples < 1
    assert trace_calibration(*problem, targets, [0.2])[0] == calibration[2]


def test_coverage_counts_values_and_whole_samples() -> None:
    lower, upper = np.zeros((2, 2)), np.array([[1.0, 3.0], [1.0, 3.0]])
    found = measure_coverage(lower, upper, np.array([[0.0, 3.0], [0.5, 4.0]]))
    assert (found.values, found.samples, found.width) == (0.75, 0.5, 2.0)


def test_a_level_written_as_one_minus_alpha_keeps_its_rank() -> None:
    assert 1 - 0.9 < 0.1
    problem = draw_problem(0, 9, 1, 3, 4, ())
    for once, again in zip(build_pointwise(*problem, 1 - 0.9), build_pointwise(*problem, 0.1), strict=True):
        np.testing.assert_array_equal(once, again)
    for n in range(1, 400):  # every level of whole percents at its smallest number of samples
        for percent in range(51, 100):
            if n + 1 == -(-100 // (100 - percent)):
                check_level(1 - percent / 100, n)
                with pytest.raises(ConfigError, match=f"at least {n} samples, got {n - 1};"):
                    check_level(1 - percent / 100, n - 1)


@pytest.mark.parametrize(
    ("alpha", "n", "text"),
    [
        (0.1, 5, "intervals of 90 % need at least 9 samples, got 5; lower the level or add samples"),
        (0.05, 18, "intervals of 95 % need at least 19 samples, got 18; lower the level or add samples"),
        (0.001, 100, "intervals of 99.9 % need at least 999 samples, got 100; lower the level or add samples"),
        (0.5, 100, "the level of intervals must lie between 50 % and 100 %, got 50 %; 90 % is usual"),
        (0.0, 100, "the level of intervals must lie between 50 % and 100 %, got 100 %; 90 % is usual"),
        (float("nan"), 100, "the level of intervals must lie between 50 % and 100 %, got nan %; 90 % is usual"),
    ],
)
def test_levels_that_mean_nothing_are_refused(alpha: float, n: int, text: str) -> None:
    problem = draw_problem(0, n, 1, 3, 2, ())
    for refused in (
        lambda: check_level(alpha, n),
        lambda: build_pointwise(*problem, alpha),
        lambda: build_simultaneous(*problem, alpha),
        lambda: trace_calibration(*problem, np.zeros(2), [alpha]),
    ):
        with pytest.raises(ConfigError) as error:
            refused()
        assert str(error.value) == text
