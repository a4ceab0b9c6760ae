"""How a network is called that takes several tensors, or answers with several: by hooks, as one of one and one."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ray_ft.data.packing import Layout, Part
from ray_ft.errors import NetworkError, first_few, show_value, suggest

KINDS = {"float": torch.float32, "int": torch.int64, "bool": torch.bool}


def call_as_one(network: nn.Module, layout: Layout, output: str | int | None) -> nn.Module:
    """Let a network take packed samples, and answer with one of its outputs, by its key or place."""
    if layout:  # not by a hook, as torch.export reads the arguments off `forward`
        network.forward = partial(call_with_parts, network, layout)
    if output is not None:
        network.register_forward_hook(partial(pick_output, output))
    return network


def call_with_parts(network: nn.Module, layout: Layout, packed: Float[Tensor, "sample value"]) -> Any:
    """Call what the class of a network has as `forward`."""
    placed, named, start = {}, {}, 0
    for part in layout:
        stop = start + math.prod(part.shape)
        tensor = take_part(packed[:, start:stop], part)
        start = stop
        if part.name.isdecimal():
            placed[int(part.name)] = tensor
        else:
            named[part.name] = tensor
    return type(network).forward(network, *(placed[place] for place in sorted(placed)), **named)


def take_part(columns: Float[Tensor, "sample value"], part: Part) -> Tensor:
    tensor = columns.reshape(-1, *part.shape)
    return tensor if part.kind == "float" else tensor.to(KINDS[part.kind])


def pick_output(key: str | int, network: nn.Module, inputs: Any, outputs: Any) -> Any:
    """Take one of several outputs.

    Raises:
        NetworkError: There is none of that name or place.
    """
    try:
        if isinstance(outputs, Mapping | tuple | list) and not (isinstance(key, str) and hasattr(outputs, "_fields")):
            place: Any = key
            return outputs[place]
        return getattr(outputs, str(key))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        known = list(map(str, outputs)) if isinstance(outputs, Mapping) else list(getattr(outputs, "_fields", ()))
        has = first_few(known) if known else describe(outputs)
        near = suggest(str(key), known)
        raise NetworkError(f"model.output must name one of the outputs, {has}, got {show_value(key)}{near}") from error


def describe(outputs: Any) -> str:
    """Say what a network answers with that is no single tensor."""
    if isinstance(outputs, Mapping):
        return first_few(list(map(str, outputs)))
    if isinstance(outputs, tuple | list):
        return f"0 to {len(outputs) - 1} of a {type(outputs).__name__}"
    return f"a {type(outputs).__name__}"
