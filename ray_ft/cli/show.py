"""What commands print."""

from typing import Any

__all__ = ["show"]


def show(renderable: Any) -> None:
    """Print to the terminal, or to a pipe without folding tables."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=140)  # a pipe has no width
    console.print(renderable)
