"""Protocol cards say what a reader needs to compare a number, and nothing that was not recorded."""

import json

import pytest
from conftest import make_features, make_predictions, make_utterances
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from helpers import corpora, metrics, paths, protocol, splits, tables
from helpers.estimators import Classical
from helpers.experiment import cross_validate, write_record


@pytest.fixture
def finished():
    """A work folder after a model notebook and the average."""
    utterances = make_utterances(12).assign(
        utterance_id=lambda t: t["utterance_id"].str.replace("toy", "mine")
    )
    folds, folder = splits.make_folds(utterances, n_folds=4), paths.work("mine", "native")
    tables.write_table(folds, folder / "folds.csv", "folds")
    model = Classical("LDA", LinearDiscriminantAnalysis(solver="lsqr"), {"shrinkage": [0.1, 0.5]})
    table, record = cross_validate(
        model, make_features(utterances), utterances["utterance_id"], folds, seed=3
    )
    tables.write_table(
        table, folder / "predictions/lda.parquet", "predictions", notebook="11_ml_ensemble"
    )
    write_record([record], folder / "records/lda.json")
    results = metrics.results_table(
        {"lda": table, "average_all": make_predictions(folds)}, folds, "mine"
    )
    return (
        protocol.cards(
            results, folds, folder, "mine", "native", {"average_all": ["lda", "cnn"]}, seed=7
        ),
        results,
        folds,
    )


def card_of(cards: list[dict], model: str) -> dict:
    return next(card for card in cards if card["model"] == model)


def test_card_holds_what_was_done(finished):
    cards, results, folds = finished
    assert json.loads(json.dumps(cards)) == json.loads(json.dumps(cards, default=str)), (
        "plain values only"
    )
    card, row = card_of(cards, "lda"), results.set_index("model").loc["lda"]
    assert (
        card["results"]["uar"] == pytest.approx(row["uar"], abs=1e-6)
        and card["results"]["n"] == row["n"]
    )
    assert (
        card["corpus"]["speakers"] == 12
        and card["corpus"]["utterances"] == folds["utterance_id"].nunique()
    )
    assert list(card["label_policy"]["utterances"]) == corpora.emotion_order(folds["emotion"])
    assert card["folds"]["number"] == 4 and card["folds"]["speakers_apart"] is True
    assert sorted(s for names in card["folds"]["test_speakers"].values() for s in names) == sorted(
        set(folds["speaker"])
    )
    assert (
        card["seeds"] == {"training": 3, "bootstrap": 7}
        and card["made by"]["notebook"] == "11_ml_ensemble"
    )
    assert (
        card["selection"] == "per fold: weights fitted on train and valid, settings chosen by valid"
    )
    assert {"python", "pandas", "scikit-learn"} <= set(card["versions"])


def test_card_does_not_invent(finished):
    cards, _, _ = finished
    average = card_of(cards, "average_all")
    assert (
        average["made by"]["members"] == ["lda", "cnn"]
        and average["selection"] is None
        and average["versions"] is None
    )
    assert card_of(cards, "majority")["seeds"]["training"] is None


def test_text_says_it_in_words(finished):
    cards, _, _ = finished
    said = protocol.text(card_of(cards, "lda"))
    for part in (
        "lda, inductive: UAR",
        "95 % by bootstrap over speakers",
        "12 speakers",
        "4 fold(s), drawn here",
        "Speakers apart: yes",
        "settings chosen by valid",
        "training 3, bootstrap 7",
        "scikit-learn",
    ):
        assert part in said
    assert "Average of lda, cnn." in protocol.text(card_of(cards, "average_all"))
    assert all(protocol.text(card) for card in cards)


def test_division_that_shares_speakers_is_marked(finished):
    _, results, folds = finished
    leaked = folds.assign(
        role=folds["role"].where(folds.index != folds.index[folds["role"] == "test"][0], "train")
    )
    folder = paths.work("mine", "native")
    card, clean = (
        protocol.cards(results, table, folder, "mine", "native")[0] for table in (leaked, folds)
    )
    assert card["folds"]["speakers_apart"] is False and "Speakers apart: NO" in protocol.text(card)
    assert card["folds"]["sha256"] != clean["folds"]["sha256"]
