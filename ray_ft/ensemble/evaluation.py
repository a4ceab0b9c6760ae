"""An ensemble on fresh labelled samples: its error, and whether its intervals hold what they promise."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict

from ray_ft.data.samples import Samples, load_samples
from ray_ft.ensemble import FALSE_ALARMS, Ensemble
from ray_ft.errors import DataError
from ray_ft.files.hashes import hash_arrays
from ray_ft.objectives import find_objective
from ray_ft.statistics.intervals import (
    build_pointwise,
    build_simultaneous,
    check_level,
    measure_coverage,
    trace_calibration,
)

__all__ = ["Evaluation", "MethodEvaluation", "evaluate_ensemble", "read_labelled"]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class MethodEvaluation(Frozen):
    """The members weighed by one method.

    Attributes:
        mse: Mean squared error of the mean.
        mae: Mean absolute error.
        coverage: Share of target values inside their intervals.
        width: Of the intervals, on average.
        band_coverage: Share of samples wholly inside their bands.
        band_width: Of the bands, on average.
    """

    mse: float
    mae: float
    coverage: float
    width: float
    band_coverage: float
    band_width: float


class CalibrationPoint(Frozen):
    """Coverage at a level: of target values by intervals, of whole samples by bands."""

    nominal: float
    coverage: float
    band_coverage: float


class Evaluation(Frozen):
    """What fresh samples say of an ensemble; the first numbers are those of the method in use.

    Attributes:
        nominal: Level of the intervals.
        spread_coverage: Share of target values within two standard deviations of the members, which are no interval.
        flagged: Share of samples flagged as unlike the training samples.
        n_known: Samples that the members trained on: all, where the data set is theirs as a whole, else none is known.
        methods: By method of weighing.
        calibration: By level.
    """

    n_samples: int
    method: str
    mse: float
    mae: float
    coverage: float
    nominal: float
    width: float
    band_coverage: float
    band_width: float
    spread_coverage: float
    flagged: float
    n_known: int
    methods: dict[str, MethodEvaluation]
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
    return dataset


def evaluate_ensemble(ensemble: Ensemble, dataset: Samples, level: float | None = None) -> Evaluation:
    """Measure an ensemble on samples that had no part in its making.

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
    methods = {
        use.card.method: evaluate_method(use, own, dataset.targets, level)
        for use, own in zip(every, folds, strict=True)
    }
    in_use = list(methods).index(ensemble.card.method)
    around = (folds[in_use], ensemble.residuals, ensemble.calibration.fold_of)
    within = np.abs(dataset.targets - folds[in_use].mean((0, 1))) <= 2 * spread
    return Evaluation(
        n_samples=len(dataset),
        method=ensemble.card.method,
        **methods[ensemble.card.method].model_dump(),
        nominal=level,
        spread_coverage=float(within.mean()),
        flagged=float((p_values <= FALSE_ALARMS).mean()),
        n_known=len(dataset) * (hash_arrays(dataset.inputs, dataset.targets) == ensemble.card.data_hash),
        methods=methods,
        calibration=tuple(
            CalibrationPoint(nominal=point.level, coverage=point.values, band_coverage=point.samples)
            for point in trace_calibration(*around, dataset.targets)
        ),
    )


def run(
    ensemble: Ensemble, every: Sequence[Ensemble], dataset: Samples
) -> tuple[
    list[Float[np.ndarray, "repeat fold sample *target"]],
    Float[np.ndarray, "sample *target"],
    Float[np.ndarray, " sample"],
]:
    """Predict by every method in one pass; also the members' spread by the one in use, and the p-values of novelty."""
    folds: list[list[Float[np.ndarray, "repeat fold part *target"]]] = [[] for _ in every]
    spreads, p_values = [], []
    for members, features in ensemble.walk_members(dataset.inputs, ensemble.card.symmetric):
        for use, own in zip(every, folds, strict=True):
            own.append(use.average_folds(members))
        spreads.append(ensemble.measure_spread(members))
        p_values.append(ensemble.measure_novelty(features)[1])
    return [np.concatenate(own, 2) for own in folds], np.concatenate(spreads), np.concatenate(p_values)


def evaluate_method(
    ensemble: Ensemble,
    folds: Float[np.ndarray, "repeat fold sample *target"],
    targets: Float[np.ndarray, "sample *target"],
    level: float,
) -> MethodEvaluation:
    around = (folds, ensemble.residuals, ensemble.calibration.fold_of, 1 - level)
    pointwise, together = (
        measure_coverage(*build(*around), targets) for build in (build_pointwise, build_simultaneous)
    )
    mean = folds.mean((0, 1))
    return MethodEvaluation(
        mse=float(find_objective("mse").score(mean, targets).mean()),
        mae=float(find_objective("mae").score(mean, targets).mean()),
        coverage=pointwise.values,
        width=pointwise.width,
        band_coverage=together.samples,
        band_width=together.width,
    )
