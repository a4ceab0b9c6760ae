"""The files of a run: one class owns every name."""

import fcntl
import hashlib
import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_ft.errors import RunFolderError, StorageError, first_line, show_value
from ray_ft.files.private import open_private_folder
from ray_ft.runs.storage import Mirror, is_uri

CANDIDATE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}-([0-9]{3}(-r[0-9]+-f[0-9]+-e[0-9]+)?|range(-[0-9]+)?)")
LEFT_BEHIND = ("tune", "checkpoint.pt", "members.safetensors")  # what a driver need not have of a run behind a URI


class File:
    """The path of a file, or of a folder, by its name in the folder whose class has it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: Any, kind: type) -> Path:
        path: Path = folder.root / self.name
        return path


@dataclass(frozen=True)
class CandidateFolder:
    """Files of what one process trained; `result.json` is written last, so where it stands that is done."""

    root: Path

    history = File("history.npz")
    checkpoint = File("checkpoint.pt")
    members = File("members.safetensors")
    predictions = File("oof.npz")
    result = File("result.json")
    error = File("error.txt")
    silence = File("silence.txt")  # where a process stood that was ended as it had been silent for too long


@dataclass(frozen=True)
class EnsembleFolder:
    """Files of an ensemble; `card.json` is written last."""

    root: Path

    card = File("card.json")
    network = File("network.json")
    backbone = File("backbone.safetensors")
    members = File("members.safetensors")
    calibration = File("calibration.safetensors")
    config = File("config.yaml")
    model_card = File("README.md")


@dataclass(frozen=True)
class RunFolder:
    """Files of a run, and the URI that they follow, if the run is kept behind one."""

    root: Path
    mirror: Mirror | None = None

    config = File("config.yaml")
    provenance = File("provenance.json")
    splits = File("splits.json")
    plan = File("plan.json")
    lock = File(".lock")
    verdicts = File("verdicts.json")
    log = File("log.jsonl")
    tune = File("tune")
    summary = File("summary.json")
    leaderboard = File("leaderboard.csv")
    blind = File("blind.npz")
    report = File("report.html")
    figures = File("figures")
    candidates = File("candidates")

    @property
    def place(self) -> str:
        """What the user knows it by."""
        return self.mirror.uri if self.mirror else str(self.root)

    def pull(self, path: Path) -> None:
        """Bring a file or folder of it up to date, where the run is kept behind a URI."""
        if self.mirror:
            self.mirror.pull(path.relative_to(self.root).as_posix(), skip=LEFT_BEHIND if path.suffix == "" else ())

    def push(self) -> None:
        """Keep what was written, where the run is kept behind a URI."""
        if self.mirror:
            self.mirror.push()

    def check_out(self, candidate: str) -> AbstractContextManager["RunFolder"]:
        """Where a process trains a candidate: here, or in a folder of its own that follows the same URI."""
        return follow(self.mirror.uri, f"candidates/{candidate}") if self.mirror else nullcontext(self)

    @property
    def ensemble(self) -> EnsembleFolder:
        return EnsembleFolder(self.root / "ensemble")

    def candidate(self, name: str) -> CandidateFolder:
        """Files of a candidate.

        Raises:
            RunFolderError: The name, which may come from a file, is none of a candidate's; no path is made of it.
        """
        if not CANDIDATE.fullmatch(name):
            raise RunFolderError(
                f"a candidate's name is its strategy's and a number of three digits, got {show_value(name)}"
            )
        return CandidateFolder(self.candidates / name)


@dataclass(frozen=True)
class CurveFolder:
    """Files of a learning curve: runs by the size of their training parts, and what they say together."""

    root: Path

    result = File("learning_curve.json")
    table = File("learning_curve.csv")

    def run(self, size: int) -> Path:
        return self.root / f"train_{size:05d}"

    def figure(self, suffix: str) -> Path:
        return self.root / f"learning_curve.{suffix}"


@contextmanager
def open_folder(out: "str | Path | RunFolder", shared: bool = False) -> Iterator[RunFolder]:
    """A run's folder, absolute where other processes share it; of one behind a URI, a local one that follows it.

    Raises:
        RunFolderError: There is no such kind of storage, or another command on this machine uses the same URI.
        StorageError: It cannot be read or written.
    """
    if isinstance(out, RunFolder):
        yield RunFolder(out.root.absolute()) if shared and out.mirror is None else out
    elif is_uri(out) and not str(out).startswith("file://"):
        name = f"{hashlib.sha256(str(out).encode()).hexdigest()[:16]}.lock"
        with hold(open_private_folder() / name, str(out)), follow(str(out), skip=LEFT_BEHIND) as run:
            yield run
    else:
        path = Path(str(out).removeprefix("file://"))
        yield RunFolder(path.absolute() if shared else path)


@contextmanager
def follow(uri: str, below: str = "", skip: Collection[str] = ()) -> Iterator[RunFolder]:
    """A run in a folder of its own that follows a URI, with what is there below a path, while this is open."""
    with tempfile.TemporaryDirectory(prefix="ray-ft-") as folder:
        mirror = Mirror(uri, Path(folder))
        with keep_files(uri):
            mirror.pull(below, skip)
        try:
            yield RunFolder(mirror.root, mirror)
        finally:
            with keep_files(uri):
                mirror.push()


def fetch_run(uri: str, folder: Path) -> None:
    """Copy a run that is kept behind a URI into a new folder."""
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise RunFolderError(f"a run is copied into a new folder, got {folder}, which holds something; name another")
    with keep_files(uri):
        mirror = Mirror(uri, folder)
        mirror.pull(skip=("tune", "checkpoint.pt"))
    if not mirror.synced:
        raise RunFolderError(f"a URI must be that of a run, got {uri}, where there are no files; check it")


@contextmanager
def hold(lock: Path, place: str) -> Iterator[None]:
    """Keep other commands out of a folder; the lock ends with this process, however it ends.

    Raises:
        RunFolderError: Another holds it.
        OSError: The file cannot be written.
    """
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunFolderError(f"one command at a time may use a run folder, got {place}, which is in use") from error
        yield


@contextmanager
def keep_files(place: str | Path) -> Iterator[None]:
    """Tell an error of the storage as what it is: nothing that a candidate or a config could help.

    Raises:
        StorageError: A file could not be written or read.
    """
    try:
        yield
    except (ConnectionError, TimeoutError):
        raise  # of Ray; a storage's own come as plain OSError
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise StorageError(
            f"a run must be able to write its files, got {error.filename or place}: {reason}; "
            "when it can again, repeat the command to go on"
        ) from error


def find_newest_run(folder: Path) -> Path:
    """Find the run in a folder that finished last."""
    finished = [run for run in map(RunFolder, folder.glob("*")) if run.summary.is_file()]
    if not finished:
        raise RunFolderError(f"a run must be named where {folder} has no finished one; give its folder")
    return max(finished, key=lambda run: run.summary.stat().st_mtime).root
