"""The watcher of spot notices, with a stand-in for the clouds' metadata services."""

import os
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from small_cluster import ENVIRONMENT, SmallCluster

SCRIPT = Path(__file__).parents[1] / "configs" / "cluster" / "spot_notice.py"
READERS = runpy.run_path(str(SCRIPT))["READERS"]


class Metadata(BaseHTTPRequestHandler):
    """Answers as the clouds document it: AWS with a token of its own only, Google and Azure with their header only."""

    is_noticed = False

    def do_PUT(self) -> None:
        asked = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self.answer(200 if asked else 400, "a-token")

    def do_GET(self) -> None:
        gone = (datetime.now(UTC) + timedelta(minutes=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
        if self.path == "/latest/meta-data/spot/instance-action":
            allowed = self.headers["X-aws-ec2-metadata-token"] == "a-token"
            code = (200 if self.is_noticed else 404) if allowed else 401
            self.answer(code, f'{{"action": "terminate", "time": "{gone}"}}')
        elif self.path == "/computeMetadata/v1/instance/preempted":
            self.answer(
                200 if self.headers["Metadata-Flavor"] == "Google" else 403, "TRUE" if self.is_noticed else "FALSE"
            )
        elif self.path == "/metadata/scheduledevents?api-version=2020-07-01":
            kind = "Preempt" if self.is_noticed else "Freeze"
            self.answer(
                200 if self.headers["Metadata"] == "true" else 400, f'{{"Events": [{{"EventType": "{kind}"}}]}}'
            )
        else:
            self.answer(404, "")

    def answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Metadata, "is_noticed", False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("cloud", "seconds"), [("aws", 120), ("gcp", 30), ("azure", 30)])
def test_a_notice_is_read(cloud: str, seconds: int, metadata: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # which must not be asked
    assert READERS[cloud](metadata) is None
    monkeypatch.setattr(Metadata, "is_noticed", True)
    assert READERS[cloud](metadata) == pytest.approx(seconds, abs=2)


@pytest.mark.parametrize("cloud", READERS)
def test_a_service_that_is_away_gives_no_notice(cloud: str) -> None:
    assert READERS[cloud]("http://127.0.0.1:9") is None


@pytest.mark.ray
@pytest.mark.slow
def test_a_notice_drains_the_node(metadata: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster knows why it goes; as nothing runs there, it goes at once."""
    from ray._private.state import GlobalState
    from ray._raylet import GcsClientOptions

    monkeypatch.setattr(Metadata, "is_noticed", True)
    with SmallCluster([1]) as cluster:
        command = [sys.executable, "-W", "ignore", SCRIPT, "aws", cluster.address, "--metadata", metadata]
        env = os.environ | ENVIRONMENT
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout.startswith(f"drained {cluster.nodes[0]}, which has 1"), done.stderr
        state = GlobalState()
        options = {"allow_cluster_id_nil": True, "fetch_cluster_id_if_nil": False}
        state._initialize_global_state(GcsClientOptions.create(cluster.address, None, **options))
        deadline = time.monotonic() + 30
        while (node := state.node_table()[0])["Alive"] and time.monotonic() < deadline:
            time.sleep(0.2)
    assert (node["Alive"], node["DeathReasonMessage"]) == (False, "spot notice")
