"""A search as a competent user writes it by hand: Ray Tune with Optuna and ASHA, one split, one network a trial.

It is a peer of `benchmarks.versus`. A trial trains the last of the network's tensors, by a share of them that is
searched too, and reports its loss on the validation samples after each epoch; the best epoch of all predicts.
"""

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "RAY_USAGE_STATS_ENABLED": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}

import numpy as np
import ray
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from torch import Tensor, nn

from benchmarks.problems import Problem, load_problem

N_EPOCHS, MAX_TRIALS = 200, 1000
SPACE = {
    "share": CategoricalDistribution([0.0, 0.25, 0.5, 1.0]),
    "lr": FloatDistribution(1e-5, 1e-1, log=True),
    "weight_decay": FloatDistribution(1e-4, 1e-1, log=True),
    "batch_size": CategoricalDistribution([8, 16, 32]),
}


class Trial:
    """One network in training, validated by some of the samples; losses are in units of each target's own variance."""

    def __init__(self, problem: Problem, validation: list[int], params: dict[str, Any], n_epochs: int) -> None:
        torch.manual_seed(0)
        self.network = problem.build()
        tensors = list(self.network.parameters())
        self.learning = tensors[-max(2, round(params["share"] * len(tensors))) :]
        for tensor in tensors:
            tensor.requires_grad_(any(tensor is own for own in self.learning))
        is_training = np.ones(len(problem.train[1]), bool)
        is_training[validation] = False
        self.inputs, self.targets = self.take(problem, is_training)
        self.validation = self.take(problem, ~is_training)
        self.scale = self.targets.std(0)
        self.loss = nn.functional.l1_loss if problem.config.cv.metric == "mae" else nn.functional.mse_loss
        self.batch_size = params["batch_size"]
        self.optimizer = torch.optim.AdamW(self.learning, params["lr"], weight_decay=params["weight_decay"])
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, n_epochs)

    def take(self, problem: Problem, rows: np.ndarray) -> tuple[list[Tensor], Tensor]:
        inputs, targets = problem.train
        return [torch.from_numpy(part[rows]) for part in inputs], torch.from_numpy(targets[rows])

    def run_epoch(self) -> float:
        """Train for an epoch; return the loss on the validation samples."""
        self.network.train()
        for rows in torch.randperm(len(self.targets)).split(self.batch_size):
            said = self.network(*(part[rows] for part in self.inputs))
            self.optimizer.zero_grad()
            self.loss(said / self.scale, self.targets[rows] / self.scale).backward()
            nn.utils.clip_grad_norm_(self.learning, 1.0)
            self.optimizer.step()
        self.schedule.step()
        inputs, targets = self.validation
        return float(self.loss(self.predict(inputs) / self.scale, targets / self.scale))

    def predict(self, inputs: list[Tensor]) -> Tensor:
        self.network.eval()
        with torch.no_grad():
            answers: Tensor = self.network(*inputs)
        return answers


def train_one(
    problem: Problem, validation: list[int], params: dict[str, Any], n_epochs: int, patience: int
) -> tuple[float, np.ndarray]:
    """Train with early stopping; return the lowest loss, and what that epoch predicts of the fresh samples."""
    trial, fresh = Trial(problem, validation, params, n_epochs), [torch.from_numpy(part) for part in problem.test[0]]
    lowest, since, predicted = float("inf"), 0, trial.predict(fresh)
    for _ in range(n_epochs):
        loss, since = trial.run_epoch(), since + 1
        if loss < lowest:
            lowest, since, predicted = loss, 0, trial.predict(fresh)
        if since >= patience:
            break
    return lowest, predicted.numpy()


def train(params: dict[str, Any], name: str, validation: list[int]) -> None:
    """A trial of the search, which keeps its best weights beside its reports."""
    torch.set_num_threads(1)
    trial, lowest = Trial(load_problem(name), validation, params, N_EPOCHS), float("inf")
    for _ in range(N_EPOCHS):
        loss = float(np.nan_to_num(trial.run_epoch(), nan=np.inf))
        if loss >= lowest:
            tune.report({"loss": loss})
            continue
        lowest = loss
        with tempfile.TemporaryDirectory() as folder:
            torch.save(trial.network.state_dict(), Path(folder, "weights.pt"))
            tune.report({"loss": loss}, checkpoint=tune.Checkpoint.from_directory(folder))


def search(name: str, validation: list[int], seconds: float) -> np.ndarray:
    """Search for some seconds on two CPUs; return what the best epoch of all predicts of the fresh samples."""
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False,
        logging_level=logging.ERROR,
    )  # fmt: skip
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            tuner = tune.Tuner(
                tune.with_resources(tune.with_parameters(train, name=name, validation=validation), {"CPU": 1}),
                tune_config=tune.TuneConfig(
                    search_alg=OptunaSearch(SPACE, metric="loss", mode="min", seed=0),
                    scheduler=ASHAScheduler(metric="loss", mode="min", max_t=N_EPOCHS, grace_period=5),
                    num_samples=MAX_TRIALS, max_concurrent_trials=2, time_budget_s=seconds, reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    storage_path=folder, verbose=0,
                    checkpoint_config=tune.CheckpointConfig(1, "loss", "min"),
                ),
            )  # fmt: skip
            found = tuner.fit()
            best = found.get_best_result("loss", "min", scope="all")
            checkpoint = best.get_best_checkpoint("loss", "min")
            problem = load_problem(name)
            network = problem.build()
            network.load_state_dict(torch.load(Path(checkpoint.path, "weights.pt"), weights_only=True))
    finally:
        ray.shutdown()
    network.eval()
    with torch.no_grad():
        return network(*map(torch.from_numpy, problem.test[0])).numpy()
