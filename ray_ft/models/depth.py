"""How deep a network is, seen by a pass, and which parts of it may learn: from its last layer to everything.

References:
    Lee et al., "Surgical Fine-Tuning Improves Adaptation to Distribution Shifts", ICLR 2023: where inputs have shifted
    early layers pay, where outputs have, late ones. Ben Zaken, Goldberg & Ravfogel, "BitFit", ACL 2022, for biases.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ray_ft.models.last_layer import find_last_layer, is_layer, list_reached
from ray_ft.models.pretrained import predict_all

NORMS = (
    nn.modules.batchnorm._NormBase,  # of instances too
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
CONTAINERS = nn.Sequential, nn.ModuleList, nn.ModuleDict


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
    reached = list_reached(network, inputs)
    names = [name for name, _ in network.named_parameters() if name in reached]
    known = {
        "everything": ("every parameter", ["*"]),
        "last_layer": ("the layer that ends last", [f"{last}.*"] if last else ["*"]),
        "last_block": ("the last block, and what follows", name_units(take_block(units))),
        "last_half": ("the later half of the layers", name_units(take_half(units))),
        "norms_and_biases": ("normalisations and biases alone", list_adjustments(network)),
    }
    if any(name.startswith(f"{last}.") for name in find_tied(network)):
        del known["last_layer"]  # its weight is that of another layer too, so no ridge takes its place
    found: dict[frozenset[str], tuple[str, dict[str, Any]]] = {}
    for name, (description, patterns) in known.items():
        trained = frozenset(own for own in names if any(fnmatchcase(own, pattern) for pattern in patterns))
        if trained:
            found.setdefault(trained, (name, {"description": description, "train": patterns}))
    by_size = sorted(found, key=len)
    strategies = dict(found[trained] for trained in by_size)
    if "last_layer" not in known:
        return strategies
    ridge = {"description": "closed form, in place of the last layer", "fit": "ridge", "train": known["last_layer"][1]}
    return {**strategies, "ridge": ridge}


def find_tied(network: nn.Module) -> dict[str, str]:
    """Find further names of parameters that have several, and the first name of each."""
    first = {id(parameter): name for name, parameter in network.named_parameters()}
    every = network.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}


def order_layers(network: nn.Module, inputs: Float[np.ndarray, "sample *input"]) -> list[str]:
    """Name the modules that have parameters of their own in the order in which they first end in a pass.

    One that holds others of them, such as a transformer with a token of its own, is none itself, and neither is one
    that the answer does not hang on.
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
    reached = list_reached(network, inputs)
    layers = [name for name in ended if any(own.startswith(f"{name}.") for own in reached)]
    return [name for name in layers if not any(other.startswith(f"{name}.") for other in layers)]


def measure_depths(network: nn.Module, inputs: Float[np.ndarray, "sample *input"]) -> dict[str, int]:
    """Count the blocks between each parameter and the answer, in the order in which a pass first reads their weights.

    A block is the outermost module of a class of which the network has several, such as a transformer's layer; what is
    in none is one with the others of the module that holds it. A vector in none, such as a norm's, counts with what was
    read before it, and a parameter that the pass does not read as one of the last block.
    """
    holders = find_holders(network)
    with ReadingOrder(network) as order:
        predict_all(network, inputs[:1])
    blocks: dict[str, int] = {}
    places: dict[str, int] = {}
    for name in order.names:
        holder, in_block = holders[name]
        place = len(blocks) - 1
        if in_block or not blocks or network.get_parameter(name).dim() > 1:
            place = blocks.setdefault(holder, len(blocks))
        places[name] = place
    return {name: len(blocks) - 1 - places.get(name, len(blocks) - 1) for name in holders}


def find_holders(network: nn.Module) -> dict[str, tuple[str, bool]]:
    """Name, by parameter, the block that holds it, or else the module that does, and say whether it is a block."""
    named = [(name, module) for name, module in network.named_modules() if name and has_weight(module)]
    counts = Counter(type(module) for _, module in named if not isinstance(module, CONTAINERS))
    blocks = [name for name, module in named if counts[type(module)] > 1]  # those that hold others come first
    holders = {}
    for name, _ in network.named_parameters():
        block = next((own for own in blocks if name.startswith(f"{own}.")), None)
        holders[name] = (name.rpartition(".")[0] if block is None else block, block is not None)
    return holders


def has_weight(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters())


class ReadingOrder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes down in which order operations first read the parameters of a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = {id(parameter): name for name, parameter in network.named_parameters()}
        self.names: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if name := self.known.get(id(leaf)):
                self.names.setdefault(name)
        return func(*args, **(kwargs or {}))


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
