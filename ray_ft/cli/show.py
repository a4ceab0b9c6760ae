"""What commands print."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer


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
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from the last checkpoints", err=True)
        raise typer.Exit(128 + (signal.SIGTERM if terminated else signal.SIGINT)) from None
    finally:
        signal.signal(signal.SIGTERM, before)
