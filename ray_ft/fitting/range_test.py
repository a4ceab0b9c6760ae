"""A range test: the learning rate at which most of a strategy's training loss is gone, when it rises step by step.

It trains a single member on the training part of the first fold, and looks at nothing but its training loss. The other
folds are in that part: what they know of their own samples by this is the scale that the search of all begins at.

Losses of single batches differ by far more than a small step changes them, so that the lowest of them says little. A
twin sees the same batches and learns nothing: what the two lose is compared.

References:
    Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017. We raise the rate by a factor and not by
    a difference, smooth the losses of the batches, and compare them with those of the twin.
"""

import math
from dataclasses import dataclass, replace
from itertools import chain, count

import numpy as np
import torch

from ray_ft.config import GradientHyperparameters
from ray_ft.fitting.fitter import FitSettings
from ray_ft.fitting.gradient import GradientFitter
from ray_ft.fitting.preparation import PreparedStrategy
from ray_ft.fitting.training import draw_batches, step_alone
from ray_ft.models.flops import count_flops
from ray_ft.search.plan import CandidateSpec
from ray_ft.search.problem import MemberKey, Problem
from ray_ft.split.network import SplitNetwork

LOWEST, HIGHEST, N_STEPS = 1e-6, 10.0, 84  # twelve steps a decade
KEPT = 0.7  # share of the smoothed loss that a step keeps
WORSE = 4.0  # times the lowest share, from which on nothing better is expected
N_FIRST = 12  # steps that end nothing, as a batch that is answered to rounding gets worse by any step
LEARNT = 0.999  # share from which on down something was learnt
UNKNOWN = 3e-3  # learning rate where nothing is learnt by any
SMALLEST = 1e-300
N_COUNTED = 4  # samples of the batch whose operations are counted


@dataclass(frozen=True)
class RangeTest:
    """What a range test found; `work` is the share of the network's operations that a training step runs."""

    lr: float
    work: float


def run_range_test(
    problem: Problem,
    prepared: PreparedStrategy,
    spec: CandidateSpec,
    settings: FitSettings,
    device: torch.device,
) -> RangeTest:
    """Raise the learning rate until the training loss of one member grows out of hand.

    It is that of the last stage of `spec`, which may lack the stages after it, from the pretrained weights.
    """
    hyper, key = spec.stages[-1], MemberKey(0, 0, 0)
    prepared = prepared.stages[len(spec.stages) - 1]
    assert isinstance(hyper, GradientHyperparameters)
    fitter = GradientFitter(
        problem, prepared, spec.name, hyper, [key, key], replace(settings, packing="looped"), device
    )
    (member, twin), recipe = fitter.whole.members, fitter.recipe
    batches = chain.from_iterable(draw_batches(member, recipe, epoch) for epoch in count())
    rates = np.geomspace(LOWEST, HIGHEST, N_STEPS)
    left, whole, largest, lowest, found, is_positive = 0.0, 0.0, SMALLEST, 1.0, UNKNOWN, True
    for step, (lr, batch) in enumerate(zip(rates, batches, strict=False)):
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # so that both have the same dropout
            idle = float(step_alone(twin, recipe, replace(batch, lr=0.0)))
        loss = float(step_alone(member, recipe, replace(batch, lr=float(lr))))  # of the weights before the step
        left, whole = (KEPT * old + (1 - KEPT) * new for old, new in ((left, loss), (whole, idle)))
        largest, is_positive = max(largest, abs(whole)), is_positive and idle > 0
        share = 1 + (left - whole) / (whole if is_positive else largest)  # of one that has zeros no share is a scale
        if not math.isfinite(loss) or (step >= N_FIRST and share > max(1.0, WORSE * lowest)):
            break
        if share < min(lowest, LEARNT):
            lowest, found = share, float(lr)
    return RangeTest(found, measure_work(problem, recipe.split))


def measure_work(problem: Problem, split: SplitNetwork) -> float:
    """Count the operations of a forward pass that training repeats, as a share of those of the whole network."""
    inputs = torch.from_numpy(problem.samples.inputs[:N_COUNTED]).to(split.device)
    with torch.no_grad():
        n_frozen = count_flops(lambda: split.compute_features(inputs))
        features = split.compute_features(inputs)
        n_trained = count_flops(lambda: split.apply_tail(split.state, split.take(features)))
    return n_trained / (n_trained + n_frozen) if n_trained + n_frozen else 1.0
