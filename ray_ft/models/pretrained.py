"""The pretrained network as what it is built from: a factory, its arguments, and weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ray_ft.errors import DataError, first_line
from ray_ft.files.hashes import hash_tensors
from ray_ft.models.loading import build_network


@dataclass(frozen=True)
class Pretrained:
    """A network that any process can build, from what `build_network` takes."""

    factory: str | None
    params: Mapping[str, Any]
    weights: Mapping[str, Tensor] = field(repr=False)

    def build(self) -> nn.Module:
        """Build it, in evaluation mode."""
        return build_network(self.factory, self.params, self.weights)

    @property
    def hash(self) -> str:
        """What names its weights."""
        return hash_tensors(self.weights)


@torch.no_grad()
def predict_all(network: nn.Module, inputs: Float[np.ndarray, "sample *input"]) -> Float[Tensor, "_ *output"]:
    """Predict with a network as it is; one that does not take the inputs, or answer with one tensor, is refused."""
    try:
        parts = [network(part.clone()) for part in torch.split(torch.from_numpy(inputs), 64)]  # it may change them
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        text = f"the network must take the inputs, got shape {inputs.shape}"
        raise DataError(f"{text}: {first_line(error)}") from error
    if not all(isinstance(part, torch.Tensor) for part in parts):
        kind = type(parts[0]).__name__
        raise DataError(f"the network must answer with one tensor, got {kind}; wrap it in a module that does")
    return torch.cat(parts)
