"""Dropout as masks from outside: what a member drops depends on its own generator, not on who is computed beside it.

A graph's dropouts are replaced by products with masks. The masks of a step are drawn from the member's generator, so a
member sees the same ones alone or packed with others by `vmap`, whose own random numbers depend on the pack.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor
from torch.fx import Graph, Node

# The arguments by which operations know training, and their values in evaluation.
SWITCHES = {"train": False, "training": False, "use_input_stats": False, "dropout_p": 0.0}
RESOLUTION = 2**16  # of the probabilities
ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class DropoutSite:
    """A dropout in a tail."""

    module: str  # name of the module that it belongs to
    share: float  # of the values that it sets to zero
    shape: tuple[tuple[int, bool], ...]  # sizes of its mask, and whether each is multiplied by the samples


def draw_masks(
    sites: Sequence[DropoutSite], n_samples: int, generator: torch.Generator
) -> tuple[Shaped[Tensor, "..."], ...]:
    """Draw each site's factors: 0 with its share as probability, else what keeps the mean."""
    return tuple(draw_mask(site, n_samples, generator) for site in sites)


def draw_mask(site: DropoutSite, n_samples: int, generator: torch.Generator) -> Tensor:
    shape = [size * n_samples if per_sample else size for size, per_sample in site.shape]
    n_dropped = round(site.share * RESOLUTION)
    n_words = -(-math.prod(shape) // 4)
    # Four values from each 64-bit word: several times faster than a call of `bernoulli_`.
    words = torch.empty(n_words, dtype=torch.int64, device=generator.device).random_(
        -(2**63), None, generator=generator
    )
    values = words.view(torch.int16)[: math.prod(shape)].view(shape)
    return torch.where(values >= n_dropped - RESOLUTION // 2, RESOLUTION / max(1, RESOLUTION - n_dropped), 0.0)


def mask_dropouts(graph: Graph) -> tuple[DropoutSite, ...]:
    """Replace dropouts, in place, by products with masks from the placeholder `masks`.

    Those inside an attention make it a plain product of softmax and values, as on the CPU it is with dropout anyway;
    attentions without one may become it too.
    """
    (masks,) = (node for node in graph.find_nodes(op="placeholder") if node.target == "masks")
    sites: list[DropoutSite] = []
    for node in [node for node in graph.nodes if is_random(node)]:
        if not draws(node):
            replace_node(node, node.args[0])
        elif (site := describe_site(node)) is not None:
            kept = {name: value for name, value in arguments(node).items() if name not in {"p", "train", "dropout_p"}}
            with graph.inserting_before(node):
                mask = graph.call_function(getitem, (masks, len(sites)))
                masked = graph.call_function(attend if "query" in kept else multiply, (mask,), kept)
            replace_node(node, masked)
            sites.append(site)
    for node in graph.find_nodes(op="call_function", target=ATTENTION):
        if not (given := arguments(node))["enable_gqa"]:
            kept = {name: value for name, value in given.items() if name != "dropout_p"}
            with graph.inserting_before(node):
                replace_node(node, graph.call_function(attend_all, (), kept))
    return tuple(sites)


def replace_node(node: Node, replacement: Any) -> None:
    node.replace_all_uses_with(replacement)
    node.graph.erase_node(node)


def describe_site(node: Node) -> DropoutSite | None:
    """Read off a node what it drops; None for random operations that are no dropout."""
    given, shapes = arguments(node), node.meta["shapes"]
    operation = str(node.target).removeprefix("aten.").split(".")[0]
    if operation == "dropout":
        return DropoutSite(node.meta["module"], given["p"], shapes[0])
    if operation == "feature_dropout":
        return DropoutSite(node.meta["module"], given["p"], (*shapes[0][:2], *[(1, False)] * (len(shapes[0]) - 2)))
    if operation == "scaled_dot_product_attention" and not given["enable_gqa"]:
        query, key = shapes[:2]
        return DropoutSite(node.meta["module"], given["dropout_p"], (*query[:-1], key[-2]))
    return None


def multiply(mask: Tensor, input: Tensor) -> Tensor:
    return input * mask.to(input.dtype)


def attend_all(query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
    """Scaled dot-product attention without dropout.

    Members side by side on a GPU take plain products: for them torch (2.11) has no gradient of its fused kernels, and
    of its own plain way none in bf16.
    """
    side_by_side = any(map(torch._C._functorch.is_batchedtensor, (query, key, value)))
    if side_by_side and query.is_cuda:
        return attend(None, query, key, value, **how)
    return F.scaled_dot_product_attention(query, key, value, **how)


def attend(
    mask: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """Scaled dot-product attention whose weights are multiplied by a mask, if there is one."""
    assert not enable_gqa
    weights = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        future = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).triu(1)
        weights = weights.masked_fill(future, -math.inf)
    if attn_mask is not None:
        hidden = attn_mask.dtype == torch.bool
        weights = weights.masked_fill(~attn_mask, -math.inf) if hidden else weights + attn_mask
    hidden_rows = (weights == -math.inf).all(-1, keepdim=True)  # which see nothing, and get zeros as from torch
    shares = F.softmax(weights.masked_fill(hidden_rows, 0.0), -1).masked_fill(hidden_rows, 0.0)
    return (shares if mask is None else multiply(mask, shares)) @ value


def draws(node: Node) -> bool:
    """Whether a node draws random numbers that change its result; dropout by 0 % does not."""
    return is_random(node) and not any(arguments(node).get(name) == 0.0 for name in ("p", "dropout_p"))


def is_random(node: Node) -> bool:
    """Whether a node is of a random kind and switched to training."""
    switches = [value for name, value in arguments(node).items() if name in SWITCHES]
    seeded = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return seeded and (not switches or any(switches))


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of an operation by name, in its order; nothing for what is not one of torch's."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    formal = node.target._schema.arguments
    given = dict(zip((argument.name for argument in formal), node.args, strict=False))
    return {argument.name: argument.default_value for argument in formal} | given | node.kwargs
