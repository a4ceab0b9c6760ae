"""The tutorial as a reader follows it: its files are saved, its commands typed, in the order of the page."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)


@pytest.mark.long
def test_the_tutorial_runs_as_written(tmp_path: Path) -> None:
    said = ""
    installing, *blocks = BLOCK.findall(PAGE.read_text())
    assert "pip install" in installing[2]
    for kind, name, text in blocks:
        if name:
            (tmp_path / name).write_text(text)
        elif kind == "text":
            labels = {re.split(r"\s{2,}|: | \(", line.strip())[0] for line in text.splitlines()}
            assert {label for label in labels if label not in " ".join(said.split())} == set()
        else:
            said = run({"bash": ["bash", "-euo", "pipefail"], "python": [sys.executable]}[kind], text, tmp_path)
    assert (tmp_path / "runs" / "ray_ft" / "report.html").exists()


def run(program: list[str], text: str, folder: Path) -> str:
    """Run a block in a folder, with the command of this environment; return what it says."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        program, input=text, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, f"{text}\n{result.stderr}"
    return result.stdout
