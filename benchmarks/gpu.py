"""What only a GPU can tell, beside `benchmarks.packing`: `python -m benchmarks.gpu peak | full | scaling`.

peak: the share of the card's peak that a step of all members reaches, for the strategies with products, full size.
full: the four strategies that learn, each at its best, whole commands at full size on all GPUs that are visible.
scaling: the same on one GPU and on two.

With --dry each is done at toy size on whatever there is, so that it is known to run; its figures mean nothing.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.setting import prepare_demo, start_members
from benchmarks.timing import time_command
from benchmarks.vs_ray_tune import write_inputs
from ray_ft.config import load_config
from ray_ft.cross_validation import Prepared, prepare
from ray_ft.fitting.gradient import GradientFitter
from ray_ft.fitting.training import draw_batches, step_pack

STRATEGIES = ("head", "decoder_head", "full", "spec_bias")
N_MEMBERS, N_STEPS = 15, 5
PEAK_SIDE, PEAK_SIDE_DRY = 8192, 256
DRY = ("training.epochs=1", "search.candidates=1", "cv.folds=2", "cv.seeds=1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("peak", "full", "scaling"))
    parser.add_argument("--dry", action="store_true", help="at toy size, to see that it runs")
    options = parser.parse_args()
    known: dict[str, Callable[[bool], object]] = {"peak": measure_peak, "full": time_full, "scaling": time_scaling}
    print(json.dumps({options.what: known[options.what](options.dry), "dry": options.dry}), flush=True)


def measure_peak(dry: bool) -> dict[str, object]:
    """Time steps of all members, and products of large matrices, in the precision that the device takes by itself."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, object] = {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}
    for strategy in STRATEGIES[:1] if dry else STRATEGIES[:3]:  # spec_bias has no products
        prepared = prepare_demo(strategy, "auto") if dry else prepare_full(strategy)
        fitter = start_members(prepared, N_MEMBERS, "packed", device)
        peak = measure_product(fitter.recipe.dtype, device, PEAK_SIDE_DRY if dry else PEAK_SIDE)
        n_flops, seconds = measure_steps(fitter)
        found[strategy] = {
            "step_ms": 1e3 * seconds,
            "tflops": n_flops / seconds / 1e12,
            "peak_tflops": peak / 1e12,
            "share_of_peak": n_flops / seconds / peak,
            "packed_by": fitter.pack_size,
            "products": str(fitter.recipe.dtype),
            "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None,
        }
        print(f"{strategy}: {found[strategy]}", flush=True)
        del fitter
        torch.cuda.empty_cache()
    return found


def prepare_full(strategy: str) -> Prepared:
    with tempfile.TemporaryDirectory() as folder:
        return prepare(load_config(write_full(Path(folder), (strategy,))))


def write_full(folder: Path, strategies: tuple[str, ...]) -> Path:
    """Write a config of the full-size network with its shipped strategies, and what it names."""
    write_inputs(folder)
    data, config = str(folder / "data.npz"), folder / "full.yaml"
    described = {
        "model": {"checkpoint": str(folder / "network.safetensors")},
        "data": {"inputs": f"{data}::x", "targets": f"{data}::y"},
        "cv": {"folds": 5, "seeds": 3, "strategies": list(strategies)},
    }
    config.write_text(yaml.safe_dump(described))
    return config


def measure_steps(fitter: GradientFitter) -> tuple[int, float]:
    """Count the operations of a step of all members, and time it, after one to warm up."""
    fitter.run_epoch(0)  # where memory is short, it makes the packs smaller
    packs = fitter.whole.divide(fitter.pack_size)
    epochs = [[draw_batches(member, fitter.recipe, 0) for member in pack.members] for pack in packs]

    def step() -> None:
        pairs = zip(packs, epochs, strict=True)
        losses = [step_pack(pack, fitter.recipe, [next(member) for member in own]) for pack, own in pairs]
        torch.cat(losses).sum().item()  # it waits

    with FlopCounterMode(display=False) as flops:
        step()
    return flops.get_total_flops(), time_best(step)


def measure_product(dtype: torch.dtype, device: torch.device, side: int) -> float:
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / time_best(lambda: (left @ right)[0, 0].item())


def time_best(run: Callable[[], object]) -> float:
    times = []
    for _ in range(N_STEPS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def time_full(dry: bool, cards: Sequence[str] | None = None) -> dict[str, float]:
    """Time the whole command, on these cards or all."""
    env = {} if cards is None else {"CUDA_VISIBLE_DEVICES": ",".join(cards)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if dry:
            words = ["--strategies", "spec_bias", *(word for value in DRY for word in ("--set", value))]
        else:
            words = ["--config", str(write_full(folder, STRATEGIES))]
        timing = time_command([sys.executable, "-m", "ray_ft", "cv", "--out", str(folder / "run"), *words], env)
    print(f"the whole command on {'all cards' if cards is None else cards}: {timing.seconds:.0f} s", flush=True)
    return {"seconds": timing.seconds, "host_memory_gb": timing.peak_gb}


def time_scaling(dry: bool) -> dict[str, object]:
    """Time the whole command on one GPU and on two."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    cards = [card for card in seen.split(",") if card]
    if len(cards) < 2 and not dry:
        return {"left out": f"it needs two GPUs, got {len(cards)}"}
    one, two = time_full(dry, cards[:1]), time_full(dry, cards[:2])
    return {"one_s": one["seconds"], "two_s": two["seconds"], "ratio": one["seconds"] / two["seconds"]}


if __name__ == "__main__":
    main()
