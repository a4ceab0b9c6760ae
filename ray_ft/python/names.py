"""Errors in the words of the caller: keys of a config and options of the command become arguments of a function."""

import re
from collections.abc import Container, Iterator
from contextlib import contextmanager

from ray_ft.errors import RayFTError

ARGUMENTS = {
    "cv.folds": "folds",
    "cv.seeds": "seeds",
    "cv.metric": "objective",
    "cv.strategies": "strategies",
    "training.loss": "loss",
    "data.inputs": "x",
    "data.targets": "y",
    "data.collate": "collate",
    "data.groups": "groups",
    "data.stratify": "stratify",
    "data.replay": "replay",
    "data.replay.targets": "the y of replay",
    "model.checkpoint": "model",
    "model.factory": "model",
    "--strategies (cv.strategies)": "strategies",
    "--out": "out",
}
LONGEST_FIRST = "|".join(map(re.escape, sorted(ARGUMENTS, key=len, reverse=True)))
KEYS = re.compile(rf"(?<![\w.'-])(?:{LONGEST_FIRST})(?![\w'-]|\.\w)")


@contextmanager
def name_arguments(options: Container[str]) -> Iterator[None]:
    """Name arguments in the errors of what is done; keys that were given as options stay what they are."""
    try:
        yield
    except RayFTError as error:
        error.args = (KEYS.sub(lambda key: key[0] if key[0] in options else ARGUMENTS[key[0]], str(error)),)
        raise
