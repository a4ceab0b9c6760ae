"""What a caller gives, brought into the package's terms: a network, samples, an objective and strategies."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Shaped
from torch import nn
from torch.utils.data import Dataset

from ray_ft.config import AUTO, ReplaySection, read_shipped
from ray_ft.data.objects import as_array, check_order, name_columns
from ray_ft.data.ragged import take_inputs
from ray_ft.data.samples import Arrays
from ray_ft.data.sources import HERE
from ray_ft.errors import ConfigError, DataError, NetworkError, first_few, first_line, show_value, suggest
from ray_ft.models.factory import check_kind, unwrap
from ray_ft.objectives import METRICS
from ray_ft.search.replay import ReplayArrays
from ray_ft.split.whole import copy_network

OBJECTIVES = {"regression": "mse", "classification": "log_loss", "multilabel": "multilabel_log_loss"}


def as_factory(model: object) -> Callable[[], nn.Module]:
    """Return what builds a network: the callable itself, or copies of a module, which stays as it is."""
    if not isinstance(model, nn.Module):
        if not callable(model):
            rule = "the model must be a torch.nn.Module, or a callable that builds one"
            raise NetworkError(f"{rule}, got {type(model).__name__}")
        try:
            inspect.signature(model).bind()
        except TypeError as error:
            raise NetworkError(f"a callable that builds a model takes no arguments, got {error}; bind them") from error
        return model
    check_kind(model := unwrap(model))
    try:
        return Copies(copy_network(model).cpu())
    except Exception as error:  # of any class, as of a tensor that was computed and kept
        rule = "a module that is given must be one that copy.deepcopy copies"
        raise NetworkError(f"{rule}, but {first_line(error)}; give a function that builds it") from error


@dataclass(frozen=True)
class Copies:
    """A factory of copies of a module."""

    module: nn.Module

    def __call__(self) -> nn.Module:
        return deepcopy(self.module)


def read_data(data: Any, groups: Any = None, stratify: Any = None, by_sample: bool = False) -> Arrays:
    """Turn what libraries hold samples in into arrays.

    Raises:
        DataError: They are no pair of such, or no dataset of pairs.
    """
    if isinstance(data, Dataset):
        data = stack_dataset(data, by_sample)
    if not (isinstance(data, tuple | list) and len(data) == 2):
        raise DataError(f"the data must be (x, y), or a torch Dataset of such pairs, got {type(data).__name__}")
    x, y = data
    parts = {f"x[{name!r}]": part for name, part in x.items()} if isinstance(x, Mapping) else {"x": x}
    parts |= {f"x[{place}]": part for place, part in enumerate(x)} if isinstance(x, tuple) else {}
    check_order({**parts, "y": y, "groups": groups, "stratify": stratify})
    groups, stratify = (
        None if column is None else as_array(column, name)
        for name, column in (("groups", groups), ("stratify", stratify))
    )
    inputs, layout = take_inputs(x, "inputs", by_sample)
    named = ",".join(part.name for part in layout) or name_columns(x)  # as a file of new samples has them
    return Arrays(inputs, as_array(y, "targets"), groups, stratify, (named, name_columns(y)), layout)


def read_replay(replay: Any) -> ReplayArrays:
    """Turn samples that are replayed into arrays; without y, the network says their targets.

    Raises:
        DataError: They are no such pair.
    """
    if not (isinstance(replay, tuple | list) and len(replay) == 2):
        raise DataError(f"what is replayed must be (x, y), or (x, None), got {type(replay).__name__}")
    x, y = replay
    inputs, layout = take_inputs(x, "replayed inputs")
    return ReplayArrays(inputs, None if y is None else as_array(y, "replayed targets"), layout)


def name_replay(given: ReplayArrays) -> ReplaySection:
    """What a config says of it."""
    targets = None if given.targets is None else f"replayed targets {HERE}"
    return ReplaySection(inputs=f"replayed inputs {HERE}", targets=targets)


def stack_dataset(data: Dataset[Any], by_sample: bool = False) -> tuple[Any, Any]:
    n = getattr(data, "__len__", None)
    if n is None:
        raise DataError("a dataset must know its length, got an iterable one; give (x, y)")
    pairs = [data[i] for i in range(n())]
    if not pairs or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise DataError("a dataset must hold pairs (x, y), and at least one")
    x, y = zip(*pairs, strict=True)
    if by_sample:
        return list(x), stack(y)
    if isinstance(x[0], Mapping):
        return {name: stack([own[name] for own in x]) for name in x[0]}, stack(y)
    if isinstance(x[0], tuple):
        return tuple(stack([own[i] for own in x]) for i in range(len(x[0]))), stack(y)
    return stack(x), stack(y)


def stack(samples: Sequence[Any]) -> Shaped[np.ndarray, "..."]:
    try:
        return np.stack([as_array(sample, "a sample") for sample in samples])
    except ValueError as error:
        raise DataError(f"the samples of a dataset must have one shape: {first_line(error)}") from error


def find_metric(objective: str | None, targets: Shaped[np.ndarray, "..."]) -> str:
    """Find the metric of an objective, or of these targets.

    Raises:
        ConfigError: There is no such objective, or the targets may be of several.
    """
    if objective is not None:
        known = [*OBJECTIVES, *METRICS]
        if objective not in known:
            near = suggest(str(objective), known)
            raise ConfigError(f"an objective is one of {', '.join(known)}, got {show_value(objective)}{near}")
        return OBJECTIVES.get(objective, objective)
    kind = targets.dtype.kind
    if kind in "iu" or (kind == "f" and not (np.nan_to_num(targets, posinf=0.0, neginf=0.0) % 1).any()):
        raise ConfigError(
            "whole numbers may be classes or quantities, so an objective must be named, got none; "
            'say objective="classification" or objective="regression"'
        )
    if kind == "f":
        return "mse"
    return "multilabel_log_loss" if targets.ndim == 2 and targets.shape[1] > 1 else "log_loss"


def read_strategies(strategies: Any) -> dict[str, Any]:
    """Bring strategies into the form of a config file; none where the network is to say some."""
    if strategies is None or strategies == AUTO:
        return {}
    if isinstance(strategies, list | tuple | Mapping) and not strategies:
        raise ConfigError("strategies must be some, got none; leave them out to have the network say them")
    if isinstance(strategies, list | tuple):
        known = read_shipped()
        if unknown := [name for name in strategies if name not in known]:
            rule = f"a list of strategies names shipped ones, {first_few(list(known), 8)}"
            told = f"got {show_value(unknown[0])}{suggest(str(unknown[0]), known)}"
            raise ConfigError(f"{rule}, {told}; write your own as a mapping from names to patterns")
        return {name: known[name] for name in strategies}
    if not isinstance(strategies, Mapping):
        rule = "strategies must be a mapping from names to patterns of parameter names"
        raise ConfigError(f"{rule}, or {AUTO}, got {show_value(strategies)}")
    return {str(name): read_strategy(given) for name, given in strategies.items()}


def read_strategy(given: object) -> Any:
    if isinstance(given, str):
        return {"train": [given]}
    if isinstance(given, Mapping):
        return deepcopy(dict(given))  # into which options are written
    return {"train": list(given)} if isinstance(given, Iterable) else given
