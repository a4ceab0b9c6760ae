"""Kills a run twice at random moments of a phase, again and again; one JSON object a trial on the standard output.

    python kills.py PHASE N_TRIALS SEED OPTIONS...     in a folder with the toy

The first kill is in the phase, the second in it or a later one; then the run goes on to its end.
"""

import json
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import forks

RUN = Path("run")
PHASES = ("range test", "first candidates", "extension", "later seeds", "reduction", "report", "over")


def find_phase() -> str:
    """Tell from its files how far a run is."""
    plan = RUN / "plan.json"
    marks = [
        ("over", (RUN / "report.html").exists()),
        ("report", (RUN / "summary.json").exists()),
        ("reduction", (RUN / "verdicts.json").exists()),
        ("later seeds", any(RUN.glob("candidates/*-e*"))),
        ("extension", plan.exists() and '"epochs"\n' in plan.read_text()),
        ("first candidates", any(RUN.glob("candidates/*-range/result.json"))),
    ]
    return next((phase for phase, is_there in marks if is_there), "range test")


def time_phases(command: list[str]) -> dict[str, float]:
    """Run to the end; return the seconds of each phase."""
    fork, seconds, before = forks.start(command, RUN), dict.fromkeys(PHASES, 0.0), time.monotonic()
    while not fork.is_over():
        time.sleep(0.002)
        now, phase = time.monotonic(), find_phase()
        seconds[phase] += now - before
        before = now
    ended = fork.wait()
    assert ended.code == 0, ended.err
    return seconds


def kill_twice(phase: str, draw: random.Random, seconds: dict[str, float], command: list[str]) -> dict[str, Any]:
    shutil.rmtree(RUN, ignore_errors=True)
    hit = []
    for aimed in (phase, draw.choice(PHASES[PHASES.index(phase) : -1])):
        fork = forks.start(command, RUN)
        while not fork.is_over() and PHASES.index(find_phase()) < PHASES.index(aimed):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, seconds[aimed]))
        if not fork.is_over():
            fork.kill()
            hit.append(find_phase())
        fork.wait()
    ended = forks.start(command, RUN).wait()
    return {"hit": hit, "code": ended.code, "err": ended.err, **read_found()}


def read_found() -> dict[str, Any]:
    """Read what must be as in a run that was not disturbed."""
    if not (RUN / "summary.json").exists():
        return {}
    summary = json.loads((RUN / "summary.json").read_text())
    rows = summary["strategies"].items()
    return {
        "scores": {name: row["scores"] for name, row in rows} | {"ensemble": summary["ensemble"]["score"]},
        "stops": {name: (row["stop_epochs"], row["candidates"]) for name, row in rows},
        "partial": [str(path) for path in RUN.rglob(".*") if path.name != ".lock"],
        "report": (RUN / "report.html").exists(),
    }


def main() -> None:
    phase, n, seed, *options = sys.argv[1:]
    command = ["cv", "-c", "toy.yaml", "--inline", "--out", str(RUN), *options]
    ended = forks.import_for(command, RUN)
    assert ended.code == 0, ended.err
    shutil.rmtree(RUN)
    seconds = time_phases(command)
    print(json.dumps({"seconds": seconds, **read_found()}), flush=True)
    draw = random.Random(f"{phase} {seed}")
    for _ in range(int(n)):
        print(json.dumps(kill_twice(phase, draw, seconds, command)), flush=True)


main()
