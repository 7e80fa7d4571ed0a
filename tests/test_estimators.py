"""Classical models: what a fold chooses, what they predict, and which of them can be saved."""

import json
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_features, make_utterances, notebook_cells
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers import cache, estimators, training
from helpers.estimators import Classical
from helpers.experiment import FoldRows
from helpers.nets import MelCNN
from helpers.paths import PROJECT

NAMES = ["logistic regression", "LDA", "SVM", "random forest", "extra trees", "MLP"]
NAMES += ["gradient boosting", "XGBoost", "LightGBM"]
HEAD = training.Network("CNN", MelCNN).head().estimator


def notebook_models(n_features: int, **sizes: int) -> dict[str, Classical]:
    """Return the models of notebook 11, six of which are defined there."""
    names = {"data": SimpleNamespace(inputs=np.empty((1, n_features)))} | sizes
    notebook = json.loads((PROJECT / "notebooks/11_ml_ensemble.ipynb").read_text("utf-8"))
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if source.startswith(("import ", "def anova")) or "family[name] = " in source:
            exec(source, names)
    return names["family"]


def everybody(n_speakers: int = 6) -> FoldRows:
    utterances = make_utterances(n_speakers, 5)
    codes = {emotion: i for i, emotion in enumerate(sorted(set(utterances["emotion"])))}
    classes = utterances["emotion"].map(codes).to_numpy()
    return FoldRows(
        make_features(utterances, strength=2),
        classes,
        utterances["speaker"].to_numpy(str),
        utterances["utterance_id"].to_numpy(str),
    )


def some(rows: FoldRows, chosen: np.ndarray) -> FoldRows:
    return FoldRows(*(own[chosen] for own in list(vars(rows).values())[:4]))


def record_of(settings: list[dict], *losses: tuple[float, ...]) -> dict:
    """Return the record of folds that tried these settings, with these losses."""
    notes = [estimators.search_notes(settings, fold) for fold in losses]
    return {"folds": {str(i): {"notes": own} for i, own in enumerate(notes, start=1)}}


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_classical_model_predicts_and_is_deterministic(name):
    rows = everybody()
    train, validation, test = (
        some(rows, chosen)
        for chosen in (rows.speakers < "s04", rows.speakers == "s04", rows.speakers == "s05")
    )
    models = notebook_models(12, N_TREES=10, N_ROUNDS=5, K_BEST=8, MLP_EPOCHS=30)
    assert list(models) == NAMES
    assert all(len(values) > 1 for own in models.values() for values in own.grid.values())
    model = models[name]
    outcomes = [model.fit_predict(train, validation, test.inputs, 5, seed=3) for _ in range(2)]
    for role in ("validation", "test"):
        values = outcomes[0][role]
        assert values.shape == (20, 5) and (values >= 0).all()
        assert (values[:, 4] == 0).all(), "no training clip has that class"
        np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-5)
        assert np.array_equal(values, outcomes[1][role])
    assert np.mean(outcomes[0]["test"].argmax(axis=1) == test.classes) > 0.5
    keys = {cache.hash_of(own.recipe()) for own in models.values()}
    again = notebook_models(12, N_TREES=10, N_ROUNDS=5, K_BEST=8, MLP_EPOCHS=30)
    assert {cache.hash_of(own.recipe()) for own in again.values()} == keys and len(keys) == 9


def test_setting_is_chosen_on_validation_rows_alone():
    rng = np.random.default_rng(0)
    classes, speakers = np.tile(np.arange(3), 30), np.repeat(["a", "b", "c"], 30)
    train, validation = (
        FoldRows(np.eye(3)[classes] + rng.normal(0, spread, (90, 3)), classes, speakers)
        for spread in (1, 0.01)
    )
    model = Classical("l", LogisticRegression(), {"C": [1e-5, 1e3]})
    outcome = model.fit_predict(train, validation, validation.inputs, 3, 0)
    assert outcome["notes"]["setting"] == {"C": 1e3}
    wrong = replace(validation, classes=np.roll(classes, 1))
    outcome = model.fit_predict(train, wrong, validation.inputs, 3, 0)
    assert outcome["notes"]["setting"] == {"C": 1e-5}


def test_test_rows_are_predicted_after_a_fit_on_validation_rows_too():
    rows = everybody()
    train, rest = some(rows, rows.speakers < "s04"), some(rows, rows.speakers >= "s04")
    model = Classical("LDA", LinearDiscriminantAnalysis())
    outcome = model.fit_predict(train, rest, rest.inputs, 4, 0)
    assert outcome["steps"] == {"fit": ["train", "validation"], "select": ["validation"]}
    fitted = LinearDiscriminantAnalysis().fit(train.inputs, train.classes)
    np.testing.assert_allclose(outcome["validation"], fitted.predict_proba(rest.inputs))
    fitted.fit(rows.inputs, rows.classes)
    np.testing.assert_allclose(outcome["test"], fitted.predict_proba(rest.inputs))
    given = [replace(own, copies=own.inputs[:, None] + 1) for own in (train, rest)]
    changed = model.fit_predict(*given, rest.inputs, 4, 0)
    assert changed["steps"]["augment"] == changed["steps"]["fit"]
    assert not np.array_equal(changed["validation"], outcome["validation"])


def test_inner_splits_are_by_speaker():
    rows = everybody()
    models = estimators.classical_models(12)
    fitted = estimators.fit_seeded(clone(models["LDA"].estimator), rows, 0)
    for first, second in fitted.cv:
        assert not set(rows.speakers[first]) & set(rows.speakers[second])


# --- their parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 3, 8])
@pytest.mark.parametrize("n_columns", [5, 400])
def test_shrunk_discriminant_is_scikit_learns(n_classes, n_columns):
    rng = np.random.default_rng(n_classes)
    classes = rng.integers(0, n_classes, 300)
    centres = 0.3 * rng.normal(size=(n_classes, n_columns))
    inputs = rng.normal(size=(300, n_columns)) + centres[classes]
    # scikit-learn shrinks the covariance of each class, and weights them with the priors
    fewest = min(np.bincount(classes))
    order = np.concatenate([np.flatnonzero(classes == i)[:fewest] for i in range(n_classes)])
    priors = np.full(n_classes, 1 / n_classes)
    expected = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3, priors=priors)
    expected.fit(inputs[order], classes[order])
    found = estimators.ShrunkLDA(0.3).fit(inputs[order], classes[order])
    probabilities = expected.predict_proba(inputs)
    np.testing.assert_allclose(found.predict_proba(inputs), probabilities, atol=2e-3)
    assert (found.predict(inputs) == expected.predict(inputs)).mean() > 0.99


@pytest.mark.parametrize("name", ["LDA", "logistic regression", "SVM", "MLP"])
def test_a_column_that_hardly_varied_in_training_does_not_decide(name):
    rng = np.random.default_rng(0)
    speakers, classes = np.repeat([f"s{i}" for i in range(8)], 40), np.tile(np.arange(4), 80)
    inputs = rng.normal(size=(320, 6)) + 3 * np.eye(6)[classes]
    # a maximum that is 1 for nearly all training speakers, but for rounding
    inputs[:, 5] = 1 - 1e-7 * (rng.random(320) < 0.1)
    unlike = np.isin(speakers, ["s6", "s7"])
    inputs[unlike, 5] = 0.9 + 0.05 * rng.random(80)
    rows = FoldRows(inputs.astype(np.float32), classes, speakers, np.arange(320))
    model = notebook_models(6, N_TREES=10, N_ROUNDS=5, K_BEST=8, MLP_EPOCHS=30)[name]
    # without such a speaker in training, and with one, on whom a temperature that is fitted on
    # held-out speakers would make all probabilities flat
    for known in ("s5", "s6"):
        train, test = some(rows, speakers <= known), some(rows, speakers == "s7")
        fitted = estimators.fit_seeded(clone(model.estimator), train, 0)
        found = fitted.predict_proba(test.inputs)
        right = found[np.arange(40), test.classes]
        assert np.mean(found.argmax(axis=1) == test.classes) > 0.5, known
        assert -np.log(right).mean() < 1, known


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
        found, p = notebook_cells("11_ml_ensemble", "anova").anova(values, classes)
    assert np.isfinite(found).all() and found[2] > 30 and found[1] < 2 and p[1] > 0.3
    expected = f_classif(values[:, [0, 3]].astype(float), classes)[0]
    np.testing.assert_allclose(found[[0, 3]], expected, rtol=1e-9)


# --- the final model ------------------------------------------------------------------------------


def test_frozen_setting_has_the_lowest_loss_over_all_folds():
    record = record_of([{"C": 0.1}, {"C": 1.0, "kind": [3]}], (0.5, 0.6), (0.9, 0.7))
    assert record["folds"]["1"]["notes"]["setting"] == {"C": 0.1}
    assert estimators.frozen_setting(record) == {"C": 1.0, "kind": [3]}
    assert estimators.frozen_setting({"folds": {"1": {"notes": {}}}}) == {}


def test_final_model_is_fitted_with_the_setting_of_the_lowest_loss():
    rows = everybody()
    model = Classical("LR", LogisticRegression(max_iter=500), {"C": [0.01, 1.0]})
    part = model.refit(record_of([{"C": 0.01}, {"C": 1.0}], (0.4, 0.5), (0.9, 0.5)), rows, 4)
    expected = LogisticRegression(C=1.0, max_iter=500, random_state=0)
    expected.fit(rows.inputs, rows.classes)
    found = part(rows.inputs)
    np.testing.assert_allclose(found, expected.predict_proba(rows.inputs), atol=1e-6)


def calibrated(classifier):
    pipeline = make_pipeline(StandardScaler(), classifier)
    return CalibratedClassifierCV(pipeline, method="temperature", ensemble=False)


LINEAR = {
    "logistic regression": estimators.classical_models(24)["logistic regression"].estimator,
    "LDA": estimators.classical_models(24)["LDA"].estimator,
    "head": HEAD,
    "scikit-learn's LDA": make_pipeline(StandardScaler(), LinearDiscriminantAnalysis()),
    "with a temperature": calibrated(LogisticRegression()),
}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("classes", [[0, 1, 2, 3], [0, 2, 3], [1, 3]])
def test_scaler_linear_model_and_temperature_are_one_part(name, classes):
    """Also where only two classes, or not all, have training examples."""
    rows = everybody()
    inputs = np.concatenate([1e3 + 50 * rows.inputs, rows.inputs**2], axis=1).astype(np.float32)
    if name == "head":
        inputs = rows.inputs
    train = some(replace(rows, inputs=inputs), np.isin(rows.classes, classes))
    part = Classical(name, LINEAR[name]).refit(record_of([{}], (1.0,)), train, 4)
    fitted = estimators.fit_seeded(clone(LINEAR[name]), train, 0)
    for values in (inputs, inputs + 1e4):  # the latter is beyond the limits of the scaler
        found = part(values)
        expected = fitted.predict_proba(values.astype(np.float64))
        np.testing.assert_allclose(found[:, classes], expected, atol=1e-6)
        assert (np.delete(found, classes, axis=1) == 0).all()


@pytest.mark.parametrize(
    "estimator",
    [
        estimators.classical_models(12)["SVM"].estimator,
        RandomForestClassifier(5),
        make_pipeline(StandardScaler(with_std=False), LogisticRegression()),
        make_pipeline(StandardScaler(), StandardScaler(), LogisticRegression()),
        CalibratedClassifierCV(LogisticRegression(), method="sigmoid", ensemble=False),
        CalibratedClassifierCV(LogisticRegression(), method="temperature", ensemble=True),
    ],
    ids=["SVM", "trees", "half a scaler", "two scalers", "sigmoid", "ensemble"],
)
def test_other_models_are_refused_with_those_that_can_be_saved(estimator):
    message = r"toy can't be saved: only networks of helpers.nets and linear models can \(logistic"
    with pytest.raises(ValueError, match=message):
        Classical("toy", estimator).refit(record_of([{}], (1.0,)), everybody(), 4)


def test_emotion_of_one_clip_gets_zeros_and_splits_by_clip_are_noted():
    rows = everybody()
    rare = np.append(np.flatnonzero(rows.classes < 3), np.flatnonzero(rows.classes == 3)[0])
    train, test = some(rows, rare), some(rows, rows.speakers == "s05")
    model = estimators.classical_models(12)["LDA"]
    values = model.fit_predict(train, test, test.inputs, 4, seed=0)["validation"]
    assert (values[:, 3] == 0).all() and np.isfinite(values).all()
    notes = model.fit_predict(train, test, test.inputs, 4, seed=0)["notes"]
    assert "inner splits" not in notes
    alone = some(rows, rows.speakers == "s00")
    notes = model.fit_predict(alone, some(rows, rows.speakers == "s00"), test.inputs, 4, 0)["notes"]
    assert "by clip" in notes["inner splits"]
