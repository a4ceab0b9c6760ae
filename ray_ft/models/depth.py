"""How deep a network is, seen by a pass, and which parts of it may learn: from its last layer to everything.

References:
    Lee et al., "Surgical Fine-Tuning Improves Adaptation to Distribution Shifts", ICLR 2023: where inputs have shifted
    early layers pay, where outputs have, late ones. Ben Zaken, Goldberg & Ravfogel, "BitFit", ACL 2022, for biases.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import nn

from ray_ft.models.last_layer import find_last_layer, is_layer
from ray_ft.models.pretrained import predict_all

NORMS = (
    nn.modules.batchnorm._NormBase,  # of instances too
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


@dataclass(frozen=True)
class Unit:
    """A part of a network with the layers in it, in the order in which they end."""

    name: str
    layers: tuple[str, ...]


def propose_strategies(network: nn.Module, inputs: Float[np.ndarray, "sample *input"]) -> dict[str, dict[str, Any]]:
    """Propose what may learn, from the last layer to everything, as a config file has it.

    Of two that train the same the first is kept; so what is the same as everything is called that.
    """
    last, units = find_last_layer(network, inputs), divide(network, order_layers(network, inputs))
    names = [name for name, _ in network.named_parameters()]
    known = {
        "everything": ("every parameter", ["*"]),
        "last_layer": ("the layer that ends last", [f"{last}.*"] if last else ["*"]),
        "last_block": ("the last block, and what follows", name_units(take_block(units))),
        "last_half": ("the later half of the layers", name_units(take_half(units))),
        "norms_and_biases": ("normalisations and biases alone", list_adjustments(network)),
    }
    found: dict[frozenset[str], tuple[str, dict[str, Any]]] = {}
    for name, (description, patterns) in known.items():
        trained = frozenset(own for own in names if any(fnmatchcase(own, pattern) for pattern in patterns))
        if trained:
            found.setdefault(trained, (name, {"description": description, "train": patterns}))
    by_size = sorted(found, key=len)
    strategies = dict(found[trained] for trained in by_size)
    ridge = {"description": "closed form, in place of the last layer", "fit": "ridge", "train": known["last_layer"][1]}
    return {**strategies, "ridge": ridge}


def order_layers(network: nn.Module, inputs: Float[np.ndarray, "sample *input"]) -> list[str]:
    """Name the modules that have parameters of their own in the order in which they first end in a pass.

    One that holds others of them, such as a transformer with a token of its own, is none itself.
    """
    ended: dict[str, None] = {}
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ended.setdefault(name))
        for name, module in network.named_modules()
        if name and (is_layer(module) or any(True for _ in module.parameters(recurse=False)))
    ]
    predict_all(network, inputs[:1])
    for hook in hooks:
        hook.remove()
    return [name for name in ended if not any(other.startswith(f"{name}.") for other in ended)]


def divide(network: nn.Module, layers: Sequence[str]) -> list[Unit]:
    """Divide a network into parts of which none has more than half of the layers, unless it is one."""
    units = list(group(layers, ""))
    while units:
        largest = max(units, key=lambda unit: len(unit.layers))
        if 2 * len(largest.layers) <= len(layers) or len(largest.layers) == 1:
            break
        place = units.index(largest)
        units[place : place + 1] = group(largest.layers, f"{largest.name}.")
    return units


def group(layers: Sequence[str], before: str) -> Iterator[Unit]:
    """Put layers together whose names go on alike."""
    parts: dict[str, list[str]] = {}
    for layer in layers:
        part = layer.removeprefix(before).partition(".")[0]
        parts.setdefault(before + part, []).append(layer)
    return (Unit(name, tuple(own)) for name, own in parts.items())


def take_block(units: Sequence[Unit]) -> Sequence[Unit]:
    """Take the last part of several layers and what follows; where all are single, the last two."""
    places = [i for i, unit in enumerate(units) if len(unit.layers) > 1]
    return units[places[-1] :] if places else units[-2:]


def take_half(units: Sequence[Unit]) -> Sequence[Unit]:
    """Take the last parts that have about half of the layers."""
    if not units:
        return units
    counts = np.cumsum([len(unit.layers) for unit in reversed(units)])
    n_taken = int(np.abs(counts - counts[-1] / 2).argmin()) + 1
    return units[len(units) - n_taken :]


def name_units(units: Sequence[Unit]) -> list[str]:
    return [f"{unit.name}.*" for unit in units]


def list_adjustments(network: nn.Module) -> list[str]:
    """Name the parameters of normalisations and all biases, by patterns for blocks that are numbered."""
    names = [name for name, _ in network.named_parameters()]
    norms = [f"{name}." for name, module in network.named_modules() if name and isinstance(module, NORMS)]
    wanted = {name for name in names if name.startswith(tuple(norms)) or "bias" in name.rpartition(".")[2]}
    patterns = []
    for name in wanted:
        numbered = re.sub(r"(?<![^.])\d+(?=\.)", "*", name)
        alike = {own for own in names if fnmatchcase(own, numbered)}
        patterns.append(numbered if alike <= wanted else name)
    return sorted(dict.fromkeys(patterns))
