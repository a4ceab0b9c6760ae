"""A folder for temporary files that no other user of the machine may enter.

What lies in the shared one under a name that can be guessed could be put there, or exchanged, by anybody.
"""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from ray_ft.errors import RunFolderError


def name_private_folder(parent: Path) -> Path:
    return parent / f"ray-ft-{os.getuid()}"


def open_private_folder(parent: str | Path | None = None) -> Path:
    """Find this user's own folder in that of temporary files, or make it.

    Raises:
        RunFolderError: It cannot be made, something else has its name, or others may enter it.
    """
    folder = name_private_folder(Path(parent or tempfile.gettempdir()))
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700, parents=True)
        status = folder.lstat()
    except OSError as error:
        raise RunFolderError(
            f"the folder of temporary files must be writable, got {folder}: {error.strerror}; set TMPDIR to another"
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise RunFolderError(
            f"the folder of temporary files must be yours alone (mode 700), got {folder} with mode "
            f"{stat.S_IMODE(status.st_mode):o}, of user {status.st_uid}; remove it, or set TMPDIR to a folder of yours"
        )
    return folder
