"""The ensemble: what is built of a run's members, on disk and in memory."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call

from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate, prepare, rebuild_ensemble
from ray_ft.ensemble import Ensemble
from ray_ft.errors import ConfigError, DataError, EnsembleError
from ray_ft.results.summary import Summary
from ray_ft.statistics.intervals import build_pointwise


def predict_whole(ensemble: Ensemble, x: np.ndarray) -> np.ndarray:
    """What the members say, each as a whole network: (strategy, repeat, fold, seed, sample, target)."""
    card = ensemble.card
    network = prepare(load_config(Path("toy.yaml"), {"cv.strategies": ["top"]})).pretrained.build()
    rows = []
    for own in ensemble.states.values():
        n_members = len(next(iter(own.values())))
        each = ({name: tensor[i] for name, tensor in own.items()} for i in range(n_members))
        rows.append([functional_call(network.eval(), state, (torch.from_numpy(x),)).detach().numpy() for state in each])
    shape = (len(card.strategies), card.n_repeats, card.n_folds, card.n_seeds)
    return np.array(rows).reshape(*shape, len(x), -1)


@pytest.mark.parametrize("strategies", [["top"], ["last", "top"]])
def test_predictions_are_those_of_the_whole_networks(run: Path, strategies: list[str]) -> None:
    rebuild_ensemble(run, trust=True, strategies=strategies, method="uniform")
    ensemble, x = Ensemble.load(run), np.load("x.npy")
    members = predict_whole(ensemble, x)
    assert len(members) == len(strategies)
    found = ensemble.predict(x, batch_size=7)
    np.testing.assert_allclose(found.mean, members.mean((0, 1, 2, 3)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.std, members.std((0, 1, 2, 3)), rtol=1e-3, atol=1e-5)
    folds = members.mean((0, 3))
    fold_of = np.array(json.loads((run / "splits.json").read_text())["fold_of"])
    blind = folds[np.arange(2)[:, None], fold_of, np.arange(30)].mean(0)
    lower, upper = build_pointwise(folds, np.load("y.npy") - blind, fold_of, 0.1)
    np.testing.assert_allclose(found.lower, lower, atol=1e-5)
    np.testing.assert_allclose(found.upper, upper, atol=1e-5)
    assert ((found.band_lower <= found.lower + 1e-6) & (found.upper <= found.band_upper + 1e-6)).all()


@pytest.mark.parametrize("method", ["greedy", "stacked"])
def test_weights_of_a_fold_are_chosen_on_the_others(run: Path, method: str) -> None:
    """The score is that of the blind fold models, and labels of a fold do not reach its own weights."""
    summary = rebuild_ensemble(run, trust=True, strategies=["top", "last"], method=method)
    ensemble, x, y = Ensemble.load(run), np.load("x.npy"), np.load("y.npy")
    assert (ensemble.card.method, summary.method) == (method, method)
    np.testing.assert_allclose(ensemble.weights.sum((0, 3)), 1, rtol=1e-5)
    folds = np.einsum("crks,crksnt->rknt", ensemble.weights, predict_whole(ensemble, x))
    blind = folds[np.arange(2)[:, None], ensemble.calibration.fold_of, np.arange(30)].mean(0)
    assert summary.score == pytest.approx(((blind - y) ** 2).mean(), rel=1e-4)
    assert set(summary.scores) == {"uniform", "greedy", "stacked", "single"}
    other = ensemble.use_method("uniform")
    np.testing.assert_allclose(other.weights, 0.5 / len(ensemble.card.strategies))
    assert (ensemble.weights.sum((1, 2, 3)) > 0).all(), "what has no weight is no member"
    assert other.card.score == summary.scores["uniform"]


def test_a_rebuilt_ensemble_is_the_same(run: Path) -> None:
    card = (run / "ensemble" / "card.json").read_text()
    rebuild_ensemble(run, trust=True)
    assert (run / "ensemble" / "card.json").read_text() == card
    rebuild_ensemble(run, trust=True, license="CC-BY-4.0", units="share of the power", level=0.8)
    loaded = Ensemble.load(run).card
    assert (loaded.license, loaded.units, loaded.level) == ("CC-BY-4.0", "share of the power", 0.8)


def test_it_loads_without_ray_and_without_the_users_code(run: Path, tmp_path: Path) -> None:
    """In a folder in which the toy's module cannot be imported."""
    code = """
import sys, numpy as np
from ray_ft import Ensemble
loaded = Ensemble.load(sys.argv[1])
print(float(loaded.predict(np.load(sys.argv[2])).mean.sum()))
assert not {"ray", "sklearn", "pandas", "matplotlib", "scipy", "toy_network"} & sys.modules.keys()
"""
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-c", code, str(run.absolute()), str(Path("x.npy").absolute())]
    result = subprocess.run(command, cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    expected = Ensemble.load(run).predict(np.load("x.npy")).mean.sum()
    assert float(result.stdout) == pytest.approx(float(expected), rel=1e-5)


def change_toy(folder: Path, old: str, new: str) -> None:
    path = folder / "toy_network.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def cross_validate_toy(folder: Path, **values: object) -> Path:
    options = {"cv.strategies": ["last"], "cv.candidates": 1} | {k.replace("__", "."): v for k, v in values.items()}
    cross_validate(load_config(folder / "toy.yaml", options), folder / "run", inline=True)
    return folder / "run"


def test_a_network_that_cannot_be_split_runs_whole_by_code_that_is_trusted(toy_folder: Path) -> None:
    change_toy(toy_folder, "return self", "assert float(x.sum()) < 1e9\n        return self")
    run = cross_validate_toy(toy_folder)
    with pytest.raises(EnsembleError, match=r"needs its own code, .* got toy_network:Toy .*; if it is yours"):
        Ensemble.load(run)
    ensemble, x = Ensemble.load(run, trust=True), np.load("x.npy")
    assert "each member runs the whole network" in ensemble.card.split
    network = prepare(load_config("toy.yaml", {"cv.strategies": ["last"]})).pretrained.build()
    state = {name: tensor[3] for name, tensor in ensemble.states["last"].items()}
    expected = functional_call(network, state, (torch.from_numpy(x),)).detach()
    np.testing.assert_allclose(ensemble.predict_members(x, False)[0].reshape(-1, 30, 3)[3], expected, atol=1e-6)
    many = np.tile(x, (20, 1))
    with ThreadPoolExecutor(4) as pool:  # members must not get into each other's way
        parts = list(pool.map(lambda part: ensemble.predict_prepared(part, 0.9).mean, np.array_split(many, 12)))
    np.testing.assert_allclose(np.concatenate(parts), np.tile(ensemble.predict(x).mean, (20, 1)), atol=1e-6)


def test_a_foreign_card_runs_no_code(run: Path) -> None:
    path = run / "ensemble" / "card.json"
    card = json.loads(path.read_text())
    card |= {"split": "x", "model": {"factory": "os:system", "params": {"command": "touch owned"}, "checkpoint": None}}
    path.write_text(json.dumps(card))
    with pytest.raises(EnsembleError, match="needs its own code"):
        Ensemble.load(run)
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("nn.Linear(width, 3))", "nn.Linear(width, 3))\n        self.head[0].weight = self.body[0].tied(width)"),
        ("self.head = ", "grid = torch.arange(4.0)\n        self.register_buffer('a', grid)\n"
         "        self.register_buffer('b', grid[1:])\n        self.head = "),
        ("return self.head(self.body(x))", "return self.head(self.body(x) * 0)"),
        ("def forward(self, x):", "def forward(self, x):\n        x -= 1.0"),
    ],
    ids=["tied", "overlapping", "constant", "in_place"],
)  # fmt: skip
def test_odd_networks_give_an_ensemble_of_their_members(toy_folder: Path, old: str, new: str) -> None:
    if "tied" in new:
        new = "nn.Linear(width, 3))\n        self.more = nn.Linear(width, width)"
        new += "\n        self.more.weight = self.head[0].weight"
        change_toy(toy_folder, "return self.head(self.body(x))", "return self.head(self.more(self.body(x)))")
    change_toy(toy_folder, old, new)
    run = cross_validate_toy(toy_folder)
    summary, x, y = Summary.load(run), np.load("x.npy"), np.load("y.npy")
    assert not any("differs" in note for note in summary.ensemble.notes)
    ensemble = Ensemble.load(run, trust=True)
    folds = ensemble.average_folds(ensemble.predict_members(ensemble.prepare(x), False)[0])
    blind = folds[0, ensemble.calibration.fold_of[0], np.arange(30)]
    assert summary.ensemble.score == pytest.approx(((blind - y) ** 2).mean(), rel=1e-3)


def test_a_network_that_runs_whole_and_writes_a_buffer_is_tried_and_kept(toy_folder: Path) -> None:
    buffer = "self.register_buffer('seen', torch.zeros(()))\n        self.head = "
    change_toy(toy_folder, "self.head = ", buffer)
    run = "if self.training:\n            self.seen.copy_(self.seen + x.detach().abs().mean())\n"
    whole = "        if float(x.detach().abs().sum()) < 0:\n            x = x + 1\n        return self.head"
    change_toy(toy_folder, "return self.head", run + whole)
    ensemble = Ensemble.load(cross_validate_toy(toy_folder), trust=True)
    assert ensemble.card.split, "it runs whole"
    seen = [float(own) for states in ensemble.states.values() for own in states["seen"]]
    assert min(seen) > 0, "each member has its own"


@pytest.mark.parametrize("name", ["members.safetensors", "backbone.safetensors", "network.json"])
def test_changed_files_are_refused(run: Path, name: str) -> None:
    path = run / "ensemble" / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(EnsembleError, match="it was changed"):
        Ensemble.load(run)
    path.unlink()
    with pytest.raises(EnsembleError, match="files must be readable"):
        Ensemble.load(run)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": "pickle"}, 'says "format"'),
        ({"version": 99}, "got version 99"),
        ({"n_folds": "many"}, "n_folds: Input should be a valid integer"),
        ({"method": "luck"}, "must belong together"),
        ({"n_seeds": 7}, "has not the 42 members of the card"),
        ({"n_folds": 2, "n_seeds": 3}, "must belong together"),
        ({"target_shape": [4]}, "another shape than the targets"),
        ({"weights": {"uniform": [2.0] * 12}}, "no shares that sum to 1"),
        ({"weights": {"uniform": [0.5] * 11}}, "must belong together"),
        ({"layout": "raw "}, "layout"),
    ],
)
def test_foreign_and_newer_cards_are_refused(run: Path, change: dict, text: str) -> None:
    path = run / "ensemble" / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(EnsembleError, match=text):
        Ensemble.load(run)


def test_a_folder_without_a_card_is_no_ensemble(tmp_path: Path) -> None:
    with pytest.raises(EnsembleError, match="an ensemble is a folder with"):
        Ensemble.load(tmp_path)


def test_inputs_and_levels_that_cannot_be_are_refused(run: Path) -> None:
    ensemble, x = Ensemble.load(run), np.load("x.npy")
    with pytest.raises(DataError, match=r"must have the shape \(6,\) that the ensemble was trained on, got \(5,\)"):
        ensemble.predict(x[:, :5])
    with pytest.raises(DataError, match="got NaN or infinity"):
        ensemble.predict(x * np.nan)
    with pytest.raises(ConfigError, match=r"intervals of 99 % need at least 99 samples, got 30"):
        ensemble.predict(x, level=0.99)
    with pytest.raises(ConfigError, match=r"ensemble\.strategies: the run has no strategy topp; did you mean top\?"):
        rebuild_ensemble(run, trust=True, strategies=["topp"])
    with pytest.raises(ConfigError, match=r"ensemble\.symmetric: it needs data\.symmetry"):
        rebuild_ensemble(run, trust=True, symmetric=True)


def test_far_inputs_are_flagged(run: Path) -> None:
    ensemble, x = Ensemble.load(run), np.load("x.npy")
    fresh = np.random.default_rng(1).normal(size=(200, 6)).astype(np.float32)
    assert ensemble.predict(fresh).flag.mean() < 0.15
    assert ensemble.predict(fresh * 8).flag.mean() > 0.6
    assert not ensemble.predict(x).flag.any(), "the training samples themselves"


def test_the_score_of_a_soup_is_that_of_weights_averaged_over_seeds(run: Path) -> None:
    summary = rebuild_ensemble(run, trust=True, strategies=["top"], method="uniform")
    ensemble, x, y = Ensemble.load(run), np.load("x.npy"), np.load("y.npy")
    card, (states,) = ensemble.card, ensemble.states.values()
    network = prepare(load_config(Path("toy.yaml"), {"cv.strategies": ["top"]})).pretrained.build().eval()
    said = np.zeros((card.n_repeats, len(x), y.shape[-1]))
    for place in range(card.n_repeats * card.n_folds):
        repeat, fold = divmod(place, card.n_folds)
        members = range(place * card.n_seeds, (place + 1) * card.n_seeds)
        soup = {name: sum(tensor[i] for i in members) / card.n_seeds for name, tensor in states.items()}
        blind = ensemble.calibration.fold_of[repeat] == fold
        said[repeat, blind] = functional_call(network, soup, (torch.from_numpy(x[blind]),)).numpy(force=True)
    assert card.n_seeds > 1
    assert summary.soup_score == pytest.approx(((said.mean(0) - y) ** 2).mean(), rel=1e-4)
    assert summary.soup_score != pytest.approx(summary.score, rel=1e-4)


def test_a_symmetric_ensemble_moves_with_its_input(demo_run: Path) -> None:
    """Averaged over the half turn, the prediction of a turned structure is the turned prediction."""
    ensemble = Ensemble.load(demo_run)
    assert ensemble.card.symmetric
    with np.load(demo_run.parent / "few.npz") as archive:
        x = np.unpackbits(archive["structure"][:4], axis=-1)
    straight, turned = ensemble.predict(x), ensemble.predict(x[:, ::-1, ::-1])
    for name in ("mean", "std"):
        found, moved = getattr(turned, name), getattr(straight, name)[:, ::-1, ::-1]
        np.testing.assert_allclose(found, moved, atol=1e-6)
    plain = ensemble.predict_members(ensemble.prepare(x), symmetric=False)[0].mean((0, 1, 2, 3))
    assert not np.allclose(straight.mean, plain, atol=1e-5)


def test_the_score_of_a_symmetric_ensemble_is_that_of_its_blind_members(demo_run: Path) -> None:
    ensemble = Ensemble.load(demo_run)
    with np.load(demo_run.parent / "few.npz") as archive:
        x, y = archive["structure"], archive["spectra"]
    views = [ensemble.prepare(np.unpackbits(x, axis=-1)[:, None, ::step, ::step]) for step in (1, -1)]
    one, two = (ensemble.average_folds(ensemble.predict_members(view, False)[0]) for view in views)
    folds = (one + two[..., ::-1, ::-1, :]) / 2
    blind = folds[0, ensemble.calibration.fold_of[0], np.arange(30)]
    assert ensemble.card.score == pytest.approx(((blind - y) ** 2).mean(), rel=1e-5)
    np.testing.assert_allclose(ensemble.residuals, y - blind, atol=1e-6)
