"""Using a model: any valid recording is answered alike, any other gets a clear error."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import soxr
from conftest import RATE, harmonic_tone, noise, write_audio
from sklearn.linear_model import LogisticRegression

from helpers import artifacts, audio, features, predict
from helpers.artifacts import Input, Part
from helpers.paths import PROJECT

EMOTIONS = ["neutral", "happy", "sad", "angry"]
COLUMNS = ["f0_st__p50", "f0_st__p95"]


def voice(pitch: float, seconds: float = 1.5) -> np.ndarray:
    swell = np.abs(np.sin(np.arange(round(seconds * RATE)) / RATE * 9)).astype(np.float32)
    return harmonic_tone(pitch, seconds, 0.3) * swell + noise(seconds, 0.002, round(pitch))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that distinguishes low voices from high ones, in both variants."""
    rows = []
    for pitch in (100, 150, 200, 250):
        for shift in range(6):
            row = features.functionals(voice(pitch + 4 * shift))
            rows.append([row[name] for name in COLUMNS])
    values = np.array(rows, np.float32)
    mean, scale = values.mean(axis=0), values.std(axis=0)
    fitted = LogisticRegression(C=100).fit((values - mean) / scale, np.repeat(range(4), 6))
    linear = {"weights": fitted.coef_, "bias": fitted.intercept_, "limit": np.array(np.inf)}
    parts = {
        "inductive": Part(linear | {"mean": mean, "scale": scale}),
        "speaker-normalised": Part(linear | {"mean": np.zeros(2), "scale": np.ones(2)}),
    }
    about = {
        "model": "test",
        "emotions": EMOTIONS,
        "labels": "four",
        "corpus": "toy",
        "recording_statistics": {
            "duration_s": [1.0, 4.0],
            "level_dbfs": [-40, -5],
            "bandwidth_hz": [1000, 7900],
        },
    }
    reads, one = Input("functionals", {"columns": COLUMNS}), np.zeros(24)
    folder = tmp_path_factory.mktemp("models") / "pitch"
    return artifacts.save(folder, parts, reads, about, values, one)


@pytest.fixture
def clip(tmp_path):
    return write_audio(tmp_path / "clip.wav", voice(212))


def test_emotion_and_probability(model, clip):
    emotion, probability = predict.predict_emotion(clip, model)
    assert emotion == "sad" and 0.5 < probability <= 1
    whole = predict.predict(clip, artifacts.load(model))
    assert (whole.emotion, whole.probability, whole.variant) == (emotion, probability, "inductive")
    assert list(whole.probabilities) == EMOTIONS and whole.warnings == []
    assert sum(whole.probabilities.values()) == pytest.approx(1)
    expected = sorted(EMOTIONS, key=whole.probabilities.get, reverse=True)[:3]
    assert [emotion for emotion, _ in whole.top] == expected


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
        found = predict.predict(given, model, rate).probabilities
        assert found == pytest.approx(expected, abs=0.01)


FORMATS = {
    "384 kHz": ("a.wav", 384_000, {}),
    "8 kHz": ("a.wav", 8_000, {}),
    "8-bit": ("a.wav", RATE, {"subtype": "PCM_U8"}),
    "64-bit float": ("a.wav", RATE, {"subtype": "DOUBLE"}),
    "24 channels": ("a.wav", RATE, {}),
    "mp3": ("a.mp3", RATE, {}),
    "opus": ("a.opus", RATE, {"format": "OGG", "subtype": "OPUS"}),
    "au": ("a.au", RATE, {}),
}


@pytest.mark.parametrize("how", FORMATS)
def test_unusual_recordings_are_answered_as_the_plain_one(tmp_path, model, clip, how):
    name, rate, options = FORMATS[how]
    signal = soxr.resample(voice(212), RATE, rate)
    signal = np.repeat(signal[:, None], 24, axis=1) if how == "24 channels" else signal
    found = predict.predict(write_audio(tmp_path / name, signal, rate, **options), model)
    plain = predict.predict(clip, model)
    assert found.emotion == plain.emotion
    assert found.probabilities == pytest.approx(plain.probabilities, abs=0.05)


def test_mask_unsure_and_enrolment(model, clip):
    masked = predict.predict(clip, model, only=("happy", "angry"))
    assert masked.probabilities["sad"] == masked.probabilities["neutral"] == 0
    assert sum(masked.probabilities.values()) == pytest.approx(1)
    assert masked.emotion in ("happy", "angry")
    assert predict.predict(clip, model, unsure_below=1.01).emotion == "unsure"
    with pytest.raises(
        ValueError, match="does not know bored; it knows neutral, happy, sad, angry"
    ):
        predict.predict(clip, model, only=("bored",))
    # of somebody whose voice is mostly higher, this is a low one
    known = tuple(voice(pitch) for pitch in (230, 260, 290, 320, 350, 380))
    enrolled = predict.predict(clip, model, RATE, enrolment=known)
    assert enrolled.variant == "speaker-normalised" and enrolled.emotion in ("neutral", "happy")


def test_clips_unlike_the_training_recordings_are_warned_of(model):
    warned = predict.predict(voice(212, 6.0) / 60, model, RATE).warnings
    assert any("6.0 s long; training clips have 1.0 to 4.0" in warning for warning in warned)
    assert any("dBFS loud; training clips have -40 to -5" in warning for warning in warned)


def test_the_level_does_not_matter_to_channel_normalised_models():
    shipped, quiet = artifacts.load(predict.find_model("ravdess-8")), voice(212, 2.0) / 60
    low, _ = shipped.card["recording_statistics"]["level_dbfs"]
    assert audio.recording_statistics(quiet)["level_dbfs"] < low
    assert all(reads.channel_normalised for reads in shipped.reads)
    found = predict.predict(quiet, shipped, RATE)
    assert not any("dBFS" in warning for warning in found.warnings)
    louder = predict.predict(quiet * 8, shipped, RATE).probabilities
    assert louder == pytest.approx(found.probabilities, abs=0.02)


REFUSED = {
    "silence": (np.zeros(RATE, np.float32), r"silent \(nothing above -60 dBFS"),
    "one sample": (np.ones(1, np.float32), "0.00 s long"),
    "nothing": (np.empty(0, np.float32), "0.00 s long"),
    "NaN": (np.full(RATE, np.nan, np.float32), "holds NaN, or goes up to nan"),
    "infinity": (np.append(voice(100), np.inf), "times full scale; expected floats"),
    "doubles": (voice(100) * np.float64(1e300), "times full scale; expected floats"),
    "loud": (voice(100) * 1e30, r"up to .*e\+29 times full scale.* is it damaged\?"),
    "shape": (np.zeros((10, 10, 10), np.float32), r"shape \(10, 10, 10\)"),
    "type": (np.array(["a"] * RATE), "samples are of type"),
    "unsigned": (np.full(RATE, 128, np.uint8), "of type uint8.* expected signed integers, or"),
    "an hour": (voice(100, 70.0), "expected 0.2 to 60 s. A timeline takes up to 7200 s"),
}


@pytest.mark.parametrize("how", REFUSED)
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_samples_that_hold_no_utterance_are_refused(model, how, rate):
    samples, said = REFUSED[how]
    samples = np.repeat(samples, 3) if how == "an hour" else samples
    with pytest.raises(ValueError, match=said):
        predict.read_signal(samples, rate)


def test_files_that_hold_no_utterance_are_refused(tmp_path, model):
    loud = write_audio(tmp_path / "loud.wav", voice(212) * 1e30, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"loud.wav .* goes up to .*e\+29 times full scale"):
        predict.predict(loud, model)
    unscaled = write_audio(tmp_path / "unscaled.wav", voice(212) * 900, subtype="FLOAT")
    assert predict.predict(unscaled, model).emotion in EMOTIONS
    long = write_audio(tmp_path / "long.opus", noise(90.0), format="OGG", subtype="OPUS")
    with pytest.raises(
        ValueError, match=r"long.opus is 61.00 s long or longer; expected 0.2 to 60"
    ):
        predict.predict(long, model)
    with pytest.raises(ValueError, match=r"text.wav can't be decoded"):
        (tmp_path / "text.wav").write_text("this is no audio")
        predict.predict(tmp_path / "text.wav", model)


def test_samples_need_their_sampling_rate(model):
    for rate in (None, 0, -1, 10**9):
        with pytest.raises(ValueError, match="need their sampling rate"):
            predict.predict(voice(100), model, rate)


def damaged(content: bytes, how: int, rng) -> bytes:
    changed = bytearray(content)
    if how == 0:
        changed = changed[: rng.integers(0, len(changed))]
    elif how == 1:
        for place in rng.integers(0, len(changed), 8):
            changed[place] ^= 1 << rng.integers(0, 8)
    elif how == 2:
        changed[:44] = rng.bytes(44)
    else:
        changed = rng.bytes(rng.integers(0, 5000))
    return bytes(changed)


def test_damaged_files_are_answered_or_refused(tmp_path, model):
    rng, loaded = np.random.default_rng(0), artifacts.load(model)
    outcomes, originals = {"answered": 0, "refused": 0}, []
    for how in ("8-bit", "mp3", "opus", "au"):
        name, rate, options = FORMATS[how]
        path = write_audio(tmp_path / f"{how}.{name}", voice(180, 1.0), rate, **options)
        originals.append(path.read_bytes())
    for i in range(160):
        path = tmp_path / "damaged.bin"
        path.write_bytes(damaged(originals[i % 4], i // 4 % 4, rng))
        try:
            found = predict.predict(path, loaded)
            assert sum(found.probabilities.values()) == pytest.approx(1)
            outcomes["answered"] += 1
        except ValueError as error:
            assert len(str(error)) > 10
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 15, outcomes


# --- long recordings ------------------------------------------------------------------------------


def test_timeline_finds_when_what_is_expressed(model):
    pause = noise(3.0, 0.0005, 5)
    call = np.concatenate([voice(105, 6.0), pause, voice(255, 6.0)])
    windows = predict.timeline(call, model, RATE, detector="energy")
    assert windows["emotion"].iloc[0] == "neutral" and windows["emotion"].iloc[-1] == "angry"
    assert (windows["end_s"] - windows["start_s"] <= 4).all()
    assert windows["end_s"].max() == pytest.approx(15) and windows["speech"].between(0, 1).all()
    assert np.allclose(windows.filter(regex="^p_").sum(axis=1), 1)
    assert (windows["probability"] == windows.filter(regex="^p_").max(axis=1)).all()
    masked = predict.timeline(call, model, RATE, only=("happy", "sad"), detector="energy")
    assert set(masked["emotion"]) == {"happy", "sad"}


def test_timeline_of_one_window_is_the_prediction(model, clip):
    windows = predict.timeline(clip, model, detector="energy")
    expected = predict.predict(clip, model).probability
    assert len(windows) == 1 and windows["probability"].iloc[0] == pytest.approx(expected)


def test_verdict_counts_the_end_more(model):
    call = np.concatenate([voice(105, 6.0), voice(255, 6.0)])
    windows = predict.timeline(call, model, RATE, detector="energy")
    even, late = predict.verdict(windows, 1.0), predict.verdict(windows, 5.0)
    assert sum(late.values()) == pytest.approx(1) and late["angry"] > even["angry"]
    assert next(iter(late)) == "angry"
    groups = predict.verdict(windows, groups=predict.SATISFACTION)
    assert set(groups) == {"satisfied", "unsatisfied"}
    with pytest.raises(ValueError, match="in none of the groups"):
        predict.verdict(windows, groups={"other": ("bored",)})


def test_a_recording_without_speech_has_no_windows(model):
    quiet = np.concatenate([voice(105, 0.1), np.zeros(5 * RATE, np.float32)])
    windows = predict.timeline(quiet, model, RATE, detector="energy")
    assert windows.empty and "p_sad" in windows and predict.verdict(windows) == {}


def test_satisfaction_is_that_of_the_emotions():
    assert set(predict.SATISFACTION["satisfied"]) == {"happy", "excited", "neutral", "calm"}
    assert set(predict.SATISFACTION["unsatisfied"]) == {"angry", "frustrated", "sad", "disgust"}


# --- the command ----------------------------------------------------------------------------------


def test_command_answers_files_and_folders(tmp_path, model, clip, capsys):
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    assert predict.main([str(clip), "--model", str(model)]) == 0
    assert capsys.readouterr().out.startswith(f"{clip}: sad (sad ")
    assert predict.main([str(tmp_path), "--model", str(model)]) == 1
    said = capsys.readouterr()
    assert f"{clip}: sad (" in said.out and "broken.wav can't be decoded" in said.err
    options = ["--only", "happy", "angry", "--enrol", str(clip), "--unsure", "1"]
    assert predict.main([str(clip), "--model", str(model), *options]) == 0
    said = capsys.readouterr().out
    assert f"{clip}: unsure (happy " in said and "neutral 0%" in said


def test_command_answers_as_json(model, clip, capsys):
    for more, expected in (([], {"emotion", "probabilities"}), (["--timeline"], {"windows"})):
        assert predict.main([str(clip), "--model", str(model), "--json", *more]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["file"] == str(clip) and expected <= set(answer)


def test_command_says_how_a_clip_differs(tmp_path, model, capsys):
    predict.main([str(write_audio(tmp_path / "a.wav", voice(212, 6.0))), "--model", str(model)])
    assert "\n  warning: 6.0 s long" in capsys.readouterr().out


def test_command_makes_a_timeline(tmp_path, model, clip, capsys, monkeypatch):
    detect = audio.voice_activity  # a tone is no speech to a trained detector
    monkeypatch.setattr(audio, "voice_activity", lambda signal, _method: detect(signal, "energy"))
    assert predict.main([str(clip), "--model", str(model), "--timeline"]) == 0
    first, header, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{clip}: sad ") and header.split()[:2] == ["start_s", "end_s"]
    assert second.split()[:2] == ["0.0", "1.5"] and "sad" in second
    signal = np.concatenate([voice(105, 0.1), np.zeros(5 * RATE, np.float32)])
    quiet = write_audio(tmp_path / "quiet.wav", signal)
    predict.main([str(quiet), "--model", str(model), "--timeline"])
    assert capsys.readouterr().out == f"{quiet}: nobody speaks\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--only", "bored"], "does not know bored"), (["--enrol", "gone.wav"], "gone.wav is not")],
)
def test_command_says_what_it_can_not_answer(clip, capsys, options, said):
    assert predict.main([str(clip), *options]) == 1
    assert said in capsys.readouterr().err


def test_command_needs_a_model_and_recordings(tmp_path, model, clip, capsys):
    for given, said in (
        ([str(clip), "--model", "nowhere"], "nowhere: refused, it holds no card.json"),
        ([str(tmp_path / "empty")], "there are no recordings ("),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(SystemExit, match="2"):
            predict.main(given)
        assert said in capsys.readouterr().err


def test_command_runs_with_the_model_of_the_project(clip):
    heavy = "{'matplotlib', 'sklearn', 'torchvision', 'transformers'}"
    code = (
        f"import sys; from helpers import predict; predict.main([{str(clip)!r}]); "
        f"print({heavy} & {{*sys.modules}})"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    answer, *_, loaded = done.stdout.splitlines()
    assert answer.startswith(f"{clip}: ") and "%" in answer
    assert loaded == "set()", "libraries that an answer does not need, and has to wait for"
