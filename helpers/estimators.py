"""Classical models: scikit-learn pipelines with their scaler and their feature selection inside.

So nothing is fitted on other rows than those a fold trains on. Every model has a small grid, from
which a setting is chosen per fold, on the validation speakers of that fold.
"""

import re
import warnings
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import scipy.linalg
import threadpoolctl
from sklearn import (
    base,
    calibration,
    discriminant_analysis,
    exceptions,
    linear_model,
    model_selection,
    pipeline,
    preprocessing,
    svm,
    utils,
)

from helpers import artifacts, cache, experiment

VERSION = 2


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
    """

    name: str
    estimator: base.BaseEstimator
    grid: dict = field(default_factory=dict)

    def recipe(self) -> dict:
        """Return everything that a result depends on, besides data and seed."""
        address, settings = r" at 0x[0-9a-f]+", self.estimator.get_params()  # of a function
        parts = {v if hasattr(v, "__qualname__") else type(v) for v in settings.values()}
        own = [part for part in parts if part.__module__ == "__main__"]  # of a notebook
        return {
            "estimator": re.sub(address, "", repr(settings)),
            "defined here": sorted(map(cache.source_of, own)),
            "grid": repr(self.grid),
            "refit_on_validation": True,  # what fit_predict does
        }

    def fit_predict(
        self,
        train: experiment.FoldRows,
        validation: experiment.FoldRows,
        test: np.ndarray,
        n_classes: int,
        seed: int,
    ) -> dict:
        """Choose a setting on the validation speakers, then predict their and test rows.

        Returns
        -------
        dict
            ``validation`` (predicted from train) and ``test`` (from train + validation),
            probabilities of shape ``(n_rows, n_classes)``; ``steps`` (which roles each step saw)
            and ``notes`` (the setting).
        """
        settings, losses, found = list(model_selection.ParameterGrid(self.grid)), [], []
        for setting in settings:
            model = fit_seeded(base.clone(self.estimator).set_params(**setting), train, seed)
            found.append(_all_columns(model, validation.inputs, n_classes))
            of_truth = found[-1][np.arange(len(validation.classes)), validation.classes]
            losses.append(-float(np.log(of_truth + 1e-9).mean()))
        best = int(np.argmin(losses))
        model = base.clone(self.estimator).set_params(**settings[best])
        fit_seeded(model, train + validation, seed)
        steps = {"fit": ["train", "validation"], "select": ["validation"]}
        if train.copies is not None:
            steps["augment"] = steps["fit"]
        return {
            "validation": found[best],
            "test": _all_columns(model, test, n_classes),
            "steps": steps,
            "notes": search_notes(settings, losses) | model.notes_,
        }

    def refit(
        self, record: dict, rows: experiment.FoldRows, n_classes: int, seed: int = 0
    ) -> artifacts.Part:
        """Fit the final model: on all speakers, with the setting that was best over the folds.

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
        artifacts.Part

        Raises
        ------
        ValueError
            If the model is not linear: such models can't be saved.
        """
        chosen = base.clone(self.estimator).set_params(**frozen_setting(record))
        fitted = fit_seeded(chosen, rows, seed)
        return _linear_part(self.name, fitted, n_classes)


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
        X, y = utils.validation.validate_data(self, X, y, dtype=np.float32)
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


def classical_models(n_features: int) -> dict[str, Classical]:
    """Return the classical models that several notebooks use: logistic regression, LDA and SVM.

    Parameters
    ----------
    n_features
        Number of input columns; sets the width of the SVM's kernel.

    Returns
    -------
    dict of str to Classical
        Classes are weighted by their frequency; LDA has equal priors.
    """
    models = [
        Classical(
            "logistic regression",
            pipeline.make_pipeline(
                ClippedScaler(),
                linear_model.LogisticRegression(class_weight="balanced", max_iter=100, tol=1e-3),
            ),
            {"logisticregression__C": [0.01, 0.001, 0.003, 0.03]},
        ),
        Classical(
            "LDA",
            _calibrated(ShrunkLDA()),
            {"estimator__shrunklda__shrinkage": [0.35, 0.7, 0.5, 0.2]},
        ),
        Classical(
            "SVM",
            _calibrated(svm.SVC(class_weight="balanced", kernel="rbf")),
            {
                "estimator__svc__C": [10, 30],
                "estimator__svc__gamma": [0.2 / n_features, 0.05 / n_features],
            },
        ),
    ]
    return {model.name: model for model in models}


def fit_seeded(
    model: base.BaseEstimator, rows: experiment.FoldRows, seed: int
) -> base.BaseEstimator:
    """Fit with every random state set, on clips and copies; inner splits are by speaker.

    The model is fitted to the emotions of two clips or more, numbered from 0 (some libraries want
    no gaps); ``present_`` has their numbers. Where a speaker is the only one, of all or of an
    emotion, inner splits are by clip: the temperature that is fitted on them is optimistic.
    ``notes_``, for the run record, says so.
    """
    n_clips, names = np.bincount(rows.classes), model.get_params()
    present, rows = np.flatnonzero(n_clips > 1), rows.with_copies()
    kept = np.isin(rows.classes, present)
    codes = np.searchsorted(present, rows.classes[kept])
    model.notes_ = {}
    model.set_params(**{name: seed for name in names if name.split("__")[-1] == "random_state"})
    if isinstance(model, calibration.CalibratedClassifierCV):
        groups = rows.speakers[kept]
        splitter = model_selection.GroupKFold(np.clip(len(np.unique(groups)), 2, 4))
        if pd.Series(groups).groupby(codes).nunique().min() < 2:
            groups = rows.ids[kept]
            splitter = model_selection.StratifiedGroupKFold(min(4, n_clips[present].min()))
            model.notes_ = {"inner splits": "by clip: there is a single speaker, or of an emotion"}
        model.set_params(cv=list(splitter.split(codes, codes, groups)))
    # few iterations are part of these models' regularisation; threads cost more than they save
    with (
        warnings.catch_warnings(action="ignore", category=exceptions.ConvergenceWarning),
        threadpoolctl.threadpool_limits(1),
    ):
        model.fit(rows.inputs[kept], codes)
    model.present_ = present
    return model


def search_notes(settings: list[dict], losses: list[float]) -> dict:
    """Return what a run record says of a search: every setting with its loss, and the best one."""
    tried = [s | {"validation_nll": x} for s, x in zip(settings, losses, strict=True)]
    return {"setting": settings[int(np.argmin(losses))], "tried": tried}


def frozen_setting(record: dict) -> dict:
    """Return the setting of a final model: the one with the lowest loss on average over the folds.

    Parameters
    ----------
    record
        Run record of the cross-validation, in which every fold tried the same settings.
    """
    tried = [fold["notes"].get("tried", [{}]) for fold in record["folds"].values()]
    losses = [[one.get("validation_nll", 0) for one in own] for own in tried]
    best = dict(tried[0][np.mean(losses, axis=0).argmin()])
    best.pop("validation_nll", None)
    return best


def _calibrated(classifier: base.BaseEstimator) -> calibration.CalibratedClassifierCV:
    """Add a scaler, and a temperature that is fitted on held-out speakers.

    An SVM has no probabilities, and those of LDA are far too close to 0 and 1.
    """
    scaled = pipeline.make_pipeline(ClippedScaler(), classifier)
    return calibration.CalibratedClassifierCV(scaled, method="temperature", ensemble=False)


def _linear_part(name: str, fitted: base.BaseEstimator, n_classes: int) -> artifacts.Part:
    """Turn scaler, linear classifier and temperature into arrays; refuse any other model."""
    factor, present = None, fitted.present_
    if getattr(fitted, "method", "") == "temperature" and not fitted.ensemble:
        (calibrated,) = fitted.calibrated_classifiers_
        factor, fitted = float(calibrated.calibrators[0].beta_), calibrated.estimator
    *scaler, last = [step for _, step in getattr(fitted, "steps", [("", fitted)])]
    before = scaler[0] if scaler else preprocessing.StandardScaler()
    scales = type(before) in (preprocessing.StandardScaler, ClippedScaler) and len(scaler) < 2
    linear = (linear_model.LogisticRegression, discriminant_analysis.LinearDiscriminantAnalysis)
    if not (isinstance(last, linear) and scales and before.with_mean and before.with_std):
        raise ValueError(
            f"{name} can't be saved: only networks of helpers.nets and linear models can "
            "(logistic regression and LDA, after one scaler, with or without a temperature)"
        )
    coefficients = np.column_stack([last.coef_, last.intercept_])
    if len(last.classes_) == 2:  # one row, of the second class
        coefficients = np.concatenate([-coefficients, coefficients]) * (1 if factor else 0.5)
    n = last.n_features_in_
    rows = np.column_stack([np.zeros((n_classes, n)), np.full(n_classes, -np.inf)])
    rows[present] = coefficients * (factor or 1)
    return artifacts.Part(
        {
            "mean": getattr(before, "mean_", np.zeros(n)),  # without a scaler: as it is
            "scale": getattr(before, "scale_", np.ones(n)),
            "weights": rows[:, :n],
            "bias": rows[:, n],
            "limit": np.array(getattr(before, "limit", np.inf)),
        }
    )


def _all_columns(model: base.BaseEstimator, inputs: np.ndarray, n_classes: int) -> np.ndarray:
    """Predict probabilities with a column for every class, also without training examples."""
    result = np.zeros((len(inputs), n_classes))
    result[:, model.present_] = model.predict_proba(inputs)
    return result
