"""What benchmarks compute beside the package: which strategy one split would pick, and what rules cost."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import rules
from benchmarks.fresh import N_HELD_OUT, N_SPLITS, draw_splits
from ray_ft.results.records import load_history, load_judged, load_splits
from ray_ft.runs.folder import RunFolder


@pytest.mark.long
def test_a_split_picks_what_has_the_lowest_loss_on_its_own_samples(run: Path) -> None:
    """Each sample is judged by the network of its own fold, and only the split's samples count."""
    folder = RunFolder(run)
    plan, verdicts = load_judged(folder)
    splits, rng = load_splits(folder), np.random.default_rng(0)
    wins = dict.fromkeys([spec.strategy for spec in plan], 0)
    for _ in range(N_SPLITS):
        held_out = rng.permutation(splits.n_samples)[:N_HELD_OUT]
        lowest: dict[str, float] = {}
        for spec in plan:
            history = load_history(folder, spec.name, splits)
            if verdicts[spec.name].state == "failed" or history is None:
                continue
            for epoch in range(len(history.losses)):
                loss = float(np.mean([history.losses[epoch, 0, 0, sample] for sample in held_out]))
                lowest[spec.strategy] = min(loss, lowest.get(spec.strategy, np.inf))
        wins[min(lowest, key=lambda name: lowest[name])] += 1
    assert draw_splits(folder) == {name: n / N_SPLITS for name, n in wins.items()}
    assert len(wins) > 1


def fresh_row(problem: str, strategy: str, fresh: float, verdict: str = "", chance: float = 0.0) -> dict[str, str]:
    """A row of a problem whose pick has an error of 2; without a verdict, the pick's."""
    row = {"problem": problem, "strategy": strategy, "fresh": str(fresh), "verdict": verdict, "score": "1"}
    return row | {"behind": str(fresh - 2), "behind_se": "0.4", "split_chance": str(chance), "picked": str(not verdict)}


NONE = "no evidence of a difference"
ROWS = [
    fresh_row("a", "everything", 2.0, chance=0.75),
    fresh_row("a", "last_layer", 5.0, "worse", 0.25),
    fresh_row("a", "ridge", 1.0, NONE),
    fresh_row("b", "everything", 6.0, NONE, 0.5),
    fresh_row("b", "last_layer", 3.0, "worse"),
    fresh_row("b", "ridge", 2.0, chance=0.5),
    {"problem": "b", "strategy": "zero_shot", "picked": ""},
]


def test_what_a_rule_costs_is_above_the_lowest_fresh_error_by_the_chance_of_its_pick(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rules.print_costs(ROWS)
    table = capsys.readouterr().out
    assert "| a | 100 % | 175 % | 100 % | 100 % | 400 % | 0 % |" in table
    assert "| b | 0 % | 100 % | 200 % | 200 % | 50 % | 0 % |" in table, (
        "ridge is not shown to be better than everything"
    )
    assert "| **mean** | 50 % | 138 % | 150 % | 150 % | 225 % | 0 % |" in table
    assert "| **names the best** | 1 of 2 | 0.5 of 2 | 0 of 2 | 0 of 2 | 0 of 2 | 2 of 2 |" in table
    shown = [row | {"verdict": "worse"} if row["strategy"] == "everything" and row["verdict"] else row for row in ROWS]
    rules.print_costs(shown)
    assert "| b | 0 % | 100 % | 0 % | 200 % | 50 % | 0 % |" in capsys.readouterr().out


def test_draws_of_a_split_and_verdicts_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    rules.print_draws(ROWS)  # costs of 100 % (0.375), 400 % (0.125), 200 % (0.25) and 0 (0.25)
    told = capsys.readouterr().out
    assert "one split, by their cost: 75.0 % above 20 %, 75.0 % above 50 %, 37.5 % above 100 %, 400 % at most" in told
    assert "ours, by their cost: 50.0 % above 20 %, 50.0 % above 50 %, 0.0 % above 100 %, 100 % at most" in told
    rules.print_verdicts(ROWS)
    told = capsys.readouterr().out
    assert "2 pairs, worse: 1.50 to 2.50 times the error of the pick, 1 above twice; 2 apart" in told
    assert f"2 pairs, {NONE}: 0.50 to 3.00 times the error of the pick, 1 above twice; 2 apart" in told
    assert "score of the pick over its fresh error: 0.50, 0.50" in told
