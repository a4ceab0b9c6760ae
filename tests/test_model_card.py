"""The model card: a header that the Hub reads, and the numbers of card.json."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import ray_ft
from ray_ft.cross_validation import rebuild_ensemble
from ray_ft.ensemble import Ensemble
from ray_ft.ensemble.model_card import render_model_card


def read_model_card(run: Path) -> tuple[dict, str]:
    empty, header, text = (run / "ensemble" / "README.md").read_text().split("---\n", maxsplit=2)
    assert empty == ""
    return yaml.safe_load(header), text


def test_its_numbers_are_those_of_the_card(run: Path) -> None:
    header, text = read_model_card(run)
    card = json.loads((run / "ensemble" / "card.json").read_text())
    ((result,),) = [index["results"] for index in header["model-index"]]
    (metric,) = result["metrics"]
    assert (metric["type"], metric["value"]) == (card["metric"], card["score"])
    assert header["metrics"] == [card["metric"]]
    assert result["dataset"]["type"] == card["data_hash"]
    assert "license" not in header
    assert all(f"| {name} | {value:.6g} |" in text for name, value in card["scores"].items())
    assert f"scored by {card['n_blind']} of {len(card['members'])} members" in text
    assert f"the level {card['level']:.6g}, by CV+" in text


def test_it_says_how_to_load_the_ensemble(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, text = read_model_card(run)
    monkeypatch.chdir(run)
    (line,) = (line for line in text.splitlines() if "Ensemble.load" in line)
    assert (
        eval(line.removeprefix("prediction = ").removesuffix(".predict(inputs)"), {"ray_ft": ray_ft}).card.run == "toy"
    )


def test_it_says_where_there_are_no_intervals(run: Path) -> None:
    ensemble = Ensemble.load(run)
    strict = replace(ensemble, card=ensemble.card.model_copy(update={"level": 0.99, "warning": "it is poor"}))
    text = render_model_card(strict, "ensemble")
    assert "intervals of 99 % need at least 99 samples, got 30" in text
    assert "**Do not use it**: it is poor." in text
    assert "lower" not in text.partition("## Intended use")[2].partition("##")[0]


@pytest.mark.parametrize(
    ("license", "expected"),
    [("MIT", {"license": "mit"}), ("ours: no copies", {"license": "other", "license_name": "ours: no copies"})],
)
def test_it_names_the_license_as_the_hub_does(run: Path, license: str, expected: dict) -> None:
    rebuild_ensemble(run, trust=True, license=license)
    header, _ = read_model_card(run)
    assert {key: value for key, value in header.items() if key.startswith("license")} == expected
