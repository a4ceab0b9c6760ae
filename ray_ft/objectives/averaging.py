"""Means over members that every kind of answer is made of."""

import numpy as np
from jaxtyping import Float, Int

from ray_ft.domains import Tensor
from ray_ft.objectives import Members, Responses, Shares


def measure_std(members: Members, shares: Shares) -> Responses:
    """Weighted standard deviation of all members."""
    mean = np.einsum("crks,crks...->...", shares, members)
    return np.asarray(np.sqrt(np.einsum("crks,crks...->...", shares, (members - mean) ** 2)))


def average_members(
    members: Float[Tensor, "strategy repeat fold seed sample *response"],
    weights: Float[Tensor, "strategy repeat fold seed"],
) -> tuple[Float[Tensor, "repeat fold sample *response"], Float[Tensor, "sample *response"], Tensor]:
    """Compute what the fold models say, their mean, and the members' standard deviation, so that it can be exported."""
    shares = weights.view(*weights.shape, *[1] * (members.dim() - weights.dim()))
    folds = (shares * members).sum((0, 3))
    mean = folds.mean((0, 1))
    variance = (shares * (members - mean) ** 2).sum((0, 3)).mean((0, 1))
    return folds, mean, variance.sqrt()


def pick_blind(
    folds: Float[Tensor, "repeat fold sample *response"], fold_of: Int[Tensor, "repeat training"]
) -> Float[Tensor, "training sample *response"]:
    """What the fold models that never saw a training sample say, averaged over repeats, so that it can be exported."""
    import torch

    deals = [deal.index_select(0, own) for deal, own in zip(folds.unbind(), fold_of.unbind(), strict=True)]
    return torch.stack(deals).mean(0)
