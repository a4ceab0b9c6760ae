"""What a run says at its end, and what it says of a strategy with a hole."""

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate
from ray_ft.paths import RunFolder
from ray_ft.report import choose_unit, render_summary
from ray_ft.results import load_verdicts


@pytest.mark.parametrize(("values", "unit"), [([0.002, 0.0005], 1e-3), ([2.0, 0.1], 1.0), ([4e-7, 1e-9], 1e-9)])
def test_units_are_powers_of_a_thousand(values: list[float], unit: float) -> None:
    assert choose_unit(values)[0] == pytest.approx(unit)


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
    assert float(rows["top"]["score_mean"]) == summary["strategies"]["top"]["score_mean"]
    assert {verdict.state for name, verdict in load_verdicts(run).items() if name.startswith("wild")} == {"failed"}
