"""Cross-validation from Python: a module and arrays in place of files, and a result that a notebook shows.

result = ray_ft.cross_validate(network, (x, y), strategies={"head": "head.*", "all": "*"})
result.table; result.ensemble.predict(new); result.report()
"""

import io
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, update_wrapper
from pathlib import Path
from typing import Any, overload

from rich.console import Console
from torch import nn

from ray_ft import cross_validation
from ray_ft.config import Config, build_config
from ray_ft.cross_validation import Given
from ray_ft.data.sources import HERE
from ray_ft.ensemble import Ensemble
from ray_ft.errors import (
    ConfigError,
    RayFTError,
    RunFolderError,
    show_value,
)
from ray_ft.models import Collate, Factory
from ray_ft.models.factory import GIVEN_MODEL
from ray_ft.python.given import as_factory, find_metric, name_replay, read_data, read_replay, read_strategies
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
TAKEN = (*GIVEN, *COLLATE, "data.groups", "data.stratify", "data.replay")  # whose place arguments take
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
    inline: bool = False,
    console: Console | None = None,
    report: bool = False,
) -> Summary: ...


@overload
def cross_validate(
    model: nn.Module | Callable[[], nn.Module],
    data: Any,
    *,
    strategies: Strategies | Sequence[str] | None = None,
    folds: int = 5,
    seeds: int = 3,
    groups: Any = None,
    stratify: Any = None,
    replay: Any = None,
    objective: str | None = None,
    loss: str | Callable[..., Any] | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    out: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    inline: bool = False,
    progress: bool = True,
) -> CrossValidation: ...


def cross_validate(model: Any, data: Any, *args: Any, **options: Any) -> Any:
    """Cross-validate strategies of fine-tuning a network, and build the ensemble of the lowest.

    Where a run's folder is in progress, or finished, the same call goes on or returns it. With a `Config` and the path
    of a run folder, `ray_ft.cross_validate` runs what the config says, and returns its `Summary`.

    Args:
        model: The pretrained network, or a callable without arguments that builds it. It is not changed.
        data: `(x, y)`: arrays, tensors, pandas frames or lists, a sample a row; or a `torch.utils.data.Dataset` of
            pairs.
        *args: With a `Config`, what follows the folder: `inline`, the `console`, and whether to write the `report`.
        strategies: What learns, by name: a pattern of parameter names (`"head.*"`), several of them, or a mapping as in
            a config file. Without it the network says some: from the last layer to everything, and ridge regression.
        folds: Number of parts that are held out in turn.
        seeds: Number of trainings of each fold.
        groups: A label for each sample; samples of one stay in one fold.
        stratify: A class or number for each sample, which the folds share evenly.
        replay: Samples of the pretraining for a share of each step: `(x, y)`, or `(x, None)` for the network's answers.
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
    replay: Any = None,
    objective: str | None = None,
    loss: Any = None,
    collate: Any = None,
    out: str | Path | None = None,
    options: Any = None,
    inline: bool = False,
    progress: bool = True,
) -> CrossValidation:
    check_arguments(options, collate, out)
    arrays, own = read_data(data, groups, stratify, collate is not None), loss if callable(loss) else None
    given = Given(as_factory(model), arrays, own, collate, replay if replay is None else read_replay(replay))
    values = {"cv.folds": folds, "cv.seeds": seeds, "cv.metric": find_metric(objective, arrays.targets)}
    values["training.loss"] = None if own else loss
    config = write_config(values, given, strategies, options or {})
    plain = False if Console().is_jupyter else None  # its output says that it is a terminal, and shows lines alone
    console = Console(highlight=False, quiet=not progress, force_jupyter=False, force_terminal=plain)
    return (
        run_temporarily(config, given, inline, console) if out is None else run_in(out, config, given, inline, console)
    )


update_wrapper(cross_validate, cross_validate_module, [])  # whose signature a notebook shows


def check_arguments(options: Any, collate: Any, out: Any) -> None:
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(f"options must be a mapping from keys to values, got {type(options).__name__}")
    if collate is not None and not callable(collate):
        raise ConfigError(f"collate must be a function of a list of samples, got {show_value(collate)}")
    if out is not None and (is_uri(out) or not isinstance(out, str | Path)):
        raise ConfigError(f"out must be a folder, got {show_value(out)}; name one that all nodes share")


def run_in(out: str | Path, config: Config, given: Given, inline: bool, console: Console) -> CrossValidation:
    folder = Path(out).expanduser().absolute()  # which stays where it is when the process goes elsewhere
    summary = cross_validation.cross_validate(config, folder, inline, console, True, given)
    return CrossValidation(summary, folder, given.factory, given.collate)


def run_temporarily(config: Config, given: Given, inline: bool, console: Console) -> CrossValidation:
    """Run in a folder that goes with the result, or with the process if that ends before."""
    temporary = Path(tempfile.mkdtemp(prefix="ray-ft-"))
    try:
        summary = cross_validation.cross_validate(config, temporary / "run", inline, console, given=given)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, RayFTError) and str(temporary) in str(error):  # which is no more to be looked into
            kept = [line for line in str(error).splitlines() if str(temporary) not in line]
            error.args = ("\n".join([*kept, "name a folder by out, where candidates/*/error.txt tells more"]),)
        raise
    found = CrossValidation(summary, temporary / "run", given.factory, given.collate)
    weakref.finalize(found, shutil.rmtree, temporary, ignore_errors=True)
    return found


def write_config(values: Mapping[str, Any], given: Given, strategies: Any, options: Mapping[str, Any]) -> Config:
    """Write the config of a run whose network and data are given."""
    own = read_strategies(strategies)
    columns = [key for key in ("groups", "stratify") if getattr(given.arrays, key) is not None]
    named = {
        **GIVEN,
        **(COLLATE if given.collate else {}),
        **{f"data.{key}": f"{key} {HERE}" for key in columns},
        **({"data.replay": name_replay(given.replayed)} if given.replayed else {}),
        "strategies": own,
        "cv.strategies": list(own) or None,
    }
    config = build_config({**named, **values, **options})
    for section, name in (key.split(".") for key in TAKEN):
        if (found := getattr(getattr(config, section), name)) != named.get(f"{section}.{name}"):
            rule = f"{section}.{name} is {HERE}, so it can be no option too"
            raise ConfigError(f"{rule}, got {show_value(found)}; give it as an argument")
    return config
