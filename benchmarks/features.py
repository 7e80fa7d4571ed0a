"""Time the functionals against one librosa call per descriptor and against openSMILE.

Every road begins at the file, with the project's decoder and its trimming of silence, so that
all analyse the same samples, and ends at one row of numbers. All use as many processes as there
are cores. Nothing comes from the cache.

*One librosa call at a time* is what most notebooks do: each descriptor from the signal ``y``,
with the same window, hop and FFT, and so with one short-time Fourier transform per descriptor.
What librosa lacks (harmonics-to-noise ratio, jitter, shimmer, alpha ratio, Hammarberg index,
spectral slopes) is left out of it, as are the functionals that need voicing, the slope over
time and the rhythm of pauses; all of which favours it. F0 comes from ``librosa.pyin``, the only
one with voicing, without which most of what is said of F0 can't be computed. A row with
``librosa.yin``, which has none and so does not give the same descriptors, shows how much of the
difference is pYIN's; it has no required ratio."""

import sys
from collections.abc import Callable

import librosa
import numpy as np
import timing

from helpers import audio, features

FRONT_END = features.FrontEnd()


def ours(path: str) -> dict[str, float]:
    """Compute the project's functionals, past its cache."""
    return features.functionals(audio.load(path), FRONT_END)


def one_call_each(path: str, voicing: bool) -> np.ndarray:
    """Compute descriptors one librosa call at a time; F0 by pYIN if `voicing`, else by YIN."""
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
    """Return a function that computes ComParE 2016; None where openSMILE is not installed."""
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
        required["openSMILE ComParE 2016"] = 3
    seconds = timing.in_turns(
        {name: timing.over_clips(road, clips) for name, road in roads.items()}, repeats
    )
    met = timing.report(seconds, clips, required)
    if not smile:
        print("openSMILE: not measured: pip install --group benchmark")
    return met


if __name__ == "__main__":
    options = timing.parser(__doc__.splitlines()[0]).parse_args()
    sys.exit(not compare_speed(options.corpus, options.clips, options.repeats))
