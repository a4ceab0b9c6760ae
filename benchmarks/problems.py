"""Problems of others' networks that a choice between strategies is judged by: samples to tune on, and fresh ones.

The airfoils of `examples/airfoil` are cases and sizes, `mach_small` for instance; the weights of `xxxlarge` are written
by `python -m examples.airfoil.convert xxxlarge`. The peptides of `examples/peptides`, which need the package `deeplc`,
are draws of 100 from the same chromatography: `peptides_0`, `peptides_1` and so on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import nn

from examples.airfoil.network import NeuralFoil
from ray_ft.config import Config, load_config

EXAMPLES = Path(__file__).parents[1] / "examples"
CASES = ("mach", "flap", "flap_onesided", "unusual", "plain")
SIZES = ("small", "xlarge", "xxxlarge")
N_DRAWS = 3  # of peptides
NAMES = (*(f"{case}_{size}" for case in CASES for size in SIZES), *(f"peptides_{seed}" for seed in range(N_DRAWS)))
Samples = tuple[tuple[np.ndarray, ...], np.ndarray]  # the inputs of the network, and targets


@dataclass(frozen=True)
class Problem:
    """A run's config, the samples that it is tuned on, and those that it never sees."""

    name: str
    config: Config
    train: Samples
    test: Samples
    build: Callable[[], nn.Module]  # the pretrained network
    names: tuple[str, ...] = ()  # of several inputs

    @property
    def test_inputs(self) -> Any:
        """As an ensemble of the run takes them."""
        inputs = self.test[0]
        return dict(zip(self.names, inputs, strict=True)) if self.names else inputs[0]


def load_problem(name: str, n_candidates: int = 6) -> Problem:
    """Load the problem of this name; `n_candidates` are tried of each strategy."""
    first, _, last = name.rpartition("_")
    values = {"name": name, "search.candidates": n_candidates}
    return load_peptides(name, int(last), values) if first == "peptides" else load_airfoil(name, first, last, values)


def load_airfoil(name: str, case: str, size: str, values: dict[str, Any]) -> Problem:
    """`flap_onesided` is `flap` without the mirror image."""
    here = EXAMPLES / "airfoil"
    data, _, onesided = case.partition("_")
    values |= {f"data.{key}": f"{here / 'data' / data}.npz::{key}" for key in ("inputs", "targets")}
    values |= {"model.params": {"size": size} | ({"symmetric": False} if onesided else {})}
    values |= {"model.checkpoint": str(here / "weights" / f"{size}.safetensors")}
    train, test = (read_airfoil(here / "data" / f"{file}.npz") for file in (data, f"{data}_fresh"))
    config = load_config(here / "config.yaml", values)
    return Problem(name, config, train, test, partial(build_airfoil, size, not onesided))


def build_airfoil(size: str, symmetric: bool) -> nn.Module:
    network = NeuralFoil(size, symmetric)
    network.load_state_dict(load_file(EXAMPLES / "airfoil" / "weights" / f"{size}.safetensors"))
    return network


def read_airfoil(path: Path) -> Samples:
    with np.load(path) as stored:
        return (stored["inputs"],), stored["targets"]


def load_peptides(name: str, seed: int, values: dict[str, Any]) -> Problem:
    from examples.peptides.network import RetentionTime, load  # which needs deeplc

    config = load_config(EXAMPLES / "peptides" / "config.yaml", values | {"data.params": {"n": 100, "seed": seed}})
    parts = [load(100, seed, fresh) for fresh in (False, True)]
    train, test = ((tuple(own["inputs"].values()), own["targets"]) for own in parts)
    return Problem(name, config, train, test, RetentionTime, tuple(parts[0]["inputs"]))


def choose(asked: str) -> Sequence[str]:
    """List the names that are asked for, by commas; all where none are."""
    return asked.split(",") if asked else NAMES
