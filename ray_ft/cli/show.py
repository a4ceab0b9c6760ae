"""What commands print."""

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from ray_ft.errors import first_line
from ray_ft.files.memory import find_available, is_out_of_memory, write_bytes
from ray_ft.runs.interruption import GOES_ON, GRACE_S, end_by_sigterm

if TYPE_CHECKING:
    from rich.console import Console

    from ray_ft.config import Config

LACKING = {  # by the number of an error of the system, what mends it
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room for them"),
    **dict.fromkeys((errno.EIO, errno.EROFS, errno.ESTALE), "mend the file system"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)"),
}


def open_console(quiet: bool, verbose: bool = False, aside: bool = False) -> "Console":
    """Open where progress is shown: `aside` where the standard output is for the result alone."""
    from rich.console import Console

    console = Console(highlight=False, quiet=quiet and not verbose, stderr=aside)
    if verbose:
        import logging

        from rich.logging import RichHandler

        above = console if console.is_terminal else Console(stderr=True, highlight=False)  # the live table
        handler = RichHandler(console=above, show_time=False, show_level=False, show_path=False)
        logging.basicConfig(format="%(message)s", handlers=[handler])
        logging.getLogger("ray_ft").setLevel(logging.INFO)
    return console


def show_json(**content: Any) -> None:
    import json

    typer.echo(json.dumps(content, indent=2, default=str))


def show(renderable: Any) -> None:
    """Print to the terminal, or to a pipe without folding tables."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=140)  # a pipe has no width
    console.print(renderable)


def describe_shortage(error: Exception) -> str:
    """Say in a line what the machine lacks, where an error says so; empty for any other."""
    if is_out_of_memory(error):
        kind, line = type(error).__name__, first_line(error)
        said = kind if line == kind else f"{kind}: {line}"
        return (
            f"memory must suffice, got {said}, with {write_bytes(find_available())} available; free some, or give the "
            "command less to do, and repeat it"
        )
    if isinstance(error, OSError) and (remedy := LACKING.get(error.errno or 0)):
        place = f"{error.filename}: " if error.filename else ""
        return f"a command must be able to open and write files, got {place}{error.strerror}; {remedy}, and repeat it"
    return ""


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


def say_code(config: "Config", aside: bool = False) -> None:
    """Name the code that a config has run, before it is."""
    from ray_ft.models.factory import find_code

    for key, path in config.code.items():
        typer.echo(f"runs        {path}, code that begins with {find_code(path, key)}", err=aside)


def note_chance(config: "Config") -> list[str]:
    """Say where a factory draws parameters, and no checkpoint takes their place."""
    if config.model.factory and not config.checkpoint and (n_drawn := count_drawn(config)):
        return [
            f"the factory draws {n_drawn:,} parameters by chance, so these are not pretrained: name model.checkpoint, "
            "or load their values in the factory"
        ]
    return []


def count_drawn(config: "Config") -> int:
    """Count the parameters, of tensors that differ between two networks of a factory; none of those that are lazy."""
    import torch

    from ray_ft.models.loading import load_pretrained

    built = []
    for seed in range(2):
        torch.manual_seed(seed)
        network, _ = load_pretrained(config.model.factory, config.model.params, None)
        built.append([own for own in network.parameters() if not torch.nn.parameter.is_lazy(own)])
    return sum(own.numel() for own, other in zip(*built, strict=False) if not torch.equal(own, other))
