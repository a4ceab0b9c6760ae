"""The HTTP of a server, by FastAPI: what a request may ask for, its limits, its answer, and every error as JSON.

A body is JSON or `.npy`. Nothing of it is unpickled or evaluated, and no header makes anything allocate.
"""

import asyncio
import io
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from jaxtyping import Float, Shaped
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import from_json, to_json
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from ray_ft.config.loading import describe_problems
from ray_ft.ensemble import Ensemble, Prediction
from ray_ft.errors import UserError, first_line, shorten
from ray_ft.files.arrays import parse_array
from ray_ft.prediction.quantities import PredictionSpec, choose_quantities

JSON, NPZ = "application/json", "application/x-npz"
NPY_TYPES = ("application/x-npy", "application/octet-stream")
MEGABYTE = 2**20
MAX_WAITING = 64  # requests for predictions whose body is there; a further one is told to come again
MAX_WAITING_BODIES = 16  # of the largest size, in bytes that have come, together
READ_SECONDS = 10.0  # for a client to send its body, and more for a large one:
READ_RATE = MEGABYTE / 2  # bytes per second
# Of the card.
SHOWN = {"version", "metric", "score", "level", "layout", "input_shape", "target_shape", "classes", "units"}
MAX_PROBLEMS = 4  # of a request, in one message

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    max_samples: int = 1024
    max_body_mb: float = 64


@dataclass(frozen=True, eq=False)
class PreparedRequest:
    """Inputs as `Ensemble.prepare` returns them, and a level that `check_level` passes."""

    inputs: Float[np.ndarray, "sample *input"]
    level: float


def build_array(value: object) -> Shaped[np.ndarray, "..."]:
    """Turn nested lists into an array of numbers."""
    try:
        array = np.asarray(value)
        if array is not value and array.dtype.kind not in "biuf":  # numpy would take texts for numbers, null for NaN
            raise ValueError("some are no numbers, or too large")
        return array
    except (ValueError, TypeError, OverflowError) as error:
        rule = "it must be nested lists of numbers, equally long at each depth"
        raise ValueError(f"{rule}; {first_line(error)}") from error


def split_names(value: object) -> object:
    """Names as the URL has them, with commas, or as JSON has them, in a list."""
    return value.split(",") if isinstance(value, str) else value


class PredictionRequest(BaseModel):
    """What a client asks for: inputs, and if wanted the level of the intervals and the quantities to answer with."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    inputs: Annotated[np.ndarray, BeforeValidator(build_array)]
    level: float | None = None
    quantities: Annotated[tuple[str, ...] | None, BeforeValidator(split_names)] = None


def build_app(
    ensemble: Ensemble, limits: Limits, predict: Callable[[PreparedRequest], Awaitable[Prediction | Exception]]
) -> FastAPI:
    """Build the application that answers for an ensemble; `predict` says what it predicts for a checked request."""
    app = FastAPI(title="ray-ft", openapi_url=None, redirect_slashes=False)
    waiting: set[Request] = set()  # for a prediction; who still sends, however slowly, takes no place
    held: dict[Request, int] = {}  # bytes that have come of each body
    one_at_a_time = ThreadPoolExecutor(1)  # a body that becomes an array takes much memory

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def describe_server() -> Response:
        card = ensemble.card
        own = {"status": "ready", "name": card.run, "members": len(card.members), "waiting": len(waiting)}
        note = ensemble.describe_lack(card.level)  # empty where there are intervals
        return answer(200, own | asdict(limits) | card.model_dump(include=SHOWN) | {"note": note})

    @app.post("/predict")
    async def predict_inputs(request: Request) -> Response:
        content_type = read_content_type(request.headers)
        kind = JSON if content_type == JSON else NPZ  # the answer is like the body
        run = asyncio.get_running_loop().run_in_executor
        check_length(read_length(request.headers), limits)

        def hold(n_bytes: int) -> None:
            held[request] = n_bytes
            most = MAX_WAITING_BODIES * limits.max_body_mb * MEGABYTE
            if len(waiting) >= MAX_WAITING or sum(held.values()) > most:
                text = f"the server is busy with {len(waiting)} requests, as many as may wait; send it again later"
                raise HTTPException(503, text, {"Retry-After": "1"})

        try:
            body = await read_body(request, limits, hold)
            waiting.add(request)
            asked = (body, content_type, dict(request.query_params), ensemble, limits.max_samples)
            prepared, spec = await run(one_at_a_time, parse_request, *asked)
            found = await predict(prepared)
            if isinstance(found, Exception):
                raise found
            arrays = {name: getattr(found, name) for name in spec.quantities}
            return Response(await run(one_at_a_time, format_answer, arrays, kind), media_type=kind)
        finally:
            waiting.discard(request)
            del held[request]

    app.add_exception_handler(StarletteHTTPException, answer_refusal)
    app.add_exception_handler(UserError, lambda _, error: answer(422, {"error": str(error)}))
    app.add_exception_handler(ClientDisconnect, lambda *_: answer(400, {"error": "a body must come whole"}))
    app.add_exception_handler(Exception, answer_failure)
    return app


def answer(status: int, content: Any, headers: Mapping[str, str] | None = None) -> Response:
    """Answer in JSON, with null for what is no finite number."""
    return Response(to_json(content, inf_nan_mode="null"), status, dict(headers or {}), JSON)


def answer_refusal(request: Request, error: Exception) -> Response:
    """Answer what is refused by its status; of a route that there is none of, say which there are."""
    assert isinstance(error, StarletteHTTPException)
    text, path = error.detail, shorten(request.url.path, 80)
    if error.status_code == 404:
        text = f"there are POST /predict and GET /health, got {path}"
    if error.status_code == 405 and error.headers:
        known = " or ".join(sorted(error.headers["Allow"].split(", ")))
        text = f"{path} takes {known}, got {shorten(request.method, 20)}"
    return answer(error.status_code, {"error": text}, error.headers)


def answer_failure(request: Request, error: Exception) -> Response:
    """Answer where the server is at fault; the log has what happened."""
    logger.error("a request failed", exc_info=error)
    return answer(500, {"error": "the server failed on this request; its log says why"})


def read_content_type(headers: Mapping[str, str]) -> str:
    """Find what a body is, or refuse what is neither JSON nor `.npy`."""
    name = headers.get("content-type", "").partition(";")[0].strip().lower()
    if name != JSON and name not in NPY_TYPES:
        text = f"Content-Type must be {JSON} or, for .npy, {' or '.join(NPY_TYPES)}, got {shorten(name, 80) or 'none'}"
        raise HTTPException(415, text)
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise HTTPException(415, f"a body must come uncompressed, got Content-Encoding {shorten(coding, 40)}")
    return name


def read_length(headers: Mapping[str, str]) -> int:
    """Read how long a body will be; a chunked one does not say so."""
    text = headers.get("content-length", "")
    return int(text) if text.isdecimal() and len(text) < 19 else 0


def check_length(n_bytes: int, limits: Limits) -> None:
    if n_bytes > limits.max_body_mb * MEGABYTE:
        text = f"a body may have {limits.max_body_mb:g} MB at most, got {n_bytes / MEGABYTE:.3g} MB or more"
        raise HTTPException(413, f"{text}; send fewer samples at a time, or .npy")


async def read_body(request: Request, limits: Limits, hold: Callable[[int], None]) -> bytes:
    """Read a body part by part; refuse one that is too long, or too slow. `hold` is told how long it has become."""
    body = bytearray()
    started = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(READ_SECONDS) as deadline:
            hold(0)
            async for part in request.stream():
                body += part
                check_length(len(body), limits)
                hold(len(body))
                deadline.reschedule(started + READ_SECONDS + len(body) / READ_RATE)
    except TimeoutError as error:
        rule = f"a body must come within {READ_SECONDS:g} s, and a second more for each {READ_RATE / MEGABYTE:g} MB"
        raise HTTPException(408, f"{rule}, got {len(body)} bytes of it") from error
    return bytes(body)


def parse_request(
    body: bytes, content_type: str, parameters: Mapping[str, str], ensemble: Ensemble, max_samples: int
) -> tuple[PreparedRequest, PredictionSpec]:
    """Read what a client asks for, and check it, so that no request spoils a pass that it shares.

    JSON has `inputs` and, if wanted, `level` and `quantities`; `.npy` has the inputs, and the URL the others.
    """
    try:
        content = from_json(body, allow_inf_nan=False) if content_type == JSON else {"inputs": parse_array(body)}
    except ValueError as error:
        text = f"the body must be {'JSON' if content_type == JSON else 'a .npy file by numpy.save'}, got another"
        raise HTTPException(400, f"{text}: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise HTTPException(422, f"the body must be an object with inputs, got a {type(content).__name__}")
    try:
        asked = PredictionRequest.model_validate({**parameters, **content})
    except ValidationError as error:
        problems = list(describe_problems(error, PredictionRequest))
        raise HTTPException(422, "; ".join(map(shorten, problems[:MAX_PROBLEMS]))) from error
    spec = choose_quantities(ensemble, asked.quantities, asked.level)
    n_samples = len(asked.inputs) if asked.inputs.ndim else 1
    if n_samples > max_samples:
        text = f"a request may have {max_samples} samples at most, got {n_samples}; send them in parts"
        raise HTTPException(413, text)
    return PreparedRequest(ensemble.prepare(asked.inputs, "the request"), spec.level), spec


def format_answer(arrays: Mapping[str, np.ndarray], kind: str) -> bytes:
    """Lay arrays out as JSON, with null for what is no finite number, or as `.npz`."""
    if kind == JSON:
        return to_json({name: array.tolist() for name, array in arrays.items()}, inf_nan_mode="null")
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def predict_together(ensemble: Ensemble, requests: Sequence[PreparedRequest]) -> list[Prediction | Exception]:
    """Predict for several requests, those of one level in one pass; what fails together is tried one by one."""
    found: dict[int, Prediction | Exception] = {}
    for level in {request.level for request in requests}:
        own = [i for i, request in enumerate(requests) if request.level == level]
        found |= zip(own, predict_level(ensemble, [requests[i].inputs for i in own], level), strict=True)
    return [found[i] for i in range(len(requests))]


def predict_level(
    ensemble: Ensemble, inputs: Sequence[Float[np.ndarray, "_ *input"]], level: float
) -> list[Prediction | Exception]:
    try:
        whole = ensemble.predict_prepared(np.concatenate(inputs), level)
    except Exception as error:  # the border of a request
        return [error] if len(inputs) == 1 else [predict_level(ensemble, [own], level)[0] for own in inputs]
    ends = np.cumsum([len(own) for own in inputs])[:-1]
    names = ensemble.list_available(level)
    rows = zip(*(np.split(getattr(whole, name), ends) for name in names), strict=True)
    return [replace(whole, **dict(zip(names, own, strict=True))) for own in rows]
