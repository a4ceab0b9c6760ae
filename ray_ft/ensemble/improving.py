"""What may be done to an ensemble without training: pull its weights back, and average it over the symmetry.

Each is judged by blind members, and taken where it is better; how far weights are pulled back is chosen on the other
folds.

References:
    Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022 (WiSE-FT), for the interpolation between
    pretrained and fine-tuned weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ray_ft.ensemble.choosing import Judge
from ray_ft.ensemble.model import Ensemble
from ray_ft.ensemble.weights import Blind, OutOfFold, Weights, blend
from ray_ft.search.problem import Problem

SHARES = (0.25, 0.5, 0.75)  # of the way from the pretrained weights to the fine-tuned ones
TRAINED, PULLED = "the weights as trained", "the pull back to the pretrained weights"
SINGLE, AVERAGED = "the sample as it is", "the average over all views"
LIKELY = 0.9  # chance of being better, from which on averages are taken
ByFold = Float[np.ndarray, "repeat fold"]


@dataclass(frozen=True)
class Improved:
    """An ensemble, what its members say of samples that they never saw, and for the summary what it was tried by."""

    ensemble: Ensemble
    columns: OutOfFold
    tried: dict[str, Any]


def pull_back(
    judge: Judge, ensemble: Ensemble, weights: Mapping[str, Tensor], plain: OutOfFold, asked: bool | None
) -> Improved:
    """Interpolate between the pretrained weights and those of the members, by a share that the other folds chose.

    Args:
        judge: It knows the targets.
        ensemble: As it was trained.
        weights: The pretrained ones.
        plain: What its members say of samples that they never saw.
        asked: Whether it is done; None for where it is better beyond noise.
    """
    if asked is False or not any(weights.keys() & own.keys() for own in ensemble.states.values()):
        return Improved(ensemble, plain, {})  # what closed forms solve has no pretrained value
    of_columns, everywhere = gather_weights(ensemble), np.ones(judge.problem.by_fold)
    said = [predict_columns(interpolate(ensemble, weights, share * everywhere), judge.problem) for share in SHARES]
    columns = np.stack([*said, plain])
    shares = choose_shares(judge, [blend(own, of_columns, judge.splits) for own in columns])
    pulled = np.empty_like(plain)
    for r, k in np.ndindex(shares.shape):
        held_out = judge.splits.held_out(r, k)
        pulled[:, r, held_out] = columns[(*SHARES, 1.0).index(shares[r, k])][:, r, held_out]
    blind = {name: blend(own, of_columns, judge.splits) for name, own in ((TRAINED, plain), (PULLED, pulled))}
    (pair,) = judge.compare(blind)
    tried = {"pulled_pair": pair, "pulled_score": judge.score(blind[PULLED])}
    if not (pair.verdict == "better" if asked is None else asked):
        return Improved(ensemble, plain, tried)
    moved = interpolate(ensemble, weights, shares)
    card = moved.card.model_copy(update={"pulled_shares": tuple(shares.ravel().tolist())})
    return Improved(replace(moved, card=card), pulled, tried)


def choose_shares(judge: Judge, blind: list[Blind]) -> ByFold:
    """Choose the share of each fold that is best on the others; the last, 1, of equals."""
    shares, splits, score = np.empty(judge.problem.by_fold), judge.splits, judge.problem.objective.score
    for r, k in np.ndindex(shares.shape):
        others = np.setdiff1d(np.arange(splits.n_samples), splits.held_out(r, k))
        losses = [score(own[r, others], judge.targets[others]).mean() for own in reversed(blind)]
        shares[r, k] = (1.0, *reversed(SHARES))[int(np.argmin(losses))]
    return shares


def interpolate(ensemble: Ensemble, weights: Mapping[str, Tensor], shares: ByFold) -> Ensemble:
    """Move the members' weights to such a share of the way from the pretrained ones; what is none of these stays."""
    n_seeds = ensemble.card.n_seeds
    of_members = torch.from_numpy(shares.ravel().repeat(n_seeds)).float().to(ensemble.device)

    def move(start: Tensor, trained: Tensor) -> Tensor:
        if not (trained.is_floating_point() or trained.is_complex()):
            return trained
        share = of_members.view(-1, *[1] * start.dim()).to(trained.dtype)
        return torch.where(share == 1, trained, start + share * (trained - start))

    states = {
        strategy: {
            name: move(weights[name].to(own.device), own) if name in weights else own for name, own in members.items()
        }
        for strategy, members in ensemble.states.items()
    }
    return replace(ensemble, states=states)


def average_symmetry(judge: Judge, before: Improved, asked: bool | None) -> Improved:
    """Average predictions over the symmetry, if asked to, or where that is better with a chance of 90 %.

    Averages over a symmetry that holds make no convex loss worse in expectation (Jensen), so less is asked for than of
    a strategy; a prediction costs as many times as much as there are views.
    """
    ensemble, weights = before.ensemble, gather_weights(before.ensemble)
    if not ensemble.card.symmetry or asked is False:
        return before
    columns = predict_columns(symmetric := ensemble.use_symmetry(True), judge.problem)
    blind = {name: blend(own, weights, judge.splits) for name, own in ((SINGLE, before.columns), (AVERAGED, columns))}
    (pair,) = judge.compare(blind)
    tried = before.tried | {"symmetric_pair": pair, "symmetric_score": judge.score(blind[AVERAGED])}
    helps = pair.probabilities[0] >= LIKELY if asked is None else asked
    return Improved(symmetric, columns, tried) if helps else replace(before, tried=tried)


def predict_columns(ensemble: Ensemble, problem: Problem) -> OutOfFold:
    """What the members say of the training samples that they never saw: a column a strategy and seed."""
    card, splits, inputs = ensemble.card, problem.splits, problem.samples.inputs
    shape = len(card.strategies) * card.n_seeds, splits.n_repeats, len(inputs), *problem.response_shape
    columns = np.empty(shape)
    for r, k in np.ndindex(problem.by_fold):
        held_out, own = splits.held_out(r, k), ensemble.take_fold(r, k)
        said = np.concatenate([part for part, _ in own.walk_members(inputs[held_out], card.symmetric)], 4)
        columns[:, r, held_out] = said.reshape(len(columns), *said.shape[4:])
    return columns


def gather_weights(ensemble: Ensemble) -> Weights:
    """Bring the members' weights into the order of folds and columns."""
    weights = ensemble.weights.transpose(1, 2, 0, 3)
    return weights.reshape(*weights.shape[:2], -1)
