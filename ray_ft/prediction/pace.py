"""Progress of predictions: a bar on a terminal, a line every ten seconds elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ray_ft.backends.progress import LINE_EVERY_S

__all__ = ["Pace"]


class Pace:
    """Shows samples done, how many a second, and the time left.

    Args:
        console: Where to write.
        total: Samples in all.
        done: Of an earlier call; they leave the pace as it is.
    """

    def __init__(self, console: Console, total: int, done: int = 0) -> None:
        self.console, self.total, self.done, self.before = console, total, done, done
        self.started = self.printed = time.monotonic()
        self.bar = Progress(BarColumn(), TextColumn("{task.description}"), console=console, transient=True)
        self.task = self.bar.add_task("", total=total, completed=done)

    def __enter__(self) -> "Pace":
        self.started = self.printed = time.monotonic()
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def advance(self, n_samples: int) -> None:
        """Take note of samples done."""
        self.done += n_samples
        text = self.describe(time.monotonic() - self.started)
        self.bar.update(self.task, completed=self.done, description=text)
        if not self.console.is_terminal and time.monotonic() - self.printed > LINE_EVERY_S:
            self.printed = time.monotonic()
            self.console.print(f"[{text}]", highlight=False, markup=False, soft_wrap=True)

    def describe(self, seconds: float) -> str:
        text = f"{self.done:,}/{self.total:,} samples"
        if self.done == self.before or seconds <= 0:
            return text
        rate = (self.done - self.before) / seconds
        return f"{text}, {rate:,.0f} a second, about {(self.total - self.done) / rate:.0f} s left"
