"""The log of a run: one JSON object a line, appended as things happen, over all calls of the same command."""

import contextlib
import json
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray_ft.files.json_text import parse_json


class Journal:
    """Writes `log.jsonl`, and keeps count of the epochs that were trained again.

    Each line has `time` (UTC), `call` (names the call of the command), `seconds` since it began, by a clock that does
    not jump, and `event`; the other fields depend on it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.call, self.started = path, uuid.uuid4().hex[:8], time.monotonic()
        self.reached: dict[str, int] = {}

    def write(self, event: str, **fields: Any) -> None:
        """Append a line."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        seconds = round(time.monotonic() - self.started, 3)
        line = json.dumps({"time": now, "call": self.call, "seconds": seconds, "event": event, **fields})
        with self.path.open("a+b") as file:
            file.seek(-min(1, file.tell()), 2)
            if file.read(1) not in (b"", b"\n"):  # a call was killed within a line
                file.write(b"\n")
            file.write(f"{line}\n".encode())

    def resume(self, candidate: str, epoch: int) -> None:
        """Take note of an epoch that an earlier call has seen."""
        self.reached[candidate] = epoch

    def write_epoch(self, candidate: str, epoch: int, loss: float, **fields: Any) -> None:
        """Append an epoch, and whether it was there before."""
        again = {"again": True} if epoch <= self.reached.get(candidate, 0) else {}
        self.reached[candidate] = max(epoch, self.reached.get(candidate, 0))
        self.write("epoch", candidate=candidate, epoch=epoch, loss=loss, **again, **fields)


def read_log(path: Path) -> Iterator[Mapping[str, Any]]:
    """Read the events of a log; lines that were cut off are left out, and a log that is missing has none."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            event = parse_json(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            yield event


def count_lost(path: Path) -> tuple[int, int, int]:
    """Count the epochs that were trained, those of them that were there before, and the interruptions.

    Interruptions are processes that died and calls that went on with a run that had not ended.
    """
    counts: Counter[str] = Counter()
    is_open = False
    for event in read_log(path):
        counts[str(event["event"])] += 1
        counts["again"] += bool(event.get("again"))
        if event["event"] in ("start", "end"):
            counts["cut off"] += is_open and event["event"] == "start"
            is_open = event["event"] == "start"
    return counts["epoch"], counts["again"], counts["retry"] + counts["cut off"]


def sum_seconds(path: Path) -> dict[str, float]:
    """Sum the seconds that each candidate has taken, over all calls."""
    seconds: dict[str, float] = {}
    for event in read_log(path):
        if event["event"] == "end of candidate":
            name = str(event.get("candidate"))
            with contextlib.suppress(TypeError, ValueError):  # a line that someone has changed
                seconds[name] = seconds.get(name, 0.0) + float(event.get("spent_s", 0.0))
    return seconds
