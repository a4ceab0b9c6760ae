"""A graph of tensor operations as data: steps that are run, pickled or written, without the code they came from.

Training, ensembles and exports run the same programs. One that comes from a file may call no operation but those of
`operations`; one that was traced in this process may call whatever its network did.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from ray_ft.errors import first_line, show_value
from ray_ft.split.operations import ON_SIZES, find_operation

ENUMS = {torch.dtype: "dtype", torch.memory_format: "memory_format", torch.layout: "layout"}
PLACE = "device"  # of an argument that is the device on which the program runs

Step = tuple[str, Any, Any]
Reading = tuple[Literal["constant", "value", "tensor", "list", "device"], Any]


@dataclass(frozen=True)
class Call:
    """A step, ready to run: its function, how its arguments are read, and the values that nothing reads after it."""

    function: Callable[..., Any]
    arguments: tuple[Reading, ...]
    keywords: tuple[tuple[str, Reading], ...]
    last_of: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """Steps in their order, as JSON has them.

    Attributes:
        n_inputs: How many values it is given.
        steps: `(operation, arguments, keywords)`; a value is named by `{"value": i}`, where the inputs come first and
            then the results of the steps, a tensor by `{"tensor": name}`, the caller's device by `{"torch": "device"}`.
        output: One argument: a value, or a list of values.
        foreign: Whether it comes from a file, and may call but the operations of `operations`.
    """

    n_inputs: int
    steps: tuple[Step, ...]
    output: Any
    foreign: bool = False

    def run(self, inputs: Sequence[Any], tensors: Mapping[str, Tensor]) -> Any:
        """Compute the output.

        Args:
            inputs: The values that it is given.
            tensors: What it reads by name; it runs on the device of the inputs.
        """
        values = list(inputs)
        assert len(values) == self.n_inputs
        device = find_device(inputs) if self.reads_device else None

        for call in self.calls:
            arguments = [
                values[content] if kind == "value" else read(kind, content, values, tensors, device)
                for kind, content in call.arguments
            ]
            named = {key: read(*reading, values, tensors, device) for key, reading in call.keywords}
            values.append(call.function(*arguments, **named))
            for done in call.last_of:
                values[done] = None  # so that memory holds no more than what is still needed
        return read(*prepare_reading(self.output), values, tensors, device)

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        last_uses, find = find_last_uses(self), find_operation if self.foreign else resolve_operation
        return tuple(
            Call(
                find(name),
                tuple(map(prepare_reading, arguments)),
                tuple((key, prepare_reading(argument)) for key, argument in place(name, keywords).items()),
                tuple(last_uses.get(index, ())),
            )
            for index, (name, arguments, keywords) in enumerate(self.steps)
        )

    @cached_property
    def reads_device(self) -> bool:
        named = PLACE in list_named(self.arguments, "torch")
        return named or any(reading[0] == "device" for call in self.calls for _, reading in call.keywords)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {"n_inputs": self.n_inputs, "steps": self.steps, "output": self.output}

    @property
    def constants(self) -> list[str]:
        """Names of the tensors that it reads, each once."""
        return list(dict.fromkeys(list_named([*self.arguments, self.output], "tensor")))

    @property
    def arguments(self) -> list[Any]:
        return [[arguments, *keywords.values()] for _, arguments, keywords in self.steps]

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # calls are prepared anew


def place(name: str, keywords: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give an operation that makes a tensor of numbers alone, such as `arange`, the caller's device."""
    formal = getattr(getattr(resolve_operation(name), "_schema", None), "arguments", ())
    takes_device = any(argument.name == PLACE for argument in formal) and keywords.get(PLACE) is None
    if takes_device and not any(isinstance(argument.type, torch.TensorType) for argument in formal):
        return {**keywords, PLACE: {"torch": PLACE}}
    return keywords


def prepare_reading(argument: Any) -> Reading:
    """Look at what an argument names, once for all runs."""
    if isinstance(argument, list | tuple):
        return "list", tuple(map(prepare_reading, argument))
    if not isinstance(argument, dict):
        return "constant", argument
    ((kind, content),) = argument.items()
    if kind == "value":
        return "value", content
    if kind == "tensor":
        return "tensor", content
    if kind == "complex":
        return "constant", complex(*content)
    return ("device", None) if content == PLACE else ("constant", getattr(torch, content))


def read(
    kind: str, content: Any, values: Sequence[Any], tensors: Mapping[str, Tensor], device: torch.device | None
) -> Any:
    """Look up an argument; as a closure that calls itself it would keep the values alive."""
    if kind == "constant":
        return content
    if kind == "value":
        return values[content]
    if kind == "tensor":
        return tensors[content]
    return device if kind == "device" else [read(kind, part, values, tensors, device) for kind, part in content]


def find_device(inputs: Sequence[Any]) -> torch.device | None:
    """Where the inputs are; None where they have no tensor."""
    leaves = tree_leaves([dict(value) if isinstance(value, Mapping) else value for value in inputs])
    return next((leaf.device for leaf in leaves if isinstance(leaf, Tensor)), None)


def find_last_uses(program: Program) -> dict[int, list[int]]:
    """Find, by step, the values that nothing reads after it."""
    last = {
        value: index
        for index, (_, arguments, keywords) in enumerate(program.steps)
        for value in list_named([arguments, *keywords.values()], "value")
    }
    kept = {*range(program.n_inputs), *list_named(program.output, "value")}
    by_step: dict[int, list[int]] = {}
    for value in last.keys() - kept:
        by_step.setdefault(last[value], []).append(value)
    return by_step


def list_named(argument: Any, kind: str) -> Iterator[Any]:
    """Find what nested arguments name of a kind."""
    if isinstance(argument, list | tuple):
        for part in argument:
            yield from list_named(part, kind)
    elif isinstance(argument, dict):
        for key, content in argument.items():
            if key == kind:
                yield content


@cache
def resolve_operation(name: str) -> Callable[..., Any]:
    """Look up an operation of a program that was traced in this process, whatever it is."""
    if name in ON_SIZES:
        return ON_SIZES[name]
    module, _, function = name.partition(":")
    if function:
        return cast("Callable[..., Any]", getattr(importlib.import_module(module), function))
    space, packet, overload = name.split(".")
    return cast("Callable[..., Any]", getattr(getattr(getattr(torch.ops, space), packet), overload))


def build_program(graph: Graph) -> Program:
    """Write a graph down as steps.

    Args:
        graph: Its `get_attr` nodes have the names of tensors.

    Raises:
        ValueError: It holds what cannot be written.
    """
    placeholders = graph.find_nodes(op="placeholder")
    numbers = {node: number for number, node in enumerate(placeholders)}
    steps: list[Step] = []
    for node in graph.nodes:
        if node.op == "call_function":
            keywords = {key: encode(value, numbers) for key, value in node.kwargs.items()}
            steps.append((name_operation(node.target), encode(node.args, numbers), keywords))
            resolve_operation(steps[-1][0])
            numbers[node] = len(placeholders) + len(steps) - 1
    return Program(len(placeholders), tuple(steps), encode(graph.output_node().args[0], numbers))


def name_operation(target: Any) -> str:
    if isinstance(target, OpOverload):
        return str(target)
    return target.__name__ if target in ON_SIZES.values() else f"{target.__module__}:{target.__qualname__}"


def encode(argument: Any, numbers: Mapping[Node, int]) -> Any:
    """Write an argument as JSON has it."""
    if isinstance(argument, Node):
        return {"tensor": str(argument.target)} if argument.op == "get_attr" else {"value": numbers[argument]}
    if isinstance(argument, list | tuple):
        return [encode(part, numbers) for part in argument]
    if type(argument) in ENUMS:
        return {"torch": str(argument).removeprefix("torch.")}
    if isinstance(argument, torch.device):
        return {"torch": PLACE}  # it is computed where its inputs are
    if isinstance(argument, complex):
        return {"complex": [argument.real, argument.imag]}
    if argument is None or isinstance(argument, bool | int | float | str):
        return argument
    raise ValueError(f"{argument!r} cannot be written down")


def read_program(content: Any) -> Program:
    """Read what `dataclasses.asdict` and JSON made of a program; nothing of it is run.

    Raises:
        ValueError: It is none, or it names what it may not.
    """
    try:
        steps = tuple((name, arguments, keywords) for name, arguments, keywords in content["steps"])
        program = Program(content["n_inputs"], steps, content["output"], foreign=True)
        for index, (name, arguments, keywords) in enumerate(steps):
            find_operation(name)
            check_arguments([arguments, list(keywords.values())], program.n_inputs + index)
        check_arguments(program.output, program.n_inputs + len(steps))
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"a program has n_inputs, steps and output: {first_line(error)}") from error
    return program


def check_arguments(argument: Any, n_values: int) -> None:
    """Refuse what is no argument: values of later steps, and attributes of torch that are no enumerations."""
    if isinstance(argument, list):
        for part in argument:
            check_arguments(part, n_values)
    elif isinstance(argument, dict):
        ((kind, content),) = argument.items()
        known = (
            (kind == "value" and isinstance(content, int) and 0 <= content < n_values)
            or (kind == "tensor" and isinstance(content, str))
            or (kind == "torch" and (content == PLACE or type(getattr(torch, content, None)) in ENUMS))
            or (kind == "complex" and [type(part) for part in content] == [float, float])
        )
        if not known:
            raise ValueError(f"an argument names an earlier value, a tensor or a type, got {show_value(argument)}")
