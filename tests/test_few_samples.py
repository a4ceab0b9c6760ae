"""Few samples: where no interval can be had, everything else is answered, and it is said from how many on there are."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch

from ray_ft import Ensemble, cross_validate
from ray_ft.config import load_config
from ray_ft.ensemble.export import export_ensemble
from ray_ft.errors import ConfigError
from ray_ft.results.summary import Summary
from ray_ft.serving.app import PreparedRequest, predict_together

Command = Callable[..., CompletedProcess[str]]
LACK = "intervals of 90 % need at least 9 samples, got {}; lower the level or add samples"


def cut(n: int) -> None:
    for name in ("x.npy", "y.npy"):
        np.save(name, np.load(name)[:n])


def run(n_folds: int = 3) -> Summary:
    values = {"cv.strategies": ["last"], "cv.candidates": 1, "cv.seeds": 1, "cv.folds": n_folds, "training.epochs": 2}
    return cross_validate(load_config("toy.yaml", values), "run", inline=True)


@pytest.mark.parametrize(("n", "n_folds"), [(8, 3), (4, 2)])
def test_commands_answer_without_intervals_and_say_from_how_many_on(
    toy_folder: Path, ray_ft_here: Command, n: int, n_folds: int
) -> None:
    cut(n)
    lack = LACK.format(n)
    assert f"{lack}; until then predictions have none" in run(n_folds).notes
    for output in ("p.npz", "folder"):
        said = ray_ft_here("predict", "run", "--inputs", "x.npy", "--out", output)
        assert said.returncode == 0
        assert f"note: {lack}; until then predictions have none" in said.stderr
    with np.load("p.npz") as archive:
        assert set(archive) == {"mean", "std", "novelty", "p_value", "flag"}
        np.testing.assert_array_equal(archive["mean"], np.load("folder/mean.npy"))
    assert {path.stem for path in Path("folder").glob("*.npy")} == {"mean", "std", "novelty", "p_value", "flag"}
    for word in ("--level=0.9", "--quantities=mean,lower"):
        said = ray_ft_here("predict", "run", "--inputs", "x.npy", "--out", "q.npz", word)
        assert (said.returncode, lack in said.stderr) == (2, True)
    found = json.loads(ray_ft_here("evaluate", "run", "--inputs", "x.npy", "--targets", "y.npy", "--json").stdout)
    assert found["lack"] == lack
    assert "coverage" not in found
    assert found["mse"] > 0
    words = ("evaluate", "run", "--inputs", "x.npy", "--targets", "y.npy", "--plot", "c.png")
    said = ray_ft_here(*words)
    assert (said.returncode, "need at least 9 samples" in said.stdout, Path("c.png").exists()) == (0, True, True)
    assert ray_ft_here("report", "run").returncode == 0
    assert "need at least 9 samples" in Path("run/report.html").read_text()
    np.save("pool.npy", np.load("x.npy") + 1)
    assert ray_ft_here("suggest", "run", "--inputs", "pool.npy", "--n", "2").returncode == 0


def test_an_export_and_a_server_answer_without_them_too(toy_folder: Path) -> None:
    cut(8)
    run()
    ensemble, x = Ensemble.load("run"), np.load("x.npy")
    found = ensemble.predict(x)
    assert found.lower is found.upper is found.band_lower is found.band_upper is None
    mean, std = torch.export.load(export_ensemble(ensemble, Path("e.pt2"))).module()(torch.from_numpy(x))
    np.testing.assert_allclose(mean.numpy(), found.mean, atol=1e-5)
    np.testing.assert_allclose(std.numpy(), found.std, atol=1e-5)
    assert ensemble.exported == ("mean", "std")
    requests = [PreparedRequest(ensemble.prepare(own), 0.9) for own in (x[:3], x[3:])]
    first, second = predict_together(ensemble, requests)
    assert first.lower is None
    np.testing.assert_allclose(np.concatenate([first.mean, second.mean]), found.mean, atol=1e-6)
    with pytest.raises(ConfigError, match="need at least 9 samples, got 8"):
        ensemble.predict(x, level=0.9)
    assert ensemble.predict(x, level=0.85).lower.shape == (8, 3)


def test_nine_samples_have_intervals(toy_folder: Path) -> None:
    cut(9)
    assert not any("need at least" in note for note in run().notes)
    assert Ensemble.load("run").predict(np.load("x.npy")).upper.shape == (9, 3)
