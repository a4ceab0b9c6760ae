"""A network that runs whole: as a tail whose features are the inputs."""

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from threading import Lock
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from ray_ft.split.program import Program

LOCK = Lock()  # tensors are exchanged in the one module, whichever thread calls


PASS_INPUTS = Program(1, (), [{"value": 0}])  # a backbone that does nothing


@dataclass(frozen=True, eq=False)
class WholeTail:
    """The whole network, called with a member's tensors and those that all members share.

    Attributes:
        network: What computes; it has no tensors of its own memory, so that those that it is given are the only ones.
        trained: Names of the trained parameters.
        training: Whether it is called in the modes of training.
    """

    network: nn.Module
    trained: tuple[str, ...]
    training: bool

    def run(self, inputs: Sequence[Any], tensors: Mapping[str, Tensor]) -> Any:
        state, features, _ = inputs
        with LOCK:
            if self.network.training != self.training:
                set_training_modes(self.network, self.trained if self.training else ())
            return functional_call(self.network, {**tensors, **state}, features)

    def set_dropout(self, shares: Mapping[str, float]) -> None:
        """Set the shares of dropout modules, by name."""
        for name, share in shares.items():
            self.network.get_submodule(name).p = share  # type: ignore[assignment]  # of a dropout

    def list_names(self) -> dict[str, str]:
        """List the names in its state dict; of tied tensors, each with the name of the first."""
        first = {id(tensor): name for name, tensor in (*self.network.named_parameters(), *self.network.named_buffers())}
        return {name: first[id(tensor)] for name, tensor in self.network.state_dict(keep_vars=True).items()}


def empty_copy(network: nn.Module) -> nn.Module:
    """Copy a network, ties and all, but for the memory of its parameters and buffers."""
    kept: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        for parameter in network.parameters()
    }
    kept |= {id(buffer): buffer.detach().to("meta") for buffer in network.buffers()}
    return deepcopy(network, kept)


def set_training_modes(network: nn.Module, trained: Collection[str]) -> None:
    """Put what trains into train mode and what is frozen, dropout and batch statistics too, into eval mode.

    A module with parameters trains if one of them, its submodules' included, is trained. One without
    (dropout) follows the nearest sibling before it that has some; if there is none, the module that holds it.
    """
    named = dict(network.named_parameters(remove_duplicate=False))
    wanted = {id(named[name]) for name in trained}
    network.training = bool(wanted)
    for module in network.modules():  # holders first
        mode = module.training
        for child in module.children():
            if parameters := list(child.parameters()):
                mode = any(id(parameter) in wanted for parameter in parameters)
            child.training = mode


def list_member_tensors(network: nn.Module, trained: Collection[str]) -> list[str]:
    """Name what members have of their own: the trained parameters, and the buffers that training writes."""
    names = list(trained)
    wanted = {id(network.get_parameter(name)) for name in trained}
    for prefix, module in network.named_modules():
        below, own = (set(map(id, module.parameters(recurse))) for recurse in (True, False))
        if module.training and (not below or own & wanted):
            names += dict(module.named_buffers(prefix, recurse=False))
    first = {name for name, _ in network.named_buffers()}
    return [name for name in names if name in first or name in trained]
