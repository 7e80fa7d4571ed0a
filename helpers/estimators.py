"""Classical models: scikit-learn pipelines with their scaler and their feature selection inside.

So nothing is fitted on other rows than those a fold trains on. Every model has a small grid, from
which a setting is chosen per fold, on the validation speakers of that fold.
"""

import re
import warnings
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg
from sklearn import (
    calibration,
    discriminant_analysis,
    ensemble,
    exceptions,
    feature_selection,
    linear_model,
    model_selection,
    neural_network,
    pipeline,
    preprocessing,
    svm,
)
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import validate_data

from helpers.artifacts import LinearPart
from helpers.cache import source_of
from helpers.experiment import FoldRows

VERSION = 1


@dataclass(frozen=True)
class Classical:
    """A classical model that ``experiment.cross_validate`` can fit.

    Attributes
    ----------
    name
        As it appears in tables.
    estimator
        A scikit-learn classifier or pipeline.
    grid
        Parameter name → values to choose from, per fold, by negative log-likelihood on the
        validation speakers: with a few hundred clips it varies less than UAR.
    refit_on_validation
        Whether test rows are predicted by a fit on train + validation, once the choice is made.
    """

    name: str
    estimator: BaseEstimator
    grid: dict = field(default_factory=dict)
    refit_on_validation: bool = True

    def recipe(self) -> dict:
        """Return everything that a result depends on, besides data and seed."""
        address, settings = r" at 0x[0-9a-f]+", self.estimator.get_params()  # of a function
        own = {type(v) for v in settings.values() if type(v).__module__ == "__main__"}
        return {
            "estimator": re.sub(address, "", repr(settings)),
            "defined here": sorted(map(source_of, own)),
            "grid": repr(self.grid),
            "refit_on_validation": self.refit_on_validation,
        }

    def fit_predict(
        self,
        train: FoldRows,
        validation: FoldRows,
        test: np.ndarray,
        n_classes: int,
        seed: int,
    ) -> dict:
        """Choose a setting on the validation speakers, then predict their and test rows.

        Returns
        -------
        dict
            ``validation`` (predicted from train) and ``test`` (from train, or train + validation),
            probabilities of shape ``(n_rows, n_classes)``; ``steps`` (which roles each step saw)
            and ``notes`` (the setting).
        """
        tried = []
        for setting in model_selection.ParameterGrid(self.grid):
            model = fit_seeded(clone(self.estimator).set_params(**setting), train, seed)
            found = _all_columns(model, validation.inputs, n_classes)
            nll = -float(np.log(found[np.arange(len(found)), validation.classes] + 1e-9).mean())
            tried.append((nll, setting, model, found))
        nll, setting, model, found = min(tried, key=lambda row: row[0])
        roles = ["train"]
        if self.refit_on_validation:
            model, roles = clone(self.estimator).set_params(**setting), ["train", "validation"]
            fit_seeded(model, train + validation, seed)
        steps = {"fit": roles, "select": ["validation"]}
        steps |= {} if train.copies is None else {"augment": roles}
        names = {name.split("__")[-1]: value for name, value in setting.items()}
        return {
            "validation": found,
            "test": _all_columns(model, test, n_classes),
            "steps": steps,
            "notes": {"setting": names, "validation_nll": round(nll, 4)},
        }

    def refit(self, record: dict, rows: FoldRows, n_classes: int, seed: int = 0) -> LinearPart:
        """Fit the final model: on all speakers, with the setting that most folds chose.

        Parameters
        ----------
        record
            Run record of the cross-validation.
        rows
            All rows of the corpus.
        n_classes, seed
            As in cross-validation.

        Returns
        -------
        artifacts.LinearPart

        Raises
        ------
        ValueError
            If the model is not linear: such models can't be saved.
        """
        setting = frozen_setting(record)
        chosen = {name: setting[name.split("__")[-1]] for name in self.grid}
        fitted = fit_seeded(clone(self.estimator).set_params(**chosen), rows, seed)
        part = _linear_part(fitted, n_classes)
        if part is None:
            raise ValueError(
                f"{self.name} can't be saved: only networks of helpers.nets and linear models can "
                "(logistic regression and LDA, after one scaler, with or without a temperature)"
            )
        return part


class ClippedScaler(preprocessing.StandardScaler):
    """Standardise columns, and clip values that lie many standard deviations from the mean.

    A column may hardly vary over the training speakers, e.g. a maximum that is 1 for all of them
    but for rounding, and then lie thousands of their standard deviations away for the next speaker.
    Without the limit, this column would decide alone, and a temperature that is fitted to such
    scores makes all other probabilities flat.

    Parameters
    ----------
    limit
        In standard deviations.
    """

    def __init__(self, limit: float = 5.0):
        super().__init__()
        self.limit = limit

    def transform(self, X: np.ndarray, copy: bool | None = None) -> np.ndarray:
        """Standardise and clip rows, shape ``(n_rows, n_columns)``."""
        values = super().transform(X, copy)
        return np.clip(values, -self.limit, self.limit, out=values)


def anova(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return F and p of each column, also of columns that hardly vary.

    scikit-learn's ``f_classif`` takes the difference of two sums of squares, which in float32 is
    noise for a column that is 1 but for the seventh digit.
    """
    X = X.astype(np.float64)
    return feature_selection.f_classif(X - X.mean(axis=0), y)


class ShrunkLDA(discriminant_analysis.LinearDiscriminantAnalysis):
    """Linear discriminant analysis with a shrunk covariance and equal priors, for many columns.

    For some thousand columns, scikit-learn's takes thirty times as long: it solves for the
    covariance by a singular value decomposition, where a shrunk covariance has an inverse.

    Parameters
    ----------
    shrinkage
        Share of a multiple of the identity in the covariance within emotions, above 0, up to 1.
    """

    def __init__(self, shrinkage: float = 0.35):
        super().__init__(solver="lsqr", shrinkage=shrinkage)

    def fit(self, X: np.ndarray, y: np.ndarray) -> "ShrunkLDA":
        """Fit to rows whose columns are alike in scale."""
        X, y = validate_data(self, X, y, dtype=np.float32)
        self.classes_, codes = np.unique(y, return_inverse=True)
        n_classes = len(self.classes_)
        means = np.stack([X[codes == i].mean(axis=0, dtype=np.float64) for i in range(n_classes)])
        centred = X - means[codes].astype(np.float32)
        covariance = (centred.T @ centred / len(X)).astype(np.float64) * (1 - self.shrinkage)
        diagonal = self.shrinkage * np.square(centred, dtype=np.float64).mean()
        covariance.flat[:: len(covariance) + 1] += diagonal
        weights = scipy.linalg.solve(covariance, means.T, assume_a="pos").T
        bias = -0.5 * (means * weights).sum(axis=1)
        if n_classes == 2:  # as scikit-learn has it: one row, of the second class
            weights, bias = weights[1:] - weights[:1], bias[1:] - bias[:1]
        self.coef_, self.intercept_ = weights, bias
        return self


def classical_models(
    n_features: int,
    n_trees: int = 300,
    n_rounds: int = 150,
    k_best: int = 400,
    mlp_epochs: int = 30,
    search: bool = True,
) -> dict[str, Classical]:
    """Return the project's classical models by name.

    Parameters
    ----------
    n_features
        Number of input columns; sets the width of the SVM's kernel.
    n_trees, n_rounds, mlp_epochs
        Size of the forests, boosting rounds, and passes of the MLP over the training rows.
    k_best
        Number of columns for boosted trees, whose cost is in proportion; chosen inside the fold by
        analysis of variance.
    search
        Whether each model's grid is searched; if not, its first values are used.

    Returns
    -------
    dict of str to Classical
        Classes are weighted by their frequency, except in LDA (it has equal priors) and in boosting
        and MLP, which learn how frequent classes are.
    """
    mlp = neural_network.MLPClassifier(
        (256,), learning_rate_init=3e-4, batch_size=64, max_iter=mlp_epochs, alpha=1.0
    )
    models = [*_linear_and_svm(n_features), *_forests(n_trees), *_boosted(n_rounds, k_best)]
    models.append(Classical("MLP", _scaled(mlp), {"mlpclassifier__alpha": [1.0, 10.0]}))
    for model in models:
        for name in model.grid:
            model.grid[name] = model.grid[name][: None if search else 1]
    return {model.name: model for model in models}


def linear_head(name: str) -> Classical:
    """Return a logistic regression for embeddings of a network, in place of its last layers.

    Use it where embeddings were changed, e.g. standardised per speaker.
    """
    estimator = linear_model.LogisticRegression(class_weight="balanced", max_iter=500)
    return Classical(name, estimator, {"C": [0.01, 0.001, 0.1]})


def fit_seeded(model: BaseEstimator, rows: FoldRows, seed: int) -> BaseEstimator:
    """Fit with every random state set, on clips and copies; inner splits are by speaker."""
    rows, names = rows.with_copies(), model.get_params()
    model.set_params(**{name: seed for name in names if name.split("__")[-1] == "random_state"})
    if isinstance(model, calibration.CalibratedClassifierCV):
        splitter = model_selection.GroupKFold(min(4, len(np.unique(rows.speakers))))
        model.set_params(cv=list(splitter.split(rows.inputs, rows.classes, rows.speakers)))
    with warnings.catch_warnings():  # few iterations are part of these models' regularisation
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        return model.fit(rows.inputs, rows.classes)


def frozen_setting(record: dict) -> dict:
    """Return the setting of a final model: per name the most frequent choice of the folds.

    Of numbers that were drawn, so that no two folds have the same one, it is the median.

    Parameters
    ----------
    record
        Run record of the cross-validation.
    """
    settings = [fold["notes"].get("setting", {}) for fold in record["folds"].values()]
    frozen = {}
    for name in settings[0]:
        values = [setting[name] for setting in settings]
        frozen[name] = max(values, key=values.count)
        if values.count(frozen[name]) == 1 and all(isinstance(v, float) for v in values):
            frozen[name] = float(np.median(values))
    return frozen


def _scaled(classifier: BaseEstimator) -> pipeline.Pipeline:
    return pipeline.make_pipeline(ClippedScaler(), classifier)


def _calibrated(classifier: BaseEstimator) -> calibration.CalibratedClassifierCV:
    """Add a scaler, and a temperature that is fitted on held-out speakers.

    An SVM has no probabilities, and those of LDA are far too close to 0 and 1.
    """
    return calibration.CalibratedClassifierCV(
        _scaled(classifier), method="temperature", ensemble=False
    )


def _selected(classifier: BaseEstimator, k: int) -> pipeline.Pipeline:
    best = feature_selection.SelectKBest(anova, k=k)
    return pipeline.make_pipeline(feature_selection.VarianceThreshold(), best, classifier)


def _linear_and_svm(n_features: int) -> list[Classical]:
    logistic = linear_model.LogisticRegression(class_weight="balanced", max_iter=100, tol=1e-3)
    kernel = svm.SVC(class_weight="balanced", kernel="rbf")
    return [
        Classical(
            "logistic regression",
            _scaled(logistic),
            {"logisticregression__C": [0.01, 0.001, 0.003, 0.03]},
        ),
        Classical(
            "LDA",
            _calibrated(ShrunkLDA()),
            {"estimator__shrunklda__shrinkage": [0.35, 0.7, 0.5, 0.2]},
        ),
        Classical(
            "SVM",
            _calibrated(kernel),
            {
                "estimator__svc__C": [10, 30],
                "estimator__svc__gamma": [0.2 / n_features, 0.05 / n_features],
            },
        ),
    ]


def _forests(n_trees: int) -> list[Classical]:
    return [
        Classical(
            "random forest",
            ensemble.RandomForestClassifier(
                n_trees, max_features=0.05, class_weight="balanced_subsample"
            ),
            {"min_samples_leaf": [2, 4]},
        ),
        Classical(
            "extra trees",
            ensemble.ExtraTreesClassifier(n_trees, max_features=0.1, class_weight="balanced"),
            {"min_samples_leaf": [2, 4]},
        ),
    ]


def _boosted(n_rounds: int, k_best: int) -> list[Classical]:
    from lightgbm import LGBMClassifier  # late: these two take seconds
    from xgboost import XGBClassifier

    histogram = ensemble.HistGradientBoostingClassifier(
        max_iter=n_rounds, max_features=0.2, early_stopping=False, max_leaf_nodes=8
    )
    xgboost = XGBClassifier(
        n_estimators=n_rounds, max_depth=3, subsample=0.7, colsample_bytree=0.2, n_jobs=1
    )
    lightgbm = LGBMClassifier(
        n_estimators=n_rounds,
        num_leaves=8,
        subsample=0.7,
        subsample_freq=1,
        colsample_bytree=0.2,
        min_child_samples=10,
        deterministic=True,
        n_jobs=1,
        verbosity=-1,
    )
    return [
        Classical(
            "gradient boosting",
            _selected(histogram, k_best),
            {"histgradientboostingclassifier__learning_rate": [0.06, 0.12]},
        ),
        Classical(
            "XGBoost", _selected(xgboost, k_best), {"xgbclassifier__learning_rate": [0.1, 0.2]}
        ),
        Classical(
            "LightGBM", _selected(lightgbm, k_best), {"lgbmclassifier__learning_rate": [0.06, 0.12]}
        ),
    ]


def _linear_part(fitted: BaseEstimator, n_classes: int) -> LinearPart | None:
    """Turn scaler, linear classifier and temperature into arrays; None for any other model."""
    factor, scale = None, (preprocessing.StandardScaler, ClippedScaler)
    if getattr(fitted, "method", "") == "temperature" and not fitted.ensemble:
        (calibrated,) = fitted.calibrated_classifiers_
        factor, fitted = float(calibrated.calibrators[0].beta_), calibrated.estimator
    *scaler, last = [step for _, step in getattr(fitted, "steps", [("", fitted)])]
    scales = [type(step) in scale and step.with_mean and step.with_std for step in scaler]
    linear = (linear_model.LogisticRegression, discriminant_analysis.LinearDiscriminantAnalysis)
    if not isinstance(last, linear) or len(scaler) > 1 or not all(scales):
        return None
    coefficients = np.column_stack([last.coef_, last.intercept_])
    if len(last.classes_) == 2:  # one row, of the second class
        coefficients = np.concatenate([-coefficients, coefficients]) * (1 if factor else 0.5)
    n = last.n_features_in_
    rows = np.column_stack([np.zeros((n_classes, n)), np.full(n_classes, -np.inf)])
    rows[last.classes_] = coefficients * (factor or 1)
    before = scaler[0] if scaler else ClippedScaler(np.inf).fit([[-1.0] * n, [1.0] * n])
    limit = np.array(getattr(before, "limit", np.inf))
    return LinearPart(before.mean_, before.scale_, rows[:, :n], rows[:, n], limit)


def _all_columns(model: BaseEstimator, inputs: np.ndarray, n_classes: int) -> np.ndarray:
    """Predict probabilities with a column for every class, also without training examples."""
    result = np.zeros((len(inputs), n_classes))
    result[:, model.classes_] = model.predict_proba(inputs)
    return result
