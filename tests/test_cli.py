"""The command as a user types it: what it prints, and errors of one screen with exit code 2."""

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from ray_ft.cli import app

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["cv", "--set", "cv.fold=3", "--set", "cv.folds=1"],
            "error: the demo with these options is not a valid config\n"
            "  cv.folds: it should be greater than or equal to 2, got 1\n"
            "  cv.fold: unknown key; did you mean folds?\n",
        ),
        (
            ["check", "-c", "nope.yaml"],
            "error: a config file must be readable, got nope.yaml: No such file or directory; check the path\n",
        ),
        (["cv", "--set", "nonsense"], "error: --set takes KEY=VALUE, got nonsense\n"),
    ],
)  # fmt: skip
def test_errors_are_word_for_word(words: list[str], text: str, toy_folder: Path, ray_ft: Command) -> None:
    result = ray_ft(*words)
    assert (result.returncode, result.stderr) == (2, text)
    assert not (toy_folder / "runs").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--set", "data.inputs=nan.npy"], "got NaN or infinity in 1 of 30 samples of nan.npy (samples 4)"),
        (["--set", "data.targets=short.npy"], "got 30 in x.npy and 7 in short.npy"),
        (
            ["--set", "data.inputs=x.txt"],
            "a data file must be .npy, .npz, .csv, .tsv, .parquet, .h5, .hdf5, .nc or .zarr, got x.txt",
        ),
        (["--set", "data.inputs=object.npy"], "must hold plain arrays"),
        (["--folds", "31"], "30 samples in 30 groups for 31 folds"),
        (["--strategies", "topp"], "unknown strategy topp; did you mean top?"),
        (["--strategies", ""], "--strategies takes names, comma-separated, got ''; or leave it out"),
        (["--strategies", "top,"], "--strategies takes names, comma-separated, got 'top,'"),
        (["--set", "strategies.top.train=[haed.*]"], "got haed.*; did you mean head.*?"),
        (["--set", 'strategies.top.freeze=["*"]'], "some parameter must learn"),
        (["--set", "model.checkpoint=evil.pt"], "it holds more than tensors"),
        (["--set", "model.factory=toy_network:Toyy"], "model.factory must be importable"),
        (["--set", "model.params={widht: 3}"], "widht"),
        (["--out", "/proc/x"], "the run folder must be writable"),
        (["--address", "127.0.0.1:9"], "where nobody answers"),
    ],
)
def test_bad_input_states_the_rule_and_leaves_nothing(
    words: list[str], text: str, toy_folder: Path, ray_ft_here: Command
) -> None:
    x = np.load("x.npy")
    np.save("short.npy", x[:7])
    np.save("object.npy", np.array([print], dtype=object), allow_pickle=True)
    x[4, 0] = np.nan
    np.save("nan.npy", x)
    Path("evil.pt").write_bytes(b"\x80\x04\x8c\x08builtins\x8c\x05print\x93.")
    strategies = [] if "--strategies" in words else ["--strategies", "top"]
    result = ray_ft_here("cv", "-c", "toy.yaml", *strategies, *words)
    assert result.returncode == 2
    assert text in result.stderr
    assert not (toy_folder / "runs" / "toy").exists()


def test_help_says_in_sentences_what_everything_is() -> None:
    command = typer.main.get_command(app)
    listed = CliRunner().invoke(app, ["--help"], terminal_width=100).stdout
    assert "..." not in listed.partition("Commands:")[2], "of each command, a line of 100 columns says what it does"
    said = {
        f"{name} {parameter.name}": getattr(parameter, "help", None) or ""
        for name, own in command.commands.items()
        for parameter in own.params
    }
    assert len(said) > 80
    assert not {name: text for name, text in said.items() if not text.endswith(".") or len(text.split()) < 4}


def test_a_run_and_the_commands_that_it_suggests(toy_folder: Path, ray_ft: Command, ray_ft_here: Command) -> None:
    words = ["cv", "-c", "toy.yaml", "--strategies", "top,last", "--candidates", "1", "--inline"]
    first = ray_ft(*words)
    assert first.returncode == 0, first.stderr
    assert "winner    none: no strategy beats gain-offset, so do not" in first.stdout
    again = ray_ft_here(*words)  # a finished run shows its table
    assert first.stdout.endswith(again.stdout.partition("\n")[2])
    card = (toy_folder / "runs/toy/ensemble/card.json").read_text()
    summary = (toy_folder / "runs/toy/summary.json").read_text()
    suggested = first.stdout.partition("next:\n")[2].splitlines()
    assert [line.split()[:2] for line in suggested] == [["ray-ft", "predict"], ["ray-ft", "evaluate"]]
    for line in suggested:  # as a user would copy it
        followed = ray_ft_here(*shlex.split(line)[1:])
        assert followed.returncode == 0, followed.stderr
    with np.load("runs/toy-predictions.npz") as archive:
        assert archive["mean"].shape == archive["std"].shape == (30, 3)
        assert (archive["std"] > 0).all()
    assert (toy_folder / "runs/toy/summary.json").read_text() == summary, "with the time that the run took"
    assert (toy_folder / "runs/toy/ensemble/card.json").read_text() == card


def test_a_damaged_ensemble_is_refused(run: Path, ray_ft_here: Command) -> None:
    members = run / "ensemble/members.safetensors"
    content = bytearray(members.read_bytes())
    content[-1] ^= 1
    members.write_bytes(content)
    result = ray_ft_here("predict", "run", "--inputs", "x.npy", "--out", "y.npz")
    assert result.returncode == 2
    assert "it was changed" in result.stderr
    assert not Path("y.npz").exists()


def test_the_users_own_keys_mean_what_they_say(toy_folder: Path) -> None:
    from ray_ft.config import Range, load_config

    training = {"epochs": 100, "lr": 0.0003, "weight_decay": 0.01, "warmup_ratio": 0.0, "resume": "net.pt"}
    flags = {"freeze_encoder": True, "freeze_decoder": False}
    data = {"inputs": "x.npy", "targets": "y.npy"}
    Path("own.yaml").write_text(
        str({"data": data, "training": training | flags}).replace("True", "true").replace("False", "false")
    )
    config = load_config(Path("own.yaml"))
    assert config.checkpoint == "net.pt"
    (stage,) = config.selected["as_written"].stages
    assert (stage.lr, stage.epochs, stage.weight_decay) == (
        Range(3e-4, 3e-4, True), Range(100, 100, True), Range(0.01, 0.01, True),
    )  # fmt: skip
    assert list(config.selected) == ["as_written"]
    assert set(load_config(Path("own.yaml"), {"cv.strategies": ["head"]}).selected) == {"head"}


def test_outputs_do_not_take_the_place_of_what_is_there(run: Path, ray_ft_here: Command) -> None:
    np.savez("in.npz", x=np.load("x.npy"))
    over = ray_ft_here("predict", "run", "--inputs", "in.npz", "--out", "in.npz")
    assert (over.returncode, "another file than the inputs" in over.stderr) == (2, True)
    into = ray_ft_here("predict", "run", "--inputs", "x.npy", "--out", "run")
    assert (into.returncode, "plan.json of another kind" in into.stderr) == (2, True)
    done = ["predict", "run", "--inputs", "x.npy", "--out", "done"]
    assert ray_ft_here(*done).returncode == 0
    assert "finished before" in ray_ft_here(*done).stdout
    Path("done/mean.npy").unlink()
    lost = ray_ft_here(*done)
    assert (lost.returncode, "must be whole" in lost.stderr) == (2, True)


def test_json_is_alone_on_the_standard_output(run: Path, ray_ft_here: Command) -> None:
    np.save("pool.npy", np.load("x.npy") + 1)
    config = ("--config", "toy.yaml")
    commands: dict[str, tuple[tuple[str, ...], str]] = {
        "cv": (("--out", "run", "--config", "run/config.yaml"), "winner"),
        "check": (config, "strategies"),
        "plan": (config, "candidates"),
        "predict": (("run", "--inputs", "x.npy", "--out", "json.npz"), "n_samples"),
        "suggest": (("run", "--inputs", "pool.npy", "--n", "2"), "indices"),
    }
    for command, (words, key) in commands.items():
        done = ray_ft_here(command, *words, "--json")
        assert (done.returncode, key in json.loads(done.stdout)) == (0, True), done.stderr


@pytest.mark.long
def test_quiet_and_verbose_are_about_progress_alone(toy_folder: Path, ray_ft: Command) -> None:
    words = ("cv", "--config", "toy.yaml", "--inline", "--candidates", "1", "--out")
    quiet, plain, verbose = (ray_ft(*words, out, *flags) for out, flags in (("a", ["-q"]), ("b", []), ("c", ["-v"])))
    assert "reading the data" not in quiet.stdout + quiet.stderr
    assert "reading the data" in plain.stdout
    assert "epoch 2 of" in verbose.stderr
    assert "epoch 2 of" not in plain.stderr
    for done in (quiet, plain, verbose):
        assert "winner" in done.stdout


def test_former_spellings_work_and_say_the_one_of_now(run: Path, ray_ft_here: Command) -> None:
    np.save("pool.npy", np.load("x.npy") + 1)
    former = {
        "--out": ("predict", "run", "--inputs", "x.npy", "--output", "former.npz"),
        "--inputs": ("suggest", "pool.npy", "--run", "run", "--n", "1"),
    }
    for now, words in former.items():
        done = ray_ft_here(*words)
        assert (done.returncode, f"is {now} now" in done.stderr) == (0, True), done.stderr
    twice = ray_ft_here("predict", "run", "--inputs", "x.npy", "--output", "a.npz", "--out", "b.npz")
    assert (twice.returncode, "--out must be given once" in twice.stderr) == (2, True)
    none = ray_ft_here("predict", "run", "--inputs", "x.npy")
    assert (none.returncode, "--out must be given" in none.stderr) == (2, True)


@pytest.mark.slow
def test_a_rebuilt_ensemble_is_in_the_report(run: Path, ray_ft_here: Command) -> None:
    result = ray_ft_here("ensemble", "run", "--trust", "--strategies", "top,last", "--method", "stacked")
    assert result.returncode == 0, result.stderr
    assert "24 members in run/ensemble, stacked; score" in result.stdout
    assert "24 members of\ntop, last (stacked weights)" in Path("run/report.html").read_text()
    worse = ray_ft_here("ensemble", "run", "--trust", "--strategies", "last").stdout
    assert "note: the ensemble before it was better" in worse
    assert "--strategies top,last --method stacked builds that again" in worse
    refused = ray_ft_here("ensemble", "run", "--trust", "--level", "0.99")
    assert (refused.returncode, "need at least 99 samples" in refused.stderr) == (2, True)
