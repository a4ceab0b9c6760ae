"""No command takes the place of a file that it did not make; what it reads stays even with --force."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ray_ft.cli import main

Refusal = Callable[..., str]
MANY = ["--inputs", "many.npy"]
COMMANDS = {
    "y.npz": ["predict", "run", *MANY, "--out", "y.npz"],
    "net.pt2": ["export", "run", "--out", "net.pt2"],
    "plot.png": ["evaluate", "run", "--inputs", "x.npy", "--targets", "y.npy", "--plot", "plot.png"],
    "suggestion.png": ["suggest", "run", "--inputs", "many.npy"],
}


@pytest.fixture
def refuse(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Run a command in this process, which must refuse; return what it says."""
    np.save("many.npy", np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32))

    def run_command(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["ray-ft", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        return capsys.readouterr().err

    return run_command


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_exists_is_replaced_by_request_alone(
    name: str, run: Path, refuse: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = COMMANDS[name]
    Path(name).write_text("mine")
    before = sorted(Path().rglob("*"))
    assert f"must be a new file, got {name}, which exists; name another, or add --force" in refuse(*words)
    assert (Path(name).read_text(), sorted(Path().rglob("*"))) == ("mine", before)
    monkeypatch.setattr(sys, "argv", ["ray-ft", *words, "--force"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert Path(name).stat().st_size > 1000


def test_what_is_read_is_never_replaced(run: Path, refuse: Refusal) -> None:
    rng = np.random.default_rng(0)
    np.savez("in.npz", x=rng.normal(size=(3, 6)))
    np.savez("labels.npz", y=np.load("y.npy"))
    np.savez("free.npz", y=np.load("y.npy"))
    config = run / "ensemble/config.yaml"
    config.write_text(config.read_text().replace("y.npy", "labels.npz::y"))
    Path("link.npz").symlink_to("labels.npz")
    Path("second.npz").hardlink_to("labels.npz")
    shutil.move(run / "blind.npz", "elsewhere.npz")
    (run / "blind.npz").symlink_to("../elsewhere.npz")
    contents = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for name in ("in.npz", "labels.npz", "link.npz", "second.npz", "run/../labels.npz", "run/blind.npz"):
        for source in ("run", "run/ensemble"):
            words = ["predict", source, "--inputs", "in.npz::x", "--out", name, "--force"]
            assert f"another file than the inputs and the files of the run, got {name}; name another" in refuse(*words)
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == contents
    Path("folder.npz").mkdir()
    assert "must be a file, got folder.npz" in refuse("predict", "run", *MANY, "--out", "folder.npz", "--force")
    Path("x.png").hardlink_to("x.npy")
    words = ["evaluate", "run", "--inputs", "many.npy", "--targets", "y.npy", "--plot", "x.png", "--force"]
    assert "--plot must be another file than the inputs" in refuse(*words)


def test_a_worse_soup_needs_a_word_of_its_own(run: Path, refuse: Refusal) -> None:
    card = run / "ensemble/card.json"
    text = card.read_text()
    start = text.index('"soup_score": ') + len('"soup_score": ')
    card.write_text(text[:start] + "99.0" + text[text.index(",", start) :])
    said = refuse("export", "run", "--out", "soup.pt2", "--soup", "--force")
    assert "or with --allow-worse (--force said so before" in said
    assert not Path("soup.pt2").exists()


def test_a_learning_curve_needs_a_folder_of_its_own(refuse: Refusal) -> None:
    Path("learning_curve.csv").write_text("mine")
    words = ["learning-curve", "-c", "toy.yaml", "--strategies", "last", "--sizes", "8,12,16", "--inline", "--out", "."]
    assert "a learning curve needs a folder of its own, got . with learning_curve.csv" in refuse(*words)
    assert not list(Path().glob("train_*"))


def test_a_run_is_not_fetched_into_a_file(run: Path, refuse: Refusal) -> None:
    assert "copied into a new folder, got x.npy" in refuse("fetch", f"file://{run}", "x.npy")
