"""The pretraining set is drawn and simulated, on as many processes as there are cores to spare.

python -m examples.color_router.make_dataset --n 60000 --out build/color_router.npz --workers 2
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.color_router.patterns import draw_blobs
from examples.color_router.simulator import simulate

CHUNK = 500  # samples that share a seed
WAVELENGTHS_NM = np.arange(400.0, 701.0, 5.0)


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, makes the set and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=60_000, help="how many samples")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--workers", type=int, default=1, help="how many processes")
    parser.add_argument("--seed", type=int, default=0, help="the set's seed")
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"  # the workers inherit it; each has one core
    structure, spectra = make_dataset(args.n, args.seed, args.workers)
    save_dataset(args.out, structure, spectra)


def make_dataset(n: int, seed: int, workers: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draws and simulates patterns; the result depends on `n` and `seed`, not on `workers`.

    Args:
        n: How many samples. A longer set starts with the whole chunks of a shorter one.
        seed: The set's seed.
        workers: How many processes share the work.

    Returns:
        The structures, bits packed along y, (n, 128, 16), and the shares of the incident power
        (n, 2, 2, 61) at 400, 405 ... 700 nm.
    """
    jobs = [(min(CHUNK, n - start), seed, start // CHUNK) for start in range(0, n, CHUNK)]
    parts = []
    begun = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for part in pool.imap(_make_chunk, jobs):
            parts.append(part)
            done = min(len(parts) * CHUNK, n)
            rate = done / (time.monotonic() - begun)
            print(f"{done}/{n} samples, {rate:.0f} a second", flush=True)
    structures, spectra = zip(*parts, strict=True)
    return np.concatenate(structures), np.concatenate(spectra)


def save_dataset(path: Path, structure: NDArray[np.uint8], spectra: NDArray[np.float32]) -> None:
    """Saves a set; an interrupted save leaves no file of that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial.npz")
    np.savez(partial, structure=structure, spectra=spectra, wavelength_nm=WAVELENGTHS_NM)
    os.replace(partial, path)


def _make_chunk(job: tuple[int, int, int]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Makes the chunk (how many, the set's seed, the chunk's number)."""
    n, seed, number = job
    structures = draw_blobs(n, np.random.SeedSequence(seed, spawn_key=(number,)))
    return np.packbits(structures, axis=-1), simulate(structures, WAVELENGTHS_NM)


if __name__ == "__main__":
    main()
