"""What ships beside the code: configs load, versions agree."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ray_ft
from ray_ft.cli import app
from ray_ft.cli.ensembles import ensembles
from ray_ft.config import load_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))  # those of clusters, a folder below, are no configs of runs


def test_configs_are_there() -> None:
    assert len(CONFIGS) > 0


@pytest.mark.parametrize("path", [None, *CONFIGS], ids=str)
def test_every_config_loads(path: Path | None) -> None:
    assert set(load_config(path).selected) == {"head", "decoder_head", "full", "spec_bias", "ridge"}


def test_changelog_opens_with_this_version() -> None:
    versions = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == ray_ft.__version__


def test_the_readme_names_commands_and_files_that_are_there() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") < 200
    known = {command.name or command.callback.__name__.replace("_", "-") for command in typer_commands()}
    named = set(re.findall(r"ray-ft ([a-z-]+)", text))
    assert named
    assert named <= known
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (ROOT / link).exists(), link


def typer_commands() -> list[Any]:
    return [*app.registered_commands, *ensembles.registered_commands]


@pytest.mark.slow
def test_the_readmes_example_runs_as_written(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    env = os.environ | {"MPLBACKEND": "Agg"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, timeout=900)
    assert (tmp_path / "band.png").stat().st_size > 1000
