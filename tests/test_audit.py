"""The audit as others use it: any tables, a command with an exit code, and ears."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import RATE, harmonic_tone, make_utterances, noise, write_audio

from helpers import audit, fingerprint, paths, splits


@pytest.fixture
def folded() -> tuple[pd.DataFrame, pd.DataFrame]:
    utterances = make_utterances(12)
    return splits.make_folds(utterances, n_folds=4), utterances


@pytest.fixture
def division(folded) -> pd.DataFrame:
    """One fold number per utterance: the fold in which it is tested."""
    folds, _ = folded
    return folds[folds["role"] == "test"][["utterance_id", "fold", "emotion"]].reset_index(
        drop=True
    )


def levels(findings) -> dict[str, str]:
    return {finding.check: finding.level for finding in findings}


def command(
    tmp_path, utterances: pd.DataFrame, folds: pd.DataFrame, *more
) -> subprocess.CompletedProcess:
    for name, table in (("utterances", utterances), ("folds", folds)):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "helpers.audit",
            tmp_path / "utterances.csv",
            tmp_path / "folds.csv",
            *more,
        ],
        cwd=paths.PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_fold_number_per_utterance_will_do(folded, division):
    _, utterances = folded
    clean = levels(audit.audit_folds(division.assign(role="test"), utterances))
    assert (
        clean["speakers"] == clean["classes"] == clean["test rows"] == "ok"
        and clean["valid rows"] == "warning"
    )
    mixed = division.assign(role="test", fold=np.arange(len(division)) % 4 + 1)
    assert levels(audit.audit_folds(mixed, utterances))["speakers"] == "fault"


def test_every_fault_of_a_division_is_found_whichever_way_it_is_given(folded, division):
    _, utterances = folded
    tested = division.assign(role="test").set_index("utterance_id")["fold"]
    one, other = tested.index[tested == 1][0], tested.index[tested == 2][0]
    by_id = utterances.set_index("utterance_id")["audio_hash"]
    hashes = utterances["audio_hash"].where(utterances["utterance_id"] != one, by_id[other])
    assert (
        levels(
            audit.audit_folds(division.assign(role="test"), utterances.assign(audio_hash=hashes))
        )["recordings (same decoded audio)"]
        == "fault"
    )
    parent = np.where(utterances["utterance_id"] == one, other, "")
    assert (
        levels(
            audit.audit_folds(division.assign(role="test"), utterances.assign(parent_id=parent))
        )["augmented copies and their parents"]
        == "fault"
    )
    moved = division.assign(
        role="test", fold=division["fold"].where(division["utterance_id"] != one, 2)
    )
    assert levels(audit.audit_folds(moved, utterances))["speakers"] == "fault"


def test_utterance_with_two_roles_is_caught(folded):
    folds, utterances = folded
    both = pd.concat(
        [folds, folds[(folds["fold"] == 1) & (folds["role"] == "test")].assign(role="valid")]
    )
    found = levels(audit.audit_folds(both, utterances))
    assert found["utterances"] == found["speakers"] == "fault"


def test_row_that_was_appended_twice_is_caught(folded):
    folds, utterances = folded
    findings = audit.audit_folds(folds, pd.concat([utterances, utterances.iloc[:5]]))
    assert levels(findings)["listed once"] == "fault" and "5 utterances" in findings[0].text


def test_what_is_not_known_is_said(folded):
    folds, utterances = folded
    findings = audit.audit_folds(
        folds.drop(columns="emotion"), utterances[["utterance_id", "speaker"]]
    )
    unknown = " ".join(f.text for f in findings if f.level == "not checked")
    assert all(
        word in unknown for word in ("group", "sentence", "parent_id", "audio_hash", "emotions")
    )


def test_sizes_of_folds_are_told(folded, division):
    _, utterances = folded
    uneven = division.assign(role="test")[(division["fold"] != 1) | ~division.duplicated("fold")]
    finding = next(f for f in audit.audit_folds(uneven, utterances) if f.check == "fold sizes")
    assert finding.level == "warning" and "fold 1" in finding.text


def test_emotion_that_lacks_is_told(folded, division):
    _, utterances = folded
    sparse = division[~((division["fold"] == 2) & (division["emotion"] == "sad"))].assign(
        role="test"
    )
    finding = next(f for f in audit.audit_folds(sparse, utterances) if f.check == "classes")
    assert finding.level == "warning" and "fold 2: sad" in finding.text


@pytest.mark.parametrize("column", ["speaker", "utterance_id", "fold"])
def test_columns_may_have_other_names(tmp_path, folded, division, column):
    _, utterances = folded
    theirs = {column: "whatever"}
    given = tmp_path, utterances.rename(columns=theirs), division.rename(columns=theirs)
    assert command(*given, "--names", f"{column}=whatever").returncode == 0
    done = command(*given)
    assert done.returncode == 2 and "whatever" in done.stderr and "--names" in done.stderr


def test_command_says_what_is_wrong_by_exit_code_and_in_words(tmp_path, folded):
    folds, utterances = folded
    clean = command(tmp_path, utterances, folds.replace({"role": {"valid": "dev"}}))
    assert (
        clean.returncode == 0
        and "no fault" in clean.stdout
        and "NOT CHECKED  sound" in clean.stdout
    )
    assert command(tmp_path, utterances, folds, "--strict").returncode == 1, (
        "everybody says the same sentences"
    )
    leaked = folds.assign(
        role=folds["role"].where(folds.index != folds.index[folds["role"] == "test"][0], "train")
    )
    bad = command(tmp_path, utterances, leaked)
    assert (
        bad.returncode == 1
        and bad.stdout.startswith("FAULT")
        and "speakers on two sides of a fold: 1," in bad.stdout
    )
    strange = command(tmp_path, utterances, folds.replace({"role": {"valid": "holdout"}}))
    assert strange.returncode == 2 and "holdout" in strange.stderr and not strange.stdout


@pytest.mark.parametrize("compressed", [False, True])
def test_command_reads_run_records(tmp_path, folded, compressed):
    folds, utterances = folded
    ids = {
        (fold, role): rows["utterance_id"].tolist()
        for (fold, role), rows in folds.groupby(["fold", "role"])
    }
    record = {
        "folds": {
            str(fold): {"fit": ids[fold, "train"], "stop": ids[fold, "valid"]}
            for fold in folds["fold"].unique()
        }
    }

    def run(content) -> subprocess.CompletedProcess:
        path = tmp_path / ("run.json.gz" if compressed else "run.json")
        text = json.dumps(content).encode()
        path.write_bytes(gzip.compress(text) if compressed else text)
        return command(tmp_path, utterances, folds, "--record", path)

    assert run(record).returncode == 0
    for step in audit.STEPS:
        bad = run(
            [{"folds": record["folds"] | {"1": record["folds"]["1"] | {step: ids[1, "test"]}}}]
        )
        assert (
            bad.returncode == 1
            and f"{step} saw test rows of fold(s) 1 ({len(ids[1, 'test'])})" in bad.stdout
        )
    assert run({"folds": {"9": {"fit": []}}}).returncode == run([1]).returncode == 2
    assert "expected the folds" in run({"folds": {"1": {"train": []}}}).stderr


# --- the same recording under another name -------------------------------------------------------------------------


def voice(seed: int, seconds: float = 2.0) -> np.ndarray:
    """Something like speech: syllables of changing pitch and colour."""
    rng = np.random.default_rng(seed)
    tones = [
        harmonic_tone(*rng.uniform([90, 0.1, 0.1], [250, 0.25, 0.3]))
        for _ in range(round(seconds * 12))
    ]
    tones = [
        np.convolve(tone, rng.standard_normal(24) / 5, "same") * np.hanning(len(tone))
        for tone in tones
    ]
    return (np.concatenate(tones)[: round(seconds * RATE)] + noise(seconds, 0.002, seed)).astype(
        np.float32
    )


@pytest.fixture
def recordings(tmp_path) -> pd.DataFrame:
    files = [write_audio(tmp_path / f"sound/s{i % 4}_{i}.wav", voice(i)) for i in range(12)]
    return pd.DataFrame(
        {
            "utterance_id": [f"toy/{f.stem}" for f in files],
            "path": [str(f) for f in files],
            "speaker": [f.stem.split("_")[0] for f in files],
            "start_s": np.nan,
            "end_s": np.nan,
        }
    )


def changed(tmp_path, signal: np.ndarray, how: str):
    import soxr

    path = tmp_path / "copy"
    match how:
        case "mp3":
            return write_audio(path.with_suffix(".mp3"), signal)
        case "opus":
            return write_audio(path.with_suffix(".opus"), signal, format="OGG", subtype="OPUS")
        case "telephone":
            return write_audio(path.with_suffix(".wav"), soxr.resample(signal, RATE, 8000), 8000)
        case "quiet":
            return write_audio(path.with_suffix(".wav"), signal / 10)
        case "trimmed":
            return write_audio(path.with_suffix(".wav"), signal[3237:])
        case "turned":
            return write_audio(path.with_suffix(".wav"), -signal)


@pytest.mark.parametrize("how", ["mp3", "opus", "telephone", "quiet", "trimmed", "turned"])
def test_copy_is_recognised_by_its_sound(tmp_path, recordings, how):
    copy = recordings.iloc[[5]].assign(
        utterance_id="toy/copy", path=str(changed(tmp_path, voice(5), how))
    )
    found = fingerprint.same_recordings(pd.concat([recordings, copy]), n_jobs=1)
    assert (
        found[["first", "second"]].to_numpy().tolist() == [["toy/s1_5", "toy/copy"]]
        and found["correlation"].iloc[0] > 0.9
    )
    if how == "trimmed":
        assert found["shift_s"].iloc[0] == pytest.approx(3237 / RATE, abs=1e-3)


def test_different_recordings_are_told_apart_and_bad_files_do_no_harm(tmp_path, recordings):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF no wav")
    short = write_audio(tmp_path / "short.wav", voice(3)[:1600])
    more = pd.DataFrame(
        {
            "utterance_id": ["toy/broken", "toy/short", "toy/silent", "toy/gone"],
            "path": [
                str(broken),
                str(short),
                str(write_audio(tmp_path / "silent.wav", np.zeros(RATE, np.float32))),
                "",
            ],
        }
    )
    assert fingerprint.same_recordings(
        pd.concat([recordings, more.assign(start_s=np.nan, end_s=np.nan)]), n_jobs=1
    ).empty


def test_part_of_a_longer_recording_is_recognised(tmp_path, recordings):
    both = recordings.iloc[[5, 5]].assign(
        utterance_id=["toy/begin", "toy/end"], start_s=[0.0, 0.9], end_s=[1.8, np.nan]
    )
    found = fingerprint.same_recordings(pd.concat([recordings.drop(index=5), both]), n_jobs=1)
    assert found[["first", "second"]].to_numpy().tolist() == [["toy/begin", "toy/end"]]


def test_command_listens(tmp_path, recordings):
    changed(tmp_path, voice(5), "opus").rename(tmp_path / "sound/s0_x.opus")
    rows = pd.concat(
        [recordings, recordings.iloc[[0]].assign(utterance_id="toy/s0_x", path="s0_x.opus")]
    )
    rows = rows.assign(path=[name.rsplit("/", 1)[-1] for name in rows["path"]])[
        ["utterance_id", "path", "speaker"]
    ]
    folds = rows[["utterance_id"]].assign(fold=[int(s[1]) % 2 + 1 for s in rows["speaker"]])
    done = command(tmp_path, rows, folds, "--audio", tmp_path / "sound")
    assert (
        done.returncode == 1
        and "sound: 1 pair(s) of clips on two sides are the same recording: toy/s1_5" in done.stdout
    )
    by_name = command(tmp_path, rows.drop(columns="path"), folds, "--audio", tmp_path / "sound")
    assert by_name.stdout == done.stdout, "without a column path, files are found by the ids"
    assert (
        command(
            tmp_path,
            rows,
            folds[folds["utterance_id"] != "toy/s0_x"],
            "--audio",
            tmp_path / "sound",
        ).returncode
        == 0
    )
    gone = command(tmp_path, rows.assign(path="nowhere.wav"), folds, "--audio", tmp_path / "sound")
    assert gone.returncode == 2 and "13 of 13 recordings are not under" in gone.stderr


@pytest.mark.corpus
def test_known_pair_of_ravdess_and_no_other(ravdess_root):
    rows = pd.DataFrame(
        [
            {
                "utterance_id": f"ravdess/{p.stem}",
                "path": str(p),
                "start_s": np.nan,
                "end_s": np.nan,
            }
            for p in sorted(ravdess_root.rglob("*.flac"))
        ]
    )
    found = fingerprint.same_recordings(rows)
    assert found[["first", "second"]].to_numpy().tolist() == [
        ["ravdess/03-01-03-01-02-01-07", "ravdess/03-01-03-01-02-02-07"]
    ]
