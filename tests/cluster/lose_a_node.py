"""Run `ray-ft cv` on two nodes, do something to the worker in between, and say what became of its candidate.

    python lose_a_node.py cut|flap|kill ADDRESS    # from two_hosts.sh, in the working folder of the run

It reads the candidates' files: each epoch writes a candidate's history again, one epoch longer.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from threading import Timer

import ray

from ray_ft.files.arrays import read_arrays
from ray_ft.results.records import load_plan
from ray_ft.runs.folder import RunFolder

CHECKPOINT_EVERY = 4  # epochs, as slow_toy.py has it
CUT_AT = 5  # epochs of both candidates
FLAP_S = 4.0
LIMIT_S = 120.0


def on(host: str, *command: str) -> list[str]:
    """Run a command on a host, as `on` of hosts.sh does."""
    namespaces = ["--net", "--pid", "--mount", "--uts"]
    return ["nsenter", "--target", os.environ[f"PID_{host}"], *namespaces, "env", f"--chdir={Path.cwd()}", *command]


def watch(address: str, path: str) -> None:
    """Write down the time at which a node is counted as lost; runs on the head, and ends with it."""
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    while all(node["Alive"] for node in ray.nodes()):
        time.sleep(0.1)
    Path(path).write_text(str(time.time()))


class Histories:
    """When each candidate's history was written, and how many epochs it had then."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.written: dict[str, list[tuple[float, int]]] = {}

    def poll(self) -> None:
        for path in self.run.candidates.glob("*/history.npz"):
            entries = self.written.setdefault(path.parent.name, [])
            try:
                at = path.stat().st_mtime
                if not entries or at > entries[-1][0]:
                    entries.append((at, len(read_arrays(path)["losses"]) - 1))  # the first is of epoch 0
            except OSError:
                continue  # replaced in between

    def epochs(self) -> list[int]:
        return [entries[-1][1] for entries in self.written.values()]


def wait_until(process: subprocess.Popen[bytes], histories: Histories, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not done():
        log = Path(f"{histories.run.root}.log")
        assert time.monotonic() < deadline, f"nothing more after {histories.written}\n{log.read_text()[-3000:]}"
        assert process.poll() in (None, 0), f"the run failed\n{log.read_text()[-3000:]}"
        histories.poll()
        time.sleep(0.05)


def disturb(event: str) -> None:
    """Do it; a flap ends by itself, while the run is watched."""
    if event == "kill":
        subprocess.run(on("worker", "pkill", "-KILL", "-x", "raylet"), check=True)  # of the host's own processes
        return
    subprocess.run(["ip", "link", "set", "v-worker", "down"], check=True)
    if event == "flap":
        Timer(FLAP_S, subprocess.run, (["ip", "link", "set", "v-worker", "up"],)).start()


def main(event: str, address: str) -> None:
    run = RunFolder(Path(event))
    lost_at = Path(f"{event}.lost")
    watching = on("head", sys.executable, __file__, "--watch", address, str(lost_at))
    subprocess.Popen(watching, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    command = ["ray-ft", "cv", "--config", "slow.yaml", "--address", address, "--out", event]
    with Path(f"{event}.log").open("w") as log:
        process = subprocess.Popen(on("head", *command), stdout=log, stderr=log)
    started, histories = time.time(), Histories(run)
    wait_until(process, histories, lambda: len(histories.written) == 2 and min(histories.epochs()) >= CUT_AT)
    cut = time.time()
    disturb(event)
    wait_until(process, histories, lambda: process.poll() == 0)
    whole = time.time() - started
    histories.poll()
    report(event, histories, cut, float(lost_at.read_text()) if lost_at.exists() else None, whole)


def report(event: str, histories: Histories, cut: float, lost: float | None, whole: float) -> None:
    plan = {spec.name: spec.stages[0].epochs for spec in load_plan(histories.run)}
    again = {name: len(entries) - plan[name] for name, entries in histories.written.items()}
    print(f"{event}: {whole:.1f} s; the node " + (f"was lost after {lost - cut:.1f} s" if lost else "was never lost"))
    for name, entries in histories.written.items():
        pause, went_on = max((later - earlier, later) for (earlier, _), (later, _) in pairwise(entries))
        print(
            f"  {name}: {again[name]} epochs again; longest pause {pause:.1f} s, until {went_on - cut:.1f} s after it"
        )
        assert [epochs for _, epochs in entries][-1] == plan[name], entries
    if event == "flap":
        assert lost is None, "the worker was given up"
        assert not any(again.values()), "a candidate was started again"
    else:
        assert lost is not None, "nobody noticed"
        assert min(again.values()) == 0, "the candidate on the head was disturbed"
        assert max(again.values()) <= CHECKPOINT_EVERY, "more is trained again than what the last checkpoint lacks"


if __name__ == "__main__":
    watch(*sys.argv[2:]) if sys.argv[1] == "--watch" else main(*sys.argv[1:])
