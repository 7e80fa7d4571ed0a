"""What models read: the one way from a signal to a model's input, in training and in prediction.

Apart from ``artifacts``, so that a process that only reads clips need not import torch.
"""

import functools
import json
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import numpy as np

from helpers import audio, features, spectrograms
from helpers.parallel import over_clips, side_by_side

LONGEST_INPUT = 10_000  # frames or steps; a minute has 6,000 frames of 10 ms


@dataclass(frozen=True)
class Input:
    """How a signal becomes the input of a model: by the function that made the training inputs.

    Attributes
    ----------
    kind
        "functionals", "sequence" (of descriptors), "segments" (their statistics) or "image" (mel-spectrogram).
    arguments
        Of the function; for functionals, ``columns``, if not all are used.
    levelled
        Whether the signal goes through ``audio.levelled`` first.
    """

    kind: str
    arguments: dict = field(default_factory=dict)
    levelled: bool = False

    def __post_init__(self) -> None:
        sizes = [
            self.arguments[name]
            for name in ("n_frames", "n_steps", "n_segments", "stride")
            if name in self.arguments
        ]
        if self.kind not in ("functionals", "sequence", "segments", "image") or not all(
            isinstance(size, int) and 1 <= size <= LONGEST_INPUT for size in sizes
        ):
            raise ValueError(
                f"its input is {self.kind!r} with {str(self.arguments)[:200]}: expected functionals, "
                f"sequence, segments or image, of at most {LONGEST_INPUT} steps"
            )

    @functools.cached_property
    def key(self) -> str:
        """Equal for equal inputs; made once, for names of two thousand columns take milliseconds to copy."""
        return json.dumps(asdict(self))

    def __call__(self, signal: np.ndarray) -> np.ndarray:
        return self.represent(audio.levelled(signal) if self.levelled else signal)

    def represent(
        self, signal: np.ndarray, analysis: features.Analysis | None = None
    ) -> np.ndarray:
        """Turn a signal that is levelled, if it has to be, into the input; its analysis spares most of the work."""
        heard = signal if analysis is None or not self.arguments.get("trim", True) else analysis
        if self.kind == "functionals":
            row = features.functionals(heard)
            return np.array([row[name] for name in self.arguments.get("columns", row)], np.float32)
        if self.kind == "image":
            return spectrograms.padded_image(signal, **self.arguments)
        return {"sequence": features.sequence, "segments": features.signal_segments}[self.kind](
            heard, **self.arguments
        )


class Clips:
    """Signals, and what models read of them: made once, however many models read the same.

    Parameters
    ----------
    signals : list of np.ndarray [shape=(n_samples,), float32]
        Mono, at ``audio.SAMPLING_RATE``.
    each
        How a function is called for each of some items: by default in threads.
    made
        What was read of them elsewhere, by the input's key.
    """

    def __init__(
        self,
        signals: list[np.ndarray],
        each: Callable[[Callable, list], list] = side_by_side,
        made: dict[str, np.ndarray] | None = None,
    ):
        self.signals, self.each, self.made = signals, each, made or {}
        self.embedded = (
            weakref.WeakKeyDictionary()
        )  # network → what it made of them before its head

    @functools.cached_property
    def levelled(self) -> list[np.ndarray]:
        """The signals as ``audio.levelled`` makes them."""
        return self.each(audio.levelled, self.signals)

    def prepare(self, wanted: list[Input]) -> None:
        """Make all that several models read, on all cores."""
        missing = {inputs.key: inputs for inputs in wanted if inputs.key not in self.made}.values()
        groups = [
            [
                inputs
                for inputs in missing
                if inputs.levelled == levelled and (inputs.kind == "image") == images
            ]
            for images in (False, True)
            for levelled in (False, True)
        ]  # images last: no core is left with a long one
        groups = [group for group in groups if group]
        rows = iter(
            self.each(
                lambda job: _represented(*job),
                [
                    (signal, group)
                    for group in groups
                    for signal in (self.levelled if group[0].levelled else self.signals)
                ],
            )
        )
        for group in groups:
            made = [next(rows) for _ in self.signals]
            self.made |= {
                inputs.key: np.stack(own)
                for inputs, own in zip(group, zip(*made, strict=True), strict=True)
            }

    def read(self, inputs: Input) -> np.ndarray:
        """Return what a model reads of the signals, shape ``(n_signals, ...)``."""
        if inputs.key not in self.made:
            self.prepare([inputs])
        return self.made[inputs.key]


def read_ahead(chunks: list[list[np.ndarray]], wanted: list[Input]) -> Iterator[Clips]:
    """Read many clips in processes, a chunk at a time, while the caller works with the chunk before.

    Use it for hundreds of clips: starting processes takes seconds, and then they are faster than threads, which wait for each
    other in the many small steps of an analysis.

    Parameters
    ----------
    chunks
        Signals, as for :class:`Clips`.
    wanted
        What is read of each.

    Yields
    ------
    Clips
        A chunk, read.
    """
    made = over_clips(
        _read_all,
        ((chunk, wanted) for chunk in chunks),
        progress="parts",
        total=len(chunks),
        together=1,
    )
    for chunk, own in zip(chunks, made, strict=True):
        yield Clips(chunk, made=own)


def _read_all(signals: list[np.ndarray], wanted: list[Input]) -> dict[str, np.ndarray]:
    clips = Clips(signals, lambda compute, items: [compute(item) for item in items])
    clips.prepare(wanted)
    return clips.made


def _represented(signal: np.ndarray, wanted: list[Input]) -> list[np.ndarray]:
    """Return what several inputs make of a signal."""
    analysis = features.Analysis(signal) if len(wanted) > 1 and wanted[0].kind != "image" else None
    return [inputs.represent(signal, analysis) for inputs in wanted]
