"""Coverage of the intervals on samples that had no part in a run: `python -m benchmarks.coverage` (about 5 minutes).

`--picking` measures what choosing costs it instead (5 minutes): regressions on random features, of which strategies,
candidates and epochs (here penalties) are picked as in a run, on data sets drawn anew, beside what was fixed
beforehand.

The demo's 100 measured samples are dealt into five parts; each is predicted by the ensemble of a whole cross-validation
of the other 80. So every sample is fresh once.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from sklearn.model_selection import KFold

import ray_ft
from ray_ft.data.folds import Splits
from ray_ft.ensemble.evaluation import evaluate_ensemble, read_labelled
from ray_ft.statistics.intervals import build_pointwise, measure_coverage
from ray_ft.statistics.scores import build_curves, choose, pick_lowest, score_choice

N_PARTS = 5
NOVEL = Path(__file__).parents[1] / "examples" / "color_router" / "novel.npz"  # structures of other kinds
SIZES, N_CANDIDATES, N_FRESH = (10, 30, 100), 8, 300  # random features of each strategy, as of `--picking`
PENALTIES = np.logspace(2, -4, 20)  # from strong to weak, as epochs go
DEMO = Path(ray_ft.__file__).parent / "demo" / "measured.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategies", default="head")
    parser.add_argument("--picking", action="store_true")
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    if options.picking:
        for n in (20, 40, 100):
            found = np.array([cover_once(n, seed) for seed in range(options.rounds)])
            means, errors = found.mean(0), found.std(0) / np.sqrt(len(found))
            said = (f"{name} {m:.1%} ± {e:.1%}" for name, m, e in zip(("fixed", "picked"), means, errors, strict=True))
            print(f"{n} samples: intervals of 90 % cover, {', '.join(said)}", flush=True)
    else:
        cover_demo(options)


def cover_once(n: int, seed: int) -> tuple[float, float]:
    """Coverage on 300 fresh samples, of what was fixed beforehand and of what was picked."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n + N_FRESH, 4))
    y = np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.5 * rng.normal(size=n + N_FRESH)
    splits = Splits((tuple((rng.permutation(n) % N_PARTS).tolist()),), seed)
    found = {size: [fit_path(draw_features(rng, x, size), y, splits) for _ in range(N_CANDIDATES)] for size in SIZES}
    scores = {}
    for size, candidates in found.items():
        losses = [(path[:, fold_of(splits), np.arange(n)] - y[:n]) ** 2 for path in candidates]
        curves = {i: build_curves(own[:, None, None], None, splits) for i, own in enumerate(losses)}
        scores[str(size)] = score_choice(choose(curves), curves)
    lowest = pick_lowest(scores)
    assert lowest is not None
    chosen, folds = scores[lowest], np.arange(N_PARTS)
    picked = [found[int(lowest)][chosen.candidate[0, k]][chosen.epoch[0, k] - 1, k] for k in folds]
    fixed = found[SIZES[1]][0][len(PENALTIES) // 2]
    coverages = [measure_fold_models(np.stack(list(own)), y, splits) for own in (fixed, picked)]
    return coverages[0], coverages[1]


def fold_of(splits: Splits) -> np.ndarray:
    return np.array(splits.fold_of[0])


def draw_features(rng: np.random.Generator, x: np.ndarray, size: int) -> np.ndarray:
    waves = rng.normal(size=(x.shape[1], size)) * rng.uniform(0.3, 1.5)
    return np.cos(x @ waves + rng.uniform(0, 2 * np.pi, size)) * np.sqrt(2 / size)


def fit_path(features: np.ndarray, y: np.ndarray, splits: Splits) -> np.ndarray:
    """Predictions of each fold's ridge regression for all samples (penalty, fold, sample)."""
    path = np.empty((len(PENALTIES), N_PARTS, len(y)))
    for k in range(N_PARTS):
        train = splits.training(0, k)
        u, s, v = np.linalg.svd(features[train], full_matrices=False)
        shrunk = s / (s**2 + PENALTIES[:, None]) * (u.T @ (y[train] - y[train].mean()))
        path[:, k] = shrunk @ (v @ features.T) + y[train].mean()
    return path


def measure_fold_models(predictions: np.ndarray, y: np.ndarray, splits: Splits) -> float:
    """Coverage of the CV+ intervals of fold models (fold, sample) on the fresh samples, which come last."""
    n = splits.n_samples
    residuals = y[:n] - predictions[fold_of(splits), np.arange(n)]
    ends = build_pointwise(predictions[None, :, n:, None], residuals[:, None], fold_of(splits)[None], 0.1)
    return measure_coverage(*ends, y[n:, None]).values


def cover_demo(options: argparse.Namespace) -> None:
    """Print the coverage of whole runs on the demo."""
    with np.load(DEMO) as archive:
        data = {name: archive[name] for name in ("structure", "spectra")}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for part, (rest, fresh) in enumerate(KFold(N_PARTS, shuffle=True, random_state=0).split(data["spectra"])):
            files = {name: f"{folder}/{name}{part}.npz" for name in ("rest", "fresh")}
            for name, index in (("rest", rest), ("fresh", fresh)):
                np.savez(files[name], **{key: array[index] for key, array in data.items()})
            values = {
                "data.inputs": f"{files['rest']}::structure",
                "data.targets": f"{files['rest']}::spectra",
                "cv.strategies": options.strategies.split(","),
                "cv.candidates": 1,
                "search.method": "guide",
            }
            ray_ft.cross_validate(ray_ft.load_config(None, values), f"{folder}/run{part}")
            ensemble = ray_ft.Ensemble.load(f"{folder}/run{part}")
            own = evaluate_ensemble(ensemble, read_labelled(ensemble, files["fresh"], None, None))
            print(
                f"part {part}: blind score {ensemble.card.score:.3e}, fresh mse {own.mse:.3e}, "
                f"coverage {own.coverage:.1%}, bands {own.band_coverage:.0%}, flagged {own.flagged:.0%}",
                flush=True,
            )
            found.append(own)
            novel = evaluate_ensemble(ensemble, read_labelled(ensemble, str(NOVEL), None, None))
            print(f"        {NOVEL.name}: coverage {novel.coverage:.1%}, flagged {novel.flagged:.0%}", flush=True)
    keys = ("mse", "coverage", "width", "band_coverage", "band_width", "spread_coverage", "flagged")
    print(json.dumps({"nominal": found[0].nominal, **{key: np.mean([getattr(f, key) for f in found]) for key in keys}}))


if __name__ == "__main__":
    main()
