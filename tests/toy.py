"""The toy: a network of a user's own, data and a config, written into a folder."""

import io
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate
from ray_ft.results.summary import Summary

TOY_MODULE = """
import torch
from torch import nn


class Toy(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Dropout(0.1), nn.Linear(width, 3))

    def forward(self, x):
        return self.head(self.body(x))
"""

TOY_CONFIG = """
name: toy
model: {factory: "toy_network:Toy"}
data: {inputs: x.npy, targets: y.npy}
cv: {folds: 3, seeds: 2, candidates: 3}
search: {method: guide}
training: {checkpoint_every: 2}
compute: {packing: looped}
strategies:
  top: {train: ["head.*"], lr: [1.0e-3, 1.0e-1], epochs: [6, 8], head_dropout: 0.1, patience: 20}
  last: {train: ["head.3.*"], lr: [1.0e-3, 1.0e-1], epochs: [6, 8], patience: 20}
"""


def write_toy(folder: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 6)).astype(np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", np.tanh(x @ rng.normal(size=(6, 3))).astype(np.float32))
    (folder / "toy_network.py").write_text(TOY_MODULE)
    (folder / "toy.yaml").write_text(TOY_CONFIG)


def break_toy(folder: Path, anchor: str, code: str) -> None:
    """Put code behind a line of the toy's module."""
    path = folder / "toy_network.py"
    indented = "".join(f"    {line}\n" if line else "" for line in code.strip("\n").split("\n"))
    path.write_text(path.read_text().replace(anchor, f"{anchor}\n{indented}"))


LOGGED = """
    import pathlib
    with open("builds", "a") as log:
        log.write(pathlib.Path("/proc/self/cmdline").read_text() + "\\n")
"""
WILD = {"train": ["*"], "lr": 1e30, "epochs": 3}  # it diverges
ON_RAY = {
    "cv.strategies": ["top", "last", "wild"],
    "strategies.wild": WILD,
    "search.method": "best",
    "cv.candidates": 4,
}


def run_on_ray(folder: Path, **loggers: Any) -> None:
    """Finish a run of ON_RAY with loggers; `builds` there names the processes that have built the network."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the loggers' own
        enter_toy(folder, patch)
        patch.setenv("WANDB_MODE", "offline")
        break_toy(folder, "        super().__init__()", LOGGED)
        values = ON_RAY | {f"loggers.{name}": value for name, value in loggers.items()}
        cross_validate(load_config("toy.yaml", values), "run", console=Console(file=said))
    assert "failed and logs nothing more" not in said.getvalue(), said.getvalue()


def enter_toy(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Work in a folder that the toy is written to."""
    write_toy(folder)
    patch.chdir(folder)
    patch.syspath_prepend(str(folder))
    patch.delitem(sys.modules, "toy_network", raising=False)  # another test's, out of another folder
    torch.set_num_threads(1)


def table(summary: Summary) -> dict[str, object]:
    """What must not depend on how a run was carried out."""
    kept = {"score_mean", "score_std", "best_epoch_mean", "candidates", "stop_epochs", "scores"}
    rows = {name: row.model_dump(include=kept) for name, row in summary.strategies.items()}
    return rows | {"winner": summary.winner, "lowest": summary.lowest, "ensemble": summary.ensemble.score}
