"""A run behind a URI: on a server that speaks S3, on this machine, and by fsspec."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate
from ray_ft.errors import RunFolderError, StorageError
from ray_ft.results.summary import Summary
from ray_ft.runs.folder import fetch_run, open_folder
from ray_ft.runs.journal import count_lost
from ray_ft.runs.storage import Mirror

BUCKET = "s3://bucket"
OPTIONS = {"cv.strategies": ["top"], "cv.candidates": 2}


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    """An S3 server with one bucket, which the environment names."""
    pytest.importorskip("moto")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
    setting = keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_EC2_METADATA_DISABLED": "true"}
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in setting.items():
            patch.setenv(name, value)
        make_bucket(port)
        yield
    server.terminate()
    server.wait(timeout=20)


def make_bucket(port: int) -> None:
    from pyarrow.fs import S3FileSystem

    system = S3FileSystem(endpoint_override=f"127.0.0.1:{port}", scheme="http", allow_bucket_creation=True)
    deadline = time.monotonic() + 60
    while True:
        try:
            system.create_dir("bucket")
            return
        except OSError:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.2)


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-m", "ray_ft", "cv", "-c", "toy.yaml", *words]
    command += ["--strategies", "top", "--candidates", "2"]
    env = os.environ | {"PYTHONPATH": os.getcwd()}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def scores(summary: Summary) -> tuple[object, ...]:
    row = summary.strategies["top"]
    return row.scores, row.candidates, row.stop_epochs, summary.ensemble.score


@pytest.mark.faults
def test_a_run_on_s3_is_that_in_a_folder_and_goes_on_after_a_kill(s3: None, toy_folder: Path) -> None:
    config = load_config("toy.yaml", OPTIONS)
    expected = cross_validate(config, "plain", inline=True)
    process = start("--inline", "--out", f"{BUCKET}/cut")
    system, path = Mirror(f"{BUCKET}/cut", toy_folder).storage
    from pyarrow.fs import FileType

    checkpoint = f"{path}/candidates/top-000/checkpoint.pt"
    deadline = time.monotonic() + 60
    while system.get_file_info(checkpoint).type == FileType.NotFound and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert scores(cross_validate(config, f"{BUCKET}/cut", inline=True)) == scores(expected)
    fetch_run(f"{BUCKET}/cut", toy_folder / "fetched")
    summary = Summary.load("fetched")
    assert scores(summary) == scores(expected)
    assert summary.ensemble.path == f"{BUCKET}/cut/ensemble"
    _, again, n_interruptions = count_lost(toy_folder / "fetched/log.jsonl")
    assert n_interruptions == 1
    assert again <= 2 + 2  # since the last checkpoint, and what was logged but not yet there
    assert not list((toy_folder / "fetched").rglob("checkpoint.pt"))
    files = {str(p.relative_to("fetched")) for p in Path("fetched").rglob("*") if p.is_file()}
    assert {"plan.json", "ensemble/card.json", "candidates/top-000/members.safetensors"} <= files


@pytest.mark.ray
@pytest.mark.faults
def test_a_run_on_s3_by_ray(s3: None, toy_folder: Path) -> None:
    """Workers write to the store themselves; the driver has no disk in common with them."""
    expected = cross_validate(load_config("toy.yaml", OPTIONS), "plain", inline=True)
    out, err = (process := start("--out", f"{BUCKET}/ray")).communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"ray-ft fetch {BUCKET}/ray runs/toy" in out
    fetch_run(f"{BUCKET}/ray", toy_folder / "fetched")
    assert scores(Summary.load("fetched")) == scores(expected)


def test_a_bucket_that_is_not_there_is_named(s3: None, toy_folder: Path) -> None:
    with pytest.raises(StorageError, match=r"got s3://nobucket/run: .*not"):
        cross_validate(load_config("toy.yaml", OPTIONS), "s3://nobucket/run", inline=True)


def test_a_uri_of_no_known_kind_is_refused() -> None:
    with (
        pytest.raises(RunFolderError, match=r"--out must be a folder or a URI .* got gopher://x/y"),
        open_folder("gopher://x/y"),
    ):
        pass


def test_one_command_at_a_time_uses_a_uri() -> None:
    with (
        open_folder("memory://twice"),
        pytest.raises(RunFolderError, match="got memory://twice, which is in use"),
        open_folder("memory://twice"),
    ):
        pass


def test_a_mirror_follows_and_is_followed(tmp_path: Path) -> None:
    one, other = (Mirror("memory://mirrored/run", tmp_path / name) for name in ("one", "other"))
    (tmp_path / "one/a").mkdir(parents=True)
    (tmp_path / "one/a/x.txt").write_text("x")
    (tmp_path / "one/.partial").write_text("not yet")
    one.push()
    other.pull(skip=("skipped",))
    assert [path.relative_to(other.root).as_posix() for path in other.root.rglob("*.*")] == ["a/x.txt"]
    (tmp_path / "one/a/x.txt").unlink()
    (tmp_path / "one/y.txt").write_text("y")
    one.push()
    third = Mirror("memory://mirrored/run", tmp_path / "third")
    third.pull()
    assert [path.name for path in third.root.rglob("*.*")] == ["y.txt"]


def test_what_says_that_others_stand_follows_them_though_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, hour in (("members.safetensors", 2), ("result.json", 1)):
        (tmp_path / "here").mkdir(exist_ok=True)
        (tmp_path / "here" / name).touch()
        os.utime(tmp_path / "here" / name, (3600 * hour, 3600 * hour))
    sent: list[str] = []
    monkeypatch.setattr(Mirror, "upload", lambda mirror, path: sent.append(path.name))
    Mirror(f"file://{tmp_path}/there", tmp_path / "here").push()
    assert sent == ["members.safetensors", "result.json"]
