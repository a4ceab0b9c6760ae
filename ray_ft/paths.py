"""The files of a run: one class owns every name, and each file is written whole or not at all."""

import errno
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ray_ft.errors import RunFolderError, show_value

__all__ = [
    "CandidateFolder",
    "CurveFolder",
    "EnsembleFolder",
    "RunFolder",
    "find_newest_run",
    "parse_json",
    "read_json",
    "replace_file",
    "write_arrays",
    "write_json",
    "write_text",
]

MAX_JSON_BYTES = 2**28
CANDIDATE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}-[0-9]{3}")


@dataclass(frozen=True)
class CandidateFolder:
    """Files of one candidate; `result.json` is written last, so where it stands the candidate is done."""

    root: Path

    @property
    def history(self) -> Path:
        return self.root / "history.npz"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint.pt"

    @property
    def members(self) -> Path:
        return self.root / "members.safetensors"

    @property
    def predictions(self) -> Path:
        return self.root / "oof.npz"

    @property
    def result(self) -> Path:
        return self.root / "result.json"

    @property
    def error(self) -> Path:
        return self.root / "error.txt"


@dataclass(frozen=True)
class EnsembleFolder:
    """Files of an ensemble; `card.json` is written last."""

    root: Path

    @property
    def card(self) -> Path:
        return self.root / "card.json"

    @property
    def network(self) -> Path:
        return self.root / "network.json"

    @property
    def backbone(self) -> Path:
        return self.root / "backbone.safetensors"

    @property
    def members(self) -> Path:
        return self.root / "members.safetensors"

    @property
    def calibration(self) -> Path:
        return self.root / "calibration.safetensors"

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"


@dataclass(frozen=True)
class RunFolder:
    """Files of a run."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def provenance(self) -> Path:
        return self.root / "provenance.json"

    @property
    def splits(self) -> Path:
        return self.root / "splits.json"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def verdicts(self) -> Path:
        return self.root / "verdicts.json"

    @property
    def tune(self) -> Path:
        return self.root / "tune"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def leaderboard(self) -> Path:
        return self.root / "leaderboard.csv"

    @property
    def blind(self) -> Path:
        return self.root / "blind.npz"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def figures(self) -> Path:
        return self.root / "figures"

    @property
    def ensemble(self) -> EnsembleFolder:
        return EnsembleFolder(self.root / "ensemble")

    @property
    def candidates(self) -> Path:
        return self.root / "candidates"

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

    def run(self, size: int) -> Path:
        return self.root / f"train_{size:05d}"

    @property
    def result(self) -> Path:
        return self.root / "learning_curve.json"

    @property
    def table(self) -> Path:
        return self.root / "learning_curve.csv"

    def figure(self, suffix: str) -> Path:
        return self.root / f"learning_curve.{suffix}"


def find_newest_run(folder: Path) -> Path:
    """Find the run in a folder that finished last.

    Raises:
        RunFolderError: There is none.
    """
    runs = [RunFolder(path) for path in folder.iterdir()] if folder.is_dir() else []
    finished = [run for run in runs if run.summary.is_file()]
    if not finished:
        raise RunFolderError(f"a run must be named where {folder} has no finished one; give its folder with --run")
    return max(finished, key=lambda run: run.summary.stat().st_mtime).root


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; what stands there at the end takes the name of `path` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}-{uuid.uuid4().hex}{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replace_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, default: Callable[[Any], Any] | None = None) -> None:
    write_text(path, json.dumps(content, indent=2, default=default) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        OSError: It cannot be read.
        ValueError: It is none, or larger than any that a run writes.
    """
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    with path.open("rb") as file:
        text = file.read(MAX_JSON_BYTES + 1)
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"it has more than {MAX_JSON_BYTES} bytes")
    return parse_json(text)


def parse_json(text: bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: It is none.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    with replace_file(path) as partial:
        np.savez(partial, allow_pickle=False, **arrays)
