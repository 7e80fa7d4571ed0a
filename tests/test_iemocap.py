"""IEMOCAP's layout, read from the bundled demo corpus; labels are recomputed from the files."""

import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from helpers import audio, corpora, iemocap, paths

DEMO = paths.PROJECT / "data/demo"
CLIP = ["path", "start_s", "end_s"]
WORDS = {
    "Neutral": "neu",
    "Anger": "ang",
    "Sadness": "sad",
    "Happiness": "hap",
    "Excited": "exc",
    "Frustration": "fru",
    "Surprise": "sur",
    "Fear": "fea",
    "Disgust": "dis",
    "Other": "oth",
}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return iemocap.read(DEMO).set_index("utterance_id")


@pytest.fixture
def one_dialogue(tmp_path) -> Path:
    """A root folder with one dialogue's evaluation, and no audio."""
    target = tmp_path / "IEMOCAP_full_release/Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    target.parent.mkdir(parents=True)
    shutil.copy(DEMO / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt", target)
    return target


def blocks() -> list[tuple[str, str, list[float], str]]:
    """Every turn of every evaluation file, by splitting the text at empty lines."""
    found = []
    for path in sorted(DEMO.glob("Session*/dialog/EmoEvaluation/*.txt")):
        for block in re.split(r"\n\s*\n", path.read_text())[1:]:
            if block.strip():
                _, name, label, numbers = block.splitlines()[0].split("\t")
                found.append(
                    (name, label, [float(x) for x in numbers.strip("[]").split(",")], block)
                )
    return found


def test_every_turn_is_read_once(table):
    assert sorted(table.index) == sorted(name for name, *_ in blocks())
    assert len(table) >= 400 and table.index.is_unique and table["speaker"].nunique() == 10


def test_label_is_the_majority_of_outside_votes(table):
    for name, _, _, block in blocks():
        lines = re.findall(r"^C-E.*?\t(.*?)\t", block, re.M)
        counts = Counter(WORDS[word] for line in lines for word in re.findall(r"[A-Z]\w+", line))
        best = [word for word, n in counts.items() if n == max(counts.values())]
        majority = len(best) == 1 and counts[best[0]] * 2 > len(lines)
        expected = iemocap.NATIVE[best[0] if majority else "xxx"]
        assert table.loc[name, "emotion_native"] == expected, f"{name}: {dict(counts)}"


def test_attributes_are_the_means_of_outside_scores(table):
    for name, _, _, block in blocks():
        scores = [
            [int(x) for x in re.findall(r"\d", line.split("\t")[1])]
            for line in block.splitlines()
            if line.startswith("A-E")
        ]
        assert table.loc[name, ["valence", "arousal", "dominance"]].tolist() == pytest.approx(
            np.mean(scores, axis=0), abs=1e-3
        )


def test_speaker_is_the_second_letter(table):
    columns = ["speaker", "sex", "group"]
    assert table.loc["Ses01F_impro01_M000", columns].tolist() == ["Ses01M", "male", "Ses01"]
    assert table.loc["Ses02M_impro02_F000", columns].tolist() == ["Ses02F", "female", "Ses02"]


def test_votes_and_text_belong_to_the_turn(table):
    row = table.loc["Ses01F_impro01_F000"]
    assert row["votes"] == "E2: neutral | E3: frustration | E4: frustration | F1: frustration"
    assert row["text"] == "Why is it always my fault?"
    assert (table["text"] != "").all() and (table["sentence"] == table["text"].str.lower()).all()


def test_sentences_are_files_and_session_5_is_cut_from_dialogues(table):
    cut = table["group"] == "Ses05"
    assert table.loc[~cut, "start_s"].isna().all() and table.loc[cut, "start_s"].notna().all()
    for name, row in table.iterrows():
        assert Path(row["path"]).stem == (name.rsplit("_", 1)[0] if cut[name] else name)
    row = table.loc["Ses05F_impro01_F001"]
    whole = audio.load(row["path"])
    begin, middle = round(row["start_s"] * audio.SAMPLING_RATE), audio.load(*row[CLIP])
    assert np.abs(whole[begin : begin + len(middle)] - middle).max() < 0.05


def test_durations_agree_with_the_times(table):
    for path in DEMO.glob("Session[15]/dialog/EmoEvaluation/*impro01.txt"):
        for turn in iemocap.read_evaluation(path)[::5]:
            found = len(audio.load(*table.loc[turn["id"], CLIP])) / audio.SAMPLING_RATE
            assert found == pytest.approx(turn["end"] - turn["start"], abs=0.02), turn["id"]


def test_unknown_label_stops_with_file_line_and_labels(one_dialogue):
    one_dialogue.write_text(one_dialogue.read_text().replace("\tang\t", "\tangr\t", 1))
    with pytest.raises(
        ValueError, match=r"Ses01F_impro01.txt, line \d+: label 'angr', expected one of \['ang'"
    ):
        iemocap.read(one_dialogue.parents[3])


def test_file_without_turns_stops(one_dialogue):
    one_dialogue.write_text("nothing of the kind")
    with pytest.raises(ValueError, match=r"Ses01F_impro01.txt holds no line like"):
        iemocap.read(one_dialogue.parents[3])


def test_turn_line_that_does_not_fit_is_not_dropped_in_silence(one_dialogue):
    text = one_dialogue.read_text()
    one_dialogue.write_text(
        text.replace("\tfru\t[2.5000, 2.5000, 3.5000]", "\tfru\t[2.5000, , 3.5000]", 1)
    )
    with pytest.raises(ValueError, match=r"Ses01F_impro01\.txt, line 3"):
        iemocap.read_evaluation(one_dialogue)


def test_root_may_be_one_level_above_and_stray_files_are_ignored(one_dialogue):
    shutil.copy(one_dialogue, one_dialogue.with_name("._Ses01F_impro01.txt"))
    stray = one_dialogue.parents[2] / "sentences/wav/Ses01F_impro01/._Ses01F_impro01_F000.wav"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"Mac OS X")
    found = iemocap.read(one_dialogue.parents[4])
    assert len(found) == len(iemocap.read(one_dialogue.parents[3])) == 24
    assert (found["path"] == "").all() and (found["text"] == "").all()


def test_missing_audio_is_reported(one_dialogue, data_folder, monkeypatch):
    root = one_dialogue.parents[3]
    wav = root / "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav"
    wav.parent.mkdir(parents=True)
    soundfile.write(wav, np.zeros(16000), 16000)
    root.rename(data_folder / "iemocap")
    missing = corpora.validate("iemocap")["missing"]
    assert "audio of iemocap/Ses01F_impro01_M000" in missing
    assert "audio of iemocap/Ses01F_impro01_F000" not in missing
    with pytest.raises(ValueError, match="found 24 of 10039 utterances"):
        corpora.require_complete("iemocap")


def complete_release(**other) -> pd.DataFrame:
    counts = iemocap.COUNTS | other
    return pd.DataFrame({"emotion_native": np.repeat(list(counts), list(counts.values()))})


@pytest.mark.parametrize(
    ("labels", "expected"), [("iemocap-4", 5531), ("iemocap-4-unmerged", 4490), ("iemocap-6", 7380)]
)
def test_complete_release_has_the_known_counts(labels, expected):
    assert len(complete_release()) == 10039
    assert len(corpora.apply_labels(complete_release(), "iemocap", labels)) == expected


def test_demo_corpus_is_sound():
    assert corpora.require_complete("demo").endswith(": complete")
    table = corpora.index("demo")
    counts = table["emotion_native"].value_counts()
    assert counts["undecided"] > 5 and counts.max() > 2 * counts.get("happy", 0)
    assert corpora.get("demo").synthetic
    size = sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file())
    assert size < 8e6
