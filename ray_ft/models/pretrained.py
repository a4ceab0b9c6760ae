"""The pretrained network as what it is built from: a factory, its arguments, and weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ray_ft.data.samples import have_same_values
from ray_ft.errors import DataError, first_line
from ray_ft.files.hashes import hash_tensors
from ray_ft.models.loading import build_network


@dataclass(frozen=True)
class Pretrained:
    """A network that any process can build, from what `build_network` takes."""

    factory: str | None
    params: Mapping[str, Any]
    weights: Mapping[str, Tensor] = field(repr=False)
    answer_shape: tuple[int, ...] | None = None  # as `answer_in_shape` takes it

    def build(self) -> nn.Module:
        """Build it, in evaluation mode."""
        return answer_in_shape(build_network(self.factory, self.params, self.weights), self.answer_shape)

    @property
    def hash(self) -> str:
        """What names its weights."""
        return hash_tensors(self.weights)


def predict_all(network: nn.Module, inputs: Float[np.ndarray, "sample *input"]) -> Float[Tensor, "_ *output"]:
    """Predict with a network as it is; one that does not take the inputs, or answer with one tensor, is refused."""
    parts = [predict_part(network, inputs[start : start + 64]) for start in range(0, len(inputs), 64)]
    axes = parts[0].shape[1:]
    return torch.cat([part[None] if part.shape == axes else part for part in parts])  # of one sample, if it squeezes


@torch.no_grad()
def predict_part(network: nn.Module, inputs: Float[np.ndarray, "sample *input"]) -> Float[Tensor, "*output"]:
    try:
        outputs = network(torch.from_numpy(inputs.copy()))  # which it may change
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        text = f"the network must take the inputs, got shape {inputs.shape}"
        raise DataError(f"{text}: {first_line(error)}") from error
    if not isinstance(outputs, Tensor):
        kind = type(outputs).__name__
        raise DataError(f"the network must answer with one tensor, got {kind}; wrap it in a module that does")
    return outputs


def answer_in_shape(network: nn.Module, shape: tuple[int, ...] | None) -> nn.Module:
    """Let a network lay out what it says of a sample in a shape of as many values; without one, as it does."""
    if shape is not None:
        network.register_forward_hook(partial(lay_out, shape))
    return network


def lay_out(shape: tuple[int, ...], network: nn.Module, inputs: Any, outputs: Tensor) -> Tensor:
    # By way of a shape that is another: an exported graph leaves out what changes nothing for several samples.
    return outputs.reshape(-1, *shape, 1).squeeze(-1)


def find_answer_shape(
    network: nn.Module, inputs: Float[np.ndarray, "sample *input"], found: tuple[int, ...], wanted: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Find the shape in which a network has to be told to answer, for `answer_in_shape`.

    A network that says `found` of a sample where targets are `wanted` may differ in axes of length 1, as one that
    answers (batch, 1) or (batch,) does; the values are the same, in the same order. One that squeezes its answers may
    also leave out the axis of the samples where there is one.
    """
    if not have_same_values(found, wanted):
        return None
    alone = predict_part(network, inputs[:1])
    return None if found == wanted and tuple(alone.shape) == (1, *wanted) else wanted
