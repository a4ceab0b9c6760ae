"""A toy run: a small network of the user's own on a linear problem, so that a whole cross-validation takes seconds."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings
from toy import enter_toy, run_on_ray, write_toy
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

import ray_ft as package
from ray_ft.cli import main
from ray_ft.config import Config, load_config

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray then stays on the loopback address that it is given
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # else its processes wait for the tests beside them
settings.register_profile("untimed", deadline=None)  # a first call may import for seconds
settings.load_profile("untimed")


@pytest.fixture
def toy_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the toy's module, data and config."""
    enter_toy(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def toy_config(toy_folder: Path) -> Config:
    return load_config(toy_folder / "toy.yaml", {"cv.strategies": ["top", "last"]})


@pytest.fixture(autouse=True)
def started() -> str:
    """What a test starts, by the hook below: Ray or nothing."""
    return ""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """End the names of tests that start Ray in "ray]", by which they are told from the others."""
    if metafunc.definition.get_closest_marker("ray"):
        metafunc.parametrize("started", ["ray"])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Tests that start Ray, which takes all cores, run one after the other in one process; the others beside them.

    Groups of pytest-xdist 3.8 would say so, but have no effect with pytest 9.2:
    https://github.com/pytest-dev/pytest-xdist/issues/1386.
    """
    return RayTogether(config, log)


class RayTogether(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return "ray" if nodeid.endswith("ray]") else nodeid


def pytest_xdist_auto_num_workers() -> int:
    """One process a core, and one for the tests that start Ray, which wait for most of their time."""
    return (os.cpu_count() or 1) + 1


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Make a folder in the first process of the tests that asks for it; the others wait and take it."""
    base = factory.getbasetemp()
    root = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder = root / name
    with FileLock(root / f"{name}.lock"):
        if not folder.exists():
            (partial := root / f"{name}-partial").mkdir()
            make(partial)
            partial.rename(folder)
    return folder


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two strategies and two repeats, made once; tests copy it."""
    return make_once(tmp_path_factory, "toy", run_toy) / "run"


def run_toy(folder: Path) -> None:
    write_toy(folder)
    command = [sys.executable, "-m", "ray_ft", "cv", "-c", "toy.yaml", "--inline", "--out", "run", "--repeats", "2"]
    command += ["--candidates", "1", "--strategies", "top,last"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="session")
def ray_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by Ray that was logged to TensorBoard and MLflow, made once."""
    loggers = {"tensorboard": True, "mlflow": "sqlite:///mlflow.db"}
    return make_once(tmp_path_factory, "ray", lambda folder: run_on_ray(folder, **loggers))


@pytest.fixture
def run(toy_run: Path, toy_folder: Path) -> Path:
    """The same run in a working folder of the test's own."""
    shutil.copytree(toy_run, toy_folder / "run")
    return toy_folder / "run"


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a few of the demo's samples, made once; its ensemble averages over two views."""
    return make_once(tmp_path_factory, "demo", run_demo) / "run"


def run_demo(folder: Path) -> None:
    with np.load(Path(package.__file__).parent / "demo" / "measured.npz") as archive:
        np.savez(folder / "few.npz", structure=archive["structure"][:30], spectra=archive["spectra"][:30])
    values = {
        "cv.strategies": ["spec_bias", "head"],
        "cv.candidates": 1,
        "cv.folds": 3,
        "training.epochs": 2,
        "training.lr": 0.003,
        "data.inputs": f"{folder}/few.npz::structure",
        "data.targets": f"{folder}/few.npz::spectra",
        "data.symmetry": ["rot180"],
        "ensemble.symmetric": True,
    }
    package.cross_validate(load_config(None, values), folder / "run", inline=True)


@pytest.fixture
def ray_ft() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command as a user types it, in a process of its own."""

    def run_command(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ray_ft", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    return run_command


@pytest.fixture
def ray_ft_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command in this process: most of the time of another would go into imports."""

    def run_command(*words: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["ray-ft", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(words, int(ended.value.code or 0), said.out, said.err)

    return run_command
