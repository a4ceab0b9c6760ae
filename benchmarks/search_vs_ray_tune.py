"""The search against Ray Tune as it is written by hand: `python -m benchmarks.search_vs_ray_tune [STRATEGY]`.

The peer is what a competent user writes: a trial is a point of the same space, trained on all folds and seeds, which
reports the mean over them after each epoch; `OptunaSearch` proposes, `ASHAScheduler` stops. Its steps and its features,
which are computed once for all trials, are ours, so that the search alone differs. Both have two CPUs, one a trial, and
the embedded demo. The target is within 5 % of the lowest mean of the sweep of `benchmarks.regret`; the time is that
until a trial, or a candidate, first reports it, from the start of Ray on. The peer's chance is drawn `--times` times.
"""

import argparse
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from benchmarks.regret import CPU, RATES, sweep
from ray_ft.config import load_config
from ray_ft.cross_validation import Prepared, cross_validate, prepare
from ray_ft.errors import DivergedError
from ray_ft.fitting.fitter import FitSettings
from ray_ft.fitting.gradient import GradientFitter
from ray_ft.fitting.preparation import PreparedStrategy, prepare_strategy
from ray_ft.fitting.range_test import measure_work
from ray_ft.runs.journal import read_log
from ray_ft.search.best import BestProposer
from ray_ft.search.proposer import build_hyperparameters

N_TRIALS = 60


def list_space(proposer: BestProposer, lengths: list[int]) -> dict[str, Any]:
    """The space of the search: its learning rates, its lengths, and what Optuna varies."""
    space: dict[str, Any] = {
        "lr": FloatDistribution(float(RATES[0]), float(RATES[-1]), log=True),
        "epochs": CategoricalDistribution(lengths),
    }
    for name, kind in (("batch_size", int), ("weight_decay", float), ("head_dropout", float)):
        low, high = proposer.stage.space(name) or (0, 0)
        if low < high:
            space[name] = IntDistribution(low, high) if kind is int else FloatDistribution(low, high)
    return space


def train_point(
    params: dict[str, Any], strategy: str, values: dict[str, Any], problem: Any, shared: PreparedStrategy
) -> None:
    """A trial of the peer."""
    torch.set_num_threads(1)
    stage = load_config(None, values).selected[strategy].stages[-1]
    base = {"noise_std": 0.0, "warmup_epochs": 0, "patience": 10**6, "head_dropout": 0.0}
    hyper: Any = build_hyperparameters(stage, base | params)
    fitter = GradientFitter(problem, shared, strategy, hyper, problem.keys, FitSettings(packing="looped"), CPU)
    targets, watched = problem.samples.targets, problem.splits.watched
    for epoch in range(hyper.epochs):
        try:
            fitter.run_epoch(epoch)
        except DivergedError:
            tune.report({"mean": float("inf"), "epoch": epoch + 1})
            return
        predicted = fitter.predict().items()
        means = [problem.objective.score(own, targets[watched(*key.place)]).mean() for key, own in predicted]
        tune.report({"mean": float(np.nan_to_num(np.mean(means), nan=np.inf)), "epoch": epoch + 1})


class UntilReached(tune.Stopper):
    """Ends all when one has reached the target, and notes when."""

    def __init__(self, target: float) -> None:
        self.target, self.reached = target, 0.0

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if result["mean"] <= self.target and not self.reached:
            self.reached = time.monotonic()
        return bool(self.reached)

    def stop_all(self) -> bool:
        return bool(self.reached)


def time_peer(prepared: Prepared, strategy: str, lengths: list[int], target: float, seed: int) -> tuple[float, int]:
    """Seconds until the target is reached, infinite if it is not, and how many trials were begun."""
    values = {"cv.strategies": [strategy]}
    proposer = BestProposer(strategy, prepared.config.selected[strategy], 1, 0, 0.01)
    started, stopper = time.monotonic(), UntilReached(target)
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    try:
        given = prepared.problem, prepared.pretrained, prepared.strategies[strategy]
        shared = prepare_strategy(*given, "float32", CPU)
        trainable = tune.with_parameters(
            train_point, strategy=strategy, values=values, problem=prepared.problem, shared=shared
        )
        searcher = OptunaSearch(list_space(proposer, lengths), metric="mean", mode="min", seed=seed)
        halving = ASHAScheduler("epoch", "mean", "min", max_t=max(lengths) + 1, grace_period=1, reduction_factor=2)
        with tempfile.TemporaryDirectory() as folder:
            grid = tune.Tuner(
                tune.with_resources(trainable, {"CPU": 1}),
                tune_config=tune.TuneConfig(
                    search_alg=searcher, scheduler=halving, num_samples=N_TRIALS, max_concurrent_trials=2,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(storage_path=folder, verbose=0, stop=stopper),
            ).fit()  # fmt: skip
        return (stopper.reached - started if stopper.reached else float("inf")), len(grid)
    finally:
        ray.shutdown()


def time_ours(strategy: str, target: float) -> float:
    """Seconds until a candidate of the search reports the target; infinite if none does."""
    config = load_config(None, {"cv.strategies": [strategy], "training.precision": "float32"})
    with tempfile.TemporaryDirectory() as folder:
        started = time.time()
        cross_validate(config, f"{folder}/run")
        events = list(read_log(Path(folder, "run/log.jsonl")))
    reached = [event["time"] for event in events if event["event"] == "epoch" and event["loss"] <= target]
    return datetime.fromisoformat(min(reached)).timestamp() - started if reached else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("strategy", nargs="?", default="head")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--best", type=float, help="lowest mean of the sweep, where it is known")
    options = parser.parse_args()
    prepared = prepare(load_config(None, {"cv.strategies": [options.strategy]}))
    strategy = prepared.strategies[options.strategy]
    proposer = BestProposer(options.strategy, prepared.config.selected[options.strategy], 1, 0, 0.01)
    shared = prepare_strategy(prepared.problem, prepared.pretrained, strategy, "float32", CPU)
    proposer.tell_range(1e-3, measure_work(prepared.problem, shared))
    lengths = [proposer.n_epochs // 2, proposer.n_epochs, 2 * proposer.n_epochs]
    best = options.best or min(row["lowest"] for row in sweep("demo", options.strategy, lengths))
    target = 1.05 * best
    print(f"{options.strategy}: within 5 % of {best:.4g}", flush=True)
    ours = time_ours(options.strategy, target)
    print(f"  ray_ft: {ours:.0f} s", flush=True)
    for seed in range(options.times):
        seconds, n_trials = time_peer(prepared, options.strategy, lengths, target, seed)
        print(f"  Ray Tune: {seconds:.0f} s, {n_trials} trials; {ours / seconds:.2f} of it", flush=True)


if __name__ == "__main__":
    main()
