"""A graph of tensor operations as data: it is written as JSON, read back and run, without the code that it came from.

A program is a list of steps, each a call of an operation of torch's `aten` on earlier values. Reading one runs nothing;
running one calls nothing but `aten` and a few functions on sizes, so a foreign file can compute, and do no more.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ray_ft.errors import first_line, show_value
from ray_ft.split.operations import ON_SIZES, find_operation, size_of

__all__ = ["Program", "read_program", "size_of", "write_program"]


ENUMS = {torch.dtype: "dtype", torch.memory_format: "memory_format", torch.layout: "layout"}


@dataclass(frozen=True)
class Program:
    """Steps in their order, as JSON has them.

    Attributes:
        n_inputs: How many values it is given.
        steps: `[operation, arguments, keywords]`; a value is named by `{"value": i}`, where the inputs come first and
            then the results of the steps, a constant by `{"tensor": name}`.
        output: One argument: a value, or a list of values.
    """

    n_inputs: int
    steps: tuple[tuple[str, Any, Any], ...]
    output: Any

    def run(self, inputs: Sequence[Any], tensors: Mapping[str, Tensor]) -> Any:
        """Compute the output.

        Args:
            inputs: The values that it is given.
            tensors: Constants by name.
        """
        values = list(inputs)
        assert len(values) == self.n_inputs

        for index, (name, args, keywords) in enumerate(self.steps):
            named = {key: resolve(value, values, tensors) for key, value in keywords.items()}
            values.append(find_operation(name)(*resolve(args, values, tensors), **named))
            for done in self.last_uses.get(index, ()):
                values[done] = None  # so that memory holds no more than what is still needed
        return resolve(self.output, values, tensors)

    @cached_property
    def last_uses(self) -> dict[int, list[int]]:
        """By step, the values that nothing reads after it."""
        last = {
            value: index
            for index, (_, args, keywords) in enumerate(self.steps)
            for value in list_named([args, *keywords.values()], "value")
        }
        kept = {*range(self.n_inputs), *list_named(self.output, "value")}
        by_step: dict[int, list[int]] = {}
        for value in last.keys() - kept:
            by_step.setdefault(last[value], []).append(value)
        return by_step

    @property
    def constants(self) -> list[str]:
        """Names of the constants, each once."""
        every = [[args, *keywords.values()] for _, args, keywords in self.steps]
        return list(dict.fromkeys(list_named([*every, self.output], "tensor")))


def resolve(argument: Any, values: Sequence[Any], tensors: Mapping[str, Tensor]) -> Any:
    """Look up what an argument names; as a closure that calls itself it would keep the values alive."""
    if isinstance(argument, list):
        return [resolve(part, values, tensors) for part in argument]
    if not isinstance(argument, dict):
        return argument
    ((kind, content),) = argument.items()
    if kind == "value":
        return values[content]
    return tensors[content] if kind == "tensor" else getattr(torch, content)


def list_named(argument: Any, kind: str) -> Iterator[Any]:
    """Find what nested arguments name of a kind."""
    if isinstance(argument, list | tuple):
        for part in argument:
            yield from list_named(part, kind)
    elif isinstance(argument, dict):
        for key, content in argument.items():
            if key == kind:
                yield content


def write_program(graph: Graph, name_of: Mapping[str, str]) -> Program:
    """Write a graph down.

    Args:
        graph: Of `aten` operations.
        name_of: Names of the tensors that its `get_attr` nodes read.

    Raises:
        ValueError: It holds what cannot be written.
    """
    placeholders = graph.find_nodes(op="placeholder")
    numbers = {node: number for number, node in enumerate(placeholders)}
    steps: list[tuple[str, Any, Any]] = []

    def encode(argument: Any) -> Any:
        if isinstance(argument, Node):
            named = argument.op == "get_attr"
            return {"tensor": name_of[str(argument.target)]} if named else {"value": numbers[argument]}
        if isinstance(argument, list | tuple):
            return [encode(part) for part in argument]
        if type(argument) in ENUMS:
            return {"torch": str(argument).removeprefix("torch.")}
        if isinstance(argument, torch.device):
            return None  # it is computed where its inputs are
        if argument is None or isinstance(argument, bool | int | float | str):
            return argument
        raise ValueError(f"{argument!r} cannot be written down")

    for node in graph.nodes:
        if node.op != "call_function":
            continue
        name = node.target.__name__ if node.target in ON_SIZES.values() else str(node.target)
        find_operation(name)
        keywords = {key: encode(value) for key, value in node.kwargs.items()}
        steps.append((name, encode(node.args), keywords))
        numbers[node] = len(placeholders) + len(steps) - 1
    return Program(len(placeholders), tuple(steps), encode(graph.output_node().args[0]))


def read_program(content: Any) -> Program:
    """Read what `dataclasses.asdict` and JSON made of a program.

    Raises:
        ValueError: It is none, or it names what it may not.
    """
    try:
        steps = tuple((name, args, keywords) for name, args, keywords in content["steps"])
        program = Program(content["n_inputs"], steps, content["output"])
        for index, (name, args, keywords) in enumerate(steps):
            find_operation(name)
            check_arguments([args, list(keywords.values())], program.n_inputs + index)
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
            or (kind == "torch" and type(getattr(torch, content, None)) in ENUMS)
        )
        if not known:
            raise ValueError(f"an argument names an earlier value, a tensor or a type, got {show_value(argument)}")
