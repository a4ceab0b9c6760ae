"""The server: requests read without trust, passes that keep requests apart, and the real server on Ray."""

import asyncio
import contextlib
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_ft.ensemble import Ensemble, Prediction
from ray_ft.errors import ConfigError
from ray_ft.serving.server import check_free, serve, share_machine

pytest.importorskip("ray.serve")
from fastapi import FastAPI  # it comes with Serve

from ray_ft.serving import app as served
from ray_ft.serving.app import JSON, NPZ, Limits, PreparedRequest, build_app, predict_together

QUANTITIES = tuple(field.name for field in fields(Prediction))
X = np.random.default_rng(3).normal(size=(5, 6)).astype(np.float32)
NPY = {"content-type": "application/x-npy"}


def write_npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def write_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.fixture(scope="module")
def ensemble(toy_run: Path) -> Ensemble:
    return Ensemble.load(toy_run)


@pytest.fixture
def app(ensemble: Ensemble) -> FastAPI:
    return build_alone(ensemble)


def build_alone(ensemble: Ensemble) -> FastAPI:
    """The application without Serve: each request has a pass to itself."""

    async def predict(request: PreparedRequest) -> Prediction | Exception:
        return predict_together(ensemble, [request])[0]

    return build_app(ensemble, Limits(max_samples=8, max_body_mb=0.01), predict)


async def ask(
    app: FastAPI,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    target: str = "/predict",
    method: str = "POST",
    delay_s: float = 0.0,
) -> tuple[int, Mapping[str, str], bytes]:
    """Answer one request without a socket; a body without Content-Length comes in chunks."""
    path, _, query = target.partition("?")
    given = {"content-type": JSON} | dict(headers or {})
    parts = [body[i : i + 4096] for i in range(0, len(body), 4096)] or [b""]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages[-1]["more_body"] = False
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "server": ("127.0.0.1", 8000),
        "scheme": "http",
    }
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(delay_s)
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    with contextlib.suppress(RuntimeError):  # raised again for the log, after the answer
        await app(scope, receive, send)
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answered, b"".join(message.get("body", b"") for message in sent)


def check_equal(found: Mapping[str, Any], expected: Prediction, names: tuple[str, ...] = QUANTITIES) -> None:
    assert tuple(found) == names
    for name in names:
        np.testing.assert_allclose(np.asarray(found[name]), getattr(expected, name), rtol=1e-5, atol=1e-6)


def test_answers_are_the_ensembles(app: FastAPI, ensemble: Ensemble) -> None:
    body = {"inputs": X.tolist(), "level": 0.8, "quantities": ["upper", "mean"]}
    status, headers, content = asyncio.run(ask(app, json.dumps(body).encode()))
    assert (status, headers["content-type"]) == (200, JSON)
    check_equal(json.loads(content), ensemble.predict(X, 0.8), ("mean", "upper"))
    for array in (X, np.asfortranarray(X), X.astype(">f8"), X.astype(np.float64)):
        status, headers, content = asyncio.run(ask(app, write_npy(array), NPY))
        assert (status, headers["content-type"]) == (200, NPZ)
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            check_equal(dict(found), ensemble.predict(X))


def test_the_url_of_npy_says_what_is_wanted(app: FastAPI, ensemble: Ensemble) -> None:
    target = "/predict?level=0.7&quantities=lower,flag"
    status, headers, content = asyncio.run(ask(app, write_npy(X), NPY | {"accept": JSON}, target))
    assert (status, headers["content-type"]) == (200, NPZ), "an answer is like the body"
    with np.load(io.BytesIO(content)) as found:
        check_equal(dict(found), ensemble.predict(X, 0.7), ("lower", "flag"))


async def check_refused(
    app: FastAPI, status: int, text: str, body: bytes, headers: Mapping[str, str], target: str, method: str
) -> None:
    found, kinds, content = await ask(app, body, headers, target, method)
    error = json.loads(content)["error"]
    assert (found, kinds["content-type"]) == (status, JSON), error
    assert text in error
    assert ("allow" in kinds) == (status == 405)
    assert json.loads((await ask(app, target="/health", method="GET"))[2])["waiting"] == 0


@pytest.mark.parametrize(
    ("status", "text", "body"),
    [
        (400, "the body must be JSON", b"{"),
        (400, "the body must be JSON", b"[" * 5000),
        (400, "the body must be JSON", b'{"inputs": [[NaN]]}'),
        (413, "0.01 MB at most", b" " * 20_000),
        (413, "8 samples at most, got 9", json.dumps({"inputs": [[0] * 6] * 9}).encode()),
        (422, "must be an object with inputs, got a list", b"[]"),
        (422, "input: unknown key; did you mean inputs?", b'{"input": []}'),
        (422, "inputs: missing", b"{}"),
        (422, "lists of numbers, equally long at each depth", b'{"inputs": [[1, "two"]]}'),
        (422, "lists of numbers", b'{"inputs": [1, [1]]}'),
        (422, "lists of numbers", b'{"inputs": {"a": 1}}'),
        (422, "lists of numbers", b'{"inputs": null}'),
        (422, "some are no numbers", b'{"inputs": [["1", "2", "3", "4", "5", "6"]]}'),
        (422, "lists of numbers", b'{"inputs": [[1], [1, 2]]}'),
        (422, "maximum number of dimension", b'{"inputs": ' + b"[" * 70 + b"1" + b"]" * 70 + b"}"),
        (422, "none empty, got shape (0,)", b'{"inputs": []}'),
        (422, "inputs must have the shape (6,)", b'{"inputs": [[1, 2]]}'),
        (422, "data must be finite", b'{"inputs": [[1e999, 0, 0, 0, 0, 0]]}'),
        (422, "some are no numbers", b'{"inputs": [[null, 0, 0, 0, 0, 0]]}'),
        (422, "within 3.4e+38, as float32", b'{"inputs": [[1e99, 0, 0, 0, 0, 0]]}'),
        (422, "some are no numbers, or too large", b'{"inputs": [[1' + b"0" * 400 + b"]]}"),
        (422, "level: it should be a valid number", b'{"inputs": [[1]], "level": "high"}'),
        (422, "between 50 % and 100 %, got 30 %", b'{"inputs": [[1]], "level": 0.3}'),
        (422, "need at least", b'{"inputs": [[1]], "level": 0.9999}'),
        (422, "got 'maen'; did you mean mean?", b'{"inputs": [], "quantities": ["maen"]}'),
        (422, "some quantity must be asked for", b'{"inputs": [], "quantities": []}'),
        (422, "quantities: it should be a list", b'{"inputs": [], "quantities": 3}'),
    ],
)
def test_bad_json_states_the_rule(status: int, text: str, body: bytes, app: FastAPI) -> None:
    asyncio.run(check_refused(app, status, text, body, {}, "/predict", "POST"))


HUGE = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 6), }"


@pytest.mark.parametrize(
    ("status", "text", "body", "query"),
    [
        (400, "a .npy file by numpy.save", b"PK\x03\x04 and so on", ""),
        (400, "(1000000000, 6) of float64, 48000000000 bytes, and 8", write_header(HUGE) + b"8 bytes.", ""),
        (400, "Python objects", write_header(HUGE.replace("<f8", "|O")), ""),
        (400, "a .npy file by numpy.save", write_header(HUGE.replace("<f8", "<f7")), ""),
        (400, "a .npy file by numpy.save", write_header(HUGE.replace("6", "__import__('os').getpid()")), ""),
        (422, "none empty, got shape (0, 6)", write_npy(X[:0]), ""),
        (422, "data must be real numbers, got <U3", write_npy(np.array([["abc"]])), ""),
        (422, "between 50 % and 100 %", write_npy(X), "?level=nan"),
        (422, "level: it should be a valid number", write_npy(X), "?level=high"),
        (422, "levl: unknown key; did you mean level?", write_npy(X), "?levl=0.9"),
        (422, "did you mean mean?", write_npy(X), "?quantities=std,maen"),
        (422, "inputs must have the shape (6,)", write_npy(X[:, :2]), "?inputs=1"),
    ],
)
def test_bad_npy_states_the_rule(status: int, text: str, body: bytes, query: str, app: FastAPI) -> None:
    asyncio.run(check_refused(app, status, text, body, NPY, f"/predict{query}", "POST"))


@pytest.mark.parametrize(
    ("status", "text", "method", "target", "headers"),
    [
        (404, "there are POST /predict and GET /health, got /", "GET", "/", {}),
        (404, "there are POST /predict and GET /health, got /predict/", "POST", "/predict/", {}),
        (405, "/predict takes POST, got GET", "GET", "/predict", {}),
        (405, "/health takes GET or HEAD, got POST", "POST", "/health", {}),
        (413, "0.01 MB at most, got 1 MB", "POST", "/predict", {"content-length": str(2**20)}),
        (415, "Content-Type must be application/json or", "POST", "/predict", {"content-type": "text/csv"}),
        (415, "got Content-Encoding gzip", "POST", "/predict", {"content-encoding": "gzip"}),
        (422, "inputs: missing", "POST", "/predict?level=0.9", {}),
    ],
)
def test_bad_heads_state_the_rule(
    status: int, text: str, method: str, target: str, headers: dict[str, str], app: FastAPI
) -> None:
    asyncio.run(check_refused(app, status, text, b"{}", headers, target, method))


def test_health_says_what_is_served(app: FastAPI, ensemble: Ensemble) -> None:
    status, _, content = asyncio.run(ask(app, target="/health", method="GET"))
    found = json.loads(content)
    card = ensemble.card
    assert (status, found["name"], found["score"]) == (200, "toy", card.score)
    assert (found["input_shape"], found["target_shape"], found["version"]) == ([6], [3], card.version)


def read_any(app: FastAPI, body: bytes, kind: str) -> None:
    """Whatever a body is, it has an answer, and a refusal says why."""
    status, headers, content = asyncio.run(ask(app, body, {"content-type": kind}))
    assert status in (200, 400, 413, 422)
    if status != 200:
        assert headers["content-type"] == JSON
        assert 10 < len(json.loads(content)["error"]) < 2_000


@pytest.fixture(scope="module")
def kept(ensemble: Ensemble) -> FastAPI:
    return build_alone(ensemble)


@given(body=st.binary(max_size=300), kind=st.sampled_from([JSON, "application/x-npy"]))
def test_any_bytes_are_read_or_refused(body: bytes, kind: str, kept: FastAPI) -> None:
    read_any(kept, body, kind)


@given(data=st.data())
def test_damaged_npy_is_read_or_refused(data: st.DataObject, kept: FastAPI) -> None:
    body = bytearray(write_npy(np.arange(12.0).reshape(2, 6)))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    read_any(kept, bytes(body[: data.draw(st.integers(0, len(body)))]), "application/x-npy")


@given(text=st.text("{}':,()<>|fiub48 \nTrueFalsdcoOhp_", max_size=200), version=st.sampled_from([1, 2, 3]))
def test_any_header_of_npy_is_read_or_refused(text: str, version: int, kept: FastAPI) -> None:
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    read_any(kept, b"\x93NUMPY" + bytes([version, 0]) + size + text.encode(), "application/x-npy")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(inputs=JSON_VALUES, level=JSON_VALUES, quantities=JSON_VALUES)
def test_any_json_is_read_or_refused(inputs: Any, level: Any, quantities: Any, kept: FastAPI) -> None:
    read_any(kept, json.dumps({"inputs": inputs, "level": level, "quantities": quantities}).encode(), JSON)
    read_any(kept, json.dumps({"inputs": inputs}).encode(), JSON)


def test_requests_that_come_together_do_not_spoil_one_another(app: FastAPI, ensemble: Ensemble) -> None:
    """Good and bad ones, of several levels and sizes."""
    bodies, expected = zip(*(build_request(i, ensemble) for i in range(20)), strict=True)

    async def ask_all() -> list[tuple[int, Mapping[str, str], bytes]]:
        return await asyncio.gather(*(ask(app, body, {"content-length": str(len(body))}) for body in bodies))

    for (status, _, content), (wanted, prediction) in zip(asyncio.run(ask_all()), expected, strict=True):
        assert status == wanted
        if prediction is not None:
            check_equal(json.loads(content), prediction)


def test_requests_of_several_levels_and_sizes_share_passes(ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, passes = Ensemble.predict_prepared, []

    def count(ensemble: Ensemble, inputs: np.ndarray, level: float, batch_size: int = 32) -> Prediction:
        passes.append((len(inputs), level))
        return plain(ensemble, inputs, level)

    monkeypatch.setattr(Ensemble, "predict_prepared", count)
    requests = [PreparedRequest(X[:size], level) for size, level in [(2, 0.9), (1, 0.8), (3, 0.9), (5, 0.8)]]
    found = predict_together(ensemble, requests)
    assert sorted(passes) == [(5, 0.9), (6, 0.8)]
    for prediction, request in zip(found, requests, strict=True):
        assert isinstance(prediction, Prediction)
        check_equal(vars(prediction), ensemble.predict(request.inputs, request.level))


def build_request(i: int, ensemble: Ensemble) -> tuple[bytes, tuple[int, Prediction | None]]:
    """A request and its answer: each fifth is malformed, each seventh of the wrong shape."""
    inputs = X[i % 3 : i % 3 + 1 + i % 2] + i
    level = (0.9, 0.8)[i % 2]
    if i % 5 == 0:
        return b'{"inputs": ', (400, None)
    if i % 7 == 0:
        return json.dumps({"inputs": inputs[:, :4].tolist()}).encode(), (422, None)
    return json.dumps({"inputs": inputs.tolist(), "level": level}).encode(), (200, ensemble.predict(inputs, level))


def fail_on(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    plain = Ensemble.predict_prepared

    def fail(ensemble: Ensemble, inputs: np.ndarray, level: float, batch_size: int = 32) -> Prediction:
        if (inputs == value).any():
            raise RuntimeError("a secret of the server")
        return plain(ensemble, inputs, level)

    monkeypatch.setattr(Ensemble, "predict_prepared", fail)


def test_what_fails_in_a_pass_fails_alone(ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_on(monkeypatch, 13)
    inputs = [np.full((2, 6), value, np.float32) for value in (1, 13, 2)]
    first, second, third = predict_together(ensemble, [PreparedRequest(own, 0.9) for own in inputs])
    assert isinstance(second, RuntimeError)
    for found, own in ((first, inputs[0]), (third, inputs[2])):
        check_equal(vars(found), ensemble.predict(own))


def test_a_failure_of_the_server_is_logged_and_not_shown(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fail_on(monkeypatch, 13)
    monkeypatch.setattr(served.logger, "propagate", True)
    with caplog.at_level(logging.ERROR, served.logger.name):
        status, _, content = asyncio.run(ask(app, json.dumps({"inputs": [[13] * 6]}).encode()))
    assert (status, json.loads(content)) == (500, {"error": "the server failed on this request; its log says why"})
    assert "a secret of the server" in caplog.text
    assert asyncio.run(ask(app, json.dumps({"inputs": [[1] * 6]}).encode()))[0] == 200


@pytest.mark.parametrize("limit", ["MAX_WAITING", "MAX_WAITING_BODIES"])
def test_a_full_server_says_so(limit: str, ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of requests, or of the bytes that have come of their bodies."""
    monkeypatch.setattr(served, limit, 2)
    body = json.dumps({"inputs": X.tolist()}).encode()
    limits = Limits(max_body_mb=len(body) / served.MEGABYTE)

    async def crowd() -> list[tuple[int, Mapping[str, str], bytes]]:
        free = asyncio.Event()

        async def predict(request: PreparedRequest) -> Prediction | Exception:
            await free.wait()
            return predict_together(ensemble, [request])[0]

        app = build_app(ensemble, limits, predict)
        first = [asyncio.create_task(ask(app, body)) for _ in range(2)]
        while json.loads((await ask(app, target="/health", method="GET"))[2])["waiting"] < 2:
            await asyncio.sleep(0.01)
        third = await ask(app, body)
        free.set()
        return [*await asyncio.gather(*first), third, await ask(app, body)]

    answers = asyncio.run(crowd())
    assert [status for status, _, _ in answers] == [200, 200, 503, 200]
    assert answers[2][1]["retry-after"] == "1"
    assert "the server is busy with 2 requests" in json.loads(answers[2][2])["error"]


def test_a_slow_body_is_refused(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "READ_SECONDS", 0.01)
    status, _, content = asyncio.run(ask(app, b"{}", delay_s=10))
    text = "a body must come within 0.01 s, and a second more for each 0.5 MB, got 0 bytes of it"
    assert (status, json.loads(content)["error"]) == (408, text)


def test_a_large_body_has_time_by_what_has_come(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps({"inputs": X.tolist()}).encode() + b" " * 9_000  # in three parts
    monkeypatch.setattr(served, "READ_SECONDS", 0.3)
    monkeypatch.setattr(served, "READ_RATE", 10_000)
    assert asyncio.run(ask(app, body, delay_s=0.2))[0] == 200
    monkeypatch.setattr(served, "READ_RATE", 10**9)
    assert asyncio.run(ask(app, body, delay_s=0.2))[0] == 408


def test_who_still_sends_takes_no_place(app: FastAPI) -> None:
    body = json.dumps({"inputs": X.tolist()}).encode()

    async def crowd() -> int:
        slow = [asyncio.create_task(ask(app, body, delay_s=30)) for _ in range(served.MAX_WAITING)]
        await asyncio.sleep(0.1)
        status, _, _ = await ask(app, body)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        return status

    assert asyncio.run(crowd()) == 200


def test_json_has_null_for_what_is_no_number(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Ensemble.predict_prepared

    def spoil(ensemble: Ensemble, inputs: np.ndarray, level: float) -> Prediction:
        found = plain(ensemble, inputs, level)
        found.std[0, 0], found.upper[0, 1] = np.nan, np.inf
        return found

    monkeypatch.setattr(Ensemble, "predict_prepared", spoil)
    _, _, content = asyncio.run(ask(app, json.dumps({"inputs": X.tolist()}).encode()))
    found = json.loads(content, parse_constant=pytest.fail)
    assert found["std"][0][0] is None
    assert found["upper"][0][1] is None


def test_a_port_in_use_is_refused() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as Serve does
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match=r"must be free to listen on, got 127.0.0.1:\d+: Address already in use"):
            check_free("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ConfigError, match="must be free to listen on"):
        check_free("203.0.113.7", 8000)  # of no interface here


@dataclass(frozen=True)
class Server:
    """The real one, in a process of its own, found again by what its processes inherit."""

    process: subprocess.Popen[str]
    url: str
    mark: str

    def ask(self, target: str, body: bytes | None = None, kind: str = JSON) -> tuple[int, str, bytes]:
        request = urllib.request.Request(self.url + target, body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.headers["content-type"], answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["content-type"], error.read()

    def find_processes(self) -> list[Path]:
        wanted = f"SERVER_MARK={self.mark}".encode()
        return [folder for folder in Path("/proc").glob("[0-9]*") if wanted in read(folder / "environ").split(b"\0")]


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


@pytest.fixture(scope="module")
def server(toy_run: Path) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (
        "import sys; from ray_ft.serving.server import serve; "
        "serve(sys.argv[1], port=int(sys.argv[2]), max_samples=8, max_body_mb=0.1)"
    )
    mark = uuid.uuid4().hex
    command = [sys.executable, "-c", code, str(toy_run), str(port)]
    env = {**os.environ, "SERVER_MARK": mark}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, start_new_session=True
    ) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)]
        line = process.stdout.readline()
        try:
            assert said == [f"loading {toy_run} …\n", "starting Ray …\n", "starting 1 replica on cpu …\n"]
            assert line == f"toy is served on http://127.0.0.1:{port}  (POST /predict, GET /health)\n"
            yield Server(process, f"http://127.0.0.1:{port}", mark)
        finally:
            process.send_signal(signal.SIGTERM)


@pytest.mark.ray
def test_the_server_answers(server: Server, ensemble: Ensemble) -> None:
    status, kind, content = server.ask("/health")
    assert (status, kind, json.loads(content)["name"]) == (200, JSON, "toy")
    status, _, content = server.ask("/predict", json.dumps({"inputs": X.tolist()}).encode())
    assert status == 200
    check_equal(json.loads(content), ensemble.predict(X))
    status, kind, content = server.ask("/predict?level=0.8", write_npy(X), "application/x-npy")
    assert (status, kind) == (200, NPZ)
    with np.load(io.BytesIO(content)) as found:
        check_equal(dict(found), ensemble.predict(X, 0.8))


@pytest.mark.ray
def test_idle_and_slow_clients_do_not_keep_others_out(server: Server, ensemble: Ensemble) -> None:
    place, body = urllib.parse.urlsplit(server.url).netloc.split(":"), json.dumps({"inputs": X.tolist()}).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\nContent-Length: {len(body)}\r\n\r\n"
    with contextlib.ExitStack() as clients:
        crowd = [clients.enter_context(socket.create_connection((place[0], int(place[1])), 10)) for _ in range(300)]
        for slow in crowd[100:]:
            slow.sendall(head.encode() + body[:5])
        time.sleep(1)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: server.ask("/predict", body), range(20)))
        assert {status for status, _, _ in answers} == {200}
        check_equal(json.loads(answers[0][2]), ensemble.predict(X))
        crowd[-1].sendall(body[5:])
        assert crowd[-1].recv(100).startswith(b"HTTP/1.1 200")


def test_what_ends_a_server_at_once_is_told_before_anything_is_loaded(toy_run: Path) -> None:
    """Torch and Ray take seconds to import; they are not, and what is begun is said."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code = (
            "import sys; from ray_ft.cli import main; sys.argv = ['ray-ft', 'serve', *sys.argv[1:]]\n"
            "try: main()\n"
            "finally: assert not {'torch', 'ray', 'fastapi'} & sys.modules.keys()"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code, str(toy_run), "--port", port], capture_output=True, text=True, check=False
        )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: --host and --port must be free to listen on")


def test_a_missing_extra_is_told_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError, match=r"needs Ray Serve, got none \(no module uvicorn\); install it by: pip"):
        serve("nowhere")


@pytest.mark.parametrize(
    ("n_gpus", "replicas", "device", "share"),
    [
        (0, 2, "auto", 0),
        (4, 2, "cpu", 0),
        (4, 2, "auto", 1),
        (4, 6, "cuda", 0.5),
        (1, 3, "auto", 0.333),
        (2, 14, "cuda", 0.142),
    ],
)
def test_replicas_share_gpus(n_gpus: int, replicas: int, device: str, share: float, monkeypatch: Any) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0} | ({"GPU": float(n_gpus)} if n_gpus else {}))
    found = share_machine(replicas, None, device)
    assert found["num_gpus"] == share
    assert (share and n_gpus * int(1 / share)) in (0, *range(replicas, 99))
    assert replicas * found["num_cpus"] <= max(replicas, os.cpu_count() or 1)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, ray_ft_here: Any) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    with pytest.raises(ConfigError, match="--device cuda needs GPUs, but no node of the cluster has any"):
        share_machine(1, "auto", "cuda")
    assert "--device must be auto, cpu or cuda, got tpu" in ray_ft_here("serve", "x", "--device", "tpu").stderr


@pytest.mark.ray
def test_the_server_refuses(server: Server) -> None:
    cases = [
        (404, "/", None, JSON),
        (405, "/predict", None, JSON),
        (413, "/predict", b" " * 2**18, JSON),
        (415, "/predict", b"{}", "text/csv"),
        (422, "/predict", b"{}", JSON),
        (400, "/predict", b"\x93NUMPY", "application/octet-stream"),
    ]
    for wanted, target, body, content_type in cases:
        status, kind, content = server.ask(target, body, content_type)
        assert (status, kind, list(json.loads(content))) == (wanted, JSON, ["error"])


@pytest.mark.ray
def test_the_server_keeps_clients_apart(server: Server, ensemble: Ensemble) -> None:
    requests = [build_request(i, ensemble) for i in range(20)]
    with ThreadPoolExecutor(20) as pool:
        answers = pool.map(lambda request: server.ask("/predict", request[0]), requests)
    for (status, _, content), (_, (wanted, prediction)) in zip(answers, requests, strict=True):
        assert status == wanted
        if prediction is not None:
            check_equal(json.loads(content), prediction)


def list_places(server: Server) -> list[str]:
    """Addresses and ports, in hexadecimal, on which the server's processes listen."""
    sockets = set()
    for process in server.find_processes():
        for file in process.glob("fd/*"):
            with contextlib.suppress(OSError):  # closed meanwhile
                sockets |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(file)))
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return [line[1] for line in lines if line[3] == "0A" and line[9] in sockets]


@pytest.mark.ray
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_server_listens_on_loopback_or_asks_for_rays_token(server: Server) -> None:
    """A replica's port for other deployments is on all interfaces, which Serve has no setting for."""
    import grpc

    places = list_places(server)
    assert len(places) > 5
    open_to_all = [place for place in places if not re.match("(0{16}FFFF0000)?0100007F:", place)]
    assert len(open_to_all) == 1
    with grpc.insecure_channel(f"127.0.0.1:{int(open_to_all[0].partition(':')[2], 16)}") as channel:
        call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
        with pytest.raises(grpc.RpcError) as refusal:
            call(b"", timeout=10)
    assert refusal.value.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.ray
def test_sigterm_ends_the_server_and_leaves_nothing(server: Server) -> None:
    assert len(server.find_processes()) > 5
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=20) == 0
    assert server.process.stdout is not None
    lines = server.process.stdout.read().splitlines()
    assert lines[0].startswith("log in ")
    assert lines[1:] == ["the server ends; requests under way have 5 s"]
    logs = Path(lines[0].removeprefix("log in "))
    assert logs.is_dir()
    assert logs.parents[3].stat().st_mode & 0o777 == 0o700, "Ray lets all users write below"
    ends = time.monotonic() + 10
    while server.find_processes() and time.monotonic() < ends:
        time.sleep(0.1)
    assert server.find_processes() == []
