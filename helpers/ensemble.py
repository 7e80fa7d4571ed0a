"""Averaging, weighting and stacking of predictions that different models made of the same rows.

Columns are aligned by emotion *name* and rows by key, never by position: that is how published ensembles came to add the
probability of sadness to that of neutral. Tables that were made on different folds are refused.
"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers.metrics import probabilities, truth_column

KEY = ["utterance_id", "fold", "role", "variant"]


def average(models: dict[str, pd.DataFrame], weights: dict[str, float] | None = None) -> pd.DataFrame:
    """Average the probabilities of several models (soft vote).

    Parameters
    ----------
    models
        Name → predictions table, all on the same folds.
    weights
        Name → weight, at least 0; all the same by default.

    Returns
    -------
    pd.DataFrame
        A predictions table; ``pretrained`` if any member is.
    """
    base, stack = aligned(models)
    weight = np.array([1.0 if weights is None else weights[name] for name in models])
    if (weight < 0).any() or weight.sum() == 0:
        raise ValueError(f"weights must be at least 0 and not all 0, found {dict(zip(models, weight.round(3), strict=True))}")
    return _with_probabilities(base, np.tensordot(weight / weight.sum(), stack, axes=1))


def weighted_average(models: dict[str, pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Average with weights that are fitted per fold on that fold's own valid rows, by their negative log-likelihood.

    A small penalty keeps weights near equal where the valid rows do not say otherwise.

    Returns
    -------
    predictions, weights
        Predictions, and a table with one row per fold and variant, one column per model.
    """
    base, stack = aligned(models)
    result, weights = np.empty(stack.shape[1:]), {}
    for (variant, fold), rows in base.groupby(["variant", "fold"]).indices.items():
        valid = rows[base["role"].to_numpy()[rows] == "valid"]
        likelihood = stack[:, valid, truth_column(base)[valid]]  # (n_models, n_valid)

        def loss(logits, likelihood=likelihood):
            return -np.log(softmax(logits) @ likelihood + 1e-9).mean() + 0.01 * np.square(logits).mean()

        weight = softmax(minimize(loss, np.zeros(len(models)), method="L-BFGS-B").x)
        result[rows] = np.tensordot(weight, stack[:, rows], axes=1)
        weights[variant, fold] = weight
    table = pd.DataFrame(weights, index=list(models)).T.rename_axis(["variant", "fold"])
    return _with_probabilities(base, result), table


def stacked(models: dict[str, pd.DataFrame], c: float = 0.01) -> pd.DataFrame:
    """Learn, per fold, a logistic regression from the members' log-probabilities to the emotion, on its valid rows alone.

    Never on out-of-fold rows of other folds: the models behind those were trained on this fold's test speakers. The valid
    rows' own predictions come from the fit on them, so choose nothing by them.

    Parameters
    ----------
    models
        Name → predictions table.
    c
        Inverse strength of the penalty; the valid rows are few and the members many, so it is strong.
    """
    base, stack = aligned(models)
    inputs = np.log(np.concatenate(stack, axis=1) + 1e-4)
    emotions = probabilities(base)[1]
    result = np.empty(stack.shape[1:])
    for _, rows in base.groupby(["variant", "fold"]).indices.items():
        valid = rows[base["role"].to_numpy()[rows] == "valid"]
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, class_weight="balanced", max_iter=1000))
        model.fit(inputs[valid], base["truth"].to_numpy(str)[valid])
        result[rows] = 0.0
        for column, emotion in enumerate(model.classes_):
            result[rows, emotions.index(emotion)] = model.predict_proba(inputs[rows])[:, column]
    return _with_probabilities(base, result)


def aligned(models: dict[str, pd.DataFrame]) -> tuple[pd.DataFrame, np.ndarray]:
    """Bring tables to the same rows and columns.

    Returns
    -------
    base : pd.DataFrame
        The first table's rows, sorted by key.
    stack : np.ndarray [shape=(n_models, n_rows, n_emotions)]
        Probabilities, emotions in the project's order.

    Raises
    ------
    ValueError
        If a table has other rows (other folds, variants or utterances), other truths, or other emotions.
    """
    if not models:
        raise ValueError("no predictions to average: run at least one of the model notebooks (07, 11) first")
    tables = {name: table.sort_values(KEY, ignore_index=True) for name, table in models.items()}
    first, base = next(iter(tables.items()))
    for name, table in tables.items():
        keys = pd.MultiIndex.from_frame(base[KEY]), pd.MultiIndex.from_frame(table[KEY])
        if not keys[0].equals(keys[1]):
            apart = keys[0].symmetric_difference(keys[1])
            raise ValueError(f"{name} and {first} were made on different folds or variants: {len(apart)} rows are in one "
                             f"alone, e.g. {list(apart[:3])}. Run their notebooks again on the same folds.csv.")
        if (base["truth"] != table["truth"]).any() or probabilities(base)[1] != probabilities(table)[1]:
            raise ValueError(f"{name} and {first} have different emotions ({probabilities(table)[1]}, "
                             f"{probabilities(base)[1]}) or truths: they follow different label policies")
    base = base.assign(pretrained=np.any([t["pretrained"].to_numpy() for t in tables.values()], axis=0))
    return base, np.stack([probabilities(table)[0] for table in tables.values()])


def _with_probabilities(base: pd.DataFrame, values: np.ndarray) -> pd.DataFrame:
    values = (values / values.sum(axis=1, keepdims=True)).astype(np.float32)
    emotions = probabilities(base)[1]
    return base[[*KEY, "pretrained", "truth"]].assign(**{f"p_{e}": values[:, i] for i, e in enumerate(emotions)})
