"""What a file is by the end of its name, in letters of either case."""

from pathlib import Path


def read_suffix(path: str | Path) -> str:
    """Return the suffix in small letters, as the packages that read the file are found by it."""
    return Path(path).suffix.lower()
