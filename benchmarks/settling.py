"""How often a strategy is called settled, and how far it then is from its best: `python -m benchmarks.settling`.

The search, with its rounds and its early stopping, on synthetic learners whose loss is a formula of learning rate and
epoch: one that bounces the more the higher the rate, one that forgets (its loss rises again with the summed rate), and
one whose floor rises with the rate, so that length and rate trade off. The range test points at 1e-2 throughout, up to
three decades off. An exhaustive sweep takes 61 rates times four lengths. Less than a minute in all.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np

from ray_ft.backends.running import start_halving
from ray_ft.config import GradientHyperparameters, SearchSection, StrategyConfig, scale_lr
from ray_ft.search.best import BestProposer
from ray_ft.search.plan import CandidateSpec
from ray_ft.search.settling import Attempt, assess

ROPE = 0.01
HYPER = GradientHyperparameters(1e-3, 10, 8, 0.0, 0.0, None, 0, 10, None, "zero")
RECIPES: tuple[dict[str, Any], ...] = (
    {},
    {"lr": [1e-4, 5e-4], "epochs": [50, 100]},
    {"lr": [1e-5, 5e-5], "epochs": [20, 50]},
    {"lr": [1e-6, 1e-5], "epochs": [2, 6]},
)


@dataclass(frozen=True)
class Learner:
    """A loss by learning rate and epoch; it is no number from a thousand times `best_lr` on."""

    kind: str
    best_lr: float
    floor: float

    def train(self, spec: CandidateSpec) -> Attempt:
        hyper: Any = spec.stages[-1]
        rate = hyper.lr / self.best_lr
        if rate > 1000:
            return Attempt(spec, "failed", np.empty((0, 1, 3)), diverged=True)
        steps = np.array([scale_lr(step, 10 * hyper.epochs, 0) for step in range(10 * hyper.epochs)])
        summed = np.concatenate([[0.0], np.cumsum(steps)[9::10]])
        now = np.concatenate([[0.0], steps[9::10]])
        curve = self.write_curve(rate, summed, now)
        return Attempt(spec, "completed", curve[:, None, None] * np.linspace(0.9, 1.1, 3))

    def write_curve(self, rate: float, summed: np.ndarray, now: np.ndarray) -> np.ndarray:
        bounce, left = now * math.sqrt(rate), 1 - self.floor
        if self.kind == "slow":
            floor = self.floor * (1 + 0.5 * max(0.0, math.log10(rate)) ** 2)
            return floor + left / (1 + summed * min(rate, 30) * 0.1) ** 1.5 + 0.3 * self.floor * bounce
        forgotten = 0.02 * rate * summed * self.floor if self.kind == "forgets" else 0.0
        return self.floor + left * np.exp(-summed * rate / 10) + self.floor * bounce + forgotten

    def sweep(self) -> float:
        """The lowest mean of all rates and lengths."""
        rates, lengths = np.geomspace(1e-3, 1e3, 61) * self.best_lr, (8, 16, 32, 64)
        specs = [CandidateSpec("s", 0, (replace(HYPER, lr=lr, epochs=n),)) for lr, n in product(rates, lengths)]
        return min(self.train(spec).lowest or math.inf for spec in specs)


def search(learner: Learner, recipe: dict[str, Any], n_candidates: int) -> list[Attempt]:
    """Search as a run does that trains one candidate after the other."""
    strategy = StrategyConfig.model_validate({"train": ["*"]} | recipe)
    proposer = BestProposer("s", strategy, n_candidates, 0, ROPE)
    proposer.tell_range(1e-2, 1.0)
    halving = start_halving({"s": SimpleNamespace(longest=0)}, SearchSection(), None)  # type: ignore[dict-item]
    while asked := proposer.ask():
        halving.add(asked)
        for attempt in [train_halved(learner, spec, halving) for spec in asked]:
            proposer.tell(attempt)
    return proposer.attempts


def train_halved(learner: Learner, spec: CandidateSpec, halving: Any) -> Attempt:
    attempt = learner.train(spec)
    for epoch in range(1, len(attempt.guide)):
        halving.record(spec.name, epoch, float(attempt.mean[epoch]), final=epoch == spec.n_epochs)
        if halving.stopped_at(spec.name):
            return Attempt(spec, "stopped", attempt.guide[: epoch + 1])
    halving.finish(spec.name)
    return attempt


def measure() -> Iterator[tuple[int, bool, float]]:
    """Candidates, whether settled, and the regret, of each search."""
    kinds, floors, rates = ("bounces", "forgets", "slow"), (0.1, 0.3), (1e-5, 1e-4, 5e-4, 1e-3, 3e-3, 1e-2)
    for kind, floor, rate in product(kinds, floors, rates):
        learner = Learner(kind, rate, floor)
        lowest = learner.sweep()
        for recipe, n in product(RECIPES, (6, 10, 16)):
            standing = assess(search(learner, recipe, n), ROPE)
            assert standing.best is not None
            yield n, standing.settled, (standing.best.lowest or 0.0) / lowest - 1


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    rows = list(measure())
    for n in sorted({n for n, *_ in rows}):
        own = [regret for k, settled, regret in rows if k == n and settled]
        n_rows, far = sum(k == n for k, *_ in rows), [sum(regret > limit for regret in own) for limit in (0.03, 0.1)]
        print(
            f"{n} candidates: {len(own)} of {n_rows} settled, {far[0]} of them > 3 % above the sweep, {far[1]} > 10 %"
        )


if __name__ == "__main__":
    main()
