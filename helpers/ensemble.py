"""Averaging, weighting and stacking of predictions that different models made of the same rows.

Each variant is combined by itself, over the models that have it. Columns are aligned by emotion
*name* and rows by key, never by position: that is how published ensembles came to add the
probability of sadness to that of neutral. Tables that were made on different folds are refused.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.special import softmax

from helpers.metrics import probabilities, truth_column

KEY = ["utterance_id", "fold", "role", "variant"]
FLOOR = 1e-3  # of a probability that is multiplied: no single model can rule an emotion out


def average(models: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Average the probabilities of several models (soft vote).

    Parameters
    ----------
    models
        Name → predictions table, all on the same folds.

    Returns
    -------
    pd.DataFrame
        A predictions table; ``pretrained`` if any member is.
    """
    averaged = []
    for members in by_variant(models).values():
        base, stack = aligned(members)
        averaged.append(with_probabilities(base, stack.mean(axis=0)))
    return pd.concat(averaged, ignore_index=True)


def weighted_average(
    models: dict[str, pd.DataFrame], penalty: float = 0.01, least: float = 0.0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Weight the models' log-probabilities; weights are fitted per fold on its validation rows.

    p ∝ Π p_k ** w_k, the logarithmic opinion pool, with w_k ≥ 0 that minimise the negative
    log-likelihood. Weights need not add up to one: if they add up to more, the models are more
    confident together than alone, so the result is calibrated along the way.

    Parameters
    ----------
    models
        Name → predictions table, all on the same folds.
    penalty
        On the squared distance of weights from 1 / number of models.
    least
        Models whose share of a fold's weights is smaller are left out there, and the others'
        weights fitted again.

    Returns
    -------
    predictions, weights
        Predictions, and a table with one row per variant and fold, one column per model (0: left
        out, NaN: not in this variant).

    References
    ----------
    C. Genest, J. V. Zidek, "Combining probability distributions: a critique and an annotated
    bibliography", Statistical Science 1, 1986.
    """
    combined, weights = [], {}
    for variant, fold, base, stack, members in by_fold(models):
        validation = np.flatnonzero(base["role"] == "validation")
        known = np.log(stack + FLOOR)[:, validation]
        truth = np.eye(stack.shape[2])[truth_column(base)[validation]]
        fitted = _fitted_weights(known, truth, penalty)
        kept = fitted >= least * fitted.sum()
        if kept.any() and not kept.all():
            fitted[kept], fitted[~kept] = _fitted_weights(known[kept], truth, penalty), 0
        combined.append(with_probabilities(base, pool(stack, fitted)))
        weights[variant, fold] = dict(zip(members, fitted, strict=True))
    table = pd.DataFrame(weights).reindex(list(models)).T.rename_axis(["variant", "fold"])
    return pd.concat(combined, ignore_index=True), table


def stacked(models: dict[str, pd.DataFrame], c: float = 0.01) -> pd.DataFrame:
    """Learn, per fold, a logistic regression from the members' log-probabilities to the emotion.

    It is fitted on the fold's validation rows alone, never on out-of-fold rows of other folds: the
    models behind those were trained on this fold's test speakers. The validation rows' own
    predictions come from the fit on them, so choose nothing by them.

    Parameters
    ----------
    models
        Name → predictions table.
    c
        Inverse strength of the penalty; validation rows are few and members many, so it is strong.
    """
    from sklearn import linear_model, pipeline, preprocessing  # late: a saved average does without

    combined = []
    for _, _, base, stack, _ in by_fold(models):
        inputs = np.log(np.concatenate(stack, axis=1) + 1e-4)
        validation = base["role"].to_numpy() == "validation"
        classifier = linear_model.LogisticRegression(C=c, class_weight="balanced", max_iter=1000)
        model = pipeline.make_pipeline(preprocessing.StandardScaler(), classifier)
        model.fit(inputs[validation], base["truth"].to_numpy(str)[validation])
        columns = pd.Index(probabilities(base)[1]).get_indexer(model.classes_)
        result = np.zeros(stack.shape[1:])
        result[:, columns] = model.predict_proba(inputs)
        combined.append(with_probabilities(base, result))
    return pd.concat(combined, ignore_index=True)


def select_by_validation(models: dict[str, pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keep one model per fold: the one with the lowest negative log-likelihood on validation rows.

    Parameters
    ----------
    models
        Name → predictions table, all on the same folds.

    Returns
    -------
    predictions, choice
        Predictions, and a table with one row per variant and fold: each model's negative
        log-likelihood, and ``kept``.
    """
    kept, choice = [], {}
    for variant, fold, base, stack, members in by_fold(models):
        validation = np.flatnonzero(base["role"] == "validation")
        of_truth = stack[:, validation, truth_column(base)[validation]]
        loss = -np.log(of_truth + 1e-9).mean(axis=1)
        kept.append(with_probabilities(base, stack[loss.argmin()]))
        choice[variant, fold] = dict(zip(members, loss, strict=True))
        choice[variant, fold]["kept"] = members[loss.argmin()]
    table = pd.DataFrame(choice).T.rename_axis(["variant", "fold"])
    return pd.concat(kept, ignore_index=True), table


def by_variant(models: dict[str, pd.DataFrame]) -> dict[str, dict[str, pd.DataFrame]]:
    """Split predictions by variant: {variant: {model: rows}}, of the models that have it."""
    if not models:
        raise ValueError("no predictions to average: run at least one of notebooks 07 to 14 first")
    split = {}
    for name, table in models.items():
        for variant, rows in table.groupby("variant"):
            split.setdefault(variant, {})[name] = rows
    return dict(sorted(split.items()))


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
        If a table has other rows (other folds, variants or utterances), truths, or emotions.
    """
    ordered = {name: table.sort_values(KEY, ignore_index=True) for name, table in models.items()}
    first, base = next(iter(ordered.items()))
    key, pretrained = pd.MultiIndex.from_frame(base[KEY]), np.zeros(len(base), bool)
    for name, table in ordered.items():
        own = pd.MultiIndex.from_frame(table[KEY])
        if not key.equals(own):
            apart = key.symmetric_difference(own)
            raise ValueError(
                f"{name} and {first} were made on different folds or variants: {len(apart)} rows "
                f"are in only one of them, e.g. {list(apart[:3])}. Run their notebooks again on "
                "the same folds.csv."
            )
        emotions = probabilities(base)[1], probabilities(table)[1]
        if (base["truth"] != table["truth"]).any() or emotions[0] != emotions[1]:
            raise ValueError(
                f"{name} and {first} have different emotions ({emotions[1]}, {emotions[0]}) or "
                "truths: they follow different label sets"
            )
        pretrained |= table["pretrained"].to_numpy(bool)
    stack = np.stack([probabilities(table)[0] for table in ordered.values()])
    return base.assign(pretrained=pretrained), stack


def by_fold(
    models: dict[str, pd.DataFrame],
) -> Iterator[tuple[str, int, pd.DataFrame, np.ndarray, list[str]]]:
    """Yield (variant, fold, its rows, their probabilities, the models' names)."""
    for variant, members in by_variant(models).items():
        base, stack = aligned(members)
        for fold, rows in base.groupby("fold").indices.items():
            yield variant, fold, base.iloc[rows], stack[:, rows], list(members)


def pool(stack: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Multiply probabilities, shape ``(n_models, n_rows, n_emotions)``, to the power of weights."""
    return softmax(np.tensordot(weights, np.log(stack + FLOOR), axes=1), axis=-1)


def with_probabilities(base: pd.DataFrame, values: np.ndarray) -> pd.DataFrame:
    """Put other probabilities into the rows of a predictions table.

    Parameters
    ----------
    base
        Rows as :func:`aligned` gives them.
    values : np.ndarray [shape=(n_rows, n_emotions)]
        At least 0, in the order of the table's columns; scaled to add up to one.
    """
    table = base[[*KEY, "speaker", "pretrained", "truth"]].copy()
    columns = [f"p_{emotion}" for emotion in probabilities(base)[1]]
    table[columns] = (values / values.sum(axis=1, keepdims=True)).astype(np.float32)
    return table


def _fitted_weights(known: np.ndarray, truth: np.ndarray, penalty: float) -> np.ndarray:
    """Return the weights of log-probabilities that make the truth (one-hot rows) most likely.

    `known` has the shape ``(n_models, n_rows, n_emotions)``.
    """
    from scipy.optimize import minimize  # late, as above

    n_models = len(known)

    def loss(weight: np.ndarray) -> tuple[float, np.ndarray]:
        pooled = np.tensordot(weight, known, axes=1)
        nll = (np.logaddexp.reduce(pooled, axis=1) - (truth * pooled).sum(axis=1)).mean()
        slope = ((softmax(pooled, axis=1) - truth) * known).sum(axis=2).mean(axis=1)
        apart = n_models * weight - 1
        return nll + penalty * np.square(apart).mean(), slope + 2 * penalty * apart

    start, bounds = np.full(n_models, 1 / n_models), [(0, None)] * n_models
    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
