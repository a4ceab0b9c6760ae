"""A network with its pretrained weights."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ray_ft.errors import ConfigError, WeightsError, first_few, show_value
from ray_ft.models.checkpoints import StoredWeights, read_weights
from ray_ft.models.diffraction_net import DiffractionNet, read_params
from ray_ft.models.factory import Factory, call_factory, rest
from ray_ft.models.matching import list_places, match_weights


def load_network(checkpoint_path: str | Path, **params: Any) -> DiffractionNet:
    """Load a DiffractionNet whose size is read off its checkpoint.

    Args:
        checkpoint_path: As `read_weights` takes it.
        params: Arguments of `DiffractionNet` that shapes do not show (dropouts, `n_heads`).

    Raises:
        WeightsError: The file is missing, is no weights file, or holds another network.
    """
    network, _ = load_pretrained(None, params, str(checkpoint_path))
    assert isinstance(network, DiffractionNet)
    return network


def load_pretrained(
    factory: Factory, params: Mapping[str, Any], source: str | None, skip: Collection[str] = ()
) -> tuple[nn.Module, list[str]]:
    """Build a network as `build_network` does, and load its weights as a trainer has written them.

    Args:
        factory: As for `build_network`.
        params: The same.
        source: As `read_weights` takes it; without one the network keeps what the factory gave it.
        skip: Patterns of names that are not taken out of it.

    Returns:
        The network, in evaluation mode, and notes on what was chosen, stripped and left out.

    Raises:
        ConfigError: As `build_network`.
        WeightsError: The file has no weights, several that fit, or none.
    """
    if source is None:
        return build_network(factory, params, None), []
    stored = read_weights(source)
    if factory is None:  # the sizes are a file's: they are compared before memory is taken for them
        params = add_sizes(params, find_diffraction_net(stored))
        with torch.device("meta"):
            match_weights(call_factory(None, params), stored, skip)
    network = call_factory(factory, params)
    weights, notes = match_weights(network, stored, skip)
    network.load_state_dict(weights)
    return rest(network), notes


def build_network(factory: Factory, params: Mapping[str, Any], weights: Mapping[str, Tensor] | None) -> nn.Module:
    """Build a network and load its pretrained weights, every name and shape of them; without any, its own stay.

    The factory is `package.module:callable`, or the callable itself, and its code is run; without one the network is a
    DiffractionNet, sized by the weights.

    Raises:
        ConfigError: The factory cannot be imported, builds no network, or cannot be called with `params`.
        WeightsError: Names or shapes differ.
    """
    if factory is None:
        assert weights is not None, "the config asks for a checkpoint where there is no factory"
        params = add_sizes(params, weights)
        with torch.device("meta"):  # the sizes are a file's: they are compared before memory is taken for them
            check_fit(call_factory(None, params), weights)
    network = call_factory(factory, params)
    if weights is not None:
        check_fit(network, weights)
        network.load_state_dict(weights)
    return rest(network)


def add_sizes(params: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Add the sizes that a DiffractionNet's weights show to the arguments that a user gives, which may repeat them."""
    try:
        sizes = read_params({name: tuple(tensor.shape) for name, tensor in weights.items()})
    except (KeyError, IndexError) as error:
        text = f"a DiffractionNet checkpoint must name {error}, got {first_few(list(weights))}"
        raise WeightsError(f"{text}; for another network set model.factory") from error
    for name in params.keys() & sizes.keys():
        given = tuple(params[name]) if isinstance(params[name], list) else params[name]
        if given != sizes[name]:
            rule = f"model.params.{name} is read off the checkpoint, which has {sizes[name]}"
            raise ConfigError(f"{rule}, got {show_value(params[name])}; leave it out")
    return {**params, **sizes}


def find_diffraction_net(stored: StoredWeights) -> Mapping[str, Tensor]:
    """Find what has the names of a DiffractionNet's first and last tensors; else all that there is."""
    return next((place.tensors for place in list_places(stored, ("stem_conv.weight", "spec_bias"))), stored.tensors)


def check_fit(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Compare names and shapes both ways before any weight is loaded."""
    own = network.state_dict()
    sized = {name for name in own.keys() & weights.keys() if not is_lazy(own[name])}  # others take the checkpoint's
    shapes = {name: (tuple(weights[name].shape), tuple(own[name].shape)) for name in sized}
    found = {
        "the checkpoint lacks": own.keys() - weights.keys(),
        "the network lacks": weights.keys() - own.keys(),
        "shapes differ (checkpoint for network)": {f"{k} {a} for {b}" for k, (a, b) in shapes.items() if a != b},
    }
    lines = [f"  {what}: {first_few(sorted(names))}" for what, names in found.items() if names]
    if lines:
        raise WeightsError("names and shapes of checkpoint and network must agree, but\n" + "\n".join(lines))
