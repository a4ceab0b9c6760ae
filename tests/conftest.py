"""A toy run: a small network of the user's own on a linear problem, so that a whole cross-validation takes seconds."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from toy import write_toy

import ray_ft as package
from ray_ft.config import Config, load_config

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray then stays on the loopback address that it is given
settings.register_profile("untimed", deadline=None)  # a first call may import for seconds
settings.load_profile("untimed")


@pytest.fixture
def toy_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the toy's module, data and config."""
    write_toy(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_network", raising=False)  # another test's, out of another folder
    torch.set_num_threads(1)
    return tmp_path


@pytest.fixture
def toy_config(toy_folder: Path) -> Config:
    return load_config(toy_folder / "toy.yaml", {"cv.strategies": ["top", "last"]})


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two strategies and two repeats, made once; tests copy it."""
    folder = tmp_path_factory.mktemp("toy")
    write_toy(folder)
    command = [sys.executable, "-m", "ray_ft", "cv", "-c", "toy.yaml", "--inline", "--out", "run", "--repeats", "2"]
    command += ["--candidates", "1", "--strategies", "top,last"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "run"


@pytest.fixture
def run(toy_run: Path, toy_folder: Path) -> Path:
    """The same run in a working folder of the test's own."""
    shutil.copytree(toy_run, toy_folder / "run")
    return toy_folder / "run"


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a few of the demo's samples, made once; its ensemble averages over two views."""
    folder = tmp_path_factory.mktemp("demo")
    with np.load(Path(package.__file__).parent / "demo" / "measured.npz") as archive:
        np.savez(folder / "few.npz", structure=archive["structure"][:30], spectra=archive["spectra"][:30])
    command = [sys.executable, "-m", "ray_ft", "cv", "--inline", "--out", "run", "--strategies", "spec_bias,head"]
    command += ["--candidates", "1", "--folds", "3", "--set", "training.epochs=2", "--set", "training.lr=0.003"]
    command += ["--set", f"data.inputs={folder}/few.npz::structure", "--set", f"data.targets={folder}/few.npz::spectra"]
    command += ["--set", "ensemble.symmetric=true"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "run"


@pytest.fixture
def ray_ft() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command, as a user types it."""

    def run_command(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ray_ft", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    return run_command
