"""Images: what is written is what is read, and only what changed is written again."""

import numpy as np
import pytest
from conftest import clips, harmonic_tone, noise, write_audio
from PIL import Image

from helpers import audio, features, spectrograms

STEP = spectrograms.DB_STEP


@pytest.fixture
def made(tmp_path):
    """Two clips, their images, and where those are."""
    table = clips(
        short=write_audio(tmp_path / "in/short é.wav", harmonic_tone(150, 0.4)),
        long=write_audio(tmp_path / "in/long.wav", noise(0.8)),
    )
    return table, spectrograms.write_images(table, tmp_path / "png", n_jobs=1), tmp_path / "png"


def times(folder) -> dict:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def test_pixels_are_decibels_within_half_a_step_with_low_bands_at_the_bottom():
    signal = harmonic_tone(200, 0.5) + noise(0.5, 0.001)
    image = spectrograms.mel_image(signal)
    level = features.mel_spectrogram(audio.trim(signal), spectrograms.IMAGE).T[::-1]
    level = level.clip(spectrograms.DB_MIN, spectrograms.DB_MAX)
    assert image.dtype == np.uint8 and image.shape[0] == 64
    assert np.abs(spectrograms.DB_MIN + STEP * (image - 1.0) - level).max() <= STEP / 2 + 1e-3
    assert image[-10:].mean() > image[:10].mean() + 50


def test_files_hold_the_images_and_their_names_no_label(made):
    table, images, folder = made
    assert images["image"].tolist() == ["short.png", "long.png"]
    assert images["utterance_id"].tolist() == ["toy/short", "toy/long"]
    for row, path in zip(images.itertuples(), table["path"], strict=True):
        expected = spectrograms.mel_image(audio.load(path))
        with Image.open(folder / row.image) as file:
            assert file.mode == "L" and np.array_equal(np.asarray(file), expected)
        assert row.n_frames == expected.shape[1]


def test_unchanged_images_are_left_alone_and_changed_ones_written_again(made):
    table, images, folder = made
    before = times(folder)
    assert spectrograms.write_images(table, folder, n_jobs=1).equals(images)
    assert times(folder) == before
    changed = clips(short=table["path"][0], long=table["path"][0])
    changed["audio_hash"] = ["short", "changed"]
    spectrograms.write_images(changed, folder, n_jobs=1)
    after = times(folder)
    assert after["short.png"] == before["short.png"] and after["long.png"] != before["long.png"]
    images = spectrograms.write_images(table, folder, features.FrontEnd(n_mels=128), n_jobs=1)
    assert spectrograms.read_images(images, folder, 40).shape == (2, 128, 40)
    assert times(folder).keys() == after.keys()


@pytest.mark.parametrize("kept", [0, 20, 0.9])
def test_damaged_image_is_written_again_without_computing(made, kept, monkeypatch):
    table, _, folder = made
    path = folder / "long.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if kept in (0, 20) else int(kept * len(whole))])
    monkeypatch.setattr(audio, "load", None)
    spectrograms.write_images(table, folder, n_jobs=1)
    assert path.read_bytes() == whole


def test_reading_pads_with_silence_and_cuts_at_the_end(made):
    table, images, folder = made
    short, long = images["n_frames"]
    wanted = (short + long) // 2
    stack = spectrograms.read_images(images, folder, wanted)
    assert stack.shape == (2, 64, wanted) and stack.dtype == np.uint8
    with Image.open(folder / "long.png") as file:
        assert np.array_equal(stack[1], np.asarray(file)[:, :wanted])
    with Image.open(folder / "short.png") as file:
        assert np.array_equal(stack[0, :, :short], np.asarray(file))
    assert (stack[0, :, short:] == 0).all()
    for image, path in zip(stack, table["path"], strict=True):
        assert np.array_equal(image, spectrograms.padded_image(audio.load(path), wanted))


def test_digital_silence_inside_a_clip_is_not_padding():
    tone = harmonic_tone(150, 0.4)
    signal = np.concatenate([tone, np.zeros(8000, np.float32), tone])
    valid = spectrograms.padded_image(signal, 100).any(axis=0)
    assert valid[:60].all() and not valid[70:].any()


@pytest.mark.parametrize(
    "harm", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:60])]
)
def test_missing_or_damaged_image_is_named(made, harm):
    _, images, folder = made
    harm(folder / "long.png")
    with pytest.raises(ValueError, match=r"long.png can't be read .*run notebook 04"):
        spectrograms.read_images(images, folder, 40)


def test_image_of_another_height_is_refused_by_name(made):
    _, images, folder = made
    Image.fromarray(np.ones((128, 50), np.uint8)).save(folder / "long.png")
    with pytest.raises(ValueError, match=r"long.png has 128 bands, the others 64: run notebook 04"):
        spectrograms.read_images(images, folder, 40)
