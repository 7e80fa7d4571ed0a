"""Features: right pitch, librosa's own numbers, always finite, and never computed twice."""

import librosa
import numpy as np
import pytest
from conftest import RATE, clips, harmonic_tone, noise, write_audio

from helpers import audio, features
from helpers.features import FrontEnd

FE = FrontEnd()
# What may move when a recording is merely louder; the lowest bin passes through 0 now and then
LEVEL = ("mel", "band", "rms_db", "amplitude", "mfcc00", "contrast0")


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Two gliding voiced stretches with noise between and below; no digital silence."""
    time = np.arange(RATE) / RATE
    glide = np.cumsum(120 + 60 * np.sin(2 * np.pi * time)) / RATE
    voice = sum(np.sin(2 * np.pi * k * glide) / k for k in range(1, 12)) * np.hanning(RATE)
    signal = np.concatenate([voice, np.zeros(RATE // 4), 0.5 * voice])
    return (0.1 * signal + noise(len(signal) / RATE, 0.003, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def spectra(speech):
    """Power and magnitude in librosa's layout: (bins, frames)."""
    power, _ = features._power_spectrum(speech, FE)
    return power.T, np.sqrt(power).T


@pytest.fixture(scope="module")
def llds(speech) -> dict[str, np.ndarray]:
    values, names = features.describe(speech)
    return dict(zip(names, values.T, strict=True))


def rows_of(llds, start: str) -> np.ndarray:
    return np.stack([values for name, values in llds.items() if name.startswith(start)])


# --- golden numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("hertz", [80, 110, 150, 220, 300, 400])
@pytest.mark.parametrize("level", [0.9, 0.01])
def test_pitch_of_tones_is_right_within_one_percent(hertz, level):
    row = features.functionals(harmonic_tone(hertz, level=level))
    assert 55 * 2 ** (row["f0_st__p50"] / 12) == pytest.approx(hertz, rel=0.01)
    assert row["voiced_share"] > 0.9 and row["f0_st__std"] < 0.2


def test_pitch_survives_noise_and_noise_has_none():
    found = features.functionals(harmonic_tone(180) + noise(1, 0.03))["f0_st__p50"]
    assert 55 * 2 ** (found / 12) == pytest.approx(180, rel=0.01)
    assert features.functionals(noise(1))["voiced_share"] < 0.2


def test_a_sine_of_full_scale_peaks_near_0_db():
    sine = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32)
    power, _ = features._power_spectrum(sine, FE)
    assert 10 * np.log10(power[50].max()) == pytest.approx(0, abs=0.1)
    assert features.functionals(sine)["rms_db__p50"] == pytest.approx(-3.01, abs=0.05)


def test_mel_bands_mfcc_and_chroma_are_librosas(spectra, llds, speech):
    power, size = spectra[0], {"sr": RATE, "n_fft": FE.n_fft}
    mel = librosa.feature.melspectrogram(S=power, n_mels=FE.n_mels, norm=None, **size)
    level = librosa.power_to_db(mel, ref=1.0, amin=1e-10, top_db=None)
    np.testing.assert_allclose(rows_of(llds, "mel"), level, atol=1e-3)
    np.testing.assert_allclose(features.mel_spectrogram(speech).T, level, atol=1e-3)
    mfcc = librosa.feature.mfcc(S=level, n_mfcc=20)
    np.testing.assert_allclose(rows_of(llds, "mfcc"), mfcc, atol=0.01)
    chroma = librosa.feature.chroma_stft(S=power, tuning=0, **size)
    np.testing.assert_allclose(rows_of(llds, "chroma"), chroma, atol=2e-3)


def test_spectral_shape_is_librosas(spectra, llds):
    magnitude, feature = spectra[1], librosa.feature
    centroid = feature.spectral_centroid(S=magnitude, sr=RATE)[0]
    np.testing.assert_allclose(llds["centroid_hz"], centroid, rtol=1e-3)
    bandwidth = feature.spectral_bandwidth(S=magnitude, sr=RATE)[0]
    np.testing.assert_allclose(llds["bandwidth_hz"], bandwidth, rtol=1e-3)
    for name, share in [("rolloff85_hz", 0.85), ("rolloff01_hz", 0.01)]:
        expected = feature.spectral_rolloff(S=magnitude, sr=RATE, roll_percent=share)[0]
        same = np.abs(llds[name] - expected) < 1
        assert same.mean() > 0.99, name  # a bin's edge may round either way
    # librosa's contrast is in dB of magnitude, and its lowest bands share bins with neighbours
    contrast = 2 * feature.spectral_contrast(S=magnitude, sr=RATE, fmin=100, n_bands=6)[2:]
    ours = rows_of(llds, "contrast")[2:]
    assert np.diag(np.corrcoef(ours, contrast)[:5, 5:]).min() > 0.9
    assert np.abs(np.median(ours - contrast, axis=1)).max() < 3


def test_energy_zero_crossings_and_tuning_are_librosas(speech, llds):
    frames = librosa.util.frame(np.pad(speech, 320), frame_length=640, hop_length=160)
    rms = 20 * np.log10(np.sqrt((frames**2).mean(axis=0)))
    np.testing.assert_allclose(llds["rms_db"], rms, atol=0.01)
    crossings = librosa.feature.zero_crossing_rate(speech, frame_length=640, hop_length=160)[0]
    np.testing.assert_allclose(llds["zero_crossing"][3:-3], crossings[3:-3], atol=0.01)
    semitones = np.random.default_rng(0).normal(20.3, 0.1, 200)
    tuning = librosa.pitch_tuning(55 * 2 ** (semitones / 12))
    assert features._tuning(semitones) == pytest.approx(tuning, abs=1e-9)
    assert features._tuning(semitones[:0]) == 0


@pytest.mark.parametrize("n_rows", [1, 2, 15, 100])
def test_pitch_path_is_the_best_of_all(n_rows):
    rng = np.random.default_rng(n_rows)
    octaves = np.log2(np.arange(5, 17))
    score = np.where(rng.random((n_rows, 12)) < 0.6, rng.random((n_rows, 12)), -2)
    score = score.astype(np.float32)
    path = features._smoothest_path(score, octaves, 11, 0.7)  # one column can't be chosen

    def total(columns):
        jumps = np.abs(np.diff(octaves[columns])).sum()
        return score[np.arange(n_rows), columns].sum() - 0.7 * jumps

    best = score[0].astype(float)
    for row in score[1:]:
        best = (best[:, None] - 0.7 * np.abs(octaves[:, None] - octaves)).max(axis=0) + row
    assert total(path) == pytest.approx(best.max(), abs=1e-4)
    assert n_rows < 3 or total(path) > total(score.argmax(axis=1))


def test_functionals_are_numpys(speech):
    values, names = features.describe(audio.trim(speech))
    row = features.functionals(speech)
    voiced = np.isfinite(values[:, names.index("f0_st")])
    time = np.arange(len(values)) / 100
    for name, lld in list(zip(names, values.T.astype(float), strict=True))[128:]:
        known, padded = np.isfinite(lld), np.pad(lld, 2, mode="edge")
        delta = 10 * sum(k * padded[2 + k : 2 + k + len(lld)] for k in (-2, -1, 1, 2))
        expected = {
            "mean": np.nanmean(lld),
            "std": np.nanstd(lld),
            "min": np.nanmin(lld),
            "max": np.nanmax(lld),
            "voiced_mean": np.nanmean(lld[voiced]),
            "voiced_std": np.nanstd(lld[voiced]),
            "slope": np.polyfit(time[known], lld[known], 1)[0],
            "delta_abs": np.nanmean(np.abs(delta)),
            "delta_std": np.nanstd(delta),
            "delta_p05": np.nanpercentile(delta, 5),
            "delta_p95": np.nanpercentile(delta, 95),
        }
        expected |= {f"p{p:02d}": np.nanpercentile(lld, p) for p in (5, 25, 50, 75, 95)}
        scale = np.nanmax(np.abs(lld)) + 1e-3
        for functional, value in expected.items():
            tolerance = scale * (0.02 if "delta" in functional else 2e-3)
            column = f"{name}__{functional}"
            assert row[column] == pytest.approx(value, rel=1e-3, abs=tolerance), column


# --- edge cases ----------------------------------------------------------------------------------

DIFFICULT = {
    "0.2 s": harmonic_tone(150, 0.2),
    "10 ms": harmonic_tone(150, 0.01),
    "one sample": np.ones(1, np.float32),
    "zeros": np.zeros(RATE, np.float32),
    "hiss": noise(0.5, 1e-6),
    "clipped": (harmonic_tone(150) * 50).clip(-1, 1),
    "noise": noise(),
    "constant": np.full(RATE, 0.5, np.float32),
    "click": np.eye(1, RATE, 8000, dtype=np.float32)[0],
}


@pytest.mark.parametrize("name", DIFFICULT)
def test_functionals_are_finite_and_always_the_same_columns(name):
    row = features.functionals(DIFFICULT[name])
    assert list(row) == list(features.functionals(harmonic_tone(200, 0.3)))
    values = np.array(list(row.values()), np.float32)
    assert np.isfinite(values).all() and (np.abs(values) < 1e6).all()


def test_columns_are_named_and_have_a_family():
    names = list(features.functionals(harmonic_tone(200, 0.3)))
    assert len(names) == len(set(names)) > 1000
    known = {"f0_st__p95", "jitter__mean", "hnr_db__voiced_mean", "mfcc00__mean", "duration_s"}
    assert known <= set(names)
    assert {features.family(name) for name in names} == {*features._FAMILIES, "LLD correlations"}


def test_a_louder_recording_moves_level_features_only(speech):
    hissing = speech + noise(len(speech) / RATE, 0.1, 6)  # so that no bin falls below -100 dB
    quiet, loud = features.functionals(hissing), features.functionals(2 * hissing)
    assert loud["rms_db__mean"] - quiet["rms_db__mean"] == pytest.approx(6.02, abs=0.01)
    moved = {n for n in quiet if abs(loud[n] - quiet[n]) > 0.01 * abs(quiet[n]) + 0.01}
    assert moved and not sorted(name for name in moved if not name.startswith(LEVEL))


# --- tables --------------------------------------------------------------------------------------


def test_a_result_is_stored_and_a_changed_parameter_is_computed(tmp_path, monkeypatch):
    table = clips(a=write_audio(tmp_path / "a.wav"), b=write_audio(tmp_path / "b.wav"))
    load, calls = audio.load, []
    monkeypatch.setattr(audio, "load", lambda *given: calls.append(1) or load(*given))
    first = features.functionals_table(table, n_jobs=1)
    assert first["utterance_id"].tolist() == ["toy/a", "toy/b"] and len(calls) == 2
    again = features.functionals_table(table[::-1], n_jobs=1)
    assert np.array_equal(again.iloc[::-1, 1:], first.iloc[:, 1:]) and len(calls) == 2
    row = list(features.functionals(load(table["path"][1])).values())
    np.testing.assert_allclose(first.iloc[1, 1:].to_numpy(float), row, rtol=1e-4, atol=1e-5)
    for changed in (FrontEnd(n_mfcc=13), FrontEnd(trim_db=30.0)):
        features.functionals_table(table, changed, n_jobs=1)
    assert len(calls) == 6
    features.functionals_table(table.assign(audio_hash=["a", "changed"]), n_jobs=1)
    assert len(calls) == 7, "other audio is computed, the same audio is not"


def test_descriptors_table_holds_the_descriptors_of_every_clip_in_order(tmp_path):
    long, short = noise(0.8) + harmonic_tone(150, 0.8), harmonic_tone(200, 0.3)
    files = {"long": long, "short": short}
    table = clips(**{name: write_audio(tmp_path / f"{name}.wav", s) for name, s in files.items()})
    frames = features.descriptors_table(table, n_jobs=1)
    ids, found = features.split_clips(frames)
    assert ids.tolist() == ["toy/long", "toy/short"]
    for path, clip in zip(table["path"], found, strict=True):
        values, names = features.describe(audio.trim(audio.load(path)), features.SEQUENCE)
        kept = [not name.startswith("mel") for name in names]
        assert frames.columns[1:].tolist() == list(np.array(names)[kept])
        # here two threads may add up in another order
        np.testing.assert_allclose(clip, values[:, kept], rtol=1e-4, atol=1e-4)
        own = features.clip_descriptors(audio.load(path))
        np.testing.assert_allclose(clip, own, rtol=1e-4, atol=1e-4)
    assert set(frames.columns[frames.isna().any()]) <= {"f0_st", "hnr_db", "jitter", "shimmer_db"}


# --- sequences -----------------------------------------------------------------------------------


def test_unvoiced_frames_get_the_line_between_neighbours():
    nan = np.nan
    clip = np.array([[nan, 1, nan], [2, 1, nan], [nan, 1, nan], [6, 1, nan], [nan, 1, nan]])
    filled = features.fill_unvoiced(clip.astype(np.float32))
    assert filled.T.tolist() == [[2, 2, 4, 6, 6], [1] * 5, [0] * 5]
    assert np.isnan(clip).sum() == 8, "what was given is left alone"
    assert filled.flags.c_contiguous, "in another order sums differ in their last digits"


def test_sequences_are_filled_padded_with_zeros_and_cut_at_the_end():
    clip = np.array([[1, 2], [np.nan, 4], [5, 6]], np.float32)
    assert features.sequence(clip, 2).tolist() == [[1, 2], [3, 4]]
    assert features.sequence(clip, 4).tolist() == [[1, 2], [3, 4], [5, 6], [0, 0]]
    assert features.sequence(clip, 3, stride=2).tolist() == [[2, 3], [5, 6], [0, 0]]


def test_segments_are_statistics_of_equal_parts():
    clip = np.array([(i, 10 * i) for i in range(12)], np.float32)
    found, part = features.segments(clip, 3), clip[4:8]
    expected = [*part.mean(0), *part.std(0), *part.min(0), *part.max(0)]
    assert found.shape == (3, 8) and found.dtype == np.float32
    np.testing.assert_allclose(found[1], expected, rtol=1e-6)
    short = features.segments(clip[:2], 3)  # two frames, three parts
    assert np.isfinite(short).all() and short[:, 0].tolist() == [0, 0.5, 1]


# --- normalisation -------------------------------------------------------------------------------


def test_speaker_normalisation_gives_mean_0_and_deviation_1():
    rng = np.random.default_rng(0)
    speakers = np.repeat(["a", "b", "c"], [30, 50, 1])
    values = rng.normal(np.where(speakers == "a", 100, -5)[:, None], 7, (81, 4)).astype(np.float32)
    values[:, 3] = 2
    found = features.normalise_by_speaker(values, speakers)
    for speaker in "ab":
        own = found[speakers == speaker][:, :3]
        np.testing.assert_allclose(own.mean(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(own.std(axis=0), 1, atol=1e-3)
    assert (found[:, 3] == 0).all() and (found[-1] == 0).all()


def test_enrolment_with_every_clip_is_speaker_normalisation():
    values, speakers = np.random.default_rng(0).normal(5, 3, (40, 6)), np.repeat(["a", "b"], 20)
    own = values[:20]
    enrolled = features.normalise_by_enrolment(own, own, np.zeros(6), np.ones(6), prior=0)
    assert np.allclose(enrolled, features.normalise_by_speaker(values, speakers)[:20], atol=1e-5)


def test_without_enrolment_the_speaker_is_average_and_few_clips_count_little():
    rng = np.random.default_rng(0)
    own, mean, std = rng.normal(5, 3, (20, 6)), np.full(6, 4.0), np.full(6, 2.0)
    nothing = features.normalise_by_enrolment(own, own[:0], mean, std)
    assert np.allclose(nothing, (own - 4) / 2, atol=1e-5)
    one = features.normalise_by_enrolment(own, own[:1], mean, std, prior=4.0)
    assert np.isfinite(one).all() and np.abs(one - nothing).mean() < np.abs(nothing).mean()
    assert one.dtype == np.float32
