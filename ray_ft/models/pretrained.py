"""The pretrained network as what it is built from: a factory, its arguments, and weights."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ray_ft.errors import NetworkError, locate_error
from ray_ft.files.hashes import hash_tensors
from ray_ft.models.loading import build_network

TOLERANCE = 1e-4  # of the largest answer, for rounding
SAME = "a network must be one and the same function wherever it runs"


@dataclass(frozen=True)
class Pretrained:
    """A network that any process can build, from what `build_network` takes.

    Attributes:
        witness: Of a network of a user's own, a few inputs and its answers, which all that are built must give.
    """

    factory: str | None
    params: Mapping[str, Any]
    weights: Mapping[str, Tensor] = field(repr=False)
    witness: tuple[np.ndarray, Tensor] | None = field(default=None, repr=False)

    def build(self) -> nn.Module:
        """Build it, in evaluation mode.

        Raises:
            NetworkError: It is not the network that the run began with.
        """
        network = build_network(self.factory, self.params, self.weights)
        if self.witness is not None:
            inputs, answers = self.witness
            if not agree(predict_all(network, inputs), answers):
                raise NetworkError(
                    f"{SAME}, but built again from its state dict it answers differently; keep what it draws or reads "
                    "when it is built in buffers or parameters"
                )
        return network

    @property
    def hash(self) -> str:
        """What names its weights."""
        return hash_tensors(self.weights)


def finish_lazy(network: nn.Module, inputs: Float[np.ndarray, "sample *input"]) -> None:
    """Show a network with lazy modules one sample, by which they get their sizes; others stay as they are."""
    if any(is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
        predict_all(network, inputs[:1])


def copy_state(network: nn.Module) -> dict[str, Tensor]:
    """Copy what the state dict holds, which a pass may write, ties and all."""
    return deepcopy(dict(network.state_dict()))


def agree(first: Tensor, second: Tensor) -> bool:
    """Whether two answers are the same but for rounding."""
    if first.shape != second.shape:
        return False
    reach = TOLERANCE * float(first.abs().nan_to_num().max())
    return torch.allclose(first, second, rtol=0.0, atol=reach, equal_nan=True)


@torch.no_grad()
def predict_all(network: nn.Module, inputs: Float[np.ndarray, "sample *input"]) -> Float[Tensor, "_ *output"]:
    """Predict with a network as it is; one that does not take the inputs, or answer with one tensor, is refused."""
    try:
        parts = [network(part.clone()) for part in torch.split(torch.from_numpy(inputs), 64)]  # it may change them
    except Exception as error:  # of any class: it is a user's own code
        text = f"the network must take the inputs, got shape {inputs.shape}"
        raise NetworkError(f"{text}, but it raised {locate_error(error)}") from error
    if not all(isinstance(part, torch.Tensor) and not part.is_complex() for part in parts):
        kind = str(parts[0].dtype) if isinstance(parts[0], torch.Tensor) else type(parts[0]).__name__
        raise NetworkError(f"the network must answer with one real tensor, got {kind}; wrap it in a module that does")
    return torch.cat(parts)
