"""Progress of predictions: a bar on a terminal, a line every ten seconds elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

LINE_EVERY_S = 10.0


@contextmanager
def show_pace(console: Console | None, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show samples done (those before leave the pace as it is) and the time left; yield a function that notes more."""
    console = console or Console(quiet=True)
    bar = Progress(BarColumn(), TextColumn("{task.description}"), console=console, disable=not console.is_terminal)
    task = bar.add_task("", total=total, completed=done)
    started = printed = time.monotonic()
    n_new = 0

    def advance(n_samples: int) -> None:
        nonlocal n_new, printed
        n_new += n_samples
        now = time.monotonic()
        rate = n_new / max(now - started, 1e-9)
        left_s = (total - done - n_new) / rate
        text = f"{done + n_new:,}/{total:,} samples, {rate:,.0f} a second, about {left_s:.0f} s left"
        bar.update(task, completed=done + n_new, description=text)
        if not console.is_terminal and now - printed > LINE_EVERY_S:
            printed = now
            console.print(f"[{text}]", highlight=False, markup=False, soft_wrap=True)

    with bar:
        yield advance
