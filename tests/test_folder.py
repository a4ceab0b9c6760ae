"""Files are written whole or not at all."""

from pathlib import Path

import numpy as np
import pytest

from ray_ft.files.writing import replace_file, write_arrays, write_json
from ray_ft.runs.folder import RunFolder


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
