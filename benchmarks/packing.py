"""Packed against looped members, `head` of the full-size network or the demo's: `python -m benchmarks.packing`.

Fifteen members train whole epochs in this process on the GPU where there is one, else on one thread of the CPU.
"""

import argparse
import json
import time

import torch

from benchmarks.setting import prepare_demo, prepare_row, start_members
from benchmarks.timing import Timing, alternate, compare
from ray_ft.fitting.gradient import GradientFitter

N_MEMBERS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--demo", metavar="STRATEGY", help="of the demo's network, instead of the full-size head")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepared = prepare_demo(options.demo, "auto") if options.demo else prepare_row("head", "auto")
    packed, looped = (start_members(prepared, N_MEMBERS, how, device) for how in ("packed", "looped"))

    def time_epoch(fitter: GradientFitter) -> Timing:
        started = time.perf_counter()
        fitter.run_epoch(0)
        fitter.predict()
        return Timing(time.perf_counter() - started, 0.0)

    time_epoch(packed), time_epoch(looped)
    rounds = alternate(lambda: time_epoch(packed), lambda: time_epoch(looped), options.rounds)
    result = compare(f"{N_MEMBERS} members on {device}", rounds)
    print(json.dumps({"device": str(device), "ratio": result["ratio"]}))


if __name__ == "__main__":
    main()
