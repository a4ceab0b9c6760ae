"""JSON that nobody vouches for: from files, of a bounded size and depth."""

import errno
import json
from pathlib import Path
from typing import Any

MAX_BYTES, MAX_DEPTH = 2**28, 100


def read_json(path: Path) -> Any:
    """Read a file of JSON; one that is none, or larger or deeper than any that is written here, is a `ValueError`."""
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    with path.open("rb") as file:
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    return parse_json(text)


def parse_json(text: bytes) -> Any:
    """Parse JSON; what is none, or nested too deeply for what reads it, is a `ValueError`."""
    try:
        content = json.loads(text)
        if b"\\ud" in text.lower():
            json.dumps(content, ensure_ascii=False).encode()  # refuses half of a surrogate pair, as every file does
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level: list[Any] = [[content]]
    for _ in range(MAX_DEPTH + 1):
        inner = (value.values() if isinstance(value, dict) else value for value in level)
        level = [part for parts in inner for part in parts if isinstance(part, dict | list)]
        if not level:
            return content
    raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
