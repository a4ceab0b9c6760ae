"""Requests to a server of an ensemble, and its answers: read without trust, written as plain JSON or `.npz`.

A body is JSON or `.npy`. Nothing is unpickled or evaluated, and no header makes anything allocate: it must agree with
the bytes that follow it.
"""

import io
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ray_ft.errors import UserError, first_few, suggest

__all__ = [
    "JSON",
    "NPZ",
    "Limits",
    "Query",
    "RequestError",
    "check_length",
    "read_query",
    "read_type",
    "write_answer",
    "write_error",
]

JSON, NPZ = "application/json", "application/x-npz"
NPY_TYPES = ("application/x-npy", "application/octet-stream")
NPZ_TYPES = (NPZ, "application/octet-stream", "application/zip")
MAX_AXES = 32  # of numpy 1
MEGABYTE = 2**20

NPY_HEADER = re.compile(
    rb"\{\s*'descr':\s*'([<>|=]?[biuf]\d{1,2})',\s*'fortran_order':\s*(True|False),\s*"
    rb"'shape':\s*\(((?:\d{1,18}(?:, *\d{1,18})*)?),?\),?\s*\}\s*"
)


class RequestError(UserError):
    """A request is refused.

    Attributes:
        status: Of the HTTP answer.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    max_samples: int = 1024
    max_body_mb: float = 64

    @property
    def max_bytes(self) -> int:
        return int(self.max_body_mb * MEGABYTE)

    def check_samples(self, n_samples: int) -> None:
        if n_samples > self.max_samples:
            raise RequestError(
                413, f"a request may have {self.max_samples} samples at most, got {n_samples}; send them in parts"
            )

    def check_bytes(self, n_bytes: int) -> None:
        if n_bytes > self.max_bytes:
            raise RequestError(
                413,
                f"a body may have {self.max_body_mb:g} MB at most, got {n_bytes / MEGABYTE:.3g} MB or more; send fewer "
                "samples at a time, or .npy",
            )


@dataclass(frozen=True)
class Query:
    """What a request asks for.

    Attributes:
        inputs: As they came.
        level: Of the intervals; the ensemble's where left out.
        quantities: What to answer with.
        answer: Content type to answer with.
    """

    inputs: Shaped[np.ndarray, "..."]
    level: float | None
    quantities: tuple[str, ...]
    answer: str


def check_length(text: str | None, limits: Limits) -> int:
    """Read a Content-Length; a chunked body, which has none, may have the most.

    Raises:
        RequestError: It is no length, or too long.
    """
    if text is None:
        return limits.max_bytes
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise RequestError(400, f"Content-Length must be a whole number, got {text[:40]!r}")
    limits.check_bytes(int(text))
    return int(text)


def read_type(headers: Mapping[str, str]) -> str:
    """Find what a body is.

    Args:
        headers: With lower-case names.

    Raises:
        RequestError: It is neither JSON nor `.npy`.
    """
    name = headers.get("content-type", "").partition(";")[0].strip().lower()
    if name != JSON and name not in NPY_TYPES:
        raise RequestError(
            415, f"Content-Type must be {JSON} or, for .npy, {' or '.join(NPY_TYPES)}, got {name[:80] or 'none'}"
        )
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise RequestError(415, f"a body must come uncompressed, got Content-Encoding {coding[:40]}")
    return name


def read_query(body: bytes, headers: Mapping[str, str], parameters: Mapping[str, str], known: tuple[str, ...]) -> Query:
    """Read a request for predictions.

    Args:
        body: JSON with `inputs` and, if wanted, `level` and `quantities`; or `.npy` with the inputs alone.
        headers: With lower-case names.
        parameters: Of the URL: `level` and `quantities`, comma-separated, beside `.npy`.
        known: Quantities that there are; all of them where none are named.

    Raises:
        RequestError: It breaks a rule.
    """
    if read_type(headers) == JSON:
        check_names(parameters, (), "parameter of the URL, where JSON has all in its body")
        return read_json(body, known, choose_answer(headers, JSON))
    check_names(parameters, ("level", "quantities"), "parameter of the URL")
    level = parameters.get("level")
    names = parameters.get("quantities")
    return Query(
        read_npy(body),
        level if level is None else check_level_text(level),
        known if names is None else check_quantities(names.split(","), known),
        choose_answer(headers, NPZ),
    )


def choose_answer(headers: Mapping[str, str], like_body: str) -> str:
    """Find the content type that the client accepts; without a wish, it is like the body's."""
    wishes = [wish.partition(";")[0].strip().lower() for wish in headers.get("accept", "").split(",")]
    known = [JSON if wish == JSON else NPZ for wish in wishes if wish == JSON or wish in NPZ_TYPES]
    return known[0] if known else like_body


def read_json(body: bytes, known: tuple[str, ...], answer: str) -> Query:
    try:
        content = json.loads(body, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body must be JSON, got none: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise RequestError(422, f"the body must be an object with inputs, got {describe(content)}")
    check_names(content, ("inputs", "level", "quantities"), "key")
    if "inputs" not in content:
        raise RequestError(422, "the body must have inputs, nested lists of numbers with one entry a sample, got none")
    level, names = content.get("level"), content.get("quantities")
    return Query(
        build_array(content["inputs"]),
        level if level is None else check_level(level),
        known if names is None else check_quantities(names, known),
        answer,
    )


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def check_names(names: Collection[str], known: tuple[str, ...], what: str) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        name = unknown[0][:40]
        raise RequestError(422, f"unknown {what}: {name}{suggest(name, known)}")


def check_level_text(text: str) -> float:
    try:
        return check_level(float(text))
    except ValueError:
        return check_level(text[:40])


def check_level(level: Any) -> float:
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
        raise RequestError(422, f"level must be a number between 0.5 and 1, got {describe(level)}; 0.9 is usual")
    return float(level)


def check_quantities(names: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise RequestError(422, f"quantities must be a list of names out of {', '.join(known)}")
    check_names(names, known, "quantity")
    return tuple(dict.fromkeys(names))


def describe(value: Any) -> str:
    """Write a value of a client's in short."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18:
        return f"{value:g}"
    return {dict: "an object", list: "a list", type(None): "null"}.get(type(value), f"a {type(value).__name__}")


def build_array(nested: Any) -> Shaped[np.ndarray, "..."]:
    """Turn nested lists of numbers into an array, level by level: numpy would take texts and guess at ragged lists."""
    shape: list[int] = []
    values = [nested]
    while (kinds := set(map(type, values))) == {list}:
        lengths = set(map(len, values))
        if len(lengths) > 1:
            raise RequestError(
                422,
                f"inputs must be lists of equal length at each depth, got lengths "
                f"{first_few([str(n) for n in sorted(lengths)])} at depth {len(shape)}",
            )
        if len(shape) == MAX_AXES:
            raise RequestError(422, f"inputs may have {MAX_AXES} axes at most, got more")
        shape.append(lengths.pop())
        values = list(chain.from_iterable(values))
    if not shape or not kinds <= {int, float, bool}:
        found = next((value for value in values if type(value) not in (int, float, bool)), values[0] if values else [])
        raise RequestError(422, f"inputs must be nested lists of numbers, got {describe(found)} at depth {len(shape)}")
    try:
        return np.array(values, dtype=np.float64).reshape(shape)
    except OverflowError as error:
        raise RequestError(422, "inputs must be numbers below 1e308, got a larger one") from error


def read_npy(body: bytes) -> Shaped[np.ndarray, "..."]:
    """Read an array of numbers from the bytes of a `.npy` file; it is a view of them.

    The header is matched, not evaluated.
    """
    shape, fortran_order, dtype, start = read_npy_header(body)
    n_bytes, n_given = math.prod(shape) * dtype.itemsize, len(body) - start
    if n_bytes != n_given:
        raise RequestError(
            400,
            f"a .npy file's header must agree with its data, got {shape} of {dtype}, {n_bytes} bytes, and {n_given}",
        )
    if n_bytes == 0:
        raise RequestError(422, f"inputs must not be empty, got shape {shape}")
    return np.frombuffer(body, dtype, offset=start).reshape(shape, order="F" if fortran_order else "C")


def read_npy_header(body: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Read shape, whether the first axis is the fastest, type, and where the data starts."""
    if body[:6] != b"\x93NUMPY" or len(body) < 12 or body[6] not in (1, 2, 3):
        raise RequestError(400, "the body must be a .npy file by numpy.save, got other bytes")
    first = 10 if body[6] == 1 else 12
    start = first + int.from_bytes(body[8:first], "little")
    match = NPY_HEADER.fullmatch(body[first : min(start, first + 10_000)])
    if start > len(body) or match is None:
        raise RequestError(400, "a .npy file must hold one plain array of real numbers, got another header")
    shape = tuple(int(digits) for digits in match[3].split(b",") if digits)
    if len(shape) > MAX_AXES:
        raise RequestError(422, f"inputs may have {MAX_AXES} axes at most, got {len(shape)}")
    try:
        dtype = np.dtype(match[1].decode())
    except TypeError as error:
        raise RequestError(400, f"a .npy file must hold numbers that numpy knows, got {match[1].decode()}") from error
    return shape, match[2] == b"True", dtype, start


def write_answer(arrays: Mapping[str, np.ndarray], kind: str) -> bytes:
    """Write arrays as JSON, with null for what is no finite number, or as `.npz`."""
    if kind == JSON:
        return json.dumps({name: list_numbers(array) for name, array in arrays.items()}, allow_nan=False).encode()
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def list_numbers(array: np.ndarray) -> Any:
    finite = np.isfinite(array)
    if not finite.all():
        array = array.astype(object)
        array[~finite] = None
    return array.tolist()


def write_error(text: str) -> bytes:
    return json.dumps({"error": text}).encode()
