"""Runs that search: the same table however they are carried out, and one that goes on when its budget grows."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_once
from rich.console import Console
from toy import enter_toy

from ray_ft import cross_validation
from ray_ft.backends.progress import Display
from ray_ft.config import Config, load_config
from ray_ft.cross_validation import cross_validate, prepare, rebuild_ensemble
from ray_ft.errors import RunFolderError
from ray_ft.files.writing import read_record, write_record
from ray_ft.fitting.fitter import FitSettings
from ray_ft.fitting.preparation import prepare_strategy
from ray_ft.fitting.range_test import run_range_test
from ray_ft.results.records import load_splits
from ray_ft.results.summary import Summary
from ray_ft.runs.folder import RunFolder
from ray_ft.search.best import BestProposer

KEYS = {
    "cv.strategies": ["top", "mine", "closed"],
    "search.method": "best",
    "cv.candidates": 6,
    "strategies.mine": {"train": ["head.3.*"]},
    "strategies.closed": {"fit": "ridge", "train": ["head.3.*"]},
}


COMMAND = [sys.executable, "-m", "ray_ft", "cv", "-c", "toy.yaml", "--inline"]
COMMAND += [word for key, value in KEYS.items() for word in ("--set", f"{key}={json.dumps(value)}")]
CHOICES = {"stop_epochs", "chosen_candidates", "candidates", "settled", "unsettled_because", "n_candidates", "best"}


@pytest.fixture
def config(toy_folder: Path) -> Config:
    return load_config(toy_folder / "toy.yaml", KEYS)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts, made once."""
    return make_once(tmp_path_factory, "search", run_search) / "run"


def run_search(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        enter_toy(folder, patch)
        cross_validate(load_config("toy.yaml", KEYS), "run", inline=True)


@pytest.fixture
def whole(whole_run: Path) -> Summary:
    return Summary.load(whole_run)


def assert_same(found: Summary, expected: Summary) -> None:
    for name, own in expected.strategies.items():
        other = found.strategies[name]
        np.testing.assert_allclose(other.scores, own.scores, rtol=1e-6)
        assert other.model_dump(include=CHOICES) == own.model_dump(include=CHOICES)
        assert {key: (v.state, v.epoch) for key, v in other.verdicts.items()} == {
            key: (v.state, v.epoch) for key, v in own.verdicts.items()
        }
    assert found.ensemble.score == pytest.approx(expected.ensemble.score, rel=1e-6)


def test_a_search_is_told_in_the_summary(whole: Summary, whole_run: Path) -> None:
    content = json.loads((whole_run / "summary.json").read_text())
    assert content["search"] == {"method": "best", "candidates": 6, "minutes": None}
    closed = whole.strategies["closed"]
    assert (closed.n_candidates, closed.settled, closed.lr_tried, closed.n_members) == (1, True, None, 6)
    for name, own in whole.strategies.items():
        if name == "closed":
            continue
        assert own.n_candidates == len(own.verdicts) == 6
        low, high = own.lr_tried
        assert low <= own.best["lr"] <= high
        assert own.settled == (not own.unsettled_because)
        assert own.n_members == 6, "all folds x seeds, though candidates were searched by one seed"
        assert (own.guide_score is None) == (name == "mine"), "what has no ranges has no recipe"
    finished = sorted(path.name for path in (whole_run / "candidates").iterdir() if "-r0-" in path.name)
    assert len(finished) == 6, "one more seed for each fold of each strategy"


def test_later_seeds_are_those_that_all_seeds_at_once_would_have_trained(toy_folder: Path) -> None:
    fixed = KEYS | {"cv.candidates": 1, "training.epochs": 5, "training.lr": 1e-2, "cv.strategies": ["top"]}
    one, every = (
        cross_validate(load_config("toy.yaml", fixed | {"search.seeds": seeds}), seeds, inline=True)
        for seeds in ("one", "all")
    )
    splits, losses = load_splits(RunFolder(Path("all"))), np.load("all/candidates/top-000/history.npz")["losses"]
    for fold, epoch in enumerate(one.strategies["top"].stop_epochs[0]):
        expected = losses[epoch, 0][:, splits.held_out(0, fold)].mean(1)
        np.testing.assert_allclose(one.strategies["top"].scores[0][fold], expected, rtol=1e-6)
    assert one.ensemble.n_members == every.ensemble.n_members == 6


@pytest.mark.long
@pytest.mark.parametrize("phase", [pytest.param("top-004", marks=pytest.mark.slow), "-r0-f1"])
def test_a_run_that_was_cut_off_in_any_phase_gives_the_same_table(
    phase: str, config: Config, whole: Summary, tmp_path: Path
) -> None:
    shown, cut = Display.show_epoch, []

    def show(self: Display, name: str, epoch: int, mean: float) -> None:
        shown(self, name, epoch, mean)
        if phase in name and not cut:
            cut.append(name)
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Display, "show_epoch", show)
        with pytest.raises(KeyboardInterrupt):
            cross_validate(config, tmp_path / "cut", inline=True)
    for path in (tmp_path / "cut/candidates").glob("*/checkpoint.pt"):
        path.with_name("history.npz").write_bytes(b"damaged")  # what judges its epochs is to be told of them all
    assert_same(cross_validate(config, tmp_path / "cut", inline=True), whole)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["top-range", "top-001", "mine-003", "top-005", "top-005-r0-f1-*"])
def test_a_process_that_is_killed_in_the_search_goes_on(path: str, whole: Summary, toy_folder: Path) -> None:
    command = [*COMMAND, "--out", "killed"]
    process = subprocess.Popen(command, cwd=toy_folder, stdout=subprocess.DEVNULL)
    while not list((toy_folder / "killed").glob(f"candidates/{path}")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command, cwd=toy_folder, check=True, stdout=subprocess.DEVNULL)
    assert_same(Summary.load(toy_folder / "killed"), whole)


@pytest.mark.long
def test_a_larger_budget_goes_on_and_does_nothing_twice(config: Config, whole: Summary, tmp_path: Path) -> None:
    few = config.model_copy(update={"cv": config.cv.model_copy(update={"candidates": 4})})
    cross_validate(few, tmp_path / "run", inline=True)
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/candidates").rglob("result.json")}
    rebuild_ensemble(tmp_path / "run", trust=True, level=0.8)
    said = io.StringIO()
    assert_same(cross_validate(config, tmp_path / "run", inline=True, console=Console(file=said), report=True), whole)
    assert "note: the ensemble was built by other settings" in said.getvalue()
    assert {path: path.stat().st_mtime_ns for path in done} == done
    summary = cross_validate(few, tmp_path / "run", inline=True)
    assert summary.strategies["top"].n_candidates == 6, "a smaller budget shows what is there"


@pytest.mark.long
@pytest.mark.parametrize("phase", ["search", "reduction"])
def test_a_budget_that_was_growing_when_it_was_cut_off_leaves_what_was_finished(
    phase: str, config: Config, whole: Summary, whole_run: Path, tmp_path: Path
) -> None:
    """While the search goes on, the run is what it was; once its ensemble is made anew, it has not ended."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    shutil.copytree(whole_run, tmp_path / "run")
    more = config.model_copy(update={"cv": config.cv.model_copy(update={"candidates": 8})})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*((Display, "show_epoch") if phase == "search" else (cross_validation, "reduce")), interrupt)
        with pytest.raises(KeyboardInterrupt):
            cross_validate(more, tmp_path / "run", inline=True)
    found = cross_validate(config, tmp_path / "run", inline=True, report=True)
    assert (tmp_path / "run/report.html").exists()
    if phase == "search":
        assert_same(found, whole)
        cross_validation.rebuild_ensemble(tmp_path / "run", trust=True)
    else:
        assert found.strategies["top"].n_candidates == 8


def test_a_result_of_other_hyperparameters_than_the_plans_is_named(
    config: Config, whole_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole_run, tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    path = tmp_path / "run/candidates/top-001/result.json"
    content = read_record(path)
    content["spec"]["stages"][-1]["lr"] *= 2
    write_record(path, content)
    with pytest.raises(RunFolderError, match=r"other hyperparameters in .*top-001; restore the plan, or remove"):
        cross_validate(config, tmp_path / "run", inline=True)


def test_a_completed_candidate_that_is_damaged_is_named(config: Config, whole_run: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_run, tmp_path / "run")
    more = config.model_copy(update={"cv": config.cv.model_copy(update={"candidates": 8})})
    done = next(
        name for name, own in Summary.load(whole_run).strategies["top"].verdicts.items() if own.state == "completed"
    )
    path = tmp_path / "run/candidates" / done / "history.npz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RunFolderError, match=f"{done}/history.npz, which is missing or damaged; remove"):
        cross_validate(more, tmp_path / "run", inline=True)


@pytest.mark.slow
def test_time_that_is_spent_ends_the_search_and_more_goes_on(config: Config, tmp_path: Path) -> None:
    search = config.search.model_copy(update={"minutes": 1e-6})
    short = cross_validate(config.model_copy(update={"search": search}), tmp_path / "run", inline=True)
    counts = {name: own.n_candidates for name, own in short.strategies.items()}
    assert counts == {"top": 4, "mine": 3, "closed": 1}, "the first round is always carried out"
    few = config.model_copy(update={"cv": config.cv.model_copy(update={"candidates": 2})})
    again = cross_validate(few, tmp_path / "run", inline=True)
    assert {name: own.n_candidates for name, own in again.strategies.items()} == counts, "what was trained counts"
    assert cross_validate(config, tmp_path / "run", inline=True).strategies["top"].n_candidates == 6


@pytest.mark.parametrize("seed", range(4))
def test_a_range_test_is_not_led_by_the_luck_of_its_batches(toy_folder: Path, seed: int) -> None:
    """A few samples make up the loss, so that batches differ by decades; batches of all samples do not."""
    config = load_config("toy.yaml", {"cv.seed": seed, "search.method": "best", "cv.strategies": ["top"]})
    targets = np.array(prepare(config).zero_shot)
    targets[::9] += 3
    by_batches, by_all = range_of(targets, seed), range_of(targets, seed, batch_size=1000)
    assert by_all / 30 < by_batches < by_all * 3, "batches of eight bear lower rates, but not by decades"
    assert by_batches > 1e-3


def range_of(targets: np.ndarray, seed: int = 0, **more: int) -> float:
    """Test the range of a strategy of the toy with these targets."""
    np.save("y.npy", targets.astype(np.float32))
    prepared = prepare(load_config("toy.yaml", {"cv.seed": seed, "search.method": "best", "cv.strategies": ["top"]}))
    cpu = torch.device("cpu")
    own = prepare_strategy(prepared.problem, prepared.pretrained, prepared.strategies["top"], "auto", cpu)
    (spec,) = BestProposer("top", prepared.config.strategies["top"], 6, 0, rope=0.01).range_tests
    spec = replace(spec, stages=(replace(spec.stages[0], **more),))
    return run_range_test(prepared.problem, own, spec, FitSettings(), cpu).lr


def test_a_range_test_is_not_ended_by_batches_that_are_answered_to_rounding(toy_folder: Path) -> None:
    zero_shot = np.array(prepare(load_config("toy.yaml", {})).zero_shot)
    targets = zero_shot + 1e-6 * np.random.default_rng(0).normal(size=zero_shot.shape)
    targets[4] += 3
    assert min(range_of(targets, seed) for seed in range(4)) > 1e-4
    assert range_of(zero_shot) > 1e-4, "of what is right already, rounding alone can be learnt"
