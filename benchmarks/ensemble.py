"""Fifteen members on one backbone against each member's whole network: `python -m benchmarks.ensemble`.

Both predict the same structures by the full-size DiffractionNet with members of random weights, in this process.
"""

import argparse
import json
import time
from fnmatch import fnmatch

import torch
from torch import nn
from torch.func import functional_call

from benchmarks.timing import Timing, alternate, compare
from ray_ft.models import DiffractionNet
from ray_ft.split.network import split_network

N_MEMBERS, N_SAMPLES, BATCH_SIZE = 15, 64, 32
PATTERNS = {"head": ("head.*", "spec_bias"), "decoder_head": ("film_*", "dec.*", "head.*", "spec_bias")}


def draw_members(network: nn.Module, strategy: str) -> dict[str, torch.Tensor]:
    """Members near the network, stacked."""
    own = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if any(fnmatch(name, pattern) for pattern in PATTERNS[strategy])
    }
    return {
        name: torch.stack([tensor * (1 + 0.01 * torch.randn(())) for _ in range(N_MEMBERS)])
        for name, tensor in own.items()
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategy", choices=list(PATTERNS), default="head")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    network = DiffractionNet().eval()
    stacked = draw_members(network, options.strategy)
    states = [{name: tensor[i] for name, tensor in stacked.items()} for i in range(N_MEMBERS)]
    inputs = torch.randint(0, 2, (N_SAMPLES, 1, 128, 128)).float() * 2 - 1
    split = split_network(network, list(stacked), inputs[:4])
    outputs: dict[str, torch.Tensor] = {}

    def run_shared(part: torch.Tensor) -> torch.Tensor:
        features = split.run_backbone(part)
        return torch.stack([split.apply_tail(state, split.take(features)) for state in states])

    def run_whole(part: torch.Tensor) -> torch.Tensor:
        return torch.stack([functional_call(network, state, (part,)) for state in states])

    def time_side(name: str, run: object) -> Timing:
        started = time.perf_counter()
        outputs[name] = torch.cat([run(part) for part in inputs.split(BATCH_SIZE)], 1)
        return Timing(time.perf_counter() - started, 0.0)

    rounds = alternate(lambda: time_side("ours", run_shared), lambda: time_side("theirs", run_whole), options.rounds)
    result = compare(f"{N_MEMBERS} members of {options.strategy}, {N_SAMPLES} structures", rounds)
    gap = float((outputs["ours"] - outputs["theirs"]).abs().max())
    print(json.dumps({"strategy": options.strategy, "ratio": result["ratio"], "largest_difference": gap}))


if __name__ == "__main__":
    main()
