"""A toy run: a small network of the user's own on a linear problem, so that a whole cross-validation takes seconds."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from ray_ft.config import Config, load_config

settings.register_profile("untimed", deadline=None)  # a first call may import for seconds
settings.load_profile("untimed")

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
training: {checkpoint_every: 2}
compute: {packing: looped}
strategies:
  top: {train: ["head.*"], lr: [1.0e-3, 1.0e-1], epochs: [6, 8], head_dropout: 0.1, patience: 20}
  last: {train: ["head.3.*"], lr: [1.0e-3, 1.0e-1], epochs: [6, 8], patience: 20}
"""


@pytest.fixture
def toy_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the toy's module, data and config."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.tanh(x @ rng.normal(size=(6, 3))).astype(np.float32))
    (tmp_path / "toy_network.py").write_text(TOY_MODULE)
    (tmp_path / "toy.yaml").write_text(TOY_CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_network", raising=False)  # another test's, out of another folder
    torch.set_num_threads(1)
    return tmp_path


@pytest.fixture
def toy_config(toy_folder: Path) -> Config:
    return load_config(toy_folder / "toy.yaml", {"cv.strategies": ["top", "last"]})
