"""Acoustic features: low-level descriptors from one shared STFT, and functionals over them.

Conventions
-----------
*Low-level descriptors* are curves over time, one value each 10 ms, in an array of shape ``(n_frames, n_descriptors)``.
*Functionals* turn a clip's curves into one row of fixed length. A column is named ``<descriptor>_<unit>__<functional>``,
e.g. ``f0_st__p95``: the 95th percentile of the fundamental frequency, in semitones above 55 Hz.

Everything is computed from the same power spectrum, so that a clip is Fourier-transformed once, not once per
descriptor.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property

import numpy as np
import pandas as pd
import scipy.fft
from numpy.lib.stride_tricks import sliding_window_view

from helpers import audio
from helpers.cache import code_with_parts, fetch, recipe_hash
from helpers.parallel import over_clips

# of a part of a table; where columns are many, describing them takes as much memory as rows do, for each part anew
PART_BYTES, WIDE_PART_BYTES = 8_000_000, 28_000_000
_FLOOR = 1e-10  # power below which nothing is heard: -100 dB
_MEL_STEP = math.log(6.4) / 27  # from one mel to the next, above 1 kHz
_MOVING_TOGETHER = (
    *(f"mfcc{i:02d}" for i in range(13)),
    "rms_db",
    "f0_st",
)  # whose correlations are functionals
_FAMILIES = {  # the zeroth MFCC is the mean level of all bands
    "pitch": ("f0",),
    "voice quality": ("jitter", "shimmer", "hnr", "voicing", "harmonic"),
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

    The 40 ms window holds three periods of a voice down to 75 Hz, which the autocorrelation needs (Boersma 1993).
    """

    sampling_rate: int = audio.SAMPLING_RATE  # Hz
    win_length: int = 640  # samples: 40 ms
    hop_length: int = 160  # samples: 10 ms
    n_fft: int = (
        1024  # samples; zero-padded, which also keeps the autocorrelation from wrapping around
    )
    n_mels: int = 128  # fine mel bands: their means are features, MFCC come from them
    n_bands: int = 32  # coarse mel bands, followed over time
    n_mfcc: int = 20
    f0_min: float = 62.5  # Hz
    f0_max: float = 600.0  # Hz
    voicing: float = 0.5  # height of the autocorrelation peak from which a frame counts as voiced
    harmonic: bool = (
        False  # add the harmonic-percussive share (slow: a median filter over the spectrogram)
    )
    trim_db: float = audio.TRIM_DB  # dB
    seconds: float = (
        0.0  # s; analyse only this much from the start, untrimmed (0: all). For the 200 ms control
    )


SEQUENCE = FrontEnd(
    hop_length=320
)  # a frame every 20 ms: recurrent networks need not be fed each half-overlapping one


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
        F0, jitter and harmonics-to-noise ratio are NaN in unvoiced frames.
    names : list of str
        ``<descriptor>_<unit>``; dB are relative to full scale, ``st`` are semitones above 55 Hz, names without a unit
        are ratios.

    Notes
    -----
    Jitter and shimmer are taken from frame to frame (relative change of the period, and of the amplitude in dB, between
    neighbouring voiced frames), not from glottal pulse to pulse. F0 is the peak of the window-corrected
    autocorrelation, which is the inverse transform of the power spectrum at hand (P. Boersma, "Accurate short-term
    analysis of the fundamental frequency and the harmonics-to-noise ratio of a sampled sound", IFA Proc. 17, 1993).
    """
    return _described(_framewise(signal, front_end), front_end)


class Analysis:
    """A signal without its leading and trailing silence, and what can be read off its single frames: made once.

    Use it in place of the signal where functionals and sequences of the same clip are wanted: its spectrum is most of the work.

    Parameters
    ----------
    signal : np.ndarray [shape=(n_samples,)]
        Mono, at ``front_end.sampling_rate``.
    front_end
        Of the finest analysis that is wanted. Another may take every second, third, … of its frames; nothing else may differ.
    """

    def __init__(self, signal: np.ndarray, front_end: FrontEnd = FrontEnd()):
        self.signal, self.front_end = audio.trim(signal, front_end.trim_db), front_end

    @cached_property
    def _single(self) -> dict[str, np.ndarray]:
        return _framewise(self.signal, self.front_end)

    def describe(self, front_end: FrontEnd) -> tuple[np.ndarray, list[str]]:
        """Compute the descriptors as :func:`describe` does, to the last few bits."""
        step = front_end.hop_length // self.front_end.hop_length
        if replace(self.front_end, hop_length=self.front_end.hop_length * step) != front_end:
            raise ValueError(
                f"an analysis with {self.front_end} holds no frames of {front_end}: only the "
                "hop may differ, and be a multiple"
            )
        return _described({name: rows[::step] for name, rows in self._single.items()}, front_end)


def mel_spectrogram(signal: np.ndarray, front_end: FrontEnd = FrontEnd()) -> np.ndarray:
    """Return the fine mel bands alone, in dB re full scale, shape ``(n_frames, n_mels)``."""
    power, _ = _power_spectrum(signal, front_end)
    return _db(power @ _mel_filters(front_end, front_end.n_mels))


def mel_frequencies(n_bands: int, highest_hz: float = audio.SAMPLING_RATE / 2) -> np.ndarray:
    """Return the edges and centres of mel bands, in Hz: the lowest edge, the centres, the highest edge.

    A centre is the edge of both its neighbours. Slaney's scale: linear below 1 kHz, logarithmic above.

    References
    ----------
    M. Slaney, "Auditory toolbox", version 2, 1998.
    """
    highest = (
        3 * highest_hz / 200 if highest_hz < 1000 else 15 + np.log(highest_hz / 1000) / _MEL_STEP
    )
    mel = np.linspace(0, highest, n_bands + 2)
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(_MEL_STEP * (mel - 15)))


def functionals(
    signal: np.ndarray | Analysis, front_end: FrontEnd = FrontEnd()
) -> dict[str, float]:
    """Summarise a signal's descriptors over time, into named numbers.

    Per descriptor: mean, std, min, max, percentiles 5, 25, 50, 75, 95, slope (per second), mean and std over the voiced
    frames and over the loudest third; of its change over time (delta, per second): mean of the absolute value, std,
    percentiles 5 and 95. Between MFCC, energy and F0: their correlations over time. Per clip: duration, shares of voiced
    frames and of pauses, voiced stretches and loudness peaks per second, length of a voiced stretch, tuning, mean and std of
    the absolute samples, and the means of the fine mel bands.

    Parameters
    ----------
    signal, front_end
        As for :func:`describe`; leading and trailing silence is cut off first.

    Returns
    -------
    dict
        Column name to value; always the same columns in the same order, always finite.
    """
    if front_end.seconds:
        signal = signal[: round(front_end.seconds * front_end.sampling_rate)]
        curves, names = describe(signal, front_end)
    else:
        analysis = signal if isinstance(signal, Analysis) else Analysis(signal, front_end)
        signal, (curves, names) = analysis.signal, analysis.describe(front_end)
    fine, curves = curves[:, : front_end.n_mels], curves[:, front_end.n_mels :]
    fine_names, names = names[: front_end.n_mels], names[front_end.n_mels :]
    voiced = np.isfinite(curves[:, names.index("f0_st")])

    level = curves[:, names.index("rms_db")]
    loud = level >= np.percentile(level, 67)

    clip = _clip_numbers(signal, curves, names, voiced, front_end)
    over_time = _curve_functionals(curves, voiced, loud, front_end) | _delta_functionals(
        curves, front_end
    )
    values = np.concatenate(
        [fine.mean(axis=0), [*clip.values()], _correlations(curves, names), *over_time.values()]
    )
    columns = _column_names(tuple(fine_names), tuple(clip), tuple(names), tuple(over_time))
    return dict(
        zip(columns, np.nan_to_num(values, nan=0, posinf=0, neginf=0).tolist(), strict=True)
    )


def functionals_table(
    utterances: pd.DataFrame,
    front_end: FrontEnd = FrontEnd(),
    n_jobs: int = -1,
    progress: str = "functionals",
) -> pd.DataFrame:
    """Compute the functionals of every utterance, in parallel; what was computed before is not computed again.

    Parameters
    ----------
    utterances
        With ``utterance_id`` and ``tables.CLIP``: ``path``, ``start_s``, ``end_s`` (s, NaN for the whole file) and
        ``audio_hash``, which is what a stored result is found by. More columns only take memory.
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
    names, rows = _functional_rows(utterances, front_end, n_jobs, progress)
    return _as_table(utterances["utterance_id"], names, rows)


def functionals_parts(
    utterances: pd.DataFrame,
    front_end: FrontEnd = FrontEnd(),
    n_jobs: int = -1,
    progress: str = "functionals",
) -> Iterator[pd.DataFrame]:
    """Compute :func:`functionals_table` in parts of some megabytes, for ``tables.write_parts``: one at a time is in memory."""
    names, rows = _functional_rows(utterances, front_end, n_jobs, progress)
    n = max(WIDE_PART_BYTES // (4 * len(names)), 1)
    for i in range(0, len(utterances), n):
        yield _as_table(utterances["utterance_id"].iloc[i : i + n], names, rows)


def descriptors_table(
    utterances: pd.DataFrame, front_end: FrontEnd = SEQUENCE, n_jobs: int = -1
) -> pd.DataFrame:
    """Compute every utterance's descriptors as a sequence, for recurrent networks; in parallel.

    The fine mel bands are left out: the images of notebook 04 hold them.

    Parameters
    ----------
    utterances, front_end, n_jobs
        As for :func:`functionals_table`; leading and trailing silence is cut off.

    Returns
    -------
    pd.DataFrame
        One row per frame, in order: ``utterance_id`` and one float32 column per descriptor; NaN in unvoiced frames where
        :func:`describe` says so.
    """
    return pd.concat(descriptors_parts(utterances, front_end, n_jobs), ignore_index=True)


def descriptors_parts(
    utterances: pd.DataFrame, front_end: FrontEnd = SEQUENCE, n_jobs: int = -1
) -> Iterator[pd.DataFrame]:
    """Compute :func:`descriptors_table` in parts of some megabytes, for ``tables.write_parts``: one at a time is in memory."""
    jobs = ((u.path, u.start_s, u.end_s, front_end) for u in utterances.itertuples())
    names = describe(np.zeros(front_end.sampling_rate, np.float32), front_end)[1][
        front_end.n_mels :
    ]
    ids, curves, size = [], [], 0
    made = over_clips(_sequence, jobs, n_jobs, "descriptors", len(utterances))
    for utterance_id, own in zip(utterances["utterance_id"], made, strict=True):
        ids.append(utterance_id)
        curves.append(own)
        size += own.nbytes
        if size >= PART_BYTES:
            yield _frames(ids, curves, names)
            ids, curves, size = [], [], 0
    if ids:
        yield _frames(ids, curves, names)


def eight_curves(frames: pd.DataFrame) -> pd.DataFrame:
    """Return the eight curves that a known project showed to its one-dimensional networks.

    Zero crossings, energy, centroid, bandwidth, flatness, roll-off at 85 % and at 1 %, and the mean of 13 MFCC.

    Parameters
    ----------
    frames
        Schema ``descriptors``.

    Returns
    -------
    pd.DataFrame
        ``utterance_id`` and eight columns, rows as they were.
    """
    shape = [
        "zero_crossing",
        "rms_db",
        "centroid_hz",
        "bandwidth_hz",
        "flatness_db",
        "rolloff85_hz",
        "rolloff01_hz",
    ]
    return frames[["utterance_id", *shape]].assign(
        mfcc_mean=frames[[f"mfcc{i:02d}" for i in range(13)]].mean(axis=1)
    )


def fill_unvoiced(frames: pd.DataFrame) -> pd.DataFrame:
    """Replace NaN of a descriptors table by the line between the clip's neighbouring values; by 0 where a clip has none.

    Parameters
    ----------
    frames
        Schema ``descriptors``.
    """
    result = frames.copy()
    begins = _clip_begins(frames)
    for name in frames.columns[frames.isna().any()]:
        column = frames[name].to_numpy(copy=True)
        for clip in np.split(column, begins[1:]):  # views: what is filled in stays
            _fill(clip)
        result[name] = column
    return result


def sequences(frames: pd.DataFrame, n_steps: int, stride: int = 1) -> np.ndarray:
    """Turn a descriptors table into one array, padded with 0 or cut at the end to one length.

    Parameters
    ----------
    frames
        Schema ``descriptors``, without NaN (:func:`fill_unvoiced`).
    n_steps
        Length. Choose it without looking at test clips, e.g. as a round number of seconds.
    stride
        Frames that are averaged to one step; a last step of fewer frames is the mean of those.

    Returns
    -------
    np.ndarray [shape=(n_clips, n_steps, n_descriptors), float32]
        Clips in the order of the table.
    """
    return np.stack([_steps(clip, n_steps, stride) for clip in _clips(frames)])


def sequence(
    signal: np.ndarray | Analysis,
    n_steps: int,
    stride: int = 1,
    front_end: FrontEnd = SEQUENCE,
    trim: bool = True,
) -> np.ndarray:
    """Turn one signal into what :func:`sequences` makes of its rows in the descriptors table.

    Parameters
    ----------
    signal : np.ndarray [shape=(n_samples,)]
        Mono, at ``front_end.sampling_rate``.
    n_steps, stride, front_end
        As for :func:`sequences` and :func:`descriptors_table`.
    trim
        Cut off leading and trailing silence first.

    Returns
    -------
    np.ndarray [shape=(n_steps, n_descriptors), float32]
    """
    curves = _curves(signal, front_end, trim)
    for i in np.flatnonzero(~np.isfinite(curves).all(axis=0)):
        _fill(curves[:, i])  # a view: what is filled in stays
    return _steps(curves, n_steps, stride)


def segments(frames: pd.DataFrame, n_segments: int = 5) -> np.ndarray:
    """Cut each clip into equal parts and return each part's mean, standard deviation, minimum and maximum.

    Parameters
    ----------
    frames
        Schema ``descriptors``, without NaN (:func:`fill_unvoiced`).

    Returns
    -------
    np.ndarray [shape=(n_clips, n_segments, 4 * n_descriptors), float32]
        Clips in the order of the table. A clip of fewer frames than parts repeats some.
    """
    return np.stack([_segments(clip, n_segments) for clip in _clips(frames)])


def signal_segments(
    signal: np.ndarray | Analysis, n_segments: int = 5, front_end: FrontEnd = SEQUENCE
) -> np.ndarray:
    """Turn one signal into what :func:`segments` makes of its rows in the descriptors table.

    Parameters
    ----------
    signal : np.ndarray [shape=(n_samples,)]
        Mono, at ``front_end.sampling_rate``; leading and trailing silence is cut off first.

    Returns
    -------
    np.ndarray [shape=(n_segments, 4 * n_descriptors), float32]
    """
    curves = _curves(signal, front_end)
    for i in np.flatnonzero(~np.isfinite(curves).all(axis=0)):
        _fill(curves[:, i])  # a view: what is filled in stays
    return _segments(curves, n_segments)


def family(column: str) -> str:
    """Return the family that a descriptor or functional belongs to, e.g. "pitch" for ``f0_st__p95``."""
    if "__with_" in column:
        return "moving together"
    return next((name for name, starts in _FAMILIES.items() if column.startswith(starts)), "other")


def normalise_by_speaker(values: np.ndarray, speakers: np.ndarray) -> np.ndarray:
    """Standardise each column over all of a speaker's clips, to mean 0 and standard deviation 1.

    Takes away what is the speaker's (a high voice, a loud microphone). It needs the speaker's own unlabelled clips,
    and profits from their being balanced: results carry the variant *speaker-normalised*.

    Parameters
    ----------
    values : np.ndarray [shape=(n_utterances, n_features)]
    speakers : np.ndarray [shape=(n_utterances,)]
    """
    result = np.empty(values.shape, np.float32)
    for speaker in np.unique(speakers):
        mine = values[speakers == speaker].astype(np.float64)
        result[speakers == speaker] = (mine - mine.mean(axis=0)) / (mine.std(axis=0) + 1e-6)
    return result


def normalise_by_enrolment(
    values: np.ndarray,
    enrolment: np.ndarray,
    usual_mean: np.ndarray,
    usual_std: np.ndarray,
    prior: float = 4.0,
) -> np.ndarray:
    """Standardise a speaker's clips with what a few of them (the *enrolment* clips) say of the speaker.

    What :func:`normalise_by_speaker` is for people of whom little is known: a few clips give a poor mean and a worse standard
    deviation, so the training speakers' own count for `prior` clips more. No clips at all give the usual speaker.

    Parameters
    ----------
    values : np.ndarray [shape=(n_utterances, n_features)]
        Of one speaker.
    enrolment : np.ndarray [shape=(n_clips, n_features)]
        Of the same speaker; may be among `values`.
    usual_mean, usual_std : np.ndarray [shape=(n_features,)]
        Mean over the training speakers of a speaker's mean, and root mean square of a speaker's standard deviation.
    prior
        In clips; 0 leaves everything to the enrolment clips.
    """
    enrolment, n = enrolment.astype(np.float64), len(enrolment)
    mean = (enrolment.sum(axis=0) + prior * usual_mean) / (n + prior)
    spread = (np.square(enrolment - mean).sum(axis=0) + prior * np.square(usual_std)) / (n + prior)
    return ((values - mean) / (np.sqrt(spread) + 1e-6)).astype(np.float32)


def _clip_begins(frames: pd.DataFrame) -> np.ndarray:
    """Rows at which a clip begins; its rows follow one another."""
    ids = frames["utterance_id"].to_numpy(str)
    return np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))


def _clips(frames: pd.DataFrame) -> list[np.ndarray]:
    """The descriptors of each clip, shape ``(n_frames, n_descriptors)``."""
    return np.split(
        frames.drop(columns="utterance_id").to_numpy(np.float32), _clip_begins(frames)[1:]
    )


def _fill(curve: np.ndarray) -> None:
    """Draw the line between the neighbours of NaN, in place."""
    known = np.isfinite(curve)
    curve[~known] = (
        np.interp(np.flatnonzero(~known), np.flatnonzero(known), curve[known]) if known.any() else 0
    )


def _steps(clip: np.ndarray, n_steps: int, stride: int) -> np.ndarray:
    """Average each `stride` frames of a clip to a step; pad with 0 or cut at the end."""
    result = np.zeros((n_steps, clip.shape[1]), np.float32)
    begins = np.arange(0, len(clip), stride)
    steps = np.add.reduceat(clip, begins, axis=0) / np.diff([*begins, len(clip)])[:, None]
    result[: len(steps)] = steps[:n_steps]
    return result


def _segments(clip: np.ndarray, n_segments: int) -> np.ndarray:
    """Mean, standard deviation, minimum and maximum of equal parts of a clip."""
    edges = np.linspace(0, len(clip), n_segments + 1)
    parts = [
        clip[int(low) : max(math.ceil(high), int(low) + 1)]
        for low, high in itertools.pairwise(edges)
    ]
    return np.stack(
        [
            np.concatenate(
                [part.mean(axis=0), part.std(axis=0), part.min(axis=0), part.max(axis=0)]
            )
            for part in parts
        ]
    ).astype(np.float32)


def _curves(signal: np.ndarray | Analysis, front_end: FrontEnd, trim: bool = True) -> np.ndarray:
    """A signal's descriptors without the fine mel bands."""
    if trim and not isinstance(signal, Analysis):
        signal = Analysis(signal, front_end)
    return (signal.describe(front_end) if trim else describe(signal, front_end))[0][
        :, front_end.n_mels :
    ]


def _sequence(path, start_s, end_s, front_end):
    return _curves(audio.load(path, start_s, end_s, front_end.sampling_rate), front_end)


def _frames(ids: list[str], curves: list[np.ndarray], names: list[str]) -> pd.DataFrame:
    """Return clips' descriptors as one table, column by column in memory: who writes it need not copy them."""
    values = np.empty((len(names), sum(map(len, curves))), np.float32).T
    table = pd.DataFrame(np.concatenate(curves, out=values), columns=names, copy=False)
    table.insert(0, "utterance_id", np.repeat(np.array(ids, str), [len(own) for own in curves]))
    return table


def _functional_rows(
    utterances: pd.DataFrame, front_end: FrontEnd, n_jobs: int, progress: str
) -> tuple[list[str], Iterator]:
    """Return the names of the functionals, and the clips' values as they are computed.

    The names are those of any clip: sent along with each row they would be most of what travels.
    """
    recipe = recipe_hash(
        asdict(front_end), code_with_parts(functionals), code_with_parts(audio.load)
    )
    jobs = (
        (u.path, u.start_s, u.end_s, u.audio_hash, front_end, recipe)
        for u in utterances.itertuples()
    )
    names = list(functionals(np.zeros(front_end.sampling_rate, np.float32), front_end))
    return names, over_clips(_stored_functionals, jobs, n_jobs, progress, len(utterances))


def _as_table(ids: pd.Series, names: list[str], rows: Iterable[np.ndarray]) -> pd.DataFrame:
    """Take as many rows as there are ids, into one table."""
    values = np.empty((len(names), len(ids)), np.float32).T  # as for _frames
    for i, row in zip(range(len(ids)), rows, strict=False):
        values[i] = row
    table = pd.DataFrame(values, columns=names, copy=False)
    table.insert(0, "utterance_id", ids.to_numpy())
    return table


def _stored_functionals(path, start_s, end_s, audio_hash, front_end, recipe):
    def compute():
        row = functionals(audio.load(path, start_s, end_s, front_end.sampling_rate), front_end)
        return {"values": np.array(list(row.values()), np.float32)}

    return fetch("functionals", recipe_hash(audio_hash, recipe), compute)["values"]


# --- descriptors --------------------------------------------------------------------------------------------------


def _framewise(signal: np.ndarray, fe: FrontEnd) -> dict[str, np.ndarray]:
    """What is read off single frames, one row per frame: of every second row, other descriptors can be made than of all."""
    power, frames = _power_spectrum(signal, fe)
    magnitude = np.sqrt(power)
    fine = _db(power @ _mel_filters(fe, fe.n_mels))
    single = {
        "fine": fine,
        "energy": _energy(frames),
        "shape": _spectral_shape(power, magnitude, fe),
        "contrast": _contrast(magnitude, fe),
        "chroma": _chroma(power, fe),
        "mfcc": fine @ _dct_matrix(fe.n_mels, fe.n_mfcc),
        "bands": _db(power @ _mel_filters(fe, fe.n_bands)),
        "correlation": _autocorrelation(power, fe),
        "power": power.sum(axis=1),
        "peak_db": 20 * np.log10(np.abs(frames).max(axis=1) + _FLOOR),
    }
    return single | ({"magnitude": magnitude} if fe.harmonic else {})


def _described(single: dict[str, np.ndarray], fe: FrontEnd) -> tuple[np.ndarray, list[str]]:
    blocks = _blocks(single, fe)
    names = [name for _, columns in blocks for name in columns]
    return np.concatenate(
        [block.astype(np.float32, copy=False) for block, _ in blocks], axis=1
    ), names


def _blocks(single: dict[str, np.ndarray], fe: FrontEnd) -> list[tuple[np.ndarray, list[str]]]:
    """Descriptors in groups; the fine mel bands come first."""
    blocks = [
        (single["fine"], [f"mel{i:03d}_db" for i in range(fe.n_mels)]),
        (single["energy"], ["rms_db", "zero_crossing"]),
        (
            _voice(single["correlation"], single["power"], single["peak_db"], fe),
            ["f0_st", "voicing", "hnr_db", "jitter", "shimmer_db"],
        ),
        (
            single["shape"],
            [
                "centroid_hz",
                "bandwidth_hz",
                "rolloff85_hz",
                "rolloff01_hz",
                "flatness_db",
                "alpha_ratio_db",
                "hammarberg_db",
                "slope0500_db",
                "slope1500_db",
            ],
        ),
        (_flux(single["fine"]), ["flux_db"]),
        (single["contrast"], [f"contrast{i}_db" for i in range(7)]),
        (single["chroma"], [f"chroma{i:02d}" for i in range(12)]),
        (single["mfcc"], [f"mfcc{i:02d}" for i in range(fe.n_mfcc)]),
        (single["bands"], [f"band{i:02d}_db" for i in range(fe.n_bands)]),
    ]
    if fe.harmonic:
        import librosa  # late: with all that it imports it would be most of the wait for an answer

        harmonic, percussive = librosa.decompose.hpss(single["magnitude"].T)
        share = (harmonic**2).sum(axis=0) / ((harmonic**2 + percussive**2).sum(axis=0) + _FLOOR)
        blocks.append((share[:, None], ["harmonic_share"]))
    return blocks


def _power_spectrum(signal: np.ndarray, fe: FrontEnd) -> tuple[np.ndarray, np.ndarray]:
    """Return power (n_frames, n_fft // 2 + 1), scaled so that a full-scale sine peaks near 1, and the raw frames."""
    half = fe.win_length // 2
    padded = np.pad(signal.astype(np.float32), (half, half))
    frames = sliding_window_view(padded, fe.win_length)[:: fe.hop_length]
    window = _window(fe.win_length)
    windowed = np.zeros((len(frames), fe.n_fft), np.float32)
    np.multiply(frames, window, out=windowed[:, : fe.win_length])
    spectrum = scipy.fft.rfft(windowed, axis=1, overwrite_x=True)
    power = np.square(spectrum.real)
    power += np.square(spectrum.imag)
    power *= (2 / window.sum()) ** 2
    return power, frames


def _energy(frames: np.ndarray) -> np.ndarray:
    rms = 10 * np.log10(np.einsum("ij,ij->i", frames, frames) / frames.shape[1] + _FLOOR)
    negative = np.signbit(frames)
    return np.column_stack([rms, (negative[:, 1:] != negative[:, :-1]).mean(axis=1)])


def _autocorrelation(power: np.ndarray, fe: FrontEnd) -> np.ndarray:
    """Of each frame, up to the longest period: 1 at lag 0, corrected for the window."""
    n_lags = round(fe.sampling_rate / fe.f0_min) + 2
    # power is real and even, so its inverse transform is a cosine transform
    correlation = scipy.fft.dct(power, type=1, axis=1)[:, :n_lags]
    return correlation / (correlation[:, :1] + _FLOOR) / _window_correlation(fe)[:n_lags]


def _voice(
    correlation: np.ndarray, loud: np.ndarray, amplitude: np.ndarray, fe: FrontEnd
) -> np.ndarray:
    """F0 (semitones above 55 Hz), voicing strength (0–1), harmonics-to-noise ratio (dB), jitter, shimmer (dB)."""
    shortest, longest = round(fe.sampling_rate / fe.f0_max), round(fe.sampling_rate / fe.f0_min)
    index, peaked = _best_lags(correlation, shortest, longest)
    row = np.arange(len(index))
    left, middle, right = (correlation[row, index + k] for k in (-1, 0, 1))
    curvature = left - 2 * middle + right
    shift = np.where(curvature < -1e-6, 0.5 * (left - right) / np.minimum(curvature, -1e-6), 0)
    period = (index + np.clip(shift, -0.5, 0.5)) / fe.sampling_rate
    strength = np.clip(middle, 1e-4, 1 - 1e-4)
    voiced = (
        (strength > fe.voicing) & peaked & (loud > 1e-4 * loud.max())
    )  # within 40 dB of the loudest
    both = voiced[1:] & voiced[:-1]
    jitter = np.where(both, np.abs(np.diff(period)) / period[1:], np.nan)
    shimmer = np.where(both, np.abs(np.diff(amplitude)), np.nan)
    jitter, shimmer = (
        np.concatenate([[np.nan], x]) for x in (np.where(jitter < 0.2, jitter, np.nan), shimmer)
    )
    unvoiced = np.where(voiced, 0, np.nan)
    return np.column_stack(
        [
            12 * np.log2(1 / period / 55) + unvoiced,
            strength,
            10 * np.log10(strength / (1 - strength)) + unvoiced,
            jitter,
            shimmer,
        ]
    )


def _best_lags(
    correlation: np.ndarray, shortest: int, longest: int, n_candidates: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """Choose one period per frame (samples) among its highest peaks, so that the path over time jumps little (Viterbi).

    Short lags get a small bonus, so that one period is not mistaken for two (Boersma's octave cost); a jump costs in
    proportion to its size in octaves. Also returns whether the frame has a peak at all.
    """
    inner = correlation[:, shortest : longest + 1]
    is_peak = (inner >= correlation[:, shortest - 1 : longest]) & (
        inner > correlation[:, shortest + 1 : longest + 2]
    )
    octaves = np.log2(np.arange(shortest, longest + 1, dtype=np.float32))
    # the window's correction blows long lags up beyond 1: there they count as 1
    score = np.where(is_peak, np.minimum(inner, 1) - 0.05 * octaves, -2)
    lag = _smoothest_path(score.astype(np.float32), octaves, n_candidates, 0.3)
    return lag + shortest, is_peak[np.arange(len(lag)), lag]


def _smoothest_path(
    score: np.ndarray, octaves: np.ndarray, n_candidates: int, jump_cost: float
) -> np.ndarray:
    """Return one column per row, of the highest scores, so that the sum of scores less the cost of jumps is greatest.

    Viterbi's algorithm as a tree: of two neighbouring stretches of rows, the best ways through the one and through the other
    make the best ways through both. So a signal takes as many steps as its number of rows has binary digits.
    """
    n_rows, k = len(score), n_candidates
    chosen = _highest(score, k)
    gain = np.take_along_axis(score, chosen, axis=1).astype(np.float64).T
    height = octaves[chosen.T]
    # candidate of the row before, of this row, row; rows are last so that each step is a few sums of long rows
    ways = gain[None, :, 1:] - jump_cost * np.abs(height[:, None, :-1] - height[None, :, 1:])
    stay = np.where(np.eye(k, dtype=bool), 0, -np.inf)  # of no cost: fills a stretch up to a pair
    through = []
    while ways.shape[2] > 1:
        ways = np.concatenate([ways, stay[..., None]], axis=2) if ways.shape[2] % 2 else ways
        first, second = np.ascontiguousarray(ways[..., ::2]), np.ascontiguousarray(ways[..., 1::2])
        ways, meet = first[:, :1] + second[:1], np.zeros((k, k, first.shape[2]), np.int8)
        for middle in range(1, k):
            other = first[:, middle : middle + 1] + second[middle : middle + 1]
            np.copyto(meet, middle, where=other > ways)
            np.maximum(ways, other, out=ways)
        through.append(meet)
    total = gain[:, :1] + (ways[..., 0] if ways.size else stay)
    first, last = (np.array([place]) for place in np.unravel_index(total.argmax(), total.shape))
    for meet in reversed(through):
        n = meet.shape[2]
        first, last = first[:n], last[:n]  # without the one that filled up
        middle = meet[first, last, np.arange(n)]
        first, last = (np.stack(pair, axis=1).ravel() for pair in ((first, middle), (middle, last)))
    path = np.concatenate([first[:1], last])[:n_rows]
    return np.take_along_axis(chosen, path[:, None], axis=1)[:, 0]


def _highest(score: np.ndarray, k: int) -> np.ndarray:
    """Return the columns of each row's `k` highest scores, in their order; of equals, the first ones."""
    left = 1e-6 * np.arange(score.shape[1]) - score
    row, chosen = np.arange(len(score)), np.empty((len(score), k), np.intp)
    for i in range(k):  # for so few, faster than a partition
        chosen[:, i] = left.argmin(axis=1)
        left[row, chosen[:, i]] = np.inf
    return np.sort(chosen, axis=1)


def _spectral_shape(power: np.ndarray, magnitude: np.ndarray, fe: FrontEnd) -> np.ndarray:
    frequency = np.fft.rfftfreq(fe.n_fft, 1 / fe.sampling_rate).astype(np.float32)
    n = len(frequency)

    def band(low, high):
        return slice(*np.searchsorted(frequency, [low, high]))

    def inside(low, high):
        result = np.zeros(n, np.float32)
        result[band(low, high)] = 1
        return result

    def slope(low, high):  # dB per kHz
        x = frequency[band(low, high)] / 1000
        x = x - x.mean()
        return level[:, band(low, high)] @ (x / (x @ x))

    def peak(low, high):
        return 10 * np.log10(power[:, band(low, high)].max(axis=1) + _FLOOR)

    # what sums over bins goes through the spectrum once
    total, first, second = (
        magnitude @ np.column_stack([np.ones(n, np.float32), frequency, frequency**2])
    ).T
    mean, low, high = (
        power
        @ np.column_stack([np.full(n, 1 / n, np.float32), inside(50, 1000), inside(1000, 5000)])
    ).T
    centroid = first / (total + _FLOOR)
    spread = np.sqrt(np.maximum(second / (total + _FLOOR) - centroid**2, 0))
    rolloff = frequency[_bins_of_shares(magnitude, (0.85, 0.01))]
    level = 10 * np.log10(power + _FLOOR)
    flatness = level.mean(axis=1) - 10 * np.log10(mean + _FLOOR)
    return np.column_stack(
        [
            centroid,
            spread,
            rolloff,
            flatness,
            _db(low) - _db(high),
            peak(0, 2000) - peak(2000, 5000),
            slope(0, 500),
            slope(500, 1500),
        ]
    )


def _bins_of_shares(
    magnitude: np.ndarray, shares: tuple[float, ...], block: int = 27
) -> np.ndarray:
    """Return, per frame, the first bins up to which given shares of the magnitude lie, shape ``(n_frames, n_shares)``.

    Sums over blocks of bins first and looks into one block only, which saves the cumulative sum over all bins.
    """
    padded = (
        np.pad(magnitude, ((0, 0), (0, -magnitude.shape[1] % block)))
        if magnitude.shape[1] % block
        else magnitude
    )
    blocks = padded.reshape(len(magnitude), -1, block)
    sums = blocks.sum(axis=2)
    cumulated = np.cumsum(sums, axis=1)
    row, found = np.arange(len(magnitude)), []
    for share in shares:
        wanted = share * cumulated[:, -1:]
        chosen = (cumulated < wanted).sum(axis=1).clip(max=blocks.shape[1] - 1)
        before = cumulated[row, chosen] - sums[row, chosen]
        within = (before[:, None] + np.cumsum(blocks[row, chosen], axis=1) < wanted).sum(axis=1)
        found.append((chosen * block + within).clip(max=magnitude.shape[1] - 1))
    return np.stack(found, axis=1)


def _flux(fine: np.ndarray) -> np.ndarray:
    """Mean rise of the mel bands since the frame before, in dB."""
    rise = np.maximum(np.diff(fine, axis=0, prepend=fine[:1]), 0)
    return rise.mean(axis=1, keepdims=True)


def _contrast(magnitude: np.ndarray, fe: FrontEnd) -> np.ndarray:
    """Peak over valley in octave bands from 100 Hz (Jiang et al., "Music type classification …", ICME 2002)."""
    frequency = np.fft.rfftfreq(fe.n_fft, 1 / fe.sampling_rate)
    edges = np.searchsorted(frequency, [0, *(100 * 2.0 ** np.arange(6)), fe.sampling_rate])
    valleys, peaks = [], []
    for low, high in itertools.pairwise(edges):
        count = max(round(0.02 * (high - low)), 1)
        ordered = np.sort(magnitude[:, low:high], axis=1)  # faster than a partition at two places
        valleys.append(ordered[:, :count].mean(axis=1))
        peaks.append(ordered[:, -count:].mean(axis=1))
    return _db(np.stack(peaks, axis=1) ** 2) - _db(np.stack(valleys, axis=1) ** 2)


def _chroma(power: np.ndarray, fe: FrontEnd) -> np.ndarray:
    raw = power @ _chroma_filters(fe)
    return raw / (raw.max(axis=1, keepdims=True) + _FLOOR)


def _db(power: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(power, _FLOOR))


@cache
def _window(win_length: int) -> np.ndarray:
    return np.hanning(win_length + 1)[:-1].astype(np.float32)


@cache
def _window_correlation(fe: FrontEnd) -> np.ndarray:
    correlation = scipy.fft.irfft(
        np.abs(scipy.fft.rfft(_window(fe.win_length), fe.n_fft)) ** 2, fe.n_fft
    )
    return (correlation / correlation[0]).astype(np.float32)


@cache
def _mel_filters(fe: FrontEnd, n_mels: int) -> np.ndarray:
    """Triangles between neighbouring centres, 1 at the top: a band's value is its power, whatever its width."""
    edges = mel_frequencies(n_mels, fe.sampling_rate / 2)
    ramps = np.subtract.outer(np.fft.rfftfreq(fe.n_fft, 1 / fe.sampling_rate), edges) / np.diff(
        edges, append=np.inf
    )
    rising, falling = ramps[:, :-2], 1 - ramps[:, 1:-1]
    return np.maximum(np.minimum(rising, falling), 0).astype(np.float32)


@cache
def _chroma_filters(fe: FrontEnd) -> np.ndarray:
    """Share of each bin in each pitch class from C on: a bump around its pitch, at least a semitone wide (D. Ellis, 2007).

    All octaves together, those around the fifth count most.
    """
    pitch = 12 * np.log2(
        np.fft.rfftfreq(fe.n_fft, 1 / fe.sampling_rate)[1:] / 27.5
    )  # semitones above A0
    pitch = np.concatenate(
        [[pitch[0] - 18], pitch]
    )  # what lies in bin 0 has no pitch: far below, and half an octave off
    width = np.maximum(np.diff(pitch, append=pitch[-1] + 1), 1)
    away = np.subtract.outer(pitch, np.arange(3, 15)) + 6  # C is three semitones above A
    bumps = np.exp(-2 * ((away % 12 - 6) / width[:, None]) ** 2)
    bumps /= np.sqrt((bumps**2).sum(axis=1, keepdims=True))
    return (bumps * np.exp(-0.5 * ((pitch / 12 - 5) / 2) ** 2)[:, None]).astype(np.float32)


@cache
def _dct_matrix(n: int, k: int) -> np.ndarray:
    return scipy.fft.dct(np.eye(n), norm="ortho", axis=1)[:, :k].astype(np.float32)


# --- functionals --------------------------------------------------------------------------------------------------


def _curve_functionals(
    curves: np.ndarray, voiced: np.ndarray, loud: np.ndarray, fe: FrontEnd
) -> dict[str, np.ndarray]:
    """Statistics of each curve over its finite frames, shape (n_descriptors,) each."""
    present = np.isfinite(curves)
    n = present.sum(axis=0).clip(min=1)
    filled = np.where(present, curves, 0)
    mean = filled.sum(axis=0) / n
    centred = np.where(present, curves - mean, 0)
    ordered = np.sort(curves, axis=0)  # NaN go last
    time = np.arange(len(curves), dtype=np.float32)[:, None] * (fe.hop_length / fe.sampling_rate)
    time = np.where(present, time, 0) - (np.where(present, time, 0).sum(axis=0) / n)
    time = np.where(present, time, 0)
    result = {
        "mean": mean,
        "std": np.sqrt((centred**2).sum(axis=0) / n),
        "slope": (centred * time).sum(axis=0) / ((time**2).sum(axis=0) + 1e-6),
    }
    for name, share in [
        ("min", 0),
        ("p05", 0.05),
        ("p25", 0.25),
        ("p50", 0.5),
        ("p75", 0.75),
        ("p95", 0.95),
        ("max", 1),
    ]:
        result[name] = _ordered_percentile(ordered, n, share)
    for name, chosen in [("voiced", voiced), ("loud", loud)]:
        weight = (chosen[:, None] & present).astype(np.float32)
        n_chosen = weight.sum(axis=0).clip(min=1)
        chosen_mean = (filled * weight).sum(axis=0) / n_chosen
        result[f"{name}_mean"] = chosen_mean
        result[f"{name}_std"] = np.sqrt(
            ((filled - chosen_mean) ** 2 * weight).sum(axis=0) / n_chosen
        )
    return result


@cache
def _column_names(fine: tuple, clip: tuple, descriptors: tuple, over_time: tuple) -> list[str]:
    pairs = itertools.combinations(_MOVING_TOGETHER, 2)
    return [
        *(f"{name}__mean" for name in fine),
        *clip,
        *(f"{one}__with_{other}" for one, other in pairs),
        *(f"{name}__{functional}" for functional in over_time for name in descriptors),
    ]


def _correlations(curves: np.ndarray, names: list[str]) -> np.ndarray:
    """How the lower MFCC, energy and pitch move together: correlations over time, which no statistic of one curve holds."""
    values = curves[:, [names.index(name) for name in _MOVING_TOGETHER]]
    centred = np.where(np.isfinite(values), values - _finite_mean(values), 0)
    norm = np.sqrt((centred**2).sum(axis=0)) + 1e-6
    matrix = (centred / norm).T @ (centred / norm)
    return matrix[np.triu_indices(len(matrix), 1)]


def _finite_mean(values: np.ndarray) -> np.ndarray:
    """Mean of each column's finite values; 0 where there are none."""
    present = np.isfinite(values)
    return np.where(present, values, 0).sum(axis=0) / present.sum(axis=0).clip(min=1)


def _delta_functionals(curves: np.ndarray, fe: FrontEnd) -> dict[str, np.ndarray]:
    """Statistics of the change per second, by regression over ±2 frames."""
    padded = np.pad(curves, ((2, 2), (0, 0)), mode="edge")
    n = len(curves)
    delta = (2 * (padded[4 : n + 4] - padded[:n]) + padded[3 : n + 3] - padded[1 : n + 1]) / 10
    delta *= fe.sampling_rate / fe.hop_length
    present = np.isfinite(delta)
    count = present.sum(axis=0).clip(min=1)
    filled = np.where(present, delta, 0)
    mean = filled.sum(axis=0) / count
    ordered = np.sort(delta, axis=0)
    return {
        "delta_abs": np.abs(filled).sum(axis=0) / count,
        "delta_std": np.sqrt((np.where(present, delta - mean, 0) ** 2).sum(axis=0) / count),
        "delta_p05": _ordered_percentile(ordered, count, 0.05),
        "delta_p95": _ordered_percentile(ordered, count, 0.95),
    }


def _ordered_percentile(ordered: np.ndarray, n: np.ndarray, share: float) -> np.ndarray:
    """Linear interpolation between the neighbouring order statistics; the first `n` rows of a column count."""
    position = share * (n - 1)
    below = np.floor(position).astype(int)
    above = np.minimum(below + 1, n - 1)
    column = np.arange(ordered.shape[1])
    low, high = ordered[below, column], ordered[above, column]
    return low + (position - below) * (high - low)


def _clip_numbers(signal, curves, names, voiced, fe: FrontEnd) -> dict[str, float]:
    """Numbers of the whole clip: durations, rhythm of voicing and pauses, amplitude, tuning."""
    level = curves[:, names.index("rms_db")]
    pause = level < level.max() - 30
    starts = np.flatnonzero(np.diff(np.concatenate([[0], voiced.astype(int)])) == 1)
    seconds = max(len(signal) / fe.sampling_rate, 0.01)
    n_voiced = max(len(starts), 1)
    f0 = curves[voiced, names.index("f0_st")]
    peaks = (
        (level[1:-1] > level[:-2]) & (level[1:-1] >= level[2:]) & (level[1:-1] > level.max() - 20)
    )
    return {
        "duration_s": seconds,
        "voiced_share": voiced.mean(),
        "pause_share": pause.mean(),
        "voiced_stretches_per_s": len(starts) / seconds,
        "voiced_stretch_s": voiced.sum() * fe.hop_length / fe.sampling_rate / n_voiced,
        "loudness_peaks_per_s": peaks.sum() / seconds,
        "tuning": _tuning(f0),
        "amplitude__mean": np.abs(signal).mean(),
        "amplitude__std": np.abs(signal).std(),
    }


def _tuning(semitones: np.ndarray) -> float:
    """How far pitches lie from the semitones of the piano, mostly: -0.5 to 0.5; 0 without any."""
    counts, edges = np.histogram((semitones + 0.5) % 1 - 0.5, np.linspace(-0.5, 0.5, 101))
    return float(edges[counts.argmax()]) if len(semitones) else 0.0
