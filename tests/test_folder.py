"""Files are written whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate
from ray_ft.errors import RunFolderError
from ray_ft.files.private import open_private_folder
from ray_ft.files.writing import replace_file, write_arrays, write_json
from ray_ft.runs.folder import RunFolder, open_folder


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"whole": True})
    before = path.read_text()
    with pytest.raises(UnicodeEncodeError), replace_file(path) as partial:
        partial.write_text("half, then what no file can hold: \ud800", encoding="utf-8")
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]


def test_arrays_come_back(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", losses=np.arange(3))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["losses"], np.arange(3))


def test_every_file_of_a_candidate_lies_in_its_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).candidate("head-000")
    names = ("history", "checkpoint", "members", "predictions", "result", "error")
    assert {getattr(folder, name).parent for name in names} == {tmp_path / "candidates" / "head-000"}


# ---- other users of the machine


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of temporary files that everybody may write to, and a umask that hides nothing."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = os.umask(0)
    yield tmp_path
    os.umask(before)


def test_what_is_temporary_lies_in_a_folder_of_the_users_own(shared: Path) -> None:
    folder = open_private_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert open_private_folder() == folder
    with open_folder("memory://run"):
        (lock,) = folder.iterdir()
        assert lock.suffix == ".lock"
        assert {path.stat().st_mode & 0o777 for path in shared.iterdir()} == {0o700}


def make_link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir(mode=0o700)
    path.symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize(
    "make",
    [
        make_link,
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.write_text(""),
        lambda path: path.mkdir(mode=0o777),
        lambda path: path.mkdir(mode=0o750),
        pytest.param(
            lambda path: (path.mkdir(mode=0o700), os.chown(path, 12345, 12345)),
            marks=pytest.mark.skipif(os.getuid() != 0, reason="gives a folder to another user"),
        ),
    ],
    ids=["link", "dangling", "file", "open", "group", "others"],
)  # fmt: skip
def test_what_others_could_have_put_there_is_refused(make: object, shared: Path) -> None:
    assert callable(make)
    make(shared / f"ray-ft-{os.getuid()}")
    with pytest.raises(RunFolderError, match=r"must be yours alone \(mode 700\), got .* set TMPDIR"):
        open_private_folder()


def test_a_folder_of_temporary_files_that_is_not_writable_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"must be writable, got .*: Not a directory; set TMPDIR"):
        open_private_folder(tmp_path / "file")


@pytest.mark.parametrize("umask", [0o077, 0o027])
def test_files_of_a_run_follow_the_umask(umask: int, toy_folder: Path) -> None:
    before = os.umask(umask)
    try:
        options = {"cv.strategies": ["last"], "cv.candidates": 1}
        cross_validate(load_config("toy.yaml", options), "run", inline=True, report=True)
    finally:
        os.umask(before)
    files = [path for path in Path("run").rglob("*") if path.is_file()]
    assert len(files) > 15
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}
    assert {path.stat().st_mode & 0o777 for path in Path("run").rglob("*") if path.is_dir()} == {0o777 & ~umask}
