"""Reading an IEMOCAP release: EmoEvaluation, transcriptions, and the audio of each utterance.

The folder is read as it is unpacked (C. Busso et al., "IEMOCAP: interactive emotional dyadic motion capture database",
Language Resources and Evaluation 42(4), 2008)::

    SessionN/dialog/EmoEvaluation/<dialogue>.txt     label, times, valence, arousal, dominance, each annotator's votes
    SessionN/dialog/transcriptions/<dialogue>.txt    what was said
    SessionN/sentences/wav/<dialogue>/<utterance>.*  the utterances; where they lack,
    SessionN/dialog/wav/<dialogue>.*                 the whole dialogue, from which they are cut by their times

In ``Ses01F_impro01_M003`` the first letter is the actor who wore the markers; the *speaker* is the second one: Ses01M.
"""

import re
from pathlib import Path

import pandas as pd

from helpers.audio import is_audio

NATIVE = {
    "neu": "neutral",
    "fru": "frustrated",
    "ang": "angry",
    "sad": "sad",
    "exc": "excited",
    "hap": "happy",
    "sur": "surprised",
    "fea": "fearful",
    "dis": "disgust",
    "oth": "other",
    "xxx": "undecided",
}
COUNTS = {
    "undecided": 2507,
    "frustrated": 1849,
    "neutral": 1708,
    "angry": 1103,
    "sad": 1084,
    "excited": 1041,
    "happy": 595,
    "surprised": 107,
    "fearful": 40,
    "other": 3,
    "disgust": 2,
}  # 10,039 in all

_TURN = re.compile(
    r"^\[(?P<start>[\d.]+) - (?P<end>[\d.]+)\]\t(?P<id>\w+)\t(?P<emotion>\w+)\t"
    r"\[(?P<valence>[\d.]+), (?P<arousal>[\d.]+), (?P<dominance>[\d.]+)\]"
)
_VOTE = re.compile(r"^C-(?P<annotator>\w+):\t(?P<emotions>[^(]*?);?\s*(\(|$)")
_SPOKEN = re.compile(r"^(?P<id>Ses\d\d[FM]_\w+_[FM]\d+) \[[\d.]+-[\d.]+\]:\s*(?P<text>.*)$")


def read(root: Path) -> pd.DataFrame:
    """Read all sessions under a root folder (or in a folder one level below it).

    Returns
    -------
    pd.DataFrame
        One row per utterance; ``path`` is empty where its audio is not there. ``start_s`` and ``end_s`` (s) are set only
        where the path is a whole dialogue.
    """
    sessions = sorted(
        p
        for pattern in ("Session[1-5]", "*/Session[1-5]")
        for p in Path(root).glob(pattern)
        if p.is_dir()
    )
    return pd.DataFrame([row for session in sessions for row in _read_session(session)])


def read_evaluation(path: Path) -> list[dict]:
    """Parse one EmoEvaluation file.

    Parameters
    ----------
    path
        Blocks of one turn each: ``[start - end] <id> <label> [v, a, d]``, then the votes (``C-…``) and the attributes
        (``A-…``) of each annotator.

    Returns
    -------
    list of dict
        ``id``, ``start`` and ``end`` (s, within the dialogue), ``emotion`` (native name), ``valence``, ``arousal``,
        ``dominance`` (1–5), ``votes`` ("E2: neutral | E3: neutral, frustration | …").

    Raises
    ------
    ValueError
        If a turn has a label that IEMOCAP does not know, or the file holds no turn.
    """
    turns = []
    for number, line in enumerate(
        Path(path).read_text(encoding="utf-8", errors="replace").splitlines(), start=1
    ):
        if turn := _TURN.match(line):
            if turn["emotion"] not in NATIVE:
                raise ValueError(
                    f"{path}, line {number}: label {turn['emotion']!r}, expected one of {sorted(NATIVE)}"
                )
            turns.append(
                {
                    "id": turn["id"],
                    "start": float(turn["start"]),
                    "end": float(turn["end"]),
                    "emotion": NATIVE[turn["emotion"]],
                    "votes": [],
                    **{name: float(turn[name]) for name in ("valence", "arousal", "dominance")},
                }
            )
        elif line.startswith("["):
            raise ValueError(
                f"{path}, line {number}: found {line!r}, expected '[start - end]\\t<id>\\t<label>\\t[v, a, d]'"
            )
        elif turns and (vote := _VOTE.match(line)):
            emotions = ", ".join(
                e.strip().lower() for e in vote["emotions"].split(";") if e.strip()
            )
            turns[-1]["votes"].append(f"{vote['annotator']}: {emotions}")
    if not turns:
        raise ValueError(
            f"{path} holds no line like '[6.29 - 8.23]\\tSes01F_impro01_F000\\tneu\\t[2.5, 2.5, 2.5]': is it "
            "an EmoEvaluation file?"
        )
    return [turn | {"votes": " | ".join(turn["votes"])} for turn in turns]


def read_transcription(path: Path) -> dict[str, str]:
    """Parse one transcription file into {utterance: text}; lines of other kinds (laughter, cues) are no utterances."""
    if not Path(path).is_file():
        return {}
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    return {spoken["id"]: spoken["text"] for line in lines if (spoken := _SPOKEN.match(line))}


def _read_session(session: Path) -> list[dict]:
    rows = []
    utterances = _by_stem(session / "sentences/wav")
    dialogues = _by_stem(session / "dialog/wav")
    for path in sorted(session.glob("dialog/EmoEvaluation/Ses*.txt")):
        spoken = read_transcription(session / "dialog/transcriptions" / path.name)
        turns = sorted(read_evaluation(path), key=lambda turn: (turn["start"], turn["end"]))
        for number, turn in enumerate(turns):
            whole = turn["id"] not in utterances and path.stem in dialogues
            speaker = turn["id"][:5] + turn["id"].rsplit("_", 1)[1][0]
            rows.append(
                {
                    "utterance_id": turn["id"],
                    "path": str(dialogues[path.stem] if whole else utterances.get(turn["id"], "")),
                    "start_s": turn["start"] if whole else float("nan"),
                    "end_s": turn["end"] if whole else float("nan"),
                    "speaker": speaker,
                    "sex": {"F": "female", "M": "male"}[speaker[-1]],
                    "group": speaker[:5],
                    # scripted dialogues are the same words for all speakers; improvised ones share a situation only
                    "sentence": spoken.get(turn["id"], "").lower(),
                    "text": spoken.get(turn["id"], ""),
                    "dialogue": path.stem,
                    "turn": float(number),
                    "emotion_native": turn["emotion"],
                    "intensity": "",
                    **{name: turn[name] for name in ("valence", "arousal", "dominance", "votes")},
                }
            )
    return rows


def _by_stem(folder: Path) -> dict[str, Path]:
    """Map names to audio files."""
    return {path.stem: path for path in sorted(folder.rglob("*")) if is_audio(path)}
