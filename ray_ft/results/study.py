"""The search of a finished run as studies of Optuna, which `optuna-dashboard` shows: one a strategy, in a SQLite file.

A candidate is a trial. Its value is the lowest of its means over the folds, by which the search calls it the best; a
candidate that ASHA stopped is pruned, and one that failed has failed.
"""

import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_ft.config import StrategyConfig, list_declared, reload_config
from ray_ft.errors import RunFolderError
from ray_ft.files.writing import replace_file
from ray_ft.results.records import Verdict, load_attempts, load_judged, load_splits
from ray_ft.runs.folder import EnsembleFolder, RunFolder
from ray_ft.search.plan import CandidateSpec
from ray_ft.search.settling import Attempt

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


def write_study(root: Path, path: Path) -> dict[str, int]:
    """Write the candidates of a finished run as trials, a study a strategy, under the strategy's name.

    Args:
        root: The run folder.
        path: The file to write, which is replaced where it exists.

    Returns:
        How many trials each study has.

    Raises:
        RunFolderError: The folder is no finished run, or damaged.
    """
    if EnsembleFolder(root).card.is_file():
        raise RunFolderError(
            f"the search is that of a run, got {root}, the folder of an ensemble; name its run's folder"
        )
    run = RunFolder(root)
    plan, verdicts = load_judged(run)
    config, splits = reload_config(run.config), load_splits(run)
    trials = {}
    for name, strategy in config.selected.items():
        attempts = load_attempts(run, plan, verdicts, name, splits)
        space = find_space(strategy, [own.spec for own in attempts])
        trials[name] = [build_trial(own, verdicts[own.spec.name], space) for own in attempts]
    with tempfile.TemporaryDirectory() as folder, replace_file(path) as partial:
        plain = Path(folder, "study.db")  # as a path in a URL ends at a question mark
        write_trials(trials, {"run": config.name, "metric": config.cv.metric}, plain)
        shutil.copyfile(plain, partial)
    return {name: len(own) for name, own in trials.items()}


def write_trials(trials: "Mapping[str, Sequence[FrozenTrial]]", about: Mapping[str, str], path: Path) -> None:
    import optuna
    from optuna.storages import RDBStorage

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = RDBStorage(f"sqlite:///{path}")
    for name, own in trials.items():
        study = optuna.create_study(storage=storage, study_name=name, direction="minimize")
        for key, value in about.items():
            study.set_user_attr(key, value)
        study.add_trials(own)
    storage.remove_session()
    storage.engine.dispose()  # so that the file may take its name


def find_space(strategy: StrategyConfig, specs: Sequence[CandidateSpec]) -> "dict[str, BaseDistribution]":
    """Find what was searched: each number that the config leaves open, or that differs between the candidates.

    Its range is that of the config, and of what was tried outside of it.
    """
    from optuna.distributions import FloatDistribution, IntDistribution

    space: dict[str, BaseDistribution] = {}
    for i, stage in enumerate(strategy.stages):
        for name, declared in list_declared(stage.hyperparameters):
            tried = [getattr(spec.stages[i], name) for spec in specs]
            if not tried or not all(isinstance(value, int | float) for value in tried):  # a word, or nothing
                continue
            values = [*tried, *(stage.space(name) or ())]
            low, high = min(values), max(values)
            if low < high:
                whole = declared.form == ""
                kind = IntDistribution(low, high) if whole else FloatDistribution(low, high, log=declared.log)
                space[name_key(i, len(strategy.stages), name)] = kind
    return space


def name_key(place: int, n_stages: int, name: str) -> str:
    """Name a hyperparameter as the loggers do; those of the last stage as they are."""
    return name if place == n_stages - 1 else f"stage{place + 1}_{name}"


def build_trial(attempt: Attempt, verdict: Verdict, space: "Mapping[str, BaseDistribution]") -> "FrozenTrial":
    """Say of a candidate what was drawn, what it reached after each epoch, and how it ended."""
    import optuna
    from optuna.trial import TrialState

    spec, states = attempt.spec, {"completed": TrialState.COMPLETE, "stopped": TrialState.PRUNED}
    stages = [asdict(stage) for stage in spec.stages]
    values = {name_key(i, len(stages), name): value for i, own in enumerate(stages) for name, value in own.items()}
    fixed = {name: value for name, value in values.items() if name not in space and value is not None}
    about: dict[str, Any] = {"candidate": spec.name, "origin": spec.origin, "reason": verdict.reason}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        trial = optuna.create_trial(
            state=states.get(attempt.state, TrialState.FAIL),
            value=attempt.lowest if attempt.state == "completed" else None,
            params={name: values[name] for name in space},
            distributions=dict(space),
            intermediate_values={epoch: float(mean) for epoch, mean in enumerate(attempt.mean) if np.isfinite(mean)},
            user_attrs=about | fixed,
        )
    if trial.datetime_complete is not None:
        trial.datetime_start = trial.datetime_complete - timedelta(seconds=verdict.seconds)
    return trial
