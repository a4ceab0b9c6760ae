"""What training minimises, apart from the score: by name, or a function of the user's own, tried before it is used."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, huber_loss

from ray_ft.config import load_config, scale_lr
from ray_ft.cross_validation import cross_validate, prepare, rebuild_ensemble
from ray_ft.errors import ConfigError, RunFolderError
from ray_ft.files.writing import read_record, write_record
from ray_ft.objectives import find_objective
from ray_ft.report.page import write_report
from ray_ft.results.opening import check_config
from ray_ft.results.records import load_plan, load_splits
from ray_ft.runs.folder import RunFolder

OWN = """
import torch

TAKEN = []


def huber(outputs, targets):
    TAKEN.append(outputs.shape)
    return torch.nn.functional.huber_loss(outputs, targets, reduction="none").mean(1)


def one_number(outputs, targets):
    return (outputs - targets).square().mean()


def unbounded(outputs, targets):
    return (outputs - targets).abs().log().mean(1) - (outputs * 0).log().mean(1)


def constant(outputs, targets):
    return (outputs - targets).detach().square().mean(1)


def steep(outputs, targets):
    return (0 * (outputs - targets)).abs().sqrt().mean(1)


def text(outputs, targets):
    return "none"
"""
TRAINED: dict[str, Any] = {
    "cv.strategies": ["last"],
    "cv.candidates": 1,
    "cv.seeds": 1,
    "strategies.last.lr": 3e-2,
    "strategies.last.epochs": 5,
    "strategies.last.batch_size": 64,
    "strategies.last.weight_decay": 0.02,
}


@pytest.fixture
def own_folder(toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (toy_folder / "own_losses.py").write_text(OWN)
    monkeypatch.delitem(__import__("sys").modules, "own_losses", raising=False)
    from ray_ft.models.own_loss import import_loss

    import_loss.cache_clear()  # another test's, out of another folder
    return toy_folder


def read_losses(out: str, epoch: int) -> np.ndarray:
    found: np.ndarray = np.load(Path(out) / "candidates/last-000/history.npz")["losses"][epoch, 0, 0]
    return found


def run(out: str, **values: Any) -> Any:
    return cross_validate(load_config("toy.yaml", TRAINED | values), out, inline=True)


def test_huber_trains_and_the_squared_error_scores_as_in_a_plain_loop(toy_folder: Path) -> None:
    np.save("y.npy", 4 * np.load("y.npy"))  # so that the loss is not the squared error
    config = load_config("toy.yaml", TRAINED | {"training.loss": "huber"})
    network = prepare(config).pretrained.build()
    run("run", **{"training.loss": "huber"})
    x, y = (torch.from_numpy(np.load(name)) for name in ("x.npy", "y.npy"))
    splits = load_splits(RunFolder(Path("run")))
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for fold in range(3):
        network.load_state_dict(start)
        network.eval()
        last: nn.Linear = network.get_submodule("head.3")  # type: ignore[assignment]
        optimizer = torch.optim.AdamW(last.parameters(), lr=3e-2, weight_decay=0.02)
        train, held_out = splits.training(0, fold), splits.held_out(0, fold)
        for epoch in range(5):  # a step each, as a batch is larger than the part
            optimizer.param_groups[0]["lr"] = 3e-2 * scale_lr(epoch, 5, 0)
            huber_loss(network(x[train]), y[train]).backward()
            nn.utils.clip_grad_norm_(last.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                expected = (network(x[held_out]) - y[held_out]).square().mean(1)
            np.testing.assert_allclose(read_losses("run", epoch + 1)[held_out], expected, rtol=2e-4)


@pytest.mark.parametrize("packing", ["packed", "looped"])
def test_a_loss_of_ones_own_is_the_one_that_is_named(packing: str, own_folder: Path) -> None:
    more = {"compute.packing": packing, "cv.seeds": 2}
    named = run("named", **{"training.loss": "huber"}, **more)
    own = run("own", **{"training.loss": "own_losses:huber"}, **more)
    np.testing.assert_allclose(own.strategies["last"].scores, named.strategies["last"].scores, rtol=1e-6)
    plain = run("plain", **more)
    assert plain.strategies["last"].scores != own.strategies["last"].scores
    assert own.metric == "mse"


@pytest.mark.ray
@pytest.mark.slow
def test_ray_finds_a_loss_of_ones_own(own_folder: Path) -> None:
    inline = run("inline", **{"training.loss": "own_losses:huber"})
    values = TRAINED | {"training.loss": "own_losses:huber"}
    found = cross_validate(load_config("toy.yaml", values), "ray")
    assert found.strategies["last"].scores == inline.strategies["last"].scores


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (
            "own_losses:one_number",
            r"one loss for each sample, shape \(30,\), got shape \(\); take the mean over all axes",
        ),
        ("own_losses:text", r"one loss for each sample, shape \(30,\), got 'none'"),
        ("own_losses:unbounded", "must be finite, got NaN or infinity for samples 0, 1, 2, 3"),
        ("own_losses:constant", "must be differentiable, got a loss that does not depend on the outputs"),
        ("own_losses:steep", "must have finite derivatives by the outputs, got NaN or infinity"),
        ("own_losses:TAKEN", "must be a function of your own code"),
        ("own_losses:absent", "must be importable, got own_losses:absent"),
        ("absent:loss", "must be importable, got absent:loss: there is no module absent"),
        ("os:system", "got os:system of Python itself, which was not imported"),
        ("torch.nn.functional:mse_loss", "got torch.nn.functional:mse_loss, which was not called"),
        ("hubber", "a loss is one of mse, .*did you mean huber"),
        ("cross_entropy", "cross_entropy is of classes, got cv.metric: mse"),
    ],
)
def test_what_is_no_loss_is_refused_before_anything_is_trained(path: str, said: str, own_folder: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        run("run", **{"training.loss": path})
    assert not Path("run").exists()


def test_a_run_with_code_of_its_own_is_rebuilt_with_trust_alone(own_folder: Path) -> None:
    run("run", **{"training.loss": "own_losses:huber"})
    with pytest.raises(RunFolderError, match="own_losses:huber"):
        rebuild_ensemble(Path("run"))
    assert rebuild_ensemble(Path("run"), trust=True).method == "uniform"


def test_a_run_of_before_goes_on(own_folder: Path) -> None:
    """Its provenance knows nothing of the loss, which was the metric's own."""
    run("run")
    folder = RunFolder(Path("run"))
    content = read_record(folder.provenance)
    for key in ("loss", "label_smoothing"):
        del content["config"]["training"][key]
    for strategy in content["config"]["strategies"].values():
        for stage in strategy["stages"]:
            stage.pop("label_smoothing", None)
    write_record(folder.provenance, content)
    check_config(folder, load_config("toy.yaml", TRAINED).identity())
    plan = read_record(folder.plan)
    for candidate in plan["candidates"]:
        for stage in candidate["stages"]:
            stage.pop("label_smoothing", None)
    write_record(folder.plan, plan)
    assert load_plan(folder)[0].stages[-1].label_smoothing is None
    assert write_report("run").exists()
    with pytest.raises(RunFolderError, match=r'training.loss: null there, "mae" here'):
        check_config(folder, load_config("toy.yaml", TRAINED | {"training.loss": "mae"}).identity())


@pytest.mark.parametrize("balanced", [False, True])
def test_smooth_labels_are_torchs(balanced: bool) -> None:
    rng = np.random.default_rng(0)
    labels, logits = np.repeat([0, 1, 2], [5, 3, 2]), torch.from_numpy(rng.normal(size=(10, 3)))
    targets = np.eye(3)[labels]
    objective = find_objective("log_loss").settle(targets, balanced=balanced).smooth(0.2)
    weight = torch.tensor([10 / 15, 10 / 9, 10 / 6], dtype=torch.float64) if balanced else None
    expected = cross_entropy(logits, torch.from_numpy(labels), weight, label_smoothing=0.2, reduction="none")
    torch.testing.assert_close(objective.losses(logits, torch.from_numpy(targets)), expected)
    assert objective.score(np.full((10, 3), 1 / 3), targets) == pytest.approx(np.log(3))  # scores are of the labels


def test_what_needs_classes_is_refused_for_numbers_and_beside_a_loss_of_ones_own(toy_folder: Path) -> None:
    targets = np.ones((4, 2))
    with pytest.raises(ConfigError, match=r"smooth labels need classes, got cv.metric: mse"):
        find_objective("mse").smooth(0.1)
    with pytest.raises(ConfigError, match=r"huber is of numbers, got cv.metric: log_loss"):
        find_objective("log_loss").settle(targets, "huber")
    closed = {"strategies.closed": {"fit": "ridge", "train": ["head.*"]}, "cv.strategies": ["closed"]}
    with pytest.raises(ConfigError, match=r"smooth labels need classes, got cv.metric: mse"):
        prepare(load_config("toy.yaml", closed | {"training.label_smoothing": 0.1}))
    with pytest.raises(ConfigError, match=r"those of cross-entropy, got a training.loss of your own"):
        find_objective("log_loss").settle(targets, lambda outputs, targets: outputs).smooth(0.1)
