"""Learning curves: the fit on curves whose law is known, and a whole one on the toy."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import ray_ft
from ray_ft.config import Config, load_config
from ray_ft.errors import ConfigError, RunFolderError, UserError
from ray_ft.python.learning_curves import divide_training
from ray_ft.report.page import write_curve_figure
from ray_ft.report.terminal import render_curve
from ray_ft.results.learning_curve import fit_curve, fit_curves, fit_power_law
from ray_ft.results.summary import BaselineSummary

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
    assert (fit.scale, fit.exponent) == (0, 0)


def test_folds_in_which_sizes_do_not_differ_give_no_fall() -> None:
    """Their levels are uncertain, and move together."""
    scores = np.tile(np.random.default_rng(0).uniform(0.5, 1.5, 5), (4, 1))
    curve = fit_curve([20, 40, 60, 80], scores, [0.0] * 4, 0.25, [80, 130], 0)
    assert curve.forecasts[1].change_interval == pytest.approx((0, 0), abs=1e-6)
    assert curve.exponent_interval == pytest.approx((0, 0), abs=1e-6)
    low, high = curve.forecasts[1].interval
    assert high / low > 1.1


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Fold scores with the correlation that the corrected variance supposes, 0.2, between folds and between sizes."""
    rng, covered = np.random.default_rng(0), 0
    truth = 0.2 + (SIZES / 20) ** -0.7
    beyond = 0.2 + (130 / 20) ** -0.7
    for seed in range(60):
        common, own = rng.normal(0, np.sqrt(0.2), (4, 1)), rng.normal(0, np.sqrt(0.8), (4, 5))
        scores = truth[:, None] + 0.05 * (common + own)
        curve = fit_curve([20, 40, 60, 80], scores, [0.0] * 4, 0.25, [80, 130], seed)
        low, high = curve.forecasts[1].interval
        covered += low <= beyond <= high
    assert covered >= 53, "95 % of 60 are 57; the fit is not linear"


def test_sizes_that_are_left_out_are_the_quarters_of_the_smallest_training_part(toy_config: Config) -> None:
    assert divide_training(toy_config) == [5, 10, 15, 20]


@pytest.mark.long
def test_a_curve_on_the_toy_goes_on_and_is_a_table(toy_config: Config, tmp_path: Path) -> None:
    arguments = (toy_config, tmp_path / "curve", [8, 12, 20], [10])
    found = ray_ft.learning_curve(*arguments, inline=True)
    assert found.sizes == [8, 12, 20]
    assert set(found.curves) == {"top", "last", "gain_offset"}
    assert [forecast.size for forecast in found.curves["top"].forecasts] == [8, 12, 20, 30]
    written = [path.stat().st_mtime_ns for path in tmp_path.glob("curve/train_*/summary.json")]
    assert ray_ft.learning_curve(*arguments, inline=True) == found
    assert [path.stat().st_mtime_ns for path in tmp_path.glob("curve/train_*/summary.json")] == written
    table = found.table()
    assert len(table) == 3 * (3 + 4)
    summary = ray_ft.Summary.load(tmp_path / "curve/train_00012")
    row = table[(table["strategy"] == "top") & (table["size"] == 12)].iloc[0]
    assert row["score_mean"] == pytest.approx(summary.strategies["top"].score_mean)


def test_groups_give_the_sizes_that_were_trained_on(toy_folder: Path) -> None:
    np.save("groups.npy", np.arange(30) // 6)
    options = {"cv.strategies": ["last"], "cv.candidates": 1, "data.groups": "groups.npy"}
    config = load_config(toy_folder / "toy.yaml", options)
    with pytest.raises(
        ConfigError, match="got 7, 8, 18, which are 6, 6, 18 samples on average; set them further apart"
    ):
        ray_ft.learning_curve(config, toy_folder / "curve", [7, 8, 18])
    found = ray_ft.learning_curve(config, toy_folder / "curve", [8.0, 14.0, 18.0], [5], inline=True)
    assert found.sizes == [6, 12, 18]
    assert [forecast.size for forecast in found.curves["last"].forecasts] == [6, 12, 18, 23]


def test_what_has_no_curve_is_noted(toy_config: Config, tmp_path: Path) -> None:
    """A hole, scores of 0, and zero-shot, which learns nothing however good it is."""
    full = ray_ft.cross_validate(toy_config, tmp_path / "run", inline=True)
    best = full.baselines | {"zero_shot": full.baselines["zero_shot"].model_copy(update={"score_mean": 1e-9})}
    summaries = [
        full.model_copy(update={"test_share": 10 / size, "baselines": best, "strategies": {
            "top": full.strategies["top"].model_copy(update={"score_mean": None, "scores": []} if size < 15 else {}),
            "last": full.strategies["last"].model_copy(update={"score_mean": 0.0} if size == 20 else {}),
        }}) for size in (8, 12, 20)
    ]  # fmt: skip
    found = fit_curves(summaries, [10], 0)
    assert list(found.curves) == ["gain_offset"]
    assert found.notes == [
        "top has no score at 8, 12, so no curve", "last has a score of 0 at 20, so no power law fits",
    ]  # fmt: skip
    none = fit_curves([s.model_copy(update={"baselines": nullify(s.baselines)}) for s in summaries], [10], 0)
    assert len(none.table()) == 0
    text = io.StringIO()
    Console(file=text, width=140).print(render_curve(none))
    assert "note: top has no score at 8, 12" in text.getvalue()
    assert write_curve_figure(none, tmp_path)[0].exists()


def nullify(baselines: dict[str, BaselineSummary]) -> dict[str, BaselineSummary]:
    return {name: row.model_copy(update={"score_mean": 0.0}) for name, row in baselines.items()}


@pytest.mark.parametrize(
    ("sizes", "more", "text"),
    [
        ([8, 8, 12], [10], "--sizes) must be three or more different whole numbers from 1 on, got 8, 8, 12"),
        ([8, 12, 0.5], [10], "--sizes) must be three or more different whole numbers from 1 on, got 8, 12, 0.5"),
        ([], [10], "from 1 on, got none"),
        ([8, 12, 20], [10, 0], "--more) must be different whole numbers from 1 on, got 10, 0"),
        ([8, 12, 20], [10, 10], "--more) must be different whole numbers from 1 on, got 10, 10"),
        ([8, 12, 21], [10], "--sizes) must be at most the smallest training part, 20 samples, got 21; lower it"),
    ],
)
def test_sizes_that_do_not_fit_start_nothing(
    sizes: list, more: list, text: str, toy_config: Config, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(text)):
        ray_ft.learning_curve(toy_config, tmp_path / "curve", sizes, more)
    assert not (tmp_path / "curve").exists()


def test_a_folder_of_another_run_stops_all_sizes(toy_config: Config, tmp_path: Path) -> None:
    other = tmp_path / "curve/train_00020/thesis.tex"
    other.parent.mkdir(parents=True)
    other.touch()
    with pytest.raises(RunFolderError, match=r"needs an empty folder, got .*train_00020 with thesis\.tex"):
        ray_ft.learning_curve(toy_config, tmp_path / "curve", [8, 12, 20], inline=True)
    assert [path.name for path in (tmp_path / "curve").iterdir()] == ["train_00020"]


def test_a_schedule_that_ends_too_soon_is_noted(toy_folder: Path) -> None:
    config = load_config(toy_folder / "toy.yaml", {"cv.strategies": ["last"], "training.epochs": 1})
    found = ray_ft.learning_curve(config, toy_folder / "curve", [8, 12, 20], inline=True)
    assert any("last was best at the end of its schedule in every fold" in note for note in found.notes)


def test_a_curve_behind_a_uri_is_refused(toy_config: Config) -> None:
    said = "--out of a learning curve must be a folder, got s3://b/x; name one that all nodes share"
    with pytest.raises(ConfigError, match=f"^{said}$"):
        ray_ft.learning_curve(toy_config, "s3://b/x", [5, 10, 15], inline=True)
