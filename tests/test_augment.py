"""Augmentation: drawn again in the same way, one effect each, and training rows alone."""

import random

import librosa
import numpy as np
import pytest
from conftest import RATE, harmonic_tone

from helpers import augment

TONE = harmonic_tone(150, 1.0, 0.2)


def dominant_hertz(signal: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(signal * np.hanning(len(signal))))
    return spectrum.argmax() * RATE / len(signal)


# --- one signal ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", augment.TRANSFORMS)
def test_each_transform_changes_the_signal_and_is_drawn_again_alike(name):
    signal = np.pad(TONE, 2000)
    first = augment.augment(signal, [name], seed=1)
    assert first.dtype == np.float32 and np.isfinite(first).all()
    assert not np.array_equal(first, signal)
    assert np.array_equal(first, augment.augment(signal, [name], seed=1))
    assert not np.array_equal(first, augment.augment(signal, [name], seed=2))


def test_silence_is_cut_off_before_the_change_and_all_transforms_are_drawn(monkeypatch):
    silence = np.zeros(8000, np.float32)
    longer = augment.augment(np.concatenate([silence, TONE, silence]), ["noise"])
    assert abs(len(longer) - len(TONE)) < 700
    kinds = {name: (name, {}) for name in ("noise", "shift")}
    monkeypatch.setattr(augment, "TRANSFORMS", kinds)
    drawn = []
    for name in kinds:
        kind = lambda p, name=name: lambda signal, rate: drawn.append(name) or signal  # noqa: E731
        monkeypatch.setattr(f"audiomentations.{name}", kind, raising=False)
    for seed in range(40):
        augment.augment(TONE, list(kinds), seed)
    assert min(map(drawn.count, kinds)) > 8
    drawn.clear()
    for level in range(1, 41):  # another clip, another draw
        augment.augment(TONE * np.float32(level / 40), list(kinds), 0)
    assert min(map(drawn.count, kinds)) > 8


def test_random_states_of_the_caller_are_left_alone():
    def draw():
        return random.random(), np.random.random()  # noqa: NPY002

    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    wanted = draw()
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    augment.augment(TONE, seed=9)
    assert draw() == wanted


@pytest.mark.parametrize("names", [["nois"], []])
def test_unknown_transform_is_refused_with_the_known_ones(names):
    with pytest.raises(ValueError, match=r"choose of noise, shift, pitch, speed$"):
        augment.augment(TONE, names)


def test_noise_has_the_drawn_ratio():
    for seed in range(5):
        added = augment.augment(TONE, ["noise"], seed) - TONE
        assert 4 < 10 * np.log10(np.square(TONE).mean() / np.square(added).mean()) < 31


def test_pitch_and_speed_do_one_thing_each():
    def semitones(signal):
        return 12 * np.log2(np.nanmedian(librosa.yin(signal, fmin=80, fmax=400, sr=RATE)) / 150)

    for seed in range(4):
        higher = augment.augment(TONE, ["pitch"], seed)
        faster = augment.augment(TONE, ["speed"], seed)
        assert len(higher) == len(TONE) and 0.02 < abs(semitones(higher)) < 2.7
        assert 0.79 < len(faster) / len(TONE) < 1.26 and abs(len(faster) - len(TONE)) > 50
        assert abs(semitones(faster)) < 0.3


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_higher_speed_is_higher_and_shorter(speed):
    tone = (0.5 * np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE)).astype(np.float32)
    found = augment.change_speed(tone, speed)
    assert len(found) == pytest.approx(RATE / speed, abs=2) and found.dtype == np.float32
    assert dominant_hertz(found) == pytest.approx(200 * speed, abs=1)
    assert np.array_equal(augment.change_speed(tone, 1.0), tone)
