"""Averaging, weighting and stacking of predictions that different models made of the same rows.

Each variant is combined by itself, over the models that have it: a network may have been trained in one variant alone.
Columns are aligned by emotion *name* and rows by key, never by position: that is how published ensembles came to add the
probability of sadness to that of neutral. Tables that were made on different folds are refused.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from helpers.metrics import majority, probabilities, truth_column, uar, weighted_f1

KEY = ["utterance_id", "fold", "role", "variant"]
FLOOR = (
    1e-3  # of a probability that is multiplied with others: no single model can rule an emotion out
)


def average(
    models: dict[str, pd.DataFrame], weights: dict[str, float] | None = None
) -> pd.DataFrame:
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
    parts = []
    for members in by_variant(models).values():
        base, stack = aligned(members)
        weight = np.array([1.0 if weights is None else weights[name] for name in members])
        if (weight < 0).any() or weight.sum() == 0:
            found = dict(zip(members, weight.round(3), strict=True))
            raise ValueError(f"weights must be at least 0 and not all 0, found {found}")
        parts.append(with_probabilities(base, np.tensordot(weight / weight.sum(), stack, axes=1)))
    return pd.concat(parts, ignore_index=True)


def weighted_average(
    models: dict[str, pd.DataFrame],
    penalty: float = 0.01,
    least: float = 0.0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Weight the models' log-probabilities, with weights fitted per fold on that fold's own valid rows.

    p ∝ Π p_k ** w_k, the logarithmic opinion pool, w_k ≥ 0 by the negative log-likelihood. Weights need not add up to one: if
    they add up to more, the models are surer together than alone, so the result is calibrated along the way.

    Parameters
    ----------
    models
        Name → predictions table, all on the same folds.
    penalty
        Of weights apart from 1 / number of models, which they keep where the valid rows do not say otherwise.
    least
        Models whose share of a fold's weights is smaller are left out there, and the others' weights fitted again.

    Returns
    -------
    predictions, weights
        Predictions, and a table with one row per fold and variant, one column per model (0: left out, NaN: not in this
        variant).

    References
    ----------
    C. Genest, J. V. Zidek, "Combining probability distributions: a critique and an annotated bibliography", Statistical
    Science 1, 1986.
    """
    parts, weights = [], {}
    for variant, fold, base, stack, members in _by_fold(models):
        valid = np.flatnonzero(base["role"] == "valid")
        known, truth = (
            np.log(stack + FLOOR)[:, valid],
            np.eye(stack.shape[2])[truth_column(base)[valid]],
        )
        fitted = _fitted_weights(known, truth, penalty)
        if (kept := fitted >= least * fitted.sum()).any() and not kept.all():
            fitted[kept], fitted[~kept] = _fitted_weights(known[kept], truth, penalty), 0
        parts.append(with_probabilities(base, pool(stack, fitted)))
        weights[variant, fold] = dict(zip(members, fitted, strict=True))
    table = pd.DataFrame(weights).reindex(list(models)).T.rename_axis(["variant", "fold"])
    return pd.concat(parts, ignore_index=True), table


def softmax(scores: np.ndarray) -> np.ndarray:
    """Turn scores of classes, shape ``(n_rows, n_classes)``, into probabilities."""
    return np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))


def pool(stack: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Multiply probabilities of several models, shape ``(n_models, n_rows, n_emotions)``, to the power of their weights."""
    return softmax(np.tensordot(weights, np.log(stack + FLOOR), axes=1))


def with_probabilities(base: pd.DataFrame, values: np.ndarray) -> pd.DataFrame:
    """Put other probabilities into the rows of a predictions table.

    Parameters
    ----------
    base
        Rows as :func:`aligned` gives them.
    values : np.ndarray [shape=(n_rows, n_emotions)]
        At least 0, in the order of the table's columns; scaled to add up to one.
    """
    values = (values / values.sum(axis=1, keepdims=True)).astype(np.float32)
    emotions = probabilities(base)[1]
    return base[[*KEY, "pretrained", "truth"]].assign(
        **{f"p_{e}": values[:, i] for i, e in enumerate(emotions)}
    )


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
    from sklearn.linear_model import (
        LogisticRegression,
    )  # late: a saved average, which multiplies here, does without
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    parts = []
    for _, _, base, stack, _ in _by_fold(models):
        inputs = np.log(np.concatenate(stack, axis=1) + 1e-4)
        emotions = probabilities(base)[1]
        valid = base["role"].to_numpy() == "valid"
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=c, class_weight="balanced", max_iter=1000)
        )
        model.fit(inputs[valid], base["truth"].to_numpy(str)[valid])
        result = np.zeros(stack.shape[1:])
        result[:, [emotions.index(emotion) for emotion in model.classes_]] = model.predict_proba(
            inputs
        )
        parts.append(with_probabilities(base, result))
    return pd.concat(parts, ignore_index=True)


def better_on_valid(models: dict[str, pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keep one model per fold: the one with the lowest negative log-likelihood on that fold's own valid rows.

    Parameters
    ----------
    models
        Name → predictions table, all on the same folds.

    Returns
    -------
    predictions, choice
        Predictions, and a table with one row per variant and fold: each model's negative log-likelihood (nats), and ``kept``.
    """
    parts, choice = [], {}
    for variant, fold, base, stack, members in _by_fold(models):
        valid = np.flatnonzero(base["role"] == "valid")
        surprise = -np.log(stack[:, valid, truth_column(base)[valid]] + 1e-9).mean(axis=1)
        parts.append(with_probabilities(base, stack[surprise.argmin()]))
        choice[variant, fold] = dict(zip(members, surprise, strict=True)) | {
            "kept": members[surprise.argmin()]
        }
    return pd.concat(parts, ignore_index=True), pd.DataFrame(choice).T.rename_axis(
        ["variant", "fold"]
    )


def prior_adjusted(
    predictions: pd.DataFrame, folds: pd.DataFrame
) -> tuple[pd.DataFrame, pd.Series]:
    """Name rare emotions more often: divide probabilities by a power of the emotion's share in training.

    Where one emotion is ten times as frequent as another, a model is right most often by hardly ever naming the rare one.
    p ∝ p / share ** τ; τ = 0 changes nothing, τ = 1 treats all emotions alike. It decides better and its probabilities say
    less of how sure it is, so average first and adjust then.

    Parameters
    ----------
    predictions
        Of one model, in any number of variants.
    folds
        The folds table; shares are those of each fold's training rows.

    Returns
    -------
    predictions, strength
        Predictions, and the τ of each variant and fold: that with the highest weighted F1 on the fold's own valid rows.

    References
    ----------
    A. K. Menon et al., "Long-tail learning via logit adjustment", ICLR 2021.
    """
    parts, strength, emotions = [], {}, probabilities(predictions)[1]
    shares = majority(folds).groupby("fold")[[f"p_{emotion}" for emotion in emotions]].first()
    for variant, fold, base, stack, _ in _by_fold({"": predictions}):
        share = (
            shares.loc[fold].to_numpy().clip(1e-6)
        )  # an emotion that was not there to learn stays as it is, nearly 0
        tried = {
            round(power, 1): with_probabilities(base, stack[0] / share**power)
            for power in np.arange(0, 1.05, 0.1)
        }
        strength[variant, fold] = max(
            tried, key=lambda power, tried=tried: weighted_f1(tried[power].query("role == 'valid'"))
        )
        parts.append(tried[strength[variant, fold]])
    return pd.concat(parts, ignore_index=True), pd.Series(strength, name="strength").rename_axis(
        ["variant", "fold"]
    )


def tempered(predictions: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Make probabilities as sure as they should be: p ∝ p ** (1 / T), with one temperature T per fold, from its own valid rows.

    An average of models is too modest (where they disagree it spreads), a network that learnt for long too sure. What is most
    probable stays so: UAR does not change.

    Parameters
    ----------
    predictions
        Of one model, in any number of variants.

    Returns
    -------
    predictions, temperature
        Predictions, and the T of each variant and fold (below 1: it was too modest).

    References
    ----------
    C. Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    from scipy.optimize import (
        minimize_scalar,
    )  # late: a saved average, which comes by here, fits nothing

    parts, found = [], {}
    for variant, fold, base, stack, _ in _by_fold({"": predictions}):
        logs = np.log(stack[0].clip(1e-9))
        valid = np.flatnonzero(base["role"] == "valid")
        known, truth = logs[valid], truth_column(base)[valid]

        def surprise(log_t: float, known=known, truth=truth) -> float:
            scaled = known / np.exp(log_t)
            return float(
                (np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(scaled)), truth]).mean()
            )

        temperature = np.exp(
            minimize_scalar(surprise, bounds=(np.log(0.05), np.log(20)), method="bounded").x
        )
        parts.append(with_probabilities(base, softmax(logs / temperature)))
        found[variant, fold] = float(temperature)
    return pd.concat(parts, ignore_index=True), pd.Series(found, name="temperature").rename_axis(
        ["variant", "fold"]
    )


def leave_one_out(models: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Say what each model adds: UAR of the plain average of all, less that of the average without it, on the *valid* rows.

    Parameters
    ----------
    models
        Name → predictions table; at least two in each variant.

    Returns
    -------
    pd.DataFrame
        Rows are models, columns variants; fractions (0.01 is a point); NaN where a model has no such variant.
    """
    added = {}
    for variant, members in by_variant(models).items():
        valid = {name: table[table["role"] == "valid"] for name, table in members.items()}
        everything = uar(average(valid))
        added[variant] = {
            name: everything - uar(average({n: t for n, t in valid.items() if n != name}))
            for name in valid
        }
    return pd.DataFrame(added).reindex(list(models))


def by_variant(models: dict[str, pd.DataFrame]) -> dict[str, dict[str, pd.DataFrame]]:
    """Return variant → name → this variant's rows, of the models that have it."""
    if not models:
        raise ValueError(
            "no predictions to average: run at least one of the model notebooks (07 to 14) first"
        )
    variants = sorted(
        {variant for table in models.values() for variant in table["variant"].unique()}
    )
    split = {
        variant: {name: table[table["variant"] == variant] for name, table in models.items()}
        for variant in variants
    }
    return {
        variant: {name: rows for name, rows in members.items() if len(rows)}
        for variant, members in split.items()
    }


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
    tables = {name: table.sort_values(KEY, ignore_index=True) for name, table in models.items()}
    first, base = next(iter(tables.items()))
    for name, table in tables.items():
        keys = pd.MultiIndex.from_frame(base[KEY]), pd.MultiIndex.from_frame(table[KEY])
        if not keys[0].equals(keys[1]):
            apart = keys[0].symmetric_difference(keys[1])
            raise ValueError(
                f"{name} and {first} were made on different folds or variants: {len(apart)} rows are in one "
                f"alone, e.g. {list(apart[:3])}. Run their notebooks again on the same folds.csv."
            )
        if (base["truth"] != table["truth"]).any() or probabilities(base)[1] != probabilities(
            table
        )[1]:
            raise ValueError(
                f"{name} and {first} have different emotions ({probabilities(table)[1]}, "
                f"{probabilities(base)[1]}) or truths: they follow different label policies"
            )
    base = base.assign(
        pretrained=np.any([t["pretrained"].to_numpy() for t in tables.values()], axis=0)
    )
    return base, np.stack([probabilities(table)[0] for table in tables.values()])


def _by_fold(
    models: dict[str, pd.DataFrame],
) -> Iterator[tuple[str, int, pd.DataFrame, np.ndarray, list[str]]]:
    """Yield (variant, fold, its rows, their probabilities, the models' names)."""
    for variant, members in by_variant(models).items():
        base, stack = aligned(members)
        for fold, rows in base.groupby("fold").indices.items():
            yield variant, fold, base.iloc[rows], stack[:, rows], list(members)


def _fitted_weights(known: np.ndarray, truth: np.ndarray, penalty: float) -> np.ndarray:
    """Return the weights of log-probabilities, shape ``(n_models, n_rows, n_emotions)``, that make the truth most likely."""
    from scipy.optimize import minimize  # late, as above

    n_models = len(known)

    def loss(weight: np.ndarray) -> tuple[float, np.ndarray]:
        pooled = np.tensordot(weight, known, axes=1)
        surprise = (np.logaddexp.reduce(pooled, axis=1) - (truth * pooled).sum(axis=1)).mean()
        slope = ((softmax(pooled) - truth) * known).sum(axis=2).mean(axis=1)
        apart = n_models * weight - 1
        return surprise + penalty * np.square(apart).mean(), slope + 2 * penalty * apart

    start = np.full(n_models, 1 / n_models)
    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * n_models).x
