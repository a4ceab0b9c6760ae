"""A network and its pretrained weights, read without running code that a file brings."""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ray_ft.errors import ConfigError, WeightsError, first_few, first_line, shorten, show_value
from ray_ft.files.memory import describe_excess
from ray_ft.models.diffraction_net import DiffractionNet, read_params
from ray_ft.models.factory import call_factory


def load_network(checkpoint_path: str | Path, **params: Any) -> DiffractionNet:
    """Load a DiffractionNet whose size is read off its checkpoint.

    Args:
        checkpoint_path: `.safetensors`, or `.pt`/`.pth` by `torch.save`: a state dict, bare or under "model".
        params: Arguments of `DiffractionNet` that shapes do not show (dropouts, `n_heads`).

    Raises:
        WeightsError: The file is missing, is no weights file, or holds another network.
    """
    network = build_network(None, params, read_weights(Path(checkpoint_path)))
    assert isinstance(network, DiffractionNet)
    return network


def build_network(factory: str | None, params: Mapping[str, Any], weights: Mapping[str, Tensor] | None) -> nn.Module:
    """Build a network and load its pretrained weights, every name and shape of them; without any, its own stay.

    The factory is `package.module:callable`, and its code is run; without one the network is a DiffractionNet, sized by
    the weights.

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
    return network.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict; no code in the file is run, and a file that is none raises a `WeightsError`."""
    rule = f"a checkpoint must be weights alone (safetensors, or tensors by torch.save), got {shorten(str(path))}"
    try:
        if not path.is_file():
            raise WeightsError(f"a checkpoint must be a file, got {path}; check model.checkpoint")
        check_fits(measure_content(path), rule)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles by another protocol, which are then refused
            content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:  # torch's own advice is to trust the file, which is not ours
        raise WeightsError(f"{rule}: it holds more than tensors, or is damaged") from error
    except Exception as error:  # of any class: torch's reader trusts the structure of what it reads
        raise WeightsError(f"{rule}: {first_line(error)}") from error
    weights = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not weights or not all(map(is_entry, weights.items())):
        raise WeightsError(f'a checkpoint must hold a state dict, bare or under "model", got {path} without one')
    check_fits(sum(tensor.nbytes for tensor in weights.values()), rule)
    return weights


def is_entry(item: tuple[Any, Any]) -> bool:
    """Whether this is a name with a plain tensor on the CPU."""
    name, tensor = item
    plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
    return isinstance(name, str) and plain and not tensor.is_quantized


def measure_content(path: Path) -> int:
    """Bytes of a file; where it is a zip archive, unpacked."""
    if not zipfile.is_zipfile(path):
        return path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        return sum(member.file_size for member in archive.infolist())


def check_fits(n_bytes: int, rule: str) -> None:
    if excess := describe_excess(n_bytes):
        raise WeightsError(f"{rule}: {excess}")


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


def check_fit(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Compare names and shapes both ways before any weight is loaded."""
    own = network.state_dict()
    shapes = {name: (tuple(weights[name].shape), tuple(own[name].shape)) for name in own.keys() & weights.keys()}
    found = {
        "the checkpoint lacks": own.keys() - weights.keys(),
        "the network lacks": weights.keys() - own.keys(),
        "shapes differ (checkpoint for network)": {f"{k} {a} for {b}" for k, (a, b) in shapes.items() if a != b},
    }
    lines = [f"  {what}: {first_few(sorted(names))}" for what, names in found.items() if names]
    if lines:
        raise WeightsError("names and shapes of checkpoint and network must agree, but\n" + "\n".join(lines))
