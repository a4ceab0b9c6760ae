"""A scikit-learn estimator whose `fit` cross-validates strategies and whose `predict` is the ensemble's."""

from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from sklearn.base import BaseEstimator
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from ray_ft.errors import ConfigError
from ray_ft.objectives import CLASSIFICATION, METRICS
from ray_ft.python.given import find_metric
from ray_ft.python.objects import CrossValidation, cross_validate

SEVERAL = ("multilabel", "multilabel_log_loss")  # objectives of several labels a sample


def answers_with_classes(estimator: "FineTuner") -> bool:
    return estimator.objective is not None and METRICS[find_metric(estimator.objective, np.empty(0))] == CLASSIFICATION


class FineTuner(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Fine-tune a network by the strategy of the lowest cross-validated score, and predict by the ensemble.

    Args:
        model: The pretrained network, or a callable that builds it; it is not changed.
        strategies: As `cross_validate` takes them, and so are the others.
        folds: Number of parts that are held out in turn.
        seeds: Number of trainings of each fold.
        objective: `regression`, `classification`, or a metric. Without it, numbers with a fraction are regressed.
        options: Values by key of a config file.
        inline: Train in this process, without Ray.
        progress: Whether to show it.

    Attributes:
        result_: What was found, a `CrossValidation`.
        ensemble_: Its ensemble, which predicts.
        classes_: Of a classification, the labels in the order of the columns of `predict_proba`.
        n_features_in_: Columns of `X`.
    """

    def __init__(  # it takes anything, and `fit` checks it, as scikit-learn has it
        self,
        model: Any = None,
        *,
        strategies: Any = None,
        folds: Any = 5,
        seeds: Any = 3,
        objective: Any = None,
        options: Any = None,
        inline: Any = True,
        progress: Any = False,
    ) -> None:
        self.model = model
        self.strategies = strategies
        self.folds = folds
        self.seeds = seeds
        self.objective = objective
        self.options = options
        self.inline = inline
        self.progress = progress

    def fit(self, X: Any, y: Any, groups: Any = None) -> "FineTuner":  # noqa: N803  # as scikit-learn calls it
        """Cross-validate the strategies, and build the ensemble.

        Args:
            X: Inputs, shape (sample, *input).
            y: Targets, shape (sample, *target), or labels.
            groups: A label for each sample; samples of one stay in one fold.

        Raises:
            UserError: What was given breaks a rule.
            ValueError: Or a rule that scikit-learn checks.
        """
        if self.model is None:
            raise ConfigError("a FineTuner needs a model, got none; give a torch.nn.Module, or what builds one")
        if self.objective is None and METRICS[find_metric(None, np.asarray(y))] == CLASSIFICATION:
            rule = "a FineTuner of classes must know it beforehand, as scikit-learn asks for it"
            raise ConfigError(f'{rule}, got none for labels; say objective="classification"')
        classes = answers_with_classes(self)
        X, y = validate_data(  # noqa: N806
            self, X, y, allow_nd=True, multi_output=True, y_numeric=not classes, dtype="numeric", ensure_min_samples=2
        )
        y = column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
        self.__dict__.pop("classes_", None)  # of another objective
        options, labels, objective = {**(self.options or {})}, y, self.objective or "regression"
        if classes and y.ndim == 1:
            check_classification_targets(y)
            self.classes_, labels = np.unique(y, return_inverse=True)
            names = self.classes_.astype(str)
            options["data.classes"], labels = names.tolist(), names[labels]
            if len(self.classes_) < 2:
                raise ValueError(f"a classifier needs two classes or more, got one class: {self.classes_[0]!r}")
        result = cross_validate(
            self.model, (X, labels if classes else y.astype(np.float64)), strategies=self.strategies, folds=self.folds,
            seeds=self.seeds, groups=groups, objective=objective, options=options, inline=self.inline,
            progress=self.progress,
        )  # fmt: skip
        assert isinstance(result, CrossValidation)
        self.result_, self.ensemble_ = result, result.ensemble
        return self

    def predict(self, X: Any) -> Shaped[np.ndarray, "sample *target"]:  # noqa: N803
        """Predict targets, or the most probable classes."""
        mean = self._average(X)
        if hasattr(self, "classes_"):
            return np.asarray(self.classes_[mean.argmax(1)])
        return mean > 0.5 if answers_with_classes(self) else mean

    @available_if(answers_with_classes)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Float[np.ndarray, "sample class"]:  # noqa: N803
        """Predict the probability of each class."""
        return self._average(X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:  # noqa: N803
        """Score by accuracy, or by R² averaged over outputs; higher is better, as scikit-learn has it."""
        measure = accuracy_score if answers_with_classes(self) else r2_score
        return float(measure(y, self.predict(X), sample_weight=sample_weight))

    def _average(self, X: Any) -> Float[np.ndarray, "sample *target"]:  # noqa: N803
        check_is_fitted(self, "result_")
        inputs = validate_data(self, X, allow_nd=True, dtype="numeric", reset=False)
        mean: np.ndarray = self.ensemble_.predict(inputs).mean.astype(np.float64)
        if hasattr(self, "classes_"):
            known = self.ensemble_.card.classes  # of which the network may have some without a sample
            mean = mean[:, [known.index(name) for name in self.classes_.astype(str)]]
            mean = mean / mean.sum(1, keepdims=True)
        return mean

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        from sklearn.utils import ClassifierTags, RegressorTags

        classes = answers_with_classes(self)
        tags.estimator_type = "classifier" if classes else "regressor"
        tags.classifier_tags = ClassifierTags(poor_score=True) if classes else None
        tags.regressor_tags = None if classes else RegressorTags(poor_score=True)
        tags.target_tags.required = True
        tags.target_tags.multi_output = not classes or self.objective in SEVERAL
        tags.target_tags.single_output = True
        tags.input_tags.three_d_array = True
        return tags
