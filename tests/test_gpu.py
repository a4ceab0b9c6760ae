"""On a GPU: the members of a CPU, packed or looped, and what a run does there (on request: -m gpu)."""

import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.export.passes import move_to_device_pass
from toy import table

from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate, prepare
from ray_ft.ensemble import Ensemble
from ray_ft.ensemble.export import export_ensemble
from ray_ft.fitting.determinism import deterministic
from ray_ft.fitting.fitter import FitSettings, Packing
from ray_ft.fitting.gradient import GradientFitter
from ray_ft.fitting.preparation import prepare_strategy
from ray_ft.fitting.starting import start_fitter
from ray_ft.fitting.training import step_pack
from ray_ft.results.summary import Summary

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
PACKINGS: tuple[Packing, ...] = ("packed", "looped")
SAME = {"cv.strategies": ["top", "last"], "compute.packing": "packed", "compute.deterministic": True}
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def start(toy_folder: Path, device: torch.device, packing: Packing, **overrides: object) -> GradientFitter:
    values = {"cv.strategies": ["top"], "training.precision": "float32", **overrides}
    prepared = prepare(load_config(toy_folder / "toy.yaml", values))
    problem, (spec, *_) = prepared.problem, prepared.first_round
    own = prepare_strategy(problem, prepared.pretrained, prepared.strategies["top"], "float32", device)
    fitter = start_fitter(problem, own, spec, problem.keys, FitSettings(packing=packing), device)
    assert isinstance(fitter, GradientFitter)
    return fitter


def train_epoch(
    toy_folder: Path, device: torch.device, packing: Packing, **overrides: object
) -> dict[str, torch.Tensor]:
    fitter = start(toy_folder, device, packing, **overrides)
    fitter.run_epoch(0)
    return fitter.whole.state


@pytest.mark.parametrize("packing", PACKINGS)
def test_members_without_dropout_are_those_of_the_cpu(toy_folder: Path, packing: Packing) -> None:
    devices = (torch.device("cpu"), CUDA)
    states = [train_epoch(toy_folder, device, packing, **{"training.head_dropout": 0.0}) for device in devices]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name].cpu(), tensor, rtol=1e-3, atol=1e-4)


def test_packed_members_are_the_looped_ones_with_dropout(toy_folder: Path) -> None:
    packed, looped = (train_epoch(toy_folder, CUDA, how) for how in PACKINGS)
    for name, tensor in looped.items():
        torch.testing.assert_close(packed[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("strategy", ["head", "decoder_head", "full"])
def test_members_of_the_embedded_network_are_packed(strategy: str) -> None:
    """Its attention is one of the kernels that torch chooses by the device."""
    values = {"cv.strategies": [strategy], "training.precision": "float32"}
    prepared = prepare(load_config(None, values | {"training.head_dropout": 0.0}))
    problem, (spec, *_) = prepared.problem, prepared.first_round
    own = prepare_strategy(problem, prepared.pretrained, prepared.strategies[strategy], "float32", CUDA)
    keys, answers = problem.keys[:3], []
    with deterministic(True):  # TF32 would hide a difference
        for packing in PACKINGS:
            fitter = start_fitter(problem, own, spec, keys, FitSettings(packing=packing), CUDA)
            fitter.run_epoch(0)
            answers.append(fitter.predict())
    for key in keys:
        np.testing.assert_allclose(answers[0][key], answers[1][key], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_same_steps_give_the_same_bits_where_that_is_asked_for(toy_folder: Path, packing: Packing) -> None:
    with deterministic(True):
        states = [train_epoch(toy_folder, CUDA, packing) for _ in range(2)]
    for name, tensor in states[0].items():
        assert torch.equal(states[1][name], tensor), name


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_a_candidate_goes_on_from_what_it_saved(toy_folder: Path, adapter: str | None) -> None:
    own = {"strategies.top.adapter": {"kind": adapter, "rank": 1}} if adapter else {}
    whole, first, second = (start(toy_folder, CUDA, "packed", **own) for _ in range(3))
    for epoch in range(3):
        whole.run_epoch(epoch)
    first.run_epoch(0)
    second.load(first.save())
    for epoch in range(1, 3):
        second.run_epoch(epoch)
    for name, tensor in whole.whole.state.items():
        torch.testing.assert_close(second.whole.state[name], tensor, rtol=1e-5, atol=1e-6)
    second.load(first.save())
    assert (
        len(second.collect_snapshots()) == 6
    )  # with what they learn by in their weights, where they have not improved


def test_packs_are_halved_where_memory_is_short(toy_folder: Path) -> None:
    """The toy's features are made large, and the process is allowed what three of six members take."""
    torch.cuda.empty_cache()
    wide = {"model.params": {"width": 2048}, "training.batch_size": 16}
    fitter = start(toy_folder, CUDA, "packed", **wide)
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    step = [next(fitter.draw_steps(member)) for member in fitter.whole.members]
    step_pack(fitter.whole, fitter.recipe, step)
    needed = torch.cuda.max_memory_allocated() - held
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 0.6 * needed) / total)
    try:
        fitter.run_epoch(0)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert fitter.pack_size < 6
    assert all(tensor.isfinite().all() for tensor in fitter.whole.state.values())


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_candidates_share_a_gpu(toy_folder: Path) -> None:
    config = load_config(toy_folder / "toy.yaml", {"cv.strategies": ["top", "last"], "compute.packing": "auto"})
    summary = cross_validate(config, toy_folder / "run")
    assert all("float32" in way for row in summary.strategies.values() for way in row.training)  # toys have no products


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_a_run_that_is_deterministic_gives_the_same_twice(toy_folder: Path) -> None:
    config = load_config(toy_folder / "toy.yaml", SAME)
    one, other = (table(cross_validate(config, toy_folder / out)) for out in ("one", "other"))
    assert one == other


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_a_run_that_is_interrupted_ends_with_the_same_scores(toy_folder: Path) -> None:
    config = load_config(toy_folder / "toy.yaml", SAME)
    whole = cross_validate(config, toy_folder / "whole")
    command = [sys.executable, "-m", "ray_ft", "cv", "-c", "toy.yaml", "--out", "cut"]
    words = ("cv.strategies=[top,last]", "compute.packing=packed", "compute.deterministic=true")
    process = subprocess.Popen([*command, *(word for value in words for word in ("--set", value))], cwd=toy_folder)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if list((toy_folder / "cut/candidates").glob("*/history.npz")):
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.05)
    process.wait(120)
    again: Summary = cross_validate(config, toy_folder / "cut")
    assert table(again) == table(whole)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
@two_gpus
def test_members_of_a_candidate_on_two_gpus_are_those_on_one(toy_folder: Path) -> None:
    own = {"cv.strategies": ["top"], "cv.candidates": 1, "training.precision": "float32", "compute.packing": "looped"}
    configs = [load_config(toy_folder / "toy.yaml", own | {"compute.gpus_per_candidate": n}) for n in (1, 2)]
    one, two = (cross_validate(config, toy_folder / f"run{i}") for i, config in enumerate(configs))
    rows = [summary.strategies["top"].score_mean for summary in (one, two)]
    assert rows[0] == pytest.approx(rows[1], rel=1e-4)


def test_an_ensemble_says_the_same_on_a_gpu(run: Path) -> None:
    x = np.load("x.npy")
    on_cpu, on_gpu = (asdict(Ensemble.load(run, device).predict(x)) for device in ("cpu", "cuda"))
    for name in ("mean", "std", "lower", "upper"):
        np.testing.assert_allclose(on_gpu[name], on_cpu[name], rtol=1e-3, atol=1e-3, err_msg=name)


def test_predict_takes_a_gpu(run: Path) -> None:
    command = [sys.executable, "-m", "ray_ft", "predict", str(run), "--inputs", "x.npy", "--device", "cuda"]
    subprocess.run([*command, "--out", "out.npz"], check=True, capture_output=True)
    with np.load("out.npz") as found:
        np.testing.assert_allclose(
            found["mean"], Ensemble.load(run).predict(np.load("x.npy")).mean, rtol=1e-3, atol=1e-3
        )


def test_an_export_runs_on_a_gpu(run: Path) -> None:
    ensemble, x = Ensemble.load(run), torch.from_numpy(np.load("x.npy"))
    program = torch.export.load(export_ensemble(ensemble, Path("toy.pt2")))
    moved = move_to_device_pass(program, "cuda").module()
    outputs = dict(zip(ensemble.objective.answers.exported, moved(x.cuda()), strict=True))
    np.testing.assert_allclose(outputs["mean"].cpu(), ensemble.predict(x.numpy()).mean, rtol=1e-3, atol=1e-3)
