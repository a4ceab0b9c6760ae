"""What a step of the demo's members is spent on, and bf16 against float32: `python -m benchmarks.profile_step`."""

import argparse
import json
import time

import torch
from torch.profiler import profile

from benchmarks.setting import prepare_demo, start_members


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategy", default="decoder_head")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    fitters = {
        precision: start_members(prepare_demo(options.strategy, precision), 1, "looped", torch.device("cpu"))
        for precision in ("float32", "bf16")
    }
    seconds: dict[str, list[float]] = {precision: [] for precision in fitters}
    for epoch in range(options.rounds + 1):
        for precision, fitter in fitters.items():
            started = time.perf_counter()
            fitter.run_epoch(epoch)
            seconds[precision].append(time.perf_counter() - started)
    with profile() as profiler:
        fitters["float32"].run_epoch(0)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60))
    print(json.dumps({f"{precision}_epoch_s": min(times[1:]) for precision, times in seconds.items()}))


if __name__ == "__main__":
    main()
