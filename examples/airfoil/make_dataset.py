"""Airfoils are drawn and solved by XFoil, for a case that NeuralFoil's inputs cannot say.

python -m examples.airfoil.make_dataset mach --n 100 --out examples/airfoil/data/mach.npz --workers 2

It needs XFoil (`apt-get install xfoil`) and `pip install neuralfoil`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.airfoil.xfoil import run_xfoil

CASES = ("plain", "mach", "flap", "unusual")
MACH, FLAP_DEGREES, HINGE = 0.5, 10.0, 0.75
LOW_CONFIDENCE = 0.8  # of the package's largest network
N_TRIES = 10_000
Row = NDArray[np.float32]


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, make the set and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--n", type=int, default=100, help="how many samples")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--workers", type=int, default=1, help="how many processes")
    parser.add_argument("--seed", type=int, default=0, help="the set's seed")
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"  # the workers inherit it; each has one core
    inputs, targets, n_redrawn = make_dataset(args.case, args.n, args.seed, args.workers)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial_file = args.out.with_name(f"{args.out.stem}.{os.getpid()}.partial.npz")
    np.savez_compressed(partial_file, inputs=inputs, targets=targets, n_redrawn=n_redrawn)
    os.replace(partial_file, args.out)
    print(f"{args.out}: {args.n} samples of {args.case}; {n_redrawn} points without an answer were drawn again")


def make_dataset(case: str, n: int, seed: int, workers: int = 1) -> tuple[Row, Row, int]:
    """Draw and solve points; the result depends on `case`, `n` and `seed`, not on `workers`.

    Args:
        case: One of `CASES`.
        n: How many samples. A longer set starts with the samples of a shorter one.
        seed: The set's seed.
        workers: How many processes share the work.

    Returns:
        What the network reads (`INPUTS` of `network.py`), shape (n, 23), of the airfoil without its flap and without
        the Mach number; CL, ln CD and CM by XFoil, shape (n, 3); and how often XFoil had no answer.
    """
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        found = pool.map(partial(make_sample, case, seed), range(n), chunksize=4)
    inputs, targets, redrawn = zip(*found, strict=True)
    return np.stack(inputs), np.stack(targets), sum(redrawn)


def make_sample(case: str, seed: int, number: int) -> tuple[Row, Row, int]:
    """Draw points by the sample's own generator until XFoil answers; count those to which it does not."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(CASES.index(case), number)))
    n_redrawn = 0
    for _ in range(N_TRIES):
        row = np.concatenate([draw_shape(rng, case), draw_flow(rng)]).astype(np.float32)
        if not is_airfoil(row) or (case == "unusual" and find_confidence(row) > LOW_CONFIDENCE):
            continue  # costs no call of XFoil, and is not counted
        answer = solve(case, row)
        if answer is not None:
            cl, cd, cm = answer
            return row, np.array([cl, np.log(cd), cm], np.float32), n_redrawn
        n_redrawn += 1
    raise RuntimeError(f"{N_TRIES} draws of sample {number} of {case} had no answer")


def draw_shape(rng: np.random.Generator, case: str) -> NDArray[np.float64]:
    """Draw Kulfan's 18 parameters: a blend of two airfoils of the UIUC database, changed a little, or much."""
    names = list_airfoils()
    one, other = (fit_airfoil(names[i]) for i in rng.integers(len(names), size=2))
    share = rng.uniform()
    shape = share * one + (1 - share) * other
    shape[:17] += rng.normal(size=17) * (0.2 if case == "unusual" else 0.02)
    shape[17] = abs(shape[17])  # the trailing edge's thickness
    return shape


def draw_flow(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw alpha in degrees, Re, n_crit, and where transition is forced on both sides; on half of them it is not."""
    alpha, reynolds, n_crit = rng.uniform(-5, 12), np.exp(rng.uniform(np.log(2e5), np.log(5e6))), rng.uniform(5, 11)
    xtr = np.where(rng.uniform(size=2) < 0.5, 1.0, rng.uniform(0.1, 1.0, 2))
    return np.array([alpha, reynolds, n_crit, *xtr])


@cache
def list_airfoils() -> tuple[str, ...]:
    import aerosandbox

    folder = Path(aerosandbox.__file__).parent / "geometry" / "airfoil" / "airfoil_database"
    return tuple(sorted(path.stem for path in folder.glob("*.dat")))


@cache
def fit_airfoil(name: str) -> NDArray[np.float64]:
    """Fit Kulfan's 18 parameters to an airfoil of the database."""
    from aerosandbox import KulfanAirfoil

    fitted = KulfanAirfoil(name)
    return np.array([*fitted.upper_weights, *fitted.lower_weights, fitted.leading_edge_weight, fitted.TE_thickness])


def name_shape(row: Row) -> dict[str, NDArray[np.float64] | float]:
    """Name the parameters of a row as aerosandbox and neuralfoil do."""
    upper, lower, (leading_edge, te_thickness) = np.split(row[:18].astype(np.float64), [8, 16])
    return {
        "upper_weights": upper,
        "lower_weights": lower,
        "leading_edge_weight": float(leading_edge),
        "TE_thickness": float(te_thickness),
    }


def is_airfoil(row: Row) -> bool:
    """Whether it is thick somewhere and its sides do not cross."""
    from aerosandbox import KulfanAirfoil

    thickness = KulfanAirfoil(**name_shape(row)).local_thickness(np.linspace(0.02, 0.98, 49))
    return bool(0.03 < thickness.max() < 0.4 and thickness.min() > 0)


def find_confidence(row: Row) -> float:
    """Ask the package's largest network how sure it is of a point, from 0 to 1."""
    from neuralfoil import get_aero_from_kulfan_parameters

    answer = get_aero_from_kulfan_parameters(name_shape(row), *row[18:].astype(np.float64), model_size="xxxlarge")
    return float(answer["analysis_confidence"][0])


def solve(case: str, row: Row) -> tuple[float, float, float] | None:
    """Solve the point of a row as it is in a case."""
    from aerosandbox import KulfanAirfoil

    airfoil = KulfanAirfoil(**name_shape(row)).to_airfoil()
    if case == "flap":
        airfoil = airfoil.add_control_surface(FLAP_DEGREES, HINGE)
    alpha, reynolds, n_crit, *xtr = (float(value) for value in row[18:])
    return run_xfoil(airfoil.coordinates, MACH if case == "mach" else 0.0, alpha, reynolds, n_crit, (xtr[0], xtr[1]))


if __name__ == "__main__":
    main()
