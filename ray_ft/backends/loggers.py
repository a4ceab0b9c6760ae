"""TensorBoard, MLflow and Weights & Biases, through Ray's own callbacks: one log a candidate.

Ray's callbacks are told of candidates in place of trials, so that a log has the candidate's name, its hyperparameters
as parameters, and its loss by epoch, and goes on where an earlier call of the run left it. What they raise while a
run trains ends the log and not the run.
"""

import hashlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.logger import LoggerCallback, TBXLoggerCallback

from ray_ft.backends.rounds import Shared
from ray_ft.config import LoggersSection
from ray_ft.errors import ConfigError
from ray_ft.results.records import load_result
from ray_ft.runs.folder import RunFolder
from ray_ft.search.plan import Assignment

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # it is on where nothing is said
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # of a server that does not answer; the default takes minutes a request
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "WANDB_ERROR_REPORTING": "false",
}
UPLOAD_S = 120  # for W&B to end after the last candidate; Ray would wait for half an hour


@dataclass(frozen=True, eq=False)  # known by identity, as Ray's callbacks keep it as a key
class Entry:
    """A candidate in place of Ray's trial, with what Ray's callbacks read of one."""

    trial_id: str
    name: str
    config: dict[str, Any]
    local_path: str
    experiment_dir_name: str

    @property
    def evaluated_params(self) -> dict[str, Any]:
        return self.config

    def init_local_path(self) -> None:
        Path(self.local_path).mkdir(parents=True, exist_ok=True)

    def __str__(self) -> str:
        return self.name


def build_loggers(loggers: LoggersSection, name: str, shared: Shared) -> list[tune.Callback]:
    """Open the loggers that the config asks for, under the run's name."""
    os.environ.update({key: os.environ.get(key, value) for key, value in QUIET.items()})
    built: list[tune.Callback] = []
    for key, value in ((key, value) for key, value in loggers if value):
        package, open_logger = OPENERS[key]
        if importlib.util.find_spec(package) is None:
            missing = f"loggers.{key} needs the package {package}, which is missing"
            raise ConfigError(f"{missing}: pip install 'ray-ft[{key}]'")
        try:
            logger = open_logger(value, name, shared.run)
        except Exception as error:  # the border to a foreign package, which raises what it likes
            raise ConfigError(
                f"loggers.{key} must be ready before anything is trained, got {value}: {say(error)}; "
                "correct it or leave it out"
            ) from error
        built.append(CandidateLogger(key, logger, name, shared))
    return built


def say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().split("\n")[0]


def name_run(run: RunFolder) -> str:
    """A name that only this run folder has, wherever it is moved."""
    return hashlib.sha256(run.provenance.read_bytes()).hexdigest()[:8]


def open_tensorboard(*_: object) -> Any:
    return TBXLoggerCallback()  # type: ignore[no-untyped-call]  # Ray leaves it unannotated


def open_mlflow(uri: str, name: str, run: RunFolder) -> Any:
    from mlflow import MlflowClient
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    own_name = name_run(run)

    class OneRun(MLflowLoggerCallback):
        """Goes on with the MLflow run that an earlier call began."""

        def log_trial_start(self, trial: Any) -> None:
            if trial not in self._trial_runs:
                client, experiment = MlflowClient(uri), str(self.mlflow_util.experiment_id)
                own = f"tags.ray_ft_run = '{own_name}' and tags.trial_name = '{trial}'"
                for begun in client.search_runs([experiment], own, max_results=1):
                    self._trial_runs[trial] = begun.info.run_id
                    client.update_run(begun.info.run_id, "RUNNING")
            super().log_trial_start(trial)

    tags = {"ray_ft_run": own_name, "folder": str(run.root.absolute())}
    logger: Any = OneRun(uri, experiment_name=name, tags=tags)
    logger.setup()  # knocks at the server and makes the experiment
    return logger


def open_wandb(project: str, name: str, run: RunFolder) -> Any:
    from ray.air.integrations.wandb import WandbLoggerCallback, _WandbLoggingActor

    class Closing(_WandbLoggingActor):
        """Ends once W&B's own process has written its file, for which `finish` does not wait: Ray then kills both."""

        def run(self) -> None:
            super().run()  # type: ignore[no-untyped-call]  # Ray leaves it unannotated
            self._wandb.teardown()

    class Complete(WandbLoggerCallback):
        _logger_actor_cls = Closing

    # The process that logs is Ray's, and on a cluster it does not know this one's environment.
    known = {"mode": "WANDB_MODE", "base_url": "WANDB_BASE_URL", "entity": "WANDB_ENTITY"}
    settings = {key: os.environ[name] for key, name in known.items() if name in os.environ}
    logger: Any = Complete(project, name, upload_timeout=UPLOAD_S, resume="allow", settings=settings)
    logger.setup()  # looks for a key, unless it is offline
    return logger


OPENERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "tensorboard": ("tensorboardX", open_tensorboard),
    "mlflow": ("mlflow", open_mlflow),
    "wandb": ("wandb", open_wandb),
}


class CandidateLogger(tune.Callback):
    """Tells one of Ray's callbacks of candidates; one that fails is told of in the display, and then left alone."""

    def __init__(self, key: str, logger: LoggerCallback, name: str, shared: Shared) -> None:
        self.key, self.logger, self.name, self.run, self.display = key, logger, name, shared.run, shared.display
        self.open: dict[str, Entry] = {}
        self.failed = False
        self.loss = f"{'inner' if shared.problem.splits.inner_of else 'held_out'}_{shared.problem.objective.metric}"

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks with its state, which is never restored here

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        own: Assignment = trial.config["assignment"]
        if own.is_search:
            self.open.setdefault(own.name, self.describe(own))
            self.pass_on(self.logger.log_trial_start, self.open[own.name])

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        if "epoch" in result and trial.config["candidate"] in self.open:
            cleaned = {"training_iteration": result["epoch"], self.loss: result["loss"]}
            self.pass_on(self.logger.log_trial_result, result["epoch"], self.open[trial.config["candidate"]], cleaned)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["candidate"]
        result = load_result(self.run, name)
        self.end(name, failed=result is not None and result["state"] == "failed")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.end(trial.config["candidate"], failed=True)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        for name in list(self.open):  # it was interrupted
            self.end(name, failed=True)
        self.failed = False  # what was logged before it failed may still be on its way
        self.pass_on(self.logger.on_experiment_end, [])

    def end(self, name: str, failed: bool) -> None:
        if name not in self.open:  # its process died before it began
            return
        entry = self.open.pop(name)
        if self.key == "wandb":  # where Ray ends all alike
            self.pass_on(self.logger.log_trial_result, 0, entry, {"config": {"failed": failed}})
        self.pass_on(self.logger.log_trial_end, entry, failed)

    def describe(self, own: Assignment) -> Entry:
        name, spec, root = own.name, own.spec, self.run.root.absolute()
        prefixes = [*(f"stage{i}_" for i in range(1, len(spec.stages))), ""]  # none for the last stage
        pairs = zip(prefixes, spec.stages, strict=True)
        values = ((prefix + key, value) for prefix, own in pairs for key, value in asdict(own).items())
        drawn = {key: value for key, value in values if value is not None}
        folder = root / "tensorboard" / name if self.key == "tensorboard" else root
        config = {"strategy": spec.strategy, "candidate": spec.index, **drawn}
        return Entry(f"{name_run(self.run)}-{name}", name, config, str(folder), self.name)

    def pass_on(self, listen: Callable[..., Any], *args: Any) -> None:
        if self.failed:
            return
        try:
            listen(*args)
        except Exception as error:  # the border to a foreign package; the run is worth more than its log
            self.failed = True
            text = f"loggers.{self.key} failed and logs nothing more of this call: {say(error)}"
            self.display.console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
