"""Metrics, always computed from saved predictions.

Conventions
-----------
``truth`` and the prediction (the column ``p_<emotion>`` with the highest probability) are emotion names. UAR, WA and
macro-F1 are fractions (0–1). Pooled means over all test rows together; results are read from rows with the role *test*.

Metrics
-------
UAR
    unweighted average recall: the mean over emotions of the share that was recognised (= macro recall = balanced
    accuracy = "UA"). Chance is 1 / number of emotions, whatever the class balance.
WA
    weighted accuracy: the share of all utterances that was recognised.
ECE, NLL
    expected calibration error (15 bins) and negative log-likelihood (nats): is a probability to be believed?

Run ``python -m helpers.metrics FOLDER`` to print the results of a folder of predictions.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import corpora

N_BOOTSTRAP = 2000
MIN_CLIPS = 10  # of an emotion; one clip more or less would move its recall by ten points
MIN_SPEAKERS = 8  # fewer say nothing of how much speakers differ: no interval


def probabilities(predictions: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Return (probabilities of shape ``(n_rows, n_emotions)``, emotions in the project's order)."""
    emotions = corpora.emotion_order(c[2:] for c in predictions.columns if c.startswith("p_"))
    return predictions[[f"p_{e}" for e in emotions]].to_numpy(float), emotions


def predicted(predictions: pd.DataFrame) -> np.ndarray:
    """Return the most probable emotion of each row."""
    values, emotions = probabilities(predictions)
    return np.array(emotions)[values.argmax(axis=1)]


def truth_column(predictions: pd.DataFrame) -> np.ndarray:
    """Return the column number of each row's true emotion in :func:`probabilities`."""
    return (
        predictions["truth"]
        .map({e: i for i, e in enumerate(probabilities(predictions)[1])})
        .to_numpy()
    )


def confusion(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return counts, rows truth, columns prediction, both in the project's order of emotions."""
    _, emotions = probabilities(predictions)
    counts = _confusions(predictions, np.zeros(len(predictions), int))[0]
    return pd.DataFrame(counts, index=emotions, columns=emotions).rename_axis(
        index="truth", columns="prediction"
    )


def evaluate(predictions: pd.DataFrame, speakers: pd.Series, seed: int = 0) -> dict[str, float]:
    """Compute all metrics of one model in one variant.

    Parameters
    ----------
    predictions
        Test rows of one variant: ``utterance_id, fold, truth, p_<emotion>…``.
    speakers
        Speaker of each ``utterance_id`` (the index).
    seed
        Of the bootstrap.

    Returns
    -------
    dict
        ``n, uar, uar_low, uar_high`` (95 % interval by bootstrap over speakers; NaN below eight speakers), ``uar_fold_mean,
        wa, macro_f1, weighted_f1, ece, nll``.

    Raises
    ------
    ValueError
        If an utterance is predicted twice, or rows of more than one variant are given.
    """
    _check_rows(predictions)
    counts = confusion(predictions).to_numpy(float)
    low, high = _interval(_bootstrap_uar(_speaker_confusions(predictions, speakers), seed))
    return {
        "n": len(predictions),
        "uar": uar(predictions),
        "uar_low": low,
        "uar_high": high,
        "uar_fold_mean": float(np.mean([uar(rows) for _, rows in predictions.groupby("fold")])),
        "wa": counts.diagonal().sum() / counts.sum(),
        "macro_f1": float(np.nanmean(_f1(counts))),
        "weighted_f1": weighted_f1(predictions),
        "ece": expected_calibration_error(predictions),
        "nll": negative_log_likelihood(predictions),
    }


def uar(predictions: pd.DataFrame) -> float:
    """Unweighted average recall over the emotions that occur in ``truth``."""
    counts = confusion(predictions).to_numpy(float)
    return float(np.nanmean(_share(counts.diagonal(), counts.sum(axis=1))))


def weighted_f1(predictions: pd.DataFrame) -> float:
    """F1 of each emotion, averaged with its share of the rows as weight: what is published for dialogues.

    It forgives errors on rare emotions; UAR does not.
    """
    counts = confusion(predictions).to_numpy(float)
    return float(np.nansum(_f1(counts) * counts.sum(axis=1)) / counts.sum())


def expected_calibration_error(predictions: pd.DataFrame, n_bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over equal-width bins of confidence (Guo et al., ICML 2017)."""
    bins = confidence_bins(predictions, n_bins)
    return float(
        np.sum((bins["accuracy"] - bins["confidence"]).abs() * (bins["n"] / len(predictions)))
    )


def negative_log_likelihood(predictions: pd.DataFrame) -> float:
    """Mean negative logarithm of the probability that the true emotion was given, in nats."""
    probability, _ = probabilities(predictions)
    return float(
        -np.log(
            probability[np.arange(len(probability)), truth_column(predictions)].clip(1e-9)
        ).mean()
    )


def confidence_bins(predictions: pd.DataFrame, n_bins: int = 15) -> pd.DataFrame:
    """Return, for each of equally wide bins of confidence that is not empty: mean ``confidence``, ``accuracy``, and ``n``."""
    confidence = probabilities(predictions)[0].max(axis=1)
    right = predicted(predictions) == predictions["truth"].to_numpy(str)
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    chosen = [bins == b for b in np.unique(bins)]
    return pd.DataFrame(
        [
            {"confidence": confidence[b].mean(), "accuracy": right[b].mean(), "n": b.sum()}
            for b in chosen
        ]
    )


def by_group(
    predictions: pd.DataFrame, groups: pd.Series, speakers: pd.Series, seed: int = 0
) -> pd.DataFrame:
    """Evaluate parts of the test rows: men and women, weak and strong, short and long, each speaker.

    Parameters
    ----------
    predictions
        Test rows of one model in one variant.
    groups, speakers
        Group and speaker of each ``utterance_id`` (the index).
    seed
        Of the bootstrap.

    Returns
    -------
    pd.DataFrame
        A row per group: ``n``, ``n_speakers``, ``uar``, ``uar_low``, ``uar_high``, ``wa``, and ``warning``: why a number is not
        to be compared with others (few speakers, few clips of an emotion, emotions that lack), or an empty text.
    """
    _check_rows(predictions)
    rows, emotions = [], probabilities(predictions)[1]
    for name, part in predictions.groupby(
        predictions["utterance_id"].map(groups), sort=True, observed=True
    ):
        counts, n_speakers = (
            part["truth"].value_counts(),
            speakers.loc[part["utterance_id"]].nunique(),
        )
        few = (
            [f"{n_speakers} speaker{'s' * (n_speakers > 1)}: no interval"]
            if n_speakers < MIN_SPEAKERS
            else []
        )
        few += [f"{counts.min()} clips of {counts.idxmin()}"] if counts.min() < MIN_CLIPS else []
        few += (
            [f"no {', '.join(e for e in emotions if e not in counts)}"]
            if len(counts) < len(emotions)
            else []
        )
        found = evaluate(part, speakers, seed)
        rows.append(
            {
                "group": name,
                "n": len(part),
                "n_speakers": n_speakers,
                **{key: found[key] for key in ("uar", "uar_low", "uar_high", "wa")},
                "warning": "; ".join(few),
            }
        )
    return pd.DataFrame(rows).set_index("group")


def selective(predictions: pd.DataFrame) -> pd.DataFrame:
    """Say how right a model is where it is sure: accuracy against coverage, as the least sure clips are left out.

    Use it to choose below which confidence an answer should be "unsure": take the threshold from *valid* rows.

    Returns
    -------
    pd.DataFrame
        By falling confidence: ``confidence`` (of the least sure clip that is answered), ``coverage`` (share that is answered)
        and ``accuracy`` (share of these that is right).

    References
    ----------
    Y. Geifman, R. El-Yaniv, "Selective classification for deep neural networks", NeurIPS 2017.
    """
    confidence = probabilities(predictions)[0].max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    right = (predicted(predictions) == predictions["truth"].to_numpy(str))[order]
    answered = np.arange(1, len(right) + 1)
    return pd.DataFrame(
        {
            "confidence": confidence[order],
            "coverage": answered / len(right),
            "accuracy": right.cumsum() / answered,
        }
    )


def label_uar(
    truth: pd.Series, guess: pd.Series, speaker: pd.Series, seed: int = 0
) -> dict[str, float]:
    """Compute UAR where only labels were kept, no probabilities; a clip may have several rows (of several draws).

    Returns
    -------
    dict
        ``uar, uar_low, uar_high`` (95 % interval by bootstrap over speakers; NaN below eight speakers).
    """
    emotions = corpora.emotion_order([*truth, *guess])
    columns = [pd.Categorical(labels, emotions).codes.astype(int) for labels in (truth, guess)]
    counts = _counts(
        *columns, np.unique(np.asarray(speaker, str), return_inverse=True)[1], len(emotions)
    )
    low, high = _interval(_bootstrap_uar(counts, seed))
    total = counts.sum(axis=0)
    return {
        "uar": float(np.nanmean(_share(total.diagonal(), total.sum(axis=1)))),
        "uar_low": low,
        "uar_high": high,
    }


def paired_difference(
    first: pd.DataFrame, second: pd.DataFrame, speakers: pd.Series, seed: int = 0
) -> dict[str, float]:
    """Compare two models on the same test rows: UAR of the first less UAR of the second, bootstrapped over speakers.

    Returns
    -------
    dict
        ``difference``, ``low``, ``high`` (95 %), and ``p`` (two-sided; NaN below eight speakers).
    """
    if set(first["utterance_id"]) != set(second["utterance_id"]):
        raise ValueError(
            f"the two tables hold different utterances ({len(first)} and {len(second)} rows): they can't be "
            "compared in pairs"
        )
    draws = [_bootstrap_uar(_speaker_confusions(rows, speakers), seed) for rows in (first, second)]
    low, high = _interval(draws[0] - draws[1])
    difference = uar(first) - uar(second)
    sides = [(draws[0] - draws[1] <= 0).mean(), (draws[0] - draws[1] >= 0).mean()]
    p = np.nan if np.isnan(low) else min(1.0, 2 * max(min(sides), 1 / N_BOOTSTRAP))
    return {"difference": difference, "low": low, "high": high, "p": p}


def holm(p_values: list[float]) -> np.ndarray:
    """Correct p-values for their number (S. Holm, Scand. J. Statist. 6, 1979)."""
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1)
    return corrected


def results_table(
    models: dict[str, pd.DataFrame], folds: pd.DataFrame, protocol: str
) -> pd.DataFrame:
    """Evaluate every model in every variant it has, with the majority baseline beside them.

    Parameters
    ----------
    models
        Name → predictions table.
    folds
        The folds table that they were made on.
    protocol
        What a reader needs beside a number: corpus, policy, folds, seed.

    Returns
    -------
    pd.DataFrame
        One row per model and variant, best first within a variant; schema ``results``.
    """
    speakers = folds.drop_duplicates("utterance_id").set_index("utterance_id")["speaker"]
    rows = []
    for name, predictions in (models | {"majority": majority(folds)}).items():
        for variant, part in predictions.loc[predictions["role"] == "test"].groupby("variant"):
            pretrained = bool(part["pretrained"].any())
            line = f"{protocol}, {part['fold'].nunique()} folds, {variant}{', pretrained' * pretrained}"
            rows.append(
                {
                    "model": name,
                    "variant": variant,
                    "pretrained": pretrained,
                    **evaluate(part, speakers),
                    "protocol": line,
                }
            )
    return pd.DataFrame(rows).sort_values(
        ["variant", "uar"], ascending=[True, False], ignore_index=True
    )


def majority(folds: pd.DataFrame) -> pd.DataFrame:
    """Predict each fold's class shares in training, whatever the clip: what a model has to beat."""
    emotions = corpora.emotion_order(folds["emotion"])
    shares = (
        folds.loc[folds["role"] == "train"]
        .groupby("fold")["emotion"]
        .value_counts(normalize=True)
        .unstack(fill_value=0)
        .reindex(columns=emotions, fill_value=0)
        .add_prefix("p_")
    )
    rows = (
        folds.loc[folds["role"] != "train"]
        .rename(columns={"emotion": "truth"})
        .drop(columns="speaker")
    )
    return rows.join(shares, on="fold").assign(variant="inductive", pretrained=False)


def read_predictions(folder: Path) -> dict[str, pd.DataFrame]:
    """Read the predictions tables of a folder, or of ``predictions`` in it: name → table, in alphabetical order."""
    from helpers.tables import (
        read_table,
    )  # late: a saved average, which comes by here, does not need tables

    files = sorted(folder.glob("*.parquet")) or sorted((folder / "predictions").glob("*.parquet"))
    return {file.stem: read_table(file, "predictions") for file in files}


def comparisons_table(
    models: dict[str, pd.DataFrame], compared: dict[str, pd.DataFrame], folds: pd.DataFrame
) -> pd.DataFrame:
    """Evaluate runs that were made to be compared.

    One called ``<model>__without_<something>`` is compared with that model, in pairs: what is that something worth?

    Parameters
    ----------
    models, compared
        Name → predictions table.
    folds
        The folds table that they were made on.

    Returns
    -------
    pd.DataFrame
        ``model``, ``variant``, ``uar``, ``uar_low``, ``uar_high``, ``difference``, ``low``, ``high``: UAR of the model less
        that of the run without, with 95 % interval over speakers; NaN where there is nothing to compare with.

    Raises
    ------
    ValueError
        If a run and its model were made on different folds.
    """
    speakers, rows = folds.drop_duplicates("utterance_id").set_index("utterance_id")["speaker"], []
    for name, table in compared.items():
        whole = models.get(name.split("__without_")[0]) if "__without_" in name else None
        for variant, part in table[table["role"] == "test"].groupby("variant"):
            row = {"model": name, "variant": variant} | evaluate(part, speakers)
            if whole is not None and variant in set(whole["variant"]):
                try:
                    row |= paired_difference(
                        whole[(whole["role"] == "test") & (whole["variant"] == variant)],
                        part,
                        speakers,
                    )
                except ValueError as error:
                    raise ValueError(
                        f"{name} and {name.split('__')[0]}: {error}. Run their notebook again."
                    ) from None
            rows.append(row)
    columns = ["model", "variant", "uar", "uar_low", "uar_high", "difference", "low", "high"]
    table = pd.DataFrame(rows).reindex(columns=columns)
    return table.sort_values(["variant", "uar"], ascending=[True, False], ignore_index=True)


def main() -> None:
    """Print the results of folders of predictions (with the ``folds.csv`` beside them); without any, of all published ones."""
    from helpers import tables  # late, as above

    published = sorted(path.parent for path in Path("data/results").glob("*/*/folds.csv"))
    for folder in [Path(name) for name in sys.argv[1:]] or published:
        models = read_predictions(folder)
        if not models:
            sys.exit(
                f"{folder}: found no predictions (*.parquet). Published ones lie in data/results/<corpus>/<policy>."
            )
        folds = tables.read_table(folder / "folds.csv", "folds")
        table = results_table(models, folds, f"{folder.parent.name} {folder.name}")
        n_folds = folds["fold"].nunique()
        print(
            f"{folder}: {folds['utterance_id'].nunique()} utterances, {folds['speaker'].nunique()} speakers, "
            f"{n_folds} fold{'s' * (n_folds != 1)}. UAR with 95 % interval over speakers; see README for the variants."
        )
        for variant, part in table.groupby("variant"):
            print(f"\n{variant}")
            for row in part.itertuples():
                print(
                    f"  {row.model:<24} UAR {row.uar:.3f}{_between(row.uar_low, row.uar_high)}   mean of folds "
                    f"{row.uar_fold_mean:.3f}   WA {row.wa:.3f}   F1 macro {row.macro_f1:.3f} weighted {row.weighted_f1:.3f}"
                    f"   ECE {row.ece:.3f}   NLL {row.nll:.3f}"
                )
        for variant, part in comparisons_table(
            models, read_predictions(folder / "comparisons"), folds
        ).groupby("variant"):
            print(f"\ncompared, {variant}")
            for row in part.itertuples():
                paired = f"   what is left out is worth {row.difference:+.3f}{_between(row.low, row.high, '+')}"
                print(
                    f"  {row.model:<38} UAR {row.uar:.3f}{_between(row.uar_low, row.uar_high)}"
                    + (paired if np.isfinite(row.difference) else "")
                )
        print()


def in_points(difference: float, low: float = np.nan, high: float = np.nan) -> str:
    """Say a difference of UAR and its interval in points, e.g. "+2.6 [+0.9, +4.2]"; without an interval where it is NaN."""
    return f"{100 * difference:+.1f}" + (
        f" [{100 * low:+.1f}, {100 * high:+.1f}]" if np.isfinite(low) else ""
    )


def _between(low: float, high: float, sign: str = "") -> str:
    """Write an interval, if there is one: below eight speakers there is none."""
    return f" [{low:{sign}.3f}, {high:{sign}.3f}]" if np.isfinite(low) else ""


def _check_rows(predictions: pd.DataFrame) -> None:
    doubled = predictions["utterance_id"].duplicated()
    if doubled.any():
        raise ValueError(
            f"{doubled.sum()} utterances are predicted more than once, e.g. "
            f"{predictions.loc[doubled, 'utterance_id'].head(3).tolist()}: give the test rows of one variant"
        )


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def _f1(counts: np.ndarray) -> np.ndarray:
    """Return each emotion's F1 from a confusion matrix; NaN for one that does not occur."""
    recall, precision = (
        _share(counts.diagonal(), counts.sum(axis=1)),
        _share(counts.diagonal(), counts.sum(axis=0)),
    )
    f1 = _share(2 * recall * np.nan_to_num(precision), recall + np.nan_to_num(precision))
    return np.where(counts.sum(axis=1) > 0, np.nan_to_num(f1), np.nan)


def _confusions(predictions: pd.DataFrame, group: np.ndarray) -> np.ndarray:
    """Return a confusion matrix per group (numbered from 0), shape ``(n_groups, n_emotions, n_emotions)``."""
    values, emotions = probabilities(predictions)
    return _counts(truth_column(predictions), values.argmax(axis=1), group, len(emotions))


def _counts(truth: np.ndarray, guess: np.ndarray, group: np.ndarray, n: int) -> np.ndarray:
    """Count (truth, guess) per group; all are numbered from 0."""
    return np.bincount(
        (group * n + truth) * n + guess, minlength=(group.max(initial=0) + 1) * n * n
    ).reshape(-1, n, n)


def _speaker_confusions(predictions: pd.DataFrame, speakers: pd.Series) -> np.ndarray:
    """Return one confusion matrix per speaker, in the order of the speakers' names."""
    _, speaker = np.unique(
        speakers.loc[predictions["utterance_id"]].to_numpy(str), return_inverse=True
    )
    return _confusions(predictions, speaker)


def _bootstrap_uar(matrices: np.ndarray, seed: int) -> np.ndarray:
    """Draw speakers with replacement; the same seed draws the same speakers, so differences are paired."""
    n_speakers = len(matrices)
    drawn = np.random.default_rng(seed).multinomial(
        n_speakers, np.full(n_speakers, 1 / n_speakers), N_BOOTSTRAP
    )
    counts = np.tensordot(drawn, matrices, axes=1)
    return np.nanmean(_share(np.diagonal(counts, axis1=1, axis2=2), counts.sum(axis=2)), axis=1) + (
        0 if n_speakers >= MIN_SPEAKERS else np.nan
    )


def _interval(draws: np.ndarray) -> tuple[float, float]:
    return tuple(float(x) for x in np.percentile(draws, [2.5, 97.5]))


if __name__ == "__main__":
    main()
