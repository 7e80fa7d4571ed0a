"""Time the functionals against one librosa call per descriptor and against openSMILE; or measure the parent's memory.

Every road begins at the file, with the project's decoder and its trimming of silence, so that all analyse the same
samples, and ends at one row of numbers. All use as many processes as there are cores. Nothing comes from the cache.

*One librosa call at a time* is what most notebooks do: each descriptor from the signal ``y``, with the same window, hop
and FFT, and so with one short-time Fourier transform per descriptor. What librosa lacks (harmonics-to-noise ratio,
jitter, shimmer, alpha ratio, Hammarberg index, spectral slopes) is left out of it, as are the functionals that need
voicing, the slope over time and the rhythm of pauses; all of which favours it. F0 comes from ``librosa.pyin``, the only
one with voicing, without which most of what is said of F0 can't be computed. A row with ``librosa.yin``, which has none and
so does not give the same descriptors, shows how much of the difference is pYIN's; it has no required ratio.
"""

import os
import resource
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import librosa
import numpy as np
import pandas as pd
import timing
from joblib.externals.loky import get_reusable_executor

from helpers import audio, features

FRONT_END = features.FrontEnd()
GROWTH_MB = 5  # MB by which the peaks may differ beside the table: what the allocator keeps varies by 1 or 2
REPETITIONS = (1, 20)


def ours(path: str) -> dict[str, float]:
    """Compute the project's functionals, past its cache."""
    return features.functionals(audio.load(path), FRONT_END)


def one_call_each(path: str, voicing: bool) -> np.ndarray:
    """Compute the descriptors one librosa call at a time, and their statistics; F0 by pYIN if `voicing`, else by YIN."""
    fe = FRONT_END
    y = audio.trim(audio.load(path), fe.trim_db)
    sr, hop = fe.sampling_rate, {"hop_length": fe.hop_length}
    stft = {"n_fft": fe.n_fft, "win_length": fe.win_length, **hop}
    frames = {"frame_length": fe.win_length, **hop}
    pitch = {"fmin": fe.f0_min, "fmax": fe.f0_max, "sr": sr, "frame_length": fe.n_fft, **hop}
    if voicing:
        f0, _, voiced_probability = librosa.pyin(y, fill_na=None, **pitch)
        f0 = np.stack([f0, voiced_probability])
    else:
        f0 = librosa.yin(y, **pitch)
    fine = librosa.power_to_db(librosa.feature.melspectrogram(y=y, sr=sr, n_mels=fe.n_mels, **stft))
    curves = np.vstack(
        [
            f0,
            librosa.power_to_db(
                librosa.feature.melspectrogram(y=y, sr=sr, n_mels=fe.n_bands, **stft)
            ),
            librosa.feature.mfcc(y=y, sr=sr, n_mfcc=fe.n_mfcc, n_mels=fe.n_mels, **stft),
            librosa.feature.chroma_stft(y=y, sr=sr, **stft),
            librosa.feature.spectral_contrast(
                y=y, sr=sr, fmin=100, **stft
            ),  # the default's highest band is above 8 kHz
            librosa.feature.spectral_centroid(y=y, sr=sr, **stft),
            librosa.feature.spectral_bandwidth(y=y, sr=sr, **stft),
            librosa.feature.spectral_rolloff(y=y, sr=sr, roll_percent=0.85, **stft),
            librosa.feature.spectral_rolloff(y=y, sr=sr, roll_percent=0.01, **stft),
            librosa.feature.spectral_flatness(y=y, **stft),
            librosa.onset.onset_strength(y=y, sr=sr, **stft),
            librosa.feature.zero_crossing_rate(y, **frames),
            librosa.feature.rms(y=y, **frames),
        ]
    )
    delta = librosa.feature.delta(curves, width=5, mode="nearest")
    return np.concatenate(
        [
            fine.mean(axis=1),
            curves.mean(axis=1),
            curves.std(axis=1),
            curves.min(axis=1),
            curves.max(axis=1),
            *np.percentile(curves, [5, 25, 50, 75, 95], axis=1),
            np.abs(delta).mean(axis=1),
            delta.std(axis=1),
            *np.percentile(delta, [5, 95], axis=1),
        ]
    )


def opensmile_road() -> Callable[[str], np.ndarray] | None:
    """Return a function that computes the 6,373 functionals of ComParE 2016, or None where openSMILE is not installed."""
    if (smile := timing.smile()) is None:
        return None
    return lambda path: smile(
        audio.trim(audio.load(path), FRONT_END.trim_db), FRONT_END.sampling_rate
    )


def compare_speed(corpus: str, n_clips: int, repeats: int) -> bool:
    """Print the speeds; return whether the required ratios are met."""
    clips = timing.read_clips(corpus, n_clips)
    roads = {
        "ours": ours,
        "one librosa call each, YIN": lambda path: one_call_each(path, voicing=False),
        "one librosa call each, pYIN": lambda path: one_call_each(path, voicing=True),
    }
    required = {"one librosa call each, pYIN": 5}
    if smile := opensmile_road():
        roads["openSMILE ComParE 2016"] = smile
        required["openSMILE ComParE 2016"] = 1
    seconds = timing.in_turns(
        {name: timing.over_clips(road, clips) for name, road in roads.items()}, repeats
    )
    met = timing.report(seconds, clips, required)
    if not smile:
        print("openSMILE: not measured: pip install --group benchmark")
    return met


def compare_memory(corpus: str, n_clips: int) -> bool:
    """Print the parent's peak memory for a corpus, and for one of 20 times the size; return whether it is flat."""
    print(f"{'clips':>8}{'peak, MB':>12}{'table, MB':>12}{'peak less table, MB':>22}")
    rest = []
    for repetitions in REPETITIONS:
        with (
            tempfile.TemporaryDirectory() as folder,
            # a fresh process, since a peak never falls again
            ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process,
        ):
            n, peak, table = process.submit(
                table_memory, corpus, n_clips, repetitions, folder
            ).result()
        rest.append(peak - table)
        print(f"{n:8}{peak:12.1f}{table:12.1f}{rest[-1]:22.1f}")
    flat = rest[1] - rest[0] <= GROWTH_MB
    print(
        f"\n{'flat' if flat else 'MISSED: it grows'}: {rest[1] - rest[0]:+.1f} MB beside the table, allowed {GROWTH_MB} MB"
    )
    return flat


def table_memory(
    corpus: str, n_clips: int, repetitions: int, work: str
) -> tuple[int, float, float]:
    """Compute the functionals of a corpus repeated so many times; return its clips, this process's peak, the table (MB).

    The copies have ids and audio hashes of their own, and the work folder is empty: each is computed.
    """
    os.environ["SER_WORK"] = work
    utterances = pd.concat([timing.read_clips(corpus, n_clips)] * repetitions, ignore_index=True)
    utterances["audio_hash"] = [f"copy {i}" for i in range(len(utterances))]
    utterances["utterance_id"] += " " + utterances["audio_hash"]
    table = features.functionals_table(utterances, FRONT_END)
    get_reusable_executor().shutdown()  # this process would wait five minutes for its idle workers to leave
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return len(table), peak, table.memory_usage(index=False, deep=True).sum() / 1e6


if __name__ == "__main__":
    options = timing.parser(__doc__.splitlines()[0])
    options.add_argument(
        "--memory", action="store_true", help="measure the parent's memory instead"
    )
    options = options.parse_args()
    if options.memory:
        met = compare_memory(options.corpus, options.clips)
    else:
        met = compare_speed(options.corpus, options.clips, options.repeats)
    sys.exit(not met)
