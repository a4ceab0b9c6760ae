"""A run's findings as tables, and notes on what is odd."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import ray_ft
from ray_ft.config import Config, load_config
from ray_ft.data.folds import Deals
from ray_ft.errors import write_share
from ray_ft.files.writing import read_record, write_record
from ray_ft.objectives import find_objective
from ray_ft.report.page import load_findings, write_report
from ray_ft.report.terminal import render_summary
from ray_ft.report.words import say_crown, say_headline, say_pair, say_repeats, unit_of, write_chance
from ray_ft.results.summarizing import differ_by, note_deals, note_dominance, note_seeds
from ray_ft.runs.folder import RunFolder
from ray_ft.statistics.comparison import compare_pair
from ray_ft.statistics.scores import StrategyScore


def test_the_public_names_are_what_they_say() -> None:
    for name in ray_ft.__all__:
        assert getattr(ray_ft, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'crossvalidate'"):
        _ = ray_ft.crossvalidate


def test_tables_hold_every_member_and_comparison(toy_config: Config, tmp_path: Path) -> None:
    summary = ray_ft.cross_validate(toy_config, tmp_path / "run", inline=True)
    assert ray_ft.Summary.load(tmp_path / "run") == summary
    members = summary.members()
    assert len(members) == 2 * 3 * 2
    for name, strategy in summary.strategies.items():
        own = members[members["strategy"] == name]
        assert own["score"].mean() == pytest.approx(strategy.score_mean)
        assert own["score"].std() == pytest.approx(strategy.score_std)
    board = summary.leaderboard()
    assert board["score_mean"].is_monotonic_increasing
    assert set(board["strategy"]) == {*summary.strategies, *summary.baselines}
    np.testing.assert_allclose(
        (board["best_epoch_mean"] + board["optimism"])[board["kind"] == "strategy"],
        board["score_mean"][board["kind"] == "strategy"],
    )
    assert len(summary.comparison_table()) == 3


def test_seeds_that_give_the_same_results_are_noted(toy_folder: Path) -> None:
    """Whole batches and no dropout: nothing in the training is random."""
    values = {"cv.strategies": ["last"], "cv.candidates": 1, "training.batch_size": 20, "training.head_dropout": 0.0}
    summary = ray_ft.cross_validate(load_config(toy_folder / "toy.yaml", values), toy_folder / "run", inline=True)
    assert "last: all seeds gave the same results, so they count as one" in summary.notes[-1]


def test_scores_of_zero_are_the_same() -> None:
    assert differ_by(np.zeros((1, 3, 2))) == 0


def cross_validate_toy(folder: Path, **options: object) -> ray_ft.Summary:
    values = {"cv.strategies": ["top", "last"], "cv.candidates": 1}
    values |= {key.replace("__", "."): value for key, value in options.items()}
    return ray_ft.cross_validate(load_config(folder / "toy.yaml", values), folder / "run", inline=True)


def test_of_uneven_groups_every_number_is_the_mean_over_samples(toy_folder: Path) -> None:
    np.save("groups.npy", np.repeat(np.arange(6), [1, 2, 3, 4, 6, 14]))
    summary = cross_validate_toy(toy_folder, data__groups="groups.npy", cv__seeds=1, cv__strategies=["top"])
    run = RunFolder(toy_folder / "run")
    assert len(set(summary.deals.sizes[0])) > 1
    findings = load_findings(run)
    expected = ((findings.blind["mean"] - findings.blind["targets"]) ** 2).mean()
    row = summary.strategies["top"]
    assert row.score_mean == pytest.approx(expected, rel=1e-5)
    assert summary.ensemble.score == pytest.approx(expected, rel=1e-5), "of one seed, of the same members"
    assert summary.ensemble.by_strategy["top"] == pytest.approx((expected, expected), rel=1e-5)
    zero_shot = ((findings.blind["zero_shot"] - findings.blind["targets"]) ** 2).mean()
    assert summary.baselines["zero_shot"].score_mean == pytest.approx(zero_shot, rel=1e-5)
    best = summary.baselines[summary.best_baseline].score_mean
    assert summary.against_baseline.difference == pytest.approx(expected - best, rel=1e-5)
    assert summary.selection.score == pytest.approx(expected, rel=0.1)


def test_no_strategy_is_crowned_that_a_baseline_beats(toy_folder: Path) -> None:
    summary = cross_validate_toy(toy_folder)
    run, text = RunFolder(toy_folder / "run"), io.StringIO()
    best = summary.baselines[summary.best_baseline].score_mean
    assert summary.strategies[summary.lowest].score_mean > best
    assert summary.winner is None
    warning = f"no strategy beats the best baseline (gain-offset, {best:.4g}): do not use this model"
    assert summary.notes[0] == summary.ensemble.notes[0] == warning
    assert ray_ft.Ensemble.load(run.root).card.warning == warning
    Console(file=text, width=200, force_terminal=True, color_system="standard").print(render_summary(summary, run))
    assert "\x1b[32m" not in text.getvalue(), "nothing is green"
    assert text.getvalue().count(warning) == 1
    assert "winner    none: no strategy beats gain-offset" in text.getvalue()
    assert 'class="winner"' not in write_report(run.root).read_text()


def test_a_winner_that_is_not_surely_better_than_a_baseline_is_said_to_be_so(toy_folder: Path) -> None:
    summary = cross_validate_toy(toy_folder)
    crowned = summary.model_copy(update={"winner": summary.lowest})
    assert say_crown(crowned).endswith("below the best baseline, but not known to be better than gain-offset)")
    surely = {"difference": -1.0, "ratio": 0.1, "p_adjusted": 0.001, "probabilities": (0.99, 0.01, 0.0)}
    pairs = [summary.against_baseline.model_copy(update=surely)]
    better = crowned.model_copy(update={"comparisons": pairs})
    assert say_crown(better) == f"{summary.lowest} (lowest mean score, below the best baseline)"
    assert say_headline(better) == f"{summary.lowest} has the lowest mean score, below the best baseline"


def test_a_summary_of_the_first_release_is_read(toy_folder: Path) -> None:
    summary = cross_validate_toy(toy_folder)
    path = RunFolder(toy_folder / "run").summary
    content = read_record(path)
    for key in ("lowest", "deals"):
        del content[key]
    content["winner"] = summary.lowest
    content["selection"]["shares"] = {"top": 1.0}
    new = ("ratio", "ratio_interval", "n_repeats_range")
    content["comparisons"] = [{k: v for k, v in pair.items() if k not in new} for pair in content["comparisons"]]
    write_record(path, content)
    read = ray_ft.Summary.load(toy_folder / "run")
    assert read.winner is None, "it does not beat the baseline"
    assert read.lowest == summary.lowest
    assert read.deals == Deals.even(1, 3)
    assert write_report(toy_folder / "run").exists()


def test_repeats_that_are_one_deal_are_noted(toy_folder: Path) -> None:
    np.save("groups.npy", np.arange(30) // 10)
    summary = cross_validate_toy(toy_folder, data__groups="groups.npy", cv__repeats=3)
    assert any("the 3 repeats make 1 different deal of the folds, as there is but one way" in n for n in summary.notes)
    assert all(pair.n_repeats is None for pair in summary.comparisons)
    assert note_deals(Deals.even(3, 4)) == []


def test_one_channel_and_one_sample_that_decide_the_metric_are_noted() -> None:
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(20, 3)) * [1, 1, 1000]
    objective = find_objective("mse")
    blind = {"mean": np.zeros((20, 3)), "targets": targets}
    losses = objective.score(blind["mean"], targets)
    (note,) = note_dominance(objective, blind, losses)
    assert note.startswith("output 2 of 3 along axis 1 of the targets makes up >99.9 % of the loss")
    even = targets / [1, 1, 1000]
    assert not list(note_dominance(objective, blind | {"targets": even}, objective.score(blind["mean"], even)))
    even[7] = 15
    (note,) = note_dominance(objective, blind | {"targets": even}, objective.score(blind["mean"], even))
    assert note.startswith("sample 7 makes up 9")


def test_seeds_that_changed_next_to_nothing_are_noted() -> None:
    rng = np.random.default_rng(0)
    values, ones = rng.uniform(1, 2, (1, 5, 1)) + rng.normal(0, 1e-3, (1, 5, 2)), np.ones((1, 5), int)
    (note,) = note_seeds("head", StrategyScore(ones, ones, values, 0.0, 0.0, ones))
    assert "10 members are worth 5" in note
    values = rng.uniform(1, 2, (1, 5, 2))
    assert not note_seeds("head", StrategyScore(ones, ones, values, 0.0, 0.0, ones))


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [(0.999, 0, ">99 %"), (0.001, 0, "<1 %"), (1.0, 0, "100 %"), (0.0, 0, "0 %"), (0.506, 0, "51 %"),
     (0.9999, 1, ">99.9 %"), (0.9994, 1, "99.9 %"), (0.0001, 1, "<0.1 %")],
)  # fmt: skip
def test_a_share_that_is_nearly_all_is_not_written_as_all(share: float, digits: int, text: str) -> None:
    assert write_share(share, digits) == text


def test_no_chance_is_certain() -> None:
    assert [write_chance(chance) for chance in (0.0, 1.0, 0.95)] == ["<1 %", ">99 %", "95 %"]


def test_advice_names_both_ends_and_promises_nothing(toy_folder: Path) -> None:
    b = np.array([[1.0, 1.1, 1.2, 1.15, 1.05]])
    pair = compare_pair("a", "b", b - 0.05, b, 0.01, 0.25).model_copy(update={"p_adjusted": 1.0})
    ends = {(3, 12): "--repeats 3 may settle it if the difference is as large as it may be, 12 if as small",
            (3, None): "--repeats 3 may settle it if the difference is as large as it may be",
            (None, None): "repeats alone are unlikely to settle it"}  # fmt: skip
    for found, text in ends.items():
        said = say_repeats(pair.model_copy(update={"n_repeats_range": found}))
        assert said.startswith(text)
        assert ("where it stays open, take the lower score, or add samples" in said) == (found != (None, None))
    summary = cross_validate_toy(toy_folder)
    assert "ratio" in say_pair(summary.against_baseline, unit_of(summary))
