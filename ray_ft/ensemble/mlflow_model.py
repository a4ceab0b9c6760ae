"""An ensemble as a model of MLflow: a folder that holds the ensemble's own files, and that this package loads."""

import os
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ray_ft.ensemble.artefact import find_folder, read_card
from ray_ft.ensemble.model import Ensemble, Raw
from ray_ft.errors import EnsembleError
from ray_ft.runs.provenance import find_version


class PyfuncModel:
    """What `mlflow.pyfunc.load_model` gives."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble

    def predict(
        self, model_input: Raw, params: dict[str, Any] | None = None
    ) -> dict[str, Shaped[np.ndarray, "sample ..."]]:
        """Predict every quantity of `Ensemble.predict` that there is: mean, std, intervals and others.

        Args:
            model_input: As in the run's data.
            params: `level` of the intervals; the card's where it is left out.

        Raises:
            DataError: The inputs are not as the run's were.
            ConfigError: The level is not one, or the training samples are too few for it.
        """
        found = asdict(self.ensemble.predict(model_input, (params or {}).get("level")))
        return {name: array for name, array in found.items() if array is not None}


def _load_pyfunc(path: str) -> PyfuncModel:
    """Load it, as MLflow asks the module that a model names."""
    return PyfuncModel(Ensemble.load(path))


def write_mlflow(source: Path, path: Path) -> Path:
    """Write an ensemble, from its folder or from that of its run, to a new folder that MLflow loads.

    Raises:
        EnsembleError: There is no ensemble, it needs code, the folder exists or cannot be written, or the package is
            missing.
    """
    folder = find_folder(source)
    if os.path.lexists(path):
        raise EnsembleError(
            f"a model of MLflow is a new folder, got {path}, which exists; name another, as --force is for files"
        )
    if (card := read_card(folder)).needs_code:
        raise EnsembleError(f"an ensemble must be tensor operations to be exported, but {card.split}")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it is on where nothing is said
    try:
        from mlflow.models import ModelSignature
        from mlflow.pyfunc import save_model
        from mlflow.types import ParamSchema, ParamSpec
    except ImportError as error:
        raise EnsembleError(
            f"a model of MLflow needs the package {error.name}, which is missing: pip install 'ray-ft[mlflow]'"
        ) from error
    # Inputs are in the form of the run's data, which is not the network's: of those the ensemble itself is the judge.
    signature = ModelSignature(params=ParamSchema([ParamSpec("level", "double", None)]))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as partial,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # it asks for an example of the inputs, to guess their form
            save_model(
                whole := Path(partial, "model"), loader_module=__name__, data_path=folder.root, signature=signature,
                pip_requirements=[],  # ray-ft is installed from its repository, and what it needs with it
                metadata={"run": card.run, "score": card.score, "ray-ft": find_version("ray-ft")},
            )  # fmt: skip
            whole.rename(path)
    except OSError as error:
        raise EnsembleError(f"an export must be writable, got {path}: {error.strerror}") from error
    return path
