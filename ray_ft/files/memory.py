"""How much memory can be taken: what the machine has free, or its container still allows; and what was too much."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_ft.errors import RayFTError, locate_error

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Limit, use, and the part of it that goes when others need it, of cgroups of version 2 and 1.
CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
# What torch, and the libraries that it calls, say in errors that have no class of their own.
SHORTAGES = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")


@contextmanager
def blame(kind: type[RayFTError], rule: str) -> Iterator[None]:
    """Say in one line what code of a user's own raises, whatever that is, but for a want of memory, which is no fault.

    Raises:
        RayFTError: It has raised: of this kind, or its own.
    """
    try:
        yield
    except RayFTError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise kind(f"{rule} it raised {locate_error(error)}") from error


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory did not suffice, that of the machine or that of an accelerator."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if any(kind.__name__ in ("MemoryError", "OutOfMemoryError") for kind in type(error).__mro__):
        return True  # by name, as torch and Ray have one each, and neither is imported for it
    return isinstance(error, RuntimeError) and any(shortage in str(error) for shortage in SHORTAGES)


def describe_excess(n_bytes: int) -> str:
    """Say that so many bytes do not fit into memory, with both numbers; empty where they do."""
    if n_bytes <= (available := find_available()):
        return ""
    return f"it needs {write_bytes(n_bytes)} of memory, of which {write_bytes(available)} are available"


def write_bytes(n_bytes: int) -> str:
    if n_bytes > 1e18:
        return "more than 1,000,000,000 GB"
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes > 1e8 else f"{n_bytes / 1e6:,.1f} MB"


def find_available() -> int:
    """Find the bytes that this process can still take."""
    return max(0, min(find_free(), *find_allowances()))


def find_free() -> int:
    """What the machine has free; where it does not say so, as on macOS, all that it has."""
    kilobytes = read_table(PROC / "meminfo").get("MemAvailable")
    if kilobytes is not None:
        return kilobytes * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def find_allowances() -> Iterator[int]:
    """What the cgroup of this process, and those around it, leave of their limits."""
    yield 2**63
    for folder in list_cgroups("memory"):
        yield from read_allowance(folder)


def list_cgroups(controller: str) -> Iterator[Path]:
    """List the folders of the cgroup of this process, and of those around it, of either version."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = CGROUPS / controllers
        if not top.exists():  # of several that are mounted together, each has a link
            top = CGROUPS / controller
        own = top / place.lstrip("/")  # in a container the place may be the host's, of which it sees the top alone
        for folder in (own, *own.parents):
            if folder.is_relative_to(top):
                yield folder


def read_allowance(folder: Path) -> Iterator[int]:
    for limit, use, reclaimable in CGROUP_FILES:
        try:
            taken = int((folder / use).read_text()) - read_table(folder / "memory.stat").get(reclaimable, 0)
            yield int((folder / limit).read_text()) - taken
        except (OSError, ValueError):  # there is none, or it says "max"
            continue


def read_table(path: Path) -> dict[str, int]:
    """Read lines of a name and a number; none where there is no such file."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
