"""What ridge regression is for losses without a closed form: for classes, multinomial logistic regression.

The kernel, the penalty on the squared norm and the offset without penalty are the same. The penalty is chosen on groups
of samples that are left out, here some at a time, as every choice is a fit of its own.

References:
    Hastie, Tibshirani & Friedman, "The Elements of Statistical Learning" (2009), 12.3.3, for kernels and log-loss.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from sklearn.model_selection import GroupKFold
from torch import Tensor

PENALTIES = np.logspace(2, -4, 9)  # in units of the kernel's mean eigenvalue; from stiff to soft, each from the last
N_PARTS = 5  # of the groups, left out in turn
N_STEPS = 60
N_WORSE = 2  # penalties in a row, after which softer ones are not tried
SMALLEST = 1e-9  # eigenvalue that counts, as a share of the largest

Losses = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class KernelProblem:
    """Rows of a training part, in the coordinates in which the penalty is a plain sum of squares."""

    places: Float[Tensor, "row value"]
    base: Float[Tensor, "row *output"]  # to which the map is added
    targets: Shaped[Tensor, "row *target"]
    losses: Losses
    scale: float

    def fit(self, own: Int[np.ndarray, " row"], penalty: float, start: Float[Tensor, "value output"]) -> Tensor:
        """Minimise mean loss + penalty / 2 * squared norm over some rows; the last row of the map is its offset."""
        rows, weights = torch.from_numpy(own), start.clone().requires_grad_(True)
        optimizer = torch.optim.LBFGS(
            [weights], max_iter=N_STEPS, tolerance_grad=1e-6, tolerance_change=1e-7, line_search_fn="strong_wolfe"
        )

        def step() -> Tensor:
            optimizer.zero_grad()
            total = self.measure(rows, weights) + penalty * self.scale / len(own) / 2 * weights[:-1].square().sum()
            total.backward()  # type: ignore[no-untyped-call]
            return total

        optimizer.step(step)  # type: ignore[no-untyped-call]
        return weights.detach()

    def measure(self, rows: Int[Tensor, " row"], weights: Tensor) -> Tensor:
        added = self.places[rows] @ weights[:-1] + weights[-1]
        return self.losses(self.base[rows] + added.reshape(self.base[rows].shape), self.targets[rows]).mean()


def descend(
    kernel: Float[np.ndarray, "row row"],
    base: Float[np.ndarray, "row *output"],
    targets: Shaped[np.ndarray, "row *target"],
    groups: Int[np.ndarray, " row"],
    losses: Losses,
) -> tuple[Float[np.ndarray, "row output"], Float[np.ndarray, " output"], float]:
    """Fit with the penalty that leaves the least loss on groups left out; return coefficients, offset and that loss."""
    mean = kernel.mean(0)
    values, vectors = np.linalg.eigh(kernel - mean - mean[:, None] + mean.mean())
    kept = values > SMALLEST * max(float(values.max()), np.finfo(float).tiny)
    values, vectors = values[kept], vectors[:, kept]
    places = torch.from_numpy(vectors * np.sqrt(values))
    scale = float(values.sum()) / len(kernel) if len(values) else 1.0
    problem = KernelProblem(places, torch.from_numpy(base).double(), torch.from_numpy(targets).double(), losses, scale)
    start = torch.zeros(places.shape[1] + 1, base[0].size, dtype=torch.float64)
    every = np.arange(len(kernel))
    parts = list(GroupKFold(min(N_PARTS, len(np.unique(groups)))).split(every, groups=groups))
    starts, errors = [start] * len(parts), []
    for penalty in PENALTIES:
        starts = [problem.fit(train, penalty, own) for (train, _), own in zip(parts, starts, strict=True)]
        left_out = [
            float(problem.measure(torch.from_numpy(test), own)) * len(test)
            for (_, test), own in zip(parts, starts, strict=True)
        ]
        errors.append(sum(left_out))
        if len(errors) - 1 - int(np.argmin(errors)) == N_WORSE:
            break
    best = int(np.argmin(errors))
    for penalty in PENALTIES[: best + 1]:
        start = problem.fit(every, penalty, start)
    weights = start.numpy()
    dual = (vectors / np.sqrt(values)) @ weights[:-1]
    return dual, weights[-1] - mean @ dual, errors[best]
