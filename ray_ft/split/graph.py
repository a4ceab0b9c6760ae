"""A network as a graph, cut in two where what its trained parameters change begins."""

from collections.abc import Collection
from copy import deepcopy
from dataclasses import dataclass
from operator import getitem, mul
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.fx import Graph, GraphModule, Node

from ray_ft.split.dropout import SWITCHES, DropoutSite, arguments, draws, mask_dropouts
from ray_ft.split.program import size_of

__all__ = [
    "Cut",
    "Trace",
    "build_backbone",
    "build_tail",
    "cut_network",
    "find_features",
    "find_reached",
    "trace_network",
]

Axes = dict[Node, int | None]  # of the samples, by feature

# Operations that cost the tail nothing: at the boundary they are left to it.
RESHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"}
VIEWS = RESHAPES | {"permute", "transpose", "t", "expand"}


SUBSTITUTES: dict[Any, Any] = {
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,  # it needs strides, which are not stored
    torch.ops.aten.sym_size.int: size_of,  # it knows nothing of `vmap`
}


@dataclass(frozen=True, eq=False)
class Cut:
    """A network in two parts.

    Attributes:
        batch_axes: The axis of the samples in each feature; None for one that all samples share.
        backbone: From inputs to features.
        evaluation: From (state, features, masks) to outputs, without dropout.
        training: The same with the operations of training; its dropouts draw for themselves.
        masked: The same with the masks of `sites` in place of its dropouts.
        sites: Where masks go, in their order.
        draws: Whether `masked` still draws random numbers, by operations other than dropout.
    """

    batch_axes: tuple[int | None, ...]
    backbone: GraphModule
    evaluation: GraphModule
    training: GraphModule
    masked: GraphModule
    sites: tuple[DropoutSite, ...]
    draws: bool


def cut_network(network: nn.Module, state: Collection[str], trained: set[str], example: Tensor) -> Cut:
    """Trace a network and cut it.

    Args:
        network: In the modes of training.
        state: Names of a member's own tensors.
        trained: Those of them that are trained parameters.
        example: Two samples or more.

    Raises:
        ValueError: It cannot be cut, and why; export itself may raise anything.
    """
    trace = trace_network(network, state, example)
    reached = find_reached(trace, trained)
    axes, tail = find_features(trace, reached)
    check_writes(trace, tail)
    backbone = build_backbone(trace, reached, axes)
    root, graph = build_tail(trace, tail, axes)
    evaluation, masked = deepcopy(graph), deepcopy(graph)
    switch_to_evaluation(evaluation)
    sites = mask_dropouts(masked)
    in_evaluation, in_training, with_masks = (GraphModule(root, each) for each in (evaluation, graph, masked))
    own_draws = any(draws(node) for node in masked.nodes)
    return Cut(tuple(axes.values()), backbone, in_evaluation, in_training, with_masks, sites, own_draws)


@dataclass(frozen=True, eq=False)
class Trace:
    """The network as a graph."""

    graph: Graph
    inputs: Node
    tensors: dict[Node, Tensor]  # parameters, buffers and constants, by their placeholders
    state: dict[Node, str]  # of these, the member's, by name
    symbol: Any  # of the batch size in the nodes' shapes, a sympy symbol


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
        if moves or draws(node) or not reached.isdisjoint(node.all_input_nodes):
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


def build_tail(trace: Trace, tail: set[Node], axes: Axes) -> tuple[nn.Module, Graph]:
    graph = Graph()
    state, values, _ = (graph.placeholder(name) for name in ("state", "features", "masks"))
    env = {node: graph.call_function(getitem, (state, name)) for node, name in trace.state.items()}
    env |= {feature: graph.call_function(getitem, (values, i)) for i, feature in enumerate(axes)}
    sampled = [feature for feature, axis in axes.items() if axis is not None]
    if not sampled:
        raise ValueError("what its trained part reads does not depend on the sample")
    n_samples = graph.call_function(size_of, (env[sampled[0]], axes[sampled[0]]))
    for node in trace.graph.nodes:
        size = node.meta.get("val")
        factor = size.node.expr / trace.symbol if isinstance(size, torch.SymInt) else None
        if node not in tail and factor is not None and factor.is_Integer:
            env[node] = graph.call_function(mul, (n_samples, int(factor)))
    root = copy_nodes(trace, tail, graph, env)
    graph.output(env[trace.graph.output_node().all_input_nodes[0]])
    graph.eliminate_dead_code()
    return root, graph


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
            env[node].meta = describe_dropout(trace, node) if draws(node) else {}  # the rest is of no use from here on
            env[node].target = SUBSTITUTES.get(node.target, node.target)
    return root


def describe_dropout(trace: Trace, node: Node) -> dict[str, Any]:
    """Note down in which module a random operation stands, and the shapes that it sees, by what goes with the batch."""
    modules = list((node.meta.get("nn_module_stack") or {}).values())
    shapes = [value.meta["val"].shape for value in node.args[:2] if isinstance(value, Node)]
    return {
        "module": modules[-1][0] if modules else "",
        "shapes": tuple(tuple(describe_size(trace, size) for size in shape) for shape in shapes),
    }


def describe_size(trace: Trace, size: Any) -> tuple[int, bool]:
    if not isinstance(size, torch.SymInt):
        return int(size), False
    factor = size.node.expr / trace.symbol
    if not factor.is_Integer:
        raise ValueError(f"its dropout sees a size that is no multiple of the batch's: {size}")
    return int(factor), True


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
