"""Learning curves: the fit on curves whose law is known, and a whole one on the toy."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ray_ft
from ray_ft.config import Config, load_config
from ray_ft.errors import ConfigError, DataError
from ray_ft.sample_size import fit_curve, fit_power_law

SIZES = np.array([20.0, 40.0, 60.0, 80.0])


@given(st.floats(1e-5, 1e3), st.floats(0.2, 1.5), st.floats(0.0, 2.0))
def test_a_power_law_is_found_again(unit: float, exponent: float, floor: float) -> None:
    scores = unit * (floor + (SIZES / 20) ** -exponent)
    fit = fit_power_law(SIZES, scores)
    np.testing.assert_allclose(fit.predict(SIZES), scores, rtol=3e-3)
    beyond = np.array([130.0])
    np.testing.assert_allclose(fit.predict(beyond), unit * (floor + (beyond / 20) ** -exponent), rtol=0.02)


def test_a_flat_curve_forecasts_no_gain() -> None:
    fit = fit_power_law(SIZES, np.full(4, 0.3))
    np.testing.assert_allclose(fit.predict(np.array([20.0, 300.0])), 0.3, rtol=1e-3)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Fold scores with the correlation that the corrected variance supposes, 0.2, between folds and between sizes."""
    rng, covered = np.random.default_rng(0), 0
    truth = 0.2 + (SIZES / 20) ** -0.7
    beyond = 0.2 + (130 / 20) ** -0.7
    for seed in range(60):
        common, own = rng.normal(0, np.sqrt(0.2), (4, 1)), rng.normal(0, np.sqrt(0.8), (4, 5))
        scores = truth[:, None] + 0.05 * (common + own)
        curve = fit_curve([20, 40, 60, 80], scores, [0.0] * 4, np.full(4, 0.25), [80, 130], seed)
        low, high = curve.forecasts[1].interval
        covered += low <= beyond <= high
    assert covered >= 53, "95 % of 60 are 57; the fit is not linear"


def test_a_curve_on_the_toy_goes_on_and_is_a_table(toy_config: Config, tmp_path: Path) -> None:
    arguments = (toy_config, tmp_path / "curve", [8, 12, 20], [10])
    found = ray_ft.learning_curve(*arguments, inline=True)
    assert found.sizes == [8, 12, 20]
    assert set(found.curves) == {"top", "last", ray_ft.Summary.load(tmp_path / "curve/train_00020").best_baseline}
    assert [forecast.size for forecast in found.curves["top"].forecasts] == [8, 12, 20, 30]
    written = [path.stat().st_mtime_ns for path in tmp_path.glob("curve/train_*/summary.json")]
    assert ray_ft.learning_curve(*arguments, inline=True) == found
    assert [path.stat().st_mtime_ns for path in tmp_path.glob("curve/train_*/summary.json")] == written
    table = found.table()
    assert len(table) == 3 * (3 + 4)
    summary = ray_ft.Summary.load(tmp_path / "curve/train_00012")
    row = table[(table["strategy"] == "top") & (table["size"] == 12)].iloc[0]
    assert row["score_mean"] == pytest.approx(summary.strategies["top"].score_mean)


def test_sizes_that_do_not_fit_start_nothing(toy_config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="three or more different sizes from 1 on, got 8, 8, 12"):
        ray_ft.learning_curve(toy_config, tmp_path / "curve", [8, 8, 12])
    with pytest.raises(DataError, match="at most the smallest training part, 20 samples, got 21"):
        ray_ft.learning_curve(toy_config, tmp_path / "curve", [8, 12, 21])
    assert not (tmp_path / "curve").exists()


def test_a_schedule_that_ends_too_soon_is_noted(toy_folder: Path) -> None:
    config = load_config(toy_folder / "toy.yaml", {"cv.strategies": ["last"], "training.epochs": 1})
    found = ray_ft.learning_curve(config, toy_folder / "curve", [8, 12, 20], inline=True)
    assert "last was best at the end of its schedule in every fold" in found.notes[0]
