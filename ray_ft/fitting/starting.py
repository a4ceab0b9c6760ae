"""Which fitter a stage asks for; the one place that knows them all."""

from collections.abc import Sequence
from functools import partial

import torch

from ray_ft.config import GradientHyperparameters, Hyperparameters
from ray_ft.fitting.fitter import FitSettings, Fitter
from ray_ft.fitting.gradient import GradientFitter
from ray_ft.fitting.preparation import PreparedStrategy, split_stages
from ray_ft.fitting.ridge import attach_ridge, start_ridge
from ray_ft.fitting.stages import StagedFitter, keep_state
from ray_ft.models import Pretrained
from ray_ft.search.plan import CandidateSpec
from ray_ft.search.problem import MemberKey, Problem
from ray_ft.search.strategies import Strategy
from ray_ft.split.network import SplitNetwork


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
    names = [spec.name, *(f"{spec.name}/{i}" for i in range(2, 1 + len(spec.stages)))]  # which seed what is drawn
    starts = [
        partial(start_stage, problem, own, name, hyper, keys, settings, device, n_threads)
        for own, name, hyper in zip(prepared.stages, names, spec.stages, strict=True)
    ]
    if len(starts) == 1:
        return starts[0]()
    lengths = [hyper.n_epochs for hyper in spec.stages]
    translate = prepared.carry.translate if prepared.carry else keep_state
    return StagedFitter(starts, lengths, keys, prepared.split.to("cpu").state, translate)


def start_stage(
    problem: Problem,
    prepared: PreparedStrategy,
    name: str,
    hyper: Hyperparameters,
    keys: Sequence[MemberKey],
    settings: FitSettings,
    device: torch.device,
    n_threads: int,
) -> Fitter:
    """Start members of one stage from the pretrained network."""
    if isinstance(hyper, GradientHyperparameters):
        return GradientFitter(problem, prepared, name, hyper, keys, settings, device, n_threads)
    split, features = prepared.split.to(device), tuple(feature.to(device) for feature in prepared.features)
    return start_ridge(problem, split, features, hyper, keys, prepared.solved)


def split_members(pretrained: Pretrained, strategy: Strategy, inputs: torch.Tensor) -> SplitNetwork:
    """Return the network as the members of a strategy compute with it, for an ensemble."""
    split, closed = split_stages(pretrained, strategy, inputs)[0][-1], strategy.stages[-1].closed
    return attach_ridge(split, split.compute_features(inputs), closed) if closed else split
