"""A run folder of another version of this package: each command reads it, or refuses it by one clear message."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_ft.files.writing import read_record, write_record

Command = Callable[..., subprocess.CompletedProcess[str]]
Change = Callable[[Any], object]
COMMANDS = {
    "cv": "cv -c toy.yaml --inline --out run --repeats 2 --candidates 1 --strategies top,last",
    "ensemble": "ensemble run --trust",
    "report": "report run",
    "compare": "compare run other",
    "predict": "predict run --inputs x.npy --out new.npz --force",
    "evaluate": "evaluate run --inputs x.npy --targets y.npy",
    "export": "export run new.pt2 --force",
}
OTHER_RELEASE = "a run goes on with the release that began it, got run by ray-ft"
OTHER_CARD = "this release reads ensembles of version 2, got version"
PROVENANCE = "a run holds its provenance, got run/provenance.json, which is missing or damaged"
RECORDS = (
    "provenance.json",
    "splits.json",
    "plan.json",
    "verdicts.json",
    "summary.json",
    "candidates/top-000/result.json",
)
GOING_ON, READING = ("cv", "ensemble"), ("predict", "evaluate", "export")


def put_keys(content: Any) -> None:
    """Put a key that nobody knows into an object and all those within it."""
    if isinstance(content, dict):
        for part in content.values():
            put_keys(part)
        content["new_key"] = 1
    elif isinstance(content, list):
        for part in content:
            put_keys(part)


def change_record(name: str, change: Change) -> None:
    """Change a record, with the digest that it then has."""
    path = Path("run", name)
    content = read_record(path)
    change(content)
    write_record(path, content)


def change_card(change: Change) -> None:
    path = Path("run/ensemble/card.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def check_refused(ray_ft: Command, expected: dict[str, str]) -> None:
    """Have each command read the folder, or refuse it with the text that is expected of it."""
    shutil.copytree("run", "kept")
    for name, words in COMMANDS.items():
        result = ray_ft(*words.split())
        said = result.stderr.removeprefix("starting …\n")
        if name in expected:
            assert result.returncode == 2, (name, said)
            assert said.startswith(f"error: {expected[name]}"), (name, said)
            assert said.count("error: ") == 1
        else:
            assert result.returncode == 0, (name, said)
        shutil.rmtree("run")
        shutil.copytree("kept", "run")
    shutil.rmtree("kept")


@pytest.fixture
def other(run: Path) -> None:
    shutil.copytree(run, run.parent / "other")


def test_a_newer_ensemble_is_refused(run: Path, ray_ft_here: Command) -> None:
    change_card(lambda card: card.update(version=3))
    result = ray_ft_here(*COMMANDS["evaluate"].split())
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith(f"error: {OTHER_CARD} 3 in run/ensemble/card.json; load it with the release that")


@pytest.mark.faults
@pytest.mark.parametrize("format_", [1, 2, 4, 99])
def test_an_older_or_newer_run_is_read_and_not_gone_on_with(
    format_: int, run: Path, other: None, ray_ft_here: Command
) -> None:
    change_record("provenance.json", lambda content: content.update(format=format_))
    check_refused(ray_ft_here, dict.fromkeys(GOING_ON, OTHER_RELEASE))


@pytest.mark.faults
@pytest.mark.parametrize("format_", ["x", None])
def test_a_format_that_is_none(format_: str | None, run: Path, other: None, ray_ft_here: Command) -> None:
    change_record("provenance.json", lambda content: content.update(format=format_))
    check_refused(ray_ft_here, dict.fromkeys((*GOING_ON, "report"), PROVENANCE))


@pytest.mark.faults
@pytest.mark.parametrize("version", [1, 3, "x", None])
def test_an_older_or_newer_ensemble_is_refused(version: object, run: Path, other: None, ray_ft_here: Command) -> None:
    change_card(lambda card: card.update(version=version))
    check_refused(ray_ft_here, dict.fromkeys(READING, OTHER_CARD))


@pytest.mark.faults
def test_a_card_with_a_key_of_a_newer_release(run: Path, other: None, ray_ft_here: Command) -> None:
    change_card(lambda card: card.update(new_key=1))
    check_refused(ray_ft_here, dict.fromkeys(READING, "an ensemble's card must have all of its entries"))


@pytest.mark.faults
def test_a_config_with_a_key_of_a_newer_release(run: Path, other: None, ray_ft_here: Command) -> None:
    with Path("run/config.yaml").open("a") as config:
        config.write("new_section: {a: 1}\n")
    check_refused(ray_ft_here, dict.fromkeys(("ensemble", "report"), "run/config.yaml is not a valid config"))


@pytest.mark.faults
@pytest.mark.parametrize("name", RECORDS)
def test_records_with_a_key_of_a_newer_release(name: str, run: Path, other: None, ray_ft_here: Command) -> None:
    change_record(name, lambda content: content.update(new_key=1))
    damaged = "a finished run holds verdicts.json, got run where it is missing or damaged"
    check_refused(ray_ft_here, {"ensemble": damaged} if name == "verdicts.json" else {})


@pytest.mark.faults
@pytest.mark.parametrize("name", RECORDS)
def test_records_with_keys_of_a_newer_release_everywhere(
    name: str, run: Path, other: None, ray_ft_here: Command
) -> None:
    change_record(name, put_keys)
    expected = {
        "provenance.json": dict.fromkeys((*GOING_ON, "report"), PROVENANCE),
        "verdicts.json": {"ensemble": "a finished run holds verdicts.json, got run where it is missing or damaged"},
        "summary.json": dict.fromkeys(("report", "compare"), "run/summary.json must be a summary as this release"),
    }
    check_refused(ray_ft_here, expected.get(name, {}))
