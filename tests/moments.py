"""Tries a fault at each moment of a command, and goes on after it; one JSON object a moment on the standard output.

    python moments.py '{"fault": "full", "below": "small", "before": "run", "run": "small/run", "commands": [[...]]}'

`before` is what stands in `run` as the command begins, if anything. The fault is `full`, a disk that is full from then
on (`below` is a file system of its own), or the name of a signal. The second command, if any, follows the first's end.
"""

import json
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import forks


def fill(below: Path) -> None:
    """Fill a file system to its last byte."""
    with (below / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass


def prepare(place: Path, run: str, before: str | None) -> None:
    for path in place.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if before:
        shutil.copytree(before, run)


def try_moment(at: int, fault: str, below: str, run: str, before: str | None, command: list[str]) -> dict[str, Any]:
    place = Path(below)
    prepare(place, run, before)
    harm = partial(fill, place) if fault == "full" else partial(signal.raise_signal, signal.Signals[fault])
    ended = forks.start(command, place, at, harm).wait()
    (place / "filler").unlink(missing_ok=True)
    left = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    found = {"at": at, "n": len(ended.moments), "moment": ended.moments[at - 1 : at], "code": ended.code}
    again = forks.start(command, place).wait()
    return found | {"err": ended.err, "left": left, "again": again.code, "again_err": again.err}


def main() -> None:
    asked = json.loads(sys.argv[1])
    at = step = asked.pop("step", 1)
    place = Path(asked["below"])
    prepare(place, asked["run"], asked["before"])
    forks.import_for(asked["command"], place)
    while True:
        found = try_moment(at, **asked)
        if found["n"] < at:
            return
        summary = Path(asked["run"], "summary.json")
        found["score"] = json.loads(summary.read_text())["ensemble"]["score"] if summary.exists() else None
        print(json.dumps(found), flush=True)
        at += step


main()
