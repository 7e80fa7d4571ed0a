"""Augmentation: it changes what it says, is drawn again in the same way, and reaches training rows alone."""

import random
import shutil
from functools import partial
from pathlib import Path

import librosa
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import RATE, harmonic_tone, interrupt_training, make_utterances, noise, write_audio

from helpers import audio, augment, features, nets, spectrograms, splits, training
from helpers.audit import audit_folds
from helpers.augment import Augmentation, Copies
from helpers.experiment import Part

ALL = tuple(augment.TRANSFORMS)
TONE = harmonic_tone(150, 1.0, 0.2)
IMAGE = partial(spectrograms.padded_image, n_frames=32)


# --- one signal ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_each_transform_changes_the_signal_and_is_drawn_again_alike(name):
    signal = np.pad(TONE, 2000)
    first, drawn = augment.augment(signal, [name], seed=1)
    assert drawn == name and first.dtype == np.float32 and np.isfinite(first).all()
    assert not np.array_equal(first, signal)
    assert np.array_equal(first, augment.augment(signal, [name], seed=1)[0])
    assert any(
        not np.array_equal(first, augment.augment(signal, [name], seed)[0]) for seed in range(2, 8)
    )


def test_none_leaves_the_signal_and_all_names_are_drawn():
    assert augment.augment(TONE, ["none"])[0] is TONE
    drawn = [augment.augment(TONE[:1600], ["none", "gain", "shift"], seed)[1] for seed in range(60)]
    assert {name: drawn.count(name) > 8 for name in set(drawn)} == {
        "none": True,
        "gain": True,
        "shift": True,
    }


def test_random_states_of_the_caller_are_left_alone():
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    wanted = random.random(), np.random.random()  # noqa: NPY002
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    augment.augment(TONE, ALL, seed=9)
    assert (random.random(), np.random.random()) == wanted  # noqa: NPY002


@pytest.mark.parametrize("names", [["nois"], []])
def test_unknown_transform_is_refused_with_the_known_ones(names):
    with pytest.raises(
        ValueError, match="choose of noise, shift, pitch, speed, gain, room, telephone, none"
    ):
        augment.augment(TONE, names)


def test_noise_has_the_drawn_ratio():
    for seed in range(5):
        added = augment.augment(TONE, ["noise"], seed)[0] - TONE
        assert 4 < 10 * np.log10(np.square(TONE).mean() / np.square(added).mean()) < 31


def test_pitch_and_speed_do_one_thing_each():
    def height(signal):
        return np.nanmedian(librosa.yin(signal, fmin=80, fmax=400, sr=RATE))

    for seed in range(4):
        higher = augment.augment(TONE, ["pitch"], seed)[0]
        faster = augment.augment(TONE, ["speed"], seed)[0]
        assert len(higher) == len(TONE) and 0.02 < abs(np.log2(height(higher) / 150)) * 12 < 2.7
        assert 0.79 < len(faster) / len(TONE) < 1.26 and abs(len(faster) - len(TONE)) > 50
        assert abs(np.log2(height(faster) / 150)) * 12 < 0.3


def test_telephone_lets_nothing_through_above_4_khz():
    heard = augment.augment(noise(1.0), ["telephone"], seed=0)[0]
    power = np.square(np.abs(np.fft.rfft(heard)))
    assert len(heard) == RATE and power[4200:].sum() < 1e-3 * power.sum() < power[300:3400].sum()


def test_room_adds_an_echo_and_keeps_the_level():
    click = np.pad(harmonic_tone(200, 0.1), (1000, 8000))
    heard = augment.augment(click, ["room"], seed=0)[0]
    assert np.square(heard).mean() == pytest.approx(np.square(click).mean(), rel=1e-3)
    assert (
        np.abs(heard[2800:4000]).max() > 0.02 * np.abs(heard).max()
    )  # where the click itself was over


# --- copies -------------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path) -> pd.DataFrame:
    """Audio of ten clips by five speakers, as the utterances table names it."""
    table = make_utterances(5, 2).head(20)
    rise = 10 ** (
        -2.6 * np.abs(np.linspace(-1, 1, RATE // 2))
    )  # soft ends: trimming twice would cut twice
    files = [
        write_audio(
            tmp_path / f"{i:02d}.wav",
            rise * (harmonic_tone(120 + 10 * i, 0.5) + noise(0.5, 0.01, i)),
        )
        for i in range(len(table))
    ]
    return table.assign(
        path=[str(file) for file in files],
        audio_hash=[audio.measure(file)["audio_hash"] for file in files],
    )


def test_copies_are_new_each_epoch_and_alike_whoever_asks(corpus, monkeypatch):
    copies = Copies(corpus, IMAGE)
    ids = corpus["utterance_id"].to_numpy(str)
    first, second = copies.epoch(0, ids), copies.epoch(1, ids)
    assert (
        first.shape == (len(ids), 64, 32)
        and first.dtype == np.uint8
        and not np.array_equal(first, second)
    )
    assert np.array_equal(copies.epoch(0, ids[[3, 1]]), first[[3, 1]])
    for path in corpus["path"]:
        Path(path).unlink()
    assert np.array_equal(
        Copies(corpus, IMAGE).epoch(1, ids), second
    )  # stored: no audio is read again
    monkeypatch.setattr(augment, "fetch", lambda kind, key, compute: compute())
    with pytest.raises(FileNotFoundError):
        copies.epoch(0, ids)


def test_copies_are_the_same_in_any_order_of_epochs(corpus, tmp_path, monkeypatch):
    ids = corpus["utterance_id"].to_numpy(str)
    wanted = [Copies(corpus, IMAGE).epoch(number, ids) for number in (0, 1, 2)]
    monkeypatch.setenv("SER_WORK", str(tmp_path / "another"))
    random.seed(99)
    Copies(corpus, IMAGE).make(3, n_jobs=1)
    for number in (2, 0, 1):
        assert np.array_equal(Copies(corpus, IMAGE).epoch(number, ids), wanted[number])


def test_copies_without_a_transform_are_the_inputs_themselves(corpus):
    ids = corpus["utterance_id"].to_numpy(str)
    plain = Copies(corpus, IMAGE, ("none",)).epoch(0, ids)
    folder = Path(corpus["path"][0]).parent / "images"
    once = [audio.trim(audio.load(path)) for path in corpus["path"]]
    assert any(len(audio.trim(clip)) < len(clip) for clip in once), (
        "these clips can't tell trimming twice from once"
    )
    assert np.array_equal(
        plain,
        spectrograms.read_images(spectrograms.write_images(corpus, folder, n_jobs=1), folder, 32),
    )
    represent = partial(features.sequence, n_steps=12, stride=2)
    frames = features.fill_unvoiced(features.descriptors_table(corpus, n_jobs=1))
    np.testing.assert_allclose(
        Copies(corpus, represent, ("none",)).epoch(0, ids),
        features.sequences(frames, 12, 2),
        rtol=1e-4,
        atol=1e-3,
    )


def test_recipe_of_copies_knows_all_that_they_depend_on(corpus, monkeypatch):
    recipes = [
        Copies(*given).recipe()
        for given in [
            (corpus, IMAGE),
            (corpus, IMAGE, ("none", "noise")),
            (corpus, partial(spectrograms.padded_image, n_frames=48)),
            (corpus, spectrograms.mel_image),
            (corpus, IMAGE, ("none", "noise"), 1),
            (corpus.head(7), IMAGE),
            (corpus.assign(audio_hash="other"), IMAGE),
            (
                corpus,
                partial(
                    spectrograms.padded_image, n_frames=32, front_end=features.FrontEnd(n_mels=32)
                ),
            ),
        ]
    ]
    monkeypatch.setitem(
        augment.TRANSFORMS, "noise", ("AddGaussianSNR", {"min_snr_db": 0.0, "max_snr_db": 30.0})
    )
    recipes.append(Copies(corpus, IMAGE).recipe())
    monkeypatch.setattr(audio, "TRIM_DB", 30.0)  # what the code names counts, in other modules too
    recipes.append(Copies(corpus, IMAGE).recipe())
    monkeypatch.setattr(augment, "version", lambda name: "0.1")
    recipes.append(Copies(corpus, IMAGE).recipe())
    assert len(set(recipes)) == len(recipes)


def test_unknown_transform_is_refused_before_anything_is_made(corpus):
    with pytest.raises(ValueError, match=r"unknown transforms \['nois'\]: choose of noise"):
        Copies(corpus, IMAGE, ("none", "nois"))


def test_copies_of_another_shape_than_the_inputs_are_refused(corpus):
    train, valid, test = parts(corpus)
    wider = Augmentation(Copies(corpus, partial(spectrograms.padded_image, n_frames=48), ("none",)))
    with pytest.raises(ValueError, match=r"copies are \(13, 64, 48\).*themselves \(13, 64, 32\)"):
        training.Network("CNN", nets.MelCNN, epochs=1, device="cpu", augment=wider).fit_predict(
            train, valid, test, 3, seed=0
        )


def test_clips_without_copies_are_named(corpus):
    with pytest.raises(ValueError, match=r"1 of 2 training clips .*'of another corpus'"):
        Copies(corpus, IMAGE, ("none",)).epoch(
            0, np.array([corpus["utterance_id"][0], "of another corpus"])
        )


def test_audit_finds_a_copy_apart_from_its_parent(corpus):
    folds = splits.make_folds(corpus, n_folds=5)
    copies = Copies(corpus, IMAGE, ("none",)).table(3)
    assert copies["utterance_id"][0] == f"{corpus['utterance_id'][0]}#4" and set(
        copies["transform"]
    ) == {"none"}
    both = pd.concat([corpus, corpus.assign(**copies)], ignore_index=True)
    beside = folds.merge(copies, left_on="utterance_id", right_on="parent_id")
    beside = beside.assign(utterance_id=beside["utterance_id_y"])
    rows = pd.concat([folds, beside[folds.columns]], ignore_index=True)
    rows = rows[(rows["role"] == "train") | ~rows["utterance_id"].str.contains("#")]

    def found(rows):
        return {f.check: f.level for f in audit_folds(rows, both)}[
            "augmented copies and their parents"
        ]

    assert found(rows) == "ok"
    moved = beside[(beside["fold"] == 1) & (beside["role"] == "test")][folds.columns].assign(
        role="train"
    )
    assert found(pd.concat([rows, moved], ignore_index=True)) == "fault"


# --- batches ------------------------------------------------------------------------------------------------------


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(kind: str) -> torch.Tensor:
    rng = np.random.default_rng(0)
    if kind == "images":
        batch = torch.from_numpy(rng.integers(1, 255, (8, 16, 24)).astype(np.uint8))
        batch[:4, :, 15:] = 0
    else:
        batch = torch.from_numpy(rng.normal(50, 9, (8, 24, 5)).astype(np.float32))
        batch[:4, 15:] = 0
    return batch


def padding_of(batch: torch.Tensor, kind: str) -> torch.Tensor:
    return ~(batch != 0).any(dim=1 if kind == "images" else 2)


def test_nothing_is_done_unless_asked():
    batch = batch_of("images")
    same, partners, own = Augmentation()(batch, generator())
    assert same is batch and partners is None and own is None


@pytest.mark.parametrize("kind", ["images", "sequences"])
def test_masks_are_the_mean_and_padding_stays(kind):
    batch = batch_of(kind)
    masked, partners, _ = Augmentation(time_mask=6, band_mask=4 if kind == "images" else 0)(
        batch, generator()
    )
    assert masked.dtype == batch.dtype and partners is None
    assert torch.equal(padding_of(masked, kind), padding_of(batch, kind))
    for i in range(len(batch)):
        heard = ~padding_of(batch, kind)[i]
        old, new = (x[i][:, heard] if kind == "images" else x[i][heard] for x in (batch, masked))
        changed = new != old
        mean = old.float().mean() if kind == "images" else old.mean(dim=0).expand_as(old)
        assert ((new.float() - mean).abs()[changed] < 0.51).all()
    assert (masked != batch).any()
    steps = (masked != batch).all(dim=1 if kind == "images" else 2).sum(dim=1)
    assert steps.max() <= 6 + (kind == "images")


@pytest.mark.parametrize("kind", ["images", "sequences"])
def test_mixup_mixes_what_both_clips_hold_and_padding_mixes_with_nothing(kind):
    batch = batch_of(kind)
    mixed, partners, own = Augmentation(mixup=0.4)(batch, generator(3))
    assert sorted(partners.tolist()) == list(range(8))
    other = batch[partners]
    heard, others = ~padding_of(batch, kind), ~padding_of(other, kind)
    share = own[(heard == others).all(dim=1)][0].item()  # of two clips of one length
    assert 0 < share < 1
    axis = 1 if kind == "images" else -1
    both = (heard & others).unsqueeze(axis)
    wanted = torch.where(
        both, share * batch.float() + (1 - share) * other.float(), batch.float() + other.float()
    )
    torch.testing.assert_close(mixed, wanted)
    assert (
        torch.equal(padding_of(mixed, kind), ~heard & ~others)
        and (heard != others).any()
        and (~heard & ~others).any()
    )
    # what the loss takes of the own emotion is what is heard of the own clip
    steps = (share * (heard & others) + (heard & ~others)).sum(dim=1) / (heard | others).sum(dim=1)
    torch.testing.assert_close(own, steps.float())


def test_mixup_of_rows_of_features():
    rows = torch.randn(6, 5)
    mixed, partners, own = Augmentation(mixup=1.0)(rows, generator())
    assert own.shape == (6,) and (own == own[0]).all()
    torch.testing.assert_close(mixed, own[0] * rows + (1 - own[0]) * rows[partners])


def test_masks_lie_on_what_is_heard_and_hide_at_most_half_of_it():
    batch = torch.randint(1, 255, (400, 16, 160), dtype=torch.uint8)
    batch[:, :, 40:] = 0
    masked, _, _ = Augmentation(time_mask=40)(batch, generator())
    hidden = (masked != batch).any(dim=1).sum(dim=1)
    assert hidden.max() <= 20 and (hidden > 0).float().mean() > 0.9 and not masked[:, :, 40:].any()


@pytest.mark.parametrize(
    ("setting", "inputs", "text"),
    [
        ({"shift": 2}, torch.ones(4, 10, 6), "shift and band_mask are for images"),
        ({"band_mask": 2}, torch.ones(4, 10, 6), "shift and band_mask are for images"),
        ({"time_mask": 2}, torch.ones(4, 6), r"time_mask is for images and sequences.*\(4, 6\)"),
    ],
)
def test_settings_that_do_not_go_with_the_inputs_are_refused(setting, inputs, text):
    with pytest.raises(ValueError, match=text):
        Augmentation(**setting)(inputs, generator())


def test_what_is_off_is_no_part_of_the_recipe(corpus):
    assert Augmentation().recipe() == {}
    assert Augmentation(shift=4, mixup=0.2).recipe().keys() == {"code", "shift", "mixup"}
    different = [
        Augmentation(),
        Augmentation(shift=2),
        Augmentation(time_mask=2),
        Augmentation(band_mask=2),
        Augmentation(mixup=2.0),
        Augmentation(Copies(corpus, IMAGE)),
        Augmentation(Copies(corpus, IMAGE, seed=1)),
    ]
    recipes = [str(training.Network("CNN", nets.MelCNN, augment=a).recipe()) for a in different]
    assert len(set(recipes)) == len(different)


# --- in training --------------------------------------------------------------------------------------------------


def parts(corpus) -> tuple[Part, Part, np.ndarray]:
    ids = corpus["utterance_id"].to_numpy(str)
    images = Copies(corpus, IMAGE, ("none",)).epoch(0, ids)
    classes, half = np.arange(len(ids)) % 3, len(ids) * 2 // 3
    train, valid = (
        Part(images[rows], classes[rows], ids[rows], ids[rows])
        for rows in (slice(half), slice(half, None))
    )
    return train, valid, images[half:]


def test_training_asks_for_copies_of_its_own_rows_alone(corpus, monkeypatch):
    train, valid, test = parts(corpus)
    asked, original = [], Copies.epoch
    monkeypatch.setattr(
        Copies,
        "epoch",
        lambda self, number, ids: asked.append((number, list(ids))) or original(self, number, ids),
    )
    model = training.Network(
        "CNN",
        nets.MelCNN,
        epochs=3,
        patience=3,
        device="cpu",
        augment=Augmentation(Copies(corpus, IMAGE)),
    )
    outcome = model.fit_predict(train, valid, test, 3, seed=0)
    assert asked == [(number, list(train.ids)) for number in range(3)]
    assert outcome["steps"] == {"fit": ["train"], "stop": ["valid"], "augment": ["train"]}


def test_interrupted_training_with_everything_on_ends_with_the_same_bits(corpus, monkeypatch):
    given = *parts(corpus), 3, 0
    model = training.Network(
        "CNN",
        nets.MelCNN,
        epochs=6,
        patience=6,
        batch_size=4,
        device="cpu",
        augment=Augmentation(Copies(corpus, IMAGE), shift=3, time_mask=5, band_mask=5, mixup=0.3),
    )
    whole = model.fit_predict(*given)
    shutil.rmtree(whole["scratch"])
    interrupt_training(monkeypatch, model, given, epochs=3)
    monkeypatch.setattr(
        augment, "fetch", lambda kind, key, compute: compute()
    )  # copies lost meanwhile are drawn again alike
    again = model.fit_predict(*given)
    assert np.array_equal(again["test"], whole["test"]) and again["notes"] == whole["notes"]


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_played_faster_is_higher_and_shorter(speed):
    time = np.arange(RATE) / RATE
    tone = (0.5 * np.sin(2 * np.pi * 200 * time)).astype(np.float32)
    found = augment.played(tone, speed)
    assert len(found) == pytest.approx(RATE / speed, abs=2) and found.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(found * np.hanning(len(found))))
    assert spectrum.argmax() * RATE / len(found) == pytest.approx(200 * speed, abs=1)
    assert augment.played(tone, 1.0) is tone
