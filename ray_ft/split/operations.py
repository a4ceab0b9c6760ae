"""Operations of a program: those that one from a file may call, and those that one of this process may call besides."""

import operator
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from ray_ft.errors import shorten, show_value


def size_of(tensor: Tensor, axis: int) -> int | torch.SymInt:
    """The size along an axis, as a number that `vmap` leaves alone."""
    return tensor.shape[axis]


ARITHMETIC: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (operator.mul, operator.add, operator.sub, operator.floordiv)
}
ON_SIZES: dict[str, Callable[..., Any]] = {**ARITHMETIC, "getitem": operator.getitem, "size_of": size_of}
LARGEST = 2**62  # of sizes, and of what they are computed from
# Operations that reach past the tensors that they are given, or trust what these hold.
FORBIDDEN = re.compile(
    r"from_file|save|print|assert|warn|wait|backward|manual_seed|set_grad_enabled|^set|^resize|^data$|as_strided|rename"
    r"|unsafe|sparse|coo|cs[rc]|bs[rc]|quant|record|profil|storage|cuda|^_(?!softmax|log_softmax|adaptive|upsample|fft"
    r"|scaled_dot|native_batch_norm|convolution|to_copy|weight_norm|conj|transformer_encoder|native_multi_head)"
)
RETURNED = {"Tensor", "List[Tensor]", "int", "float", "bool", "number"}
UNWANTED = re.compile(r"Storage|Stream|Dimname|QScheme|__torch__")


def limit_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep arithmetic to sizes: lists and texts would multiply, and numbers grow, without end."""

    def compute(*numbers: Any) -> Any:
        for number in numbers:
            if not isinstance(number, int | float | torch.SymInt) or (
                isinstance(number, int) and abs(number) > LARGEST
            ):
                raise ValueError(f"{function.__name__} is of sizes, got {show_value(number)}")
        return function(*numbers)

    return compute


@cache
def find_operation(name: str) -> Callable[..., Any]:
    """Look an operation up.

    Raises:
        ValueError: There is none of that name, or it is not allowed.
    """
    if name in ARITHMETIC:
        return limit_numbers(ARITHMETIC[name])
    if name in ON_SIZES:
        return ON_SIZES[name]
    space, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    if space != "aten" or FORBIDDEN.search(packet) or not hasattr(torch.ops.aten, packet):
        raise ValueError(f"a step must be an operation of torch's aten, got {shorten(name)}")
    function = getattr(getattr(torch.ops.aten, packet), overload, None)
    if not isinstance(function, OpOverload) or not computes(function):
        raise ValueError(f"this release of torch has no operation {shorten(name)}")
    return function


def computes(function: OpOverload) -> bool:
    """Whether an operation gives tensors or numbers for tensors and plain values, and nothing else."""
    schema: Any = function._schema
    given = (str(value.type) for value in schema.returns)
    taken = " ".join(str(argument.type) for argument in schema.arguments)
    return bool(schema.returns) and all(kind in RETURNED for kind in given) and not UNWANTED.search(taken)
