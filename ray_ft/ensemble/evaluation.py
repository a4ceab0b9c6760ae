"""An ensemble on fresh labelled samples: its error, and whether it holds what it promises."""

from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from ray_ft.data.samples import Samples, Sources, build_samples, have_same_values
from ray_ft.ensemble import FALSE_ALARMS, Ensemble
from ray_ft.ensemble.artefact import check_files
from ray_ft.errors import DataError, first_few
from ray_ft.files.arrays import list_arrays
from ray_ft.files.hashes import hash_arrays
from ray_ft.objectives import Folds


class CalibrationPoint(BaseModel, frozen=True, extra="allow"):
    """What was measured at a level; the objective's measures stand beside, each by its name."""

    nominal: float


class Evaluation(BaseModel, frozen=True, extra="allow"):
    """What fresh samples say of an ensemble; the objective's measures of the method in use stand beside, by name."""

    n_samples: int
    method: str
    metric: str
    nominal: float  # the level that was asked for
    lack: str = ""  # why there are no intervals, of which nothing then stands beside
    flagged: float  # share of samples flagged as unlike the training samples
    n_known: int  # samples that the members trained on: all, where the data set is theirs as a whole, else 0
    n_missing: int = 0  # target values that no label is there for, of samples that have one
    methods: dict[str, dict[str, float]]
    calibration: tuple[CalibrationPoint, ...]
    outputs: dict[str, dict[str, float]] = {}  # of each of several outputs, by the method in use


def read_labelled(ensemble: Ensemble, data: str | None, inputs: str | None, targets: str | None) -> Samples:
    """Read labelled samples from a file with the keys or columns of the run's own data, or from what takes its place.

    Raises:
        DataError: They are missing, or not as the run's were.
    """
    check_files(ensemble.card)
    keys = dict(zip(("inputs", "targets"), ensemble.card.data_keys, strict=True))
    sources = {"inputs": inputs, "targets": targets}
    lacking = [name for name, source in sources.items() if source is None]
    if data is None and lacking:
        raise DataError(
            f"labelled samples need inputs and targets, got no {lacking[0]}; give --{lacking[0]} FILE[::key]"
        )
    unnamed = [name for name in lacking if not keys[name]]
    if unnamed and Path(str(data)).exists():  # else reading it says that it does not
        rule = f"the {' and '.join(unnamed)} of the run had no names, by which to find them in {data}"
        raise DataError(f"{rule}; give {' '.join(f'--{name} {data}::KEY' for name in lacking)}{describe_keys(data)}")
    sources |= {name: f"{data}::{keys[name]}" for name in lacking}
    encode = partial(ensemble.objective.encode_targets, classes=ensemble.card.classes)
    named = Sources(str(sources["inputs"]), str(sources["targets"]), keys=ensemble.card.data_keys)
    dataset = build_samples(named.read(), named, ensemble.domain, 1, encode)
    if have_same_values(dataset.targets.shape[1:], ensemble.card.target_shape):
        dataset = replace(dataset, targets=dataset.targets.reshape(-1, *ensemble.card.target_shape))
    shapes = {"inputs": ensemble.card.input_shape, "targets": ensemble.card.target_shape}
    for name, shape in shapes.items():
        if (found := getattr(dataset, name).shape[1:]) != shape:
            raise DataError(f"{name} must have the shape {shape}, got {found} in {sources[name]}")
    return dataset


def describe_keys(data: str | None) -> str:
    """Name the arrays of a `.npz`, of which a key is one; nothing of another file, or of one that is damaged."""
    names: list[str] = []
    with suppress(OSError, ValueError):
        names = sorted(filter(None, list_arrays(Path(str(data)))))
    return f", where KEY is one of {first_few(names, 8)}" if names else ""


def evaluate_ensemble(ensemble: Ensemble, dataset: Samples, level: float | None = None) -> Evaluation:
    """Measure an ensemble, by its objective, on samples that had no part in its making, at the card's level or another.

    Raises:
        ConfigError: The level is not one, or the training samples are too few for it.
    """
    level = ensemble.settle_level(level)
    parts: dict[str, list[Folds]] = {method: [] for method in ensemble.card.weights}
    spreads, p_values = [], []
    for members, features in ensemble.walk_members(dataset.inputs, ensemble.card.symmetric):
        for method, own in parts.items():
            own.append(ensemble.use_method(method).average_folds(members))
        spreads.append(ensemble.measure_spread(members))
        p_values.append(ensemble.measure_novelty(features)[1])
    folds = {method: np.concatenate(own, 2) for method, own in parts.items()}
    kept, spread = (ensemble.calibration.residuals, ensemble.calibration.fold_of), np.concatenate(spreads)
    evaluate = ensemble.objective.answers.evaluate
    outputs = ensemble.card.name_axes().divide_outputs()
    found = evaluate(folds, *kept, spread, dataset.targets, ensemble.card.method, level, outputs)
    content = {
        "n_samples": len(dataset),
        "method": ensemble.card.method,
        "metric": ensemble.card.metric,
        **found.methods[ensemble.card.method],
        **found.beside,
        "nominal": level,
        "lack": ensemble.describe_lack(level),
        "flagged": float((np.concatenate(p_values) <= FALSE_ALARMS).mean()),
        "n_known": len(dataset) * (hash_arrays(dataset.inputs, dataset.targets) == ensemble.card.data_hash),
        "n_missing": int(np.isnan(dataset.targets).sum()),
        "methods": found.methods,
        "calibration": [{"nominal": at, **measures} for at, measures in found.calibration.items()],
        "outputs": found.outputs,
    }
    return Evaluation.model_validate(content)
