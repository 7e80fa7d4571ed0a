"""Images: what is written is what is read, and only what changed is written again."""

import numpy as np
import pytest
from conftest import clips, harmonic_tone, noise, write_audio
from PIL import Image

from helpers import audio, features, spectrograms

STEP = spectrograms.DB_STEP


@pytest.fixture
def made(tmp_path):
    """Two clips, their images, and when those were written."""
    table = clips(
        short=write_audio(tmp_path / "in/short é.wav", harmonic_tone(150, 0.4)),
        long=write_audio(tmp_path / "in/long.wav", noise(0.8)),
    )
    return table, spectrograms.write_images(table, tmp_path / "png", n_jobs=1), tmp_path / "png"


def times(folder) -> dict:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def test_pixels_are_decibels_within_half_a_step():
    signal = harmonic_tone(200, 0.5) + noise(0.5, 0.001)
    image = spectrograms.mel_image(signal)
    level = features.mel_spectrogram(audio.trim(signal), spectrograms.IMAGE).T[::-1]
    level = level.clip(spectrograms.DB_MIN, spectrograms.DB_MAX)
    assert image.dtype == np.uint8 and image.shape[0] == 64
    assert np.abs(spectrograms.DB_MIN + STEP * (image - 1.0) - level).max() <= STEP / 2 + 1e-3


def test_lowest_band_is_at_the_bottom():
    image = spectrograms.mel_image(harmonic_tone(100, 0.5))
    assert image[-10:].mean() > image[:10].mean() + 50


def test_files_hold_the_images_where_image_folder_readers_look(made):
    table, images, folder = made
    assert images["image"].tolist() == ["neutral/short.png", "neutral/long.png"]
    for row, path in zip(images.itertuples(), table["path"], strict=True):
        expected = spectrograms.mel_image(audio.load(path))
        with Image.open(folder / row.image) as file:
            assert file.mode == "L" and np.array_equal(np.asarray(file), expected)
        assert row.n_frames == expected.shape[1]


def test_unchanged_images_are_left_alone(made):
    table, images, folder = made
    before = times(folder)
    assert (
        spectrograms.write_images(table, folder, n_jobs=1).equals(images)
        and times(folder) == before
    )


def test_changed_recipe_or_audio_is_written_again(made):
    table, _, folder = made
    before = times(folder)
    spectrograms.write_images(table.assign(audio_hash=["short", "changed"]), folder, n_jobs=1)
    after = times(folder)
    assert after["short.png"] == before["short.png"] and after["long.png"] != before["long.png"]
    images = spectrograms.write_images(table, folder, features.FrontEnd(n_mels=128), n_jobs=1)
    assert spectrograms.read_images(images, folder, 40).shape == (2, 128, 40)
    assert times(folder).keys() == after.keys()


@pytest.mark.parametrize("kept", [0, 20, 100, 0.5, 0.9, 0.98])
def test_truncated_image_is_written_again(made, kept):
    table, _, folder = made
    path = folder / "neutral/long.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if kept in (0, 20, 100) else int(kept * len(whole))])
    spectrograms.write_images(table, folder, n_jobs=1)
    assert path.read_bytes() == whole


def test_reading_pads_with_silence_and_cuts_at_the_end(made):
    _, images, folder = made
    short, long = images["n_frames"]
    wanted = (short + long) // 2
    stack = spectrograms.read_images(images, folder, wanted)
    assert stack.shape == (2, 64, wanted) and stack.dtype == np.uint8
    with Image.open(folder / "neutral/long.png") as file:
        assert np.array_equal(stack[1], np.asarray(file)[:, :wanted])
    with Image.open(folder / "neutral/short.png") as file:
        assert np.array_equal(stack[0, :, :short], np.asarray(file))
    assert (stack[0, :, short:] == 0).all()


def test_digital_silence_inside_a_clip_is_not_padding(tmp_path):
    signal = np.concatenate(
        [harmonic_tone(150, 0.4), np.zeros(8000, np.float32), harmonic_tone(150, 0.4)]
    )
    table = clips(gap=write_audio(tmp_path / "gap.wav", signal))
    stack = spectrograms.read_images(
        spectrograms.write_images(table, tmp_path / "png", n_jobs=1), tmp_path / "png", 100
    )
    heard = stack.any(axis=1)[0]
    assert heard[:60].all() and not heard[70:].any()


@pytest.mark.parametrize(
    "harm", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:60])]
)
def test_missing_or_damaged_image_is_named(made, harm):
    _, images, folder = made
    harm(folder / "neutral/long.png")
    with pytest.raises(ValueError, match=r"long.png can't be read .*run notebook 04"):
        spectrograms.read_images(images, folder, 40)


def test_image_of_another_height_is_refused_by_name(made):
    _, images, folder = made
    Image.fromarray(np.ones((128, 50), np.uint8)).save(folder / "neutral/long.png")
    with pytest.raises(ValueError, match=r"long.png has 128 bands, the others 64: run notebook 04"):
        spectrograms.read_images(images, folder, 40)
