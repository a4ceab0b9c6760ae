"""What a hostile file is made of: mutations of a good one, and a clock that no reader may outrun."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

from ray_ft.errors import UserError

PATIENCE_S = 20
LONGEST_TEXT = 13_000  # of a message, whatever the input's size
JUNK = (None, True, 0, -1, 1.5, 2**31, 10**30, float("nan"), float("inf"), "", "../../x", "a" * 5000, "\0", "\ud800",
        [], {}, [[]], [0], ["../x"], {"value": -1}, [[[[[1]]]]])  # fmt: skip


class Hang(BaseException):
    """A reader took too long."""


@contextmanager
def refusing() -> Iterator[None]:
    """Let a reader succeed or raise a user's error in few words; nothing else, and in no long time."""

    def give_up(*_: Any) -> None:
        raise Hang

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE_S)
    try:
        yield
    except UserError as error:
        if len(str(error)) > LONGEST_TEXT:
            raise AssertionError("a message repeats what it refuses") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def mutate(content: bytes) -> st.SearchStrategy[bytes]:
    """Change, insert, repeat and drop bytes, one to four times; mostly near either end, where headers are."""
    place = st.integers(0, len(content) - 1)
    near = st.integers(0, min(400, len(content) - 1))
    change = st.tuples(
        st.sampled_from(("change", "insert", "drop", "truncate")),
        st.one_of(near, near.map(lambda i: len(content) - 1 - i), place),
        st.one_of(
            st.binary(min_size=1, max_size=8),
            st.sampled_from((b"\0" * 8, b"\xff" * 8, (2**40).to_bytes(8, "little"), b"9" * 12, b"\n")),
        ),
    )
    return st.lists(change, min_size=1, max_size=4).map(lambda changes: apply(content, changes))


def apply(content: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    result = bytearray(content)
    for kind, i, new in changes:
        match kind:
            case "change":
                result[i : i + len(new)] = new
            case "insert":
                result[i:i] = new
            case "drop":
                del result[i : i + len(new)]
            case "truncate":
                del result[i:]
    return bytes(result)


def mutate_tree(content: Any) -> st.SearchStrategy[Any]:
    """Put junk in the place of one to three values of nested dicts and lists, or take them out."""
    edit = st.tuples(st.integers(0, 10_000), st.sampled_from((*JUNK, "drop", "double")))
    return st.lists(edit, min_size=1, max_size=3).map(lambda edits: edit_tree(content, edits))


def edit_tree(content: Any, edits: list[tuple[int, Any]]) -> Any:
    whole = [deepcopy(content)]
    for number, new in edits:
        places = list(walk(whole))
        container, key = places[number % len(places)]
        if new == "drop" and container is not whole:
            del container[key]
        elif new == "double" and isinstance(container, list):
            container.append(container[key])
        else:
            container[key] = deepcopy(new)
    return whole[0]


def walk(container: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container with each of its keys or indices."""
    keys = list(container) if isinstance(container, dict) else range(len(container))
    for key in keys:
        yield container, key
        if isinstance(container[key], dict | list):
            yield from walk(container[key])
