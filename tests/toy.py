"""The toy: a network of a user's own, data and a config, written into a folder."""

from pathlib import Path

import numpy as np

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
