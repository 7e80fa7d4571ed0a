"""One road from model to predictions: cached, deterministic, and blind to the test rows' emotions."""

import ast
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import make_features, make_utterances
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers import estimators, experiment, metrics, splits, tables
from helpers.cache import recipe_hash
from helpers.estimators import Classical
from helpers.experiment import Part, cross_validate
from helpers.features import normalise_by_speaker
from helpers.paths import PROJECT


class Counting(Classical):
    """Counts how many folds were really computed, and keeps what it was given."""

    given: list = []  # noqa: RUF012

    def fit_predict(self, train, valid, test, n_classes, seed):
        self.given.append((train, valid, test))
        return super().fit_predict(train, valid, test, n_classes, seed)


@pytest.fixture
def setup():
    utterances = make_utterances(10, 4)
    return (
        make_features(utterances),
        utterances["utterance_id"],
        splits.make_folds(utterances, n_folds=5),
    )


@pytest.fixture
def counting():
    Counting.given.clear()
    return Counting("LDA", make_pipeline(StandardScaler(), LinearDiscriminantAnalysis()))


def test_predictions_hold_every_valid_and_test_row_once(setup, counting):
    inputs, ids, folds = setup
    table, record = cross_validate(counting, inputs, ids, folds)
    wanted = folds[folds["role"] != "train"].set_index(["utterance_id", "fold", "role"])["emotion"]
    found = table.set_index(["utterance_id", "fold", "role"])["truth"]
    assert found.sort_index().equals(wanted.sort_index().rename("truth"))
    tables.SCHEMAS["predictions"].validate(table)
    np.testing.assert_allclose(metrics.probabilities(table)[0].sum(axis=1), 1, atol=1e-5)
    assert metrics.uar(table[table["role"] == "test"]) > 0.6, "these features are easy"
    assert set(record["folds"]) == set("12345")


def test_record_names_the_rows_that_each_step_saw(setup):
    inputs, ids, folds = setup
    _, record = cross_validate(
        Classical("LDA", LinearDiscriminantAnalysis(), refit=False), inputs, ids, folds
    )
    rows = folds.query("fold == 2").groupby("role")["utterance_id"].agg(set)
    assert (
        set(record["folds"]["2"]["fit"]) == rows["train"]
        and set(record["folds"]["2"]["select"]) == rows["valid"]
    )


def test_finished_folds_are_not_computed_again(setup, counting):
    inputs, ids, folds = setup
    first, _ = cross_validate(counting, inputs, ids, folds)
    assert len(counting.given) == 5
    assert (
        cross_validate(counting, inputs, ids, folds)[0].equals(first) and len(counting.given) == 5
    )
    cross_validate(counting, inputs, ids, folds, seed=100)
    assert len(counting.given) == 10, "another seed is another result"
    changed = inputs.copy()
    changed[3] += 1
    cross_validate(counting, changed, ids, folds)
    assert len(counting.given) == 15, (
        "every fold sees every row, so one changed row changes them all"
    )
    cross_validate(Counting("LDA", LinearDiscriminantAnalysis()), inputs, ids, folds)
    assert len(counting.given) == 20, "another estimator is another recipe"


def test_copies_of_the_clips_that_are_fitted_on_are_fitted_on_besides(setup, counting):
    inputs, ids, folds = setup
    alone, _ = cross_validate(counting, inputs, ids, folds)
    Counting.given.clear()
    copies = np.stack([inputs + 1, inputs - 1], axis=1)
    table, record = cross_validate(counting, inputs, ids, folds, copies=copies)
    train, valid, _ = Counting.given[1]
    rows = folds.query("fold == 2 and role == 'train'")["utterance_id"]
    place = pd.Index(ids).get_indexer(rows)
    assert (train.copies == copies[place]).all() and len(train.with_copies().inputs) == 3 * len(
        rows
    )
    both = (train + valid).with_copies()
    n = len(both.inputs) // 3
    assert (both.inputs[n : 2 * n] == both.inputs[:n] + 1).all() and (
        both.inputs[2 * n :] == both.inputs[:n] - 1
    ).all()
    for name in ("classes", "speakers", "ids"):
        assert (getattr(both, name) == np.tile(getattr(both, name)[:n], 3)).all()
    step = record["folds"]["2"]
    assert step["augment"] == step["fit"]
    assert not set(step["augment"]) & set(
        folds.query("fold == 2 and role == 'test'")["utterance_id"]
    )
    assert not table.equals(alone), "copies are another recipe"
    found = experiment.fold_outcome(counting, inputs, ids, folds, 2, copies=copies)
    assert (
        found["test"]
        == table.query("fold == 2 and role == 'test'").filter(like="p_").to_numpy(np.float32)
    ).all()
    assert len(Counting.given) == 5, "what cross-validation stored was computed again"
    scaled = np.stack([(inputs - inputs.mean(axis=0)) / inputs.std(axis=0)], axis=1)
    with pytest.raises(ValueError, match=r"mean 0|scaled|standardised"):
        cross_validate(counting, inputs, ids, folds, copies=scaled)


@pytest.mark.parametrize("n_classes", [2, 3, 8])
@pytest.mark.parametrize("n_columns", [5, 400])
def test_shrunk_discriminant_is_scikit_learns(n_classes, n_columns):
    rng = np.random.default_rng(n_classes)
    classes = rng.integers(0, n_classes, 300)
    inputs = (
        rng.normal(size=(300, n_columns)) + 0.3 * rng.normal(size=(n_classes, n_columns))[classes]
    )
    equal = np.full(n_classes, 1 / n_classes)
    expected = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3, priors=equal)
    # scikit-learn shrinks the covariance of each class on its own, and weights them with the priors
    order = np.concatenate(
        [np.flatnonzero(classes == i)[: min(np.bincount(classes))] for i in range(n_classes)]
    )
    expected.fit(inputs[order], classes[order])
    found = estimators.ShrunkLDA(0.3).fit(inputs[order], classes[order])
    np.testing.assert_allclose(
        found.predict_proba(inputs), expected.predict_proba(inputs), atol=2e-3
    )
    assert (found.predict(inputs) == expected.predict(inputs)).mean() > 0.99


@pytest.mark.parametrize("name", ["LDA", "logistic regression", "SVM", "MLP"])
def test_a_column_that_hardly_varied_in_training_does_not_decide(name):
    rng = np.random.default_rng(0)
    speakers, classes = np.repeat([f"s{i}" for i in range(8)], 40), np.tile(np.arange(4), 80)
    inputs = rng.normal(size=(320, 6)) + 3 * np.eye(6)[classes]
    inputs[:, 5] = 1 - 1e-7 * (
        rng.random(320) < 0.1
    )  # a greatest value that is 1 for nearly everybody, but for rounding
    unlike = np.isin(speakers, ["s6", "s7"])
    inputs[unlike, 5] = 0.9 + 0.05 * rng.random(80)
    model = estimators.classical_models(6, mlp_epochs=30, search=False)[name]
    # the other speaker alone, who would be answered by that column; and beside one alike in training, on whom a temperature
    # that is fitted on held-out speakers would make all answers flat
    for known in ("s5", "s6"):
        rows = (speakers <= known, speakers == "s7")
        train, test = (Part(inputs[m].astype(np.float32), classes[m], speakers[m]) for m in rows)
        found = estimators.fit_seeded(estimators.clone(model.estimator), train, 0).predict_proba(
            test.inputs
        )
        right = found[np.arange(40), test.classes]
        assert np.mean(found.argmax(axis=1) == test.classes) > 0.5 and -np.log(right).mean() < 1, (
            known,
            right,
        )


def test_clipped_scaler_is_scikit_learns_within_its_limit():
    values = np.random.default_rng(0).normal(3, 2, size=(300, 5))
    expected = StandardScaler().fit(values)
    found = estimators.ClippedScaler(2).fit(values)
    far = values * 10
    np.testing.assert_array_equal(found.transform(far), expected.transform(far).clip(-2, 2))
    assert (far == values * 10).all(), "the rows that were given stay as they were"
    assert np.abs(estimators.ClippedScaler().fit(values).transform(far)).max() == 5


def test_anova_finds_no_noise_in_columns_that_hardly_vary():
    rng, classes = np.random.default_rng(0), np.arange(300) % 3
    values = rng.normal(size=(300, 4)).astype(np.float32)
    values[:, 0] += classes
    values[:, 1] = 1
    values[7, 1] -= 1e-7
    values[:, 2] = (1 - 1e-6 * (classes == 1)).astype(np.float32)
    values[5, 2] = 1 - 3e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, p = estimators.anova(values, classes)
    assert np.isfinite(found).all() and found[2] > 30 and found[1] < 2 and p[1] > 0.3
    np.testing.assert_allclose(
        found[[0, 3]], f_classif(values[:, [0, 3]].astype(float), classes)[0], rtol=1e-9
    )


def test_an_interrupted_run_continues(setup, counting, monkeypatch):
    inputs, ids, folds = setup
    fit = Classical.fit_predict

    def killed(self, *given):
        if len(self.given) == 3:
            raise KeyboardInterrupt
        return fit(self, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Classical, "fit_predict", killed)
        patch.setattr(Counting, "recipe", lambda self: {})
        cross_validate(counting, inputs, ids, folds)
    monkeypatch.setattr(Counting, "recipe", lambda self: {})
    cross_validate(counting, inputs, ids, folds)
    assert len(counting.given) == 3 + 3, "two folds were finished before the kill"


def test_result_does_not_depend_on_n_jobs(setup, monkeypatch, private_work):
    inputs, ids, folds = setup
    model = Classical(
        "logistic",
        make_pipeline(StandardScaler(), LogisticRegression()),
        {"logisticregression__C": [0.1, 1]},
    )
    alone, _ = cross_validate(model, inputs, ids, folds)
    monkeypatch.setenv("SER_WORK", str(private_work / "other"))
    side_by_side, _ = cross_validate(model, inputs, ids, folds, n_jobs=2)
    assert side_by_side.equals(alone)


def test_rows_may_come_in_any_order(setup):
    inputs, ids, folds = setup
    order = np.random.default_rng(0).permutation(len(ids))
    model = Classical("LDA", LinearDiscriminantAnalysis())
    straight, mixed = (
        cross_validate(model, inputs[o], ids.iloc[o], folds)[0]
        for o in (np.arange(len(ids)), order)
    )
    assert straight.equals(mixed)


def test_a_model_never_gets_the_emotions_of_test_rows(setup, counting):
    inputs, ids, folds = setup
    before, _ = cross_validate(counting, inputs, ids, folds)
    for train, valid, test in counting.given:
        assert isinstance(test, np.ndarray) and test.shape[1:] == inputs.shape[1:]
        assert not set(map(bytes, test)) & set(
            map(bytes, np.concatenate([train.inputs, valid.inputs]))
        )
    one = folds[folds["fold"] == 1]
    lied = one.assign(
        emotion=np.where(one["role"] == "test", np.roll(one["emotion"], 1), one["emotion"])
    )
    after, _ = cross_validate(counting, inputs, ids, lied)
    columns = [c for c in before if c.startswith("p_")]
    assert after[columns].equals(before.loc[before["fold"] == 1, columns].reset_index(drop=True))


def test_a_model_gets_arrays_that_torch_takes_without_a_warning(setup, counting):
    cross_validate(counting, *setup)
    arrays = [
        part
        for train, valid, test in counting.given
        for part in (train.inputs, train.classes, valid.classes, test)
    ]
    assert all(array.flags.writeable for array in arrays), (
        "PyTorch warns of arrays that are read-only, as pandas 3 gives them"
    )


def test_emotion_that_a_fold_does_not_train_on_gets_a_zero(setup):
    inputs, ids, folds = setup
    speaker = folds.loc[(folds["fold"] == 1) & (folds["role"] == "test"), "speaker"].iloc[0]
    rare = folds[(folds["emotion"] != "sad") | (folds["speaker"] == speaker)]
    table, _ = cross_validate(Classical("LDA", LinearDiscriminantAnalysis()), inputs, ids, rare)
    first = table[(table["fold"] == 1) & (table["role"] == "test")]
    assert "sad" in set(first["truth"]) and (first["p_sad"] == 0).all()
    np.testing.assert_allclose(metrics.probabilities(table)[0].sum(axis=1), 1, atol=1e-5)


def test_inputs_with_nan_are_refused_with_their_number(setup):
    inputs, ids, folds = setup
    inputs[[3, 7], 2], inputs[3, 5] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"^2 rows of the inputs hold NaN or infinite values"):
        cross_validate(Classical("LDA", LinearDiscriminantAnalysis()), inputs, ids, folds)


def test_missing_utterances_are_refused_by_name(setup):
    inputs, ids, folds = setup
    with pytest.raises(
        ValueError,
        match=r"the folds name 2 of 160 utterances that have no inputs, e.g. \['toy/s00_neutral_0'",
    ):
        cross_validate(Classical("LDA", LinearDiscriminantAnalysis()), inputs[2:], ids[2:], folds)


def test_utterances_that_the_policy_left_out_are_ignored(setup):
    inputs, ids, folds = setup
    model = Classical("LDA", LinearDiscriminantAnalysis())
    more = np.concatenate([inputs, np.full((3, inputs.shape[1]), np.nan, np.float32)])
    table, _ = cross_validate(model, more, pd.Series([*ids, "toy/x", "toy/y", "toy/z"]), folds)
    assert table.equals(cross_validate(model, inputs, ids, folds)[0])


def test_speaker_normalised_inputs_have_their_variant(setup):
    inputs, ids, folds = setup
    scaled = normalise_by_speaker(inputs, ids.str[4:7].to_numpy(str))
    table, record = cross_validate(
        Classical("LDA", LinearDiscriminantAnalysis()), scaled, ids, folds, "speaker-normalised"
    )
    assert set(table["variant"]) == {record["variant"]} == {"speaker-normalised"}


def test_setting_is_chosen_on_valid_rows_alone():
    rng = np.random.default_rng(0)
    classes = np.tile(np.arange(3), 30)
    train, valid = (
        Part(
            np.eye(3)[classes] + rng.normal(0, spread, (90, 3)),
            classes,
            np.repeat(["a", "b", "c"], 30),
        )
        for spread in (1, 0.01)
    )
    model = Classical("l", LogisticRegression(), {"C": [1e-5, 1e3]})
    assert model.fit_predict(train, valid, valid.inputs, 3, 0)["notes"]["setting"] == {"C": 1e3}
    wrong = Part(valid.inputs, np.roll(classes, 1), valid.speakers)
    assert model.fit_predict(train, wrong, valid.inputs, 3, 0)["notes"]["setting"] == {"C": 1e-5}


@pytest.mark.parametrize("name", estimators.classical_models(12))
def test_every_classical_model_is_valid_and_deterministic(name):
    utterances = make_utterances(6, 5)
    inputs = make_features(utterances, strength=2)
    classes = (
        utterances["emotion"]
        .map({e: i for i, e in enumerate(sorted(set(utterances["emotion"])))})
        .to_numpy()
    )
    speakers = utterances["speaker"].to_numpy(str)
    train, valid, test = (
        Part(inputs[m], classes[m], speakers[m])
        for m in (speakers < "s04", speakers == "s04", speakers == "s05")
    )
    model = estimators.classical_models(12, n_trees=10, n_rounds=5, k_best=8, search=False)[name]
    outcomes = [model.fit_predict(train, valid, test.inputs, 5, seed=3) for _ in range(2)]
    for role in ("valid", "test"):
        values = outcomes[0][role]
        assert values.shape == (20, 5) and (values >= 0).all() and (values[:, 4] == 0).all()
        np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-5)
        assert np.array_equal(values, outcomes[1][role])
    assert np.mean(outcomes[0]["test"].argmax(axis=1) == test.classes) > 0.5
    other = estimators.classical_models(13, 11, 6, 9)[name]
    assert experiment.recipe_hash(model.recipe()) != experiment.recipe_hash(other.recipe())


def test_recipes_are_the_same_in_another_process():
    """An address in memory in a recipe would train everything again in every run."""
    code = (
        "from helpers.cache import recipe_hash; from helpers.estimators import classical_models\n"
        "print({name: recipe_hash(model.recipe()) for name, model in classical_models(10).items()})"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    here = {
        name: recipe_hash(model.recipe()) for name, model in estimators.classical_models(10).items()
    }
    assert ast.literal_eval(other.stdout) == here
