"""The pretrained network as what it is built from: a factory, its arguments, and weights."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ray_ft.data.packing import Layout
from ray_ft.data.samples import have_same_values
from ray_ft.errors import NetworkError, first_few, locate_error
from ray_ft.files.hashes import hash_tensors
from ray_ft.files.memory import is_out_of_memory
from ray_ft.models.calling import Collate, call_as_one, describe
from ray_ft.models.factory import Factory
from ray_ft.models.loading import build_network
from ray_ft.models.new_head import NewHead, give_head

TOLERANCE = 1e-4  # of the largest answer, for rounding
SAME = "a network must be one and the same function wherever it runs"


@dataclass(frozen=True)
class Pretrained:
    """A network that any process can build, from what `build_network` takes.

    Attributes:
        new_head: Which layer is replaced in what the factory builds; None where none is.
        answer_shape: As `answer_in_shape` takes it.
        layout: Of packed samples of several inputs; empty where there is one.
        output: Which of several outputs is the answer; None where there is one.
        collate: What makes batches of samples; None where the samples of a batch lie side by side.
        witness: Of a network of a user's own, a few inputs and its answers, which all that are built must give.
    """

    factory: Factory
    params: Mapping[str, Any]
    weights: Mapping[str, Tensor] = field(repr=False)
    answer_shape: tuple[int, ...] | None = None
    new_head: NewHead | None = None
    layout: Layout = ()
    output: str | int | None = None
    collate: Collate = None
    witness: tuple[np.ndarray, Tensor] | None = field(default=None, repr=False)

    def build(self) -> nn.Module:
        """Build it, in evaluation mode.

        Raises:
            NetworkError: It is not the network that the run began with.
        """
        factory = give_head(self.factory, self.new_head) if self.new_head else self.factory
        built = build_network(factory, self.params, self.weights)
        network = call_as_one(built, self.layout, self.output, self.collate)
        answer_in_shape(network, self.answer_shape)
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

    def describe_answers(self, found: tuple[int, ...], targets: tuple[int, ...]) -> Iterator[str]:
        """Say where it does not answer as it was pretrained to: `found` of a sample, for targets of this shape."""
        if self.new_head is not None:
            name, n_outputs = self.new_head.name, self.new_head.n_outputs
            said = f"{name} is a new layer of {n_outputs} outputs in place of the pretrained one"
            yield f"{said}: it starts at zero, so zero-shot knows nothing"
        if self.answer_shape not in (None, found):
            told = f"the network answers {(targets[0], *found)}, the targets are {targets}"
            yield f"{told}: the same values, laid out as the targets are"


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
    first, second = first.float(), second.float()  # of one precision
    reach = TOLERANCE * float(first.abs().nan_to_num().max())
    return torch.allclose(first, second, rtol=0.0, atol=reach, equal_nan=True)


def predict_all(network: nn.Module, inputs: Float[np.ndarray, "sample *input"]) -> Float[Tensor, "_ *output"]:
    """Predict with a network as it is; one that does not take the inputs, or answer with one tensor, is refused."""
    parts = [predict_part(network, inputs[start : start + 64]) for start in range(0, len(inputs), 64)]
    axes = parts[0].shape[1:]
    return torch.cat([part[None] if part.shape == axes else part for part in parts])  # of one sample, if it squeezes


@torch.no_grad()
def predict_part(network: nn.Module, inputs: Float[np.ndarray, "sample *input"]) -> Float[Tensor, "*output"]:
    try:
        outputs = network(torch.from_numpy(inputs.copy()))  # which it may change
    except NetworkError:
        raise
    except Exception as error:  # of any class: it is a user's own code
        if is_out_of_memory(error):  # the machine's, of which the network is no worse
            raise
        text = f"the network must take the inputs, got shape {inputs.shape}"
        raise NetworkError(f"{text}, but it raised {locate_error(error)}{name_precision(network)}") from error
    if not isinstance(outputs, Tensor) or outputs.is_complex():
        kind = str(outputs.dtype) if isinstance(outputs, Tensor) else describe(outputs)
        raise NetworkError(f"the network must answer with one real tensor, got {kind}; name one by model.output")
    if len(inputs) > 1 and (outputs.dim() == 0 or len(outputs) != len(inputs)):
        n = len(outputs) if outputs.dim() else 0
        raise NetworkError(f"the network must answer each sample, {len(inputs)} in a batch, got {n} answers")
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs


def name_precision(network: nn.Module) -> str:
    """Say what to do where parameters are of another precision than inputs are; nothing where they are not."""
    kinds = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()} - {torch.float32}
    others = first_few(sorted(str(kind) for kind in kinds))
    return f"; inputs are torch.float32, its parameters {others}: bring it there by network.float()" if kinds else ""


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
