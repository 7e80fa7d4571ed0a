"""Speech corpora: what each one is, and how its file names become labelled rows.

Every corpus is one frozen :class:`Corpus` record with the same fields, so that adding one is adding a record. Any
name that has no record is a user's own folder of audio (see :func:`read_folder`).
"""

import calendar
import hashlib
import itertools
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from helpers import audio, iemocap, paths

# The one order of emotions in every table and figure; other names follow in alphabetical order.
EMOTIONS = (
    "neutral",
    "calm",
    "happy",
    "excited",
    "sad",
    "angry",
    "frustrated",
    "fearful",
    "disgust",
    "dislike",
    "surprised",
    "bored",
)
LABEL_COLUMNS = [
    "utterance_id",
    "path",
    "start_s",
    "end_s",
    "speaker",
    "sex",
    "group",
    "sentence",
    "text",
    "dialogue",
    "turn",
    "emotion_native",
    "intensity",
    "valence",
    "arousal",
    "dominance",
    "votes",
]


@dataclass(frozen=True)
class Corpus:
    """What is known of a corpus before its audio is opened.

    Attributes
    ----------
    pattern
        Regular expression of a file's name without suffix; groups ``speaker``, ``emotion`` and optionally
        ``sentence``, ``intensity``. Empty for corpora with a reader of their own.
    labels
        Code in the file name → native emotion.
    policies
        Name → {native emotion: emotion}; natives that are not in it are left out. ``{sex}`` in an emotion stands for the
        speaker's. The first policy is the default.
    counts
        Native emotion → number of utterances of the complete release; ``policy_counts`` likewise per policy.
    folds
        Fold → test units, where the field agreed on folds.
    url, md5, size_mb
        For pooch; where it can't be fetched, ``manual`` says why and where to get it.
    stems
        All file names of the release, where they follow from a rule.
    members
        Corpora that this one is a union of: of those that are there. Speakers and folds stay as they are, under names that
        begin with the member's.
    """

    name: str
    title: str
    language: str
    citation: str
    licence: str
    n_speakers: int = 0
    pattern: str = ""
    labels: dict = field(default_factory=dict)
    policies: dict = field(default_factory=dict)
    counts: dict = field(default_factory=dict)
    policy_counts: dict = field(default_factory=dict)
    folds: dict = field(default_factory=dict)
    sexes: Callable[[str], str] = lambda speaker: "unknown"
    intensities: dict = field(default_factory=dict)
    sentences: dict = field(default_factory=dict)
    stems: tuple = ()
    tree: str = ""
    url: str = ""
    md5: str = ""
    size_mb: int = 0
    manual: str = ""
    reader: Callable[[Path], pd.DataFrame] | None = None
    members: tuple[str, ...] = ()
    synthetic: bool = False

    @property
    def default_policy(self) -> str:
        return next(iter(self.policies), "native")


def get(name: str) -> Corpus:
    """Return a corpus's record; a name without one is a user's own folder ``SER_DATA/<name>``."""
    if name in CORPORA:
        return CORPORA[name]
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(
            f"corpus name {name!r}: use letters, digits, '-' and '_' (it names folders)"
        )
    return Corpus(
        name=name,
        title=f"{name} (your own files)",
        language="",
        citation="",
        licence="yours",
        tree="<emotion>/<speaker>_anything.wav, or a table utterances.csv: path,speaker,emotion[,sex,sentence,text]",
        manual="It is your own folder.",
        reader=lambda root: read_folder(root, name),
    )


def locate(name: str, download: bool = False) -> Path:
    """Return a corpus's root folder; download it where that is possible and wanted.

    Raises
    ------
    FileNotFoundError
        If it is not there; the message shows the expected tree, what was found, and where to get it.
    """
    corpus = get(name)
    root = paths.PROJECT / "data/demo" if name == "demo" else paths.data() / name
    if corpus.members:
        if _members_there(corpus, paths.data()):
            return paths.data()
        raise FileNotFoundError(
            f"{corpus.title}: none of them is under {paths.data()}\n  expected: one or more of\n"
            + "\n".join(
                f"    {paths.data() / member}/{get(member).tree}" for member in corpus.members
            )
            + f'\n  get them: notebook 01 with CORPUS = "{corpus.members[0]}", and so on, says how\n  then set SER_DATA to '
            "the folder that holds them; it goes on with those that are there"
        )
    if _has_audio(root):
        return root
    if download and corpus.url and not (root.exists() and any(root.iterdir())):
        return fetch(corpus, root)
    found = sorted(p.name for p in root.iterdir())[:10] if root.is_dir() else None
    known = "" if name in CORPORA else f"\n  known corpora: {', '.join(CORPORA)}"
    raise FileNotFoundError(
        f"{corpus.title}: no audio under {root}\n  expected: {root}/{corpus.tree}\n"
        f"  found: {'no such folder' if found is None else found or 'an empty folder'}\n"
        f"  get it: {corpus.manual or f'run notebook 01 with DOWNLOAD = True, or fetch {corpus.url}'}\n"
        f"  then set SER_DATA to the folder that holds {name}/{known}"
    )


def fetch(corpus: Corpus, root: Path) -> Path:
    """Download and unpack a corpus: checksum first, unpacked beside its place and then renamed, never halfway.

    The archive is kept beside the folder until it is unpacked, so an interrupted run does not download it twice.
    """
    import pooch  # here, since its progress bar warns where a notebook has no widgets

    print(
        f"{corpus.title}: downloading {corpus.size_mb} MB to {root.parent} ({corpus.licence})",
        flush=True,
    )
    archive = Path(
        pooch.retrieve(
            corpus.url,
            known_hash=f"md5:{corpus.md5}",
            path=root.parent,
            fname=f"{corpus.name}.zip",
            progressbar=True,
        )
    )
    unpacked = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{corpus.name}."))
    try:
        with zipfile.ZipFile(archive) as file:
            file.extractall(unpacked)
            for (
                info
            ) in file.infolist():  # so that fingerprint finds the same after a second download
                seconds = calendar.timegm((*info.date_time, 0, 0, 0))
                os.utime(unpacked / info.filename, (seconds, seconds))
        unpacked.chmod(0o755)
        if root.is_dir():
            root.rmdir()  # empty, as locate saw: some systems do not rename onto a folder
        unpacked.rename(root)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    archive.unlink()
    return root


class CorporaMissing(FileNotFoundError):
    """Fewer corpora are at hand than a comparison needs: ``run_all.sh`` takes it for a reason to skip, not to fail."""


def at_hand(name: str) -> list[str]:
    """Return the known corpora under ``SER_DATA``, with the one of this name; a synthetic one goes alone."""
    if get(name).synthetic:
        return [name]
    known = [
        corpus.name for corpus in CORPORA.values() if not corpus.members and not corpus.synthetic
    ]
    folders = {one: paths.data() / one for one in [*known, name]}
    return [one for one, folder in folders.items() if _has_audio(folder)]


def require_several(names: list[str]) -> None:
    """Stop unless there are two corpora to compare."""
    if len(names) < 2:
        known = [
            corpus.name
            for corpus in CORPORA.values()
            if not corpus.synthetic and not corpus.members
        ]
        raise CorporaMissing(
            f"a comparison needs two corpora, and {', '.join(names) or 'none'} can be used: put others under "
            f"{paths.data()} ({', '.join(known)})"
        )


def index(name: str, root: Path | None = None) -> pd.DataFrame:
    """List a corpus's utterances with their labels, without opening the audio.

    Returns
    -------
    pd.DataFrame
        ``LABEL_COLUMNS``, sorted by ``utterance_id``. Files whose names do not fit are not in it: see :func:`validate`.

    Raises
    ------
    FileNotFoundError, ValueError
        If the root is wrong, or nothing under it fits.
    """
    corpus, root = get(name), root or locate(name)
    table = corpus.reader(root) if corpus.reader else _read_named_files(corpus, root)
    if table.empty:
        raise ValueError(
            f"{corpus.title}: none of the {len(_audio_files(root))} audio files under {root} fits "
            f"{corpus.tree}, e.g. {[p.name for p in _audio_files(root)[:3]]}"
        )
    table["utterance_id"] = name + "/" + table["utterance_id"]
    for column in LABEL_COLUMNS:
        if column not in table:
            table[column] = (
                np.nan
                if column in ("start_s", "end_s", "turn", "valence", "arousal", "dominance")
                else ""
            )
    table["sex"] = table["sex"].replace("", "unknown")
    return table[LABEL_COLUMNS].sort_values("utterance_id", ignore_index=True)


def validate(name: str, root: Path | None = None) -> tuple[list[str], list[str], list[str]]:
    """Compare what is there with what the release holds.

    Returns
    -------
    missing, unexpected, invalid : lists of str
        Utterances (or counts) that are not there; audio files under names that do not fit; ids that occur twice and
        files that are not audio.
    """
    root = root or locate(name)
    return _compare(get(name), root, index(name, root))


def _compare(
    corpus: Corpus, root: Path, table: pd.DataFrame
) -> tuple[list[str], list[str], list[str]]:
    """Compare an index with what the release holds; see :func:`validate`."""
    name = corpus.name
    if corpus.members:
        parts = [
            [[f"{member}: {item}" for item in items] for items in validate(member, root / member)]
            for member in _members_there(corpus, root)
        ]
        return tuple(list(itertools.chain(*items)) for items in zip(*parts, strict=True))
    stems = table["utterance_id"].str.removeprefix(f"{name}/")
    missing = sorted(set(corpus.stems) - set(stems))
    if not corpus.stems:
        found = table["emotion_native"].value_counts()
        missing = [
            f"{expected - found.get(emotion, 0)} of {expected} {emotion}"
            for emotion, expected in corpus.counts.items()
            if found.get(emotion, 0) < expected
        ]
    missing += [f"audio of {i}" for i in table.loc[table["path"] == "", "utterance_id"]]
    used = set(table["path"])
    unexpected = (
        []
        if corpus.reader and name in CORPORA
        else [str(p.relative_to(root)) for p in _audio_files(root) if str(p) not in used]
    )
    doubled = table.loc[table["utterance_id"].duplicated(keep=False)]
    invalid = [
        f"{i} occurs twice: {p}"
        for i, p in zip(doubled["utterance_id"], doubled["path"], strict=True)
    ]
    for path in sorted(used - {""}):
        try:
            soundfile.info(path)
        except soundfile.LibsndfileError as error:
            invalid.append(f"{Path(path).relative_to(root)}: {error.error_string}")
    return missing, unexpected, invalid


def require_complete(name: str, allow_incomplete: bool = False) -> str:
    """Stop on a corpus that is not as released, unless that is acceptable; return a sentence on its state.

    Raises
    ------
    ValueError
        With counts and up to ten examples of each kind, and how to mend it. Ids that occur twice are never acceptable.
    """
    corpus, root = get(name), locate(name)
    table = index(name, root)
    missing, unexpected, invalid = _compare(corpus, root, table)
    found, expected = len(table), sum(corpus.counts.values())
    size = f"found {found} of {expected} utterances" if expected else f"found {found} utterances"
    lines = [f"{corpus.title}: {size} in {root}"]
    if corpus.members:
        there = _members_there(corpus, root)
        absent = [get(member).title for member in corpus.members if member not in there]
        lines[0] += f", of {', '.join(get(member).title for member in there)}" + (
            f" ({', '.join(absent)} not there)" if absent else ""
        )
    lines += [
        f"  {kind} ({len(items)}): {', '.join(items[:10])}{' …' if len(items) > 10 else ''}"
        for kind, items in [("missing", missing), ("unexpected", unexpected), ("invalid", invalid)]
        if items
    ]
    doubled = any("occurs twice" in item for item in invalid)
    if doubled or ((missing or unexpected or invalid) and not allow_incomplete):
        raise ValueError(
            "\n".join(lines) + "\nMend the folder, or set ALLOW_INCOMPLETE = True (./run_all.sh "
            "--allow-incomplete) to go on with what is there; ids that occur twice must be mended."
        )
    return "\n".join(lines) + (
        "\n  going on with what is there" if len(lines) > 1 else ": complete"
    )


def apply_policy(utterances: pd.DataFrame, name: str, policy: str = "") -> pd.DataFrame:
    """Map native emotions to a policy's, and leave out what it does not use.

    Parameters
    ----------
    utterances
        With ``emotion_native``.
    name, policy
        The corpus, and a name in its ``policies`` (empty: the default). A folder of your own has the policy
        ``native``: its labels as they are.

    Returns
    -------
    pd.DataFrame
        The rows that are left, with ``emotion``.
    """
    corpus = get(name)
    policy = policy or corpus.default_policy
    if not corpus.policies:
        return utterances.assign(emotion=utterances["emotion_native"])
    if policy not in corpus.policies:
        raise ValueError(
            f"{corpus.title} has the label policies {list(corpus.policies)}, not {policy!r}"
        )
    kept = utterances.assign(emotion=utterances["emotion_native"].map(corpus.policies[policy]))
    kept = kept.dropna(subset="emotion").reset_index(drop=True)
    if any("{sex}" in emotion for emotion in corpus.policies[policy].values()):
        if strange := sorted(set(kept["sex"]) - {"female", "male"}):
            raise ValueError(
                f"{policy} needs each speaker's sex; {kept['sex'].isin(strange).sum()} of {len(kept)} utterances "
                f"have {strange}"
            )
        kept["emotion"] = [
            e.replace("{sex}", sex) for e, sex in zip(kept["emotion"], kept["sex"], strict=True)
        ]
    counts = utterances["emotion_native"].value_counts().to_dict()
    expected = corpus.policy_counts.get(policy)
    if expected and counts == corpus.counts and len(kept) != expected:
        raise ValueError(
            f"{policy}: {len(kept)} utterances left of the complete release, expected {expected}"
        )
    return kept


def emotion_order(emotions) -> list[str]:
    """Sort emotion names into the project's one order; ``female_happy`` stands beside ``male_happy``."""
    known = {e: without_sex(e) for e in set(emotions)}
    return sorted(
        known,
        key=lambda e: (
            EMOTIONS.index(known[e]) if known[e] in EMOTIONS else len(EMOTIONS),
            known[e],
            e,
        ),
    )


def without_sex(emotion: str) -> str:
    """Return the emotion of a class that is of one sex alone, e.g. "happy" for ``female_happy``."""
    return emotion.removeprefix("female_").removeprefix("male_")


def fingerprint(name: str) -> str:
    """Hash the names, sizes and times of a corpus's files, to notice that the raw data changed."""
    root, digest = locate(name), hashlib.sha256()
    if members := _members_there(get(name), root):
        return hashlib.sha256(
            "".join(fingerprint(member) for member in members).encode()
        ).hexdigest()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")):
        stat = path.stat()
        digest.update(f"{path.relative_to(root)}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def read_folder(root: Path, name: str = "folder") -> pd.DataFrame:
    """Read a user's own files: ``<root>/<emotion>/<speaker>_*.*``, or ``<root>/utterances.csv``.

    The table has the columns ``path`` (relative to the root), ``speaker`` and ``emotion``, and may have ``sex``
    (female, male), ``sentence`` and ``text``.

    Raises
    ------
    ValueError
        If the table lacks a column or a cell, or names a file that is not there.
    """
    if (root / "utterances.csv").is_file():
        table = pd.read_csv(root / "utterances.csv", dtype=str, keep_default_na=False)
        lacking = [
            c
            for c in ("path", "speaker", "emotion")
            if c not in table or (table[c].str.strip() == "").any()
        ]
        if lacking:
            raise ValueError(
                f"{root / 'utterances.csv'} has the columns {list(table.columns)}; every row needs "
                f"path, speaker and emotion, and {lacking} is missing or has empty cells"
            )
        gone = [p for p in table["path"] if not (root / p).is_file()]
        if gone:
            raise ValueError(
                f"{root / 'utterances.csv'} names {len(gone)} of {len(table)} files that are not under "
                f"{root}: {gone[:10]}"
            )
        relative = [Path(p) for p in table["path"]]
        table["utterance_id"] = [p.with_suffix("").as_posix().replace("/", "_") for p in relative]
        table["path"] = [str(root / p) for p in relative]
    else:
        files = [p for p in _audio_files(root) if p.parent.parent == root and "_" in p.stem]
        table = pd.DataFrame(
            {
                "utterance_id": [f"{p.parent.name}_{p.stem}" for p in files],
                "path": [str(p) for p in files],
                "speaker": [p.stem.split("_")[0] for p in files],
                "emotion": [p.parent.name.lower() for p in files],
            }
        )
    return table.rename(columns={"emotion": "emotion_native"}).assign(group=table["speaker"])


def _read_named_files(corpus: Corpus, root: Path) -> pd.DataFrame:
    rows = []
    for path in _audio_files(root):
        # the folder's name is offered too: SAVEE's speakers are folders
        match = re.fullmatch(corpus.pattern, path.stem) or re.fullmatch(
            corpus.pattern, f"{path.parent.name}_{path.stem}"
        )
        if match and match["emotion"] in corpus.labels:
            parts = match.groupdict()
            rows.append(
                {
                    "utterance_id": match[0],
                    "path": str(path),
                    "speaker": parts["speaker"],
                    "sex": corpus.sexes(parts["speaker"]),
                    "group": parts["speaker"],
                    "sentence": parts.get("sentence") or "",
                    "text": corpus.sentences.get(parts.get("sentence"), ""),
                    "emotion_native": corpus.labels[parts["emotion"]],
                    "intensity": corpus.intensities.get(parts.get("intensity"), ""),
                }
            )
    return pd.DataFrame(rows)


def _members_there(corpus: Corpus, root: Path) -> list[str]:
    return [m for m in corpus.members if _has_audio(root / m)]


def _read_members(name: str, root: Path) -> pd.DataFrame:
    """Read the members of a union one below the other; ids, speakers, groups and sentences begin with the member's name."""
    tables = []
    for member in _members_there(get(name), root):
        table = index(member, root / member)
        table["utterance_id"] = table["utterance_id"].str.replace("/", "_", n=1)
        for column in ("speaker", "group", "sentence"):
            table[column] = table[column].map(
                lambda value, member=member: value and f"{member}_{value}"
            )
        tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _has_audio(root: Path) -> bool:
    return any(audio.is_audio(path) for path in root.rglob("*"))  # stops at the first


def _audio_files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if audio.is_audio(p))


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_RAVDESS = dict(
    enumerate(
        ["neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"], start=1
    )
)
_BIG_SIX = _same("neutral", "happy", "sad", "angry", "fearful", "disgust")
_IEMOCAP = dict(
    language="English",
    n_speakers=10,
    reader=iemocap.read,
    tree="SessionN/dialog/EmoEvaluation/*.txt, SessionN/sentences/wav/<dialogue>/<utterance>.wav",
    policies={
        "iemocap-4": _same("neutral", "happy", "sad", "angry") | {"excited": "happy"},
        "iemocap-4-unmerged": _same("neutral", "happy", "sad", "angry"),
        "iemocap-6": _same("neutral", "happy", "excited", "sad", "angry", "frustrated"),
    },
    folds={n: (f"Ses0{n}",) for n in range(1, 6)},
)
_CREMAD_WOMEN = {
    "1002",
    "1003",
    "1004",
    "1006",
    "1007",
    "1008",
    "1009",
    "1010",
    "1012",
    "1013",
    "1018",
    "1020",
    "1021",
    "1024",
    "1025",
    "1028",
    "1029",
    "1030",
    "1037",
    "1043",
    "1046",
    "1047",
    "1049",
    "1052",
    "1053",
    "1054",
    "1055",
    "1056",
    "1058",
    "1060",
    "1061",
    "1063",
    "1072",
    "1073",
    "1074",
    "1075",
    "1076",
    "1078",
    "1079",
    "1082",
    "1084",
    "1089",
    "1091",
}

CORPORA = {
    corpus.name: corpus
    for corpus in [
        Corpus(
            "demo",
            "Demo corpus (synthetic speech, IEMOCAP's layout)",
            licence="MIT",
            citation="made by data/demo/make_demo.py",
            manual="It is part of the project: data/demo (python data/demo/make_demo.py makes it again).",
            synthetic=True,
            **_IEMOCAP,
        ),
        Corpus(
            "ravdess",
            "RAVDESS",
            "English",
            n_speakers=24,
            citation="Livingstone & Russo (2018), PLoS ONE 13(5): e0196391, doi 10.1371/journal.pone.0196391",
            licence="CC BY-NC-SA 4.0",
            tree="Actor_NN/03-01-05-01-02-01-NN.wav",
            pattern=r"03-01-(?P<emotion>\d\d)-(?P<intensity>\d\d)-(?P<sentence>\d\d)-\d\d-(?P<speaker>\d\d)",
            labels={f"{i:02d}": emotion for i, emotion in _RAVDESS.items()},
            policies={
                "ravdess-8": _same(*_RAVDESS.values()),
                "basic-6": _BIG_SIX,
                # as in a known Conv1D + LSTM project: "dislike" is anger and disgust
                "ravdess-12": {
                    native: f"{{sex}}_{emotion}"
                    for native, emotion in (
                        _same("calm", "happy", "sad", "fearful", "surprised")
                        | {"neutral": "calm", "angry": "dislike", "disgust": "dislike"}
                    ).items()
                },
            },
            counts={emotion: 96 if i == 1 else 192 for i, emotion in _RAVDESS.items()},
            policy_counts={"ravdess-8": 1440, "basic-6": 1056, "ravdess-12": 1440},
            sexes=lambda speaker: "male" if int(speaker) % 2 else "female",
            intensities={"01": "normal", "02": "strong"},
            sentences={"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"},
            # EmoBox (Interspeech 2024)
            folds={
                1: ("01", "11", "20", "21"),
                2: ("04", "10", "12", "14"),
                3: ("08", "09", "19", "23"),
                4: ("03", "05", "07", "24"),
                5: ("02", "15", "16", "18"),
                6: ("06", "13", "17", "22"),
            },
            stems=tuple(
                f"03-01-{e:02d}-{i:02d}-{s:02d}-{r:02d}-{a:02d}"
                for a in range(1, 25)
                for e in range(1, 9)
                for i in (1, 2)
                for s in (1, 2)
                for r in (1, 2)
                if not (e == 1 and i == 2)
            ),
            url="https://zenodo.org/records/1188976/files/Audio_Speech_Actors_01-24.zip",
            md5="bc696df654c87fed845eb13823edef8a",
            size_mb=208,
        ),
        Corpus(
            "emodb",
            "EMO-DB",
            "German",
            n_speakers=10,
            citation="Burkhardt et al. (2005), Interspeech",
            licence="free",
            tree="wav/03a01Fa.wav",
            pattern=r"(?P<speaker>\d\d)(?P<sentence>[ab]\d\d)(?P<emotion>[WLEAFTN])\w?",
            labels={
                "W": "angry",
                "L": "bored",
                "E": "disgust",
                "A": "fearful",
                "F": "happy",
                "T": "sad",
                "N": "neutral",
            },
            policies={"emodb-7": _BIG_SIX | _same("bored")},
            policy_counts={"emodb-7": 535},
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
                i: (s,)
                for i, s in enumerate(
                    ["03", "08", "09", "10", "11", "12", "13", "14", "15", "16"], start=1
                )
            },
            manual="http://emodb.bilderbar.info (no published checksum, so it is not fetched by itself)",
        ),
        Corpus(
            "cremad",
            "CREMA-D",
            "English",
            n_speakers=91,
            citation="Cao et al. (2014), IEEE Trans. Affective Computing 5(4)",
            licence="Open Database License",
            tree="AudioWAV/1001_DFA_ANG_XX.wav",
            pattern=r"(?P<speaker>1\d{3})_(?P<sentence>[A-Z]{3})_(?P<emotion>[A-Z]{3})_(?P<intensity>[A-Z]{1,2})",
            labels={
                "ANG": "angry",
                "DIS": "disgust",
                "FEA": "fearful",
                "HAP": "happy",
                "NEU": "neutral",
                "SAD": "sad",
            },
            policies={"cremad-6": _BIG_SIX, "basic-6": _BIG_SIX},
            policy_counts={"cremad-6": 7442, "basic-6": 7442},
            counts=dict.fromkeys(["angry", "disgust", "fearful", "happy", "sad"], 1271)
            | {"neutral": 1087},
            sexes=lambda speaker: "female" if speaker in _CREMAD_WOMEN else "male",
            intensities={"LO": "low", "MD": "medium", "HI": "high"},
            # EMO-SUPERB
            folds={
                i: tuple(str(s) for s in range(low, high + 1))
                for i, (low, high) in enumerate(
                    [(1001, 1018), (1019, 1036), (1037, 1054), (1055, 1072), (1073, 1091)], start=1
                )
            },
            manual="https://github.com/CheyneyComputerScience/CREMA-D (a Git LFS repository, not one file)",
        ),
        Corpus(
            "savee",
            "SAVEE",
            "English",
            n_speakers=4,
            citation="Haq & Jackson (2009), AVSP",
            licence="research only, on request",
            tree="AudioData/DC/a01.wav",
            pattern=r"(?P<speaker>DC|JE|JK|KL)_(?P<emotion>sa|su|a|d|f|h|n)(?P<sentence>\d\d)",
            labels={
                "a": "angry",
                "d": "disgust",
                "f": "fearful",
                "h": "happy",
                "n": "neutral",
                "sa": "sad",
                "su": "surprised",
            },
            policies={"savee-7": _BIG_SIX | _same("surprised"), "basic-6": _BIG_SIX},
            policy_counts={"savee-7": 480, "basic-6": 420},
            counts=dict.fromkeys(["angry", "disgust", "fearful", "happy", "sad", "surprised"], 60)
            | {"neutral": 120},
            sexes=lambda speaker: "male",
            folds={i: (s,) for i, s in enumerate(["JE", "KL", "DC", "JK"], start=1)},
            stems=tuple(
                f"{s}_{e}{n:02d}"
                for s in ("DC", "JE", "JK", "KL")
                for e in ("a", "d", "f", "h", "n", "sa", "su")
                for n in range(1, 31 if e == "n" else 16)
            ),
            manual="http://kahlan.eps.surrey.ac.uk/savee (registration)",
        ),
        Corpus(
            "tess",
            "TESS",
            "English",
            n_speakers=2,
            citation="Pichora-Fuller & Dupuis (2020), doi 10.5683/SP2/E8H2MF",
            licence="CC BY-NC-ND 4.0",
            tree="OAF_angry/OAF_back_angry.wav",
            # OA_bite_neutral: a slip in the release itself
            pattern=r"(?P<speaker>OA|YA)F?_(?P<sentence>[a-z]+)_(?P<emotion>[a-z]+)",
            labels={
                "angry": "angry",
                "disgust": "disgust",
                "fear": "fearful",
                "happy": "happy",
                "neutral": "neutral",
                "ps": "surprised",
                "sad": "sad",
            },
            policies={"tess-7": _BIG_SIX | _same("surprised"), "basic-6": _BIG_SIX},
            policy_counts={"tess-7": 2800, "basic-6": 2400},
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
            "Italian",
            n_speakers=6,
            citation="Costantini et al. (2014), LREC",
            licence="research only",
            tree="f1/dis-f1-b1.wav",
            pattern=r"(?P<emotion>[a-z]{3})-(?P<speaker>[fm]\d)-(?P<sentence>\w\d)",
            labels={
                "dis": "disgust",
                "gio": "happy",
                "neu": "neutral",
                "pau": "fearful",
                "rab": "angry",
                "sor": "surprised",
                "tri": "sad",
            },
            policies={"emovo-7": _BIG_SIX | _same("surprised")},
            policy_counts={"emovo-7": 588},
            counts=dict.fromkeys(
                ["disgust", "happy", "neutral", "fearful", "angry", "surprised", "sad"], 84
            ),
            sexes=lambda speaker: "female" if speaker[0] == "f" else "male",
            folds={i: (s,) for i, s in enumerate(["f1", "f2", "f3", "m1", "m2", "m3"], start=1)},
            manual="http://voice.fub.it/activities/corpora/emovo (no published checksum)",
        ),
        Corpus(
            "iemocap",
            "IEMOCAP",
            citation="Busso et al. (2008), Language Resources and Evaluation 42(4)",
            licence="research only, on request",
            counts=iemocap.COUNTS,
            policy_counts={"iemocap-4": 5531, "iemocap-4-unmerged": 4490, "iemocap-6": 7380},
            manual="https://sail.usc.edu/iemocap/iemocap_release.htm (a licence form)",
            **_IEMOCAP,
        ),
    ]
}
_TOGETHER = ("cremad", "ravdess", "savee", "tess")
CORPORA["basic6"] = Corpus(
    "basic6",
    "CREMA-D, RAVDESS, SAVEE and TESS together",
    "English",
    n_speakers=sum(CORPORA[m].n_speakers for m in _TOGETHER),
    citation="; ".join(CORPORA[m].citation for m in _TOGETHER),
    licence="; ".join(f"{m}: {CORPORA[m].licence}" for m in _TOGETHER),
    tree="../ with one or more of: " + ", ".join(f"{m}/{CORPORA[m].tree}" for m in _TOGETHER),
    members=_TOGETHER,
    policies={"basic-6": _BIG_SIX},
    reader=lambda root: _read_members("basic6", root),
    # fold k tests the speakers of each member's own fold k: a member with fewer folds has its speakers tested once all the same
    folds={
        k: tuple(f"{m}_{s}" for m in _TOGETHER for s in CORPORA[m].folds.get(k, ()))
        for k in sorted({k for m in _TOGETHER for k in CORPORA[m].folds})
    },
    manual="Its members are corpora of their own.",
)
