"""Augmentation: drawn again in the same way, one effect each, and training rows alone."""

import random
from pathlib import Path

import librosa
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import RATE, harmonic_tone, make_utterances, noise, write_audio

from helpers import artifacts, audio, augment, features, nets, spectrograms, training
from helpers.augment import Copies
from helpers.experiment import FoldRows

TONE = harmonic_tone(150, 1.0, 0.2)
IMAGE = artifacts.Input("image", {"n_frames": 32})
DRAWN = {  # epoch → transforms of the first clips
    0: ["speed", "shift", "none", "pitch", "none", "shift"],
    1: ["noise", "none", "shift", "speed", "none", "none"],
}


def dominant_hertz(signal: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(signal * np.hanning(len(signal))))
    return spectrum.argmax() * RATE / len(signal)


# --- one signal ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", augment.TRANSFORMS)
def test_each_transform_changes_the_signal_and_is_drawn_again_alike(name):
    signal = np.pad(TONE, 2000)
    first, drawn = augment.augment(signal, [name], seed=1)
    assert drawn == name and first.dtype == np.float32 and np.isfinite(first).all()
    assert not np.array_equal(first, signal)
    assert np.array_equal(first, augment.augment(signal, [name], seed=1)[0])
    assert not np.array_equal(first, augment.augment(signal, [name], seed=2)[0])


def test_none_leaves_the_signal_and_all_names_are_drawn():
    assert augment.augment(TONE, ["none"])[0] is TONE
    drawn = [augment.augment(TONE[:1600], ["none", "noise", "shift"], s)[1] for s in range(60)]
    assert min(map(drawn.count, ["none", "noise", "shift"])) > 8


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
    with pytest.raises(ValueError, match="choose of noise, shift, pitch, speed, none"):
        augment.augment(TONE, names)


def test_noise_has_the_drawn_ratio():
    for seed in range(5):
        added = augment.augment(TONE, ["noise"], seed)[0] - TONE
        assert 4 < 10 * np.log10(np.square(TONE).mean() / np.square(added).mean()) < 31


def test_pitch_and_speed_do_one_thing_each():
    def semitones(signal):
        return 12 * np.log2(np.nanmedian(librosa.yin(signal, fmin=80, fmax=400, sr=RATE)) / 150)

    for seed in range(4):
        higher = augment.augment(TONE, ["pitch"], seed)[0]
        faster = augment.augment(TONE, ["speed"], seed)[0]
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


# --- batches of images ---------------------------------------------------------------------------


def test_images_are_shifted_in_time_and_frequency_and_silence_enters():
    batch = torch.randint(1, 255, (64, 8, 20), dtype=torch.uint8)
    moved = augment.shift_images(batch, 3, torch.Generator().manual_seed(0))
    assert moved.shape == batch.shape and moved.dtype == torch.uint8
    found = []
    for old, new in zip(torch.nn.functional.pad(batch, (3, 3, 2, 2)), moved, strict=True):
        places = [(y, x) for y in range(5) for x in range(7)]
        found += [(y, x) for y, x in places if torch.equal(old[y : y + 8, x : x + 20], new)]
    assert len(found) == 64
    assert {y for y, _ in found} == set(range(5)) and {x for _, x in found} == set(range(7))
    again = augment.shift_images(batch, 3, torch.Generator().manual_seed(0))
    assert torch.equal(moved, again)


def test_shift_of_anything_but_images_is_refused():
    with pytest.raises(ValueError, match=r"shift is for images \(uint8\).*float32.*\(4, 10, 6\)"):
        augment.shift_images(torch.ones(4, 10, 6), 2, torch.Generator())


# --- copies --------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path) -> pd.DataFrame:
    """Audio of twenty clips, as the utterances table names it; trimming twice would cut twice."""
    table = make_utterances(5, 2).head(20)
    soft_ends = 10 ** (-2.6 * np.abs(np.linspace(-1, 1, RATE // 2)))
    files = []
    for i in range(len(table)):
        signal = soft_ends * (harmonic_tone(120 + 10 * i, 0.5) + noise(0.5, 0.01, i))
        files.append(str(write_audio(tmp_path / f"{i:02d}.wav", signal)))
    hashes = [audio.measure(file)["audio_hash"] for file in files]
    return table.assign(path=files, audio_hash=hashes)


def test_copies_are_new_each_epoch_and_stored(corpus, monkeypatch):
    copies, ids = Copies(corpus, IMAGE), corpus["utterance_id"].to_numpy(str)
    first, second = copies.epoch(0, ids), copies.epoch(1, ids)
    assert first.shape == (len(ids), 64, 32) and first.dtype == np.uint8
    assert not np.array_equal(first, second)
    assert np.array_equal(copies.epoch(0, ids[[3, 1]]), first[[3, 1]])
    for path in corpus["path"]:
        Path(path).unlink()
    assert np.array_equal(Copies(corpus, IMAGE).epoch(1, ids), second)
    monkeypatch.setattr(augment, "fetch", lambda kind, version, key, make: make())
    with pytest.raises(FileNotFoundError):
        copies.epoch(0, ids)


def test_copies_are_the_same_in_any_order_of_epochs(corpus, tmp_path, monkeypatch):
    ids = corpus["utterance_id"].to_numpy(str)
    wanted = [Copies(corpus, IMAGE).epoch(number, ids) for number in (0, 1, 2)]
    monkeypatch.setenv("SER_WORK", str(tmp_path / "another"))
    random.seed(99)
    for number in (2, 0, 1):
        assert np.array_equal(Copies(corpus, IMAGE).epoch(number, ids), wanted[number])


def test_draws_are_those_of_published_results(corpus):
    for epoch, expected in DRAWN.items():
        assert Copies(corpus, IMAGE).stored(epoch)["transform"][:6].tolist() == expected


def test_copies_without_a_transform_are_the_inputs_themselves(corpus, tmp_path):
    ids = corpus["utterance_id"].to_numpy(str)
    plain = Copies(corpus, IMAGE, ("none",)).epoch(0, ids)
    once = [audio.trim(audio.load(path)) for path in corpus["path"]]
    assert any(len(audio.trim(clip)) < len(clip) for clip in once)
    images = spectrograms.write_images(corpus, tmp_path / "images", n_jobs=1)
    assert np.array_equal(plain, spectrograms.read_images(images, tmp_path / "images", 32))


def test_copies_may_be_sequences(corpus):
    ids = corpus["utterance_id"].to_numpy(str)
    reads = artifacts.Input("sequence", {"n_steps": 12, "stride": 2})
    _, clips = features.split_clips(features.descriptors_table(corpus, n_jobs=1))
    found = Copies(corpus, reads, ("none",)).epoch(0, ids)
    expected = np.stack([features.sequence(clip, 12, 2) for clip in clips])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_recipe_of_copies_holds_all_that_they_depend_on(corpus, monkeypatch):
    given = [
        (corpus, IMAGE),
        (corpus, IMAGE, ("none", "noise")),
        (corpus, IMAGE, ("none", "noise"), 1),
        (corpus.head(7), IMAGE),
        (corpus.assign(audio_hash="other"), IMAGE),
        (corpus, artifacts.Input("image", {"n_frames": 48})),
        (corpus, artifacts.Input("image", {"n_frames": 32}, channel_normalised=True)),
    ]
    recipes = [Copies(*one).recipe() for one in given]
    assert recipes[0] == Copies(corpus.copy(), IMAGE).recipe()
    softer = ("AddGaussianSNR", {"min_snr_db": 0.0, "max_snr_db": 30.0})
    monkeypatch.setitem(augment.TRANSFORMS, "noise", softer)
    recipes.append(Copies(corpus, IMAGE).recipe())
    assert len(set(recipes)) == len(recipes)


def test_clips_without_copies_are_named(corpus):
    ids = np.array([corpus["utterance_id"][0], "of another corpus"])
    with pytest.raises(ValueError, match=r"1 of 2 training clips .*'of another corpus'"):
        Copies(corpus, IMAGE, ("none",)).epoch(0, ids)


# --- in training ---------------------------------------------------------------------------------


def fold_of(corpus) -> tuple[FoldRows, FoldRows, np.ndarray]:
    ids = corpus["utterance_id"].to_numpy(str)
    images = Copies(corpus, IMAGE, ("none",)).epoch(0, ids)
    classes, n = np.arange(len(ids)) % 3, len(ids) * 2 // 3
    train = FoldRows(images[:n], classes[:n], ids[:n], ids[:n])
    return train, FoldRows(images[n:], classes[n:], ids[n:], ids[n:]), images[n:]


def network(**settings) -> training.Network:
    return training.Network("CNN", nets.MelCNN, batch_size=4, device="cpu", **settings)


def test_training_uses_copies_of_its_own_rows_alone(corpus, monkeypatch):
    given, used, original = fold_of(corpus), [], Copies.epoch
    monkeypatch.setattr(
        Copies, "epoch", lambda self, n, ids: used.append((n, [*ids])) or original(self, n, ids)
    )
    model = network(epochs=3, patience=3, copies=Copies(corpus, IMAGE))
    outcome = model.fit_predict(*given, 3, seed=0)
    assert used == [(number, list(given[0].ids)) for number in range(3)]
    assert outcome["steps"] == {"fit": ["train"], "stop": ["validation"], "augment": ["train"]}


def test_copies_of_another_shape_than_the_inputs_are_refused(corpus):
    wider = Copies(corpus, artifacts.Input("image", {"n_frames": 48}), ("none",))
    with pytest.raises(ValueError, match=r"copies are \(13, 64, 48\).*themselves \(13, 64, 32\)"):
        network(epochs=1, copies=wider).fit_predict(*fold_of(corpus), 3, seed=0)
