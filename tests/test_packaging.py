"""What is published: the wheel and the sdist hold what they should and no more, and the citation names this release."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

import ray_ft

ROOT = Path(__file__).parents[1]
BUILD = (
    "import hatchling.build, sys; hatchling.build.build_wheel(sys.argv[1]); hatchling.build.build_sdist(sys.argv[1])"
)


def list_tracked(*places: str) -> set[str]:
    """Files of the repository; those that are new count, and those that git ignores do not."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *places]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return {name for name in listed if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and an sdist, made by the backend that pyproject.toml names."""
    if not (ROOT / ".git").exists():
        pytest.skip("what should be in them is what git knows")
    folder = tmp_path_factory.mktemp("built")
    (backend,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder / "backend", backend]
    subprocess.run(install, check=True, capture_output=True)
    build, path = [sys.executable, "-c", BUILD, folder], {"PYTHONPATH": str(folder / "backend")}
    subprocess.run(build, cwd=ROOT, env=path, check=True, capture_output=True)
    return folder


@pytest.mark.slow  # it asks the package index for the backend
def test_the_wheel_holds_the_package_its_demo_and_its_license(built: Path) -> None:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names, about = set(wheel.namelist()), f"ray_ft-{ray_ft.__version__}.dist-info"
        metadata = message_from_bytes(wheel.read(f"{about}/METADATA"))
        commands = wheel.read(f"{about}/entry_points.txt").decode()
    assert {name for name in names if not name.startswith(about)} == list_tracked("ray_ft")
    assert {"ray_ft/py.typed", "ray_ft/demo/measured.npz", f"{about}/licenses/LICENSE"} <= names
    assert (metadata["Name"], metadata["Version"]) == ("ray-ft", ray_ft.__version__)
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Author"] in (ROOT / "LICENSE").read_text()
    assert "ray-ft = ray_ft.__main__:main" in commands


@pytest.mark.slow
def test_the_sdist_holds_what_builds_tests_and_explains_the_package(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    expected = list_tracked(":!.ci")
    assert names - {"PKG-INFO"} == expected


def test_the_citation_is_of_this_release() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == ray_ft.__version__
    assert citation["license"] == project["license"]
    assert citation["authors"] == project["authors"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
