"""Transcripts: what was said, what was said before it in the same dialogue, and their embeddings.

Conventions
-----------
An utterance is two strings: ``said``, its text (with the speaker's name in front, if asked for),
and ``before``, the utterances before it in the same dialogue ("" at the beginning). Only words are
read, never the emotion of an earlier utterance, which is not known when a model is used.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from transformers import AutoTokenizer

from helpers import encoders
from helpers.cache import fetch, hash_of

VERSION = 1  # raise it when a change of this module changes results
MELD_ROLES = {"train": "train", "dev": "validation", "test": "test"}
MELD_EMOTIONS = {
    "anger": "angry",
    "disgust": "disgust",
    "fear": "fearful",
    "joy": "happy",
    "neutral": "neutral",
    "sadness": "sad",
    "surprise": "surprised",
}
QUOTES = {
    "[\u2018\u2019\x91\x92]": "'",
    "[\u201c\u201d\x93\x94]": '"',
    "[\u2013\u2014\x96\x97]": "-",
    "\u2026|\x85": "...",
}


class TextMissing(ValueError):
    """There are no transcripts; run_all.sh reports the notebook as skipped."""


def read_meld(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the text of MELD, dialogues from the series *Friends*, with its official division.

    The division separates dialogues but *not* speakers: the six main characters speak in train,
    validation and test.

    Parameters
    ----------
    folder
        With ``train_sent_emo.csv``, ``dev_sent_emo.csv`` and ``test_sent_emo.csv``, as released.

    Returns
    -------
    utterances : pd.DataFrame
        ``utterance_id``, ``text``, ``speaker``, ``dialogue``, ``turn``.
    folds : pd.DataFrame
        Schema ``folds``, one fold: train, validation (called dev in MELD) and test.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing or is not MELD's; the text says what was found and what was expected.

    References
    ----------
    S. Poria et al., "MELD: a multimodal multi-party dataset for emotion recognition in
    conversations", ACL 2019.
    """
    files = {part: folder / f"{part}_sent_emo.csv" for part in MELD_ROLES}
    if missing := [path.name for path in files.values() if not path.is_file()]:
        raise FileNotFoundError(
            f"{', '.join(missing)} not found in {folder}. MELD's text is at "
            "https://github.com/declare-lab/MELD, in data/MELD: copy the three files from there."
        )
    found = pd.concat(
        [pd.read_csv(path).assign(part=part) for part, path in files.items()], ignore_index=True
    ).replace(QUOTES, regex=True)
    if missing := {"Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID"} - {*found}:
        raise ValueError(
            f"the files in {folder} have no column {', '.join(sorted(missing))}, found "
            f"{list(found.columns)}: are they MELD's?"
        )
    if strange := set(found["Emotion"]) - MELD_EMOTIONS.keys():
        raise ValueError(
            f"the files in {folder} have the emotions {sorted(map(str, strange))}, expected "
            f"{', '.join(MELD_EMOTIONS)}"
        )
    table = found.assign(
        dialogue=found["part"] + "_" + found["Dialogue_ID"].astype(str),
        utterance_id=lambda t: "meld/" + t["dialogue"] + "_" + t["Utterance_ID"].astype(str),
        turn=found["Utterance_ID"],
        text=found["Utterance"].str.strip(),
        speaker=found["Speaker"].str.strip(),
        emotion=found["Emotion"].map(MELD_EMOTIONS),
        fold=1,
        role=found["part"].map(MELD_ROLES),
    )
    return (
        table[["utterance_id", "text", "speaker", "dialogue", "turn"]],
        table[["utterance_id", "emotion", "speaker", "fold", "role"]],
    )


def sentence_embeddings(texts: pd.Series, name: str, device: str = "auto") -> np.ndarray:
    """Return the embedding of each text by a pretrained network; it is stored, and not trained.

    Parameters
    ----------
    texts
        Of any length; what exceeds the network's reach (256 word pieces for MiniLM) is cut off.
    name
        Of the network; see ``encoders.locate``.
    device
        "auto" takes a GPU if there is one.

    Returns
    -------
    np.ndarray [shape=(n_texts, n_units), float32]
        Of length 1, so that their direction alone counts.

    References
    ----------
    N. Reimers, I. Gurevych, "Sentence-BERT: sentence embeddings using Siamese BERT-networks",
    EMNLP 2019.
    """
    from sentence_transformers import SentenceTransformer

    folder, unique = encoders.locate(name), sorted(set(texts))

    stored = fetch(
        "sentences",
        VERSION,
        hash_of(encoders.weights_hash(folder), unique),
        lambda: {
            "rows": SentenceTransformer(
                str(folder), device=None if device == "auto" else device
            ).encode(unique, batch_size=64, normalize_embeddings=True)
        },
    )
    return stored["rows"][pd.Index(unique).get_indexer(texts)]


def word_pieces(utterances: pd.DataFrame, name: str, longest: int = 96) -> np.ndarray:
    """Return utterances as numbers of word pieces: [CLS], before, [SEP], said, [SEP], then zeros.

    At most half of the row is what was said; where the rest is too short for what was said before,
    the beginning of that is left out.

    Parameters
    ----------
    utterances
        With ``said`` and ``before``.
    name
        Of the encoder that has the vocabulary; see ``encoders.locate``.
    longest
        Word pieces of a row.

    Returns
    -------
    np.ndarray [shape=(n_utterances, n_pieces), int32]
        0 is padding; as wide as the longest row needs.
    """
    tokenizer, rows = AutoTokenizer.from_pretrained(encoders.locate(name)), []
    said, before = (
        tokenizer(utterances[column].tolist(), add_special_tokens=False)["input_ids"]
        for column in ("said", "before")
    )
    for own, earlier in zip(said, before, strict=True):
        room = longest - 3 - min(len(own), longest // 2)
        rows.append(
            [
                tokenizer.cls_token_id,
                *earlier[-room:],
                tokenizer.sep_token_id,
                *own[: longest // 2],
                tokenizer.sep_token_id,
            ]
        )
    return encoders.padded(rows, 0).astype(np.int32)
