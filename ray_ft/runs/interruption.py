"""SIGTERM, as schedulers and containers send it: the process says so at once and ends in time, whatever it waits for.

They send it to all processes of a job, and kill what is left 10 to 30 s later. A Ray that has ended by it takes its
driver along without a word, at once or after a minute in calls where Python handles no signal.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread

GOES_ON = "interrupted; the same command goes on from the last checkpoints"
GRACE_S = 5.0  # to end in order
TO_ALL_S = 1.0  # what ends by itself within this time was sent the signal too


@contextmanager
def end_by_sigterm(after_s: float, said: str) -> Iterator[Callable[[], None]]:
    """Say a line when a SIGTERM comes, and end this process so many seconds later unless it has ended before.

    A thread of its own hears of it by Python's wakeup descriptor, which is written to whatever the main thread does.
    The time is that of the whole process, as what it has to do at its exit may wait for a Ray that is gone too. It
    gives what says the line, which is said once.
    """
    hears, tells = os.pipe()
    os.set_blocking(tells, False)
    over, unsaid = Event(), Lock()

    def say() -> None:
        if unsaid.acquire(blocking=False):
            os.write(2, f"{said}\n".encode())

    before = signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    Thread(target=wait_for_sigterm, args=(hears, over, after_s, say), daemon=True).start()
    try:
        yield say
    finally:
        signal.set_wakeup_fd(before)
        over.set()
        os.close(tells)


def wait_for_sigterm(hears: int, over: Event, after_s: float, say: Callable[[], None]) -> None:
    while (heard := os.read(hears, 1)) and heard[0] != signal.SIGTERM:
        pass
    if heard:
        say()
        start = time.monotonic()
        while (passed := time.monotonic() - start) < after_s:
            if passed < TO_ALL_S and not over.is_set() and has_lost_a_child():
                break
            time.sleep(0.02)
        os._exit(128 + signal.SIGTERM)
    os.close(hears)


def has_lost_a_child() -> bool:
    """Whether a process that this one has started has ended; it is left to be waited for."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # there are none
        return False


@contextmanager
def end_at_once() -> Iterator[None]:
    """Let SIGTERM end this process with a line, as long as nothing else handles it."""
    early: list[int] = []  # signals that have come before the thread hears of them
    before = signal.signal(signal.SIGTERM, lambda number, frame: early.append(number))
    try:
        with end_by_sigterm(0.0, "interrupted; the same command goes on") as say:
            if early:
                say()
                os._exit(128 + signal.SIGTERM)
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
