"""One backbone for the members of several strategies: a pass of the pretrained network, and a tail for each strategy.

Whatever two strategies both leave frozen is computed once. What one of them trains and the other does not (the decoder,
for a strategy of the head alone) is computed with the pretrained weights on the way, for those that read it there.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from threading import Lock
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from ray_ft.split.graph import Trace, build_backbone, build_tail, find_features, find_reached, trace_network
from ray_ft.split.network import Features, silence
from ray_ft.split.program import Program, read_program, write_program

__all__ = ["SharedNetwork", "Tail", "WholeNetwork", "keep_whole", "read_shared", "share_backbone"]

TOLERANCE = 1e-4  # of the largest output
Stack = Mapping[str, Tensor]  # tensors of members, stacked along a first axis


@dataclass(frozen=True)
class Tail:
    """From features to outputs, for the members of a strategy.

    Attributes:
        program: Of a member's tensors by name and the features.
        features: Which of the backbone's.
    """

    program: Program
    features: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class SharedNetwork:
    """A network as programs; it needs none of the code that it came from.

    Attributes:
        backbone: From inputs to all features.
        batch_axes: The axis of the samples in each feature; None for one that all samples share.
        tails: By strategy.
        tensors: Pretrained ones that the programs read, by name.
    """

    backbone: Program
    batch_axes: tuple[int | None, ...]
    tails: Mapping[str, Tail]
    tensors: dict[str, Tensor] = field(repr=False)

    def compute_features(self, inputs: Tensor) -> Features:
        """Run the backbone once for all members of all strategies."""
        return tuple(self.backbone.run((inputs.clone(),), self.tensors))  # which it may change in place

    def apply_tail(self, strategy: str, state: Stack, features: Features) -> Float[Tensor, "sample *target"]:
        """Run one member's tail; `state` has its own tensors."""
        tail = self.tails[strategy]
        own = tuple(features[index].clone() for index in tail.features)  # a tail may change what it reads
        output: Tensor = tail.program.run((state, own, ()), self.tensors)
        return output

    def list_tensors(self) -> dict[str, Tensor]:
        """What has to be kept of it."""
        return self.tensors

    def find_sampled(self, strategy: str) -> list[tuple[int, int]]:
        """List the features that a strategy reads and that differ between samples, and their axes of samples."""
        pairs = ((index, self.batch_axes[index]) for index in self.tails[strategy].features)
        return [(index, axis) for index, axis in pairs if axis is not None]

    def as_dict(self) -> dict[str, Any]:
        """Return it, but for the tensors, as JSON takes it."""
        tails = {name: asdict(tail) for name, tail in self.tails.items()}
        return {"backbone": asdict(self.backbone), "batch_axes": self.batch_axes, "tails": tails}


@dataclass(frozen=True, eq=False)
class WholeNetwork:
    """A network that cannot be split: each member runs it whole."""

    network: nn.Module
    reason: str
    tensors: dict[str, Tensor] = field(repr=False)
    lock: AbstractContextManager[Any] = field(repr=False, default_factory=Lock)

    def compute_features(self, inputs: Tensor) -> Features:
        return (inputs,)

    def apply_tail(self, strategy: str, state: Stack, features: Features) -> Float[Tensor, "sample *target"]:
        with self.lock:  # tensors are exchanged in the one module, whichever thread calls
            output: Tensor = functional_call(self.network, {**self.tensors, **state}, (features[0].clone(),))
        return output

    def list_tensors(self) -> dict[str, Tensor]:
        """What has to be kept; of tied tensors under each of their names, as the network expects them."""
        return self.network.state_dict()

    def find_sampled(self, strategy: str) -> list[tuple[int, int]]:
        return [(0, 0)]

    def as_dict(self) -> dict[str, Any]:
        return {}


def share_backbone(
    network: nn.Module, names: Mapping[str, Sequence[str]], example: Float[Tensor, "sample *input"]
) -> SharedNetwork | WholeNetwork:
    """Write a network down as a backbone and a tail for each strategy.

    Args:
        network: With the pretrained weights; it is put into evaluation mode.
        names: By strategy, those of the tensors in which its members differ.
        example: Two or more different samples.

    Returns:
        Programs that give what the network gives, or the whole network where there are none, with the reason.
    """
    whole = keep_whole(network.eval(), "")
    try:
        with silence():
            shared = write_programs(network, names, example)
        check_programs(shared, whole, names, example)
    # As in `split_network`: export runs the network's own code under its tracer, and either may raise any class.
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return replace(whole, reason=f"each member runs the whole network, as it cannot be split: {line}")
    finally:
        network.requires_grad_(False)
    return shared


def keep_whole(network: nn.Module, reason: str) -> WholeNetwork:
    """Take a network as it is; tied tensors count once."""
    named = (*network.named_parameters(), *network.named_buffers())
    return WholeNetwork(network, reason, {name: tensor.detach() for name, tensor in named})


def write_programs(network: nn.Module, names: Mapping[str, Sequence[str]], example: Tensor) -> SharedNetwork:
    trace = trace_network(network, sorted({name for own in names.values() for name in own}), example)
    named = {id(tensor): name for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    name_of = {node.name: named.get(id(tensor), f"constant.{node.name}") for node, tensor in trace.tensors.items()}
    own_traces = {strategy: keep_state(trace, set(own)) for strategy, own in names.items()}
    boundaries = {
        strategy: find_features(own, find_reached(own, set(own.state.values()))) for strategy, own in own_traces.items()
    }
    axes = {node: axis for own_axes, _ in boundaries.values() for node, axis in own_axes.items()}
    numbers = {node: number for number, node in enumerate(axes)}
    backbone = write_program(build_backbone(trace, set(), axes).graph, name_of)
    tails = {
        strategy: Tail(
            write_program(build_tail(own_traces[strategy], tail, own_axes)[1], name_of),
            tuple(numbers[node] for node in own_axes),
        )
        for strategy, (own_axes, tail) in boundaries.items()
    }
    read = {name for program in (backbone, *(tail.program for tail in tails.values())) for name in program.constants}
    tensors = {
        name_of[node.name]: tensor.detach() for node, tensor in trace.tensors.items() if name_of[node.name] in read
    }
    return SharedNetwork(backbone, tuple(axes.values()), tails, tensors)


def keep_state(trace: Trace, names: set[str]) -> Trace:
    """Take for a member's own only the tensors of one strategy."""
    return replace(trace, state={node: name for node, name in trace.state.items() if name in names})


def check_programs(
    shared: SharedNetwork, whole: WholeNetwork, names: Mapping[str, Sequence[str]], example: Tensor
) -> None:
    """Compare with the network, each strategy's tensors slightly changed, on slices of unequal size."""
    generator = torch.Generator().manual_seed(0)
    for strategy, own in names.items():
        state = {name: change(whole.tensors[name], generator) for name in own}
        for part in (example, example[:1]):
            with torch.no_grad():
                found, right = (
                    network.apply_tail(strategy, state, network.compute_features(part)) for network in (shared, whole)
                )
            gap, scale = float((found - right).abs().max()), float(right.abs().max())
            if not gap <= TOLERANCE * scale:  # "not", because of NaN
                raise ValueError(f"its outputs would be off by {gap:.1e}, of {scale:.1e}")


def change(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor * (1 + 0.01 * torch.rand(tensor.shape, generator=generator).to(tensor.device))


def read_shared(content: Any, tensors: Mapping[str, Tensor]) -> SharedNetwork:
    """Read what `SharedNetwork.as_dict` and JSON made of one.

    Raises:
        ValueError: It is none, or it reads a tensor or a feature that is not there.
    """
    try:
        backbone = read_program(content["backbone"])
        tails = {
            name: Tail(read_program(tail["program"]), tuple(tail["features"]))
            for name, tail in content["tails"].items()
        }
        batch_axes = tuple(content["batch_axes"])
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"a network has a backbone and tails: {error}") from error
    if backbone.n_inputs != 1 or any(tail.program.n_inputs != 3 for tail in tails.values()):
        raise ValueError("a backbone takes the inputs alone; a tail takes tensors, features and masks")
    n_features = len(backbone.output) if isinstance(backbone.output, list) else 0
    if len(batch_axes) != n_features or not all(axis is None or isinstance(axis, int) for axis in batch_axes):
        raise ValueError(f"each feature has an axis of samples or none, got {batch_axes}")
    for program in (backbone, *(tail.program for tail in tails.values())):
        if missing := [name for name in program.constants if name not in tensors]:
            raise ValueError(f"its programs read tensors that are not there: {missing[0]}")
    for tail in tails.values():
        if not all(isinstance(index, int) and 0 <= index < n_features for index in tail.features):
            raise ValueError(f"its tails read features that are not there: {tail.features}")
    return SharedNetwork(backbone, batch_axes, tails, dict(tensors))
