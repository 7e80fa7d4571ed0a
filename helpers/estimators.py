"""The classical models: each a scikit-learn pipeline with its scaler and its feature selection inside.

So nothing is ever fitted on rows other than those a fold trains on. Every model has a small grid; the setting is chosen per
fold, on that fold's own valid speakers.
"""

import re
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg
from sklearn.base import BaseEstimator, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.feature_selection import SelectKBest, VarianceThreshold, f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, ParameterGrid
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.validation import validate_data

from helpers.experiment import Part


@dataclass(frozen=True)
class Classical:
    """A classical model that ``experiment.cross_validate`` can run.

    Attributes
    ----------
    name
        As it appears in tables.
    estimator
        A scikit-learn classifier or pipeline.
    grid
        Parameter name → values to choose from, per fold, by negative log-likelihood on the valid speakers: with a few
        hundred valid clips it is steadier than UAR, and the probabilities are to be averaged.
    refit
        Whether test rows are predicted by a fit on train + valid, once the choice is made.
    """

    name: str
    estimator: BaseEstimator
    grid: dict = field(default_factory=dict)
    refit: bool = True

    def recipe(self) -> dict:
        """Return everything a result depends on, for the cache."""
        settings = re.sub(
            r" at 0x[0-9a-f]+", "", repr(self.estimator.get_params())
        )  # a function's place in memory
        return {
            "estimator": settings,
            "grid": repr(self.grid),
            "refit": self.refit,
            "code": [
                Classical.fit_predict,
                fit_seeded,
                _all_columns,
                ShrunkLDA,
                ClippedScaler,
                anova,
            ],
        }

    def fit_predict(
        self, train: Part, valid: Part, test: np.ndarray, n_classes: int, seed: int
    ) -> dict:
        """Search on valid, then predict valid rows from train, and test rows from train (+ valid)."""
        best = None
        for setting in ParameterGrid(self.grid):
            model = fit_seeded(clone(self.estimator).set_params(**setting), train, seed)
            probability = _all_columns(model, valid.inputs, n_classes)
            loss = -float(
                np.log(probability[np.arange(len(probability)), valid.classes] + 1e-9).mean()
            )
            if best is None or loss < best[0]:
                best = (loss, setting, model, probability)
        loss, setting, model, probability = best
        if self.refit:
            model = fit_seeded(clone(self.estimator).set_params(**setting), train + valid, seed)
        fitted = ["train", "valid"] if self.refit else ["train"]
        return {
            "valid": probability,
            "test": _all_columns(model, test, n_classes),
            "steps": {"fit": fitted, "select": ["valid"]}
            | ({"augment": fitted} if train.copies is not None else {}),
            "notes": {
                "setting": {k.split("__")[-1]: v for k, v in setting.items()},
                "valid_nll": round(loss, 4),
            },
        }


class ClippedScaler(StandardScaler):
    """Standardise columns, and let no value lie more than a few standard deviations from the mean.

    A column may hardly vary over the speakers that were fitted on, e.g. a greatest value that is 1 for all of them but for
    rounding, and then lie thousands of their deviations away for the next speaker. That one column would decide alone, with
    a score so far out that a temperature fitted on it makes every other answer flat.

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
    """Return F and p of each column, as scikit-learn's ``f_classif`` does, also of columns whose spread is lost in rounding.

    It takes the difference of two sums of squares, which for a column that is 1 but for the seventh digit is noise in float32.
    """
    X = X.astype(np.float64)
    return f_classif(X - X.mean(axis=0), y)


class ShrunkLDA(LinearDiscriminantAnalysis):
    """Linear discriminant analysis with a shrunk covariance and equal priors, for some thousand columns.

    scikit-learn's takes thirty times as long there: it solves for the covariance by a singular value decomposition, where a
    shrunk one has an inverse.

    Parameters
    ----------
    shrinkage
        Share of a multiple of the identity in the covariance within emotions, 0 to 1, not 0.
    """

    def __init__(self, shrinkage: float = 0.35):
        super().__init__(solver="lsqr", shrinkage=shrinkage)

    def fit(self, X: np.ndarray, y: np.ndarray) -> "ShrunkLDA":
        """Fit to rows of columns that are alike in scale."""
        X, y = validate_data(self, X, y, dtype=np.float32)
        self.classes_, number = np.unique(y, return_inverse=True)
        means = np.stack(
            [X[number == i].mean(axis=0, dtype=np.float64) for i in range(len(self.classes_))]
        )
        centred = X - means[number].astype(np.float32)
        covariance = (centred.T @ centred / len(X)).astype(np.float64) * (1 - self.shrinkage)
        covariance.flat[:: len(covariance) + 1] += (
            self.shrinkage * np.square(centred, dtype=np.float64).mean()
        )
        weights = scipy.linalg.solve(covariance, means.T, assume_a="pos").T
        bias = -0.5 * (means * weights).sum(axis=1)
        two = len(self.classes_) == 2
        self.coef_, self.intercept_ = (
            (weights[1:] - weights[:1], bias[1:] - bias[:1]) if two else (weights, bias)
        )
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
        Columns that the boosted trees get (at most), chosen inside the fold by analysis of variance: they cost in proportion.
    search
        Whether each model's grid is searched; if not, its first values stand.

    Returns
    -------
    dict of str to Classical
        Unbalanced classes are weighted, except in LDA (equal priors do the same) and in boosting and MLP, which predict
        the classes as frequent as they are.
    """
    from lightgbm import LGBMClassifier
    from xgboost import XGBClassifier

    def scaled(*steps):
        return make_pipeline(ClippedScaler(), *steps)

    def selected(classifier):
        return make_pipeline(VarianceThreshold(), SelectKBest(anova, k=k_best), classifier)

    def calibrated(
        pipeline,
    ):  # a temperature, fitted on held-out speakers: an SVM has no probabilities, LDA's are far too sure
        return CalibratedClassifierCV(pipeline, method="temperature", ensemble=False)

    svm = SVC(class_weight="balanced", kernel="rbf")
    models = [
        Classical(
            "logistic regression",
            scaled(LogisticRegression(class_weight="balanced", max_iter=100, tol=1e-3)),
            {"logisticregression__C": [0.01, 0.001, 0.003, 0.03]},
        ),
        Classical(
            "LDA",
            calibrated(scaled(ShrunkLDA())),
            {"estimator__shrunklda__shrinkage": [0.35, 0.7, 0.5, 0.2]},
        ),
        Classical(
            "SVM",
            calibrated(scaled(svm)),
            {
                "estimator__svc__C": [10, 30],
                "estimator__svc__gamma": [0.2 / n_features, 0.05 / n_features],
            },
        ),
        Classical(
            "random forest",
            RandomForestClassifier(n_trees, max_features=0.05, class_weight="balanced_subsample"),
            {"min_samples_leaf": [2, 4]},
        ),
        Classical(
            "extra trees",
            ExtraTreesClassifier(n_trees, max_features=0.1, class_weight="balanced"),
            {"min_samples_leaf": [2, 4]},
        ),
        Classical(
            "gradient boosting",
            selected(
                HistGradientBoostingClassifier(
                    max_iter=n_rounds, max_features=0.2, early_stopping=False, max_leaf_nodes=8
                )
            ),
            {"histgradientboostingclassifier__learning_rate": [0.06, 0.12]},
        ),
        Classical(
            "XGBoost",
            selected(
                XGBClassifier(
                    n_estimators=n_rounds,
                    max_depth=3,
                    subsample=0.7,
                    colsample_bytree=0.2,
                    n_jobs=1,
                )
            ),
            {"xgbclassifier__learning_rate": [0.1, 0.2]},
        ),
        Classical(
            "LightGBM",
            selected(
                LGBMClassifier(
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
            ),
            {"lgbmclassifier__learning_rate": [0.06, 0.12]},
        ),
        Classical(
            "MLP",
            scaled(
                MLPClassifier(
                    (256,),
                    learning_rate_init=3e-4,
                    batch_size=64,
                    max_iter=mlp_epochs,
                    alpha=1.0,
                    early_stopping=False,
                )
            ),
            {"mlpclassifier__alpha": [1.0, 10.0]},
        ),
    ]
    if not search:
        models = [
            Classical(m.name, m.estimator, {k: v[:1] for k, v in m.grid.items()}, m.refit)
            for m in models
        ]
    return {model.name: model for model in models}


def linear_head(name: str) -> Classical:
    """Return a logistic regression for a network's embeddings, in place of its own last layers.

    Use it where something was done to the embeddings, e.g. standardising per speaker, that the head has to learn anew.
    """
    return Classical(
        name, LogisticRegression(class_weight="balanced", max_iter=500), {"C": [0.01, 0.001, 0.1]}
    )


def fit_seeded(model: BaseEstimator, part: Part, seed: int) -> BaseEstimator:
    """Fit with every random state set, on the clips and their copies; what splits inside splits by speaker."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    part = part.with_copies()
    model.set_params(
        **{name: seed for name in model.get_params() if name.split("__")[-1] == "random_state"}
    )
    if isinstance(model, CalibratedClassifierCV):
        splitter = GroupKFold(min(4, len(np.unique(part.speakers))))
        model.set_params(cv=list(splitter.split(part.inputs, part.classes, part.speakers)))
    with (
        warnings.catch_warnings()
    ):  # fixed small budgets of iterations are part of these models' regularisation
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(part.inputs, part.classes)


def _all_columns(model: BaseEstimator, inputs: np.ndarray, n_classes: int) -> np.ndarray:
    """Predict probabilities with a column for every class, also those the fold did not train on."""
    result = np.zeros((len(inputs), n_classes))
    result[:, model.classes_] = model.predict_proba(inputs)
    return result
