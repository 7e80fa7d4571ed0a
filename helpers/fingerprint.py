"""Acoustic fingerprints: which clips are the same recording, whatever was done to the file?

A hash of the samples finds copies that are equal to the bit. A copy that was re-encoded, resampled, made louder or trimmed has
other samples and still sounds the same. Two steps find it:

1. a *fingerprint*, 16 bits every 16 ms: does the energy of neighbouring bands grow apart, or together? Bits hardly change with
   loudness, codec or bandwidth (J. Haitsma, T. Kalker, "A highly robust audio fingerprinting system", ISMIR 2002). Clips that
   share several groups of bits at the same distance are candidates; looking groups up in sorted tables
   (locality-sensitive hashing) costs n log n, not n²;
2. candidates are *listened to*: the correlation of the two waveforms, 250 to 3,300 Hz, at their best alignment. A copy
   correlates near 1. Somebody saying the same sentence once more in the same way does not, though the bits look alike.

What changes pitch or speed is not found, and clips with less than ``SHORTEST_S`` of sound are not compared: of those, only
copies to the bit are recognised (``audio_hash``).
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import soxr
from numpy.lib.stride_tricks import sliding_window_view

from helpers import audio
from helpers.cache import code, fetch, recipe_hash
from helpers.parallel import over_clips

RATE = 8_000  # Hz; a telephone's, so that copies of that bandwidth are recognised
WINDOW, HOP = (
    2048,
    128,
)  # samples at RATE: 256 ms, so that a shift of half a hop changes little, every 16 ms
N_BANDS, LOWEST_HZ, HIGHEST_HZ = 17, 200.0, 3400.0  # 17 bands have 16 neighbours
HEARD_DB = 35.0  # quieter frames, against the loudest one, are the room's and the codec's
APART = (0, 6, 12)  # frames whose bits are looked up together: 48 bits over 0.2 s
N_TABLES, VOTES = (
    12,
    2,
)  # choices of bits that are looked up, and equal groups at one distance that make a candidate
MAX_BIT_ERRORS = 0.36  # different clips are at 0.5, bad copies below 0.34
SHORTEST_S = 0.6  # of common sound; shorter stretches of two vowels can be alike by chance
SAME = (
    0.75  # correlation; on RAVDESS copies are above 0.9, the same sentence said again is below 0.6
)


def fingerprint(signal: np.ndarray) -> np.ndarray:
    """Return 16 bits for every 16 ms of a signal.

    Parameters
    ----------
    signal : np.ndarray [shape=(n_samples,), float32]
        At ``audio.SAMPLING_RATE``.

    Returns
    -------
    np.ndarray [shape=(n_frames,), int32]
        -1 where nothing is heard.
    """
    low = np.pad(soxr.resample(signal, audio.SAMPLING_RATE, RATE), WINDOW // 2)
    frames = sliding_window_view(low, WINDOW)[::HOP] * np.hanning(WINDOW).astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(frames, axis=1)))
    edges = np.searchsorted(
        np.fft.rfftfreq(WINDOW, 1 / RATE), np.geomspace(LOWEST_HZ, HIGHEST_HZ, N_BANDS + 1)
    )
    energy = np.add.reduceat(power[:, : edges[-1]], edges[:-1], axis=1)
    loudness = energy.sum(axis=1)
    between = np.diff(np.log(energy + 1e-12), axis=1)
    bits = between[2:] > between[:-2]
    heard = loudness[1:-1] > loudness.max(initial=0) * 10 ** (-HEARD_DB / 10)
    return np.where(heard, bits @ (1 << np.arange(N_BANDS - 1)), -1).astype(np.int32)


def same_recordings(utterances: pd.DataFrame, n_jobs: int = -1) -> pd.DataFrame:
    """Find the pairs of clips that are the same recording, or share a part of one.

    Use it to look for copies on two sides of a division that a hash does not show: re-encoded, resampled, louder, trimmed.

    Parameters
    ----------
    utterances
        With ``utterance_id``, ``path``, ``start_s`` and ``end_s`` (s, NaN for the whole file). Files that can't be read are
        left out: the quality report (``audio.measure_all``) names them.
    n_jobs
        Processes.

    Returns
    -------
    pd.DataFrame
        ``first``, ``second`` (ids), ``correlation`` (``SAME`` to 1), ``shift_s`` (how much later what they share begins in the
        first).
    """
    clips = list(zip(utterances["path"], utterances["start_s"], utterances["end_s"], strict=True))
    prints = list(over_clips(_stored_print, clips, n_jobs, "fingerprints", len(clips)))
    pairs = candidates(prints)
    heard = (
        over_clips(_compare, [(*clips[i], *clips[j]) for i, j in pairs], n_jobs, "listening")
        if len(pairs)
        else []
    )
    found = pd.DataFrame(heard, columns=["correlation", "shift_s"], dtype=float)
    ids = utterances["utterance_id"].to_numpy(str)
    found.insert(0, "first", ids[pairs[:, 0]])
    found.insert(1, "second", ids[pairs[:, 1]])
    return found[found["correlation"] >= SAME].sort_values(
        "correlation", ascending=False, ignore_index=True
    )


def candidates(prints: Iterable[np.ndarray], seed: int = 0) -> np.ndarray:
    """Find pairs of fingerprints that share groups of bits at the same distance in time.

    Parameters
    ----------
    prints
        From :func:`fingerprint`.
    seed
        Of the choice of bits.

    Returns
    -------
    np.ndarray [shape=(n_pairs, 2), int]
        Numbers of the fingerprints, the smaller one first. Some are no copies: listen to them.
    """
    prints = list(prints)
    groups = [_groups(bits) for bits in prints]
    counts = [len(at) for _, at in groups]
    if sum(counts) < 2:
        return np.empty((0, 2), int)
    words, at = (np.concatenate(parts) for parts in zip(*groups, strict=True))
    clip = np.repeat(np.arange(len(prints)), counts)
    n_bits = int(
        np.clip(np.log2(len(words)) + 3, 12, 32)
    )  # about as many chance hits per group, however many clips there are
    generator, votes = np.random.default_rng(seed), []
    for _ in range(N_TABLES):
        mask = np.sum(
            1
            << generator.choice(len(APART) * (N_BANDS - 1), n_bits, replace=False).astype(np.uint64)
        )
        key = words & np.uint64(mask)
        order = np.argsort(key, kind="stable")
        for gap in range(
            1, 9
        ):  # partners within a run of equal groups; long runs are hum, and tell nothing
            one, other = order[:-gap], order[gap:]
            equal = (key[one] == key[other]) & (clip[one] != clip[other])
            one, other = one[equal], other[equal]
            one, other = np.where(clip[one] < clip[other], [one, other], [other, one])
            votes.append(np.stack([clip[one], clip[other], at[one] - at[other]], axis=1))
    return _agreed(np.concatenate(votes), prints)


def _agreed(votes: np.ndarray, prints: list[np.ndarray]) -> np.ndarray:
    """Keep the pairs that have enough votes at one distance (or two neighbouring ones) and few bits that differ there."""
    counted, n = (
        np.unique(votes, axis=0, return_counts=True) if len(votes) else (votes, np.empty(0, int))
    )
    follows = np.zeros(len(counted), int)
    follows[:-1] = np.where((np.diff(counted, axis=0) == [0, 0, 1]).all(axis=1), n[1:], 0)
    found = {}
    for first, second, shift in counted[n + follows >= VOTES]:
        if (first, second) not in found and _bit_errors(
            prints[first], prints[second], shift
        ) <= MAX_BIT_ERRORS:
            found[first, second] = shift
    return np.array(sorted(found), int).reshape(-1, 2)


def _groups(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return groups of bits of three frames that are all heard, and where each begins."""
    n = max(len(bits) - APART[-1], 0)
    parts = np.stack([bits[apart : apart + n] for apart in APART]).astype(np.int64)
    heard = np.flatnonzero((parts >= 0).all(axis=0))
    shifts = (N_BANDS - 1) * np.arange(len(APART))[:, None]
    return (parts[:, heard] << shifts).sum(axis=0).astype(np.uint64), heard


def _bit_errors(first: np.ndarray, second: np.ndarray, shift: int) -> float:
    """Return the share of bits that differ where both are heard; the second is moved `shift` frames later."""
    one, other = first[max(shift, 0) :], second[max(-shift, 0) :]
    n = min(len(one), len(other))
    both = (one[:n] >= 0) & (other[:n] >= 0)
    if both.sum() < SHORTEST_S * RATE / HOP:
        return 1.0
    return float(np.bitwise_count(one[:n][both] ^ other[:n][both]).mean() / (N_BANDS - 1))


def _stored_print(path: str, start_s: float, end_s: float) -> np.ndarray:
    stat = Path(path).stat() if path and Path(path).is_file() else None
    constants = [RATE, WINDOW, HOP, N_BANDS, LOWEST_HZ, HIGHEST_HZ, HEARD_DB]
    key = recipe_hash(
        str(path),
        stat and stat.st_mtime_ns,
        stat and stat.st_size,
        start_s,
        end_s,
        code(fingerprint),
        constants,
    )
    return fetch("fingerprints", key, lambda: {"bits": fingerprint(_heard(path, start_s, end_s))})[
        "bits"
    ]


def _heard(path: str, start_s: float, end_s: float) -> np.ndarray:
    """Return a clip's signal; one sample of silence if it can't be read."""
    try:
        return audio.load(path, start_s, end_s)
    except (ValueError, OSError):
        return np.zeros(1, np.float32)


def _compare(*clips) -> tuple[float, float]:
    return correlation(_heard(*clips[:3]), _heard(*clips[3:]))


def correlation(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return the correlation of two signals at their best alignment, and how much later the common sound begins in the first.

    Parameters
    ----------
    first, second : np.ndarray [shape=(n_samples,), float32]
        At ``audio.SAMPLING_RATE``.

    Returns
    -------
    correlation
        0 to 1; the sign is left out, because a plug the wrong way round makes no other recording. They have to overlap by
        ``SHORTEST_S``, and by a quarter of the energy of each.
    shift_s
        In seconds.
    """
    from scipy.signal import (
        sosfiltfilt,
    )  # late: a second, which whoever reads no sound need not wait

    one, other = (sosfiltfilt(_telephone_band(), np.pad(signal, 400)) for signal in (first, second))
    n = 1 << (len(one) + len(other)).bit_length()
    product = np.fft.irfft(np.fft.rfft(one, n) * np.conj(np.fft.rfft(other, n)), n)
    shifts = np.arange(1 - len(other), len(one))
    begin, end = np.maximum(shifts, 0), np.minimum(shifts + len(other), len(one))
    energies = [np.concatenate([[0.0], np.cumsum(np.square(signal))]) for signal in (one, other)]
    common = [
        energies[0][end] - energies[0][begin],
        energies[1][end - shifts] - energies[1][begin - shifts],
    ]
    enough = end - begin >= SHORTEST_S * audio.SAMPLING_RATE
    for energy, part in zip(energies, common, strict=True):
        enough &= part > energy[-1] / 4
    alike = np.where(enough, np.abs(product[shifts]) / np.sqrt(common[0] * common[1] + 1e-20), 0)
    best = int(alike.argmax())
    return float(alike[best]), float(shifts[best] / audio.SAMPLING_RATE)


@cache
def _telephone_band() -> np.ndarray:
    from scipy.signal import butter

    return butter(4, [250, 3300], "bandpass", fs=audio.SAMPLING_RATE, output="sos")
