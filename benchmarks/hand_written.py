"""What a competent user writes by hand: Ray Tune, one trial for each fold and seed, the whole network at each step.

It is the peer of `benchmarks.vs_ray_tune`, run as `python -m benchmarks.hand_written ROW SETTINGS.json RESULT.json`.
Frozen modules are in eval mode and build no graph; the optimizer is fused, processes are reused, the data is shared.
"""

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

os.environ |= {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}

import numpy as np
import ray
import torch
from ray import tune
from safetensors.torch import load_file
from sklearn.model_selection import KFold
from torch import Tensor, nn

from ray_ft import DiffractionNet


def build_network(checkpoint: str, patterns: list[str], dropout: float) -> nn.Module:
    network = DiffractionNet(dropout_head=dropout)
    network.load_state_dict(load_file(checkpoint))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(any(fnmatch(name, pattern) for pattern in patterns))
    return network


def set_modes(network: nn.Module) -> None:
    """Train mode for modules with something to learn, eval mode for the frozen ones."""
    network.train()
    for child in network.children():
        child.train(any(parameter.requires_grad for parameter in child.parameters()))


def rotate(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A structure turned by 180 degrees, and the quadrants that its light then falls on."""
    return x.flip(-1, -2), y.flip(1, 2)


def draw_batches(x: Tensor, y: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(x))
    for part in order.split(batch_size):
        yield x[part], y[part]


def train(params: dict, settings: dict, x: np.ndarray, y: np.ndarray) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1000 * params["fold"] + params["seed"])
    inputs, targets = 2 * torch.from_numpy(x.copy()).float() - 1, torch.from_numpy(y.copy())
    splits = list(KFold(settings["folds"], shuffle=True, random_state=0).split(x))
    training, held_out = (torch.from_numpy(part) for part in splits[params["fold"]])
    views = rotate(inputs[training], targets[training])
    seen, labels = torch.cat([inputs[training], views[0]]), torch.cat([targets[training], views[1]])
    network = build_network(settings["checkpoint"], settings["train"], settings["dropout"])
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=settings["lr"], weight_decay=settings["weight_decay"], fused=True)
    n_steps = settings["epochs"] * -(-len(seen) // settings["batch_size"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for epoch in range(settings["epochs"]):
        set_modes(network)
        for batch, label in draw_batches(seen, labels, settings["batch_size"]):
            loss = nn.functional.mse_loss(network(batch), label)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            schedule.step()
        network.eval()
        with torch.no_grad():
            score = nn.functional.mse_loss(network(inputs[held_out]), targets[held_out]).item()
        tune.report({"epoch": epoch + 1, "loss": score})


def main() -> None:
    from benchmarks import hand_written  # by its name, so that workers import it

    settings = json.loads(Path(sys.argv[2]).read_text())
    arrays = np.load(settings["data"])
    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    trainable = tune.with_parameters(hand_written.train, settings=settings, x=arrays["x"], y=arrays["y"])
    space = {"fold": tune.grid_search(list(range(settings["folds"]))), "seed": tune.grid_search(settings["seeds"])}
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"CPU": 1}),
            param_space=space,
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        grid = tuner.fit()
    if grid.errors:
        raise SystemExit(str(grid.errors[0]))
    losses = [[result.config["fold"], result.config["seed"], result.metrics["loss"]] for result in grid]
    Path(sys.argv[3]).write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
