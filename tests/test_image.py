"""The Dockerfile: its instructions, what it copies, and that what is copied is enough to build the package of.

CI builds the image itself where a Docker daemon answers.
"""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
NAMED = {"README.md", "LICENSE"}  # by pyproject.toml, which is not built without them
KNOWN = {"FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "ENTRYPOINT"}


def parse_dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments, lines that go on joined; others than those that are in use are an error."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    instructions = [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]
    assert {word for word, _ in instructions} <= KNOWN
    return instructions


def is_ignored(path: str) -> bool:
    """As Docker has it: the last line that fits a path, or a folder that it lies in, decides."""
    ignored, parts = False, path.split("/")
    above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if not line or line.startswith("#"):
            continue
        if any(fnmatch(name, pattern) or fnmatch("/" + name, pattern.replace("**", "*")) for name in above):
            ignored = not line.startswith("!")
    return ignored


def list_context() -> list[str]:
    """What Docker sees of the repository."""
    tops = [top for top in ROOT.iterdir() if not is_ignored(top.name)]
    files = [path for top in tops for path in (top.rglob("*") if top.is_dir() else [top]) if path.is_file()]
    return [path for path in (file.relative_to(ROOT).as_posix() for file in files) if not is_ignored(path)]


def test_an_instruction_is_whole_and_the_process_is_no_root() -> None:
    instructions = parse_dockerfile()
    assert instructions[0][0] == "FROM"
    image, _, tag = instructions[0][1].partition(":")
    assert image
    assert tag not in ("", "latest"), "the version of the base is named"
    for word, rest in instructions:
        assert rest, word
        if word == "RUN":
            subprocess.run(["bash", "-n", "-c", rest], check=True)
    (user,) = (rest for word, rest in instructions if word == "USER")
    pod = next(yaml.safe_load_all((ROOT / "configs" / "cluster" / "kuberay_job.yaml").read_text()))
    security = pod["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["securityContext"]
    assert user == f"{security['runAsUser']}:{security['runAsGroup']}"
    assert json.loads(dict(instructions)["ENTRYPOINT"]) == ["ray-ft"]


def test_the_image_is_installed_as_the_readme_says() -> None:
    """By pip and the constraints, on a Python that the package takes."""
    (install,) = (rest for word, rest in parse_dockerfile() if word == "RUN" and "pip install" in rest)
    assert "pip install -c constraints.txt" in (ROOT / "README.md").read_text()
    assert "-c /src/constraints.txt '/src[cluster]'" in install
    assert "FROM python:3.11" in (ROOT / "Dockerfile").read_text()


def test_what_is_copied_is_there_and_no_more() -> None:
    copied = [rest for word, rest in parse_dockerfile() if word == "COPY"]
    assert copied == [". /src"]
    context = list_context()
    assert {path.split("/")[0] for path in context} == {"constraints.txt", "pyproject.toml", "ray_ft", *NAMED}
    assert not any("__pycache__" in path for path in context)


@pytest.mark.slow
def test_what_is_copied_is_enough_to_build_the_package_of(tmp_path: Path) -> None:
    context = list_context()
    for path in context:
        (tmp_path / "src" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / "src" / path)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path / "built", tmp_path / "src"]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = (tmp_path / "built").glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("ray_ft/")}
    assert packed == {path for path in context if path.startswith("ray_ft/")}
