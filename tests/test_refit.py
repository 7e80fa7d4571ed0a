"""The model that is handed on: trained with what the folds froze, and the same from its artefact as in memory."""

import numpy as np
import pandas as pd
import pytest
from conftest import harmonic_tone, make_features, make_utterances, noise, write_audio
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers import (
    artifacts,
    audio,
    augment,
    estimators,
    features,
    nets,
    paths,
    predict,
    refit,
    splits,
    tables,
    training,
)
from helpers.experiment import Part, cross_validate, write_record
from helpers.inputs import Clips, Input

EMOTIONS = ["neutral", "happy", "sad", "angry"]


@pytest.fixture
def corpus():
    utterances = make_utterances(8, 4)
    folds = splits.make_folds(utterances, n_folds=4, n_valid=2)
    emotions = sorted(set(utterances["emotion"]), key=EMOTIONS.index)
    values, speakers = make_features(utterances, strength=2.0), utterances["speaker"].to_numpy(str)
    classes = utterances["emotion"].map(emotions.index).to_numpy()
    return (
        utterances["utterance_id"],
        folds,
        Part(values, classes, speakers, utterances["utterance_id"].to_numpy(str)),
    )


def test_classical_model_is_refitted_with_what_most_folds_chose(corpus):
    ids, folds, everything = corpus
    model = estimators.Classical("LR", LogisticRegression(max_iter=500), {"C": [0.01, 1.0]})
    _, record = cross_validate(model, everything.inputs, ids, folds)
    chosen = [fold["notes"]["setting"]["C"] for fold in record["folds"].values()]
    part = refit.refit(model, record, everything, 4)
    most = max(chosen, key=chosen.count)
    expected = LogisticRegression(C=most, max_iter=500, random_state=0).fit(
        everything.inputs, everything.classes
    )
    assert np.allclose(
        part.predictor(4)(everything.inputs), expected.predict_proba(everything.inputs), atol=1e-6
    )


def test_linear_model_knows_classes_without_examples(corpus):
    *_, everything = corpus
    some = Part(
        *(
            getattr(everything, name)[everything.classes != 1]
            for name in ("inputs", "classes", "speakers")
        )
    )
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(some.inputs, some.classes)
    part = refit.part_of(model, 4)
    found = part.predictor(4)(everything.inputs)
    assert isinstance(part, artifacts.LinearPart) and (found[:, 1] == 0).all()
    assert np.allclose(found[:, [0, 2, 3]], model.predict_proba(everything.inputs), atol=1e-6)
    two = LogisticRegression().fit(everything.inputs, everything.classes % 2)
    assert isinstance(refit.part_of(two, 2), artifacts.ClassicalPart), (
        "of two classes, one has no weights of its own"
    )


def test_scaling_discriminant_and_temperature_are_one_linear_model(corpus):
    *_, everything = corpus
    wide = Part(
        np.concatenate([1e3 + 50 * everything.inputs, everything.inputs**2], axis=1).astype(
            np.float32
        ),
        everything.classes,
        everything.speakers,
        everything.ids,
    )
    models = estimators.classical_models(wide.inputs.shape[1], search=False)
    model = estimators.fit_seeded(models["LDA"].estimator, wide, 0)
    part = refit.part_of(model, 4)
    assert isinstance(part, artifacts.LinearPart)
    far = wide.inputs + 1e4  # beyond what the scaler lets through
    for inputs in (wide.inputs, far):
        np.testing.assert_allclose(
            part.predictor(4)(inputs), model.predict_proba(inputs), atol=1e-6
        )
    svm = estimators.fit_seeded(models["SVM"].estimator, wide, 0)
    assert isinstance(refit.part_of(svm, 4), artifacts.ClassicalPart), "its kernel is not linear"


def test_network_is_refitted_for_the_median_of_the_folds_epochs(corpus, monkeypatch):
    ids, folds, everything = corpus
    network = training.Network(
        "DNN",
        nets.DNN,
        {"hidden": [16]},
        epochs=6,
        patience=6,
        batch_size=16,
        learning_rate=0.01,
        search={"dropout": [0.1, 0.3], "learning_rate": (1e-3, 1e-1)},
        trials=2,
        device="cpu",
    )
    _, record = cross_validate(network, everything.inputs, ids, folds)
    notes = [fold["notes"] for fold in record["folds"].values()]
    epochs, train_epoch = [], training.Trainer.train_epoch
    monkeypatch.setattr(
        training.Trainer, "train_epoch", lambda self: epochs.append(self.epoch) or train_epoch(self)
    )
    part = refit.refit(network, record, everything, 4)
    assert epochs == list(range(round(np.median([note["best_epoch"] for note in notes]))))
    assert (
        part.options["hidden"] == [16]
        and part.options["dropout"] in (0.1, 0.3)
        and part.build == "DNN"
    )
    right = part.predictor(4)(everything.inputs).argmax(axis=1) == everything.classes
    assert right.mean() > 0.5, "it learnt something"


# --- from audio to artefact ----------------------------------------------------------------------------------------

COLUMNS = ["f0_st__p50", "f0_st__p95", "rms_db__mean", "rms_db__std"]
SOME = Input("functionals", {"columns": COLUMNS})
BUDGET = {"epochs": 2, "patience": 2, "batch_size": 16, "device": "cpu", "precision": "float32"}
KINDS = {  # model, its input, and whether its speaker-normalised variant has inputs of its own
    "classical": (
        estimators.Classical(
            "LR",
            make_pipeline(StandardScaler(), LogisticRegression()),
            {"logisticregression__C": [0.1, 1.0]},
        ),
        SOME,
        True,
    ),
    "DNN": (training.Network("DNN", nets.DNN, {"hidden": [8]}, **BUDGET), SOME, True),
    "means": (training.Network("means", nets.MeansConv, **BUDGET), Input("functionals"), False),
    "image": (
        training.Network("CNN", nets.MelCNN, {"channels": [4, 4]}, **BUDGET),
        Input("image", {"n_frames": 32}),
        False,
    ),
    "segments": (
        training.Network("segments", nets.Recurrent, {"hidden": 4}, **BUDGET),
        Input("segments", {"n_segments": 3}),
        False,
    ),
    "sequence": (
        training.Network("GRU", nets.Recurrent, {"cell": "GRU", "hidden": 4}, **BUDGET),
        Input("sequence", {"n_steps": 12, "stride": 4}),
        False,
    ),
}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> pd.DataFrame:
    """Clips that are higher and louder with each emotion, of six people."""
    table = make_utterances(6, 2)
    folder = tmp_path_factory.mktemp("recordings")
    for i, row in table.iterrows():
        k, own = EMOTIONS.index(row["emotion"]), int(row["speaker"][1:])
        signal = harmonic_tone(110 + 25 * k + 7 * own, 0.5, 0.1 + 0.1 * k) + noise(0.5, 0.003, i)
        table.loc[i, "path"] = str(write_audio(folder / f"{i}.flac", signal))
    return table


@pytest.mark.parametrize("kind", KINDS)
def test_artefact_answers_from_audio_as_the_final_model_does_in_memory(
    recordings, kind, monkeypatch
):
    model, inputs, own = KINDS[kind]
    ids, speakers = recordings["utterance_id"], recordings["speaker"].to_numpy(str)
    folds = splits.make_folds(recordings, n_folds=3, n_valid=2)
    signals = [audio.load(path) for path in recordings["path"]]
    values = Clips(signals).read(inputs)
    arrays = {"inductive": values} | (
        {"speaker-normalised": features.normalise_by_speaker(values, speakers)} if own else {}
    )
    runs = [cross_validate(model, array, ids, folds, variant) for variant, array in arrays.items()]
    if not own:
        runs.append(training.speaker_normalised(model, values, ids, folds, runs[0][1]))
    tables.write_table(recordings, paths.work("demo") / "utterances.parquet", "utterances")
    folder = paths.work("demo", "four")
    tables.write_table(
        pd.concat([table for table, _ in runs]), folder / "predictions/toy.parquet", "predictions"
    )
    write_record([record for _, record in runs], folder / "records/toy.json")

    made, train = [], refit.refit
    monkeypatch.setattr(refit, "refit", lambda *given: made.append(train(*given)) or made[-1])
    handed = refit.hand_on("toy", model, arrays, ids, folds, inputs, "demo", "four")
    assert len(made) == 2 and handed.variants == ["inductive", "speaker-normalised"]
    inductive, normalised = (part.predictor(4) for part in made)
    assert np.abs(handed.probabilities(signals) - inductive(values)).max() < 1e-5
    space, known = (values, signals[:5]) if own else (inductive.embed(values), signals[:5])
    of_speaker = [space[speakers == s] for s in np.unique(speakers)]
    mean, spread = (
        np.mean([v.mean(0) for v in of_speaker], axis=0),
        np.sqrt(np.mean([v.var(0) for v in of_speaker], axis=0)),
    )
    expected = normalised(features.normalise_by_enrolment(space, space[:5], mean, spread))
    assert np.abs(handed.probabilities(signals, known) - expected).max() < 1e-4

    loaded = artifacts.load(folder / "models/toy")
    answer = predict.predict(recordings["path"][0], folder / "models/toy")
    assert np.abs(list(answer.probabilities.values()) - inductive(values[:1])[0]).max() < 1e-5
    low, high = loaded.card["traits"]["duration_s"]
    assert low == high == 0.5 and len(loaded.card["protocol"]) == 2
    assert loaded.card["protocol"][0]["results"]["n"] == len(recordings)
    assert (
        (loaded.distances(Clips(signals)) <= 1.2).all()
        if space.ndim == 2
        else loaded.distances(Clips(signals)) is None
    )

    refit.hand_on("toy", model, arrays, ids, folds, inputs, "demo", "four")
    assert len(made) == 2, "what is there already was not trained again"
    next((folder / "models/toy").glob("inductive.*")).write_bytes(b"damaged")
    refit.hand_on("toy", model, arrays, ids, folds, inputs, "demo", "four")
    assert len(made) == 4, "what is damaged is made anew"


def test_killed_refit_goes_on_from_its_last_epoch(corpus, monkeypatch):
    ids, folds, everything = corpus
    network = training.Network(
        "DNN", nets.DNN, {"hidden": [16]}, epochs=6, patience=6, batch_size=16, device="cpu"
    )
    _, record = cross_validate(network, everything.inputs, ids, folds)
    for fold in record["folds"].values():
        fold["notes"]["best_epoch"] = 5
    whole = refit.refit(network, record, everything, 4, seed=1)
    save, epochs = training.Trainer.save, []

    def killed(self):
        save(self)
        epochs.append(self.epoch)
        if self.epoch == 3 and epochs.count(3) == 1:
            raise KeyboardInterrupt

    monkeypatch.setenv("SER_WORK", str(paths.work() / "other"))
    monkeypatch.setattr(training.Trainer, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        refit.refit(network, record, everything, 4, seed=1)
    resumed = refit.refit(network, record, everything, 4, seed=1)
    assert epochs == [1, 2, 3, 4, 5]
    assert all((resumed.weights[name] == value).all() for name, value in whole.weights.items())


def test_voices_are_of_the_clip_and_normalised_for_each_speed_apart(recordings):
    described, variants = Input("functionals"), ["inductive", "speaker-normalised"]
    found = refit.read_voices(recordings, described, [0.9, 1.1], variants, n_jobs=1)
    faster = np.stack(
        [described(augment.played(audio.load(path), 1.1)) for path in recordings["path"]]
    )
    np.testing.assert_array_equal(found["inductive"][:, 1], faster)
    speakers = recordings["speaker"].to_numpy(str)
    np.testing.assert_array_equal(
        found["speaker-normalised"][:, 1], features.normalise_by_speaker(faster, speakers)
    )
    assert refit.read_voices(recordings, described, [], variants) == {}
