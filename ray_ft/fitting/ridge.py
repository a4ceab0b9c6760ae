"""Ridge regression as a fitter: a linear map, in closed form, from what the trained part reads to the answer.

A member is the dual form of the map, one coefficient a training row and target value, where a row is a view of a
sample. Rows that a member never saw have coefficients of zero, so all members share one set of rows, and their answers
are computed by a tail like any other: `kernel(features, rows) @ coefficients + offset`, on top of what the pretrained
network says where it is fitted to that residual. The penalty, and the width of a Gaussian kernel, are chosen inside the
training part by leaving out one group of samples at a time, all of its views together, in closed form.

References:
    Hastie, Tibshirani & Friedman, "The Elements of Statistical Learning" (2009), 3.4.1 and 5.8, for the dual form and
    the residuals of samples that are left out. We depart from it in that whole groups are left out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from ray_ft.search.problem import MemberKey, Place, Problem
from ray_ft.split.graph import trace_tail
from ray_ft.split.network import Features, SplitNetwork, as_numbers
from ray_ft.split.silence import silence

BATCH_SIZE = 32  # samples at a time
MAX_VALUES = 2**15  # of a sample's features; larger ones are averaged over neighbours
PENALTIES = np.logspace(-6, 2, 33)  # in units of the kernel's mean eigenvalue
WIDTHS = (0.3, 1.0, 3.0)  # of a Gaussian kernel, in units of the median distance of two rows


class RidgeTail(nn.Module):
    """From features to answers: a kernel between a sample's features and the rows, times a member's coefficients."""

    def __init__(
        self,
        split: SplitNetwork,
        rows: Float[Tensor, "row value"],
        output_shape: tuple[int, ...],
        hyper: RidgeHyperparameters,
    ) -> None:
        super().__init__()
        self.split, self.output_shape, self.hyper = split, output_shape, hyper
        self.rows = nn.Buffer(rows)
        self.coefficients = nn.Parameter(rows.new_zeros(len(rows), math.prod(output_shape)))
        self.offset = nn.Parameter(rows.new_zeros(math.prod(output_shape)))
        self.sharpness = nn.Parameter(rows.new_ones(()))  # of a Gaussian kernel, per squared distance
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
        return answer + added


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
def attach_ridge(split: SplitNetwork, features: Features, hyper: RidgeHyperparameters) -> SplitNetwork:
    """Give a split network the tail of a ridge regression; its members are coefficients.

    Raises:
        StrategyError: The network runs whole, so there are no features.
    """
    if split.reason:
        raise StrategyError(f"fit: ridge needs a network that can be split at what it trains, but {split.reason}")
    rows = flatten_features(split, split.take(features)).float()
    outputs = split.apply_tail(split.state, split.take(features, torch.arange(2)))
    tail = RidgeTail(split, rows, tuple(outputs.shape[1:]), hyper)
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


@dataclass(frozen=True)
class Solution:
    """A ridge regression: coefficients of its rows, offset, error on groups left out, sharpness of its kernel."""

    coefficients: Float[np.ndarray, "row value"]
    offset: Float[np.ndarray, " value"]
    error: float
    sharpness: float = 1.0


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
            flat = wanted.reshape(len(own), -1).astype(np.float64)
            solve = partial(fit_kernel, wanted=flat, groups=groups, scales=np.array(objective.scales or (1.0,)))
        found = fit_rows(self.rows[torch.from_numpy(own)], groups, self.hyper.kernel, solve)
        coefficients = np.zeros((len(self.sample_of), base[0].size))
        coefficients[own] = found.coefficients
        values = {"coefficients": coefficients, "offset": found.offset, "sharpness": np.array(found.sharpness)}
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


def fit_rows(
    rows: Float[Tensor, "row value"],
    groups: Int[np.ndarray, " row"],
    kernel: str,
    solve: Callable[[Float[np.ndarray, "row row"]], Solution],
) -> Solution:
    """Fit one ridge regression, with the penalty and the width that leave the least error on groups left out.

    `solve` fits it with a kernel between the rows.

    Raises:
        StrategyError: There is no group to leave out.
    """
    if len(np.unique(groups)) < 2:
        raise StrategyError("fit: ridge leaves groups out to choose its penalty, so a training part needs two or more")
    if kernel == "linear":
        return solve((rows @ rows.T).cpu().numpy())
    distances = torch.cdist(rows, rows).square()
    apart = distances[distances > 0]
    middle = float(apart.median()) if len(apart) else 1.0
    fits = []
    for width in WIDTHS:
        sharpness = 1 / (2 * width**2 * middle)
        fits.append(replace(solve(torch.exp(-sharpness * distances).cpu().numpy()), sharpness=sharpness))
    return min(fits, key=lambda fit: fit.error)


def fit_kernel(
    kernel: Float[np.ndarray, "row row"],
    wanted: Float[np.ndarray, "row target"],
    groups: Int[np.ndarray, " row"],
    scales: Float[np.ndarray, " _"] = np.ones(1),  # noqa: B008  # it is not written to
) -> Solution:
    """Fit with the penalty that leaves the least error on groups left out; the offset is not penalised.

    A target that is NaN is missing: targets that the same rows have are fitted to these rows, and all share the
    penalty, in units of each kernel's mean eigenvalue. Their errors are in units of `scales`, one a target or for all.
    """
    there = ~np.isnan(wanted)
    dual, offset, errors = np.zeros_like(wanted), np.zeros(wanted.shape[1]), np.zeros(len(PENALTIES))
    fits = []
    for rows in np.unique(there, axis=1).T:
        columns = (there == rows[:, None]).all(0)
        place = np.ix_(rows, columns)
        if len(np.unique(groups[rows])) < 2:  # no group could be left out, so nothing but a mean is known
            offset[columns] = wanted[place].mean(0) if rows.any() else 0.0
            continue
        unit = np.broadcast_to(scales, wanted.shape[1])[columns]
        part = KernelPart.decompose(kernel[np.ix_(rows, rows)], wanted[place], groups[rows], unit)
        fits.append((place, columns, part))
        errors += [part.leave_groups_out(share) for share in PENALTIES]
    best = int(np.argmin(errors))
    for place, columns, part in fits:
        dual[place], offset[columns] = part.solve(PENALTIES[best])
    return Solution(dual, offset, errors[best])


@dataclass(frozen=True)
class KernelPart:
    """Rows and targets of which none is missing; the kernel is centred, and decomposed."""

    mean: Float[np.ndarray, " row"]  # of the kernel
    values: Float[np.ndarray, " row"]
    vectors: Float[np.ndarray, "row row"]
    offset: Float[np.ndarray, " target"]
    centred: Float[np.ndarray, "row target"]
    turned: Float[np.ndarray, "row target"]  # into the directions of the vectors
    groups: Int[np.ndarray, " row"]
    scales: Float[np.ndarray, " target"]
    unit: float  # of the penalty

    @classmethod
    def decompose(
        cls,
        kernel: Float[np.ndarray, "row row"],
        wanted: Float[np.ndarray, "row target"],
        groups: Int[np.ndarray, " row"],
        scales: Float[np.ndarray, " target"],
    ) -> "KernelPart":
        mean, offset = kernel.mean(0), wanted.mean(0)
        values, vectors = np.linalg.eigh(kernel - mean - mean[:, None] + mean.mean())
        values = np.maximum(values, 0.0)
        scale = float(values.mean())
        unit = scale if scale > np.finfo(float).eps * np.abs(kernel).max() else 1.0  # of equal rows
        centred = wanted - offset
        return cls(mean, values, vectors, offset, centred, vectors.T @ centred, groups, scales, unit)

    def solve(self, share: float) -> tuple[Float[np.ndarray, "row target"], Float[np.ndarray, " target"]]:
        """Compute coefficients and offset for a penalty in units of the mean eigenvalue."""
        dual = self.vectors @ (self.turned / (self.values + share * self.unit)[:, None])
        dual -= dual.mean(0)  # as the kernel is centred where it is fitted, and not where it predicts
        return dual, self.offset - self.mean @ dual

    def leave_groups_out(self, share: float) -> float:
        """Sum the squared errors on each group of the fit to the others, without fitting again.

        For a linear smoother H that minimises a penalised sum of squares, the residuals of rows G that are left out are
        (I - H_GG)^-1 times those of the fit to all.
        """
        shrunk = self.vectors * (self.values / (self.values + share * self.unit))
        residual = self.centred - shrunk @ self.turned
        total = 0.0
        for group in np.unique(self.groups):
            own = np.flatnonzero(self.groups == group)
            smoother = shrunk[own] @ self.vectors[own].T + 1 / len(self.groups)
            errors = np.linalg.solve(np.eye(len(own)) - smoother, residual[own]) / self.scales
            total += float((errors**2).sum())
        return total


def solve_by_descent(kernel: Float[np.ndarray, "row row"], **known: Any) -> Solution:
    return Solution(*descend(kernel, **known))
