"""Progress of the trials: a live table in a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ray_ft.search.plan import Assignment

LINE_EVERY_S = 10.0


class Display:
    """Shows how far each strategy is; `cost` of its epochs, in any unit, is for the estimate of the time left."""

    def __init__(self, console: Console, n_members: int, metric: str, cost: Mapping[str, int]) -> None:
        self.console, self.n_members, self.metric, self.cost = console, n_members, metric, cost
        self.entered: dict[str, Assignment] = {}
        self.epochs: dict[str, int] = {}
        self.states: dict[str, str] = {}
        self.best: dict[str, float] = {}
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
        """Take note of a candidate's epoch and its mean held-out loss."""
        strategy = self.entered[name].spec.strategy
        self.epochs[name] = max(epoch, self.epochs[name])
        self.best[strategy] = min(mean, self.best.get(strategy, mean))
        if time.monotonic() - self.printed > LINE_EVERY_S:
            self.print_line(f"{name} epoch {epoch}/{self.entered[name].n_epochs}")

    def show_end(self, name: str, state: str) -> None:
        """Take note of how a candidate ended."""
        self.states[name] = state
        self.print_line(f"{name} {state} after {self.epochs[name]} epochs")

    def print_line(self, event: str) -> None:
        if not self.console.is_terminal:
            self.printed = time.monotonic()
            best = self.best.get(self.entered[event.split()[0]].spec.strategy)
            shown = "" if best is None else f", best {self.metric} so far {best:.3g}"
            text = f"[{len(self.states)}/{len(self.entered)} candidates, {self.describe_time()}] {event}{shown}"
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def describe_time(self) -> str:
        elapsed = time.monotonic() - self.started
        left = self.estimate_left(elapsed)
        return f"{elapsed:.0f} s" + ("" if left is None else f", about {left:.0f} s left")

    def estimate_left(self, elapsed: float) -> float | None:
        """Extend the pace so far over the epochs that are left, as if no more were stopped."""
        costs = {name: self.cost[own.spec.strategy] for name, own in self.entered.items()}
        done = sum(costs[name] * epochs for name, epochs in self.epochs.items())
        left = sum(costs[n] * (self.entered[n].n_epochs - self.epochs[n]) for n in self.entered if n not in self.states)
        return elapsed * left / done if done and elapsed > 5 else None

    def render(self) -> Table:
        table = Table(title=f"training, {self.describe_time()}", title_justify="left", box=None, pad_edge=False)
        for column in ("strategy", "candidates", "folds x seeds", "epochs", f"best {self.metric} so far"):
            table.add_column(column, justify="left" if column == "strategy" else "right")
        for strategy in dict.fromkeys(own.spec.strategy for own in self.entered.values()):
            names = [name for name, own in self.entered.items() if own.spec.strategy == strategy]
            ended = f"{sum(name in self.states for name in names)}/{len(names)}"
            epochs = f"{sum(self.epochs[name] for name in names)}/{sum(self.entered[name].n_epochs for name in names)}"
            best = f"{self.best[strategy]:.3g}" if strategy in self.best else ""
            table.add_row(strategy, ended, f"{self.n_members} each", epochs, best)
        return table
