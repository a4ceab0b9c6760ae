"""Does it pay to measure what the ensemble suggests? `python -m benchmarks.suggestion`.

From 30 labelled samples, 20 are added out of a pool: those of `choose_batch` in one arm, random ones in the other. Both
retrain the demo's head, and their ensembles are scored on the same held-out samples. Two settings:

measured: the demo's 100 samples; 50 are the pool and 20 held out.
mixed: patterns with the edges of fabrication, labelled by the pretraining simulator with noise; 30 % of the pool (300)
    and of the held-out samples (200) are gratings, lattices, checkers and rings, the 30 labelled are blobs alone.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from examples.color_router.patterns import PIXELS, draw_blobs
from examples.color_router.simulator import simulate
from ray_ft import Config, Ensemble, cross_validate, load_network
from ray_ft.data.samples import prepare_inputs
from ray_ft.domains import find_domain
from ray_ft.ensemble.suggestion import choose_batch
from ray_ft.split.network import split_network

DEMO = Path(__file__).parents[1] / "ray_ft" / "demo"
NETWORK = {"checkpoint": str(DEMO / "network.safetensors"), "params": {"dropout_cnn": 0.0, "dropout_decoder": 0.0}}
HEAD = {"train": ["head.*", "spec_bias"], "lr": 1e-3, "epochs": 40, "batch_size": 16, "weight_decay": 0.03,
        "head_dropout": 0.15, "patience": 40}  # fmt: skip
N_LABELLED, N_ADDED = 30, 20
N_POOL, N_HELD_OUT, SPECIAL_SHARE = 300, 200, 0.3  # of `mixed`
NOISE_STD = 0.004

Samples = tuple[np.ndarray, np.ndarray]  # structures of 0 and 1, spectra
Parts = tuple[Samples, Samples, Samples]  # labelled, pool, held out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"measured": draw_measured, "mixed": draw_mixed}
    print(json.dumps({name: compare_choices(name, draw, options.rounds) for name, draw in settings.items()}))


def compare_choices(name: str, draw: Callable[[int], Parts], n_rounds: int) -> dict[str, float]:
    """Print and return the error of both arms, in 1e-3, and the mean of the paired difference with its error."""
    started = time.perf_counter()
    errors = np.array([run_round(draw(seed), seed) for seed in range(n_rounds)]) * 1e3
    none, random, chosen = errors.mean(0)
    difference = errors[:, 2] - errors[:, 1]
    mean, error = float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(n_rounds))
    print(
        f"{name}: mse of {N_LABELLED} samples {none:.4f}e-3, of {N_ADDED} random ones more {random:.4f}e-3, of "
        f"{N_ADDED} chosen ones more {chosen:.4f}e-3; chosen - random {mean:+.4f} ± {error:.4f}e-3 "
        f"({mean / random:+.1%} ± {error / random:.1%}), {n_rounds} rounds, {time.perf_counter() - started:.0f} s",
        flush=True,
    )
    return {"start": none, "random": random, "chosen": chosen, "difference": mean, "standard_error": error}


def run_round(parts: Parts, seed: int) -> tuple[float, float, float]:
    """Held-out errors: of the labelled samples alone, with random ones, with chosen ones."""
    labelled, pool, held_out = parts
    start = train(labelled, seed)
    spread = start.predict(pool[0]).std.reshape(len(pool[0]), -1).mean(1)
    chosen = choose_batch(compute_features(pool[0]), spread, N_ADDED)
    random = np.random.default_rng([seed, 1]).choice(len(pool[0]), N_ADDED, replace=False)
    ensembles = [start, *(train(add(labelled, pool, index), seed) for index in (random, chosen))]
    first, second, third = (
        float(((ensemble.predict(held_out[0]).mean - held_out[1]) ** 2).mean()) for ensemble in ensembles
    )
    return first, second, third


def add(labelled: Samples, pool: Samples, index: np.ndarray) -> Samples:
    structures, spectra = (np.concatenate([a, b[index]]) for a, b in zip(labelled, pool, strict=True))
    return structures, spectra


def train(samples: Samples, seed: int) -> Ensemble:
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/data.npz"
        np.savez(data, x=samples[0], y=samples[1])
        described = {
            "model": NETWORK,
            "data": {"inputs": f"{data}::x", "targets": f"{data}::y"},
            "cv": {"seeds": 1, "candidates": 1, "strategies": ["quick_head"], "seed": seed},
            "strategies": {"quick_head": HEAD},
        }
        cross_validate(Config.model_validate(described), f"{folder}/run", inline=True)
        return Ensemble.load(f"{folder}/run")


def compute_features(structures: np.ndarray) -> np.ndarray:
    network, inputs = load_network(NETWORK["checkpoint"], **NETWORK["params"]), normalise(structures)
    trained = [name for name, _ in network.named_parameters() if name.startswith("head.") or name == "spec_bias"]
    split = split_network(network, trained, torch.from_numpy(inputs))
    features = split.compute_features(torch.from_numpy(inputs))
    rows = [
        f.movedim(axis, 0).flatten(1) for f, axis in zip(features, split.batch_axes, strict=True) if axis is not None
    ]
    return torch.cat(rows, 1).numpy()


def normalise(structures: np.ndarray) -> np.ndarray:
    return prepare_inputs(structures, find_domain("diffraction"), "structures")


def draw_measured(seed: int) -> Parts:
    with np.load(DEMO / "measured.npz") as archive:
        structures, spectra = np.unpackbits(archive["structure"], axis=-1), archive["spectra"]
    order = np.random.default_rng(seed).permutation(len(structures))
    labelled, pool, held_out = ((structures[i], spectra[i]) for i in np.split(order, [N_LABELLED, N_LABELLED + 50]))
    return labelled, pool, held_out


def draw_mixed(seed: int) -> Parts:
    rng = np.random.default_rng(seed)
    labelled = label(draw_blobs(N_LABELLED, np.random.SeedSequence([seed, 0])), rng)
    pool, held_out = (
        label(
            np.concatenate(
                [draw_blobs(n - n_special, np.random.SeedSequence([seed, n])), draw_special(n_special, rng)]
            ),
            rng,
        )
        for n, n_special in ((n, round(SPECIAL_SHARE * n)) for n in (N_POOL, N_HELD_OUT))
    )
    return labelled, pool, held_out


def draw_special(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw periodic gratings, lattices of pillars, checkers and rings in turn."""
    axis = np.arange(PIXELS) / PIXELS
    patterns = []
    for i in range(n):
        x, y = (axis - rng.random())[:, None], axis - rng.random()
        waves = [np.cos(2 * np.pi * count * z) for count, z in zip(rng.integers(1, 6, 2), (x, y), strict=True)]
        radius = np.hypot((x + 0.5) % 1 - 0.5, (y + 0.5) % 1 - 0.5)
        heights = (
            waves[0] + 0 * y,
            waves[0] + waves[1],
            waves[0] * waves[1],
            np.cos(2 * np.pi * rng.uniform(2, 6) * radius),
        )[i % 4]
        patterns.append(heights > np.quantile(heights, rng.uniform(0.3, 0.7)))
    return np.array(patterns, np.uint8)


def label(structures: np.ndarray, rng: np.random.Generator) -> Samples:
    """Simulate the structures with their edges a pixel outward, and add noise."""
    fabricated = ndimage.grey_dilation(structures, size=(1, 3, 3), mode="wrap")
    spectra = simulate(fabricated, np.arange(400.0, 701.0, 5.0))
    return structures, spectra + rng.normal(0, NOISE_STD, spectra.shape).astype(np.float32)


if __name__ == "__main__":
    main()
