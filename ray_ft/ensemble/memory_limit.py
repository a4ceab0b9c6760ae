"""Memory that a foreign program would take, found before it takes it."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ray_ft.files.memory import describe_excess

SMALL_BYTES = 2**26  # what is below is not compared


class MemoryGuard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes the shapes of each operation's results first, and refuses those that do not fit into memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        n_bytes = measure_results(func, args, kwargs or {})
        if n_bytes > SMALL_BYTES and (excess := describe_excess(n_bytes)):
            raise ValueError(f"{func}: {excess}")
        return func(*args, **(kwargs or {}))


def measure_results(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
    """Bytes of an operation's results; 0 where only their values tell, or the operation itself is refused."""
    if any(argument.name == "device" for argument in func._schema.arguments):
        kwargs = {**kwargs, "device": "meta"}
    try:
        results = func(*tree_map_only(Tensor, make_shape, args), **tree_map_only(Tensor, make_shape, kwargs))
    except Exception:  # of any class; the operation itself is yet to run
        return 0
    return sum(result.nbytes for result in tree_leaves(results) if isinstance(result, Tensor))


def make_shape(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
