"""Arrays as they are: no field of data in particular, and no operation that moves a sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from ray_ft.domains import Domain, TargetAxes, Tensor


@dataclass(frozen=True)
class Same:
    """The identity, the only view that there is."""

    def move_inputs(self, inputs: Shaped[Tensor, "*axes"]) -> Shaped[Tensor, "*axes"]:
        return inputs

    move_targets = restore_targets = move_inputs


@dataclass(frozen=True)
class Raw:
    """Any inputs and targets, which become float32."""

    operations: tuple[str, ...] = ()
    symmetry: tuple[str, ...] = ()

    def list_views(self, operations: Sequence[str]) -> tuple[Same, ...]:
        for name in operations:
            raise KeyError(name)
        return (Same(),)

    def convert_inputs(self, array: Shaped[np.ndarray, "..."], source: str) -> Float[np.ndarray, "sample *input"]:
        return array.astype(np.float32)

    def encode_inputs(self, inputs: Shaped[Tensor, "sample *input"]) -> Float[Tensor, "sample *input"]:
        return inputs

    def convert_targets(
        self, targets: Shaped[np.ndarray, "sample *target"], source: str
    ) -> tuple[Shaped[np.ndarray, "sample *target"], Int[np.ndarray, " kept"], tuple[str, ...]]:
        return targets, np.arange(len(targets)), ()

    def list_shapes(self, input_shape: tuple[int, ...], dtype: str) -> tuple[tuple[int, ...], ...]:
        return (input_shape,)

    def name_axes(self, shape: tuple[int, ...], span: tuple[float, float]) -> TargetAxes:
        """Number the channels and the places on the last axis, of which a single number has one."""
        shape = shape or (1,)
        places = list(np.ndindex(shape[:-1]))
        names = tuple("target " + ",".join(map(str, place)) if place else "target" for place in places)
        return TargetAxes(names, np.arange(float(shape[-1])), "index of the target's last axis")


DOMAIN: Domain = Raw()
