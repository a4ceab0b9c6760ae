"""An ensemble on fresh labelled samples: its error, and whether it holds what it promises."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict

from ray_ft.data.samples import Samples, load_samples
from ray_ft.ensemble import FALSE_ALARMS, Ensemble
from ray_ft.errors import DataError
from ray_ft.files.hashes import hash_arrays
from ray_ft.statistics.intervals import check_level


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class CalibrationPoint(Frozen):
    """What was measured at a level; the objective's measures stand beside, each by its name."""

    nominal: float


class Evaluation(Frozen):
    """What fresh samples say of an ensemble; the objective's measures of the method in use stand beside, by name.

    Attributes:
        metric: It names the objective.
        nominal: The level that was asked for.
        flagged: Share of samples flagged as unlike the training samples.
        n_known: Samples that the members trained on: all, where the data set is theirs as a whole, else none is known.
        methods: The objective's measures by method of weighing.
        calibration: By level.
    """

    n_samples: int
    method: str
    metric: str
    nominal: float
    flagged: float
    n_known: int
    methods: dict[str, dict[str, float]]
    calibration: tuple[CalibrationPoint, ...]


def read_labelled(ensemble: Ensemble, data: str | None, inputs: str | None, targets: str | None) -> Samples:
    """Read labelled samples.

    Args:
        ensemble: Its card names the keys of `data`.
        data: `.npz` with the keys of the run's own data.
        inputs: Inputs, instead of those of `data`.
        targets: Targets, the same.

    Raises:
        DataError: They are missing, or not as the run's were.
    """
    keys = dict(zip(("inputs", "targets"), ensemble.card.data_keys, strict=True))
    sources = {"inputs": inputs, "targets": targets}
    for name, source in sources.items():
        if source is None:
            if data is None or not keys[name]:
                raise DataError(f"labelled samples need inputs and targets, got no {name}; give --{name} FILE[::key]")
            sources[name] = f"{data}::{keys[name]}"
    dataset = load_samples(str(sources["inputs"]), str(sources["targets"]), ensemble.domain)
    for name, array, shape in (
        ("inputs", dataset.inputs, ensemble.card.input_shape),
        ("targets", dataset.targets, ensemble.card.target_shape),
    ):
        if array.shape[1:] != shape:
            raise DataError(f"{name} must have the shape {shape}, got {array.shape[1:]} in {sources[name]}")
    ensemble.objective.check_targets(dataset.targets, str(sources["targets"]))
    return dataset


def evaluate_ensemble(ensemble: Ensemble, dataset: Samples, level: float | None = None) -> Evaluation:
    """Measure an ensemble, by its objective, on samples that had no part in its making.

    Args:
        ensemble: With any method in use.
        dataset: Fresh samples.
        level: Of the intervals; the card's where left out.

    Raises:
        ConfigError: The level is not one, or the training samples are too few for it.
    """
    level = ensemble.card.level if level is None else level
    check_level(1 - level, len(ensemble.residuals))
    every = [ensemble.use_method(method) for method in ensemble.card.weights]
    folds, spread, p_values = run(ensemble, every, dataset)
    found = ensemble.objective.answers.evaluate(
        {use.card.method: own for use, own in zip(every, folds, strict=True)},
        ensemble.calibration.residuals,
        ensemble.calibration.fold_of,
        spread,
        dataset.targets,
        ensemble.card.method,
        level,
    )
    content = {
        "n_samples": len(dataset),
        "method": ensemble.card.method,
        "metric": ensemble.card.metric,
        **found.methods[ensemble.card.method],
        **found.beside,
        "nominal": level,
        "flagged": float((p_values <= FALSE_ALARMS).mean()),
        "n_known": len(dataset) * (hash_arrays(dataset.inputs, dataset.targets) == ensemble.card.data_hash),
        "methods": found.methods,
        "calibration": [{"nominal": at, **measures} for at, measures in found.calibration.items()],
    }
    return Evaluation.model_validate(content)


def run(
    ensemble: Ensemble, every: Sequence[Ensemble], dataset: Samples
) -> tuple[
    list[Float[np.ndarray, "repeat fold sample *response"]],
    Float[np.ndarray, "sample ..."],
    Float[np.ndarray, " sample"],
]:
    """Predict by every method in one pass; also the members' spread by the one in use, and the p-values of novelty."""
    folds: list[list[Float[np.ndarray, "repeat fold part *response"]]] = [[] for _ in every]
    spreads, p_values = [], []
    for members, features in ensemble.walk_members(dataset.inputs, ensemble.card.symmetric):
        for use, own in zip(every, folds, strict=True):
            own.append(use.average_folds(members))
        spreads.append(ensemble.measure_spread(members))
        p_values.append(ensemble.measure_novelty(features)[1])
    return [np.concatenate(own, 2) for own in folds], np.concatenate(spreads), np.concatenate(p_values)
