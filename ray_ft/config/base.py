"""What every section of a config is: frozen, refusing unknown keys, and true and false where it wants numbers."""

from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, field_validator


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def refuse_flags(cls, value: Any, info: Any) -> Any:
        """Refuse true and false, which Python takes for 1 and 0, where there should be a number."""
        if isinstance(value, bool) and info.field_name:
            annotation: Any = cls.model_fields[info.field_name].annotation
            united = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
            kinds = {getattr(kind, "__origin__", kind) for kind in united}
            if kinds & {int, float} and bool not in kinds:
                raise ValueError(f"it should be a number, got {str(value).lower()}")
        return value
