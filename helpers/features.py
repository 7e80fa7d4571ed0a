"""Acoustic features: low-level descriptors from one shared STFT, and functionals over them.

Conventions
-----------
*Low-level descriptors* (LLDs) follow a clip over time, one value every 10 ms, in an array of shape
``(n_frames, n_descriptors)``. *Functionals* summarise them in one row of fixed length. A column is
named ``<descriptor>_<unit>__<functional>``, e.g. ``f0_st__p95``: the 95th percentile of the
fundamental frequency, in semitones above 55 Hz.

All descriptors are computed from the same power spectrum, so a clip is Fourier-transformed once.
"""

import itertools
from dataclasses import dataclass
from functools import cache, partial

import librosa
import numpy as np
import pandas as pd
import scipy.fft

from helpers import audio

VERSION = 1  # raise it when a change of this module changes results
_FLOOR = 1e-10  # power that counts as silence: -100 dB
_CORRELATED = (*(f"mfcc{i:02d}" for i in range(13)), "rms_db", "f0_st")
_PERCENTILES = {"min": 0, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "max": 1}
_FAMILIES = {  # the zeroth MFCC is the mean level of all bands
    "pitch": ("f0",),
    "voice quality": ("jitter", "shimmer", "hnr", "voicing"),
    "energy": ("rms", "amplitude", "flux", "mfcc00"),
    "MFCC": ("mfcc",),
    "mel bands": ("band0", "band1", "band2", "band3", "mel"),
    "spectral shape": (
        "centroid",
        "bandwidth",
        "rolloff",
        "flatness",
        "alpha",
        "hammarberg",
        "slope",
        "contrast",
        "zero",
    ),
    "chroma": ("chroma", "tuning"),
    "rhythm": ("duration", "voiced_", "pause", "loudness"),
}


@dataclass(frozen=True)
class FrontEnd:
    """Parameters of the analysis; the defaults suit speech at 16 kHz.

    The 40 ms window holds three periods of a voice down to 75 Hz, which the autocorrelation needs
    (Boersma 1993).
    """

    sampling_rate: int = audio.SAMPLING_RATE  # Hz
    win_length: int = 640  # samples: 40 ms
    hop_length: int = 160  # samples: 10 ms
    n_fft: int = 1024  # samples; zero-padded, so that the autocorrelation does not wrap around
    n_mels: int = 128  # fine mel bands: their means are features, MFCC are computed from them
    n_bands: int = 32  # coarse mel bands, followed over time
    n_mfcc: int = 20
    f0_min: float = 62.5  # Hz
    f0_max: float = 600.0  # Hz
    voicing: float = 0.5  # height of the autocorrelation peak from which a frame counts as voiced
    trim_db: float = audio.TRIM_DB  # dB


SEQUENCE = FrontEnd(hop_length=320)  # every 20 ms: neighbouring windows still overlap by half


def describe(signal: np.ndarray, front_end: FrontEnd = FrontEnd()) -> tuple[np.ndarray, list[str]]:
    """Compute the low-level descriptors of a signal.

    Parameters
    ----------
    signal : np.ndarray [shape=(n_samples,)]
        Mono, at ``front_end.sampling_rate``.
    front_end
        Analysis parameters.

    Returns
    -------
    descriptors : np.ndarray [shape=(n_frames, n_descriptors), float32]
        F0, jitter, shimmer and harmonics-to-noise ratio are NaN in unvoiced frames. The fine mel
        bands come first.
    names : list of str
        ``<descriptor>_<unit>``; dB are relative to full scale, ``st`` are semitones above 55 Hz,
        names without a unit are ratios.

    Notes
    -----
    Jitter and shimmer are taken from frame to frame (relative change of the period, and of the
    amplitude in dB, between neighbouring voiced frames), not from glottal pulse to pulse. F0 is the
    peak of the window-corrected autocorrelation, which is the inverse transform of the power
    spectrum (P. Boersma, "Accurate short-term analysis of the fundamental frequency and the
    harmonics-to-noise ratio of a sampled sound", IFA Proc. 17, 1993).
    """
    power, frames = _power_spectrum(signal, front_end)
    magnitude = np.sqrt(power)
    fine = _db(power @ _mel_filters(front_end, front_end.n_mels))
    chroma = power @ _chroma_filters(front_end)
    groups = [
        fine,
        _energy(frames),
        _voice(power, frames, front_end),
        _spectral_shape(power, magnitude, front_end),
        np.maximum(np.diff(fine, axis=0, prepend=fine[:1]), 0).mean(axis=1, keepdims=True),  # flux
        _contrast(magnitude, front_end),
        chroma / (chroma.max(axis=1, keepdims=True) + _FLOOR),
        fine @ _dct_matrix(front_end.n_mels, front_end.n_mfcc),
        _db(power @ _mel_filters(front_end, front_end.n_bands)),
    ]
    return np.concatenate(groups, axis=1, dtype=np.float32), _descriptor_names(front_end)


def mel_spectrogram(signal: np.ndarray, front_end: FrontEnd = FrontEnd()) -> np.ndarray:
    """Return the fine mel bands alone, in dB re full scale, shape ``(n_frames, n_mels)``."""
    power, _ = _power_spectrum(signal, front_end)
    return _db(power @ _mel_filters(front_end, front_end.n_mels))


def functionals(signal: np.ndarray, front_end: FrontEnd = FrontEnd()) -> dict[str, float]:
    """Summarise a signal's descriptors over time, into named numbers.

    Per descriptor: mean, std, min, max, percentiles 5, 25, 50, 75, 95, slope (per second), mean and
    std over the voiced frames and over the loudest third; of its change over time (delta, per
    second): mean of the absolute value, std, percentiles 5 and 95. Between MFCC, energy and F0:
    their correlations over time. Per clip: duration, shares of voiced frames and of pauses, voiced
    stretches and loudness peaks per second, length of a voiced stretch, tuning, mean and std of the
    absolute samples, and the means of the fine mel bands.

    Parameters
    ----------
    signal, front_end
        As for :func:`describe`; leading and trailing silence is cut off first.

    Returns
    -------
    dict
        Column name to value; always the same columns in the same order, always finite.
    """
    signal = audio.trim(signal, front_end.trim_db)
    descriptors, names = describe(signal, front_end)
    correlated = descriptors[:, [names.index(name) for name in _CORRELATED]]
    level, f0 = correlated[:, -2], correlated[:, -1]
    fine, coarse = np.split(descriptors, [front_end.n_mels], axis=1)

    clip = _clip_numbers(signal, level, f0, front_end)
    over_time = {
        **_statistics(coarse, np.isfinite(f0), level, front_end),
        **_delta_statistics(coarse, front_end),
    }
    values = np.concatenate(
        [fine.mean(axis=0), [*clip.values()], _correlations(correlated), *over_time.values()]
    )
    columns = _column_names(front_end, tuple(clip), tuple(over_time))
    return dict(zip(columns, np.nan_to_num(values, posinf=0, neginf=0).tolist(), strict=True))


def functionals_table(
    utterances: pd.DataFrame,
    front_end: FrontEnd = FrontEnd(),
    n_jobs: int = -1,
    progress: str = "functionals",
) -> pd.DataFrame:
    """Compute the functionals of every utterance, in parallel; stored results are read.

    Parameters
    ----------
    utterances
        With ``utterance_id``, ``path``, ``start_s``, ``end_s`` (s, NaN for the
        whole file) and ``audio_hash``, by which stored results are found.
    front_end
        Analysis parameters.
    n_jobs
        Processes; -1 for all cores.
    progress
        Label of the progress bar.

    Returns
    -------
    pd.DataFrame
        ``utterance_id`` and one float32 column per functional, rows in the order of `utterances`.
    """
    names = columns("functionals", front_end)
    compute, key = partial(_functional_values, front_end), repr(front_end)
    rows = audio.map_signals(
        compute, utterances, "functionals", key, (VERSION,), n_jobs=n_jobs, progress=progress
    )
    values = np.array(list(rows), np.float32).reshape(-1, len(names))
    return pd.DataFrame(values, utterances["utterance_id"], names).reset_index()


def descriptors_table(
    utterances: pd.DataFrame, front_end: FrontEnd = SEQUENCE, n_jobs: int = -1
) -> pd.DataFrame:
    """Compute every utterance's descriptors, for recurrent networks; in parallel.

    Parameters
    ----------
    utterances, front_end, n_jobs
        As for :func:`functionals_table`.

    Returns
    -------
    pd.DataFrame
        One row per frame, in order: ``utterance_id`` and the float32 columns of
        :func:`clip_descriptors`, named as by :func:`describe`.
    """
    compute, key = partial(clip_descriptors, front_end=front_end), repr(front_end)
    clips = list(
        audio.map_signals(compute, utterances, "descriptors", key, (VERSION,), n_jobs=n_jobs)
    )
    ids = utterances["utterance_id"].repeat(list(map(len, clips)))
    return pd.DataFrame(np.concatenate(clips), ids, columns("sequence", front_end)).reset_index()


def clip_descriptors(
    signal: np.ndarray, front_end: FrontEnd = SEQUENCE, trim: bool = True
) -> np.ndarray:
    """Compute the descriptors of one clip as a sequence.

    The fine mel bands are left out: the images of notebook 04 hold them.

    Parameters
    ----------
    signal, front_end
        As for :func:`describe`.
    trim
        Cut off leading and trailing silence first.

    Returns
    -------
    np.ndarray [shape=(n_frames, n_descriptors), float32]
        With NaN in unvoiced frames.
    """
    signal = audio.trim(signal, front_end.trim_db) if trim else signal
    return describe(signal, front_end)[0][:, front_end.n_mels :]


def columns(kind: str, front_end: FrontEnd = SEQUENCE) -> list[str]:
    """Return the names of the "functionals", or of the descriptors of a "sequence"."""
    if kind == "functionals":
        return list(functionals(np.zeros(front_end.sampling_rate, np.float32), front_end))
    return _descriptor_names(front_end)[front_end.n_mels :]


def split_clips(frames: pd.DataFrame) -> tuple[pd.Series, list[np.ndarray]]:
    """Split a descriptors table into clips.

    Parameters
    ----------
    frames
        Schema ``descriptors``; the rows of a clip follow one another.

    Returns
    -------
    ids : pd.Series
        ``utterance_id`` of each clip, in the order of the table.
    clips : list of np.ndarray [shape=(n_frames, n_descriptors), float32]
    """
    ids = frames["utterance_id"]
    begins = np.flatnonzero(ids != ids.shift())
    clips = np.split(frames.drop(columns="utterance_id").to_numpy(np.float32), begins[1:])
    return ids.iloc[begins].reset_index(drop=True), clips


def fill_unvoiced(clip: np.ndarray) -> np.ndarray:
    """Replace NaN by the line between the neighbouring values of the descriptor.

    Parameters
    ----------
    clip : np.ndarray [shape=(n_frames, n_descriptors)]
        Of one clip. A descriptor without any value becomes 0.
    """
    filled = pd.DataFrame(clip).interpolate(limit_direction="both").fillna(0)
    return np.ascontiguousarray(filled)  # sums over rows depend on the order in memory


def sequence(clip: np.ndarray, n_steps: int, stride: int = 1) -> np.ndarray:
    """Give a clip's descriptors a fixed length, padded with 0 or cut at the end.

    Parameters
    ----------
    clip : np.ndarray [shape=(n_frames, n_descriptors)]
        From :func:`clip_descriptors` or :func:`split_clips`; unvoiced frames are filled
        (:func:`fill_unvoiced`).
    n_steps
        Length. Choose it without looking at test clips, e.g. as a round number of seconds.
    stride
        Frames that are averaged to one step; a last step of fewer frames is the mean of those.

    Returns
    -------
    np.ndarray [shape=(n_steps, n_descriptors), float32]
    """
    begins = np.arange(0, len(clip), stride)
    steps = np.add.reduceat(fill_unvoiced(clip), begins, axis=0)
    steps = (steps / np.diff([*begins, len(clip)])[:, None])[:n_steps]
    return np.pad(steps, ((0, n_steps - len(steps)), (0, 0))).astype(np.float32)


def segments(clip: np.ndarray, n_segments: int = 5) -> np.ndarray:
    """Cut a clip's descriptors into equal parts; return mean, std, minimum and maximum of each.

    Parameters
    ----------
    clip : np.ndarray [shape=(n_frames, n_descriptors)]
        As for :func:`sequence`. A clip of fewer frames than parts repeats some.
    n_segments
        Number of parts.

    Returns
    -------
    np.ndarray [shape=(n_segments, 4 * n_descriptors), float32]
    """
    clip, result = fill_unvoiced(clip), []
    for low, high in itertools.pairwise(np.linspace(0, len(clip), n_segments + 1)):
        part = clip[int(low) : max(int(np.ceil(high)), int(low) + 1)]
        result.append([part.mean(axis=0), part.std(axis=0), part.min(axis=0), part.max(axis=0)])
    return np.array(result, np.float32).reshape(n_segments, -1)


def family(column: str) -> str:
    """Return the family of a descriptor or functional, e.g. "pitch" for ``f0_st__p95``."""
    families = (name for name, starts in _FAMILIES.items() if column.startswith(starts))
    return "LLD correlations" if "__with_" in column else next(families, "other")


def normalise_by_speaker(values: np.ndarray, speakers: np.ndarray) -> np.ndarray:
    """Standardise each column over all clips of a speaker, to mean 0 and standard deviation 1.

    This removes what is the speaker's own (a high voice, a loud microphone). It needs unlabelled
    clips of the speaker and profits when these are balanced over emotions: results are marked as
    the variant *speaker-normalised*.

    Parameters
    ----------
    values : np.ndarray [shape=(n_utterances, ..., n_features)]
    speakers : np.ndarray [shape=(n_utterances,)]

    Returns
    -------
    np.ndarray [shape=(n_utterances, ..., n_features), float32]
    """
    result = np.empty(values.shape, np.float32)
    for speaker in np.unique(speakers):
        own = values[speakers == speaker].astype(np.float64)
        result[speakers == speaker] = (own - own.mean(axis=0)) / (own.std(axis=0) + 1e-6)
    return result


def normalise_by_enrolment(
    values: np.ndarray,
    enrolment: np.ndarray,
    average_mean: np.ndarray,
    average_std: np.ndarray,
    prior: float = 4.0,
) -> np.ndarray:
    """Standardise a speaker's clips with statistics of a few of them, the *enrolment* clips.

    It replaces :func:`normalise_by_speaker` for a person of whom few clips are known. A few clips
    give a poor mean and a worse standard deviation, so those of the average training speaker count
    as much as `prior` clips. Without enrolment clips the speaker is treated as the average speaker.

    Parameters
    ----------
    values : np.ndarray [shape=(n_utterances, n_features)]
        Of one speaker.
    enrolment : np.ndarray [shape=(n_clips, n_features)]
        Of the same speaker; may be among `values`.
    average_mean, average_std : np.ndarray [shape=(n_features,)]
        Mean over the training speakers of a speaker's mean, and root mean square of a speaker's
        standard deviation.
    prior
        In clips; with 0 only the enrolment clips count.

    Returns
    -------
    np.ndarray [shape=(n_utterances, n_features), float32]
    """
    enrolment, n = enrolment.astype(np.float64), len(enrolment)
    mean = (enrolment.sum(axis=0) + prior * average_mean) / (n + prior)
    squares = np.square(enrolment - mean).sum(axis=0) + prior * np.square(average_std)
    return ((values - mean) / (np.sqrt(squares / (n + prior)) + 1e-6)).astype(np.float32)


def _functional_values(front_end: FrontEnd, signal: np.ndarray) -> np.ndarray:
    return np.array(list(functionals(signal, front_end).values()), np.float32)


# --- descriptors ---------------------------------------------------------------------------------


@cache
def _descriptor_names(fe: FrontEnd) -> list[str]:
    return [
        *(f"mel{i:03d}_db" for i in range(fe.n_mels)),
        *("rms_db", "zero_crossing", "f0_st", "voicing", "hnr_db", "jitter", "shimmer_db"),
        *("centroid_hz", "bandwidth_hz", "rolloff85_hz", "rolloff01_hz", "flatness_db"),
        *("alpha_ratio_db", "hammarberg_db", "slope0500_db", "slope1500_db", "flux_db"),
        *(f"contrast{i}_db" for i in range(7)),
        *(f"chroma{i:02d}" for i in range(12)),
        *(f"mfcc{i:02d}" for i in range(fe.n_mfcc)),
        *(f"band{i:02d}_db" for i in range(fe.n_bands)),
    ]


def _power_spectrum(signal: np.ndarray, fe: FrontEnd) -> tuple[np.ndarray, np.ndarray]:
    """Return power (n_frames, n_fft // 2 + 1) and the raw frames (n_frames, win_length).

    Power is scaled so that a full-scale sine peaks near 1.
    """
    padded = np.pad(signal.astype(np.float32), fe.win_length // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, fe.win_length)[:: fe.hop_length]
    window = _window(fe.win_length)
    spectrum = scipy.fft.rfft(frames * window, fe.n_fft, axis=1)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    return power * (2 / window.sum()) ** 2, frames


def _energy(frames: np.ndarray) -> np.ndarray:
    rms = 10 * np.log10(np.einsum("ij,ij->i", frames, frames) / frames.shape[1] + _FLOOR)
    negative = np.signbit(frames)
    return np.column_stack([rms, (negative[:, 1:] != negative[:, :-1]).mean(axis=1)])


def _voice(power: np.ndarray, frames: np.ndarray, fe: FrontEnd) -> np.ndarray:
    """Return F0 (semitones above 55 Hz), voicing (0-1), HNR (dB), jitter and shimmer (dB)."""
    correlation = _autocorrelation(power, fe)
    lag, has_peak = _best_lags(correlation, fe)
    left, middle, right = (correlation[np.arange(len(lag)), lag + k] for k in (-1, 0, 1))
    curvature = left - 2 * middle + right
    shift = np.where(curvature < -1e-6, 0.5 * (left - right) / np.minimum(curvature, -1e-6), 0)
    period = (lag + np.clip(shift, -0.5, 0.5)) / fe.sampling_rate
    strength = np.clip(middle, 1e-4, 1 - 1e-4)
    energy = power.sum(axis=1)  # within 40 dB of the loudest frame
    voiced = (strength > fe.voicing) & has_peak & (energy > 1e-4 * energy.max())
    unvoiced = np.where(voiced, 0, np.nan)
    both = voiced[1:] & voiced[:-1]
    jitter = np.abs(np.diff(period)) / period[1:]
    shimmer = np.abs(np.diff(20 * np.log10(np.abs(frames).max(axis=1) + _FLOOR)))
    return np.column_stack(
        [
            12 * np.log2(1 / period / 55) + unvoiced,
            strength,
            10 * np.log10(strength / (1 - strength)) + unvoiced,
            np.append(np.nan, np.where(both & (jitter < 0.2), jitter, np.nan)),
            np.append(np.nan, np.where(both, shimmer, np.nan)),
        ]
    )


def _autocorrelation(power: np.ndarray, fe: FrontEnd) -> np.ndarray:
    """Of each frame, up to the longest period: 1 at lag 0, corrected for the window."""
    n_lags = round(fe.sampling_rate / fe.f0_min) + 2
    window_power = np.abs(scipy.fft.rfft(_window(fe.win_length), fe.n_fft)) ** 2
    of_window = scipy.fft.irfft(window_power, fe.n_fft)[:n_lags]
    # power is real and even, so its inverse transform is a cosine transform
    correlation = scipy.fft.dct(power, type=1, axis=1)[:, :n_lags]
    scaled = correlation / (correlation[:, :1] + _FLOOR)
    return scaled / (of_window / of_window[0]).astype(np.float32)


def _best_lags(correlation: np.ndarray, fe: FrontEnd) -> tuple[np.ndarray, np.ndarray]:
    """Choose one period per frame (samples), and return whether the frame has a peak at all.

    The choice is among the five highest peaks, so that the path over time jumps little. Short lags
    get a small bonus, so that two periods are not mistaken for one (Boersma's octave cost); a jump
    costs in proportion to its size in octaves.
    """
    shortest, longest = round(fe.sampling_rate / fe.f0_max), round(fe.sampling_rate / fe.f0_min)
    before, inner, after = (correlation[:, shortest + k : longest + k + 1] for k in (-1, 0, 1))
    is_peak = (inner >= before) & (inner > after)
    octaves = np.log2(np.arange(shortest, longest + 1, dtype=np.float32))
    # the window's correction raises long lags beyond 1: there they count as 1
    score = np.where(is_peak, np.minimum(inner, 1) - 0.05 * octaves, -2).astype(np.float32)
    lag = _smoothest_path(score, octaves, n_candidates=5, jump_cost=0.3)
    return lag + shortest, is_peak[np.arange(len(lag)), lag]


def _smoothest_path(
    score: np.ndarray, octaves: np.ndarray, n_candidates: int, jump_cost: float
) -> np.ndarray:
    """Return one column per row, so that the sum of scores less the cost of jumps is greatest.

    Viterbi's algorithm over the columns of the highest scores; of equal scores, the first.
    """
    order = np.argsort(1e-6 * np.arange(score.shape[1]) - score, axis=1, kind="stable")
    chosen = np.sort(order[:, :n_candidates], axis=1)
    gain = np.take_along_axis(score, chosen, axis=1).astype(np.float64)
    height = octaves[chosen]
    total, best_before = gain[0], np.zeros(chosen.shape, int)
    for i in range(1, len(score)):
        reached = total - jump_cost * np.abs(height[i][:, None] - height[i - 1])
        best_before[i] = reached.argmax(axis=1)
        total = reached.max(axis=1) + gain[i]
    path = [total.argmax()]
    for i in range(len(score) - 1, 0, -1):
        path.append(best_before[i, path[-1]])
    return chosen[np.arange(len(score)), path[::-1]]


def _spectral_shape(power: np.ndarray, magnitude: np.ndarray, fe: FrontEnd) -> np.ndarray:
    """Return the nine descriptors of the spectrum's shape, from its centroid to its slopes."""
    frequency = np.fft.rfftfreq(fe.n_fft, 1 / fe.sampling_rate).astype(np.float32)
    level = 10 * np.log10(power + _FLOOR)

    def band(low: float, high: float) -> slice:
        return slice(*np.searchsorted(frequency, [low, high]))

    def slope(low: float, high: float) -> np.ndarray:  # dB per kHz
        x = frequency[band(low, high)] / 1000
        x = x - x.mean()
        return level[:, band(low, high)] @ (x / (x @ x))

    def peak(low: float, high: float) -> np.ndarray:
        return 10 * np.log10(power[:, band(low, high)].max(axis=1) + _FLOOR)

    # what sums over bins goes through the spectrum once
    powers = np.column_stack([np.ones_like(frequency), frequency, frequency**2])
    total, first, second = (magnitude @ powers).T
    centroid = first / (total + _FLOOR)
    bandwidth = np.sqrt(np.maximum(second / (total + _FLOOR) - centroid**2, 0))
    weights = np.zeros((len(frequency), 3), np.float32)
    weights[:, 0] = 1 / len(frequency)
    weights[band(50, 1000), 1] = weights[band(1000, 5000), 2] = 1
    mean, low, high = (power @ weights).T
    return np.column_stack(
        [
            centroid,
            bandwidth,
            frequency[_rolloff_bins(magnitude, (0.85, 0.01))],
            level.mean(axis=1) - 10 * np.log10(mean + _FLOOR),  # flatness
            _db(low) - _db(high),  # alpha ratio
            peak(0, 2000) - peak(2000, 5000),  # Hammarberg index
            slope(0, 500),
            slope(500, 1500),
        ]
    )


def _rolloff_bins(magnitude: np.ndarray, shares: tuple[float, ...], block: int = 27) -> np.ndarray:
    """Return the first bins up to which given shares of the magnitude lie, (n_frames, n_shares).

    Sums blocks of bins first, which loses less in single precision than one sum over all bins.
    """
    n_frames, n_bins = magnitude.shape
    blocks = np.pad(magnitude, ((0, 0), (0, -n_bins % block))).reshape(n_frames, -1, block)
    sums = blocks.sum(axis=2)
    ends = np.cumsum(sums, axis=1)
    cumulated = (ends - sums)[:, :, None] + np.cumsum(blocks, axis=2)
    wanted = ends[:, -1:, None] * np.array(shares, np.float32)
    return (cumulated.reshape(n_frames, -1, 1) < wanted).sum(axis=1).clip(max=n_bins - 1)


def _contrast(magnitude: np.ndarray, fe: FrontEnd) -> np.ndarray:
    """Return peak over valley in octave bands from 100 Hz, in dB.

    D. Jiang et al., "Music type classification by spectral contrast feature", ICME 2002.
    """
    frequency = np.fft.rfftfreq(fe.n_fft, 1 / fe.sampling_rate)
    edges = np.searchsorted(frequency, [0, *(100 * 2.0 ** np.arange(6)), fe.sampling_rate])
    contrasts = []
    for low, high in itertools.pairwise(edges):
        count = max(round(0.02 * (high - low)), 1)
        ordered = np.sort(magnitude[:, low:high], axis=1)  # faster than a partition at two places
        valley, peak = ordered[:, :count].mean(axis=1), ordered[:, -count:].mean(axis=1)
        contrasts.append(_db(peak**2) - _db(valley**2))
    return np.stack(contrasts, axis=1)


def _db(power: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(power, _FLOOR))


@cache
def _window(win_length: int) -> np.ndarray:
    return np.hanning(win_length + 1)[:-1].astype(np.float32)


@cache
def _mel_filters(fe: FrontEnd, n_mels: int) -> np.ndarray:
    """Return triangles that are 1 at the top: the value of a band is its power, however wide."""
    return np.ascontiguousarray(
        librosa.filters.mel(sr=fe.sampling_rate, n_fft=fe.n_fft, n_mels=n_mels, norm=None).T
    )


@cache
def _chroma_filters(fe: FrontEnd) -> np.ndarray:
    """Return the share of each bin in each pitch class from C on (D. Ellis, 2007)."""
    return np.ascontiguousarray(librosa.filters.chroma(sr=fe.sampling_rate, n_fft=fe.n_fft).T)


@cache
def _dct_matrix(n: int, k: int) -> np.ndarray:
    return scipy.fft.dct(np.eye(n), norm="ortho", axis=1)[:, :k].astype(np.float32)


# --- functionals ---------------------------------------------------------------------------------


@cache
def _column_names(fe: FrontEnd, clip: tuple, over_time: tuple) -> list[str]:
    names = _descriptor_names(fe)
    return [
        *(f"{name}__mean" for name in names[: fe.n_mels]),
        *clip,
        *(f"{one}__with_{other}" for one, other in itertools.combinations(_CORRELATED, 2)),
        *(f"{name}__{kind}" for kind in over_time for name in names[fe.n_mels :]),
    ]


def _statistics(
    values: np.ndarray, voiced: np.ndarray, level: np.ndarray, fe: FrontEnd
) -> dict[str, np.ndarray]:
    """Statistics of each descriptor over its finite frames, shape (n_descriptors,) each."""
    n, filled, mean, centred = _moments(values)
    present = np.isfinite(values)
    seconds = np.arange(len(values), dtype=np.float32) * (fe.hop_length / fe.sampling_rate)
    *_, time = _moments(np.where(present, seconds[:, None], np.nan))
    result = {
        "mean": mean,
        "std": np.sqrt((centred**2).sum(axis=0) / n),
        "slope": (centred * time).sum(axis=0) / ((time**2).sum(axis=0) + 1e-6),
    }
    ordered = np.sort(values, axis=0)  # NaN go last
    for name, share in _PERCENTILES.items():
        result[name] = _percentile(ordered, n, share)
    for name, chosen in [("voiced", voiced), ("loud", level >= np.percentile(level, 67))]:
        weight = (chosen[:, None] & present).astype(np.float32)
        n_chosen = weight.sum(axis=0).clip(min=1)
        chosen_mean = (filled * weight).sum(axis=0) / n_chosen
        squares = ((filled - chosen_mean) ** 2 * weight).sum(axis=0)
        result |= {f"{name}_mean": chosen_mean, f"{name}_std": np.sqrt(squares / n_chosen)}
    return result


def _delta_statistics(values: np.ndarray, fe: FrontEnd) -> dict[str, np.ndarray]:
    """Statistics of the change per second, by regression over ±2 frames."""
    padded = np.pad(values, ((2, 2), (0, 0)), mode="edge")
    rise = (2 * (padded[4:] - padded[:-4]) + padded[3:-1] - padded[1:-3]) / 10  # per frame
    delta = rise * (fe.sampling_rate / fe.hop_length)
    n, filled, _, centred = _moments(delta)
    ordered = np.sort(delta, axis=0)
    return {
        "delta_abs": np.abs(filled).sum(axis=0) / n,
        "delta_std": np.sqrt((centred**2).sum(axis=0) / n),
        "delta_p05": _percentile(ordered, n, 0.05),
        "delta_p95": _percentile(ordered, n, 0.95),
    }


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return, per column, number of finite values, values, mean, and distances from the mean.

    Values and distances have the shape of `values`, with 0 in place of NaN.
    """
    present = np.isfinite(values)
    n = present.sum(axis=0).clip(min=1)
    filled = np.where(present, values, 0)
    mean = filled.sum(axis=0) / n
    return n, filled, mean, np.where(present, values - mean, 0)


def _percentile(ordered: np.ndarray, n: np.ndarray, share: float) -> np.ndarray:
    """Interpolate between order statistics; the first `n` rows of a column are its values."""
    position = share * (n - 1)
    below = np.floor(position).astype(int)
    column = np.arange(ordered.shape[1])
    low, high = ordered[below, column], ordered[np.minimum(below + 1, n - 1), column]
    return low + (position - below) * (high - low)


def _correlations(values: np.ndarray) -> np.ndarray:
    """Correlations over time of the lower MFCC, energy and pitch, for each pair of them."""
    *_, centred = _moments(values)
    norm = np.sqrt((centred**2).sum(axis=0)) + 1e-6
    matrix = (centred / norm).T @ (centred / norm)
    return matrix[np.triu_indices(len(matrix), 1)]


def _clip_numbers(
    signal: np.ndarray, level: np.ndarray, f0: np.ndarray, fe: FrontEnd
) -> dict[str, float]:
    """Numbers of the whole clip: duration, rhythm of voicing and pauses, amplitude, tuning."""
    seconds = max(len(signal) / fe.sampling_rate, 0.01)
    voiced = np.isfinite(f0)
    n_stretches = np.count_nonzero(np.diff(voiced.astype(int), prepend=0) == 1)
    loudest = level.max()
    is_peak = (level[1:-1] > level[:-2]) & (level[1:-1] >= level[2:]) & (level[1:-1] > loudest - 20)
    return {
        "duration_s": seconds,
        "voiced_share": voiced.mean(),
        "pause_share": (level < loudest - 30).mean(),
        "voiced_stretches_per_s": n_stretches / seconds,
        "voiced_stretch_s": voiced.sum() * fe.hop_length / fe.sampling_rate / max(n_stretches, 1),
        "loudness_peaks_per_s": is_peak.sum() / seconds,
        "tuning": _tuning(f0[voiced]),
        "amplitude__mean": np.abs(signal).mean(),
        "amplitude__std": np.abs(signal).std(),
    }


def _tuning(semitones: np.ndarray) -> float:
    """Return the most frequent distance from a semitone of the piano: -0.5 to 0.5; 0 without F0."""
    counts, edges = np.histogram((semitones + 0.5) % 1 - 0.5, np.linspace(-0.5, 0.5, 101))
    return float(edges[counts.argmax()]) if len(semitones) else 0.0
