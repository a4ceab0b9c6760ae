"""A network that runs whole: as a tail whose features are the inputs."""

import copyreg
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from threading import RLock
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from ray_ft.errors import NetworkError
from ray_ft.files.memory import blame
from ray_ft.split.program import Program

T = TypeVar("T")
LOCK = RLock()  # tensors are exchanged in the one module, whichever thread calls; work that holds it calls it too


def blame_network(when: str) -> AbstractContextManager[None]:
    """Say in one line what a network raises; of a want of memory, which smaller steps may mend, nothing."""
    return blame(NetworkError, f"the network must take the inputs, but {when}")


class Holding(nn.Module):
    """A network, and work that is done while tensors are exchanged in it."""

    def __init__(self, network: nn.Module, work: Callable[[], Any]) -> None:
        super().__init__()
        self.network, self.work = network, work

    def forward(self) -> Any:
        return self.work()


def call_with(network: nn.Module, tensors: dict[str, Tensor], *args: Any) -> Any:
    """Call a network with these tensors in place of its own, wherever one is registered.

    What the network puts in the place of one is in `tensors` then. torch's own search for ties takes a module that has
    two names for two, and leaves the tensors of one in it.
    """
    named = (*network.named_parameters(), *network.named_buffers())
    wanted = {id(own): tensors[name] for name, own in named if name in tensors}
    given = {
        f"{prefix}.{name}".lstrip("."): wanted[id(own)]
        for prefix, module in network.named_modules()
        for name, own in (*module._parameters.items(), *module._buffers.items())
        if id(own) in wanted
    }
    outputs = functional_call(network, given, args, tie_weights=False)
    tensors.update({name: own for name, own in given.items() if name in tensors})
    return outputs


def hold(network: nn.Module, tensors: Mapping[str, Tensor], work: Callable[[], T]) -> T:
    """Do work while a network has these tensors in place of its own.

    The way back belongs to such work: with activation checkpointing it computes parts of the pass again, by the
    tensors that the network has then.
    """
    given = {f"network.{name}": tensor for name, tensor in tensors.items()}
    with LOCK:
        found: T = call_with(Holding(network, work), given)
    return found


def check_count(outputs: Any, inputs: Tensor) -> None:
    """Refuse answers that are not one a sample, which no mean over samples would tell.

    Raises:
        NetworkError: They are more or fewer; a single sample may come without an axis of its own.
    """
    n = len(outputs) if isinstance(outputs, Tensor) and outputs.dim() else 0
    if n != len(inputs) > 1:
        raise NetworkError(f"the network must answer each sample, {len(inputs)} in a batch, got {n} answers")


def pull_back(outputs: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Find gradients of a weighted sum of outputs as a step finds them; zeros where none arrives."""
    weights = torch.arange(outputs.numel(), device=outputs.device).cos().view_as(outputs)
    (outputs * weights).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


PASS_INPUTS = Program(1, (), [{"value": 0}])  # a backbone that does nothing


@dataclass(frozen=True, eq=False)
class WholeTail:
    """The whole network, called with a member's tensors and those that all members share.

    Attributes:
        network: What computes, in its modes; it has no tensors of its own memory, so that those that it is given are
            the only ones.
        trained: Names of the trained parameters.
        training: Whether it writes the buffers of a member, in place; in evaluation nothing moves them.
    """

    network: nn.Module
    trained: tuple[str, ...]
    training: bool

    def run(self, inputs: Sequence[Any], tensors: Mapping[str, Tensor]) -> Any:
        """Call the network.

        Raises:
            NetworkError: It raises, whatever that is.
        """
        state, features, _ = inputs
        buffers = {name: tensor for name, tensor in state.items() if name not in self.trained}
        given = {**tensors, **state, **({} if self.training else {name: own.clone() for name, own in buffers.items()})}
        with LOCK, blame_network("in training" if self.training else "in evaluation"):
            outputs = call_with(self.network, given, *features)
            check_count(outputs, features[0])
            if self.training:
                for name, buffer in buffers.items():
                    if given[name] is not buffer:  # the network has put another in its place
                        buffer.copy_(given[name].detach())
            return outputs

    def __getstate__(self) -> dict[str, Any]:
        for module in self.network.modules():
            if parametrize.is_parametrized(module):  # of a class of its own, which refuses to be pickled
                copyreg.pickle(type(module), reduce_parametrized)
        return self.__dict__

    def set_dropout(self, shares: Mapping[str, float]) -> None:
        """Set the shares of dropout modules, by name."""
        for name, share in shares.items():
            self.network.get_submodule(name).p = share  # type: ignore[assignment]  # of a dropout

    def list_names(self) -> dict[str, str]:
        """List the names in its state dict; of tied tensors, each with the name of the first."""
        first = {id(tensor): name for name, tensor in (*self.network.named_parameters(), *self.network.named_buffers())}
        return {name: first[id(tensor)] for name, tensor in self.network.state_dict(keep_vars=True).items()}


def reduce_parametrized(module: nn.Module) -> tuple[Any, ...]:
    """Say how a parametrized module is pickled: as one of the class that it had before."""
    kind = type(module).__bases__[0]
    return object.__new__, (kind,), module.__dict__, None, None, restore_parametrized


def restore_parametrized(module: nn.Module, content: dict[str, Any]) -> None:
    module.__dict__.update(content)
    parametrize._inject_new_class(module)  # there is no public way
    for name in content["_modules"]["parametrizations"]:
        parametrize._inject_property(module, name)


def empty_copy(network: nn.Module) -> nn.Module:
    """Copy a network, ties and all, but for the memory of its parameters and buffers."""
    kept: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        for parameter in network.parameters()
    }
    kept |= {id(buffer): buffer.detach().to("meta") for buffer in network.buffers()}
    return copy_network(network, kept)


def copy_network(network: nn.Module, kept: dict[int, Any] | None = None) -> nn.Module:
    """Copy a network, and what passes or pruning have left in it without its history, as `deepcopy` alone refuses."""
    left = [value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return deepcopy(network, {**(kept or {}), **{id(own): own.detach().clone() for own in left if not own.is_leaf}})


def set_training_modes(network: nn.Module, trained: Collection[str]) -> None:
    """Put what trains into train mode and what is frozen, dropout and batch statistics too, into eval mode.

    A module with parameters trains if one of them, its submodules' included, is trained. One without
    (dropout) follows the nearest sibling before it that has some; if there is none, the module that holds it.
    What `train` of the network's own, or of a submodule's, leaves in eval mode stays in it.
    """
    named = dict(network.named_parameters(remove_duplicate=False))
    wanted = {id(named[name]) for name in trained}
    network.train(bool(wanted))
    learns = {network: bool(wanted)}
    for module in network.modules():  # holders first
        mode = learns[module]
        for child in module.children():
            if parameters := list(child.parameters()):
                mode = any(id(parameter) in wanted for parameter in parameters)
            if not mode and child.training:
                child.eval()
            learns[child] = mode


def list_member_tensors(network: nn.Module, trained: Collection[str], written: Collection[str] = ()) -> list[str]:
    """Name what members have of their own: the trained parameters, and the buffers that training writes.

    Args:
        network: In the modes of training.
        trained: Names of the trained parameters.
        written: Names of tensors that training was seen to write; buffers among them belong to the member where
            their module holds a trained parameter, however deep.
    """
    names = list(trained)
    wanted = {id(network.get_parameter(name)) for name in trained}
    for prefix, module in network.named_modules():
        below, own = (set(map(id, module.parameters(recurse))) for recurse in (True, False))
        buffers = dict(module.named_buffers(prefix, recurse=False))
        if module.training and (not below or own & wanted):
            names += buffers
        elif below & wanted:
            names += [name for name in buffers if name in written]
    first = {name for name, _ in network.named_buffers()}
    return [name for name in names if name in first or name in trained]


@torch.no_grad()
def find_written(network: nn.Module, example: Tensor) -> set[str]:
    """Name the parameters and buffers that two passes of training write, in place or by another in their place.

    Args:
        network: In the modes of training; its tensors stay as they are.
        example: Two or more samples.

    Raises:
        NetworkError: It raises, whatever that is.
    """
    before = {name: tensor.detach() for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    given = {name: tensor.clone() for name, tensor in before.items()}
    with torch.random.fork_rng([example.device] if example.is_cuda else []), blame_network("in training"):
        for _ in range(2):
            call_with(network, given, example.clone())
    return {name for name, tensor in before.items() if not torch.equal(given[name], tensor)}
