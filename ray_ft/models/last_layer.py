"""Which layer of a network answers: found by a pass, as names and their order say nothing of it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import nn

from ray_ft.errors import NetworkError
from ray_ft.models.new_head import NewHead
from ray_ft.models.pretrained import predict_all


def find_last_layer(network: nn.Module, inputs: Float[np.ndarray, "sample *input"]) -> str:
    """Name the layer that ends last in a pass; nothing where the network itself is one.

    Raises:
        NetworkError: The network does not take the inputs.
    """
    ended: list[str] = []
    hooks = [
        module.register_forward_hook(partial(note, ended.append, name))
        for name, module in network.named_modules()
        if name and is_layer(module)
    ]
    predict_all(network, inputs[:1])
    for hook in hooks:
        hook.remove()
    return ended[-1] if ended else ""


def plan_head(network: nn.Module, inputs: Float[np.ndarray, "sample *input"], n_outputs: int) -> NewHead:
    """Find the linear layer that answers.

    Raises:
        NetworkError: What answers is something else.
    """
    name = find_last_layer(network, inputs)
    layer = network.get_submodule(name) if name else network
    if not name or type(layer) is not nn.Linear:
        raise NetworkError(
            f"a new head takes the place of the torch.nn.Linear that answers, but {name or 'the network itself'} is a "
            f"{type(layer).__name__}; build the network with {n_outputs} outputs (model.params, model.skip)"
        )
    return NewHead(name, layer.in_features, n_outputs)


def note(record: Callable[[str], None], name: str, *_: Any) -> None:
    record(name)


def is_layer(module: nn.Module) -> bool:
    """Whether a module's parameters are its own, and not those of modules within."""
    own = {name for name, _ in module.named_parameters(recurse=False)}
    return any(True for _ in module.parameters()) and all(
        name in own or name.startswith("parametrizations.") for name, _ in module.named_parameters()
    )
