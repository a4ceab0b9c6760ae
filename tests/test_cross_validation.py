"""Whole runs on the toy: the same table however it is run, and frozen parts that do not move."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from toy import ON_RAY, WILD, break_toy, table

from ray_ft.config import Config, load_config
from ray_ft.cross_validation import cross_validate
from ray_ft.ensemble import Ensemble
from ray_ft.errors import ConfigError, NetworkError, RunError, RunFolderError, StrategyError
from ray_ft.results.opening import list_strangers
from ray_ft.results.summary import Summary
from ray_ft.runs.folder import RunFolder
from ray_ft.statistics.comparison import compare_pair


def test_repeats_itself(toy_config: Config, tmp_path: Path) -> None:
    first, second = (cross_validate(toy_config, tmp_path / name, inline=True) for name in ("a", "b"))
    assert table(first) == table(second)
    assert first.strategies["top"].n_members == 6
    states = first.strategies["top"].candidates
    assert sum(states.values()) == 3
    assert states["completed"] >= 1
    assert first.strategies["top"].score_mean < first.baselines["zero_shot"].score_mean


@pytest.mark.ray
def test_ray_gives_the_table_of_the_inline_run(ray_run: Path, toy_folder: Path) -> None:
    inline = cross_validate(load_config("toy.yaml", ON_RAY), "inline", inline=True)
    assert table(Summary.load(ray_run / "run")) == table(inline)


@pytest.mark.ray
def test_ray_prepares_a_strategy_once(ray_run: Path) -> None:
    builders = (ray_run / "builds").read_text().splitlines()
    assert any("Preparer" in builder for builder in builders)
    assert not any("ImplicitFunc" in builder for builder in builders), "trials take the split network as it was shared"


KILLED_ONCE = """
    import os, pathlib
    marker = pathlib.Path("killed")
    # The sum keeps the network whole, so that this is run at each step; a trial's process is known by Ray's title.
    if x.sum() < 1e30 and "ImplicitFunc" in pathlib.Path("/proc/self/cmdline").read_text() and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), 9)
"""
BROKEN = """
    if self.training and len(x) > 4:  # more than it is tried with before the first epoch
        raise RuntimeError("out of luck")
"""


@pytest.mark.ray
@pytest.mark.faults
@pytest.mark.filterwarnings("ignore")
def test_a_candidate_whose_process_dies_is_tried_again(toy_folder: Path) -> None:
    break_toy(toy_folder, "    def forward(self, x):", KILLED_ONCE)
    config = load_config("toy.yaml", {"cv.strategies": ["top"], "cv.candidates": 2})
    inline = cross_validate(config, toy_folder / "inline", inline=True)
    assert table(cross_validate(config, toy_folder / "ray")) == table(inline)
    assert (toy_folder / "killed").exists()


@pytest.mark.ray
@pytest.mark.faults
@pytest.mark.filterwarnings("ignore")
def test_candidates_that_keep_failing_are_shown_as_failed(toy_folder: Path) -> None:
    break_toy(toy_folder, "    def forward(self, x):", BROKEN)
    options = {"cv.strategies": ["top"], "cv.candidates": 1, "compute.max_failures": 1}
    config = load_config(toy_folder / "toy.yaml", options)
    with pytest.raises(NetworkError, match="in training it raised RuntimeError: out of luck"):
        cross_validate(config, toy_folder / "run")
    assert "out of luck" in (toy_folder / "run/candidates/top-000/error.txt").read_text()


COUNTER = """
    self.body[0].register_buffer("calls", torch.zeros(()))
"""
COUNT = """
    if len(x) > 4:  # more than it is tried with before the first epoch
        self.body[0].calls.add_(1)
"""


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("inline", [True, pytest.param(False, marks=pytest.mark.ray)], ids=["inline", "ray"])
def test_a_frozen_buffer_that_moves_fails_the_candidate(toy_folder: Path, inline: bool) -> None:
    break_toy(
        toy_folder, "        self.body = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Tanh())", COUNTER
    )
    break_toy(toy_folder, "    def forward(self, x):", COUNT)
    config = load_config(toy_folder / "toy.yaml", {"cv.strategies": ["top"], "cv.candidates": 1})
    with pytest.raises(RunError, match="FrozenDriftError: frozen parameters and buffers must not move"):
        cross_validate(config, toy_folder / "run", inline=inline)


def test_every_pair_and_the_best_baseline_are_compared(toy_config: Config, tmp_path: Path) -> None:
    summary = cross_validate(toy_config, tmp_path / "run", inline=True)
    baseline = min(summary.baselines, key=lambda name: summary.baselines[name].score_mean)
    pairs = {frozenset((pair.first, pair.second)) for pair in summary.comparisons}
    assert pairs == {frozenset(pair) for pair in combinations(["top", "last", baseline], 2)}
    by_fold = {name: np.mean(row.scores, axis=-1) for name, row in summary.strategies.items()}
    (pair,) = (pair for pair in summary.comparisons if baseline not in (pair.first, pair.second))
    expected = compare_pair(pair.first, pair.second, by_fold[pair.first], by_fold[pair.second], 0.01, 0.5)
    assert pair.p_value == expected.p_value


def test_refuses_the_folder_of_another_config(toy_config: Config, tmp_path: Path) -> None:
    cross_validate(toy_config, tmp_path / "run", inline=True)
    other = load_config(Path("toy.yaml"), {"cv.strategies": ["top", "last"], "cv.seeds": 3})
    with pytest.raises(RunFolderError, match=r"cv\.seeds: 2 there, 3 here"):
        cross_validate(other, tmp_path / "run", inline=True)


@pytest.mark.parametrize("name", ["thesis.tex", "config.yaml", "splits.json"])
def test_refuses_a_folder_with_other_files(name: str, toy_config: Config, tmp_path: Path) -> None:
    """Also with one of a run's names: what a run leaves has a lock beside it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(RunFolderError, match=f"needs an empty folder, got .* with {name}"):
        cross_validate(toy_config, tmp_path / "run", inline=True)
    assert [path.read_text() for path in (tmp_path / "run").iterdir()] == ["mine"]


def test_a_folder_in_whose_first_write_a_run_was_killed_is_its_own(toy_config: Config, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in (".lock", f".config-{'0' * 32}.yaml"):
        (tmp_path / "run" / name).touch()
    assert list_strangers(RunFolder(tmp_path / "run")) == []


def test_a_run_that_cannot_start_takes_back_what_it_wrote_alone(toy_config: Config, tmp_path: Path) -> None:
    nowhere = toy_config.model_copy(update={"compute": toy_config.compute.model_copy(update={"address": "[::1]:9"})})
    run = tmp_path / "run"
    for leftovers in ([], [".lock", "config.yaml"]):  # of a run that was cut off
        run.mkdir(exist_ok=True)
        for name in leftovers:
            (run / name).touch()
        with pytest.raises(ConfigError, match="nobody answers"):
            cross_validate(nowhere, run)
        assert list(run.iterdir()) == []
    run.rmdir()
    with pytest.raises(ConfigError, match="nobody answers"):
        cross_validate(nowhere, run)
    assert not run.exists()


def test_a_diverging_candidate_fails_alone_and_never_wins(toy_folder: Path) -> None:
    config = load_config(toy_folder / "toy.yaml", {"strategies.wild": WILD, "cv.strategies": ["wild", "top"]})
    summary = cross_validate(config, toy_folder / "run", inline=True)
    assert summary.lowest == "top"
    assert summary.strategies["wild"].candidates["failed"] == 3
    assert summary.strategies["wild"].score_mean is None


@pytest.mark.parametrize("options", [{"training.batch_size": 1}, {"cv.train_size": 1}])
def test_batch_norm_of_one_sample_is_not_taken_for_a_high_learning_rate(toy_folder: Path, options: dict) -> None:
    full = {"train": ["*"], "lr": 1e-3, "epochs": 2}
    config = load_config(toy_folder / "toy.yaml", {"strategies.full": full, "cv.strategies": ["full"], **options})
    with pytest.raises(RunError, match=r"of two or more samples, got one: body\.1\.running_var is no number"):
        cross_validate(config, toy_folder / "run", inline=True)


def test_a_pattern_that_matches_nothing_leaves_nothing_behind(toy_folder: Path) -> None:
    config = load_config(
        toy_folder / "toy.yaml", {"strategies.x": {"train": ["haed.*"], "lr": 1, "epochs": 1}, "cv.strategies": ["x"]}
    )
    with pytest.raises(StrategyError, match=r"got haed\.\*; did you mean head\.\*\?"):
        cross_validate(config, toy_folder / "run", inline=True)
    assert not (toy_folder / "run").exists()


def test_the_ensemble_score_is_that_of_the_blind_members(toy_config: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = cross_validate(toy_config, run, inline=True)
    ensemble = Ensemble.load(run)
    x, y = np.load("x.npy"), np.load("y.npy")
    fold_of = np.array(json.loads((run / "splits.json").read_text())["fold_of"][0])
    blind = np.empty_like(y)
    for fold in range(3):
        held_out = fold_of == fold
        members, _ = ensemble.predict_members(x[held_out], symmetric=False)
        blind[held_out] = members[0, 0, fold].mean(0)
    assert summary.ensemble.score == pytest.approx(((blind - y) ** 2).mean(), rel=1e-5)
    assert summary.ensemble.n_blind == 2
