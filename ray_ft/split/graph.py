"""A network as a graph, cut in two where what its trained parameters change begins."""

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from operator import getitem, mul
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves, tree_map

from ray_ft.files.hashes import hash_tensors
from ray_ft.split.dropout import SWITCHES, DropoutSite, arguments, draws, mask_dropouts
from ray_ft.split.operations import size_of
from ray_ft.split.program import Program, build_program

Axes = dict[Node, int | None]  # of the samples, by feature

# Operations that cost the tail nothing: at the boundary they are left to it.
RESHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"}
VIEWS = RESHAPES | {"permute", "transpose", "t", "expand"}


SUBSTITUTES: dict[Any, Any] = {
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,  # it needs strides, which are not stored
    torch.ops.aten.sym_size.int: size_of,  # it knows nothing of `vmap`
}


@dataclass(frozen=True)
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
        tensors: What the programs read by name: parameters, buffers and constants of the network, its own memory.
    """

    batch_axes: tuple[int | None, ...]
    backbone: Program
    evaluation: Program
    training: Program
    masked: Program
    sites: tuple[DropoutSite, ...]
    draws: bool
    tensors: dict[str, Tensor]


def cut_network(network: nn.Module, state: Collection[str], trained: set[str], example: Tensor) -> Cut:
    """Trace a network and cut it.

    Raises:
        ValueError: It cannot be cut, and why; export itself may raise anything.
    """
    trace = trace_network(network, state, example, 0)
    reached = find_reached(trace, trained)
    axes, tail = find_features(trace, reached)
    check_writes(trace, tail)
    backbone = build_program(build_backbone(trace, reached, axes))
    graph = build_tail(trace, tail, axes)
    evaluation, masked = deepcopy(graph), deepcopy(graph)
    switch_to_evaluation(evaluation)
    sites = mask_dropouts(masked)
    own_draws = any(draws(node) for node in masked.nodes)
    programs = [build_program(each) for each in (evaluation, graph, masked)]
    read = {name for program in (backbone, *programs) for name in program.constants}
    tensors = {name: trace.tensors[node].detach() for node, name in trace.names.items() if name in read}
    return Cut(tuple(axes.values()), backbone, programs[0], programs[1], programs[2], sites, own_draws, tensors)


def trace_tail(
    module: nn.Module, names: Mapping[int, str], features: Sequence[Tensor], batch_axes: Sequence[int | None]
) -> Program:
    """Write a tail of one's own down: a module from features to outputs, whose parameters are the member's.

    Raises:
        ValueError: It cannot be written; export itself may raise anything.
    """
    state = [name for name, _ in module.named_parameters()]
    trace = trace_network(module, state, tuple(features), tuple(batch_axes))
    trace.names.update({node: names[id(tensor)] for node, tensor in trace.tensors.items() if id(tensor) in names})
    axes = dict(zip(trace.inputs, batch_axes, strict=True))
    return build_program(build_tail(trace, set(trace.graph.nodes) - set(trace.inputs), axes))


@dataclass(frozen=True, eq=False)
class Trace:
    """The network as a graph."""

    graph: Graph
    inputs: tuple[Node, ...]
    tensors: dict[Node, Tensor]  # parameters, buffers and constants, by their placeholders
    names: dict[Node, str]  # of these
    state: dict[Node, str]  # of these, the member's
    symbol: Any  # of the batch size in the nodes' shapes, a sympy symbol


def trace_network(
    network: nn.Module,
    state: Collection[str],
    example: Tensor | tuple[Tensor, ...],
    axes: int | tuple[int | None, ...],
) -> Trace:
    """Export a network of one argument, a tensor or a tuple of them, whose axes of samples are given."""
    # Where no parameter wants a gradient, attention takes a fused path that has no derivative.
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    batch = Dim("batch")
    shapes = tree_map(lambda axis: {axis: batch} if isinstance(axis, int) else None, axes)
    with torch.enable_grad():
        program = export(network, (example,), dynamic_shapes=(shapes,), strict=False)
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
    placeholders = list(zip(graph.find_nodes(op="placeholder"), signature.input_specs, strict=True))
    inputs = tuple(node for node, spec in placeholders if spec.target is None)
    tensors = {node: named[spec.target or ""] for node, spec in placeholders if spec.target is not None}
    own = {id(tensor): name for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    names = {node: own.get(id(tensor)) or name_constant(tensor) for node, tensor in tensors.items()}
    members = {node: name for node, name in names.items() if name in set(state)}
    pairs = zip(inputs, tree_leaves(axes), strict=True)
    symbol = next(node.meta["val"].shape[axis] for node, axis in pairs if axis is not None)
    return Trace(graph, inputs, tensors, names, members, symbol.node.expr)


def name_constant(tensor: Tensor) -> str:
    """Name a constant by its content, so that it has one name in all traces of a network."""
    return f"constant.{hash_tensors({'': tensor})[:16]}"


def find_reached(trace: Trace, trained: set[str]) -> set[Node]:
    """Find the nodes whose values differ between members or between steps.

    What they are written into, such as zeros of which a part is filled, is one where others read it too.
    """
    changed = {target for node in trace.graph.nodes for target in written(node)}
    filled: set[Node] = set()
    while True:
        reached: set[Node] = set()
        for node in trace.graph.nodes:
            moves = trace.state.get(node) in trained or (node in trace.state and node in changed)
            if moves or node in filled or draws(node) or not reached.isdisjoint(node.all_input_nodes):
                reached.add(node)
        more = {
            memory[-1]
            for write in reached
            for memory in map(find_memory, written(write))
            if not is_given(trace, memory[-1]) and not list_readers(write, memory) <= reached
        }
        if more <= filled:
            return reached
        filled |= more


def find_features(trace: Trace, reached: set[Node]) -> tuple[Axes, set[Node]]:
    """Find the values that cross into the tail, and the tail: what is reached, and what costs nothing at the boundary.

    What comes of the number of samples alone, such as their places in the batch, each batch has of its own.
    """
    tail = reached | {trace.graph.output_node()}
    counted = find_counted(trace)
    axes: Axes = {}
    for node in reversed(trace.graph.nodes):
        crosses = node not in tail and node not in trace.tensors and not tail.isdisjoint(node.users)
        if crosses and (node in counted or str(node.target).removeprefix("aten.").split(".")[0] in VIEWS):
            tail.add(node)
        elif crosses and not isinstance(node.meta["val"], torch.SymInt):  # sizes are computed in `build_tails`
            axes[node] = find_batch_axis(node, trace.symbol)
    return dict(reversed(axes.items())), tail


def find_counted(trace: Trace) -> set[Node]:
    """Find the tensors that are computed from the number of samples alone."""
    counted: set[Node] = set()
    for node in trace.graph.nodes:
        numbers = {own for own in node.all_input_nodes if isinstance(own.meta.get("val"), torch.SymInt)}
        is_tensor = isinstance(node.meta.get("val"), Tensor)
        if is_tensor and node.all_input_nodes and counted.union(numbers).issuperset(node.all_input_nodes):
            counted.add(node)
    return counted


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
            memory = find_memory(target)
            outside = is_given(trace, memory[-1]) and write not in tail
            if outside or any((reader in tail) != (write in tail) for reader in list_readers(write, memory)):
                raise ValueError(f"{write.name} changes in place a value that others use")


def find_memory(value: Node) -> list[Node]:
    """List a value, and those that it is a view of, the last of which has the memory."""
    memory = [value]
    while bases := marked(memory[-1]):
        memory.append(bases[0])
    return memory


def is_given(trace: Trace, node: Node) -> bool:
    """Whether a value comes from outside of the graph: an input or a tensor of the network."""
    return node in trace.inputs or node in trace.tensors


def list_readers(write: Node, memory: list[Node]) -> set[Node]:
    """List what else uses a memory that is written."""
    return {user for value in memory for user in value.users} - {write, *memory}


def build_backbone(trace: Trace, reached: set[Node], axes: Axes) -> Graph:
    graph = Graph()
    env = {node: graph.placeholder("inputs") for node in trace.inputs}
    copy_nodes(trace, set(trace.graph.nodes) - reached, graph, env)
    graph.output(tuple(env[feature] for feature in axes))
    graph.eliminate_dead_code()
    return graph


def build_tail(trace: Trace, tail: set[Node], axes: Axes) -> Graph:
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
    copy_nodes(trace, tail, graph, env)
    graph.output(env[trace.graph.output_node().all_input_nodes[0]])
    graph.eliminate_dead_code()
    return graph


def copy_nodes(trace: Trace, nodes: set[Node], graph: Graph, env: dict[Node, Node]) -> None:
    """Copy nodes that `env` lacks; tensors that they read go by their names."""
    for node in (node for node in trace.graph.nodes if node not in env and node.op != "output"):
        if node in trace.tensors:
            env[node] = graph.get_attr(trace.names[node])
        elif node in nodes:
            if missing := [value.name for value in node.all_input_nodes if value not in env]:
                raise ValueError(f"its trained part reads {missing[0]}, which no feature gives")
            env[node] = graph.node_copy(node, env.__getitem__)
            env[node].meta = describe_dropout(trace, node) if draws(node) else {}  # the rest is of no use from here on
            env[node].target = SUBSTITUTES.get(node.target, node.target)
            if node.target is torch.ops.aten.to.device:  # a program runs on one device, which none of its steps names
                given = {name: value for name, value in arguments(env[node]).items() if name != "device"}
                env[node].target, env[node].args, env[node].kwargs = torch.ops.aten.to.dtype, (), given


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
            if node.users:
                raise ValueError("it reads a buffer that it writes in the same pass of training")
            graph.erase_node(node)  # it counts batches


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
