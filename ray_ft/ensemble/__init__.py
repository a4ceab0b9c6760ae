"""The ensemble: tails of many members on one backbone; saved as a folder, loaded to predict."""

from ray_ft.ensemble.computing import apply_stacked, blame_inputs, flatten_features, limit_blas
from ray_ft.ensemble.model import FALSE_ALARMS, Ensemble, Raw
from ray_ft.objectives.regression_answers import Prediction

__all__ = [
    "FALSE_ALARMS",
    "Ensemble",
    "Prediction",
    "Raw",
    "apply_stacked",
    "blame_inputs",
    "flatten_features",
    "limit_blas",
]
