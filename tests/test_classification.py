"""Classes: against scikit-learn and torch, and as a run like any other from labels to export."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from torch.nn import functional

from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate, prepare
from ray_ft.ensemble import Ensemble
from ray_ft.ensemble.evaluation import evaluate_ensemble, read_labelled
from ray_ft.ensemble.export import export_ensemble
from ray_ft.errors import ConfigError, DataError
from ray_ft.fitting.kernel_descent import KernelProblem
from ray_ft.objectives import Answers, Objective, Presentation, find_objective
from ray_ft.objectives.classification_answers import ClassAnswers, build_sets, measure_chances
from ray_ft.objectives.classification_labels import encode_classes
from ray_ft.report.ensembles import write_calibration
from ray_ft.report.page import write_report

METRICS = ("log_loss", "error_rate", "multilabel_log_loss")
NAMES = np.array(["cat", "dog", "owl"])


@pytest.mark.parametrize("metric", METRICS)
def test_it_is_an_objective(metric: str) -> None:
    objective = find_objective(metric)
    assert isinstance(objective, Objective)
    assert isinstance(objective.answers, Answers)
    assert isinstance(objective.presentation, Presentation)


@pytest.mark.parametrize(
    ("labels", "names", "columns"),
    [
        (np.array([2, 10, 2]), ("2", "10"), [0, 1, 0]),
        (np.array([[1], [0], [1]]), ("0", "1"), [1, 0, 1]),
        (np.array([True, False, True]), ("False", "True"), [1, 0, 1]),
        (np.array(["owl", "cat", "owl"]), ("cat", "owl"), [1, 0, 1]),
        (np.array([b"owl", b"cat", b"owl"]), ("cat", "owl"), [1, 0, 1]),
        (np.array([3.0, 1.0, 3.0]), ("1", "3"), [1, 0, 1]),
        (np.eye(3)[[2, 0, 2]], ("0", "1", "2"), [2, 0, 2]),
    ],
)
def test_labels_as_people_write_them_become_columns(labels: np.ndarray, names: tuple, columns: list) -> None:
    encoded, classes = encode_classes(labels, "y.npy")
    assert classes == names
    np.testing.assert_array_equal(encoded, np.eye(len(names))[columns])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([0.5, 1.0]), "whole numbers, true and false, or text, got 0.5"),
        (np.array([1, 1]), "2 to 1,000 classes, got 1"),
        (np.array([[0.5, 0.1]]), "sum to 1 for each sample"),
        (np.zeros((2, 2, 2)), r"one label a sample, or a share for each class, got shape \(2, 2, 2\)"),
    ],
)
def test_what_are_no_classes_is_refused(labels: np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        encode_classes(labels, "y.npy")


def test_a_label_that_is_not_known_is_refused() -> None:
    with pytest.raises(DataError, match="labels must be among cat, dog, got owl in y"):
        encode_classes(NAMES, "y", ("cat", "dog"))


@given(st.integers(0, 2**31))
def test_losses_and_scores_are_those_of_torch_and_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(30, 3)).astype(np.float32), rng.integers(0, 3, 30)
    labels[:3] = range(3)
    targets, objective = np.eye(3, dtype=np.float32)[labels], find_objective("log_loss")
    outputs, wanted = torch.from_numpy(logits), torch.from_numpy(labels)
    expected = functional.cross_entropy(outputs, wanted, reduction="none")
    torch.testing.assert_close(objective.losses(outputs, torch.from_numpy(targets)), expected)
    chances = objective.respond(outputs).numpy()
    assert objective.score(chances, targets).mean() == pytest.approx(log_loss(labels, chances), rel=1e-6)
    predicted, found = chances.argmax(1), measure_chances(chances, targets)
    rate = find_objective("error_rate").score(chances, targets).mean()
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, predicted)) == pytest.approx(1 - rate)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    area = roc_auc_score(labels, chances / chances.sum(1, keepdims=True), multi_class="ovr", labels=range(3))
    assert found["auroc"] == pytest.approx(area)


def test_a_single_output_is_the_logit_of_the_second_of_two_classes() -> None:
    outputs, labels = torch.randn(20, 1), torch.randint(0, 2, (20,))
    objective, targets = find_objective("log_loss"), functional.one_hot(labels, 2).float()
    expected = functional.binary_cross_entropy_with_logits(outputs[:, 0], labels.float(), reduction="none")
    torch.testing.assert_close(objective.losses(outputs, targets), expected)
    torch.testing.assert_close(objective.respond(outputs)[:, 1], outputs[:, 0].sigmoid())


def test_weights_of_classes_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0, 0, 0, 1, 2, 2])
    weighed = find_objective("log_loss").settle(np.eye(3, dtype=np.float32)[labels], balanced=True)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    absent = find_objective("log_loss").settle(np.eye(4, dtype=np.float32)[labels], balanced=True)
    assert absent.class_weights[3] == 1, "replayed samples alone may be of this class"
    np.testing.assert_allclose(weighed.class_weights, expected)
    outputs, wanted = torch.randn(6, 3), torch.from_numpy(labels)
    by_torch = functional.cross_entropy(outputs, wanted, torch.tensor(expected, dtype=torch.float32), reduction="none")
    torch.testing.assert_close(weighed.losses(outputs, functional.one_hot(wanted).float()), by_torch)


def test_ridge_of_classes_is_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(40, 4)), rng.integers(0, 3, 40)
    penalty, scale, losses = 0.3, 2.0, find_objective("log_loss").losses
    known = KernelProblem(
        torch.from_numpy(rows), torch.zeros(40, 3, dtype=torch.float64), torch.eye(3).double()[labels], losses, scale
    )
    weights = known.fit(np.arange(40), penalty, torch.zeros(5, 3, dtype=torch.float64)).numpy()
    peer = LogisticRegression(C=1 / (penalty * scale), tol=1e-8, max_iter=1000).fit(rows, labels)
    found = torch.from_numpy(rows @ weights[:-1] + weights[-1]).softmax(1).numpy()
    np.testing.assert_allclose(found, peer.predict_proba(rows), atol=1e-3)


def test_prediction_sets_hold_the_true_class_about_as_often_as_they_say() -> None:
    """Over repeated draws of 100 samples, folds and all; a set of every class would hold it always."""
    rng, held, sizes = np.random.default_rng(0), [], []
    centres = rng.normal(size=(3, 4))
    for _ in range(30):
        labels = rng.integers(0, 3, 300)
        x = centres[labels] + rng.normal(size=(300, 4))
        fold_of, folds = np.empty((1, 100), int), []
        for k, (train, test) in enumerate(StratifiedKFold(5).split(x[:100], labels[:100])):
            fold_of[0, test] = k
            folds.append(LogisticRegression().fit(x[train], labels[train]).predict_proba(x))
        stacked = np.stack(folds)[None]
        blind = stacked[0, fold_of[0], np.arange(100)]
        residuals = ClassAnswers().measure_residuals(blind, np.eye(3)[labels[:100]])
        sets = build_sets(stacked[:, :, 100:], residuals, fold_of, 0.1)
        held.append(sets[np.arange(200), labels[100:]].mean())
        sizes.append(sets.sum(1).mean())
    assert np.mean(held) == pytest.approx(0.9, abs=0.03)
    assert 1 <= np.mean(sizes) < 2.5


@pytest.fixture
def animals(toy_folder: Path) -> Path:
    """The toy's targets as the names of the largest."""
    np.save("y.npy", NAMES[np.load("y.npy").argmax(1)])
    return toy_folder


OWN = {
    "cv.metric": "log_loss",
    "cv.strategies": ["top", "closed"],
    "strategies.closed": {"fit": "ridge", "train": ["head.3.*"]},
}


def test_a_run_on_classes_goes_all_the_way(animals: Path) -> None:
    summary = cross_validate(load_config("toy.yaml", OWN | {"cv.candidates": 1}), "run", inline=True)
    assert summary.classes == ("cat", "dog", "owl")
    assert set(summary.baselines) == {"zero_shot", "class_shares", "recalibrated"}
    labels = np.load("y.npy")
    with np.load("run/blind.npz") as blind:
        mean = blind["mean"].astype(float)
    expected = log_loss(labels, mean / mean.sum(1, keepdims=True))
    assert summary.ensemble.score == pytest.approx(expected, rel=1e-5)
    check_folds(labels)
    assert (
        "How often" in write_report("run").read_text() or "probability is true" in Path("run/report.html").read_text()
    )

    ensemble, x = Ensemble.load("run"), np.load("x.npy")
    found = ensemble.predict(x)
    np.testing.assert_allclose(found.mean.sum(1), 1, atol=1e-5)
    assert found.in_set[np.arange(30), found.predicted].all(), "no set is without the most probable class"
    evaluation = evaluate_ensemble(ensemble, read_labelled(ensemble, None, "x.npy", "y.npy"))
    assert evaluation.accuracy == pytest.approx(accuracy_score(labels, NAMES[found.predicted]))
    mean, std, predicted, in_set = torch.export.load(export_ensemble(ensemble, Path("toy.pt2"))).module()(
        torch.from_numpy(x)
    )
    np.testing.assert_allclose(mean.detach(), found.mean, atol=1e-6)
    np.testing.assert_allclose(std.detach(), found.std, atol=1e-5)
    np.testing.assert_array_equal(predicted, found.predicted)
    np.testing.assert_array_equal(in_set, found.in_set)


@pytest.mark.long
def test_smooth_labels_are_a_hyperparameter(animals: Path) -> None:
    """One value trains as torch's own loss does, and a range is searched; ridge has none."""
    Path("smooth.py").write_text(
        "from torch.nn.functional import cross_entropy\n\n\ndef loss(outputs, targets):\n"
        "    return cross_entropy(outputs, targets, label_smoothing=0.2, reduction='none')\n"
    )
    own = OWN | {"search.method": "guide", "cv.candidates": 1}

    def score(key: str, value: object) -> list[float | None]:
        folder = f"run-{key}-{value}".replace(":", "-")
        summary = cross_validate(load_config("toy.yaml", own | {key: value}), folder, inline=True)
        return [summary.strategies[name].score_mean for name in ("top", "closed")]

    found, plain = score("strategies.top.label_smoothing", 0.2), score("training.loss", "smooth:loss")
    assert found[0] == pytest.approx(plain[0], rel=1e-5)
    of_all = prepare(load_config("toy.yaml", own | {"training.label_smoothing": 0.2})).first_round
    assert {getattr(spec.stages[-1], "label_smoothing", None) for spec in of_all} == {0.2, None}
    ranged = load_config("toy.yaml", own | {"strategies.top.label_smoothing": [0.1, 0.3], "cv.candidates": 3})
    drawn = [spec.stages[-1].label_smoothing for spec in prepare(ranged).first_round if spec.strategy == "top"]
    assert len(set(drawn)) == 3
    assert all(0.1 <= share <= 0.3 for share in drawn)


def check_folds(labels: np.ndarray) -> None:
    """Each fold has its share of each class, or one more or less."""
    splits = prepare(load_config("toy.yaml", OWN)).problem.splits
    for name in np.unique(labels):
        counts = [(labels[splits.held_out(0, k)] == name).sum() for k in range(3)]
        assert max(counts) - min(counts) <= 1


def test_several_labels_a_sample_go_all_the_way(toy_folder: Path) -> None:
    np.save("y.npy", np.load("y.npy") > 0)
    own = {
        "cv.metric": "multilabel_log_loss",
        "cv.strategies": ["top"],
        "cv.candidates": 1,
        "data.classes": ["a", "b", "c"],
    }
    summary = cross_validate(load_config("toy.yaml", own), "run", inline=True)
    assert summary.classes == ("a", "b", "c")
    ensemble, x, y = Ensemble.load("run"), np.load("x.npy"), np.load("y.npy")
    evaluation = evaluate_ensemble(ensemble, read_labelled(ensemble, None, "x.npy", "y.npy"))
    assert evaluation.accuracy == pytest.approx((ensemble.predict(x).predicted == y).mean())
    with pytest.raises(DataError, match="prediction sets, but multilabel_log_loss has none; leave --plot out"):
        write_calibration(evaluation, Path("plot.png"))
    assert write_report("run").exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cv.metric": "mse"}, "must be numbers, got text in y.npy; for classes"),
        ({"data.classes": ["cat", "dog"]}, "labels must be among cat, dog, got owl"),
        (
            {"data.classes": ["cat", "dog", "emu", "owl"], "model.new_head": False},
            "one logit a class, 4 in all, got the shape",
        ),
        (
            {"strategies.top.label_smoothing": 0.1, "training.loss": "shares:loss"},
            "smooth labels are those of cross-entropy",
        ),
        ({"model.factory": "shares:Shares"}, "must answer with logits, got probabilities"),
        ({"cv.metric": "mae", "training.class_weights": "balanced"}, "got text in y.npy"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict, said: str, animals: Path) -> None:
    Path("shares.py").write_text(
        "import torch\nfrom toy_network import Toy\n\n\nclass Shares(Toy):\n"
        "    def forward(self, x):\n        return super().forward(x).softmax(1)\n\n\n"
        "def loss(outputs, targets):\n    return (outputs - targets).square().mean(1)\n"
    )
    with pytest.raises((DataError, ConfigError), match=said):
        prepare(load_config("toy.yaml", OWN | values))


def test_numbers_of_classes_are_the_outputs_of_the_network(toy_folder: Path) -> None:
    """Where the samples lack one, it has its column all the same."""
    np.save("y.npy", np.where(np.load("y.npy")[:, 0] > 0, 2, 0))
    samples = prepare(load_config("toy.yaml", OWN)).problem.samples
    assert samples.classes == ("0", "1", "2")
    assert samples.targets.sum(0)[1] == 0


@pytest.mark.parametrize("squeezed", [False, True])
def test_one_output_is_enough_for_two_classes(squeezed: bool, toy_folder: Path) -> None:
    end = ".squeeze(-1)" if squeezed else ""
    Path("single.py").write_text(
        "from torch import nn\n\n\nclass Single(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.head = nn.Linear(6, 1)\n\n    def forward(self, x):\n"
        f"        return self.head(x){end}\n"
    )
    np.save("y.npy", np.load("y.npy")[:, 0] > 0)
    own = {"model.factory": "single:Single", "cv.strategies": ["whole", "closed"], "cv.candidates": 1}
    own |= {
        "strategies.whole": {"train": ["*"], "lr": 0.1, "epochs": 6},
        "strategies.closed": {"fit": "ridge", "train": ["*"]},
    }
    summary = cross_validate(load_config("toy.yaml", OWN | own), "run", inline=True)
    assert summary.strategies["closed"].score_mean < np.log(2)
    found = Ensemble.load("run").predict(np.load("x.npy"))
    np.testing.assert_allclose(found.mean.sum(1), 1, atol=1e-5)
