"""How many operations a pass takes: products and convolutions, as torch counts them, and what it leaves out."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def count_flops(work: Callable[[], object]) -> int:
    """Count the operations of what is called.

    Transformers take no fast path meanwhile: it is one operation, which is counted as none.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False, custom_mapping=LEFT_OUT) as flops:
            work()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(flops.get_total_flops())


def count_layer(steps: Any, first: Any, second: Any, *_: Any, **__: Any) -> int:
    """Two operations for each weight, step and sample."""
    n_weights: int = prod(first) + prod(second)
    return int(2 * prod(steps[:2]) * n_weights)


def count_stack(steps: Any, weights: Any, *_: Any, **__: Any) -> int:
    n_weights: int = sum(prod(shape) for shape in weights if len(shape) > 1)
    return int(2 * prod(steps[:2]) * n_weights)


def count_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


LEFT_OUT = {
    torch.ops.aten.mkldnn_rnn_layer: count_layer,
    torch.ops.aten._cudnn_rnn: count_stack,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: count_attention,
}
