"""How far the truth may lie from what the fold models predict: CV+ prediction intervals.

A training sample i has a blind model: the mean, over the re-deals of the folds, of the fold models that never saw it.
Its residual there says how wrong a model of this kind is; what it predicts for a new sample says where. An interval
comes from the order statistics of both, n of them together.

What is guaranteed, for exchangeable samples, folds of equal size n/K, one deal, and fold models of which nothing was
chosen on the fold that they leave out (nested protocol, uniform weights), is the paper's theorem 4:

    coverage >= 1 - 2 α - min(2 (1 - 1/K) / (n/K + 1), (1 - K/n) / (K + 1)) >= 1 - 2 α - sqrt(2 / n)

The last term vanishes for folds of one sample; for n = 100, K = 5, α = 0.1 the bound is 0.72. Coverage as measured is
near 1 - α. It is an average over training sets and new samples, not a promise about a particular one, and groups of
samples that are images of each other are exchangeable as groups only.

References:
    Barber, Candès, Ramdas & Tibshirani, "Predictive inference with the jackknife+", Annals of Statistics 49 (2021),
    section 3. Kim, Xu & Barber, "Predictive inference is free with the jackknife+-after-bootstrap", NeurIPS 2020: the
    mean over several models blind to the same sample. We depart from them in that re-deals take the place of bootstrap
    samples, for which nothing is proven, and in the band for a whole target, `build_simultaneous`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from ray_ft.errors import ConfigError

CHUNK_BYTES = 2**23  # of the ends alive at a time; more take longer, by page faults
SMALLEST_SCALE = 1e-3  # of a target value, as a share of the mean scale
ALPHAS = tuple(i / 20 for i in range(1, 10))
WITHOUT_INTERVALS = "until then predictions have none"
SLACK = 1e-9  # 1 - 0.9 is a little less than 0.1, and must not cost a rank


Predictions = Float[np.ndarray, "repeat fold new *target"]  # of each fold model for the new samples
Residuals = Float[np.ndarray, "sample *target"]  # targets of the training samples minus their blind predictions
FoldOf = Int[np.ndarray, "repeat sample"]  # which fold of each repeat held out each training sample
Values = Float[np.ndarray, "new *target"]
Ends = tuple[Values, Values]  # lower and upper, of intervals


@dataclass(frozen=True)
class Coverage:
    """Share of the target values inside, of the samples with every value inside, and the mean width of intervals."""

    values: float
    samples: float
    width: float


@dataclass(frozen=True)
class CalibrationPoint:
    """Shares of target values inside their intervals, and of samples inside their bands, for a level of 1 - α."""

    level: float
    values: float
    samples: float


def build_pointwise(predictions: Predictions, residuals: Residuals, fold_of: FoldOf, alpha: float) -> Ends:
    """Build an interval for each target value by itself.

    Returns:
        Lower and upper ends, in the precision of the predictions and residuals, float32 at least. A few new samples
        are computed at a time, one at the least, in about 10 MB.

    Raises:
        ConfigError: The level is not one, or the training samples are too few for it.
    """
    return build_band(predictions, np.abs(residuals), fold_of, alpha)


def build_simultaneous(predictions: Predictions, residuals: Residuals, fold_of: FoldOf, alpha: float) -> Ends:
    """Build a band that holds the whole target of a new sample at once.

    A training sample's score is its largest residual, each in units of the scale of its target value, and its band is
    its blind prediction ± scale × score. A target outside the band at any one value has a larger score than at least
    ceil((1 - α) (n + 1)) training samples, each seen from its own blind model, and the paper's proof is about such
    comparisons alone: its bound holds for whole targets, if the scales are fixed beforehand.

    Ours are root mean squares of the residuals of all *other* training samples, so that the sample and the new one are
    measured alike. That is outside the proof in that the others' models were trained on the one and not on the other.
    Measured, it covers at the level; with the sample's own residual in its scale, 90 % bands of 244 independent,
    heavy-tailed values from 100 samples held 76 %.

    Returns and Raises are those of `build_pointwise`, whose intervals lie inside.
    """
    return build_band(predictions, widen_to_score(residuals), fold_of, alpha)


def measure_coverage(lower: Values, upper: Values, targets: Values) -> Coverage:
    """Measure what intervals hold of the true targets, ends included, as far as there are both."""
    inside = ((lower <= targets) & (targets <= upper)).reshape(len(targets), -1)
    counted = ~np.isnan(targets - lower).reshape(inside.shape)
    width = float(np.mean(upper - lower, dtype=np.float64, where=~np.isnan(lower)))
    whole = (inside | ~counted).all(1)[counted.any(1)]
    return Coverage(values=float(inside[counted].mean()), samples=float(whole.mean()), width=width)


def trace_calibration(
    predictions: Predictions,
    residuals: Residuals,
    fold_of: FoldOf,
    targets: Values,
    alphas: Sequence[float] | None = None,
) -> tuple[CalibrationPoint, ...]:
    """Measure the coverage of fresh samples at several levels, in one pass and without building the intervals.

    Where left out, the levels are 0.95, 0.9, … 0.55, as far as the training samples suffice; `check_level` takes them.
    """
    n_samples, n_labels = fold_of.shape[1], count_labels(residuals).ravel()
    there = ~np.isnan(targets).reshape(len(targets), -1)
    if alphas is None:
        alphas = [alpha for alpha in ALPHAS if (there & (find_ranks(alpha, n_labels) >= 1)).any()]
    for alpha in alphas:
        check_level(alpha, count_most(residuals))
    depths = count_depths(predictions, np.abs(residuals), fold_of, targets)
    wholes = count_depths(predictions, widen_to_score(residuals), fold_of, targets)
    lowest = np.where(there & (n_labels > 0), wholes, n_samples).min(1)
    return tuple(
        CalibrationPoint(
            level=1 - alpha,
            values=float((depths >= ranks)[there & (ranks >= 1)].mean()),
            samples=float((lowest >= find_rank(alpha, n_samples)).mean()),
        )
        for alpha, ranks in ((alpha, find_ranks(alpha, n_labels)) for alpha in alphas)
    )


def check_level(alpha: float, n_samples: int) -> None:
    """Refuse a level at which intervals mean nothing, or would be infinite.

    Raises:
        ConfigError: `0 < alpha < 0.5` does not hold, or the training samples are too few.
    """
    level = f"{100 * (1 - alpha):.6g} %"
    if not 0 < alpha < 0.5:
        raise ConfigError(f"the level of intervals must lie between 50 % and 100 %, got {level}; 90 % is usual")
    if lack := describe_lack(alpha, n_samples):
        raise ConfigError(lack)


def describe_lack(alpha: float, n_samples: int) -> str:
    """Say from how many samples on there are intervals; nothing where there are enough."""
    if find_rank(alpha, n_samples) >= 1:
        return ""
    needed = math.ceil((1 - SLACK) / alpha) - 1
    text = f"intervals of {100 * (1 - alpha):.6g} % need at least {needed} samples, got {n_samples}"
    return f"{text}; lower the level or add samples"


def note_lacks(alpha: float, targets: Shaped[np.ndarray, "sample *target"]) -> Iterator[str]:
    """Say that there are no intervals of any target value, or of which, as too few samples have it."""
    if lack := describe_lack(alpha, count_most(targets)):
        yield f"{lack}; {WITHOUT_INTERVALS}"
        return
    n_labels = count_labels(targets)
    if n_few := int((find_ranks(alpha, n_labels) < 1).sum()):
        yield (
            f"too few samples have {n_few} of the {n_labels.size} values of a target for intervals of "
            f"{100 * (1 - alpha):.6g} %: theirs are NaN"
        )


def find_rank(alpha: float, n_samples: int) -> int:
    """Find the rank of a lower end from below, and of an upper one from above: n + 1 - ceil((1 - α) (n + 1))."""
    return math.floor(alpha * (n_samples + 1) + SLACK)


def find_ranks(alpha: float, n_labels: Int[np.ndarray, "*target"]) -> Int[np.ndarray, "*target"]:
    """Do the same for each target value, by the training samples that have it."""
    return np.asarray(np.floor(alpha * (n_labels + 1) + SLACK), int)


def count_labels(residuals: Shaped[np.ndarray, "sample *target"]) -> Int[np.ndarray, "*target"]:
    """Count the samples that have each target value, which is NaN where it is missing."""
    return np.asarray((~np.isnan(residuals)).sum(0))


def count_most(residuals: Shaped[np.ndarray, "sample *target"]) -> int:
    """Count the samples of the target value that most have."""
    return int(count_labels(residuals).max())


def widen_to_score(residuals: Residuals) -> Residuals:
    """Widen each sample's residuals to its largest in units of the others' scale, which is never 0.

    Missing ones are left out of both, and have margins like the others, but of a target value that no sample has.
    """
    sizes = np.abs(residuals.reshape(len(residuals), -1).astype(np.float64))
    there = ~np.isnan(sizes)
    known = there.any(0)
    sizes = np.where(there, sizes, 0.0)
    squares, n_others = np.square(sizes), np.maximum(there.sum(0) - there, 1)  # a lone sample is refused later
    scale = np.sqrt(np.maximum(squares.sum(0) - squares, 0) / n_others)
    middle = np.mean(scale, 1, keepdims=True, where=known)
    scale = np.maximum(scale, np.maximum(SMALLEST_SCALE * middle, np.finfo(np.float32).tiny))
    margins: np.ndarray = np.where(known, scale * (sizes / scale).max(1, keepdims=True), np.nan)
    return margins.reshape(residuals.shape).astype(residuals.dtype)


def build_band(predictions: Predictions, margins: Residuals, fold_of: FoldOf, alpha: float) -> Ends:
    """Take the order statistics of blind prediction ∓ margin over the training samples that have one."""
    n_samples, n_labels = fold_of.shape[1], count_labels(margins)
    check_level(alpha, count_most(margins))
    ranks, complete = find_ranks(alpha, n_labels), bool((n_labels == n_samples).all())
    lower, upper = np.empty((2, *predictions.shape[2:]), np.result_type(predictions, margins, np.float32))
    for part, below, above in walk_edges(predictions, margins, fold_of):
        if complete:
            rank = find_rank(alpha, n_samples)
            below.partition(rank - 1, axis=0)
            above.partition(n_samples - rank, axis=0)
            lower[part], upper[part] = below[rank - 1], above[n_samples - rank]
        else:
            first, last = np.asarray(ranks - 1), np.asarray(n_labels - ranks)  # else numbers where a target is one
            lower[part], upper[part] = pick_sorted(below, first), pick_sorted(above, last)
            lower[part, ranks < 1] = upper[part, ranks < 1] = np.nan
    return lower, upper


def pick_sorted(
    edges: Float[np.ndarray, "sample part *target"], places: Int[np.ndarray, "*target"]
) -> Float[np.ndarray, "part *target"]:
    """Sort along the samples, in place, NaN behind all others, and pick a place for each target value."""
    edges.sort(axis=0)
    at = np.broadcast_to(np.clip(places, 0, len(edges) - 1), (1, *edges.shape[1:]))
    return np.asarray(np.take_along_axis(edges, at, 0)[0])


def count_depths(
    predictions: Predictions, margins: Residuals, fold_of: FoldOf, targets: Values
) -> Int[np.ndarray, "new value"]:
    """Find the highest rank at which each target value is still inside its interval."""
    depths = np.empty(targets.shape, int)
    for part, below, above in walk_edges(predictions, margins, fold_of):
        depths[part] = np.minimum((below <= targets[part]).sum(0), (above >= targets[part]).sum(0))
    return depths.reshape(len(targets), -1)


def walk_edges(
    predictions: Predictions, margins: Residuals, fold_of: FoldOf
) -> Iterator[tuple[slice, Float[np.ndarray, "sample part *target"], Float[np.ndarray, "sample part *target"]]]:
    """Yield blind prediction - margin and + margin, a few new samples at a time."""
    n_new, dtype = predictions.shape[2], np.result_type(predictions, margins, np.float32)
    margins = margins[:, None].astype(dtype, copy=False)
    size = max(1, CHUNK_BYTES // (2 * margins.nbytes))
    for start in range(0, n_new, size):
        part = slice(start, min(start + size, n_new))
        edges = np.zeros((len(margins), part.stop - start, *margins.shape[2:]), dtype)
        for folds, deal in zip(fold_of, predictions, strict=True):
            edges += deal[folds, part]
        edges /= len(fold_of)
        below = edges - margins
        edges += margins
        yield part, below, edges
