"""Speaker-disjoint folds with held-out validation speakers.

A *unit* is what must never be divided: a speaker, or, where speakers talk with each other
(IEMOCAP's sessions), their group. In each fold some units are tested, some others are for
validation (early stopping, choices, calibration, weights), and the rest is for training.
"""

import warnings

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

ROLES = ("train", "validation", "test")


def make_folds(
    utterances: pd.DataFrame,
    published: dict[int, tuple[str, ...]] | None = None,
    n_folds: int = 5,
    n_validation: int = 4,
    seed: int = 0,
) -> pd.DataFrame:
    """Divide labelled utterances into folds.

    Parameters
    ----------
    utterances
        With ``utterance_id``, ``emotion`` (of the label set), ``speaker``, ``sex``, ``group`` and
        ``sentence``.
    published
        Fold number → test units, where folds were published; every unit in exactly one of them.
    n_folds
        Number of folds to draw where none are published (at most one per unit), balanced by
        emotion.
    n_validation
        Number of validation *speakers* per fold, half of them of each sex where there are enough.
    seed
        Of the draws.

    Returns
    -------
    pd.DataFrame
        ``utterance_id, emotion, speaker, fold, role``: every utterance once in each fold.

    Raises
    ------
    ValueError
        If there are fewer than two units, or published folds do not name each unit exactly once.
    """
    units = set(utterances["group"])
    if len(units) < 2:
        raise ValueError(
            f"found {len(units)} speaker group(s) {sorted(units)}; speaker-disjoint folds need "
            "at least 2. Check how the speaker is read from the file names."
        )
    test_units = (
        _published_test_units(published, units)
        if published
        else _drawn_test_units(utterances, min(n_folds, len(units)), seed)
    )
    held_out = validation_units(utterances, test_units, n_validation, seed)

    tables = []
    for fold, tested in test_units.items():
        role = np.select(
            [utterances["group"].isin(tested), utterances["group"].isin(held_out[fold])],
            ["test", "validation"],
            "train",
        )
        if not held_out[fold]:
            role = _validation_by_sentence(utterances, role, seed)
            warnings.warn(
                f"fold {fold} trains on a single speaker, so its validation rows are of that "
                "speaker: what is chosen on them is optimistic.",
                stacklevel=2,
            )
        tables.append(
            utterances[["utterance_id", "emotion", "speaker"]].assign(fold=fold, role=role)
        )
    return pd.concat(tables, ignore_index=True)


def validation_units(
    utterances: pd.DataFrame, test_units: dict, n_validation: int, seed: int
) -> dict[int, list[str]]:
    """Choose each fold's validation units: both sexes in turn, those chosen least often first.

    So each unit is a validation unit about equally often, and pooled validation rows represent the
    whole corpus.

    Parameters
    ----------
    utterances, n_validation, seed
        As for :func:`make_folds`.
    test_units
        Fold → units that it tests.

    Returns
    -------
    dict of int to list of str
    """
    units = utterances.groupby("group").agg(sex=("sex", "first"), speakers=("speaker", "nunique"))
    order = np.random.default_rng(seed).permutation(units.index.to_numpy(str)).tolist()
    n_chosen, chosen, sex = dict.fromkeys(order, 0), {}, units["sex"]
    for fold, tested in test_units.items():
        free, mine = [name for name in order if name not in tested], []
        wanted = min(n_validation, max(len(free) // 3, 1))  # most units stay in training
        while units.loc[mine, "speakers"].sum() < wanted and len(free) > 1:
            sexes = sex[mine].tolist()
            best = min(free, key=lambda name: (sexes.count(sex[name]), n_chosen[name]))
            free.remove(best)
            mine.append(best)
            n_chosen[best] += 1
        chosen[fold] = sorted(mine)
    return chosen


def _published_test_units(published: dict, units: set[str]) -> dict[int, list[str]]:
    named = pd.Series(published).explode().loc[lambda unit: unit.isin(units)]
    twice = sorted(set(named[named.duplicated()]))
    if twice or set(named) != units:
        raise ValueError(
            "the published folds and the corpus do not match: not in any fold "
            f"{sorted(units - set(named))}, in two folds {twice}"
        )
    return named.groupby(level=0, sort=False).agg(sorted).to_dict()


def _drawn_test_units(utterances: pd.DataFrame, n_folds: int, seed: int) -> dict[int, list[str]]:
    splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    groups, emotion = utterances["group"].to_numpy(str), utterances["emotion"].to_numpy(str)
    # the audit names classes with fewer clips than folds
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        parts = list(splitter.split(groups, emotion, groups))
    return {fold: sorted(set(groups[test])) for fold, (_, test) in enumerate(parts, start=1)}


def _validation_by_sentence(utterances: pd.DataFrame, role: np.ndarray, seed: int) -> np.ndarray:
    """Hold out a fifth of the one training speaker's sentences; of the clips, if none are known."""
    units = utterances["sentence"].where(utterances["sentence"] != "", utterances["utterance_id"])
    if units[role == "train"].nunique() < 2:
        units = utterances["utterance_id"]
    own = np.unique(units[role == "train"].to_numpy(str))
    held_out = np.random.default_rng(seed).permutation(own)[: max(len(own) // 5, 1)]
    return np.where((role == "train") & units.isin(held_out).to_numpy(), "validation", role)
