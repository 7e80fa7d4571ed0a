"""The leakage audit: does anything of the test side reach the training side?

Faults stop a run. Warnings are shown with how much they concern. The audit looks at the tables (who is where), at the
inputs (were they scaled with test rows?) and at run records (which rows did each step of training see?).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Finding:
    """One thing the audit looked at: ``level`` is "ok", "warning" or "fault"."""

    level: str
    check: str
    text: str


def audit_folds(folds: pd.DataFrame, utterances: pd.DataFrame) -> list[Finding]:
    """Audit a division into folds.

    Parameters
    ----------
    folds
        ``utterance_id, emotion, fold, role``.
    utterances
        ``utterance_id, speaker, group, sentence, audio_hash`` and, for augmented rows, ``parent_id``. Speakers are taken
        from here, not from the folds table, so that a mistake made there shows.

    Returns
    -------
    list of Finding
        One per check; see :func:`require_clean`.
    """
    rows = folds[["utterance_id", "emotion", "fold", "role"]].merge(utterances, on="utterance_id", how="left",
                                                                   suffixes=("", "_utterance"))
    lost = rows["speaker"].isna().sum()
    findings = [Finding("fault" if lost else "ok", "utterances", f"{lost} rows of the folds name no known utterance")]
    findings.append(_apart(rows, "speaker", "speakers"))
    if (rows["group"] != rows["speaker"]).any():
        findings.append(_apart(rows, "group", "groups of speakers who talk with each other"))
    findings.append(_apart(rows[rows["audio_hash"] != ""], "audio_hash", "recordings (same decoded audio)"))
    if "parent_id" in rows:
        origin = rows["parent_id"].where(rows["parent_id"].fillna("") != "", rows["utterance_id"])
        findings.append(_apart(rows.assign(parent=origin), "parent", "augmented copies and their parents"))
    findings.append(_shared_sentences(rows))
    findings.append(_classes(rows))
    tested = rows[rows["role"] == "test"].groupby("utterance_id").size().reindex(rows["utterance_id"].unique(), fill_value=0)
    findings.append(Finding("ok" if (tested == 1).all() else "warning", "test rows",
                            f"{(tested == 1).sum()} of {len(tested)} utterances are tested exactly once, "
                            f"{(tested > 1).sum()} more than once, {(tested == 0).sum()} never"))
    return findings


def audit_inputs(inputs: np.ndarray, variant: str, speakers: np.ndarray) -> list[Finding]:
    """Tell from the inputs themselves whether they were scaled with rows they should not have seen.

    A column that was standardised over a set of rows has mean 0 and standard deviation 1 over exactly those rows.

    Parameters
    ----------
    inputs : np.ndarray [shape=(n_utterances, n_features)]
    variant
        "inductive" or "speaker-normalised": what the results will be called.
    speakers : np.ndarray [shape=(n_utterances,)]
    """
    if inputs.ndim != 2 or len(inputs) < 20 or inputs.dtype.kind not in "fiu":  # texts can't be scaled
        return []
    per_speaker = all(_standardised(inputs[speakers == s]) for s in np.unique(speakers)[:4])
    findings = []
    if variant == "inductive":
        everything = _standardised(inputs) or per_speaker
        findings.append(Finding("fault" if everything else "ok", "scaling", (
            "the inputs were standardised over each speaker's rows, test speakers included: call the variant speaker-normalised"
            if per_speaker else "the inputs were standardised over all rows, test rows included: put the scaler into the "
            "pipeline, where it is fitted on training rows") if everything else "inputs were not scaled over all rows"))
    elif not per_speaker:
        findings.append(Finding("fault", "scaling", "the variant is speaker-normalised, but the inputs are not standardised "
                                "per speaker"))
    return findings


def audit_record(record: dict, folds: pd.DataFrame) -> list[Finding]:
    """Audit a run record: no step of any fold may have seen its test rows.

    Parameters
    ----------
    record
        As ``experiment.cross_validate`` returns it: ``folds`` → fold → step → list of utterance ids; steps are ``fit``
        (weights, and every transform inside the model), ``augment`` (parents of the copies that it was trained on),
        ``stop``, ``select``, and ``start`` (rows that the starting weights had been trained on).
    folds
        The folds table.
    """
    findings = []
    test = {str(fold): set(rows["utterance_id"]) for fold, rows in folds[folds["role"] == "test"].groupby("fold")}
    for step in ("fit", "augment", "stop", "select", "start"):
        seen = {fold: len(test[str(fold)] & set(steps.get(step, []))) for fold, steps in record["folds"].items()}
        bad = {fold: n for fold, n in seen.items() if n}
        findings.append(Finding("fault" if bad else "ok", step,
                                f"{step} saw test rows of fold(s) " + ", ".join(f"{f} ({n})" for f, n in bad.items())
                                if bad else f"{step} saw no test row in any of {len(seen)} folds"))
    return findings


def require_clean(findings: list[Finding]) -> pd.DataFrame:
    """Return the findings as a table, or stop on a fault.

    Raises
    ------
    ValueError
        With every fault in words.
    """
    faults = [f"  {f.check}: {f.text}" for f in findings if f.level == "fault"]
    if faults:
        raise ValueError(f"the leakage audit found {len(faults)} fault(s); results would be inflated:\n" + "\n".join(faults))
    return pd.DataFrame([(f.level, f.check, f.text) for f in findings], columns=["level", "check", "finding"])


def _apart(rows: pd.DataFrame, column: str, what: str) -> Finding:
    """Find values of a column that are on two sides of a fold."""
    sides = rows.groupby(["fold", column])["role"].agg(lambda roles: frozenset(roles))
    # where a single speaker (or group) is left beside the test side, valid rows can only come from it: make_folds warns too
    left = rows[rows["role"] != "test"].groupby("fold")["group"].nunique()
    within = np.array([roles == {"train", "valid"} for roles in sides], bool)
    excused = within & sides.index.get_level_values("fold").isin(left[left == 1].index)
    excused &= column in ("speaker", "group")
    split = sides[np.array([len(roles) > 1 for roles in sides], bool) & ~excused]
    if split.empty and excused.any():
        return Finding("warning", what, f"in {excused.sum()} fold(s) a single one is left for training, and valid rows come "
                                        "from it: what is chosen on them is optimistic")
    if split.empty:
        return Finding("ok", what, f"no {what} on two sides of a fold")
    values = split.index.get_level_values(column).unique()
    examples = []
    for value in values[:3]:
        ids = rows.loc[rows[column] == value, "utterance_id"].unique()
        examples.append(f"{value} ({', '.join(ids[:2])}{', …' if len(ids) > 2 else ''})")
    n_folds = split.index.get_level_values("fold").nunique()
    return Finding("fault", what, f"{len(values)} {what} on two sides of a fold, in {n_folds} fold(s): {'; '.join(examples)}")


def _shared_sentences(rows: pd.DataFrame) -> Finding:
    spoken = rows[rows["sentence"] != ""]
    if spoken.empty:
        return Finding("ok", "shared sentences", "no sentences are known")
    shares = []
    for _, fold in spoken.groupby("fold"):
        known = set(fold.loc[fold["role"] == "train", "sentence"])
        shares.append(fold.loc[fold["role"] == "test", "sentence"].isin(known).mean())
    share = float(np.nanmean(shares))
    return Finding("warning" if share > 0.05 else "ok", "shared sentences",
                   f"{share:.0%} of test utterances say a sentence that training utterances say too")


def _classes(rows: pd.DataFrame) -> Finding:
    table = rows.groupby(["fold", "role"])["emotion"].agg(lambda e: frozenset(e))
    everything = frozenset(rows["emotion"])
    gaps = [(fold, role, sorted(everything - found)) for (fold, role), found in table.items() if found != everything]
    level = "warning" if gaps else "ok"
    text = "; ".join(f"fold {fold} {role}: {', '.join(lacking)}" for fold, role, lacking in gaps[:5])
    return Finding(level, "classes", f"emotions missing: {text}" if gaps else "every emotion is in every part of every fold")


def _standardised(values: np.ndarray) -> bool:
    """Whether nearly all columns that vary have mean 0 and standard deviation 1 over these rows."""
    std = values.std(axis=0)
    varying = std > 1e-3
    near = (np.abs(values.mean(axis=0)) < 1e-3) & (np.abs(std - 1) < 1e-2)
    return bool(varying.any() and near[varying].mean() > 0.9)
