"""Differences or ratios of fold means? Level and power of both tests: `python -m benchmarks.ratio_test` (5 minutes).

Two ridge regressions see different features, of the same worth (then there is no true difference) or not. What is to be
learned has the scale 1 for every sample, or scales far apart, so that a few samples make up most of the loss; or noise
of Student's t. In the last setting nothing is trained: losses of one mean are drawn, with a light and a heavy tail.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from ray_ft.data.folds import deal_folds
from ray_ft.statistics.comparison import Means, compare_pair

N_SAMPLES, N_FOLDS, N_FEATURES, PENALTY = 100, 5, 10, 1.0
Scales = Callable[[np.random.Generator], np.ndarray]  # of the samples
Pair = tuple[Means, Means]

TAILS: dict[str, tuple[Scales, float]] = {  # and degrees of freedom of the noise
    "one scale": (lambda rng: np.ones(N_SAMPLES), np.inf),
    "noise of t, 3 degrees of freedom": (lambda rng: np.ones(N_SAMPLES), 3),
    "scales over a decade": (lambda rng: np.exp(rng.normal(0, 0.6, N_SAMPLES)), np.inf),
    "scales over two decades": (lambda rng: np.exp(rng.normal(0, 1.2, N_SAMPLES)), np.inf),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    for n_repeats in (1, 4):
        for tail, (scales, degrees) in TAILS.items():
            for worth in (1.0, 0.7, 0.4):
                rng = np.random.default_rng(0)
                pairs = (score_ridges(rng, scales, degrees, worth, n_repeats) for _ in range(options.rounds))
                report(f"{N_FOLDS} x {n_repeats}, {tail}, second is worth {worth:g}", pairs)
    rng = np.random.default_rng(0)
    report("losses of one mean, light and heavy tail", (draw_losses(rng) for _ in range(options.rounds)))


def report(name: str, pairs: Iterable[Pair]) -> None:
    """Print how often each test says better and worse."""
    counts = {ratios: Counter[str]() for ratios in (False, True)}
    n = 0
    for a, b in pairs:
        n += 1
        for ratios, own in counts.items():
            pair = compare_pair("a", "b", a, b, 0.01, 1 / (N_FOLDS - 1), ratios)
            own["p < 5 %"] += pair.p_value < 0.05
            own[pair.verdict] += 1
    said = {
        ratios: f"p < 5 % {own['p < 5 %'] / n:6.1%}, better {own['better'] / n:6.1%}, worse {own['worse'] / n:6.1%}"
        for ratios, own in counts.items()
    }
    print(f"{name:70} differences: {said[False]}; ratios: {said[True]}", flush=True)


def score_ridges(rng: np.random.Generator, scales: Scales, degrees: float, worth: float, n_repeats: int) -> Pair:
    """Fold means of two ridge regressions, the second on features of this worth."""
    x = rng.normal(size=(2, N_SAMPLES, N_FEATURES))
    signal = (x[0].sum(1) + np.sqrt(worth) * x[1].sum(1)) / np.sqrt(N_FEATURES)
    noise = rng.normal(size=N_SAMPLES) if np.isinf(degrees) else rng.standard_t(degrees, N_SAMPLES)
    size = scales(rng)
    x, y = x * size[:, None], size * (signal + noise)
    splits = deal_folds(np.arange(N_SAMPLES), N_FOLDS, n_repeats, int(rng.integers(2**31)))
    means = np.empty((2, n_repeats, N_FOLDS))
    for i, r, k in np.ndindex(means.shape):
        train, held_out = splits.training(r, k), splits.held_out(r, k)
        own = x[i, train]
        weights = np.linalg.solve(own.T @ own + PENALTY * np.eye(N_FEATURES), own.T @ y[train])
        means[i, r, k] = ((x[i, held_out] @ weights - y[held_out]) ** 2).mean()
    return means[0], means[1]


def draw_losses(rng: np.random.Generator) -> Pair:
    light = rng.exponential(size=(1, N_FOLDS, N_SAMPLES // N_FOLDS))
    heavy = np.exp(rng.normal(0, 1.5, light.shape) - 1.5**2 / 2)
    return light.mean(-1), heavy.mean(-1)


if __name__ == "__main__":
    main()
