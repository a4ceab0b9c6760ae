"""Faults at every moment of a command: a line says so, nothing is half-written, and the same command goes on."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
INLINE = ["cv", "-c", "toy.yaml", "--inline", "--strategies", "last", "--candidates", "1", "--seeds", "1"]
PHASES = ("range test", "first candidates", "extension", "later seeds", "reduction", "report")
WAYS = {
    "cv": [*INLINE, "--out", "small/run"],
    "ensemble": ["ensemble", "small/run", "--trust"],
    "report": ["report", "small/run"],
    "predict": ["predict", "small/run", "--inputs", "x.npy", "--out", "small/new.npz"],
    "predict to a folder": ["predict", "small/run", "--inputs", "x.npy", "--out", "small/new"],
    "evaluate": ["evaluate", "small/run", "--inputs", "x.npy", "--targets", "y.npy", "--plot", "small/new.png"],
    "export": ["export", "small/run", "--out", "small/new.pt2"],
}


def call(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([os.getcwd(), str(HERE.parent)])
    more = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [*options.pop("before", []), sys.executable, "-W", "ignore", *words]
    return subprocess.run(command, env=os.environ | more, capture_output=True, text=True, check=False, **options)


def make_run() -> None:
    assert call("-m", "ray_ft", *INLINE, "--out", "done").returncode == 0


def try_moments(within: list[str], **asked: Any) -> list[dict[str, Any]]:
    done = call(str(HERE / "moments.py"), json.dumps({"below": "small", "run": "small/run", **asked}), before=within)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check_moments(found: list[dict[str, Any]], codes: set[int], line: str) -> None:
    """Each ended by a line, left nothing half-written, and went on; or the fault came after all that matters."""
    for own in found:
        said = [each for each in own["err"].splitlines() if each != "starting …" and not each.startswith("note: ")]
        assert own["code"] in codes | {0}, own
        assert len(said) == (own["code"] != 0), own
        assert all(re.match(line, each) for each in said), own
        partial = [path for path in own["left"] if Path(path).name.startswith(".") and Path(path).name != ".lock"]
        assert partial == [], own
        assert own["again"] == 0 or own["code"] == 0, own  # what is there is not written over
    assert sum(own["code"] != 0 for own in found) >= len(found) / 2
    assert len({own["score"] for own in found}) == 1
    print(f"\n{len(found)} moments, of which {sum(own['code'] != 0 for own in found)} ended the command")


needs_mounts = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
ON_SMALL = ["unshare", "-m", "bash", "-ec", 'mkdir -p small; mount -t tmpfs -o size=8m tmpfs small; exec "$@"', "bash"]


@pytest.mark.faults
@needs_mounts
@pytest.mark.parametrize("way", WAYS)
def test_disk_that_is_full_at_each_write(way: str, toy_folder: Path) -> None:
    make_run()
    before = None if way == "cv" else "done"
    found = try_moments(ON_SMALL, fault="full", command=WAYS[way], before=before)
    check_moments(found, {1, 2}, r"error: .*(No space left on device|disk full|MB free for)")


@pytest.mark.faults
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_signals_while_the_results_are_written(name: str, code: int, toy_folder: Path) -> None:
    """At each write of reduction and report; the same command goes on."""
    make_run()
    for path in ("summary.json", "verdicts.json", "blind.npz", "leaderboard.csv", "report.html"):
        Path("done", path).unlink()
    for folder in ("ensemble", "figures"):
        shutil.rmtree(Path("done", folder))
    Path("small").mkdir()
    found = try_moments([], fault=name, command=WAYS["cv"], before="done")
    check_moments(found, {code}, "interrupted; the same command goes on from the last checkpoints$")


@pytest.mark.faults
@pytest.mark.parametrize("phase", PHASES)
def test_kills_in_each_phase(phase: str, toy_folder: Path) -> None:
    """Twenty of them, two a run: afterwards it ends as the one that was not disturbed."""
    options = ["--strategies", "top", "--search", "best", "--candidates", "8"]
    done = call(str(HERE / "kills.py"), phase, "10", "0", *options)
    assert done.returncode == 0, done.stderr
    calm, *killed = map(json.loads, done.stdout.splitlines())
    hit = [each for own in killed for each in own["hit"]]
    print(f"\n{len(hit)} kills: {', '.join(f'{hit.count(each)} in {each}' for each in dict.fromkeys(hit))}")
    assert len(killed) == 10
    assert hit.count(phase) >= 5
    for own in killed:
        assert (own["code"], own["err"]) == (0, "starting …\n")
        assert own["report"]
        assert own["stops"] == calm["stops"]
        assert_close(own["scores"], calm["scores"])


def assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, scores in expected.items():
        np.testing.assert_allclose(found[name], scores, rtol=1e-6)
