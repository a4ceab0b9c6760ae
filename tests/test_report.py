"""What a run says at its end, and what it says of a strategy with a hole."""

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from ray_ft.config import Config, load_config
from ray_ft.cross_validation import cross_validate
from ray_ft.paths import RunFolder
from ray_ft.report.terminal import render_summary
from ray_ft.report.words import Unit, choose_unit
from ray_ft.results import load_verdicts
from ray_ft.summary import BaselineSummary


@pytest.mark.parametrize(("highest", "exponent"), [(0.002, -3), (2.0, 0), (4e-7, -9), (12345.0, 3)])
def test_units_are_powers_of_a_thousand(highest: float, exponent: int, toy_config: Config, tmp_path: Path) -> None:
    summary = cross_validate(toy_config, tmp_path / "run", inline=True)
    high = BaselineSummary(score_mean=highest, score_std=0.0, scores=[])
    unit = choose_unit(summary.model_copy(update={"baselines": {"zero_shot": high}}))
    assert unit == Unit(exponent)
    assert unit.write(highest) == f"{highest / 10.0**exponent:.3f}"


def test_the_table_shows_a_hole_and_how_members_trained(toy_folder: Path) -> None:
    wild = {"train": ["*"], "lr": 1e30, "epochs": 3}
    config = load_config(toy_folder / "toy.yaml", {"strategies.wild": wild, "cv.strategies": ["wild", "top"]})
    run = RunFolder(toy_folder / "run")
    summary = cross_validate(config, run.root, inline=True)
    text = io.StringIO()
    Console(file=text, width=160).print(render_summary(summary, run))
    assert "no candidate completed" in text.getvalue()
    assert "failed: wild-000 (DivergedError" in text.getvalue()
    assert "members trained looped, float32" in text.getvalue()
    assert "winner    top" in text.getvalue()
    rows = {row["strategy"]: row for row in csv.DictReader(run.leaderboard.read_text().splitlines())}
    assert rows["wild"]["score_mean"] == ""
    assert float(rows["top"]["score_mean"]) == summary.strategies["top"].score_mean
    assert {verdict.state for name, verdict in load_verdicts(run).items() if name.startswith("wild")} == {"failed"}
