"""How many inputs are flagged as unlike the training samples: `python -m benchmarks.novelty` (about 3 minutes).

Fitted on 80 of the demo's 100 measured samples, in five folds and ten deals; asked about the other 20, about structures
of other kinds, and about fresh patterns of the training kind.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import RepeatedKFold

from ray_ft.config import load_config
from ray_ft.data.samples import prepare_inputs, read_array
from ray_ft.domains import find_domain
from ray_ft.ensemble import FALSE_ALARMS, flatten_features
from ray_ft.models import load_network
from ray_ft.search.strategies import select_trained
from ray_ft.split.network import split_network
from ray_ft.statistics.novelty import fit_density

DATA = Path(__file__).parents[1] / "examples" / "color_router"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategies", default="head,full")
    parser.add_argument("--deals", type=int, default=10)
    options = parser.parse_args()
    config = load_config()
    sources = {
        "measured": config.data.inputs,
        "novel": f"{DATA}/novel.npz::structure",
        "precise": f"{DATA}/precise.npz::structure",
    }
    domain = find_domain(config.layout)
    inputs = {name: prepare_inputs(read_array(source), domain, source) for name, source in sources.items()}
    network = load_network(str(config.checkpoint), **config.model.params)
    names = [name for name, _ in network.named_parameters()]
    for strategy in options.strategies.split(","):
        trained = select_trained(strategy, config.strategies[strategy].stages[0], names)
        split = split_network(network, trained, torch.from_numpy(inputs["measured"][:4]))
        features = {
            name: flatten_features(split, split.compute_features(torch.from_numpy(array)))
            for name, array in inputs.items()
        }
        flagged: dict[str, list[float]] = {name: [] for name in features}
        for rest, fresh in RepeatedKFold(n_splits=5, n_repeats=options.deals, random_state=0).split(inputs["measured"]):
            density = fit_density(features["measured"][rest], np.arange(len(rest)))
            asked = features | {"measured": features["measured"][fresh]}
            for name, own in asked.items():
                flagged[name].append(float((density.p_value(density.score(own)) <= FALSE_ALARMS).mean()))
        print(
            json.dumps({"strategy": strategy, **{name: round(np.mean(own), 4) for name, own in flagged.items()}}),
            flush=True,
        )


if __name__ == "__main__":
    main()
