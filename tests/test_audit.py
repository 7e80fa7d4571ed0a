"""The audit as a command on tables of any origin, and the search for near-duplicate audio."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soxr
from conftest import RATE, harmonic_tone, make_utterances, noise, write_audio

from helpers import audio, audit, augment, features, paths, splits


@pytest.fixture
def folded() -> tuple[pd.DataFrame, pd.DataFrame]:
    utterances = make_utterances(12)
    return splits.make_folds(utterances, n_folds=4), utterances


@pytest.fixture
def division(folded) -> pd.DataFrame:
    """One fold number per utterance: the fold in which it is tested."""
    folds, _ = folded
    tested = folds[folds["role"] == "test"].reset_index(drop=True)
    return tested[["utterance_id", "fold", "emotion"]]


def levels(findings) -> dict[str, str]:
    return {finding.check: finding.level for finding in findings}


@pytest.fixture
def command(tmp_path, capsys, monkeypatch):
    """Write the tables, and call the command on them; returns exit code, output and errors."""
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")

    def call(utterances: pd.DataFrame, folds: pd.DataFrame, *more) -> tuple[int, str, str]:
        utterances.to_csv(tmp_path / "utterances.csv", index=False)
        folds.to_csv(tmp_path / "folds.csv", index=False)
        given = tmp_path / "utterances.csv", tmp_path / "folds.csv", *more
        try:
            code = audit.main(list(map(str, given)))
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return call


def test_one_fold_number_per_utterance_is_enough(folded, division):
    _, utterances = folded
    tested = division.assign(role="test")
    clean = levels(audit.audit_folds(tested, utterances))
    assert clean["speakers"] == clean["classes"] == clean["test rows"] == "ok"
    assert clean["validation rows"] == "warning"

    one = tested["utterance_id"][tested["fold"] == 1].iloc[0]
    other = tested["utterance_id"][tested["fold"] == 2].iloc[0]
    is_one = utterances["utterance_id"] == one
    same = utterances.set_index("utterance_id").loc[other, "audio_hash"]
    hashes = utterances["audio_hash"].where(~is_one, same)
    found = levels(audit.audit_folds(tested, utterances.assign(audio_hash=hashes)))
    assert found["recordings (same decoded audio)"] == "fault"
    parents = np.where(is_one, other, "")
    found = levels(audit.audit_folds(tested, utterances.assign(parent_id=parents)))
    assert found["augmented copies and their parents"] == "fault"
    moved = tested.assign(fold=tested["fold"].where(tested["utterance_id"] != one, 2))
    assert levels(audit.audit_folds(moved, utterances))["speakers"] == "fault"


def test_utterance_with_two_roles_and_row_listed_twice_are_caught(folded):
    folds, utterances = folded
    tested = folds[(folds["fold"] == 1) & (folds["role"] == "test")]
    both = pd.concat([folds, tested.assign(role="validation")])
    found = levels(audit.audit_folds(both, utterances))
    assert found["utterances"] == found["speakers"] == "fault"
    findings = audit.audit_folds(folds, pd.concat([utterances, utterances.iloc[:5]]))
    assert levels(findings)["listed once"] == "fault" and "5 utterances" in findings[0].text


def test_what_is_not_known_was_not_checked(folded):
    folds, utterances = folded
    bare = utterances[["utterance_id", "speaker"]]
    findings = audit.audit_folds(folds.drop(columns="emotion"), bare)
    unknown = " ".join(f.text for f in findings if f.level == "not checked")
    for word in audit.OPTIONAL:
        assert word in unknown
    assert not {"classes", "shared sentences"} & set(levels(findings))
    known = utterances.assign(parent_id="", group="")
    assert "group, parent_id" in next(
        f.text for f in audit.audit_folds(folds, known) if f.check == "columns"
    )


def chain(utterances, folds):
    """A test clip, a copy of it that is in no fold, and a copy of that copy in train."""
    rows = folds[folds["fold"] == 1]
    test = rows.loc[rows["role"] == "test", "utterance_id"].iloc[0]
    train = rows.loc[rows["role"] == "train", "utterance_id"].iloc[0]
    own = utterances["speaker"].iloc[0]
    copy = pd.DataFrame({"utterance_id": ["toy/copy"], "parent_id": [test], "speaker": [own]})
    parents = utterances["utterance_id"].map({train: "toy/copy"}).fillna("")
    return pd.concat([utterances.assign(parent_id=parents), copy]), folds


SITUATIONS = {  # what the tables say → the check that finds it
    "grandparent": (chain, "augmented copies and their parents", "fault"),
    "unknown parent": (
        lambda u, f: (u.assign(parent_id=np.where(u.index == 3, "toy/nobody", "")), f),
        "known rows",
        "fault",
    ),
    "every row its own speaker": (
        lambda u, f: (u.assign(speaker=u["utterance_id"]), f),
        "names of speakers",
        "not checked",
    ),
    "two names of a person": (
        lambda u, f: (u.replace({"speaker": {"s00": "Ana", "s01": "aná"}}), f),
        "names of speakers",
        "warning",
    ),
    "no train rows": (
        lambda u, f: (u, f[(f["fold"] != 2) | (f["role"] != "train")]),
        "train and test rows",
        "fault",
    ),
    "no test rows": (
        lambda u, f: (u, f[(f["fold"] != 2) | (f["role"] != "test")]),
        "train and test rows",
        "fault",
    ),
    "one fold number for all": (
        lambda u, f: (u, f[f["role"] == "test"].assign(fold=1)),
        "train and test rows",
        "fault",
    ),
    "a row twice": (
        lambda u, f: (u, pd.concat([f, f[f["role"] == "train"].iloc[:1]])),
        "rows of folds",
        "warning",
    ),
    "rows in no fold": (
        lambda u, f: (u, f[f["utterance_id"] != f["utterance_id"].iloc[0]]),
        "utterances in no fold",
        "not checked",
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_situation_is_found(folded, situation):
    folds, utterances = folded
    change, check, level = SITUATIONS[situation]
    assert levels(audit.audit_folds(folds, utterances)).get(check, "ok") == "ok"
    changed_utterances, changed_folds = change(utterances, folds)
    assert levels(audit.audit_folds(changed_folds, changed_utterances))[check] == level


def test_names_are_compared_in_one_form(command, folded, division):
    """One person with a space behind the name, or with an accent of another encoding."""
    _, utterances = folded
    for one, other in (("José", "Jose\u0301"), ("Ana", "Ana ")):
        names = np.where(utterances.index % 2, one, other)
        is_own = utterances["speaker"] == "s00"
        rows = utterances.assign(speaker=utterances["speaker"].mask(is_own, names))
        half = set(rows.loc[is_own & (rows.index % 2 == 0), "utterance_id"])
        moved = division["utterance_id"].isin(half)
        folds = division.assign(fold=division["fold"].mask(moved, division["fold"] % 4 + 1))
        code, output, _ = command(rows, folds)
        assert code == 1 and "speakers on two sides of a fold: 1, " in output and one in output


def test_sizes_of_folds_and_missing_emotions_are_warned_of(folded, division):
    _, utterances = folded
    tested = division.assign(role="test")
    uneven = tested[(tested["fold"] != 1) | ~tested.duplicated("fold")]
    finding = next(f for f in audit.audit_folds(uneven, utterances) if f.check == "fold sizes")
    assert finding.level == "warning" and "fold 1" in finding.text
    sparse = tested[(tested["fold"] != 2) | (tested["emotion"] != "sad")]
    finding = next(f for f in audit.audit_folds(sparse, utterances) if f.check == "classes")
    assert finding.level == "warning" and "fold 2 sad" in finding.text


@pytest.mark.parametrize("column", ["speaker", "utterance_id"])
def test_columns_may_have_other_names(command, folded, division, column):
    _, utterances = folded
    theirs = {column: "whatever"}
    given = utterances.rename(columns=theirs), division.rename(columns=theirs)
    assert command(*given, "--names", f"{column}=whatever")[0] == 0
    code, _, errors = command(*given)
    assert code == 2 and "whatever" in errors and "--names" in errors


def test_division_that_cannot_be_used_is_refused(tmp_path, folded):
    folds, _ = folded
    path = tmp_path / "folds.csv"
    with pytest.raises(FileNotFoundError, match=r"folds\.csv"):
        audit.read_division(path)
    folds.drop(columns=["fold", "role"]).to_csv(path, index=False)
    with pytest.raises(ValueError, match="a division needs fold, role, or both"):
        audit.read_division(path)
    folds.assign(utterance_id="").to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"with empty cells: \['utterance_id'\]"):
        audit.read_division(path)
    folds[:0].to_csv(path, index=False)
    with pytest.raises(ValueError, match="has 0 rows"):
        audit.read_division(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"folds\.csv can't be read as a table"):
        audit.read_division(path)
    for word in ("valid", "val", "dev", "Validation"):
        folds.replace({"role": {"validation": word}}).to_csv(path, index=False)
        assert set(audit.read_division(path)["role"]) == set(splits.ROLES)


def test_command_answers_by_exit_code_and_in_words(command, folded, tmp_path):
    folds, utterances = folded
    code, output, _ = command(utterances, folds.replace({"role": {"validation": "dev"}}))
    assert code == 0 and "no fault" in output and "NOT CHECKED  sound" in output
    assert command(utterances, folds, "--strict")[0] == 1, "everybody says the same sentences"
    strange = command(utterances, folds.replace({"role": {"validation": "holdout"}}))
    assert strange[:2] == (2, "") and "holdout" in strange[2]
    leaked = folds.copy()
    leaked.loc[leaked.index[leaked["role"] == "test"][0], "role"] = "train"
    code, output, _ = command(utterances, leaked)
    assert code == 1 and output.startswith("FAULT")
    assert "speakers on two sides of a fold: 1," in output
    tables = tmp_path / "utterances.csv", tmp_path / "folds.csv"
    called = [sys.executable, "-m", "helpers.audit", *tables]
    done = subprocess.run(called, cwd=paths.PROJECT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, output)


@pytest.mark.parametrize("name", ["run.json", "run.json.gz"])
def test_command_reads_run_records(command, folded, tmp_path, name):
    folds, utterances = folded
    ids = folds.groupby(["fold", "role"])["utterance_id"].agg(list)
    record = {
        str(fold): {"fit": ids[fold, "train"], "stop": ids[fold, "validation"]}
        for fold in folds["fold"].unique()
    }

    def run(content) -> int:
        text = json.dumps(content).encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
        return command(utterances, folds, "--record", tmp_path / name)[0]

    assert run({"folds": record}) == 0
    for step in audit.STEPS:
        leaked = record | {"1": record["1"] | {step: ids[1, "test"]}}
        assert run([{"folds": leaked, "variant": "inductive"}]) == 1
    assert run({"folds": {"9": {"fit": []}}}) == run([1]) == 2


def test_record_of_unknown_utterances_is_a_fault(folded):
    folds, _ = folded
    record = {"folds": {"1": {"fit": [folds["utterance_id"][0], "other/a", "other/b"]}}}
    found = next(f for f in audit.audit_record(record, folds) if f.check == "known rows")
    assert found.level == "fault" and "2 utterances" in found.text and "other/a" in found.text


def test_numbers_as_ids_are_texts_and_what_is_not_recorded_is_not_checked(folded):
    folds, _ = folded
    numbers = {name: str(i) for i, name in enumerate(folds["utterance_id"].unique())}
    table = folds.assign(utterance_id=folds["utterance_id"].map(numbers))
    tested = table.query("fold == 1 and role == 'test'")["utterance_id"].astype(int).tolist()
    found = audit.audit_record({"folds": {1: {"fit": tested}}}, table)
    levels = {finding.check: finding.level for finding in found}
    assert levels == dict.fromkeys(audit.STEPS, "not checked") | {
        "fit": "fault",
        "known rows": "ok",
    }
    own = table.query("role == 'train'").groupby("fold")["utterance_id"].agg(list)
    every = {fold: {"fit": ids, "stop": []} for fold, ids in own.items()}
    levels = {f.check: f.level for f in audit.audit_record({"folds": every}, table)}
    assert levels["fit"] == "ok" and levels["stop"] == "not checked", "no ids: nothing compared"


def test_record_of_other_folds_or_steps_is_refused(folded):
    folds, _ = folded
    for by_fold in ({"9": {"fit": []}}, {"1": {"train": []}}):
        with pytest.raises(ValueError, match=r"expected the folds \['1', '2', '3', '4'\]"):
            audit.audit_record({"folds": by_fold}, folds)
    leaked = {"folds": {"1": {"stop": folds.query("fold == 1 and role == 'test'").utterance_id}}}
    text = next(f.text for f in audit.audit_record(leaked, folds) if f.level == "fault")
    assert text == "stop saw test rows of fold(s) 1 (36)"


# --- the same recording under another name -------------------------------------------------------


def voice(seed: int, seconds: float = 2.0) -> np.ndarray:
    """Something like speech: syllables of changing pitch and colour."""
    rng = np.random.default_rng(seed)
    tones = []
    for _ in range(round(seconds * 12)):
        tone = harmonic_tone(*rng.uniform([90, 0.1, 0.1], [250, 0.25, 0.3]))
        colour = rng.standard_normal(24) / 5
        tones.append(np.convolve(tone, colour, "same") * np.hanning(len(tone)))
    signal = np.concatenate(tones)[: round(seconds * RATE)] + noise(seconds, 0.002, seed)
    return signal.astype(np.float32)


@pytest.fixture
def recordings(tmp_path) -> pd.DataFrame:
    files = [write_audio(tmp_path / f"sound/s{i % 4}_{i}.wav", voice(i)) for i in range(12)]
    return clips({f"toy/{f.stem}": f for f in files}).assign(
        speaker=[f.stem.split("_")[0] for f in files]
    )


def clips(files: dict) -> pd.DataFrame:
    table = pd.DataFrame({"utterance_id": list(files), "path": [str(f) for f in files.values()]})
    return table.assign(start_s=np.nan, end_s=np.nan)


def changed(folder, signal: np.ndarray, how: str):
    """Write a copy to which something was done."""
    silence = np.zeros(8000, np.float32)
    match how:
        case "mp3":
            return write_audio(folder / "copy.mp3", signal)
        case "opus":
            return write_audio(folder / "copy.opus", signal, format="OGG", subtype="OPUS")
        case "telephone":
            return write_audio(folder / "copy.wav", soxr.resample(signal, RATE, 8000), 8000)
        case "louder":
            return write_audio(folder / "copy.wav", 3 * signal.clip(-0.3, 0.3))
        case "quiet":
            return write_audio(folder / "copy.wav", signal / 10)
        case "trimmed":
            return write_audio(folder / "copy.wav", signal[3237:])
        case "delayed":
            return write_audio(folder / "copy.wav", np.concatenate([silence, signal]))
        case "inverted":
            return write_audio(folder / "copy.wav", -signal)
        case "room":
            decay = np.exp(-np.arange(6400) / 950) * noise(0.4, 0.1, 1)
            return write_audio(folder / "copy.wav", np.convolve(signal, decay + np.eye(1, 6400)[0]))
        case "slower" | "faster":
            speed = {"slower": 0.995, "faster": 1.01}[how]
            return write_audio(folder / "copy.wav", augment.change_speed(signal, speed))
        case "quiet trimmed mp3":
            return write_audio(folder / "copy.mp3", 0.1 * signal[3237:])


HOW = ["mp3", "opus", "telephone", "louder", "quiet", "trimmed", "delayed", "inverted", "room"]


@pytest.mark.parametrize("how", [*HOW, "quiet trimmed mp3", "slower", "faster"])
def test_copy_is_found(tmp_path, recordings, how):
    copy = clips({"toy/copy": changed(tmp_path, voice(5), how)})
    found = audit.near_duplicates(pd.concat([recordings, copy], ignore_index=True), n_jobs=1)
    assert found[["first", "second"]].to_numpy().tolist() == [["toy/s1_5", "toy/copy"]]
    assert found[["correlation", "harmonics"]].max(axis=1).iloc[0] > 0.8
    shift = {"delayed": -8000, "trimmed": 3237, "quiet trimmed mp3": 3237}.get(how, 0)
    assert found["shift_s"].iloc[0] == pytest.approx(shift / RATE, abs=0.06)


def test_other_clips_and_bad_files_are_no_duplicates(tmp_path, recordings):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF no wav")
    more = {
        "toy/broken": broken,
        "toy/short": write_audio(tmp_path / "short.wav", voice(3)[:1600]),
        "toy/silent": write_audio(tmp_path / "silent.wav", np.zeros(RATE, np.float32)),
        "toy/gone": "",
    }
    assert audit.near_duplicates(pd.concat([recordings, clips(more)]), n_jobs=1).empty
    for few in (recordings.iloc[:1], clips(more).iloc[:1]):
        found = audit.near_duplicates(few, n_jobs=1)
        assert found.empty and list(found)[:4] == ["first", "second", "correlation", "shift_s"]
        folds = pd.DataFrame({"utterance_id": ["toy/s0_0"], "fold": 1, "role": "test"})
        assert audit.audit_near_duplicates(folds, found).level == "not checked"


def test_copy_on_two_sides_is_a_fault(tmp_path, recordings, monkeypatch):
    copy = clips({"toy/copy": changed(tmp_path, voice(5), "mp3")})
    both = pd.concat([recordings.iloc[[5]], copy])
    pairs = audit.near_duplicates(both, n_jobs=1)
    monkeypatch.setattr(audit, "_compare", None)
    assert audit.near_duplicates(both, n_jobs=1).equals(pairs), "compared clips are remembered"
    folds = pd.DataFrame({"utterance_id": ["toy/s1_5", "toy/copy"], "fold": 1, "role": "train"})
    assert audit.audit_near_duplicates(folds, pairs).level == "ok"
    apart = audit.audit_near_duplicates(folds.assign(role=["train", "test"]), pairs)
    assert apart.level == "fault" and "1 pair(s) of clips on two sides" in apart.text


def test_command_searches_for_copies(command, tmp_path, recordings):
    changed(tmp_path, voice(5), "opus").rename(tmp_path / "sound/s0_x.opus")
    rows = pd.concat([recordings, clips({"toy/s0_x": "s0_x.opus"}).assign(speaker="s0")])
    names = [name.rsplit("/", 1)[-1] for name in rows["path"]]
    rows = rows.assign(path=names)[["utterance_id", "path", "speaker"]]
    folds = rows[["utterance_id"]].assign(fold=[int(s[1]) % 2 + 1 for s in rows["speaker"]])
    given = folds, "--audio", tmp_path / "sound"
    code, output, _ = command(rows, *given)
    expected = "sound: 1 pair(s) of clips on two sides are the same recording: toy/s1_5"
    assert code == 1 and expected in output
    named = rows.rename(columns={"path": "file"})
    assert command(named, *given, "--names", "path=file")[1] == output
    for wrong in (named, rows.assign(path=""), rows.assign(path="nowhere.wav")):
        code, _, errors = command(wrong, *given)
        assert code == 2 and "13 of 13 recordings are not under" in errors


@pytest.mark.corpus
def test_known_pair_of_ravdess_is_found(ravdess_root):
    files = sorted(p for p, why in audio.scan(ravdess_root) if not why and p.stem[-3:] == "-07")
    found = audit.near_duplicates(clips({f"ravdess/{path.stem}": path for path in files}))
    assert found[["first", "second"]].to_numpy().tolist() == [
        ["ravdess/03-01-03-01-02-01-07", "ravdess/03-01-03-01-02-02-07"]
    ]


# --- situations of a reviewer --------------------------------------------------------------------


def test_columns_that_reach_one_by_themselves_are_no_scaled_ones(folded):
    _, utterances = folded
    rng, n = np.random.default_rng(0), len(utterances)
    speakers = utterances["speaker"].to_numpy(str)
    flags = rng.integers(0, 2, (n, 6)).astype(float)
    shares = rng.normal(0.5, 0.6, (n, 6)).clip(0, 1)
    counts = rng.poisson(0.3, (n, 6)).astype(float)
    for values in (flags, shares, counts):
        (finding,) = audit.audit_inputs(values, "inductive", speakers)
        assert finding.level == "ok"


def test_scaling_of_some_speakers_is_found(folded):
    _, utterances = folded
    values = np.random.default_rng(0).normal(3, 2, (len(utterances), 8))
    speakers = utterances["speaker"].to_numpy(str)
    for speaker in np.unique(speakers)[6:]:
        own = speakers == speaker
        values[own] = (values[own] - values[own].mean(0)) / values[own].std(0)
    for variant in ("inductive", "speaker-normalised"):
        (finding,) = audit.audit_inputs(values, variant, speakers)
        assert finding.level == "fault" and "50% over the rows of each speaker" in finding.text


def test_speakers_of_few_clips_do_not_hide_what_was_done_with_the_others(folded):
    _, utterances = folded
    values = np.random.default_rng(0).normal(3, 2, (len(utterances), 8))
    speakers = np.array([f"s{i // 3}" if i < 96 else f"t{i // 12}" for i in range(len(values))])
    scaled = features.normalise_by_speaker(values, speakers)
    (finding,) = audit.audit_inputs(scaled, "speaker-normalised", speakers)
    assert finding.level == "ok"
    (finding,) = audit.audit_inputs(
        scaled, "speaker-normalised", np.arange(len(values)).astype(str)
    )
    assert finding.level == "not checked"


def test_parquet_is_read_as_csv_is(tmp_path, capsys, folded, division):
    """Numbers as ids, empty cells, columns that nobody needs."""
    _, utterances = folded
    numbers = {name: i for i, name in enumerate(utterances["utterance_id"])}
    parents = pd.array([None] * len(numbers), dtype="Int64")
    parents[3] = 0
    table = utterances.assign(
        utterance_id=utterances["utterance_id"].map(numbers), parent_id=parents, age=parents
    )
    folds = division.assign(utterance_id=division["utterance_id"].map(numbers))
    floats, answers = folds.assign(fold=folds["fold"] * 1.0), []
    for kind in ("csv", "parquet"):
        places = tmp_path / f"u.{kind}", tmp_path / f"f.{kind}"
        for frame, place in zip((table, floats), places, strict=True):
            frame.to_csv(place, index=False) if kind == "csv" else frame.to_parquet(place)
        code = audit.main(list(map(str, places)))
        answers.append((code, capsys.readouterr().out))
    assert answers[0] == answers[1] and "FAULT" not in answers[0][1]


def test_rows_without_a_fold_are_in_no_fold(command, folded, division):
    _, utterances = folded
    some = division["utterance_id"].str.endswith("_0")
    code, output, _ = command(utterances, division.assign(fold=division["fold"].where(~some)))
    assert code == 0 and f"{some.sum()} of {len(some)} utterances are in no fold" in output


def test_a_single_training_speaker_may_be_validated_on_but_not_a_clip(folded):
    folds, utterances = folded
    rows = folds[folds["fold"] == 1]
    one = rows["speaker"] == rows.loc[rows["role"] == "train", "speaker"].iloc[0]
    rows = rows[one | (rows["role"] == "test")].assign(side=0)
    held = rows[(rows["role"] == "train") & rows["utterance_id"].str.endswith("_0")]
    fine = pd.concat([rows.drop(held.index), held.assign(role="validation")])
    assert levels(audit.audit_folds(fine, utterances))["speakers"] == "ok"
    both = levels(audit.audit_folds(pd.concat([rows, held.assign(role="validation")]), utterances))
    assert both["speakers"] == "ok" and both["utterances"] == "fault"


def test_a_group_of_some_does_not_hide_the_others(folded):
    folds, utterances = folded
    own = folds[folds["fold"] == 1]
    trained = own.loc[own["role"] == "train", "speaker"].unique()[:2]
    groups = np.where(utterances["speaker"].isin(trained), "pair", "")
    leaked = pd.concat([own, own[own["role"] == "validation"].assign(role="train")])
    found = levels(audit.audit_folds(leaked, utterances.assign(group=groups)))
    assert found["speakers"] == found["utterances"] == "fault"


def test_record_of_rows_that_are_not_in_that_fold_is_a_fault(folded):
    folds, _ = folded
    ids = folds.groupby(["fold", "role"])["utterance_id"].agg(list)
    record = {"folds": {str(fold): {"fit": ids[fold, "train"]} for fold in range(1, 5)}}
    record["folds"]["1"]["fit"] += ids[1, "test"][:6]
    less = folds[~((folds["fold"] == 1) & folds["utterance_id"].isin(ids[1, "test"][:6]))]
    (first, *_) = audit.audit_record(record, less)
    assert first.level == "fault" and "6 utterances" in first.text
    other = {"folds": {"1": {"fit": ["other/a"]}}}
    found = {f.check: f.level for f in audit.audit_record(other, folds)}
    assert found["known rows"] == "fault" and found["fit"] == "not checked"


def test_every_record_of_the_command_counts(command, folded, tmp_path):
    folds, utterances = folded
    ids = folds.groupby(["fold", "role"])["utterance_id"].agg(list)
    for name, role in (("a", "test"), ("b", "train")):
        record = {"folds": {"1": {"fit": ids[1, role]}}}
        (tmp_path / f"{name}.json").write_text("\ufeff" * (name == "a") + json.dumps(record))
    places = tmp_path / "a.json", tmp_path / "b.json"
    assert command(utterances, folds, "--record", places[0], "--record", places[1])[0] == 1
    assert command(utterances, folds, "--record", *places)[0] == 1


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"folds": {}}', '{"folds": {"1": []}}', '{"folds": {"1": {"fit": 3}}}'],
)
def test_no_run_record_is_refused_with_its_name(command, folded, tmp_path, content):
    folds, utterances = folded
    place = tmp_path / "run.json"
    place.write_text(content)
    code, _, errors = command(utterances, folds, "--record", place)
    assert code == 2 and "run.json is no run record: expected JSON" in errors


def test_folds_may_be_the_utterances_too(command, folded):
    folds, _ = folded
    assert command(folds, folds)[0] == 0


def test_checks_that_compared_nothing_say_so(folded):
    folds, utterances = folded
    trained = set(folds.query("fold == 1 and role == 'train'")["utterance_id"])
    first = folds[folds["fold"] == 1]
    known = utterances.assign(
        sentence=utterances["sentence"].where(utterances["utterance_id"].isin(trained), "")
    )
    assert levels(audit.audit_folds(first, known))["shared sentences"] == "not checked"
    nearly = utterances.assign(speaker=utterances["utterance_id"].replace("toy/s00_sad_0", "x"))
    assert levels(audit.audit_folds(folds, nearly))["names of speakers"] == "not checked"
    pairs = pd.DataFrame(columns=["first", "second", "correlation", "shift_s", "harmonics"])
    pairs.attrs["n_compared"] = 2
    finding = audit.audit_near_duplicates(folds, pairs)
    assert finding.level == "not checked" and "unreadable or shorter" in finding.text
