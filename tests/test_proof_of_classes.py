"""Two data sets of scikit-learn, from Python: the table is that of a plain loop, and sets hold what they promise.

Small networks are pretrained here, on other samples that another device might have measured, and tuned on 100.
"""

import math
import zlib
from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, roc_auc_score
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from torch import nn
from torch.nn import functional

import ray_ft
from ray_ft.data.folds import Deals
from ray_ft.fitting.kernel_descent import PENALTIES
from ray_ft.python.objects import CrossValidation
from ray_ft.statistics.comparison import compare_all

N, N_FOLDS, N_SEEDS = 100, 5, 2
RECIPE = {"lr": 0.03, "epochs": 6, "batch_size": 8, "weight_decay": 0.02}
STRATEGIES = {
    "head": {"train": ["head.*"], **RECIPE},
    "all": {"train": ["*"], **RECIPE, "lr": 0.01},
    "ridge": {"fit": "ridge", "train": ["head.*"]},
    "logistic": {"fit": "ridge", "train": ["head.*"], "onto": "targets"},
}
OPTIONS = {"search.method": "guide", "search.candidates": 1, "compute.packing": "looped"}
pytestmark = pytest.mark.slow


class Small(nn.Module):
    def __init__(self, n_inputs: int, width: int, n_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(n_inputs, width), nn.Tanh())
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class Case(NamedTuple):
    network: nn.Module  # pretrained
    x: np.ndarray  # of samples that it never saw
    y: np.ndarray


def build_digits() -> Case:
    """Pretrained on 1,000 images that stand a pixel aside and a row higher."""
    images, y = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16
    aside = np.roll(images[:1000], (1, 1), (1, 2))
    x = images.reshape(len(images), -1).astype(np.float32)
    return Case(pretrain(Small(64, 16, 10), aside.reshape(1000, -1), y[:1000]), x[1000:], y[1000:])


def build_cancer() -> Case:
    """Pretrained on 300 patients in other units."""
    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x[:300].mean(0)) / x[:300].std(0)
    return Case(pretrain(Small(30, 8, 2), 0.5 * x[:300] + 0.3, y[:300]), x[300:].astype(np.float32), y[300:])


def pretrain(network: nn.Module, x: np.ndarray, y: np.ndarray, n_steps: int = 40) -> nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    inputs, labels = torch.from_numpy(x).float(), torch.from_numpy(y)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(n_steps):
        optimizer.zero_grad()
        functional.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
    return network


def deal(y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    folds = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=0)
    return list(folds.split(y, y, np.arange(len(y))))


def train_plainly(case: Case, name: str, fold: int, seed: int, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Train a member as one would in a script; return probabilities of held-out samples after each epoch from 0."""
    recipe, network = STRATEGIES[name], deepcopy(case.network)
    own: Any = list((network.head if name == "head" else network).parameters())
    optimizer = torch.optim.AdamW(own, lr=recipe["lr"], weight_decay=recipe["weight_decay"])
    x, y = torch.from_numpy(case.x), torch.from_numpy(case.y)
    n_batches, step, epochs = math.ceil(len(train) / recipe["batch_size"]), 0, []
    for epoch in range(recipe["epochs"] + 1):
        with torch.no_grad():
            epochs.append(network(x[test]).softmax(1).numpy())
        rng = np.random.default_rng([0, zlib.crc32(f"{name}-000".encode()), 0, fold, seed, epoch])
        rng.integers(2**62)  # for dropout, of which there is none
        order = torch.from_numpy(rng.permutation(train))
        for batch in order.split(recipe["batch_size"]) if epoch < recipe["epochs"] else ():
            lr = recipe["lr"] * 0.5 * (1 + math.cos(math.pi * step / (n_batches * recipe["epochs"])))
            optimizer.param_groups[0]["lr"], step = lr, step + 1
            optimizer.zero_grad()
            functional.cross_entropy(network(x[batch]), y[batch]).backward()
            nn.utils.clip_grad_norm_(own, 1.0)
            optimizer.step()
    return np.stack(epochs)


def score_plainly(case: Case, name: str) -> dict[str, float]:
    """Stop each fold where the others say, then measure by scikit-learn what each seed says of all samples."""
    folds, n_epochs = deal(case.y), STRATEGIES[name]["epochs"] + 1
    chances = np.empty((n_epochs, N_SEEDS, len(case.y), case.y.max() + 1))
    for k, (train, test) in enumerate(folds):
        for seed in range(N_SEEDS):
            chances[:, seed, test] = train_plainly(case, name, k, seed, train, test)
    losses = -np.log(chances[..., np.arange(len(case.y)), case.y]).mean(1)
    stopped = np.empty(chances.shape[1:])
    for _, test in folds:
        others = np.setdiff1d(np.arange(len(case.y)), test)
        stopped[:, test] = chances[losses[:, others].mean(1).argmin()][:, test]
    return average([measure(case.y, own) for own in stopped])


def measure(y: np.ndarray, chances: np.ndarray) -> dict[str, float]:
    chances, predicted = chances / chances.sum(1, keepdims=True), chances.argmax(1)
    several = {"multi_class": "ovr"} if chances.shape[1] > 2 else {}
    return {
        "log_loss": log_loss(y, chances),
        "accuracy": accuracy_score(y, predicted),
        "balanced_accuracy": balanced_accuracy_score(y, predicted),
        "auroc": roc_auc_score(y, chances if several else chances[:, 1], **several),
    }


def average(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([own[name] for own in found])) for name in found[0]}


def compute_features(case: Case) -> np.ndarray:
    with torch.no_grad():
        return case.network.body(torch.from_numpy(case.x)).double().numpy()


def fit_logistic(rows: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Logistic regression of scikit-learn, whose penalty is the one that is best on groups that are left out."""
    centred = rows[train] - rows[train].mean(0)
    units = PENALTIES * np.square(centred).sum() / len(train)
    parts = list(GroupKFold(5).split(train, groups=train))

    def fit(own: np.ndarray, unit: float) -> LogisticRegression:
        return LogisticRegression(C=1 / unit, tol=1e-8, solver="newton-cholesky").fit(rows[own], y[own])

    def leave_out(unit: float) -> float:
        fitted = [(fit(train[own], unit), train[left]) for own, left in parts]
        return sum(len(left) * log_loss(y[left], m.predict_proba(rows[left]), labels=m.classes_) for m, left in fitted)

    errors: list[float] = []
    for unit in units:  # from stiff to soft, until two are no better
        errors.append(leave_out(unit))
        if len(errors) - 1 - np.argmin(errors) == 2:
            break
    return fit(train, units[np.argmin(errors)]).predict_proba(rows[test])


def choose_itself(rows: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The same, with penalties and inner folds of scikit-learn's own."""
    model = LogisticRegressionCV(
        Cs=np.logspace(-2, 2, 5), cv=3, l1_ratios=(0.0,), scoring="neg_log_loss", solver="newton-cholesky",
        use_legacy_attributes=False,
    )  # fmt: skip
    return model.fit(rows[train], y[train]).predict_proba(rows[test])


def predict_folds(case: Case, predict: Callable[..., np.ndarray]) -> np.ndarray:
    rows, found = compute_features(case), np.empty((len(case.y), case.y.max() + 1))
    for train, test in deal(case.y):
        found[test] = predict(rows, case.y, train, test)
    return found


@pytest.fixture(scope="module", params=[build_digits, build_cancer])
def case(request: pytest.FixtureRequest) -> Case:
    torch.set_num_threads(1)
    whole = request.param()
    return Case(whole.network, whole.x[:N], whole.y[:N])


@pytest.fixture(scope="module")
def found(case: Case) -> CrossValidation:
    return ray_ft.cross_validate(
        case.network, (case.x, case.y), strategies=STRATEGIES, folds=N_FOLDS, seeds=N_SEEDS,
        objective="classification", options=OPTIONS, inline=True, progress=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["head", "all"])
def test_the_table_of_what_is_trained_is_that_of_a_plain_loop(case: Case, found: Any, name: str) -> None:
    expected, row = score_plainly(case, name), found.table.loc[name]
    assert row["score_mean"] == pytest.approx(expected.pop("log_loss"), abs=1e-5)
    assert {key: row[key] for key in expected} == pytest.approx(expected, abs=1e-5)
    assert np.max(found.summary.strategies[name].stop_epochs) > 0


def test_the_twin_of_ridge_is_the_logistic_regression_of_scikit_learn(case: Case, found: Any) -> None:
    """To what its descent leaves: it stops where a step changes the loss by 1e-7; scikit-learn's goes on to the end."""
    expected, row = measure(case.y, predict_folds(case, fit_logistic)), found.table.loc["logistic"]
    assert row["score_mean"] == pytest.approx(expected.pop("log_loss"), abs=1e-3)
    assert {key: row[key] for key in expected} == pytest.approx(expected, abs=0.011), "a sample, at most"


def test_the_interval_about_ridge_holds_what_scikit_learn_chooses_by_itself(case: Case, found: Any) -> None:
    chances = predict_folds(case, choose_itself)
    losses = -np.log(chances[np.arange(N), case.y])
    scores = np.array([[losses[test].mean() for _, test in deal(case.y)]])
    for name in ("ridge", "logistic"):
        own = {name: found.summary.strategies[name].fold_means, "peer": scores}
        deals = Deals.even(1, N_FOLDS)
        (pair,) = compare_all(own, found.summary.rope, found.summary.test_share, deals=deals)
        assert pair.interval[0] < 0 < pair.interval[1]


def test_prediction_sets_hold_the_true_class_as_often_as_they_say() -> None:
    """Over repeated splits of the digits; a set of every class would hold it always."""
    torch.set_num_threads(1)
    case, held, sizes = build_digits(), [], []
    longer = STRATEGIES["head"] | {"epochs": 20}
    for split in range(20):
        order = np.random.default_rng(split).permutation(len(case.y))
        own, fresh = order[:N], order[N:]
        result = ray_ft.cross_validate(
            case.network, (case.x[own], case.y[own]), strategies={"head": longer}, folds=N_FOLDS,
            seeds=1, objective="classification", options=OPTIONS, inline=True, progress=False,
        )  # fmt: skip
        sets = result.ensemble.predict(case.x[fresh]).in_set
        held.append(sets[np.arange(len(fresh)), case.y[fresh]].mean())
        sizes.append(sets.sum(1).mean())
    assert np.mean(held) == pytest.approx(0.9, abs=0.03)
    assert 1 <= np.mean(sizes) < 4
