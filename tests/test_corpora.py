"""Corpora: file names become labels; what is missing, unexpected or invalid is counted."""

import dataclasses
import functools
import hashlib
import http.server
import re
import shutil
import threading
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_utterances, write_audio

from helpers import audio, corpora, splits

FIELDS = ["speaker", "sex", "emotion_native", "sentence"]
# The release's own file names → speaker, sex, emotion, sentence
NAMES = {
    "ravdess": {
        "Actor_07/03-01-05-02-01-02-07.wav": ("07", "male", "angry", "01"),
        "Actor_24/03-01-01-01-02-01-24.wav": ("24", "female", "neutral", "02"),
        "Actor_03/03-01-08-01-02-01-03.flac": ("03", "male", "surprised", "02"),
    },
    "emodb": {
        "wav/03a01Fa.wav": ("03", "male", "happy", "a01"),
        "wav/16b10Wb.flac": ("16", "female", "angry", "b10"),
        "wav/08a02La.wav": ("08", "female", "bored", "a02"),
        "wav/15b03Ta.wav": ("15", "male", "sad", "b03"),
        "wav/13a05Ea.wav": ("13", "female", "disgust", "a05"),
        "wav/12a07Ac.wav": ("12", "male", "fearful", "a07"),
    },
    "cremad": {
        "AudioWAV/1001_DFA_ANG_XX.wav": ("1001", "male", "angry", "DFA"),
        "AudioWAV/1002_IEO_HAP_HI.wav": ("1002", "female", "happy", "IEO"),
        "AudioWAV/1091_WSI_NEU_XX.wav": ("1091", "female", "neutral", "WSI"),
    },
    "savee": {
        "AudioData/DC/a01.wav": ("DC", "male", "angry", "01"),
        "AudioData/JK/sa15.wav": ("JK", "male", "sad", "15"),
        "AudioData/KL/su03.wav": ("KL", "male", "surprised", "03"),
        "AudioData/JE/n30.wav": ("JE", "male", "neutral", "30"),
        "ALL/JE_f02.wav": ("JE", "male", "fearful", "02"),
    },
    "tess": {
        "OAF_angry/OAF_back_angry.wav": ("OA", "female", "angry", "back"),
        "YAF_pleasant_surprised/YAF_dog_ps.wav": ("YA", "female", "surprised", "dog"),
        "OAF_neutral/OA_bite_neutral.wav": ("OA", "female", "neutral", "bite"),
        "YAF_fear/YAF_yes_fear.wav": ("YA", "female", "fearful", "yes"),
    },
    "emovo": {
        "f1/dis-f1-b1.wav": ("f1", "female", "disgust", "b1"),
        "m3/gio-m3-l4.wav": ("m3", "male", "happy", "l4"),
        "m1/pau-m1-n5.wav": ("m1", "male", "fearful", "n5"),
        "f2/rab-f2-d1.wav": ("f2", "female", "angry", "d1"),
    },
}
SPEAKERS = {
    "ravdess": {f"{i:02d}" for i in range(1, 25)},
    "emodb": {"03", *(f"{i:02d}" for i in range(8, 17))},
    "cremad": {str(i) for i in range(1001, 1092)},
    "savee": {"DC", "JE", "JK", "KL"},
    "tess": {"OA", "YA"},
    "emovo": {"f1", "f2", "f3", "m1", "m2", "m3"},
    "iemocap": {f"Ses0{i}" for i in range(1, 6)},
}


@pytest.fixture
def folder_of(data_folder):
    """Make ``SER_DATA/<name>`` with these (tiny) audio files."""

    def make(name, files=None):
        for file in NAMES[name] if files is None else files:
            write_audio(data_folder / name / file, np.zeros(160))
        return data_folder / name

    return make


@pytest.mark.parametrize("name", NAMES)
def test_release_names_become_labels(name, folder_of):
    root = folder_of(name)
    (root / "._03a01Fa.wav").write_bytes(b"a file manager's, no audio")
    table = corpora.index(name)
    assert list(table.columns) == list(corpora.LABEL_COLUMNS)
    assert table["utterance_id"].str.fullmatch(rf"{name}/[\w-]+").all()
    assert table["utterance_id"].is_monotonic_increasing and table["utterance_id"].is_unique
    assert (table["group"] == table["speaker"]).all()
    assert table.set_index("path")[FIELDS].apply(tuple, axis=1).to_dict() == {
        str(root / file): expected for file, expected in NAMES[name].items()
    }


def test_intensity_and_text_of_ravdess(folder_of):
    folder_of("ravdess")
    row = corpora.index("ravdess").set_index("utterance_id").loc["ravdess/03-01-05-02-01-02-07"]
    assert row["intensity"] == "strong" and row["text"] == "Kids are talking by the door"


@pytest.mark.parametrize("name", SPEAKERS)
def test_published_folds_name_each_speaker_once(name):
    named = [unit for units in corpora.get(name).folds.values() for unit in units]
    assert sorted(named) == sorted(SPEAKERS[name])


def test_folds_of_ravdess_are_emobox():
    folds = ["01 11 20 21", "04 10 12 14", "08 09 19 23", "03 05 07 24", "02 15 16 18"]
    folds = [*folds, "06 13 17 22"]
    expected = {fold: tuple(units.split()) for fold, units in enumerate(folds, start=1)}
    assert corpora.get("ravdess").folds == expected


LABEL_COUNTS = {  # published numbers of utterances
    ("ravdess-8", "ravdess"): 1440,
    ("basic-6", "ravdess"): 1056,
    ("ravdess-12", "ravdess"): 1440,
    ("emodb-7", "emodb"): 535,
    ("cremad-6", "cremad"): 7442,
    ("basic-6", "cremad"): 7442,
    ("savee-7", "savee"): 480,
    ("basic-6", "savee"): 420,
    ("tess-7", "tess"): 2800,
    ("basic-6", "tess"): 2400,
    ("emovo-7", "emovo"): 588,
    ("iemocap-4", "iemocap"): 5531,
    ("iemocap-4-unmerged", "iemocap"): 4490,
    ("iemocap-6", "iemocap"): 7380,
}


@pytest.mark.parametrize("corpus", corpora.CORPORA.values(), ids=corpora.CORPORA)
def test_records_agree_with_themselves(corpus):
    natives = set(corpus.counts) or set(corpora.EMOTIONS)
    for labels, mapping in corpus.label_sets.items():
        assert set(mapping) <= natives, labels
        emotions = {emotion.removeprefix("{sex}_") for emotion in mapping.values()}
        assert emotions <= set(corpora.EMOTIONS), labels
        if corpus.counts:
            assert sum(map(corpus.counts.get, mapping)) == LABEL_COUNTS[labels, corpus.name]
    if corpus.codes:
        assert set(corpus.codes["emotion"].values()) == set(corpus.counts)
    assert corpus.manual, "a user has to learn where to get it"
    assert not corpus.url or re.fullmatch(r"[0-9a-f]{32}", corpus.md5)


def test_emotions_are_declared_once():
    emotions = corpora.EMOTIONS
    groups = [
        " ".join(name for name in emotions if emotions[name].group == group)
        for group in ("satisfied", "unsatisfied")
    ]
    assert groups == ["neutral calm happy excited", "sad angry frustrated disgust"]
    quiet = [name for name in emotions if not emotions[name].aroused]
    assert quiet == ["neutral", "calm", "sad", "dislike", "bored"]
    assert len({emotion.colour for emotion in emotions.values()}) == len(emotions)
    order = corpora.emotion_order(["zen", "angry", "neutral", "awe", "angry"])
    assert order == ["neutral", "angry", "awe", "zen"]
    classes = ["male_sad", "female_sad", "male_calm", "zen", "sad"]
    assert corpora.emotion_order(classes) == ["male_calm", "female_sad", "male_sad", "sad", "zen"]


def test_label_sets_map_and_leave_out():
    table = pd.DataFrame({"emotion_native": ["happy", "excited", "undecided", "sad", "frustrated"]})

    def labelled(*given):
        return corpora.apply_labels(table, *given)["emotion"].tolist()

    assert labelled("demo") == ["happy", "happy", "sad"]
    assert labelled("demo", "iemocap-4-unmerged") == ["happy", "sad"]
    assert labelled("demo", "iemocap-6") == ["happy", "excited", "sad", "frustrated"]
    assert labelled("mine") == table["emotion_native"].tolist()
    assert corpora.get("mine").default_labels == "native"
    with pytest.raises(ValueError, match=r"label sets \['iemocap-4', .*not 'ravdess-8'"):
        labelled("demo", "ravdess-8")


def test_label_set_of_emotion_and_sex():
    natives = ["neutral", "calm", "angry", "disgust", "happy"]
    sexes = ["female", "male", "male", "female", "female"]
    table = pd.DataFrame({"emotion_native": natives, "sex": sexes})
    labelled = corpora.apply_labels(table, "ravdess", "ravdess-12")["emotion"]
    expected = "female_calm male_calm male_dislike female_dislike female_happy"
    assert labelled.tolist() == expected.split()
    unknown = table.assign(sex=["unknown", *sexes[1:]])
    with pytest.raises(ValueError, match=r"each speaker's sex; 1 of 5 .* have \['unknown'\]"):
        corpora.apply_labels(unknown, "ravdess", "ravdess-12")


@pytest.mark.filterwarnings("ignore:fold . trains on a single speaker")  # TESS has two
def test_union_keeps_ids_speakers_and_folds_of_its_members(folder_of):
    members = corpora.get("basic6").members
    folder_of(
        "ravdess", [f"03-01-0{e}-01-01-01-{s}.wav" for e in range(1, 9) for s in ("01", "02")]
    )
    folder_of("cremad", [f"{s}_IEO_{e}_XX.wav" for e in ("ANG", "SAD") for s in (1001, 1020, 1091)])
    folder_of("savee", [f"{s}/{e}01.wav" for e in ("a", "su") for s in ("DC", "JE", "JK", "KL")])
    folder_of("tess", [f"{s}F_back_{e}.wav" for e in ("fear", "ps") for s in ("OA", "YA")])
    table = corpora.index("basic6")
    assert table["utterance_id"].is_unique and len(table) == 16 + 6 + 8 + 4
    row = table.set_index("utterance_id").loc["basic6/cremad_1020_IEO_ANG_XX"]
    assert (row["speaker"], row["group"], row["sentence"], row["sex"]) == (
        "cremad_1020",
        "cremad_1020",
        "cremad_IEO",
        "female",
    )
    kept = corpora.apply_labels(table, "basic6")
    assert set(kept["emotion"]) == set(corpora.get("basic6").label_sets["basic-6"])
    tested = speakers_tested(kept, "basic6")
    for name in members:  # each speaker is tested in the fold in which the corpus alone tests it
        alone = corpora.apply_labels(corpora.index(name), name, "basic-6")
        for fold, speakers in speakers_tested(alone, name).items():
            mine = {s for s in tested[fold] if s.startswith(name)}
            assert mine == {f"{name}_{s}" for s in speakers}


def speakers_tested(table: pd.DataFrame, name: str) -> dict[int, set]:
    folds = splits.make_folds(table, corpora.get(name).folds)
    return folds[folds["role"] == "test"].groupby("fold")["speaker"].agg(set).to_dict()


def test_union_uses_those_that_are_there_and_names_the_others(folder_of, data_folder):
    with pytest.raises(
        FileNotFoundError,
        match=r"(?s)CREMA-D, RAVDESS, SAVEE and TESS together.*Actor_NN.*AudioData.*tess/OAF_angry",
    ) as told:
        corpora.locate("basic6")
    assert "holds basic6" not in str(told.value)
    with pytest.raises(ValueError, match="none of the 0 audio files"):
        corpora.index("basic6", data_folder)
    folder_of("tess", [f"OAF_angry/OAF_{word}_angry.wav" for word in ("back", "dog")])
    assert set(corpora.index("basic6")["speaker"]) == {"tess_OA"}
    with pytest.raises(ValueError, match=r"TESS: found 2 of 2800.*\n.*398 of 400 angry"):
        corpora.require_complete("basic6")
    state = corpora.require_complete("basic6", allow_incomplete=True)
    assert "together: tess of cremad, ravdess, savee, tess" in state and "going on" in state
    before = corpora.fingerprint("basic6")
    folder_of("tess", ["YAF_fear/YAF_yes_fear.wav"])
    assert corpora.fingerprint("basic6") != before


def test_available_corpora_are_those_that_are_there(folder_of):
    folder_of("emodb")
    folder_of("mine", ["joy/anna_1.wav"])
    assert corpora.available("ravdess") == ["emodb"]
    assert corpora.available("mine") == ["emodb", "mine"]
    assert corpora.available("demo") == ["demo"]


def test_wrong_root_shows_expected_tree_and_what_was_found(data_folder):
    with pytest.raises(
        FileNotFoundError,
        match=r"(?s)RAVDESS.*expected: .*Actor_NN/03-01.*no such folder.*SER_DATA",
    ):
        corpora.locate("ravdess")
    (data_folder / "ravdess/Audio_Song").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"found: \['Audio_Song'\]"):
        corpora.locate("ravdess")
    with pytest.raises(FileNotFoundError, match=r"known corpora: .*ravdess"):
        corpora.locate("radvess")
    with pytest.raises(ValueError, match="letters, digits"):
        corpora.locate("../ravdess")


def test_folder_of_strange_names_is_refused_with_examples(folder_of):
    root = folder_of("emodb", ["wav/hello.wav"])
    with pytest.raises(
        ValueError,
        match=r"none of the 1 audio files under .* fits wav/03a01Fa.wav, e.g. \['hello.wav'\]",
    ):
        corpora.index("emodb", root)


def test_incomplete_corpus_stops_unless_allowed(folder_of):
    files = [f"Actor_{actor:02d}/03-01-02-01-01-01-{actor:02d}.wav" for actor in range(1, 13)]
    folder_of("ravdess", [*files, *(f"Actor_01/notes {i}.wav" for i in range(11))])
    with pytest.raises(
        ValueError,
        match=r"(?s)found 12 of 1440 utterances in .*missing \(8\): 96 of 96 neutral, "
        r"180 of 192 calm.*unexpected \(11\): Actor_01/notes 0.wav.*….*ALLOW_INCOMPLETE = True",
    ):
        corpora.require_complete("ravdess")
    assert "going on with what is there" in corpora.require_complete(
        "ravdess", allow_incomplete=True
    )


def test_missing_is_counted(folder_of):
    folder_of("emodb")
    missing, unexpected, invalid = corpora.validate("emodb").values()
    assert {"126 of 127 angry", "79 of 79 neutral"} <= set(missing)
    assert not unexpected and not invalid


def test_complete_corpus_passes(folder_of):
    names = [f"{e}{i:02d}" for e in ("a", "d", "f", "h", "n", "sa", "su") for i in range(1, 16)]
    names += [f"n{i}" for i in range(16, 31)]
    speakers = corpora.get("savee").folds.values()
    folder_of("savee", [f"AudioData/{s}/{name}.wav" for (s,) in speakers for name in names])
    assert corpora.require_complete("savee").endswith(": complete")
    assert len(corpora.apply_labels(corpora.index("savee"), "savee")) == 480


def test_text_named_wav_is_invalid(folder_of):
    root = folder_of("emodb")
    (root / "wav/09a01Nb.wav").write_text("not audio")
    invalid = corpora.validate("emodb")["invalid"]
    assert len(invalid) == 1 and invalid[0].startswith("wav/09a01Nb.wav: ")


def test_duplicate_id_is_never_acceptable(folder_of):
    root = folder_of("emodb", ["one/03a01Fa.wav", "two/03a01Fa.wav", "wav/03a01Nc.wav"])
    write_audio(root / "two/03a01Fa.wav", np.ones(200) / 2)
    with pytest.raises(
        ValueError, match=r"(?s)invalid \(2\): emodb/03a01Fa occurs twice: .*must be mended"
    ):
        corpora.require_complete("emodb", allow_incomplete=True)


def test_a_clip_in_two_places_is_taken_once(folder_of):
    name = "03-01-05-01-02-01-07.wav"
    root = folder_of("ravdess", [f"Actor_07/{name}", f"audio_speech/Actor_07/{name}"])
    write_audio(root / "audio_speech/Actor_07" / name, np.ones(300) / 3)  # not even equal
    assert corpora.index("ravdess")["path"].tolist() == [str(root / "Actor_07" / name)]
    assert "a copy of one that is used" in corpora.require_complete("ravdess", True)
    nested = "TESS/TESS/OAF_angry/OAF_back_angry.wav", "TESS/OAF_angry/OAF_back_angry.wav"
    root = folder_of("tess", nested)  # equal, and none where the release has it
    assert corpora.index("tess")["path"].tolist() == [str(root / nested[1])]


def test_names_are_brought_to_one_form_and_near_doubles_told(folder_of):
    root = folder_of("mine", [f"{i}.wav" for i in range(8)])
    speakers = ["Jos\u00e9", "Jose\u0301", " Jos\u00e9 ", "anna", "Anna", "05", "5", "bob"]
    own_table(
        root,
        path=[f"{i}.wav" for i in range(8)],
        speaker=speakers,
        emotion=["happy", "happy ", "Happy", *["sad"] * 5],
        sex=["F", "Female", "f", "w", "W", "m", "Male", ""],
    )
    with pytest.warns(UserWarning) as told:
        table = corpora.index("mine")
    assert table["speaker"].tolist() == [*["Jos\u00e9"] * 3, "anna", "Anna", "05", "5", "bob"]
    assert table["sex"].tolist() == [*["female"] * 5, "male", "male", "unknown"]
    texts = " ".join(str(one.message) for one in told)
    assert "'Anna' and 'anna': one person?" in texts and "'05' and '5'" in texts
    assert "'Happy' and 'happy': one emotion?" in texts and "bob" not in texts
    own_table(root, path=["0.wav", "1.wav"], sex=["mostly", "F"])
    with pytest.raises(ValueError, match=r"sex is \['mostly'\]; expected one of female, f"):
        corpora.index("mine")


CSV = "path,speaker,emotion\na/b.wav,ann\u00e9,happy\n"


@pytest.mark.parametrize(
    "content",
    [
        CSV.encode("utf-8-sig"),
        CSV.encode("utf-16"),
        CSV.replace(",", ";").encode(),
        CSV.replace(",", "\t").replace("\n", "\r\n").encode(),
        CSV.replace("path,", " Path ,").encode(),
    ],
    ids=["BOM", "UTF-16", "semicolons", "tabs and CRLF", "a heading with spaces"],
)
def test_tables_of_spreadsheets_are_read(folder_of, content):
    root = folder_of("mine", ["a/b.wav"])
    (root / "utterances.csv").write_bytes(content)
    row = corpora.index("mine").iloc[0]
    assert (row["speaker"], row["emotion_native"]) == ("ann\u00e9", "happy")


@pytest.mark.parametrize(
    "content",
    [CSV.encode("cp1252"), b"", b"path,speaker,emotion\na/b.wav,anne,happy,or, so\nx,y,z\n"],
    ids=["cp1252", "empty", "an unquoted comma"],
)
def test_tables_that_are_not_clear_are_refused_with_their_name(folder_of, content):
    root = folder_of("mine", ["a/b.wav"])
    (root / "utterances.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"utterances\.csv can't be read as a table .*CSV UTF-8"):
        corpora.index("mine")


def test_parts_of_recordings_and_groups_of_an_own_table(folder_of):
    root = folder_of("mine", ["talk.wav"])
    given = {"start_s": ["0", "1.5"], "end_s": ["1.5", "2"], "group": ["one", ""]}
    own_table(root, path=["talk.wav"] * 2, **given)
    table = corpora.index("mine")
    assert table["utterance_id"].tolist() == ["mine/talk_0", "mine/talk_1.5"]
    assert table["end_s"].tolist() == [1.5, 2.0]
    assert table["group"].tolist() == ["one", table["speaker"][1]]


def test_own_folder(folder_of):
    names = ["Joie été/anna b_01.wav", "Joie été/per_01.flac", "colère/per_01.wav"]
    folder_of("mes_données", [*names, "colère/nospeaker.wav"])
    table = corpora.index("mes_données")
    assert table["speaker"].tolist() == ["anna b", "per", "per"]
    assert table["emotion_native"].tolist() == ["joie été", "joie été", "colère"]
    assert table["utterance_id"].is_unique and set(table["sex"]) == {"unknown"}
    assert corpora.validate("mes_données")["unexpected"] == ["colère/nospeaker.wav"]
    with pytest.raises(ValueError, match=r"colère/nospeaker\.wav"):
        corpora.require_complete("mes_données")


def own_table(root, **columns):
    table = pd.DataFrame(
        {"path": ["a é/x.wav", "y.wav"], "speaker": ["anna", "per"], "emotion": ["happy", "sad"]}
        | columns
    )
    table.to_csv(root / "utterances.csv", index=False)


def test_own_table(folder_of):
    root = folder_of("mine", ["a é/x.wav", "y.wav"])
    own_table(root, text=["Hallå", ""], sex=["female", ""])
    table = corpora.index("mine")
    assert table["emotion_native"].tolist() == ["happy", "sad"]
    assert table["text"].tolist() == ["Hallå", ""]
    assert table["path"].tolist() == [str(root / "a é/x.wav"), str(root / "y.wav")]
    assert table["sex"].tolist() == ["female", "unknown"]
    assert not any(corpora.validate("mine").values())


def test_own_table_with_faults_says_which(folder_of):
    root = folder_of("mine", ["a é/x.wav", "y.wav"])
    own_table(root, speaker=["anna", " "])
    with pytest.raises(ValueError, match=r"\['speaker'\] is missing or has empty cells"):
        corpora.index("mine")
    own_table(root, path=["a é/x.wav", "gone.wav"])
    with pytest.raises(ValueError, match=r"names 1 of 2 files that are not under .*gone.wav"):
        corpora.index("mine")
    (root / "utterances.csv").write_text("path,emotion\ny.wav,sad\n")
    with pytest.raises(ValueError, match=r"\['speaker'\] is missing"):
        corpora.index("mine")


def test_own_table_whose_paths_become_one_id_is_refused(folder_of):
    root = folder_of("mine", ["a/b.wav", "a_b.wav"])
    write_audio(root / "a_b.wav", np.ones(200) / 2)
    own_table(root, path=["a/b.wav", "a_b.wav"])
    with pytest.raises(ValueError, match="occurs twice"):
        corpora.require_complete("mine", allow_incomplete=True)


def test_fingerprint_notices_changes_and_nothing_else(folder_of):
    root = folder_of("emodb")
    first = corpora.fingerprint("emodb")
    assert corpora.fingerprint("emodb") == first
    write_audio(root / "wav/03a01Fa.wav", np.ones(200) / 2)
    changed = corpora.fingerprint("emodb")
    (root / "wav/16b10Wb.flac").unlink()
    assert len({first, changed, corpora.fingerprint("emodb")}) == 3


@pytest.fixture
def served(tmp_path):
    """A small zip of RAVDESS on a local web server, and its record."""
    pages = tmp_path / "www"
    for name in NAMES["ravdess"]:
        write_audio(pages / "x" / name, np.zeros(160))
    archive = shutil.make_archive(str(pages / "a"), "zip", pages / "x")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=pages)
    )
    threading.Thread(
        target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.05}
    ).start()
    record = dataclasses.replace(
        corpora.get("ravdess"),
        url=f"http://127.0.0.1:{server.server_port}/a.zip",
        md5=hashlib.md5(Path(archive).read_bytes()).hexdigest(),
    )
    yield record, pages / "a.zip"
    server.shutdown()
    server.server_close()


def test_download_unpacks_and_tidies_up(served, data_folder, monkeypatch, capsys):
    monkeypatch.setitem(corpora.CORPORA, "ravdess", served[0])
    (data_folder / "ravdess").mkdir()
    found = []
    for _ in range(2):
        root = corpora.locate("ravdess", download=True)
        assert root == data_folder / "ravdess" and len(corpora.index("ravdess")) == 3
        assert "RAVDESS: downloading" in capsys.readouterr().out
        assert [p.name for p in data_folder.iterdir()] == ["ravdess"]
        found.append(corpora.fingerprint("ravdess"))
        shutil.rmtree(root)
    assert found[0] == found[1], "a second download is the same"


def test_download_with_wrong_checksum_leaves_nothing(served, data_folder):
    with pytest.raises(ValueError, match="hash"):
        corpora.download_release(
            dataclasses.replace(served[0], md5="0" * 32), data_folder / "ravdess"
        )
    assert list(data_folder.iterdir()) == []


@pytest.mark.parametrize(
    "fault", [zipfile.BadZipFile("cut short"), KeyboardInterrupt(), OSError(28, "No space left")]
)
def test_download_stopped_while_unpacking_leaves_no_half_folder(
    served, data_folder, monkeypatch, fault
):
    unpack = zipfile.ZipFile.extractall

    def half(self, path):
        self.extract(self.namelist()[0], path)
        raise fault

    monkeypatch.setattr(zipfile.ZipFile, "extractall", half)
    with pytest.raises(type(fault)):
        corpora.download_release(served[0], data_folder / "ravdess")
    assert not (data_folder / "ravdess").exists() and not list(data_folder.glob(".ravdess*"))
    monkeypatch.setattr(zipfile.ZipFile, "extractall", unpack)
    assert (
        len(list(corpora.download_release(served[0], data_folder / "ravdess").rglob("*.*"))) == 3
    ), "started again, it continues"


@pytest.mark.corpus
def test_real_ravdess_is_complete(ravdess_root):
    assert not any(corpora.validate("ravdess", ravdess_root).values())
    table = corpora.index("ravdess", ravdess_root)
    assert len(table) == 1440 and table["speaker"].nunique() == 24
    assert table["emotion_native"].value_counts().to_dict() == corpora.get("ravdess").counts
    assert len(corpora.apply_labels(table, "ravdess")) == 1440


@pytest.mark.corpus
def test_real_ravdess_has_a_recording_twice(ravdess_root):
    table = corpora.index("ravdess", ravdess_root)
    actor = table[table["speaker"] == "07"].reset_index(drop=True)
    quality = audio.measure_all(actor, n_jobs=1).set_index(actor["utterance_id"])["quality"]
    doubled = quality[quality.str.contains("same audio as")]
    assert doubled.to_dict() == {
        "ravdess/03-01-03-01-02-01-07": "same audio as ravdess/03-01-03-01-02-02-07",
        "ravdess/03-01-03-01-02-02-07": "same audio as ravdess/03-01-03-01-02-01-07",
    }


def test_a_label_of_an_own_folder_is_taken_as_it_is():
    utterances = make_utterances(2).assign(emotion_native="_joy{sex}, 100%", sex="unknown")
    kept = corpora.apply_labels(utterances, "mine")
    assert set(kept["emotion"]) == {"_joy{sex}, 100%"}
