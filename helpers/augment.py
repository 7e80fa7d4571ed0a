"""Augmentation of training clips: noise, shift, pitch, and speed.

A changed copy of a clip is a further row to train on (``experiment.Dataset``, `copies`), in the
fold and the role of its parent. Images can also be shifted in training (``training.Network``).
"""

import random

import numpy as np
import soxr

from helpers import audio

VERSION = 2  # raise it when a change of this module changes results
# Name → class of audiomentations and what it may draw.
TRANSFORMS = {
    "noise": ("AddGaussianSNR", {"min_snr_db": 5.0, "max_snr_db": 30.0}),
    # what leaves the clip is lost, and the silence that enters is cut off again: a later begin or
    # an earlier end
    "shift": (
        "Shift",
        {"min_shift": -0.15, "max_shift": 0.15, "shift_unit": "fraction", "rollover": False},
    ),
    "pitch": ("PitchShift", {"min_semitones": -2.5, "max_semitones": 2.5}),
    "speed": ("TimeStretch", {"min_rate": 0.8, "max_rate": 1.25, "leave_length_unchanged": False}),
}


def augment(
    signal: np.ndarray, names: list[str] | tuple[str, ...] = tuple(TRANSFORMS), seed: int = 0
) -> np.ndarray:
    """Change a signal by one transform, drawn from several.

    Leading and trailing silence is cut off first, since noise would hide it.

    Parameters
    ----------
    signal : np.ndarray [shape=(n_samples,), float32]
        Mono, at ``audio.SAMPLING_RATE``.
    names
        Keys of ``TRANSFORMS``; a name that is given twice is drawn twice as often.
    seed
        With the signal itself, it decides what is drawn: another clip gets another draw. Global
        random states are left unchanged.

    Returns
    -------
    np.ndarray [shape=(n_samples,), float32]
        Full scale ±1 may be exceeded. "speed" changes the length.

    Raises
    ------
    ValueError
        If a name is unknown.
    """
    if not names or set(names) - {*TRANSFORMS}:
        raise ValueError(
            f"unknown transforms {sorted(set(names) - {*TRANSFORMS})}: choose of "
            f"{', '.join(TRANSFORMS)}"
        )
    import audiomentations  # late: importing it takes a second, and most notebooks do not augment

    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    own = int(audio.hash_samples(signal)[:8], 16) + seed
    random.seed(own)
    np.random.seed(own % 2**32)  # noqa: NPY002
    try:
        kind, options = TRANSFORMS[random.choice(names)]
        transform = getattr(audiomentations, kind)(p=1.0, **options)
        return transform(audio.trim(signal), audio.SAMPLING_RATE).astype(np.float32, copy=False)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def change_speed(signal: np.ndarray, speed: float) -> np.ndarray:
    """Play a recording slower or faster: pitch, formants and tempo change together.

    The result resembles another speaker. Models of whole clips can learn from more speakers than a
    corpus has when such copies are added (*speed perturbation*).

    Parameters
    ----------
    signal : np.ndarray [shape=(n_samples,), float32]
        Mono, at ``audio.SAMPLING_RATE``.
    speed
        1 leaves the signal unchanged; 1.1 is a tenth faster, and higher.

    Returns
    -------
    np.ndarray [shape=(n_samples / speed,), float32]

    References
    ----------
    T. Ko et al., "Audio augmentation for speech recognition", Interspeech 2015.
    """
    return soxr.resample(signal, audio.SAMPLING_RATE, audio.SAMPLING_RATE / speed)
