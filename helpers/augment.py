"""Augmentation of training clips: noise, shift, pitch and speed.

There are two places to augment, for training rows only:

- the *waveform* (:class:`Copies`, :func:`change_speed`). Copies are new in each epoch. The seed of
  a copy is made of clip and epoch, so it is the same for every fold, in any order of epochs and
  after an interruption;
- a *batch of images* (:func:`shift_images`), drawn from the training's own generator, whose state
  is part of every checkpoint.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import pandas as pd
import soxr
import torch

from helpers import audio, features, spectrograms
from helpers.cache import fetch, hash_of, map_clips

VERSION = 1  # raise it when a change of this module changes results
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
    signal: np.ndarray, names: Sequence[str] = tuple(TRANSFORMS), seed: int = 0
) -> tuple[np.ndarray, str]:
    """Change a signal by one transform, drawn from several; "none" leaves it unchanged.

    Parameters
    ----------
    signal : np.ndarray [shape=(n_samples,), float32]
        Mono, at ``audio.SAMPLING_RATE``.
    names
        Keys of ``TRANSFORMS``, and "none".
    seed
        Of the choice of the transform and of its random numbers. Global random states are left
        unchanged.

    Returns
    -------
    augmented : np.ndarray [shape=(n_samples,), float32]
        Full scale ±1 may be exceeded. "speed" changes the length.
    name
        The transform that was drawn.

    Raises
    ------
    ValueError
        If a name is unknown.
    """
    if not names or set(names) - {*TRANSFORMS, "none"}:
        raise ValueError(
            f"unknown transforms {sorted(set(names) - {*TRANSFORMS, 'none'})}: choose of "
            f"{', '.join(TRANSFORMS)}, none"
        )
    import audiomentations  # late: importing it takes a second, and most notebooks do not augment

    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        name = random.choice(names)
        if name == "none":
            return signal, name
        kind, options = TRANSFORMS[name]
        transform = getattr(audiomentations, kind)(p=1.0, **options)
        return transform(signal, audio.SAMPLING_RATE).astype(np.float32, copy=False), name
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


def shift_images(batch: torch.Tensor, shift: int, generator: torch.Generator) -> torch.Tensor:
    """Move each image of a batch in time and frequency; what enters at the edge is silence.

    Parameters
    ----------
    batch : uint8 tensor (n_clips, n_bands, n_frames)
    shift
        Largest shift in time, in pixels; in frequency it is two.
    generator
        Of the training, on the CPU.

    Returns
    -------
    uint8 tensor (n_clips, n_bands, n_frames)

    Raises
    ------
    ValueError
        If the inputs are not images.
    """
    if batch.dtype != torch.uint8:
        raise ValueError(
            f"shift is for images (uint8); these inputs are {batch.dtype} of shape "
            f"{tuple(batch.shape)}: set shift=0, sequences can be augmented by copies"
        )
    n, bands, frames = batch.shape
    ys = torch.randint(-2, 3, (n,), generator=generator) + 2
    xs = torch.randint(-shift, shift + 1, (n,), generator=generator) + shift
    padded = torch.nn.functional.pad(batch, (shift, shift, 2, 2))
    places = zip(padded, ys, xs, strict=True)
    return torch.stack([image[y : y + bands, x : x + frames] for image, y, x in places])


@dataclass(frozen=True)
class Copies:
    """Augmented copies of a corpus as inputs of a network: another copy of each clip in each epoch.

    Copies are made when they are first needed, and stored; :meth:`stored` makes those of an epoch
    beforehand, in parallel. A copy has its parent's id, so it is in the same role of the same fold,
    and only copies of training rows are used.

    Attributes
    ----------
    utterances
        With ``utterance_id``, ``path``, ``start_s``, ``end_s``, ``audio_hash``.
    reads
        Turns a signal into an input: an image, a sequence or segments.
    names
        Transforms to draw one from; a name that is given twice is drawn twice as often.
    seed
        Of all draws, with epoch and clip.
    """

    utterances: pd.DataFrame = field(compare=False)
    reads: "artifacts.Input"  # noqa: F821, artifacts uses this module
    names: tuple[str, ...] = ("none", "noise", "shift", "pitch", "speed")
    seed: int = 0

    def recipe(self) -> str:
        """Return a hash of everything a copy depends on, besides its epoch and the code."""
        clips = self.utterances[["utterance_id", "audio_hash"]].to_numpy(str)
        return hash_of(clips, asdict(self.reads), self.names, self.seed, TRANSFORMS)

    def epoch(self, number: int, ids: np.ndarray) -> np.ndarray:
        """Return one epoch's copies of some clips, shape ``(n_clips, ...)``.

        Raises
        ------
        ValueError
            If a clip is not among the utterances.
        """
        rows = pd.Index(self.utterances["utterance_id"]).get_indexer(list(ids))
        if (rows < 0).any():
            raise ValueError(
                f"{(rows < 0).sum()} of {len(rows)} training clips are not among the utterances "
                f"that copies are made of, e.g. {np.asarray(ids)[rows < 0][:5].tolist()}: give all "
                "of utterances.parquet"
            )
        return self.stored(number)["inputs"][rows]

    def stored(self, number: int, n_jobs: int = 1) -> dict[str, np.ndarray]:
        """Return one epoch's copies of all clips: ``inputs``, and the ``transform`` of each."""

        def make() -> dict[str, np.ndarray]:
            seed, how = f"{self.seed}, {number}, ", (self.reads, self.names)
            clips = self.utterances.itertuples()
            jobs = ((u.path, u.start_s, u.end_s, seed + u.utterance_id, *how) for u in clips)
            copies = map_clips(_copy, jobs, n_jobs=n_jobs, progress=f"copies, epoch {number + 1}")
            inputs, drawn = zip(*copies, strict=True)
            return {"inputs": np.stack(inputs), "transform": np.array(drawn)}

        versions = (audio.VERSION, features.VERSION, spectrograms.VERSION, VERSION)
        return fetch("copies", versions, hash_of(self.recipe(), number), make)


def _copy(
    path: str,
    start_s: float,
    end_s: float,
    seed: str,
    reads: "artifacts.Input",  # noqa: F821
    names: tuple,
) -> tuple[np.ndarray, str]:
    """Return a copy of a clip, and the transform that was drawn.

    The clip is trimmed before it is changed, since noise would hide the silence.
    """
    signal = audio.load(path, start_s, end_s)
    digest = hashlib.sha256(f"str:{len(seed)}:{seed!r}".encode()).hexdigest()
    changed, name = augment(audio.trim(signal), names, int(digest[:8], 16))
    if name == "none":
        return reads(signal), name
    # what a shift filled up with zeros is cut off: frames 100 dB below the loudest one
    untrimmed = replace(reads, arguments=reads.arguments | {"trim": False})
    return untrimmed(audio.trim(changed, 100.0)), name
