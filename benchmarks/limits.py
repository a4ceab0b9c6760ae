"""How large a run may be: `python -m benchmarks.limits members|candidates|nodes|halving [--n N]`.

A network of 83 parameters on 30 samples, so that what is measured is everything but training: many members of one
candidate, many candidates, or simulated nodes on one machine. The run is made, then repeated as it stands, reduced
again, reported, and taken up with every second candidate removed. The driver's CPU seconds and peak memory are those of
the command's own process; `--profile` writes where they go. `halving` times the verdicts alone, of N candidates of a
strategy that report 20 epochs in turn.
"""

import argparse
import cProfile
import json
import os
import pstats
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

NETWORK = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
"""
STRATEGIES = {
    name: {"train": [pattern], "lr": [1e-3, 1e-1], "epochs": [4, 8], "patience": 20}
    for name, pattern in (("all_of_it", "*"), ("last", "2.*"))
}
CASES: dict[str, dict[str, Any]] = {
    "members": {"folds": 5, "seeds": 10, "repeats": 100, "candidates": 1, "strategies": ["last"]},
    "candidates": {"folds": 3, "seeds": 1, "repeats": 1, "candidates": 500, "strategies": list(STRATEGIES)},
    "nodes": {"folds": 3, "seeds": 1, "repeats": 1, "candidates": 50, "strategies": list(STRATEGIES)},
}
SIZE = {"members": "repeats", "candidates": "candidates"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=[*CASES, "halving"])
    parser.add_argument("--n", type=int, help="members / 50, candidates of a strategy, or nodes")
    parser.add_argument("--profile", type=Path, help="a folder for profiles of the driver")
    options = parser.parse_args()
    if options.case == "halving":
        print(f"{time_halving(options.n or 999):.2f} s")
        return
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # for several nodes here
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, str(Path(__file__).parents[1])])
        cv = CASES[options.case] | ({SIZE[options.case]: options.n} if options.n and options.case in SIZE else {})
        write_inputs(cv)
        n_nodes = (options.n or 20) if options.case == "nodes" else 0
        rows = list(measure(n_nodes, options.profile))
    print(json.dumps({"case": options.case, "cv": cv, "n_nodes": n_nodes, "rows": rows}))


def time_halving(n: int, n_epochs: int = 20) -> float:
    from ray_ft.backends.successive_halving import SuccessiveHalving
    from ray_ft.search.plan import CandidateSpec

    plan = [CandidateSpec("s", i, ()) for i in range(n)]
    halving = SuccessiveHalving(lambda spec: ("s", 5, n_epochs, 0), 2.0)
    losses = np.random.default_rng(0).random((n_epochs, n))
    halving.add(plan)
    started = time.monotonic()
    for epoch, by_candidate in enumerate(losses, start=1):
        for spec, loss in zip(plan, by_candidate, strict=True):
            if halving.stopped_at(spec.name) is None:
                halving.record(spec.name, epoch, float(loss), epoch == n_epochs)
    return time.monotonic() - started


def write_inputs(cv: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 6)).astype(np.float32)
    np.save("x.npy", x)
    np.save("y.npy", np.tanh(x @ rng.normal(size=(6, 3))).astype(np.float32))
    Path("tiny_network.py").write_text(NETWORK)
    config = {
        "name": "limits", "model": {"factory": "tiny_network:build"}, "data": {"inputs": "x.npy", "targets": "y.npy"},
        "cv": cv, "strategies": STRATEGIES, "search": {"method": "guide"}, "compute": {"packing": "looped"},
    }  # fmt: skip
    Path("limits.yaml").write_text(yaml.safe_dump(config))


def measure(n_nodes: int, profile: Path | None) -> Any:
    run = Path("run")
    yield show(drive("whole run", n_nodes, profile) | describe_folder(run))
    yield show(drive("repeated", 0, profile))
    (run / "summary.json").unlink()
    yield show(drive("reduced again", 0, profile))
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "ray_ft", "report", "run"], check=True, stdout=subprocess.DEVNULL)
    yield show({"what": "report", "wall_s": time.monotonic() - started})
    candidates = sorted((run / "candidates").iterdir())
    if len(candidates) > 1:
        for path in (run / "summary.json", run / "verdicts.json"):
            path.unlink()
        for candidate in candidates[1::2]:
            shutil.rmtree(candidate)
        yield show(drive("every second candidate again", n_nodes, profile))


def show(row: dict[str, Any]) -> dict[str, Any]:
    print(
        ", ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
    )
    sys.stdout.flush()
    return row


def describe_folder(run: Path) -> dict[str, Any]:
    files = [path for path in run.rglob("*") if path.is_file()]
    from ray_ft.results.records import load_judged
    from ray_ft.runs.folder import RunFolder

    return {
        "n_files": len(files),
        "mb": sum(path.stat().st_size for path in files) / 1e6,
        "tune_mb": sum(path.stat().st_size for path in files if "tune" in path.parts) / 1e6,
        "summary_mb": (run / "summary.json").stat().st_size / 1e6,
        "s_in_trials": sum(verdict.seconds for verdict in load_judged(RunFolder(run))[1].values()),
    }


def drive(what: str, n_nodes: int, profile: Path | None) -> dict[str, Any]:
    """Do what `ray-ft cv` does, in a process of its own, and return what it took."""
    code = f"from benchmarks.limits import be_driver; be_driver({n_nodes}, {profile and str(profile / what)!r})"
    started = time.monotonic()
    with open("driver.log", "w") as log:
        result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, stderr=log)
    if result.returncode:
        raise SystemExit(Path("driver.log").read_text()[-3000:])
    return {"what": what, "wall_s": time.monotonic() - started} | json.loads(result.stdout.splitlines()[-1])


def be_driver(n_nodes: int, profile: str | None) -> None:
    from rich.console import Console

    from ray_ft.config import load_config
    from ray_ft.cross_validation import cross_validate

    values, cluster = {}, None
    if n_nodes:
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}
        node["object_store_memory"] = 100 * 2**20
        started = time.monotonic()
        cluster = Cluster(initialize_head=True, head_node_args=node)
        for _ in range(n_nodes - 1):
            cluster.add_node(wait=False, **node)
        cluster.wait_for_nodes(timeout=300)
        values["compute.address"] = cluster.address
        print(f"{n_nodes} nodes in {time.monotonic() - started:.0f} s", file=sys.stderr)
    profiler, console = cProfile.Profile(), Console(file=sys.stderr, width=120)
    try:
        if profile:
            profiler.enable()
        started = time.monotonic()
        summary = cross_validate(load_config("limits.yaml", values), "run", console=console)
        seconds = time.monotonic() - started
    finally:
        profiler.disable()
        if cluster:
            cluster.shutdown()
    if profile:
        with open(f"{profile}.txt", "w") as file:
            pstats.Stats(profiler, stream=file).sort_stats("cumulative").print_stats(70)
    used = resource.getrusage(resource.RUSAGE_SELF)
    took = {"run_s": seconds, "driver_cpu_s": used.ru_utime + used.ru_stime, "driver_mb": used.ru_maxrss / 1024}
    print(json.dumps(took | {"winner": summary.winner}))


if __name__ == "__main__":
    main()
