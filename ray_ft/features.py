"""A network split at its frozen boundary: what no trained parameter reaches is computed once per sample.

The network is exported as a graph, its trained modules in train mode and the rest in eval mode. The nodes
that a trained parameter, a buffer written in training or an active dropout reaches are the tail. The others
are the backbone; the values that the tail reads from it are the features. Where export or the check of the
split fails, the whole network is the tail and its inputs are the features.

Limits: a tail holds every size but the batch's as it was at the split. Python that is no tensor operation is
not in it either, such as batch norm's refusal to train on a single value per channel.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from operator import getitem, mul
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn
from torch.export import Dim, export
from torch.func import functional_call
from torch.fx import Graph, GraphModule, Node

__all__ = ["SplitNetwork", "set_training_modes", "split_network"]

Features = tuple[Shaped[Tensor, "..."], ...]
Tail = Callable[[Mapping[str, Tensor], Features], Tensor]
Axes = dict[Node, int | None]  # of the samples, by feature

N_CHECKED = 4  # samples on which a split is compared with its network
# Of the largest value. Accelerators may round products to TF32, and not alike for one sample and for several.
TOLERANCE_CPU, TOLERANCE_ACCELERATOR = 1e-4, 1e-2
# Operations that cost the tail nothing: at the boundary they are left to it.
RESHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"}
VIEWS = RESHAPES | {"permute", "transpose", "t", "expand"}
# The arguments by which operations know training, and their values in evaluation.
SWITCHES = {"train": False, "training": False, "use_input_stats": False, "dropout_p": 0.0}


@dataclass(frozen=True, eq=False)
class SplitNetwork:
    """A network as backbone and tail.

    Attributes:
        state: What a member starts from, detached copies: the trained parameters, then the buffers of modules
            that hold one, and of modules without parameters that train (batch norm without weights).
        trained_names: The parameters' names in `state`.
        frozen: Every other parameter and buffer, the very memory that is computed with; it must not change.
        batch_axes: The axis of the samples in each feature; None for a feature that all samples share.
        reason: Empty if the network is split, else one line on why it runs whole.
    """

    state: dict[str, Tensor]
    trained_names: tuple[str, ...]
    frozen: dict[str, Tensor] = field(repr=False)
    batch_axes: tuple[int | None, ...]
    reason: str
    _backbone: Callable[[Tensor], Features] = field(repr=False)
    _tails: tuple[Tail, Tail] = field(repr=False)  # in evaluation, in training

    def compute_features(self, inputs: Shaped[Tensor, " sample *input"], batch_size: int = 64) -> Features:
        """Run the backbone without gradients, `batch_size` samples at a time, on the parameters' device."""
        device = next(iter(self.state.values())).device
        with torch.no_grad():
            slices = [self._backbone(part.to(device)) for part in torch.split(inputs, batch_size)]
        return tuple(
            parts[0] if axis is None else torch.cat(parts, axis)
            for axis, parts in zip(self.batch_axes, zip(*slices, strict=True), strict=True)
        )

    def take(self, features: Features, index: Int[Tensor, " sample"]) -> Features:
        """Copy the features of these samples; copies, so the tail's in-place operations spare the store."""
        return tuple(
            feature.clone() if axis is None else feature.index_select(axis, index.to(feature.device))
            for axis, feature in zip(self.batch_axes, features, strict=True)
        )

    def apply_tail(self, state: Mapping[str, Tensor], features: Features, training: bool) -> Tensor:
        """Run the tail of a member; in training, the buffers in `state` are updated in place.

        Args:
            state: The member's tensors under the names of `self.state`.
            features: What `take` returned; in-place operations of the network may change them.
            training: Whether dropout draws (from torch's global generator) and batch norm uses the batch.

        Returns:
            The network's outputs, shape (sample, *target).
        """
        return self._tails[training](state, features)


def split_network(network: nn.Module, trained: Collection[str], example: Tensor) -> SplitNetwork:
    """Split a network of one tensor in and one tensor out where its trained parameters begin.

    Args:
        network: It stays as it is; a copy is split.
        trained: Names of the trained parameters; of a tied one, any of its names.
        example: Two or more different samples, shape (sample, *input); four serve to check the split.

    Returns:
        The split, or the whole network as tail with the reason.

    Raises:
        ValueError: No name is given, or one is not a parameter's.
    """
    network = deepcopy(network).requires_grad_(False)
    whole = keep_whole(network, order_names(network, trained))
    example = example[:N_CHECKED].to(next(network.parameters()).device)
    try:
        with silence():
            split = build_split(network, whole, example)
            check_split(split, whole, example)
    # Export runs the network's own code under its tracer, and either may raise any class. Whatever it was,
    # the whole network is right, only slower.
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return replace(whole, reason=f"the whole network runs at each step, as it cannot be split: {line}")
    finally:
        network.requires_grad_(False)
    return split


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


def order_names(network: nn.Module, trained: Collection[str]) -> tuple[str, ...]:
    named = dict(network.named_parameters(remove_duplicate=False))
    unknown = sorted(set(trained) - named.keys())
    if unknown or not trained:
        raise ValueError(f"trained names must be parameters of the network, but got {', '.join(unknown) or 'none'}")
    wanted = {id(named[name]) for name in trained}
    return tuple(name for name, parameter in network.named_parameters() if id(parameter) in wanted)


def keep_whole(network: nn.Module, names: tuple[str, ...]) -> SplitNetwork:
    """Make the whole network the tail: the fallback, and what a split is checked against."""
    set_training_modes(network, names)
    state = {name: tensor.detach().clone() for name, tensor in member_tensors(network, names).items()}
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    named = dict(network.named_parameters()) | dict(network.named_buffers())
    frozen = {name: tensor.detach() for name, tensor in named.items() if name not in state}
    tails = (partial(functional_call, deepcopy(network, shared).eval()), partial(functional_call, network))
    return SplitNetwork(state, names, frozen, (0,), "", lambda inputs: (inputs,), tails)


def member_tensors(network: nn.Module, names: tuple[str, ...]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {name: network.get_parameter(name) for name in names}
    wanted = {id(parameter) for parameter in tensors.values()}
    for prefix, module in network.named_modules():
        below, own = (set(map(id, module.parameters(recurse))) for recurse in (True, False))
        if module.training and (not below or own & wanted):
            tensors |= dict(module.named_buffers(prefix, recurse=False))
    return tensors


@dataclass(frozen=True, eq=False)
class Trace:
    """The network as a graph."""

    graph: Graph
    inputs: Node
    tensors: dict[Node, Tensor]  # parameters, buffers and constants, by their placeholders
    state: dict[Node, str]  # of these, the member's, by name
    symbol: Any  # of the batch size in the nodes' shapes, a sympy symbol


def build_split(network: nn.Module, whole: SplitNetwork, example: Tensor) -> SplitNetwork:
    trace = trace_network(network, whole.state, example)
    reached = find_reached(trace, set(whole.trained_names))
    axes, tail = find_features(trace, reached)
    check_writes(trace, tail)
    backbone, tails = build_backbone(trace, reached, axes), build_tails(trace, tail, axes)
    return replace(whole, batch_axes=tuple(axes.values()), _backbone=backbone, _tails=tails)


def trace_network(network: nn.Module, names: Collection[str], example: Tensor) -> Trace:
    # Where no parameter wants a gradient, attention takes a fused path that has no derivative.
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    with torch.enable_grad():
        program = export(network, (example,), dynamic_shapes=({0: Dim("batch")},), strict=False)
    graph, signature = program.graph, program.graph_signature
    if len(signature.output_specs) != 1:
        raise ValueError("it returns more than one tensor")
    if graph.find_nodes(op="get_attr"):
        raise ValueError("it has blocks with a graph of their own (no_grad, autocast, control flow)")
    for node in reversed(graph.nodes):
        if "assert" in str(node.target) and not node.users:
            graph.erase_node(node)
    named: dict[str, Any] = dict(network.named_parameters(remove_duplicate=False))
    named |= dict(network.named_buffers(remove_duplicate=False)) | program.constants
    member = {id(named[name]): name for name in names}
    placeholders = list(zip(graph.find_nodes(op="placeholder"), signature.input_specs, strict=True))
    (inputs,) = (node for node, spec in placeholders if spec.target is None)
    tensors = {node: named[spec.target or ""] for node, spec in placeholders if node is not inputs}
    state = {node: member[id(tensor)] for node, tensor in tensors.items() if id(tensor) in member}
    return Trace(graph, inputs, tensors, state, inputs.meta["val"].shape[0].node.expr)


def find_reached(trace: Trace, trained: set[str]) -> set[Node]:
    """Find the nodes whose values differ between members or between steps."""
    changed = {target for node in trace.graph.nodes for target in written(node)}
    reached: set[Node] = set()
    for node in trace.graph.nodes:
        moves = trace.state.get(node) in trained or (node in trace.state and node in changed)
        if moves or is_random(node) or not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    return reached


def find_features(trace: Trace, reached: set[Node]) -> tuple[Axes, set[Node]]:
    """Find the values that cross into the tail, and the tail: what is reached, and views at the boundary."""
    tail = reached | {trace.graph.output_node()}
    axes: Axes = {}
    for node in reversed(trace.graph.nodes):
        crosses = node not in tail and node not in trace.tensors and not tail.isdisjoint(node.users)
        if crosses and str(node.target).removeprefix("aten.").split(".")[0] in VIEWS:
            tail.add(node)
        elif crosses and not isinstance(node.meta["val"], torch.SymInt):  # sizes are computed in `build_tails`
            axes[node] = find_batch_axis(node, trace.symbol)
    return dict(reversed(axes.items())), tail


def find_batch_axis(node: Node, symbol: Any) -> int | None:
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        raise ValueError(f"its trained part reads {node.name}, which is not a tensor")
    shape: tuple[Any, ...] = tuple(value.shape)
    axes = [i for i, size in enumerate(shape) if isinstance(size, torch.SymInt)]
    if len(axes) > 1 or any(shape[i].node.expr != symbol for i in axes):
        raise ValueError(f"its trained part reads {node.name}, which has no axis of samples: {shape}")
    return axes[0] if axes else None


def check_writes(trace: Trace, tail: set[Node]) -> None:
    """Refuse in-place operations whose effect crosses the boundary; `check_split` sees the rest."""
    for write in trace.graph.nodes:
        for target in written(write):
            memory = [target]  # the value, and those that it is a view of
            while bases := marked(memory[-1]):
                memory.append(bases[0])
            outside = memory[-1] is trace.inputs or memory[-1] in trace.tensors
            others = {user for value in memory for user in value.users} - {write, *memory}
            if (outside and write not in tail) or any((o in tail) != (write in tail) for o in others):
                raise ValueError(f"{write.name} changes in place a value that others use")


def build_backbone(trace: Trace, reached: set[Node], axes: Axes) -> GraphModule:
    graph = Graph()
    env = {trace.inputs: graph.placeholder("inputs")}
    root = copy_nodes(trace, set(trace.graph.nodes) - reached, graph, env)
    graph.output(tuple(env[feature] for feature in axes))
    graph.eliminate_dead_code()
    return GraphModule(root, graph)


def build_tails(trace: Trace, tail: set[Node], axes: Axes) -> tuple[GraphModule, GraphModule]:
    graph = Graph()
    state, values = graph.placeholder("state"), graph.placeholder("features")
    env = {node: graph.call_function(getitem, (state, name)) for node, name in trace.state.items()}
    env |= {feature: graph.call_function(getitem, (values, i)) for i, feature in enumerate(axes)}
    sampled = [feature for feature, axis in axes.items() if axis is not None]
    if not sampled:
        raise ValueError("what its trained part reads does not depend on the sample")
    n_samples = graph.call_function(torch.ops.aten.sym_size.int, (env[sampled[0]], axes[sampled[0]]))
    for node in trace.graph.nodes:
        size = node.meta.get("val")
        factor = size.node.expr / trace.symbol if isinstance(size, torch.SymInt) else None
        if node not in tail and factor is not None and factor.is_Integer:
            env[node] = graph.call_function(mul, (n_samples, int(factor)))
    root = copy_nodes(trace, tail, graph, env)
    graph.output(env[trace.graph.output_node().all_input_nodes[0]])
    graph.eliminate_dead_code()
    evaluation = deepcopy(graph)
    switch_to_evaluation(evaluation)
    return GraphModule(root, evaluation), GraphModule(root, graph)


def copy_nodes(trace: Trace, nodes: set[Node], graph: Graph, env: dict[Node, Node]) -> nn.Module:
    """Copy nodes that `env` lacks; the returned module holds the tensors that they read."""
    root = nn.Module()
    for node in (node for node in trace.graph.nodes if node not in env and node.op != "output"):
        if node in trace.tensors:
            root.register_buffer(node.name, trace.tensors[node].detach())
            env[node] = graph.get_attr(node.name)
        elif node in nodes:
            if missing := [value.name for value in node.all_input_nodes if value not in env]:
                raise ValueError(f"its trained part reads {missing[0]}, which no feature gives")
            env[node] = graph.node_copy(node, env.__getitem__)
            env[node].meta = {}  # traced shapes and stack traces, of no use from here on
            if node.target is torch.ops.aten.view.default:  # it needs strides, which are not stored
                env[node].target = torch.ops.aten.reshape.default
    return root


def switch_to_evaluation(graph: Graph) -> None:
    for node in graph.nodes:
        given = arguments(node)
        # Batch norm that keeps no statistics uses the batch's in evaluation too.
        if not SWITCHES.keys().isdisjoint(given) and given.get("running_mean", node) is not None:
            named = zip(given, node.args, strict=False)
            node.args = tuple(SWITCHES.get(name, value) for name, value in named)
            node.kwargs = {name: SWITCHES.get(name, value) for name, value in node.kwargs.items()}
    state = graph.find_nodes(op="placeholder")[0]
    for node in reversed(graph.nodes):
        if any(state in target.all_input_nodes for target in written(node)):
            graph.erase_node(node)  # it counts batches; raises if the count is used


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of an operation by name, in its order; nothing for what is not one of torch's."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    formal = node.target._schema.arguments
    given = dict(zip((argument.name for argument in formal), node.args, strict=False))
    return {argument.name: argument.default_value for argument in formal} | given | node.kwargs


def is_random(node: Node) -> bool:
    switches = [value for name, value in arguments(node).items() if name in SWITCHES]
    draws = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return draws and (not switches or any(switches))


def written(node: Node) -> list[Node]:
    """The values that the node changes in place."""
    given = arguments(node)
    if given.get("training") or given.get("use_input_stats"):  # of these the schema does not say it
        return [value for name, value in given.items() if name.startswith("running_") and value is not None]
    return marked(node, write=True)


def marked(node: Node, write: bool = False) -> list[Node]:
    """The arguments whose memory the schema marks as shared with the result or, with `write`, as changed."""
    given = arguments(node)
    formal = node.target._schema.arguments if given else ()  # type: ignore[union-attr]
    shared = (a.name for a in formal if a.alias_info is not None and (a.alias_info.is_write or not write))
    return [given[name] for name in shared if isinstance(given[name], Node)]


def check_split(split: SplitNetwork, whole: SplitNetwork, example: Tensor) -> None:
    # Gradients too, because the derivative of an autograd function of the network's own is lost in a graph.
    for training, what in ((False, "outputs"), (True, "gradients")):
        found, right = (probe_network(network, example, training) for network in (split, whole))
        tolerance = TOLERANCE_CPU if right.device.type == "cpu" else TOLERANCE_ACCELERATOR
        gap, scale = float((found - right).abs().max()), float(right.abs().max())
        if not gap <= tolerance * scale:  # "not", because of NaN
            raise ValueError(f"its {what} would be off by {gap:.1e}, of {scale:.1e}")


def probe_network(split: SplitNetwork, example: Tensor, training: bool) -> Tensor:
    """Compute outputs in evaluation, the gradients of a weighted sum of them in training."""
    state = {name: tensor.clone() for name, tensor in split.state.items()}
    trained = [state[name].requires_grad_() for name in split.trained_names]
    # Slices of unequal size show a value that depends on its batch.
    features = split.take(split.compute_features(example, len(example) - 1), torch.arange(len(example)))
    with torch.random.fork_rng([example.device] if example.is_cuda else []), torch.enable_grad():
        torch.manual_seed(0)
        outputs = split.apply_tail(state, features, training)
        if not training:
            return outputs.detach()
        weights = torch.arange(outputs.numel(), device=outputs.device).cos().view_as(outputs)
        gradients = torch.autograd.grad((outputs * weights).sum(), trained, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Export warns, logs and prints; the user needs the one line of the error alone."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
