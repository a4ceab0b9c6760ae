"""A step of the `head` strategy against bare products of the same FLOPs, one thread: `python -m benchmarks.head_step`.

The step is all that training does on stored features of the full-size network, batch 16: dropout masks, forward,
backward, clipping, optimizer. The products are its two linear layers', forward and by their weights; the peak is that
of 2,048 x 2,048 matrices. The three alternate.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.setting import prepare_row, start_members
from ray_ft.fitting.training import draw_batches, step_pack

BATCH, N_WAVELENGTHS, WIDTH, N_OUT = 16, 301, 256, 4
PEAK_SIDE = 2048
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps({precision: measure(precision, options.rounds) for precision in DTYPES}))


def measure(precision: str, n_rounds: int) -> dict[str, float]:
    dtype = DTYPES[precision]
    sides = {"step": build_step(precision), "products": build_products(dtype), "peak": build_peak(dtype)}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(n_rounds):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    step, products, peak = (statistics.median(times[name][2:]) for name in sides)
    spread = max(times["step"][2:]) / min(times["step"][2:])
    peak_flops, flops = 2 * PEAK_SIDE**3 / peak, count_flops()
    result = {
        "share_of_peak": flops / step / peak_flops,
        "step_ms": 1e3 * step,
        "matmul_ms": 1e3 * products,
        "peak_gflops": peak_flops / 1e9,
    }
    print(
        f"{precision}: step {1e3 * step:.1f} ms (max/min {spread:.2f}), bare products {1e3 * products:.1f} ms, "
        f"share of the peak of {peak_flops / 1e9:.0f} GFLOP/s: {result['share_of_peak']:.0%}",
        flush=True,
    )
    return result


def count_flops() -> int:
    """Forward and, but for the features, backward: both layers by their weights, the second by its inputs too."""
    rows = BATCH * N_WAVELENGTHS
    return 2 * rows * (2 * WIDTH * WIDTH + 3 * WIDTH * N_OUT)


def build_step(precision: str) -> Callable[[], object]:
    fitter = start_members(prepare_row("head", precision), 1, "looped", torch.device("cpu"))
    (member,) = fitter.whole.members

    def step() -> None:
        nonlocal batches
        batch = next(batches, None)
        if batch is None or len(batch.rows) < BATCH:
            batches = draw_batches(member, fitter.recipe, 0)
            batch = next(batches)
        step_pack(fitter.whole, fitter.recipe, [batch])

    batches = draw_batches(member, fitter.recipe, 0)
    return step


def build_products(dtype: torch.dtype) -> Callable[[], object]:
    rows = BATCH * N_WAVELENGTHS
    x, wide, narrow = (torch.randn(rows, width).to(dtype) for width in (WIDTH, WIDTH, N_OUT))
    first, second = torch.randn(WIDTH, WIDTH).to(dtype), torch.randn(WIDTH, N_OUT).to(dtype)

    def multiply() -> list[torch.Tensor]:
        return [x @ first, wide @ second, wide.T @ narrow, narrow @ second.T, x.T @ wide]

    return multiply


def build_peak(dtype: torch.dtype) -> Callable[[], object]:
    square = torch.randn(PEAK_SIDE, PEAK_SIDE).to(dtype)
    return lambda: square @ square


if __name__ == "__main__":
    main()
