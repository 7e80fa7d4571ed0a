"""Saved models answer as they did in memory; a damaged or hostile one is refused, not executed."""

import functools
import json
import pickle
import struct
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import RATE, harmonic_tone, make_utterances, noise, write_audio
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers import (
    artifacts,
    audio,
    augment,
    features,
    nets,
    paths,
    predict,
    spectrograms,
    splits,
    tables,
    training,
)
from helpers.artifacts import Input, Part, Refused
from helpers.estimators import Classical
from helpers.experiment import Dataset, cross_validate

EMOTIONS = ["neutral", "happy", "sad", "angry"]
ABOUT = {"model": "test", "emotions": EMOTIONS, "labels": "four", "corpus": "toy"}
SEQUENCE = Input("sequence", {"n_steps": 40, "stride": 4})
IMAGE = Input("image", {"n_frames": 64})
NETWORKS = {
    "DNN": (Input("functionals"), {"hidden": [16]}),
    "MelCNN": (IMAGE, {"channels": [4, 4]}),
    "MelResNet": (IMAGE, {}),
    "Recurrent": (SEQUENCE, {"cell": "GRU", "hidden": 8}),
}


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    found = []
    for i in range(4):
        tones = [harmonic_tone(110 + 20 * i, 0.5), harmonic_tone(150 + 20 * i, 0.4, 0.2)]
        found.append(np.concatenate([tones[0], noise(0.2, 0.01, i), tones[1]]))
    return found


def read(reads: Input, speech) -> np.ndarray:
    return np.stack([reads(signal) for signal in speech])


def network(build: str, speech) -> tuple[Part, Input, torch.nn.Module]:
    reads, options = NETWORKS[build]
    inputs = read(reads, speech)
    torch.manual_seed(0)
    net = getattr(nets, build)(4, inputs.shape[1:], **options)
    if hasattr(net, "fit_inputs"):
        net.fit_inputs(torch.tensor(inputs))
    weights = {name: value.numpy() for name, value in net.state_dict().items()}
    about = {"build": build, "options": options, "shape": list(inputs.shape[1:])}
    return Part(weights, about, 4), reads, net.eval()


@pytest.fixture
def saved(tmp_path, speech):
    part, reads, _ = network("DNN", speech)
    return artifacts.save(tmp_path / "model", {"inductive": part}, reads, ABOUT)


@pytest.fixture
def average(tmp_path, speech):
    members = {}
    for build in ("DNN", "MelCNN"):
        part, reads, _ = network(build, speech)
        members[build] = artifacts.save(tmp_path / build, {"inductive": part}, reads, ABOUT)
    weights = {"inductive": {"DNN": 0.4, "MelCNN": 0.25}}
    about = {"model": "average"}
    return artifacts.save_average(tmp_path / "average", members, weights, {"inductive": 0.5}, about)


def card_of(folder) -> dict:
    return json.loads((folder / "card.json").read_text())


def rewritten(folder, **changes) -> None:
    """Change a card, with hashes that fit the files."""
    contents = artifacts._read_files(folder)
    card = json.loads(contents.pop("card.json")) | {"files": artifacts._hashes(contents)}
    (folder / "card.json").write_text(json.dumps(card | changes))


# --- what models read -----------------------------------------------------------------------------


def test_inputs_are_those_of_training(speech):
    signal = speech[0]
    row = features.functionals(signal)
    np.testing.assert_allclose(Input("functionals")(signal), list(row.values()), rtol=1e-6)
    two = Input("functionals", {"columns": ["rms_db__mean", "f0_st__p50"]})
    np.testing.assert_allclose(two(signal), [row["rms_db__mean"], row["f0_st__p50"]], rtol=1e-6)
    assert (IMAGE(signal) == spectrograms.padded_image(signal, 64)).all()
    clip = features.clip_descriptors(signal)
    assert (SEQUENCE(signal) == features.sequence(clip, 40, 4)).all()
    assert (Input("segments", {"n_segments": 3})(signal) == features.segments(clip, 3)).all()
    normalised = replace(IMAGE, channel_normalised=True)
    assert (normalised(signal) == IMAGE(audio.channel_normalise(signal))).all()
    quiet = np.concatenate([np.zeros(RATE, np.float32), signal])
    untrimmed = features.sequence(features.clip_descriptors(quiet, trim=False), 40, 4)
    assert (
        replace(SEQUENCE, arguments=SEQUENCE.arguments | {"trim": False})(quiet) == untrimmed
    ).all()
    assert (SEQUENCE(quiet) != untrimmed).any()


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [("os.system", {}), ("image", {"n_frames": 10**12}), ("sequence", {"n_steps": 2.5})],
)
def test_inputs_that_are_not_known_or_too_long_are_refused(kind, arguments):
    with pytest.raises(ValueError, match=r"expected functionals, sequence, .* sizes from 1 to"):
        Input(kind, arguments)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> pd.DataFrame:
    """Clips of six speakers that are higher and louder with each emotion."""
    table = make_utterances(6, 2)
    folder = tmp_path_factory.mktemp("recordings")
    for i, row in table.iterrows():
        k, own = EMOTIONS.index(row["emotion"]), int(row["speaker"][1:])
        tone = harmonic_tone(110 + 25 * k + 7 * own, 0.5, 0.1 + 0.1 * k)
        path = write_audio(folder / f"{i}.flac", tone + noise(0.5, 0.003, i))
        table.loc[i, "path"] = str(path)
    return table


def test_clips_are_read_once(recordings, monkeypatch):
    some = recordings[:5]
    found = artifacts.read_clips(some, IMAGE)
    assert (found == read(IMAGE, map(audio.load, some["path"]))).all()
    faster = artifacts.read_clips(
        some, IMAGE, change=functools.partial(augment.change_speed, speed=1.1)
    )
    signals = [augment.change_speed(audio.load(path), 1.1) for path in some["path"]]
    assert (faster == read(IMAGE, signals)).all() and (faster != found).any()
    monkeypatch.setattr(audio, "load", None)
    assert (artifacts.read_clips(some, IMAGE) == found).all(), "they were decoded again"


def test_recording_bounds_are_percentiles_of_the_training_clips(recordings):
    ids = recordings["utterance_id"][:20]
    found = artifacts.recording_bounds(recordings, ids)
    statistics = [audio.recording_statistics(audio.load(path)) for path in recordings["path"][:20]]
    for name, bounds in found.items():
        assert bounds == pytest.approx(np.percentile([s[name] for s in statistics], [1, 99]))
    assert list(found) == list(statistics[0])


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", NETWORKS)
def test_networks_answer_as_they_did_in_memory(tmp_path, speech, build):
    part, reads, net = network(build, speech)
    loaded = artifacts.load(artifacts.save(tmp_path / build, {"inductive": part}, reads, ABOUT))
    with torch.inference_mode():
        expected = net(torch.tensor(read(reads, speech))).softmax(1).numpy()
    assert np.abs(loaded.probabilities(speech) - expected).max() < 1e-5
    doubles = [signal.astype(np.float64) for signal in speech]
    assert (loaded.probabilities(doubles) == loaded.probabilities(speech)).all()
    assert loaded.emotions == EMOTIONS and loaded.variants == ["inductive"]
    assert loaded.card["versions"]["numpy"] == np.__version__


def test_linear_models_answer_as_they_did_in_memory(tmp_path, speech):
    rng, reads = np.random.default_rng(0), Input("segments", {"n_segments": 2})
    shape = reads(speech[0]).shape
    reads, n = Input("functionals", {"columns": list(features.functionals(speech[0]))[:9]}), 9
    assert shape[0] == 2
    values = read(reads, speech).repeat(10, axis=0)
    values = values + rng.normal(size=values.shape) * (1 + np.abs(values)) * 0.1
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(values, np.tile([0, 2], 20))
    scaler, last = model[0], model[1]
    weights, bias = np.zeros((4, n)), np.full(4, -np.inf)
    weights[[0, 2]], bias[[0, 2]] = [-last.coef_[0], last.coef_[0]], [0, 2 * last.intercept_[0]]
    weights /= 2
    bias[[0, 2]] = [-last.intercept_[0] / 2, last.intercept_[0] / 2]
    arrays = {"mean": scaler.mean_, "scale": scaler.scale_, "weights": weights, "bias": bias}
    part = Part(arrays | {"limit": np.array(np.inf)})
    loaded = artifacts.load(artifacts.save(tmp_path / "model", {"inductive": part}, reads, ABOUT))
    found = loaded.probabilities(speech)
    expected = model.predict_proba(read(reads, speech))
    np.testing.assert_allclose(found[:, [0, 2]], expected, atol=1e-6)
    assert (found[:, [1, 3]] == 0).all(), "classes without training examples"
    clipped = Part(arrays | {"limit": np.array(0.5)})(np.full((1, n), 1e9))
    assert clipped[0, 2] == pytest.approx(
        1 / (1 + np.exp(-0.5 * last.coef_.sum() - last.intercept_[0]))
    )


def test_functionals_without_columns_store_their_names(saved, speech, monkeypatch):
    (reads,) = artifacts.load(saved).reads
    assert reads.arguments["columns"] == list(features.functionals(speech[0]))
    expected = artifacts.load(saved).probabilities(speech)
    functionals = features.functionals
    monkeypatch.setattr(features, "functionals", lambda s: {"new__mean": 1.0} | functionals(s))
    artifacts._read.cache_clear()
    assert (artifacts.load(saved).probabilities(speech) == expected).all()


def test_a_descriptor_that_is_added_later_changes_no_model_of_sequences(
    tmp_path, speech, monkeypatch
):
    reads = Input("sequence", {"n_steps": 20})
    inputs = read(reads, speech)
    about = {"build": "Recurrent", "options": {"hidden": 4}, "shape": list(inputs.shape[1:])}
    torch.manual_seed(0)
    state = nets.Recurrent(4, inputs.shape[1:], hidden=4).state_dict()
    part = Part({name: value.numpy() for name, value in state.items()}, about, 4)
    folder = artifacts.save(tmp_path / "model", {"inductive": part}, reads, ABOUT)
    expected, describe = artifacts.load(folder).probabilities(speech), features.describe

    def described(signal, front_end=features.FrontEnd()):
        values, names = describe(signal, front_end)
        more = np.ones((len(values), 1), np.float32)
        return np.append(more, values, axis=1), ["new", *names]

    descriptor_names = features._descriptor_names
    monkeypatch.setattr(features, "describe", described)
    monkeypatch.setattr(features, "_descriptor_names", lambda fe: ["new", *descriptor_names(fe)])
    artifacts._read.cache_clear()
    assert (artifacts.load(folder).probabilities(speech) == expected).all()


def test_average_is_the_weighted_product_of_its_members(average, speech):
    both = [artifacts.load(average / name).probabilities(speech) for name in ("DNN", "MelCNN")]
    expected = (both[0] + 1e-3) ** 0.8 * (both[1] + 1e-3) ** 0.5
    expected /= expected.sum(axis=1, keepdims=True)
    found = artifacts.load(average)
    assert np.abs(found.probabilities(speech) - expected).max() < 1e-6
    assert found.variants == ["inductive"] and list(found.members) == ["DNN", "MelCNN"]
    assert (found.probabilities(speech, speech[:2]) == found.probabilities(speech)).all()
    assert found.card["labels"] == "four" and found.card["model"] == "average"


def test_what_members_read_alike_is_read_once(average, speech, monkeypatch):
    model, call, asked = artifacts.load(average), Input.__call__, []
    monkeypatch.setattr(
        Input, "__call__", lambda self, signal: asked.append(self.kind) or call(self, signal)
    )
    artifacts._read.cache_clear()
    first = model.probabilities(speech)
    assert (model.probabilities(speech) == first).all()
    assert sorted(asked) == ["functionals"] * 4 + ["image"] * 4


def test_average_speaker_is_a_mean_over_speakers():
    values = np.array([[0.0], [2.0], [10.0], [10.0], [10.0], [14.0]])
    found = artifacts.average_speaker(values, np.array(list("aabbbb")))
    assert found["mean"] == [6.0] and found["std"] == pytest.approx([np.sqrt((1 + 3) / 2)])


def test_probe_is_the_same_everywhere():
    signal = artifacts.probe_signal()
    assert signal.shape == (2 * RATE,) and signal.dtype == np.float32 and np.abs(signal).max() < 1
    assert float(np.abs(signal).sum()) == pytest.approx(1353.490, abs=0.05)


# --- from audio to a saved model ------------------------------------------------------------------

COLUMNS = ["f0_st__p50", "f0_st__p95", "rms_db__mean", "rms_db__std"]
SOME = Input("functionals", {"columns": COLUMNS})
BUDGET = {"epochs": 2, "patience": 2, "batch_size": 16, "device": "cpu", "precision": "float32"}
KINDS = {
    "linear": (Classical("LR", make_pipeline(StandardScaler(), LogisticRegression()), {}), SOME),
    "DNN": (training.Network("DNN", nets.DNN, {"hidden": [8]}, **BUDGET), SOME),
    "image": (training.Network("CNN", nets.MelCNN, {"channels": [4, 4]}, **BUDGET), IMAGE),
    "sequence": (training.Network("GRU", nets.Recurrent, {"hidden": 4}, **BUDGET), SEQUENCE),
}


@pytest.mark.parametrize("kind", KINDS)
def test_saved_models_answer_from_audio_as_they_do_in_memory(recordings, kind):
    model, reads = KINDS[kind]
    folds = splits.make_folds(recordings, n_folds=3, n_validation=2)
    utterances = recordings.drop(columns="emotion")
    tables.write_table(utterances, paths.work("demo") / "utterances.parquet", "utterances")
    signals = [audio.load(path) for path in recordings["path"]]
    values = read(reads, signals)
    data = Dataset(recordings["utterance_id"], values, folds)
    run = cross_validate(model, data, variants=("inductive", "speaker-normalised"))
    run.save("toy", "demo", "four", "07_toy")
    final = run.save_final("toy", "demo", "four", reads)

    assert final.variants == ["inductive", "speaker-normalised"]
    inductive = final.predictors["inductive"](values)
    assert np.abs(final.probabilities(signals) - inductive).max() < 1e-5
    embedded = getattr(model, "has_embeddings", False)
    assert final.card["space"] == ("embeddings" if embedded else "inputs")
    space = final.predictors["inductive"].embed(values) if embedded else values
    average = artifacts.average_speaker(space, data.speakers)
    known = features.normalise_by_enrolment(space, space[:5], average["mean"], average["std"])
    expected = final.predictors["speaker-normalised"](known)
    assert np.abs(final.probabilities(signals, signals[:5]) - expected).max() < 1e-4
    answer = predict.predict(recordings["path"][0], paths.work("demo", "four") / "models/toy")
    assert list(answer.probabilities.values()) == pytest.approx(inductive[0], abs=1e-5)
    assert final.card["recording_statistics"]["duration_s"] == [0.5, 0.5]


def test_a_model_is_made_of_its_key(tmp_path, speech):
    part, reads, _ = network("DNN", speech)
    folder = artifacts.save(tmp_path / "model", {"inductive": part}, reads, ABOUT | {"key": "a"})
    assert artifacts.load(folder, "a").card["key"] == "a"
    with pytest.raises(Refused, match="was made of other data or settings"):
        artifacts.load(folder, "b")


# --- what is not saved ----------------------------------------------------------------------------


def test_a_folder_that_is_no_model_is_not_replaced(tmp_path, speech, saved):
    part, reads, _ = network("DNN", speech)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("of years")
    with pytest.raises(
        ValueError, match=r"thesis/chapter\.txt is no .*: give the folder of a model"
    ):
        artifacts.save(tmp_path / "thesis", {"inductive": part}, reads, ABOUT)
    assert (tmp_path / "thesis/chapter.txt").read_text() == "of years"
    (saved / "older.safetensors").write_bytes(b"of another model")
    artifacts.load(artifacts.save(saved, {"inductive": part}, reads, ABOUT))


def test_emotions_in_another_order_are_not_saved(tmp_path, speech):
    part, reads, _ = network("DNN", speech)
    other = ABOUT | {"emotions": EMOTIONS[::-1]}
    with pytest.raises(ValueError, match="order of the model's outputs"):
        artifacts.save(tmp_path / "model", {"inductive": part}, reads, other)
    assert not (tmp_path / "model").exists()


def test_members_with_other_emotions_are_not_averaged(tmp_path, speech, saved):
    part, reads, _ = network("DNN", speech)
    other = ABOUT | {"emotions": ["neutral", "happy", "sad", "bored"]}
    folder = artifacts.save(tmp_path / "other", {"inductive": part}, reads, other)
    members, weights = {"a": saved, "b": folder}, {"inductive": {"a": 1, "b": 1}}
    with pytest.raises(Refused, match="its member b has other emotions"):
        artifacts.save_average(tmp_path / "average", members, weights, {"inductive": 1}, {})


class DNN(nets.DNN):
    """A class of this test, not of helpers.nets, although one there has the same name."""


def test_a_class_of_a_notebook_is_not_saved(tmp_path, speech):
    part, reads, _ = network("DNN", speech)
    part = replace(part, network=part.network | {"build": "Mine"})
    said = r"no class of helpers\.nets.* move the class to helpers/nets"
    with pytest.raises(Refused, match=said):
        artifacts.network_class(DNN)
    with pytest.raises(Refused, match=said):
        artifacts.save(tmp_path / "model", {"inductive": part}, reads, ABOUT)
    assert not (tmp_path / "model").exists()


# --- what is not loaded ---------------------------------------------------------------------------


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_folder_without_a_card_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"holds no card\.json: give the folder of a model"):
        artifacts.load(tmp_path)


def test_pickles_are_refused_and_not_executed(saved, tmp_path):
    trace = tmp_path / "trace"
    (saved / "weights.pkl").write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(Refused, match=r"weights\.pkl is no \.safetensors file"):
        artifacts.load(saved)
    (saved / "weights.pkl").unlink()
    (saved / "inductive.safetensors").write_bytes(pickle.dumps(Bomb(trace)))
    rewritten(saved)
    with pytest.raises(Refused, match="does not hold what its card says"):
        artifacts.load(saved)
    assert not trace.exists(), "something of it was executed"


def test_files_that_are_missing_added_or_changed_are_named(saved, average):
    content = bytearray((saved / "inductive.safetensors").read_bytes())
    (saved / "extra.safetensors").write_bytes(content)
    with pytest.raises(Refused, match=r"changed, added or removed: extra\.safetensors"):
        artifacts.load(saved)
    (saved / "extra.safetensors").unlink()
    content[-1] ^= 1
    (saved / "inductive.safetensors").write_bytes(content)
    with pytest.raises(Refused, match=r"changed, added or removed: inductive\.safetensors"):
        artifacts.load(saved)
    (average / "DNN/inductive.safetensors").unlink()
    with pytest.raises(Refused, match=r"changed, added or removed: DNN/inductive\.safetensors"):
        artifacts.load(average)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "..", "card.json"])
def test_files_outside_the_folder_are_not_read(saved, name):
    (saved.parent / "outside.safetensors").write_bytes(b"")
    rewritten(saved, files=card_of(saved)["files"] | {name: "0"})
    with pytest.raises(Refused, match="changed, added or removed"):
        artifacts.load(saved)


def test_links_are_refused(saved):
    inside, outside = saved / "inductive.safetensors", saved.parent / "outside.safetensors"
    inside.rename(outside)
    inside.symlink_to(outside)
    with pytest.raises(Refused, match=r"inductive\.safetensors is no .*, a link, or larger"):
        artifacts.load(saved)


def test_large_files_are_refused(saved, monkeypatch):
    monkeypatch.setattr(artifacts, "LARGEST_FILE", 100)
    with pytest.raises(Refused, match=r"card\.json is .* larger than 100 bytes"):
        artifacts.load(saved)


def test_a_header_of_ten_gigabytes_is_refused(saved):
    path = saved / "inductive.safetensors"
    about = {"dtype": "F32", "shape": [2_500_000_000], "data_offsets": [0, 10_000_000_000]}
    header = json.dumps({"x": about}).encode()
    huge, long = struct.pack("<Q", 10 * 2**30) + b"{}", struct.pack("<Q", len(header)) + header
    for content in (huge, long, b""):
        path.write_bytes(content)
        rewritten(saved)
        with pytest.raises(Refused, match="does not hold what its card says"):
            artifacts.load(saved)


def test_weights_of_another_network_take_no_memory(saved):
    card = card_of(saved)
    card["parts"]["inductive"]["options"]["hidden"] = [10**9, 10**9]
    rewritten(saved, parts=card["parts"])
    with pytest.raises(Refused, match="size mismatch"):
        artifacts.load(saved)


OTHER_EMOTIONS = [EMOTIONS[::-1], EMOTIONS[:3], [*EMOTIONS, "bored"], ["sad"] * 4, [1, 2, 3, 4]]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("emotions", [*OTHER_EMOTIONS, "neutral", [], None])
def test_wrong_classes_are_refused(saved, emotions):
    rewritten(saved, emotions=emotions)
    with pytest.raises(Refused):
        artifacts.load(saved)


CHANGES = {
    "format": {"format": 1},
    "rate": {"sampling_rate": 8000},
    "kind": {"input": {"kind": "os.system", "arguments": {}}},
    "size": {"input": {"kind": "image", "arguments": {"n_frames": 10**12}}},
    "other input": {"input": {"kind": "image", "arguments": {"n_frames": 64}}},
    "no parts": {"parts": {}},
    "null parts": {"parts": None},
    "variants": {"variants": ["inductive", "speaker-normalised"]},
    "no inductive": {"variants": []},
    "probe": {"probe": {"inductive": [1, 0, 0, 0]}},
    "no probe": {"probe": {}},
    "short probe": {"probe": {"inductive": [1]}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_card_that_does_not_fit_is_refused(saved, change):
    rewritten(saved, **CHANGES[change])
    if change == "no inductive":  # the inductive variant is always asked
        assert artifacts.load(saved).variants == []
        return
    with pytest.raises(Refused, match="has the format 1" if change == "format" else "refused"):
        artifacts.load(saved)


@pytest.mark.parametrize("build", ["os.system", "nn.Module", "torch", "np", "read", "__doc__"])
def test_names_that_are_no_network_are_refused(saved, build):
    card = card_of(saved)
    card["parts"]["inductive"]["build"] = build
    rewritten(saved, parts=card["parts"])
    with pytest.raises(Refused):
        artifacts.load(saved)


BAD_LINEAR = {"scale": np.zeros(2), "limit": np.array(np.nan), "weights": np.ones((3, 2))}


@pytest.mark.parametrize("name", BAD_LINEAR)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_arrays_that_are_no_linear_classifier_are_refused(tmp_path, name):
    arrays = {"mean": np.zeros(2), "scale": np.ones(2), "weights": np.eye(4)[:, :2]}
    arrays |= {"bias": np.zeros(4), "limit": np.array(np.inf)}
    reads = Input("functionals", {"columns": COLUMNS[:2]})
    folder = artifacts.save(tmp_path / "model", {"inductive": Part(arrays)}, reads, ABOUT)
    artifacts.load(folder)
    arrays[name] = BAD_LINEAR[name]
    (folder / "inductive.safetensors").write_bytes(artifacts._tensors(arrays))
    rewritten(folder)
    with pytest.raises(Refused):
        artifacts.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": {"inductive": {"DNN": -1}}},
        {"weights": {"inductive": {"../model": 1}}},
        {"weights": {}},
        {"members": {}},
        {"temperature": {"inductive": 0}},
        {"temperature": {}},
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_average_whose_card_was_changed_is_refused(average, change):
    rewritten(average, **change)
    with pytest.raises(Refused):
        artifacts.load(average)


def test_features_that_changed_are_noticed(saved, monkeypatch):
    functionals = features.functionals
    monkeypatch.setattr(
        features, "functionals", lambda signal: {k: 1.5 * v for k, v in functionals(signal).items()}
    )
    artifacts._read.cache_clear()
    with pytest.raises(
        Refused, match=r"answers the probe differently.*the features or the network"
    ):
        artifacts.load(saved)
    artifacts._read.cache_clear()


def test_other_versions_are_named_where_they_matter(saved):
    older = card_of(saved)["versions"] | {"librosa": "0.1"}
    rewritten(saved, versions=older)
    tone = harmonic_tone(120, 1.0)
    assert artifacts.load(saved).probabilities([tone]).sum() == pytest.approx(1)
    rewritten(saved, versions=older, probe={"inductive": [0.7, 0.1, 0.1, 0.1]})
    with pytest.raises(Refused, match=r"Versions that differ: \{'librosa': '0\.1'\}"):
        artifacts.load(saved)
