"""Domains: what is particular to a field of data, each in a module of its own that `find_domain` imports by its name.

A domain knows the form of its files, the operations that move a sample without changing what it is, and the names of
a target's axes. Nothing else does. Torch takes seconds to load, so that no domain imports it: a tensor moves itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped

if TYPE_CHECKING:
    from torch import Tensor as Tensor
else:
    Tensor = Any

DomainName: TypeAlias = Literal["diffraction", "raw"]
FEW_VALUES = 8  # on the last axis of a target, from which on it is a curve


@dataclass(frozen=True)
class TargetAxes:
    """How to show targets: channels, each a curve over `x`."""

    channels: tuple[str, ...]
    x: Float[np.ndarray, " value"]
    label: str
    ticks: tuple[str, ...] = ()  # names of the values of `x`, where they have some

    def flatten(self, values: Float[np.ndarray, "sample *target"]) -> Float[np.ndarray, "sample channel value"]:
        return values.reshape(len(values), len(self.channels), len(self.x))

    @property
    def has_few(self) -> bool:
        """Whether values stand for themselves, and are no curves."""
        return len(self.x) < FEW_VALUES

    @property
    def value_names(self) -> tuple[str, ...]:
        """Names of the values of a target, channel by channel."""
        if len(self.x) == 1:
            return self.channels
        if self.ticks and len(self.channels) == 1:
            return self.ticks
        places = self.ticks or tuple(f"{x:g}" for x in self.x)
        return tuple(f"{channel} {place}" for channel in self.channels for place in places)

    def divide_outputs(self) -> dict[str, slice]:
        """Where each output lies in a flat target: a value where they are few or have names, else a curve."""
        names, width = (self.value_names, 1) if self.has_few or self.ticks else (self.channels, len(self.x))
        return {name: slice(i * width, (i + 1) * width) for i, name in enumerate(names)}


@runtime_checkable  # for the checks of types in tests
class View(Protocol):
    """One operation of a symmetry group."""

    def move_inputs(self, inputs: Shaped[Tensor, "*axes"], /) -> Shaped[Tensor, "*moved"]:
        """Move inputs in the network's form."""

    def move_targets(self, targets: Shaped[Tensor, "*axes"], /) -> Shaped[Tensor, "*moved"]:
        """Move targets along with their inputs; any axes may stand before those of the target."""

    def restore_targets(self, targets: Shaped[Tensor, "*axes"], /) -> Shaped[Tensor, "*moved"]:
        """Undo `move_targets`."""


@runtime_checkable
class Domain(Protocol):
    """What is particular to a field of data."""

    @property
    def operations(self) -> tuple[str, ...]:
        """Names of the operations that `data.symmetry` may list."""

    @property
    def symmetry(self) -> tuple[str, ...]:
        """Those of them that generate the views where the config names none."""

    def list_views(self, operations: Sequence[str]) -> tuple[View, ...]:
        """List the group that named operations generate, the identity first; KeyError where there is no such one."""

    def convert_inputs(self, array: Shaped[np.ndarray, "..."], source: str) -> Float[np.ndarray, "sample *input"]:
        """Bring inputs, finite real numbers as they stand in a file of that name, into the network's form.

        Raises:
            DataError: The shape or the values are not those of the domain.
        """

    def encode_inputs(self, inputs: Shaped[Tensor, "sample *input"]) -> Float[Tensor, "sample *input"]:
        """Do what `convert_inputs` does to values that are right, with operations that can be exported."""

    def convert_targets(
        self, targets: Shaped[np.ndarray, "sample *stored"], source: str
    ) -> tuple[Shaped[np.ndarray, "sample *target"], Int[np.ndarray, " kept"], tuple[str, ...]]:
        """Bring targets, as they stand in a file, into the network's form.

        Returns:
            The targets of all samples, which samples have some, and notes on those that are left out.

        Raises:
            DataError: The shape or the values are not those of the domain.
        """

    def list_shapes(self, input_shape: tuple[int, ...], dtype: str) -> tuple[tuple[int, ...], ...]:
        """List the shapes that one sample, of a shape in the network's form, may have in a file of such values."""

    def name_axes(self, shape: tuple[int, ...], span: tuple[float, float]) -> TargetAxes:
        """Name the axes of a target of this shape; the span is `data.wavelengths_nm`, for the last of them."""


def find_domain(name: DomainName) -> Domain:
    """Import a domain by its name, as `data.layout` gives it."""
    domain: Domain = import_module(f"{__name__}.{name}").DOMAIN
    return domain
