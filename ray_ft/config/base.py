"""What every section of a config is: frozen, refusing unknown keys, and true and false where it wants numbers."""

from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, field_validator


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
