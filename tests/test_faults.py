"""What breaks a run, done for real: afterwards the same command ends with the scores of an undisturbed run.

The shorter ones are part of the suite; the others are run on request with `-m faults` and take some minutes.
"""

import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_cluster
from conftest import make_once
from small_cluster import ENVIRONMENT, SmallCluster
from toy import break_toy, write_toy

from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate
from ray_ft.files.memory import CGROUPS, list_cgroups
from ray_ft.results.summary import Summary
from ray_ft.runs.journal import count_lost, read_log

NAP = """
    import pathlib, time
    # The sum keeps the network whole, so that this is run at each step.
    if x.sum() < 1e30 and pathlib.Path("nap").exists():
        time.sleep(float(pathlib.Path("nap").read_text()))
"""
OPTIONS = ["--strategies", "top,last", "--candidates", "2"]
CHECKPOINT_EVERY = 2


def start(
    *words: str, out: str = "run", nap: float = 0.0, env: dict[str, str] | None = None, before: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Start the command on the toy, in a process group of its own; `before` is what runs it, if not the system."""
    own = [sys.executable, "-W", "ignore", "-m", "ray_ft", "cv", "-c", "toy.yaml", "--out", out, *OPTIONS, *words]
    command = [*before, *own]
    Path("nap").write_text(str(nap))  # seconds a step
    paths = [os.getcwd(), str(Path(__file__).parents[1])]
    everything = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | (env or {})
    return subprocess.Popen(
        command, env=everything, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, out[-2000:] + err[-3000:]
    assert "Traceback" not in err
    return out + err


def wait_for(found: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + 120
    while not (value := found()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if not value:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(str(process.communicate()))
    return value


def find_epoch(epoch: int, node: str | None = None) -> Callable[[], dict[str, Any] | None]:
    """Look for a candidate that has reached an epoch, on a node if one is given."""

    def look() -> dict[str, Any] | None:
        for event in read_log(Path("run/log.jsonl")):
            if event["event"] == "epoch" and event["epoch"] >= epoch and node in (None, event.get("node")):
                return dict(event)
        return None

    return look


def check(expected: Summary, at_most: int) -> tuple[int, int]:
    """Compare a run with the undisturbed one, and its repeated epochs with what was promised."""
    summary = Summary.load("run")
    for name, row in expected.strategies.items():
        found = summary.strategies[name]
        np.testing.assert_allclose(found.scores, row.scores, rtol=1e-6)
        assert (found.n_members, found.candidates, found.stop_epochs) == (
            row.n_members,
            row.candidates,
            row.stop_epochs,
        )
        assert {n: (v.state, v.epoch) for n, v in found.verdicts.items()} == {
            n: (v.state, v.epoch) for n, v in row.verdicts.items()
        }
    assert summary.ensemble.n_members == expected.ensemble.n_members
    assert summary.ensemble.score == pytest.approx(expected.ensemble.score, rel=1e-6)
    n_epochs, n_again, n_interruptions = count_lost(Path("run/log.jsonl"))
    assert (summary.n_epochs_again, summary.n_interruptions) == (n_again, n_interruptions)
    assert n_again <= at_most
    print(f"\n{n_again} of {n_epochs} epochs trained again, {n_interruptions} interruptions")
    return n_again, n_interruptions


@pytest.fixture(scope="session")
def undisturbed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's run in one process, without Ray."""
    return make_once(tmp_path_factory, "undisturbed", run_undisturbed) / "run"


def run_undisturbed(folder: Path) -> None:
    write_toy(folder)
    break_toy(folder, "    def forward(self, x):", NAP)
    code = f"from test_faults import go_on; go_on({str(folder)!r})"
    paths = os.pathsep.join([str(folder), str(Path(__file__).parent)])
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=os.environ | {"PYTHONPATH": paths}, check=True)


def go_on(folder: str | Path) -> None:
    """Run the command's main part here, or go on with it."""
    with contextlib.chdir(folder):
        values = {"cv.strategies": ["top", "last"], "cv.candidates": 2}
        cross_validate(load_config("toy.yaml", values), "run", inline=True)


@pytest.fixture(scope="session")
def undisturbed(undisturbed_folder: Path) -> Summary:
    return Summary.load(undisturbed_folder)


@pytest.fixture
def toy(toy_folder: Path) -> Path:
    break_toy(toy_folder, "    def forward(self, x):", NAP)
    return toy_folder


@pytest.fixture(scope="session")
def cut_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed after a checkpoint."""
    return make_once(tmp_path_factory, "cut", cut_off) / "run"


def cut_off(folder: Path) -> None:
    write_toy(folder)
    break_toy(folder, "    def forward(self, x):", NAP)
    with contextlib.chdir(folder):
        process = start("--inline", nap=0.02)
        wait_for(find_epoch(5), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def cut_run(cut_folder: Path, toy: Path) -> Path:
    shutil.copytree(cut_folder, toy / "run")
    return toy / "run"


@pytest.mark.ray
@pytest.mark.faults
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_driver_stopped(number: signal.Signals, code: int, toy: Path, undisturbed: Summary) -> None:
    process = start(nap=0.03)
    wait_for(find_epoch(5), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    if number != signal.SIGKILL:
        assert "interrupted; the same command goes on from the last checkpoints" in err
        assert "Traceback" not in err
    finish(start())
    check(undisturbed, at_most=2 * CHECKPOINT_EVERY)  # two candidates train at a time


@pytest.mark.ray
@pytest.mark.faults
def test_all_processes_of_a_job_are_terminated(toy: Path, undisturbed: Summary) -> None:
    """As `scancel` and a container's stop do: Ray ends too, and the driver does not wait for it."""
    process = start(nap=0.03)
    wait_for(find_epoch(5), process)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    print(f"\nended after {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began < 10
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what of Ray is not gone yet, as a job's end does
    assert "interrupted; the same command goes on from the last checkpoints" in process.communicate()[1]
    finish(start())
    check(undisturbed, at_most=2 * CHECKPOINT_EVERY)


@pytest.mark.ray
@pytest.mark.faults
def test_worker_killed(toy: Path, undisturbed: Summary) -> None:
    process = start(nap=0.03)
    event = wait_for(find_epoch(3), process)
    os.kill(event["pid"], signal.SIGKILL)
    assert "faults    interrupted once" in finish(process)
    check(undisturbed, at_most=CHECKPOINT_EVERY)
    (retry,) = [event for event in read_log(Path("run/log.jsonl")) if event["event"] == "retry"]
    assert retry["candidate"] == event["candidate"]
    assert "died" in retry["reason"].lower()


@pytest.mark.ray
@pytest.mark.faults
def test_worker_that_is_killed_again_and_again(toy: Path, undisturbed: Summary) -> None:
    """It is no verdict on the candidate: the run stops when the others have ended, and the same command goes on."""
    process = start("--set", "compute.max_failures=0", nap=0.03)
    event = wait_for(find_epoch(3), process)
    os.kill(event["pid"], signal.SIGKILL)
    said = finish(process, code=1)
    assert "a candidate's process may die 0 times (compute.max_failures), but it died once more" in said
    assert event["candidate"] in said
    finish(start("--set", "compute.max_failures=0"))
    check(undisturbed, at_most=CHECKPOINT_EVERY)


HANG_ONCE = """
    import pathlib, sys, time
    if x.sum() < 1e30 and self.training and "ImplicitFunc" in pathlib.Path("/proc/self/cmdline").read_text():
        if pathlib.Path("run/candidates/top-000/checkpoint.pt").exists() and not pathlib.Path("hung").exists():
            pathlib.Path("hung").touch()
            time.sleep(1000)
"""


@pytest.mark.ray
@pytest.mark.faults
def test_candidate_that_hangs(toy: Path, undisturbed: Summary) -> None:
    break_toy(toy, "    def forward(self, x):", HANG_ONCE)
    finish(start("--set", "compute.max_silence_s=6"))
    assert Path("hung").exists()
    check(undisturbed, at_most=CHECKPOINT_EVERY)
    (retry,) = [event for event in read_log(Path("run/log.jsonl")) if event["event"] == "retry"]
    assert "no epoch within 6 s (compute.max_silence_s)" in retry["reason"]


@pytest.mark.ray
@pytest.mark.faults
def test_node_lost(toy: Path, undisturbed: Summary) -> None:
    with SmallCluster([1, 1]) as cluster:
        process = start("--address", cluster.address, nap=0.3, env=ENVIRONMENT)  # until the second one is there too
        wait_for(find_epoch(3, cluster.nodes[1]), process)
        cluster.tell("kill", cluster.nodes[1])
        Path("nap").write_text("0")
        finish(process)
    check(undisturbed, at_most=CHECKPOINT_EVERY)


# GPUs by name alone, whose holders compute on the CPU: Python reads this as it starts.
NAMED_GPUS = """
import importlib.util
import sys


class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == "ray_ft.backends.placement":
            sys.meta_path.remove(self)
            import ray
            ray.get_gpu_ids = lambda: []
            from ray_ft.backends import gpu_check
            gpu_check.describe_problem = lambda: ""
            return importlib.util.find_spec(name)


sys.meta_path.insert(0, Hook())
"""


@pytest.mark.ray
@pytest.mark.faults
def test_features_lost_with_their_node(toy: Path) -> None:
    """Features that Ray keeps on one node are made again there where candidates hold every share of a GPU."""
    module, rng = toy / "toy_network.py", np.random.default_rng(0)
    module.write_text(module.read_text().replace("nn.Linear(6,", "nn.Linear(1000,"))
    np.save(toy / "x.npy", rng.normal(size=(30, 1000)).astype(np.float32))  # 120 kB, as the network runs whole
    (toy / "sitecustomize.py").write_text(NAMED_GPUS)
    with SmallCluster([2, 2], gpus=[0, 1]) as cluster:
        options = ["--strategies", "last", "--candidates", "1", "--address", cluster.address]
        process = start(*options, nap=0.05, env=ENVIRONMENT)
        wait_for(find_epoch(1, cluster.nodes[1]), process)
        (other,) = cluster.tell("add", 2, 1)
        cluster.tell("kill", cluster.nodes[1])
        killed = time.monotonic()
        wait_for(find_epoch(1, other), process)
        waited = time.monotonic() - killed
        finish(process)
    assert waited < 30, "it waited for what others hold"
    shutil.move("nap", "slept")
    assert "made again where it was missing" in str(Summary.load("run").notes)
    values = {"cv.strategies": ["last"], "cv.candidates": 1}
    check(cross_validate(load_config("toy.yaml", values), "calm", inline=True), at_most=CHECKPOINT_EVERY)


ROOM_FOR_ONE = """
    import fcntl, os, pathlib, time
    if x.sum() < 1e30 and self.training and "ImplicitFunc" in pathlib.Path("/proc/self/cmdline").read_text():
        pathlib.Path(f"here-{os.getpid()}").touch()
        while len(list(pathlib.Path().glob("here-*"))) < 2:  # the first waits for another one beside it
            time.sleep(0.05)
        try:
            fcntl.flock(self.device, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends
        except BlockingIOError:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more")
"""


@pytest.mark.ray
@pytest.mark.faults
def test_memory_for_one_candidate_at_a_time(toy: Path, undisturbed: Summary) -> None:
    """What ran out of memory beside another is no failure: it is tried again on twice the share, here all there is."""
    break_toy(toy, "    def forward(self, x):", ROOM_FOR_ONE)
    break_toy(toy, "class Toy(nn.Module):", 'device = open("device", "w")')
    with SmallCluster([2]) as cluster:
        options = ["--set", "compute.max_failures=1", "--address", cluster.address]
        finish(start(*options, nap=0.1, env=ENVIRONMENT))
    check(undisturbed, at_most=4 * CHECKPOINT_EVERY)
    retries = [event for event in read_log(Path("run/log.jsonl")) if event["event"] == "retry"]
    assert retries
    assert all(retry["memory"] and "OutOfMemoryError" in retry["reason"] for retry in retries)
    assert retries[0]["candidate"] in str(Summary.load("run").notes)


@pytest.mark.ray
@pytest.mark.faults
def test_node_that_leaves_with_notice(toy: Path, undisturbed: Summary) -> None:
    """From the notice on, each epoch ends with a checkpoint: no more than the epoch under way is lost."""
    with SmallCluster([1, 1]) as cluster:
        options = ["--set", "training.checkpoint_every=100", "--address", cluster.address]
        process = start(*options, nap=0.06, env=ENVIRONMENT)
        wait_for(find_epoch(2, cluster.nodes[1]), process)
        cluster.tell("leave", cluster.nodes[1], 4)
        finish(process)
    retries = [event for event in read_log(Path("run/log.jsonl")) if event["event"] == "retry"]
    assert len(retries) == 1
    check(undisturbed, at_most=1)


@pytest.mark.ray
@pytest.mark.faults
def test_node_that_joins_late(toy: Path, undisturbed: Summary) -> None:
    with SmallCluster([1]) as cluster:
        process = start("--address", cluster.address, nap=0.3, env=ENVIRONMENT)
        wait_for(find_epoch(2), process)
        (late,) = cluster.tell("add", 1)
        wait_for(find_epoch(1, late), process)
        Path("nap").write_text("0")
        finish(process)
    assert late in {event["node"] for event in read_log(Path("run/log.jsonl")) if event["event"] == "epoch"}
    check(undisturbed, at_most=0)


@pytest.mark.ray
@pytest.mark.faults
def test_object_store_full(toy: Path, undisturbed: Summary) -> None:
    """What does not fit is spilled to the disk: here another tenant of the cluster has taken all of the store."""
    with SmallCluster([2], object_store_memory=80_000_000) as cluster:
        hog = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", HOG, cluster.address],
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert hog.stdout is not None
        assert any("holds" in line for line in hog.stdout)
        finish(start("--address", cluster.address, env=ENVIRONMENT))
        hog.kill()
        hog.communicate()
    check(undisturbed, at_most=0)


HOG = """
import sys, time
import numpy as np, ray
ray.init(sys.argv[1], log_to_driver=False)
held = [ray.get(ray.put(np.ones(1_500_000))) for _ in range(6)]  # views: these cannot be spilled
print("holds", sum(array.nbytes for array in held), flush=True)
time.sleep(1000)
"""


needs_mounts = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")


@pytest.mark.ray
@pytest.mark.faults
@needs_mounts
@pytest.mark.parametrize(("how", "kilobytes", "n_at_a_time"), [(["--inline"], 100, 1), ([], 150, 2)])
def test_disk_full(how: list[str], kilobytes: int, n_at_a_time: int, toy: Path, undisturbed: Summary) -> None:
    """While checkpoints are written: no candidate counts as failed for it, and with room the same command goes on."""
    command = shlex.join([sys.executable, "-W", "ignore", "-m", "ray_ft", "cv", "-c", "toy.yaml", *how, *OPTIONS])
    script = f"""
        mkdir small && mount -t tmpfs -o size={kilobytes}k tmpfs small
        {command} --out small/run 2>said || echo $? >code
        mount -o remount,size=50m small
        {command} --out small/run && cp -r small/run run
    """
    env, shell = os.environ | {"PYTHONPATH": small_cluster.list_paths()}, ["unshare", "-m", "bash", "-ec", script]
    done = subprocess.run(shell, env=env, capture_output=True, text=True, check=False)
    said = Path("said").read_text()
    assert done.returncode == 0, done.stderr[-2000:] + said
    assert Path("code").read_text().strip() == "1", said
    assert "a run must be able to write its files" in said
    assert "when it can again, repeat the command to go on" in said
    assert "Traceback" not in said
    check(undisturbed, at_most=n_at_a_time * CHECKPOINT_EVERY)


@pytest.mark.ray
@pytest.mark.faults
def test_few_open_files(toy: Path, undisturbed: Summary) -> None:
    limit = ["bash", "-c", 'ulimit -n 256; exec "$@"', "bash"]
    finish(start(before=limit))
    check(undisturbed, at_most=0)


@pytest.mark.ray
@pytest.mark.faults
@needs_mounts
def test_small_shared_memory(toy: Path, undisturbed: Summary) -> None:
    """As a container has it by default: Ray keeps its objects on the disk."""
    small = ["unshare", "-m", "bash", "-ec", 'mount -t tmpfs -o size=64m tmpfs /dev/shm; exec "$@"', "bash"]
    finish(start(before=small))
    check(undisturbed, at_most=0)


@contextlib.contextmanager
def limited_memory(n_bytes: int) -> Iterator[list[str]]:
    """What has a command run in a cgroup with so much memory."""
    own = next(list_cgroups("memory"), CGROUPS)
    name = next((name for name in ("memory.limit_in_bytes", "memory.max") if (own / name).exists()), None)
    group = own / f"ray-ft-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / str(name)).write_text(str(n_bytes))
    except OSError:
        if group.exists():  # without a limit that can be set
            group.rmdir()
        pytest.skip("no cgroup can be made here")
    try:
        yield ["bash", "-c", f'echo $BASHPID >{shlex.quote(str(group))}/cgroup.procs; exec "$@"', "bash"]
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text())  # of what Ray leaves behind for a moment
        group.rmdir()


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done() and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.mark.ray
@pytest.mark.faults
def test_memory_of_a_cgroup(toy: Path, undisturbed: Summary) -> None:
    """Where it is too small for a Ray, a line says so before one starts; with more the same command goes on."""
    with limited_memory(800 * 2**20) as limit:
        said = finish(start(before=limit), code=1)
    assert "error: a Ray on this machine needs" in said
    with limited_memory(2 * 2**30) as limit:
        finish(start(before=limit))
    check(undisturbed, at_most=0)


@pytest.mark.ray
@pytest.mark.faults
def test_driver_killed_at_random_moments(toy: Path, undisturbed: Summary) -> None:
    """Whatever it is about: its start, training, the end of Ray, the reduction, the report."""
    draw, n_killed = random.Random(0), 0
    for _ in range(6):
        process = start(nap=0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(3, 25))
        n_killed += process.poll() is None
        process.kill()
        process.communicate()
    finish(start())
    check(undisturbed, at_most=n_killed * 2 * CHECKPOINT_EVERY)
    print(f"{n_killed} kills")


@contextlib.contextmanager
def hidden_node(cluster: SmallCluster, hidden: Path) -> Iterator[None]:
    """A node that sees an empty folder where the others see `hidden`."""
    command = shlex.join([sys.executable, "-W", "ignore", small_cluster.__file__, "join", cluster.address])
    process = subprocess.Popen(
        ["unshare", "-m", "bash", "-c", f"mount -t tmpfs tmpfs {shlex.quote(str(hidden))} && exec {command}"],
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": small_cluster.list_paths()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert any(line.startswith("* ") for line in process.stdout), "the node did not start"
    try:
        yield
    finally:
        process.communicate(timeout=60)  # closes its input, at which it ends


@pytest.mark.ray
@pytest.mark.faults
@needs_mounts
def test_node_without_the_run_folder(toy: Path) -> None:
    """It is named before anything is trained, and nothing is left behind."""
    (toy / "hidden").mkdir()
    with SmallCluster([1]) as cluster, hidden_node(cluster, toy / "hidden"):
        said = finish(start("--address", cluster.address, out="hidden/run", env=ENVIRONMENT), code=2)
    assert f"every node must read and write the run folder, got {toy}/hidden/run, which these cannot" in said
    assert said.count("FileNotFoundError") == 1
    assert list((toy / "hidden").iterdir()) == []


@pytest.mark.ray
@pytest.mark.faults
@needs_mounts
def test_late_node_without_the_run_folder(toy: Path) -> None:
    """It came after the check: the run stops with what it has, rather than lose what such a node would write."""
    (toy / "hidden").mkdir()
    (toy / "run").symlink_to(toy / "hidden/run")
    with SmallCluster([1]) as cluster:
        process = start("--address", cluster.address, out="hidden/run", nap=0.1, env=ENVIRONMENT)
        wait_for(find_epoch(1), process)
        with hidden_node(cluster, toy / "hidden"):
            said = finish(process, code=1)
    assert "every node must read and write the run folder" in said
    assert "repeat the command to go on" in said


@pytest.mark.faults
def test_driver_killed_without_ray(cut_run: Path, undisturbed: Summary) -> None:
    go_on(".")
    _, n_interruptions = check(undisturbed, at_most=CHECKPOINT_EVERY)
    assert n_interruptions == 1


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.faults
@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_damaged_files_of_a_cut_run(how: str, cut_run: Path, undisturbed: Summary) -> None:
    """Its checkpoint is not trusted, and what follows from the config is written anew."""
    for path in (*cut_run.glob("candidates/*/checkpoint.pt"), cut_run / "splits.json", cut_run / "plan.json"):
        damage(path, how)
    for path in cut_run.glob("candidates/*/history.npz"):
        damage(path, how)
    go_on(".")
    check(undisturbed, at_most=6)
    load = json.loads((cut_run / "splits.json").read_text())
    assert load["hash"] == Summary.load(cut_run).splits_hash


@pytest.mark.faults
@pytest.mark.parametrize("how", ["truncated", "flipped"])
@pytest.mark.parametrize("name", ["summary.json", "splits.json", "verdicts.json", "candidates/{}/result.json"])
def test_a_damaged_file_of_a_finished_run(how: str, name: str, finished: Path, undisturbed: Summary) -> None:
    completed = next(name for name, v in undisturbed.strategies["top"].verdicts.items() if v.state == "completed")
    damage(finished / name.format(completed), how)
    if name != "summary.json":
        (finished / "summary.json").unlink()
    go_on(".")
    check(undisturbed, at_most=8)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["members.safetensors", "history.npz", "oof.npz"])
def test_damaged_weights_are_told_from_whole_ones(name: str, finished: Path, undisturbed: Summary) -> None:
    winner = undisturbed.strategies[undisturbed.lowest]
    candidate = f"{undisturbed.lowest}-{winner.chosen_candidates[0][0]:03d}"
    damage(finished / "candidates" / candidate / name, "flipped")
    (finished / "summary.json").unlink()
    said = finish(start("--inline"), code=2)
    assert candidate in said
    assert "repeat the cv command" in said
    shutil.rmtree(finished / "candidates" / candidate)
    finish(start("--inline"))
    check(undisturbed, at_most=8)


@pytest.fixture
def finished(undisturbed_folder: Path, toy: Path) -> Path:
    shutil.copytree(undisturbed_folder, toy / "run")
    return toy / "run"
