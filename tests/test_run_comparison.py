"""Runs against one another: the comparison of one run over several, and what may not be compared."""

import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console

import ray_ft
from ray_ft.config import load_config
from ray_ft.errors import RunFolderError
from ray_ft.report.terminal import render_comparison
from ray_ft.results.run_comparison import RunComparison
from ray_ft.statistics.comparison import compare_pair


def run(folder: Path, name: str, **options: object) -> Path:
    values = {"cv.strategies": ["top", "last"], "cv.candidates": 1}
    values |= {key.replace("__", "."): value for key, value in options.items()}
    ray_ft.cross_validate(load_config(folder / "toy.yaml", values), folder / name, inline=True)
    return folder / name


def test_strategies_of_one_name_and_the_winners_are_compared(toy_folder: Path) -> None:
    long, short = run(toy_folder, "long"), run(toy_folder, "short", training__epochs=1)
    found = ray_ft.compare([long, short])
    pairs = [(pair.first, pair.second) for pair in found.comparisons]
    assert pairs[:2] == [("long/top", "short/top"), ("long/last", "short/last")]
    one, other = (ray_ft.Summary.load(folder).strategies["top"] for folder in (long, short))
    expected = compare_pair("a", "b", one.fold_means, other.fold_means, 0.01, 0.5)
    assert found.comparisons[0].p_value == expected.p_value
    assert found.comparisons[0].p_adjusted >= expected.p_value
    assert found.scores["long/top"] == (one.score_mean, one.score_std)
    assert list(found.table()["verdict"]) == [pair.verdict for pair in found.comparisons]
    assert found.notes == ("long: no strategy beats its best baseline", "short: no strategy beats its best baseline")


def test_a_run_repeated_is_found_identical(toy_folder: Path) -> None:
    found = ray_ft.compare(run(toy_folder, name) for name in "ab")
    assert {pair.verdict for pair in found.comparisons} == {"not settled"}, "neither has had its best chance"
    assert "a/top and b/top are identical on every fold" in found.notes[2]


OTHERS: dict[str, dict[str, object]] = {
    "the splits": {"cv__seed": 1},
    "the metric": {"cv__metric": "mae"},
    "the protocol": {"cv__protocol": "nested"},
    "the size of the training parts": {"cv__train_size": 10},
    "the data": {"data__targets": "x.npy", "model__params": {"outputs": 6}},
}


@pytest.mark.slow
def test_other_data_or_splits_are_refused_with_the_reason(toy_folder: Path) -> None:
    module = toy_folder / "toy_network.py"
    module.write_text(module.read_text().replace("nn.Linear(width, 3)", "nn.Linear(width, outputs)"))
    module.write_text(module.read_text().replace("width=8", "width=8, outputs=3"))
    own = run(toy_folder, "own", cv__strategies=["last"])
    for i, (text, options) in enumerate(OTHERS.items()):
        other = run(toy_folder, f"other{i}", cv__strategies=["last"], **options)
        with pytest.raises(RunFolderError, match=rf"own and other{i} differ in {text} \("):
            ray_ft.compare([own, other])


def test_runs_must_be_several_and_finished(toy_folder: Path) -> None:
    folder = run(toy_folder, "a")
    with pytest.raises(RunFolderError, match="two or more different ones"):
        ray_ft.compare([folder, toy_folder / "." / "a"])
    shutil.copytree(folder, toy_folder / "b")
    (toy_folder / "b" / "summary.json").unlink()
    with pytest.raises(RunFolderError, match=r"a finished run holds summary\.json"):
        ray_ft.compare([folder, toy_folder / "b"])


def test_names_of_folders_are_no_markup() -> None:
    names = ("toy[old]/top", "p[/x]/top")
    found = RunComparison(metric="mse", scores=dict.fromkeys(names, (0.1, 0.0)), comparisons=(), notes=names)
    text = io.StringIO()
    Console(file=text).print(render_comparison(found))
    assert all(text.getvalue().count(name) == 2 for name in names)
