"""Targets of one number a sample: `(n,)` and `(n, 1)`, with networks that answer either way, give the same run."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn

from ray_ft import Ensemble, cross_validate
from ray_ft.config import load_config
from ray_ft.errors import DataError
from ray_ft.models import find_answer_shape, predict_all
from ray_ft.objectives.regression_losses import score_predictions
from ray_ft.python.learning_curves import learning_curve
from ray_ft.results.summary import Summary

N = 65  # two batches of 32, and one sample
NETWORK = """
import torch
from torch import nn


class Scalar(nn.Module):
    def __init__(self, form="flat", whole=False):
        super().__init__()
        self.form, self.whole = form, whole
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 1)

    def forward(self, x):
        if self.whole and float(x.abs().sum()) < 0:  # which no graph can hold
            return x
        y = self.head(torch.tanh(self.body(x)))
        return {"flat": y.squeeze(-1), "column": y, "squeezed": y.squeeze(), "map": y[:, :, None]}[self.form]
"""
CONFIG = """
model: {factory: "scalar_network:Scalar", checkpoint: w.pt}
data: {inputs: x.npy, targets: y.npy}
cv: {folds: 3, seeds: 1, candidates: 1, strategies: [top, closed]}
search: {method: guide}
compute: {packing: looped}
strategies:
  top: {train: ["head.*"], lr: 1.0e-2, epochs: 2, batch_size: 16}
  closed: {fit: ridge, train: ["head.*"]}
"""
Command = Callable[..., CompletedProcess[str]]


@pytest.fixture
def scalar_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 6)).astype(np.float32)
    y = np.tanh(x @ rng.normal(size=6)).astype(np.float32)
    for name, array in {"x": x, "y": y, "y1": y[:, None]}.items():
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "scalar_network.py").write_text(NETWORK)
    (tmp_path / "c.yaml").write_text(CONFIG)
    torch.manual_seed(0)
    weights = {"body.weight": torch.randn(8, 6) / 2, "body.bias": torch.zeros(8)}
    torch.save(weights | {"head.weight": torch.randn(1, 8) / 3, "head.bias": torch.zeros(1)}, tmp_path / "w.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "scalar_network", raising=False)
    torch.set_num_threads(1)
    return tmp_path


def run(out: str, form: str, targets: str = "y.npy", inline: bool = True, **more: Any) -> Summary:
    values = {"model.params.form": form, "data.targets": targets, **more}
    return cross_validate(load_config("c.yaml", values), out, inline=inline)


def list_scores(summary: Summary) -> dict[str, Any]:
    scores = {name: own.scores for name, own in summary.strategies.items()}
    return scores | {name: own.scores for name, own in summary.baselines.items()} | {"all": summary.ensemble.scores}


@pytest.mark.long
def test_every_form_gives_the_same_run(scalar_folder: Path) -> None:
    right = run("right", "column", "y1.npy")
    x = np.load("x.npy")
    told = Ensemble.load("right").predict(x)
    forms = [("flat", "y"), ("flat", "y1"), ("column", "y"), ("squeezed", "y"), ("squeezed", "y1"), ("map", "y1")]
    for form, targets in forms:
        out = f"{form}-{targets}"
        summary = run(out, form, f"{targets}.npy")
        for name, scores in list_scores(right).items():
            np.testing.assert_allclose(
                np.array(list(scores.values()) if isinstance(scores, dict) else scores),
                np.array(list(own.values()) if isinstance(own := list_scores(summary)[name], dict) else own),
                rtol=1e-4,
            )
        found = Ensemble.load(out).predict(x)
        for name in ("mean", "std", "lower", "band_upper"):
            assert getattr(found, name).shape == np.load(f"{targets}.npy").shape, (out, name)
            np.testing.assert_allclose(getattr(found, name).ravel(), getattr(told, name).ravel(), rtol=1e-3, atol=1e-4)
        said = any("the same values, laid out as the targets are" in note for note in summary.notes)
        assert said == ((form, targets) not in {("flat", "y"), ("squeezed", "y")}), out


def test_a_network_that_runs_whole_answers_as_the_targets_are(scalar_folder: Path) -> None:
    more = {"model.params.whole": True, "cv.strategies": ["top"]}
    summary = run("whole", "column", **more)
    ensemble = Ensemble.load("whole", trust=True)
    assert ensemble.card.split
    assert summary.ensemble.score == pytest.approx(run("split", "flat", **{"cv.strategies": ["top"]}).ensemble.score)
    assert ensemble.predict(np.load("x.npy")).mean.shape == (N,)


def test_the_commands_take_targets_of_one_number(scalar_folder: Path, ray_ft_here: Command) -> None:
    run("r", "squeezed", **{"cv.strategies": ["top"]})
    ray_ft_here("report", "r")
    drawn = {path.stem for path in Path("r/figures").iterdir()}
    assert "predictions" in drawn
    assert not {"errors", "sample_worst"} & drawn, "one number has no place along an axis, and is no curve"
    assert ray_ft_here("predict", "r", "--inputs", "x.npy", "--out", "p.npz").returncode == 0
    assert ray_ft_here("predict", "r", "--inputs", "x.npy", "--out", "folder").returncode == 0
    with np.load("p.npz") as archive:
        mean = archive["mean"]
        assert mean.shape == archive["upper"].shape == (N,)
    np.testing.assert_array_equal(np.load("folder/mean.npy"), mean)
    found = [
        json.loads(ray_ft_here("evaluate", "r", "--inputs", "x.npy", "--targets", f"{own}.npy", "--json").stdout)
        for own in ("y", "y1")
    ]
    assert found[0] == found[1] | {"n_known": found[0]["n_known"]}
    assert found[0]["mse"] == pytest.approx(np.square(mean - np.load("y.npy")).mean(), rel=1e-5)
    assert ray_ft_here("export", "r", "--out", "r.pt2").returncode == 0
    exported = torch.export.load("r.pt2").module()
    for n in (1, 5):  # the exported network must keep the axis of the samples, too
        own = exported(torch.from_numpy(np.load("x.npy")[:n]))[0]
        np.testing.assert_allclose(own.numpy(), mean[:n], atol=1e-5)
    assert ray_ft_here("suggest", "r", "--inputs", "x.npy", "--n", "1").returncode == 2  # all are training samples
    np.save("pool.npy", np.load("x.npy") + 1)
    assert ray_ft_here("suggest", "r", "--inputs", "pool.npy", "--n", "3").returncode == 0


def test_a_learning_curve_takes_them(scalar_folder: Path) -> None:
    config = load_config("c.yaml", {"model.params.form": "column", "cv.strategies": ["closed"]})
    assert set(learning_curve(config, "curve", [12, 20, 40], [10], inline=True).curves) >= {"closed"}


@pytest.mark.ray
@pytest.mark.slow
def test_ray_says_the_same(scalar_folder: Path) -> None:
    more = {"cv.strategies": ["top"]}
    assert list_scores(run("on-ray", "squeezed", inline=False, **more)) == list_scores(run("here", "squeezed", **more))


def test_values_of_other_numbers_are_refused(scalar_folder: Path) -> None:
    np.save("y2.npy", np.ones((N, 2), np.float32))
    with pytest.raises(DataError, match=r"must have the shape of the targets, got \(\) for \(2,\)"):
        run("r", "flat", "y2.npy")


def test_losses_never_broadcast() -> None:
    with pytest.raises((AssertionError, TypeCheckError)):  # the second where types are checked, as in tests
        score_predictions("mse", np.ones((5, 1)), np.ones(5))
    assert score_predictions("mae", np.ones(5), np.zeros(5)).shape == (5,)


@pytest.mark.parametrize(
    ("squeeze", "wanted", "told"),
    [(False, (1, 2), (1, 2)), (False, (2,), None), (True, (2,), (2,)), (False, (3,), None)],
)
def test_an_answer_is_laid_out_only_where_it_must(
    squeeze: bool, wanted: tuple[int, ...], told: tuple[int, ...] | None
) -> None:
    network = nn.Sequential(nn.Linear(4, 2), Squeeze() if squeeze else nn.Identity()).eval()
    inputs = np.ones((N, 4), np.float32)
    found = tuple(predict_all(network, inputs).shape)
    assert found == (N, 2)
    assert find_answer_shape(network, inputs, found[1:], wanted) == told


class Squeeze(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.squeeze()
