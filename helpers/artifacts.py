"""Trained models as folders that can be handed on: weights without pickles, and a card that says what they are.

An artefact is a folder with ``card.json`` and a few files that the card names, with their hashes: networks, linear
models and trees as arrays (safetensors), other scikit-learn pipelines as skops. Loading executes nothing of what is in it: a
file that the card does not name, that has another hash, lies elsewhere or holds objects of types that are not vetted is
refused, with the reason. At the end every artefact is asked the same question as when it was saved (a *probe*: a fixed
synthetic signal), and has to give the same probabilities; so a model of years ago either works as it did, or says what changed.
"""

import functools
import hashlib
import importlib.metadata
import json
import platform
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.numpy import load as read_tensors
from safetensors.numpy import save as save_tensors

from helpers import audio, features, nets
from helpers.cache import write_atomically
from helpers.corpora import emotion_order
from helpers.ensemble import pool, softmax
from helpers.inputs import Clips, Input
from helpers.parallel import side_by_side
from helpers.trees import ARRAYS, Trees

if TYPE_CHECKING:  # who only predicts need not wait for scikit-learn, unless the model is of it
    from sklearn.base import BaseEstimator

FORMAT = 1
SUFFIXES = (".safetensors", ".skops")
LARGEST_CARD, LARGEST_FILE = 2**20, 2**31  # bytes
SAME_PROBABILITY = 1e-3  # of the probe; another processor or library rounds otherwise, another front-end is far away
PACKAGES = ["numpy", "scipy", "scikit-learn", "torch", "librosa", "soxr", "skops", "safetensors"]
NETWORKS = (
    "DNN",
    "MelCNN",
    "MelResNet",
    "AlexNet1D",
    "ResNet1D",
    "Recurrent",
    "Transformer",
    "ConvLSTM",
    "MeansConv",
)
# what a pipeline of helpers.estimators is made of, besides what skops trusts by itself
TRUSTED = [
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._TemperatureScaling",
    "helpers.estimators.ClippedScaler",
    "helpers.estimators.ShrunkLDA",
]


class Refused(ValueError):
    """An artefact that can't be used; the text says why, and what would."""


class RunningNetwork:
    """A network with its weights, on the CPU: probabilities of inputs, and what it makes of them before its head."""

    def __init__(self, net: torch.nn.Module):
        if isinstance(net, nets.MelCNN):
            net.blocks = torch.nn.ModuleList(map(_lean, net.blocks))
        self.net = net.to(
            memory_format=torch.channels_last
        )  # convolutions of images are half as long

    @torch.inference_mode()
    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        return self.net(torch.tensor(inputs)).softmax(1).double().numpy()

    @torch.inference_mode()
    def embed(self, inputs: np.ndarray) -> np.ndarray:
        return self.net.embed(torch.tensor(inputs)).numpy()

    @torch.inference_mode()
    def decide(self, embedded: np.ndarray) -> np.ndarray:
        return self.net.head(torch.tensor(embedded)).softmax(1).double().numpy()


def _lean(block: torch.nn.Sequential) -> torch.nn.Sequential:
    """Return a layer of a MelCNN that answers the same in half the time: norm inside the weights, ReLU after pooling."""
    convolution, norm, relu, pool = block
    return torch.nn.Sequential(torch.nn.utils.fuse_conv_bn_eval(convolution, norm), pool, relu)


@dataclass(frozen=True)
class NetworkPart:
    """A trained network: the name of its class in ``helpers.nets``, what it was built with, and its weights."""

    build: str
    options: dict
    shape: tuple[int, ...]
    weights: dict[str, np.ndarray]

    def files(self, stem: str) -> dict[str, bytes]:
        return {f"{stem}.safetensors": _tensor_bytes(self.weights)}

    def described(self) -> dict:
        return {
            "kind": "network",
            "build": self.build,
            "options": self.options,
            "shape": list(self.shape),
        }

    @classmethod
    def read(cls, about: dict, files: dict[str, bytes], n_classes: int) -> "NetworkPart":
        if about["build"] not in NETWORKS:
            raise Refused(f"the network {about['build']!r} is none of {', '.join(NETWORKS)}")
        (content,) = files.values()
        part = cls(about["build"], about["options"], tuple(about["shape"]), read_tensors(content))
        with torch.device("meta"):  # no memory is taken for what a card merely claims
            expected = getattr(nets, part.build)(n_classes, part.shape, **part.options).state_dict()
        wrong = [
            name
            for name in expected.keys() | part.weights.keys()
            if name not in expected
            or name not in part.weights
            or part.weights[name].shape != expected[name].shape
        ]
        if wrong:
            raise Refused(
                f"its weights are not those of {part.build} with {str(part.options)[:200]}: they differ in "
                f"{', '.join(sorted(wrong)[:5])}"
            )
        return part

    def net(self, n_classes: int) -> torch.nn.Module:
        net = getattr(nets, self.build)(n_classes, self.shape, **self.options)
        net.load_state_dict({name: torch.tensor(value) for name, value in self.weights.items()})
        return net.eval()

    def predictor(self, n_classes: int) -> RunningNetwork:
        return RunningNetwork(self.net(n_classes))


@dataclass(frozen=True)
class ClassicalPart:
    """A fitted scikit-learn pipeline whose classes are numbers of emotions."""

    estimator: "BaseEstimator"

    def files(self, stem: str) -> dict[str, bytes]:
        import skops.io

        return {f"{stem}.skops": skops.io.dumps(self.estimator)}

    def described(self) -> dict:
        return {"kind": "classical", "estimator": type(self.estimator).__name__}

    @classmethod
    def read(cls, about: dict, files: dict[str, bytes], n_classes: int) -> "ClassicalPart":
        import skops.io

        (content,) = files.values()
        strange = set(skops.io.get_untrusted_types(data=content)) - set(TRUSTED)
        if strange:
            raise Refused(
                f"it holds objects of types that are not vetted: {', '.join(sorted(strange)[:5])}"
            )
        estimator = skops.io.loads(content, trusted=TRUSTED)
        found = getattr(estimator, "classes_", None)
        if found is None or not np.isin(found, np.arange(n_classes)).all():
            raise Refused(f"its classes {found} are not numbers of the card's {n_classes} emotions")
        return cls(estimator)

    def predictor(self, n_classes: int):
        def predict(inputs: np.ndarray) -> np.ndarray:
            result = np.zeros((len(inputs), n_classes))
            result[:, self.estimator.classes_] = self.estimator.predict_proba(inputs)
            return result

        return predict


@dataclass(frozen=True)
class TreesPart:
    """An ensemble of trees as arrays."""

    trees: Trees

    def files(self, stem: str) -> dict[str, bytes]:
        return {
            f"{stem}.safetensors": _tensor_bytes(
                {name: getattr(self.trees, name) for name in ARRAYS}
            )
        }

    def described(self) -> dict:
        return {"kind": "trees", "boosted": self.trees.boosted, "strict": self.trees.strict}

    @classmethod
    def read(cls, about: dict, files: dict[str, bytes], n_classes: int) -> "TreesPart":
        (content,) = files.values()
        part = cls(Trees(**read_tensors(content), boosted=about["boosted"], strict=about["strict"]))
        if len(part.trees.base) != n_classes:
            raise Refused(
                f"its trees know {len(part.trees.base)} classes, its card {n_classes} emotions"
            )
        return part

    def predictor(self, n_classes: int):
        return self.trees.predict


@dataclass(frozen=True)
class LinearPart:
    """A linear classifier behind a scaler, as arrays: a few lines of NumPy answer, whatever becomes of the library.

    Attributes
    ----------
    mean, scale : np.ndarray [shape=(n_columns,)]
    weights : np.ndarray [shape=(n_classes, n_columns)]
    bias : np.ndarray [shape=(n_classes,)]
        Of classes that training had no example of: -inf.
    limit : np.ndarray [shape=()]
        Scaled values beyond it, in either direction, count as it.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    limit: np.ndarray = field(default_factory=lambda: np.array(np.inf))

    def files(self, stem: str) -> dict[str, bytes]:
        return {f"{stem}.safetensors": _tensor_bytes(vars(self))}

    def described(self) -> dict:
        return {"kind": "linear"}

    @classmethod
    def read(cls, about: dict, files: dict[str, bytes], n_classes: int) -> "LinearPart":
        (content,) = files.values()
        part = cls(**read_tensors(content))
        n = part.mean.size
        if not (
            part.mean.shape == part.scale.shape == (n,)
            and part.weights.shape == (n_classes, n)
            and part.bias.shape == (n_classes,)
            and (part.scale > 0).all()
            and np.isfinite(part.bias).any()
            and part.limit.shape == ()
            and part.limit > 0
        ):
            raise Refused(
                f"its arrays are no linear classifier of {n_classes} emotions: mean {part.mean.shape}, scale "
                f"{part.scale.shape}, weights {part.weights.shape}, bias {part.bias.shape}, limit {part.limit}"
            )
        return part

    def predictor(self, n_classes: int):
        def predict(inputs: np.ndarray) -> np.ndarray:
            scaled = np.clip(
                (inputs.astype(np.float64) - self.mean) / self.scale, -self.limit, self.limit
            )
            return softmax(scaled @ self.weights.T + self.bias)

        return predict


PartOfArtifact = NetworkPart | ClassicalPart | TreesPart | LinearPart
PARTS = {
    "network": NetworkPart,
    "classical": ClassicalPart,
    "trees": TreesPart,
    "linear": LinearPart,
}


def answering(variants: list[str], enrolment: list | None) -> str:
    """Return which variant answers: the speaker-normalised one if it is there, and clips of the speaker are."""
    return "speaker-normalised" if enrolment and "speaker-normalised" in variants else "inductive"


@dataclass(frozen=True)
class Artifact:
    """A model that was loaded, ready to predict; made by :func:`load`.

    Attributes
    ----------
    card
        As it was saved. ``space`` says what is standardised per speaker, and compared with the training clips: the model's
        "inputs", or the "embeddings" that its inductive network makes of them.
    parts
        Variant ("inductive", "speaker-normalised") → part.
    usual
        In that space: ``mean`` and ``std`` of the usual training speaker, as ``features.normalise_by_enrolment`` wants them,
        ``clip_mean`` and ``clip_std`` over all training clips.
    """

    card: dict
    parts: dict[str, PartOfArtifact]
    usual: dict[str, np.ndarray]

    @property
    def emotions(self) -> list[str]:
        return self.card["emotions"]

    @property
    def variants(self) -> list[str]:
        return list(self.parts)

    @functools.cached_property
    def input(self) -> Input:
        return Input(**self.card["input"])

    @property
    def inputs(self) -> list[Input]:
        return [self.input]

    def inputs_of(self, variant: str) -> list[Input]:
        """Return what a variant reads."""
        return self.inputs

    @property
    def n_weights(self) -> int:
        """Of its network; 0 where there is none."""
        part = self.parts["inductive"]
        return (
            sum(values.size for values in part.weights.values())
            if isinstance(part, NetworkPart)
            else 0
        )

    def probabilities(
        self, signals: list[np.ndarray] | Clips, enrolment: list[np.ndarray] | Clips | None = None
    ) -> np.ndarray:
        """Compute probabilities, shape ``(n_signals, n_emotions)``.

        Parameters
        ----------
        signals : list of np.ndarray [shape=(n_samples,), float32], or Clips
            Mono, at the card's sampling rate.
        enrolment
            Other clips of the one speaker who says all signals: the speaker-normalised variant answers then, if there is one.
        """
        return self.answer(answering(self.variants, enrolment), _clips(signals), _clips(enrolment))

    def answer(self, variant: str, clips: Clips, known: Clips | None = None) -> np.ndarray:
        """Compute probabilities of one variant; `known` are the enrolment clips."""
        if variant == "inductive":
            running = self._predictor(variant)
            return (
                running.decide(self.seen(clips))
                if self.card["space"] == "embeddings"
                else running(clips.read(self.input))
            )
        normalised = features.normalise_by_enrolment(
            self.seen(clips), self.seen(known), self.usual["mean"], self.usual["std"]
        )
        return self._predictor(variant)(normalised)

    def seen(self, clips: Clips) -> np.ndarray:
        """Return the clips in the space of the card, shape ``(n_clips, n_dimensions)``."""
        inputs = clips.read(self.input)
        if self.card["space"] == "inputs":
            return inputs
        network = self._predictor("inductive")
        if network not in clips.embedded:
            clips.embedded[network] = network.embed(inputs)
        return clips.embedded[network]

    def distances(self, clips: Clips) -> np.ndarray | None:
        """Return how far clips lie from the training clips, 1 for the farthest hundredth of those; None if it is not known."""
        if "clip_mean" not in self.usual:
            return None
        return (
            distances(self.seen(clips), self.usual["clip_mean"], self.usual["clip_std"])
            / self.card["farthest"]
        )

    def _predictor(self, variant: str):
        if variant not in self._made:
            self._made[variant] = self.parts[variant].predictor(len(self.emotions))
        return self._made[variant]

    _made: dict = field(default_factory=dict, compare=False, repr=False)


def distances(values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Return the mean distance of rows from a mean, in standard deviations; a column counts ten at most."""
    return np.minimum(np.abs(values - mean) / (std + 1e-6), 10).mean(axis=1)


def usual_speaker(values: np.ndarray, speakers: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """Describe training clips for :func:`save`.

    Parameters
    ----------
    values : np.ndarray [shape=(n_clips, n_dimensions)]
        Inputs or embeddings, as they are before anything is standardised per speaker.
    speakers : np.ndarray [shape=(n_clips,)]

    Returns
    -------
    usual, farthest
        See :class:`Artifact`; and the distance that one in a hundred training clips exceeds.
    """
    values = values.astype(np.float64)
    own = [values[speakers == speaker] for speaker in np.unique(speakers)]
    usual = {
        "mean": np.mean([v.mean(axis=0) for v in own], axis=0),
        "std": np.sqrt(np.mean([v.var(axis=0) for v in own], axis=0)),
        "clip_mean": values.mean(axis=0),
        "clip_std": values.std(axis=0),
    }
    return usual, float(np.percentile(distances(values, usual["clip_mean"], usual["clip_std"]), 99))


def save(
    folder: Path,
    parts: dict[str, PartOfArtifact],
    inputs: Input,
    about: dict,
    usual: dict[str, np.ndarray] | None = None,
    space: str = "inputs",
    farthest: float = 1.0,
) -> Path:
    """Save a model.

    Parameters
    ----------
    folder
        Of the artefact; made, or replaced.
    parts
        Variant → what predicts; "inductive" must be there.
    inputs
        How a signal becomes an input.
    about
        The card: ``model``, ``emotions`` in the project's order, ``policy``, ``corpus``, ``licence``, ``protocol`` (cards of
        the cross-validated results), and whatever else a user should know.
    usual, farthest
        From :func:`usual_speaker`; a speaker-normalised variant needs them.
    space
        In which they are: "inputs", or "embeddings" of a network.

    Returns
    -------
    Path
        The folder; what was in it before is gone.
    """
    if about["emotions"] != emotion_order(about["emotions"]):
        raise ValueError(
            f"emotions are {about['emotions']}; give them in the order of the model's outputs, which is the "
            f"project's: {emotion_order(about['emotions'])}"
        )
    contents, described = {}, {}
    for variant, part in parts.items():
        files = part.files(variant)
        contents |= files
        described[variant] = part.described() | {"files": list(files)}
    if usual:
        contents["usual.safetensors"] = _tensor_bytes(usual)
    card = about | {
        "format": FORMAT,
        "sampling_rate": audio.SAMPLING_RATE,
        "space": space,
        "farthest": farthest,
        "input": asdict(inputs),
        "parts": described,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        "versions": versions(),
    }
    made = Artifact(card, parts, usual or {})
    card["probe"] = {variant: _answers(made, variant) for variant in parts}
    return _write(Path(folder), contents | {"card.json": json.dumps(card, indent=1).encode()})


@dataclass(frozen=True)
class Average:
    """Several models whose probabilities are multiplied: p ∝ Π p_k ** (w_k / T), as in ``ensemble.weighted_average``.

    Attributes
    ----------
    card
        As it was saved; ``weights`` are variant → member → w, ``temperature`` is variant → T.
    members
        Name → model.
    """

    card: dict
    members: dict[str, Artifact]

    @property
    def emotions(self) -> list[str]:
        return self.card["emotions"]

    @property
    def variants(self) -> list[str]:
        return list(self.card["weights"])

    @property
    def inputs(self) -> list[Input]:
        return [member.input for member in self.members.values()]

    def inputs_of(self, variant: str) -> list[Input]:
        """Return what the members of a variant read."""
        return [self.members[name].input for name in self.card["weights"][variant]]

    def probabilities(
        self, signals: list[np.ndarray] | Clips, enrolment: list[np.ndarray] | Clips | None = None
    ) -> np.ndarray:
        """Compute probabilities, as :meth:`Artifact.probabilities` does."""
        variant, clips, known = (
            answering(self.variants, enrolment),
            _clips(signals),
            _clips(enrolment),
        )
        weights = self.card["weights"][variant]
        for some in filter(None, (clips, known)):
            some.prepare(self.inputs_of(variant))
        large_first = sorted(weights, key=lambda name: -self.members[name].n_weights)
        stack = np.stack(
            side_by_side(lambda name: self.members[name].answer(variant, clips, known), large_first)
        )
        return pool(
            stack,
            np.array([weights[name] for name in large_first]) / self.card["temperature"][variant],
        )

    def distances(self, clips: Clips) -> np.ndarray | None:
        """Return the mean of what the members say, as :meth:`Artifact.distances` does."""
        found = [member.distances(clips) for member in self.members.values()]
        return (
            np.mean([one for one in found if one is not None], axis=0)
            if any(one is not None for one in found)
            else None
        )


def save_average(
    folder: Path,
    members: dict[str, Path],
    weights: dict[str, dict[str, float]],
    temperature: dict[str, float],
    about: dict,
) -> Path:
    """Save an average; its members are copied into it, so that the folder can go alone.

    Parameters
    ----------
    folder
        Of the artefact.
    members
        Name → folder of a member.
    weights
        Variant → member → weight. A member without a variant may be left out there.
    temperature
        Variant → temperature: below 1, the members are surer together than alone.
    about
        The card, as for :func:`save`.
    """
    models = {name: load(place) for name, place in members.items()}
    contents = {
        f"{name}/{path.name}": path.read_bytes()
        for name, place in members.items()
        for path in Path(place).iterdir()
    }
    digests = {name: hashlib.sha256(contents[f"{name}/card.json"]).hexdigest() for name in members}
    card = about | {
        "format": FORMAT,
        "sampling_rate": audio.SAMPLING_RATE,
        "members": digests,
        "weights": weights,
        "temperature": temperature,
        "files": {},
        "versions": versions(),
    }
    card["probe"] = {variant: _answers(Average(card, models), variant) for variant in weights}
    return _write(Path(folder), contents | {"card.json": json.dumps(card, indent=1).encode()})


def load(folder: Path) -> Artifact | Average:
    """Load a model, or say why not.

    Raises
    ------
    FileNotFoundError
        If there is no artefact.
    Refused
        If a file lacks, is too many, was changed, or holds what it must not; if classes are wrong; or if the model answers
        the probe otherwise than when it was saved.
    """
    folder = Path(folder)
    if not (folder / "card.json").is_file():
        raise FileNotFoundError(f"{folder} holds no card.json: give the folder of a model")
    try:
        card = _read_card(folder)
        contents = _read_files(folder, card)
        emotions = card["emotions"]
        if "members" in card:
            average = _read_average(folder, card)
            _require_same_answers(average)
            return average
        usual = (
            read_tensors(contents["usual.safetensors"]) if "usual.safetensors" in contents else {}
        )
        if card["space"] not in ("inputs", "embeddings") or not card["farthest"] > 0:
            raise Refused(
                f"its space is {card['space']!r}, its farthest clip {card['farthest']}: expected inputs or "
                "embeddings, and a number above 0"
            )
        parts = {
            variant: PARTS[about["kind"]].read(
                about, {name: contents[name] for name in about["files"]}, len(emotions)
            )
            for variant, about in card["parts"].items()
        }
        artifact = Artifact(card, parts, usual)
        if "inductive" not in parts or parts.keys() != card["probe"].keys():
            raise Refused(
                f"it has the variants {list(parts)} and probes of {list(card['probe'])}; expected inductive among "
                "them, and a probe for each"
            )
        _require_same_answers(artifact)
    except Refused as refusal:
        raise Refused(f"{folder}: refused, {refusal}") from None
    except (
        Exception
    ) as error:  # whatever a damaged or hostile file makes a library say, it is a refusal
        what = f"{type(error).__name__}: {str(error)[:300]}"
        raise Refused(f"{folder}: refused, it does not hold what its card says ({what})") from error
    return artifact


def made_of(folder: Path, recipe: str) -> Artifact | Average | None:
    """Return the model in a folder if it is whole and was made of this recipe (its card's), and note its files as outputs."""
    from helpers.tables import note_output  # late: who only predicts does not need tables

    try:
        model = load(folder)
    except (FileNotFoundError, Refused):
        return None
    if model.card.get("recipe") != recipe:
        return None
    for path in filter(Path.is_file, sorted(Path(folder).rglob("*"))):
        note_output(path)
    return model


def versions() -> dict[str, str]:
    """Return the versions of what a probability depends on."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def probe_signal() -> np.ndarray:
    """Return two seconds of a synthetic voice, the same on every machine: harmonics that glide, with pauses."""
    time = np.arange(2 * audio.SAMPLING_RATE) / audio.SAMPLING_RATE
    pitch = 120 + 40 * np.sin(2 * np.pi * 0.7 * time) + 15 * np.sin(2 * np.pi * 2.3 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / audio.SAMPLING_RATE
    voice = sum(
        np.sin(k * phase + k) * (0.6 + 0.4 * np.sin(2 * np.pi * (0.5 + k / 7) * time)) / k
        for k in range(1, 25)
    )
    breath = (
        np.modf(np.abs(np.sin(np.arange(len(time)) * 12.9898) * 43758.5453))[0] - 0.5
    )  # noise without a generator
    loudness = np.clip(np.sin(2 * np.pi * 1.5 * time) + 0.4, 0, None)
    return (0.1 * voice * loudness + 0.003 * breath).astype(np.float32)


def _tensor_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    return save_tensors({name: np.array(value, order="C") for name, value in arrays.items()})


def _write(folder: Path, contents: dict[str, bytes]) -> Path:
    """Replace an artefact by these files; the card comes last, so that a folder with a card is whole."""
    strange = [
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix not in (".json", *SUFFIXES)
        and not path.name.startswith(".")
    ]  # what a killed writer leaves
    if strange:
        raise ValueError(
            f"{folder} holds {strange[0].name}, so it is no model that could be replaced: give another folder"
        )
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in contents.items():
        write_atomically(folder / name, lambda handle, content=content: handle.write(content))
    return folder


def _clips(signals: list[np.ndarray] | Clips | None) -> Clips | None:
    return Clips(signals) if isinstance(signals, list) and signals else signals or None


def _read_average(folder: Path, card: dict) -> Average:
    members = {}
    for name, digest in card["members"].items():
        if hashlib.sha256((folder / name / "card.json").read_bytes()).hexdigest() != digest:
            raise Refused(
                f"its member {name} is not the one that was saved (the hash of its card differs)"
            )
        members[name] = load(folder / name)
        if not isinstance(members[name], Artifact) or members[name].emotions != card["emotions"]:
            raise Refused(
                f"its member {name} has other emotions ({members[name].emotions}), or is an average itself"
            )
    weights = card["weights"]
    for variant, own in weights.items():
        if not own or not all(
            isinstance(w, (int, float)) and 0 <= w < 100 and variant in members[name].parts
            for name, w in own.items()
        ):
            raise Refused(
                f"its weights of the variant {variant} are not those of its members: {str(own)[:200]}"
            )
        if not 0.01 < card["temperature"][variant] < 100:
            raise Refused(
                f"its temperature of the variant {variant} is {card['temperature'][variant]}; expected 0.01 to 100"
            )
    if "inductive" not in weights or weights.keys() != card["probe"].keys():
        raise Refused(f"it has weights for {list(weights)} and probes for {list(card['probe'])}")
    return Average(card, members)


@functools.cache
def _probe() -> tuple[Clips, Clips]:
    """The probe and its halves, as the enrolment; what one model reads of them, the next need not make again."""
    signal = probe_signal()
    return Clips([signal]), Clips([signal[: len(signal) // 2], signal[len(signal) // 2 :]])


def _answers(artifact: Artifact | Average, variant: str) -> list[float]:
    whole, halves = _probe()
    return [
        round(float(p), 6)
        for p in artifact.probabilities(whole, halves if variant == "speaker-normalised" else None)[
            0
        ]
    ]


def _require_same_answers(artifact: Artifact | Average) -> None:
    then = artifact.card["versions"]
    for variant, expected in artifact.card["probe"].items():
        found = _answers(artifact, variant)
        if len(expected) != len(found) or not np.allclose(found, expected, atol=SAME_PROBABILITY):
            now = versions()
            differ = [
                f"{name} {then.get(name)} then, {now[name]} now"
                for name in now
                if then.get(name) != now[name]
            ]
            raise Refused(
                f"it answers the probe otherwise than when it was saved ({variant}: {found}, expected {expected}); "
                f"{'; '.join(differ) or 'all versions are the same, so the front-end or the network changed'}. "
                "Install the versions of its card, or train it again"
            )


def _read_card(folder: Path) -> dict:
    path = folder / "card.json"
    if path.is_symlink() or path.stat().st_size > LARGEST_CARD:
        raise Refused(f"card.json is a link, or larger than {LARGEST_CARD} bytes")
    card = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise Refused(
            f"its card has the format {str(card)[:20] if not isinstance(card, dict) else card.get('format')}; this "
            f"version reads {FORMAT}"
        )
    emotions = card.get("emotions")
    good = (
        isinstance(emotions, list)
        and all(isinstance(e, str) and e for e in emotions)
        and len(emotions) >= 2
    )
    if not good or emotions != emotion_order(emotions) or len(set(emotions)) != len(emotions):
        raise Refused(
            f"its classes {str(emotions)[:200]} are no list of different emotions in the project's order"
        )
    if card["sampling_rate"] != audio.SAMPLING_RATE:
        raise Refused(
            f"it is for {card['sampling_rate']} Hz, this version works at {audio.SAMPLING_RATE} Hz"
        )
    return card


def _read_files(folder: Path, card: dict) -> dict[str, bytes]:
    """Read the files that the card names, and require that there are no others."""
    contents = {}
    for name, digest in card["files"].items():
        path = folder / name
        if Path(name).name != name or path.suffix not in SUFFIXES or path.is_symlink():
            raise Refused(
                f"it names {name!r}: only files of its own folder, .safetensors and .skops, are read"
            )
        if not path.is_file() or path.stat().st_size > LARGEST_FILE:
            raise Refused(f"{name} is not there, or larger than {LARGEST_FILE} bytes")
        contents[name] = path.read_bytes()
        if hashlib.sha256(contents[name]).hexdigest() != digest:
            raise Refused(f"{name} is not the file that was saved (its hash differs)")
    members = card.get("members", {})
    if strange := [
        name for name in members if Path(name).name != name or (folder / name).is_symlink()
    ]:
        raise Refused(f"it names {strange[0]!r}: only folders of its own folder are read")
    others = {path.name for path in folder.iterdir()} - {"card.json", *contents, *members}
    if others:
        raise Refused(
            f"it holds files that its card does not name: {', '.join(sorted(others)[:5])}"
        )
    return contents
