"""What ships beside the code: configs load, versions agree."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import ray_ft
from ray_ft.cli import app
from ray_ft.cli.ensembles import ensembles
from ray_ft.cli.starting import starting
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


def test_the_lowest_versions_that_are_promised_are_those_that_are_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    promised = [
        *project["dependencies"],
        *(line for name in extras if name not in ("docs", "test") for line in extras[name]),
    ]
    lowest = {name: Version(version.removeprefix(">=")) for name, version in map(read_requirement, promised)}
    tested = map(read_requirement, (ROOT / "constraints-lowest.txt").read_text().splitlines()[2:])
    assert lowest == {name: Version(version.removeprefix("==")) for name, version in tested}


def read_requirement(line: str) -> tuple[str, str]:
    requirement = Requirement(line)
    return requirement.name.lower(), str(requirement.specifier)


def test_the_readme_names_commands_and_files_that_are_there() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 120
    known = {command.name or command.callback.__name__.replace("_", "-") for command in typer_commands()}
    named = set(re.findall(r"ray-ft ([a-z-]+)", text))
    assert named
    assert named <= known
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (ROOT / link).exists(), link


def typer_commands() -> list[Any]:
    return [*app.registered_commands, *starting.registered_commands, *ensembles.registered_commands]


@pytest.mark.slow
def test_the_example_of_an_ensemble_runs_as_written(tmp_path: Path) -> None:
    code, *_ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "ensemble.md").read_text(), re.S)
    env = os.environ | {"MPLBACKEND": "Agg"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, timeout=900)
    assert (tmp_path / "band.png").stat().st_size > 1000
