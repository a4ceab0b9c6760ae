"""Ray has GPUs and torch has none: said before anything trains. A Ray that is told to have GPUs is such a machine."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ray_ft import cross_validate
from ray_ft.backends import gpu_check, local_ray
from ray_ft.config import Config, load_config
from ray_ft.ensemble import Ensemble
from ray_ft.errors import ConfigError
from ray_ft.prediction.on_ray import predict_on_ray
from ray_ft.prediction.sources import open_source
from ray_ft.runs.journal import read_log

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="torch has a GPU here")


@pytest.fixture
def gpus_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ray, "LOCAL", local_ray.LOCAL | {"num_gpus": 2})


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("gpus_of_ray")
@without_gpu
def test_gpus_that_torch_cannot_use_are_refused_before_training(toy_config: Config) -> None:
    with pytest.raises(ConfigError) as caught:
        cross_validate(toy_config, "run")
    rule, node, remedy = str(caught.value).splitlines()
    assert rule == "torch must be able to use the GPUs that Ray has, which it cannot on these nodes"
    assert node.startswith("  127.0.0.1 (")
    assert f"driver {gpu_check.find_driver()}; torch {torch.__version__}, built " in node
    assert remedy.startswith("set compute.device: cpu to do without them, or install there a torch that is built for")
    assert "epoch" not in {event["event"] for event in read_log(Path("run/log.jsonl"))}
    on_cpu = load_config("toy.yaml", {"cv.strategies": ["last"], "cv.candidates": 1, "compute.device": "cpu"})
    assert cross_validate(on_cpu, "other").strategies["last"].n_members == 6


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("gpus_of_ray")
@without_gpu
def test_predictions_ask_for_no_gpu_that_torch_cannot_use(run: Path) -> None:
    np.save("many.npy", np.zeros((50, 6), np.float32))
    with pytest.raises(ConfigError, match="set --device cpu to do without them"):
        predict_on_ray(Ensemble.load(run), run, open_source("many.npy"), Path("out"), ["mean"])


def test_the_driver_is_named_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2 14:37:44 UTC 2024\nGCC version:\n"
    (tmp_path / "version").write_text(said)
    monkeypatch.setattr(gpu_check, "DRIVER", tmp_path / "version")
    assert gpu_check.find_driver() == "470.256.02"
    monkeypatch.setattr(gpu_check, "DRIVER", tmp_path / "none")
    assert gpu_check.find_driver() == "not found"
