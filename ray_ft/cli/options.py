"""The options that several commands share, and those that change a config."""

from collections.abc import Callable, Sequence
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ray_ft.errors import ConfigError, shorten

if TYPE_CHECKING:
    from ray_ft.config import Config

Command = Callable[..., None]
Source = Annotated[Path, Argument(metavar="RUN_OR_ENSEMBLE", help="Folder of a finished run, or of an ensemble.")]
RunArgument = Annotated[Path, Argument(help="Folder of a finished run.")]
ADDRESS = "Ray cluster to join: auto, or host:port. Without it, Ray is started on this machine."
AddressOption = Annotated[str | None, Option(help=ADDRESS)]
FORCE = "Replace a file that exists. Files that this command or the run reads are never replaced."
ForceOption = Annotated[bool, Option("--force", help=FORCE)]
INLINE = "Train in this process and not by Ray, so that a debugger can follow."
InlineOption = Annotated[bool, Option("--inline", help=INLINE)]
JsonOption = Annotated[bool, Option("--json", help="Print one JSON object instead of text, and progress to stderr.")]
QuietOption = Annotated[bool, Option("--quiet", "-q", help="Print the result alone, without progress.")]
VerboseOption = Annotated[bool, Option("--verbose", "-v", help="Print a line for each epoch too, to stderr.")]
LEVEL = "Confidence level of the intervals, between 0.5 and 1. Without it, that of the ensemble holds."
LevelOption = Annotated[float | None, Option(help=LEVEL)]
TRUST = "Run the code of the network that the folder names if it is needed. Code can do anything: trust only your own."
TrustOption = Annotated[bool, Option("--trust", help=TRUST)]

CONFIG = "YAML file of what to run. Without it, the embedded demo is run."
ConfigOption = Annotated[Path | None, Option("--config", "-c", help=CONFIG)]
SET = "Value in place of one in the config, such as training.lr=3e-4. The option may be repeated."
SetOption = Annotated[list[str] | None, Option("--set", help=SET, metavar="KEY=VALUE")]
CONFIG_OPTIONS: dict[str, tuple[Any, str]] = {  # by the key of the config that each sets, whose last part is its name
    "cv.folds": (int, "Number of folds (cv.folds, 5 by default)."),
    "cv.seeds": (int, "Number of trainings of each fold, by different seeds (cv.seeds, 3 by default)."),
    "cv.repeats": (int, "Number of times that the folds are dealt (cv.repeats, 1 by default)."),
    "cv.protocol": (
        str,
        "Where the epoch and the candidate of a fold are chosen: crossfit, on the other folds, or nested, on an inner "
        "part of its training part (cv.protocol, crossfit by default).",
    ),
    "cv.strategies": (str, "Strategies to compare, comma-separated (cv.strategies, all by default)."),
    "search.candidates": (int, "Number of candidates of each strategy (search.candidates; 6, or 2 by the guide)."),
    "search.minutes": (float, "Minutes of the search, an equal share for each strategy (search.minutes)."),
    "search.method": (
        str,
        "best looks for the best of each strategy; guide draws from its ranges as they are written (search.method, "
        "best by default).",
    ),
    "data.groups": (
        str,
        "File (x.npy, x.csv::plate …) with the group of each sample; a group stays in one fold (data.groups).",
    ),
    "data.stratify": (
        str,
        "File (x.npy, x.csv::kind …) with a class or number of each sample, which folds share evenly (data.stratify).",
    ),
}


def configured(command: Command) -> Command:
    """Give a command `--config`, `--set` and the options above, which make the config that it takes first.

    `--address` changes the config too, but is an option of the command's own, as not all have it.
    """
    _, *own = signature(command).parameters.values()
    names = {key: key.partition(".")[2] for key in CONFIG_OPTIONS} | {"search.method": "search"}

    def run(config: Path | None, overrides: list[str] | None, **given: Any) -> None:
        options = {key: given.pop(name) for key, name in names.items()}
        options["compute.address"] = given.pop("address", None)
        if options["cv.strategies"] is not None:
            options["cv.strategies"] = read_names("--strategies", options["cv.strategies"])
        command(load(config, {key: value for key, value in options.items() if value is not None}, overrides), **given)

    shared = {names[key]: Annotated[kind | None, Option(help=text)] for key, (kind, text) in CONFIG_OPTIONS.items()}
    kinds = {"config": ConfigOption, "overrides": SetOption} | shared
    form = Parameter.POSITIONAL_OR_KEYWORD
    parameters = [Parameter(name, form, default=None, annotation=kind) for name, kind in kinds.items()]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = Signature(parameters + own)  # type: ignore[attr-defined]  # which typer reads
    return run


def read_names(option: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ConfigError(f"{option} takes names, comma-separated, got {text!r}; or leave it out")
    return names


def load(path: Path | None, options: dict[str, Any], overrides: Sequence[str] | None) -> "Config":
    from ray_ft.config import load_config, parse_yaml

    if "search.candidates" in options:
        options["cv.candidates"] = None  # its other name, which the file may use
    for override in overrides or ():
        key, equals, value = override.partition("=")
        if not (key and equals):
            raise ConfigError(f"--set takes KEY=VALUE, got {override}")
        options[key] = parse_yaml(value, f"the value of --set must be YAML, got {shorten(override)}")
    return load_config(path, options)
