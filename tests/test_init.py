"""`ray-ft init` writes a config that is ready, from what it was pointed at, and nothing over what is there."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from ray_ft.config import load_config
from ray_ft.cross_validation import prepare

Command = Callable[..., CompletedProcess[str]]
GIVEN = ("--factory", "toy_network:Toy", "--inputs", "x.npy")


def test_a_config_is_written_and_ready(toy_folder: Path, ray_ft_here: Command) -> None:
    result = ray_ft_here("init", *GIVEN, "--targets", "y.npy")
    assert result.returncode == 0
    assert "runs        toy_network:Toy" in result.stdout
    checked = ray_ft_here("check", "--config", "ray-ft.yaml")
    assert checked.returncode == 0
    n_drawn = 8 * 6 + 8 + 8 * 8 + 8 + 3 * 8 + 3  # of the linear layers; those of batch norm start at 1 and 0
    for said in (result.stdout, checked.stdout):
        assert f"the factory draws {n_drawn} parameters by chance, so these are not pretrained" in said
    written, auto = load_config("ray-ft.yaml"), Path("auto.yaml")
    auto.write_text(Path("ray-ft.yaml").read_text().partition("strategies:")[0] + "strategies: auto\n")
    proposed, own = (prepare(config) for config in (load_config(auto), written))
    assert own.strategies == proposed.strategies
    assert own.config.cv == proposed.config.cv
    assert "inputs: x.npy # (30, 6)" in Path("ray-ft.yaml").read_text()


@pytest.mark.parametrize(
    ("targets", "metric"),
    [
        (np.arange(30) % 3, "log_loss"),
        (np.array(["a", "b", "c"] * 10), "log_loss"),
        (np.random.default_rng(0).normal(size=(30, 3)) * [1, 1, 50], "standardised_mse"),
        (np.random.default_rng(0).normal(size=(30, 3)), "mse"),
    ],
    ids=["whole", "text", "unequal", "numbers"],
)
def test_the_metric_is_that_of_the_targets(
    targets: np.ndarray, metric: str, toy_folder: Path, ray_ft_here: Command
) -> None:
    np.save("t.npy", targets.astype(np.float32) if targets.dtype.kind == "f" else targets)
    assert ray_ft_here("init", *GIVEN, "--targets", "t.npy", "-o", "own.yaml").returncode == 0
    assert load_config("own.yaml").cv.metric == metric


def test_nothing_is_written_over_or_by_halves(toy_folder: Path, ray_ft_here: Command) -> None:
    Path("ray-ft.yaml").write_text("mine")
    before = Path("x.npy").read_bytes()
    for words, said in (
        (
            ["--targets", "y.npy"],
            "--out must be a new file, got ray-ft.yaml, which exists; name another, or add --force",
        ),
        (
            ["--targets", "y.npy", "-o", "x.npy", "--force"],
            "than the inputs and the files of the run, got x.npy; name another",
        ),
        (["--targets", "nope.npy", "-o", "new.yaml"], "got nope.npy"),
    ):
        result = ray_ft_here("init", *GIVEN, *words)
        assert result.returncode == 2
        assert said in result.stderr
    assert Path("ray-ft.yaml").read_text() == "mine"
    assert Path("x.npy").read_bytes() == before
    assert not Path("new.yaml").exists()
    assert ray_ft_here("init", *GIVEN, "--targets", "y.npy", "--force").returncode == 0
