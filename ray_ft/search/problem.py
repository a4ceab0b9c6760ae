"""The problem of a run: samples, the folds that hold them out, and the objective; and what its members are called."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Float

from ray_ft.config import Config
from ray_ft.data.folds import Splits, deal_folds, deal_inner, limit_training
from ray_ft.data.ragged import is_ragged
from ray_ft.data.samples import Arrays, Samples, Sources, build_samples
from ray_ft.domains import find_domain
from ray_ft.errors import DataError, StrategyError, WeightsError
from ray_ft.files.hashes import hash_arrays
from ray_ft.models.data_factory import KEY, call_data_factory
from ray_ft.objectives import Objective
from ray_ft.search.strategies import Strategy

Place = tuple[int, int]  # a repeat and a fold
CLOSED_ROWS = 1024  # views of samples that a closed form is fitted to, or one of each sample where these are more


@dataclass(frozen=True, order=True)
class MemberKey:
    """Names a member within its candidate."""

    repeat: int
    fold: int
    seed: int

    @property
    def place(self) -> Place:
        return self.repeat, self.fold

    def __str__(self) -> str:
        return f"repeat {self.repeat}, fold {self.fold}, seed {self.seed}"


def list_members(n_repeats: int, n_folds: int, n_seeds: int) -> tuple[MemberKey, ...]:
    return tuple(
        MemberKey(repeat, fold, seed)
        for repeat in range(n_repeats)
        for fold in range(n_folds)
        for seed in range(n_seeds)
    )


@dataclass(frozen=True)
class Problem:
    """What is to be learned, from what, and how it is judged; the same for all candidates of a run."""

    samples: Samples  # inputs, targets and groups
    splits: Splits  # who is held out when
    objective: Objective  # what a prediction is worth
    response_shape: tuple[int, ...]  # of what a network says of a sample
    symmetry: tuple[str, ...]  # operations that generate the views of a sample
    n_seeds: int  # members for each repeat and fold
    seed: int  # of all random numbers of the run
    replayed: Samples | None = None  # what training sees again beside the samples; nothing is scored on it

    @cached_property
    def keys(self) -> tuple[MemberKey, ...]:
        """All members, for each repeat, fold and seed."""
        return list_members(self.splits.n_repeats, self.splits.n_folds, self.n_seeds)

    @property
    def by_fold(self) -> tuple[int, int]:
        """Shape of what there is for each repeat and fold."""
        return self.splits.n_repeats, self.splits.n_folds

    @property
    def n_views(self) -> int:
        """Views of a sample."""
        return len(self.samples.domain.list_views(self.symmetry))

    @property
    def parts(self) -> tuple[Samples, ...]:
        """The samples, then those that are replayed."""
        return (self.samples,) if self.replayed is None else (self.samples, self.replayed)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to the data."""
        return tuple(note for part in self.parts for note in part.notes)

    @property
    def data_hash(self) -> str:
        """Name of all that is learned from; answers of the pretrained network differ by rounding, and are left out."""
        arrays = ((part.inputs,) if part.answered else (part.inputs, part.targets) for part in self.parts)
        return hash_arrays(*(array for own in arrays for array in own))

    @property
    def closed_step(self) -> int:
        """Step between the views that a closed form is fitted to; its time grows with the cube of their number."""
        return -(-self.n_views // max(1, CLOSED_ROWS // len(self.samples)))

    def move_inputs(self, replayed: bool = False, step: int = 1) -> Float[np.ndarray, "view sample *input"]:
        """Move all samples by the operations of the symmetry, or every `step`-th; the first is the sample itself.

        Where it is asked for, the samples that are replayed follow.
        """
        parts = [part.move_inputs(self.symmetry, step) for part in (self.parts if replayed else self.parts[:1])]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, 1)

    def move_targets(self, replayed: bool = False, step: int = 1) -> Float[np.ndarray, "view sample *target"]:
        """Move the targets along."""
        parts = [part.move_targets(self.symmetry, step) for part in (self.parts if replayed else self.parts[:1])]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, 1)


def read_samples(config: Config, objective: Objective, given: Arrays | None) -> Samples:
    """Take the samples that are given, or those that a config names."""
    data = config.data
    sources = Sources(data.inputs or KEY, data.targets or KEY, data.groups, data.stratify)
    made = call_data_factory(data.factory, data.params or {}, data.collate is not None) if data.factory else None
    encode = partial(objective.encode_targets, classes=data.classes or ())
    return build_samples(given or made or sources.read(), sources, find_domain(config.layout), config.cv.folds, encode)


def deal_splits(config: Config, samples: Samples) -> Splits:
    """Deal the folds, and what of their training parts does without or stops and selects."""
    cv = config.cv
    splits = deal_folds(samples.groups, cv.folds, cv.repeats, cv.seed, samples.strata)
    if cv.train_size is not None:
        splits = limit_training(splits, samples.groups, cv.train_size)
    return deal_inner(splits, samples.groups, samples.strata) if cv.protocol == "nested" else splits


def know_classes(samples: Samples, objective: Objective, outputs: Float[torch.Tensor, "sample *output"]) -> Samples:
    """Give classes that the samples lack, and the network knows, their columns; refuse outputs of the wrong kind."""
    if fault := objective.find_fault(outputs.numpy()):
        raise DataError(fault)
    targets, classes = objective.widen_targets(samples.targets, samples.classes, outputs[0].numel())
    return replace(samples, targets=targets, classes=classes)


def check_outputs(zero_shot: Float[np.ndarray, "sample ..."], samples: Samples, objective: Objective) -> None:
    if misfit := objective.find_misfit(zero_shot.shape[1:], samples.targets.shape[1:]):
        raise DataError(f"{misfit}; check data.targets and model.checkpoint, or set model.new_head: true")
    if not np.isfinite(zero_shot).all():
        raise WeightsError("the pretrained network must answer with numbers, got NaN or infinity; check its checkpoint")


def check_strategies(
    samples: Samples, objective: Objective, strategies: Mapping[str, Strategy], smoothing: float | None
) -> None:
    """Refuse smooth labels without classes, and noise on inputs that are no numbers with fractions, such as tokens."""
    shares = (stage.smoothing for strategy in strategies.values() for stage in strategy.stages)
    if share := smoothing or max(shares):
        objective.smooth(share)
    others = [part.name for part in samples.layout if part.kind != "float"]
    noisy = [name for name, strategy in strategies.items() if any(stage.noisy for stage in strategy.stages)]
    if noisy and is_ragged(samples.layout):
        raise StrategyError(
            f"strategy {noisy[0]}: noise_std must be 0 where samples have shapes of their own; leave it out"
        )
    if others and noisy:
        raise StrategyError(
            f"strategy {noisy[0]}: noise_std must be 0 where inputs are whole numbers or booleans, as {others[0]} is"
        )
