"""A run's config: frozen sections that refuse unknown keys, from YAML, overrides and the shipped strategies."""

from ray_ft.config.hyperparameters import Declaration as Declaration
from ray_ft.config.hyperparameters import GradientHyperparameters as GradientHyperparameters
from ray_ft.config.hyperparameters import Hyperparameters as Hyperparameters
from ray_ft.config.hyperparameters import Range as Range
from ray_ft.config.hyperparameters import RidgeHyperparameters as RidgeHyperparameters
from ray_ft.config.hyperparameters import list_declared as list_declared
from ray_ft.config.hyperparameters import scale_lr as scale_lr
from ray_ft.config.loading import build_config as build_config
from ray_ft.config.loading import fill_strategies as fill_strategies
from ray_ft.config.loading import load_config as load_config
from ray_ft.config.loading import read_shipped as read_shipped
from ray_ft.config.loading import reload_config as reload_config
from ray_ft.config.sections import AS_WRITTEN as AS_WRITTEN
from ray_ft.config.sections import SMALLEST_SHARE as SMALLEST_SHARE
from ray_ft.config.sections import ComputeSection as ComputeSection
from ray_ft.config.sections import Config as Config
from ray_ft.config.sections import EnsembleSection as EnsembleSection
from ray_ft.config.sections import LoggersSection as LoggersSection
from ray_ft.config.sections import ModelSection as ModelSection
from ray_ft.config.sections import SearchSection as SearchSection
from ray_ft.config.sections import StageConfig as StageConfig
from ray_ft.config.sections import StrategyConfig as StrategyConfig
from ray_ft.config.training import TrainingSection as TrainingSection
from ray_ft.config.yaml_text import parse_yaml as parse_yaml
from ray_ft.config.yaml_text import read_yaml as read_yaml
