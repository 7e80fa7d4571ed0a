"""Text models: what goes in is what was said, and before; padding counts for nothing; words that say nothing give chance."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_utterances

from helpers import metrics, pretrained, splits, text, training
from helpers.experiment import cross_validate

SAID = {
    "happy": ["what a lovely day", "I love it", "this is wonderful!"],
    "sad": ["I miss her so", "it is over...", "nobody came"],
}


@pytest.fixture(scope="module")
def weights() -> str:
    return pretrained.fingerprint(pretrained.locate(text.ENCODER))


def dialogue(*texts: str, name: str = "d1", speakers: str = "AB") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "utterance_id": [f"toy/{name}_{i}" for i in range(len(texts))],
            "text": texts,
            "dialogue": name,
            "turn": np.arange(len(texts), dtype=float),
            "speaker": [speakers[i % 2] for i in range(len(texts))],
        }
    )


def spoken(n_speakers: int = 8, per_emotion: int = 3) -> pd.DataFrame:
    utterances = make_utterances(n_speakers, per_emotion, ("happy", "sad"))
    number = utterances.groupby(["speaker", "emotion"]).cumcount()
    return utterances.assign(
        said=[SAID[e][i % 3] for e, i in zip(utterances["emotion"], number, strict=True)], before=""
    )


def test_before_is_of_the_same_dialogue_in_order_and_rows_stay_where_they_were():
    table = pd.concat(
        [
            dialogue("one", "two", "three", "four"),
            dialogue("uno", "due", name="d2"),
            dialogue("alone", "alone too", name="").assign(turn=np.nan),
        ],
        ignore_index=True,
    )
    shuffled = table.sample(frac=1, random_state=0)
    found = text.with_dialogue(shuffled, n_before=2)
    assert found["utterance_id"].tolist() == shuffled["utterance_id"].tolist()
    before = found.sort_index()["before"].tolist()
    assert before == ["", "one", "one two", "two three", "", "uno", "", ""]
    assert text.with_dialogue(table, n_before=0)["before"].eq("").all()
    named = text.with_dialogue(table, 1, names=True)
    assert named.loc[1, ["said", "before", "text"]].tolist() == ["B: two", "A: one", "two"]
    assert (found["said"] == found["text"]).all()


def test_word_pieces_keep_what_was_said_and_the_end_of_what_was_before():
    words = " ".join(["word"] * 50)
    table = pd.DataFrame(
        {"said": ["yes", words, ""], "before": ["no no", words + " last", "before"]}
    )
    pieces = text.word_pieces(table, longest=40)
    tokenizer = text.tokenizer_of(text.ENCODER)
    first, last, word = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "word"))
    assert pieces.shape == (3, 40) and pieces.dtype == np.int32
    assert pieces[0, :6].tolist() == [
        first,
        *[tokenizer.token_to_id("no")] * 2,
        last,
        tokenizer.token_to_id("yes"),
        last,
    ]
    assert not pieces[0, 6:].any() and (pieces == last).sum(axis=1).tolist() == [2, 2, 2]
    said = text.spoken(torch.tensor(pieces), last).numpy()
    assert said.sum(axis=1).tolist() == [2, 21, 1], "own pieces and the separator"
    assert (
        pieces[1][~said[1]][-2] == tokenizer.token_to_id("last")
        and (pieces[1][said[1]][:-1] == word).all()
    )


@pytest.mark.parametrize("network", [text.TextCNN, text.TextLSTM, text.FineTunedText])
def test_padding_and_company_change_no_logit(network, weights):
    torch.manual_seed(0)
    net = network(3, (40,), text.ENCODER, weights).eval()
    table = pd.DataFrame(
        {
            "said": ["yes", "what a lovely day it is today, my friend!"],
            "before": ["", "how are you? fine."],
        }
    )
    pieces = torch.tensor(text.word_pieces(table))
    with torch.inference_mode():
        together = net(pieces)
        torch.testing.assert_close(
            net(torch.nn.functional.pad(pieces, (0, 30))), together, atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            torch.cat([net(row[None]) for row in pieces]), together, atol=1e-4, rtol=0
        )
    net.train()
    net(pieces).square().sum().backward()
    silent = [
        name
        for name, p in net.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert not silent


def test_word_vectors_are_not_stored_with_a_fold(weights):
    stored = text.TextCNN(3, (40,), text.ENCODER, weights).state_dict()
    assert not any("vectors" in name for name in stored)
    with pytest.raises(ValueError, match="has other weights"):
        text.TextCNN(3, (40,), text.ENCODER, "0123")


@pytest.mark.parametrize(
    ("name", "least"),
    [("tf-idf, linear", 0.95), ("tf-idf, LightGBM", 0.65), ("embeddings, linear", 0.95)],
)
def test_classical_text_models_learn_words_they_were_trained_on(name, least):
    utterances = spoken()
    folds = splits.make_folds(utterances, n_folds=4)
    model = text.classical_models(n_rounds=30, n_components=4)[name]
    inputs = (
        text.two_embeddings(utterances) if "embeddings" in name else text.two_strings(utterances)
    )
    table, record = cross_validate(model, inputs, utterances["utterance_id"], folds)
    assert metrics.uar(table[table["role"] == "test"]) > least
    assert all(
        set(steps["fit"]).isdisjoint(
            folds.query("role == 'test' and fold == @fold")["utterance_id"]
        )
        for fold, steps in ((int(f), s) for f, s in record["folds"].items())
    )


@pytest.mark.parametrize("kind", ["counted", "trees", "embedded", "cnn"])
def test_words_that_are_balanced_over_emotions_are_worth_exactly_chance(kind, weights):
    utterances = spoken(per_emotion=2)
    utterances["said"] = np.where(
        utterances["utterance_id"].str.endswith("0"), "kids are talking", "dogs are sitting"
    )
    folds = splits.make_folds(utterances, n_folds=4)
    if kind == "cnn":
        model, inputs = (
            training.Network(
                "cnn",
                text.TextCNN,
                {"encoder": text.ENCODER, "weights": weights},
                epochs=1,
                device="cpu",
            ),
            text.word_pieces(utterances),
        )
    elif kind == "embedded":
        model, inputs = (
            text.classical_models()["embeddings, linear"],
            text.two_embeddings(utterances),
        )
    else:  # fewer columns than components
        model = text.classical_models(5)[
            "tf-idf, LightGBM" if kind == "trees" else "tf-idf, linear"
        ]
        inputs = text.two_strings(utterances)
    table, _ = cross_validate(model, inputs, utterances["utterance_id"], folds)
    by_fold = table[table["role"] == "test"].groupby("fold")
    assert [metrics.uar(rows) for _, rows in by_fold] == pytest.approx([0.5] * 4)


def test_sentence_embeddings_are_stored_and_in_order():
    texts = pd.Series(["a dog", "I am glad", "a dog", "I am happy"])
    rows = text.sentence_embeddings(texts, device="cpu")
    assert rows.shape == (4, 384) and np.array_equal(rows[0], rows[2])
    assert rows[1] @ rows[3] > 0.6 > rows[0] @ rows[1] and np.linalg.norm(
        rows, axis=1
    ) == pytest.approx(1, abs=1e-4)
    assert np.array_equal(text.sentence_embeddings(texts[::-1], device="cpu"), rows[::-1])


def test_fine_tuned_network_goes_the_common_road(weights):
    utterances = spoken(6, 1)
    folds = splits.make_folds(utterances, n_folds=2)
    model = training.Network(
        "text",
        text.FineTunedText,
        {"encoder": text.ENCODER, "weights": weights},
        epochs=1,
        device="cpu",
    )
    table, _ = cross_validate(
        model, text.word_pieces(utterances), utterances["utterance_id"], folds, pretrained=True
    )
    assert table["pretrained"].all() and len(table) == len(folds[folds["role"] != "train"])


# MELD


def write_meld(folder, **changes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in {"train": 3, "dev": 1, "test": 2}.items():
        rows = [
            {
                "Sr No.": i,
                "Utterance": f"It\u2019s \u201c{part}\u201d\u2026 {i}",
                "Speaker": "Joey",
                "Sentiment": "x",
                "Emotion": "joy" if i % 2 else "neutral",
                "Dialogue_ID": i // 2,
                "Utterance_ID": i % 2,
            }
            for i in range(2 * n)
        ]
        pd.DataFrame(rows).rename(columns=changes).to_csv(
            folder / f"{part}_sent_emo.csv", index=False
        )


def test_meld_is_read_with_its_own_division(tmp_path):
    write_meld(tmp_path)
    utterances, folds = text.read_meld(tmp_path)
    assert (
        folds["role"].value_counts().to_dict() == {"train": 6, "valid": 2, "test": 4}
        and (folds["fold"] == 1).all()
    )
    assert set(folds["emotion"]) == {"happy", "neutral"} and utterances["utterance_id"].is_unique
    assert utterances["text"][0] == 'It\'s "train"... 0'
    with_before = text.with_dialogue(utterances)
    assert with_before.loc[with_before["turn"] == 1, "before"].str.len().gt(0).all()


def test_meld_that_is_missing_or_something_else_is_told(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"train_sent_emo\.csv is not there.*github\.com/declare-lab/MELD"
    ):
        text.read_meld(tmp_path)
    write_meld(tmp_path, Emotion="Feeling")
    with pytest.raises(ValueError, match="has no column Emotion"):
        text.read_meld(tmp_path)
    write_meld(tmp_path)
    path = tmp_path / "dev_sent_emo.csv"
    path.write_text(path.read_text().replace("neutral", "hunger"))
    with pytest.raises(ValueError, match="hunger"):
        text.read_meld(tmp_path)
