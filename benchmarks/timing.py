"""Time whole commands, with the memory of all their processes, and compare two of them."""

import os
import statistics
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MARKER = "BENCHMARK_SIDE"  # an environment variable that all processes of a command inherit
SAMPLE_EVERY_S = 2.0


@dataclass(frozen=True)
class Timing:
    """One command, from its start to its exit.

    Attributes:
        seconds: Wall time.
        peak_gb: Largest sum of the proportional memory of all its processes, in GB (2**30 bytes).
    """

    seconds: float
    peak_gb: float


def time_command(command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Timing:
    """Run a command to its end; its output is shown if it fails."""
    mark = uuid.uuid4().hex
    peaks, done = [0.0], threading.Event()
    watcher = threading.Thread(target=watch_memory, args=(mark, peaks, done))
    started = time.perf_counter()
    watcher.start()
    try:
        env = {**os.environ, **(env or {}), MARKER: mark}
        result = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
    finally:
        done.set()
        watcher.join()
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed\n{result.stdout}\n{result.stderr}")
    return Timing(seconds, max(peaks))


def watch_memory(mark: str, peaks: list[float], done: threading.Event) -> None:
    while not done.wait(SAMPLE_EVERY_S):
        peaks.append(sum(map(read_pss_gb, find_processes(mark))))


def find_processes(mark: str) -> list[Path]:
    """Processes that inherited the mark, Ray's daemons included."""
    wanted = f"{MARKER}={mark}".encode()
    return [folder for folder in Path("/proc").glob("[0-9]*") if wanted in read(folder / "environ").split(b"\0")]


def read_pss_gb(folder: Path) -> float:
    for line in read(folder / "smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) / 2**20
    return 0.0


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


def alternate(ours: Callable[[], Timing], theirs: Callable[[], Timing], n_rounds: int) -> list[tuple[Timing, Timing]]:
    """Run both sides `n_rounds` times, the first one changing."""
    rounds = []
    for i in range(n_rounds):
        if i % 2 == 0:
            rounds.append((ours(), theirs()))
        else:
            second = theirs()
            rounds.append((ours(), second))
    return rounds


def compare(name: str, rounds: Sequence[tuple[Timing, Timing]]) -> dict[str, object]:
    """Print and return the ratio theirs / ours in wall time, with its spread over the rounds."""
    ratios = sorted(theirs.seconds / ours.seconds for ours, theirs in rounds)
    ours, theirs = zip(*rounds, strict=True)
    print(
        f"{name}: ours {[round(t.seconds, 1) for t in ours]} s, theirs {[round(t.seconds, 1) for t in theirs]} s, "
        f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f}..{ratios[-1]:.2f}); "
        f"peak memory {max(t.peak_gb for t in ours):.2f} and {max(t.peak_gb for t in theirs):.2f} GB",
        flush=True,
    )
    return {
        "ratio": statistics.median(ratios),
        "ours_s": [timing.seconds for timing in ours],
        "theirs_s": [timing.seconds for timing in theirs],
        "ours_peak_gb": max(timing.peak_gb for timing in ours),
        "theirs_peak_gb": max(timing.peak_gb for timing in theirs),
    }
