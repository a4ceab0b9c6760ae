"""Cross-validate fine-tuning strategies of a pretrained network on about 100 samples, and keep the ensemble."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_ft.config import Config as Config
    from ray_ft.config import load_config as load_config
    from ray_ft.ensemble import Ensemble as Ensemble
    from ray_ft.errors import RayFTError as RayFTError
    from ray_ft.models import DiffractionNet as DiffractionNet
    from ray_ft.models import load_network as load_network
    from ray_ft.python.estimator import FineTuner as FineTuner
    from ray_ft.python.learning_curves import learning_curve as learning_curve
    from ray_ft.python.objects import CrossValidation as CrossValidation
    from ray_ft.python.objects import cross_validate as cross_validate
    from ray_ft.report.page import write_report as write_report
    from ray_ft.results.learning_curve import LearningCurve as LearningCurve
    from ray_ft.results.run_comparison import RunComparison as RunComparison
    from ray_ft.results.run_comparison import compare as compare
    from ray_ft.results.summary import Summary as Summary

__version__ = "0.1.0"
_OWNERS = {
    "Config": "config",
    "CrossValidation": "python.objects",
    "DiffractionNet": "models",
    "Ensemble": "ensemble",
    "FineTuner": "python.estimator",
    "LearningCurve": "results.learning_curve",
    "RayFTError": "errors",
    "RunComparison": "results.run_comparison",
    "Summary": "results.summary",
    "compare": "results.run_comparison",
    "cross_validate": "python.objects",
    "learning_curve": "python.learning_curves",
    "load_config": "config",
    "load_network": "models",
    "write_report": "report.page",
}
__all__ = [*_OWNERS]


def __getattr__(name: str) -> Any:
    if name not in _OWNERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_OWNERS[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
