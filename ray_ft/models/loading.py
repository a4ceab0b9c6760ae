"""A network and its pretrained weights, read without running code that a file brings."""

import contextlib
import importlib
import inspect
import pickle
import random
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ray_ft.errors import ConfigError, WeightsError, first_few, first_line, shorten, show_value
from ray_ft.files.memory import describe_excess
from ray_ft.models.diffraction_net import DiffractionNet, read_params


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

    The factory is `package.module:callable`; without one the network is a DiffractionNet, sized by the weights.

    Raises:
        ConfigError: The factory cannot be imported or called with `params`.
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
    network.eval()  # which may return nothing where `train` is overridden
    return network


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


def call_factory(factory: str | None, params: Mapping[str, Any]) -> nn.Module:
    build, name = DiffractionNet if factory is None else import_factory(factory), factory or "DiffractionNet"
    given = show_value(dict(params))
    try:
        inspect.signature(build).bind(**params)
    except (TypeError, ValueError) as error:  # a class of C may have no signature
        raise ConfigError(f"model.params must be keyword arguments of {name}, got {given}: {error}") from error
    try:
        network = build(**params)
    except Exception as error:  # of any class, as torch's layers raise for sizes that are none
        if factory is not None:
            raise  # a bug in the user's own code keeps its traceback
        rule = "model.params must suit DiffractionNet and its checkpoint"
        raise ConfigError(f"{rule}, got {given}: {first_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"model.factory must build a torch.nn.Module, got {type(network).__name__} from {factory}")
    return network


def import_factory(factory: str) -> Any:
    module_name, _, name = factory.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a command, unlike `python -m`, does not see the user's own folder
    try:
        with seed_all():  # what is drawn at import is then the same in every process
            return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"model.factory must be importable, got {factory}: {error}") from error


@contextlib.contextmanager
def seed_all(seed: int = 0, others: int = 0) -> Iterator[None]:
    """Seed torch's generator by one number, NumPy's and Python's by another, and leave them as they were."""
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(others)
            random.seed(others)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


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
