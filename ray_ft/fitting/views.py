"""What members are trained on: the features of every view of every sample, and of noisy copies of them."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ray_ft.split.network import SplitNetwork


@dataclass(frozen=True)
class ViewBank:
    """Features and targets of every view of every sample, and features of noisy copies of them.

    The row of a sample is `(copy * n_views + view) * n_samples + sample`; copy 0 is clean, view 0 is the sample itself.
    The last samples are those that are replayed.
    """

    features: tuple[Tensor, ...]
    targets: Float[Tensor, "view sample *target"]
    n_noisy: int = 0
    n_replayed: int = 0

    @property
    def n_views(self) -> int:
        return len(self.targets)

    @property
    def n_samples(self) -> int:
        return self.targets.shape[1]


def add_noisy_copies(
    bank: ViewBank,
    split: SplitNetwork,
    inputs: Float[Tensor, "view sample *input"],
    noise_std: float,
    n_noisy: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    n_threads: int = 1,
) -> ViewBank:
    """Run the backbone over `n_noisy` copies of each view with Gaussian noise; without noise, there are none."""
    if not noise_std:
        return bank
    flat = inputs.flatten(0, 1)
    generator = torch.Generator().manual_seed(seed)
    noises = (torch.randn(flat.shape, generator=generator).to(flat.device) for _ in range(n_noisy))
    compute = partial(split.compute_features, dtype=dtype, n_threads=n_threads)
    copies = [bank.features, *(compute(flat + noise_std * noise) for noise in noises)]
    features = tuple(
        parts[0] if axis is None else torch.cat(parts, axis)
        for parts, axis in zip(zip(*copies, strict=True), split.batch_axes, strict=True)
    )
    return replace(bank, features=features, n_noisy=n_noisy)


def draw_views(
    bank: ViewBank, samples: Int[np.ndarray, " training"], n_drawn: int | None, rng: np.random.Generator
) -> Int[np.ndarray, " row"]:
    """Rows of all views of the samples, or of so many different ones of each sample."""
    views = np.broadcast_to(np.arange(bank.n_views)[:, None], (bank.n_views, len(samples)))
    if n_drawn is not None and n_drawn < bank.n_views:
        views = rng.permuted(views, axis=0)[:n_drawn]
    return np.asarray((views * bank.n_samples + samples).ravel())


def draw_replayed(bank: ViewBank, n_drawn: int, rng: np.random.Generator) -> Int[np.ndarray, " row"]:
    """Rows of so many replayed samples, different ones where there are as many, each in one of its views."""
    samples = rng.choice(bank.n_replayed, n_drawn, replace=n_drawn > bank.n_replayed)
    views = rng.integers(bank.n_views, size=n_drawn)
    return np.asarray((views + 1) * bank.n_samples - bank.n_replayed + samples)
