"""The search for a strategy's best: a ladder of learning rates, extended while its best is at an edge, then Optuna.

The first round has the recipe, the middle of the ranges that the config gives, and three learning rates about that of
the range test, for the last stage. While the best learning rate is the lowest or the highest that was tried, the next
candidate goes beyond it, then beyond those of earlier stages; while its best is held back by its epochs, the next has
twice as many. What is left of the budget goes to points around the best that Optuna proposes, in all stages together.

References:
    Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, for the range test. We begin at a
    third of the learning rate at which most of the loss is gone. Optuna (Akiba et al., KDD 2019), asked and told.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_ft.config import GradientHyperparameters, Hyperparameters, StageConfig, StrategyConfig, list_declared
from ray_ft.data.randomness import name_stream
from ray_ft.search.plan import RECIPE, CandidateSpec
from ray_ft.search.proposer import build_hyperparameters, draw_stage, is_random
from ray_ft.search.settling import Attempt, Standing, assess, read_lr

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import FloatDistribution, IntDistribution

    Distribution = FloatDistribution | IntDistribution

BELOW = 0.3  # of the learning rate of the range test, where the search begins; measured, as the rate rises fast
STEP = 3.0  # factor between learning rates
AROUND = 10.0  # factor either side of the best learning rate, within which Optuna looks
LADDER = (1.0, STEP, 1 / STEP)
N_ASKED = 8  # times that Optuna is asked for a candidate, as it may repeat itself
ENOUGH = 6  # candidates, from which on a best at its end is tried longer though little is expected of it
EPOCHS = 8  # of the first schedules of a strategy whose step runs the whole network
SMALLEST = 1e-300  # loss, as its logarithm is what Optuna is told
WAITING = 4  # parts of a schedule, one of which patience lasts: much is learnt late, as the learning rate falls
MOST_FIRST, MOST = 32, 1024  # epochs of the first schedules, and of any
MIDDLE = 1e-3  # learning rate where the search begins without a range test
Stages = tuple[Hyperparameters, ...]
Point = tuple[str, Stages]  # with why it is proposed
LR, LONGER, OPTUNA = "lr", "epochs", "optuna"  # why a candidate was proposed


@dataclass
class BestProposer:
    """Proposes candidates of a strategy so that its best has neighbours that are worse.

    The first round varies the last stage. Once its learning rate is bracketed, those of earlier stages are, and what is
    left of the budget varies all stages together.

    Args:
        name: Of the strategy.
        strategy: Its config.
        n_candidates: In all.
        seed: Of the run.
        rope: Relative difference that is none.
    """

    name: str
    strategy: StrategyConfig
    n_candidates: int
    seed: int
    rope: float
    attempts: list[Attempt] = field(default_factory=list)
    middles: dict[int, float] = field(default_factory=dict)  # by stage, the learning rate where the search begins
    lengths: dict[int, int] = field(default_factory=dict)  # by stage, the epochs of the first schedules

    @property
    def width(self) -> int:
        return min(self.n_candidates, len(list(self.list_first())))

    @property
    def last(self) -> int:
        """The place of the last stage."""
        return len(self.strategy.stages) - 1

    @property
    def standing(self) -> Standing:
        return assess(self.attempts, self.rope, [i for i in self.list_open() if i < self.last])

    @property
    def is_settled(self) -> bool:
        return self.standing.settled

    def list_open(self) -> list[int]:
        """The places of the stages whose learning rate the config leaves open."""
        return [i for i in range(self.last + 1) if self.is_gradient(i) and not self.stage(i).is_single("lr")]

    def stage(self, place: int) -> StageConfig:
        return self.strategy.stages[place]

    def is_gradient(self, place: int) -> bool:
        return self.stage(place).hyperparameters is GradientHyperparameters

    @property
    def range_tests(self) -> tuple[CandidateSpec, ...]:
        """A candidate to test the range of learning rates of each stage with, unless there is nothing to choose."""
        if not self.leaves_recipe:
            return ()
        stages = self.build_all([self.middle(i) for i in range(self.last + 1)])
        return tuple(CandidateSpec(self.name, 0, stages[: i + 1]) for i in self.list_open())

    @property
    def leaves_recipe(self) -> bool:
        return self.n_candidates > 1 or self.recipe is None

    def tell_range(self, lr: float, work: float, stage: int = -1) -> None:
        """Take note of where most of a stage's training loss was gone, and of how much of the network a step runs."""
        place = stage % len(self.strategy.stages)
        self.middles[place] = lr * BELOW
        self.lengths[place] = round(EPOCHS / math.sqrt(max(work, (EPOCHS / MOST_FIRST) ** 2)))

    def ask(self) -> tuple[CandidateSpec, ...]:
        """Return the first candidates together, then one at a time, each with all before it known.

        The plan does not depend on the budget, but that a recipe that is alone, by a budget of one, has no range test
        to take its epochs from.
        """
        n, first = len(self.attempts), list(self.list_first())
        points = first[n:] or list(islice(self.list_next(), 1 if n else 0))
        return tuple(
            CandidateSpec(self.name, n + i, stages, origin)
            for i, (origin, stages) in enumerate(points[: max(0, self.n_candidates - n)])
        )

    def tell(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)

    @property
    def recipe(self) -> Stages | None:
        """The middle of the ranges that are given; None where that of a learning rate is not."""
        stages = self.strategy.stages
        if any(self.is_gradient(i) and own.bounds("lr") is None for i, own in enumerate(stages)):
            return None
        return tuple(draw_stage(own, n_epochs=self.length(i)) for i, own in enumerate(stages))

    def list_first(self) -> Iterator[Point]:
        seen = set()
        if self.recipe is not None:
            seen.add(self.recipe)
            yield RECIPE, self.recipe
        for factor in LADDER if self.is_gradient(self.last) else ():
            rates = [self.middle(i) for i in range(self.last + 1)]
            point = self.build_all([*rates[:-1], rates[-1] * factor])
            if point not in seen:
                seen.add(point)
                yield LR, point

    def list_next(self) -> Iterator[Point]:
        """List what the rules ask for, then what Optuna proposes; none where nothing can vary."""
        if not is_random(self.strategy):
            return
        known, standing = self.attempts, self.standing
        tried = [attempt.spec.stages for attempt in known]
        yield from ((why, point) for why, point in self.list_extensions(known, standing) if point not in tried)
        if standing.best is None:
            return
        for stream in range(N_ASKED):
            point = self.ask_optuna(known, standing.best, len(known), stream)
            if point is not None and point not in tried:
                yield OPTUNA, point

    def list_extensions(self, known: Sequence[Attempt], standing: Standing) -> Iterator[Point]:
        rates = [attempt.spec.lr for attempt in known if attempt.spec.lr is not None]
        if standing.best is None:  # all failed: the learning rates were too high
            lowest = [min(read_lr(own, i) for own in known) for i in range(self.last + 1)]
            yield from ((LR, self.build_all([lr / STEP**i for lr in lowest])) for i in (1, 2) if rates)
            return
        best = standing.best.spec.stages
        for edge in standing.edges:
            place = edge.stage % len(best)
            lr = edge.lr * STEP if edge.side == "highest" else edge.lr / STEP
            yield LR, put(best, place, self.build(lr, best[place].n_epochs, best[place], place))
        longer = standing.held_back or (standing.at_end if len(known) >= ENOUGH else None)
        hyper = longer.last if longer else None
        if longer and isinstance(hyper, GradientHyperparameters) and hyper.epochs < MOST:
            yield LONGER, put(longer.spec.stages, self.last, self.build(hyper.lr, 2 * hyper.epochs, hyper))

    def middle(self, place: int) -> float:
        return self.middles.get(place, MIDDLE)

    def length(self, place: int) -> int:
        return self.lengths.get(place, EPOCHS)

    def build_all(self, rates: Sequence[float]) -> Stages:
        """Build all stages by their learning rates; a closed form has none."""
        return tuple(
            self.build(lr, self.length(i), place=i) if self.is_gradient(i) else draw_stage(self.stage(i))
            for i, lr in enumerate(rates)
        )

    def build(self, lr: float, n_epochs: int, like: Hyperparameters | None = None, place: int = -1) -> Hyperparameters:
        """Build a stage within what the config fixes; its other values are those of another point, or lowest."""
        stage, values = self.stage(place), dict[str, Any]()
        for name, _ in list_declared(stage.hyperparameters):
            wanted = {"lr": lr, "epochs": n_epochs}.get(name, getattr(like, name, None))
            space, own = stage.space(name), stage.range_of(name)
            if wanted is None:
                values[name] = getattr(stage, name, None) if space is None else space[0]
            else:
                values[name] = min(max(wanted, own.low), own.high) if own is not None and own.fixed else wanted
        if self.is_gradient(place) and not stage.is_single("patience"):
            values["patience"] = max(values["patience"], math.ceil(values["epochs"] / WAITING))
        return build_hyperparameters(stage, values)

    def ask_optuna(self, known: Sequence[Attempt], best: Attempt, *stream: int) -> Stages | None:
        """Ask Optuna for a point with the epochs of the best; None where nothing is left to vary."""
        space = self.list_space(best)
        if not space:
            return None
        values = self.list_values(best.spec) | self.recall_study(known, space, stream).ask(dict(space)).params
        return tuple(
            build_hyperparameters(
                stage, {name: values[self.key(i, name)] for name, _ in list_declared(stage.hyperparameters)}
            )
            for i, stage in enumerate(self.strategy.stages)
        )

    def key(self, place: int, name: str) -> str:
        """Name a hyperparameter for Optuna; those of the last stage as they are."""
        return name if place == self.last else f"{place}.{name}"

    def list_values(self, spec: CandidateSpec) -> dict[str, Any]:
        return {
            self.key(i, name): getattr(hyper, name)
            for i, hyper in enumerate(spec.stages)
            for name, _ in list_declared(type(hyper))
        }

    def list_space(self, best: Attempt) -> "dict[str, Distribution]":
        """Where Optuna looks: within what is fixed, and for a learning rate around that of the best."""
        from optuna.distributions import FloatDistribution, IntDistribution

        space: dict[str, Distribution] = {}
        for i, stage in enumerate(self.strategy.stages):
            for name, declared in list_declared(stage.hyperparameters):
                own, bounds, key = stage.range_of(name), stage.space(name), self.key(i, name)
                if name == "lr" and not (own is not None and own.fixed):
                    lr = read_lr(best, i) or self.middle(i)
                    bounds = lr / AROUND, lr * AROUND
                if name in ("epochs", "patience") or bounds is None or bounds[0] == bounds[1]:
                    continue
                if declared.form == "":
                    space[key] = IntDistribution(int(bounds[0]), int(bounds[1]))
                else:
                    space[key] = FloatDistribution(*bounds, log=declared.log)
        return space

    def recall_study(
        self, known: Sequence[Attempt], space: "Mapping[str, Distribution]", stream: Sequence[int]
    ) -> "Study":
        """Make a study of what was tried there; a candidate that failed counts as a little worse than the worst."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        entropy = np.random.SeedSequence(name_stream(self.seed, "optuna/", self.name, *stream))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=int(entropy.generate_state(1)[0]), n_startup_trials=1, multivariate=True
            )
        study = optuna.create_study(sampler=sampler)
        values = [math.log(max(own.lowest, SMALLEST)) for own in known if own.lowest is not None]
        for own in known:
            value = max(values) + 1 if own.lowest is None else math.log(max(own.lowest, SMALLEST))
            values_of = self.list_values(own.spec)
            params = {key: values_of[key] for key in space}
            if all(kind.low <= params[name] <= kind.high for name, kind in space.items()):
                study.add_trial(optuna.create_trial(params=params, distributions=dict(space), value=value))
        return study


def put(stages: Stages, place: int, hyper: Hyperparameters) -> Stages:
    """Return stages with another one in a place."""
    return tuple(hyper if i == place else own for i, own in enumerate(stages))
