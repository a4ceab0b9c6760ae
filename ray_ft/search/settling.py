"""Whether a strategy has had its best chance, from what was tried of it.

A strategy is *settled* when, fold by fold, the learning rate of its best candidate is bracketed, and its best is not
held back by the number of epochs. A fold's best candidate is the one that its guide says, as in the scores. Progress is
measured over the summed learning rate: by epochs a cosine schedule looks flat at its end whatever is left to learn.

Of several stages this is said of the last one, which begins where those before it end. The learning rate of an earlier
stage must be bracketed too, about that of the candidate of the lowest mean; its length is not judged.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from ray_ft.config import GradientHyperparameters, Hyperparameters, scale_lr
from ray_ft.errors import write_share
from ray_ft.search.plan import CandidateSpec
from ray_ft.search.problem import Place

APART = 1.5  # factor from which on another learning rate is another: one next to the best brackets nothing
FAR = 10.0  # factor beyond which another brackets nothing: a better one may lie between
LATE = 0.8  # share of the epochs from which on a best epoch is at their end: of eight, the last but one is
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
    def last(self) -> Hyperparameters:
        return self.spec.stages[-1]

    @property
    def counts(self) -> bool:
        """Whether it shows what the learning rate of its last stage is worth."""
        return self.shows(len(self.spec.stages) - 1)

    def shows(self, stage: int) -> bool:
        """Whether it shows what a stage's learning rate is worth: it ran half of its schedule, or diverged there."""
        before = sum(own.n_epochs for own in self.spec.stages[:stage])
        done, n_epochs = max(len(self.guide) - 1, 0) - before, self.spec.stages[stage].n_epochs
        return (self.diverged and 0 <= done <= n_epochs) or (self.state != "failed" and 2 * done >= n_epochs)

    @property
    def best_epochs(self) -> Int[np.ndarray, "repeat fold"]:
        return np.asarray(self.guide.argmin(0))


@dataclass(frozen=True)
class Standing:
    """Where the search of a strategy stands."""

    best: Attempt | None  # of the lowest mean; None where none completed
    because: tuple[str, ...] = ()  # why it is not settled
    edges: tuple["OpenEdge", ...] = ()  # where learning rates are to be tried, what most folds want first
    at_end: Attempt | None = None  # a fold's best, if its best epoch is at the end and nothing longer was tried
    held_back: Attempt | None = None  # the same, if much of its progress was made late besides
    second_half_share: float | None = None  # of the best's progress

    @property
    def settled(self) -> bool:
        return not self.because


@dataclass(frozen=True)
class OpenEdge:
    """A side on which nothing brackets the best learning rate of some folds, and the outermost of these."""

    side: Edge
    lr: float
    n_folds: int
    harms: bool = False  # whether these folds do best without training, and its learning rates bracket no harm
    stage: int = -1  # whose learning rate it is


def assess(attempts: Sequence[Attempt], rope: float, searched: Collection[int] = ()) -> Standing:
    """Judge what was tried of a strategy.

    Args:
        attempts: How its candidates have ended.
        rope: Relative difference that is none.
        searched: Earlier stages whose learning rate the config leaves open.
    """
    complete = [attempt for attempt in attempts if attempt.state == "completed"]
    if not complete:
        return Standing(None, ("no candidate completed",))
    best = min(complete, key=lambda attempt: attempt.lowest or 0.0)
    if not isinstance(best.last, GradientHyperparameters):  # a closed form chooses its penalty itself
        return Standing(best)
    chosen = np.stack([attempt.guide.min(0) for attempt in complete]).argmin(0)
    by_fold = {place: complete[index] for place, index in np.ndenumerate(chosen)}
    edges = find_edges(by_fold, attempts, rope)
    ends = {
        at: own for at, own in by_fold.items() if is_at_end(own, at) and not is_long_enough(own, at, attempts, rope)
    }
    held = {at: own for at, own in ends.items() if max(measure_second_half(own, at)) >= HALF_SHARE}
    early = tuple(edge for stage in searched if (edge := find_early_edge(best, attempts, stage)))
    because = *say_edges(edges, len(by_fold), attempts), *say_early(early), *say_ends(held, len(by_fold))
    return Standing(
        best, because, (*edges, *early), find_commonest(ends), find_commonest(held), measure_second_half(best)[0]
    )


def find_commonest(by_fold: Mapping[Place, Attempt]) -> Attempt | None:
    names = Counter(own.spec.name for own in by_fold.values())
    return max(by_fold.values(), key=lambda own: names[own.spec.name], default=None)


def find_edges(by_fold: Mapping[Place, Attempt], attempts: Sequence[Attempt], rope: float) -> tuple[OpenEdge, ...]:
    """Find where the learning rates of the folds' best are not bracketed."""
    open_at: dict[tuple[Edge, bool], list[float]] = {}
    for place, own in by_fold.items():
        harms = bool(own.best_epochs[place] <= own.spec.n_before)
        edge, lr = find_harm(place, attempts, rope) if harms else (find_edge(own, attempts), own.spec.lr or 0.0)
        if edge:
            open_at.setdefault((edge, harms), []).append(lr)
    outermost = {"lowest": min, "highest": max}
    found = [OpenEdge(side, outermost[side](rates), len(rates), harms) for (side, harms), rates in open_at.items()]
    return tuple(sorted(found, key=lambda own: -own.n_folds))


def find_early_edge(best: Attempt, attempts: Sequence[Attempt], stage: int) -> OpenEdge | None:
    edge = find_edge(best, attempts, stage)
    return OpenEdge(edge, read_lr(best, stage), best.guide[0].size, stage=stage) if edge else None


def read_lr(own: Attempt, stage: int) -> float:
    return getattr(own.spec.stages[stage], "lr", None) or 0.0


def find_edge(own: Attempt, attempts: Sequence[Attempt], stage: int = -1) -> Edge | None:
    """Whether no lower, or no higher, learning rate than this one, and not far from it, has shown what it is worth."""
    lr, place = read_lr(own, stage), stage % len(own.spec.stages)
    shown = (other for other in attempts if other.shows(place) and not stopped_better(other, own))
    tried = [(read_lr(other, stage), other) for other in shown]
    if not any(APART * lr <= it <= FAR * lr * (1 + 1e-9) for it, _ in tried):
        return "highest"
    if not any(lr / FAR / (1 + 1e-9) <= it <= lr / APART and not other.diverged for it, other in tried):
        return "lowest"
    return None


def stopped_better(other: Attempt, own: Attempt) -> bool:
    """Whether one that was stopped was better so far, so that it would bracket what it beats."""
    return other.state == "stopped" and (other.lowest or math.inf) < (own.lowest or 0.0)


def find_harm(place: Place, attempts: Sequence[Attempt], rope: float) -> tuple[Edge | None, float]:
    """Which side is open where training does a fold no good, so that the best learning rate says nothing of it.

    It is bracketed by one that does no harm and, not far above it, one that does: one too low to change anything shows
    nothing.
    """
    harmless = [own.spec.lr or 0.0 for own in attempts if does_no_harm(own, place, rope)]
    if not harmless:
        return "lowest", min(own.spec.lr or 0.0 for own in attempts)
    highest = max(harmless)
    harmful = [own.spec.lr or 0.0 for own in attempts if own.counts and not does_no_harm(own, place, rope)]
    return ("highest" if not any(highest < lr <= FAR * highest for lr in harmful) else None), highest


def does_no_harm(own: Attempt, place: Place, rope: float) -> bool:
    """Whether training by this learning rate leaves a fold as good as before, pretrained or after earlier stages."""
    begin = own.spec.n_before
    if not own.counts or len(own.guide) < begin + 2:
        return False
    curve = own.guide[(slice(None), *place)]
    start = curve[: begin + 1].min()
    return bool(curve[begin + 1 :].min() <= start + rope * abs(start))


def is_at_end(own: Attempt, place: Place) -> bool:
    return bool(own.best_epochs[place] - own.spec.n_before > LATE * own.last.n_epochs)


def is_long_enough(own: Attempt, place: Place, attempts: Sequence[Attempt], rope: float) -> bool:
    """Whether, at about its learning rate, twice the epochs are no better by more than the rope, or half of them."""
    lr, n_epochs, lowest = own.spec.lr or 0.0, own.last.n_epochs, find_lowest(own, place)
    for other in attempts:
        if other.state == "completed" and lr / APART < (other.spec.lr or 0.0) < lr * APART:
            reached = find_lowest(other, place)
            if other.last.n_epochs >= 2 * n_epochs and reached >= lowest - rope * abs(lowest):
                return True
            if 2 * other.last.n_epochs <= n_epochs and lowest >= reached - rope * abs(reached):
                return True
    return False


def find_lowest(own: Attempt, place: Place) -> float:
    return float(own.guide[(slice(None), *place)].min())


def measure_second_half(own: Attempt, place: Place | None = None) -> tuple[float, float]:
    """What fell in the second half of the last stage's summed learning rate, of a fold or of the mean.

    Returns:
        It as a share of all progress, and of the lowest loss, that is what is left: from a start that is far off, a
        small share of all progress may be most of what matters.
    """
    hyper = own.last
    assert isinstance(hyper, GradientHyperparameters), "a closed form has no learning rate"
    curve = (own.mean if place is None else own.guide[(slice(None), *place)])[own.spec.n_before :]
    summed = sum_schedule(hyper.epochs, hyper.warmup_epochs, len(curve) - 1)
    start, lowest = float(curve[0]), float(curve.min())
    half = min(float(np.interp(summed[-1] / 2, summed, curve)), float(curve[summed <= summed[-1] / 2].min()))
    if not start > lowest:
        return 0.0, 0.0
    return (half - lowest) / (start - lowest), (half - lowest) / abs(lowest) if lowest else 0.0


@lru_cache
def sum_schedule(n_epochs: int, n_warmup: int, n_trained: int) -> Float[np.ndarray, " epoch"]:
    """The summed learning rate after each epoch that was trained, from 0 on, in units of its highest."""
    steps = [scale_lr(step, n_epochs * N_SUBSTEPS, n_warmup * N_SUBSTEPS) for step in range(n_trained * N_SUBSTEPS)]
    return np.concatenate([[0.0], np.cumsum(steps)])[::N_SUBSTEPS]


def say_edges(edges: Sequence[OpenEdge], n_folds: int, attempts: Sequence[Attempt]) -> Iterator[str]:
    rates = [attempt.spec.lr for attempt in attempts if attempt.spec.lr is not None]
    if edges and max(rates) < APART * min(rates):
        tried = f"{rates[0]:.2g}" if min(rates) == max(rates) else f"{min(rates):.2g} to {max(rates):.2g}"
        yield f"no learning rates apart from one another were tried, but {tried} alone"
        return
    for edge in edges:
        folds = f"in {edge.n_folds} of {n_folds} folds"
        if edge.harms:
            missing = (
                "so low that it does no harm" if edge.side == "lowest" else f"near {edge.lr:.2g} that does any harm"
            )
            before = "what precedes the last stage" if attempts[0].spec.n_before else "the pretrained network"
            yield f"{before} is best {folds}, and no learning rate was tried {missing}"
        elif edge.lr == (min if edge.side == "lowest" else max)(rates):
            yield f"best at the {edge.side} learning rate tried, {edge.lr:.2g}, {folds}"
        else:
            side = edge.side.replace("est", "er")
            yield f"best at {edge.lr:.2g} {folds}, and no {side} learning rate near it has run half of its schedule"


def say_early(edges: Sequence[OpenEdge]) -> Iterator[str]:
    for edge in edges:
        side = edge.side.replace("est", "er")
        yield f"its best candidate has {edge.lr:.2g} in stage {edge.stage + 1}, where no {side} rate near it was tried"


def say_ends(held: Mapping[Place, Attempt], n_folds: int) -> Iterator[str]:
    for name in dict.fromkeys(own.spec.name for own in held.values()):
        own = {place: attempt for place, attempt in held.items() if attempt.spec.name == name}
        shares = np.mean([measure_second_half(attempt, place) for place, attempt in own.items()], axis=0)
        first = next(iter(own.values()))
        of_last = " of the last stage" if first.spec.n_before else ""
        yield (
            f"still improving after {first.last.n_epochs} epochs{of_last} in {len(own)} of {n_folds} folds: in the "
            f"second half of the summed learning rate their loss fell from {1 + shares[1]:.3g} times its lowest to "
            f"that, {write_share(shares[0])} of all progress"
        )
