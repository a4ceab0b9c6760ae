"""A run's findings as tables, and notes on what is odd."""

from pathlib import Path

import numpy as np
import pytest

import ray_ft
from ray_ft.config import Config, load_config
from ray_ft.results.summarizing import differ_by


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
