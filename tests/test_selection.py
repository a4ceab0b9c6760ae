"""The bias correction on scores whose truth is known."""

import numpy as np
import pytest

from ray_ft.statistics.selection import correct_selection


def test_one_strategy_needs_no_correction() -> None:
    losses = np.random.default_rng(0).exponential(size=200)
    found = correct_selection({"only": losses}, np.arange(200), 0)
    assert found.score == pytest.approx(losses.mean(), rel=0.01)
    assert found.interval[0] < losses.mean() < found.interval[1]


def test_the_luck_of_the_winner_is_taken_off() -> None:
    """Ten strategies of the same true loss, 1: the lowest of their means is too low, and corrected it is not."""
    rng = np.random.default_rng(0)
    lowest, corrected = [], []
    for seed in range(60):
        losses = {str(i): rng.exponential(size=50) for i in range(10)}
        lowest.append(min(each.mean() for each in losses.values()))
        corrected.append(correct_selection(losses, np.arange(50), seed).score)
    assert np.mean(lowest) < 0.82
    assert abs(np.mean(corrected) - 1) < 0.25 * abs(np.mean(lowest) - 1)


def test_groups_stand_on_one_side() -> None:
    groups = np.arange(40) // 20
    losses = np.where(groups == 0, 1.0, 3.0)
    found = correct_selection({"a": losses, "b": losses + 1}, groups, 0)
    assert found.interval == (1.0, 3.0), "what is left out is one group or the other, whole"


def test_groups_count_by_their_samples() -> None:
    """One group of half the samples and many of one: what is left out is no mean over samples each time."""
    groups = np.concatenate([np.zeros(50, int), np.arange(1, 51)])
    losses = np.where(groups == 0, 3.0, 1.0)
    assert correct_selection({"only": losses}, groups, 0).score == pytest.approx(2, rel=0.05)


def test_strategies_that_are_equal_are_scored_together() -> None:
    losses = np.random.default_rng(0).exponential(size=50)
    found = correct_selection({"a": losses, "b": losses.copy(), "worse": losses + 1}, np.arange(50), 0)
    assert found.score == pytest.approx(correct_selection({"a": losses}, np.arange(50), 0).score)
