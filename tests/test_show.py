"""What the machine lacks ends a command with one line: memory, room on a disk, open files."""

import errno
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from toy import break_toy

from ray_ft.cli.show import describe_shortage

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("anchor", ["        super().__init__()", "    def forward(self, x):"])
def test_memory_that_does_not_suffice_for_the_network_is_said_in_a_line(
    anchor: str, toy_folder: Path, ray_ft_here: Command
) -> None:
    break_toy(toy_folder, anchor, '    raise MemoryError("cannot allocate 1 TiB")')
    result = ray_ft_here("cv", "-c", "toy.yaml", "--strategies", "top", "--inline", "--out", "run")
    said = result.stderr.removeprefix("starting …\n")
    assert result.returncode == 1
    assert said.startswith("error: memory must suffice, got MemoryError: cannot allocate 1 TiB, with ")
    assert said.count("\n") == 1
    assert not Path("run").exists()


def test_memory_that_does_not_suffice_for_the_data_is_said_in_a_line(
    toy_folder: Path, ray_ft_here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("ray_ft.cross_validation.read_samples", fail)
    result = ray_ft_here("check", "-c", "toy.yaml", "--set", "cv.strategies=[top]")
    assert result.returncode == 1
    assert "\nerror: memory must suffice, got MemoryError, with " in "\n" + result.stderr
    assert result.stderr.endswith("available; free some, or give the command less to do, and repeat it\n")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "No space left on device; make room for them, and repeat it"),
        (errno.EMFILE, "Too many open files; raise the limit of open files (ulimit -n), and repeat it"),
        (errno.EIO, "Input/output error; mend the file system, and repeat it"),
    ],
)
def test_what_files_lack_is_said_with_its_remedy(number: int, remedy: str) -> None:
    error = OSError(number, errno.errorcode[number])
    error.strerror, error.filename = remedy.partition(";")[0], "x"
    assert describe_shortage(error) == f"a command must be able to open and write files, got x: {remedy}"


def test_a_bug_keeps_its_traceback() -> None:
    assert describe_shortage(ValueError("no")) == ""
    assert describe_shortage(FileNotFoundError(errno.ENOENT, "no such file")) == ""
