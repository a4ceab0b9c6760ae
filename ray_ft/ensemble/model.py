"""The ensemble in memory: predictions with intervals, and how far each input is from the training samples.

The backbone runs once for all members. The members of a fold and repeat, weighed, are a fold model; the response is
the mean of the fold models, and what else is answered is the objective's.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ray_ft.data.objects import as_array, name_columns
from ray_ft.data.packing import name_parts, pack_alike
from ray_ft.data.ragged import is_ragged, pack_samples
from ray_ft.data.samples import prepare_inputs
from ray_ft.domains import Domain, find_domain
from ray_ft.ensemble.artefact import Card, State, find_folder, read_card, read_network, read_tensors, refuse
from ray_ft.ensemble.computing import apply_stacked, blame_inputs, flatten_features, limit_blas
from ray_ft.ensemble.fingerprints import N_PRINTS, Prints
from ray_ft.ensemble.memory_limit import MemoryGuard
from ray_ft.errors import DataError, EnsembleError, NetworkError, first_few
from ray_ft.files.column_names import split_names
from ray_ft.files.memory import describe_excess
from ray_ft.models import Collate, Factory, NewHead, answer_in_shape, build_network, call_as_one, give_head
from ray_ft.models.factory import GIVEN
from ray_ft.objectives import STANDARDISED, FoldOf, Folds, Members, Objective, Shares, find_objective
from ray_ft.split.network import Features, SplitNetwork, keep_whole
from ray_ft.split.sharing import read_splits
from ray_ft.statistics.intervals import check_level, count_most, describe_lack
from ray_ft.statistics.novelty import Density

BATCH_SIZE = 32  # samples at a time
FALSE_ALARMS = 0.05  # share of inputs like the training samples that are flagged
Raw = Any  # inputs in the form of the run's data: what `as_array` takes; of several, a mapping or a tuple of these
Inputs = Float[np.ndarray, "sample *input"]  # in the network's


@dataclass(frozen=True)
class Calibration:
    """What the training samples say of the ensemble's errors.

    Attributes:
        residuals: By method, what the objective keeps of the truth and of what the fold models that never saw the
            sample say, averaged over repeats.
        density: Of the features at the boundary.
        prints: Of the training inputs, by which they are known again; None in ensembles of release 0.1.
    """

    residuals: Mapping[str, Float[np.ndarray, "sample *residual"]]
    fold_of: FoldOf
    density: Density
    prints: Prints | None = None


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Members that share a backbone."""

    card: Card
    networks: Mapping[str, SplitNetwork]  # backbone and tail by strategy; the backbone is one
    states: Mapping[str, State]  # tensors of the members by strategy and name, stacked in the order of the card
    calibration: Calibration

    def __repr__(self) -> str:
        return f"Ensemble({self.card.describe()})"

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        trust: bool = False,
        factory: Factory = None,
        collate: Collate = None,
    ) -> "Ensemble":
        """Load an ensemble from its folder or from that of its run; no code of it is run.

        Args:
            path: The folder.
            device: Where it computes.
            trust: Whether to import and call the factory that the card names, where the network could not be written
                down as operations. That is code: allow it for ensembles of your own.
            factory: What builds the network in place of the factory that the card names.
            collate: What makes batches of samples in place of the function that the card names.

        Raises:
            EnsembleError: It is no ensemble, of another version, damaged, or needs code that is not trusted.
        """
        folder = find_folder(Path(path))
        card = read_card(folder)
        backbone, stacked = read_tensors(folder.backbone, card), read_tensors(folder.members, card)
        states: dict[str, dict[str, Tensor]] = {name: {} for name in card.strategies}
        with refuse(Exception, rule="files must belong together", path=folder.root):  # as of any computation
            for key, tensor in stacked.items():
                strategy, _, name = key.partition("/")
                states[strategy][name] = tensor.to(device)
            needed = {card.model.factory: factory, card.collate: collate} if card.needs_code else {}
            code = [name for name, given in needed.items() if name and given is None]
            if any(name.startswith(GIVEN) for name in code):
                raise EnsembleError(
                    "an ensemble whose network could not be written down as operations, and was given in Python, is "
                    f"loaded there: Ensemble.load(folder, factory=..., collate=...), got none for {' and '.join(code)}"
                )
            if code and not trust:
                raise EnsembleError(
                    "an ensemble whose network could not be written down as operations needs its own code, which would "
                    f"run with your rights, got {' and '.join(code)} in {folder.card}; if it is yours, load it with "
                    "trust=True, or --trust"
                )
            named = card.model.factory if factory is None else factory, card.collate if collate is None else collate
            networks = load_networks(card, read_network(folder.network, card), *named, backbone, states, device)
            loaded = cls(card, networks, states, read_calibration(read_tensors(folder.calibration, card)))
            check_together(loaded)
        return loaded

    def prepare(self, inputs: Raw, source: str = "the inputs") -> Inputs:
        """Check inputs, in the form of the run's data, and bring them into the network's.

        Raises:
            DataError: They are not such inputs.
        """
        if is_ragged(self.card.inputs):
            return prepare_inputs(pack_samples(inputs, source, self.card.inputs)[0], self.domain, source)
        if isinstance(inputs, Mapping | tuple):
            array = pack_alike(name_parts(inputs), self.card.inputs, source)
        else:
            array = as_array(self.take_columns(inputs, source), source)
        prepared = prepare_inputs(array, self.domain, source)
        if prepared.shape[1:] != self.card.input_shape:
            raise DataError(
                f"inputs must have the shape {self.card.input_shape} that the ensemble was trained on, got "
                f"{prepared.shape[1:]} in {source}"
            )
        return prepared

    def take_columns(self, inputs: Any, source: str) -> Any:
        """Take the columns of the training out of a frame that names its columns, whatever their order."""
        names = split_names(self.card.data_keys[0])
        if name_columns(inputs) == "" or (len(names),) != self.card.input_shape:
            return inputs
        if lacking := [name for name in names if name not in inputs.columns]:
            raise DataError(
                f"a frame must have the columns of the training, got none of {first_few(lacking)} in {source}"
            )
        return inputs[names]

    def predict(
        self, inputs: Raw, level: float | None = None, batch_size: int = BATCH_SIZE, source: str = "the inputs"
    ) -> Any:
        """Predict with every member; the backbone runs once.

        Args:
            inputs: As in the run's data.
            level: Of the intervals; the card's where left out, and none where the training samples are too few for it.
            batch_size: Samples at a time.
            source: Of the inputs, for messages.

        Returns:
            The objective's dataclass of quantities; of regression, `ray_ft.ensemble.Prediction`.

        Raises:
            DataError: The inputs are not as the run's were.
            ConfigError: The level is not one, or the training samples are too few for it.
        """
        prepared = self.prepare(inputs, source)
        level = self.settle_level(level)
        with blame_inputs(source):
            return self.predict_prepared(prepared, level, batch_size)

    def settle_level(self, level: float | None) -> float:
        """Take the card's level where none is asked for; refuse one at which there are no intervals."""
        if level is not None:
            check_level(1 - level, count_most(self.residuals))
        return self.card.level if level is None else level

    def describe_lack(self, level: float) -> str:
        """Say from how many training samples on there are intervals of this level; nothing where there are."""
        return describe_lack(1 - level, count_most(self.residuals))

    def list_available(self, level: float) -> tuple[str, ...]:
        """List the quantities that there are at this level: without intervals where there are none."""
        missing = self.objective.answers.leveled if self.describe_lack(level) else ()
        return tuple(name for name in self.quantities if name not in missing)

    def predict_prepared(self, prepared: Inputs, level: float, batch_size: int = BATCH_SIZE) -> Any:
        """Predict for inputs that `prepare` returned, at a level of `settle_level`."""
        starts = range(0, len(prepared), batch_size)
        with limit_blas():
            parts = [self.compute(prepared[start : start + batch_size], level) for start in starts]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in self.list_available(level)}
        return self.objective.answers.prediction(**dict.fromkeys(self.quantities) | whole)

    def compute(
        self, inputs: Inputs, level: float, quantities: Collection[str] | None = None
    ) -> dict[str, Shaped[np.ndarray, "sample ..."]]:
        """Compute some quantities, or all available, for inputs and a level as in `predict_prepared`, all at a time.

        What is not asked for costs nothing.
        """
        asked = set(self.list_available(level) if quantities is None else quantities)
        members, features = self.predict_members(inputs, self.card.symmetric)
        known = (self.residuals, self.calibration.fold_of, 1 - level)
        found = self.objective.answers.answer(asked, self.average_folds(members), members, self.shares, *known)
        if asked & {"novelty", "p_value", "flag"}:
            found["novelty"], found["p_value"] = self.measure_novelty(features)
            found["flag"] = found["p_value"] <= FALSE_ALARMS
        return {name: found[name] for name in self.quantities if name in asked}

    def measure_spread(self, members: Members) -> Float[np.ndarray, "sample ..."]:
        """How far the members are from one another, as the objective measures it."""
        return self.objective.answers.measure_spread(members, self.shares)

    def measure_novelty(self, features: Features) -> tuple[Float[np.ndarray, " sample"], Float[np.ndarray, " sample"]]:
        """How unlike the training samples, and the share of inputs like them that are as unlike."""
        density = self.calibration.density
        novelty = density.score(flatten_features(self.first, features, self.card.inputs))
        return novelty, density.p_value(novelty)

    def walk_members(self, prepared: Inputs, symmetric: bool) -> Iterator[tuple[Members, Features]]:
        """Yield what `predict_members` returns, a few samples at a time."""
        with limit_blas():
            for start in range(0, len(prepared), BATCH_SIZE):
                yield self.predict_members(prepared[start : start + BATCH_SIZE], symmetric)

    def predict_members(self, inputs: Inputs, symmetric: bool) -> tuple[Members, Features]:
        """What every member says of prepared inputs; also the features of the inputs as they are."""
        views = self.domain.list_views(self.card.symmetry if symmetric else ())
        total: Any = 0.0
        first: Features = ()
        for view in views:
            features, predicted = self.run_members(view.move_inputs(torch.from_numpy(inputs)).contiguous())
            first = first or features  # of the identity, which comes first
            total = total + (
                predicted if self.card.classes else view.restore_targets(torch.from_numpy(predicted)).numpy()
            )
        return total / len(views), first

    @torch.no_grad()
    def run_members(self, inputs: Float[Tensor, "sample *input"]) -> tuple[Features, Members]:
        features = self.first.run_backbone(inputs.to(self.device))
        predicted = [apply_stacked(self.networks[name], state, features) for name, state in self.states.items()]
        shape = (len(self.states), self.card.n_repeats, self.card.n_folds, self.card.n_seeds)
        stacked = self.objective.respond(torch.stack(predicted).float()).cpu().numpy()
        return features, stacked.reshape(*shape, *stacked.shape[2:])

    @property
    def first(self) -> SplitNetwork:
        """The network of the first strategy; its backbone is that of all."""
        return self.networks[self.card.strategies[0]]

    @property
    def device(self) -> torch.device:
        return next(iter(next(iter(self.states.values())).values())).device

    @property
    def domain(self) -> Domain:
        return find_domain(self.card.layout)

    @property
    def objective(self) -> Objective:
        return find_objective(self.card.metric, self.card.scales)

    @property
    def quantities(self) -> tuple[str, ...]:
        """What can be asked for: the fields of the objective's prediction."""
        return tuple(field.name for field in fields(self.objective.answers.prediction))

    @property
    def exported(self) -> tuple[str, ...]:
        """What an export answers with, at the card's level."""
        available = self.list_available(self.card.level)
        return tuple(name for name in self.objective.answers.exported if name in available)

    @property
    def weights(self) -> Shares:
        """Of the members within their fold models: each fold's sum to 1."""
        card, weights = self.card, np.array(self.card.weights[self.card.method], np.float32)
        return weights.reshape(len(card.strategies), card.n_repeats, card.n_folds, card.n_seeds)

    @property
    def shares(self) -> Shares:
        """Of the members within the whole."""
        return np.asarray(self.weights / (self.card.n_repeats * self.card.n_folds))

    @property
    def residuals(self) -> Float[np.ndarray, "sample *residual"]:
        """Of the blind predictions, by the method in use."""
        return self.calibration.residuals[self.card.method]

    def use_method(self, method: str) -> "Ensemble":
        """Return the same members, weighed by another method."""
        score = self.card.scores.get(method, math.nan)
        return replace(self, card=self.card.model_copy(update={"method": method, "score": score}))

    def use_symmetry(self, symmetric: bool) -> "Ensemble":
        """Return the same members, whose predictions are averaged over the symmetry, or not."""
        return replace(self, card=self.card.model_copy(update={"symmetric": symmetric}))

    @property
    def n_views(self) -> int:
        """Views of an input that a prediction averages over."""
        return len(self.domain.list_views(self.card.symmetry)) if self.card.symmetric else 1

    def take_fold(self, repeat: int, fold: int) -> "Ensemble":
        """Return the members of one fold alone, which never saw its samples."""
        card, shape = self.card, (self.card.n_repeats, self.card.n_folds, self.card.n_seeds)
        states = {
            strategy: {name: tensor.unflatten(0, shape)[repeat, fold] for name, tensor in own.items()}  # type: ignore[no-untyped-call]
            for strategy, own in self.states.items()
        }
        return replace(self, card=card.model_copy(update={"n_repeats": 1, "n_folds": 1}), states=states)

    def average_folds(self, members: Members) -> Folds:
        """Weigh the members of each fold and repeat."""
        return np.asarray(np.einsum("crks,crks...->rk...", self.weights, members))


def load_networks(
    card: Card,
    content: Any,
    factory: Factory,
    collate: Collate,
    tensors: dict[str, Tensor],
    states: Mapping[str, State],
    device: str | torch.device,
) -> dict[str, SplitNetwork]:
    first = {strategy: {name: tensor[0] for name, tensor in own.items()} for strategy, own in states.items()}
    if not card.split:
        return read_splits(content, {name: tensor.to(device) for name, tensor in tensors.items()}, first)
    if card.new_head:
        factory = give_head(factory, NewHead(*card.new_head))
    built = build_network(factory, card.model.params, tensors)
    network = call_as_one(built, card.inputs, card.model.output, collate)
    answer_in_shape(network, card.answer_shape)
    names = [name for name, _ in network.named_parameters()]
    return {
        strategy: keep_whole(network, tuple(name for name in names if name in own), card.split).to(device)
        for strategy, own in first.items()
    }


def check_together(ensemble: Ensemble) -> None:
    """Raise an error, of any class, where a card does not fit its tensors, before anything is predicted wrongly."""
    card = ensemble.card
    n_members = card.n_repeats * card.n_folds * card.n_seeds
    for strategy, own in ensemble.states.items():
        if not own or any(len(tensor) != n_members for tensor in own.values()):
            raise ValueError(f"{strategy} has not the {n_members} members of the card")
    _ = ensemble.use_method(card.method).residuals
    kept_shape = ensemble.objective.answers.find_residual_shape(card.target_shape)
    for method in card.weights:
        used = ensemble.use_method(method)
        if (used.weights < 0).any() or not np.allclose(used.weights.sum((0, 3)), 1, atol=1e-4):
            raise ValueError(f"the weights of {method} are no shares that sum to 1 in each fold")
        if used.residuals.shape[1:] != kept_shape:
            raise ValueError(f"the residuals of {method} have another shape than the targets")
    fold_of = ensemble.calibration.fold_of
    known = (fold_of >= 0) & (fold_of < card.n_folds)
    if fold_of.shape != (card.n_repeats, len(ensemble.residuals)) or not known.all():
        raise ValueError("the folds of the training samples are not those of the card")
    ensemble.domain.list_views(card.symmetry)  # refuses unknown operations
    standardised = card.metric.startswith(STANDARDISED)
    if len(card.scales) != standardised * math.prod(card.target_shape) or not all(
        0 < own < math.inf for own in card.scales
    ):
        raise ValueError("the scales must be one above 0 for each target value, where the metric is in units of them")
    if excess := describe_excess(8 * math.prod(card.input_shape)):
        raise ValueError(excess)
    with suppress(NetworkError):  # of a network's own code, which may refuse what looks like no sample
        try_ones(ensemble)


def try_ones(ensemble: Ensemble) -> None:
    """Predict for inputs of nothing but ones; raise an error, of any class, where that is no answer."""
    card, inputs = ensemble.card, np.ones((2, *ensemble.card.input_shape), np.float32)
    with torch.no_grad(), MemoryGuard():
        features = ensemble.first.run_backbone(torch.from_numpy(inputs).to(ensemble.device))
        for strategy, own in ensemble.states.items():
            first = {name: tensor[:1] for name, tensor in own.items()}
            apply_stacked(ensemble.networks[strategy], first, features)
    found = ensemble.compute(inputs, card.level, ("mean", "novelty"))
    if misfit := ensemble.objective.find_misfit(found["mean"].shape[1:], card.target_shape):
        raise ValueError(misfit)


def read_calibration(tensors: State) -> Calibration:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    density = Density(**{f.name: arrays[f"density.{f.name}"] for f in fields(Density)})
    residuals = {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith("residuals.")}
    fold_of, prints = arrays["fold_of"].astype(int), arrays.get("prints")
    if prints is not None and prints.shape != (fold_of.shape[-1], N_PRINTS):
        raise ValueError("the prints are not those of the training samples")
    return Calibration(residuals, fold_of, density, prints)
