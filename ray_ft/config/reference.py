"""Every key of a config in words, from the sections themselves: for `ray-ft config` and docs/config.md."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ray_ft.config.hyperparameters import FITS, list_declared
from ray_ft.config.sections import Config
from ray_ft.config.strategies import AdapterSection, GradientStage, RidgeStage, StrategyConfig
from ray_ft.errors import ConfigError, suggest

PLACE = "strategies.NAME"
KINDS = {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "mapping", tuple: "list"}
PAGE = """# Every key of a config

The sections of a YAML file, and their keys. `ray-ft config KEY` prints the same for one key or section, and `--set
KEY=VALUE` gives a value on the command line. A file is named as it is seen from where the command is run;
`file.npz::key` is an array in a file. A module of your own is looked for there too, then where Python looks. This page
is made by `python -m ray_ft.config.reference`.

A *range* is one value, which fixes a hyperparameter; `[low, high]`, whose middle is tried first and which the search
may leave; or `{low: .., high: .., fixed: true}`, which it may not leave ([search.md](search.md)). Where no `lr` is
given there is no such first trial, and other ranges begin at the low end of where they may lie (no weight decay,
batches of 8). What is not given has its default; without one, `lr` and `epochs` are searched, and the others are left
out.
"""


@dataclass(frozen=True)
class Entry:
    """A key: what it takes, its value where it is left out, and what it is for."""

    key: str
    form: str
    default: str
    help: str

    @property
    def text(self) -> str:
        more = f", {self.default} by default" if self.default else ""
        return f"{self.key} ({self.form}{more}): {self.help}"


@dataclass(frozen=True)
class Chapter:
    """A section: its name in the file, what it is for, and its keys."""

    name: str
    help: str
    entries: tuple[Entry, ...]


def list_chapters() -> Iterator[Chapter]:
    """List all sections in the order of the file; the keys of a strategy by its way to fit."""
    nested = {name: find_section(own) for name, own in Config.model_fields.items() if name != "strategies"}
    yield Chapter("name", "", (describe("", "name", Config.model_fields["name"]),))
    for name, section in nested.items():
        if section is not None:
            yield Chapter(name, say_section(Config.model_fields[name], section), tuple(list_entries(section, name)))
    shared = (StrategyConfig.model_fields[name] for name in ("description", "stages"))
    entries = (describe(PLACE, name, own) for name, own in zip(("description", "stages"), shared, strict=True))
    yield Chapter("strategies", "Strategies by name; `auto` in their place lets the network say some.", tuple(entries))
    for fit, stage in zip(FITS, (GradientStage, RidgeStage), strict=True):
        found = (own for own in list_entries(stage, PLACE) if not own.key.startswith(f"{PLACE}.adapter."))
        yield Chapter(f"{PLACE} with fit: {fit}", "A strategy without stages has these keys itself.", tuple(found))
    yield Chapter(f"{PLACE}.adapter", "", tuple(list_entries(AdapterSection, f"{PLACE}.adapter")))


def say_section(field: FieldInfo, section: type[BaseModel]) -> str:
    return " ".join((field.description or section.__doc__ or "").split())


def list_entries(section: type[BaseModel], place: str) -> Iterator[Entry]:
    """List the keys of a section, and those of the sections in it."""
    declared = dict(own for hyper in FITS.values() for own in list_declared(hyper))
    for name, own in section.model_fields.items():
        inner = find_section(own)
        ranged = place == PLACE and name in declared and get_origin(declared[name].annotation) is not Literal
        yield describe(place, name, own, "range" if ranged else "section" if inner else "")
        if inner is not None:
            yield from list_entries(inner, f"{place}.{name}")


def find_section(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a key holds, if it holds one."""
    kinds = strip(field.annotation)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def strip(annotation: Any) -> list[Any]:
    """List what a value may be, without None and without limits."""
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in strip(part)]
    if get_origin(annotation) is Annotated:
        return strip(get_args(annotation)[0])
    return [] if annotation in (None, type(None)) else [annotation]


def describe(place: str, name: str, field: FieldInfo, form: str = "") -> Entry:
    kinds = strip(field.annotation)
    form = form or " or ".join(dict.fromkeys(name_kind(kind) for kind in kinds))
    return Entry(
        f"{place}.{name}" if place else name, form, show_default(field), " ".join((field.description or "").split())
    )


def name_kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    return KINDS.get(get_origin(kind) or kind, "text")


def show_default(field: FieldInfo) -> str:
    """Write a default as YAML has it; nothing where there is none, or where leaving a key out means something else."""
    value = field.default
    if value is PydanticUndefined or value is None or value in ("", ()) or isinstance(value, BaseModel):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        low, high = value[:2]
        return f"{low:g}" if low == high else f"[{low:g}, {high:g}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def find_entries(key: str) -> list[Entry]:
    """Find a key by its path or its last part, all keys of a section, or those that tell of a word.

    A strategy may have any name.

    Args:
        key: It; all keys where it is empty.

    Raises:
        ConfigError: There is none.
    """
    every = [entry for chapter in list_chapters() for entry in chapter.entries]
    if not key:
        return list(dict.fromkeys(every))
    first, *rest = key.split(".")
    if rest[1:2] == ["stages"]:
        del rest[1:3]  # a stage has the keys of a strategy without stages
    asked = ".".join([PLACE, *rest[1:]]) if first == "strategies" and rest else key
    found = [entry for entry in every if entry.key == asked or entry.key.startswith(f"{asked}.")]
    if not found:
        ends = [entry for entry in every if entry.key.rpartition(".")[2] == key]
        word = re.compile(rf"(?<!\w){re.escape(key)}(?!\w)")
        ends = ends or [entry for entry in every if word.search(f"{entry.form} {entry.help}")]
        if not ends:
            near = suggest(asked, [entry.key for entry in every])
            raise ConfigError(f"a key of a config must be one of docs/config.md, got {key}{near}")
        return list(dict.fromkeys(ends))
    return list(dict.fromkeys(found))


def write_page() -> str:
    """Write docs/config.md."""
    parts = [PAGE]
    for chapter in list_chapters():
        rows = (
            f"| `{own.key.removeprefix(f'{chapter.name}.').removeprefix(f'{PLACE}.')}` | {own.form} | {own.default} | "
            f"{own.help} |"
            for own in chapter.entries
        )
        about = [chapter.help, ""] if chapter.help else []
        table = ["| key | value | default | what it is |", "|---|---|---|---|", *rows]
        parts.append("\n".join([f"## {chapter.name}", "", *about, *table, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    print(write_page(), end="")
