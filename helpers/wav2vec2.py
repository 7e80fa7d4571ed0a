"""Pretrained speech encoders: what each of their layers makes of a clip, and fine-tuning.

wav2vec 2.0, HuBERT, WavLM and Whisper's encoder, through transformers. They were trained on hundreds of hours of speech without
labels (Whisper: with transcripts), and turn samples into a row of numbers every 20 ms, anew in each layer.

Conventions
-----------
A *clip* is an int16 array of samples at 16 kHz, as :func:`prepare` returns it. Padding counts for nothing: a clip's
embedding is the same alone and beside longer ones.
"""

import functools
import importlib.util
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.utils import parametrize
from tqdm import tqdm

from helpers import audio, paths, pretrained
from helpers.cache import (
    code,
    code_with_parts,
    fetch,
    recipe_hash,
    stacked,
    stored_at,
    write_atomically,
)
from helpers.parallel import over_clips
from helpers.training import find_device, has_bfloat16

PADDING = np.iinfo(np.int16).min  # no sample of a clip has this value
BATCH_S = {
    "cuda": 48.0,
    "cpu": 5.0,
}  # audio in a batch, padding included; a clip keeps a CPU busy, and more costs memory
STEP = (
    audio.SAMPLING_RATE // 10
)  # batches are padded to a multiple: for every new length a CPU's kernels are made anew


def prepare(
    utterances: pd.DataFrame,
    detector: str = "auto",
    longest_s: float = audio.PIECE_S,
    overlap_s: float = audio.PIECE_OVERLAP_S,
    n_jobs: int = -1,
) -> tuple[pd.DataFrame, "Clips"]:
    """Take the silent zones out of every clip, and cut long ones into overlapping pieces.

    Parameters
    ----------
    utterances
        With ``utterance_id``, ``path``, ``start_s`` and ``end_s``.
    detector
        See ``audio.voice_activity``.
    longest_s, overlap_s
        See ``audio.pieces``.
    n_jobs
        Processes.

    Returns
    -------
    pieces : pd.DataFrame
        A row per piece: ``utterance_id`` (the clip's own, with ``#1``, ``#2``, … where it was cut), ``parent_id``,
        ``duration_s``, and of the whole clip ``before_s`` and ``after_s``, its duration with and without silence.
    clips : Clips
        In the same order, in a file under ``SER_WORK/cache``.
    """
    if (
        detector == "auto"
    ):  # here, so that what one detector found is never taken for what the other would
        detector = "silero" if importlib.util.find_spec("silero_vad") else "energy"
    rows = []

    def cut() -> Iterator[np.ndarray]:
        arguments = ((u.path, u.start_s, u.end_s, detector) for u in utterances.itertuples())
        found = over_clips(_speech, arguments, n_jobs, "voice activity", len(utterances))
        for parent, (before, speech) in zip(utterances["utterance_id"], found, strict=True):
            cuts = audio.pieces(len(speech), longest_s, overlap_s)
            for i, piece in enumerate(cuts, start=1):
                rows.append(
                    {
                        "utterance_id": f"{parent}#{i}" if len(cuts) > 1 else parent,
                        "parent_id": parent,
                        "duration_s": (piece.stop - piece.start) / audio.SAMPLING_RATE,
                        "before_s": before / audio.SAMPLING_RATE,
                        "after_s": len(speech) / audio.SAMPLING_RATE,
                    }
                )
                yield speech[piece]

    columns = ["utterance_id", "path", "start_s", "end_s"]
    key = recipe_hash(utterances[columns], detector, longest_s, overlap_s)
    clips = Clips.write(paths.work("cache") / "clips" / f"{key}.int16", cut())
    return pd.DataFrame(rows), clips


class Clips(Sequence):
    """Clips of different lengths in one file, each read when it is asked for: a corpus need not fit into memory.

    Parameters
    ----------
    path
        Samples of all clips one after the other, int16.
    lengths
        Of each clip, in samples.
    """

    def __init__(self, path: Path, lengths: Sequence[int]):
        self.path, self.ends = path, np.cumsum(lengths, dtype=np.int64)
        self.lengths = np.asarray(lengths, np.int64)

    @classmethod
    def write(cls, path: Path, clips: Iterable[np.ndarray]) -> "Clips":
        """Write clips as they are made."""
        lengths = []

        def write(handle) -> None:
            for clip in clips:
                handle.write(np.ascontiguousarray(clip, np.int16).data)
                lengths.append(len(clip))

        write_atomically(path, write)
        return cls(path, lengths)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> np.ndarray:
        """Return a clip, shape ``(n_samples,)``, int16."""
        n, end = (
            int(self.lengths[i]),
            int(self.ends[i]),
        )  # numpy refuses an index that is too large: that ends a loop
        return np.fromfile(self.path, np.int16, n, offset=2 * (end - n))


def pieces_of_folds(folds: pd.DataFrame, pieces: pd.DataFrame) -> pd.DataFrame:
    """Return the folds table of the pieces: each keeps its clip's emotion, speaker, fold and role."""
    parents = pieces[["utterance_id", "parent_id"]].rename(columns={"utterance_id": "piece"})
    lost = set(folds["utterance_id"]) - set(parents["parent_id"])
    if lost:
        raise ValueError(
            f"{len(lost)} utterances of the folds have no pieces, e.g. {sorted(lost)[:3]}: prepare them all"
        )
    rows = folds.merge(parents, left_on="utterance_id", right_on="parent_id")
    return rows.assign(utterance_id=rows["piece"])[folds.columns.tolist()]


def mean_over_pieces(predictions: pd.DataFrame, pieces: pd.DataFrame) -> pd.DataFrame:
    """Return predictions of clips: the mean of the probabilities of their pieces."""
    parents = pieces.set_index("utterance_id")["parent_id"]
    rows = predictions.assign(utterance_id=parents.loc[predictions["utterance_id"]].to_numpy())
    keys = [name for name in rows.columns if not name.startswith("p_")]
    return rows.groupby(keys, sort=False, as_index=False).mean()[predictions.columns.tolist()]


class SpeechEncoder(nn.Module):
    """A pretrained encoder in which padding counts for nothing.

    The first convolution of wav2vec 2.0 base, HuBERT base and WavLM base is followed by a normalisation over time, which sees
    padding; here it takes the clip's own frames alone. Everything after it is masked by transformers.

    Parameters
    ----------
    name, weights
        See ``pretrained.load``.

    Attributes
    ----------
    model
        The encoder of transformers.
    processor
        What the checkpoint was trained to be given: samples as they are, standardised, or Whisper's mel-spectrogram.
    n_layers, n_units
        Layers of numbers that come out (the input of the first layer counts), and numbers per frame.
    precision
        In which linear layers and convolutions compute; see :meth:`halve`.
    """

    precision = torch.float32

    def __init__(self, name: str, weights: str = ""):
        super().__init__()
        import transformers

        model = pretrained.load(name, weights)
        self.processor = transformers.AutoFeatureExtractor.from_pretrained(pretrained.locate(name))
        self.reads_mel = isinstance(self.processor, transformers.WhisperFeatureExtractor)
        self.model = model.get_encoder() if self.reads_mel else model
        if self.processor.sampling_rate != audio.SAMPLING_RATE:
            raise ValueError(
                f"{name} wants audio at {self.processor.sampling_rate} Hz, clips are at {audio.SAMPLING_RATE} Hz"
            )
        self.norm = None
        if not self.reads_mel:
            first = self.model.feature_extractor.conv_layers[0]
            if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
                self.norm = first.layer_norm = ClipNorm(first.layer_norm, first.conv)
        config = self.model.config
        self.n_layers, self.n_units = config.num_hidden_layers + 1, config.hidden_size

    def halve(self) -> "SpeechEncoder":
        """Compute linear layers and convolutions in half precision from now on, where the device is faster that way."""
        device = self.device
        if device.type == "cuda" or has_bfloat16(device.type):
            self.precision = torch.bfloat16 if has_bfloat16(device.type) else torch.float16
            for part in (
                self.modules()
            ):  # once and for all: autocast would convert every weight for every batch
                if isinstance(part, (nn.Linear, nn.Conv1d)) and not parametrize.is_parametrized(
                    part
                ):
                    part.to(self.precision)
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def n_read(self, clip: np.ndarray) -> int:
        """Return how many samples the encoder works through for a clip: its own and some padding, or what Whisper reads."""
        reach = self.processor.n_samples if self.reads_mel else -(-len(clip) // STEP) * STEP
        if len(clip) > reach:
            raise ValueError(
                f"this encoder reads {reach / audio.SAMPLING_RATE:g} s, a clip has "
                f"{len(clip) / audio.SAMPLING_RATE:.1f} s: cut clips into shorter pieces"
            )
        return reach

    def batch(self, clips: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return clips as one batch, as the checkpoint wants them, and how many samples each has."""
        signals = [clip.astype(np.float32) / 32768 for clip in clips]
        values = self.processor(
            signals,
            sampling_rate=audio.SAMPLING_RATE,
            return_tensors="pt",
            **(
                {}
                if self.reads_mel
                else {
                    "padding": "max_length",
                    "return_attention_mask": True,
                    "max_length": max(map(self.n_read, clips)),
                }
            ),
        )
        return values["input_features" if self.reads_mel else "input_values"], torch.tensor(
            [len(clip) for clip in clips]
        )

    def forward(
        self, inputs: torch.Tensor, n_samples: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return each layer's output, of shape ``(batch, n_frames, n_units)``, and which frames are the clip's own."""
        if self.reads_mel:  # always 30 s, by its training; 10 ms a mel frame, two of which make one
            states, n_frames = (
                self.model(inputs, output_hidden_states=True).hidden_states,
                -(-n_samples // 320),
            )
        else:
            if self.norm is not None:
                self.norm.n_samples = n_samples
            mask = torch.arange(inputs.shape[1], device=inputs.device) < n_samples[:, None]
            output = self.model(inputs, attention_mask=mask.long(), output_hidden_states=True)
            states = (
                *output.hidden_states[:-1],
                output.last_hidden_state,
            )  # in some, normalised only there
            n_frames = self.model._get_feat_extract_output_lengths(n_samples)
        return states, torch.arange(states[0].shape[1], device=inputs.device) < n_frames[:, None]


class ClipNorm(nn.Module):
    """Normalise each channel over a clip's own frames: ``GroupNorm`` with one group per channel, blind to padding."""

    def __init__(self, norm: nn.GroupNorm, conv: nn.Conv1d):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.window, self.stride = conv.kernel_size[0], conv.stride[0]
        self.n_samples: torch.Tensor | None = None  # set before each batch

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        n_frames = (self.n_samples - self.window) // self.stride + 1
        own = (torch.arange(maps.shape[2], device=maps.device) < n_frames[:, None])[:, None]
        count, values = n_frames[:, None, None], maps.float()
        mean = (values * own).sum(2, keepdim=True) / count
        variance = ((values - mean).square() * own).sum(2, keepdim=True) / count
        return (
            (values - mean) * torch.rsqrt(variance + self.eps) * self.weight[:, None]
            + self.bias[:, None]
        ).to(maps.dtype)


def embeddings(
    name: str, clips: Sequence[np.ndarray], device: str = "auto", batch_s: float | None = None
) -> np.ndarray:
    """Return the mean and the standard deviation over time of every layer, one forward pass per clip.

    Clips of similar length share a batch, so that little is padding. Each clip's embedding is stored, under a hash of its
    samples and of the weights. With ``SER_CLUSTER``, its workers compute them, each with a copy of the network.

    Parameters
    ----------
    name
        Of the encoder; see ``pretrained.locate``.
    clips
        From :func:`prepare`.
    device
        "auto" takes a GPU where there is one. Computed in half precision there, and on a CPU that has bfloat16.
    batch_s
        Seconds of audio in one batch; by default as in ``BATCH_S``. Lower it where memory is short.

    Returns
    -------
    np.ndarray [shape=(n_clips, n_layers, 2 * n_units), float32]
        Means first. The first layer is the encoder's input to its first transformer layer.
    """
    place = find_device(device)
    batch_s = batch_s or BATCH_S[place.type]
    encoder = SpeechEncoder(name).eval().to(place).halve()
    weights = pretrained.fingerprint(pretrained.locate(name))
    recipe = recipe_hash(
        weights, str(encoder.precision), code(SpeechEncoder), code(ClipNorm), code(pooled)
    )
    keys = [recipe_hash(recipe, clip) for clip in clips]
    missing = [i for i, key in enumerate(keys) if not stored_at("embeddings", key).is_file()]
    batches = by_length([encoder.n_read(clips[i]) for i in missing], batch_s)
    heard = ([clips[missing[row]] for row in rows] for rows in batches)
    if os.environ.get("SER_CLUSTER"):
        jobs = ((name, weights, device, str(encoder.precision), batch) for batch in heard)
        made = over_clips(
            _pooled_there,
            jobs,
            progress=f"embeddings, {name}, batches",
            total=len(batches),
            together=1,
        )
    else:
        made = (pooled(encoder, batch) for batch in heard)
    with tqdm(
        total=len(clips), initial=len(clips) - len(missing), desc=f"embeddings, {name}", unit="clip"
    ) as bar:
        for rows, values in zip(batches, made, strict=True):
            for row, value in zip(rows, values, strict=True):
                fetch("embeddings", keys[missing[row]], lambda value=value: {"pooled": value})
            bar.update(len(rows))
    # computed here is only what was stored and is damaged
    stored = (
        fetch("embeddings", key, lambda i=i: {"pooled": pooled(encoder, [clips[i]])[0]})["pooled"]
        for i, key in enumerate(keys)
    )
    return stacked("embeddings", recipe_hash(keys), stored, len(keys))


def by_length(lengths: Sequence[int], batch_s: float) -> list[np.ndarray]:
    """Return batches of row numbers, rows of similar length together, at most `batch_s` seconds each with padding."""
    batches, rows = [], []
    for row in np.argsort(lengths, kind="stable")[
        ::-1
    ]:  # the longest first: if memory is short, it shows at once
        if rows and lengths[rows[0]] * (len(rows) + 1) > batch_s * audio.SAMPLING_RATE:
            batches, rows = [*batches, np.array(rows)], []
        rows.append(row)
    return [*batches, np.array(rows)] if rows else []


@torch.inference_mode()
def pooled(encoder: SpeechEncoder, clips: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean and the standard deviation of each layer over the clips' own frames, in one forward pass."""
    inputs, n_samples = (values.to(encoder.device) for values in encoder.batch(clips))
    half = encoder.precision != torch.float32
    with torch.autocast(encoder.device.type, encoder.precision if half else None, enabled=half):
        states, own = encoder(inputs, n_samples)
    own = own[:, :, None].float()
    count, layers = own.sum(1), []
    for state in states:
        mean = (state.float() * own).sum(1) / count
        deviation = (((state.float() - mean[:, None]) * own).square().sum(1) / count).sqrt()
        layers.append(torch.cat([mean, deviation], dim=1))
    return torch.stack(layers, dim=1).cpu().numpy()


def _pooled_there(
    name: str, weights: str, device: str, precision: str, clips: list[np.ndarray]
) -> np.ndarray:
    """Compute a batch on a machine of a cluster, as precisely as whoever asked would."""
    encoder = _encoder(name, weights, device, precision != str(torch.float32))
    if str(encoder.precision) != precision:
        raise RuntimeError(
            f"a worker of SER_CLUSTER computes in {encoder.precision} on its {encoder.device.type}, whoever "
            f"asked in {precision}: start from a machine like the workers', so that all embeddings are alike"
        )
    return pooled(encoder, clips)


@functools.lru_cache(maxsize=1)
def _encoder(name: str, weights: str, device: str, half: bool) -> SpeechEncoder:
    encoder = SpeechEncoder(name, weights).eval().to(find_device(device))
    return encoder.halve() if half else encoder


def padded(clips: Sequence[np.ndarray]) -> np.ndarray:
    """Return clips as one int16 array for :class:`FineTuned`; padding is told from silence by a value that no sample has."""
    result = np.full((len(clips), max(map(len, clips))), PADDING, np.int16)
    for row, clip in zip(result, clips, strict=True):
        row[: len(clip)] = clip
    return result


class FineTuned(pretrained.Tuned):
    """A pretrained encoder with a head of two layers on the mean of its last layer, trained together.

    The convolutions that read the samples stay as they are (as in the papers), and so does everything else but a low-rank
    adapter if `rank` is set.

    Parameters
    ----------
    n_classes
        Number of emotions.
    shape
        Of a clip: ``(n_samples,)``, as :func:`padded` makes them.
    encoder
        Name; see ``pretrained.locate``. One that reads samples (not Whisper, which wants 30 s of mel-spectrogram per clip).
    weights
        Its ``pretrained.fingerprint``: a result depends on it, whatever the name.
    n_hidden, dropout
        Of the head.
    decay
        Each layer of the encoder learns at so many times the rate of the layer above it.
    body_rate
        The encoder's top layer learns at so many times the head's rate.
    rank
        Of the adapter (LoRA) on each attention's queries and values (in WavLM on the feed-forward layers); 0: all layers are
        trained.

    Shapes
    ------
    clips : int16 tensor (batch, n_samples); -32768 is padding
    returns : logits (batch, n_classes)

    References
    ----------
    A. Baevski et al., "wav2vec 2.0", NeurIPS 2020. E. J. Hu et al., "LoRA", ICLR 2022.
    """

    largest_batch = 16

    def __init__(
        self,
        n_classes: int,
        shape: tuple[int],
        encoder: str,
        weights: str,
        n_hidden: int = 256,
        dropout: float = 0.2,
        decay: float = 0.9,
        body_rate: float = 0.05,
        rank: int = 0,
    ):
        super().__init__()
        self.encoder, self.decay, self.body_rate = SpeechEncoder(encoder, weights), decay, body_rate
        if self.encoder.reads_mel:
            raise ValueError(
                f"{encoder} reads 30 s of mel-spectrogram for each clip: use its embeddings, or fine-tune an "
                "encoder that reads samples"
            )
        self.standardise = self.encoder.processor.do_normalize
        self.encoder.model.config.apply_spec_augment = (
            False  # it draws from a state that a resumed training can't restore
        )
        self.encoder.model.config.layerdrop = 0.0  # so does this one
        self.encoder.requires_grad_(rank == 0)
        self.encoder.model.feature_extractor._freeze_parameters()  # and nothing is computed backwards through it
        if getattr(self.encoder.model, "masked_spec_embed", None) is not None:
            self.encoder.model.masked_spec_embed.requires_grad_(False)
        if rank:
            import peft

            # WavLM takes its projections' weights from them and never calls them: there it is the two layers behind
            wavlm = self.encoder.model.config.model_type == "wavlm"
            places = ["intermediate_dense", "output_dense"] if wavlm else ["q_proj", "v_proj"]
            peft.inject_adapter_in_model(
                peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=places),
                self.encoder.model,
            )
        self.head = nn.Sequential(
            nn.Linear(self.encoder.n_units, n_hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(n_hidden, n_classes),
        )

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        """Return what is trained, with its learning rate."""
        model = self.encoder.model
        return pretrained.layer_rates(
            self.head, model, model.encoder.layers, learning_rate, self.body_rate, self.decay
        )

    def embed(self, clips: torch.Tensor) -> torch.Tensor:
        own = clips != PADDING
        n_samples = own.sum(1)
        clips, own = clips[:, : n_samples.max()], own[:, : n_samples.max()]
        signals = clips.float() / 32768 * own
        if self.standardise:  # as the checkpoint's own processor does it
            mean = signals.sum(1, keepdim=True) / n_samples[:, None]
            variance = ((signals - mean).square() * own).sum(1, keepdim=True) / n_samples[:, None]
            signals = (signals - mean) / (variance + 1e-7).sqrt() * own
        states, frames = self.encoder(signals, n_samples)
        return (states[-1].float() * frames[:, :, None]).sum(1) / frames.sum(1, keepdim=True)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(clips))


def _speech(path: str, start_s: float, end_s: float, detector: str) -> tuple[int, np.ndarray]:
    """Return a clip's number of samples, and its samples without silence."""
    signal = audio.load(path, start_s, end_s)
    key = recipe_hash(signal, detector, code_with_parts(audio.voice_activity))
    parts = fetch("speech", key, lambda: {"parts": audio.voice_activity(signal, detector)})["parts"]
    return len(signal), np.clip(
        np.round(audio.speech_only(signal, parts) * 32768), -32767, 32767
    ).astype(np.int16)
