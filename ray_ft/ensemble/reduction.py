"""From a run's members to an ensemble: weights of the members, calibration of its intervals, files."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from ray_ft.config import EnsembleSection
from ray_ft.ensemble.artefact import FORMAT, VERSION, Card, MemberCard, write_card, write_files
from ray_ft.ensemble.model import Calibration, Ensemble, flatten_features
from ray_ft.ensemble.weights import METHODS, blend, choose_weights, score_folds
from ray_ft.errors import EnsembleError
from ray_ft.fitting.task import Task
from ray_ft.objectives import find_objective
from ray_ft.results.records import load_members, load_predictions
from ray_ft.results.summary import EnsembleSummary
from ray_ft.runs.folder import write_arrays
from ray_ft.runs.provenance import describe_environment, hash_arrays, hash_tensors
from ray_ft.search.plan import list_members, name_candidate
from ray_ft.split.shared import SharedNetwork, WholeNetwork, share_backbone
from ray_ft.statistics.comparison import Comparison, compare_all
from ray_ft.statistics.novelty import Density, fit_density
from ray_ft.statistics.scores import StrategyScore

__all__ = ["reduce_members"]

TOLERATED = 0.02  # of the largest prediction; members that train in bf16 differ by up to a hundredth
Columns = Float[np.ndarray, "column repeat sample *target"]  # one a strategy and seed


def reduce_members(
    task: Task,
    scores: Mapping[str, StrategyScore | None],
    winner: str,
    zero_shot: Float[np.ndarray, "sample *target"],
) -> EnsembleSummary:
    """Build the ensemble of a run: for each strategy and fold, the members of the candidate chosen on the other folds.

    What the blind members say of each sample, mean and standard deviation, goes to the run's `blind.npz`, beside the
    truth and what the pretrained network says.

    Args:
        task: What the candidates shared; `task.config.ensemble` says how to build it.
        scores: By strategy.
        winner: Whose members are taken where the config names no strategies.
        zero_shot: Predictions of the pretrained network.

    Raises:
        EnsembleError: A strategy that the config names has no completed candidate.
    """
    choice, cv, targets = task.config.ensemble, task.config.cv, task.dataset.targets
    objective = find_objective(cv.metric)
    chosen = choose_strategies(choice, scores, winner)
    columns = np.concatenate([gather_columns(task, name, score) for name, score in chosen.items()])
    weights = {name: choose_weights(name, columns, targets, task.splits, objective) for name in METHODS}
    blind = {method: blend(columns, own, task.splits) for method, own in weights.items()}
    members = {name: stack_members(task, name, score) for name, score in chosen.items()}
    network = share_backbone(task.build_network(), {name: list(own) for name, own in members.items()}, example(task))
    card = fill_card(task, chosen, weights, getattr(network, "reason", ""))
    ensemble = Ensemble(card, network, members, calibrate(task, network, next(iter(chosen))))
    notes = find_differences(blind["uniform"], predict_blind(task, ensemble)["uniform"])
    symmetric = predict_blind(task, ensemble, symmetric=True) if task.config.symmetry else {}
    used = symmetric if choice.symmetric else blind
    comparisons = compare_methods(used, task)
    method = choose_method(choice.method, comparisons)
    ensemble = settle(task, ensemble, used).use_method(method)
    soup_score = score_soup(task, ensemble) if cv.seeds > 1 else None
    ensemble = save(task, replace(ensemble, card=ensemble.card.model_copy(update={"soup_score": soup_score})))
    spread = measure_blind_spread(columns, weights[method], task)
    write_arrays(task.run.blind, mean=used[method].mean(0), std=spread, targets=targets, zero_shot=zero_shot)
    return EnsembleSummary(
        score=ensemble.card.score,
        n_members=len(card.members),
        n_blind=card.n_blind,
        path=f"{task.run.place.rstrip('/')}/{task.run.ensemble.root.name}",
        strategies=tuple(chosen),
        method=method,
        scores=ensemble.card.scores,
        by_strategy=score_by_strategy(columns, list(chosen), task),
        comparisons=comparisons,
        symmetric_score=score_blind(symmetric[method], task) if symmetric else None,
        soup_score=soup_score,
        notes=notes,
    )


def find_differences(
    told: Float[np.ndarray, "repeat sample *target"], found: Float[np.ndarray, "repeat sample *target"]
) -> tuple[str, ...]:
    """Note where the ensemble does not say what its members said in training."""
    gap, scale = float(np.abs(told - found).max()), float(np.abs(told).max())
    if gap <= TOLERATED * scale:
        return ()
    return (
        f"the ensemble differs from its members as they were trained by up to {gap:.2g}, of {scale:.2g}: does the "
        "network hold tensors that its state dict lacks, or draw some when it is built?",
    )


def measure_blind_spread(
    columns: Columns, weights: Float[np.ndarray, "repeat fold column"], task: Task
) -> Float[np.ndarray, "sample *target"]:
    """Weighted standard deviation of the members that never saw a sample, before any averaging over the symmetry."""
    first, second = (blend(power, weights, task.splits).mean(0) for power in (columns, columns**2))
    spread: np.ndarray = np.sqrt(np.maximum(second - first**2, 0.0))
    return spread


def choose_strategies(
    choice: EnsembleSection, scores: Mapping[str, StrategyScore | None], winner: str
) -> dict[str, StrategyScore]:
    chosen = {}
    for name in choice.strategies or (winner,):
        score = scores[name]
        if score is None:
            raise EnsembleError(
                f"a strategy in an ensemble must have a completed candidate, got {name} without one; leave it out of "
                "ensemble.strategies"
            )
        chosen[name] = score
    return chosen


def example(task: Task) -> Tensor:
    return torch.from_numpy(task.dataset.inputs[:4])


def gather_columns(task: Task, strategy: str, score: StrategyScore) -> Columns:
    """Collect what the members say of each sample that never saw it: a column a seed."""
    predictions = {
        index: load_predictions(task.run, name_candidate(strategy, int(index))) for index in np.unique(score.candidate)
    }
    shape = next(iter(predictions.values())).shape[2:]
    columns = np.empty((task.config.cv.seeds, len(score.candidate), *shape))
    for repeat, fold in np.ndindex(score.candidate.shape):
        held_out = task.splits.held_out(repeat, fold)
        columns[:, repeat, held_out] = predictions[score.candidate[repeat, fold]][repeat][:, held_out]
    return columns


def score_blind(blind: Float[np.ndarray, "repeat sample *target"], task: Task) -> float:
    """Mean loss of the mean over repeats."""
    return float(find_objective(task.config.cv.metric).score(blind.mean(0), task.dataset.targets).mean())


def compare_methods(
    blended: Mapping[str, Float[np.ndarray, "repeat sample *target"]], task: Task
) -> tuple[Comparison, ...]:
    """Compare each method with the uniform one, by fold models on their held-out folds."""
    cv, objective = task.config.cv, find_objective(task.config.cv.metric)
    scores = {name: score_folds(own, task.dataset.targets, task.splits, objective) for name, own in blended.items()}
    pairs = [(name, "uniform") for name in scores if name != "uniform"]
    return compare_all(scores, cv.rope, task.splits.test_share, pairs)


def choose_method(asked: str, comparisons: Sequence[Comparison]) -> str:
    """Take the uniform ensemble unless another is asked for, or is better beyond noise."""
    better = [pair for pair in comparisons if pair.verdict == "better" and pair.first != "single"]
    best = min(better, key=lambda pair: pair.difference).first if better else "uniform"
    return best if asked == "auto" else asked


def stack_members(task: Task, strategy: str, score: StrategyScore) -> dict[str, Float[Tensor, "member ..."]]:
    keys = list_members(task.config.cv.repeats, task.config.cv.folds, task.config.cv.seeds)
    chosen = [name_candidate(strategy, int(score.candidate[key.repeat, key.fold])) for key in keys]
    stacks = {name: load_members(task.run, name) for name in set(chosen)}
    return {
        tensor: torch.stack([stacks[name][tensor][i] for i, name in enumerate(chosen)]) for tensor in stacks[chosen[0]]
    }


def calibrate(task: Task, network: SharedNetwork | WholeNetwork, strategy: str) -> Calibration:
    """Keep the density of the features, and who held out whom; residuals follow."""
    parts = torch.split(torch.from_numpy(task.dataset.inputs), 32)
    with torch.no_grad():
        features = [flatten_features(network, strategy, network.compute_features(part)) for part in parts]
    density = fit_density(np.concatenate(features), task.dataset.groups)
    return Calibration({}, np.array(task.splits.fold_of), density)


def settle(task: Task, ensemble: Ensemble, blind: Mapping[str, Float[np.ndarray, "repeat sample *target"]]) -> Ensemble:
    """Fill in what the blind predictions by each method say: residuals and scores."""
    targets = task.dataset.targets
    answers = ensemble.objective.answers
    residuals = {method: answers.measure_residuals(own.mean(0), targets) for method, own in blind.items()}
    losses = {method: score_blind(own, task) for method, own in blind.items()}
    card = ensemble.card.model_copy(update={"scores": losses, "score": losses[ensemble.card.method]})
    return replace(ensemble, card=card, calibration=replace(ensemble.calibration, residuals=residuals))


def fill_card(
    task: Task,
    chosen: Mapping[str, StrategyScore],
    weights: Mapping[str, Float[np.ndarray, "repeat fold column"]],
    reason: str,
) -> Card:
    """Say what an ensemble is; its scores and the hashes of its files are filled in when it is saved."""
    config, dataset = task.config, task.dataset
    ordered = {name: order_weights(own, config.cv.seeds) for name, own in weights.items()}
    return Card(
        format=FORMAT, version=VERSION, run=config.name, license=config.ensemble.license, units=config.ensemble.units,
        strategies=tuple(chosen), method=METHODS[0], weights=ordered, metric=config.cv.metric, score=math.nan,
        scores={}, soup_score=None,
        n_blind=len(chosen) * config.cv.repeats * config.cv.seeds, level=config.ensemble.level,
        symmetric=config.ensemble.symmetric, symmetry=config.symmetry, layout=config.layout,
        data_keys=(config.data.inputs.partition("::")[2], config.data.targets.partition("::")[2]),
        input_shape=dataset.inputs.shape[1:], target_shape=dataset.targets.shape[1:],
        wavelengths_nm=config.data.wavelengths_nm, model=config.model, split=reason, n_repeats=config.cv.repeats,
        n_folds=config.cv.folds, n_seeds=config.cv.seeds, members=tuple(list_cards(task, chosen)),
        splits_hash=task.splits.hash, data_hash=hash_arrays(dataset.inputs, dataset.targets),
        weights_hash=hash_tensors(task.weights), versions=describe_environment()["versions"], files={},
    )  # fmt: skip


def order_weights(weights: Float[np.ndarray, "repeat fold column"], n_seeds: int) -> tuple[float, ...]:
    """Bring weights by fold and column into the order of the members: strategy, repeat, fold, seed."""
    by_strategy = weights.reshape(*weights.shape[:2], -1, n_seeds)
    return tuple(by_strategy.transpose(2, 0, 1, 3).ravel().tolist())


def list_cards(task: Task, chosen: Mapping[str, StrategyScore]) -> Iterator[MemberCard]:
    """Describe the members, strategy by strategy, in the order of their tensors."""
    cv = task.config.cv
    for strategy, score in chosen.items():
        for key in list_members(cv.repeats, cv.folds, cv.seeds):
            place = key.repeat, key.fold
            yield MemberCard(
                strategy=strategy, candidate=name_candidate(strategy, int(score.candidate[place])), repeat=key.repeat,
                fold=key.fold, seed=key.seed, epoch=int(score.epoch[place]),
            )  # fmt: skip


def save(task: Task, ensemble: Ensemble) -> Ensemble:
    """Write an ensemble to its folder; return it with its files in the card."""
    folder, calibration = task.run.ensemble, ensemble.calibration
    density = {f"density.{f.name}": getattr(calibration.density, f.name) for f in fields(Density)}
    residuals = {f"residuals.{method}": array for method, array in calibration.residuals.items()}
    arrays = {**residuals, "fold_of": calibration.fold_of, **density}
    tensors: dict[Path, Mapping[str, Tensor]] = {
        folder.backbone: ensemble.network.list_tensors(),
        folder.members: {f"{s}/{name}": tensor for s, own in ensemble.states.items() for name, tensor in own.items()},
        folder.calibration: {name: torch.as_tensor(array) for name, array in arrays.items()},
    }
    config = yaml.safe_dump(task.config.model_dump(mode="json"), sort_keys=False)
    texts = {folder.network: json.dumps(ensemble.network.as_dict()), folder.config: config}
    hashes = write_files(folder, tensors, texts)
    card = ensemble.card.model_copy(update={"files": hashes})
    write_card(folder, card)
    return replace(ensemble, card=card)


def score_by_strategy(columns: Columns, strategies: Sequence[str], task: Task) -> dict[str, tuple[float, float]]:
    """Mean score of a strategy's members, and the score of its uniform ensemble."""
    scores, objective = {}, find_objective(task.config.cv.metric)
    for name, own in zip(strategies, np.split(columns, len(strategies)), strict=True):
        members = [score_folds(column, task.dataset.targets, task.splits, objective) for column in own]
        scores[name] = (float(np.mean(members)), score_blind(own.mean(0), task))
    return scores


def predict_blind(
    task: Task, ensemble: Ensemble, symmetric: bool = False
) -> dict[str, Float[np.ndarray, "repeat sample *target"]]:
    """What the fold models, by each method, say of the training samples that they never saw."""
    members = np.concatenate([part for part, _ in ensemble.walk_members(task.dataset.inputs, symmetric)], 4)
    samples, fold_of = np.arange(len(task.dataset)), ensemble.calibration.fold_of
    blind = {}
    for method in ensemble.card.weights:
        folds = ensemble.use_method(method).average_folds(members)
        blind[method] = np.stack([folds[r, own, samples] for r, own in enumerate(fold_of)])
    return blind


def score_soup(task: Task, ensemble: Ensemble) -> float:
    """Score the blind members with the weights of each fold's seeds averaged, by strategy, to one network.

    References:
        Wortsman et al., "Model soups", ICML 2022. Members that start from one pretrained network and stay near it may
        be averaged; the score says whether these do.
    """
    card, weights = ensemble.card, ensemble.weights
    states = {
        name: {key: average_seeds(tensor, own) for key, tensor in ensemble.states[name].items()}
        for name, own in zip(card.strategies, weights, strict=True)
    }
    members = tuple(member for member in card.members if member.seed == 0)
    update = {"n_seeds": 1, "members": members, "weights": {card.method: tuple(weights.sum(-1).ravel().tolist())}}
    soup = replace(ensemble, card=card.model_copy(update=update), states=states)
    return score_blind(predict_blind(task, soup, card.symmetric)[card.method], task)


def average_seeds(
    tensor: Float[Tensor, "member ..."], weights: Float[np.ndarray, "repeat fold seed"]
) -> Float[Tensor, "fold_model ..."]:
    """Average the members of each fold over its seeds, by their weights; evenly where a fold gives them none."""
    shares = torch.from_numpy(weights.reshape(-1, weights.shape[-1])).double() + 1e-12
    shares = (shares / shares.sum(1, keepdim=True)).to(tensor.device)
    grouped: Tensor = tensor.unflatten(0, shares.shape)  # type: ignore[no-untyped-call]
    return torch.einsum("fs,fs...->f...", shares, grouped.double()).to(tensor.dtype)
