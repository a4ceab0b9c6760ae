"""What commands print."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from ray_ft.runs.interruption import GOES_ON, GRACE_S, end_by_sigterm


def show(renderable: Any) -> None:
    """Print to the terminal, or to a pipe without folding tables."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=140)  # a pipe has no width
    console.print(renderable)


@contextmanager
def resumable() -> Iterator[None]:
    """Say that an interrupted command goes on; SIGTERM, as schedulers send it, interrupts as Ctrl-C does."""
    terminated = []

    def interrupt(number: int, _: object) -> None:
        terminated.append(number)
        signal.raise_signal(signal.SIGINT)  # which Ray Tune handles, so that it ends in order

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with end_by_sigterm(GRACE_S, GOES_ON) as say:
            try:
                yield
            except KeyboardInterrupt:
                exec("")  # one that was interrupted, as imports have them, would be in place of the exit code
                say()
                raise typer.Exit(128 + (signal.SIGTERM if terminated else signal.SIGINT)) from None
            except SystemExit as ended:
                if ended.code != signal.SIGTERM:  # by which a Ray that is starting ends
                    raise
                say()
                raise typer.Exit(128 + signal.SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, before)
