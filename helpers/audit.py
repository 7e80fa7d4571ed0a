"""The leakage audit: does anything of the test side reach the training side?

Faults stop a run. Warnings are shown with how much they concern, and what could not be checked says so. The audit looks at the
tables (who is where), at the sound (is a clip of the one side also on the other, under another name?), at the inputs (were
they scaled with test rows?) and at run records (which rows did each step of training see?).

It is also a command, for tables of any origin::

    python -m helpers.audit utterances.csv folds.csv [--audio ROOT] [--record run.json]
"""

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import audio, fingerprint

LEVELS = ("fault", "warning", "not checked", "ok")
STEPS = ("transform", "fit", "augment", "stop", "select", "start")
OPTIONAL = (
    "group",
    "sentence",
    "parent_id",
    "audio_hash",
)  # columns of utterances that make a check possible
SYNONYMS = {
    "training": "train",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "development": "valid",
    "testing": "test",
    "eval": "test",
}
SMALL_FOLD = 0.5  # a test part below this share of the mean one


@dataclass(frozen=True)
class Finding:
    """One thing the audit looked at: ``level`` is one of ``LEVELS``."""

    level: str
    check: str
    text: str


def audit_folds(folds: pd.DataFrame, utterances: pd.DataFrame) -> list[Finding]:
    """Audit a division into folds.

    Parameters
    ----------
    folds
        ``utterance_id, fold, role`` (train, valid, test), and ``emotion`` if it is known. Where test rows alone are listed, a
        fold's training rows are all others, as when each utterance has one fold number.
    utterances
        ``utterance_id, speaker``, and what of ``OPTIONAL`` there is: ``group`` of people who talk with each other,
        ``sentence``, ``audio_hash``, and ``parent_id``, the utterance that an augmented row was made from (empty for
        originals). Speakers are taken from here, not from the folds table, so that a mistake made there shows.

    Returns
    -------
    list of Finding
        One per check; see :func:`require_clean`.
    """
    twice = utterances["utterance_id"].duplicated()
    findings = [
        _finding(
            twice.any(),
            "listed once",
            f"{twice.sum()} utterances are listed more than once, e.g. "
            f"{_some(utterances.loc[twice, 'utterance_id'])}",
            "every utterance is listed once",
        )
    ]
    known = [
        c
        for c in ("speaker", *OPTIONAL)
        if c in utterances and (utterances[c].fillna("").astype(str) != "").any()
    ]
    own = [c for c in ("utterance_id", "emotion", "fold", "role") if c in folds]
    rows = folds[own].merge(
        utterances.loc[~twice, ["utterance_id", *known]], on="utterance_id", how="left"
    )
    lost = rows["speaker"].isna()
    findings.append(
        _finding(
            lost.any(),
            "known rows",
            f"{lost.sum()} rows of the folds name no known utterance, e.g. "
            f"{_some(rows.loc[lost, 'utterance_id'])}",
            "every row of the folds is a known utterance",
        )
    )
    rows = _divided(rows)
    findings.append(_apart(rows, "utterance_id", "utterances"))
    findings.append(_apart(rows, "speaker", "speakers"))
    if "group" in known and (rows["group"] != rows["speaker"]).any():
        findings.append(_apart(rows, "group", "groups of speakers who talk with each other"))
    if "audio_hash" in known:
        findings.append(_apart(rows, "audio_hash", "recordings (same decoded audio)"))
    if "parent_id" in known:
        origin = rows["parent_id"].where(rows["parent_id"].fillna("") != "", rows["utterance_id"])
        findings.append(
            _apart(rows.assign(parent=origin), "parent", "augmented copies and their parents")
        )
    if "sentence" in known:
        findings.append(_shared_sentences(rows))
    missing = [c for c in OPTIONAL if c not in known]
    if missing:
        findings.append(
            Finding(
                "not checked",
                "columns",
                f"the utterances have no {', '.join(missing)}: what these would show "
                "was not looked at",
            )
        )
    findings.append(
        _classes(rows)
        if "emotion" in rows
        else Finding(
            "not checked",
            "classes",
            "emotions are not known: whether one lacks in a fold was not looked at",
        )
    )
    findings += _sizes(rows)
    return findings


def audit_audio(folds: pd.DataFrame, pairs: pd.DataFrame) -> Finding:
    """Say whether a recording is on two sides under two names, re-encoded, resampled, louder or trimmed.

    Parameters
    ----------
    folds
        As for :func:`audit_folds`.
    pairs
        From ``fingerprint.same_recordings``.
    """
    sides = _divided(folds)[["utterance_id", "division", "side"]]
    both = pairs.merge(sides, left_on="first", right_on="utterance_id").merge(
        sides, left_on=["second", "division"], right_on=["utterance_id", "division"]
    )
    apart = both[both["side_x"] != both["side_y"]].drop_duplicates(["first", "second"])
    examples = "; ".join(
        f"{p.first} ({p.side_x}) and {p.second} ({p.side_y}), correlation {p.correlation:.2f}"
        for p in apart.head(3).itertuples()
    )
    return _finding(
        len(apart) > 0,
        "sound",
        f"{len(apart)} pair(s) of clips on two sides are the same recording: {examples}",
        f"no clip sounds the same as one on another side ({len(pairs)} pair(s) of the same recording on one side)",
    )


def audit_inputs(inputs: np.ndarray, variant: str, speakers: np.ndarray) -> list[Finding]:
    """Tell from the inputs themselves whether they were scaled with rows they should not have seen.

    A column that was standardised over a set of rows has mean 0 and standard deviation 1 over exactly those rows.

    Parameters
    ----------
    inputs : np.ndarray [shape=(n_utterances, n_features)]
    variant
        "inductive" or "speaker-normalised": what the results will be called. Others are not looked at.
    speakers : np.ndarray [shape=(n_utterances,)]
    """
    if (
        inputs.ndim != 2 or len(inputs) < 20 or inputs.dtype.kind not in "fiu"
    ):  # texts can't be scaled
        return []
    per_speaker = all(_standardised(inputs[speakers == s]) for s in np.unique(speakers)[:4])
    findings = []
    if variant == "inductive":
        everything = _standardised(inputs) or per_speaker
        findings.append(
            Finding(
                "fault" if everything else "ok",
                "scaling",
                (
                    "the inputs were standardised over each speaker's rows, test speakers included: call the variant speaker-normalised"
                    if per_speaker
                    else "the inputs were standardised over all rows, test rows included: put the scaler into the "
                    "pipeline, where it is fitted on training rows"
                )
                if everything
                else "inputs were not scaled over all rows",
            )
        )
    elif variant == "speaker-normalised" and not per_speaker:
        findings.append(
            Finding(
                "fault",
                "scaling",
                "the variant is speaker-normalised, but the inputs are not standardised "
                "per speaker",
            )
        )
    return findings


def audit_record(record: dict, folds: pd.DataFrame) -> list[Finding]:
    """Audit a run record: no step of any fold may have seen its test rows.

    Parameters
    ----------
    record
        As ``experiment.cross_validate`` returns it: ``folds`` → fold → step → list of utterance ids; steps are ``fit``
        (weights, and every transform inside the model), ``transform`` (what was fitted outside, e.g. a scaler), ``augment``
        (parents of the copies that it was trained on), ``stop``, ``select``, and ``start`` (rows that the starting weights,
        or models that made the inputs, had been trained on). ``notes`` may hold anything.
    folds
        The folds table.

    Raises
    ------
    ValueError
        If the record has folds that the table has not, or steps of other names.
    """
    test = {
        str(fold): set(rows["utterance_id"])
        for fold, rows in folds[folds["role"] == "test"].groupby("fold")
    }
    taken = {step for steps in record["folds"].values() for step in steps} - {"notes"}
    if not set(map(str, record["folds"])) <= set(test) or not taken <= set(STEPS):
        raise ValueError(
            f"the run record has the folds {sorted(record['folds'])} with the steps {sorted(taken)}; expected the "
            f"folds {sorted(test)} with steps of {', '.join(STEPS)}"
        )
    findings = []
    for step in (step for step in STEPS if step in taken or step != "transform"):
        seen = {
            fold: len(test[str(fold)] & set(steps.get(step, [])))
            for fold, steps in record["folds"].items()
        }
        bad = {fold: n for fold, n in seen.items() if n}
        where = ", ".join(f"{fold} ({n})" for fold, n in bad.items())
        findings.append(
            _finding(
                bad,
                step,
                f"{step} saw test rows of fold(s) {where}",
                f"{step} saw no test row in any of {len(seen)} folds",
            )
        )
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
        raise ValueError(
            f"the leakage audit found {len(faults)} fault(s); results would be inflated:\n"
            + "\n".join(faults)
        )
    return pd.DataFrame(
        [(f.level, f.check, f.text) for f in findings], columns=["level", "check", "finding"]
    )


def read_division(path: Path, names: dict[str, str] | None = None) -> pd.DataFrame:
    """Read anybody's folds.

    Parameters
    ----------
    path
        A table (csv or parquet) with ``utterance_id`` and either ``fold`` and ``role``, or ``role`` alone (one division), or
        one ``fold`` number per utterance: the fold in which it is tested.
    names
        Our name → the table's, where they differ.

    Returns
    -------
    pd.DataFrame
        ``utterance_id, fold, role``, and ``emotion`` if it is there.
    """
    table = _read(path, names or {}, ["utterance_id"])
    if "fold" not in table and "role" not in table:
        raise ValueError(
            f"{path} has the columns {list(table.columns)}: a division needs fold, role, or both. Name yours with "
            "--names, e.g. fold=split"
        )
    table = table.assign(fold=table.get("fold", 1), role=table.get("role", "test"))
    roles = table["role"].astype(str).str.lower().replace(SYNONYMS)
    if strange := set(roles) - {"train", "valid", "test"}:
        raise ValueError(f"{path}: the roles {sorted(strange)[:5]} are none of train, valid, test")
    return table.assign(role=roles)[
        [c for c in ("utterance_id", "fold", "role", "emotion") if c in table]
    ]


def read_records(path: Path) -> list[dict]:
    """Read run records, one or a list of them, plain or compressed (``.json.gz``)."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as handle:
        content = json.load(handle)
    records = content if isinstance(content, list) else [content]
    if not all(
        isinstance(record, dict) and isinstance(record.get("folds"), dict) for record in records
    ):
        raise ValueError(
            f'{path} is no run record: expected {{"folds": {{fold: {{step: [ids]}}}}}}, or a list of such'
        )
    return records


def main(arguments: list[str] | None = None) -> int:
    """Audit a division of utterances into folds; returns 0 if it is clean, 1 on a fault, 2 if the tables can't be used."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.audit",
        description=main.__doc__,
        epilog=(
            "utterances: utterance_id, speaker and, as far as known, group, sentence, audio_hash, parent_id (what an augmented "
            "copy was made from), emotion, path. folds: see helpers.audit.read_division; may be the same file. A run record is "
            "described in helpers.audit.audit_record."
        ),
    )
    parser.add_argument("utterances", type=Path, help="table (csv or parquet), one row per clip")
    parser.add_argument(
        "folds",
        type=Path,
        help="table (csv or parquet): fold and role, or one fold number per utterance",
    )
    parser.add_argument(
        "--audio",
        type=Path,
        metavar="ROOT",
        help="folder of the recordings: listen for copies, too",
    )
    parser.add_argument(
        "--record", type=Path, metavar="RUN.json", help="what each step of training saw"
    )
    parser.add_argument(
        "--names",
        nargs="*",
        default=[],
        metavar="OURS=YOURS",
        help="your columns, e.g. speaker=actor",
    )
    parser.add_argument("--strict", action="store_true", help="a warning counts as a fault")
    options = parser.parse_args(arguments)
    try:
        names = dict(name.split("=", 1) for name in options.names)
        utterances = _read(options.utterances, names, ["utterance_id", "speaker"])
        folds = read_division(options.folds, names)
        if "emotion" not in folds and "emotion" in utterances:
            folds = folds.merge(
                utterances[["utterance_id", "emotion"]].drop_duplicates("utterance_id"), how="left"
            )
        if options.audio:
            utterances = utterances.assign(**_located(utterances, options.audio))
            if "audio_hash" not in utterances:
                utterances["audio_hash"] = audio.measure_all(utterances)["audio_hash"]
        findings = audit_folds(folds, utterances)
        findings.append(
            audit_audio(folds, fingerprint.same_recordings(utterances))
            if options.audio
            else Finding(
                "not checked",
                "sound",
                "no recordings were given (--audio): copies that were re-encoded, "
                "resampled, louder or trimmed would not show",
            )
        )
        for record in read_records(options.record) if options.record else []:
            label = f"{record['variant']}, " if "variant" in record else ""
            findings += [
                Finding(f.level, f"{label}{f.check}", f.text) for f in audit_record(record, folds)
            ]
    except (ValueError, OSError) as error:
        print(f"the audit could not be made: {error}", file=sys.stderr)
        return 2
    lines = [
        f"{level.upper() if level != 'ok' else level:<12} {finding.check}: {finding.text}"
        for level in LEVELS
        for finding in findings
        if finding.level == level
    ]
    bad = sum(f.level == "fault" or (options.strict and f.level == "warning") for f in findings)
    size = f"{len(utterances)} utterances, {utterances['speaker'].nunique()} speakers, {folds['fold'].nunique()} fold(s): "
    print(
        "\n".join(
            [
                *lines,
                "",
                size
                + (f"{bad} fault(s); results on this division are inflated" if bad else "no fault"),
            ]
        )
    )
    return int(bad > 0)


def _finding(bad: object, check: str, fault: str, fine: str) -> Finding:
    return Finding("fault", check, fault) if bad else Finding("ok", check, fine)


def _some(values: pd.Series) -> str:
    return ", ".join(map(str, values.unique()[:5]))


def _divided(folds: pd.DataFrame) -> pd.DataFrame:
    """Add what must not share anything: the ``side`` of each row in its ``division``.

    A fold is a division whose sides are roles; where test rows alone are listed, all is one division whose sides are folds.
    """
    if set(folds["role"]) == {"test"}:
        return folds.assign(division="all", side=folds["fold"].map("fold {}".format))
    return folds.assign(division=folds["fold"], side=folds["role"])


def _sides(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return, for each division and value of a column, how many sides it is on; values that are not known are left out."""
    known = rows[rows[column].notna() & (rows[column] != "")]
    codes = {name: pd.factorize(known[name]) for name in ("division", column, "side")}
    cells = np.unique(np.stack([code for code, _ in codes.values()], axis=1), axis=0)
    table, of, sides = np.unique(cells[:, :2], axis=0, return_inverse=True, return_counts=True)
    is_test = np.asarray(codes["side"][1], object)[cells[:, 2]] == "test"
    return pd.DataFrame(
        {
            "division": np.asarray(codes["division"][1])[table[:, 0]],
            "value": np.asarray(codes[column][1], object)[table[:, 1]],
            "sides": sides,
            "test": np.bincount(of.ravel(), is_test, minlength=len(table)) > 0,
        }
    )


def _apart(rows: pd.DataFrame, column: str, what: str) -> Finding:
    """Find values of a column that are on two sides of a fold."""
    sides = _sides(rows, column)
    # where a single speaker (or group) is left beside the test side, valid rows can only come from it: make_folds warns too
    unit = "group" if "group" in rows else "speaker"
    left = rows[rows["side"] != "test"].groupby("division")[unit].nunique()
    excused = (sides["sides"] > 1) & ~sides["test"] & sides["division"].isin(left[left == 1].index)
    excused &= column in ("speaker", "group")
    split = sides[(sides["sides"] > 1) & ~excused]
    if split.empty and excused.any():
        return Finding(
            "warning",
            what,
            f"in {excused.sum()} fold(s) a single one is left for training, and valid rows come "
            "from it: what is chosen on them is optimistic",
        )
    if split.empty:
        return Finding("ok", what, f"no {what} on two sides of a fold")
    values = split["value"].unique()
    examples = []
    for value in values[:3]:
        ids = rows.loc[rows[column] == value, "utterance_id"].unique()
        examples.append(f"{value} ({', '.join(ids[:2])}{', …' if len(ids) > 2 else ''})")
    test = rows[rows["role"] == "test"]
    there = pd.MultiIndex.from_frame(split[["division", "value"]])
    concerned = pd.MultiIndex.from_frame(test[["division", column]]).isin(there)
    return Finding(
        "fault",
        what,
        f"{what} on two sides of a fold: {len(values)}, which concerns {concerned.mean():.0%} of the "
        f"test rows, e.g. {'; '.join(examples)}",
    )


def _shared_sentences(rows: pd.DataFrame) -> Finding:
    shares = []
    for _, division in rows[rows["sentence"].fillna("") != ""].groupby("division"):
        if "test" in set(division["side"]):
            known = set(division.loc[division["side"] == "train", "sentence"])
            shares.append(division.loc[division["side"] == "test", "sentence"].isin(known).mean())
        else:
            shares.append((division.groupby("sentence")["side"].transform("nunique") > 1).mean())
    share = float(np.nanmean(shares))
    return Finding(
        "warning" if share > 0.05 else "ok",
        "shared sentences",
        f"{share:.0%} of test utterances say a sentence that training utterances say too",
    )


def _classes(rows: pd.DataFrame) -> Finding:
    counts = rows.groupby(["division", "side", "emotion"]).size().unstack("emotion", fill_value=0)
    gaps = [
        (division, side, ", ".join(counts.columns[row == 0]))
        for (division, side), row in zip(counts.index, counts.to_numpy(), strict=True)
        if (row == 0).any()
    ]
    text = "; ".join(
        f"fold {division} {side}: {lacking}".removeprefix("fold all ")
        for division, side, lacking in gaps[:5]
    )
    return Finding(
        "warning" if gaps else "ok",
        "classes",
        f"emotions missing: {text}" if gaps else "every emotion is in every part of every fold",
    )


def _sizes(rows: pd.DataFrame) -> Iterator[Finding]:
    """Yield what is to be said on the size of folds, on roles that lack, and on how often each utterance is tested."""
    test = rows[rows["role"] == "test"]
    sizes = test.groupby("fold").size().reindex(rows["fold"].unique(), fill_value=0)
    small = sizes[sizes < SMALL_FOLD * sizes.mean()]
    uneven = sizes.max() > sizes.min() / SMALL_FOLD**2
    text = f"test parts have {sizes.min()} to {sizes.max()} utterances"
    yield Finding(
        "warning" if len(small) or uneven else "ok",
        "fold sizes",
        text
        + (
            f"; much smaller than others: fold {', '.join(map(str, small.index[:10]))}"
            if len(small)
            else ""
        ),
    )
    tested = (
        test.groupby("utterance_id").size().reindex(rows["utterance_id"].unique(), fill_value=0)
    )
    yield Finding(
        "ok" if (tested == 1).all() else "warning",
        "test rows",
        f"{(tested == 1).sum()} of {len(tested)} utterances are tested exactly once, "
        f"{(tested > 1).sum()} more than once, {(tested == 0).sum()} never",
    )
    if "valid" not in set(rows["role"]):
        yield Finding(
            "warning",
            "valid rows",
            "there are none: what was stopped, chosen or calibrated, if anything, was so by "
            "training or by test rows",
        )


def _standardised(values: np.ndarray) -> bool:
    """Whether nearly all columns that vary have mean 0 and standard deviation 1 over these rows."""
    std = values.std(axis=0)
    varying = std > 1e-3
    near = (np.abs(values.mean(axis=0)) < 1e-3) & (np.abs(std - 1) < 1e-2)
    return bool(varying.any() and near[varying].mean() > 0.9)


def _read(path: Path, names: dict[str, str], needed: list[str]) -> pd.DataFrame:
    """Read a table whose columns may have other names; texts stay texts (speaker "01" is not 1)."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    try:
        table = (
            pd.read_parquet(path)
            if path.suffix == ".parquet"
            else pd.read_csv(path, dtype=str, keep_default_na=False)
        )
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} can't be read as {'parquet' if path.suffix == '.parquet' else 'csv'}: {error}"
        ) from None
    table = table.rename(columns={theirs: ours for ours, theirs in names.items()})
    if lacking := [c for c in needed if c not in table]:
        raise ValueError(
            f"{path} has the columns {list(table.columns)}; {', '.join(lacking)} lack(s). Name yours with "
            f"--names, e.g. {lacking[0]}=file"
        )
    if empty := [c for c in needed if (table[c].astype(str) == "").any() or table[c].isna().any()]:
        raise ValueError(f"{path}: {', '.join(empty)} has empty cells; every row needs one")
    return table


def _located(utterances: pd.DataFrame, root: Path) -> dict[str, object]:
    """Return where each recording lies: by ``path`` below the root, or a file named as the last part of an id."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder")
    places = {}
    for path in sorted(root.rglob("*")):
        if audio.is_audio(path):
            places.setdefault(path.stem, []).append(str(path))
    wanted = (
        utterances["path"].map(str) if "path" in utterances else utterances["utterance_id"].map(str)
    )
    found = [
        [str(root / name)]
        if (root / name).is_file()
        else places.get(Path(name).name) or places.get(Path(name).stem, [])
        for name in wanted
    ]
    for how, count in (("not", 0), ("more than once", 2)):
        if bad := [
            name for name, here in zip(wanted, found, strict=True) if min(len(here), 2) == count
        ]:
            raise FileNotFoundError(
                f"{len(bad)} of {len(wanted)} recordings are {how} under {root}: {', '.join(bad[:5])}: "
                "give a column path, and the folder that it counts from, or files whose names are the ids"
            )
    times = {
        c: pd.to_numeric(utterances[c]) if c in utterances else np.nan for c in ("start_s", "end_s")
    }
    return {"path": [here[0] for here in found], **times}


if __name__ == "__main__":
    sys.exit(main())
