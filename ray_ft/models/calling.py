"""How a network is called that takes several tensors, or answers with several: by hooks, as one of one and one."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ray_ft.data.packing import KINDS, Layout, Part
from ray_ft.data.ragged import read_rows
from ray_ft.errors import ConfigError, NetworkError, first_few, show_value, suggest
from ray_ft.files.memory import blame
from ray_ft.models.factory import import_code, is_own

KEY = "data.collate"
COLLATES = "a function of your own code, which is neither Python's nor that of an installed package"
Collate = str | Callable[[list[Any]], Any] | None  # what makes a batch of samples, or the name of it


def call_as_one(network: nn.Module, layout: Layout, output: str | int | None, collate: Collate = None) -> nn.Module:
    """Let a network take packed samples, or what `collate` makes of them, and answer with one of its outputs."""
    if collate is not None:
        network.forward = partial(call_with_batch, network, layout, find_collate(collate))
    elif layout:  # not by a hook, as torch.export reads the arguments off `forward`
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


def find_collate(collate: str | Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    """Take a function, or import what is named.

    Raises:
        ConfigError: It cannot be imported, or is no function of the user's own.
    """
    found = import_code(collate, KEY, COLLATES) if isinstance(collate, str) else collate
    if not callable(found) or (isinstance(collate, str) and not is_own(found)):
        raise ConfigError(f"{KEY} must be {COLLATES}; got {show_value(collate)}")
    return found


def call_with_batch(
    network: nn.Module, layout: Layout, collate: Callable[[list[Any]], Any], rows: Float[Tensor, "sample value"]
) -> Any:
    """Call what the class of a network has as `forward` with a batch: a mapping by name, a tuple by place."""
    if torch.compiler.is_exporting():  # how many rows make a batch is the function's to know
        raise NetworkError(f"the batches that {KEY} makes have no fixed shape")
    with blame(NetworkError, f"{KEY} must make a batch of samples, but"):
        batch = collate(read_rows(rows, layout))
    forward = partial(type(network).forward, network)
    if isinstance(batch, Mapping):
        return forward(**{str(name): own for name, own in batch.items()})
    return forward(*batch) if type(batch) in (tuple, list) else forward(batch)


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
