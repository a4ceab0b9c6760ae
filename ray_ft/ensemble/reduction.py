"""From a run's members to an ensemble: weights of the members, calibration of its intervals, files."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ray_ft.config import EnsembleSection
from ray_ft.data.folds import Splits
from ray_ft.ensemble.artefact import FORMAT, VERSION, Card, MemberCard, Origin, State, write_card, write_files
from ray_ft.ensemble.choosing import Judge, list_options, pick_option
from ray_ft.ensemble.computing import flatten_features
from ray_ft.ensemble.fingerprints import project
from ray_ft.ensemble.improving import average_symmetry, gather_weights, predict_columns, pull_back
from ray_ft.ensemble.model import Calibration, Ensemble
from ray_ft.ensemble.model_card import render_model_card
from ray_ft.ensemble.weights import METHODS, Blind, OutOfFold, Weights, blend
from ray_ft.errors import EnsembleError, NetworkError
from ray_ft.files.hashes import hash_arrays
from ray_ft.files.writing import write_arrays, write_text
from ray_ft.fitting.starting import split_members
from ray_ft.models import Pretrained, predict_all
from ray_ft.models.flops import count_flops
from ray_ft.objectives import Responses, Targets
from ray_ft.results.records import gather_columns, list_folders, load_members
from ray_ft.results.summary import EnsembleSummary
from ray_ft.runs.folder import RunFolder
from ray_ft.runs.provenance import describe_environment
from ray_ft.search.plan import CandidateSpec, name_candidate
from ray_ft.search.problem import Problem
from ray_ft.search.strategies import Strategy
from ray_ft.split.network import SplitNetwork, keep_whole
from ray_ft.split.sharing import describe_obstacle, describe_splits, list_tensors, share_backbone
from ray_ft.statistics.novelty import Density, fit_density
from ray_ft.statistics.scores import Scores, StrategyScore

# Of the largest prediction; members that train in bf16 differ by up to a hundredth.
TOLERATED, REFUSED = 0.02, 0.1


@dataclass(frozen=True)
class Reduction:
    """What an ensemble is built of."""

    problem: Problem
    pretrained: Pretrained
    run: RunFolder
    strategies: Mapping[str, Strategy]
    plan: Sequence[CandidateSpec]
    choice: EnsembleSection
    origin: Origin
    rope: float  # half-width of the region of practical equivalence, as a share of the better mean
    scores: Scores
    lowest: str  # the strategy whose members are taken where the config names none
    zero_shot: Responses  # what the pretrained network says
    warning: str = ""  # against the use of the ensemble

    @property
    def targets(self) -> Targets:
        return self.problem.samples.targets

    @property
    def judge(self) -> Judge:
        return Judge(self.problem, self.rope)

    @property
    def complete(self) -> dict[str, StrategyScore]:
        """Scores of the strategies that could be taken, and their choices of candidate and epoch."""
        return {name: score for name, score in self.scores.items() if score is not None}

    @property
    def chosen(self) -> dict[str, StrategyScore]:
        """Those of the strategies whose members are taken."""
        complete, names = self.complete, self.choice.strategies or (self.lowest,)
        for name in names:
            if name not in complete:
                raise EnsembleError(
                    f"a strategy in an ensemble must have a completed candidate, got {name} without one; leave it out "
                    "of ensemble.strategies"
                )
        return {name: complete[name] for name in names}


def reduce_members(reduction: Reduction) -> EnsembleSummary:
    """Build the ensemble of a run: for each strategy and fold, the members of the candidate chosen on the other folds.

    What the blind members say of each sample, mean and standard deviation, goes to the run's `blind.npz`, beside the
    truth and what the pretrained network says.

    Raises:
        EnsembleError: A strategy that the config names has no completed candidate.
    """
    problem, run, judge, splits = reduction.problem, reduction.run, reduction.judge, reduction.problem.splits
    mixed, own = reduction.choice.strategies is None and reduction.choice.method == "auto", tuple(reduction.chosen)
    taken = reduction.complete if mixed else reduction.chosen
    columns = {name: gather_columns(run, name, score, splits) for name, score in taken.items()}
    options = dict(list_options(judge, columns, own, mixed))
    comparisons = judge.compare({name: option.blind for name, option in options.items()})
    picked = options[pick_option(reduction.choice.method, comparisons)]
    names = picked.used  # members of no weight would cost as much as others
    reduction = replace(reduction, choice=reduction.choice.model_copy(update={"strategies": names}))
    told = np.concatenate([columns[name] for name in names])
    weights = {name: judge.weigh(name, told) for name in METHODS}
    members = {name: stack_members(reduction, name) for name in names}
    networks = split_networks(reduction, members)
    card = fill_card(reduction, weights, next(iter(networks.values())).reason)
    ensemble = Ensemble(card, networks, members, calibrate(reduction, networks)).use_method(picked.method)
    found = predict_columns(ensemble, problem)
    notes = find_differences(told, found)
    pulled = pull_back(judge, ensemble, reduction.pretrained.weights, found, reduction.choice.pull_back)
    improved = average_symmetry(judge, pulled, reduction.choice.symmetric)
    blind = {name: blend(improved.columns, own, splits) for name, own in weights.items()}
    ensemble = settle(reduction, improved.ensemble, blind)
    card = save(run, score_soup(reduction, ensemble), reduction.origin.config_text)
    mean, spread = blind[picked.method].mean(0), measure_spread(pulled.columns, weights[picked.method], splits)
    write_arrays(run.blind, mean=mean, std=spread, targets=reduction.targets, zero_shot=reduction.zero_shot)
    return EnsembleSummary(
        **card.model_dump(
            include={"score", "n_blind", "strategies", "method", "scores", "soup_score", "symmetric", "pulled_shares"}
        ),
        n_members=len(card.members),
        path=f"{run.place.rstrip('/')}/{run.ensemble.root.name}",
        by_strategy=score_by_strategy(reduction, columns),
        comparisons=comparisons,
        options={name: judge.score(option.blind) for name, option in options.items()},
        **improved.tried,
        n_views=ensemble.n_views,
        cost=measure_cost(reduction, ensemble),
        notes=(*([reduction.warning] if reduction.warning else []), *notes),
    )


def measure_cost(reduction: Reduction, ensemble: Ensemble) -> float | None:
    """Multiply-adds of a prediction over those of the pretrained network; None where that has no products."""
    inputs, network = reduction.problem.samples.inputs[:1], reduction.pretrained.build()
    ours = count_flops(lambda: ensemble.predict_members(inputs, False))
    pretrained = count_flops(lambda: predict_all(network, inputs))
    return ensemble.n_views * ours / pretrained if pretrained else None


def split_networks(reduction: Reduction, members: Mapping[str, State]) -> dict[str, SplitNetwork]:
    """Split the network as the members' training did, with one backbone for all strategies.

    Where one of them cannot be split, or an artefact may not hold its operations, all run the whole network.
    """
    inputs = torch.from_numpy(reduction.problem.move_inputs(step=reduction.problem.closed_step)).flatten(0, 1)
    splits = {
        name: split_members(reduction.pretrained, reduction.strategies[name], inputs) for name in reduction.chosen
    }
    if reason := describe_obstacle(splits, inputs[:2]):
        network = reduction.pretrained.build()
        names = [name for name, _ in network.named_parameters()]
        trained = {strategy: tuple(name for name in names if name in members[strategy]) for strategy in splits}
        return {strategy: keep_whole(network, own, reason) for strategy, own in trained.items()}
    return share_backbone(splits, inputs[:4])


def find_differences(told: OutOfFold, found: OutOfFold) -> tuple[str, ...]:
    """Note where the ensemble does not quite say what its members said in training.

    Raises:
        NetworkError: It says something else, so that the score of its members is not its own.
    """
    gap, scale = float(np.abs(told - found).max()), float(np.abs(told).max())
    if gap <= TOLERATED * scale:
        return ()
    text = f"the ensemble differs from its members as they were trained by up to {gap:.2g}, of {scale:.2g}"
    if gap > REFUSED * scale:
        raise NetworkError(
            f"the network must be the same in all processes, but {text}: does it hold tensors that its state dict "
            "lacks, or draw some where it is imported or built? Make them buffers"
        )
    return (text,)


def measure_spread(columns: OutOfFold, weights: Weights, splits: Splits) -> Responses:
    """Weighted standard deviation of the members that never saw a sample, before any averaging over the symmetry."""
    first, second = (blend(power, weights, splits).mean(0) for power in (columns, columns**2))
    return np.asarray(np.sqrt(np.maximum(second - first**2, 0.0)))


def stack_members(reduction: Reduction, strategy: str) -> dict[str, Shaped[Tensor, "member ..."]]:
    """Collect the weights of a strategy's members, in the order of the problem's keys."""
    by_fold, load = reduction.problem.by_fold, lru_cache(maxsize=None)(partial(load_members, reduction.run))
    parts = []
    for place in np.ndindex(by_fold):
        searched, *later = list_folders(reduction.run, strategy, reduction.chosen[strategy], place)
        parts.append({name: t.view(*by_fold, -1, *t.shape[1:])[place] for name, t in load(searched).items()})
        parts += [load(name) for name in later]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def calibrate(reduction: Reduction, networks: Mapping[str, SplitNetwork]) -> Calibration:
    """Keep the density of the features, who held out whom, and prints of the inputs; residuals follow."""
    samples, first = reduction.problem.samples, next(iter(networks.values()))
    parts = torch.split(torch.from_numpy(samples.inputs), 32)
    features = [flatten_features(first, first.compute_features(part), samples.layout) for part in parts]
    density = fit_density(np.concatenate(features), samples.groups)
    return Calibration({}, np.array(reduction.problem.splits.fold_of), density, project(samples.inputs))


def settle(reduction: Reduction, ensemble: Ensemble, blind: Mapping[str, Blind]) -> Ensemble:
    """Fill in what the blind predictions by each method say: residuals and scores."""
    targets, answers = reduction.targets, ensemble.objective.answers
    residuals = {method: answers.measure_residuals(own.mean(0), targets) for method, own in blind.items()}
    losses = {method: reduction.judge.score(own) for method, own in blind.items()}
    card = ensemble.card.model_copy(update={"scores": losses, "score": losses[ensemble.card.method]})
    return replace(ensemble, card=card, calibration=replace(ensemble.calibration, residuals=residuals))


def fill_card(reduction: Reduction, weights: Mapping[str, Weights], reason: str) -> Card:
    """Say what an ensemble is; its scores and the hashes of its files are filled in when it is saved."""
    problem, samples, splits = reduction.problem, reduction.problem.samples, reduction.problem.splits
    choice, origin = reduction.choice, reduction.origin
    ordered = {name: order_weights(own, problem.n_seeds) for name, own in weights.items()}
    return Card(
        format=FORMAT, version=VERSION, run=origin.name, license=choice.license, units=choice.units,
        strategies=tuple(reduction.chosen), method=METHODS[0], weights=ordered, metric=problem.objective.metric,
        score=math.nan, scores={}, soup_score=None,
        n_blind=len(reduction.chosen) * splits.n_repeats * problem.n_seeds, level=choice.level,
        symmetric=False, symmetry=problem.symmetry, layout=origin.layout, data_keys=origin.data_keys,
        input_shape=samples.inputs.shape[1:], target_shape=samples.targets.shape[1:],
        answer_shape=reduction.pretrained.answer_shape,
        new_head=reduction.pretrained.new_head,
        inputs=reduction.pretrained.layout, collate=origin.collate,
        classes=samples.classes, scales=problem.objective.scales,
        wavelengths_nm=origin.wavelengths_nm, model=origin.model, split=reason, n_repeats=splits.n_repeats,
        n_folds=splits.n_folds, n_seeds=problem.n_seeds, members=tuple(list_cards(reduction)),
        splits_hash=splits.hash, data_hash=hash_arrays(samples.inputs, samples.targets),
        weights_hash=reduction.pretrained.hash, warning=reduction.warning,
        versions=describe_environment()["versions"], files={},
    )  # fmt: skip


def order_weights(weights: Weights, n_seeds: int) -> tuple[float, ...]:
    """Bring weights by fold and column into the order of the members: strategy, repeat, fold, seed."""
    by_strategy = weights.reshape(*weights.shape[:2], -1, n_seeds)
    return tuple(by_strategy.transpose(2, 0, 1, 3).ravel().tolist())


def list_cards(reduction: Reduction) -> Iterator[MemberCard]:
    """Describe the members, strategy by strategy, in the order of their tensors."""
    for strategy, score in reduction.chosen.items():
        for key in reduction.problem.keys:
            place = key.repeat, key.fold
            yield MemberCard(
                strategy=strategy, candidate=name_candidate(strategy, int(score.candidate[place])), repeat=key.repeat,
                fold=key.fold, seed=key.seed, epoch=int(score.epoch[place]),
            )  # fmt: skip


def save(run: RunFolder, ensemble: Ensemble, config_text: str) -> Card:
    """Write an ensemble to its folder; return its card, with its files."""
    folder, calibration = run.ensemble, ensemble.calibration
    density = {f"density.{f.name}": getattr(calibration.density, f.name) for f in fields(Density)}
    residuals = {f"residuals.{method}": array for method, array in calibration.residuals.items()}
    arrays = {**residuals, "fold_of": calibration.fold_of, "prints": calibration.prints, **density}
    tensors: dict[Path, State] = {
        folder.backbone: list_tensors(ensemble.networks),
        folder.members: {f"{s}/{name}": tensor for s, own in ensemble.states.items() for name, tensor in own.items()},
        folder.calibration: {name: torch.as_tensor(array) for name, array in arrays.items()},
    }
    texts = {folder.network: json.dumps(describe_splits(ensemble.networks)), folder.config: config_text}
    card = ensemble.card.model_copy(update={"files": write_files(folder, tensors, texts)})
    write_text(folder.model_card, render_model_card(ensemble, folder.root.name))
    write_card(folder, card)
    return card


def score_by_strategy(reduction: Reduction, columns: Mapping[str, OutOfFold]) -> dict[str, tuple[float, float]]:
    """Mean score of a strategy's members, and the score of its uniform ensemble."""
    score, scores = reduction.problem.objective.score, {}
    for name, own in columns.items():
        members = [score(repeat, reduction.targets).mean() for column in own for repeat in column]
        scores[name] = (float(np.mean(members)), reduction.judge.score(own.mean(0)))
    return scores


def score_soup(reduction: Reduction, ensemble: Ensemble) -> Ensemble:
    """Score the blind members with the weights of each fold's seeds averaged, by strategy, to one network.

    Return the ensemble with this score in its card, where there are several seeds.

    References:
        Wortsman et al., "Model soups", ICML 2022. Members that start from one pretrained network and stay near it may
        be averaged; the score says whether these do.
    """
    card, weights = ensemble.card, ensemble.weights
    if card.n_seeds == 1:
        return ensemble
    states = {
        name: {key: average_seeds(tensor, own) for key, tensor in ensemble.states[name].items()}
        for name, own in zip(card.strategies, weights, strict=True)
    }
    members = tuple(member for member in card.members if member.seed == 0)
    update = {"n_seeds": 1, "members": members, "weights": {card.method: tuple(weights.sum(-1).ravel().tolist())}}
    soup = replace(ensemble, card=card.model_copy(update=update), states=states)
    blind = blend(predict_columns(soup, reduction.problem), gather_weights(soup), reduction.problem.splits)
    score = reduction.judge.score(blind)
    return replace(ensemble, card=card.model_copy(update={"soup_score": score}))


def average_seeds(
    tensor: Shaped[Tensor, "member ..."], weights: Float[np.ndarray, "repeat fold seed"]
) -> Shaped[Tensor, "fold_model ..."]:
    """Average the members of each fold over its seeds, by their weights; evenly where a fold gives them none."""
    shares = torch.from_numpy(weights.reshape(-1, weights.shape[-1])).double() + 1e-12
    shares = (shares / shares.sum(1, keepdim=True)).to(tensor.device)
    grouped: Tensor = tensor.unflatten(0, shares.shape)  # type: ignore[no-untyped-call]
    kind = torch.promote_types(torch.float64, tensor.dtype)  # a complex one, of complex weights
    return torch.einsum("fs,fs...->f...", shares.to(kind), grouped.to(kind)).to(tensor.dtype)
