"""Whether a strategy has had its best chance, from what was tried of it.

A strategy is *settled* when the learning rate of its best candidate is bracketed, fold by fold, and its best is not
held back by the number of epochs. A fold's best candidate is the one that its guide says, as in the scores. Progress is
measured over the summed learning rate: by epochs a cosine schedule looks flat at its end whatever is left to learn.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from ray_ft.config import GradientHyperparameters, scale_lr
from ray_ft.search.plan import CandidateSpec

APART = 2.0  # factor from which on another learning rate is another: one next to the best brackets nothing
NEARBY = 4.0  # factor within which a longer candidate has the learning rate of a shorter one
LATE = 0.9  # share of the epochs from which on a best epoch is at their end
HALF_SHARE = 0.1  # of the progress, or of the loss that is left, from which on much is still to come
N_SUBSTEPS = 50  # of an epoch, to sum the learning rate
Edge = Literal["lowest", "highest"]


@dataclass(frozen=True)
class Attempt:
    """How a candidate that was searched has ended.

    Attributes:
        guide: What chooses, after each epoch from 0, the pretrained network, on; cut where ASHA stopped it.
        diverged: Whether it failed as its loss became no number.
    """

    spec: CandidateSpec
    state: Literal["completed", "stopped", "failed"]
    guide: Float[np.ndarray, "epoch repeat fold"]
    diverged: bool = False

    @cached_property
    def mean(self) -> Float[np.ndarray, " epoch"]:
        found: np.ndarray = self.guide.mean((1, 2))
        return found

    @property
    def lowest(self) -> float | None:
        """The lowest mean, of a candidate that did not fail."""
        return None if self.state == "failed" or not len(self.guide) else float(self.mean.min())

    @property
    def counts(self) -> bool:
        """Whether it shows what its learning rate is worth: it ran for half of its schedule, or it diverged."""
        return self.diverged or (self.state != "failed" and 2 * (len(self.guide) - 1) >= self.spec.n_epochs)

    @property
    def best_epochs(self) -> Int[np.ndarray, "repeat fold"]:
        return np.asarray(self.guide.argmin(0))


@dataclass(frozen=True)
class Standing:
    """Where the search of a strategy stands."""

    best: Attempt | None  # of the lowest mean; None where none completed
    because: tuple[str, ...]  # why it is not settled
    at_edge: Edge | None  # whether some fold's best lr is the lowest or highest that was tried
    at_end: bool  # whether some fold's best epoch is at the end of its schedule, and nothing longer was tried
    held_back: bool  # whether much of the progress was made late, besides
    second_half_share: float | None  # of the best's progress

    @property
    def settled(self) -> bool:
        return not self.because


def assess(attempts: Sequence[Attempt], rope: float) -> Standing:
    """Judge what was tried of a strategy; `rope` is the relative difference that is none."""
    complete = [attempt for attempt in attempts if attempt.state == "completed"]
    if not complete:
        return Standing(None, ("no candidate completed",), None, False, False, None)
    best = min(complete, key=lambda attempt: attempt.lowest or 0.0)
    progress = measure_second_half(best)
    if progress is None:  # a closed form chooses its penalty itself
        return Standing(best, (), None, False, False, None)
    chosen = np.stack([attempt.guide.min(0) for attempt in complete]).argmin(0)
    by_fold = [complete[index] for index in chosen.ravel()]
    edges = Counter(edge for own in by_fold if (edge := find_edge(own, attempts)))
    late = [own.best_epochs.ravel()[i] > LATE * own.spec.n_epochs for i, own in enumerate(by_fold)]
    ends = [is_late and not has_longer(own, attempts, rope) for is_late, own in zip(late, by_fold, strict=True)]
    held_back = any(ends) and max(progress) >= HALF_SHARE
    because = (*say_edges(edges, by_fold, attempts), *([say_end(best, *progress)] if held_back else ()))
    edge = edges.most_common(1)[0][0] if edges else None
    return Standing(best, because, edge, any(ends), held_back, progress[0])


def find_edge(own: Attempt, attempts: Sequence[Attempt]) -> Edge | None:
    """Whether no lower, or no higher, learning rate than this one has shown what it is worth."""
    lr = own.spec.lr or 0.0
    tried = [(other.spec.lr or 0.0, other) for other in attempts if other.counts]
    if not any(it >= APART * lr for it, _ in tried):
        return "highest"
    if not any(it <= lr / APART and not other.diverged for it, other in tried):
        return "lowest"
    return None


def has_longer(own: Attempt, attempts: Sequence[Attempt], rope: float) -> bool:
    """Whether twice the epochs were tried at about this learning rate, and are not better by more than the rope."""
    lr, lowest = own.spec.lr or 0.0, own.lowest or 0.0
    return any(
        other.spec.n_epochs >= 2 * own.spec.n_epochs
        and lr / NEARBY <= (other.spec.lr or 0.0) <= lr * NEARBY
        and other.state == "completed"
        and (other.lowest or 0.0) >= lowest - rope * abs(lowest)
        for other in attempts
    )


def measure_second_half(own: Attempt) -> tuple[float, float] | None:
    """What fell in the second half of the summed learning rate; None without one.

    Returns:
        It as a share of all progress, and of the lowest loss, that is what is left: from a start that is far off, a
        small share of all progress may be most of what matters.
    """
    hyper = own.spec.stages[-1]
    if not isinstance(hyper, GradientHyperparameters):
        return None
    summed = sum_schedule(hyper.epochs, hyper.warmup_epochs)[: len(own.mean)]
    start, lowest = float(own.mean[0]), float(own.mean.min())
    half = min(float(np.interp(summed[-1] / 2, summed, own.mean)), float(own.mean[summed <= summed[-1] / 2].min()))
    if not start > lowest:
        return 0.0, 0.0
    return (half - lowest) / (start - lowest), (half - lowest) / abs(lowest) if lowest else 0.0


@lru_cache
def sum_schedule(n_epochs: int, n_warmup: int) -> Float[np.ndarray, " epoch"]:
    """The summed learning rate after each epoch, from 0 on, in units of its highest."""
    steps = [scale_lr(step, n_epochs * N_SUBSTEPS, n_warmup * N_SUBSTEPS) for step in range(n_epochs * N_SUBSTEPS)]
    return np.concatenate([[0.0], np.cumsum(steps)])[::N_SUBSTEPS]


def say_edges(edges: Mapping[Edge, int], by_fold: Sequence[Attempt], attempts: Sequence[Attempt]) -> Iterator[str]:
    rates = [attempt.spec.lr for attempt in attempts if attempt.spec.lr is not None]
    if edges and max(rates) < APART * min(rates):
        tried = f"{rates[0]:.2g}" if min(rates) == max(rates) else f"{min(rates):.2g} to {max(rates):.2g}"
        yield f"no learning rates apart from one another were tried, but {tried} alone"
        return
    for edge, n in edges.items():
        own = [it.spec.lr or 0.0 for it in by_fold if find_edge(it, attempts) == edge]
        lr = max(own) if edge == "highest" else min(own)
        yield f"best at the {edge} learning rate tried, {lr:.2g}, in {n} of {len(by_fold)} folds"


def say_end(best: Attempt, share: float, of_lowest: float) -> str:
    return (
        f"still improving after {best.spec.n_epochs} epochs: {share:.0%} of the progress, {of_lowest:.0%} of the loss "
        "that is left, fell in the second half of the summed learning rate"
    )
