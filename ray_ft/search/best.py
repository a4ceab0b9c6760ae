"""The search for a strategy's best: a ladder of learning rates, extended while its best is at an edge, then Optuna.

The first round has the recipe, the middle of the ranges that the config gives, and three learning rates about that of
the range test. While the best learning rate is the lowest or the highest that was tried, the next round goes beyond
it; while its best is held back by its epochs, the next round has twice as many. What is left of the budget goes to
points around the best that Optuna proposes.

References:
    Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, for the range test. We begin at a
    third of the learning rate at which the loss is lowest. Optuna (Akiba et al., KDD 2019), asked and told.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_ft.config import GradientHyperparameters, Hyperparameters, StageConfig, StrategyConfig, list_declared
from ray_ft.data.randomness import name_stream
from ray_ft.search.plan import RECIPE, CandidateSpec
from ray_ft.search.proposer import build_hyperparameters, draw_stage, is_random
from ray_ft.search.settling import Attempt, Standing, assess

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import FloatDistribution, IntDistribution

    Distribution = FloatDistribution | IntDistribution

BELOW = 0.3  # of the learning rate of the range test, where the search begins; measured, as the rate rises fast
STEP = 3.0  # factor between learning rates
AROUND = 10.0  # factor either side of the best learning rate, within which Optuna looks
LADDER = (1.0, STEP, 1 / STEP)
ROUND = 1  # candidates of a round after the first: each knows of all before it
N_ASKED = 8  # times that Optuna is asked for them, as it may repeat itself
ENOUGH = 6  # candidates, from which on a best at its end is tried longer though little is expected of it
EPOCHS = 8  # of the first schedules of a strategy whose step runs the whole network
SMALLEST = 1e-300  # loss, as its logarithm is what Optuna is told
WAITING = 4  # parts of a schedule, one of which patience lasts: much is learnt late, as the learning rate falls
MOST_FIRST, MOST = 32, 1024  # epochs of the first schedules, and of any
Point = tuple[str, Hyperparameters]  # with why it is proposed
LR, LONGER, OPTUNA = "lr", "epochs", "optuna"  # why a candidate was proposed


@dataclass
class BestProposer:
    """Proposes candidates of a strategy so that its best has neighbours that are worse.

    Args:
        name: Of the strategy.
        strategy: Its config; only its last stage is searched.
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
    middle: float = 1e-3  # the learning rate where the search begins
    n_epochs: int = EPOCHS  # of the first schedules

    @property
    def width(self) -> int:
        return min(self.n_candidates, len(list(self.list_first())))

    @property
    def stage(self) -> StageConfig:
        return self.strategy.stages[-1]

    @property
    def is_gradient(self) -> bool:
        return self.stage.hyperparameters is GradientHyperparameters

    @property
    def range_test(self) -> CandidateSpec | None:
        """A candidate to test the range of learning rates with, unless there is nothing to choose."""
        if not self.is_gradient or self.is_single("lr") or not self.leaves_recipe:
            return None
        return CandidateSpec(self.name, 0, (self.build(self.middle, self.n_epochs),))

    @property
    def leaves_recipe(self) -> bool:
        return self.n_candidates > 1 or self.recipe is None

    def tell_range(self, lr: float, work: float) -> None:
        """Take note of where the training loss was lowest, and of the share of the network that a step runs."""
        self.middle = lr * BELOW
        self.n_epochs = round(EPOCHS / math.sqrt(max(work, (EPOCHS / MOST_FIRST) ** 2)))

    def ask(self) -> tuple[CandidateSpec, ...]:
        """Return the next round, or what a smaller budget has left of it: the plan does not depend on the budget.

        But a recipe that is alone, by a budget of one, has no range test to take its epochs from.
        """
        n, first = len(self.attempts), list(self.list_first())
        begin = 0 if n < len(first) else n - (n - len(first)) % ROUND
        points = list(self.list_next(self.attempts[:begin])) if begin else first
        points = points[n - begin :] or (list(self.list_next(self.attempts)) if n else [])
        return tuple(
            CandidateSpec(self.name, n + i, (*self.earlier_stages(), hyper), origin)
            for i, (origin, hyper) in enumerate(points[: max(0, self.n_candidates - n)])
        )

    def tell(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)

    def earlier_stages(self) -> tuple[Hyperparameters, ...]:
        return tuple(draw_stage(stage) for stage in self.strategy.stages[:-1])

    @property
    def recipe(self) -> Hyperparameters | None:
        """The middle of the ranges that are given; None where that of a learning rate is not."""
        if self.is_gradient and self.stage.bounds("lr") is None:
            return None
        return draw_stage(self.stage, n_epochs=self.n_epochs)

    def list_first(self) -> Iterator[Point]:
        seen = set()
        if self.recipe is not None:
            seen.add(self.recipe)
            yield RECIPE, self.recipe
        for factor in LADDER if self.is_gradient else ():
            point = self.build(self.middle * factor, self.n_epochs)
            if point not in seen:
                seen.add(point)
                yield LR, point

    def list_next(self, known: Sequence[Attempt]) -> Iterator[Point]:
        """What the rules ask for, then what Optuna proposes, until a round is full; none where nothing can vary."""
        if not is_random(self.strategy):
            return
        standing, tried = assess(known, self.rope), [attempt.spec.stages[-1] for attempt in known]
        extensions = {hyper: (why, hyper) for why, hyper in self.list_extensions(known, standing) if hyper not in tried}
        wanted = list(extensions.values())[:ROUND]
        yield from wanted
        tried += extensions
        for stream in range(N_ASKED):
            if standing.best is None or len(wanted) == ROUND:
                return
            point = self.ask_optuna(known, standing.best, len(known), stream)
            if point is not None and point not in tried:
                tried.append(point)
                wanted.append((OPTUNA, point))
                yield wanted[-1]

    def list_extensions(self, known: Sequence[Attempt], standing: Standing) -> Iterator[Point]:
        rates = [attempt.spec.lr for attempt in known if attempt.spec.lr is not None]
        if standing.best is None:  # all failed: the learning rates were too high
            yield from ((LR, self.build(min(rates) / STEP**i, self.n_epochs)) for i in (1, 2) if rates)
            return
        best = standing.best.spec.stages[-1]
        for edge in standing.edges:
            yield LR, self.build(edge.lr * STEP if edge.side == "highest" else edge.lr / STEP, best.n_epochs, best)
        longer = standing.held_back or (standing.at_end if len(known) >= ENOUGH else None)
        hyper = longer.spec.stages[-1] if longer else None
        if isinstance(hyper, GradientHyperparameters) and hyper.epochs < MOST:
            yield LONGER, self.build(hyper.lr, 2 * hyper.epochs, hyper)

    def is_single(self, name: str) -> bool:
        """Whether the config fixes a hyperparameter to one value."""
        own = self.stage.range_of(name)
        return own is not None and own.fixed and own.low == own.high

    def build(self, lr: float, n_epochs: int, like: Hyperparameters | None = None) -> Hyperparameters:
        """Build a point within what the config fixes; the others are those of another point, or lowest."""
        values: dict[str, Any] = {}
        for name, _ in list_declared(self.stage.hyperparameters):
            wanted = {"lr": lr, "epochs": n_epochs}.get(name, getattr(like, name, None))
            space, own = self.stage.space(name), self.stage.range_of(name)
            if wanted is None:
                values[name] = getattr(self.stage, name, None) if space is None else space[0]
            else:
                values[name] = min(max(wanted, own.low), own.high) if own is not None and own.fixed else wanted
        if self.is_gradient and not self.is_single("patience"):
            values["patience"] = max(values["patience"], math.ceil(values["epochs"] / WAITING))
        return build_hyperparameters(self.stage, values)

    def ask_optuna(self, known: Sequence[Attempt], best: Attempt, *stream: int) -> Hyperparameters | None:
        """Ask Optuna for a point with the epochs of the best; None where nothing is left to vary."""
        space = self.list_space(best)
        if not space:
            return None
        drawn = self.recall_study(known, space, stream).ask(dict(space)).params
        hyper = best.spec.stages[-1]
        values = {name: getattr(hyper, name) for name, _ in list_declared(self.stage.hyperparameters)} | drawn
        return build_hyperparameters(self.stage, values)

    def list_space(self, best: Attempt) -> "dict[str, Distribution]":
        """Where Optuna looks: within what is fixed, and for the learning rate around the best."""
        from optuna.distributions import FloatDistribution, IntDistribution

        space: dict[str, Distribution] = {}
        for name, declared in list_declared(self.stage.hyperparameters):
            own, bounds = self.stage.range_of(name), self.stage.space(name)
            if name == "lr" and not (own is not None and own.fixed):
                bounds = (best.spec.lr or self.middle) / AROUND, (best.spec.lr or self.middle) * AROUND
            if name in ("epochs", "patience") or bounds is None or bounds[0] == bounds[1]:
                continue
            if declared.form == "":
                space[name] = IntDistribution(int(bounds[0]), int(bounds[1]))
            else:
                space[name] = FloatDistribution(*bounds, log=declared.log)
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
            params = {name: getattr(own.spec.stages[-1], name) for name in space}
            if all(kind.low <= params[name] <= kind.high for name, kind in space.items()):
                study.add_trial(optuna.create_trial(params=params, distributions=dict(space), value=value))
        return study
