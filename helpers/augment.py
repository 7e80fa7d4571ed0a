"""Augmentation: training clips as they might have been recorded on another day, by another microphone, over a telephone.

Two places to augment, for training rows only:

- on the *waveform* (:class:`Copies`): noise, shift, pitch, speed, gain, room, telephone. Each epoch hears another copy of each
  clip. A copy is drawn from a seed of its own, made of clip and epoch, so that it does not matter which fold asks for it, in
  which order, or after which interruption;
- on a *batch of inputs* (:class:`Augmentation`): shift, SpecAugment, mixup, drawn from the training's own generator, whose
  state is part of every checkpoint.
"""

import io
import itertools
import random
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import cache, cached_property, partial
from importlib.metadata import version

import numpy as np
import pandas as pd
import soundfile
import soxr
import torch

from helpers import audio
from helpers.cache import code, code_with_parts, fetch, recipe_hash, stored_at
from helpers.parallel import over_clips

# Name → class of audiomentations (or of this module) and what it may draw.
TRANSFORMS = {
    "noise": ("AddGaussianSNR", {"min_snr_db": 5.0, "max_snr_db": 30.0}),
    # what leaves the clip is lost, and what comes in is silence, which is cut off again: a later begin or an earlier end
    "shift": (
        "Shift",
        {"min_shift": -0.15, "max_shift": 0.15, "shift_unit": "fraction", "rollover": False},
    ),
    "pitch": ("PitchShift", {"min_semitones": -2.5, "max_semitones": 2.5}),
    "speed": ("TimeStretch", {"min_rate": 0.8, "max_rate": 1.25, "leave_length_unchanged": False}),
    "gain": ("Gain", {"min_gain_db": -12.0, "max_gain_db": 6.0}),
    # reflections up to the sixth; tracing rays too would draw from a state that can't be seeded, and take five times as long
    "room": (
        "RoomSimulator",
        {"max_order": 6, "use_ray_tracing": False, "leave_length_unchanged": True},
    ),
    "telephone": ("Telephone", {}),
}


def augment(
    signal: np.ndarray,
    names: Iterable[str] = tuple(TRANSFORMS),
    seed: int = 0,
    sampling_rate: int = audio.SAMPLING_RATE,
) -> tuple[np.ndarray, str]:
    """Change a signal by one transform, drawn from several; "none" leaves it as it is.

    Parameters
    ----------
    signal : np.ndarray [shape=(n_samples,), float32]
        Mono.
    names
        Keys of ``TRANSFORMS``, and "none".
    seed
        Decides which, and all that it draws. Global random states are left as they were.
    sampling_rate
        In Hz.

    Returns
    -------
    augmented : np.ndarray [shape=(n_samples,), float32]
        Full scale ±1 may be exceeded. "speed" changes the length.
    name
        What was drawn.

    Raises
    ------
    ValueError
        If a name is unknown.
    """
    with _seeded(seed):
        name = random.choice(_known(names))
        if name == "none":
            return signal, name
        changed = _transform(name)(signal, sampling_rate)
    if (
        name == "room"
    ):  # a simulated room is as loud as its geometry says; how loud the speaker was is to stay
        changed = changed * np.sqrt(np.square(signal).mean() / (np.square(changed).mean() + 1e-20))
    return changed.astype(np.float32, copy=False), name


def played(signal: np.ndarray, speed: float) -> np.ndarray:
    """Play a recording slower or faster: pitch, formants and tempo move together, much as if another person had said it.

    Use it to give models of whole clips more voices to learn from than a corpus has.

    Parameters
    ----------
    signal : np.ndarray [shape=(n_samples,), float32]
        Mono, at ``audio.SAMPLING_RATE``.
    speed
        1 leaves the signal as it is; 1.1 is a tenth faster, and higher.

    References
    ----------
    T. Ko et al., "Audio augmentation for speech recognition", Interspeech 2015.
    """
    return (
        signal
        if speed == 1
        else soxr.resample(signal, audio.SAMPLING_RATE, audio.SAMPLING_RATE / speed).astype(
            np.float32
        )
    )


@dataclass(frozen=True)
class Copies:
    """Augmented copies of a corpus as inputs of a network: another one of each clip for each epoch.

    Copies are made when they are first asked for, and kept; :meth:`make` makes them all beforehand, in parallel. A copy goes by
    its parent's id, so it is in the same role of the same fold: only training rows are ever asked for.

    Attributes
    ----------
    utterances
        With ``utterance_id``, ``path``, ``start_s``, ``end_s``, ``audio_hash``.
    represent
        Turns a signal into an input: a function of a helpers module (or a ``functools.partial`` of one) that takes a
        signal of shape ``(n_samples,)`` at 16 kHz, and ``trim=False`` for one without silence at its ends, and returns an
        array whose shape does not depend on the signal.
    names
        Transforms to draw one from; name one twice to draw it twice as often.
    seed
        Of all draws, with epoch and clip.
    """

    utterances: pd.DataFrame = field(compare=False)
    represent: Callable[..., np.ndarray]
    names: tuple[str, ...] = ("none", "noise", "shift", "pitch", "speed")
    seed: int = 0

    def __post_init__(self) -> None:
        _known(self.names)

    def recipe(self) -> str:
        """Return a hash of everything a copy depends on, besides its epoch."""
        return self._recipe

    @cached_property
    def _recipe(self) -> str:
        what = self.represent if isinstance(self.represent, partial) else partial(self.represent)
        settings = {
            k: asdict(v) if hasattr(v, "__dataclass_fields__") else v
            for k, v in what.keywords.items()
        }
        parts = {*code_with_parts(_copy), *code_with_parts(what.func), code(Copies._stored)}
        libraries = [
            version("audiomentations"),
            *([version("pyroomacoustics")] if "room" in self.names else []),
        ]
        clips = self.utterances[["utterance_id", "audio_hash"]].to_numpy(str).tolist()
        return recipe_hash(
            clips,
            what.func.__name__,
            what.args,
            settings,
            self.names,
            self.seed,
            libraries,
            [TRANSFORMS.get(name) for name in self.names],
            sorted(parts),
        )

    def make(self, n_epochs: int, n_jobs: int = -1) -> None:
        """Make the copies of the first epochs, in parallel; what is there already is not made again."""
        for number in range(n_epochs):
            if not stored_at("copies", recipe_hash(self.recipe(), number)).is_file():
                self._stored(number, n_jobs, f"copies {number + 1} of {n_epochs}")

    def epoch(self, number: int, ids: np.ndarray) -> np.ndarray:
        """Return what one epoch hears of some clips, shape ``(n_clips, ...)`` as `represent` returns it."""
        rows = pd.Index(self.utterances["utterance_id"]).get_indexer(list(ids))
        if (rows < 0).any():
            raise ValueError(
                f"{(rows < 0).sum()} of {len(rows)} training clips are not among the utterances that copies are "
                f"made of, e.g. {np.asarray(ids)[rows < 0][:5].tolist()}: give all of utterances.parquet"
            )
        return self._stored(number, 1, f"copies for epoch {number + 1}")["inputs"][rows]

    def table(self, number: int) -> pd.DataFrame:
        """Return one epoch's copies for the audit: ``utterance_id`` (of the copy), ``parent_id`` and ``transform``."""
        parents = self.utterances["utterance_id"].astype(str)
        return pd.DataFrame(
            {
                "utterance_id": parents + f"#{number + 1}",
                "parent_id": parents,
                "transform": self._stored(number, 1, f"copies for epoch {number + 1}")["transform"],
            }
        )

    def _stored(self, number: int, n_jobs: int, progress: str) -> dict[str, np.ndarray]:
        def compute() -> dict[str, np.ndarray]:
            jobs = (
                (
                    u.path,
                    u.start_s,
                    u.end_s,
                    self.represent,
                    self.names,
                    f"{self.seed}, {number}, {u.utterance_id}",
                )
                for u in self.utterances.itertuples()
            )
            inputs, drawn = zip(*over_clips(_copy, jobs, n_jobs, progress), strict=True)
            return {"inputs": np.stack(inputs), "transform": np.array(drawn)}

        return fetch("copies", recipe_hash(self.recipe(), number), compute)


@dataclass(frozen=True)
class Augmentation:
    """What is done to training inputs in each epoch, anew each time.

    Inputs are images (uint8, ``(n_clips, n_bands, n_frames)``) or sequences (``(n_clips, n_steps, n_features)``) with zeros for
    padding, or rows of features (``(n_clips, n_features)``). Padding stays padding and reaches nothing.

    Attributes
    ----------
    copies
        Waveform copies to train on in place of the clips themselves.
    shift
        Images are moved in time by up to so many pixels and in frequency by up to two: a voice is a little higher, a word a
        little later.
    time_mask, band_mask
        SpecAugment: in each clip, a stretch of up to so many frames (steps), but at most half of those that are heard, and of
        up to so many bands of an image, is set to the clip's mean, which says nothing. 0: not done.
    mixup
        α of the Beta distribution from which the share of another clip is drawn that is mixed in. Where one of two clips is
        padding, the other stays as it is; the loss takes of each emotion what is heard of it. 0: not done.

    References
    ----------
    D. S. Park et al., "SpecAugment: a simple data augmentation method for automatic speech recognition", Interspeech 2019.
    H. Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018.
    """

    copies: Copies | None = None
    shift: int = 0
    time_mask: int = 0
    band_mask: int = 0
    mixup: float = 0.0

    def recipe(self) -> dict:
        """Return everything a training result depends on: what is off is no part of it."""
        parts = {
            "shift": [_moved],
            "time_mask": [_masked, _hide, _heard],
            "band_mask": [_masked, _hide, _heard],
            "mixup": [_mixed, _heard],
        }
        on = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name != "copies" and getattr(self, f.name)
        }
        used = (
            {
                code(part)
                for part in itertools.chain([Augmentation.__call__], *(parts[name] for name in on))
            }
            if on
            else {}
        )
        return (
            on
            | ({"copies": self.copies.recipe()} if self.copies else {})
            | ({"code": sorted(used)} if on else {})
        )

    def __call__(
        self,
        batch: torch.Tensor,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Augment a batch of inputs.

        Returns
        -------
        batch
            Of the same shape.
        partners : int tensor (n_clips,), or None
            Which clip of the batch was mixed in, if any was.
        own : float tensor (n_clips,), or None
            How much of each mixture is the clip's own.

        Raises
        ------
        ValueError
            If a setting is on that these inputs are not made for.
        """
        if (self.shift or self.band_mask) and batch.dtype != torch.uint8:
            raise ValueError(
                f"shift and band_mask are for images (uint8); these inputs are {batch.dtype} of shape "
                f"{tuple(batch.shape)}. For sequences there are time_mask, mixup and copies."
            )
        if self.time_mask and batch.ndim != 3:
            raise ValueError(
                f"time_mask is for images and sequences; these inputs have the shape {tuple(batch.shape)}"
            )
        batch = _moved(batch, self.shift, generator) if self.shift else batch
        batch = (
            _masked(batch, self.time_mask, self.band_mask, generator)
            if self.time_mask or self.band_mask
            else batch
        )
        return _mixed(batch, self.mixup, generator) if self.mixup else (batch, None, None)


class Telephone:
    """A telephone call: 8 kHz, through libsndfile's own coder of a landline (µ-law) or of a mobile phone (GSM 06.10)."""

    def __call__(self, signal: np.ndarray, sampling_rate: int) -> np.ndarray:
        coded = io.BytesIO()
        soundfile.write(
            coded,
            soxr.resample(signal, sampling_rate, 8000).clip(-1, 1),
            8000,
            format="WAV",
            subtype=random.choice(["ULAW", "GSM610"]),
        )
        coded.seek(0)
        heard = soxr.resample(soundfile.read(coded, dtype="float32")[0], 8000, sampling_rate)
        return np.pad(heard, (0, max(len(signal) - len(heard), 0)))[
            : len(signal)
        ]  # GSM's blocks are of 20 ms


def _known(names: Iterable[str]) -> list[str]:
    names = list(names)
    if not names or (unknown := set(names) - {*TRANSFORMS, "none"}):
        raise ValueError(
            f"unknown transforms {sorted(unknown) if names else names}: choose of {', '.join(TRANSFORMS)}, none"
        )
    return names


@cache
def _transform(name: str) -> Callable[[np.ndarray, int], np.ndarray]:
    import audiomentations  # here, since it takes a second and most notebooks augment no waveforms

    kind, options = TRANSFORMS[name]
    return Telephone() if kind == "Telephone" else getattr(audiomentations, kind)(p=1.0, **options)


@contextmanager
def _seeded(seed: int):
    """Seed the global random states, which audiomentations draws from, and put them back as they were."""
    before, numpy_before = random.getstate(), np.random.get_state()  # noqa: NPY002 (it is the library that draws from it)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)  # noqa: NPY002


def _copy(path, start_s, end_s, represent, names, seed) -> tuple[np.ndarray, str]:
    """One copy of a clip, trimmed once like the clip itself: before the change, since noise would hide the silence."""
    signal = audio.load(path, start_s, end_s)
    changed, name = augment(audio.trim(signal), names, int(recipe_hash(seed)[:8], 16))
    if name == "none":
        return represent(signal), name
    return represent(
        audio.trim(changed, 100.0), trim=False
    ), name  # 100 dB: what a shift or a codec filled up with zeros


def _heard(batch: torch.Tensor) -> torch.Tensor:
    """Where a batch is no padding, in a shape that goes with it: all features of a step are, or none."""
    return (batch != 0).any(dim=1 if batch.dtype == torch.uint8 else -1, keepdim=True)


def _moved(batch: torch.Tensor, shift: int, generator: torch.Generator) -> torch.Tensor:
    """Move each image of a batch in time and frequency; what comes in at the edge is silence."""
    n, bands, frames = batch.shape
    dy = torch.randint(-2, 3, (n, 1, 1), generator=generator).to(batch.device)
    dx = torch.randint(-shift, shift + 1, (n, 1, 1), generator=generator).to(batch.device)
    y = torch.arange(bands, device=batch.device).view(1, -1, 1) + dy
    x = torch.arange(frames, device=batch.device).view(1, 1, -1) + dx
    inside = (y >= 0) & (y < bands) & (x >= 0) & (x < frames)
    index = y.clamp(0, bands - 1) * frames + x.clamp(0, frames - 1)
    return torch.where(inside, batch.flatten(1).gather(1, index.flatten(1)).view_as(batch), 0)


def _masked(batch: torch.Tensor, time: int, bands: int, generator: torch.Generator) -> torch.Tensor:
    """SpecAugment: a stretch of heard steps, and of an image's bands, becomes the clip's mean."""
    heard, image = _heard(batch), batch.dtype == torch.uint8
    dims = (1, 2) if image else 1  # features of a sequence have units of their own
    n_values = heard.sum(dims, keepdim=True) * (batch.shape[1] if image else 1)
    mean = (batch * heard).sum(dims, keepdim=True) / n_values.clamp(min=1)
    mean = mean.round().to(batch.dtype) if image else mean
    steps = heard[:, 0] if image else heard[:, :, 0]
    if time:
        hidden = _hide(steps.sum(1).cpu(), steps.shape[1], time, generator).to(batch.device)
        batch = torch.where((hidden[:, None] if image else hidden[:, :, None]) & heard, mean, batch)
    if bands:
        hidden = _hide(
            torch.full((len(batch),), batch.shape[1]), batch.shape[1], bands, generator
        ).to(batch.device)
        batch = torch.where(hidden[:, :, None] & heard, mean, batch)
    return batch


def _hide(
    lengths: torch.Tensor, width: int, longest: int, generator: torch.Generator
) -> torch.Tensor:
    """Draw a stretch within each clip's length, of at most its half; returns (n_clips, width)."""
    most = torch.minimum(torch.tensor(longest), lengths // 2)
    size = (torch.rand(len(lengths), generator=generator) * (most + 1)).long()
    begin = (torch.rand(len(lengths), generator=generator) * (lengths - size + 1)).long()
    place = torch.arange(width)
    return (place >= begin[:, None]) & (place < (begin + size)[:, None])


def _mixed(
    batch: torch.Tensor, alpha: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mix each clip with another one of the batch where both are heard."""
    partners = torch.randperm(len(batch), generator=generator).to(batch.device)
    share = np.random.default_rng(int(torch.randint(2**31, (), generator=generator))).beta(
        alpha, alpha
    )
    other, heard = batch[partners], _heard(batch)
    both, alone = heard & heard[partners], heard & ~heard[partners]
    mixture = torch.where(
        both, share * batch.float() + (1 - share) * other.float(), batch.float() + other.float()
    )
    steps = (heard | heard[partners]).flatten(1).sum(1).clamp(min=1)
    return mixture, partners, (share * both.flatten(1).sum(1) + alone.flatten(1).sum(1)) / steps
