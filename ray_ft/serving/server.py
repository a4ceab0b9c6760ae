"""Ray Serve: an ensemble behind HTTP, on the loopback interface unless told otherwise, until it is interrupted.

Requests that come within 10 ms share a pass, by Serve's own batches: docs/ensemble.md has what a queue of ours gained.
"""

import asyncio
import contextlib
import importlib.util
import logging
import math
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_ft.errors import ConfigError, RunError
from ray_ft.files.cpus import count_cpus
from ray_ft.runs.interruption import end_by_sigterm

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ray_ft.ensemble import Prediction

APPLICATION = "ray-ft"
WAIT_SECONDS = 0.01  # for others that share a pass
MAX_ONGOING = 1024  # requests in a replica, those of slow clients too: it refuses what is too many itself, in JSON
END_SECONDS = 5.0  # for requests under way when the server ends
NO_SERVE = "ray-ft serve needs Ray Serve, got none ({}); install it by: pip install 'ray-ft[serve]'"


def serve(
    path: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_samples: int = 1024,
    max_body_mb: float = 64,
    replicas: int = 1,
    address: str | None = None,
    trust: bool = False,
    device: str = "auto",
) -> None:
    """Serve an ensemble until Ctrl-C or SIGTERM, by a local Ray, which ends with the server, or on a cluster.

    On a cluster, all nodes must see the folder, and host and port are those of its head node. What takes seconds is
    said on the standard error before it is done.
    """
    if address is None:
        check_free(host, port)
    check_extra()
    say(f"loading {path}")  # whatever takes long is imported from here on
    from ray_ft.backends.running import set_up_ray
    from ray_ft.config import ComputeSection
    from ray_ft.ensemble import Ensemble
    from ray_ft.ensemble.artefact import check_files
    from ray_ft.ensemble.device import pick_device

    if address is None and pick_device(device) == "cpu":
        device = "cpu"
    card = Ensemble.load(path, trust=trust).card  # before Ray starts: what is wrong with it shows at once
    check_files(card)
    say("starting Ray" if address is None else f"joining {address}")
    set_up_ray(address)
    import_serve()  # which sets levels of its own for what it logs
    from ray_ft.backends.local_ray import find_folder
    from ray_ft.backends.tune import connect  # after the settings above, which Ray reads when it is imported

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    build = partial(build_replica, Path(path).absolute(), max_samples, max_body_mb, trust)
    with (
        contextlib.suppress(KeyboardInterrupt),
        ending_on_sigterm(),
        connect(ComputeSection(address=address)),
        ending_on_sigterm(),  # again, as Ray sets a handler of its own when it starts
        running(build, host, port, replicas, address, device),
    ):
        shown = f"[{host}]" if ":" in host else host
        print(f"{card.run} is served on http://{shown}:{port}  (POST /predict, GET /health)", flush=True)
        if address is None:
            print(f"log in {find_folder()}/session_latest/logs/serve", flush=True)
        threading.Event().wait()


def say(what: str) -> None:
    print(f"{what} …", file=sys.stderr, flush=True)


def build_replica(path: Path, max_samples: int, max_body_mb: float, trust: bool, device: str) -> "FastAPI":
    """Build what a replica runs, in its process; Serve gathers the requests that come within a short time."""
    from ray_ft.ensemble import Ensemble
    from ray_ft.serving.app import Limits, PreparedRequest, build_app, predict_together

    ensemble = Ensemble.load(path, device, trust)
    thread = ThreadPoolExecutor(1)

    async def predict(requests: list[PreparedRequest]) -> "list[Prediction | Exception]":
        return await asyncio.get_running_loop().run_in_executor(thread, predict_together, ensemble, requests)

    share = import_serve().batch(
        max_batch_size=max_samples,
        batch_wait_timeout_s=WAIT_SECONDS,
        batch_size_fn=lambda requests: sum(len(request.inputs) for request in requests),
    )
    return build_app(ensemble, Limits(max_samples, max_body_mb), share(predict))


def check_extra() -> None:
    """Look for what the extra brings; the import, which takes seconds, may yet find that a part of it is missing."""
    for name in ("fastapi", "uvicorn", "starlette"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(NO_SERVE.format(f"no module {name}"))


def import_serve() -> Any:
    try:
        from ray import serve as ray_serve
    except ImportError as error:
        raise ConfigError(NO_SERVE.format(error)) from error
    return ray_serve


def check_free(host: str, port: int) -> None:
    """Bind the port for a moment: Serve would share it with another server that does the same."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"--host and --port must be free to listen on, got {host}:{port}: {reason}") from error


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end what runs as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with end_by_sigterm(3 * END_SECONDS, f"the server ends; requests under way have {END_SECONDS:g} s"):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def running(
    build: "Callable[[str], FastAPI]", host: str, port: int, replicas: int, address: str | None, device: str
) -> Iterator[None]:
    """Run the replicas and the proxy; let requests under way end, and end them."""
    ray_serve = import_serve()
    if ray_serve.status().proxies:  # they listen where they were told to, and would end with this server
        raise ConfigError("the cluster must not run Ray Serve yet, got one that does; leave --address out")
    share = share_machine(replicas, address, device)
    on = "cuda" if share["num_gpus"] else "cpu"
    say(f"starting {replicas} {'replica' if replicas == 1 else 'replicas'} on {on}")
    deployment = ray_serve.deployment(
        ray_serve.ingress(lambda: build(on))(),
        name="predictor",
        num_replicas=replicas,
        ray_actor_options=share,
        max_ongoing_requests=MAX_ONGOING,
        max_queued_requests=MAX_ONGOING,
        graceful_shutdown_timeout_s=END_SECONDS,
        graceful_shutdown_wait_loop_s=0.1,
    )
    with contextlib.ExitStack() as at_end:
        if address is not None:
            at_end.callback(ray_serve.shutdown)
        try:
            ray_serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
            ray_serve.run(deployment.bind(), name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            raise RunError(f"the server must start, got: {str(error).strip().splitlines()[-1]}") from error
        at_end.callback(ray_serve.delete, APPLICATION)  # which waits for requests under way
        yield


def share_machine(replicas: int, address: str | None, device: str) -> dict[str, float]:
    """What a replica holds: a CPU of a cluster or a share of this machine's, and a share of a GPU if it is to use one.

    Raises:
        ConfigError: It is to use one, and the cluster has none.
    """
    import ray

    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves it unannotated
    n_cpus, n_gpus = count_cpus(), int(has.get("GPU", 0))
    if device == "cuda" and not n_gpus:
        raise ConfigError("--device cuda needs GPUs, but no node of the cluster has any; leave it out")
    return {
        "num_cpus": 1.0 if address else divide(n_cpus, replicas),
        "num_gpus": 0.0 if device == "cpu" or not n_gpus else min(1.0, divide(1, math.ceil(replicas / n_gpus))),
    }


def divide(n: int, parts: int) -> float:
    """Divide in whole numbers, else in shares of one of which all parts fit."""
    return float(n // parts) or math.floor(1000 * n / parts) / 1000
