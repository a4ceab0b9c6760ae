"""What a fold of ridge regression costs, by its rows: `python -m benchmarks.ridge_cost` (seconds on one core)."""

import time

import numpy as np

from ray_ft.fitting.kernel_ridge import fit_kernel

N_VIEWS, N_VALUES, N_FEATURES = 8, 244, 200  # views and target values of the demo


def main() -> None:
    rng = np.random.default_rng(0)
    for n_rows in (160, 640, 1024):
        rows, wanted, answers = (rng.normal(size=(n_rows, size)) for size in (N_FEATURES, N_VALUES, N_VALUES))
        groups, started = np.tile(np.arange(n_rows // N_VIEWS), N_VIEWS), time.process_time()
        fit_kernel(rows @ rows.T, wanted, groups, answers=answers)
        print(f"{n_rows:,} rows: {time.process_time() - started:.2g} s of a core")


if __name__ == "__main__":
    main()
