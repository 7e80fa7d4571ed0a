"""Saved models: what a model reads of a signal, its weights, and a card that says what it is.

A model is saved as a folder of ``card.json`` and files of weights (safetensors), which the card
names with their hashes. Loading runs no code of the folder: a network's class is looked up by name
in ``helpers.nets``, and a folder with other files, changed files or links is refused. The card also
holds a *probe*, the model's probabilities of a fixed synthetic signal. :func:`load` computes them
again and refuses a model that answers differently, so a change of the features, of a network or of
a library is noticed.
"""

import functools
import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.numpy
from scipy.special import softmax

from helpers import audio, augment, cache, corpora, ensemble, features, spectrograms, tables

VERSION = 1  # of what read_clips computes
FORMAT = 2  # of the folder
LONGEST_INPUT = 10_000  # frames or steps; a minute has 6,000 frames of 10 ms
LARGEST_FILE = 2**31  # bytes
SAME_PROBABILITY = 1e-3  # of the probe: another processor rounds differently by much less


class Refused(ValueError):
    """A saved model or a recording that can't be used; the text says why, and what to do."""


@dataclass(frozen=True)
class Input:
    """How a signal becomes the input of a model, in training and in prediction.

    Attributes
    ----------
    kind
        "functionals", "sequence" (of low-level descriptors), "segments" (their statistics),
        "image" (a mel-spectrogram) or "recording" (``audio.recording_statistics``).
    arguments
        ``columns`` of functionals, sequence and segments (default: all), ``n_steps`` and ``stride``
        of a sequence, ``n_segments`` of segments, ``n_frames`` of an image; ``trim`` of all but
        functionals.
    channel_normalised
        Whether the signal goes through ``audio.channel_normalise`` first.

    Raises
    ------
    Refused
        If the kind is none of these, or a size is not a whole number from 1 to ``LONGEST_INPUT``.

    Examples
    --------
    >>> reads = Input("image", {"n_frames": 160}, channel_normalised=True)
    >>> reads(signal).shape
    (64, 160)
    """

    kind: str
    arguments: dict = field(default_factory=dict)
    channel_normalised: bool = False

    def __post_init__(self) -> None:
        sizes = [size for size in self.arguments.values() if not isinstance(size, (bool, list))]
        require(
            self.kind in ("functionals", "sequence", "segments", "image", "recording")
            and set(sizes) <= set(range(1, LONGEST_INPUT + 1)),
            f"its input is {self.kind!r} with {str(self.arguments)[:200]}; expected functionals, "
            f"sequence, segments, image or recording, with sizes from 1 to {LONGEST_INPUT}",
        )

    @functools.cached_property
    def key(self) -> str:
        """A text that is equal for equal inputs."""
        return json.dumps(asdict(self))

    def __call__(self, signal: np.ndarray, change: Callable | None = None) -> np.ndarray:
        """Turn a signal, shape ``(n_samples,)`` at 16 kHz, into the input; `change` it first."""
        signal = change(signal) if change else signal
        signal = audio.channel_normalise(signal) if self.channel_normalised else signal
        match self.kind:
            case "image":
                return spectrograms.padded_image(signal, **self.arguments)
            case "recording":
                return np.array(list(audio.recording_statistics(signal).values()))
            case "functionals":
                row = features.functionals(signal)
                names = self.arguments.get("columns", row)
                return np.array([row[name] for name in names], np.float32)
        arguments, names = dict(self.arguments), features.columns(self.kind)
        chosen = [names.index(name) for name in arguments.pop("columns", names)]
        clip = features.clip_descriptors(signal, trim=arguments.pop("trim", True))[:, chosen]
        turn_into = features.sequence if self.kind == "sequence" else features.segments
        return turn_into(clip, **arguments)


def read_clips(
    utterances: pd.DataFrame, reads: Input, n_jobs: int = -1, change: Callable | None = None
) -> np.ndarray:
    """Compute what a model reads of each utterance; what is stored is not computed again.

    Use it for inputs that no notebook stores as a table: channel-normalised ones, changed copies.

    Parameters
    ----------
    utterances
        With ``path``, ``start_s``, ``end_s`` (s) and ``audio_hash``.
    reads
        How a signal becomes an input.
    n_jobs
        Processes; -1 for all cores.
    change
        Applied to each signal first: a function of ``augment``, with its arguments
        (``functools.partial``).

    Returns
    -------
    np.ndarray [shape=(n_utterances, ...)]
    """
    found = audio.map_signals(
        functools.partial(reads, change=change),
        utterances,
        "inputs",
        reads.key + (cache.source_of(change) if change else ""),
        (VERSION, features.VERSION, spectrograms.VERSION, augment.VERSION),
        n_jobs=n_jobs,
        progress=reads.kind,
    )
    return np.stack(list(found))


def recording_bounds(utterances: pd.DataFrame, ids: pd.Series) -> dict[str, list[float]]:
    """Compute in which range the training recordings lie, for ``predict.out_of_domain_warnings``.

    Parameters
    ----------
    utterances
        Schema ``utterances``.
    ids
        Of the training clips.

    Returns
    -------
    dict
        Name of a statistic (see ``audio.recording_statistics``) → its percentiles 1 and 99.
    """
    rows = utterances.set_index("utterance_id").loc[ids]
    bounds = np.percentile(read_clips(rows, Input("recording")), [1, 99], axis=0).T
    return dict(zip(audio.recording_statistics(probe_signal()), bounds.tolist(), strict=True))


@dataclass(frozen=True)
class Part:
    """The weights of one variant; called with inputs, it computes probabilities.

    Attributes
    ----------
    arrays
        Of a network, its ``state_dict``. Of a linear classifier behind a scaler: ``mean`` and
        ``scale`` (n_columns,), ``limit`` (scaled values are clipped to ±limit), ``weights``
        (n_classes, n_columns), ``bias`` (n_classes,; -inf for classes without examples).
    network
        Of a network, ``build`` (name of a class of ``helpers.nets``), ``options`` (keyword
        arguments of the class) and ``shape`` (of one input).
    n_classes
        Of a network, number of emotions.
    """

    arrays: dict[str, np.ndarray]
    network: dict = field(default_factory=dict)
    n_classes: int = 0

    @functools.cached_property
    def net(self) -> "torch.nn.Module":  # noqa: F821, imported late
        """The network, in evaluation mode, on the CPU; weights that do not fit are refused."""
        import torch

        weights = {name: torch.tensor(value) for name, value in self.arrays.items()}
        build = network_class(self.network["build"])
        with torch.device("meta"):  # no memory is taken before the weights were found to fit
            net = build(self.n_classes, self.network["shape"], **self.network["options"])
        net.load_state_dict(weights, assign=True)
        return net.eval()

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Compute probabilities, shape ``(n_rows, n_classes)``."""
        if self.network:
            return softmax(self.embed(inputs, "forward").astype(np.float64), axis=1)
        of = self.arrays
        scaled = (inputs.astype(np.float64) - of["mean"]) / of["scale"]
        scores = np.clip(scaled, -of["limit"], of["limit"]) @ of["weights"].T + of["bias"]
        return softmax(scores, axis=1)

    def embed(self, inputs: np.ndarray, method: str = "embed") -> np.ndarray:
        """Compute what the network's head reads, shape ``(n_rows, n_dimensions)``."""
        from helpers import nets  # late, as torch: processes that read clips need neither

        return nets.compute(self.net, inputs, method)


def network_class(build: str | type) -> type:
    """Return a class of ``helpers.nets``, or the one of this name; refuse any other."""
    from helpers import nets  # late, as above

    name = getattr(build, "__name__", build)
    found = getattr(nets, name, None)
    require(
        isinstance(found, type) and found.__module__ == nets.__name__ and build in (name, found),
        f"the network {name!r} is no class of helpers.nets, where it is looked up again: move the "
        "class to helpers/nets.py",
    )
    return found


@dataclass(frozen=True)
class SavedModel:
    """A model that :func:`load` returns: a single one, or a weighted average of others.

    An average is p ∝ Π p_k ** (w_k / T), as in ``ensemble.weighted_average``.

    Attributes
    ----------
    card
        As it was saved: ``model``, ``emotions``, ``corpus``, ``labels``, ``licence``, ``results``
        (of its cross-validation), ``recording_statistics``, ``variants``, … A single model's
        ``space`` is what is standardised per speaker and compared with the training clips: the
        "inputs", or the "embeddings" of the inductive network. An average has ``weights``
        (variant → member → w) and ``temperature`` (variant → T).
    reads
        What the model, or each member, reads.
    predictors
        Of a single model: variant ("inductive", "speaker-normalised") → what computes
        probabilities.
    average_speaker
        Of a single model, in its space, from :func:`average_speaker`; empty if not known.
    members
        Of an average: name → model.
    """

    card: dict
    reads: list[Input]
    predictors: dict[str, Part]
    average_speaker: dict[str, np.ndarray]
    members: dict[str, "SavedModel"]

    @property
    def emotions(self) -> list[str]:
        return self.card["emotions"]

    @property
    def variants(self) -> list[str]:
        return self.card["variants"]

    def answering(self, enrolment: list[np.ndarray]) -> str:
        """Return which variant answers: with enrolment clips the speaker-normalised one, if any."""
        return (
            "speaker-normalised"
            if enrolment and "speaker-normalised" in self.variants
            else "inductive"
        )

    def probabilities(
        self, signals: list[np.ndarray], enrolment: list[np.ndarray] = ()
    ) -> np.ndarray:
        """Compute the probabilities of clips.

        Parameters
        ----------
        signals : list of np.ndarray [shape=(n_samples,), float32]
            Mono, at the card's sampling rate.
        enrolment
            Other clips of the one speaker of all signals. The speaker-normalised variant answers
            then, if there is one.

        Returns
        -------
        np.ndarray [shape=(n_signals, n_emotions)]
        """
        return self.answer(self.answering(enrolment), signals, enrolment)

    def answer(self, variant: str, signals: list, enrolment: list) -> np.ndarray:
        """Compute the probabilities of one variant."""
        if self.members:
            weights = self.card["weights"][variant]
            stack = [self.members[name].answer(variant, signals, enrolment) for name in weights]
            powers = np.array(list(weights.values())) / self.card["temperature"][variant]
            return ensemble.pool(np.stack(stack), powers)
        if variant == "inductive":
            return self.predictors[variant](self.read(signals))
        values, known = self.represent(signals), self.represent(enrolment)
        mean, std = self.average_speaker["mean"], self.average_speaker["std"]
        return self.predictors[variant](features.normalise_by_enrolment(values, known, mean, std))

    def read(self, signals: list[np.ndarray]) -> np.ndarray:
        """Compute what a single model reads of the clips, shape ``(n_signals, ...)``."""
        return np.stack([_read(self.reads[0].key, s.astype(np.float32).tobytes()) for s in signals])

    def represent(self, signals: list[np.ndarray]) -> np.ndarray:
        """Compute the clips in the space of the card, shape ``(n_signals, n_dimensions)``."""
        embedded, values = self.card["space"] == "embeddings", self.read(signals)
        return self.predictors["inductive"].embed(values) if embedded else values


def average_speaker(values: np.ndarray, speakers: np.ndarray) -> dict[str, np.ndarray]:
    """Describe training clips by the mean and the standard deviation of the average speaker.

    Parameters
    ----------
    values : np.ndarray [shape=(n_clips, n_dimensions)]
        Inputs or embeddings, not normalised per speaker.
    speakers : np.ndarray [shape=(n_clips,)]

    Returns
    -------
    dict of str to np.ndarray
        ``mean`` and ``std``, as ``features.normalise_by_enrolment`` takes them.
    """
    own = pd.DataFrame(values.astype(np.float64)).groupby(np.asarray(speakers))
    std = np.sqrt(own.var(ddof=0).mean())
    return {"mean": own.mean().mean().to_numpy(), "std": std.to_numpy()}


def save(
    folder: Path,
    parts: dict[str, Part],
    reads: Input,
    about: dict,
    values: np.ndarray | None = None,
    speakers: np.ndarray | None = None,
    space: str = "inputs",
) -> Path:
    """Save a model.

    Parameters
    ----------
    folder
        Made, or replaced.
    parts
        Variant → weights; "inductive" is required.
    reads
        How a signal becomes an input. Without ``columns`` it gets the names of today's, so that a
        feature that is added later does not change the model.
    about
        The card: ``model``, ``emotions`` in the project's order, ``corpus``, ``labels``,
        ``licence``, ``results``, ``recording_statistics``, and what else a user should know.
    values, speakers
        Of the training clips, for :func:`average_speaker`; a speaker-normalised variant needs
        them. Values with more than two dimensions are not described.
    space
        What the values are: "inputs", or "embeddings" of the inductive network.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        If the folder holds files that are not a model's.
    Refused
        If the emotions are in another order, or the network is defined in a notebook.
    """
    if reads.kind in ("functionals", "sequence", "segments"):
        columns = {"columns": features.columns(reads.kind)}
        reads = replace(reads, arguments=columns | reads.arguments)
    card = about | {
        "input": asdict(reads),
        "variants": list(parts),
        "space": space,
        "parts": {variant: part.network for variant, part in parts.items()},
    }
    contents = {f"{v}.safetensors": _tensors(part.arrays) for v, part in parts.items()}
    if values is not None and values.ndim == 2:
        contents["average_speaker.safetensors"] = _tensors(average_speaker(values, speakers))
    return _write(folder, card, contents)


def save_average(
    folder: Path,
    members: dict[str, Path],
    weights: dict[str, dict[str, float]],
    temperature: dict[str, float],
    about: dict,
) -> Path:
    """Save a weighted average of saved models, which are copied into its folder.

    Parameters
    ----------
    folder
        Made, or replaced.
    members
        Name → folder of a model.
    weights
        Variant → member → weight. Members that do not have a variant are left out there.
    temperature
        Variant → temperature. Below 1, the average is more confident than its members.
    about
        The card, as for :func:`save`. Corpus, labels, emotions, licence and recording statistics
        are those of the first member where it does not have them.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    Refused
        If a member can't be loaded.
    """
    cards, contents = [], {}
    for name, place in members.items():
        cards.append(load(place).card)
        contents |= {f"{name}/{own}": content for own, content in _read_files(place).items()}
    own = {
        "members": list(members),
        "variants": list(weights),
        "weights": weights,
        "temperature": temperature,
    }
    shared = cards[0].keys() & {"corpus", "labels", "emotions", "licence", "recording_statistics"}
    return _write(folder, {name: cards[0][name] for name in sorted(shared)} | about | own, contents)


def load(folder: Path, key: str | None = None) -> SavedModel:
    """Load a model.

    Parameters
    ----------
    folder
        Of the model.
    key
        What the card's ``key`` has to be, if that matters.

    Raises
    ------
    Refused
        If there is no ``card.json``; if a file is missing, was changed, is not named by the card or
        does not hold what the card says; if the network is no class of ``helpers.nets``; if the
        model answers the probe differently than when it was saved; or if its key is another one.
    """
    try:
        require(
            (Path(folder) / "card.json").is_file(),
            "it holds no card.json: give the folder of a model",
        )
        contents = _read_files(folder)
        card = json.loads(contents.pop("card.json"))
        require(
            card["format"] == FORMAT,
            f"its card has the format {card['format']}, this version reads {FORMAT}: train the "
            "model again, or use the version of the project that saved it",
        )
        require(key in (None, card.get("key")), "it was made of other data or settings")
        wrong = dict(_hashes(contents).items() ^ card["files"].items())
        require(not wrong, f"these files were changed, added or removed: {', '.join(wrong)}")
        model = _build(card, contents)
        found, expected = _probe(model), card["probe"]
        changed = dict(card["versions"].items() - _versions().items())
        require(
            found.keys() == expected.keys()
            and np.allclose([*found.values()], [*expected.values()], 0, SAME_PROBABILITY),
            f"it answers the probe differently than when it was saved ({found}, expected "
            f"{expected}). Versions that differ: "
            f"{changed or 'none, so the features or the network changed'}. "
            "Install the versions of its card, or train it again",
        )
        return model
    except Refused as refusal:
        raise Refused(f"{folder}: refused, {refusal}") from None
    except Exception as error:  # a damaged file makes libraries raise anything
        raise Refused(
            f"{folder}: refused, it does not hold what its card says ({type(error).__name__}: "
            f"{str(error)[:300]})"
        ) from error


def probe_signal() -> np.ndarray:
    """Synthesise two seconds of a voice-like signal, the same on every machine."""
    time = np.arange(2 * audio.SAMPLING_RATE) / audio.SAMPLING_RATE
    harmonics = np.arange(1, 25)[:, None]
    phase = 2 * np.pi * (120 * time - 9 * np.cos(2 * np.pi * 0.7 * time))
    voice = (np.sin(harmonics * phase + harmonics) / harmonics).sum(axis=0)
    noise = np.modf(np.abs(np.sin(np.arange(len(time)) * 12.9898) * 43758.5453))[0] - 0.5
    loudness = np.clip(np.sin(2 * np.pi * 1.5 * time) + 0.4, 0, None)
    return (0.1 * voice * loudness + 0.003 * noise).astype(np.float32)


def require(condition: bool, text: str) -> None:
    """Refuse with this text unless the condition holds."""
    if not condition:
        raise Refused(text)


@functools.lru_cache(maxsize=64)
def _read(key: str, samples: bytes) -> np.ndarray:
    """Compute an input; members of an average that read the same share it."""
    return Input(**json.loads(key))(np.frombuffer(samples, np.float32))


def _probe(model: SavedModel) -> dict[str, list[float]]:
    """Compute the probe of each variant; the halves of the signal are the enrolment."""
    signal = probe_signal()
    given = [signal], np.split(signal, 2)
    return {v: model.answer(v, *given)[0].round(6).tolist() for v in ["inductive", *model.variants]}


def _versions() -> dict[str, str]:
    """Return the versions of what a probability depends on."""
    return {
        name: importlib.metadata.version(name)
        for name in ("numpy", "scipy", "scikit-learn", "torch", "librosa", "soxr", "safetensors")
    }


def _hashes(contents: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _tensors(arrays: dict[str, np.ndarray]) -> bytes:
    return safetensors.numpy.save({n: np.array(v, order="C") for n, v in arrays.items()})


def _read_files(folder: Path) -> dict[str, bytes]:
    """Read all files of a folder; refuse links, large files and other kinds."""
    contents = {}
    for path in sorted(Path(folder).rglob("[!.]*")):
        known = path.is_dir() or path.name == "card.json" or path.suffix == ".safetensors"
        require(
            known and not path.is_symlink() and path.stat().st_size <= LARGEST_FILE,
            f"{path} is no .safetensors file, a link, or larger than {LARGEST_FILE} bytes: give "
            "the folder of a model",
        )
        if path.is_file():
            contents[path.relative_to(folder).as_posix()] = path.read_bytes()
    return contents


def _write(folder: Path, card: dict, contents: dict[str, bytes]) -> Path:
    """Replace a saved model; the card comes last, so that a folder with a card is complete."""
    card |= {"format": FORMAT, "sampling_rate": audio.SAMPLING_RATE, "files": _hashes(contents)}
    card |= {"versions": _versions(), "probe": _probe(_build(card, contents))}
    _read_files(folder)  # refuses what is no model
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in (contents | {"card.json": json.dumps(card, indent=1).encode()}).items():
        cache.write_atomically(folder / name, lambda handle, content=content: handle.write(content))
        tables.note_output(folder / name)
    return folder


def _build(card: dict, contents: dict[str, bytes], place: str = "") -> SavedModel:
    """Make a model of its card and files; refuse a card that does not fit."""
    emotions = card["emotions"]
    require(
        emotions == corpora.emotion_order(emotions)
        and card["sampling_rate"] == audio.SAMPLING_RATE,
        f"it is for {card['sampling_rate']} Hz and the emotions {str(emotions)[:200]}; expected "
        f"{audio.SAMPLING_RATE} Hz, and different emotions in the order of the model's outputs, "
        f"which is the project's: {corpora.emotion_order(emotions)}",
    )
    members, predictors = {}, {}
    for name in card.get("members", []):
        own = json.loads(contents[f"{name}/card.json"])
        require(own["emotions"] == emotions, f"its member {name} has other emotions")
        members[name] = _build(own, contents, f"{name}/")
    for variant, about in card.get("parts", {}).items():
        arrays = safetensors.numpy.load(contents[f"{place}{variant}.safetensors"])
        predictors[variant] = Part(arrays, about, len(emotions))
    average = contents.get(f"{place}average_speaker.safetensors")
    average = safetensors.numpy.load(average) if average else {}
    reads = [member.reads[0] for member in members.values()] or [Input(**card["input"])]
    return SavedModel(card, reads, predictors, average, members)
