"""Kernel ridge regression of what a network leaves, with a gain on what it says: in closed form, by its kernel alone.

`gain * answer + kernel @ coefficients + offset` is fitted at once. The coefficients are shrunk towards 0 and the gain
of each target value towards 1; the offset is free. Both penalties, and the width of a Gaussian kernel, are those that
leave the least error on groups of samples that are left out, all views of a sample together. The gain is what an answer
on another scale or clock needs: without it the features must undo the answer before they can add to it.

References:
    Hastie, Tibshirani & Friedman, "The Elements of Statistical Learning" (2009), 3.4.1 and 5.8, for the dual form and
    the residuals of samples that are left out. We depart from it in that whole groups are left out.
    Engle, Granger, Rice & Weiss, "Semiparametric estimates of the relation between weather and electricity sales",
    Journal of the American Statistical Association 81 (1986), for a linear term beside a smooth one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ray_ft.errors import StrategyError

PENALTIES = np.logspace(-6, 2, 33)  # in units of the kernel's mean eigenvalue
STIFFNESS = np.array([np.inf, 0.3, 0.03, 0.0])  # of the gain, in units of the answer's sum of squares
WIDTHS = (0.3, 1.0, 3.0)  # of a Gaussian kernel, in units of the median distance of two rows
CONSTANT = 1e-6  # share of an answer below which it varies by rounding alone, and has no gain


Values = Float[np.ndarray, "row target"]


@dataclass(frozen=True)
class Solution:
    """A ridge regression: coefficients of its rows, offset, error on groups left out, gain, sharpness of its kernel."""

    coefficients: Float[np.ndarray, "row value"]
    offset: Float[np.ndarray, " value"]
    error: float
    gain: Float[np.ndarray, " value"] | float = 1.0
    sharpness: float = 1.0


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
    answers: Float[np.ndarray, "row target"] | None = None,
) -> Solution:
    """Fit with the penalties that leave the least error on groups left out; the offset is not penalised.

    A target that is NaN is missing: targets that the same rows have are fitted to these rows, and all share the
    penalties, in units of each kernel's mean eigenvalue and of the answers' sums of squares. Their errors are in units
    of `scales`, one a target or for all. Where `answers` are given, what is wanted is the residual to them, and each
    target has a gain of its own.
    """
    there = ~np.isnan(wanted)
    said = np.zeros_like(wanted) if answers is None else answers
    stiffness = STIFFNESS[:1] if answers is None else STIFFNESS
    dual, offset, gain = np.zeros_like(wanted), np.zeros(wanted.shape[1]), np.ones(wanted.shape[1])
    errors = np.zeros((len(PENALTIES), len(stiffness)))
    fits = []
    for rows in np.unique(there, axis=1).T:
        columns = (there == rows[:, None]).all(0)
        place = np.ix_(rows, columns)
        if len(np.unique(groups[rows])) < 2:  # no group could be left out, so nothing but a mean is known
            offset[columns] = wanted[place].mean(0) if rows.any() else 0.0
            continue
        unit = np.broadcast_to(scales, wanted.shape[1])[columns]
        part = KernelPart.decompose(kernel[np.ix_(rows, rows)], wanted[place], said[place], groups[rows], unit)
        fits.append((place, columns, part))
        errors += [part.leave_groups_out(share, stiffness) for share in PENALTIES]
    best = np.unravel_index(int(np.argmin(errors)), errors.shape)
    for place, columns, part in fits:
        dual[place], offset[columns], slope = part.solve(PENALTIES[best[0]], stiffness[best[1]])
        gain[columns] += slope
    return Solution(dual, offset, float(errors[best]), gain)


@dataclass(frozen=True)
class KernelPart:
    """Rows and targets of which none is missing; the kernel is centred, and decomposed."""

    mean: Float[np.ndarray, " row"]  # of the kernel
    values: Float[np.ndarray, " row"]
    vectors: Float[np.ndarray, "row row"]
    offset: Float[np.ndarray, " target"]
    centred: Values
    level: Float[np.ndarray, " target"]  # mean of the answers
    answers: Values  # centred; 0 where they are constant
    groups: Int[np.ndarray, " row"]
    scales: Float[np.ndarray, " target"]
    unit: float  # of the penalty

    @classmethod
    def decompose(
        cls,
        kernel: Float[np.ndarray, "row row"],
        wanted: Values,
        answers: Values,
        groups: Int[np.ndarray, " row"],
        scales: Float[np.ndarray, " target"],
    ) -> "KernelPart":
        mean, offset, level = kernel.mean(0), wanted.mean(0), answers.mean(0)
        values, vectors = np.linalg.eigh(kernel - mean - mean[:, None] + mean.mean())
        values = np.maximum(values, 0.0)
        scale = float(values.mean())
        unit = scale if scale > np.finfo(float).eps * np.abs(kernel).max() else 1.0  # of equal rows
        apart = answers - level
        apart *= np.abs(apart).max(0) > CONSTANT * np.abs(answers).max(0)
        return cls(mean, values, vectors, offset, wanted - offset, level, apart, groups, scales, unit)

    def smooth(self, share: float) -> tuple[Float[np.ndarray, "row row"], Values, Values]:
        """Return the fit without gains as a matrix but for its means, and what it leaves of targets and of answers."""
        smoother = (self.vectors * (self.values / (self.values + share * self.unit))) @ self.vectors.T
        return smoother, self.centred - smoother @ self.centred, self.answers - smoother @ self.answers

    def weigh(self, left: Values, stiffness: float) -> Float[np.ndarray, " target"]:
        """Return what divides a gain: what is left of the answers, with the penalty on it; infinite of none."""
        weight = (self.answers * left).sum(0)
        weight += stiffness * (self.answers**2).sum(0) if np.isfinite(stiffness) else np.inf
        return np.where(weight > 0, weight, np.inf)

    def solve(
        self, share: float, stiffness: float
    ) -> tuple[Values, Float[np.ndarray, " target"], Float[np.ndarray, " target"]]:
        """Compute coefficients, offset and gain above 1, for a penalty in units of the mean eigenvalue."""
        _, residual, left = self.smooth(share)
        slope = (self.answers * residual).sum(0) / self.weigh(left, stiffness)
        turned = self.vectors.T @ (self.centred - slope * self.answers)
        dual = self.vectors @ (turned / (self.values + share * self.unit)[:, None])
        dual -= dual.mean(0)  # as the kernel is centred where it is fitted, and not where it predicts
        return dual, self.offset - self.mean @ dual - slope * self.level, slope

    def leave_groups_out(self, share: float, stiffness: Float[np.ndarray, " choice"]) -> Float[np.ndarray, " choice"]:
        """Sum the squared errors on each group of the fit to the others, without fitting again.

        For a linear smoother H that minimises a penalised sum of squares, the residuals of rows G that are left out are
        (I - H_GG)^-1 times those of the fit to all. A gain adds to H a matrix of rank one, for each target its own.
        """
        smoother, residual, left = self.smooth(share)
        weights = np.stack([self.weigh(left, each) for each in stiffness])  # (choice, target)
        slopes = (self.answers * residual).sum(0) / weights
        total = np.zeros(len(stiffness))
        for group in np.unique(self.groups):
            own = np.flatnonzero(self.groups == group)
            kept = np.eye(len(own)) - smoother[np.ix_(own, own)] - 1 / len(self.groups)
            solved = np.linalg.solve(kept, np.hstack([residual[own], left[own]]))
            without, moved = np.hsplit(solved, 2)
            spared = weights - (left[own] * moved).sum(0)  # what divides the gain of the other groups
            with np.errstate(divide="ignore", invalid="ignore"):
                change = ((left[own] * without).sum(0) - slopes * (left[own] * moved).sum(0)) / spared
            others = np.where(spared > CONSTANT * weights, slopes - change, 0.0)  # without them no gain is known
            errors = (without - others[:, None] * moved) / self.scales
            total += (errors**2).sum((1, 2))
        return total
