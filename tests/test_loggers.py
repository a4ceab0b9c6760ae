"""Loggers: each candidate is read back from TensorBoard, MLflow and W&B, and what fails there costs no run."""

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune.logger import LoggerCallback
from rich.console import Console
from toy import ON_RAY, run_on_ray

from ray_ft.backends.loggers import CandidateLogger, build_loggers
from ray_ft.backends.progress import Display
from ray_ft.backends.rounds import Shared
from ray_ft.backends.running import start_halving
from ray_ft.config import Config, load_config
from ray_ft.cross_validation import Prepared, cross_validate, prepare
from ray_ft.errors import ConfigError
from ray_ft.files.writing import write_text
from ray_ft.fitting.fitter import FitSettings
from ray_ft.results.records import load_history, load_plan, load_splits
from ray_ft.runs.folder import RunFolder
from ray_ft.runs.journal import Journal
from ray_ft.search.plan import assign_search


@pytest.fixture(scope="module")
def logged_by_wandb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_on_ray(folder := tmp_path_factory.mktemp("wandb"), wandb="toys")
    return folder


def read_losses(folder: Path, strategy: str) -> list[float]:
    """The means that were reported: of all held-out losses, as each sample is held out once."""
    run = RunFolder(folder / "run")
    history = load_history(run, f"{strategy}-000", load_splits(run))
    assert history is not None
    return history.losses[1:].mean((1, 2, 3)).tolist()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_a_run_a_candidate(ray_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ray_run)
    monkeypatch.syspath_prepend(str(ray_run))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    client = MlflowClient("sqlite:///mlflow.db")
    experiment = client.get_experiment_by_name("toy")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    plan = load_plan(RunFolder(ray_run / "run"))
    expected = {spec.name: "FAILED" if spec.strategy == "wild" else "FINISHED" for spec in plan}
    assert {name: run.info.status for name, run in runs.items()} == expected
    last = runs["last-000"]
    assert last.data.params["strategy"] == "last"
    assert float(last.data.params["lr"]) == pytest.approx(0.01)
    points = client.get_metric_history(last.info.run_id, "held_out_mse")
    assert [point.step for point in points] == list(range(1, 8))
    assert [point.value for point in points] == pytest.approx(read_losses(ray_run, "last"), rel=1e-6)

    goes_on(ray_run, last.info.run_id)


def goes_on(folder: Path, run_id: str) -> None:
    """A second call of a run finds what the first began."""
    config = load_config(folder / "toy.yaml", ON_RAY | {"loggers.mlflow": "sqlite:///mlflow.db"})
    prepared, run = prepare(config), RunFolder(folder / "run")
    (spec,) = (spec for spec in prepared.first_round if spec.name == "last-000")
    own = assign_search(spec, prepared.problem, 2)
    (logger,) = build_loggers(config.loggers, config.name, share(prepared, run, Console(quiet=True)))
    assert isinstance(logger, CandidateLogger)
    logger.on_trial_start(0, [], SimpleNamespace(config={"candidate": own.name, "assignment": own}))
    assert list(logger.logger._trial_runs.values()) == [run_id]


@pytest.mark.ray
@pytest.mark.slow
def test_wandb_logs_offline_where_its_mode_says_so(logged_by_wandb: Path) -> None:
    logs = {path.stem.removeprefix("run-"): path for path in (logged_by_wandb / "run/wandb").glob("offline-run-*/*")}
    for spec in load_plan(RunFolder(logged_by_wandb / "run")):
        (log,) = (path for name, path in logs.items() if name.endswith(f"-{spec.name}") and path.suffix == ".wandb")
        content = log.read_bytes()
        assert all(word.encode() in content for word in ("toys", "toy", spec.name, "weight_decay", "failed"))
        if spec.strategy == "wild":
            assert read_wandb(log) == []
        elif spec.name == "last-000":
            assert read_wandb(log) == pytest.approx(read_losses(logged_by_wandb, "last"), rel=1e-6)


LOG_AND_DIE = """
import os, queue, signal
from pathlib import Path
from ray.air.integrations.wandb import _QueueItem
from ray_ft.backends.loggers import open_wandb

items, logger = queue.Queue(), open_wandb("toys", "toy", None)
for epoch in range(1, 8):
    items.put((_QueueItem.RESULT, {"training_iteration": epoch, "held_out_mse": 1 / epoch}))
items.put((_QueueItem.END, None))
logger._logger_actor_cls(".", items, [], [], project="toys", id="top-000").run()
children = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
for child in " ".join(children).split():  # as Ray does, when it ends what has run
    os.kill(int(child), signal.SIGKILL)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_log_of_wandb_is_whole_when_its_process_is_killed_at_the_end(tmp_path: Path) -> None:
    quiet = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    command = [sys.executable, "-c", LOG_AND_DIE]
    ended = subprocess.run(command, cwd=tmp_path, env=os.environ | quiet, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert read_wandb(log) == pytest.approx([1 / epoch for epoch in range(1, 8)])


def read_wandb(log: Path) -> list[float]:
    """The losses of a log of less than 32 kB, in its order; W&B's own reader of such a file is not public."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, losses = log.read_bytes(), 7, []  # a header of 7 bytes, which may be all that there is
    while at < len(content):  # before each record, its checksum, length and kind, as in a log of LevelDB
        start = at + 7
        at = start + int.from_bytes(content[at + 4 : at + 6], "little")
        for item in Record.FromString(content[start:at]).history.item:
            if "held_out_mse" in (item.key, *item.nested_key):
                losses.append(json.loads(item.value_json))
    return losses


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_has_a_curve_a_candidate(ray_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(ray_run / "run/tensorboard/last-000"))
    events.Reload()
    assert events.Tags()["scalars"] == ["ray/tune/held_out_mse"]
    assert [point.step for point in events.Scalars("ray/tune/held_out_mse")] == list(range(1, 8))


def share(prepared: Prepared, run: RunFolder, console: Console) -> Shared:
    """What the candidates of a run share, its display with all of them in it."""
    config, strategies = prepared.config, prepared.strategies
    display = Display(console, "mse", dict.fromkeys(strategies, 1))
    display.add([assign_search(spec, prepared.problem, 2) for spec in prepared.first_round])
    halving, journal = start_halving(strategies, config.search, None), Journal(run.log)
    given = (prepared.problem, prepared.pretrained, run, strategies, FitSettings(), config.compute)
    return Shared(*given, halving, display, journal)


def test_loggers_are_no_part_of_what_a_run_is(toy_config: Config) -> None:
    other = load_config("toy.yaml", {"cv.strategies": ["top", "last"], "loggers.tensorboard": True})
    assert other.identity() == toy_config.identity()


def with_logger(key: str, value: object) -> Config:
    return load_config("toy.yaml", {"cv.strategies": ["top"], f"loggers.{key}": value})


def test_a_missing_package_is_named_before_anything_is_written(
    toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    with pytest.raises(ConfigError, match=r"missing: pip install 'ray-ft\[wandb\]'"):
        cross_validate(with_logger("wandb", "toys"), toy_folder / "run")
    assert not (toy_folder / "run").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_server_that_does_not_answer_is_told_before_anything_is_written(
    toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"loggers\.mlflow must be ready .*, got http://127\.0\.0\.1:9: .* refused"):
        cross_validate(
            with_logger("mlflow", "http://127.0.0.1:9"),
            toy_folder / "run",
        )
    assert not (toy_folder / "run").exists()


def test_without_ray_loggers_are_refused(toy_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"loggers need Ray, got loggers\.tensorboard with inline"):
        cross_validate(
            with_logger("tensorboard", True),
            toy_folder / "run",
            inline=True,
        )
    assert not (toy_folder / "run").exists()


class Broken(LoggerCallback):
    """A logger whose server has gone away."""

    def log_trial_start(self, trial: object) -> None:
        raise ConnectionError("gone\nfor good")


def test_a_logger_that_fails_in_between_is_left_alone(toy_config: Config, tmp_path: Path) -> None:
    prepared, run = prepare(toy_config), RunFolder(tmp_path / "run")
    own = assign_search(prepared.first_round[0], prepared.problem, 2)
    write_text(run.provenance, "{}")
    text, trial = io.StringIO(), SimpleNamespace(config={"candidate": own.name, "assignment": own})
    shared = share(prepared, run, Console(file=text, width=200))
    logger = CandidateLogger("mlflow", Broken(), "toy", shared)
    logger.on_trial_error(0, [], trial)  # it never began
    logger.on_trial_start(0, [], trial)
    logger.on_trial_result(0, [], trial, {"epoch": 1, "loss": 0.5})
    logger.on_trial_complete(0, [], trial)
    logger.on_experiment_end([])
    assert text.getvalue() == "loggers.mlflow failed and logs nothing more of this call: ConnectionError: gone\n"
