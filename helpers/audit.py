"""The leakage audit: does anything of the test side reach the training side?

Faults stop a run. Warnings are shown with the share of the data that they concern, and what could
not be checked is named. The audit looks at the tables (who is where), at the audio (is a clip also
on another side, under another name?), at the inputs (were they scaled with test rows?) and at run
records (which rows did each step of training see?).

It is also a command, for tables of any origin::

    python -m helpers.audit utterances.csv folds.csv [--audio ROOT] [--record run.json]
"""

import argparse
import contextlib
import functools
import gzip
import itertools
import json
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import uniform_filter1d
from scipy.sparse import coo_array, csgraph
from sklearn import neighbors, preprocessing

from helpers import audio, cache, corpora, features

VERSION = 2  # raise it when a change of this module changes how two clips compare
LEVELS = ("fault", "warning", "not checked", "ok")
STEPS = ("transform", "fit", "augment", "stop", "select", "start")
# column of utterances whose values must not be on two sides → what they are, in words
APART = {
    "utterance_id": "utterances",
    "speaker": "speakers",
    "group": "groups of speakers who talk with each other",
    "audio_hash": "recordings (same decoded audio)",
    "parent_id": "augmented copies and their parents",
}
OPTIONAL = ("group", "sentence", "parent_id", "audio_hash", "emotion")  # each allows a check
SYNONYMS = {
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "development": "validation",
    "testing": "test",
    "eval": "test",
}
# of the command
ARGUMENTS = {
    "utterances": {"type": Path, "help": "table (csv or parquet), one row per clip"},
    "folds": {
        "type": Path,
        "help": "table (csv or parquet): fold and role, or one fold number per utterance",
    },
    "--audio": {"type": Path, "metavar": "ROOT", "help": "folder of column path: find copies"},
    "--record": {
        "type": Path,
        "nargs": "+",
        "action": "extend",
        "default": [],
        "metavar": "RUN.json",
        "help": "what each step of training saw",
    },
    "--names": {
        "type": lambda pair: dict([pair.split("=", 1)[::-1]]),
        "nargs": "+",
        "action": "extend",
        "default": [],
        "metavar": "OURS=YOURS",
        "help": "your columns, e.g. speaker=actor",
    },
    "--strict": {"action": "store_true", "help": "a warning counts as a fault"},
}
FEW = 0.1  # share of columns that may have such a range by themselves
SHORTEST_S = 0.6  # of common audio; shorter stretches of two vowels can be alike by chance
# Correlations of waveforms, and of harmonics; on RAVDESS copies are above .5 and .9, other clips
# below .4 and .85
SAME, SAME_HARMONICS, UNLIKE = 0.45, 0.88, 0.3  # below UNLIKE, waveforms are not compared
RATE, HOP_S = audio.SAMPLING_RATE // 2, 0.01  # of the waveforms (Hz), of the harmonics (s)
N_NEIGHBOURS = 5
# families of functionals that hardly change with level, codec, bandwidth and room
STABLE = ("pitch", "chroma", "LLD correlations")


# the result of one check; its level is one of LEVELS
Finding = namedtuple("Finding", "level check text")


def audit_folds(folds: pd.DataFrame, utterances: pd.DataFrame) -> list[Finding]:
    """Audit a division into folds.

    Parameters
    ----------
    folds
        ``utterance_id, fold, role`` (train, validation, test), and ``emotion`` if it is here.
        Where test rows alone are listed, a fold's training rows are all others, as when each
        utterance has one fold number.
    utterances
        ``utterance_id, speaker``, and what of ``OPTIONAL`` there is: ``group`` of people who talk
        with each other, ``sentence``, ``audio_hash``, ``emotion``, and ``parent_id``, the utterance
        that an augmented row was made from (empty for originals). Speakers are taken from here, not
        from the folds table, so that a mistake made there shows.

    Returns
    -------
    list of Finding
        One per check; see :func:`require_clean`.
    """
    rows = _known(folds, ["utterance_id", "emotion", "fold", "role"])
    given = _known(utterances, ["utterance_id", *sorted({"speaker", *OPTIONAL} - set(rows))])
    if {"fold", "role"} & set(utterances):  # one file for both: a clip may have a row per fold
        given = given.drop_duplicates()
    rows = _divided(rows)
    findings = _tables(rows, given)
    if "parent_id" in given:
        given["parent_id"] = _families(given["utterance_id"], given["parent_id"])
    rows = rows.merge(given.drop_duplicates("utterance_id"), on="utterance_id", how="left")
    if "group" in rows and (rows["group"] == rows["speaker"]).all():
        del rows["group"]  # lone speakers
    # with a single speaker (or group) left, validation rows can only be its own: make_folds warns
    units = rows.get("group", rows["speaker"]).fillna(rows["speaker"])
    left = units.where(rows["role"] != "test").groupby(rows["division"]).transform("nunique")
    lone = rows.assign(side=rows["side"].mask((left == 1) & (rows["role"] != "test"), "train"))
    checks = {"speaker": _names, "sentence": _shared_sentences, "emotion": _missing_emotions}
    for column in filter(rows.__contains__, APART):
        findings.append(_apart(lone if column in ("speaker", "group") else rows, column))
    findings += [check(lone) for column, check in checks.items() if column in rows]
    return findings + _sizes(lone)


def near_duplicates(utterances: pd.DataFrame, n_jobs: int = -1) -> pd.DataFrame:
    """Find clips that are the same recording in another file: re-encoded, louder, cut, in a room…

    Each clip is compared with its nearest neighbours in standardised functionals. A copy is
    confirmed by the correlation of the two waveforms at the best alignment, or, at a speed that
    differs by up to 1 %, of the harmonics of the two voices. Not found are many copies with loud
    noise or hard clipping, copies at another pitch or at larger changes of speed, parts whose
    content differs much from the whole clip's, and clips shorter than ``SHORTEST_S``; of those,
    ``audio_hash`` finds exact copies. A loud sound that several clips have in common, such as a
    beep before each, makes them pairs.

    Parameters
    ----------
    utterances
        With ``utterance_id``, ``path``, ``start_s`` and ``end_s`` (s, NaN for the whole file).
        Files that can't be read are left out: the quality report (``audio.measure_all``) names
        them.
    n_jobs
        Processes; -1 for all cores.

    Returns
    -------
    pd.DataFrame
        ``first``, ``second`` (ids), ``correlation`` of the waveforms, ``shift_s`` (how much later
        the common audio begins in the first), ``harmonics`` (their correlation). ``attrs`` has
        ``n_compared``, the number of clips that were long enough.
    """
    measured = audio.measure_all(utterances, n_jobs).set_index(utterances.index)
    is_long = measured["duration_s"] >= SHORTEST_S
    clips = utterances.assign(audio_hash=measured["audio_hash"])[is_long]
    pairs = np.empty((0, 2), int)
    if len(clips) > 1:
        table = features.functionals_table(clips, n_jobs=n_jobs)
        stable = table.loc[:, table.columns.map(features.family).isin(STABLE)]
        values = preprocessing.StandardScaler().fit_transform(stable).clip(-3, 3)
        graph = neighbors.kneighbors_graph(values, min(N_NEIGHBOURS, len(clips) - 1))
        pairs = np.unique(np.sort(np.transpose(graph.nonzero()), axis=1), axis=0)
    places, hashes = clips[["path", "start_s", "end_s"]].to_numpy(), clips["audio_hash"].to_numpy()
    compared = cache.map_clips(
        _compare,
        np.concatenate([places[pairs[:, 0]], places[pairs[:, 1]]], axis=1).tolist(),
        kind="duplicates",
        version=(audio.VERSION, VERSION),
        keys=list(map(cache.hash_of, hashes[pairs[:, 0]], hashes[pairs[:, 1]])),
        n_jobs=n_jobs,
        progress="near-duplicates",
    )
    found = pd.DataFrame(clips["utterance_id"].to_numpy()[pairs], columns=["first", "second"])
    found[["correlation", "shift_s", "harmonics"]] = np.reshape(list(compared), (-1, 3))
    found = found[(found["correlation"] >= SAME) | (found["harmonics"] >= SAME_HARMONICS)]
    found = found.sort_values("correlation", ascending=False, ignore_index=True)
    found.attrs["n_compared"] = len(clips)
    return found


def audit_near_duplicates(folds: pd.DataFrame, pairs: pd.DataFrame) -> Finding:
    """Check whether a recording is on two sides under two names.

    Parameters
    ----------
    folds
        As for :func:`audit_folds`.
    pairs
        From :func:`near_duplicates`.
    """
    sides = _divided(folds)[["utterance_id", "division", "side"]]
    both = pairs.merge(sides, left_on="first", right_on="utterance_id").merge(
        sides, left_on=["second", "division"], right_on=["utterance_id", "division"]
    )
    apart = both[both["side_x"] != both["side_y"]].drop_duplicates(["first", "second"])
    examples = "; ".join(
        f"{p.first} ({p.side_x}) and {p.second} ({p.side_y}), correlation "
        f"{max(p.correlation, p.harmonics):.2f}"
        for p in apart.head(3).itertuples()
    )
    n_clips = sides["utterance_id"].nunique()
    left_out = n_clips - pairs.attrs.get("n_compared", n_clips)
    text = (
        f"none of {n_clips - left_out} clips was found again on another side ({len(pairs)} pair(s) "
        f"on one side; {left_out} clips unreadable or shorter than {SHORTEST_S} s were not "
        "compared; copies with loud noise, at another pitch, or more than 1 % faster or slower, "
        "can't be found)"
    )
    if apart.empty and (left_out > 0 or n_clips < 2):
        return Finding("not checked", "sound", text)
    return _finding(
        len(apart),
        "sound",
        f"{len(apart)} pair(s) of clips on two sides are the same recording: {examples}. Leave one "
        "of each pair out, or keep the two on one side: give their speakers one group "
        "(notebook 05: COPIES)",
        text,
    )


def audit_inputs(inputs: np.ndarray, variant: str, speakers: np.ndarray) -> list[Finding]:
    """Detect from the inputs themselves whether they were scaled with rows of other sides.

    A column that a scaler was fitted to has, over exactly the rows that the scaler saw, the mean 0
    (standardised), the range 0 to 1 or -1 to 1 (min-max), or the median 0 and the interquartile
    range 1 (robust). A few columns may have such a range by themselves.

    Parameters
    ----------
    inputs : np.ndarray [shape=(n_utterances, n_features)]
    variant
        "inductive" or "speaker-normalised": what the results will be called. Others are not
        checked.
    speakers : np.ndarray [shape=(n_utterances,)]
    """
    is_table = inputs.ndim == 2 and len(inputs) >= 20 and inputs.dtype.kind in "fiu"  # no texts
    large = pd.Series(speakers).value_counts().loc[lambda n_rows: n_rows > 4].index
    if variant not in ("inductive", "speaker-normalised") or not is_table or large.empty:
        return [
            Finding(
                "not checked",
                "scaling",
                f"inputs of shape {inputs.shape} ({inputs.dtype}), {variant}, {len(large)} "
                "speakers with more than 4 rows: scaling was not looked at",
            )
        ]
    everywhere, varies = _scaled(inputs)
    own = np.array([_scaled(inputs[speakers == name]) for name in large])
    by_speaker = (own[:, 0] | ~own[:, 1]).mean(axis=0) * own[:, 0].any(axis=0)
    shares = {
        "all rows, test rows included": (everywhere & (by_speaker < 1))[varies],
        "the rows of each speaker": by_speaker[varies],
    }
    found = {rows: own.mean() for rows, own in shares.items() if own.sum() and own.mean() > FEW}
    text = "columns with the marks of a scaler over exactly these rows: "
    text += " and ".join(f"{share:.0%} over {rows}" for rows, share in found.items()) or "none"
    expected = ["the rows of each speaker"] if variant == "speaker-normalised" else []
    return [
        _finding(
            list(found) != expected or any(share < 0.9 for share in found.values()),
            "scaling",
            f"{text}; expected of the variant {variant}: {' '.join(expected) or 'none'}. Put a "
            "scaler into the pipeline, where it is fitted on training rows, or call the variant "
            "what it is",
            text,
        )
    ]


def audit_record(record: dict, folds: pd.DataFrame) -> list[Finding]:
    """Audit what each step of training saw.

    Parameters
    ----------
    record
        ``{"folds": {fold: {step: [utterance_id, …]}}}`` with steps of ``STEPS``: ``transform``
        (what inputs or texts were fitted on), ``fit`` (what weights were learned from),
        ``augment`` (what copies were made of), ``stop`` (what early stopping looked at), ``select``
        (what choices and calibration looked at), ``start`` (what weights to begin with, or models
        that made the inputs, had been trained on). ``notes`` may hold anything.
    folds
        The folds table.

    Raises
    ------
    ValueError
        If the record has folds that the table has not, or steps of other names.
    """
    by_fold = {
        str(fold): {step: set(map(str, ids)) for step, ids in saw.items() if step != "notes"}
        for fold, saw in record["folds"].items()
    }
    folds = folds.astype({"fold": str, "utterance_id": str})
    tested, ids = folds[folds["role"] == "test"], set(folds["utterance_id"])
    taken, test = set().union(*by_fold.values()), tested.groupby("fold")["utterance_id"].agg(set)
    if not by_fold.keys() <= set(test.index) or not taken <= set(STEPS):
        raise ValueError(
            f"the run record has the folds {sorted(by_fold)} with the steps "
            f"{sorted(taken)}; expected the folds {sorted(test.index)} with steps of "
            f"{', '.join(STEPS)}"
        )
    listed = folds.groupby("fold")["utterance_id"].agg(set)  # without train rows: all others train
    known = listed if len(tested) < len(folds) else dict.fromkeys(by_fold, ids)
    named = {fold: set().union(*saw.values()) for fold, saw in by_fold.items()}
    unknown = sorted(set().union(*(own - known[fold] for fold, own in named.items())))
    findings = [
        _finding(
            unknown,
            "known rows",
            f"the run record names {len(unknown)} utterances that are not in the fold, e.g. "
            f"{_some(pd.Series(unknown))}",
            "every utterance of the run record is in its fold",
        )
    ] * any(named.values())
    for step in STEPS:
        seen = {f: test[f] & saw[step] for f, saw in by_fold.items() if saw.get(step, set()) & ids}
        where = ", ".join(f"{fold} ({len(ids)})" for fold, ids in seen.items() if ids)
        findings.append(
            Finding("not checked", step, f"{step} names rows in {len(seen)} of {len(test)} folds")
            if len(seen) < len(test) and not where
            else _finding(
                where,
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
    table = pd.DataFrame(findings, columns=["level", "check", "text"])
    faults = table[table["level"] == "fault"]
    if len(faults):
        raise ValueError(
            f"the leakage audit found {len(faults)} fault(s); results would be inflated:\n"
            + "\n".join("  " + faults["check"] + ": " + faults["text"])
        )
    return table.rename(columns={"text": "finding"})


def read_division(path: Path, names: dict[str, str] | None = None) -> pd.DataFrame:
    """Read a division into folds from a table of any origin.

    Parameters
    ----------
    path
        A table (csv or parquet) with ``utterance_id`` and either ``fold`` and ``role``, or ``role``
        alone (one division), or one ``fold`` number per utterance: the fold in which it is tested.
    names
        The table's name → ours, where they differ.

    Returns
    -------
    pd.DataFrame
        ``utterance_id, fold, role``, and ``emotion`` if it is there.
    """
    table = _read(path, names or {}, ["utterance_id"])
    if not {"fold", "role"} & set(table):
        raise ValueError(
            f"{path} has the columns {list(table.columns)}: a division needs fold, role, or both. "
            "Name yours with --names, e.g. fold=split"
        )
    role = table.get("role", pd.Series("test", table.index)).astype(str).str.lower()
    fold = table.get("fold", pd.Series("1", table.index)).str.removesuffix(".0")
    table = table.assign(fold=fold, role=role.replace(SYNONYMS))[fold != ""]  # else in no fold
    if strange := set(table["role"]) - {"train", "validation", "test"}:
        raise ValueError(
            f"{path}: the roles {sorted(strange)[:5]} are none of train, validation, test"
        )
    return table.filter(items=["utterance_id", "fold", "role", "emotion"])


def read_records(path: Path) -> list[dict]:
    """Read run records, one or a list of them, plain or compressed (``.json.gz``)."""
    strange = ValueError, AttributeError, TypeError, KeyError, gzip.BadGzipFile
    unpacked = gzip.open if path.suffix == ".gz" else open
    with contextlib.suppress(*strange), unpacked(path, "rb") as handle:
        content = json.loads(handle.read().decode("utf-8-sig"))
        records = content if isinstance(content, list) else [content]
        steps = [ids for r in records for saw in r["folds"].values() for ids in saw.values()]
        if steps and all(isinstance(ids, (list, dict)) for ids in steps):  # notes are a dict
            return records
    raise ValueError(
        f'{path} is no run record: expected JSON, {{"folds": {{fold: {{step: [ids]}}}}}}, or a '
        "list of such"
    )


def main(arguments: list[str] | None = None) -> int:
    """Audit a division of utterances into folds.

    Returns 0 if it is clean, 1 on a fault; exits with 2 if the tables can't be used.
    """
    parser = argparse.ArgumentParser(
        prog="python -m helpers.audit",
        description=main.__doc__,
        epilog="utterances: utterance_id, speaker and, as far as known, group, sentence, "
        "audio_hash, parent_id (what an augmented copy was made from), emotion, and path for "
        "--audio. folds: see helpers.audit.read_division; may be the same file. A run record is "
        "described in helpers.audit.audit_record.",
    )
    for name, settings in ARGUMENTS.items():
        parser.add_argument(name, **settings)
    options = parser.parse_args(arguments)
    try:
        findings = _audit(options)
    except (ValueError, OSError) as error:
        parser.exit(2, f"the audit could not be made: {error}\n")
    for finding in sorted(findings, key=lambda finding: LEVELS.index(finding.level)):
        print(f"{finding.level.upper():<12} {finding.check}: {finding.text}")
    bad = sum(finding.level in LEVELS[: 1 + options.strict] for finding in findings)
    counted = f"fault(s){' or warning(s)' * options.strict}; results may be inflated"
    print(f"\n{bad} {counted}" if bad else "\nno fault")
    return int(bad > 0)


def _audit(options: argparse.Namespace) -> list[Finding]:
    names = {yours: ours for pair in options.names for yours, ours in pair.items()}
    utterances = _read(options.utterances, names, ["utterance_id", "speaker"])
    folds = read_division(options.folds, names)
    sound = Finding(
        "not checked",
        "sound",
        "no recordings were given (--audio): copies that were re-encoded, resampled, louder or "
        "trimmed would not show",
    )
    if options.audio:
        utterances = _located(utterances, options.audio)
        sound = audit_near_duplicates(folds, near_duplicates(utterances))
    findings = [*audit_folds(folds, utterances), sound]
    for record in itertools.chain.from_iterable(map(read_records, options.record)):
        label = record.get("variant", "record")
        findings += [f._replace(check=f"{label}, {f.check}") for f in audit_record(record, folds)]
    return findings


def _finding(bad: object, check: str, text: str, fine: str, level: str = "fault") -> Finding:
    return Finding(level, check, text) if bad else Finding("ok", check, fine)


def _some(values: pd.Series) -> str:
    return ", ".join(map(str, values.unique()[:5]))


def _known(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Return those columns that say something; an empty text says nothing."""
    return table.filter(items=columns).replace("", np.nan).dropna(axis=1, how="all")


def _divided(folds: pd.DataFrame) -> pd.DataFrame:
    """Add what must not share anything: the ``side`` of each row in its ``division``.

    A fold is a division whose sides are roles. Where test rows alone are listed, there is one
    division whose sides are folds.
    """
    division, side = "fold " + folds["fold"].astype(str), folds["role"]
    if set(side) == {"test"} and folds["fold"].nunique() > 1:
        division, side = "", division
    return folds.assign(division=division, side=side)


def _tables(rows: pd.DataFrame, given: pd.DataFrame) -> list[Finding]:
    """Return findings on what the tables list, and on what they do not say."""
    ids, named = given["utterance_id"], rows["utterance_id"]
    twice, outside = ids[ids.duplicated()], ids[~ids.isin(named)]
    again = named[rows.duplicated(["fold", "utterance_id", "role"])]
    asked = pd.concat([named, given.get("parent_id", ids[:0]).dropna()])
    lost, missing = asked[~asked.isin(ids)], sorted(set(OPTIONAL) - {*rows, *given})
    parts = rows.groupby("division")["side"]
    bare = [name for name, own in parts if name and not {"train", "test"} <= set(own)]
    return [
        _finding(
            len(twice),
            "listed once",
            f"{len(twice)} utterances are listed more than once, e.g. {_some(twice)}",
            "every utterance is listed once",
        ),
        _finding(
            len(lost),
            "known rows",
            f"{len(lost)} rows of the folds, or parents, name no known utterance, e.g. "
            f"{_some(lost)}",
            "every row of the folds, and every parent, is a known utterance",
        ),
        _finding(
            bare,
            "train and test rows",
            f"no train rows or no test rows, so nothing was compared: {', '.join(bare[:5])}",
            "every fold has train and test rows",
        ),
        _finding(
            len(again),
            "rows of folds",
            f"{len(again)} rows are more than once in a part of a fold, where they count more than "
            f"once, e.g. {_some(again)}",
            "no row is more than once in a part of a fold",
            "warning",
        ),
        _finding(
            len(outside),
            "utterances in no fold",
            f"{len(outside)} of {len(ids)} utterances are in no fold, so they were not compared, "
            f"e.g. {_some(outside)}",
            "every utterance is in a fold",
            "not checked",
        ),
        _finding(
            missing,
            "columns",
            f"the utterances have no {', '.join(missing)}: what these would show was not checked",
            "every column that a check needs is there",
            "not checked",
        ),
    ]


def _apart(rows: pd.DataFrame, column: str) -> Finding:
    """Find values of a column that are on two sides of a fold."""
    what, known = APART[column], rows[column].notna().mean()
    values = rows[column].fillna(rows["utterance_id"])  # of an original: it is its own parent
    apart = rows[rows.groupby(["division", values])["side"].transform("nunique") > 1]
    share = rows.index[rows["role"] == "test"].isin(apart.index).mean()
    ids = apart.groupby(values, sort=False)["utterance_id"].unique()
    examples = "; ".join(f"{value} ({', '.join(own[:2])})" for value, own in ids.head(3).items())
    return _finding(
        len(apart),
        what,
        f"{what} on two sides of a fold: {len(ids)}, which concerns {share:.0%} of the test rows, "
        f"e.g. {examples}",
        f"no {what} on two sides of a fold (known of {known:.0%} of the rows)",
    )


def _families(ids: pd.Series, parents: pd.Series) -> np.ndarray:
    """Name the family of each utterance: all that are linked by parents, over any generations."""
    codes, names = pd.factorize(pd.concat([ids, parents.fillna(ids)]))
    own, parent = np.split(codes, 2)
    links = np.ones(len(own)), (own, parent)
    _, family = csgraph.connected_components(
        coo_array(links, (len(names), len(names))), directed=False
    )
    return pd.Series(names).groupby(family).transform("first").to_numpy()[own]


def _names(rows: pd.DataFrame) -> Finding:
    """Find speakers whose names differ in letter case, accents or leading zeros alone."""
    if rows["speaker"].nunique() > 0.9 * rows["utterance_id"].nunique():
        return Finding(
            "not checked",
            "names of speakers",
            "nearly every utterance has a speaker of its own, so that none can be on two sides: is "
            "it the speaker?",
        )
    groups = corpora.near_doubles([*rows["speaker"], *rows.get("group", rows["speaker"])])
    return _finding(
        groups,
        "names of speakers",
        f"one person under two names? {'; '.join(' and '.join(map(repr, g)) for g in groups[:5])}",
        "no two speakers have names that differ in letter case, accents, signs or leading zeros "
        "alone",
        "warning",
    )


def _shared_sentences(rows: pd.DataFrame) -> Finding:
    known = rows[rows["sentence"].notna() & (rows["role"] != "validation")]
    if known["side"].nunique() < 2:
        return Finding("not checked", "shared sentences", "known of one side alone")
    shared = known.groupby(["division", "sentence"])["side"].transform("nunique") > 1
    share = shared[known["role"] == "test"].groupby(known["division"]).mean().mean()
    return Finding(
        "warning" if share > 0.05 else "ok",
        "shared sentences",
        f"{share:.0%} of test utterances have a sentence that training utterances have too",
    )


def _missing_emotions(rows: pd.DataFrame) -> Finding:
    counts = pd.crosstab([rows["division"], rows["side"]], rows["emotion"]).stack()
    gaps = counts.index[counts == 0].map(" ".join).str.strip()
    return _finding(
        len(gaps),
        "classes",
        f"emotions missing in {len(gaps)} part(s) of folds: {_some(gaps)}",
        "every emotion is in every part of every fold",
        "warning",
    )


def _sizes(rows: pd.DataFrame) -> list[Finding]:
    """Return findings on the size of folds, how often rows are tested, and validation rows."""
    test, n_folds = rows[rows["role"] == "test"], rows["fold"].nunique()
    sizes = test["fold"].value_counts().reindex(rows["fold"].unique(), fill_value=0)
    times = test["utterance_id"].value_counts().reindex(rows["utterance_id"].unique(), fill_value=0)
    once, never = (times == 1).sum(), (times == 0).sum()
    validated = rows.loc[rows["side"] == "validation", "fold"].nunique()
    return [
        Finding(
            "warning" if sizes.min() < sizes.mean() / 2 else "ok",
            "fold sizes",
            f"test parts have {sizes.min()} to {sizes.max()} utterances, fewest in fold "
            f"{sizes.idxmin()}",
        ),
        Finding(
            "ok" if once == len(times) else "warning",
            "test rows",
            f"{once} of {len(times)} utterances are tested exactly once, "
            f"{len(times) - once - never} more than once, {never} never",
        ),
        _finding(
            validated < n_folds,
            "validation rows",
            f"{n_folds - validated} of {n_folds} folds have no validation speakers of their own: "
            "what was stopped, chosen or calibrated there, if anything, is optimistic",
            "every fold has validation speakers of its own",
            "warning",
        ),
    ]


def _scaled(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which columns bear the mark of a scaler over just these rows, and which vary."""
    values = values.astype(np.float64)
    low, first, median, third, high = np.percentile(values, [0, 25, 50, 75, 100], axis=0)
    std, ends = values.std(axis=0), ((values == low) | (values == high)).sum(axis=0)
    robust = (np.abs(median) < 1e-4) & (np.abs(third - first - 1) < 1e-3)
    unit = (np.abs(high - 1) < 1e-5) & (np.minimum(np.abs(low), np.abs(low + 1)) < 1e-5)
    # counts, flags and shares are at their ends more than once
    marks = (np.abs(values.mean(axis=0)) < 1e-4 * std) | ((robust | unit) & (ends < 3))
    varies = std > 1e-6 * np.maximum(1, np.abs(values).max(axis=0))
    return marks & varies, varies


def _read(path: Path, names: dict[str, str], needed: list[str]) -> pd.DataFrame:
    """Read a table whose columns may have other names, as text: speaker "01" is not 1."""
    try:
        table = (
            pd.read_parquet(path).convert_dtypes().astype("string").fillna("")
            if path.suffix == ".parquet"
            else pd.read_csv(path, dtype=str, keep_default_na=False)
        )
    except ValueError as error:
        raise ValueError(f"{path} can't be read as a table: {error}") from None
    table = table.rename(columns=names).map(corpora.plain_text)
    empty = table.reindex(columns=needed).replace("", np.nan).isna().any()
    if table.empty or empty.any():
        raise ValueError(
            f"{path} has {len(table)} rows with the columns {list(table.columns)}; each row needs "
            f"{', '.join(needed)}. Missing or with empty cells: {list(empty.index[empty])}. Name "
            f"your columns with --names, e.g. {needed[0]}=file"
        )
    return table


def _located(utterances: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Find each recording: ``path`` below the root, or a file of the utterance's name."""
    names = utterances.get("path", utterances["utterance_id"]).map(str)
    found = names.map(lambda name: root / name)
    lost = names[~found.map(Path.is_file)]
    if len(lost):
        raise FileNotFoundError(
            f"{len(lost)} of {len(names)} recordings are not under {root}: {_some(lost)}. Expected "
            "is a column path, counted from that folder; name yours with --names, e.g. path=file"
        )
    times = utterances.reindex(columns=["start_s", "end_s"]).replace("", None)
    placed = utterances.assign(path=found.map(str), **times.apply(pd.to_numeric))
    return placed.assign(audio_hash=audio.measure_all(placed)["audio_hash"])


def _compare(path: str, start_s: float, end_s: float, *other) -> np.ndarray:
    """Compare two clips by their waveforms, and by the harmonics of their voices.

    Returns
    -------
    np.ndarray [shape=(3,)]
        The correlation of the waveforms; how much later the common audio begins in the first, in
        seconds; the correlation of the harmonics at the best of some speeds.
    """
    (wave, one), (other_wave, two) = _heard(path, start_s, end_s), _heard(*other)
    samples, frames = int(SHORTEST_S * RATE), int(SHORTEST_S / HOP_S)
    alike, correlation, shift = [_aligned(one, two, frames)[0]], 0.0, 0
    if alike[0] > UNLIKE:  # as few pairs are that are no copies
        correlation, shift = _aligned(wave[:, None], other_wave[:, None], samples)
        # other speeds: along the logarithmic frequency, too
        speeds = itertools.product((1, 2), itertools.permutations((one, two)))
        alike += [_aligned(low[:, :-k], high[:, k:], frames)[0] for k, (low, high) in speeds]
    return np.array([correlation, shift / RATE, max(alike)])


@functools.lru_cache(maxsize=32)  # a clip is compared with several
def _heard(path: str, start_s: float, end_s: float) -> tuple[np.ndarray, np.ndarray]:
    signal = audio.load(path, start_s, end_s)
    return _flattened(signal), _harmonics(signal)


def _flattened(signal: np.ndarray) -> np.ndarray:
    """Flatten the spectrum of a clip, and keep 250 to 3,300 Hz.

    What is left of a voice hardly depends on the microphone, the room or the vowel, so that two
    takes of a sentence correlate below .4, a clip and its copy in a room above .5.
    """
    spectrum = np.fft.rfft(np.pad(signal, 400))
    hertz = np.linspace(0, audio.SAMPLING_RATE / 2, len(spectrum))
    smooth = uniform_filter1d(np.abs(spectrum), int(np.searchsorted(hertz, 100)))
    # the power 1 would make noise as loud as the voice; half of the bins are half of the rate
    flat = (
        ((hertz >= 250) & (hertz <= 3300)) * spectrum / (smooth + 1e-3 * smooth.max() + 1e-9) ** 0.7
    )
    return np.fft.irfft(flat[: len(flat) // 2])


def _harmonics(signal: np.ndarray) -> np.ndarray:
    """Return how far the harmonics stand out, shape (n_frames, n_bands): 250 to 2,500 Hz.

    Frames are 64 ms long, bands 1 % apart.
    """
    frames = sliding_window_view(np.pad(signal, 512), 1024)[:: int(HOP_S * audio.SAMPLING_RATE)]
    size = np.abs(np.fft.rfft(frames * np.hanning(1024), 2048))[:, :430]
    level = np.log(size + 0.01 * size.max() + 1e-9)
    bands = np.round(np.geomspace(250, 2500, 232) * 2048 / audio.SAMPLING_RATE).astype(int)
    return (level - uniform_filter1d(level, 63, axis=1))[:, bands]


def _aligned(one: np.ndarray, other: np.ndarray, shortest: int) -> tuple[float, int]:
    """Return the correlation of two sequences at the best alignment, and by how much it is shifted.

    The correlation is without sign, since a reversed plug makes no other recording. Compared are
    stretches of at least `shortest` steps that hold a quarter of the energy of each.
    """
    n = 1 << (len(one) + len(other)).bit_length()
    product = np.fft.rfft(one, n, axis=0) * np.fft.rfft(other, n, axis=0).conj()
    shifts = np.arange(1 - len(other), len(one))
    begin, end = np.maximum(shifts, 0), np.minimum(shifts + len(other), len(one))
    sums = [np.append(0, np.cumsum(np.square(x).sum(axis=1))) for x in (one, other)]
    common = sums[0][end] - sums[0][begin]
    other_common = sums[1][end - shifts] - sums[1][begin - shifts]
    enough = np.minimum(common / (sums[0][-1] + 1e-20), other_common / (sums[1][-1] + 1e-20)) > 0.25
    alike = np.abs(np.fft.irfft(product.sum(axis=1), n)[shifts])
    alike *= (enough & (end - begin >= shortest)) / np.sqrt(common * other_common + 1e-20)
    return float(alike.max()), int(shifts[alike.argmax()])


if __name__ == "__main__":
    raise SystemExit(main())
