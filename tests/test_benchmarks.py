"""What benchmarks compute beside the package: which strategy one split would pick."""

from pathlib import Path

import numpy as np

from benchmarks.fresh import N_HELD_OUT, N_SPLITS, draw_splits
from ray_ft.results.records import load_history, load_judged, load_splits
from ray_ft.runs.folder import RunFolder


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
