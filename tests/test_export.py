"""Exports: the same numbers in a process that does not have this package."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_ft.cross_validation import rebuild_ensemble
from ray_ft.ensemble import Ensemble
from ray_ft.ensemble.export import average_weights, export_ensemble
from ray_ft.ensemble.mlflow_model import write_mlflow
from ray_ft.errors import EnsembleError

READ_PT2 = """
import sys, numpy as np, torch
outputs = torch.export.load(sys.argv[1]).module()(torch.from_numpy(np.load(sys.argv[2])))
np.savez(sys.argv[3], *[output.detach().numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))])
assert "ray_ft" not in sys.modules
"""
READ_ONNX = """
import sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
assert '"format":"ray-ft ensemble"' in session.get_modelmeta().custom_metadata_map["card"]
np.savez(sys.argv[3], *session.run(None, {"inputs": np.load(sys.argv[2])}))
assert "ray_ft" not in sys.modules
"""


def run_elsewhere(path: Path, inputs: np.ndarray) -> list[np.ndarray]:
    np.save("inputs.npy", inputs)
    code = READ_PT2 if path.suffix == ".pt2" else READ_ONNX
    command = [sys.executable, "-c", code, str(path), "inputs.npy", "outputs.npz"]
    subprocess.run(command, check=True, capture_output=True)
    with np.load("outputs.npz") as archive:
        return list(archive.values())


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_exported_numbers_are_those_of_predict(run: Path, suffix: str) -> None:
    rebuild_ensemble(run, trust=True, strategies=["top", "last"], method="greedy", level=0.8)
    ensemble, x = Ensemble.load(run), np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
    found = run_elsewhere(export_ensemble(ensemble, Path("toy").with_suffix(suffix)), x)
    expected = asdict(ensemble.predict(x))
    for name, array in zip(ensemble.objective.answers.exported, found, strict=True):
        np.testing.assert_allclose(array, expected[name], atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_symmetric_ensemble_of_structures_is_exported(demo_run: Path, toy_folder: Path) -> None:
    ensemble = Ensemble.load(demo_run)
    with np.load(demo_run.parent / "few.npz") as archive:
        x = np.unpackbits(archive["structure"][:4], axis=-1)
    found = run_elsewhere(export_ensemble(ensemble, toy_folder / "demo.onnx"), x[:, None].astype(np.float32))
    expected = asdict(ensemble.predict(x))
    for name, array in zip(ensemble.objective.answers.exported, found, strict=True):
        np.testing.assert_allclose(array, expected[name], atol=1e-4, err_msg=name)


def test_a_soup_is_one_network_of_average_weights(run: Path) -> None:
    ensemble, x = Ensemble.load(run), np.load("x.npy")
    (found,) = run_elsewhere(export_ensemble(ensemble, Path("soup.pt2"), soup=True), x)
    state = {name: tensor[0] for name, tensor in average_weights(ensemble).items()}
    for name, tensor in ensemble.states["top"].items():
        np.testing.assert_allclose(state[name], tensor.double().mean(0), atol=1e-6)
    features = ensemble.first.run_backbone(torch.from_numpy(x))
    np.testing.assert_allclose(found, ensemble.first.apply_tail(state, ensemble.first.take(features)), atol=1e-6)


def test_what_cannot_be_exported_is_refused(run: Path) -> None:
    ensemble = Ensemble.load(run)
    with pytest.raises(EnsembleError, match=r"an export ends in \.pt2, \.onnx, \.mlflow or \.db, got net\.pt"):
        export_ensemble(ensemble, Path("net.pt"))
    with pytest.raises(EnsembleError, match="an export must be writable"):
        export_ensemble(ensemble, Path("/proc/net.pt2"))
    rebuild_ensemble(run, trust=True, strategies=["top", "last"], method="uniform")
    with pytest.raises(EnsembleError, match="members of one strategy, got an ensemble of top, last"):
        export_ensemble(Ensemble.load(run), Path("soup.pt2"), soup=True)
    assert not list(Path().glob("*.pt2"))


@pytest.mark.filterwarnings("ignore")  # of MLflow's own
def test_mlflow_loads_a_model_that_says_what_predict_says(run: Path) -> None:
    path = write_mlflow(run, Path("toy.mlflow"))
    shutil.rmtree(run)  # the model holds what it needs
    from mlflow.pyfunc import load_model

    model, x = load_model(str(path)), np.load("x.npy")
    ensemble = Ensemble.load(path / "data" / "ensemble")
    for params, level in ((None, None), ({"level": 0.8}, 0.8)):
        found, expected = model.predict(x, params=params), asdict(ensemble.predict(x, level))
        assert {"mean", "std", "lower", "upper"} <= found.keys()
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert not list(path.rglob("*.pkl"))


def test_a_model_of_mlflow_is_a_new_folder_without_code(run: Path) -> None:
    Path("there.mlflow").mkdir()
    with pytest.raises(EnsembleError, match=r"is a new folder, got there\.mlflow, which exists"):
        write_mlflow(run, Path("there.mlflow"))
    card = json.loads((run / "ensemble" / "card.json").read_text())
    card["split"], card["model"]["factory"] = "it draws lots", "toy_network:Toy"
    (run / "ensemble" / "card.json").write_text(json.dumps(card))
    with pytest.raises(EnsembleError, match="must be tensor operations to be exported, but it draws lots"):
        write_mlflow(run, Path("toy.mlflow"))
