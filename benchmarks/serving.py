"""A small load test of the server on loopback: `python -m benchmarks.serving RUN`.

Threads send requests one after the other, of 1 and of 32 samples, as JSON and as `.npy`, for a bounded number and time.
The peer is `Ensemble.predict` in this process on the same inputs, one request after the other: what the server adds is
HTTP, the text, and a process; what it saves is batches of requests that come together.
"""

import argparse
import contextlib
import http.client
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ray_ft.ensemble import Ensemble
from ray_ft.ensemble.artefact import Card

START_S, STOP_S = 120.0, 30.0
SERVE = "import sys; from ray_ft.serving.server import serve; serve(sys.argv[1], port=int(sys.argv[2]))"


@dataclass
class Tally:
    """Seconds that requests took, and when the last one ended."""

    seconds: list[float] = field(default_factory=list)
    whole_s: float = 0.0

    def summary(self) -> dict[str, float]:
        p95 = float(np.quantile(self.seconds, 0.95))
        return {
            "n": len(self.seconds),
            "requests_per_s": len(self.seconds) / self.whole_s,
            "median_ms": 1e3 * statistics.median(self.seconds),
            "p95_ms": 1e3 * p95,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a run or of an ensemble")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--requests", type=int, default=50, help="of each thread")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 32], help="of a request")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a setting, at most")
    options = parser.parse_args()
    ensemble = Ensemble.load(options.run)
    results = {}
    with serving(options.run) as port:
        for n_samples in options.samples:
            inputs = draw_inputs(ensemble.card, n_samples)
            for form, body in (("json", write_json(inputs)), ("npy", write_npy(inputs))):
                tally = load(port, form, body, options.threads, options.requests, options.seconds)
                results[f"{form}-{n_samples}"] = show(f"{options.threads} clients, {n_samples} samples, {form}", tally)
    for n_samples in options.samples:
        inputs = draw_inputs(ensemble.card, n_samples)
        n_requests = options.threads * options.requests
        tally = repeat(partial(ensemble.predict, inputs), n_requests, options.seconds)
        results[f"direct-{n_samples}"] = show(f"in this process, {n_samples} samples", tally)
    print(json.dumps(results))


@contextlib.contextmanager
def serving(run: str) -> Iterator[int]:
    """Serve on a free port in a process of its own; end it by SIGTERM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = subprocess.Popen([sys.executable, "-c", SERVE, run, str(port)], stdout=subprocess.PIPE, text=True)
    timer = threading.Timer(START_S, process.kill)
    timer.start()
    try:
        line = process.stdout.readline() if process.stdout else ""
        timer.cancel()
        if not line:
            raise SystemExit("the server did not start")
        yield port
    finally:
        timer.cancel()
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_S)


def draw_inputs(card: Card, n_samples: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (n_samples, *card.input_shape)
    return rng.integers(0, 2, shape).astype(np.uint8) if card.layout == "diffraction" else rng.normal(size=shape)


def write_json(inputs: np.ndarray) -> bytes:
    return json.dumps({"inputs": inputs.tolist()}).encode()


def write_npy(inputs: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, inputs)
    return stream.getvalue()


def load(port: int, form: str, body: bytes, n_threads: int, n_requests: int, seconds: float) -> Tally:
    """Send requests from several threads, each over one connection."""
    kind = "application/json" if form == "json" else "application/x-npy"

    def send(connection: http.client.HTTPConnection) -> None:
        connection.request("POST", "/predict", body, {"Content-Type": kind})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{answer.status}: {content[:200].decode(errors='replace')}")

    def run(tally: Tally) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds + START_S)
        with contextlib.closing(connection):
            part = repeat(lambda: send(connection), n_requests, seconds)
        tally.seconds += part.seconds

    whole = Tally()
    threads = [threading.Thread(target=run, args=(whole,)) for _ in range(n_threads)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole.whole_s = time.perf_counter() - started
    return whole


def repeat(call: Callable[[], object], n_times: int, seconds: float) -> Tally:
    """Call up to `n_times`, after one call that is not counted, until the time is up."""
    call()
    tally, started = Tally(), time.perf_counter()
    while len(tally.seconds) < n_times and (not tally.seconds or time.perf_counter() - started < seconds):
        before = time.perf_counter()
        call()
        tally.seconds.append(time.perf_counter() - before)
    tally.whole_s = time.perf_counter() - started
    return tally


def show(name: str, tally: Tally) -> dict[str, float]:
    found = tally.summary()
    print(
        f"{name}: {found['requests_per_s']:.1f} requests/s, median {found['median_ms']:.0f} ms, 95 % within "
        f"{found['p95_ms']:.0f} ms ({found['n']} requests; load {os.getloadavg()[0]:.1f})",
        flush=True,
    )
    return found


if __name__ == "__main__":
    main()
