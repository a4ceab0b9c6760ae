"""A Ray on this machine alone: it takes the CPUs of this process, and a folder that it can work in."""

import contextlib
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

import ray

from ray_ft.errors import RunError, RunFolderError, first_line
from ray_ft.files.cpus import count_cpus
from ray_ft.files.memory import find_available, write_bytes
from ray_ft.files.private import name_private_folder, open_private_folder

LOCAL: dict[str, Any] = {"address": "local", "_node_ip_address": "127.0.0.1", "include_dashboard": False}
OBJECT_STORE_BYTES = 512 * 2**20
OWN_BYTES, WORKER_BYTES = 250 * 10**6, 350 * 10**6  # of Ray's processes, and of one that trains, at least
LONGEST = 103 - len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")  # bytes; sockets have 103


def start_ray(**options: Any) -> None:
    """Start a Ray that ends with this process.

    Raises:
        RunError: It cannot start here.
    """
    n_cpus, available = count_cpus(), find_available()
    if available < (needed := OWN_BYTES + WORKER_BYTES * min(2, n_cpus)):  # else the system kills some, and it hangs
        raise RunError(
            f"a Ray on this machine needs {write_bytes(needed)} of memory at least, got {write_bytes(available)} "
            "available; raise the limit of the container or job, or train in this process alone, with --inline"
        )
    if not keeps_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # for this process and those that it starts
    folder = str(find_folder())
    try:
        own: dict[str, Any] = {"num_cpus": n_cpus, "_temp_dir": folder, **LOCAL, **options}
        ray.init(object_store_memory=OBJECT_STORE_BYTES, **own)
    except OSError as error:  # it is none of the run folder
        raise RunError(f"a Ray must be able to start on this machine, got: {first_line(error)}") from error


def find_folder() -> Path:
    """Find where Ray can keep its files: where it would, or else in a place of a shorter name that can be written to.

    It lets all users write to its logs, sockets and pickled errors, so they are in a folder that is closed to others.

    The paths of its sockets are this folder's and 64 bytes more, and the system allows 107 in all (macOS 103).

    Raises:
        RunError: There is no such place.
    """
    named = [place for name in ("RAY_TMPDIR", "TMPDIR") if (place := os.environ.get(name))]
    places = [*named, "/tmp", "/var/tmp", "/dev/shm"]
    for place in places:
        with contextlib.suppress(RunFolderError):
            folder = name_private_folder(Path(place).absolute()) / "ray"
            if len(os.fsencode(folder)) <= LONGEST and is_writable(open_private_folder(place)):
                return folder
    raise RunError(
        f"Ray needs a folder of at most {LONGEST} bytes in its path for its files, but it cannot write to one in "
        f"{', '.join(places)}; set RAY_TMPDIR to a short path of one that can be written to"
    )


def is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder):
            return True
    except OSError:
        return False


def keeps_token() -> bool:
    """Whether Ray has a token, or can write one where it looks for it: in the home of the user, if there is one."""
    if {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return True
    with contextlib.suppress(RuntimeError, OSError):  # RuntimeError: the user is not known, nor has a home
        folder = Path.home() / ".ray"
        return (folder / "auth_token").exists() or is_writable(folder)
    return False
