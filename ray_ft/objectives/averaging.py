"""Means over members that every kind of answer is made of."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

from ray_ft.domains import Tensor
from ray_ft.objectives import FoldOf, Folds, Members, Responses, Shares


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


def walk_folds(
    blind: Responses, fold_of: Int[np.ndarray, " sample"]
) -> Iterator[tuple[Bool[np.ndarray, " sample"], Folds, FoldOf]]:
    """Yield the samples of each fold, what their blind models say as if they were new, and who is left to judge it.

    There is one fold model, the blind one, and every sample of the other folds is one that it held out.
    """
    for fold in np.unique(fold_of):
        own = fold_of == fold
        yield own, blind[own][None, None], np.zeros((1, int((~own).sum())), int)
