"""The ensemble: tails of many members on one backbone; saved as a folder, loaded to predict."""

from ray_ft.ensemble.model import (
    FALSE_ALARMS,
    QUANTITIES,
    Ensemble,
    Prediction,
    apply_stacked,
    flatten_features,
    limit_blas,
)

__all__ = [
    "FALSE_ALARMS",
    "QUANTITIES",
    "Ensemble",
    "Prediction",
    "apply_stacked",
    "flatten_features",
    "limit_blas",
]
