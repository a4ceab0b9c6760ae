"""The errors that a user can cause; each states the rule, the value, and the remedy.

RayFTError
├── UserError            what a user gave breaks a rule; the exit code is 2, and nothing was changed
│   ├── ConfigError      a config file, an option or an override is not valid
│   ├── DataError        inputs, targets or a column beside them cannot be used
│   ├── WeightsError     a file of weights cannot be read, or does not fit the network
│   ├── NetworkError     the network raises, or is not one and the same function wherever it runs
│   ├── StrategyError    a strategy does not fit the network
│   ├── RunFolderError   a run folder is of another config, in use, unwritable or incomplete
│   └── EnsembleError    an ensemble folder is foreign, damaged or of another version
└── RunError             the run itself failed; the exit code is 1
    ├── StorageError     a file of the run cannot be written
    ├── FrozenDriftError a frozen parameter or buffer moved
    └── DivergedError    a loss is no longer a number
"""

import difflib
import reprlib
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MAX_SHOWN = 200  # characters of a value, or of another's message, in one of ours


class RayFTError(Exception):
    """Base of the errors whose text alone is shown to the user."""

    exit_code = 1


class UserError(RayFTError):
    """Something that the user gave is wrong."""

    exit_code = 2


class ConfigError(UserError):
    """A config file, an option or an override is not valid."""


class DataError(UserError):
    """Inputs, targets or a column beside them cannot be used."""


class WeightsError(UserError):
    """A file of weights cannot be read, or does not fit the network."""


class NetworkError(UserError):
    """The network raises, or is not one and the same function wherever it runs."""


class StrategyError(UserError):
    """A strategy does not fit the network."""


class RunFolderError(UserError):
    """A run folder is of another config, in use, unwritable or incomplete."""


class EnsembleError(UserError):
    """An ensemble folder is foreign, damaged or of another version."""


class RunError(RayFTError):
    """The run itself failed, through nothing that the user gave."""


class StorageError(RunError):
    """A file of the run could not be written: a full disk, a mount that went away."""


class FrozenDriftError(RunError):
    """A frozen parameter or buffer changed during training."""


class DivergedError(RunError):
    """A loss became infinite or not a number."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Write `; did you mean X?`, or nothing where no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def first_few(names: Sequence[str], n: int = 4) -> str:
    """Write the first names of a list and how many more there are."""
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more


def count(n: int, noun: str) -> str:
    """Write a number of things."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def shorten(text: str, n: int = MAX_SHOWN) -> str:
    return text if len(text) <= n else f"{text[:n]} …"


def show_value(value: Any) -> str:
    """Write a value of any size in short."""
    try:
        return shorten(BRIEF.repr(value))
    except ValueError:  # a whole number of more digits than Python writes
        return f"a {type(value).__name__} too large to show"


def first_line(error: BaseException) -> str:
    """Write another package's message in short: its first line, after the name of its class where that has no words."""
    line = next(iter(str(error).strip().splitlines()), "")
    return shorten(line if any(map(str.isalpha, line)) else f"{type(error).__name__} {line}".strip())


def locate_error(error: BaseException) -> str:
    """Write what a network of a user's own raised, and the line of its code that did."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/torch/" not in frame.filename]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    kind, line = type(error).__name__, first_line(error)
    return (kind if line == kind else f"{kind}: {line}") + place


BRIEF = reprlib.Repr()
BRIEF.maxlevel, BRIEF.maxstring, BRIEF.maxother = 3, 80, 80


def write_share(share: float, digits: int = 0) -> str:
    """Write a share in percent; what is only nearly nothing, or all, is not written as it."""
    step, percent = 10.0**-digits, round(100 * share, digits)
    if share < 1 and percent >= 100:
        return f">{100 - step:.{digits}f} %"
    return f"<{step:.{digits}f} %" if share > 0 and percent <= 0 else f"{percent:.{digits}f} %"
