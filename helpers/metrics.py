"""Metrics, always computed from saved predictions.

Conventions
-----------
*Rows* are those of a predictions table (schema ``predictions``): ``utterance_id, speaker, fold,
role, variant, truth, p_<emotion>…``. The prediction is the emotion with the highest probability.
Scores are fractions (0–1), pooled over all test rows together.

Metrics
-------
UAR
    unweighted average recall: the mean over emotions of the share that was recognised (= macro
    recall = balanced accuracy = "UA"). Chance is 1 / number of emotions.
WA
    weighted accuracy: the share of all utterances that was recognised (= accuracy).
ECE, NLL
    expected calibration error (15 bins) and negative log-likelihood: can a probability be trusted?

``METRICS`` declares them once, for tables, report and publishing.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import corpora, tables

N_BOOTSTRAP = 2000
INTERVAL = (2.5, 97.5)  # percentiles: 95 %
MIN_SPEAKERS = 8  # fewer do not show how much speakers differ: no interval
N_BINS = 15  # of confidence


def probabilities(rows: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Return (probabilities of shape ``(n_rows, n_emotions)``, emotions in the project's order)."""
    emotions = corpora.emotion_order(c[2:] for c in rows.columns if c.startswith("p_"))
    return rows[[f"p_{e}" for e in emotions]].to_numpy(float), emotions


def predicted(rows: pd.DataFrame) -> np.ndarray:
    """Return the most probable emotion of each row."""
    values, emotions = probabilities(rows)
    return np.array(emotions)[values.argmax(axis=1)]


def truth_column(rows: pd.DataFrame) -> np.ndarray:
    """Return the column number of each row's true emotion in :func:`probabilities`."""
    return pd.Index(probabilities(rows)[1]).get_indexer(rows["truth"].to_numpy(object))


def confusion(rows: pd.DataFrame) -> pd.DataFrame:
    """Return counts, rows truth, columns prediction, both in the project's order of emotions."""
    _, emotions = probabilities(rows)
    counts = _confusions(rows, np.zeros(len(rows), int))[0]
    return pd.DataFrame(counts, index=emotions, columns=emotions).rename_axis(
        index="truth", columns="prediction"
    )


def uar(rows: pd.DataFrame) -> float:
    """Unweighted average recall over the emotions that occur in ``truth``."""
    return float(_uar_of_counts(confusion(rows).to_numpy(float)))


def uar_fold_mean(rows: pd.DataFrame) -> float:
    """Mean over folds of the UAR of each fold, as some papers report it."""
    return float(np.mean([uar(own) for _, own in rows.groupby("fold")]))


def accuracy(rows: pd.DataFrame) -> float:
    """Share of the utterances that was recognised (WA)."""
    return float((predicted(rows) == rows["truth"].to_numpy(str)).mean())


def f1(rows: pd.DataFrame, average: str) -> float:
    """F1 of each emotion that occurs in ``truth``, averaged ("macro") or weighted by its share."""
    from sklearn.metrics import f1_score  # late: who only predicts does without scikit-learn

    truth = rows["truth"].to_numpy(str)
    return float(
        f1_score(truth, predicted(rows), labels=np.unique(truth), average=average, zero_division=0)
    )


def confidence_bins(rows: pd.DataFrame, n_bins: int = N_BINS) -> pd.DataFrame:
    """Return mean ``confidence``, ``accuracy`` and ``n`` of each bin of confidence with rows."""
    confidence = probabilities(rows)[0].max(axis=1)
    right = predicted(rows) == rows["truth"].to_numpy(str)
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    grouped = pd.DataFrame({"confidence": confidence, "accuracy": right}).groupby(bins)
    return grouped.mean().assign(n=grouped.size()).reset_index(drop=True)


def expected_calibration_error(rows: pd.DataFrame, n_bins: int = N_BINS) -> float:
    """Mean distance between confidence and accuracy over bins (Guo et al., ICML 2017)."""
    bins = confidence_bins(rows, n_bins)
    return float(np.sum((bins["accuracy"] - bins["confidence"]).abs() * (bins["n"] / len(rows))))


def negative_log_likelihood(rows: pd.DataFrame) -> float:
    """Mean negative logarithm of the probability that the true emotion was given (natural log)."""
    values, _ = probabilities(rows)
    return float(-np.log(values[np.arange(len(values)), truth_column(rows)].clip(1e-9)).mean())


@dataclass(frozen=True)
class Metric:
    """How a metric is computed from rows, and how it is shown."""

    label: str
    compute: Callable[[pd.DataFrame], float]
    better: Callable[[Iterable[float]], float] = max
    percent: bool = True


METRICS = {
    "uar": Metric("UAR", uar),
    "uar_fold_mean": Metric("mean over folds", uar_fold_mean),
    "wa": Metric("WA", accuracy),
    "macro_f1": Metric("macro-F1", lambda rows: f1(rows, "macro")),
    "weighted_f1": Metric("weighted F1", lambda rows: f1(rows, "weighted")),
    "ece": Metric("ECE", expected_calibration_error, better=min),
    "nll": Metric("NLL", negative_log_likelihood, better=min, percent=False),
}


def evaluate(rows: pd.DataFrame, seed: int = 0) -> dict[str, float]:
    """Compute all metrics of one model in one variant.

    Parameters
    ----------
    rows
        Test rows of one variant.
    seed
        Of the bootstrap.

    Returns
    -------
    dict
        ``n``, every metric of ``METRICS``, and ``uar_low, uar_high`` (95 % interval by bootstrap
        over speakers; NaN below eight speakers).

    Raises
    ------
    ValueError
        If an utterance is predicted twice, or rows of more than one variant are given.
    """
    twice = rows["utterance_id"].duplicated()
    if twice.any():
        raise ValueError(
            f"{twice.sum()} utterances are predicted more than once, e.g. "
            f"{rows.loc[twice, 'utterance_id'].head(3).tolist()}: give the test rows of one variant"
        )
    low, high = np.percentile(_bootstrap_uar(rows, seed), INTERVAL)
    scores = {name: metric.compute(rows) for name, metric in METRICS.items()}
    return {"n": len(rows), "uar": scores["uar"], "uar_low": low, "uar_high": high} | scores


def paired_difference(first: pd.DataFrame, second: pd.DataFrame, seed: int = 0) -> dict[str, float]:
    """Compare two models on the same rows: UAR of the first minus UAR of the second.

    Returns
    -------
    dict
        ``difference``, ``low``, ``high`` (95 %, by bootstrap over speakers), and ``p`` (two-sided;
        NaN below eight speakers).
    """
    if set(first["utterance_id"]) != set(second["utterance_id"]):
        raise ValueError(
            f"the two tables hold different utterances ({len(first)} and {len(second)} rows): they "
            "can't be compared in pairs"
        )
    draws = _bootstrap_uar(first, seed) - _bootstrap_uar(second, seed)
    low, high = np.percentile(draws, INTERVAL)
    side = min((draws <= 0).mean(), (draws >= 0).mean())
    p = np.nan if np.isnan(low) else min(1.0, 2 * max(side, 1 / N_BOOTSTRAP))
    return {"difference": uar(first) - uar(second), "low": low, "high": high, "p": p}


def holm(p_values: Iterable[float]) -> np.ndarray:
    """Correct p-values for their number (S. Holm, Scand. J. Statist. 6, 1979)."""
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    return np.minimum(stepped, 1)[np.argsort(order)]  # back in the order that was given


def results_table(
    models: dict[str, pd.DataFrame], folds: pd.DataFrame, protocol: str
) -> pd.DataFrame:
    """Evaluate every model in every variant it has, and the majority baseline.

    Parameters
    ----------
    models
        Name → predictions table.
    folds
        The folds table that they were made on.
    protocol
        What a reader needs to know with a number: corpus, label set, seed.

    Returns
    -------
    pd.DataFrame
        One row per model and variant, best first within a variant; schema ``results``.
    """
    lines = []
    for name, table in (models | {"majority": majority(folds)}).items():
        for variant, rows in table[table["role"] == "test"].groupby("variant"):
            pretrained = bool(rows["pretrained"].any())
            about = f"{protocol}, {rows['fold'].nunique()} folds, {variant}"
            lines.append(
                {
                    "model": name,
                    "variant": variant,
                    "pretrained": pretrained,
                    **evaluate(rows),
                    "protocol": about + ", pretrained" * pretrained,
                }
            )
    return _best_first(pd.DataFrame(lines))


def comparisons_table(
    models: dict[str, pd.DataFrame], compared: dict[str, pd.DataFrame]
) -> pd.DataFrame:
    """Evaluate runs that were made for comparison.

    One called ``<model>__without_<something>`` is compared with that model, in pairs.

    Parameters
    ----------
    models, compared
        Name → predictions table.

    Returns
    -------
    pd.DataFrame
        ``model``, ``variant``, ``uar``, ``uar_low``, ``uar_high``, ``difference``, ``low``,
        ``high``: UAR of the model minus that of the run without; NaN where there is no such model.

    Raises
    ------
    ValueError
        If a run and its model were made on different folds.
    """
    lines = []
    for name, table in compared.items():
        whole = models.get(name.split("__without_")[0]) if "__without_" in name else None
        for variant, rows in table[table["role"] == "test"].groupby("variant"):
            line = {"model": name, "variant": variant} | evaluate(rows)
            if whole is not None and variant in set(whole["variant"]):
                own = whole[(whole["role"] == "test") & (whole["variant"] == variant)]
                try:
                    line |= paired_difference(own, rows)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}. Run its notebook again.") from None
            lines.append(line)
    columns = ["model", "variant", "uar", "uar_low", "uar_high", "difference", "low", "high"]
    return _best_first(pd.DataFrame(lines).reindex(columns=columns))


def majority(folds: pd.DataFrame) -> pd.DataFrame:
    """Predict each fold's class shares in training, whatever the clip: what a model has to beat."""
    emotions = corpora.emotion_order(folds["emotion"])
    train = folds[folds["role"] == "train"].groupby("fold")["emotion"]
    shares = train.value_counts(normalize=True).unstack(fill_value=0)
    shares = shares.reindex(columns=emotions, fill_value=0).add_prefix("p_")
    rows = folds[folds["role"] != "train"].rename(columns={"emotion": "truth"})
    return rows.join(shares, on="fold").assign(variant="inductive", pretrained=False)


def read_predictions(folder: Path) -> dict[str, pd.DataFrame]:
    """Read the predictions of a folder, or of ``predictions`` in it: name → table."""
    files = sorted(folder.glob("*.parquet")) or sorted((folder / "predictions").glob("*.parquet"))
    return {file.stem: tables.read_table(file, "predictions") for file in files}


def format_uar(row: Mapping) -> str:
    """Write UAR and its interval in per cent: "58.9 % [54.3, 63.3]", or without an interval."""
    low, high = 100 * row["uar_low"], 100 * row["uar_high"]
    return f"{100 * row['uar']:.1f} %" + f" [{low:.1f}, {high:.1f}]" * bool(np.isfinite(low))


def format_difference(row: Mapping) -> str:
    """Write a difference of UAR and its interval in points, "+2.6 [+0.9, +4.2]"."""
    low, high = 100 * row["low"], 100 * row["high"]
    return f"{100 * row['difference']:+.1f}" + f" [{low:+.1f}, {high:+.1f}]" * bool(
        np.isfinite(low)
    )


def _best_first(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values(["variant", "uar"], ascending=[True, False], ignore_index=True)


def _uar_of_counts(counts: np.ndarray) -> np.ndarray:
    """Return the UAR of confusion matrices, shape ``(..., n_emotions, n_emotions)``."""
    right, n = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1)
    return np.nanmean(np.where(n > 0, right / np.maximum(n, 1), np.nan), axis=-1)


def _confusions(rows: pd.DataFrame, group: np.ndarray) -> np.ndarray:
    """Return a confusion matrix (truth, prediction) per group; groups are numbered from 0."""
    values, emotions = probabilities(rows)
    n = len(emotions)
    cells = (group * n + truth_column(rows)) * n + values.argmax(axis=1)
    n_cells = (group.max(initial=0) + 1) * n * n
    return np.bincount(cells, minlength=n_cells).reshape(-1, n, n)


def _bootstrap_uar(rows: pd.DataFrame, seed: int) -> np.ndarray:
    """Draw speakers with replacement; the same seed draws the same, so differences are paired."""
    speakers = np.unique(rows["speaker"].to_numpy(str), return_inverse=True)[1]
    matrices = _confusions(rows, speakers)  # in the order of the speakers' names
    n = len(matrices)
    if n < MIN_SPEAKERS:
        return np.full(N_BOOTSTRAP, np.nan)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), N_BOOTSTRAP)
    return _uar_of_counts(np.tensordot(drawn, matrices, axes=1))
