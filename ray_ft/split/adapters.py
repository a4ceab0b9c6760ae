"""Adapters: weights that learn by a few numbers of their own, which are merged into them in each pass.

What reads a weight reads the merged one, whatever it does with it; so a member's weights are plain ones of its network.

References:
    Hu et al., "LoRA", ICLR 2022; we leave out its constant factor, as learning rates are searched, and its dropout.
    Liu et al., "(IA)^3", NeurIPS 2022, and Lian et al., "SSF", NeurIPS 2022: the factor of an output; the shift is its
    bias, which learns as it is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

START = 0  # seed of the maps down, which all members share


@dataclass(frozen=True)
class Adapter:
    """How weights learn.

    A weight is taken for a matrix, from all of its other axes to the first. `lora` adds a product of two matrices of a
    small rank to it; `scale` multiplies each row, the weights of one output.
    """

    kind: Literal["lora", "scale"]
    rank: int = 0  # of the product

    def shapes(self, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Find the shapes of the tensors by which a weight learns, by their names.

        There are none where it has one output, or fewer numbers than they, as a vector has: it learns as it is.
        """
        n_out, n_in = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
        rank = min(self.rank, n_out, n_in)
        own: dict[str, tuple[int, ...]] = {"scale": (n_out,)}
        if self.kind == "lora":
            own = {"down": (rank, n_in), "up": (n_out, rank)}
        return own if n_out > 1 and sum(map(math.prod, own.values())) < n_out * n_in else {}

    def count(self, shape: Sequence[int]) -> int:
        """Count the numbers by which a parameter learns."""
        return sum(map(math.prod, self.shapes(shape).values())) or math.prod(shape)

    def start(self, weight: Tensor) -> dict[str, Tensor]:
        """Start the tensors by which a weight learns; with them it is as it was."""
        generator, tensors = torch.Generator().manual_seed(START), {}
        for part, shape in self.shapes(weight.shape).items():
            drawn = torch.zeros(shape, dtype=weight.dtype)
            if part == "down":
                drawn = torch.randn(shape, dtype=weight.dtype, generator=generator) / math.sqrt(shape[1])
            tensors[part] = drawn.to(weight.device)
        return tensors


def name_part(weight: str, part: str) -> str:
    """Name a tensor by which a weight learns; no other has this name, as a parameter holds none."""
    return f"{weight}.{part}"


def merge_weights(
    adapted: Mapping[str, Sequence[str]], state: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Put what weights learn by into them.

    Args:
        adapted: The parts by which weights learn, by the weights' names.
        state: These, among other tensors, which stay as they are.
        weights: The weights as they were.
    """
    merged = dict(state)
    for name, parts in adapted.items():
        weight, own = weights[name], {part: merged.pop(name_part(name, part)) for part in parts}
        with torch.autocast(weight.device.type, enabled=False):
            if "scale" in own:
                merged[name] = weight * (1 + own["scale"].view(-1, *[1] * (weight.dim() - 1)))
            else:
                merged[name] = weight + (own["up"] @ own["down"]).view(weight.shape)
    return merged
