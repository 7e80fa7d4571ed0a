"""Reading an IEMOCAP release: EmoEvaluation, transcriptions, and the audio of each utterance.

The folder is read as it is unpacked (C. Busso et al., "IEMOCAP: interactive emotional dyadic motion
capture database", Language Resources and Evaluation 42(4), 2008)::

    SessionN/dialog/EmoEvaluation/<dialogue>.txt     label, times, attributes, votes
    SessionN/dialog/transcriptions/<dialogue>.txt    what was said
    SessionN/sentences/wav/<dialogue>/<utterance>.*  the utterances; where there are none,
    SessionN/dialog/wav/<dialogue>.*                 the dialogues, from which they are cut

In ``Ses01F_impro01_M003`` the first letter is the actor who wore the markers; the *speaker* is the
second one: Ses01M.
"""

import re
from pathlib import Path

import pandas as pd

from helpers.audio import files_below

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
_SPOKEN = re.compile(r"^(Ses\d\d[FM]_\w+_[FM]\d+) \[[\d.]+-[\d.]+\]:[ \t]*(.*)$", re.MULTILINE)


def read(root: Path) -> pd.DataFrame:
    """Read all sessions under a root folder (or in a folder one level below it).

    Returns
    -------
    pd.DataFrame
        One row per utterance; ``path`` is empty where its audio is not there. ``start_s`` and
        ``end_s`` (s) are set only where the path is a whole dialogue.
    """
    sessions = sorted([*root.glob("Session[1-5]"), *root.glob("*/Session[1-5]")])
    return pd.DataFrame([row for session in sessions for row in _read_session(session)])


def read_evaluation(path: Path) -> list[dict]:
    """Parse one EmoEvaluation file.

    Parameters
    ----------
    path
        Blocks of one turn each: ``[start - end] <id> <label> [v, a, d]``, then the votes (``C-…``)
        and the attributes (``A-…``) of each annotator.

    Returns
    -------
    list of dict
        ``id``, ``start`` and ``end`` (s, within the dialogue), ``emotion`` (native name),
        ``valence``, ``arousal``, ``dominance`` (1–5), ``votes`` ("E2: neutral | E3: neutral,
        frustration | …").

    Raises
    ------
    ValueError
        If a turn has a label that IEMOCAP does not know, or the file holds no turn.
    """
    turns = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        turn, vote = _TURN.match(line), _VOTE.match(line)
        if turn and turn["emotion"] not in NATIVE:
            raise ValueError(
                f"{path}, line {number}: label {turn['emotion']!r}, expected one of "
                f"{sorted(NATIVE)}"
            )
        if line.startswith("[") and not turn:
            raise ValueError(
                f"{path}, line {number}: found {line!r}, expected "
                "'[start - end]\\t<id>\\t<label>\\t[v, a, d]'"
            )
        if turn:
            turns.append(
                {
                    "id": turn["id"],
                    "start": float(turn["start"]),
                    "end": float(turn["end"]),
                    "emotion": NATIVE[turn["emotion"]],
                    "valence": float(turn["valence"]),
                    "arousal": float(turn["arousal"]),
                    "dominance": float(turn["dominance"]),
                    "votes": [],
                }
            )
        elif turns and vote:
            emotions = re.findall(r"[^\s;](?:[^;]*[^\s;])?", vote["emotions"].lower())
            turns[-1]["votes"].append(f"{vote['annotator']}: {', '.join(emotions)}")
    if not turns:
        raise ValueError(
            f"{path} holds no line like '[6.29 - 8.23]\\tSes01F_impro01_F000\\tneu\\t"
            "[2.5, 2.5, 2.5]': is it an EmoEvaluation file?"
        )
    return [turn | {"votes": " | ".join(turn["votes"])} for turn in turns]


def read_transcription(path: Path) -> dict[str, str]:
    """Parse one transcription file into {utterance: text}, without laughter and cues."""
    return dict(_SPOKEN.findall(_text(path))) if path.is_file() else {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _read_session(session: Path) -> list[dict]:
    utterances, dialogues = _by_stem(session / "sentences/wav"), _by_stem(session / "dialog/wav")
    rows = []
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
                    # scripted dialogues are the same words for all speakers; improvised ones share
                    # a situation only
                    "sentence": spoken.get(turn["id"], "").lower(),
                    "text": spoken.get(turn["id"], ""),
                    "dialogue": path.stem,
                    "turn": float(number),
                    "emotion_native": turn["emotion"],
                    "intensity": "",
                    "valence": turn["valence"],
                    "arousal": turn["arousal"],
                    "dominance": turn["dominance"],
                    "votes": turn["votes"],
                }
            )
    return rows


def _by_stem(folder: Path) -> dict[str, Path]:
    """Map names to audio files."""
    return {path.stem: path for path in sorted(files_below(folder))}
