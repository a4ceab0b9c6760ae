"""What members compute of inputs: their tails, the features that tell samples apart, and what to say where it fails."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from threadpoolctl import ThreadpoolController
from torch import Tensor

from ray_ft.data.packing import Layout
from ray_ft.data.ragged import is_ragged, summarize_rows
from ray_ft.errors import DataError
from ray_ft.files.memory import blame
from ray_ft.split.network import Features, SplitNetwork, as_numbers


def flatten_features(
    network: SplitNetwork, features: Features, layout: Layout = ()
) -> Float[np.ndarray, "sample feature"]:
    """Lay out, sample by sample, what a strategy's tail reads; of samples of unequal shapes, a summary of each."""
    if is_ragged(layout):
        return summarize_rows(features[0], layout).cpu().numpy()
    by_sample = (as_numbers(features[index].movedim(axis, 0)) for index, axis in network.sampled)
    return torch.cat([own.reshape(len(own), -1) for own in by_sample], 1).float().cpu().numpy()


def limit_blas() -> AbstractContextManager[Any]:
    """Keep NumPy to one thread: its threads and torch's wait for one another in busy loops, many times as long."""
    limiter: AbstractContextManager[Any] = find_pools().limit(limits=1, user_api="blas")
    return limiter


@cache
def find_pools() -> ThreadpoolController:
    return ThreadpoolController()


def apply_stacked(
    network: SplitNetwork, state: Mapping[str, Tensor], features: Features
) -> Float[Tensor, "member sample *output"]:
    """Run the tails of a strategy's members."""
    n_members = len(next(iter(state.values())))
    own = ({name: tensor[i] for name, tensor in state.items()} for i in range(n_members))
    return torch.stack([network.apply_tail(each, network.take(features)) for each in own])


def blame_inputs(source: str) -> AbstractContextManager[None]:
    """Say in one line what computing with inputs raises, such as of a token that the network does not know."""
    return blame(DataError, f"{source} must be such as the network takes, but")
