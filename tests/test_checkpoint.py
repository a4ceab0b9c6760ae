"""Checkpoints are whole or none, and never code."""

import pickle
from pathlib import Path

import pytest
import torch

from ray_ft.fitting.checkpoint import load_checkpoint, save_checkpoint


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {"members": [{"w": torch.arange(3)}], "best": [0.5, 2]})
    content = load_checkpoint(tmp_path / "c.pt")
    assert content is not None
    assert content["best"] == [0.5, 2]
    assert torch.equal(content["members"][0]["w"], torch.arange(3))
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.parametrize("keep", [0, 10, 400])
def test_a_truncated_checkpoint_is_none(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"w": torch.arange(100)})
    path.write_bytes(path.read_bytes()[:keep])
    assert load_checkpoint(path) is None


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_a_pickle_with_code_is_none_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    assert load_checkpoint(tmp_path / "c.pt") is None
    assert not (tmp_path / "exploded").exists()
