"""Reading audio: bad input gives a clear message or a line in the quality report."""

import os
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile
from conftest import RATE, clips, harmonic_tone, noise, write_audio

from helpers import audio, corpora, features, paths

TONE = harmonic_tone(150)


def with_nan(signal: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(signal)) % 1000 == 0, np.nan, signal).astype(np.float32)


# --- decoding and measuring ----------------------------------------------------------------------


def test_faultless_file_is_ok(tmp_path):
    found = audio.measure(write_audio(tmp_path / "Émotions du café" / "joie, été №1.wav", TONE))
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
    assert found["quality"].startswith("unusable: ") and expected in found["quality"]
    assert "bad.wav" in found["quality"]
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
    assert audio.measure(path)["quality"] != "ok"


def ffmpeg(source: Path, target: Path, *options: str, pipe: bool = False) -> Path:
    """Let FFmpeg write another format; through a pipe, it can't go back to write the length."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-i", str(source), *options]
    done = subprocess.run([*command, "-" if pipe else str(target)], capture_output=True, check=True)
    if pipe:
        target.write_bytes(done.stdout)
    return target


@pytest.mark.parametrize(
    ("name", "options", "pipe"),
    [
        ("phone.m4a", ("-c:a", "aac", "-b:a", "96k"), False),
        ("browser.webm", ("-c:a", "libopus"), False),
        ("film.mov", ("-f", "lavfi", "-i", "color=size=16x16:rate=5", "-shortest"), False),
        ("streamed.flac", ("-f", "flac"), True),
        ("streamed.wav", ("-f", "wav"), True),
        ("vbr.mp3", ("-c:a", "libmp3lame", "-q:a", "4", "-write_xing", "0"), False),
    ],
)
def test_other_containers_hold_the_same_sound(tmp_path, name, options, pipe):
    tone = np.concatenate([harmonic_tone(150, 1.5), 0.01 * noise(1.0), harmonic_tone(200, 1.5)])
    plain = audio.load(write_audio(tmp_path / "plain.wav", tone))
    path = ffmpeg(tmp_path / "plain.wav", tmp_path / name, *options, pipe=pipe)
    assert audio.measure(path)["quality"] == "ok" and (path, "") in audio.scan(tmp_path)
    found = audio.load(path)
    assert abs(len(found) - len(plain)) < 0.15 * RATE
    best = np.correlate(found[RATE : 2 * RATE], plain[RATE // 2 : 5 * RATE // 2]).max()
    assert best > 0.9 * np.square(found[RATE : 2 * RATE]).sum()
    part = audio.load(path, 1.0, 2.0)
    assert len(part) == RATE and np.abs(part - found[RATE : 2 * RATE]).max() < 0.05


def test_a_download_that_was_cut_off_ends_early(tmp_path):
    source = write_audio(tmp_path / "plain.wav", noise(6, 0.1))
    front = ("-c:a", "aac", "-movflags", "+faststart")  # the index first, as files for the web
    path = ffmpeg(source, tmp_path / "cut.m4a", *front)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert audio.measure(path)["quality"].startswith("cut short")
    with pytest.warns(UserWarning, match=r"cut\.m4a: cut short"):
        assert 2 < len(audio.load(path)) / RATE < 5


def test_a_playlist_opens_no_other_file(tmp_path):
    secret = write_audio(tmp_path / "secret.wav", TONE)
    (tmp_path / "list.m4a").write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n")
    with pytest.raises(ValueError, match=r"list\.m4a can't be decoded"):
        audio.load(tmp_path / "list.m4a")


def test_channels_that_cancel_are_not_mixed(tmp_path):
    both = np.stack([TONE, -TONE], axis=1)
    path = write_audio(tmp_path / "plug.wav", both)
    assert "channels cancel" in audio.measure(path)["quality"]
    with pytest.warns(UserWarning, match="channels cancel"):
        assert np.abs(audio.load(path) - audio.remove_offset(TONE)).max() < 1e-3
    louder = audio.mixed(np.stack([TONE, -0.99 * TONE], axis=1))
    assert louder[1] and np.array_equal(louder[0], TONE)
    assert not audio.mixed(np.stack([TONE, 0.5 * TONE], axis=1))[1]
    assert not audio.mixed(np.zeros((100, 2), np.float32))[1]


def test_a_scan_follows_links_once_and_says_what_it_leaves_out(tmp_path):
    root, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    for name in ("angry/a.wav", "angry/._a.wav", ".Trash-1000/b.wav", "__MACOSX/c.wav"):
        write_audio(root / name, TONE)
    (root / "angry/notes.txt").write_text("x")
    (root / os.fsdecode(b"angry/f\xe9e.wav")).write_bytes(b"x")
    write_audio(elsewhere / "d.wav", TONE)
    (root / "sad").symlink_to(elsewhere)
    (root / "sad too").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(root)
    found = {audio.shown(path, root): why for path, why in audio.scan(root)}
    assert {name for name, why in found.items() if not why} == {"angry/a.wav", "sad/d.wav"}
    assert "UTF-8" in found[r"angry/f\xe9e.wav"] and found["angry/notes.txt"] == "no audio file"
    for name in ("angry/._a.wav", ".Trash-1000", "__MACOSX"):
        assert found[name] == "hidden, or of the system"
    assert "a folder that is read already" in found["sad too"] + found["sad/loop"]


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


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "PCM_U8"])
def test_stereo_of_all_sample_formats_becomes_mono(tmp_path, subtype):
    path = write_audio(tmp_path / "tone.wav", np.column_stack([TONE, 0 * TONE]), subtype=subtype)
    assert audio.measure(path)["channels"] == 2 and audio.measure(path)["quality"] == "ok"
    np.testing.assert_allclose(audio.load(path), TONE / 2, atol=0.01)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "opus", "mp3", "aiff", "au"])
def test_formats_of_libsndfile_keep_pitch_and_length(tmp_path, suffix):
    options = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
    signal = audio.load(write_audio(tmp_path / f"tone.{suffix}", TONE, **options))
    assert signal.dtype == np.float32 and abs(len(signal) / RATE - 1) < 0.1
    spectrum = np.abs(np.fft.rfft(signal[2000:14000]))
    assert np.argmax(spectrum) * RATE / 12000 == pytest.approx(150, abs=2)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampling_keeps_pitch_level_and_length(tmp_path, rate):
    tone = harmonic_tone(200, rate=rate)
    signal = audio.load(write_audio(tmp_path / "tone.wav", tone, rate=rate))
    assert len(signal) == RATE
    f0 = features.functionals(signal)["f0_st__p50"]
    assert 55 * 2 ** (f0 / 12) == pytest.approx(200, rel=0.01)
    assert np.abs(signal[1000:-1000]).max() == pytest.approx(0.3, rel=0.05)


def test_part_by_times(tmp_path):
    path = write_audio(tmp_path / "dialogue.flac", noise(3, seed=3))
    whole = audio.load(path)
    piece = audio.remove_offset(whole[RATE : 5 * RATE // 2])
    np.testing.assert_allclose(audio.load(path, 1.0, 2.5), piece, atol=1e-7)
    np.testing.assert_array_equal(audio.load(path, float("nan"), float("nan")), whole)
    assert audio.measure(path, 1.0, 2.5)["duration_s"] == 1.5


def test_part_beyond_the_end_is_refused_or_reported(tmp_path):
    path = write_audio(tmp_path / "dialogue.wav", TONE)
    with pytest.raises(ValueError, match=r"dialogue.wav is 1.00 s long, but a part from 7.50 s"):
        audio.load(path, 7.5, 9.0)
    assert audio.measure(path, 7.5, 9.0)["quality"].startswith("unusable: dialogue.wav is 1.00 s")
    assert "cut short" in audio.measure(path, 0.5, 5.0)["quality"]
    assert audio.measure(path, 0.9, 0.5)["quality"].startswith("unusable")


def test_twenty_minutes_are_reported_and_have_features(tmp_path):
    rate = 8000
    with soundfile.SoundFile(tmp_path / "long.wav", "w", rate, 1, subtype="PCM_U8") as file:
        for minute in range(20):
            file.write(np.tile(noise(1, 0.2, minute, rate), 60))
    quality = audio.measure(tmp_path / "long.wav")["quality"]
    assert "1200 s long: cut it into utterances" in quality and not quality.startswith("unusable")
    coarse = features.FrontEnd(rate, win_length=320, hop_length=8000, n_fft=512, f0_max=400)
    row = features.functionals(audio.load(tmp_path / "long.wav", sampling_rate=rate), coarse)
    assert row["duration_s"] == pytest.approx(1200, abs=1) and np.isfinite(list(row.values())).all()


# --- all utterances ------------------------------------------------------------------------------


def test_same_audio_under_two_names_and_containers(tmp_path):
    samples = (TONE * 32767).astype(np.int16)  # of floats, wav and flac are rounded differently
    rows = clips(
        a=write_audio(tmp_path / "a.wav", samples),
        b=write_audio(tmp_path / "b.flac", samples),
        c=write_audio(tmp_path / "c.wav", samples // 2),
        d=write_audio(tmp_path / "d.wav", np.zeros(0)),
        e=tmp_path / "gone.wav",
        f="",
    )
    found = audio.measure_all(rows, n_jobs=1)["quality"].tolist()
    assert found[:3] == ["same audio as toy/b", "same audio as toy/a", "ok"]
    assert "holds no samples" in found[3] and "same audio" not in found[3]
    assert "is not there" in found[4] and "its audio file is not there" in found[5]


def test_of_many_clips_with_the_same_audio_each_names_one(tmp_path):
    path = write_audio(tmp_path / "a.wav", TONE[:1600])
    rows = clips(a=path, other=write_audio(tmp_path / "b.wav"), b=path, c=path)
    quality = audio.measure_all(rows[::-1], n_jobs=1)["quality"].tolist()[::-1]
    fault = "unusable: 0.10 s, shorter than 0.2 s; same audio as"
    assert quality == [f"{fault} toy/b", "ok", f"{fault} toy/c", f"{fault} toy/a"]


def test_measures_are_stored_and_a_changed_file_is_noticed(tmp_path, monkeypatch):
    rows = clips(
        a=write_audio(tmp_path / "a.wav", TONE), b=write_audio(tmp_path / "b.wav", noise())
    )
    first = audio.measure_all(rows, n_jobs=1)
    opened, decode = [], audio._decode
    monkeypatch.setattr(audio, "_decode", lambda *given: opened.append(given) or decode(*given))
    assert audio.measure_all(rows, n_jobs=1).equals(first) and not opened
    write_audio(tmp_path / "b.wav", noise(2))
    again = audio.measure_all(rows, n_jobs=1)
    assert len(opened) == 1, "one file changed, so one is read again"
    assert again["duration_s"].tolist() == [1, 2]


# --- signals -------------------------------------------------------------------------------------


def test_trim_cuts_silence_at_both_ends_only():
    silence, sound = np.zeros(RATE, np.float32), TONE[: RATE // 2]
    signal = np.concatenate([silence, sound, silence[: RATE // 2], sound, silence])
    assert len(audio.trim(signal)) / RATE == pytest.approx(1.5, abs=0.06)
    assert len(audio.trim(silence)) == RATE


def test_channel_normalisation_removes_level_noise_floor_and_top_band():
    tone = TONE + noise(1.0, 0.0001, 1)
    clip = np.concatenate([np.zeros(4000, np.float32), tone, np.zeros(4000, np.float32)])
    found = audio.channel_normalise(clip)
    assert found.dtype == np.float32 and abs(len(found) - len(tone)) < 1000
    assert 20 * np.log10(audio.frame_rms(found).max()) == pytest.approx(audio.LEVEL_DBFS, abs=0.2)
    for gain in (0.01, 3.0):
        assert np.abs(audio.channel_normalise(clip * np.float32(gain)) - found).max() < 1e-3
    hiss = audio.channel_normalise(tone + noise(1.0, 0.05, 2))
    power, hertz = np.abs(np.fft.rfft(hiss)) ** 2, np.fft.rfftfreq(len(hiss), 1 / RATE)
    assert power[hertz > 7500].mean() < 0.02 * power[(hertz > 5500) & (hertz < 6500)].mean()
    quiet = audio.channel_normalise(np.concatenate([tone, np.zeros(8000, np.float32), tone]))
    pause = quiet[len(tone) + 2000 : len(tone) + 6000]
    assert 20 * np.log10(np.sqrt(np.mean(pause**2))) == pytest.approx(audio.FLOOR_DBFS, abs=1)
    assert (audio.channel_normalise(clip) == found).all()


# --- voice activity ------------------------------------------------------------------------------


def speech_and_silence() -> tuple[np.ndarray, list[tuple[float, float]]]:
    gap = noise(0.8, 0.0005)
    signal = np.concatenate([gap, harmonic_tone(150, 1.0), gap, harmonic_tone(180, 0.7), gap])
    return signal, [(0.8, 1.8), (2.6, 3.3)]


def test_energy_finds_what_is_loud():
    signal, expected = speech_and_silence()
    parts = audio.voice_activity(signal, "energy") / RATE
    assert np.abs(parts - expected).max() < 0.05
    assert len(audio.voice_activity(np.zeros(RATE, np.float32), "energy")) == 0


def test_silero_distinguishes_speech_from_a_tone():
    torch = pytest.importorskip("torch")
    pytest.importorskip("silero_vad")
    row = corpora.index("demo", paths.PROJECT / "data/demo").query("start_s.isna()").iloc[0]
    speech, gap = audio.load(row["path"]), noise(1.0, 0.0005)
    threads = torch.get_num_threads()
    signal = np.concatenate([gap, speech, gap, harmonic_tone(440, 1.0), gap])
    parts = audio.voice_activity(signal)
    assert torch.get_num_threads() == threads
    start, stop = RATE, RATE + len(speech)
    found = sum(max(0, min(b, stop) - max(a, start)) for a, b in parts)
    assert found > 0.5 * len(speech) and (parts[:, 1] - parts[:, 0]).sum() < 1.3 * found


def test_short_pauses_stay():
    tone = harmonic_tone(150, 0.5)
    signal = np.concatenate([tone, np.zeros(3_200, np.float32), tone])  # 0.2 s
    assert len(audio.voice_activity(signal, "energy")) == 1


@pytest.mark.parametrize("offset", [0.02, -0.05])
def test_a_constant_offset_is_no_sound(tmp_path, offset):
    """A recording with a DC offset is heard, measured and channel-normalised as without it."""
    signal = np.concatenate([np.zeros(8000), harmonic_tone(200, 1.0, 0.01), np.zeros(8000)])
    plain, shifted = tmp_path / "plain.wav", tmp_path / "shifted.wav"
    soundfile.write(plain, signal, 16_000, subtype="FLOAT")
    soundfile.write(shifted, signal + offset, 16_000, subtype="FLOAT")
    first, second = audio.load(plain), audio.load(shifted)
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert abs(second.mean(dtype=float)) < 1e-8
    assert len(audio.trim(second)) < 17_500, "the silence is cut off"
    measured = [audio.measure(path) for path in (plain, shifted)]
    assert measured[0]["level_dbfs"] == pytest.approx(measured[1]["level_dbfs"], abs=1e-3)
    np.testing.assert_allclose(
        audio.channel_normalise(first), audio.channel_normalise(second), atol=1e-4
    )


def test_an_offset_alone_is_silence(tmp_path):
    soundfile.write(tmp_path / "offset.wav", np.full(16_000, 0.1), 16_000)
    assert "unusable: silent" in audio.measure(tmp_path / "offset.wav")["quality"]
