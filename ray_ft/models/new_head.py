"""A new last layer, for targets of another number than the network was pretrained for."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ray_ft.models.factory import Factory, call_factory


class NewHead(NamedTuple):
    """Which layer is replaced, and its size."""

    name: str
    n_inputs: int
    n_outputs: int


def give_head(factory: Factory, head: NewHead) -> Factory:
    """Return a factory of the same networks with that head."""
    return partial(build_with_head, factory, head)


def build_with_head(factory: Factory, head: NewHead, **params: Any) -> nn.Module:
    network = call_factory(factory, params)
    replace_head(network, head)
    return network


def replace_head(network: nn.Module, head: NewHead) -> None:
    """Put the head in its place. It starts at zero, so that nothing in its first answers is by chance."""
    old = network.get_submodule(head.name)
    new = nn.Linear(head.n_inputs, head.n_outputs, dtype=next(old.parameters()).dtype)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.zero_()
    parent, _, own = head.name.rpartition(".")
    setattr(network.get_submodule(parent), own, new)
