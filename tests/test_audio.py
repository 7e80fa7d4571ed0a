"""Reading audio: every kind of bad input gives a clear message or a line in the quality report."""

import numpy as np
import pytest
import soundfile
from conftest import RATE, clips, harmonic_tone, noise, write_audio

from helpers import audio, features

TONE = harmonic_tone(150)


def with_nan(signal: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(signal)) % 1000 == 0, np.nan, signal).astype(np.float32)


def test_sound_file_is_ok(tmp_path):
    found = audio.measure(write_audio(tmp_path / "good.wav", TONE))
    assert found["quality"] == "ok"
    assert found["duration_s"] == 1 and found["sampling_rate"] == RATE and found["channels"] == 1
    assert found["peak_dbfs"] == pytest.approx(20 * np.log10(0.3), abs=0.01)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "can't be decoded"),
        (b"this is text, not audio\n" * 50, "can't be decoded"),
        (None, "is not there"),
    ],
)
def test_what_is_no_audio_is_unusable_and_named(tmp_path, content, expected):
    path = tmp_path / "bad.wav"
    if content is not None:
        path.write_bytes(content)
    found = audio.measure(path)
    assert (
        found["quality"].startswith("unusable: ")
        and expected in found["quality"]
        and "bad.wav" in found["quality"]
    )
    assert np.isnan(found["duration_s"]) and found["audio_hash"] == ""
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        audio.load(path)


@pytest.mark.parametrize(
    ("signal", "expected"),
    [
        (np.zeros(0, np.float32), "holds no samples"),
        (with_nan(TONE), "16 NaN or infinite samples"),
        (np.full(RATE, np.inf, np.float32), "NaN or infinite"),
        (TONE[:1600], "shorter than 0.2 s"),
        (np.zeros(RATE, np.float32), "silent"),
        (noise(1, 1e-5), "silent"),
    ],
    ids=["header only", "NaN", "infinite", "short", "zeros", "hiss"],
)
def test_useless_content_is_unusable(tmp_path, signal, expected):
    found = audio.measure(write_audio(tmp_path / "bad.wav", signal, subtype="FLOAT"))
    assert found["quality"].startswith("unusable: ") and expected in found["quality"]


@pytest.mark.parametrize("suffix", ["flac", "wav", "ogg"])
def test_file_cut_short_is_reported(tmp_path, suffix):
    path = write_audio(tmp_path / f"cut.{suffix}", noise(3, 0.1))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = audio.measure(path)
    assert found["quality"] != "ok", (
        f"half of a 3 s file passed as {found['duration_s']} s of sound audio"
    )


def test_damaged_flac_is_unusable(tmp_path):
    path = write_audio(tmp_path / "damaged.flac", noise(3, 0.1))
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : 2 * len(content) // 3] = bytes(len(content) // 3)
    path.write_bytes(content)
    assert "damaged.flac" in audio.measure(path)["quality"]


def test_clipped_and_low_rate_are_noted_but_usable(tmp_path):
    clipped = audio.measure(write_audio(tmp_path / "clipped.wav", (TONE * 10).clip(-1, 1)))
    assert "clipped" in clipped["quality"] and not clipped["quality"].startswith("unusable")
    low = audio.measure(write_audio(tmp_path / "low.wav", harmonic_tone(150, rate=8000), rate=8000))
    assert low["quality"] == "sampled at 8000 Hz: nothing above 4000 Hz" and low["duration_s"] == 1


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "DOUBLE", "PCM_U8"])
def test_sample_formats_decode_alike(tmp_path, subtype):
    path = write_audio(tmp_path / "tone.wav", TONE, subtype=subtype)
    assert audio.measure(path)["quality"] == "ok"
    np.testing.assert_allclose(audio.load(path), TONE, atol=0.01)


def test_stereo_becomes_mono(tmp_path):
    path = write_audio(tmp_path / "stereo.wav", np.column_stack([TONE, 0 * TONE]))
    assert audio.measure(path)["channels"] == 2 and audio.measure(path)["quality"] == "ok"
    np.testing.assert_allclose(audio.load(path), TONE / 2, atol=1e-4)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3", "aiff", "au"])
def test_formats_of_libsndfile_keep_pitch_and_length(tmp_path, suffix):
    options = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
    signal = audio.load(write_audio(tmp_path / f"tone.{suffix}", TONE, **options))
    assert signal.dtype == np.float32 and abs(len(signal) / RATE - 1) < 0.1
    spectrum = np.abs(np.fft.rfft(signal[2000:14000]))
    assert np.argmax(spectrum) * RATE / 12000 == pytest.approx(150, abs=2)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampling_keeps_pitch_level_and_length(tmp_path, rate):
    signal = audio.load(
        write_audio(tmp_path / "tone.wav", harmonic_tone(200, rate=rate), rate=rate)
    )
    assert len(signal) == RATE
    f0 = features.functionals(signal)["f0_st__p50"]
    assert 55 * 2 ** (f0 / 12) == pytest.approx(200, rel=0.01)
    assert np.abs(signal[1000:-1000]).max() == pytest.approx(0.3, rel=0.05)


def test_part_by_times(tmp_path):
    path = write_audio(tmp_path / "dialogue.flac", noise(3, seed=3))
    whole = audio.load(path)
    np.testing.assert_array_equal(audio.load(path, 1.0, 2.5), whole[RATE : 5 * RATE // 2])
    np.testing.assert_array_equal(audio.load(path, float("nan"), float("nan")), whole)
    assert audio.measure(path, 1.0, 2.5)["duration_s"] == 1.5


def test_part_beyond_the_end_says_so(tmp_path):
    path = write_audio(tmp_path / "dialogue.wav", TONE)
    with pytest.raises(ValueError, match=r"dialogue.wav is 1.00 s long, but a part from 7.50 s"):
        audio.load(path, 7.5, 9.0)
    assert audio.measure(path, 7.5, 9.0)["quality"].startswith(
        "unusable: dialogue.wav is 1.00 s long"
    )
    assert audio.measure(path, 0.5, 5.0)["quality"] != "ok", (
        "half of the part asked for is beyond the end"
    )
    assert audio.measure(path, 0.9, 0.5)["quality"].startswith("unusable")


def test_folder_with_spaces_and_accents(tmp_path):
    path = write_audio(tmp_path / "Émotions du café" / "joie, été №1.wav", TONE)
    assert audio.measure(path)["quality"] == "ok" and len(audio.load(path)) == RATE


def test_twenty_minutes_are_reported_and_have_features(tmp_path):
    rate = 8000
    with soundfile.SoundFile(tmp_path / "long.wav", "w", rate, 1, subtype="PCM_U8") as file:
        for minute in range(20):
            file.write(np.tile(noise(1, 0.2, minute, rate), 60))
    found = audio.measure(tmp_path / "long.wav")
    assert "1200 s long: cut it into utterances" in found["quality"]
    assert not found["quality"].startswith("unusable")
    coarse = features.FrontEnd(
        sampling_rate=rate, win_length=320, hop_length=8000, n_fft=512, f0_max=400
    )
    row = features.functionals(audio.load(tmp_path / "long.wav", sampling_rate=rate), coarse)
    assert row["duration_s"] == pytest.approx(1200, abs=1) and np.isfinite(list(row.values())).all()


def test_same_audio_under_two_names_and_containers(tmp_path):
    samples = (TONE * 32767).astype(
        np.int16
    )  # writing floats, libsndfile rounds differently for wav and flac
    rows = clips(
        a=write_audio(tmp_path / "a.wav", samples),
        b=write_audio(tmp_path / "b.flac", samples),
        c=write_audio(tmp_path / "c.wav", samples // 2),
        d=write_audio(tmp_path / "d.wav", np.zeros(0)),
    )
    found = audio.measure_all(rows, n_jobs=1)["quality"].tolist()
    assert found[:3] == ["same audio as toy/b", "same audio as toy/a", "ok"]
    assert "same audio" not in found[3], "files that can't be read are not the same recording"


def test_measures_are_stored_and_a_changed_file_is_noticed(tmp_path, monkeypatch):
    rows = clips(
        a=write_audio(tmp_path / "a.wav", TONE), b=write_audio(tmp_path / "b.wav", noise())
    )
    first = audio.measure_all(rows, n_jobs=1)
    opened = []
    monkeypatch.setattr(
        audio, "_resample", lambda signal, *rates: opened.append("opened") or signal
    )
    assert audio.measure_all(rows, n_jobs=1).equals(first) and not opened
    write_audio(tmp_path / "b.wav", noise(2))
    again = audio.measure_all(rows, n_jobs=1)
    assert opened == ["opened"], "one file changed, so one is read again"
    assert again["duration_s"].tolist() == [1, 2]


def test_measure_all_keeps_rows_in_order_whatever_is_bad(tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    rows = clips(
        x=tmp_path / "text.wav",
        good=write_audio(tmp_path / "good.wav", TONE),
        y=tmp_path / "gone.wav",
        z="",
    )
    quality = audio.measure_all(rows, n_jobs=1)["quality"].tolist()
    assert [q == "ok" for q in quality] == [False, True, False, False]
    assert "is not there" in quality[2] and "its audio file is not there" in quality[3]


def test_trim_cuts_silence_at_both_ends_only():
    signal = np.concatenate(
        [np.zeros(RATE), TONE[: RATE // 2], np.zeros(RATE // 2), TONE[: RATE // 2], np.zeros(RATE)]
    )
    assert len(audio.trim(signal.astype(np.float32))) / RATE == pytest.approx(1.5, abs=0.06)
    assert len(audio.trim(np.zeros(RATE, np.float32))) == RATE


def test_play_is_silent_headlessly(monkeypatch):
    monkeypatch.setenv("SER_RUN_LOG", "somewhere")
    assert audio.play(TONE) is None


def test_levelled_clip_tells_nothing_of_the_microphone():
    tone = harmonic_tone(150, 1.0, 0.3) + noise(1.0, 0.0001, 1)
    clip = np.concatenate([np.zeros(4000, np.float32), tone, np.zeros(4000, np.float32)])
    found = audio.levelled(clip)
    assert found.dtype == np.float32 and abs(len(found) - len(tone)) < 1000, (
        "silence at both ends is gone"
    )
    assert 20 * np.log10(audio.frame_rms(found).max()) == pytest.approx(audio.LEVEL_DBFS, abs=0.2)
    for gain in (0.01, 3.0):
        assert np.abs(audio.levelled(clip * np.float32(gain)) - found).max() < 1e-3
    hiss = audio.levelled(tone + noise(1.0, 0.05, 2))
    spectrum = np.abs(np.fft.rfft(hiss)) ** 2
    hertz = np.fft.rfftfreq(len(hiss), 1 / RATE)
    assert (
        spectrum[hertz > 7500].mean() < 0.02 * spectrum[(hertz > 5500) & (hertz < 6500)].mean()
    ), "the top band is gone"
    quiet = audio.levelled(np.concatenate([tone, np.zeros(8000, np.float32), tone]))
    pause = quiet[len(tone) + 2000 : len(tone) + 6000]
    assert 20 * np.log10(np.sqrt(np.mean(pause**2))) == pytest.approx(audio.FLOOR_DBFS, abs=1)
    assert (audio.levelled(clip) == found).all()
