"""What people would pick instead, on the same samples: `python -m benchmarks.versus` (minutes a problem).

The problems are those of `benchmarks.problems`; each method has the same 100 samples and is judged by the fresh ones.
`ray-ft` is read from `benchmarks.fresh`, which comes first: the ensemble that the run builds by itself.

- ridge, kernel ridge, gradient boosting, Gaussian process: scikit-learn on what the network's last layer reads and on
  its answers, fitted to what a linear calibration of the answers leaves; hyperparameters by 5-fold cross-validation,
  of ridge by leaving one out, of the process by its likelihood.
- AutoGluon: its tabular models on the same, in a minute; where it is installed.
- ray tune: written by hand, with OptunaSearch and ASHAScheduler, one split into 80 and 20, in as many seconds as a run
  of ray-ft took on one core, on two. It searches how many of the last tensors learn, learning rate, weight decay and
  batch size; the best epoch of all by the 20 samples predicts.
- one split: the last layer at a learning rate of 1e-3, the later half at 3e-4 and everything at 1e-4, AdamW, up to 300
  epochs with early stopping by the same 20 samples; the best of the three predicts.
- deeplc: what the package of the peptides' network does itself, by calibration and by fine-tuning.

Rows are added to `benchmarks/results/versus.csv`; a problem and method that it has are not run again.
"""

import argparse
import csv
import importlib.util
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from benchmarks.fresh import ENSEMBLE, read_rows
from benchmarks.hand_written_search import search, train_one
from benchmarks.problems import NAMES, Problem, Samples, choose, load_problem
from ray_ft.cross_validation import prepare

RESULTS = Path(__file__).parent / "results" / "versus.csv"
COLUMNS = ("problem", "method", "fresh", "fresh_se", "seconds")
OURS = "ray-ft"
RECIPES = {"last layer": (0.0, 1e-3), "later half": (0.5, 3e-4), "everything": (1.0, 1e-4)}
N_VALIDATED = 20
Method = Callable[[Problem, float], np.ndarray]  # of a problem and the seconds of ray-ft, what it predicts


def read_features(network: nn.Module, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """What the last linear layer reads, by sample, and the network's answers, both (n, ...)."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        answers = network(*map(torch.from_numpy, samples[0]))
    handle.remove()
    return seen[0].flatten(1).numpy(), answers.reshape(len(answers), -1).numpy()


def fit_features(estimator: BaseEstimator) -> Method:
    """Make a method of an estimator: it is fitted to what a linear calibration of the answers leaves."""

    def predict(problem: Problem, _: float) -> np.ndarray:
        network = problem.build().eval()
        features, answers = read_features(network, problem.train)
        targets = problem.train[1].reshape(len(answers), -1)
        new_features, new_answers = read_features(network, problem.test)
        calibrated, predicted = [], []
        for column in range(targets.shape[1]):
            linear = LinearRegression().fit(answers[:, [column]], targets[:, column])
            calibrated.append(linear.predict(new_answers[:, [column]]))
            predicted.append(targets[:, column] - linear.predict(answers[:, [column]]))
        left = np.stack(predicted, 1)
        spread = left.std(0)
        estimator.fit(np.hstack([features, answers]), left / spread)
        found = estimator.predict(np.hstack([new_features, new_answers])).reshape(len(new_answers), -1)
        return (np.stack(calibrated, 1) + spread * found).reshape(problem.test[1].shape)

    return predict


def build_estimators() -> dict[str, BaseEstimator]:
    grid = {"kernelridge__alpha": np.logspace(-4, 2, 7), "kernelridge__gamma": np.logspace(-4, 0, 5)}
    kernel = KernelRidge(kernel="rbf")
    boosting = GradientBoostingRegressor(subsample=0.7, random_state=0)
    depths = {"max_depth": [1, 2, 3], "n_estimators": [30, 100, 300], "learning_rate": [0.03, 0.1]}
    process = ConstantKernel() * RBF(10.0) + WhiteKernel(0.1)
    return {
        "ridge": make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 5, 25))),
        "kernel ridge": GridSearchCV(make_pipeline(StandardScaler(), kernel), grid, cv=5),
        "gradient boosting": MultiOutputRegressor(GridSearchCV(boosting, depths, cv=5)),
        "gaussian process": make_pipeline(
            StandardScaler(), MultiOutputRegressor(GaussianProcessRegressor(process, n_restarts_optimizer=2))
        ),
    }  # fmt: skip


class AutoGluon(BaseEstimator):
    """AutoGluon's tabular predictor for each target by itself, a minute for all of them."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> "AutoGluon":
        import pandas as pd
        from autogluon.tabular import TabularPredictor

        self.predictors_ = []
        for column in y.T:
            table = pd.DataFrame(x).assign(target=column)
            predictor = TabularPredictor("target", path=tempfile.mkdtemp(), problem_type="regression", verbosity=0)
            self.predictors_.append(predictor.fit(table, time_limit=60 / y.shape[1], num_cpus=2))
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        import pandas as pd

        return np.stack([own.predict(pd.DataFrame(x)).to_numpy() for own in self.predictors_], 1)


def tune_by_hand(problem: Problem, seconds: float) -> np.ndarray:
    """A search by Ray Tune as it is written by hand."""
    return search(problem.name, draw_validation(problem), seconds)


def split_once(problem: Problem, _: float) -> np.ndarray:
    """The best of three recipes by one split with early stopping."""
    validation = draw_validation(problem)
    found = [
        train_one(problem, validation, {"share": share, "lr": lr, "weight_decay": 0.01, "batch_size": 16}, 300, 30)
        for share, lr in RECIPES.values()
    ]
    return min(found, key=lambda own: own[0])[1]


def draw_validation(problem: Problem) -> list[int]:
    rng = np.random.default_rng(0)
    return [int(row) for row in rng.permutation(len(problem.train[1]))[:N_VALIDATED]]


def list_methods(problem: Problem) -> dict[str, Method]:
    methods = {name: fit_features(estimator) for name, estimator in build_estimators().items()}
    methods |= {"ray tune": tune_by_hand, "one split": split_once}
    if importlib.util.find_spec("autogluon"):
        methods["autogluon"] = fit_features(AutoGluon())
    if problem.name.startswith("peptides"):
        from examples.peptides.package import calibrate, finetune

        seed = int(problem.name.rpartition("_")[2])
        methods |= {"deeplc calibrated": lambda *_: calibrate(seed), "deeplc fine-tuned": lambda *_: finetune(seed)}
    return methods


def compare(name: str, done: set[tuple[str, str]], asked: set[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each method that is not done, beside the error of ray-ft on the same samples."""
    problem = load_problem(name)
    objective = prepare(problem.config).problem.objective
    ours = {row["strategy"]: row for row in read_rows() if row["problem"] == name}[ENSEMBLE]
    seconds = float(ours["seconds"])
    if (name, OURS) not in done:
        yield {
            "problem": name,
            "method": OURS,
            "fresh": ours["fresh"],
            "fresh_se": ours["fresh_se"],
            "seconds": seconds,
        }
    for method, predict in list_methods(problem).items():
        if (name, method) in done or (asked and method not in asked):
            continue
        started = time.monotonic()
        try:
            predicted = predict(problem, seconds)
        except RuntimeError as error:  # of Ray Tune, where no trial has reported within the time
            print(f"{name}, {method}: {error}", flush=True)
            continue
        losses = objective.score(predicted, problem.test[1])
        error = losses.std(ddof=1) / len(losses) ** 0.5
        row = {
            "fresh": f"{losses.mean():.5g}",
            "fresh_se": f"{error:.3g}",
            "seconds": f"{time.monotonic() - started:.0f}",
        }
        yield {"problem": name, "method": method} | row


def print_table(rows: list[dict[str, str]]) -> None:
    """Print, as Markdown, the error of each method in multiples of that of ray-ft, and the seconds."""
    methods = list(dict.fromkeys([OURS, *(row["method"] for row in rows)]))
    problems = sorted({row["problem"] for row in rows}, key=NAMES.index)
    found = {(row["problem"], row["method"]): row for row in rows}
    print(f"| method | {' | '.join(problems)} | geometric mean | seconds |\n|---|{'---|' * (len(problems) + 2)}")
    for method in methods:
        own = [found.get((problem, method)) for problem in problems]
        ratios = [
            float(row["fresh"]) / float(found[problem, OURS]["fresh"]) if row else np.nan
            for problem, row in zip(problems, own, strict=True)
        ]
        told = ["" if np.isnan(ratio) else f"{ratio:.2f}" for ratio in ratios]
        spent = np.median([float(row["seconds"]) for row in own if row])
        mean = "" if np.isnan(ratios).any() else f"{np.exp(np.mean(np.log(ratios))):.2f}"
        print(f"| {method} | {' | '.join(told)} | {mean} | {spent:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", default="", help="comma-separated; all where left out")
    parser.add_argument("--methods", default="", help="comma-separated; all where left out")
    parser.add_argument("--list", action="store_true", help="print what the table of results has; run nothing")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # of searches that end at an edge of their grid
    asked = set(filter(None, options.methods.split(",")))
    for name in [] if options.list else choose(options.problems):
        done = {(row["problem"], row["method"]) for row in read_rows(RESULTS)}
        for row in compare(name, done, asked):
            is_new = not RESULTS.exists()
            with RESULTS.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
                if is_new:
                    writer.writeheader()
                writer.writerow(row)
            print(*row.values(), flush=True)
    print_table(read_rows(RESULTS))


if __name__ == "__main__":
    main()
