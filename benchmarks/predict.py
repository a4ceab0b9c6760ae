"""How long predictions of many structures take, where the time goes, and memory: `python -m benchmarks.predict RUN`.

The structures are the demo's, tiled, with pixels flipped at random so that no two are alike, packed as uint8. Each row
is a process of its own, so that its peak of memory is its own; the machine's load is printed, as it decides.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from ray_ft.ensemble import Ensemble, apply_stacked
from ray_ft.files.cpus import count_cpus
from ray_ft.prediction.sources import open_source
from ray_ft.prediction.streams import predict_to_folder
from ray_ft.statistics.intervals import build_pointwise, build_simultaneous

DEMO = Path(__file__).parents[1] / "ray_ft" / "demo" / "measured.npz"
ROWS: dict[str, list[str] | None] = {"all": None, "few": ["mean", "flag"], "mean": ["mean"]}
FLIPPED_PER_BYTE = 256  # one byte in so many has a pixel flipped
BATCH_SIZE = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a finished demo")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=count_cpus())
    parser.add_argument("--rows", default="all,few,mean", help="of all, few, mean; comma-separated")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row is not None:
        print(json.dumps(measure(options.run, Path(options.folder), options.row, options.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_structures(Path(folder) / "x.npy", options.samples)
        for row in options.rows.split(","):
            command = [sys.executable, "-m", "benchmarks.predict", options.run, "--row", row, "--folder", folder]
            command += ["--threads", str(options.threads)]
            subprocess.run(command, check=True)
    print(json.dumps({"profile_ms_per_sample": profile(options.run)}))


def write_structures(path: Path, n_samples: int) -> None:
    """Write structures chunk by chunk; no two are alike."""
    with np.load(DEMO) as archive:
        demo = archive["structure"]
    rng = np.random.default_rng(0)
    whole = np.lib.format.open_memmap(path, "w+", np.uint8, (n_samples, *demo.shape[1:]))
    for start in range(0, n_samples, 1000):
        part = demo[np.arange(start, min(start + 1000, n_samples)) % len(demo)]
        hit = rng.integers(FLIPPED_PER_BYTE, size=part.shape, dtype=np.uint8) == 0
        whole[start : start + len(part)] = part ^ (hit << rng.integers(8, size=part.shape, dtype=np.uint8))
    whole.flush()


def measure(run: str, folder: Path, row: str, n_threads: int) -> dict[str, object]:
    """Predict in this process; memory is the most that it ever held."""
    ensemble, source = Ensemble.load(run), open_source(str(folder / "x.npy"))
    quantities = ROWS[row]
    started, used, load = time.perf_counter(), time.process_time(), os.getloadavg()[0]
    predict_to_folder(ensemble, source, folder / row, quantities, n_threads=n_threads)
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    return {
        "quantities": row,
        "samples": len(source),
        "threads": n_threads,
        "seconds": round(seconds, 1),
        "samples_per_s": round(len(source) / seconds),
        "cpu_seconds": round(cpu, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "output_mb": sum(path.stat().st_size for path in (folder / row).glob("*.npy")) // 10**6,
        "load_before_and_after": [load, os.getloadavg()[0]],
    }


def profile(run: str, n_rounds: int = 20) -> dict[str, float]:
    """Milliseconds a sample of each step, the least of all rounds, by one thread."""
    torch.set_num_threads(1)
    ensemble = Ensemble.load(run)
    with np.load(DEMO) as archive:
        raw = archive["structure"][:BATCH_SIZE]
    inputs = ensemble.prepare(raw)
    members, features = ensemble.predict_members(inputs, False)
    folds = ensemble.average_folds(members)
    around = (folds, ensemble.residuals, ensemble.calibration.fold_of, 0.1)
    strategy = ensemble.card.strategies[0]
    steps: dict[str, Callable[[], object]] = {
        "prepare": lambda: ensemble.prepare(raw),
        "backbone": lambda: ensemble.first.run_backbone(torch.from_numpy(inputs)),
        "tails": lambda: apply_stacked(ensemble.first, ensemble.states[strategy], features),
        "std": lambda: ensemble.measure_spread(members),
        "pointwise": lambda: build_pointwise(*around),
        "simultaneous": lambda: build_simultaneous(*around),
        "novelty": lambda: ensemble.measure_novelty(features),
    }
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return {name: round(pool.submit(time_step, step, n_rounds).result(), 4) for name, step in steps.items()}


@torch.no_grad()
def time_step(step: Callable[[], object], n_rounds: int) -> float:
    times = []
    for _ in range(n_rounds):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return 1e3 * min(times) / BATCH_SIZE


if __name__ == "__main__":
    main()
