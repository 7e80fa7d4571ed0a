"""Artefacts give back the same probabilities, and a hostile one is refused with nothing of it executed."""

import hashlib
import json
import pickle
import struct

import numpy as np
import pytest
import skops.io
import torch
from conftest import RATE, harmonic_tone, noise
from sklearn.preprocessing import FunctionTransformer

from helpers import artifacts, audio, estimators, features, nets, refit, spectrograms
from helpers.artifacts import NetworkPart, Refused
from helpers.experiment import Part
from helpers.inputs import Clips, Input

EMOTIONS = ["neutral", "happy", "sad", "angry"]
ABOUT = {
    "model": "test",
    "emotions": EMOTIONS,
    "policy": "four",
    "corpus": "toy",
    "licence": "MIT",
    "protocol": [],
}
SEQUENCE = Input("sequence", {"n_steps": 40, "stride": 4})
IMAGE = Input("image", {"n_frames": 64})
NETWORKS = {
    "DNN": (Input("functionals"), {"hidden": [16]}),
    "MelCNN": (IMAGE, {"channels": [4, 4]}),
    "MelResNet": (IMAGE, {}),
    "MeansConv": (Input("functionals"), {}),
    "ConvLSTM": (IMAGE, {"images": True}),
    "ResNet1D": (SEQUENCE, {}),
    "AlexNet1D": (SEQUENCE, {}),
    "Recurrent": (SEQUENCE, {"cell": "GRU", "hidden": 8}),
    "Transformer": (SEQUENCE, {}),
}


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    return [
        np.concatenate(
            [
                harmonic_tone(110 + 20 * i, 0.5),
                noise(0.2, 0.01, i),
                harmonic_tone(150 + 20 * i, 0.4, 0.2),
            ]
        )
        for i in range(6)
    ]


def network(build: str, speech) -> tuple[NetworkPart, Input, torch.nn.Module]:
    inputs, options = NETWORKS[build]
    arrays = np.stack([inputs(signal) for signal in speech])
    torch.manual_seed(0)
    net = getattr(nets, build)(4, arrays.shape[1:], **options)
    if hasattr(net, "fit_inputs"):
        net.fit_inputs(torch.tensor(arrays))
    weights = {name: value.numpy() for name, value in net.state_dict().items()}
    return NetworkPart(build, options, arrays.shape[1:], weights), inputs, net.eval()


@pytest.fixture
def saved(tmp_path, speech):
    part, inputs, _ = network("DNN", speech)
    return artifacts.save(tmp_path / "model", {"inductive": part}, inputs, ABOUT)


def rewritten(folder, **changes) -> None:
    """Change a card, with hashes that fit the files."""
    card = json.loads((folder / "card.json").read_text()) | changes
    card["files"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if (folder / name).is_file()
        else digest
        for name, digest in card["files"].items()
    }
    (folder / "card.json").write_text(json.dumps(card))


@pytest.mark.parametrize("build", NETWORKS)
def test_networks_answer_as_they_did_in_memory(tmp_path, speech, build):
    part, inputs, net = network(build, speech)
    loaded = artifacts.load(artifacts.save(tmp_path / build, {"inductive": part}, inputs, ABOUT))
    with torch.inference_mode():
        expected = (
            net(torch.tensor(np.stack([inputs(signal) for signal in speech]))).softmax(1).numpy()
        )
    assert np.abs(loaded.probabilities(speech) - expected).max() < 1e-5
    assert (
        loaded.emotions == EMOTIONS
        and loaded.card["versions"]["torch"] == torch.__version__.split("+")[0]
    )


@pytest.mark.parametrize("name", estimators.classical_models(50))
def test_pipelines_answer_as_they_did_in_memory_in_both_variants(tmp_path, speech, name):
    rng, speakers = np.random.default_rng(0), np.repeat([f"s{i}" for i in range(6)], 20)
    values = np.stack([Input("functionals")(signal) for signal in speech])[:, :50].repeat(
        20, axis=0
    )
    classes = np.tile(np.arange(4), 30)
    values = (values + rng.normal(size=values.shape) * (1 + np.abs(values)) * 0.1).astype(
        np.float32
    )
    values[np.arange(120), classes] += 3 * np.abs(values).mean()
    columns = list(features.functionals(speech[0]))[:50]
    model = estimators.classical_models(
        50, n_trees=10, n_rounds=5, k_best=20, mlp_epochs=3, search=False
    )[name].estimator
    fit = [
        estimators.fit_seeded(estimators.clone(model), Part(array, classes, speakers), 0)
        for array in (values, features.normalise_by_speaker(values, speakers))
    ]
    usual = {"mean": values.mean(axis=0).astype(float), "std": values.std(axis=0).astype(float)}
    parts = {"inductive": refit.part_of(fit[0], 4), "speaker-normalised": refit.part_of(fit[1], 4)}
    some = Input("functionals", {"columns": columns})
    loaded = artifacts.load(artifacts.save(tmp_path / "model", parts, some, ABOUT, usual))
    inputs = np.stack([some(signal) for signal in speech])
    assert np.abs(loaded.probabilities(speech) - fit[0].predict_proba(inputs)).max() < 1e-5
    known = features.normalise_by_enrolment(inputs, inputs[:3], usual["mean"], usual["std"])
    assert (
        np.abs(
            loaded.probabilities(speech, enrolment=speech[:3]) - fit[1].predict_proba(known)
        ).max()
        < 1e-5
    )


@pytest.mark.parametrize("name", ["LDA", "logistic regression"])
def test_models_of_two_emotions_are_loaded_again(tmp_path, speech, name):
    rng, classes = np.random.default_rng(0), np.tile([0, 1], 30)
    values = (rng.normal(size=(60, 5)) + classes[:, None]).astype(np.float32)
    model = estimators.classical_models(5, search=False)[name].estimator
    model = estimators.fit_seeded(model, Part(values, classes, np.repeat(["a", "b", "c"], 20)), 0)
    some = Input("functionals", {"columns": list(features.functionals(speech[0]))[:5]})
    about = ABOUT | {"emotions": EMOTIONS[:2]}
    loaded = artifacts.load(
        artifacts.save(tmp_path / "model", {"inductive": refit.part_of(model, 2)}, some, about)
    )
    expected = model.predict_proba(np.stack([some(signal) for signal in speech]))
    np.testing.assert_allclose(loaded.probabilities(speech), expected, atol=1e-5)


def test_linear_models_from_before_values_were_clipped_answer_and_nonsense_is_refused():
    arrays = {
        "mean": np.zeros(2),
        "scale": np.ones(2),
        "weights": np.array([[1.0, 0], [0, 1], [0, 0]]),
        "bias": np.zeros(3),
    }

    def read(limit):
        part = artifacts.LinearPart.read({}, {"": artifacts._tensor_bytes(arrays | limit)}, 3)
        return part.predictor(3)(np.array([[40.0, 0]]))

    assert read({})[0, 0] > 1 - 1e-12 and read({"limit": np.array(2.0)})[0, 0] == pytest.approx(
        np.exp(2) / (np.exp(2) + 2)
    )
    for limit in (np.array(-1.0), np.array(np.nan), np.ones(2)):
        with pytest.raises(artifacts.Refused, match="no linear classifier"):
            read({"limit": limit})


def test_inputs_are_those_of_training(speech):
    assert Input("functionals")(speech[0]).tolist() == pytest.approx(
        list(features.functionals(speech[0]).values()), rel=1e-6
    )
    assert (IMAGE(speech[0]) == spectrograms.padded_image(speech[0], 64)).all()
    assert (SEQUENCE(speech[0]) == features.sequence(speech[0], 40, 4)).all()


def test_clips_are_read_once_however_many_models_read_them(average, speech, monkeypatch):
    read, asked = Input.represent, []
    monkeypatch.setattr(
        Input, "represent", lambda self, *signal: asked.append(self.kind) or read(self, *signal)
    )
    clips = Clips(speech)
    model = artifacts.load(average)
    asked.clear()
    first = model.probabilities(clips)
    assert (model.probabilities(clips) == first).all() and sorted(asked) == ["functionals"] * 6 + [
        "image"
    ] * 6


def test_inputs_that_share_an_analysis_are_the_same(speech):
    wanted = [
        Input("functionals"),
        SEQUENCE,
        Input("sequence", {"n_steps": 40, "stride": 4, "trim": False}),
        Input("segments", {"n_segments": 3}),
        Input("functionals", levelled=True),
        IMAGE,
    ]
    clips = Clips(speech)
    clips.prepare(wanted)
    for inputs in wanted:
        alone = np.stack([inputs(signal) for signal in speech])
        np.testing.assert_allclose(
            clips.read(inputs), alone, rtol=2e-4, atol=2e-4, err_msg=str(inputs)
        )


def test_what_a_network_makes_of_clips_is_made_once(tmp_path, speech, monkeypatch):
    part, inputs, _ = network("MelCNN", speech)
    running, values = part.predictor(4), np.stack([inputs(signal) for signal in speech])
    usual, farthest = artifacts.usual_speaker(
        running.embed(values), np.arange(len(speech)).astype(str)
    )
    folder = artifacts.save(
        tmp_path / "model", {"inductive": part}, inputs, ABOUT, usual, "embeddings", farthest
    )
    model, embed, asked = artifacts.load(folder), artifacts.RunningNetwork.embed, []
    monkeypatch.setattr(
        artifacts.RunningNetwork,
        "embed",
        lambda self, some: asked.append(len(some)) or embed(self, some),
    )
    clips = Clips(speech)
    np.testing.assert_allclose(model.probabilities(clips), running(values), atol=1e-6)
    assert (model.distances(clips) <= 1.2).all() and asked == [len(speech)]


def test_distance_is_one_for_the_farthest_hundredth_of_the_training_clips(tmp_path, speech):
    part, inputs, _ = network("DNN", speech)
    values = np.stack([inputs(signal) for signal in speech])
    rng = np.random.default_rng(0)
    many = values[rng.integers(0, 6, 500)] + rng.normal(size=(500, values.shape[1])) * values.std(
        axis=0
    )
    usual, farthest = artifacts.usual_speaker(many, rng.integers(0, 5, 500).astype(str))
    model = artifacts.load(
        artifacts.save(
            tmp_path / "model", {"inductive": part}, inputs, ABOUT, usual, farthest=farthest
        )
    )
    clips = Clips(speech)
    assert (model.distances(clips) < 1).all()
    clips.read(inputs)[0] += 20 * usual["clip_std"]
    assert model.distances(clips)[0] > 3
    assert (
        artifacts.distances(many, usual["clip_mean"], usual["clip_std"]) > farthest
    ).mean() == pytest.approx(0.01)
    assert (
        artifacts.load(
            artifacts.save(tmp_path / "other", {"inductive": part}, inputs, ABOUT)
        ).distances(clips)
        is None
    )


def test_a_folder_that_is_no_model_is_not_replaced(tmp_path, speech, saved):
    part, inputs, _ = network("DNN", speech)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("of years")
    with pytest.raises(ValueError, match=r"holds chapter\.txt"):
        artifacts.save(tmp_path / "thesis", {"inductive": part}, inputs, ABOUT)
    assert (tmp_path / "thesis/chapter.txt").read_text() == "of years"
    (saved / "older.skops").write_bytes(b"of another recipe")
    artifacts.load(artifacts.save(saved, {"inductive": part}, inputs, ABOUT))


def test_probe_is_the_same_everywhere():
    signal = artifacts.probe_signal()
    assert (
        signal.shape == (2 * audio.SAMPLING_RATE,)
        and signal.dtype == np.float32
        and np.abs(signal).max() < 1
    )
    assert float(np.abs(signal).sum()) == pytest.approx(859.894, abs=0.05)


def test_emotions_in_another_order_are_not_saved(tmp_path, speech):
    part, inputs, _ = network("DNN", speech)
    with pytest.raises(ValueError, match="order of the model's outputs"):
        artifacts.save(
            tmp_path / "model", {"inductive": part}, inputs, ABOUT | {"emotions": EMOTIONS[::-1]}
        )
    assert not (tmp_path / "model").exists()


# --- what is refused -----------------------------------------------------------------------------------------------


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no card\.json"):
        artifacts.load(tmp_path)


def test_pickle_inside_is_refused_and_not_executed(saved, tmp_path):
    trace = tmp_path / "trace"
    (saved / "weights.pkl").write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(Refused, match=r"files that its card does not name: weights\.pkl"):
        artifacts.load(saved)
    for name in ("weights.pkl", "inductive.safetensors", "inductive.skops"):
        (saved / "weights.pkl").unlink(missing_ok=True)
        (saved / name).write_bytes(pickle.dumps(Bomb(trace)))
        kind = "classical" if name.endswith("skops") else "network"
        card = json.loads((saved / "card.json").read_text())
        part = card["parts"]["inductive"] | {"kind": kind, "files": [name]}
        rewritten(saved, files={name: ""}, parts={"inductive": part})
        if name != "inductive.safetensors":
            (saved / "inductive.safetensors").unlink(missing_ok=True)
        with pytest.raises(Refused):
            artifacts.load(saved)
        (saved / name).unlink()
    assert not trace.exists(), "something of it was executed"


def test_objects_that_are_not_vetted_are_refused(tmp_path, speech):
    part, inputs, _ = network("DNN", speech)
    folder = artifacts.save(tmp_path / "model", {"inductive": part}, inputs, ABOUT)
    (folder / "inductive.safetensors").unlink()
    (folder / "inductive.skops").write_bytes(skops.io.dumps(FunctionTransformer(pickle.loads)))
    rewritten(
        folder,
        files={"inductive.skops": ""},
        parts={"inductive": {"kind": "classical", "files": ["inductive.skops"]}},
    )
    with pytest.raises(Refused, match=r"types that are not vetted: .*loads"):
        artifacts.load(folder)


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "card.json", "x.pkl", ".."],
)
def test_file_outside_its_folder_is_refused(saved, name):
    (saved.parent / "outside.safetensors").write_bytes(
        (saved / "inductive.safetensors").read_bytes()
    )
    card = json.loads((saved / "card.json").read_text())
    rewritten(saved, files=card["files"] | {name: "0"})
    with pytest.raises(Refused, match="only files of its own folder"):
        artifacts.load(saved)


def test_link_to_another_place_is_refused(saved):
    inside, outside = saved / "inductive.safetensors", saved.parent / "outside.safetensors"
    inside.rename(outside)
    inside.symlink_to(outside)
    with pytest.raises(Refused, match="only files of its own folder"):
        artifacts.load(saved)


def test_header_of_ten_gigabytes_is_refused(saved):
    path = saved / "inductive.safetensors"
    header = json.dumps(
        {"x": {"dtype": "F32", "shape": [2_500_000_000], "data_offsets": [0, 10_000_000_000]}}
    ).encode()
    for content in (
        struct.pack("<Q", 10 * 2**30) + b"{}",
        struct.pack("<Q", len(header)) + header,
        b"",
    ):
        path.write_bytes(content)
        rewritten(saved)
        with pytest.raises(Refused, match="does not hold what its card says"):
            artifacts.load(saved)


def test_changed_file_is_refused(saved):
    content = bytearray((saved / "inductive.safetensors").read_bytes())
    content[-1] ^= 1
    (saved / "inductive.safetensors").write_bytes(content)
    with pytest.raises(Refused, match="not the file that was saved"):
        artifacts.load(saved)


@pytest.mark.parametrize(
    "emotions",
    [
        EMOTIONS[::-1],
        EMOTIONS[:3],
        [*EMOTIONS, "bored"],
        ["sad"] * 4,
        "neutral",
        [1, 2, 3, 4],
        [],
        None,
    ],
)
def test_wrong_classes_are_refused(saved, emotions):
    rewritten(saved, emotions=emotions)
    with pytest.raises(Refused):
        artifacts.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"sampling_rate": 8000},
        {"input": {"kind": "os.system", "arguments": {}}},
        {"parts": {}},
        {"parts": None},
        {"input": {"kind": "image", "arguments": {"n_frames": 10**12}}},
        {"versions": None, "probe": {"inductive": [1, 0, 0, 0]}},
    ],
)
def test_card_that_asks_for_something_else_is_refused(saved, change):
    rewritten(saved, **change)
    with pytest.raises(Refused):
        artifacts.load(saved)


@pytest.mark.parametrize("build", ["os.system", "nn.Module", "torch", "Scaler"])
def test_network_that_is_none_of_ours_is_refused(saved, build):
    card = json.loads((saved / "card.json").read_text())
    card["parts"]["inductive"]["build"] = build
    rewritten(saved, parts=card["parts"])
    with pytest.raises(Refused, match="is none of DNN"):
        artifacts.load(saved)


def test_front_end_that_changed_is_noticed_and_named(saved, monkeypatch):
    functionals = features.functionals
    monkeypatch.setattr(
        features, "functionals", lambda signal: {k: 1.5 * v for k, v in functionals(signal).items()}
    )
    monkeypatch.setattr(
        artifacts, "_probe", artifacts._probe.__wrapped__
    )  # what another model read of it is not used
    with pytest.raises(Refused, match="answers the probe otherwise"):
        artifacts.load(saved)


def test_other_versions_are_named(saved):
    card = json.loads((saved / "card.json").read_text())
    rewritten(
        saved,
        versions=card["versions"] | {"librosa": "0.1"},
        probe={"inductive": [0.7, 0.1, 0.1, 0.1]},
    )
    with pytest.raises(Refused, match=r"librosa 0\.1 then, .* now"):
        artifacts.load(saved)


def test_model_of_other_versions_that_answers_alike_is_welcome(saved):
    card = json.loads((saved / "card.json").read_text())
    rewritten(saved, versions=card["versions"] | {"librosa": "0.1"})
    assert artifacts.load(saved).probabilities(
        [harmonic_tone(120, 1.0, rate=RATE)]
    ).sum() == pytest.approx(1)


# --- averages ------------------------------------------------------------------------------------------------------


@pytest.fixture
def average(tmp_path, speech):
    members = {}
    for build in ("DNN", "MelCNN"):
        part, inputs, _ = network(build, speech)
        members[build] = artifacts.save(tmp_path / build, {"inductive": part}, inputs, ABOUT)
    weights, temperature = {"inductive": {"DNN": 0.4, "MelCNN": 0.25}}, {"inductive": 0.5}
    return artifacts.save_average(tmp_path / "average", members, weights, temperature, ABOUT)


def test_average_is_the_weighted_product_of_its_members(average, speech):
    both = [artifacts.load(average / name).probabilities(speech) for name in ("DNN", "MelCNN")]
    expected = (both[0] + 1e-3) ** 0.8 * (both[1] + 1e-3) ** 0.5
    found = artifacts.load(average)
    assert (
        np.abs(found.probabilities(speech) - expected / expected.sum(axis=1, keepdims=True)).max()
        < 1e-6
    )
    assert (
        found.variants == ["inductive"]
        and (found.probabilities(speech, speech[:2]) == found.probabilities(speech)).all()
    )


def test_average_of_a_changed_or_foreign_member_is_refused(average, saved):
    (average / "DNN/card.json").write_bytes((average / "DNN/card.json").read_bytes() + b" ")
    with pytest.raises(Refused, match="member DNN is not the one that was saved"):
        artifacts.load(average)
    card = json.loads((average / "card.json").read_text())
    for change in (
        {"members": {"../model": "0"}},
        {"weights": {"inductive": {"DNN": -1}}},
        {"weights": {}},
        {"members": {}},
        {"temperature": {"inductive": 0}},
        {"temperature": {}},
    ):
        (average / "card.json").write_text(json.dumps(card | change))
        with pytest.raises(Refused):
            artifacts.load(average)
