"""Speech corpora: what each one is, and how its file names become labelled rows.

Every corpus is one frozen :class:`Corpus` record, so adding a corpus means adding a record. A name
without a record is a user's own folder of audio (see :func:`read_folder`).
"""

import filecmp
import hashlib
import io
import os
import re
import tempfile
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import soundfile

from helpers import audio, iemocap, paths


@dataclass(frozen=True)
class Emotion:
    """What figures and summaries need to know of an emotion.

    Attributes
    ----------
    aroused
        Whether arousal is high.
    group
        In summaries of calls: "satisfied", "unsatisfied", or empty for neither.
    """

    colour: str
    aroused: bool = False
    group: str = ""


# Name → emotion, in the order of every table and figure; other names follow alphabetically.
EMOTIONS = {
    "neutral": Emotion("#8c8c8c", group="satisfied"),
    "calm": Emotion("#7fb8ad", group="satisfied"),
    "happy": Emotion("#f2b134", aroused=True, group="satisfied"),
    "excited": Emotion("#f78d3f", aroused=True, group="satisfied"),
    "sad": Emotion("#3b6ea5", group="unsatisfied"),
    "angry": Emotion("#c8373f", aroused=True, group="unsatisfied"),
    "frustrated": Emotion("#8a4b38", aroused=True, group="unsatisfied"),
    "fearful": Emotion("#7b52ab", aroused=True),
    "disgust": Emotion("#5c8a3a", aroused=True, group="unsatisfied"),
    "dislike": Emotion("#94603a"),
    "surprised": Emotion("#e377c2", aroused=True),
    "bored": Emotion("#4fa3c7"),
}
SEXES = {
    "female": "female",
    "f": "female",
    "w": "female",
    "woman": "female",
    "male": "male",
    "m": "male",
    "man": "male",
    "": "unknown",
    "unknown": "unknown",
}
# Column of the index → its value where nothing is known
LABEL_COLUMNS = {
    "utterance_id": "",
    "path": "",
    "start_s": float("nan"),
    "end_s": float("nan"),
    "speaker": "",
    "sex": "unknown",
    "group": "",
    "sentence": "",
    "text": "",
    "dialogue": "",
    "turn": float("nan"),
    "emotion_native": "",
    "intensity": "",
    "valence": float("nan"),
    "arousal": float("nan"),
    "dominance": float("nan"),
    "votes": "",
}


@dataclass(frozen=True)
class Corpus:
    """What is known of a corpus before its audio is opened.

    Attributes
    ----------
    tree
        How files lie under the root folder: one example.
    pattern
        Regular expression of a file's name without suffix; groups ``speaker``, ``emotion`` and
        optionally ``sentence``, ``intensity``. Empty for corpora that have a reader.
    codes
        Group of the pattern → {code in the file name: meaning}. ``emotion`` has the native
        emotions, ``intensity`` their strength, ``sentence`` what is said.
    label_sets
        Name → {native emotion: emotion}; utterances of other native emotions are left out. The
        first label set is the default. Where one emotion begins with ``{sex}``, all do: the
        speaker's sex takes its place.
    counts
        Native emotion → number of utterances of the complete release.
    folds
        Fold → speakers (or groups of speakers) to test, where folds were published.
    sexes
        Function that returns a speaker's sex.
    url, md5
        The release as one zip archive, where there is one.
    manual
        How to get the corpus.
    reader
        Function that returns the table of utterances under a root folder.
    members
        Corpora that this one is a union of; those that are not there are left out. Speakers and
        folds stay as they are, and their names begin with the member's.
    """

    name: str
    title: str
    citation: str = ""
    licence: str = ""
    tree: str = ""
    pattern: str = ""
    codes: dict = field(default_factory=dict)
    label_sets: dict = field(default_factory=dict)
    counts: dict = field(default_factory=dict)
    folds: dict = field(default_factory=dict)
    sexes: Callable[[str], str] = lambda speaker: "unknown"
    url: str = ""
    md5: str = ""
    manual: str = ""
    reader: Callable[[Path], pd.DataFrame] | None = None
    members: tuple[str, ...] = ()
    synthetic: bool = False

    @property
    def default_labels(self) -> str:
        """Name of the default label set; "native" for a folder of your own."""
        return next(iter(self.label_sets), "native")


def get(name: str) -> Corpus:
    """Return the record of a corpus; any other name is a user's own folder ``SER_DATA/<name>``."""
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(
            f"corpus name {name!r}: use letters, digits, '-' and '_' (it names folders)"
        )
    return CORPORA.get(name) or Corpus(
        name,
        f"{name} (your own files)",
        licence="yours",
        tree="<emotion>/<speaker>_anything.wav, or a table utterances.csv: "
        "path,speaker,emotion[,sex,sentence,text]",
        manual="It is your own folder.",
        reader=read_folder,
    )


def locate(name: str, download: bool = False) -> Path:
    """Return the root folder of a corpus; download it if that is possible and wanted.

    Raises
    ------
    FileNotFoundError
        If it is not there; the message shows the expected tree, what was found, and where to get
        the corpus.
    """
    corpus, root = get(name), paths.data() / name
    if corpus.synthetic or corpus.members:
        root = paths.PROJECT / "data/demo" if corpus.synthetic else paths.data()
    if any(map(_is_there, corpus.members) if corpus.members else audio.files_below(root)):
        return root
    if download and corpus.url and not (root.exists() and any(root.iterdir())):
        return download_release(corpus, root)
    found = sorted(os.listdir(root))[:10] if root.is_dir() else "no such folder"
    raise FileNotFoundError(
        f"{corpus.title}: no audio under {root}\n  expected: {root}/{corpus.tree}\n"
        f"  found: {found or 'an empty folder'}{left_out(root)}\n  get it: {corpus.manual}\n"
        "  then set SER_DATA to "
        f"the folder that holds {' or '.join(corpus.members) or name}/"
        + ("" if name in CORPORA else f"\n  known corpora: {', '.join(CORPORA)}")
    )


def left_out(root: Path, used: Iterable[Path] = ()) -> str:
    """Say which files below a folder are not taken, and why; an empty string if there are none."""
    taken, reasons = {path.stem for path in used}, {}
    for path, why in audio.scan(root):
        if not why and path.stem in taken and path not in used:
            why = "a copy of one that is used"
        reasons.setdefault(why, []).append(audio.shown(path, root))
    return "".join(
        f"\n  not taken ({len(names)}): {why}, e.g. {names[0]}"
        for why, names in reasons.items()
        if why
    )


def download_release(corpus: Corpus, root: Path) -> Path:
    """Download and unpack a corpus.

    The checksum is compared first. The archive is unpacked next to the root and then renamed, so
    there is never half a corpus; it is kept until then, so an interrupted run does not download it
    twice.
    """
    import pooch  # here, since its progress bar warns where a notebook has no widgets

    print(f"{corpus.title}: downloading to {root.parent} ({corpus.licence})")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{corpus.name}.") as place:
        files = pooch.retrieve(
            corpus.url,
            known_hash=f"md5:{corpus.md5}",
            path=root.parent,
            fname=f"{corpus.name}.zip",
            processor=pooch.Unzip(extract_dir=Path(place, corpus.name)),
            progressbar=True,
        )
        for file in files:
            os.utime(file, (10**9, 10**9))  # fingerprint is the same after a second download
        Path(place, corpus.name).rename(root)  # which does not exist or is empty
    root.with_suffix(".zip").unlink()
    return root


def available(name: str) -> list[str]:
    """Return the known corpora under ``SER_DATA`` and the one called `name`, if it is there.

    A synthetic corpus is returned alone.
    """
    candidates = filter(_is_there, dict.fromkeys([*CORPORA, name]))
    return [name] if get(name).synthetic else list(candidates)


def index(name: str, root: Path | None = None) -> pd.DataFrame:
    """List a corpus's utterances with their labels, without opening the audio.

    Returns
    -------
    pd.DataFrame
        ``LABEL_COLUMNS``, sorted by ``utterance_id``. Files whose names do not fit are left out:
        see :func:`validate`.

    Raises
    ------
    FileNotFoundError, ValueError
        If the root is wrong, or no file under it fits.
    """
    corpus, root = get(name), root or locate(name)
    table = corpus.reader(root) if corpus.reader else _read_named_files(corpus, root)
    if table.empty:
        files = [path.name for path in sorted(audio.files_below(root))]
        raise ValueError(
            f"{corpus.title}: none of the {len(files)} audio files under {root} fits "
            f"{corpus.tree}, e.g. {files[:3]}"
        )
    columns = {**LABEL_COLUMNS, **table, "utterance_id": name + "/" + table["utterance_id"]}
    table = _normalised(pd.DataFrame(columns)[list(LABEL_COLUMNS)])
    return table[_taken_once(corpus, root, table)].sort_values("utterance_id", ignore_index=True)


def plain_text(value: object) -> str:
    """Return text in one form: Unicode NFC, no space around it."""
    return unicodedata.normalize("NFC", str(value)).strip()


def near_doubles(values: Iterable[str]) -> list[list[str]]:
    """Return groups of names that differ in letter case, accents, signs or leading zeros alone."""
    names = pd.Series(sorted(set(map(str, values))), dtype=str)
    plain = (
        names.str.casefold().str.normalize("NFKD").str.replace(r"(?<!\d)0+(?=\d)", "", regex=True)
    )
    groups = names.groupby(plain.str.replace(r"[\W_]", "", regex=True)).agg(list)
    return [group for group in groups if len(group) > 1]


def _normalised(table: pd.DataFrame) -> pd.DataFrame:
    """Bring names to one form (Unicode NFC, no space around them), and tell near-doubles."""
    texts = [name for name, of in LABEL_COLUMNS.items() if isinstance(of, str) and name != "path"]
    table[texts] = table[texts].map(plain_text)
    sex = table["sex"].str.lower().map(SEXES)
    if len(strange := table.loc[sex.isna(), "sex"]):
        raise ValueError(f"sex is {sorted(set(strange))[:5]}; expected one of {', '.join(SEXES)}")
    for column, what in {"speaker": "person", "emotion_native": "emotion"}.items():
        for group in near_doubles(table[column]):
            warnings.warn(
                f"{column} {' and '.join(map(repr, group))}: one {what}? They count as several.",
                stacklevel=3,
            )
    return table.assign(sex=sex)


def _taken_once(corpus: Corpus, root: Path, table: pd.DataFrame) -> pd.Series:
    """Choose one of the files of a clip that lies in two places: in the documented one, or equal.

    Others stay, so that their id occurs twice, which is a fault.
    """
    tree, once = Path(corpus.tree), pd.Series(True, table.index)
    twice = table["utterance_id"].duplicated(keep=False) & (table["path"] != "")
    for _, rows in table[twice].groupby("utterance_id"):
        files = {i: Path(path).relative_to(root) for i, path in rows["path"].items()}
        place = {i: (len(file.parts), file.suffix.lower()) for i, file in files.items()}
        right = [i for i in files if place[i] == (len(tree.parts), tree.suffix)]
        first = min(files, key=lambda i: (place[i], str(files[i])))
        equal = [filecmp.cmp(root / files[first], root / file, False) for file in files.values()]
        if len(right) == 1 or all(equal):
            once[rows.index.drop(right[0] if len(right) == 1 else first)] = False
    return once


def validate(
    name: str, root: Path | None = None, table: pd.DataFrame | None = None
) -> dict[str, list[str]]:
    """Compare the files of a corpus with its release.

    Returns
    -------
    dict
        ``missing``: numbers of utterances, and audio, that are not there; ``unexpected``: audio
        files whose names do not fit; ``invalid``: ids that occur twice, and files that are not
        audio.
    """
    corpus, root = get(name), root or locate(name)
    table = index(name, root) if table is None else table
    ids, used = table["utterance_id"], set(table["path"]) - {""}
    absent = Counter(corpus.counts) - Counter(table["emotion_native"])
    missing = [f"{n} of {corpus.counts[emotion]} {emotion}" for emotion, n in absent.items()]
    files = [] if corpus.reader and name in CORPORA else sorted(audio.files_below(root))
    taken = {Path(path).stem for path in used}  # another file of that name is a copy
    invalid = list((ids + " occurs twice: " + table["path"])[ids.duplicated(keep=False)])
    for path in map(Path, sorted(used)):
        try:
            soundfile.info(path)
        except soundfile.LibsndfileError as error:
            if path.suffix.lower() in audio.NATIVE:  # FFmpeg reads the others
                invalid.append(f"{audio.shown(path, root)}: {error.error_string}")
    return {
        "missing": missing + list("audio of " + ids[table["path"] == ""]),
        "unexpected": [
            audio.shown(p, root) for p in files if str(p) not in used and p.stem not in taken
        ],
        "invalid": invalid,
    }


def require_complete(name: str, allow_incomplete: bool = False) -> str:
    """Stop on a corpus that differs from its release, unless that is acceptable.

    Returns
    -------
    str
        What was found, in words; of a union, member by member.

    Raises
    ------
    ValueError
        With counts and up to ten examples of each kind, and how to mend it. Ids that occur twice
        are never acceptable.
    """
    corpus, root = get(name), locate(name)
    if corpus.members:
        there = list(filter(_is_there, corpus.members))
        text = f"{corpus.title}: {', '.join(there)} of {', '.join(corpus.members)}"
        return "\n".join([text, *(require_complete(one, allow_incomplete) for one in there)])
    expected = f" of {sum(corpus.counts.values())}" if corpus.counts else ""
    table = index(name, root)
    text = f"{corpus.title}: found {len(table)}{expected} utterances in {root}"
    faults = "".join(
        f"\n  {kind} ({len(items)}): {', '.join(items[:10])}{' …' if len(items) > 10 else ''}"
        for kind, items in validate(name, root, table).items()
        if items
    )
    if faults and ("occurs twice" in faults or not allow_incomplete):
        raise ValueError(
            f"{text}{faults}\nMend the folder, or set ALLOW_INCOMPLETE = True (./run_all.sh "
            "--allow-incomplete) to go on with what is there; ids that occur twice must be mended."
        )
    text += f"{faults}\n  going on with what is there" if faults else ": complete"
    if corpus.reader in (None, read_folder):  # IEMOCAP has files of many kinds
        text += left_out(root, set(map(Path, table["path"])))
    return text


def apply_labels(utterances: pd.DataFrame, name: str, labels: str = "") -> pd.DataFrame:
    """Map native emotions to those of a label set, and leave out what it does not use.

    Parameters
    ----------
    utterances
        With ``emotion_native``, and ``sex`` for label sets of emotion and sex.
    name
        The corpus.
    labels
        A name in its ``label_sets``; empty for the default one. A folder of your own has the
        label set ``native``: its labels as they are.

    Returns
    -------
    pd.DataFrame
        The rows that are left, with ``emotion``.

    Raises
    ------
    ValueError
        If the corpus has no such label set, or a speaker's sex is needed and not known.
    """
    corpus, native = get(name), utterances["emotion_native"]
    labels = labels or corpus.default_labels
    if corpus.label_sets and labels not in corpus.label_sets:
        raise ValueError(
            f"{corpus.title} has the label sets {list(corpus.label_sets)}, not {labels!r}"
        )
    mapping = corpus.label_sets.get(labels) or _same(*set(native))
    kept = utterances.assign(emotion=native.map(mapping)).dropna(
        subset="emotion", ignore_index=True
    )
    if corpus.label_sets and "{sex}" in "".join(mapping.values()):
        unknown = kept.loc[~kept["sex"].isin(["female", "male"]), "sex"]
        if len(unknown):
            raise ValueError(
                f"{labels} needs each speaker's sex; {len(unknown)} of {len(kept)} utterances "
                f"have {sorted(set(unknown))}"
            )
        kept["emotion"] = kept["sex"] + kept["emotion"].str.removeprefix("{sex}")
    return kept


def emotion_order(emotions) -> list[str]:
    """Sort emotions into the order of ``EMOTIONS``; ``male_happy`` follows ``female_happy``."""
    names = sorted(set(emotions), key=lambda name: (without_sex(name), name))
    return sorted(names, key=lambda name: [*EMOTIONS, without_sex(name)].index(without_sex(name)))


def without_sex(emotion: str) -> str:
    """Return the emotion in the name of a class of emotion and sex: "happy" of "female_happy"."""
    return emotion.removeprefix("female_").removeprefix("male_")


def fingerprint(name: str) -> str:
    """Hash the names, sizes and times of a corpus's files, to notice that the raw data changed."""
    root, digest = locate(name), hashlib.sha256()
    for place in get(name).members or [""]:
        for path, why in sorted(audio.scan(root / place)):
            if path.is_file() and why in ("", "no audio file"):
                stat, shown = path.stat(), audio.shown(path, root)
                digest.update(f"{shown}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def read_folder(root: Path) -> pd.DataFrame:
    """Read a user's own files: ``<root>/<emotion>/<speaker>_*.*``, or ``<root>/utterances.csv``.

    The table has the columns ``path`` (relative to the root), ``speaker`` and ``emotion``, and may
    have the others of ``LABEL_COLUMNS``: ``sex``, ``sentence``, ``text``, ``group`` of people who
    talk with each other, and ``start_s`` and ``end_s`` (s) of a part of a longer recording.

    Raises
    ------
    ValueError
        If a column or a cell of the table is missing, or it names a file that is not there.
    """
    place = root / "utterances.csv"
    if place.is_file():
        table = _read_csv(place)
    else:
        files = [path.relative_to(root).as_posix() for path in sorted(audio.files_below(root))]
        table = pd.Series(files, dtype=str).str.extract(
            r"^(?P<path>(?P<emotion>[^/]+)/(?P<speaker>[^/_]+)_[^/]*)$"
        )
        table = table.dropna().assign(emotion=table["emotion"].str.lower())
    needed = ["path", "speaker", "emotion"]
    cells = table.reindex(columns=needed, fill_value="")
    if empty := [name for name in needed if (cells[name].str.strip() == "").any()]:
        raise ValueError(
            f"{place} has the columns {list(table.columns)}; every row needs path, speaker and "
            f"emotion, and {empty} is missing or has empty cells"
        )
    gone = [path for path in table["path"] if not (root / path).is_file()]
    if gone:
        raise ValueError(
            f"{place} names {len(gone)} of {len(table)} files that are not under {root}: "
            f"{gone[:10]}"
        )
    groups = table.get("group", table["speaker"])
    times = table.reindex(columns=["start_s", "end_s"]).replace("", None).apply(pd.to_numeric)
    stem = table["path"].str.replace(r"\.[^./]*$", "", regex=True).str.replace("/", "_")
    return table.assign(
        utterance_id=stem + times["start_s"].map(lambda s: "" if pd.isna(s) else f"_{s:g}"),
        path=table["path"].map(lambda path: str(root / path)),
        emotion_native=table["emotion"],
        group=groups.where(groups != "", table["speaker"]),
        **times,
    )


def _read_csv(place: Path) -> pd.DataFrame:
    """Read a table as text; a spreadsheet may have written it with semicolons, tabs or in UTF-16.

    Raises
    ------
    ValueError
        If its encoding or its columns can't be told without guessing.
    """
    content = place.read_bytes()
    try:
        text = content.decode("utf-16" if content[:1] in (b"\xff", b"\xfe") else "utf-8-sig")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        table = pd.read_csv(
            io.StringIO(text),
            sep=separator,
            header=None,
            dtype=str,
            keep_default_na=False,
            engine="python",  # it tells a cell that is not there from an empty one
        )
        if table.isna().any(axis=None):
            raise ValueError("a row has fewer cells than the first")
    except ValueError as error:
        raise ValueError(
            f"{place} can't be read as a table ({error}): save it as CSV in UTF-8 (in Excel: CSV "
            "UTF-8), texts that hold a comma in quotation marks"
        ) from None
    names = table.iloc[0].str.strip().str.lower().tolist()
    return table[1:].set_axis(names, axis=1).reset_index(drop=True)


def _read_named_files(corpus: Corpus, root: Path) -> pd.DataFrame:
    rows = []
    for path in sorted(audio.files_below(root)):
        # the folder's name is tried too: SAVEE's speakers are folders
        match = re.fullmatch(corpus.pattern, path.stem) or re.fullmatch(
            corpus.pattern, f"{path.parent.name}_{path.stem}"
        )
        if match and match["emotion"] in corpus.codes["emotion"]:
            groups = {"sentence": "", "intensity": ""} | match.groupdict("")
            rows.append(
                {
                    "utterance_id": match[0],
                    "path": str(path),
                    "speaker": groups["speaker"],
                    "sex": corpus.sexes(groups["speaker"]),
                    "group": groups["speaker"],
                    "sentence": groups["sentence"],
                    "text": corpus.codes.get("sentence", {}).get(groups["sentence"], ""),
                    "emotion_native": corpus.codes["emotion"][groups["emotion"]],
                    "intensity": corpus.codes.get("intensity", {}).get(groups["intensity"], ""),
                }
            )
    return pd.DataFrame(rows)


def _read_union(root: Path) -> pd.DataFrame:
    """Join the tables of a union's members; names get the member's name in front."""
    tables = [pd.DataFrame()]
    for member in filter(_is_there, _UNION):
        table = index(member, root / member)
        table["utterance_id"] = table["utterance_id"].str.replace("/", "_", n=1)
        names = f"{member}_" + table[["speaker", "group", "sentence"]]
        tables.append(table.assign(**names))
    return pd.concat(tables, ignore_index=True)


def _is_there(name: str) -> bool:
    return any(audio.files_below(paths.data() / name))  # stops at the first


def _same(*names: str) -> dict[str, str]:
    return dict(zip(names, names, strict=True))


_RAVDESS = {
    "01": "neutral",
    "02": "calm",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fearful",
    "07": "disgust",
    "08": "surprised",
}
_BIG_SIX = _same("neutral", "happy", "sad", "angry", "fearful", "disgust")
_IEMOCAP = dict(
    reader=iemocap.read,
    tree="SessionN/dialog/EmoEvaluation/*.txt, SessionN/sentences/wav/<dialogue>/<utterance>.wav",
    label_sets={
        "iemocap-4": _same("neutral", "happy", "sad", "angry") | {"excited": "happy"},
        "iemocap-4-unmerged": _same("neutral", "happy", "sad", "angry"),
        "iemocap-6": _same("neutral", "happy", "excited", "sad", "angry", "frustrated"),
    },
    folds={1: ("Ses01",), 2: ("Ses02",), 3: ("Ses03",), 4: ("Ses04",), 5: ("Ses05",)},
)
_CREMAD_WOMEN = (
    "1002 1003 1004 1006 1007 1008 1009 1010 1012 1013 1018 1020 1021 1024 1025 1028 1029 1030 "
    "1037 1043 1046 1047 1049 1052 1053 1054 1055 1056 1058 1060 1061 1063 1072 1073 1074 1075 "
    "1076 1078 1079 1082 1084 1089 1091"
)

CORPORA = {
    corpus.name: corpus
    for corpus in [
        Corpus(
            "demo",
            "Demo corpus (synthetic speech, IEMOCAP's layout)",
            licence="MIT",
            citation="made by data/demo/make_demo.py",
            manual="It is part of the project: data/demo (python data/demo/make_demo.py makes it "
            "again).",
            synthetic=True,
            **_IEMOCAP,
        ),
        Corpus(
            "ravdess",
            "RAVDESS",
            citation="Livingstone & Russo (2018), PLoS ONE 13(5): e0196391, "
            "doi 10.1371/journal.pone.0196391",
            licence="CC BY-NC-SA 4.0",
            tree="Actor_NN/03-01-05-01-02-01-NN.wav",
            pattern=r"03-01-(?P<emotion>\d\d)-(?P<intensity>\d\d)-(?P<sentence>\d\d)-\d\d-"
            r"(?P<speaker>\d\d)",
            codes={
                "emotion": _RAVDESS,
                "intensity": {"01": "normal", "02": "strong"},
                "sentence": {
                    "01": "Kids are talking by the door",
                    "02": "Dogs are sitting by the door",
                },
            },
            label_sets={
                "ravdess-8": _same(*_RAVDESS.values()),
                "basic-6": _BIG_SIX,
                # as in a known Conv1D + LSTM project: "dislike" is anger and disgust
                "ravdess-12": {
                    "calm": "{sex}_calm",
                    "happy": "{sex}_happy",
                    "sad": "{sex}_sad",
                    "fearful": "{sex}_fearful",
                    "surprised": "{sex}_surprised",
                    "neutral": "{sex}_calm",
                    "angry": "{sex}_dislike",
                    "disgust": "{sex}_dislike",
                },
            },
            counts=dict.fromkeys(_RAVDESS.values(), 192) | {"neutral": 96},
            sexes=lambda speaker: "male" if int(speaker) % 2 else "female",
            # EmoBox (Interspeech 2024)
            folds={
                1: ("01", "11", "20", "21"),
                2: ("04", "10", "12", "14"),
                3: ("08", "09", "19", "23"),
                4: ("03", "05", "07", "24"),
                5: ("02", "15", "16", "18"),
                6: ("06", "13", "17", "22"),
            },
            url="https://zenodo.org/records/1188976/files/Audio_Speech_Actors_01-24.zip",
            md5="bc696df654c87fed845eb13823edef8a",
            manual="run notebook 01 with DOWNLOAD = True, or fetch "
            "https://zenodo.org/records/1188976/files/Audio_Speech_Actors_01-24.zip",
        ),
        Corpus(
            "emodb",
            "EMO-DB",
            citation="Burkhardt et al. (2005), Interspeech",
            licence="free",
            tree="wav/03a01Fa.wav",
            pattern=r"(?P<speaker>\d\d)(?P<sentence>[ab]\d\d)(?P<emotion>[WLEAFTN])\w?",
            codes={
                "emotion": {
                    "W": "angry",
                    "L": "bored",
                    "E": "disgust",
                    "A": "fearful",
                    "F": "happy",
                    "T": "sad",
                    "N": "neutral",
                },
            },
            label_sets={"emodb-7": _BIG_SIX | _same("bored")},
            counts={
                "angry": 127,
                "bored": 81,
                "disgust": 46,
                "fearful": 69,
                "happy": 71,
                "sad": 62,
                "neutral": 79,
            },
            sexes=lambda speaker: "male" if speaker in {"03", "10", "11", "12", "15"} else "female",
            folds={
                1: ("03",),
                2: ("08",),
                3: ("09",),
                4: ("10",),
                5: ("11",),
                6: ("12",),
                7: ("13",),
                8: ("14",),
                9: ("15",),
                10: ("16",),
            },
            manual="http://emodb.bilderbar.info (no published checksum, so it is not fetched by "
            "itself)",
        ),
        Corpus(
            "cremad",
            "CREMA-D",
            citation="Cao et al. (2014), IEEE Trans. Affective Computing 5(4)",
            licence="Open Database License",
            tree="AudioWAV/1001_DFA_ANG_XX.wav",
            pattern=r"(?P<speaker>1\d{3})_(?P<sentence>[A-Z]{3})_(?P<emotion>[A-Z]{3})_"
            r"(?P<intensity>[A-Z]{1,2})",
            codes={
                "emotion": {
                    "ANG": "angry",
                    "DIS": "disgust",
                    "FEA": "fearful",
                    "HAP": "happy",
                    "NEU": "neutral",
                    "SAD": "sad",
                },
                "intensity": {"LO": "low", "MD": "medium", "HI": "high"},
            },
            label_sets={"cremad-6": _BIG_SIX, "basic-6": _BIG_SIX},
            counts=dict.fromkeys(["angry", "disgust", "fearful", "happy", "sad"], 1271)
            | {"neutral": 1087},
            sexes=lambda speaker: "female" if speaker in _CREMAD_WOMEN else "male",
            # EMO-SUPERB
            folds={
                1: tuple(map(str, range(1001, 1019))),
                2: tuple(map(str, range(1019, 1037))),
                3: tuple(map(str, range(1037, 1055))),
                4: tuple(map(str, range(1055, 1073))),
                5: tuple(map(str, range(1073, 1092))),
            },
            manual="https://github.com/CheyneyComputerScience/CREMA-D (a Git LFS repository, not "
            "one file)",
        ),
        Corpus(
            "savee",
            "SAVEE",
            citation="Haq & Jackson (2009), AVSP",
            licence="research only, on request",
            tree="AudioData/DC/a01.wav",
            pattern=r"(?P<speaker>DC|JE|JK|KL)_(?P<emotion>sa|su|a|d|f|h|n)(?P<sentence>\d\d)",
            codes={
                "emotion": {
                    "a": "angry",
                    "d": "disgust",
                    "f": "fearful",
                    "h": "happy",
                    "n": "neutral",
                    "sa": "sad",
                    "su": "surprised",
                },
            },
            label_sets={"savee-7": _BIG_SIX | _same("surprised"), "basic-6": _BIG_SIX},
            counts=dict.fromkeys(["angry", "disgust", "fearful", "happy", "sad", "surprised"], 60)
            | {"neutral": 120},
            sexes=lambda speaker: "male",
            folds={1: ("JE",), 2: ("KL",), 3: ("DC",), 4: ("JK",)},
            manual="http://kahlan.eps.surrey.ac.uk/savee (registration)",
        ),
        Corpus(
            "tess",
            "TESS",
            citation="Pichora-Fuller & Dupuis (2020), doi 10.5683/SP2/E8H2MF",
            licence="CC BY-NC-ND 4.0",
            tree="OAF_angry/OAF_back_angry.wav",
            # OA_bite_neutral: a slip in the release itself
            pattern=r"(?P<speaker>OA|YA)F?_(?P<sentence>[a-z]+)_(?P<emotion>[a-z]+)",
            codes={
                "emotion": {
                    "angry": "angry",
                    "disgust": "disgust",
                    "fear": "fearful",
                    "happy": "happy",
                    "neutral": "neutral",
                    "ps": "surprised",
                    "sad": "sad",
                },
            },
            label_sets={"tess-7": _BIG_SIX | _same("surprised"), "basic-6": _BIG_SIX},
            counts=dict.fromkeys(
                ["angry", "disgust", "fearful", "happy", "neutral", "surprised", "sad"], 400
            ),
            sexes=lambda speaker: "female",
            folds={1: ("OA",), 2: ("YA",)},
            manual="https://doi.org/10.5683/SP2/E8H2MF (terms to accept)",
        ),
        Corpus(
            "emovo",
            "EMOVO",
            citation="Costantini et al. (2014), LREC",
            licence="research only",
            tree="f1/dis-f1-b1.wav",
            pattern=r"(?P<emotion>[a-z]{3})-(?P<speaker>[fm]\d)-(?P<sentence>\w\d)",
            codes={
                "emotion": {
                    "dis": "disgust",
                    "gio": "happy",
                    "neu": "neutral",
                    "pau": "fearful",
                    "rab": "angry",
                    "sor": "surprised",
                    "tri": "sad",
                },
            },
            label_sets={"emovo-7": _BIG_SIX | _same("surprised")},
            counts=dict.fromkeys(
                ["disgust", "happy", "neutral", "fearful", "angry", "surprised", "sad"], 84
            ),
            sexes=lambda speaker: "female" if speaker[0] == "f" else "male",
            folds={1: ("f1",), 2: ("f2",), 3: ("f3",), 4: ("m1",), 5: ("m2",), 6: ("m3",)},
            manual="http://voice.fub.it/activities/corpora/emovo (no published checksum)",
        ),
        Corpus(
            "iemocap",
            "IEMOCAP",
            citation="Busso et al. (2008), Language Resources and Evaluation 42(4)",
            licence="research only, on request",
            counts=iemocap.COUNTS,
            manual="https://sail.usc.edu/iemocap/iemocap_release.htm (a licence form)",
            **_IEMOCAP,
        ),
    ]
}
_UNION = ("cremad", "ravdess", "savee", "tess")
CORPORA["basic6"] = Corpus(
    "basic6",
    "CREMA-D, RAVDESS, SAVEE and TESS together",
    citation="; ".join(CORPORA[member].citation for member in _UNION),
    licence="; ".join(f"{member}: {CORPORA[member].licence}" for member in _UNION),
    tree=" or ".join(f"{member}/{CORPORA[member].tree}" for member in _UNION),
    label_sets={"basic-6": _BIG_SIX},
    # fold k tests the speakers of each member's fold k, of those members that have so many folds
    folds={
        fold: tuple(f"{m}_{s}" for m in _UNION for s in CORPORA[m].folds.get(fold, ()))
        for fold in CORPORA["ravdess"].folds  # it has the most
    },
    manual="Each of its members is a corpus: notebook 01 says how to get it.",
    reader=_read_union,
    members=_UNION,
)
