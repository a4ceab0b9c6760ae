"""Ridge regression as a fitter: a linear map, in closed form, from what the trained part reads to the answer.

A member is the dual form of the map, one coefficient a training row and target value, where a row is a view of a
sample. Rows that a member never saw have coefficients of zero, so all members share one set of rows, and their answers
are computed by a tail like any other: `kernel(features, rows) @ coefficients + offset`, on top of what the pretrained
network says, times a gain, where it is fitted to that residual. How it is fitted stands in `kernel_ridge`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ray_ft.config import RidgeHyperparameters
from ray_ft.errors import StrategyError
from ray_ft.files.hashes import hash_tensors
from ray_ft.fitting.fitter import FitterDescription, Predictions, States
from ray_ft.fitting.kernel_descent import descend
from ray_ft.fitting.kernel_ridge import Solution, fit_kernel, fit_rows
from ray_ft.search.problem import MemberKey, Place, Problem
from ray_ft.split.graph import trace_tail
from ray_ft.split.network import Features, SplitNetwork, as_numbers
from ray_ft.split.silence import silence

BATCH_SIZE = 32  # samples at a time
MAX_VALUES = 2**15  # of a sample's features; larger ones are averaged over neighbours


class RidgeTail(nn.Module):
    """From features to answers: a kernel between a sample's features and the rows, times a member's coefficients."""

    def __init__(
        self,
        split: SplitNetwork,
        rows: Float[Tensor, "row value"],
        output_shape: tuple[int, ...],
        hyper: RidgeHyperparameters,
        beside: bool,
    ) -> None:
        super().__init__()
        self.split, self.output_shape, self.hyper, self.beside = split, output_shape, hyper, float(beside)
        self.rows = nn.Buffer(rows)
        self.coefficients = nn.Parameter(rows.new_zeros(len(rows), math.prod(output_shape)))
        self.offset = nn.Parameter(rows.new_zeros(math.prod(output_shape)))
        self.sharpness = nn.Parameter(rows.new_ones(()))  # of a Gaussian kernel, per squared distance
        if hyper.onto == "residual":
            self.gain = nn.Parameter(rows.new_ones(math.prod(output_shape)))  # of what the pretrained network says
        self.own = {name: f"own_{i}" for i, name in enumerate(split.tensors | split.state)}
        for name, tensor in (split.tensors | split.state).items():
            self.register_buffer(self.own[name], tensor)

    def forward(self, features: Features) -> Float[Tensor, "sample *target"]:
        kernel = compute_kernel(flatten_features(self.split, features), self.rows, self.sharpness, self.hyper.kernel)
        added = kernel @ self.coefficients + self.offset
        added = added.reshape(added.shape[0], *self.output_shape)
        if self.hyper.onto == "targets":
            return added
        tensors = {name: self.get_buffer(own) for name, own in self.own.items()}
        answer: Tensor = self.split.evaluation.run((tensors, features, ()), tensors)
        scale = (self.gain - self.beside).reshape(self.output_shape)
        return (answer * scale).masked_fill(scale == 0, 0.0) + added  # an infinite answer counts for nothing there


def compute_kernel(
    samples: Float[Tensor, "sample value"], rows: Float[Tensor, "row value"], sharpness: Tensor, kernel: str
) -> Float[Tensor, "sample row"]:
    products = samples @ rows.mT
    if kernel == "linear":
        return products
    squares = (samples**2).sum(1, keepdim=True) + (rows**2).sum(1) - 2 * products
    return torch.exp(-sharpness * squares.clamp(min=0))


def flatten_features(split: SplitNetwork, features: Features) -> Float[Tensor, "sample value"]:
    """Lay out what a tail reads of each sample; where it is large, averaged over neighbours of its longest axes."""
    axes = [split.batch_axes[i] for i in split.reads]
    flat = [
        shrink(as_numbers(feature.movedim(axis, 0))).flatten(1)
        for feature, axis in zip(features, axes, strict=True)
        if axis is not None
    ]
    return torch.cat(flat, 1)


def shrink(feature: Float[Tensor, "sample *axis"]) -> Float[Tensor, "sample *shorter"]:
    """Halve the longest axis, by averages of two neighbours, until what is left is small enough."""
    while feature[0].numel() > MAX_VALUES:
        axis = 1 + max(range(feature.dim() - 1), key=lambda i: feature.shape[1 + i])
        n_pairs = feature.shape[axis] // 2
        pairs = feature.narrow(axis, 0, 2 * n_pairs).unflatten(axis, (n_pairs, 2))  # type: ignore[no-untyped-call]
        feature = pairs.mean(axis + 1)
    return feature


@torch.no_grad()
def attach_ridge(
    split: SplitNetwork, features: Features, hyper: RidgeHyperparameters, beside: bool = False
) -> SplitNetwork:
    """Give a split network the tail of a ridge regression; its members are coefficients.

    Args:
        split: The network.
        features: Of the training samples.
        hyper: How it is fitted.
        beside: Whether it answers with what it adds to what the network says.

    Raises:
        StrategyError: The network runs whole, so there are no features.
    """
    if split.reason:
        raise StrategyError(f"fit: ridge needs a network that can be split at what it trains, but {split.reason}")
    rows = flatten_features(split, split.take(features)).float()
    outputs = split.apply_tail(split.state, split.take(features, torch.arange(2)))
    tail = RidgeTail(split, rows, tuple(outputs.shape[1:]), hyper, beside)
    name = f"ridge.{hash_tensors({'rows': rows})[:16]}"
    known = {id(tensor): own for own, tensor in (split.tensors | split.state).items()} | {id(tail.rows): name}
    axes = [split.batch_axes[i] for i in split.reads]
    example = [
        feature if axis is None else feature.narrow(axis, 0, min(4, feature.shape[axis])).contiguous()
        for feature, axis in zip(split.take(features), axes, strict=True)
    ]
    with silence():
        program = trace_tail(tail, known, example, axes)
    state = {own: parameter.detach().clone() for own, parameter in tail.named_parameters()}
    return replace(
        split,
        state=state,
        trained_names=tuple(state),
        tensors=split.tensors | split.state | {name: rows},
        evaluation=program,
        training=program,
        sites=(),
        draws=False,
    )


@torch.no_grad()
def predict_rows(split: SplitNetwork, features: Features, n_rows: int) -> Float[np.ndarray, "row *target"]:
    """What the pretrained network says of each view of each sample."""
    parts = torch.split(torch.arange(n_rows), BATCH_SIZE)
    predicted = [split.apply_tail(split.state, split.take(features, part)) for part in parts]
    found: np.ndarray = torch.cat(predicted).cpu().numpy()
    return found


class RidgeFitter:
    """Members in closed form; their seeds differ in nothing."""

    def __init__(
        self,
        problem: Problem,
        split: SplitNetwork,
        features: Features,
        zero_shot: Float[np.ndarray, "row *target"],
        hyper: RidgeHyperparameters,
        keys: Sequence[MemberKey],
        solved: Mapping[Place, dict[str, Tensor]],
    ) -> None:
        self.problem, self.split, self.features, self.hyper, self.keys = problem, split, features, hyper, tuple(keys)
        self.solved = dict(solved)
        targets = problem.move_targets(step=problem.closed_step)
        self.sample_of = np.tile(np.arange(targets.shape[1]), targets.shape[0])  # of the rows
        base = zero_shot if hyper.onto == "residual" else np.zeros_like(zero_shot)
        self.base, self.targets = base, targets.reshape(-1, *targets.shape[2:])
        rows = next(tensor for name, tensor in split.tensors.items() if name.startswith("ridge."))
        self.rows = rows.double()
        self.frozen_hash = hash_tensors(split.tensors)
        self.states: States = dict.fromkeys(self.keys, split.state)  # which add nothing
        self.kept = dict(self.states)

    def run_epoch(self, epoch: int) -> None:
        """Fit every fold, once for all seeds, that is not solved already."""
        for key in self.keys:
            if key.place not in self.solved:
                self.solved[key.place] = self.fit(self.problem.splits.training(*key.place))
            self.states[key] = {name: own.to(self.split.device) for name, own in self.solved[key.place].items()}

    def fit(self, samples: Int[np.ndarray, " training"]) -> dict[str, Tensor]:
        own = np.flatnonzero(np.isin(self.sample_of, samples))
        groups = self.problem.samples.groups[self.sample_of[own]]
        base, targets, objective = self.base[own], self.targets[own], self.problem.objective
        wanted = objective.linear_residual(base, targets)
        if wanted is None:
            solve = partial(solve_by_descent, base=base, targets=targets, groups=groups, losses=objective.losses)
        else:
            flat, said = (array.reshape(len(own), -1).astype(np.float64) for array in (wanted, base))
            scales = np.array(objective.scales or (1.0,))
            solve = partial(fit_kernel, wanted=flat, groups=groups, scales=scales, answers=said)
        found = fit_rows(self.rows[torch.from_numpy(own)], groups, self.hyper.kernel, solve)
        coefficients = np.zeros((len(self.sample_of), base[0].size))
        coefficients[own] = found.coefficients
        values = {"coefficients": coefficients, "offset": found.offset, "sharpness": np.array(found.sharpness)}
        if self.hyper.onto == "residual":
            values["gain"] = np.full_like(found.offset, found.gain)
        return {name: torch.from_numpy(array).float().to(self.split.device) for name, array in values.items()}

    @torch.no_grad()
    def predict(self) -> Predictions:
        """Predict, by each member, the samples that it is watched on."""
        found = {}
        for key in self.keys:
            watched = torch.from_numpy(self.problem.splits.watched(key.repeat, key.fold))
            features = self.split.take(self.features, watched.to(self.split.device))
            outputs = self.split.apply_tail(self.states[key], features)
            found[key] = self.problem.objective.respond(outputs).cpu().numpy()
        return found

    def take_snapshots(self, improved: Bool[np.ndarray, "repeat fold"]) -> None:
        self.kept |= {key: self.states[key] for key in self.keys if improved[key.place]}

    def collect_snapshots(self) -> States:
        return {key: {name: tensor.cpu() for name, tensor in state.items()} for key, state in self.kept.items()}

    def save(self) -> dict[MemberKey, dict[str, Any]]:
        return {key: {"state": self.states[key], "kept": self.kept[key]} for key in self.keys}

    def load(self, saved: Mapping[MemberKey, dict[str, Any]]) -> None:
        device = self.split.device  # a checkpoint is read on the CPU
        self.states, self.kept = (
            {key: {name: tensor.to(device) for name, tensor in saved[key][part].items()} for key in self.keys}
            for part in ("state", "kept")
        )

    def has_drifted(self) -> bool:
        return hash_tensors(self.split.tensors) != self.frozen_hash

    def describe(self) -> FitterDescription:
        return FitterDescription("", f"in closed form, {self.hyper.kernel} kernel, fitted to the {self.hyper.onto}")


def start_ridge(
    problem: Problem,
    split: SplitNetwork,
    features: Features,
    hyper: RidgeHyperparameters,
    keys: Sequence[MemberKey],
    solved: Mapping[Place, dict[str, Tensor]],
) -> RidgeFitter:
    """Start members from the pretrained network.

    Raises:
        StrategyError: The network runs whole, so there are no features.
    """
    zero_shot = predict_rows(split, features, len(problem.samples) * -(-problem.n_views // problem.closed_step))
    return RidgeFitter(problem, attach_ridge(split, features, hyper), features, zero_shot, hyper, keys, solved)


def solve_by_descent(kernel: Float[np.ndarray, "row row"], **known: Any) -> Solution:
    return Solution(*descend(kernel, **known))
