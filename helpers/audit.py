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
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from helpers import audio, features
from helpers.cache import map_clips

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
OPTIONAL = ("group", "sentence", "parent_id", "audio_hash")  # each makes a check possible
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
    "--audio": {"type": Path, "metavar": "ROOT", "help": "folder of the recordings: find copies"},
    "--record": {"type": Path, "metavar": "RUN.json", "help": "what each step of training saw"},
    "--names": {
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
STABLE = ("pitch", "voice quality", "chroma", "moving together")


@dataclass(frozen=True)
class Finding:
    """The result of one check: ``level`` is one of ``LEVELS``."""

    level: str
    check: str
    text: str


def audit_folds(folds: pd.DataFrame, utterances: pd.DataFrame) -> list[Finding]:
    """Audit a division into folds.

    Parameters
    ----------
    folds
        ``utterance_id, fold, role`` (train, validation, test), and ``emotion`` if it is known.
        Where test rows alone are listed, a fold's training rows are all others, as when each
        utterance has one fold number.
    utterances
        ``utterance_id, speaker``, and what of ``OPTIONAL`` there is: ``group`` of people who talk
        with each other, ``sentence``, ``audio_hash``, and ``parent_id``, the utterance that an
        augmented row was made from (empty for originals). Speakers are taken from here, not from
        the folds table, so that a mistake made there shows.

    Returns
    -------
    list of Finding
        One per check; see :func:`require_clean`.
    """
    twice = utterances["utterance_id"].duplicated()
    known = utterances.filter(items=["speaker", *OPTIONAL])
    known = known.columns[(known.notna() & (known.astype(str) != "")).any()].tolist()
    rows = _divided(folds.filter(items=["utterance_id", "emotion", "fold", "role"])).merge(
        utterances.loc[~twice, ["utterance_id", *known]], on="utterance_id", how="left"
    )
    if "parent_id" in rows:
        rows["parent_id"] = rows["parent_id"].replace("", np.nan).fillna(rows["utterance_id"])
    lost = rows["speaker"].isna()
    findings = [
        _finding(
            twice.any(),
            "listed once",
            f"{twice.sum()} utterances are listed more than once, e.g. "
            f"{_some(utterances.loc[twice, 'utterance_id'])}",
            "every utterance is listed once",
        ),
        _finding(
            lost.any(),
            "known rows",
            f"{lost.sum()} rows of the folds name no known utterance, e.g. "
            f"{_some(rows.loc[lost, 'utterance_id'])}",
            "every row of the folds is a known utterance",
        ),
    ]
    if "group" in rows and (rows["group"] == rows["speaker"]).all():
        del rows["group"]  # lone speakers
    findings += [_apart(rows, column, what) for column, what in APART.items() if column in rows]
    if "sentence" in rows:
        findings.append(_shared_sentences(rows))
    if missing := [column for column in OPTIONAL if column not in known]:
        findings.append(
            Finding(
                "not checked",
                "columns",
                f"the utterances have no {', '.join(missing)}: what these would show was not "
                "checked",
            )
        )
    return [*findings, _classes(rows), *_sizes(rows)]


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
    measured = audio.measure_all(utterances, n_jobs)
    clips = utterances.assign(audio_hash=measured["audio_hash"].to_numpy())
    clips = clips[(measured["duration_s"] >= SHORTEST_S).to_numpy()].reset_index(drop=True)
    pairs = np.empty((0, 2), int)
    if len(clips) > 1:
        table = features.functionals_table(clips, n_jobs=n_jobs)
        stable = table.loc[:, table.columns.map(features.family).isin(STABLE)]
        values = StandardScaler().fit_transform(stable).clip(-3, 3)
        search = NearestNeighbors(n_neighbors=min(N_NEIGHBOURS, len(clips) - 1)).fit(values)
        pairs = np.transpose(search.kneighbors_graph().nonzero())
        pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    places, ids = clips[["path", "start_s", "end_s"]].to_numpy(), clips["utterance_id"].to_numpy()
    jobs = np.concatenate([places[pairs[:, 0]], places[pairs[:, 1]]], axis=1).tolist()
    compared = map_clips(_compare, jobs, n_jobs=n_jobs, progress="near-duplicates")
    found = pd.DataFrame(ids[pairs], columns=["first", "second"])
    found[["correlation", "shift_s"]] = np.reshape(list(compared), (-1, 2)).astype(float)
    found = found[found["correlation"] >= SAME]
    return found.sort_values("correlation", ascending=False, ignore_index=True)


def correlation(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return the correlation of two waveforms, 250 to 3,300 Hz, at their best alignment.

    Parameters
    ----------
    first, second : np.ndarray [shape=(n_samples,), float32]
        At ``audio.SAMPLING_RATE``.

    Returns
    -------
    correlation
        0 to 1, without sign, since a reversed plug makes no other recording. Compared are stretches
        of at least ``SHORTEST_S`` that hold a quarter of the energy of each signal.
    shift_s
        How much later the common audio begins in the first, in seconds.
    """
    # here, since it takes a second to load
    from scipy.signal import butter, correlate, correlation_lags, sosfiltfilt

    band = butter(4, [250, 3300], "bandpass", fs=audio.SAMPLING_RATE, output="sos")
    one, other = sosfiltfilt(band, np.pad(first, 400)), sosfiltfilt(band, np.pad(second, 400))
    shifts = correlation_lags(len(one), len(other))
    begin, end = np.maximum(shifts, 0), np.minimum(shifts + len(other), len(one))
    energies = [np.concatenate([[0.0], np.cumsum(np.square(x))]) for x in (one, other)]
    common = energies[0][end] - energies[0][begin]
    other_common = energies[1][end - shifts] - energies[1][begin - shifts]
    enough = (common > energies[0][-1] / 4) & (other_common > energies[1][-1] / 4)
    enough &= end - begin >= SHORTEST_S * audio.SAMPLING_RATE
    alike = np.abs(correlate(one, other, method="fft")) / np.sqrt(common * other_common + 1e-20)
    best = np.where(enough, alike, 0).argmax()
    return float(alike[best] * enough[best]), float(shifts[best] / audio.SAMPLING_RATE)


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
    if inputs.ndim != 2 or len(inputs) < 20 or inputs.dtype.kind not in "fiu":
        return []  # texts can't be scaled
    per_speaker = all(_standardised(inputs[speakers == s]) for s in np.unique(speakers)[:4])
    inductive = variant == "inductive"
    faults = {
        "the inputs were standardised over each speaker's rows, test speakers included: call the "
        "variant speaker-normalised": inductive and per_speaker,
        "the inputs were standardised over all rows, test rows included: put the scaler into the "
        "pipeline, where it is fitted on training rows": inductive
        and not per_speaker
        and _standardised(inputs),
        "the variant is speaker-normalised, but the inputs are not standardised per "
        "speaker": variant == "speaker-normalised" and not per_speaker,
    }
    fine = [Finding("ok", "scaling", "inputs were not scaled over all rows")] if inductive else []
    return [Finding("fault", "scaling", text) for text in faults if faults[text]] or fine


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
    tested, by_fold = folds[folds["role"] == "test"], record["folds"]
    test = tested.groupby(tested["fold"].astype(str))["utterance_id"].apply(set)
    taken = set().union(*by_fold.values()) - {"notes"}
    if not set(map(str, by_fold)) <= set(test.index) or not taken <= set(STEPS):
        raise ValueError(
            f"the run record has the folds {sorted(by_fold)} with the steps "
            f"{sorted(taken)}; expected the folds {sorted(test.index)} with steps of "
            f"{', '.join(STEPS)}"
        )
    findings = []
    for step in sorted(taken | set(STEPS[1:]), key=STEPS.index):
        seen = {fold: test[str(fold)] & set(saw.get(step, [])) for fold, saw in by_fold.items()}
        where = ", ".join(f"{fold} ({len(ids)})" for fold, ids in seen.items() if ids)
        findings.append(
            _finding(
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
        Our name → the table's, where they differ.

    Returns
    -------
    pd.DataFrame
        ``utterance_id, fold, role``, and ``emotion`` if it is there.
    """
    table = _read(path, names or {}, ["utterance_id"])
    if "fold" not in table and "role" not in table:
        raise ValueError(
            f"{path} has the columns {list(table.columns)}: a division needs fold, role, or both. "
            "Name yours with --names, e.g. fold=split"
        )
    table = table.assign(fold=table.get("fold", 1), role=table.get("role", "test"))
    table["role"] = table["role"].astype(str).str.lower().replace(SYNONYMS)
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

    Returns 0 if it is clean, 1 on a fault, 2 if the tables can't be used.
    """
    parser = argparse.ArgumentParser(
        prog="python -m helpers.audit",
        description=main.__doc__,
        epilog="utterances: utterance_id, speaker and, as far as known, group, sentence, "
        "audio_hash, parent_id (what an augmented copy was made from), emotion, path. folds: see "
        "helpers.audit.read_division; may be the same file. A run record is described in "
        "helpers.audit.audit_record.",
    )
    for name, settings in ARGUMENTS.items():
        parser.add_argument(name, **settings)
    options = parser.parse_args(arguments)
    try:
        utterances, folds, findings = _audit(options)
    except (ValueError, OSError) as error:
        print(f"the audit could not be made: {error}", file=sys.stderr)
        return 2
    for finding in sorted(findings, key=lambda finding: LEVELS.index(finding.level)):
        level = finding.level.upper().replace("OK", "ok")
        print(f"{level:<12} {finding.check}: {finding.text}")
    bad = sum(f.level in LEVELS[: 2 if options.strict else 1] for f in findings)
    print(
        f"\n{len(utterances)} utterances, {utterances['speaker'].nunique()} speakers, "
        f"{folds['fold'].nunique()} fold(s): "
        + (f"{bad} fault(s); results on this division are inflated" if bad else "no fault")
    )
    return int(bad > 0)


def _audit(options: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame, list[Finding]]:
    names = dict(name.split("=", 1) for name in options.names)
    utterances = _read(options.utterances, names, ["utterance_id", "speaker"])
    folds = read_division(options.folds, names)
    if "emotion" not in folds:
        emotions = utterances.filter(["utterance_id", "emotion"]).drop_duplicates("utterance_id")
        folds = folds.merge(emotions, on="utterance_id", how="left")
    sound = Finding(
        "not checked",
        "sound",
        "no recordings were given (--audio): copies that were re-encoded, resampled, louder or "
        "trimmed would not show",
    )
    if options.audio:
        utterances = _located(utterances, options.audio)
        if "audio_hash" not in utterances:
            utterances["audio_hash"] = audio.measure_all(utterances)["audio_hash"]
        sound = audit_near_duplicates(folds, near_duplicates(utterances))
    findings = [*audit_folds(folds, utterances), sound]
    for record in read_records(options.record) if options.record else []:
        label = f"{record['variant']}, " if "variant" in record else ""
        findings += [replace(f, check=label + f.check) for f in audit_record(record, folds)]
    return utterances, folds, findings


def _finding(bad: object, check: str, fault: str, fine: str) -> Finding:
    return Finding("fault", check, fault) if bad else Finding("ok", check, fine)


def _some(values: pd.Series) -> str:
    return ", ".join(map(str, values.unique()[:5]))


def _divided(folds: pd.DataFrame) -> pd.DataFrame:
    """Add what must not share anything: the ``side`` of each row in its ``division``.

    A fold is a division whose sides are roles. Where test rows alone are listed, there is one
    division whose sides are folds.
    """
    if set(folds["role"]) == {"test"}:
        return folds.assign(division="all", side=folds["fold"].map("fold {}".format))
    return folds.assign(division=folds["fold"], side=folds["role"])


def _apart(rows: pd.DataFrame, column: str, what: str) -> Finding:
    """Find values of a column that are on two sides of a fold."""
    known = rows[rows[column].notna() & (rows[column] != "")].assign(is_test=rows["side"] == "test")
    sides = known.groupby(["division", column], sort=False, as_index=False).agg(
        sides=("side", "nunique"), is_test=("is_test", "any")
    )
    # with a single speaker (or group) left, validation rows can only be its own: make_folds warns
    unit = "group" if "group" in rows else "speaker"
    left = rows[rows["side"] != "test"].groupby("division")[unit].nunique()
    excused = (sides["sides"] > 1) & ~sides["is_test"] & (column in ("speaker", "group"))
    excused &= sides["division"].isin(left[left == 1].index)
    split = sides[(sides["sides"] > 1) & ~excused]
    if split.empty and excused.any():
        return Finding(
            "warning",
            what,
            f"in {excused.sum()} fold(s) a single one is left for training, and validation rows "
            "come from it: what is chosen on them is optimistic",
        )
    concerned = rows[rows["role"] == "test"].merge(split, on=["division", column], how="left")
    shown = split[column].unique()[:3]
    ids = known[known[column].isin(shown)].groupby(column)["utterance_id"].unique()
    examples = "; ".join(
        f"{value} ({', '.join(ids[value][:2])}{', …' if len(ids[value]) > 2 else ''})"
        for value in shown
    )
    return _finding(
        len(split),
        what,
        f"{what} on two sides of a fold: {split[column].nunique()}, which concerns "
        f"{concerned['sides'].notna().mean():.0%} of the test rows, e.g. {examples}",
        f"no {what} on two sides of a fold",
    )


def _shared_sentences(rows: pd.DataFrame) -> Finding:
    shares = []
    for _, division in rows[rows["sentence"].fillna("") != ""].groupby("division"):
        is_test = division["side"] == "test"
        trained = division.loc[division["side"] == "train", "sentence"]
        shared = division.loc[is_test, "sentence"].isin(trained)
        if not is_test.any():
            shared = division.groupby("sentence")["side"].transform("nunique") > 1
        shares.append(shared.mean())
    share = float(np.nanmean(shares))
    return Finding(
        "warning" if share > 0.05 else "ok",
        "shared sentences",
        f"{share:.0%} of test utterances have a sentence that training utterances have too",
    )


def _classes(rows: pd.DataFrame) -> Finding:
    if "emotion" not in rows:
        return Finding(
            "not checked",
            "classes",
            "emotions are not known: whether one is missing in a fold was not checked",
        )
    counts = rows.groupby(["division", "side", "emotion"]).size().unstack("emotion", fill_value=0)
    gaps = counts[(counts == 0).any(axis=1)]
    text = "; ".join(
        f"fold {division} {side}: {', '.join(gaps.columns[row == 0])}".removeprefix("fold all ")
        for (division, side), row in gaps.head(5).iterrows()
    )
    return Finding(
        "warning" if len(gaps) else "ok",
        "classes",
        f"emotions missing: {text}" if text else "every emotion is in every part of every fold",
    )


def _sizes(rows: pd.DataFrame) -> Iterator[Finding]:
    """Yield findings on the size of folds, missing roles, and how often utterances are tested."""
    test = rows[rows["role"] == "test"]
    sizes = test.groupby("fold").size().reindex(rows["fold"].unique(), fill_value=0)
    small = sizes[sizes < sizes.mean() / 2]
    yield Finding(
        "warning" if len(small) or sizes.max() > 4 * sizes.min() else "ok",
        "fold sizes",
        f"test parts have {sizes.min()} to {sizes.max()} utterances"
        + (f"; much smaller than others: fold {_some(small.index)}" if len(small) else ""),
    )
    tested = test.groupby("utterance_id").size().reindex(rows["utterance_id"].unique())
    once, never = (tested == 1).sum(), tested.isna().sum()
    yield Finding(
        "ok" if once == len(tested) else "warning",
        "test rows",
        f"{once} of {len(tested)} utterances are tested exactly once, "
        f"{len(tested) - once - never} more than once, {never} never",
    )
    if "validation" not in set(rows["role"]):
        yield Finding(
            "warning",
            "validation rows",
            "there are none: what was stopped, chosen or calibrated, if anything, was so by "
            "training or by test rows",
        )


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
    table = table.rename(columns={theirs: ours for ours, theirs in names.items()})
    if missing := sorted(set(needed) - set(table)):
        raise ValueError(
            f"{path} has the columns {list(table.columns)}, without {', '.join(missing)}. Name "
            f"yours with --names, e.g. {missing[0]}=file"
        )
    empty = (table[needed].isna() | (table[needed].astype(str) == "")).any()
    if empty.any():
        raise ValueError(
            f"{path}: {', '.join(empty.index[empty])} has empty cells; every row needs one"
        )
    return table


def _located(utterances: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Find each recording: ``path`` below the root, or a file named as the last part of an id."""
    places = {}
    for path in filter(audio.is_audio, sorted(root.rglob("*"))):
        places.setdefault(path.stem, []).append(path)

    def find(name: str) -> list[Path]:
        named = places.get(Path(name).name) or places.get(Path(name).stem, [])
        return [root / name] if (root / name).is_file() else named

    wanted = utterances.get("path", utterances["utterance_id"]).map(str)
    found = wanted.map(find)
    bad = wanted[found.map(len) != 1]
    if len(bad):
        raise FileNotFoundError(
            f"{len(bad)} of {len(wanted)} recordings are not under {root}, or more than once: "
            f"{_some(bad)}: give a column path, and the folder that it counts from, or files whose "
            "names are the ids"
        )
    times = utterances.reindex(columns=["start_s", "end_s"]).apply(pd.to_numeric)
    return utterances.assign(path=found.str[0].map(str), **times)


def _compare(path: str, start_s: float, end_s: float, *other) -> tuple[float, float]:
    return correlation(audio.load(path, start_s, end_s), audio.load(*other))


if __name__ == "__main__":
    sys.exit(main())
