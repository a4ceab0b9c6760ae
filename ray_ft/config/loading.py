"""A config from YAML, overrides and the shipped strategies; all of its problems are told at once."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ray_ft.config.hyperparameters import FITS
from ray_ft.config.sections import AS_WRITTEN, AUTO, Config
from ray_ft.config.strategies import GradientStage, RidgeStage, StrategyConfig
from ray_ft.config.yaml_text import read_yaml
from ray_ft.domains.diffraction import DECODER_PATTERNS, ENCODER_PATTERNS, STRATEGIES_FILE
from ray_ft.errors import ConfigError, first_line, shorten, show_value, suggest

DEMO_FOLDER = Path(__file__).parents[1] / "demo"
MAX_PROBLEMS, MAX_LINE = 30, 400


def load_config(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a config file, or the embedded demo's, under overrides.

    Args:
        path: A YAML file; the embedded demo where it is None. Paths in it are relative to the working folder.
        overrides: Values by dotted key (`cv.folds`), which replace the file's.

    Raises:
        ConfigError: The file is missing or no YAML mapping, or any key or value in it is not valid;
            the message lists all of them.
    """
    path = None if path is None else Path(path)
    raw = read_yaml(path or DEMO_FOLDER / "config.yaml")
    if path is None:
        for section, key in (("model", "checkpoint"), ("data", "inputs"), ("data", "targets")):
            raw[section][key] = str(DEMO_FOLDER / raw[section][key])
    elif "name" not in raw:
        raw["name"] = re.sub(r"[^A-Za-z0-9]", "_", path.stem).lstrip("_0123456789")[:40] or "run"
    override(raw, overrides)
    add_strategies(raw)
    return validate(raw, str(path or "the demo with these options"))


def build_config(values: Mapping[str, Any], shipped: bool = False) -> Config:
    """Build a config from values by dotted key alone; with the shipped strategies where these fit, if it is asked to.

    Raises:
        ConfigError: A key or value is not valid.
    """
    raw: dict[str, Any] = {}
    override(raw, values)
    if shipped:
        add_strategies(raw)
    return validate(raw, "what was given")


def reload_config(path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read the config that a run folder keeps, which names everything, under overrides."""
    raw = read_yaml(path)
    override(raw, overrides)
    return validate(raw, str(path))


def fill_strategies(config: Config, strategies: Mapping[str, Any]) -> Config:
    """Return a config that named no strategies with these.

    Raises:
        ConfigError: What else it says does not go with them.
    """
    return validate({**config.model_dump(mode="json"), "strategies": dict(strategies)}, "the config")


def validate(raw: dict[str, Any], source: str) -> Config:
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        problems = list(dict.fromkeys(shorten(line, MAX_LINE) for line in describe_problems(error, Config, raw)))
        if len(problems) > MAX_PROBLEMS:
            problems[MAX_PROBLEMS:] = [f"and {len(problems) - MAX_PROBLEMS} more"]
        lines = "\n".join(f"  {line}" for line in problems)
        raise ConfigError(f"{source} is not a valid config\n{lines}") from error
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise ConfigError(f"{source} is not a valid config: a text must be Unicode: {first_line(error)}") from error


def override(raw: dict[str, Any], overrides: Mapping[str, Any] | None) -> None:
    for dotted, value in (overrides or {}).items():
        *parents, key = dotted.split(".")
        section = raw
        for parent in parents:
            section[parent] = {} if section.get(parent) is None else section[parent]
            if not isinstance(section[parent], dict):
                rule = "an override names a key inside sections"
                raise ConfigError(
                    f"{rule}, got {dotted}, but {parent} is {show_value(section[parent])}; write it out in a file"
                )
            section = section[parent]
        section[key] = value


def read_shipped() -> dict[str, Any]:
    """Read the shipped strategies, as a config file has them."""
    return read_yaml(STRATEGIES_FILE)


def add_strategies(raw: dict[str, Any]) -> None:
    """Put the shipped strategies, and the one that the freeze flags describe, under the user's own.

    One that says itself what it trains has nothing of a shipped one of its name. Strategies for a network of the user's
    own are all that there are; where there are none, or `auto` is asked for, the network itself will say some.
    """
    own, model, training, cv = raw.get("strategies") or {}, raw.get("model"), raw.get("training"), raw.get("cv")
    auto, known = own == AUTO, read_shipped()
    own = {} if auto else own
    if not isinstance(own, dict):
        return  # validation says so
    named = cv.get("strategies") if isinstance(cv, dict) else None
    alone = auto or (isinstance(model, dict) and model.get("factory"))
    shippable = [name for name in known if name != RIDGE]  # of that name the network has its own
    if auto or not isinstance(named, list | tuple) or (not own and any(name not in shippable for name in named)):
        named = ()  # the network itself will say them
    shipped = {name: strategy for name, strategy in known.items() if not alone or name in named}
    if isinstance(training, dict) and {"freeze_encoder", "freeze_decoder"} & training.keys():
        flags = (bool(training.get(key)) for key in ("freeze_encoder", "freeze_decoder"))
        shipped[AS_WRITTEN] = describe_flags(known, *flags)
    raw["strategies"] = shipped | {
        name: strategy
        if not isinstance(strategy, dict) or {"stages", "train"} & strategy.keys()
        else known.get(name, {}) | strategy
        for name, strategy in own.items()
    }


def describe_flags(shipped: dict[str, Any], freeze_encoder: bool, freeze_decoder: bool) -> dict[str, Any]:
    """Build the strategy of a file that freezes by flags, with the ranges of the shipped one that is nearest."""
    nearest = "full" if not freeze_encoder else "head" if freeze_decoder else "decoder_head"
    freeze = ENCODER_PATTERNS * freeze_encoder + DECODER_PATTERNS * freeze_decoder
    base: dict[str, Any] = shipped[nearest]
    return base | {"description": "what the freeze flags leave", "train": ("*",), "freeze": freeze}


RIDGE = "ridge"
KINDS = {
    "model_type": "it should be a section of keys",
    "dict_type": "it should be a section of keys",
    "tuple_type": "it should be a list",
    "list_type": "it should be a list",
    "string_type": "it should be text",
    "too_short": "it should have one entry or more",
    "int_type": "it should be a whole number",
}


def describe_problems(
    error: ValidationError, model: type[BaseModel], raw: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """Say what is wrong with each key that a model refused, of what `raw` has of it."""
    places = [problem["loc"] for problem in error.errors()]
    for problem in error.errors():
        own = problem["loc"]
        if problem["type"] == "too_short" and any(place[: len(own)] == own != place for place in places):
            continue  # the stage is missing only because of what is said of its keys
        place = name_place(own, raw or {})
        key = ".".join(map(str, place))
        if problem["type"] == "extra_forbidden":
            name, known = str(place[-1]), list_keys(model, place[:-1])
            of_other = name in known and own[-2] in FITS  # another way to fit has it
            what = f"it is no key of fit: {own[-2]}; leave it out" if of_other else f"unknown key{suggest(name, known)}"
            beside_stages = name in known and not of_other
            yield f"{key}: {'it is a key of a stage; write it in the stages that it is for' if beside_stages else what}"
        elif problem["type"] == "missing":
            yield f"{key}: missing"
        elif problem["type"] == "union_tag_invalid":
            yield f"{key}.fit: it should be {' or '.join(FITS)}, got {show_value(problem['ctx']['tag'])}"
        elif problem["type"] == "value_error":
            yield from (f"{key}: {line}" if key else line for line in str(problem["ctx"]["error"]).split("\n"))
        else:
            message = KINDS.get(problem["type"]) or problem["msg"].replace("Input should", "it should")
            given = "null" if problem["input"] is None else show_value(problem["input"])
            yield f"{key}: {message}, got {given}"


def name_place(location: tuple[Any, ...], raw: Mapping[str, Any]) -> list[Any]:
    """Name a key as the file has it, without what the sections put between; of several stages, by number from 1."""
    place: list[Any] = []
    content: Any = raw
    for before, part in pairwise((None, *location)):
        if before == "stages" and isinstance(part, int):
            place += [f"stage {part + 1}"] if isinstance(content, Mapping) and "stages" in content else []
        elif part != "stages" and not isinstance(part, int) and not (isinstance(before, int) and part in FITS):
            place.append(part)
            content = content.get(part) if isinstance(content, Mapping) else None
    return place


def list_keys(model: type[BaseModel], place: Sequence[Any]) -> list[str]:
    """List the keys that a section knows, by its path."""
    for part in place:
        if part == "strategies":
            stages = (GradientStage, RidgeStage, StrategyConfig)
            return list(dict.fromkeys(name for kind in stages for name in kind.model_fields))
        annotation = model.model_fields[part].annotation
        nested = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        model = next((kind for kind in nested if issubclass(kind, BaseModel)), model)
    return list(model.model_fields)
