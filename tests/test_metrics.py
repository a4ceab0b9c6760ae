"""Losses, scores and what is told beside them, against those of torch and scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    roc_auc_score,
)
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

from ray_ft import cross_validate
from ray_ft.config import load_config
from ray_ft.objectives import LOSSES, METRICS, REGRESSION, find_objective
from ray_ft.results.records import gather_columns, load_judged, load_splits, score_strategies
from ray_ft.runs.folder import RunFolder


@pytest.mark.parametrize(("metric", "reference"), [("mse", mean_squared_error), ("mae", mean_absolute_error)])
def test_losses_are_those_of_scikit_learn(metric, reference) -> None:
    rng = np.random.default_rng(0)
    predicted, target = rng.normal(size=(2, 5, 2, 3))
    expected = [reference(target[i].ravel(), predicted[i].ravel()) for i in range(5)]
    np.testing.assert_allclose(find_objective(metric).score(predicted, target), expected)
    losses = find_objective(metric).losses(torch.from_numpy(predicted), torch.from_numpy(target))
    np.testing.assert_allclose(losses.numpy(), expected)


REFERENCES = {
    "mse": functional.mse_loss,
    "mae": functional.l1_loss,
    "huber": functional.huber_loss,
    "smooth_l1": functional.smooth_l1_loss,
    "log_cosh": lambda one, other, reduction: (one - other).cosh().log(),
}


@pytest.mark.parametrize("name", [name for name, module in LOSSES.items() if module == REGRESSION])
def test_losses_by_name_are_those_of_torch_and_standardised_those_of_scaled_targets(name: str) -> None:
    rng = np.random.default_rng(0)
    scale = np.array([1.0, 100.0, 0.01])
    predicted, targets = rng.normal(size=(2, 12, 3)) * scale * 2
    targets[:, 2] = 3.0  # it does not vary, and counts as it is
    objective = find_objective("mse").settle(targets, name)
    one, other = predicted, targets
    if name.startswith("standardised_"):
        scaler = StandardScaler(with_mean=False).fit(targets)
        one, other = (torch.from_numpy(scaler.transform(array)) for array in (predicted, targets))
    expected = REFERENCES[name.removeprefix("standardised_")](
        torch.as_tensor(one), torch.as_tensor(other), reduction="none"
    )
    found = objective.losses(torch.from_numpy(predicted), torch.from_numpy(targets))
    torch.testing.assert_close(found, expected.mean(1))
    if name in METRICS:
        np.testing.assert_allclose(find_objective(name).settle(targets).score(predicted, targets), expected.mean(1))
    assert objective.score(predicted, targets) == pytest.approx(((predicted - targets) ** 2).mean(1))


def test_a_large_error_does_not_overflow_log_cosh() -> None:
    objective = find_objective("mse").settle(np.zeros((1, 1)), "log_cosh")
    outputs = torch.tensor([[1e4]], requires_grad=True)
    loss = objective.losses(outputs, torch.zeros(1, 1))
    loss.sum().backward()
    assert loss.item() == pytest.approx(1e4 - np.log(2))
    assert outputs.grad == 1


def test_what_is_told_beside_the_score_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    predicted, targets = rng.normal(size=(2, 30, 4))
    found = find_objective("huber").measure_beside(predicted, targets)
    assert found["r2"] == pytest.approx(r2_score(targets, predicted))
    assert found["rmse"] == pytest.approx(np.sqrt(mean_squared_error(targets, predicted)))
    assert found["mae"] == pytest.approx(mean_absolute_error(targets, predicted))
    assert "r2" not in find_objective("mse").measure_beside(predicted, np.ones_like(targets))  # nothing varies
    labels, chances = rng.integers(0, 3, 60), rng.dirichlet(np.ones(3), 60)
    found = find_objective("log_loss").measure_beside(chances, np.eye(3)[labels])
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, chances.argmax(1)))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, chances.argmax(1)))
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, chances, multi_class="ovr"))
    assert "log_loss" not in found  # it is the score
    several = rng.integers(0, 2, (40, 3))
    found = find_objective("multilabel_log_loss").measure_beside(chances[:40], several.astype(float))
    assert found["auroc"] == pytest.approx(roc_auc_score(several, chances[:40], average="macro"))


@pytest.mark.long
def test_measures_beside_the_score_reach_the_summary_the_tables_and_the_report(toy_folder: Path) -> None:
    np.save("classes.npy", np.load("y.npy").argmax(1))
    values = {"cv.strategies": ["top", "last"], "cv.metric": "log_loss", "data.targets": "classes.npy", "cv.repeats": 2}
    summary = cross_validate(load_config("toy.yaml", values), "run", inline=True, report=True)
    run, labels = RunFolder(Path("run")), np.load("classes.npy")
    splits, (plan, verdicts) = load_splits(run), load_judged(run)
    score = score_strategies(run, plan, verdicts, splits, 2)["top"]
    assert score is not None
    columns = gather_columns(run, "top", score, splits)
    assert columns.shape == (2, 2, 30, 3)  # seed, repeat, sample, class
    accuracy = np.mean([accuracy_score(labels, own.argmax(1)) for seed in columns for own in seed])
    assert summary.strategies["top"].beside["accuracy"] == pytest.approx(accuracy)
    table = summary.leaderboard().set_index("strategy")
    assert table.loc["top", "accuracy"] == pytest.approx(accuracy)
    assert 0 < table.loc["zero_shot", "auroc"] < 1
    _, page = Path("run/report.html").read_text().split("<h3>Beside the score</h3>")
    beside, _ = page.split("<h3>How they were searched</h3>")
    for header in ("accuracy, higher is better", "balanced accuracy, higher", "AUROC, higher"):
        assert header in beside
