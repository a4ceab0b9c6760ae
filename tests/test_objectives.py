"""The seam of objectives: one that this file alone knows goes all the way, from training to export."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate
from ray_ft.domains import TargetAxes
from ray_ft.ensemble import Ensemble
from ray_ft.ensemble.evaluation import evaluate_ensemble, read_labelled
from ray_ft.ensemble.export import export_ensemble
from ray_ft.ensemble.suggestion import suggest_samples
from ray_ft.errors import ConfigError, DataError
from ray_ft.objectives import (
    METRICS,
    ZERO_SHOT,
    Answers,
    BlindAnswer,
    Column,
    Measures,
    Objective,
    Presentation,
    find_objective,
)
from ray_ft.prediction.sources import open_source
from ray_ft.prediction.streams import predict_to_archive
from ray_ft.report.ensembles import render_evaluation, write_calibration
from ray_ft.report.page import write_report
from ray_ft.results.summary import Summary


@dataclass(frozen=True)
class Chances:
    mean: np.ndarray
    sure: np.ndarray
    novelty: np.ndarray
    p_value: np.ndarray
    flag: np.ndarray


@dataclass(frozen=True)
class ChanceAnswers:
    """Keeps one number a training sample, whatever its target's shape."""

    prediction: type[Any] = Chances
    exported: tuple[str, ...] = ("mean", "sure")
    leveled: tuple[str, ...] = ()

    def measure_residuals(self, blind: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return np.abs(targets - blind).max(-1).astype(np.float32)

    def find_residual_shape(self, target_shape: tuple[int, ...]) -> tuple[int, ...]:
        return ()

    def measure_spread(self, members: np.ndarray, shares: np.ndarray) -> np.ndarray:
        spread: np.ndarray = np.ptp(members, (0, 1, 2, 3)).max(-1)
        return spread

    def answer(self, asked: Collection[str], folds: np.ndarray, *known: Any) -> dict[str, Any]:
        _, _, residuals, _, alpha = known
        mean = folds.mean((0, 1))
        return {"mean": mean, "sure": np.abs(mean - 0.5).min(-1) > np.quantile(residuals, 1 - alpha) - 0.5}

    def answer_blind(self, blind: np.ndarray, targets: np.ndarray, fold_of: np.ndarray, level: float) -> BlindAnswer:
        return BlindAnswer(level, {}, {})

    def evaluate(
        self,
        folds: Mapping[str, np.ndarray],
        residuals: Mapping[str, np.ndarray],
        fold_of: np.ndarray,
        spread: np.ndarray,
        targets: np.ndarray,
        method: str,
        level: float,
        outputs: Mapping[str, slice],
    ) -> Measures:
        right = {name: {"accuracy": float(((own.mean((0, 1)) > 0.5) == targets).mean())} for name, own in folds.items()}
        return Measures(right, {"widest_spread": float(spread.max())}, {level: {"accuracy": right[method]["accuracy"]}})

    def export(
        self, members: Tensor, weights: Tensor, residuals: Tensor, fold_of: Tensor, alpha: float, n_labels: np.ndarray
    ) -> tuple[Tensor, ...]:
        mean = (weights.view(*weights.shape, 1, 1) * members).sum((0, 3)).mean((0, 1))
        return mean, (mean - 0.5).abs().amin(-1) > residuals.quantile(1 - alpha) - 0.5


@dataclass(frozen=True)
class ChancePresentation:
    columns: tuple[Column, ...] = (Column("accuracy", "right", ".0%"),)
    beside: tuple[Column, ...] = (Column("right", "right, higher is better", ".0%"),)

    def describe_evaluation(self, found: Mapping[str, Any]) -> tuple[str, ...]:
        return (f"members differ by {found['widest_spread']:.2f} at most",)

    def draw_calibration(self, points: Sequence[Mapping[str, float]], n_samples: int) -> Figure:
        return Figure()

    def draw_predictions(
        self, axes_of: TargetAxes, responses: Mapping[str, np.ndarray], targets: np.ndarray, answer: BlindAnswer
    ) -> tuple[str, Figure]:
        return f"Chances at the level {answer.level}.", Figure()

    def draw_sample(
        self, axes_of: TargetAxes, truth: np.ndarray, mean: np.ndarray, own: Mapping[str, np.ndarray]
    ) -> Figure:
        return Figure()

    def draw_errors(
        self, axes_of: TargetAxes, responses: Mapping[str, np.ndarray], targets: np.ndarray
    ) -> tuple[str, Figure]:
        return f"Errors of {' and '.join(responses)}.", Figure()


@dataclass(frozen=True)
class YesOrNo:
    """Several questions a sample, each answered by its chance: outputs are logits, responses are chances."""

    metric: str = "yes_or_no"
    baselines: tuple[str, ...] = (ZERO_SHOT, "training_share")
    scales: tuple[float, ...] = ()
    answers: ChanceAnswers = ChanceAnswers()  # it is frozen
    presentation: ChancePresentation = ChancePresentation()

    def encode_targets(
        self, array: np.ndarray, source: str, classes: tuple[str, ...] = ()
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        if not np.isin(array, (0, 1)).all():
            raise DataError(f"answers must be 0 and 1, got others in {source}")
        return array, classes

    def widen_targets(
        self, targets: np.ndarray, classes: tuple[str, ...], n_outputs: int
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        return targets, classes

    def settle(self, targets: np.ndarray, loss: Any = None, balanced: bool = False) -> Objective:
        return self

    def smooth(self, share: float) -> Objective:
        return self

    def find_fault(self, outputs: np.ndarray) -> str:
        return ""

    def find_output_shape(self, found: tuple[int, ...], target_shape: tuple[int, ...]) -> tuple[int, ...]:
        return target_shape

    def find_misfit(self, response_shape: tuple[int, ...], target_shape: tuple[int, ...]) -> str:
        return "" if response_shape == target_shape else f"one output a question, got {response_shape}"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(outputs, targets, reduction="none").flatten(1).mean(1)

    def respond(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()

    def linear_residual(self, base: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return 4 * (2 * targets - 1) - base

    def score(self, predicted: np.ndarray, targets: np.ndarray) -> np.ndarray:
        chance = np.where(targets == 1, predicted, 1 - predicted.astype(np.float64))
        scores: np.ndarray = -np.log(np.maximum(chance, 1e-6)).mean(-1)
        return scores

    def measure_errors(self, predicted: np.ndarray, targets: np.ndarray) -> None:
        return None

    def measure_beside(self, predicted: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        return {"right": float(((predicted > 0.5) == targets).mean())}

    def predict_baselines(self, zero_shot: np.ndarray, targets: np.ndarray, new: np.ndarray) -> dict[str, np.ndarray]:
        return {ZERO_SHOT: new, "training_share": np.broadcast_to(targets.mean(0), new.shape)}

    def stack(self, columns: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return np.array([1 / self.score(column, targets).mean() for column in columns])


def build_objective(metric: str, scales: tuple[float, ...] = ()) -> Objective:
    return YesOrNo(metric)


@pytest.fixture
def questions(toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(METRICS, "yes_or_no", __name__)
    np.save("y.npy", (np.load("y.npy") > 0).astype(np.float32))
    return toy_folder


@pytest.mark.parametrize("metric", ["mse", "mae"])
def test_regression_is_an_objective(metric: str) -> None:
    objective = find_objective(metric)
    assert isinstance(objective, Objective)
    assert isinstance(objective.answers, Answers)
    assert isinstance(objective.presentation, Presentation)
    base, targets = np.random.default_rng(0).normal(size=(2, 4, 3))
    np.testing.assert_allclose(base + objective.linear_residual(base, targets), targets)
    np.testing.assert_allclose(objective.score(targets, targets), 0)


def test_losses_work_under_vmap() -> None:
    outputs, targets = torch.rand(2, 5, 4, 3)
    for objective in (find_objective("mse"), find_objective("mae"), YesOrNo()):
        together = torch.vmap(objective.losses)(outputs, targets)
        alone = torch.stack([objective.losses(*pair) for pair in zip(outputs, targets, strict=True)])
        torch.testing.assert_close(together, alone)


@pytest.mark.long
def test_an_objective_of_ones_own_goes_all_the_way(questions: Path) -> None:
    config = load_config("toy.yaml", {"cv.metric": "yes_or_no", "cv.strategies": ["top", "last"], "cv.candidates": 1})
    summary = cross_validate(config, questions / "run", inline=True)
    assert (summary.metric, list(summary.baselines)) == ("yes_or_no", [ZERO_SHOT, "training_share"])
    assert Summary.load("run").strategies["top"].score_mean < np.log(2) * 1.5
    assert "Errors of blind ensemble and zero-shot." in write_report("run").read_text()

    ensemble, x, y = Ensemble.load("run"), np.load("x.npy"), np.load("y.npy")
    assert ensemble.quantities == tuple(field.name for field in fields(Chances))
    found = ensemble.predict(x)
    assert isinstance(found, Chances)
    assert ((found.mean > 0) & (found.mean < 1)).all(), "chances, not logits"
    assert ensemble.residuals.shape == (30,)
    folds = ensemble.average_folds(ensemble.predict_members(x, False)[0])
    blind = folds[0, ensemble.calibration.fold_of[0], np.arange(30)]
    np.testing.assert_allclose(ensemble.residuals, np.abs(y - blind).max(-1), atol=1e-6)
    assert ensemble.card.score == pytest.approx(YesOrNo().score(blind, y).mean(), rel=1e-5)

    evaluation = evaluate_ensemble(ensemble, read_labelled(ensemble, None, "x.npy", "y.npy"))
    assert evaluation.accuracy == ((found.mean > 0.5) == y).mean()
    console = Console(width=140)
    with console.capture() as captured:
        console.print(render_evaluation(evaluation))
    assert "right" in captured.get()
    assert f"members differ by {evaluation.widest_spread:.2f} at most" in captured.get()
    assert write_calibration(evaluation, Path("calibration.png")).exists()

    predict_to_archive(ensemble, open_source("x.npy"), Path("found.npz"), ["sure", "flag"])
    with np.load("found.npz") as archive:
        np.testing.assert_array_equal(archive["sure"], found.sure)
    program = torch.export.load(export_ensemble(ensemble, Path("toy.pt2"))).module()
    mean, sure = program(torch.from_numpy(x))
    np.testing.assert_allclose(mean.detach(), found.mean, atol=1e-6)
    np.testing.assert_array_equal(sure, found.sure)
    assert len(suggest_samples(ensemble, x + 1, 3).indices) == 3


def test_an_objective_refuses_targets_and_a_config_an_unknown_metric(questions: Path) -> None:
    np.save("y.npy", np.load("y.npy") * 2)
    config = load_config("toy.yaml", {"cv.metric": "yes_or_no", "cv.strategies": ["top"]})
    with pytest.raises(DataError, match=r"answers must be 0 and 1, got others in y\.npy"):
        cross_validate(config, questions / "run", inline=True)
    with pytest.raises(ConfigError, match=r"cv\.metric: a metric is one of .*, yes_or_no, got 'mxe'; did you mean"):
        load_config("toy.yaml", {"cv.metric": "mxe"})
    with pytest.raises(ConfigError, match=r"strategies\.training_share: it is the name of a baseline"):
        load_config("toy.yaml", {"strategies.training_share": {"train": ["*"], "lr": 1, "epochs": 1}})
