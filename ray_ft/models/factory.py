"""What a config names of the user's own code, to build the network or to measure a training loss: found before it is
imported, and checked before it is called.

Its import and its call run code with the rights of the user, so a config is as good as a program. What is checked here
keeps it to what builds networks; it makes no config safe that comes from a stranger.
"""

import contextlib
import importlib
import importlib.util
import inspect
import random
import sys
import sysconfig
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ray_ft.errors import ConfigError, NetworkError, first_line, locate_error, show_value
from ray_ft.files.memory import is_out_of_memory
from ray_ft.models.diffraction_net import DiffractionNet

STANDARD = Path(sysconfig.get_paths()["stdlib"])
GIVEN = "given_in_python:"
GIVEN_MODEL = f"{GIVEN}model"  # how a config says that its network was an object of a process
INSTALLED = {"site-packages", "dist-packages"}
BUILDERS = (
    "a class of torch.nn.Module, a function that says so (-> torch.nn.Module), or a function of your own code, which "
    "is neither Python's nor that of an installed package"
)


Factory = str | Callable[..., nn.Module] | None  # `package.module:callable`, or the callable itself


def call_factory(factory: Factory, params: Mapping[str, Any]) -> nn.Module:
    """Call a factory, or DiffractionNet where it is None.

    Raises:
        ConfigError: It cannot be imported, is nothing that builds a network, or does not take `params`.
    """
    build = import_factory(factory) if isinstance(factory, str) else factory or DiffractionNet
    name = factory if isinstance(factory, str) else getattr(build, "__name__", type(build).__name__)
    given = show_value(dict(params))
    try:
        inspect.signature(build).bind(**params)
    except (TypeError, ValueError) as error:  # a class of C may have no signature
        raise ConfigError(f"model.params must be keyword arguments of {name}, got {given}: {error}") from error
    try:
        network = build(**params)
    except Exception as error:  # of any class, as torch's layers raise for sizes that are none
        if factory is not None or is_out_of_memory(error):
            raise  # a bug in the user's own code keeps its traceback
        rule = "model.params must suit DiffractionNet and its checkpoint"
        raise ConfigError(f"{rule}, got {given}: {first_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"model.factory must build a torch.nn.Module, got {type(network).__name__} from {name}")
    check_kind(network := unwrap(network))
    return network


def unwrap(network: nn.Module) -> nn.Module:
    """Take a network out of what runs it, by whose names nobody calls its parameters."""
    inner = network.module if isinstance(network, nn.DataParallel | DistributedDataParallel) else None
    inner = getattr(network, "_orig_mod", inner)  # of torch.compile, which takes seconds to import
    return unwrap(inner) if isinstance(inner, nn.Module) else network


def check_kind(network: nn.Module) -> None:
    """Refuse what cannot be called with a member's tensors, or loses something there.

    Raises:
        NetworkError: A module is TorchScript, or has a `train` without a mode; or a parameter's gradient has a hook.
    """
    for name, module in network.named_modules():
        place = f"{name or 'the network itself'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise NetworkError(f"a network must be Python code, got TorchScript: {place}; build what it was made from")
        try:
            inspect.signature(module.train).bind(True)
        except TypeError as error:
            rule = "a network must have train(self, mode=True), as torch.nn.Module has it"
            raise NetworkError(f"{rule}, got one that takes no mode in {place}") from error
    for name, parameter in network.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise NetworkError(
                f"hooks on gradients of parameters are not called, as members train copies, got one on {name}; write "
                "what it does into forward, or remove it"
            )


def rest(network: nn.Module) -> nn.Module:
    """Put a network into evaluation mode.

    Raises:
        NetworkError: It raises there, as one by `torch.export` does.
    """
    try:
        network.eval()  # which may return nothing where `train` is overridden
    except Exception as error:  # of any class: it is a user's own code
        rule = "a network must take train(mode) and eval(), as torch.nn.Module does"
        raise NetworkError(f"{rule}, but it raised {locate_error(error)}") from error
    return network


def import_code(path: str, key: str, what: str) -> Any:
    """Import what a key of the config names as `package.module:name`, which must be code and none of Python's own."""
    module_name, _, name = path.partition(":")
    find_code(path, key, what)
    try:
        with seed_all():  # what is drawn at import is then the same in every process
            return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key} must be importable, got {path}: {error}") from error


def import_factory(factory: str) -> Callable[..., nn.Module]:
    build = import_code(factory, "model.factory", BUILDERS)
    if not builds_networks(build):
        raise ConfigError(f"model.factory must be {BUILDERS}; got {factory}, which was not called")
    return build  # type: ignore[no-any-return]


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


def find_code(path: str, key: str = "model.factory", what: str = BUILDERS) -> str:
    """Find the file with which the import of what a key names begins; nothing is imported.

    Raises:
        ConfigError: There is none, or it is part of Python itself, which has no networks and no losses.
    """
    if path == GIVEN_MODEL:
        rule = "a network that was given in Python is named by no config"
        raise ConfigError(f"{rule}, got {key}: {path}; repeat the call of cross_validate with the same out")
    top = path.partition(":")[0].partition(".")[0]
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a command, unlike `python -m`, does not see the user's own folder
    if top in sys.modules:
        found = getattr(sys.modules[top], "__file__", None)
    elif (spec := importlib.util.find_spec(top)) is None:
        raise ConfigError(f"{key} must be importable, got {path}: there is no module {top}")
    else:
        found = spec.origin if spec.has_location else next(iter(spec.submodule_search_locations or ()), None)
    if (found is None and top in sys.stdlib_module_names) or is_standard(found):
        raise ConfigError(f"{key} must be {what}; got {path} of Python itself, which was not imported")
    return found or top


def builds_networks(build: object) -> bool:
    """Whether this may be called: as far as can be told beforehand, it returns a network.

    A function of the user's own needs to say nothing, as its import has run their code anyway. Of the others, only what
    says that it returns a network does not do whatever the arguments in a config may ask for.
    """
    if isinstance(build, type):
        return issubclass(build, nn.Module)
    while isinstance(build, partial):
        build = build.func
    try:
        stated = typing.get_type_hints(build).get("return", Any)
    except Exception:  # of any class: texts in the code of others are evaluated
        stated = Any
    if isinstance(stated, type) and stated not in (Any, object):
        return issubclass(stated, nn.Module)
    return callable(build) and is_own(build)


def is_own(build: object) -> bool:
    """Whether this was written neither in Python itself, nor in an installed package, nor in this one."""
    module = getattr(build, "__module__", None)
    path = getattr(sys.modules.get(str(module)), "__file__", None)
    if path is None:
        return module == "__main__"  # of a notebook; the others are Python's, in C
    return not (str(module).startswith("ray_ft.") or INSTALLED & set(Path(path).parts) or is_standard(path))


def is_standard(path: str | None) -> bool:
    """Whether a file is part of Python itself."""
    return path is not None and Path(path).is_relative_to(STANDARD) and not INSTALLED & set(Path(path).parts)
