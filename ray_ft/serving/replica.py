"""A replica of the server: the ensemble in memory, and requests that share its batches.

Requests that come while a batch runs make up the next one. Serve's own batches close a fixed time after their first
request, also while another batch runs, so that they stay small under load, and a lone request waits for nobody. At
30 ms a batch and 2 ms a sample, 16 clients that each pause for 20 ms get 166 answers a second here and 42 there.
"""

import asyncio
import contextlib
import importlib
import json
import logging
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from ray_ft.ensemble import Ensemble
from ray_ft.errors import UserError
from ray_ft.serving.requests import (
    JSON,
    Limits,
    RequestError,
    check_length,
    read_query,
    read_type,
    write_answer,
    write_error,
)
from ray_ft.statistics.intervals import check_level

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["LOOPBACK", "MAX_WAITING", "Batcher", "Predictor", "Room"]

LOOPBACK = "127.0.0.1"
MAX_WAITING = 64  # requests for predictions in a replica; a further one is told to come again
MAX_WAITING_BODIES = 16  # of the largest size, in bytes, together; a chunked one counts as such
READ_SECONDS = 60.0  # for a client to send its body
ROUTES = {"/predict": ("POST",), "/health": ("GET", "HEAD")}

logger = logging.getLogger("ray.serve")


class Predictor:
    """A replica: the ensemble in memory, asked by HTTP.

    Args:
        path: Of the ensemble.
        limits: Of a request.
    """

    def __init__(self, path: str, limits: Limits) -> None:
        bind_on_loopback()
        self.ensemble = Ensemble.load(path, trust=True)  # the command has asked
        self.limits = limits
        self.batcher = Batcher(self.ensemble, limits.max_samples)
        self.room = Room(MAX_WAITING, MAX_WAITING_BODIES * limits.max_bytes)
        self.texts = ThreadPoolExecutor(1)  # one body at a time becomes an array, which takes much memory

    async def __call__(self, request: "Request") -> "Response":
        """Answer a request; whatever goes wrong with it, the server goes on."""
        from starlette.requests import ClientDisconnect
        from starlette.responses import Response

        headers = {}
        try:
            check_route(request.url.path, request.method)
            if request.url.path == "/health":
                return Response(json.dumps(self.describe()), media_type=JSON)
            return await self.predict(request)
        except RequestError as error:
            status, text = error.status, str(error)
            if status == 405:
                headers = {"Allow": ", ".join(ROUTES[request.url.path])}
            if status == 503:
                headers = {"Retry-After": "1"}
        except UserError as error:
            status, text = 422, str(error)
        except ClientDisconnect:
            status, text = 400, "a body must come whole, got a part"
        except Exception:  # the border of a request
            logger.exception("a request failed")
            status, text = 500, "the server failed on this request; its log says why"
        return Response(write_error(text), status, headers, JSON)

    def describe(self) -> dict[str, Any]:
        """Say what is served."""
        card = self.ensemble.card
        return {
            "status": "ready",
            "name": card.run,
            "version": card.version,
            "metric": card.metric,
            "score": card.score if math.isfinite(card.score) else None,
            "members": len(card.members),
            "level": card.level,
            "layout": card.layout,
            "input_shape": card.input_shape,
            "target_shape": card.target_shape,
            "units": card.units,
            "max_samples": self.limits.max_samples,
            "max_body_mb": self.limits.max_body_mb,
            "waiting": self.room.n_requests,
        }

    async def predict(self, request: "Request") -> "Response":
        from starlette.responses import Response

        read_type(request.headers)
        n_bytes = check_length(request.headers.get("content-length"), self.limits)
        loop = asyncio.get_running_loop()
        with self.room.hold(n_bytes):
            body = await read_body(request, self.limits)
            query = await loop.run_in_executor(
                self.texts, read_query, body, request.headers, dict(request.query_params), self.ensemble.quantities
            )
            del body
            level = self.ensemble.card.level if query.level is None else query.level
            inputs = await loop.run_in_executor(self.texts, self.prepare, query.inputs, level)
            prediction = await self.batcher.predict(inputs, level)
            arrays = {name: getattr(prediction, name) for name in query.quantities}
            content = await loop.run_in_executor(self.texts, write_answer, arrays, query.answer)
        return Response(content, media_type=query.answer)

    def prepare(self, inputs: np.ndarray, level: float) -> Float[np.ndarray, "sample *input"]:
        """Check what is particular to the ensemble, so that no request spoils a batch."""
        check_level(1 - level, len(self.ensemble.residuals))
        self.limits.check_samples(len(inputs) if inputs.ndim else 1)
        return self.ensemble.prepare(inputs, "the request")


def bind_on_loopback() -> None:
    """Where Ray is on the loopback interface, keep the replica's port for other deployments there too.

    Serve would open it on all interfaces, has no setting for it, and unpickles what comes in.
    """
    import ray

    replica: Any = importlib.import_module("ray.serve._private.replica")
    bind = getattr(replica, "add_port_to_grpc_server", None)  # of Ray 2.60
    local = ray.is_initialized() and ray.util.get_node_ip_address() == LOOPBACK  # type: ignore[no-untyped-call]
    if bind is not None and local:
        replica.add_port_to_grpc_server = lambda server, place: bind(server, place.replace("[::]", LOOPBACK))


def check_route(path: str, method: str) -> None:
    """Refuse what there is none of.

    Raises:
        RequestError: With 404 or 405.
    """
    if path not in ROUTES:
        raise RequestError(404, f"there are POST /predict and GET /health, got {path[:80]}")
    if method not in ROUTES[path]:
        raise RequestError(405, f"{path} takes {' or '.join(ROUTES[path])}, got {method[:20]}")


async def read_body(request: "Request", limits: Limits) -> bytes:
    """Read a body, which may be chunked and then has no length beforehand.

    Raises:
        RequestError: It is too long, or too slow.
    """
    parts, n_bytes = [], 0
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for part in request.stream():
                n_bytes += len(part)
                limits.check_bytes(n_bytes)
                parts.append(part)
    except TimeoutError as error:
        raise RequestError(408, f"a body must come within {READ_SECONDS:g} s, got a part") from error
    return b"".join(parts)


class Room:
    """What may wait at once: requests, and the bytes of their bodies."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.max_requests, self.max_bytes = max_requests, max_bytes
        self.n_requests, self.n_bytes = 0, 0

    @contextlib.contextmanager
    def hold(self, n_bytes: int) -> Iterator[None]:
        """Take up room.

        Raises:
            RequestError: There is none.
        """
        if self.n_requests >= self.max_requests or self.n_bytes + n_bytes > self.max_bytes:
            raise RequestError(
                503, f"the server is busy with {self.n_requests} requests, as many as may wait; send it again later"
            )
        self.n_requests += 1
        self.n_bytes += n_bytes
        try:
            yield
        finally:
            self.n_requests -= 1
            self.n_bytes -= n_bytes


@dataclass(frozen=True, eq=False)
class Job:
    """Prepared inputs of one request, and who waits for them."""

    inputs: Float[np.ndarray, "sample *input"]
    level: float
    answer: "asyncio.Future[Any]"  # the quantities of its samples


class Batcher:
    """Predicts for several requests at once: what has come while a batch ran is the next one.

    Args:
        ensemble: That predicts.
        max_samples: In a batch.
    """

    def __init__(self, ensemble: Ensemble, max_samples: int) -> None:
        self.ensemble, self.max_samples = ensemble, max_samples
        self.waiting: deque[Job] = deque()
        self.thread = ThreadPoolExecutor(1)
        self.task: asyncio.Task[None] | None = None
        self.n_batches = 0

    async def predict(self, inputs: Float[np.ndarray, "sample *input"], level: float) -> Any:
        """Predict for inputs that are prepared, at a level that is checked."""
        job = Job(inputs, level, asyncio.get_running_loop().create_future())
        self.waiting.append(job)
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self.run())
        return await job.answer

    async def run(self) -> None:
        """Predict until nobody waits."""
        await asyncio.sleep(0)  # who comes in the same turn of the loop
        while batch := self.take():
            await self.predict_batch(batch)

    def take(self) -> list[Job]:
        """Take those that wait longest, of one level, as far as they fit; at least one."""
        batch: list[Job] = []
        later: list[Job] = []
        n_samples = 0
        while self.waiting:
            job = self.waiting.popleft()
            if job.answer.done():
                continue  # its client has gone
            if batch and (job.level != batch[0].level or n_samples + len(job.inputs) > self.max_samples):
                later.append(job)
                continue
            batch.append(job)
            n_samples += len(job.inputs)
        self.waiting.extend(later)
        return batch

    async def predict_batch(self, batch: Sequence[Job]) -> None:
        self.n_batches += 1
        inputs = [job.inputs for job in batch]
        try:
            whole = await asyncio.get_running_loop().run_in_executor(
                self.thread, self.ensemble.predict_prepared, np.concatenate(inputs), batch[0].level
            )
        except Exception as error:  # the border of a batch
            if len(batch) > 1:
                for job in batch:
                    await self.predict_batch([job])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        start = 0
        for job in batch:
            stop = start + len(job.inputs)
            if not job.answer.done():
                own = {name: getattr(whole, name)[start:stop] for name in self.ensemble.quantities}
                job.answer.set_result(replace(whole, **own))
            start = stop
