"""A candidate against a plain loop over its recorded losses, and what it leaves on disk."""

import json
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ray_ft.backends.trial import free_device
from ray_ft.config import load_config
from ray_ft.cross_validation import prepare
from ray_ft.data.folds import Splits
from ray_ft.fitting.candidate import run_members
from ray_ft.fitting.fitter import FitSettings, JoinedFitter
from ray_ft.fitting.preparation import prepare_strategy
from ray_ft.fitting.starting import start_fitter
from ray_ft.runs.folder import RunFolder
from ray_ft.search.plan import assign_search
from ray_ft.search.problem import list_members

CPU = torch.device("cpu")
KEYS = list_members(1, 3, 2)


def run(folder: Path, out: str, n_fitters: int = 1, stop_after: int = 99, **overrides: object) -> tuple[list, Path]:
    """Run the first candidate of `top`; return what it reported and its folder."""
    values = {"cv.strategies": ["top"], "cv.candidates": 1} | {k.replace("__", "."): v for k, v in overrides.items()}
    prepared = prepare(load_config(folder / "toy.yaml", values))
    problem, spec = prepared.problem, prepared.first_round[0]
    own = prepare_strategy(problem, prepared.pretrained, prepared.strategies["top"], "float32", CPU)
    settings = FitSettings(packing="looped")
    fitters = [start_fitter(problem, own, spec, KEYS[i::n_fitters], settings, CPU) for i in range(n_fitters)]
    joined, reports = JoinedFitter(lambda question: [question(fitter) for fitter in fitters]), []

    def report(epoch: int, mean: float, final: bool) -> None:
        reports.append((epoch, mean, final))
        if epoch == stop_after:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        own = assign_search(spec, problem, 2)
        run_members(problem, RunFolder(folder / out), own, joined, report, checkpoint_every=2)
    return reports, folder / out / "candidates" / "top-000"


def deal(folder: Path) -> Splits:
    return prepare(load_config(folder / "toy.yaml", {"cv.strategies": ["top"]})).problem.splits


def test_snapshots_stand_where_the_other_folds_are_best(toy_folder: Path) -> None:
    reports, folder = run(toy_folder, "run")
    losses = np.load(folder / "history.npz")["losses"]
    fold_of = np.array(prepare(load_config(Path("toy.yaml"), {"cv.strategies": ["top"]})).problem.splits.fold_of[0])
    by_fold = np.stack([losses[:, 0][:, :, fold_of == k].mean((1, 2)) for k in range(3)], 1)  # (epoch, fold)
    expected = [int(np.delete(by_fold, k, 1).mean(1).argmin()) for k in range(3)]  # epoch 0 is the pretrained network
    result = json.loads((folder / "result.json").read_text())
    assert result["stop_epochs"] == [expected]
    assert [epoch for epoch, _, _ in reports] == list(range(1, len(losses)))
    assert [final for _, _, final in reports] == [False] * (len(losses) - 2) + [True]
    np.testing.assert_allclose([mean for _, mean, _ in reports], by_fold[1:].mean(1))


def test_out_of_fold_predictions_are_those_of_the_snapshots(toy_folder: Path) -> None:
    _, folder = run(toy_folder, "run")
    predictions = np.load(folder / "oof.npz")["predictions"]
    losses = np.load(folder / "history.npz")["losses"]
    (stops,) = json.loads((folder / "result.json").read_text())["stop_epochs"]
    found = ((predictions - np.load("y.npy")) ** 2).mean(-1)[0]
    splits = deal(toy_folder)
    for fold, stop in enumerate(stops):
        held_out = splits.held_out(0, fold)
        np.testing.assert_allclose(found[:, held_out], losses[stop, 0][:, held_out], rtol=1e-5)


def test_fitters_together_and_an_interruption_leave_the_same_files(toy_folder: Path) -> None:
    _, whole = run(toy_folder, "whole")
    run(toy_folder, "cut", n_fitters=2, stop_after=5)
    assert not (toy_folder / "cut/candidates/top-000/result.json").exists()
    reports, cut = run(toy_folder, "cut", n_fitters=3)
    assert reports[0][0] == 5, "it goes on behind the checkpoint of epoch 4"
    for name in ("history.npz", "oof.npz"):
        with np.load(whole / name) as one, np.load(cut / name) as other:
            assert all(np.array_equal(one[key], other[key]) for key in one)
    one, other = load_file(whole / "members.safetensors"), load_file(cut / "members.safetensors")
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_patience_ends_it(toy_folder: Path) -> None:
    reports, folder = run(toy_folder, "run", training__patience=1, training__lr=10.0)
    assert reports[-1][2]
    assert len(reports) < json.loads((folder / "result.json").read_text())["spec"]["stages"][0]["epochs"]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_candidate_that_ended_holds_no_memory_of_a_gpu(
    toy_folder: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    fitters: list[weakref.ref] = []
    alive: list[object] = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: alive.extend(own() for own in fitters))

    @free_device()
    def train() -> None:
        prepared = prepare(load_config(toy_folder / "toy.yaml", {"cv.strategies": ["top"], "cv.candidates": 1}))
        problem, spec = prepared.problem, prepared.first_round[0]
        own = prepare_strategy(problem, prepared.pretrained, prepared.strategies["top"], "float32", CPU)
        fitter = start_fitter(problem, own, spec, KEYS, FitSettings(packing="looped"), CPU)
        fitters.append(weakref.ref(fitter))
        fitter.run_epoch(0)
        if stopped:
            raise SystemExit  # as Ray Tune stops one

    with suppress(SystemExit):
        train()
    assert alive == [None]
