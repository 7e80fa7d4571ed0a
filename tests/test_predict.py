"""Using a model: any valid recording is answered alike, any other gets a clear error, and nothing crashes or hangs."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
import soxr
import torch
from conftest import RATE, harmonic_tone, noise, write_audio

from helpers import artifacts, audio, features, inputs, nets, predict
from helpers.artifacts import ClassicalPart, NetworkPart
from helpers.inputs import Input
from helpers.paths import PROJECT

EMOTIONS = ["neutral", "happy", "sad", "angry"]
ABOUT = {
    "model": "test",
    "emotions": EMOTIONS,
    "policy": "four",
    "corpus": "toy",
    "licence": "MIT",
    "protocol": [],
}


def voice(pitch: float, seconds: float = 1.5) -> np.ndarray:
    tone = harmonic_tone(pitch, seconds, 0.3) * np.abs(
        np.sin(np.arange(round(seconds * RATE)) / RATE * 9)
    ).astype(np.float32)
    return tone + noise(seconds, 0.002, round(pitch))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that tells low voices from high ones, in both variants."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    columns = ["f0_st__p50", "f0_st__p95"]
    values, classes = [], []
    for i, pitch in enumerate([100, 150, 200, 250]):
        for shift in range(6):
            row = features.functionals(voice(pitch + 4 * shift))
            values.append([row[name] for name in columns])
            classes.append(i)
    values = np.array(values, np.float32)
    inputs = {"inductive": values, "speaker-normalised": (values - values.mean(0)) / values.std(0)}
    parts = {
        variant: ClassicalPart(
            make_pipeline(StandardScaler(), LogisticRegression(C=100)).fit(array, classes)
        )
        for variant, array in inputs.items()
    }
    about = ABOUT | {
        "traits": {"duration_s": [1.0, 4.0], "level_dbfs": [-40, -5], "bandwidth_hz": [1000, 7900]}
    }
    return artifacts.save(
        tmp_path_factory.mktemp("models") / "pitch",
        parts,
        Input("functionals", {"columns": columns}),
        about,
        {"mean": values.mean(0).astype(float), "std": values.std(0).astype(float)},
    )


@pytest.fixture
def clip(tmp_path):
    return write_audio(tmp_path / "clip.wav", voice(212))


def test_emotion_and_probability(model, clip):
    emotion, probability = predict.predict_emotion(clip, model)
    assert emotion == "sad" and 0.5 < probability <= 1
    whole = predict.predict(clip, model)
    assert (whole.emotion, whole.probability) == (
        emotion,
        probability,
    ) and whole.variant == "inductive"
    assert list(whole.probabilities) == EMOTIONS and sum(
        whole.probabilities.values()
    ) == pytest.approx(1)
    assert [e for e, _ in whole.top] == sorted(EMOTIONS, key=whole.probabilities.get, reverse=True)[
        :3
    ] and whole.warnings == []


def test_model_may_be_loaded_once(model, clip):
    assert predict.predict(clip, artifacts.load(model)) == predict.predict(clip, model)


def test_samples_are_answered_as_the_file_is(model, clip):
    samples, rate = soundfile.read(clip, dtype="float32")
    expected = predict.predict(clip, model).probabilities
    for given in (
        samples,
        np.stack([samples, samples], axis=1),
        samples.astype(np.float64),
        np.round(samples * 32767).astype(np.int16),
        np.round(samples * 2147483647.0).astype(np.int32),
    ):
        assert predict.predict(given, model, rate).probabilities == pytest.approx(
            expected, abs=0.01
        )


@pytest.mark.parametrize(
    "how",
    [
        "384 kHz",
        "24 channels",
        "8-bit",
        "64-bit float",
        "mp3",
        "opus",
        "telephone",
        "au",
        "unsigned",
    ],
)
def test_unusual_recordings_are_answered_as_the_plain_one(tmp_path, model, clip, how):
    signal, path = voice(212), tmp_path / "other.wav"
    match how:
        case "384 kHz":
            write_audio(path, soxr.resample(signal, RATE, 384_000), 384_000)
        case "24 channels":
            write_audio(path, np.repeat(signal[:, None], 24, axis=1))
        case "8-bit":
            write_audio(path, signal, subtype="PCM_U8")
        case "64-bit float":
            write_audio(path, signal, subtype="DOUBLE")
        case "mp3":
            path = write_audio(tmp_path / "other.mp3", signal)
        case "opus":
            path = write_audio(tmp_path / "other.opus", signal, format="OGG", subtype="OPUS")
        case "telephone":
            write_audio(path, soxr.resample(signal, RATE, 8_000), 8_000)
        case "au":
            path = write_audio(tmp_path / "other.au", signal)
        case "unsigned":
            found = predict.predict(np.round(signal * 127 + 128).astype(np.uint8), model, RATE)
            assert found.emotion == "sad"
            return
    found, plain = predict.predict(path, model), predict.predict(clip, model)
    assert found.emotion == plain.emotion and found.probabilities == pytest.approx(
        plain.probabilities, abs=0.05
    )


def test_mask_unsure_and_enrolment(model, clip):
    masked = predict.predict(clip, model, only=("happy", "angry"))
    assert masked.probabilities["sad"] == masked.probabilities[
        "neutral"
    ] == 0 and masked.emotion in ("happy", "angry")
    assert sum(masked.probabilities.values()) == pytest.approx(1)
    assert predict.predict(clip, model, unsure_below=1.01).emotion == "unsure"
    with pytest.raises(
        ValueError, match=r"does not know bored; it knows neutral, happy, sad, angry"
    ):
        predict.predict(clip, model, only=("bored",))
    # of somebody whose voice is otherwise higher still, this is a low one
    enrolled = predict.predict(
        clip, model, RATE, enrolment=tuple(voice(p) for p in (230, 260, 290, 320, 350, 380))
    )
    assert enrolled.variant == "speaker-normalised" and enrolled.emotion in ("neutral", "happy")


def test_what_is_unlike_the_training_recordings_is_said(model):
    warned = predict.predict(soxr.resample(voice(212, 6.0) / 60, RATE, RATE), model, RATE).warnings
    assert any("s long; training clips have 1.0 to 4.0" in w for w in warned) and any(
        "dBFS loud" in w for w in warned
    )
    shipped, quiet = artifacts.load(predict.find_model("ravdess-8")), voice(212, 2.0) / 60
    low, _ = shipped.card["traits"]["level_dbfs"]
    assert audio.traits(quiet)["level_dbfs"] < low and all(
        inputs.levelled for inputs in shipped.inputs
    )
    assert not any("dBFS" in w for w in predict.predict(quiet, shipped, RATE).warnings), (
        "it hears nothing of the level"
    )
    found = audio.traits(voice(212))
    assert found["duration_s"] == 1.5 and -30 < found["level_dbfs"] < 0 and found["snr_db"] > 3
    assert 1000 < found["bandwidth_hz"] < 8000


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (np.zeros(RATE, np.float32), "silent"),
        (np.ones(1, np.float32), "0.00 s long"),
        (np.empty(0, np.float32), "0.00 s long"),
        (np.full(RATE, np.nan, np.float32), "NaN or infinite"),
        (np.full(RATE, np.inf), "NaN or infinite"),
        (np.full(RATE, 1e300), "NaN or infinite"),
        (voice(100) * 1e30, r"up to .*e\+29 times full scale"),
        (np.zeros((10, 10, 10), np.float32), r"shape \(10, 10, 10\)"),
        (voice(100, 70.0), "a timeline takes longer ones"),
    ],
)
def test_samples_that_hold_no_utterance_are_refused(model, samples, said):
    with pytest.raises(ValueError, match=said):
        predict.predict(samples, model, RATE)


def test_floats_that_are_no_level_of_any_recording_are_refused(tmp_path, model):
    loud = write_audio(tmp_path / "loud.wav", voice(212) * 1e30, subtype="FLOAT")
    with pytest.raises(
        ValueError, match=r"loud.wav goes up to .*e\+29 times full scale.*is it damaged\?"
    ):
        predict.predict(loud, model)
    found = predict.predict(
        write_audio(tmp_path / "unscaled.wav", voice(212) * 900, subtype="FLOAT"), model
    )
    assert found.emotion in EMOTIONS, (
        "floats beside full scale are mended, as far as there are such"
    )


def test_rate_is_needed_and_must_be_one(model):
    for rate in (None, 0, -1, 10**9):
        with pytest.raises(ValueError, match="need their sampling rate"):
            predict.predict(voice(100), model, rate)


def test_mutated_files_are_answered_or_refused(tmp_path, model):
    """A few hundred here; thousands by benchmarks."""
    rng, loaded, outcomes = (
        np.random.default_rng(0),
        artifacts.load(model),
        {"answered": 0, "refused": 0},
    )
    originals = [
        write_audio(tmp_path / name, voice(180, 1.0), **more).read_bytes()
        for name, more in (
            ("a.wav", {}),
            ("b.flac", {}),
            ("c.mp3", {}),
            ("d.opus", {"format": "OGG", "subtype": "OPUS"}),
        )
    ]
    for i in range(200):
        content = bytearray(originals[i % 4])
        kind = i // 4 % 4
        if kind == 0:
            content = content[: rng.integers(0, len(content))]
        elif kind == 1:
            for at in rng.integers(0, len(content), 8):
                content[at] ^= 1 << rng.integers(0, 8)
        elif kind == 2:
            content[:44] = rng.bytes(44)
        else:
            content = bytearray(rng.bytes(rng.integers(0, 5000)))
        path = tmp_path / "mutated.bin"
        path.write_bytes(content)
        try:
            found = predict.predict(path, loaded)
            assert (
                sum(found.probabilities.values()) == pytest.approx(1) and found.emotion in EMOTIONS
            )
            outcomes["answered"] += 1
        except ValueError as error:
            assert len(str(error)) > 10
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20, outcomes


def test_timeline_finds_who_speaks_when_and_a_verdict_minds_the_end(model):
    pause = noise(3.0, 0.0005, 5)
    call = np.concatenate([voice(105, 6.0), pause, voice(255, 6.0)])
    windows = predict.timeline(call, model, RATE, detector="energy")
    assert windows["emotion"].iloc[0] == "neutral" and windows["emotion"].iloc[-1] == "angry"
    assert (windows["end_s"] - windows["start_s"] <= 4).all() and windows[
        "end_s"
    ].max() == pytest.approx(15)
    assert np.allclose(windows[[f"p_{e}" for e in EMOTIONS]].sum(axis=1), 1)
    even, late = predict.verdict(windows, 1.0), predict.verdict(windows, 5.0)
    assert (
        sum(late.values()) == pytest.approx(1)
        and late["angry"] > even["angry"]
        and next(iter(late)) == "angry"
    )
    assert set(predict.verdict(windows, groups=predict.SATISFACTION)) == {
        "satisfied",
        "unsatisfied",
    }
    quiet = predict.timeline(
        np.concatenate([voice(105, 0.1), np.zeros(5 * RATE, np.float32)]),
        model,
        RATE,
        detector="energy",
    )
    assert quiet.empty and predict.verdict(quiet) == {}
    with pytest.raises(ValueError, match="in none of the groups"):
        predict.verdict(windows, groups={"other": ("bored",)})


def test_timeline_of_many_windows_is_the_same_from_processes(monkeypatch):
    shipped, call = predict.find_model("ravdess-8"), voice(212, 30.0)
    expected = predict.timeline(call, shipped, RATE, detector="energy")
    asked, read = [], inputs.read_ahead
    monkeypatch.setattr(predict, "AT_ONCE", 5)
    monkeypatch.setattr(predict, "MANY", 3)
    monkeypatch.setattr(inputs, "read_ahead", lambda *given: asked.append(given) or read(*given))
    pd.testing.assert_frame_equal(
        predict.timeline(call, shipped, RATE, detector="energy"), expected, atol=1e-5
    )
    assert asked, "it was not read in processes"


def test_timeline_of_one_window_is_the_prediction(model, clip):
    windows = predict.timeline(clip, model, detector="energy")
    assert len(windows) == 1 and windows["probability"].iloc[0] == pytest.approx(
        predict.predict(clip, model).probability
    )


def command(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "helpers.predict", *map(str, arguments)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_answers_files_and_folders(tmp_path, model, clip):
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    done = command(clip, "--model", model)
    assert done.returncode == 0 and f"{clip}: sad " in done.stdout
    folder = command(tmp_path, "--model", model, "--json")
    answers = {
        line["file"].rsplit("/", 1)[-1]: line
        for line in map(json.loads, folder.stdout.splitlines())
    }
    assert folder.returncode == 1 and answers["clip.wav"]["emotion"] == "sad"
    assert "can't be decoded" in answers["broken.wav"]["error"]
    called = json.loads(command(clip, "--model", model, "--timeline", "--json").stdout)
    assert called["file"] == str(clip) and [w["emotion"] for w in called["windows"]] in (
        [],
        ["sad"],
    ), "a tone may be no speech"
    refused = command(clip, "--model", tmp_path)
    assert refused.returncode == 2 and "card.json" in refused.stderr
    assert command(clip, "--model", model, "--only", "bored").returncode == 2


def test_an_answer_does_not_wait_for_libraries_that_it_does_not_need(clip):
    heavy = [
        "librosa",
        "matplotlib",
        "numba",
        "onnxruntime",
        "pandera",
        "scipy.signal",
        "scipy.stats",
        "sklearn",
        "skops",
        "torchvision",
        "transformers",
    ]
    asked = f"import sys; from helpers import predict; predict.main([{str(clip)!r}]); print({{*{heavy}}} & {{*sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", asked], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()", "of the model that comes with the project"


def test_answers_in_words_name_the_three_most_probable_emotions():
    answer = {
        "file": "a.wav",
        "emotion": "sad",
        "probability": 0.6,
        "top": [("sad", 0.6), ("happy", 0.3), ("angry", 0.1)],
        "warnings": ["7.0 s long; training clips have 1.0 to 4.0"],
    }
    assert predict._in_words(answer).splitlines() == [
        "a.wav: sad 60%  (happy 30%, angry 10%)",
        "  unlike the training recordings: 7.0 s long; training clips have 1.0 to 4.0",
    ]
    assert predict._in_words(answer | {"emotion": "unsure"}).startswith(
        "a.wav: unsure  (sad 60%, happy 30%, angry 10%)"
    )


def test_network_models_are_answered_too(tmp_path, clip):
    inputs = Input("image", {"n_frames": 128})
    torch.manual_seed(0)
    net = nets.MelCNN(4, (64, 128), (4, 4))
    part = NetworkPart(
        "MelCNN",
        {"channels": [4, 4]},
        (64, 128),
        {n: v.numpy() for n, v in net.state_dict().items()},
    )
    folder = artifacts.save(tmp_path / "cnn", {"inductive": part}, inputs, ABOUT)
    assert predict.predict(clip, folder).emotion in EMOTIONS
