"""Exported networks answer in onnxruntime, from samples on, as they do here; what can't be exported is named."""

import json
import re
from dataclasses import asdict

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import RATE, harmonic_tone, noise

from helpers import artifacts, audio, export, nets, paths, wav2vec2
from helpers.artifacts import Average, NetworkPart
from helpers.inputs import Input

EMOTIONS = ["neutral", "happy", "sad", "angry"]
ABOUT = {
    "model": "test",
    "emotions": EMOTIONS,
    "policy": "four",
    "corpus": "toy",
    "licence": "MIT",
    "protocol": [],
}
N_FRAMES = 96  # a little less than two seconds: some signals are cut, others padded
ON_IMAGES = {
    "MelCNN": {},
    "MelCNN on MFCC": {"channels": [4, 8], "n_mfcc": 16},
    "MelResNet": {},
    "MelCNN levelled": {"channels": [8, 8]},
    "MelResNet of 34": {"depth": 34},
    "AlexNet1D": {"images": True, "width": 16},
    "ResNet1D": {"images": True, "width": 16},
    "Recurrent": {"images": True, "hidden": 16},
    "Recurrent with attention": {
        "images": True,
        "hidden": 16,
        "cell": "GRU",
        "layers": 2,
        "pooling": "attention",
    },
    "Transformer": {"images": True, "width": 32},
    "ConvLSTM": {"images": True, "width": 16},
}


def voice(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    part = seconds / 3
    return np.concatenate(
        [
            harmonic_tone(110 + 30 * seed, part),
            noise(part, 0.02, seed),
            harmonic_tone(170, part, 0.15),
        ]
    )


@pytest.fixture(scope="module")
def signals() -> dict[str, np.ndarray]:
    quiet, nothing = noise(0.7, 2e-4), np.zeros(16_000, np.float32)
    return {
        "plain": voice(),
        "no multiple of a hop": voice(1.3)[:-77],
        "noise": noise(1.7),
        "20 ms": noise(0.02),
        "silence at both ends": np.concatenate([quiet, voice(0.9), quiet, quiet]),
        "zeros behind": np.concatenate([voice(0.8), nothing]),
        "a click in silence": np.concatenate(
            [nothing[:9_999], np.full(1, 0.5, np.float32), nothing[:4_321]]
        ),
        "one sample": np.ones(1, np.float32),
        "silence": nothing[:5_000],
        "a minute": np.tile(voice(), 60),
        "just the width": voice(N_FRAMES / 50)[: (N_FRAMES - 1) * 320],
    }


def network(label: str, signals) -> artifacts.Artifact:
    build, options = label.split()[0], ON_IMAGES[label]
    inputs = Input("image", {"n_frames": N_FRAMES}, levelled="levelled" in label)
    images = torch.tensor(np.stack([inputs(signal) for signal in signals.values()]))
    torch.manual_seed(1)
    net = getattr(nets, build)(4, tuple(images.shape[1:]), **options)
    if hasattr(net, "fit_inputs"):
        net.fit_inputs(images)
    with torch.no_grad():
        for _ in range(3):
            net.train()(images)  # statistics of batches that are not those of a new network
        last, logits = net.head[-1], net.eval()(images)
        last.bias -= logits.mean(0)  # so that clips get answers that differ
        last.weight /= logits.std(0)[:, None]
        last.bias /= logits.std(0)
    part = NetworkPart(
        build,
        options,
        tuple(images.shape[1:]),
        {name: v.numpy() for name, v in net.state_dict().items()},
    )
    return artifacts.Artifact(
        ABOUT | {"input": asdict(inputs), "space": "inputs"}, {"inductive": part}, {}
    )


def run(path, signal: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"signal": signal})[0]


@pytest.mark.parametrize("label", ON_IMAGES)
def test_networks_on_images_answer_from_samples_on(tmp_path, signals, label):
    artifact = network(label, signals)
    session = onnxruntime.InferenceSession(str(export.write_onnx(artifact, tmp_path / "net.onnx")))
    expected, n_same = artifact.probabilities(list(signals.values())), 0
    assert np.ptp(expected, axis=0).max() > 0.1, (
        "clips must differ, or else a deaf network would pass"
    )
    for (name, signal), row in zip(signals.items(), expected, strict=True):
        (found,) = session.run(["probabilities"], {"signal": signal})
        assert found.shape == (4,) and found.dtype == np.float32
        image = export.MelImage(N_FRAMES, levelled=artifact.input.levelled)(
            torch.tensor(signal)
        ).numpy()
        same = np.array_equal(image, artifact.input(signal))
        assert np.abs(found - row).max() < (1e-4 if same else 1e-3), name
        n_same += same
    assert n_same >= len(signals) - 2, "one level of one pixel may be off, now and then"
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"], (
        "one file, and nothing beside it"
    )


def test_images_are_those_of_the_project(signals):
    for options in ({}, {"trim": False}, {"levelled": True}):
        image, levelled = export.MelImage(N_FRAMES, **options), options.pop("levelled", False)
        expect = Input("image", {"n_frames": N_FRAMES} | options, levelled)
        for name, signal in signals.items():
            found, expected = image(torch.tensor(signal)).numpy(), expect(signal)
            assert found.dtype == np.uint8 and found.shape == expected.shape
            assert (found != expected).sum() <= 1 and np.abs(
                found - expected.astype(int)
            ).max() <= 1, name


def test_only_what_lies_between_silences_is_kept(signals):
    for name, signal in signals.items():
        kept = export._trimmed(torch.tensor(signal), audio.TRIM_DB).numpy()
        assert np.array_equal(kept, audio.trim(signal)), name
    assert (
        len(audio.trim(signals["silence at both ends"])) < len(signals["silence at both ends"]) / 2
    )


def test_a_file_says_what_it_is(tmp_path, signals):
    path = export.write_onnx(network("MelCNN", signals), tmp_path / "deep/net.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path))
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told.pop("emotions")) == EMOTIONS
    assert told == {
        "sampling_rate": "16000",
        "model": "test",
        "corpus": "toy",
        "policy": "four",
        "licence": "MIT",
    }
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == ("signal", "tensor(float)", ["n_samples"])


def test_command_writes_a_saved_model(tmp_path, signals, monkeypatch, capsys):
    artifact = network("MelCNN", signals)
    folder = artifacts.save(tmp_path / "model", artifact.parts, artifact.input, ABOUT)
    monkeypatch.setattr("sys.argv", ["export", str(folder), str(tmp_path / "net.onnx")])
    export.main()
    assert "answers as" in capsys.readouterr().out
    assert (
        np.abs(
            run(tmp_path / "net.onnx", signals["plain"])
            - artifact.probabilities([signals["plain"]])[0]
        ).max()
        < 1e-4
    )
    monkeypatch.setattr(
        "sys.argv", ["export", str(tmp_path / "nowhere"), str(tmp_path / "other.onnx")]
    )
    with pytest.raises(SystemExit, match=r"holds no card\.json"):
        export.main()


def test_a_file_that_answers_otherwise_is_not_written(tmp_path, signals, monkeypatch):
    artifact = network("MelCNN on MFCC", signals)
    (tmp_path / "net.onnx").write_text("what was there before")
    with (
        monkeypatch.context() as patch,
        pytest.raises(ValueError, match="as ONNX it answers the probe with"),
    ):
        patch.setattr(export, "STAND_INS", {})
        export.write_onnx(artifact, tmp_path / "net.onnx")
    monkeypatch.setattr(export, "_trimmed", lambda signal, top_db: signal[8_000:])
    with pytest.raises(ValueError, match="the probe's image is not this project's"):
        export.write_onnx(artifact, tmp_path / "net.onnx")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["what was there before"]


def test_models_on_other_inputs_are_refused(tmp_path, signals):
    row = Input("functionals")(signals["plain"])
    net = nets.DNN(4, row.shape, hidden=[4])
    part = NetworkPart(
        "DNN",
        {"hidden": [4]},
        row.shape,
        {name: value.numpy() for name, value in net.state_dict().items()},
    )
    other = artifacts.load(
        artifacts.save(tmp_path / "model", {"inductive": part}, Input("functionals"), ABOUT)
    )
    with pytest.raises(
        ValueError,
        match=r"\(DNN\) on inputs of the kind 'functionals': only networks on mel images",
    ):
        export.write_onnx(other, tmp_path / "net.onnx")
    with pytest.raises(ValueError, match="an average of 2 models"):
        export.write_onnx(Average({}, {"a": other, "b": other}), tmp_path / "net.onnx")
    with pytest.raises(ValueError, match=r"a DNN: only wav2vec2\.FineTuned"):
        export.write_onnx_of_samples(net, tmp_path / "net.onnx", ABOUT)
    assert not (tmp_path / "net.onnx").exists()


@pytest.fixture
def models(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SER_MODELS", str(tmp_path_factory.getbasetemp() / "models"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def fine_tuned(kind: str, rank: int = 0) -> wav2vec2.FineTuned:
    torch.manual_seed(0)
    net = wav2vec2.FineTuned(4, (0,), f"tiny-random-{kind}", "", rank=rank).eval()
    with torch.no_grad():
        net.head[0].weight *= 5
        net.head[-1].weight *= 5
    return net


@pytest.mark.parametrize(
    ("kind", "rank"), [("wav2vec2", 0), ("hubert", 0), ("wavlm", 0), ("wav2vec2", 2)]
)
def test_encoders_answer_from_samples_on(tmp_path, models, kind, rank):
    net = fine_tuned(kind, rank).train()
    path = export.write_onnx_of_samples(net, tmp_path / "net.onnx", ABOUT)
    assert net.training, "left as it was found"
    session, answers = onnxruntime.InferenceSession(str(path)), []
    for i, n_samples in enumerate((400, 5_000, 16_000, 31_999, 112_000)):
        signal = (
            0.3**i * noise(n_samples / RATE, 0.3, i)
            + 0.1 * harmonic_tone(100 + 50 * i, n_samples / RATE)
        ).astype("f4")
        signal[:3] = [1.5, -1.5, 0.3]  # beyond full scale, too
        clip = np.clip(np.round(signal * 32768), -32767, 32767).astype(np.int16)
        with torch.inference_mode():
            expected = net.eval()(torch.tensor(clip[None])).softmax(1)[0].numpy()
        answers += session.run(["probabilities"], {"signal": signal})
        assert np.abs(answers[-1] - expected).max() < 1e-4, n_samples
    assert np.ptp(answers, axis=0).max() > 0.01, (
        "clips must differ, or else a deaf network would pass"
    )
    assert json.loads(session.get_modelmeta().custom_metadata_map["emotions"]) == EMOTIONS


def test_an_encoder_needs_a_name_for_each_output(tmp_path, models):
    with pytest.raises(ValueError, match="it has 4 outputs"):
        export.write_onnx_of_samples(
            fine_tuned("wav2vec2"), tmp_path / "net.onnx", {"emotions": EMOTIONS[:3]}
        )
    assert not list(tmp_path.iterdir())


def test_prediction_does_not_wait_for_what_only_the_export_needs():
    needs = re.compile(r"^(import|from) (onnx|helpers\.export|helpers import .*\bexport\b)", re.M)
    sources = [
        path for path in (paths.PROJECT / "helpers").glob("*.py") if path.name != "export.py"
    ]
    assert needs.search((paths.PROJECT / "helpers/export.py").read_text()) and len(sources) > 20
    assert not [path.name for path in sources if needs.search(path.read_text())]
