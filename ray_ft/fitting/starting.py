"""Which fitter a stage asks for; the one place that knows them all."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from ray_ft.config import GradientHyperparameters, Hyperparameters, RidgeHyperparameters
from ray_ft.fitting.fitter import FitSettings, Fitter
from ray_ft.fitting.gradient import GradientFitter
from ray_ft.fitting.preparation import PreparedStrategy
from ray_ft.fitting.ridge import RidgeFitter, attach_ridge
from ray_ft.search.plan import CandidateSpec
from ray_ft.search.problem import MemberKey, Problem
from ray_ft.split.network import SplitNetwork

BATCH_SIZE = 32  # samples at a time


def start_fitter(
    problem: Problem,
    prepared: PreparedStrategy,
    spec: CandidateSpec,
    keys: Sequence[MemberKey],
    settings: FitSettings,
    device: torch.device,
    n_threads: int = 1,
) -> Fitter:
    """Start members of a candidate from the pretrained network.

    Raises:
        StrategyError: The network does not suit the fit.
    """
    hyper = spec.stages[-1]
    if isinstance(hyper, GradientHyperparameters):
        return GradientFitter(problem, prepared, spec.name, hyper, keys, settings, device, n_threads)
    split, features = prepared.split.to(device), tuple(feature.to(device) for feature in prepared.features)
    zero_shot = predict_rows(split, features, problem.n_views * len(problem.samples))
    completed = attach_ridge(split, features, hyper)
    return RidgeFitter(problem, completed, features, zero_shot, hyper, keys)


def complete_split(split: SplitNetwork, inputs: torch.Tensor, hyper: Hyperparameters) -> SplitNetwork:
    """Return the network as the members of a stage compute with it, for an ensemble."""
    if isinstance(hyper, RidgeHyperparameters):
        return attach_ridge(split, split.compute_features(inputs), hyper)
    return split


@torch.no_grad()
def predict_rows(
    split: SplitNetwork, features: tuple[torch.Tensor, ...], n_rows: int
) -> Float[np.ndarray, "row *target"]:
    """What the pretrained network says of each view of each sample."""
    parts = torch.split(torch.arange(n_rows), BATCH_SIZE)
    predicted = [split.apply_tail(split.state, split.take(features, part)) for part in parts]
    found: np.ndarray = torch.cat(predicted).cpu().numpy()
    return found
