"""A run's config: frozen sections that refuse unknown keys, from YAML, overrides and the shipped strategies."""

from ray_ft.config.hyperparameters import (
    Declaration,
    GradientHyperparameters,
    Hyperparameters,
    RidgeHyperparameters,
    list_declared,
)
from ray_ft.config.loading import load_config, read_shipped, reload_config
from ray_ft.config.sections import (
    AS_WRITTEN,
    ComputeSection,
    Config,
    EnsembleSection,
    LoggersSection,
    ModelSection,
    SearchSection,
    StageConfig,
    StrategyConfig,
    TrainingSection,
)
from ray_ft.config.yaml_text import parse_yaml, read_yaml

__all__ = [
    "AS_WRITTEN",
    "ComputeSection",
    "Config",
    "Declaration",
    "EnsembleSection",
    "GradientHyperparameters",
    "Hyperparameters",
    "LoggersSection",
    "ModelSection",
    "RidgeHyperparameters",
    "SearchSection",
    "StageConfig",
    "StrategyConfig",
    "TrainingSection",
    "list_declared",
    "load_config",
    "parse_yaml",
    "read_shipped",
    "read_yaml",
    "reload_config",
]
