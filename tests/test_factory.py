"""What builds a network: found before it is imported, told before it is called; a folder's runs with trust alone."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_ensemble import change_toy, cross_validate_toy

from ray_ft.cli import app
from ray_ft.config import load_config
from ray_ft.cross_validation import prepare, rebuild_ensemble
from ray_ft.ensemble import Ensemble
from ray_ft.errors import ConfigError, EnsembleError, RunFolderError
from ray_ft.files.writing import write_record
from ray_ft.models.factory import find_code, import_factory
from ray_ft.prediction.on_ray import predict_on_ray
from ray_ft.prediction.sources import open_source

Command = Callable[..., subprocess.CompletedProcess[str]]

NET = """
import abc
import functools
import os
from functools import lru_cache, partial
from os import system
from subprocess import Popen, run
from typing import Any

import torch
from torch import hub, nn
from torch.hub import load

from toy_network import Toy

methodcaller = __import__("operator").methodcaller("system", "touch pwned")
shell = partial(run, ["touch", "pwned"])


def build(width=8): return Toy(width)
def states(width=8) -> nn.Module: return Toy(width)
def states_text(width=8) -> "Toy": return Toy(width)
def states_nothing_known(width=8) -> "Unknown": return Toy(width)
def states_any(width=8) -> Any: return Toy(width)
def states_other(width=8) -> dict: system("touch pwned")
def states_none() -> None: system("touch pwned")


@torch.no_grad()
def decorated(width=8): return Toy(width)


@lru_cache
def cached(width=8): return Toy(width)


class Config:
    def __init__(self): system("touch pwned")


class Maker:
    def __call__(self, width=8): return Toy(width)


narrow, maker, bound, short = partial(build, 4), Maker(), Maker().__call__, lambda: Toy()
number = 3
"""  # fmt: skip


@pytest.fixture
def net(toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (toy_folder / "net.py").write_text(NET)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    return toy_folder


OWN = ["build", "states", "states_text", "states_nothing_known", "states_any", "decorated", "cached", "Toy", "narrow",
       "maker", "bound", "short"]  # fmt: skip
FOREIGN = ["system", "Popen", "run", "shell", "methodcaller", "load", "hub", "os", "abc", "Config", "states_other",
           "states_none", "number", "__loader__", "__builtins__", "partial"]  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_what_builds_networks_is_called(name: str, net: Path) -> None:
    assert import_factory(f"net:{name}")().head is not None


@pytest.mark.parametrize("name", FOREIGN)
def test_what_builds_none_is_not_called(name: str, net: Path) -> None:
    """Aliases in a module of the user's own, too."""
    with pytest.raises(ConfigError, match=rf"model.factory must be .*; got net:{name}, which was not called"):
        load_toy(factory=f"net:{name}")
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    "factory",
    ["subprocess:run", "os:system", "posix:system", "builtins:exec", "builtins:eval", "runpy:run_path", "shutil:rmtree",
     "multiprocessing.util:spawnv_passfds", "antigravity:webbrowser", "idlelib.idle:main", "webbrowser:open",
     "importlib:import_module", "os.path:join", "code:interact", "_posixsubprocess:fork_exec", "ctypes.util:_findLib"],
)  # fmt: skip
def test_nothing_of_python_itself_is_imported(factory: str, toy_folder: Path) -> None:
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=f"got {factory} of Python itself, which was not imported"):
        load_toy(factory=factory, params={"args": ["touch", "pwned"]})
    assert not {"idlelib.idle", "antigravity"} & (set(sys.modules) - before)
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    "factory",
    ["torch:load", "torch.hub:load", "torch.jit:load", "torch.utils.cpp_extension:load_inline", "numpy:load",
     "yaml:load", "pandas:read_pickle", "torch:Tensor", "torch.optim:SGD", "ray_ft.runs.folder:fetch_run",
     "joblib:load", "torch.nn:functional", "torch:compile"],
)  # fmt: skip
def test_functions_of_packages_that_state_no_network_are_not_called(factory: str, toy_folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"got {factory}, which was not called"):
        load_toy(factory=factory)


def test_classes_of_packages_are_called() -> None:
    assert import_factory("torch.nn:Linear")(2, 3).out_features == 3


@pytest.mark.parametrize(
    "factory",
    ["net:os.system", "net.os:system", "net:Maker.__call__", "torch.os:system", "net:a:b", "nowhere:build",
     "net:nothing", ":build", "../net:build", "net:(build)"],
)  # fmt: skip
def test_what_lies_deeper_or_nowhere_is_refused(factory: str, net: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.factory"):
        load_toy(factory=factory)


def test_a_module_named_as_one_of_pythons_is_the_users(toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy("toy_network.py", "chunk.py")
    monkeypatch.delitem(sys.modules, "chunk", raising=False)
    assert find_code("chunk:Toy") == str(toy_folder / "chunk.py")
    assert import_factory("chunk:Toy")().head is not None
    monkeypatch.delitem(sys.modules, "chunk")


def test_code_that_was_installed_must_state_what_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "packed_net.py").write_text("from torch import nn\ndef build(): return nn.Linear(2, 3)\n"
                                          "def stated() -> nn.Module: return nn.Linear(2, 3)\n")  # fmt: skip
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(ConfigError, match=r"a function that says so \(-> torch.nn.Module\).*; got packed_net:build"):
        import_factory("packed_net:build")
    assert import_factory("packed_net:stated")() is not None


def load_toy(**model: Any) -> None:
    values = {f"model.{key}": value for key, value in model.items()}
    prepare(load_config("toy.yaml", {"cv.strategies": ["top"], **values}))


def test_check_says_what_it_runs_before(net: Path, ray_ft_here: Command) -> None:
    (net / "net.py").write_text("raise SystemExit('it ran')")
    words = ("check", "-c", "toy.yaml", "--set", "cv.strategies=[top]")
    said = ray_ft_here(*words, "--set", "model.factory=toy_network:Toy").stdout
    assert said.startswith(f"runs        toy_network:Toy, code that begins with {net}/toy_network.py\n")
    hostile = ray_ft_here(*words, "--set", "model={factory: 'subprocess:run', params: {args: [touch, pwned]}}")
    assert (hostile.returncode, hostile.stdout) == (2, "")
    assert "model.factory must be a class of torch.nn.Module" in hostile.stderr
    assert not Path("pwned").exists()


# ---- folders


STRANGE = {"factory": "stranger:build", "params": {}, "checkpoint": None}


@pytest.fixture
def strange(run: Path) -> Path:
    """A run folder of a stranger's beside a module that tells when it is imported."""
    Path("stranger.py").write_text("open('pwned', 'w')\nfrom toy_network import Toy as build\n")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("toy_network:Toy", "stranger:build"))
    provenance = json.loads((run / "provenance.json").read_text())
    del provenance["sha256"]
    provenance["config"]["model"]["factory"] = "stranger:build"
    write_record(run / "provenance.json", provenance)
    card = json.loads((run / "ensemble" / "card.json").read_text())
    (run / "ensemble" / "card.json").write_text(json.dumps(card | {"split": "x", "model": STRANGE}))
    return run


COMMANDS = {
    "ensemble": ("run",),
    "report": ("run",),
    "compare": ("run", "run"),
    "predict": ("run", "--inputs", "x.npy", "--out", "p.npz"),
    "evaluate": ("run", "--inputs", "x.npy", "--targets", "y.npy"),
    "suggest": ("run", "--inputs", "x.npy"),
    "export": ("run", "--out", "run.pt2"),
    "serve": ("run",),
}


def test_the_commands_on_folders_are_these() -> None:
    import typer

    own = {"cv", "init", "learning-curve", "plan", "check", "config"}  # on a config that the user names, or on none
    assert set(typer.main.get_command(app).commands) == own | COMMANDS.keys() | {"fetch"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_the_code_of_a_folder(command: str, strange: Path, ray_ft_here: Command) -> None:
    result = ray_ft_here(command, *COMMANDS[command])
    assert not Path("pwned").exists()
    assert "Traceback" not in result.stderr
    if command not in ("report", "compare"):  # which need none
        assert result.returncode == 2
        assert "got stranger:build in run" in result.stderr
        assert "--trust" in result.stderr


def test_the_library_runs_the_code_of_no_folder(strange: Path) -> None:
    with pytest.raises(RunFolderError, match=r"got stranger:build in run/config.yaml; if it is yours"):
        rebuild_ensemble(Path("run"))
    with pytest.raises(EnsembleError, match=r"got stranger:build in run/ensemble/card.json; if it is yours"):
        Ensemble.load("run")
    assert not Path("pwned").exists()


def test_an_edited_config_of_a_run_is_noticed_before_its_code_runs(run: Path) -> None:
    Path("stranger.py").write_text("open('pwned', 'w')\n")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("toy_network:Toy", "stranger:build"))
    with pytest.raises(RunFolderError, match=r'model.factory: "toy_network:Toy" there, "stranger:build" here'):
        rebuild_ensemble(run, trust=True)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("factory", ["os:system", "torch:load", "stranger:system"])
def test_trust_makes_no_factory_of_what_is_none(factory: str, strange: Path, ray_ft_here: Command) -> None:
    Path("stranger.py").write_text("from os import system\n")
    for path in (strange / "config.yaml", strange / "ensemble" / "card.json"):
        path.write_text(path.read_text().replace("stranger:build", factory))
    provenance = json.loads((strange / "provenance.json").read_text())
    del provenance["sha256"]
    provenance["config"]["model"]["factory"] = factory
    write_record(strange / "provenance.json", provenance)
    sys.modules.pop("stranger", None)
    for command in ("ensemble", "predict", "export"):
        result = ray_ft_here(command, *COMMANDS[command], "--trust")
        assert result.returncode == 2
        assert f"got {factory}" in result.stderr
    assert not Path("pwned").exists()


def test_trust_runs_the_code_of_ones_own(toy_folder: Path, ray_ft_here: Command) -> None:
    change_toy(toy_folder, "return self", "assert float(x.sum()) < 1e9\n        return self")
    cross_validate_toy(toy_folder)
    assert ray_ft_here("ensemble", "run").returncode == 2
    for command in ("ensemble", "predict", "evaluate"):
        assert ray_ft_here(command, *COMMANDS[command], "--trust").returncode == 0, command


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_workers_run_no_code_that_the_command_was_not_trusted_with(run: Path, tmp_path: Path) -> None:
    """The folder is exchanged after it was loaded."""
    loaded, pwned = Ensemble.load(run), tmp_path / "pwned"
    Path("stranger.py").write_text(f"open({str(pwned)!r}, 'w')\nfrom toy_network import Toy as build\n")
    card = json.loads((run / "ensemble" / "card.json").read_text())
    (run / "ensemble" / "card.json").write_text(json.dumps(card | {"split": "x", "model": STRANGE}))
    with pytest.raises(Exception, match="needs its own code"):  # Ray wraps it
        predict_on_ray(loaded, run, open_source("x.npy"), Path("out"))
    assert not pwned.exists()
