"""Corpora: file names become labels, and what is missing, unexpected or invalid is said with counts."""

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
from conftest import write_audio

from helpers import audio, corpora

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
    table = corpora.index(name).set_index("path")[FIELDS]
    assert {path: tuple(row) for path, row in zip(table.index, table.to_numpy(), strict=True)} == {
        str(root / file): expected for file, expected in NAMES[name].items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_corpus_and_stem(name, folder_of):
    folder_of(name)
    table = corpora.index(name)
    assert (
        list(table.columns) == corpora.LABEL_COLUMNS
        and table["utterance_id"].is_monotonic_increasing
    )
    assert (
        table["utterance_id"].is_unique
        and table["utterance_id"].str.fullmatch(rf"{name}/[\w-]+").all()
    )
    assert (table["group"] == table["speaker"]).all()


def test_intensity_and_text_of_ravdess(folder_of):
    folder_of("ravdess")
    row = corpora.index("ravdess").set_index("utterance_id").loc["ravdess/03-01-05-02-01-02-07"]
    assert row["intensity"] == "strong" and row["text"] == "Kids are talking by the door"


@pytest.mark.parametrize("name", SPEAKERS)
def test_published_folds_name_each_speaker_once(name):
    named = [unit for units in corpora.get(name).folds.values() for unit in units]
    assert sorted(named) == sorted(SPEAKERS[name])
    assert corpora.get(name).n_speakers == (10 if name == "iemocap" else len(named))


def test_folds_of_ravdess_are_emobox():
    assert {fold: " ".join(units) for fold, units in corpora.get("ravdess").folds.items()} == {
        1: "01 11 20 21",
        2: "04 10 12 14",
        3: "08 09 19 23",
        4: "03 05 07 24",
        5: "02 15 16 18",
        6: "06 13 17 22",
    }


@pytest.mark.parametrize("corpus", corpora.CORPORA.values(), ids=corpora.CORPORA)
def test_records_agree_with_themselves(corpus):
    natives = set(corpus.counts) or set(corpora.EMOTIONS)
    for policy, mapping in corpus.policies.items():
        assert set(mapping) <= natives, policy
        assert {emotion.removeprefix("{sex}_") for emotion in mapping.values()} <= set(
            corpora.EMOTIONS
        ), policy
        if corpus.policy_counts:
            assert (
                sum(corpus.counts[native] for native in mapping) == corpus.policy_counts[policy]
            ), policy
    if corpus.labels:
        assert set(corpus.labels.values()) == set(corpus.counts)
    assert len(corpus.stems) in (0, sum(corpus.counts.values())) and len(set(corpus.stems)) == len(
        corpus.stems
    )
    assert all(re.fullmatch(corpus.pattern, stem) for stem in corpus.stems)
    assert corpus.url or corpus.manual, "a user has to learn where to get it"
    assert not corpus.url or re.fullmatch(r"[0-9a-f]{32}", corpus.md5)


def test_cremad_has_43_women_and_48_men():
    sexes = [corpora.get("cremad").sexes(speaker) for speaker in SPEAKERS["cremad"]]
    assert sexes.count("female") == 43 and sexes.count("male") == 48


def test_policies_map_and_leave_out():
    table = pd.DataFrame({"emotion_native": ["happy", "excited", "undecided", "sad", "frustrated"]})
    assert corpora.apply_policy(table, "demo")["emotion"].tolist() == ["happy", "happy", "sad"]
    assert corpora.apply_policy(table, "demo", "iemocap-4-unmerged")["emotion"].tolist() == [
        "happy",
        "sad",
    ]
    assert corpora.apply_policy(table, "demo", "iemocap-6")["emotion"].tolist() == [
        "happy",
        "excited",
        "sad",
        "frustrated",
    ]
    assert (
        corpora.apply_policy(table, "mine")["emotion"].tolist() == table["emotion_native"].tolist()
    )
    with pytest.raises(ValueError, match=r"label policies \['iemocap-4', .*not 'ravdess-8'"):
        corpora.apply_policy(table, "demo", "ravdess-8")


def test_policy_of_emotion_and_sex():
    table = pd.DataFrame(
        {
            "emotion_native": ["neutral", "calm", "angry", "disgust", "happy"],
            "sex": ["female", "male", "male", "female", "female"],
        }
    )
    assert corpora.apply_policy(table, "ravdess", "ravdess-12")["emotion"].tolist() == [
        "female_calm",
        "male_calm",
        "male_dislike",
        "female_dislike",
        "female_happy",
    ]
    with pytest.raises(
        ValueError,
        match=r"ravdess-12 needs each speaker's sex; 1 of 5 utterances have \['unknown'\]",
    ):
        corpora.apply_policy(
            table.assign(sex=["unknown", *table["sex"][1:]]), "ravdess", "ravdess-12"
        )
    assert corpora.emotion_order(["male_sad", "female_sad", "male_calm", "zen", "sad"]) == [
        "male_calm",
        "female_sad",
        "male_sad",
        "sad",
        "zen",
    ]


@pytest.fixture
def basic6(folder_of):
    """The four members of the union, each with three speakers of its own (TESS has two), and every emotion once."""
    codes = {
        name: {emotion: code for code, emotion in corpora.get(name).labels.items()}
        for name in corpora.get("basic6").members
    }
    six = ("neutral", "happy", "sad", "angry", "fearful", "disgust")
    names = {
        "ravdess": (
            "Actor_{s}/03-01-{c}-01-01-01-{s}.wav",
            ("01", "02", "03"),
            (*six, "calm", "surprised"),
        ),
        "cremad": ("AudioWAV/{s}_IEO_{c}_XX.wav", ("1001", "1020", "1091"), six),
        "savee": ("AudioData/{s}/{c}01.wav", ("DC", "JE", "JK", "KL"), (*six, "surprised")),
        "tess": ("{s}F_{e}/{s}F_back_{c}.wav", ("OA", "YA"), (*six, "surprised")),
    }
    for name, (pattern, speakers, emotions) in names.items():
        folder_of(
            name, [pattern.format(s=s, e=e, c=codes[name][e]) for s in speakers for e in emotions]
        )


@pytest.mark.filterwarnings("ignore:fold . trains on a single speaker")  # TESS has two
def test_union_keeps_ids_speakers_and_folds_of_its_members(basic6):
    from helpers.splits import make_folds

    table = corpora.index("basic6")
    assert table["utterance_id"].is_unique and len(table) == 3 * 8 + 3 * 6 + 4 * 7 + 2 * 7
    row = table.set_index("utterance_id").loc["basic6/cremad_1020_IEO_ANG_XX"]
    assert (row["speaker"], row["group"], row["sentence"], row["sex"]) == (
        "cremad_1020",
        "cremad_1020",
        "cremad_IEO",
        "female",
    )
    kept = corpora.apply_policy(table, "basic6")
    assert (
        set(kept["emotion"]) == set(corpora.get("basic6").policies["basic-6"])
        and kept["speaker"].nunique() == 12
    )
    folds = make_folds(kept, corpora.get("basic6").folds)
    tested = {
        fold: set(rows["speaker"]) for fold, rows in folds[folds["role"] == "test"].groupby("fold")
    }
    for name in corpora.get(
        "basic6"
    ).members:  # each speaker is tested where the corpus alone would test it
        alone = corpora.apply_policy(corpora.index(name), name, "basic-6")
        own = make_folds(alone, corpora.get(name).folds)
        for fold, rows in own[own["role"] == "test"].groupby("fold"):
            assert {f"{name}_{s}" for s in rows["speaker"]} == {
                s for s in tested[fold] if s.startswith(name)
            }
    assert not set(folds.query("fold == 1 and role == 'train'")["speaker"]) & tested[1]


def test_union_goes_on_with_what_is_there_and_says_so(folder_of):
    folder_of("tess", [f"OAF_angry/OAF_{word}_angry.wav" for word in ("back", "dog")])
    assert set(corpora.index("basic6")["speaker"]) == {"tess_OA"}
    with pytest.raises(
        ValueError,
        match=r"(?s)of TESS \(CREMA-D, RAVDESS, SAVEE not there\).*tess: 398 of 400 angry",
    ):
        corpora.require_complete("basic6")
    assert "going on" in corpora.require_complete("basic6", allow_incomplete=True)
    before = corpora.fingerprint("basic6")
    folder_of("tess", ["YAF_fear/YAF_yes_fear.wav"])
    assert corpora.fingerprint("basic6") != before


def test_union_without_any_member_names_them(data_folder):
    with pytest.raises(
        FileNotFoundError,
        match=r"(?s)CREMA-D, RAVDESS, SAVEE and TESS together.*Actor_NN.*AudioData",
    ) as told:
        corpora.locate("basic6")
    assert f"{data_folder}/tess/OAF_angry" in str(told.value) and "holds basic6" not in str(
        told.value
    )
    with pytest.raises(ValueError, match="none of the 0 audio files"):
        corpora.index("basic6", data_folder)


def test_emotions_have_one_order():
    assert corpora.emotion_order(["zen", "angry", "neutral", "awe", "angry"]) == [
        "neutral",
        "angry",
        "awe",
        "zen",
    ]


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
    folder_of(
        "ravdess",
        [f"Actor_01/{stem}.wav" for stem in corpora.get("ravdess").stems[:50]]
        + ["Actor_01/notes 2.wav"],
    )
    with pytest.raises(
        ValueError,
        match=r"(?s)found 50 of 1440 utterances in .*missing \(1390\): 03-01.*…"
        r".*unexpected \(1\): Actor_01/notes 2.wav.*ALLOW_INCOMPLETE = True",
    ):
        corpora.require_complete("ravdess")
    assert "going on with what is there" in corpora.require_complete(
        "ravdess", allow_incomplete=True
    )


def test_missing_is_counted_where_no_rule_names_files(folder_of):
    folder_of("emodb")
    missing, unexpected, invalid = corpora.validate("emodb")
    assert (
        "126 of 127 angry" in missing
        and "79 of 79 neutral" in missing
        and not unexpected
        and not invalid
    )


def test_complete_corpus_passes(folder_of):
    folder_of(
        "savee", [f"AudioData/{stem[:2]}/{stem[3:]}.wav" for stem in corpora.get("savee").stems]
    )
    assert corpora.require_complete("savee").endswith(": complete")
    assert len(corpora.apply_policy(corpora.index("savee"), "savee")) == 480


def test_text_named_wav_is_invalid(folder_of):
    root = folder_of("emodb")
    (root / "wav/09a01Nb.wav").write_text("not audio")
    invalid = corpora.validate("emodb")[2]
    assert len(invalid) == 1 and invalid[0].startswith("wav/09a01Nb.wav: ")


def test_duplicate_id_is_never_acceptable(folder_of):
    folder_of("emodb", ["wav/03a01Fa.wav", "copy/03a01Fa.flac", "wav/03a01Nc.wav"])
    with pytest.raises(
        ValueError, match=r"(?s)invalid \(2\): emodb/03a01Fa occurs twice: .*must be mended"
    ):
        corpora.require_complete("emodb", allow_incomplete=True)


def test_stray_copies_of_file_managers_are_no_audio(folder_of):
    root = folder_of("emodb")
    (root / "wav/._03a01Fa.wav").write_bytes(b"Mac OS X")
    assert len(corpora.index("emodb")) == len(NAMES["emodb"]) and corpora.validate("emodb")[1:] == (
        [],
        [],
    )


def test_own_folder(folder_of):
    folder_of(
        "mes_données",
        [
            "Joie été/anna b_01.wav",
            "Joie été/per_01.flac",
            "colère/per_01.wav",
            "colère/nospeaker.wav",
        ],
    )
    table = corpora.index("mes_données")
    assert table["speaker"].tolist() == ["anna b", "per", "per"]
    assert table["emotion_native"].tolist() == ["joie été", "joie été", "colère"]
    assert table["utterance_id"].is_unique and set(table["sex"]) == {"unknown"}
    assert corpora.validate("mes_données")[1] == ["colère/nospeaker.wav"]
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
    own_table(root, text=["Hallå", ""], sex=["female", "male"])
    table = corpora.index("mine")
    assert table["emotion_native"].tolist() == ["happy", "sad"] and table["text"].tolist() == [
        "Hallå",
        "",
    ]
    assert table["path"].tolist() == [str(root / "a é/x.wav"), str(root / "y.wav")]
    assert table["sex"].tolist() == ["female", "male"] and corpora.validate("mine") == ([], [], [])


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
    for stem in corpora.get("ravdess").stems[:3]:
        write_audio(pages / "x/Actor_01" / f"{stem}.wav", np.zeros(160))
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


def test_download_unpacks_says_the_size_and_tidies_up(served, data_folder, monkeypatch, capsys):
    monkeypatch.setitem(corpora.CORPORA, "ravdess", served[0])
    root = corpora.locate("ravdess", download=True)
    assert root == data_folder / "ravdess" and len(corpora.index("ravdess")) == 3
    assert "downloading 208 MB" in capsys.readouterr().out
    assert [p.name for p in data_folder.iterdir()] == ["ravdess"]


def test_second_download_is_the_same_to_its_fingerprint(served, data_folder, monkeypatch):
    monkeypatch.setitem(corpora.CORPORA, "ravdess", served[0])
    found = []
    for _ in range(2):
        root = corpora.locate("ravdess", download=True)
        found.append(corpora.fingerprint("ravdess"))
        shutil.rmtree(root)
    assert found[0] == found[1]


def test_download_with_wrong_checksum_leaves_nothing(served, data_folder):
    with pytest.raises(ValueError, match="hash"):
        corpora.fetch(dataclasses.replace(served[0], md5="0" * 32), data_folder / "ravdess")
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
        corpora.fetch(served[0], data_folder / "ravdess")
    assert not (data_folder / "ravdess").exists() and not list(data_folder.glob(".ravdess*"))
    monkeypatch.setattr(zipfile.ZipFile, "extractall", unpack)
    assert len(list(corpora.fetch(served[0], data_folder / "ravdess").rglob("*.wav"))) == 3, (
        "started again, it continues"
    )


def test_archive_that_is_no_zip_leaves_no_half_folder(served, data_folder):
    record, archive = served
    archive.write_bytes(b"an error page")
    with pytest.raises(zipfile.BadZipFile):
        corpora.fetch(
            dataclasses.replace(record, md5=hashlib.md5(b"an error page").hexdigest()),
            data_folder / "ravdess",
        )
    assert not (data_folder / "ravdess").exists() and not list(data_folder.glob(".ravdess*"))


def test_empty_folder_does_not_keep_the_download_from_happening(served, data_folder, monkeypatch):
    monkeypatch.setitem(corpora.CORPORA, "ravdess", served[0])
    (data_folder / "ravdess").mkdir()
    assert corpora.locate("ravdess", download=True) == data_folder / "ravdess"


@pytest.mark.corpus
def test_real_ravdess_is_complete(ravdess_root):
    assert corpora.validate("ravdess", ravdess_root) == ([], [], [])
    table = corpora.index("ravdess", ravdess_root)
    assert len(table) == 1440 and table["speaker"].nunique() == 24
    assert table["emotion_native"].value_counts().to_dict() == corpora.get("ravdess").counts
    assert len(corpora.apply_policy(table, "ravdess")) == 1440


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


@pytest.mark.corpus
def test_real_emodb_at_hand_is_incomplete_or_complete_and_says_so(emodb_root):
    found = len(corpora.index("emodb", emodb_root))
    if found == 535:
        assert corpora.require_complete("emodb").endswith(": complete")
    else:
        with pytest.raises(ValueError, match=rf"found {found} of 535 utterances"):
            corpora.require_complete("emodb")
        assert "going on" in corpora.require_complete("emodb", allow_incomplete=True)
