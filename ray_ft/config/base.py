"""What every section of a config is: frozen, refusing unknown keys, and true and false where it wants numbers."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from ray_ft.errors import show_value

CODE_PATTERN = r"^\w+(\.\w+)*:\w+$"


def is_code_name(path: str) -> bool:
    """Whether a text names code as `package.module:callable`, and no file."""
    return re.fullmatch(CODE_PATTERN, path) is not None and ".py:" not in path


def check_code_name(path: str) -> str:
    """Refuse what names no code."""
    if not is_code_name(path):
        raise ValueError(f"it should be package.module:callable, got {show_value(path)}{suggest_module(path)}")
    return path


def suggest_module(path: str) -> str:
    """Say how to name what a file holds; nothing where this names no file below the working folder."""
    file, _, name = path.rpartition(":")
    place = PurePosixPath(file)
    named = ".".join(place.with_suffix("").parts) + f":{name}" if place.suffix == ".py" else ""
    return f"; write {named}, and start in the folder that holds {place.parts[0]}" if is_code_name(named) else ""


CodeName = Annotated[str, AfterValidator(check_code_name), Field(json_schema_extra={"pattern": CODE_PATTERN})]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def refuse_flags(cls, value: Any, info: Any) -> Any:
        """Refuse true and false, which Python takes for 1 and 0, where there should be a number."""
        given = value if isinstance(value, list | tuple) else (value,)
        flags = [own for own in given if isinstance(own, bool)]
        if flags and info.field_name:
            kinds = set(list_kinds(cls.model_fields[info.field_name].annotation, given is value))
            if kinds & {int, float} and bool not in kinds:
                raise ValueError(f"it should be a number, got {str(flags[0]).lower()}")
        return value


def list_kinds(annotation: Any, of_entries: bool) -> Iterator[Any]:
    """List what a value may be, or the entries of a list; without limits."""
    united = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    for kind in united:
        if not of_entries:
            yield getattr(kind, "__origin__", kind)
        elif get_origin(kind) is tuple:
            yield from (getattr(own, "__origin__", own) for own in get_args(kind))
