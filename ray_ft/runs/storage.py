"""A run folder behind a URI, such as s3://bucket/run: a local folder that follows it.

The file systems are pyarrow's, as in Ray's own storage; a kind that pyarrow does not know is left to fsspec.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ray_ft.errors import RunFolderError, first_line

PARTIAL = re.compile(r"\.(?!lock$)")
MARKERS = ("card.json", "result.json", "summary.json")  # by the time of writing alone, a clock set back would put first
WRITTEN_WHOLE = ("s3", "gcs", "abfs")  # a file is there when it is complete, and not before


def is_uri(place: str | Path) -> bool:
    return "://" in str(place)


@dataclass
class Mirror:
    """A local folder and the URI that it follows."""

    uri: str
    root: Path
    synced: dict[Path, tuple[int, int]] = field(default_factory=dict)  # time and size of files that are alike in both

    @property
    def storage(self) -> tuple[Any, str]:
        """The file system, as pyarrow has it, and the path on it."""
        return open_storage(self.uri.rstrip("/"))

    def pull(self, below: str = "", skip: Collection[str] = ()) -> None:
        """Copy here what is there, or what is below a path in it, but for files and folders of the names in `skip`."""
        from pyarrow.fs import FileSelector, FileType, copy_files

        system, top = self.storage
        start = f"{top}/{below}".rstrip("/")
        below_it = FileSelector(start, recursive=True, allow_not_found=True)
        info = system.get_file_info(start)
        for there in [info] if info.type == FileType.File else system.get_file_info(below_it):
            name = there.path.lstrip("/").removeprefix(top.lstrip("/")).lstrip("/")
            if there.type != FileType.File or set(name.split("/")) & set(skip) or ".." in name.split("/"):
                continue
            here = self.root / name
            here.parent.mkdir(parents=True, exist_ok=True)
            copy_files(there.path, str(here), source_filesystem=system)
            self.synced[here] = stamp(here)

    def push(self) -> None:
        """Copy there what has changed here, what says that others stand last, and remove what was removed here."""
        files = (path for path in self.root.rglob("*") if path.is_file() and not PARTIAL.match(path.name))
        stamps = {path: stamp(path) for path in files}
        for path in sorted(stamps, key=lambda path: (path.name in MARKERS, stamps[path])):
            if self.synced.get(path) != stamps[path]:
                self.upload(path)
                self.synced[path] = stamps[path]
        for path in self.synced.keys() - stamps:
            self.storage[0].delete_file(self.place_there(path))
            del self.synced[path]

    def place_there(self, path: Path) -> str:
        return f"{self.storage[1]}/{path.relative_to(self.root).as_posix()}"

    def upload(self, path: Path) -> None:
        from pyarrow.fs import copy_files

        system, there = self.storage[0], self.place_there(path)
        partial = there if system.type_name in WRITTEN_WHOLE else f"{there}.partial"
        system.create_dir(there.rpartition("/")[0], recursive=True)
        copy_files(str(path), partial, destination_filesystem=system)
        if partial != there:
            system.move(partial, there)


def stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache
def open_storage(uri: str) -> tuple[Any, str]:
    import pyarrow
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        try:
            return FileSystem.from_uri(uri)  # type: ignore[no-any-return]
        except pyarrow.ArrowInvalid:
            import fsspec

            system, path = fsspec.core.url_to_fs(uri)
            return PyFileSystem(FSSpecHandler(system)), path
    except (ValueError, ImportError, OSError) as error:
        raise RunFolderError(
            f"--out must be a folder or a URI that pyarrow or fsspec can open, got {uri}: {first_line(error)}"
        ) from error
