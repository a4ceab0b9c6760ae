"""Ray Serve: an ensemble behind HTTP, on the loopback interface unless told otherwise, until it is interrupted."""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray_ft.backends.running import set_up_ray
from ray_ft.config import ComputeSection
from ray_ft.ensemble import Ensemble
from ray_ft.errors import ConfigError, RunError
from ray_ft.serving.replica import LOOPBACK, MAX_WAITING, Predictor
from ray_ft.serving.requests import Limits

__all__ = ["serve"]

APPLICATION = "ray-ft"
END_SECONDS = 5.0  # for requests under way when the server ends


def serve(
    path: str | Path,
    host: str = LOOPBACK,
    port: int = 8000,
    limits: Limits | None = None,
    replicas: int = 1,
    address: str | None = None,
    trust: bool = False,
) -> None:
    """Serve an ensemble until Ctrl-C or SIGTERM.

    Args:
        path: Folder of an ensemble or of its run; on a cluster, all nodes must see it.
        host: Address to listen on; on a cluster, of its head node.
        port: The same.
        limits: Of a request.
        replicas: Processes that predict.
        address: Ray cluster to join; a local Ray, which ends with the server, where left out.
        trust: Whether the ensemble may run its network's own code.

    Raises:
        EnsembleError: It is no ensemble.
        ConfigError: The port is taken, Serve is not installed, or the cluster is not to be had.
        RunError: A replica did not start.
    """
    card = Ensemble.load(path, trust=trust).card  # before Ray starts: what is wrong with it shows at once
    if address is None:
        check_free(host, port)
    set_up_ray(address)
    import_serve()
    from ray_ft.backends.tune import connect  # after the settings above, which Ray reads when it is imported

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with (
        contextlib.suppress(KeyboardInterrupt),
        ending_on_sigterm(),
        connect(ComputeSection(address=address)),
        ending_on_sigterm(),  # again, as Ray sets a handler of its own when it starts
        running(Path(path).absolute(), host, port, limits or Limits(), replicas, address),
    ):
        shown = f"[{host}]" if ":" in host else host
        print(f"{card.run} is served on http://{shown}:{port}  (POST /predict, GET /health)", flush=True)
        if address is None:
            print(f"log in {os.environ.get('RAY_TMPDIR', '/tmp')}/ray/session_latest/logs/serve", flush=True)
        threading.Event().wait()


def import_serve() -> Any:
    try:
        from ray import serve as ray_serve
    except ImportError as error:
        raise ConfigError(
            f"ray-ft serve needs Ray Serve, got none ({error}); install it by: pip install 'ray-ft[serve]'"
        ) from error
    return ray_serve


def check_free(host: str, port: int) -> None:
    """Bind the port for a moment: Serve would share it with another server that does the same.

    Raises:
        ConfigError: It cannot be had.
    """
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
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def running(path: Path, host: str, port: int, limits: Limits, replicas: int, address: str | None) -> Iterator[None]:
    """Run the replicas and the proxy; let requests under way end, and end them."""
    ray_serve = import_serve()
    check_alone()
    n_cpus = os.cpu_count() or 1
    deployment = ray_serve.deployment(
        Predictor,
        num_replicas=replicas,
        ray_actor_options={"num_cpus": 1 if address else n_cpus // replicas or round(n_cpus / replicas, 3)},
        max_ongoing_requests=2 * MAX_WAITING,  # the replica itself refuses above its limit, in JSON
        max_queued_requests=MAX_WAITING,
        graceful_shutdown_timeout_s=END_SECONDS,
        graceful_shutdown_wait_loop_s=0.1,
    )
    try:
        ray_serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
        ray_serve.run(deployment.bind(str(path), limits), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        if address is not None:
            ray_serve.shutdown()
        raise RunError(f"the server must start, got: {str(error).strip().splitlines()[-1]}") from error
    try:
        yield
    finally:
        ray_serve.delete(APPLICATION)  # waits for requests under way
        if address is not None:
            ray_serve.shutdown()


def check_alone() -> None:
    """Refuse a cluster that serves already: its Serve listens where it was told to, and would end with this one."""
    import ray

    with contextlib.suppress(ValueError):
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        raise ConfigError("the cluster must not run Ray Serve yet, got one that does; leave --address out")
