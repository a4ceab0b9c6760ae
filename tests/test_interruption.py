"""SIGTERM ends a command in time and with a line: before its packages are there, and whatever it waits for."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

WAITS = """
import hashlib, subprocess, sys
from ray_ft.runs.interruption import end_by_sigterm
import signal
signal.signal(signal.SIGTERM, lambda *_: None)
child = subprocess.Popen(["sleep", "60"])
with end_by_sigterm(float(sys.argv[1]), "the line") as say:
    print("waits", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # a long call, in which Python handles no signal
"""

LEAVES = """
import atexit, hashlib, sys, typer
from ray_ft.cli.show import resumable
if sys.argv[1] == "and hangs":
    atexit.register(hashlib.pbkdf2_hmac, "sha256", b"", b"", 10**9)
try:
    with resumable():
        exec("import signal; signal.raise_signal(signal.SIGTERM)")  # a text, as imports of packages have them
except typer.Exit as ended:
    sys.exit(ended.exit_code)
"""


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), str(Path(__file__).parents[1])])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def handles_sigterm(pid: int) -> bool:
    caught = re.search(r"SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_command_that_has_just_been_started_says_so(toy_folder: Path) -> None:
    process = start("-m", "ray_ft", "cv", "-c", "toy.yaml", "--strategies", "top", "--out", "run")
    while not handles_sigterm(process.pid):
        assert process.poll() is None
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (143, "interrupted; the same command goes on\n")
    assert not Path("run").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_whose_packages_load_says_so(number: signal.Signals, code: int, toy_folder: Path) -> None:
    process = start("-m", "ray_ft", "cv", "-c", "toy.yaml", "--strategies", "top", "--out", "run")
    assert process.stderr is not None
    assert process.stderr.readline() == "starting …\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, "interrupted; the same command goes on from the last checkpoints\n")


@pytest.mark.parametrize(("to_all", "after_s"), [(False, 0.5), (True, 60.0)])
def test_a_process_that_hears_no_signal_ends_in_time(to_all: bool, after_s: float) -> None:
    """At once where a process that it has started has ended too, as a Ray does: there is nothing to wait for."""
    process = start("-c", WAITS, str(after_s))
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    (os.killpg if to_all else os.kill)(process.pid, signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    if not to_all:
        os.killpg(process.pid, signal.SIGKILL)  # its child
    assert process.communicate()[1] == "the line\n"


@pytest.mark.parametrize("how", ["at once", "and hangs"])
def test_the_exit_code_is_kept_and_what_hangs_at_the_end_is_not_waited_for(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("leaves.py").write_text(LEAVES)
    process = start("-m", "leaves", how)
    said = process.communicate(timeout=40)[1]
    assert (process.returncode, said) == (143, "interrupted; the same command goes on from the last checkpoints\n")
