"""A run's search in Optuna: the trials are its candidates, and the best is the one that the run calls the best."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import optuna
import pytest
from optuna.trial import TrialState

from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate
from ray_ft.errors import RunFolderError
from ray_ft.results.records import load_history, load_judged, load_splits
from ray_ft.results.study import write_study
from ray_ft.results.summary import Summary
from ray_ft.runs.folder import RunFolder

STRATEGIES = {
    "cv.strategies": ["last", "wild", "closed", "twice"],
    "cv.candidates": 3,
    "cv.seeds": 1,
    "strategies.wild": {"train": ["*"], "lr": 1e30, "epochs": 3},
    "strategies.closed": {"train": ["head.3.*"], "fit": "ridge"},
    "strategies.twice": {
        "stages": [
            {"train": ["head.3.*"], "lr": [1e-3, 1e-1], "epochs": 2},
            {"train": ["*"], "lr": [1e-4, 1e-2], "epochs": 3, "weight_decay": 0.02},
        ]
    },
}


@pytest.fixture
def searched(toy_folder: Path) -> RunFolder:
    cross_validate(load_config("toy.yaml", STRATEGIES), toy_folder / "run", inline=True)
    return RunFolder(toy_folder / "run")


def load(name: str) -> optuna.Study:
    return optuna.load_study(study_name=name, storage="sqlite:///study.db")


def test_the_best_trial_is_the_best_candidate(searched: RunFolder) -> None:
    counted = write_study(searched.root, Path("study.db"))
    assert set(counted) == set(optuna.get_all_study_names("sqlite:///study.db")) == set(STRATEGIES["cv.strategies"])
    for name, row in Summary.load(searched.root).strategies.items():
        study = load(name)
        assert counted[name] == len(study.trials) == row.n_candidates
        if name == "wild":
            assert {trial.state for trial in study.trials} == {TrialState.FAIL}
            continue
        best = {**study.best_trial.params, **study.best_trial.user_attrs}
        assert {key: best[key] for key, value in row.best.items() if value is not None} == {
            key: value for key, value in row.best.items() if value is not None
        }
        assert study.best_value == min(study.best_trial.intermediate_values.values())
    assert {"stage1_lr", "lr"} <= load("twice").trials[0].params.keys()
    assert load("closed").trials[0].params == {}


def test_a_trial_says_what_its_candidate_did(searched: RunFolder) -> None:
    write_study(searched.root, Path("study.db"))
    plan, verdicts = load_judged(searched)
    states = {"completed": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
    specs = [spec for spec in plan if spec.strategy == "last"]
    for trial, spec in zip(load("last").trials, specs, strict=True):
        verdict, history = verdicts[spec.name], load_history(searched, spec.name, load_splits(searched))
        assert history is not None
        assert trial.user_attrs["candidate"] == spec.name
        assert trial.state == states[verdict.state]
        assert trial.duration is not None
        assert trial.duration.total_seconds() == pytest.approx(verdict.seconds, abs=1e-3)
        held_out = history.losses.mean((1, 2, 3))[: verdict.epoch + 1]  # each sample is held out once, in equal folds
        assert list(trial.intermediate_values.values()) == pytest.approx(held_out.tolist(), rel=1e-5)
        assert trial.params["lr"] == spec.lr


def test_the_command_writes_a_new_file_of_a_finished_run(
    run: Path, ray_ft_here: Callable[..., CompletedProcess[str]]
) -> None:
    said = ray_ft_here("export", "run", "--out", "study.db")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("export  study.db: studies top with 1 trial, last with 1 trial; see them with: ")
    assert "which exists" in ray_ft_here("export", "run", "--out", "study.db").stderr
    assert "the search is that of a run" in ray_ft_here("export", "run/ensemble", "--out", "other.db").stderr
    assert ray_ft_here("export", "run", "--out", "study.db", "--force").returncode == 0
    assert (
        "--soup and --allow-worse are for .pt2 and .onnx"
        in ray_ft_here("export", "run", "--out", "s.db", "--soup").stderr
    )
    (run / "verdicts.json").unlink()
    with pytest.raises(RunFolderError, match="a finished run holds"):
        write_study(run, Path("other.db"))
