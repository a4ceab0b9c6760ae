"""What a command may write over: nothing that it did not make, unless it is asked to, and never what it reads."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray_ft.errors import ConfigError


def check_output(option: str, path: Path, force: bool, source: Path | None, *inputs: str | None) -> None:
    """Refuse a file that exists, before any work, unless it may be replaced and neither inputs nor the run name it."""
    if not os.path.lexists(path):
        return
    if path.is_dir():
        raise ConfigError(f"{option} must be a file, got {path}, which is a folder; name another")
    if is_read(path, [Path(text.partition("::")[0]) for text in inputs if text], source):
        rule = f"{option} must be another file than the inputs and the files of the run"
        raise ConfigError(f"{rule}, got {path}; name another")
    if not force:
        raise ConfigError(f"{option} must be a new file, got {path}, which exists; name another, or add --force")


def is_read(path: Path, inputs: list[Path], source: Path | None) -> bool:
    """Whether a path leads to a file that the command or the run, if there is one, reads, or into the run's folder."""
    real = path.resolve()
    kept = {real, *real.parents, *(path.parent.resolve() / path.name).parents}  # also where it is a link to elsewhere
    read = [*(place for place in inputs if place.exists()), *(list_files(source) if source else ())]
    return any(place.samefile(each) for place in read for each in kept if each.exists())


def list_files(source: Path) -> Iterator[Path]:
    """List the folder of a run, or of an ensemble without one, and each file that its config names."""
    from ray_ft.config import read_yaml
    from ray_ft.ensemble.artefact import find_folder
    from ray_ft.runs.folder import RunFolder

    folder = find_folder(source)
    run = RunFolder(folder.root.resolve().parent)
    yield run.root if run.provenance.exists() else folder.root
    for text in list_texts(read_yaml(folder.config)):
        name = text.partition("::")[0]
        if os.path.isfile(name):  # of a text that is no path, `Path.is_file` would raise
            yield Path(name)


def list_texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from list_texts(part)
