"""The run against itself with 10 and 100 times the members: `python -m benchmarks.member_scaling`.

The `head` strategy of the embedded demo, 5 folds x 3 seeds x 1, 10 and 100 repeats, on Ray. The time of a member is the
candidate's time, from the start of its trial to its end, above that of a run of one epoch, divided by the members and
by the epochs between, more of them where members are few; the memory is the largest of the command's own process.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ray_ft.results.records import load_judged
from ray_ft.runs.folder import RunFolder

REPEATS = (1, 10, 100)
N_FOLDS, N_SEEDS = 5, 3
MEMBER_EPOCHS = 1800  # to time, so that a second of start-up more or less does not show
SAMPLE_EVERY_S = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, nargs="+", default=REPEATS)
    options = parser.parse_args()
    results = {}
    for n_repeats in options.repeats:
        n_members = N_FOLDS * N_SEEDS * n_repeats
        n_epochs = max(2, MEMBER_EPOCHS // n_members)
        (short, _), (long, memory) = (run_demo(n_repeats, n) for n in (1, 1 + n_epochs))
        seconds = (long - short) / n_members / n_epochs
        print(f"{n_members} members: {1e3 * seconds:.1f} ms a member and epoch, driver {memory:.0f} MB", flush=True)
        results[str(n_members)] = {"s_per_member_epoch": seconds, "trial_s": long, "driver_mb": memory}
    print(json.dumps(results))


def run_demo(n_repeats: int, n_epochs: int) -> tuple[float, float]:
    """Return the seconds of the one candidate, and the driver's peak memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["cv", "--strategies", "head", "--candidates", "1", "--folds", str(N_FOLDS), "--seeds", str(N_SEEDS)]
        settings = [f"cv.repeats={n_repeats}", f"training.epochs={n_epochs}", "training.patience=1000"]
        words += [word for setting in settings for word in ("--set", setting)]
        process = subprocess.Popen(
            [sys.executable, "-m", "ray_ft", *words, "--out", f"{folder}/run"], stdout=subprocess.DEVNULL
        )
        memory = 0.0
        while process.poll() is None:
            memory = max(memory, read_peak_mb(process.pid))
            time.sleep(SAMPLE_EVERY_S)
        if process.returncode:
            raise SystemExit(f"the run failed with exit code {process.returncode}")
        (verdict,) = load_judged(RunFolder(Path(folder) / "run"))[1].values()
        return verdict.seconds, memory


def read_peak_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


if __name__ == "__main__":
    main()
