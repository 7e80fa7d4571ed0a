"""Speaker-disjoint folds with held-out validation speakers.

A *unit* is what must never be divided: a speaker, or, where speakers talk with each other (IEMOCAP's sessions), their
group. In each fold some units are ``test``, some others ``valid`` (early stopping, choices, calibration, weights), and
the rest ``train``.
"""

import warnings

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

ROLES = ("train", "valid", "test")


def make_folds(
    utterances: pd.DataFrame,
    published: dict[int, tuple[str, ...]] | None = None,
    n_folds: int = 5,
    n_valid: int = 4,
    seed: int = 0,
) -> pd.DataFrame:
    """Divide labelled utterances into folds.

    Parameters
    ----------
    utterances
        With ``utterance_id``, ``emotion`` (of the label policy), ``speaker``, ``sex``, ``group`` and ``sentence``.
    published
        Fold number → units of its test part, where the field agreed on folds; every unit in exactly one of them.
    n_folds
        Number of folds to draw where none are published (at most one per unit), balanced by emotion.
    n_valid
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
        If fewer than two units are there, or published folds do not name each unit exactly once.
    """
    units = _units(utterances)
    if len(units) < 2:
        raise ValueError(
            f"found {len(units)} speaker group(s) {list(units.index)}; speaker-disjoint folds need at least 2. "
            "Check how the speaker is read from the file names."
        )
    if published:
        test_units = {
            fold: sorted(set(names) & set(units.index)) for fold, names in published.items()
        }
        named = [name for names in test_units.values() for name in names]
        if sorted(named) != sorted(units.index):
            homeless = sorted(set(units.index) - set(named))
            raise ValueError(
                f"the published folds and the corpus do not match: not in any fold {homeless}, in two folds"
                f" {sorted({n for n in named if named.count(n) > 1})}"
            )
        test_units = {fold: names for fold, names in test_units.items() if names}
    else:
        test_units = _drawn_test_units(utterances, min(n_folds, len(units)), seed)
    valid_units = _valid_units(units, test_units, n_valid, seed)

    tables = []
    for fold, tested in test_units.items():
        role = np.where(
            utterances["group"].isin(tested),
            "test",
            np.where(utterances["group"].isin(valid_units[fold]), "valid", "train"),
        )
        if not valid_units[fold]:
            role = _valid_by_sentence(utterances, role, seed)
            warnings.warn(
                f"fold {fold} trains on a single speaker, so its valid rows are sentences of that speaker: "
                "what is chosen on them is optimistic.",
                stacklevel=2,
            )
        tables.append(
            utterances[["utterance_id", "emotion", "speaker"]].assign(fold=fold, role=role)
        )
    return pd.concat(tables, ignore_index=True)


def make_transfer(
    train: pd.DataFrame, test: pd.DataFrame, n_valid: int = 4, seed: int = 0
) -> pd.DataFrame:
    """Make one fold that learns from one corpus (or several) and is tested on another.

    Parameters
    ----------
    train, test
        As `utterances` of :func:`make_folds`; some training speakers become valid.
    n_valid, seed
        As there.

    Raises
    ------
    ValueError
        If a speaker group has the same name on both sides: put the corpus's name before it.
    """
    if both := sorted(set(train["group"]) & set(test["group"])):
        raise ValueError(
            f"{len(both)} speaker group(s) are on both sides, e.g. {both[:5]}: the same people can't be tested; "
            "other people of the same name need their corpus's name before it"
        )
    valid = _valid_units(_units(train), {1: []}, n_valid, seed)[1]
    role = [*np.where(train["group"].isin(valid), "valid", "train"), *["test"] * len(test)]
    rows = pd.concat([train, test], ignore_index=True)[["utterance_id", "emotion", "speaker"]]
    return rows.assign(fold=1, role=role)


def fold_summary(folds: pd.DataFrame) -> pd.DataFrame:
    """Return, per fold, the number of utterances and the speakers of each role."""
    table = folds.groupby(["fold", "role"]).agg(
        utterances=("utterance_id", "size"),
        speakers=("speaker", lambda s: " ".join(sorted(s.unique()))),
    )
    return table.unstack("role").swaplevel(axis=1)[list(ROLES)]


def _units(utterances: pd.DataFrame) -> pd.DataFrame:
    """Return what must never be divided, each with its sex and number of speakers."""
    return utterances.groupby("group", sort=True).agg(
        sex=("sex", "first"), speakers=("speaker", "nunique")
    )


def _drawn_test_units(utterances: pd.DataFrame, n_folds: int, seed: int) -> dict[int, list[str]]:
    splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    groups, emotion = utterances["group"].to_numpy(str), utterances["emotion"].to_numpy(str)
    with warnings.catch_warnings():  # a class with fewer clips than folds is told by the audit
        warnings.simplefilter("ignore", UserWarning)
        return {
            fold: sorted(set(groups[test]))
            for fold, (_, test) in enumerate(
                splitter.split(np.zeros(len(groups)), emotion, groups), start=1
            )
        }


def _valid_units(
    units: pd.DataFrame, test_units: dict, n_valid: int, seed: int
) -> dict[int, list[str]]:
    """Choose each fold's validation units: both sexes in turn, those that served least often first.

    So each unit is a validation unit about equally often, and pooled valid rows speak for the whole corpus.
    """
    order = np.random.default_rng(seed).permutation(units.index.to_numpy(str))
    rank = {name: i for i, name in enumerate(order)}
    served = dict.fromkeys(rank, 0)
    chosen = {}
    for fold, tested in test_units.items():
        free = [name for name in rank if name not in tested]
        mine, speakers = [], 0
        wanted = min(n_valid, max(len(free) // 3, 1))  # most units stay in training
        while speakers < wanted and len(free) > 1:
            sexes = [units.loc[name, "sex"] for name in mine]
            best = min(
                free,
                key=lambda name: (sexes.count(units.loc[name, "sex"]), served[name], rank[name]),
            )
            free.remove(best)
            mine.append(best)
            speakers += units.loc[best, "speakers"]
            served[best] += 1
        chosen[fold] = sorted(mine)
    return chosen


def _valid_by_sentence(utterances: pd.DataFrame, role: np.ndarray, seed: int) -> np.ndarray:
    sentences = np.unique(utterances["sentence"][role == "train"].to_numpy(str))
    held_out = np.random.default_rng(seed).permutation(sentences)[: max(len(sentences) // 5, 1)]
    return np.where(
        (role == "train") & utterances["sentence"].isin(held_out).to_numpy(), "valid", role
    )
