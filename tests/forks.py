"""Commands in forks of a process that has all packages, so that a fault can be tried at each of their moments.

A moment is what a process does to the files below a folder: it opens one to write, or renames one.
Python runs this in a process of its own, as forks of one with threads may hang.
"""

import contextlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from ray_ft.__main__ import main

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename",)  # os.replace too
Fault = Callable[[], object]


@dataclass(frozen=True)
class Ended:
    """How a fork has ended, what it said on both of its outputs, and the moments that it came to."""

    code: int  # negative where a signal ended it
    out: str
    err: str
    moments: list[str]


@dataclass(frozen=True)
class Fork:
    """A fork that runs."""

    pid: int
    folder: Path  # of what it says

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def is_over(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self) -> Ended:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        out, err, moments = ((self.folder / name).read_text() for name in ("out", "err", "moments"))
        return Ended(code, out, err, moments.splitlines())


def import_for(words: list[str], below: Path) -> Ended:
    """Run a command once, and import here what it has imported, so that no fork has to."""
    ended = (fork := start(words, below)).wait()
    for name in (fork.folder / "modules").read_text().splitlines():
        if name.partition(".")[0] not in ("__main__", "toy_network"):
            with contextlib.suppress(Exception):  # what only some other module may import
                import_module(name)
    return ended


def start(words: list[str], below: Path, at: int = 0, fault: Fault | None = None) -> Fork:
    """Start a command; at the moment of a number, from 1, its process has a fault befall it."""
    folder = Path(tempfile.mkdtemp())
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if (pid := os.fork()) == 0:
        run(words, below, at, fault, folder)
    return Fork(pid, folder)


def run(words: list[str], below: Path, at: int, fault: Fault | None, folder: Path) -> NoReturn:
    """Be the command, and end with its code."""
    code: Any = 70
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
        watch(below, at, fault, os.open(folder / "moments", os.O_WRONLY | os.O_CREAT))
        sys.argv = ["ray-ft", *words]
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        (folder / "modules").write_text("\n".join(sys.modules))
        os._exit(code)


def watch(below: Path, at: int, fault: Fault | None, log: int) -> None:
    """Write down the moments of this process."""
    prefix, n, busy = os.path.abspath(below), 0, False

    def hear(event: str, args: tuple[Any, ...]) -> None:
        nonlocal n, busy
        is_write = event == "open" and bool(args[2] & WRITES)
        if busy or not (is_write or event in CHANGES) or not isinstance(args[0], str | os.PathLike):
            return
        path = os.path.abspath(args[0])
        if path.startswith(prefix):
            n, busy = n + 1, True
            os.write(log, f"{event} {os.path.relpath(path, prefix)}\n".encode())
            if n == at and fault is not None:
                fault()
            busy = False

    sys.addaudithook(hear)
