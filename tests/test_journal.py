"""The time that a run tells: of a clock that does not jump."""

import itertools
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate
from ray_ft.runs import journal
from ray_ft.runs.journal import read_log, sum_seconds


@pytest.fixture
def jumping_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is an hour ahead, then an hour late, by turns, each time that it is read."""
    hours, real = itertools.cycle([1, -1]), time.time

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime.fromtimestamp(real(), UTC) + timedelta(hours=next(hours))

    monkeypatch.setattr(time, "time", lambda: real() + 3600 * next(hours))
    monkeypatch.setattr(journal, "datetime", Jumping)


def test_a_clock_that_jumps_does_not_mislead_spans(toy_folder: Path, jumping_clock: None) -> None:
    """Nor the budget of a search in minutes, which is counted in these."""
    values = {"cv.strategies": ["last"], "cv.candidates": 1, "cv.seeds": 1, "search.minutes": 30}
    began = time.monotonic()
    summary = cross_validate(load_config("toy.yaml", values), "run", inline=True)
    took = time.monotonic() - began
    events = list(read_log(Path("run/log.jsonl")))
    seconds, stamps = ([event[key] for event in events] for key in ("seconds", "time"))
    assert stamps != sorted(stamps), "the clock did not jump"
    assert seconds == sorted(seconds)
    assert 0 <= seconds[0] <= seconds[-1] <= took + 0.001
    assert 0 < summary.wall_s <= took
    spans = [verdict.seconds for own in summary.strategies.values() for verdict in own.verdicts.values()]
    assert all(0 <= span <= took for span in (*spans, *sum_seconds(Path("run/log.jsonl")).values()))
