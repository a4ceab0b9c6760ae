"""Progress of the trials: a live table in a terminal, plain lines elsewhere."""

import logging
import time
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ray_ft.errors import count
from ray_ft.search.plan import Assignment

LINE_EVERY_S = 10.0
LOG = logging.getLogger(__name__)


class Display:
    """Shows how far each strategy is; `cost` of its epochs, in any unit, is for the estimate of the time left."""

    def __init__(self, console: Console, metric: str, cost: Mapping[str, int]) -> None:
        self.console, self.metric, self.cost = console, metric, cost
        self.entered: dict[str, Assignment] = {}
        self.epochs: dict[str, int] = {}
        self.states: dict[str, str] = {}
        self.best: dict[str, tuple[float, float | None]] = {}  # mean of a strategy, and at which learning rate
        self.settled: dict[str, bool | None] = {}
        self.started = self.printed = time.monotonic()
        self.live = Live(console=console, get_renderable=self.render, refresh_per_second=2, transient=True)

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def add(self, batch: Iterable[Assignment]) -> None:
        """Take in what is to be trained."""
        self.entered |= {own.name: own for own in batch}
        self.epochs = dict.fromkeys(self.entered, 0) | self.epochs

    def show_epoch(self, name: str, epoch: int, mean: float) -> None:
        """Take note of an assignment's epoch and its mean held-out loss."""
        own = self.entered[name]
        self.epochs[name] = max(epoch, self.epochs[name])
        lowest, _ = self.best.get(own.spec.strategy, (mean, None))
        if own.is_search and mean <= lowest:  # the others train single folds, whose means are no score
            self.best[own.spec.strategy] = mean, own.spec.lr
        LOG.info("%s: epoch %d of %d, %s %.6g", describe(own), epoch, own.n_epochs, self.metric, mean)
        if time.monotonic() - self.printed > LINE_EVERY_S:
            self.print_line(own, f"epoch {epoch}/{own.n_epochs}")

    def show_end(self, name: str, state: str) -> None:
        """Take note of how an assignment ended."""
        self.states[name] = state
        own = self.entered[name]
        self.print_line(own, state if own.is_range_test else f"{state} after {count(self.epochs[name], 'epoch')}")

    def show_standing(self, strategy: str, settled: bool | None) -> None:
        """Take note of whether a strategy is settled by what was tried so far; None where that is not looked for."""
        self.settled[strategy] = settled

    def print_line(self, own: Assignment, event: str) -> None:
        if not self.console.is_terminal:
            self.printed = time.monotonic()
            best = self.best.get(own.spec.strategy)
            shown = "" if best is None else f", best {self.metric} so far {best[0]:.3g}"
            done, n = self.count_candidates()
            counted = f"{done} of {n} candidates so far, " if n else ""  # none while range tests look for the rates
            self.say(f"[{counted}{self.describe_time()}] {describe(own)} {event}{shown}")

    def say(self, text: str) -> None:
        """Print a line, above the table where there is one."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def count_candidates(self, strategy: str | None = None) -> tuple[int, int]:
        """How many of those that are planned so far have ended, and how many these are."""
        names = [name for name, own in self.entered.items() if own.is_search and strategy in (None, own.spec.strategy)]
        return sum(name in self.states for name in names), len(names)

    def describe_time(self) -> str:
        elapsed = time.monotonic() - self.started
        left = self.estimate_left(elapsed)
        return f"{elapsed:.0f} s" + (f", about {left:.0f} s left of these" if left and left >= 1 else "")

    def estimate_left(self, elapsed: float) -> float | None:
        """Extend the pace so far over the epochs that are left, as if no more were stopped."""
        costs = {name: self.cost[own.spec.strategy] for name, own in self.entered.items()}
        done = sum(costs[name] * epochs for name, epochs in self.epochs.items())
        left = sum(costs[n] * (self.entered[n].n_epochs - self.epochs[n]) for n in self.entered if n not in self.states)
        return elapsed * left / done if done and elapsed > 5 else None

    def render(self) -> Table:
        table = Table(title=f"training, {self.describe_time()}", title_justify="left", box=None, pad_edge=False)
        for column in ("strategy", "candidates", "epochs", f"best {self.metric} so far", "at lr", "settled", "now"):
            table.add_column(column, justify="left" if column in ("strategy", "now") else "right")
        for strategy in dict.fromkeys(own.spec.strategy for own in self.entered.values()):
            owns = {name: own for name, own in self.entered.items() if own.spec.strategy == strategy}
            done, n = self.count_candidates(strategy)
            epochs = f"{sum(self.epochs[name] for name in owns)}/{sum(own.n_epochs for own in owns.values())}"
            best, lr = self.best.get(strategy, (None, None))
            left = [own for name, own in owns.items() if name not in self.states]
            now = describe(left[0]) if left else "done so far"
            shown = "" if best is None else f"{best:.3g}", "" if lr is None else f"{lr:.1e}"
            settled = {True: "yes", False: "not yet", None: ""}[self.settled.get(strategy)]
            table.add_row(strategy, f"{done}/{n}", epochs, *shown, settled, now)
        return table


def describe(own: Assignment) -> str:
    """Name what is trained in words."""
    if own.is_range_test:
        stage = f", stage {len(own.spec.stages)}" if len(own.spec.stages) > 1 else ""
        return f"{own.spec.strategy}{stage}: range test"
    return own.name if own.is_search else f"{own.spec.name}: further seeds of fold {own.keys[0].fold}"
