"""The estimator, by scikit-learn's own checks."""

import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from torch import nn

from ray_ft.errors import ConfigError
from ray_ft.python.estimator import FineTuner

RIDGE = {"ridge": {"fit": "ridge", "train": ["2.*"]}}
EXPECTED = {
    "check_methods_subset_invariance": "a batch of another size rounds differently: 1e-6 in float32, 1e-7 is asked for",
}


def build(n_inputs: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    first = nn.LazyLinear(16) if n_inputs is None else nn.Linear(n_inputs, 16)
    return nn.Sequential(first, nn.Tanh(), nn.Linear(16, 3))


def make(objective: str, model: Any = build, **options: Any) -> FineTuner:
    values = {"model.new_head": True, **options}
    return FineTuner(model, strategies=RIDGE, folds=2, seeds=1, objective=objective, options=values)


def test_it_is_an_estimator_of_classes() -> None:
    x, y = load_digits(return_X_y=True)
    names = np.array([f"digit {label}" for label in y])
    fitted = make("classification", partial(build, 64)).fit(x[:200] / 16, names[:200])
    assert list(fitted.classes_) == sorted(set(names))
    new = x[200:400] / 16
    np.testing.assert_allclose(fitted.predict_proba(new).sum(1), 1, rtol=1e-5)
    assert fitted.score(new, names[200:400]) == (fitted.predict(new) == names[200:400]).mean() > 0.7
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(new), fitted.predict_proba(new))
    assert clone(fitted).get_params()["folds"] == 2


def test_it_works_in_a_pipeline_and_is_scored() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5))
    scores = cross_val_score(make_pipeline(StandardScaler(), make("regression")), x, x[:, 0] + 2 * x[:, 1], cv=2)
    assert scores.min() > 0.5


@pytest.mark.parametrize("labels", [(0, 2), (-1, 1), (9, 10), (0.0, 1.0), ("no", "yes"), (0, 1)])
def test_labels_are_names_whatever_outputs_the_network_has(labels: tuple[Any, Any]) -> None:
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(40, 4))
    y = np.array(labels)[(x[:, 0] > 0).astype(int)]
    network = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    model = FineTuner(network, strategies=RIDGE, folds=2, seeds=1, objective="classification").fit(x, y)
    assert model.predict_proba(x).shape == (40, 2)
    np.testing.assert_allclose(model.predict_proba(x).sum(1), 1)
    assert model.score(x, y) > 0.7
    values = np.stack([x[:, 0], x[:, 1], x[:, 2]], 1)
    again = model.set_params(objective="regression").fit(x, values)
    assert again.predict(x).shape == (40, 3)


def test_what_is_missing_is_said() -> None:
    x = np.zeros((4, 2))
    with pytest.raises(ConfigError, match="a FineTuner needs a model"):
        FineTuner().fit(x, x[:, 0])
    with pytest.raises(NotFittedError):
        make("regression").predict(x)
    assert not hasattr(make("regression"), "predict_proba")


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["regression", "classification"])
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks(objective: str) -> None:
    failed = {}
    for estimator, check in estimator_checks_generator(make(objective)):
        name = getattr(check, "func", check).__name__
        try:
            check(estimator)
        except pytest.skip.Exception:
            pass
        except Exception as error:
            if type(error).__name__ != "SkipTest":
                failed[name] = f"{type(error).__name__}: {error}"
    assert failed.keys() <= EXPECTED.keys(), failed
