"""Which layer of a network answers: found by a pass, as names and their order say nothing of it."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from ray_ft.data.samples import Samples, have_same_values
from ray_ft.errors import NetworkError
from ray_ft.files.memory import is_out_of_memory
from ray_ft.models.new_head import NewHead, replace_head
from ray_ft.models.pretrained import predict_all
from ray_ft.objectives import Objective


def find_last_layer(network: nn.Module, inputs: Float[np.ndarray, "sample *input"]) -> str:
    """Name the layer that ends last in a pass and that the answer hangs on; nothing where the network itself is one.

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
    reached = list_reached(network, inputs)
    return next((name for name in reversed(ended) if any(own.startswith(f"{name}.") for own in reached)), "")


def list_reached(network: nn.Module, inputs: Float[np.ndarray, "sample *input"]) -> set[str]:
    """Name the parameters that the answer hangs on, as its gradient says; all where there is none."""
    known = dict(network.named_parameters())
    flags = {name: parameter.requires_grad for name, parameter in known.items()}
    network.requires_grad_(True)
    try:
        with torch.enable_grad():
            answer = network(torch.from_numpy(inputs[:1].copy()))
            slopes = torch.autograd.grad(answer.float().sum(), [*known.values()], allow_unused=True)
    except Exception as error:  # of any class: it is a user's own code, and training says more of it
        if is_out_of_memory(error):  # the machine's, of which the network is no worse
            raise
        return set(known)
    finally:
        for name, parameter in known.items():
            parameter.requires_grad_(flags[name])
    return {name for name, slope in zip(known, slopes, strict=True) if slope is not None}


def renew_head(asked: bool | None, network: nn.Module, samples: Samples, objective: Objective) -> NewHead | None:
    """Replace the layer that answers where that is asked for, or where it knows another number of classes."""
    found = tuple(predict_all(network, samples.inputs[:2]).shape[1:])
    targets, _ = objective.widen_targets(samples.targets, samples.classes, math.prod(found))
    fits = have_same_values(found, objective.find_output_shape(found, targets.shape[1:]))
    if asked is False or (asked is None and (fits or not samples.classes)):
        return None
    head = plan_head(network, samples.inputs, math.prod(samples.targets.shape[1:]))
    replace_head(network, head)
    return head


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
