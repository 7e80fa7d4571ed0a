"""One road from model to predictions: cached, deterministic, blind to the test rows' emotions."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_features, make_utterances
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers import artifacts, audit, features, metrics, nets, paths, splits, tables, training
from helpers.estimators import Classical
from helpers.experiment import Dataset, cross_validate
from helpers.features import normalise_by_speaker

LDA = Classical("LDA", LinearDiscriminantAnalysis())


class Counting(Classical):
    """Counts how many folds were really computed, and keeps what it was given."""

    given: list = []  # noqa: RUF012

    def fit_predict(self, train, validation, test, n_classes, seed):
        self.given.append((train, validation, test))
        return super().fit_predict(train, validation, test, n_classes, seed)


@pytest.fixture
def setup():
    utterances = make_utterances(10, 4)
    folds = splits.make_folds(utterances, n_folds=5)
    return utterances["utterance_id"], make_features(utterances), folds


@pytest.fixture
def data(setup):
    return Dataset(*setup)


@pytest.fixture
def counting():
    Counting.given.clear()
    return Counting("LDA", make_pipeline(StandardScaler(), LinearDiscriminantAnalysis()))


def test_predictions_hold_every_validation_and_test_row_once(data, counting):
    run = cross_validate(counting, data)
    key = ["utterance_id", "fold", "role"]
    wanted = data.folds[data.folds["role"] != "train"].set_index(key)
    found = run.predictions.set_index(key).sort_index()
    assert found["truth"].tolist() == wanted["emotion"].sort_index().tolist()
    assert found["speaker"].tolist() == wanted["speaker"].sort_index().tolist()
    tables.SCHEMAS["predictions"].validate(run.predictions)
    np.testing.assert_allclose(metrics.probabilities(run.predictions)[0].sum(axis=1), 1, atol=1e-5)
    assert metrics.uar(run.test()) > 0.6, "these features are easy"
    assert len(run.records) == 1 and set(run.records[0]["folds"]) == set("12345")


def test_record_names_the_rows_that_each_step_saw(data):
    steps = cross_validate(LDA, data).records[0]["folds"]["2"]
    rows = data.folds.query("fold == 2").groupby("role")["utterance_id"].agg(set)
    assert set(steps["fit"]) == rows["train"] | rows["validation"]
    assert set(steps["select"]) == rows["validation"]


def test_finished_folds_are_not_computed_again(setup, counting):
    ids, inputs, folds = setup
    data = Dataset(*setup)
    first = cross_validate(counting, data).predictions
    assert len(counting.given) == 5
    assert cross_validate(counting, data).predictions.equals(first) and len(counting.given) == 5
    cross_validate(counting, data, seed=100)
    assert len(counting.given) == 10, "another seed is another result"
    changed = inputs.copy()
    changed[3] += 1
    cross_validate(counting, Dataset(ids, changed, folds))
    assert len(counting.given) == 15, "every fold sees every row"
    cross_validate(Counting("LDA", LinearDiscriminantAnalysis()), data)
    assert len(counting.given) == 20, "another estimator is another result"


def test_copies_of_the_clips_that_are_fitted_on_are_fitted_on(setup, counting):
    ids, inputs, folds = setup
    alone = cross_validate(counting, Dataset(*setup)).predictions
    Counting.given.clear()
    copies = np.stack([inputs + 1, inputs - 1], axis=1)
    run = cross_validate(counting, Dataset(ids, inputs, folds, copies=copies))
    train, validation, _ = Counting.given[1]
    place = pd.Index(ids).get_indexer(folds.query("fold == 2 and role == 'train'")["utterance_id"])
    assert (train.copies == copies[place]).all()
    both = (train + validation).with_copies()
    n = len(both.inputs) // 3
    assert (both.inputs[n : 2 * n] == both.inputs[:n] + 1).all()
    assert (both.inputs[2 * n :] == both.inputs[:n] - 1).all()
    for name in ("classes", "speakers", "ids"):
        assert (getattr(both, name) == np.tile(getattr(both, name)[:n], 3)).all()
    step = run.records[0]["folds"]["2"]
    test = folds.query("fold == 2 and role == 'test'")["utterance_id"]
    assert step["augment"] == step["fit"] and not set(step["augment"]) & set(test)
    assert not run.predictions.equals(alone), "copies make another result"
    found = run.test().query("fold == 2").filter(like="p_").to_numpy(np.float32)
    assert (run.outcome(2)["test"] == found).all()
    assert len(Counting.given) == 5, "what cross-validation stored was computed again"
    scaled = np.stack([(inputs - inputs.mean(axis=0)) / inputs.std(axis=0)], axis=1)
    with pytest.raises(ValueError, match="100% over all rows"):
        Dataset(ids, inputs, folds, copies=scaled)


def test_an_interrupted_run_continues(data, counting, monkeypatch):
    fit = Classical.fit_predict

    def killed(self, *given):
        if len(self.given) == 3:
            raise KeyboardInterrupt
        return fit(self, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Classical, "fit_predict", killed)
        cross_validate(counting, data)
    cross_validate(counting, data)
    assert len(counting.given) == 3 + 3, "two folds were finished before the kill"


def test_result_does_not_depend_on_n_jobs_or_the_order_of_rows(setup, monkeypatch, private_work):
    ids, inputs, folds = setup
    logistic = make_pipeline(StandardScaler(), LogisticRegression())
    model = Classical("logistic", logistic, {"logisticregression__C": [0.1, 1]})
    alone = cross_validate(model, Dataset(*setup)).predictions
    monkeypatch.setenv("SER_WORK", str(private_work / "other"))
    assert cross_validate(model, Dataset(*setup), n_jobs=2).predictions.equals(alone)
    order = np.random.default_rng(0).permutation(len(ids))
    mixed = Dataset(ids.iloc[order], inputs[order], folds)
    assert cross_validate(model, mixed).predictions.equals(alone)


def test_a_model_never_gets_the_emotions_of_test_rows(setup, counting):
    ids, inputs, folds = setup
    before = cross_validate(counting, Dataset(*setup)).predictions
    for train, validation, test in counting.given:
        assert isinstance(test, np.ndarray) and test.shape[1:] == inputs.shape[1:]
        known = set(map(bytes, np.concatenate([train.inputs, validation.inputs])))
        assert not set(map(bytes, test)) & known
        for array in (train.inputs, train.classes, validation.classes, test):
            assert array.flags.writeable, "torch warns of arrays that are read-only"
    one = folds[folds["fold"] == 1]
    turned = np.where(one["role"] == "test", np.roll(one["emotion"], 1), one["emotion"])
    data = Dataset(ids, inputs, one.assign(emotion=turned))
    after = cross_validate(counting, data).predictions
    columns = [c for c in before if c.startswith("p_")]
    assert after[columns].equals(before.loc[before["fold"] == 1, columns].reset_index(drop=True))


def test_emotion_that_a_fold_does_not_train_on_gets_a_zero(setup):
    ids, inputs, folds = setup
    speaker = folds.query("fold == 1 and role == 'test'")["speaker"].iloc[0]
    rare = folds[(folds["emotion"] != "sad") | (folds["speaker"] == speaker)]
    with pytest.warns(UserWarning, match=r"fold 1: fewer than 2 training clips of sad"):
        run = cross_validate(LDA, Dataset(ids, inputs, rare))
    first = run.test().query("fold == 1")
    assert "sad" in set(first["truth"]) and (first["p_sad"] == 0).all()


def test_inputs_with_nan_are_refused_with_their_number(setup):
    ids, inputs, folds = setup
    inputs[[3, 7], 2], inputs[3, 5] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"^the inputs hold \d+ NaN or infinite values"):
        Dataset(ids, inputs, folds)


def test_missing_utterances_are_refused_by_name(setup):
    ids, inputs, folds = setup
    found = r"the folds name 2 of 160 utterances that have no inputs, e.g. \['toy/s00_neutral_0'"
    with pytest.raises(ValueError, match=found):
        Dataset(ids[2:], inputs[2:], folds)


def test_utterances_that_are_in_no_fold_are_left_out(setup):
    ids, inputs, folds = setup
    more = np.concatenate([inputs, np.full((3, inputs.shape[1]), np.nan, np.float32)])
    data = Dataset([*ids, "toy/x", "toy/y", "toy/z"], more, folds)
    assert data.ids.tolist() == ids.tolist() and len(data.everything().inputs) == 160
    run = cross_validate(LDA, data)
    assert run.predictions.equals(cross_validate(LDA, Dataset(*setup)).predictions)


def test_inputs_scaled_over_all_rows_are_refused(setup):
    ids, inputs, folds = setup
    scaled = StandardScaler().fit_transform(inputs)
    with pytest.raises(ValueError, match="100% over all rows"):
        Dataset(ids, scaled, folds)


def test_speaker_normalised_inputs_have_their_variant(setup, data):
    ids, inputs, folds = setup
    run = cross_validate(LDA, data, variants=("inductive", "speaker-normalised"))
    assert [record["variant"] for record in run.records] == ["inductive", "speaker-normalised"]
    scaled = normalise_by_speaker(inputs, ids.str[4:7].to_numpy(str))
    by_hand = Dataset(ids, scaled, folds, variant="speaker-normalised")
    found = cross_validate(LDA, by_hand).predictions
    both = run.predictions.query("variant == 'speaker-normalised'").reset_index(drop=True)
    assert both.equals(found)
    with pytest.raises(ValueError, match="expected of the variant speaker-normalised"):
        Dataset(ids, inputs, folds, variant="speaker-normalised")


class Small(nets.DNN):
    """A network with embeddings."""

    def embed(self, inputs):
        return self.layers[:-1](self.scaler(inputs))

    @property
    def head(self):
        return self.layers[-1]


@pytest.fixture
def network():
    return training.Network("net", Small, {"hidden": [8]}, epochs=2, device="cpu")


def test_embeddings_are_normalised_per_speaker_and_get_a_new_head(data, network):
    run = cross_validate(network, data, variants=("inductive", "speaker-normalised"))
    assert metrics.uar(run.test("speaker-normalised")) > 0.3
    embedded = run.embedded()
    for fold in (1, 2):
        rows = embedded.rows(fold, "train")
        mine = pd.Index(embedded.ids).get_indexer(rows.ids)
        own = rows.inputs[embedded.speakers[mine] == rows.speakers[0]]
        np.testing.assert_allclose(own.mean(axis=0), 0, atol=1e-4)
    assert not np.allclose(embedded.rows(1, "test").inputs[0], embedded.rows(2, "train").inputs[0])
    start = set(run.records[1]["folds"]["1"]["start"])
    seen = data.folds.query("fold == 1 and role != 'test'")["utterance_id"]
    assert start == set(seen), "what the network saw is audited with what the head saw"
    curves = run.curves
    tables.SCHEMAS["curves"].validate(curves)
    assert curves.groupby("fold")["kept"].sum().eq(1).all() and set(curves["variant"]) == {
        "inductive"
    }
    inputs = torch.tensor(data.rows(1, "test").inputs)
    with torch.inference_mode():
        again = run.network(1)(inputs).softmax(1).numpy()
    np.testing.assert_allclose(again, run.outcome(1)["test"], atol=1e-5)


def test_what_a_run_saves_is_read_again(data, network):
    run = cross_validate(network, data)
    run.save("net", "toy", "four", "07_toy", {"SEED": 0})
    folder = paths.work("toy", "four")
    found = tables.read_table(folder / "predictions/net.parquet", "predictions")
    pd.testing.assert_frame_equal(found, run.predictions, check_dtype=False)
    assert tables.provenance(folder / "predictions/net.parquet")["parameters"] == {"SEED": 0}
    assert len(tables.read_table(folder / "curves/net.csv", "curves")) == len(run.curves)
    record = audit.read_records(folder / "records/net.json")[0]
    assert record["folds"]["1"]["fit"] == run.records[0]["folds"]["1"]["fit"]


def test_the_final_model_is_saved_once(setup):
    utterances = make_utterances(10, 4).drop(columns="emotion")
    tables.write_table(utterances, paths.work("toy") / "utterances.parquet", "utterances")
    scaled = make_pipeline(StandardScaler(), LogisticRegression())
    model = Classical("logistic", scaled, {"logisticregression__C": [0.1, 1]})
    run = cross_validate(model, Dataset(*setup), variants=("inductive", "speaker-normalised"))
    run.save("ml", "toy", "four", "11_toy")
    names = list(features.functionals(artifacts.probe_signal()))[:12]
    reads = artifacts.Input("functionals", {"columns": names})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifacts, "recording_bounds", lambda *given: {})  # there is no audio
        final = run.save_final("ml", "toy", "four", reads)
        card = paths.work("toy", "four") / "models/ml/card.json"
        before = card.stat().st_mtime_ns
        run.save_final("ml", "toy", "four", reads)
    assert card.stat().st_mtime_ns == before
    assert final.variants == ["inductive", "speaker-normalised"]
    assert final.card["results"][0]["uar"] == pytest.approx(metrics.evaluate(run.test())["uar"])


def test_recipes_are_the_same_in_another_process():
    """An address in memory in a recipe would train everything again in every run."""
    code = (
        "from helpers import cache, estimators\n"
        "print([cache.hash_of(m.recipe()) for m in estimators.classical_models(10).values()])"
    )
    command = [sys.executable, "-c", code]
    runs = [
        subprocess.run(command, cwd=paths.PROJECT, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout and len(set(eval(runs[0].stdout))) == 3
