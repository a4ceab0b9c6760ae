"""An ensemble on fresh samples, against the numbers by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import r2_score, root_mean_squared_error

from ray_ft.ensemble import Ensemble
from ray_ft.ensemble.evaluation import evaluate_ensemble, read_labelled
from ray_ft.errors import ConfigError, DataError


def draw_fresh(n: int = 60) -> None:
    """More of the toy's problem; the weights are those of the first draw."""
    rng = np.random.default_rng(0)
    rng.normal(size=(30, 6))
    weights, x = rng.normal(size=(6, 3)), np.random.default_rng(1).normal(size=(n, 6))
    np.save("fresh_x.npy", x.astype(np.float32))
    np.save("fresh_y.npy", np.tanh(x @ weights).astype(np.float32))


def test_numbers_are_those_of_the_predictions(run: Path) -> None:
    draw_fresh()
    ensemble, x, y = Ensemble.load(run), np.load("fresh_x.npy"), np.load("fresh_y.npy")
    found = evaluate_ensemble(ensemble, read_labelled(ensemble, None, "fresh_x.npy", "fresh_y.npy"), 0.8)
    prediction = ensemble.predict(x, level=0.8)
    assert found.mse == pytest.approx(((prediction.mean - y) ** 2).mean(), rel=1e-5)
    assert found.coverage == pytest.approx(((prediction.lower <= y) & (y <= prediction.upper)).mean())
    inside = ((prediction.band_lower <= y) & (y <= prediction.band_upper)).all(1)
    assert found.band_coverage == pytest.approx(inside.mean())
    assert found.width == pytest.approx((prediction.upper - prediction.lower).mean(), rel=1e-5)
    assert found.flagged == prediction.flag.mean()
    assert found.coverage > 0.65
    assert set(found.methods) == {"uniform", "greedy", "stacked", "single"}
    levels = [point.nominal for point in found.calibration]
    (at_level,) = (point for point in found.calibration if point.nominal == pytest.approx(0.8))
    assert sorted(levels, reverse=True) == levels
    assert (at_level.coverage, at_level.band_coverage) == (found.coverage, found.band_coverage)


def test_each_output_is_measured_in_its_own_unit(run: Path, ray_ft_here: Callable[..., Any]) -> None:
    draw_fresh()
    ensemble, x, y = Ensemble.load(run), np.load("fresh_x.npy"), np.load("fresh_y.npy")
    found = evaluate_ensemble(ensemble, read_labelled(ensemble, None, "fresh_x.npy", "fresh_y.npy"))
    prediction = ensemble.predict(x)
    assert list(found.outputs) == ["target 0", "target 1", "target 2"]
    for i, own in enumerate(found.outputs.values()):
        told, true = prediction.mean[:, i], y[:, i]
        assert own["rmse"] == pytest.approx(root_mean_squared_error(true, told), rel=1e-5)
        assert own["r2"] == pytest.approx(r2_score(true, told), rel=1e-5)
        inside = (prediction.lower[:, i] <= true) & (true <= prediction.upper[:, i])
        assert own["coverage"] == pytest.approx(inside.mean())
    said = ray_ft_here("evaluate", "run", "--inputs", "fresh_x.npy", "--targets", "fresh_y.npy").stdout
    assert f"{own['rmse']:.4g}" in said
    share, z, n = found.band_coverage, norm.ppf(0.975), 60
    middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = ((middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    assert f"may be {low:.0%} to {high:.0%}".replace("%", " %") in said


def test_the_command_prints_one_json_object_and_draws(run: Path, ray_ft_here: Callable[..., Any]) -> None:
    draw_fresh()
    words = ["evaluate", "run", "--inputs", "fresh_x.npy", "--targets", "fresh_y.npy"]
    result = ray_ft_here(*words, "--json", "--plot", "calibration.png")
    assert result.returncode == 0, result.stderr
    content = json.loads(result.stdout)
    assert {"mse", "coverage", "nominal", "width"} <= content.keys()
    assert content["nominal"] == 0.9
    assert Path("calibration.png").stat().st_size > 1000
    assert "whole samples" in ray_ft_here(*words).stdout


def test_labelled_samples_must_be_as_the_runs_were(run: Path, demo_run: Path) -> None:
    draw_fresh()
    ensemble = Ensemble.load(run)
    with pytest.raises(DataError, match=r"got no inputs; give --inputs FILE\[::key\]"):
        read_labelled(ensemble, None, None, "fresh_y.npy")
    with pytest.raises(DataError, match=r"the inputs of the run had no names.*; give --inputs fresh_x.npy::KEY$"):
        read_labelled(ensemble, "fresh_x.npy", None, "fresh_y.npy")
    with pytest.raises(DataError, match=r"targets must have the shape \(3,\), got \(6,\) in fresh_x.npy"):
        read_labelled(ensemble, None, "fresh_x.npy", "fresh_x.npy")
    with pytest.raises(DataError, match=r"a data file must exist, got nothere\.npz; check the path"):
        read_labelled(ensemble, "nothere.npz", None, None)
    with pytest.raises(ConfigError, match="need at least"):
        evaluate_ensemble(ensemble, read_labelled(ensemble, None, "fresh_x.npy", "fresh_y.npy"), 0.999)
    of_structures = Ensemble.load(demo_run)
    dataset = read_labelled(of_structures, str(demo_run.parent / "few.npz"), None, None)
    assert len(dataset) == 30
