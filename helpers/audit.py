"""The leakage audit: does anything of the test side reach the training side?

Faults stop a run. Warnings are shown with the share of the data that they concern, and what could
not be checked is named. The audit looks at the tables (who is where), at the audio (is a clip also
on another side, under another name?), at the inputs (were they scaled with test rows?) and at run
records (which rows did each step of training see?).

It is also a command, for tables of any origin::

    python -m helpers.audit utterances.csv folds.csv [--audio ROOT] [--record run.json]
"""

import argparse
import gzip
import json
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.neighbors import kneighbors_graph
from sklearn.preprocessing import StandardScaler

from helpers import audio, cache, features

VERSION = 1  # raise it when a change of this module changes how two clips compare
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
    "--record": {"type": Path, "metavar": "RUN.json", "help": "what each step of training saw"},
    "--names": {
        "type": lambda pair: pair.split("=", 1)[::-1],
        "nargs": "*",
        "default": [],
        "metavar": "OURS=YOURS",
        "help": "your columns, e.g. speaker=actor",
    },
    "--strict": {"action": "store_true", "help": "a warning counts as a fault"},
}
SHORTEST_S = 0.6  # of common audio; shorter stretches of two vowels can be alike by chance
SAME = 0.75  # correlation; on RAVDESS copies are above 0.88, the same sentence repeated below 0.6
N_NEIGHBOURS = 3  # enough for 426 of 440 changed copies among the 1,440 clips of RAVDESS
# families of functionals that hardly change with level, codec and bandwidth
STABLE = ("pitch", "voice quality", "chroma", "LLD correlations")


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
    rows = _divided(folds.filter(items=["utterance_id", "emotion", "fold", "role"]))
    wanted = ["utterance_id", *sorted({"speaker", *OPTIONAL} - set(rows))]
    given = utterances.filter(items=wanted).replace("", np.nan).dropna(axis=1, how="all")
    twice = given["utterance_id"].duplicated()
    rows = rows.merge(given[~twice], on="utterance_id", how="left")
    lost, missing = rows["speaker"].isna(), sorted(set(OPTIONAL) - set(rows))
    findings = [
        _finding(
            twice.any(),
            "listed once",
            f"{twice.sum()} utterances are listed more than once, e.g. "
            f"{_some(given.loc[twice, 'utterance_id'])}",
            "every utterance is listed once",
        ),
        _finding(
            lost.any(),
            "known rows",
            f"{lost.sum()} rows of the folds name no known utterance, e.g. "
            f"{_some(rows.loc[lost, 'utterance_id'])}",
            "every row of the folds is a known utterance",
        ),
        _finding(
            missing,
            "columns",
            f"the utterances have no {', '.join(missing)}: what these would show was not checked",
            "every column that a check needs is there",
            "not checked",
        ),
    ]
    if "group" in rows and (rows["group"] == rows["speaker"]).all():
        del rows["group"]  # lone speakers
    # with a single speaker (or group) left, validation rows can only be its own: make_folds warns
    units = rows.get("group", rows["speaker"]).where(rows["role"] != "test")
    is_alone = units.groupby(rows["division"]).transform("nunique") == 1
    rows["side"] = rows["side"].mask(is_alone & (rows["role"] == "validation"), "train")
    checks = {"sentence": _shared_sentences, "emotion": _missing_emotions}
    findings += [_apart(rows, column, what) for column, what in APART.items() if column in rows]
    findings += [check(rows) for column, check in checks.items() if column in rows]
    return findings + _sizes(rows)


def near_duplicates(utterances: pd.DataFrame, n_jobs: int = -1) -> pd.DataFrame:
    """Find clips that are the same recording in another file: re-encoded, resampled, louder, cut.

    Each clip is compared with its nearest neighbours in standardised functionals: the correlation
    of the two waveforms, at the best alignment, confirms a copy. Not found are copies at another
    pitch or speed, parts whose content differs much from the whole clip's, and clips shorter than
    ``SHORTEST_S``; of those, ``audio_hash`` finds exact copies.

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
        ``first``, ``second`` (ids), ``correlation`` (``SAME`` to 1), ``shift_s`` (how much later
        the common audio begins in the first).
    """
    measured = audio.measure_all(utterances, n_jobs).set_index(utterances.index)
    is_long = measured["duration_s"] >= SHORTEST_S
    clips = utterances.assign(audio_hash=measured["audio_hash"])[is_long]
    pairs = np.empty((0, 2), int)
    if len(clips) > 1:
        table = features.functionals_table(clips, n_jobs=n_jobs)
        stable = table.loc[:, table.columns.map(features.family).isin(STABLE)]
        values = StandardScaler().fit_transform(stable).clip(-3, 3)
        graph = kneighbors_graph(values, min(N_NEIGHBOURS, len(clips) - 1))
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
    found[["correlation", "shift_s"]] = np.reshape(list(compared), (-1, 2)).astype(float)
    return found[found["correlation"] >= SAME].sort_values(
        "correlation", ascending=False, ignore_index=True
    )


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
        f"{p.first} ({p.side_x}) and {p.second} ({p.side_y}), correlation {p.correlation:.2f}"
        for p in apart.head(3).itertuples()
    )
    return _finding(
        len(apart),
        "sound",
        f"{len(apart)} pair(s) of clips on two sides are the same recording: {examples}",
        "no clip sounds the same as one on another side "
        f"({len(pairs)} pair(s) of the same recording on one side)",
    )


def audit_inputs(inputs: np.ndarray, variant: str, speakers: np.ndarray) -> list[Finding]:
    """Detect from the inputs themselves whether they were scaled with rows of other sides.

    A column that was standardised over a set of rows has mean 0 and standard deviation 1 over
    exactly those rows.

    Parameters
    ----------
    inputs : np.ndarray [shape=(n_utterances, n_features)]
    variant
        "inductive" or "speaker-normalised": what the results will be called. Others are not
        checked.
    speakers : np.ndarray [shape=(n_utterances,)]
    """
    expected = {"inductive": "no rows", "speaker-normalised": "the rows of each speaker"}
    is_table = inputs.ndim == 2 and len(inputs) >= 20 and inputs.dtype.kind in "fiu"  # no texts
    if variant not in expected or not is_table:
        return []
    found = "all rows, test rows included" if _standardised(inputs) else "no rows"
    if all(_standardised(inputs[speakers == s]) for s in np.unique(speakers)[:4]):
        found = "the rows of each speaker"
    return [
        _finding(
            found != expected[variant],
            "scaling",
            f"the inputs are standardised over {found}; expected of the variant {variant}: over "
            f"{expected[variant]}. Put a scaler into the pipeline, where it is fitted on training "
            "rows, or call the variant what it is",
            f"the inputs are standardised over {found}",
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
    tested = folds[folds["role"] == "test"].astype({"fold": str})
    taken, test = set().union(*by_fold.values()), tested.groupby("fold")["utterance_id"].agg(set)
    if not by_fold.keys() <= set(test.index) or not taken <= set(STEPS):
        raise ValueError(
            f"the run record has the folds {sorted(by_fold)} with the steps "
            f"{sorted(taken)}; expected the folds {sorted(test.index)} with steps of "
            f"{', '.join(STEPS)}"
        )
    named = (ids for saw in by_fold.values() for ids in saw.values())
    unknown = sorted(set().union(*named) - set(folds["utterance_id"]))
    findings = [
        _finding(
            unknown,
            "known rows",
            f"the run record names {len(unknown)} utterances that are not in the folds table, e.g. "
            f"{_some(pd.Series(unknown))}",
            "every utterance of the run record is in the folds table",
        )
    ]
    for step in STEPS:
        seen = {fold: test[fold] & saw[step] for fold, saw in by_fold.items() if step in saw}
        where = ", ".join(f"{fold} ({len(ids)})" for fold, ids in seen.items() if ids)
        findings.append(
            Finding("not checked", step, f"{step} is recorded in {len(seen)} of {len(test)} folds")
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
    table = table.assign(fold=table.get("fold", 1), role=role.replace(SYNONYMS))
    if strange := set(table["role"]) - {"train", "validation", "test"}:
        raise ValueError(
            f"{path}: the roles {sorted(strange)[:5]} are none of train, validation, test"
        )
    return table.filter(items=["utterance_id", "fold", "role", "emotion"])


def read_records(path: Path) -> list[dict]:
    """Read run records, one or a list of them, plain or compressed (``.json.gz``)."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as handle:
        content = json.load(handle)
    records = content if isinstance(content, list) else [content]
    if not all(isinstance(r, dict) and isinstance(r.get("folds"), dict) for r in records):
        raise ValueError(
            f'{path} is no run record: expected {{"folds": {{fold: {{step: [ids]}}}}}}, or a list '
            "of such"
        )
    return records


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
    print(f"\n{bad} fault(s); results on this division are inflated" if bad else "\nno fault")
    return int(bad > 0)


def _audit(options: argparse.Namespace) -> list[Finding]:
    names = dict(options.names)
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
    for record in read_records(options.record) if options.record else []:
        label = record.get("variant", "record")
        findings += [f._replace(check=f"{label}, {f.check}") for f in audit_record(record, folds)]
    return findings


def _finding(bad: object, check: str, text: str, fine: str, level: str = "fault") -> Finding:
    return Finding(level, check, text) if bad else Finding("ok", check, fine)


def _some(values: pd.Series) -> str:
    return ", ".join(map(str, values.unique()[:5]))


def _divided(folds: pd.DataFrame) -> pd.DataFrame:
    """Add what must not share anything: the ``side`` of each row in its ``division``.

    A fold is a division whose sides are roles. Where test rows alone are listed, there is one
    division whose sides are folds.
    """
    division, side = "fold " + folds["fold"].astype(str), folds["role"]
    if set(side) == {"test"}:
        division, side = "", division
    return folds.assign(division=division, side=side)


def _apart(rows: pd.DataFrame, column: str, what: str) -> Finding:
    """Find values of a column that are on two sides of a fold."""
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
        f"no {what} on two sides of a fold",
    )


def _shared_sentences(rows: pd.DataFrame) -> Finding:
    known = rows[rows["sentence"].notna() & (rows["role"] != "validation")]
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


def _standardised(values: np.ndarray) -> bool:
    """Whether nearly all columns that vary have mean 0 and standard deviation 1."""
    std = values.std(axis=0)
    near = (np.abs(values.mean(axis=0)) < 1e-3) & (np.abs(std - 1) < 1e-2)
    return bool((std > 1e-3).any() and near[std > 1e-3].mean() > 0.9)


def _read(path: Path, names: dict[str, str], needed: list[str]) -> pd.DataFrame:
    """Read a table whose columns may have other names; texts stay texts (speaker "01" is not 1)."""
    try:
        table = (
            pd.read_parquet(path)
            if path.suffix == ".parquet"
            else pd.read_csv(path, dtype=str, keep_default_na=False)
        )
    except ValueError as error:
        raise ValueError(f"{path} can't be read as a table: {error}") from None
    table = table.rename(columns=names)
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
    times = utterances.reindex(columns=["start_s", "end_s"]).apply(pd.to_numeric)
    placed = utterances.assign(path=found.map(str), **times)
    return placed.assign(audio_hash=audio.measure_all(placed)["audio_hash"])


def _compare(path: str, start_s: float, end_s: float, *other) -> np.ndarray:
    """Compare two clips, 250 to 3,300 Hz, at their best alignment.

    Returns
    -------
    np.ndarray [shape=(2,)]
        The correlation, 0 to 1, without sign, since a reversed plug makes no other recording; and
        how much later the common audio begins in the first, in seconds. Compared are stretches of
        at least ``SHORTEST_S`` that hold a quarter of the energy of each signal.
    """
    # here, since it takes a second to load
    from scipy.signal import butter, correlate, correlation_lags, sosfiltfilt

    band = butter(4, [250, 3300], "bandpass", fs=audio.SAMPLING_RATE, output="sos")
    one = sosfiltfilt(band, np.pad(audio.load(path, start_s, end_s), 400))
    other = sosfiltfilt(band, np.pad(audio.load(*other), 400))
    shifts = correlation_lags(len(one), len(other))
    begin, end = np.maximum(shifts, 0), np.minimum(shifts + len(other), len(one))
    energies = [np.concatenate([[0.0], np.cumsum(np.square(x))]) for x in (one, other)]
    common = energies[0][end] - energies[0][begin]
    other_common = energies[1][end - shifts] - energies[1][begin - shifts]
    enough = (
        (common > energies[0][-1] / 4)
        & (other_common > energies[1][-1] / 4)
        & (end - begin >= SHORTEST_S * audio.SAMPLING_RATE)
    )
    alike = np.abs(correlate(one, other, method="fft")) / np.sqrt(common * other_common + 1e-20)
    best = np.where(enough, alike, 0).argmax()
    return np.array([alike[best] * enough[best], shifts[best] / audio.SAMPLING_RATE])


if __name__ == "__main__":
    raise SystemExit(main())
