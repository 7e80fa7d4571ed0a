"""Features: right pitch, librosa's own numbers, always finite, and never computed twice."""

import dataclasses

import librosa
import numpy as np
import pandas as pd
import pytest
import scipy.signal
from conftest import RATE, clips, harmonic_tone, noise, write_audio

from helpers import audio, features
from helpers.features import FrontEnd

FE = FrontEnd()
# What may move when a recording is merely louder
LEVEL = (
    "mel",
    "band",
    "rms_db",
    "amplitude",
    "mfcc00",
    "contrast0",
)  # the lowest bin passes through 0 now and then


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
    """Power and magnitude as librosa likes them: (bins, frames)."""
    power, _ = features._power_spectrum(speech, FE)
    return power.T, np.sqrt(power).T


@pytest.fixture(scope="module")
def curves(speech) -> dict[str, np.ndarray]:
    values, names = features.describe(speech)
    return dict(zip(names, values.T, strict=True))


def stacked(curves, start: str, n: int, form: str = "{}{:02d}") -> np.ndarray:
    return np.stack(
        [
            next(v for k, v in curves.items() if k.startswith(form.format(start, i)))
            for i in range(n)
        ]
    )


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


def test_mel_bands_and_mfcc_are_librosas(spectra, curves, speech):
    mel = librosa.feature.melspectrogram(
        S=spectra[0], sr=RATE, n_fft=FE.n_fft, n_mels=FE.n_mels, norm=None
    )
    level = librosa.power_to_db(mel, ref=1.0, amin=1e-10, top_db=None)
    np.testing.assert_allclose(stacked(curves, "mel", FE.n_mels, "{}{:03d}"), level, atol=1e-3)
    np.testing.assert_allclose(features.mel_spectrogram(speech).T, level, atol=1e-3)
    np.testing.assert_allclose(
        stacked(curves, "mfcc", 20), librosa.feature.mfcc(S=level, n_mfcc=20), atol=0.01
    )


def test_centroid_bandwidth_and_rolloff_are_librosas(spectra, curves):
    _, magnitude = spectra
    np.testing.assert_allclose(
        curves["centroid_hz"], librosa.feature.spectral_centroid(S=magnitude, sr=RATE)[0], rtol=1e-3
    )
    np.testing.assert_allclose(
        curves["bandwidth_hz"],
        librosa.feature.spectral_bandwidth(S=magnitude, sr=RATE)[0],
        rtol=1e-3,
    )
    for name, share in [("rolloff85_hz", 0.85), ("rolloff01_hz", 0.01)]:
        expected = librosa.feature.spectral_rolloff(S=magnitude, sr=RATE, roll_percent=share)[0]
        assert np.mean(np.abs(curves[name] - expected) < 1) > 0.99, (
            name
        )  # a bin's edge may round either way


@pytest.mark.parametrize("fe", [FE, FrontEnd(n_fft=640), FrontEnd(sampling_rate=8_000)])
def test_filters_windows_and_tuning_are_librosas_and_scipys(fe):
    for n_mels in (fe.n_mels, fe.n_bands):
        expected = librosa.filters.mel(
            sr=fe.sampling_rate, n_fft=fe.n_fft, n_mels=n_mels, norm=None
        ).T
        np.testing.assert_allclose(features._mel_filters(fe, n_mels), expected, atol=1e-6)
    chroma = librosa.filters.chroma(sr=fe.sampling_rate, n_fft=fe.n_fft).T
    np.testing.assert_allclose(features._chroma_filters(fe), chroma, atol=1e-6)
    np.testing.assert_allclose(
        features.mel_frequencies(20, 500), librosa.mel_frequencies(22, fmin=0, fmax=500), rtol=1e-9
    )
    np.testing.assert_allclose(
        features._window(640), scipy.signal.get_window("hann", 640), atol=1e-6
    )
    np.testing.assert_allclose(
        audio.low_pass(), scipy.signal.firwin(129, audio.TOP_HZ, fs=RATE), atol=1e-12
    )
    semitones = np.random.default_rng(0).normal(20.3, 0.1, 200)
    assert features._tuning(semitones) == pytest.approx(
        librosa.pitch_tuning(55 * 2 ** (semitones / 12)), abs=1e-9
    )
    assert features._tuning(semitones[:0]) == 0


@pytest.mark.parametrize("n_rows", [1, 2, 15, 16, 17, 33, 100])
def test_pitch_path_is_the_best_of_all(n_rows):
    rng = np.random.default_rng(n_rows)
    octaves = np.log2(np.arange(5, 17))
    score = np.where(rng.random((n_rows, 12)) < 0.6, rng.random((n_rows, 12)), -2).astype(
        np.float32
    )
    path = features._smoothest_path(
        score, octaves, 11, 0.7
    )  # the lowest column alone can't be chosen

    def worth(columns):
        return (
            score[np.arange(n_rows), columns].sum() - 0.7 * np.abs(np.diff(octaves[columns])).sum()
        )

    best = score[0].astype(float)  # Viterbi, row by row
    for row in score[1:]:
        best = (best[:, None] - 0.7 * np.abs(octaves[:, None] - octaves)).max(axis=0) + row
    assert worth(path) == pytest.approx(best.max(), abs=1e-4)
    assert n_rows < 3 or worth(path) > worth(score.argmax(axis=1)), "each row for itself would do"


def test_chroma_is_librosas(spectra, curves):
    expected = librosa.feature.chroma_stft(S=spectra[0], sr=RATE, n_fft=FE.n_fft, tuning=0)
    np.testing.assert_allclose(stacked(curves, "chroma", 12), expected, atol=2e-3)


def test_contrast_is_librosas_but_in_db_of_power(spectra, curves):
    expected = 2 * librosa.feature.spectral_contrast(
        S=spectra[1], sr=RATE, fmin=100, n_bands=6
    )  # theirs: dB of magnitude
    ours = stacked(curves, "contrast", 7, "{}{}")
    for band in range(2, 7):  # below, librosa's bands share bins with their neighbours
        assert np.corrcoef(ours[band], expected[band])[0, 1] > 0.9, band
        assert np.median(ours[band] - expected[band]) == pytest.approx(0, abs=3), band


def test_energy_and_zero_crossings_are_librosas(speech, curves):
    frames = librosa.util.frame(np.pad(speech, 320), frame_length=640, hop_length=160)
    np.testing.assert_allclose(
        curves["rms_db"], 20 * np.log10(np.sqrt((frames**2).mean(axis=0))), atol=0.01
    )
    expected = librosa.feature.zero_crossing_rate(speech, frame_length=640, hop_length=160)[0]
    np.testing.assert_allclose(curves["zero_crossing"][3:-3], expected[3:-3], atol=0.01)


def test_functionals_are_numpys(speech):
    values, names = features.describe(audio.trim(speech))
    row = features.functionals(speech)
    voiced = np.isfinite(values[:, names.index("f0_st")])
    time = np.arange(len(values)) / 100
    for i, name in list(enumerate(names))[128:]:
        curve = values[:, i].astype(float)
        there = np.isfinite(curve)
        expected = {
            "mean": np.nanmean(curve),
            "std": np.nanstd(curve),
            "min": np.nanmin(curve),
            "max": np.nanmax(curve),
            "voiced_mean": np.nanmean(curve[voiced]),
            "voiced_std": np.nanstd(curve[voiced]),
            "slope": np.polyfit(time[there], curve[there], 1)[0],
        }
        expected |= {f"p{p:02d}": np.nanpercentile(curve, p) for p in (5, 25, 50, 75, 95)}
        padded = np.pad(curve, 2, mode="edge")
        delta = 100 * sum(k * padded[2 + k : 2 + k + len(curve)] for k in (-2, -1, 1, 2)) / 10
        expected |= {
            "delta_abs": np.nanmean(np.abs(delta)),
            "delta_std": np.nanstd(delta),
            "delta_p05": np.nanpercentile(delta, 5),
            "delta_p95": np.nanpercentile(delta, 95),
        }
        scale = np.nanmax(np.abs(curve)) + 1e-3
        for functional, value in expected.items():
            tolerance = scale * (0.02 if "delta" in functional else 2e-3)
            assert row[f"{name}__{functional}"] == pytest.approx(value, rel=1e-3, abs=tolerance), (
                f"{name}__{functional}"
            )


DIFFICULT = {
    "speechlike": harmonic_tone(150),
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
    assert np.isfinite(list(row.values())).all()
    values = np.array(list(row.values()), np.float32)
    assert np.isfinite(values).all() and (np.abs(values) < 1e6).all()


def test_columns_are_named_with_descriptor_unit_and_functional():
    names = list(features.functionals(harmonic_tone(200, 0.3)))
    assert len(names) == len(set(names)) > 1000
    assert {
        "f0_st__p95",
        "jitter__mean",
        "hnr_db__voiced_mean",
        "mfcc00__mean",
        "centroid_hz__max",
        "duration_s",
    } <= set(names)


def test_harmonic_share_is_an_option():
    front_end = FrontEnd(harmonic=True)
    assert features.functionals(harmonic_tone(200, 0.5), front_end)["harmonic_share__mean"] > 0.9
    assert features.functionals(noise(0.5), front_end)["harmonic_share__mean"] < 0.8
    assert "harmonic_share__mean" not in features.functionals(harmonic_tone(200, 0.3))


def test_a_louder_recording_moves_level_features_only(speech):
    hissing = speech + noise(
        len(speech) / RATE, 0.1, 6
    )  # so that no bin falls below the floor of -100 dB
    quiet, loud = features.functionals(hissing), features.functionals(2 * hissing)
    assert loud["rms_db__mean"] - quiet["rms_db__mean"] == pytest.approx(6.02, abs=0.01)
    moved = {
        name for name in quiet if abs(loud[name] - quiet[name]) > 0.01 * abs(quiet[name]) + 0.01
    }
    assert moved and not sorted(name for name in moved if not name.startswith(LEVEL))


def test_trailing_silence_hardly_changes_anything(speech):
    before = features.functionals(speech)
    after = features.functionals(
        np.concatenate([np.zeros(RATE), speech, np.zeros(2 * RATE)]).astype(np.float32)
    )
    assert after["duration_s"] == pytest.approx(before["duration_s"], abs=0.1)
    for name in (
        "f0_st__p50",
        "rms_db__p50",
        "centroid_hz__p50",
        "mfcc01__mean",
        "voiced_share",
        "hnr_db__mean",
    ):
        assert after[name] == pytest.approx(before[name], rel=0.05), name


def test_first_seconds_alone_ignore_the_rest(speech):
    start = FrontEnd(seconds=0.2)
    changed = np.concatenate([speech[: RATE // 5], 0.5 * noise(1, seed=9)])
    assert features.functionals(speech, start) == features.functionals(changed, start)


def test_a_result_is_stored_and_a_changed_parameter_is_computed(tmp_path, monkeypatch):
    table = clips(a=write_audio(tmp_path / "a.wav"), b=write_audio(tmp_path / "b.wav"))
    load, calls = audio.load, []
    monkeypatch.setattr(audio, "load", lambda *given: calls.append(1) or load(*given))
    first = features.functionals_table(table, n_jobs=1)
    assert (
        len(calls) == 2
        and features.functionals_table(table[::-1], n_jobs=1).shape == first.shape
        and len(calls) == 2
    )
    for changed in (
        FrontEnd(n_mfcc=13),
        FrontEnd(hop_length=200),
        FrontEnd(trim_db=30.0),
        FrontEnd(seconds=0.2),
    ):
        features.functionals_table(table, changed, n_jobs=1)
    assert len(calls) == 10
    features.functionals_table(table.assign(audio_hash=["a", "changed"]), n_jobs=1)
    assert len(calls) == 11, "other audio is computed, the same audio is not"


def test_every_parameter_is_part_of_the_key():
    keys = set()
    for field in dataclasses.fields(FrontEnd):
        value = not field.default if isinstance(field.default, bool) else field.default + 1
        keys.add(
            features.recipe_hash(dataclasses.asdict(FrontEnd(**{field.name: value})), "source")
        )
    assert len(keys) == len(dataclasses.fields(FrontEnd))


def test_parallel_equals_serial(tmp_path, monkeypatch, private_work):
    table = clips(**{f"c{i}": write_audio(tmp_path / f"{i}.wav") for i in range(6)})
    serial = features.functionals_table(table, n_jobs=1)
    monkeypatch.setenv(
        "SER_WORK", str(private_work / "other")
    )  # processes that are started here find nothing stored
    parallel = features.functionals_table(
        table.assign(audio_hash=table["audio_hash"] + "2"), n_jobs=2
    )
    pd.testing.assert_frame_equal(
        parallel, serial, rtol=1e-4, atol=1e-4
    )  # threads of BLAS round differently
    assert list(serial["utterance_id"]) == list(table["utterance_id"])
    row = features.functionals(audio.load(table["path"][3]))
    np.testing.assert_allclose(serial.iloc[3, 1:].to_numpy(float), list(row.values()), rtol=1e-5)


def test_descriptors_table_holds_every_clips_curves_in_order(tmp_path):
    table = clips(
        long=write_audio(tmp_path / "long.wav", noise(0.8) + harmonic_tone(150, 0.8)),
        short=write_audio(tmp_path / "short.wav", harmonic_tone(200, 0.3)),
    )
    frames = features.descriptors_table(table, n_jobs=1)
    for row in table.itertuples():
        mine = frames[frames["utterance_id"] == row.utterance_id].drop(columns="utterance_id")
        curves, names = features.describe(audio.trim(audio.load(row.path)), features.SEQUENCE)
        kept = [not name.startswith("mel") for name in names]
        assert list(mine) == [name for name, keep in zip(names, kept, strict=True) if keep]
        assert np.array_equal(mine, curves[:, kept], equal_nan=True)
    assert (
        list(frames["utterance_id"].unique()) == list(table["utterance_id"])
        and len(frames) == len(mine) + 41
    )
    assert set(frames.columns[frames.isna().any()]) <= {"f0_st", "hnr_db", "jitter", "shimmer_db"}


def frames_of(**clips) -> pd.DataFrame:
    """A descriptors table of two columns from lists of pairs."""
    rows = [(f"toy/{name}", *values) for name, clip in clips.items() for values in clip]
    return pd.DataFrame(rows, columns=["utterance_id", "f0_st", "rms_db"]).astype(
        {"f0_st": "float32", "rms_db": "float32"}
    )


def test_unvoiced_frames_get_the_line_between_neighbours_of_their_own_clip():
    nan = np.nan
    frames = frames_of(
        a=[(nan, 1), (2, 1), (nan, 1), (6, 1), (nan, 1)],
        b=[(nan, 2), (nan, 2)],
        c=[(30, 3), (nan, 3)],
    )
    filled = features.fill_unvoiced(frames)
    assert filled["f0_st"].tolist() == [2, 2, 4, 6, 6, 0, 0, 30, 30]
    assert frames["f0_st"].isna().sum() == 6 and filled["rms_db"].equals(frames["rms_db"])


def test_sequences_are_padded_with_zeros_and_cut_at_the_end():
    frames = frames_of(a=[(1, 2), (3, 4), (5, 6)], b=[(7, 8)])
    assert features.sequences(frames, 2).tolist() == [[[1, 2], [3, 4]], [[7, 8], [0, 0]]]
    assert features.sequences(frames, 3, stride=2).tolist() == [
        [[2, 3], [5, 6], [0, 0]],
        [[7, 8], [0, 0], [0, 0]],
    ]


def test_segments_are_statistics_of_equal_parts():
    clip = [(i, 10 * i) for i in range(12)]
    found = features.segments(frames_of(a=clip, b=clip[:2]), 3)
    assert found.shape == (2, 3, 8)
    part = np.array(clip[4:8], float)
    np.testing.assert_allclose(
        found[0, 1], [*part.mean(0), *part.std(0), *part.min(0), *part.max(0)], rtol=1e-6
    )
    assert (
        np.isfinite(found[1]).all() and found[1, 0, 0] == 0 and found[1, 2, 0] == 1
    )  # two frames, three parts


def test_every_functional_has_a_family(speech):
    families = {features.family(column) for column in features.functionals(speech)}
    assert families == {*features._FAMILIES, "moving together"}


def test_speaker_normalisation_gives_mean_0_and_deviation_1():
    rng = np.random.default_rng(0)
    speakers = np.repeat(["a", "b", "c"], [30, 50, 1])
    values = rng.normal(np.where(speakers == "a", 100, -5)[:, None], 7, (81, 4)).astype(np.float32)
    values[:, 3] = 2
    found = features.normalise_by_speaker(values, speakers)
    for speaker in "ab":
        mine = found[speakers == speaker]
        np.testing.assert_allclose(mine[:, :3].mean(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(mine[:, :3].std(axis=0), 1, atol=1e-3)
    assert (found[:, 3] == 0).all() and (found[-1] == 0).all()


def test_eight_curves_are_columns_of_the_descriptors(tmp_path):
    table = clips(a=write_audio(tmp_path / "a.wav", harmonic_tone(150, 0.5)))
    frames = features.fill_unvoiced(features.descriptors_table(table, n_jobs=1))
    curves = features.eight_curves(frames)
    assert curves.shape == (len(frames), 9) and curves["utterance_id"].equals(
        frames["utterance_id"]
    )
    assert curves["rms_db"].equals(frames["rms_db"])
    np.testing.assert_allclose(
        curves["mfcc_mean"], frames[[f"mfcc{i:02d}" for i in range(13)]].mean(axis=1)
    )


def test_enrolment_with_every_clip_is_speaker_normalisation():
    values, speakers = np.random.default_rng(0).normal(5, 3, (40, 6)), np.repeat(["a", "b"], 20)
    mine = values[:20]
    usual = features.normalise_by_enrolment(mine, mine, np.zeros(6), np.ones(6), prior=0)
    assert np.allclose(usual, features.normalise_by_speaker(values, speakers)[:20], atol=1e-5)


def test_speaker_without_clips_is_the_usual_one_and_few_clips_count_little():
    rng = np.random.default_rng(0)
    mine, mean, std = rng.normal(5, 3, (20, 6)), np.full(6, 4.0), np.full(6, 2.0)
    nothing = features.normalise_by_enrolment(mine, mine[:0], mean, std)
    assert np.allclose(nothing, (mine - 4) / 2, atol=1e-5)
    one = features.normalise_by_enrolment(mine, mine[:1], mean, std, prior=4.0)
    assert np.isfinite(one).all() and np.abs(one - nothing).mean() < np.abs(nothing).mean()
    assert one.dtype == np.float32
