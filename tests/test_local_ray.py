"""A Ray that is started on this machine works in the job's conditions: long, missing and forbidden folders, no home."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ray_ft.backends import local_ray
from ray_ft.backends.local_ray import LONGEST, find_folder, keeps_token
from ray_ft.errors import RunError

START = """
import ray, signal
from ray_ft.backends.tune import connect
from ray_ft.config import ComputeSection
signal.signal(signal.SIGTERM, lambda *_: print("heard"))  # also when Ray has ended
with connect(ComputeSection()):
    print(ray.get(ray.remote(lambda: 3).remote()))
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_rays_folder_is_where_it_is_asked_for_if_its_name_is_short(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    short, long = Path("/tmp", f"rf-{os.getpid()}"), tmp_path / ("long" * 20)
    own = f"ray-ft-{os.getuid()}/ray"  # which other users may not enter
    for folder, expected in ((short, short / own), (long, Path("/tmp") / own), (Path("/proc/no"), Path("/tmp") / own)):
        monkeypatch.setenv(name, str(folder))
        assert find_folder() == expected
    assert not long.exists()
    shutil.rmtree(short)


def test_where_no_folder_can_be_written_to_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ray, "is_writable", lambda folder: False)
    monkeypatch.setenv("RAY_TMPDIR", "/elsewhere")
    rule = f"Ray needs a folder of at most {LONGEST} bytes in its path"
    with pytest.raises(RunError, match=f"{rule}.* in /elsewhere, .*set RAY_TMPDIR to a short path"):
        find_folder()


def test_a_ray_that_memory_does_not_suffice_for_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ray, "find_available", lambda: 5 * 10**8)
    monkeypatch.setattr(local_ray, "count_cpus", lambda: 1)
    with pytest.raises(RunError, match=r"needs 0.6 GB of memory at least, got 0.5 GB available; .*--inline"):
        local_ray.start_ray()


def test_a_token_is_kept_where_the_user_has_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keeps_token()
    monkeypatch.setenv("HOME", "/proc/no")
    assert not keeps_token()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert keeps_token()


def start_ray(folder: Path, *before: str) -> None:
    """Start a Ray in a process of its own, which has a long folder for its files and no home that it can write to."""
    (long := folder / ("long" * 20)).mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    env |= {"TMPDIR": str(long), "HOME": "/proc/no", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [*before, sys.executable, "-W", "ignore", "-c", START]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.splitlines()[-2:] == ["3", "heard"], done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_ray_starts_with_a_long_folder_and_without_a_home(tmp_path: Path) -> None:
    start_ray(tmp_path)


@pytest.mark.ray
@pytest.mark.faults
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
def test_ray_starts_for_a_user_who_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "passwd").touch()
    hide = f'mount --bind {tmp_path}/passwd /etc/passwd && unset USER LOGNAME HOME && exec "$@"'
    start_ray(tmp_path, "unshare", "-m", "bash", "-c", hide, "_")
