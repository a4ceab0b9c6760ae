"""Cross-validation from Python: a module and arrays in place of files, and a result that a notebook shows.

result = ray_ft.cross_validate(network, (x, y), strategies={"head": "head.*", "all": "*"})
result.table; result.ensemble.predict(new); result.report()
"""

import inspect
import io
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, update_wrapper
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Shaped
from rich.console import Console
from torch import nn
from torch.utils.data import Dataset

from ray_ft import cross_validation
from ray_ft.config import Config, build_config
from ray_ft.cross_validation import Given
from ray_ft.data.objects import as_array, check_order, name_columns
from ray_ft.data.ragged import take_inputs
from ray_ft.data.samples import Arrays
from ray_ft.data.sources import HERE
from ray_ft.ensemble import Ensemble
from ray_ft.errors import ConfigError, DataError, NetworkError, RunFolderError, first_line, show_value, suggest
from ray_ft.models import Collate, Factory, call_as_one, find_last_layer
from ray_ft.models.factory import GIVEN_MODEL, call_factory, check_kind, rest, unwrap
from ray_ft.objectives import METRICS
from ray_ft.python.names import name_arguments
from ray_ft.report.page import write_report
from ray_ft.report.terminal import render_findings
from ray_ft.results.summary import Summary
from ray_ft.runs.folder import RunFolder
from ray_ft.runs.storage import is_uri

GIVEN = {  # what a config says of what it does not name
    "model.factory": GIVEN_MODEL,
    "data.inputs": f"inputs {HERE}",
    "data.targets": f"targets {HERE}",
}
COLLATE = {"data.collate": "given_in_python:collate"}
TAKEN = (*GIVEN, *COLLATE, "data.groups", "data.stratify")  # whose place arguments take
OBJECTIVES = {"regression": "mse", "classification": "log_loss", "multilabel": "multilabel_log_loss"}
WIDTH = 130  # characters
PAGE = '<pre style="line-height: 1.3; overflow-x: auto">{code}</pre>'
Strategies = Mapping[str, str | Sequence[str] | Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """A finished run.

    Attributes:
        summary: What was found, as `summary.json` has it.
        folder: The run folder.
        factory: What builds the pretrained network.
        collate: What makes batches of samples.
    """

    summary: Summary
    folder: Path
    factory: Factory
    collate: Collate = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: the ensemble, as the folder may be gone, and not what has built the network."""
        return {**vars(self), "ensemble": self.ensemble, "factory": None, "collate": None}

    def find_folder(self) -> Path:
        if self.folder.is_dir():
            return self.folder
        rule = "the folder of a run must be there, and a temporary one goes with its result"
        raise RunFolderError(f"{rule}, got {self.folder}, which is gone; name one that stays by out")

    @property
    def table(self) -> Any:
        """One row a strategy and baseline, best first, as a `pandas.DataFrame`; its index is their names."""
        return self.summary.leaderboard().set_index("strategy")

    @cached_property
    def ensemble(self) -> Ensemble:
        """The ensemble of the lowest strategy's members."""
        return Ensemble.load(self.find_folder(), factory=self.factory, collate=self.collate)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report: one HTML file, in the run folder or, as a copy, at `path`; return where it is.

        Raises:
            RunFolderError: The run's folder is gone or not writable, there is a file at `path`, or none can be there.
        """
        page = write_report(self.find_folder())
        if path is None:
            return page
        path = Path(path).expanduser()
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(page.read_text(encoding="utf-8"))
        except OSError as error:
            rule = "a copy of the report must be a new file, in a folder that is there"
            raise RunFolderError(f"{rule}, got {path}: {error.strerror}; name another path") from error
        return path

    def __repr__(self) -> str:
        """The table and the winner, as the command prints them."""
        return self.draw().export_text()

    def _repr_html_(self) -> str:
        return self.draw().export_html(inline_styles=True, code_format=PAGE)

    def draw(self) -> Console:
        """Print the table and the winner on paper that can be exported."""
        console = Console(width=WIDTH, file=io.StringIO(), record=True, force_jupyter=False, highlight=False)
        console.print(render_findings(self.summary, RunFolder(self.folder)))
        return console


@overload
def cross_validate(
    model: Config,
    data: str | Path | RunFolder,
    inline: bool = ...,
    console: Console | None = ...,
    report: bool = ...,
) -> Summary: ...


@overload
def cross_validate(
    model: nn.Module | Callable[[], nn.Module],
    data: Any,
    *,
    strategies: Strategies | Sequence[str] | None = ...,
    folds: int = ...,
    seeds: int = ...,
    groups: Any = ...,
    stratify: Any = ...,
    objective: str | None = ...,
    loss: str | Callable[..., Any] | None = ...,
    collate: Callable[[list[Any]], Any] | None = ...,
    out: str | Path | None = ...,
    options: Mapping[str, Any] | None = ...,
    inline: bool = ...,
    progress: bool = ...,
) -> CrossValidation: ...


def cross_validate(model: Any, data: Any, *args: Any, **options: Any) -> Any:
    if isinstance(model, Config):
        return cross_validation.cross_validate(model, data, *args, **options)
    with name_arguments(options.get("options") or ()):
        return cross_validate_module(model, data, *args, **options)


def cross_validate_module(
    model: Any,
    data: Any,
    *,
    strategies: Any = None,
    folds: int = 5,
    seeds: int = 3,
    groups: Any = None,
    stratify: Any = None,
    objective: str | None = None,
    loss: Any = None,
    collate: Any = None,
    out: str | Path | None = None,
    options: Any = None,
    inline: bool = False,
    progress: bool = True,
) -> CrossValidation:
    """Cross-validate strategies of fine-tuning a network, and build the ensemble of the lowest.

    Where a run's folder is in progress, or finished, the same call goes on or returns it. With a `Config` and the path
    of a run folder, `ray_ft.cross_validate` runs what the config says, and returns its `Summary`.

    Args:
        model: The pretrained network, or a callable without arguments that builds it. It is not changed.
        data: `(x, y)`: arrays, tensors, pandas frames or lists, a sample a row; or a `torch.utils.data.Dataset` of
            pairs.
        strategies: What learns, by name: a pattern of parameter names (`"head.*"`), several of them, or a mapping as in
            a config file. Without it: the last layer, everything, and ridge regression in place of the last layer.
        folds: Number of parts that are held out in turn.
        seeds: Number of trainings of each fold.
        groups: A label for each sample; samples of one stay in one fold.
        stratify: A class or number for each sample, which the folds share evenly.
        objective: `regression`, `classification`, `multilabel`, or a metric of `cv.metric`. Without it, numbers with a
            fraction are regressed, and text and booleans are classes; whole numbers may be either, so it is needed.
        loss: What training minimises, apart from the score: a name of `training.loss`, or a function of outputs and
            targets to the loss of each sample. Without it, the objective's own.
        collate: For graphs and sequences, where x is a list of samples: a function of such a list, of tensors, to what
            the network is called with, a mapping by name, a tuple by place, or one argument.
        out: The run folder, which lets an interrupted call go on. Without it, a temporary one goes with the result.
        options: Values by key of a config file (`{"search.minutes": 10, "compute.address": "auto"}`).
        inline: Train in this process, without Ray.
        progress: Whether to show it.

    Raises:
        UserError: What was given breaks a rule, or the folder holds another run.
        RunError: No strategy has a completed candidate, or a file could not be written.
    """
    check_arguments(options, collate, out)
    arrays, own = read_data(data, groups, stratify, collate is not None), loss if callable(loss) else None
    given = Given(as_factory(model), arrays, own, collate)
    values = {"cv.folds": folds, "cv.seeds": seeds, "cv.metric": find_metric(objective, arrays.targets)}
    values["training.loss"] = None if own else loss
    config = write_config(values, given, strategies, options or {})
    plain = False if Console().is_jupyter else None  # its output says that it is a terminal, and shows lines alone
    console = Console(highlight=False, quiet=not progress, force_jupyter=False, force_terminal=plain)
    if out is None:
        return run_temporarily(config, given, inline, console)
    folder = Path(out).expanduser().absolute()  # which stays where it is when the process goes elsewhere
    summary = cross_validation.cross_validate(config, folder, inline, console, True, given)
    return CrossValidation(summary, folder, given.factory, given.collate)


update_wrapper(cross_validate, cross_validate_module, ["__doc__"])  # its signature and text are what a notebook shows


def check_arguments(options: Any, collate: Any, out: Any) -> None:
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(f"options must be a mapping from keys to values, got {type(options).__name__}")
    if collate is not None and not callable(collate):
        raise ConfigError(f"collate must be a function of a list of samples, got {show_value(collate)}")
    if out is not None and (is_uri(out) or not isinstance(out, str | Path)):
        raise ConfigError(f"out must be a folder, got {show_value(out)}; name one that all nodes share")


def run_temporarily(config: Config, given: Given, inline: bool, console: Console) -> CrossValidation:
    """Run in a folder that goes with the result, or with the process if that ends before."""
    temporary = Path(tempfile.mkdtemp(prefix="ray-ft-"))
    try:
        summary = cross_validation.cross_validate(config, temporary / "run", inline, console, given=given)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    found = CrossValidation(summary, temporary / "run", given.factory, given.collate)
    weakref.finalize(found, shutil.rmtree, temporary, ignore_errors=True)
    return found


def write_config(values: Mapping[str, Any], given: Given, strategies: Any, options: Mapping[str, Any]) -> Config:
    """Write the config of a run whose network and data are given."""
    own = read_strategies(strategies, given, options.get("model.output"))
    columns = [key for key in ("groups", "stratify") if getattr(given.arrays, key) is not None]
    named = {
        **GIVEN,
        **(COLLATE if given.collate else {}),
        **{f"data.{key}": f"{key} {HERE}" for key in columns},
        "strategies": own,
        "cv.strategies": list(own or strategies),
    }
    config = build_config({**named, **values, **options}, shipped=not own)
    for section, name in (key.split(".") for key in TAKEN):
        if (found := getattr(getattr(config, section), name)) != named.get(f"{section}.{name}"):
            rule = f"{section}.{name} is {HERE}, so it can be no option too"
            raise ConfigError(f"{rule}, got {show_value(found)}; give it as an argument")
    return config


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
        return Copies(copy_module(model).cpu())
    except Exception as error:  # of any class, as of a tensor that was computed and kept
        rule = "a module that is given must be one that copy.deepcopy copies"
        raise NetworkError(f"{rule}, but {first_line(error)}; give a function that builds it") from error


def copy_module(model: nn.Module) -> nn.Module:
    """Copy a module, and what passes have left in it without its history, as `deepcopy` alone refuses."""
    left = [value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in left if not tensor.is_leaf})


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


def read_strategies(strategies: Any, given: Given, output: str | int | None) -> dict[str, Any]:
    """Bring strategies into the form of a config file."""
    if strategies is None:
        assert given.arrays is not None
        network = call_as_one(rest(call_factory(given.factory, {})), given.arrays.layout, output, given.collate)
        layer = find_last_layer(network, given.arrays.inputs[:1].astype(np.float32))
        last = [f"{layer}.*"] if layer else ["*"]
        learned = {
            "last_layer": {"description": "the last layer", "train": last},
            "everything": {"description": "every parameter", "train": ["*"]},
        }
        ridge = {"description": "closed form, in place of the last layer", "fit": "ridge", "train": last}
        return learned if given.collate else {**learned, "ridge": ridge}  # without features, as it runs whole
    if isinstance(strategies, list | tuple) and not any(set(str(name)) & set("*.") for name in strategies):
        return {}  # names of those that are shipped, and no patterns
    if not isinstance(strategies, Mapping):
        rule = "strategies must be a mapping from names to patterns of parameter names"
        raise ConfigError(f"{rule}, got {type(strategies).__name__}")
    return {str(name): read_strategy(given) for name, given in strategies.items()}


def read_strategy(given: object) -> Any:
    if isinstance(given, str):
        return {"train": [given]}
    if isinstance(given, Mapping):
        return deepcopy(dict(given))  # into which options are written
    return {"train": list(given)} if isinstance(given, Iterable) else given
