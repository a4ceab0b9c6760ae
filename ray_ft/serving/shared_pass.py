"""Requests of several clients share a pass of the ensemble."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Float

from ray_ft.ensemble import Ensemble, Prediction


@dataclass(frozen=True, eq=False)
class PreparedRequest:
    """Inputs as `Ensemble.prepare` returns them, and a level that `check_level` passes."""

    inputs: Float[np.ndarray, "sample *input"]
    level: float


def predict_together(ensemble: Ensemble, requests: Sequence[PreparedRequest]) -> list[Prediction | Exception]:
    """Predict for several requests, those of one level in one pass; what fails together is tried one by one."""
    found: dict[int, Prediction | Exception] = {}
    for level in {request.level for request in requests}:
        own = [i for i, request in enumerate(requests) if request.level == level]
        found |= zip(own, predict_level(ensemble, [requests[i].inputs for i in own], level), strict=True)
    return [found[i] for i in range(len(requests))]


def predict_level(
    ensemble: Ensemble, inputs: Sequence[Float[np.ndarray, "_ *input"]], level: float
) -> list[Prediction | Exception]:
    try:
        whole = ensemble.predict_prepared(np.concatenate(inputs), level)
    except Exception as error:  # the border of a request
        return [error] if len(inputs) == 1 else [predict_level(ensemble, [own], level)[0] for own in inputs]
    ends = np.cumsum([len(own) for own in inputs]).tolist()
    return [cut(whole, end - len(own), end) for end, own in zip(ends, inputs, strict=True)]


def cut(whole: Prediction, start: int, stop: int) -> Prediction:
    return replace(whole, **{field.name: getattr(whole, field.name)[start:stop] for field in fields(whole)})
