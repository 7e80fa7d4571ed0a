"""Using a saved model: emotions, with probabilities, of a file, an array or a long recording.

``predict_emotion(audio_path, model_path)`` is the short way and :func:`predict` the long one.
:func:`timeline` and :func:`verdict` are for recordings with many utterances. Inputs are computed by
the functions that computed the training inputs (``artifacts.Input``).

Run ``python -m helpers.predict FILE… [--model DIR] [--enrol FILE…] [--only happy,sad] [--unsure P]
[--timeline] [--json]``.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import soxr

from helpers import artifacts, audio, paths
from helpers.artifacts import SavedModel, require
from helpers.corpora import EMOTIONS

UNSURE = "unsure"
WINDOW_S, WINDOW_HOP_S = 4.0, 2.0  # of a timeline; an utterance of the corpora lasts 2 to 5 s
LONGEST_S = 2 * 3600.0  # of a recording
LOWEST_HZ, HIGHEST_HZ = 1_000, 1_000_000  # sampling rates
LOUDEST = 1000.0  # times full scale; more is no recording
SATISFACTION = {
    group: tuple(name for name, emotion in EMOTIONS.items() if emotion.group == group)
    for group in ("satisfied", "unsatisfied")
}
OUT_OF_DOMAIN = {
    "duration_s": "{:.1f} s long; training clips have {:.1f} to {:.1f}",
    "level_dbfs": "{:.0f} dBFS loud; training clips have {:.0f} to {:.0f}",
    "snr_db": "{:.0f} dB between speech and pauses; training clips have {:.0f} to {:.0f}",
    "bandwidth_hz": "{:,.0f} Hz of bandwidth; training clips have {:,.0f} to {:,.0f}",
}
OPTIONS = {
    "recordings": {"nargs": "+", "metavar": "FILE", "help": "recordings, or folders of them"},
    "--model": {"default": "", "help": "folder of a model, or its name in data/models"},
    "--enrol": {"nargs": "+", "default": [], "help": "other clips of the same speaker"},
    "--only": {"default": "", "help": "emotions to choose among, separated by commas"},
    "--unsure": {"type": float, "default": 0.0, "help": '"unsure" below this probability'},
    "--timeline": {"action": "store_true", "help": "windows of a long recording, and a verdict"},
    "--json": {"action": "store_true", "help": "one line of JSON for each recording"},
}


@dataclass(frozen=True)
class Prediction:
    """What a model answers for a clip.

    Attributes
    ----------
    emotion
        The most probable one, or "unsure" if nothing is probable enough.
    probability
        Of the most probable emotion, 0 to 1.
    probabilities
        Emotion → probability; they add up to 1.
    top
        The three most probable emotions, with their probabilities.
    variant
        "inductive", or "speaker-normalised" where enrolment clips were given and the model has that
        variant.
    warnings
        How the clip differs from the training recordings: the answer is less reliable then.
    """

    emotion: str
    probability: float
    probabilities: dict[str, float]
    top: list[tuple[str, float]]
    variant: str
    warnings: list[str]


def predict_emotion(audio_path: str | Path, model_path: str | Path) -> tuple[str, float]:
    """Return the emotion of a recording, and its probability (0 to 1).

    Parameters
    ----------
    audio_path
        Any format that ``audio.load`` decodes, any sampling rate, any number of channels.
    model_path
        Folder of a saved model.
    """
    found = predict(audio_path, model_path)
    return found.emotion, found.probability


def predict(
    recording: str | Path | np.ndarray,
    model: str | Path | SavedModel,
    sampling_rate: int | None = None,
    enrolment: tuple = (),
    only: tuple[str, ...] = (),
    unsure_below: float = 0.0,
) -> Prediction:
    """Recognise the emotion of one clip.

    Parameters
    ----------
    recording
        A file, or samples: shape ``(n_samples,)`` or ``(n_samples, n_channels)``, floats of full
        scale ±1, or integers.
    model
        A folder, or what ``artifacts.load`` returned.
    sampling_rate
        Of samples that are given as an array, in Hz.
    enrolment
        Other recordings of the same speaker, in different emotions: the speaker-normalised variant
        answers then. Clips of one emotion alone may make the answer worse (notebook 19).
    only
        Emotions to choose among. The probabilities of the others are set to 0, and the rest is
        scaled to add up to 1.
    unsure_below
        Probability below which the answer is "unsure".

    Raises
    ------
    ValueError
        If the recording can't be decoded, is shorter than ``audio.MIN_DURATION_S``, longer than
        ``audio.LONG_DURATION_S`` or silent, or `only` names emotions that the model does not know.
    """
    model, signal = opened(model), read_signal(recording, sampling_rate)
    known = [read_signal(clip, sampling_rate) for clip in enrolment]
    values = _masked(model.probabilities([signal], known)[0], model.emotions, only)
    probabilities = dict(zip(model.emotions, values.tolist(), strict=True))
    top = sorted(probabilities.items(), key=lambda pair: -pair[1])[:3]
    emotion, probability = top[0]
    return Prediction(
        emotion if probability >= unsure_below else UNSURE,
        probability,
        probabilities,
        top,
        artifacts.answering(model.variants, known),
        out_of_domain_warnings(signal, model),
    )


def timeline(
    recording: str | Path | np.ndarray,
    model: str | Path | SavedModel,
    sampling_rate: int | None = None,
    window_s: float = WINDOW_S,
    hop_s: float = WINDOW_HOP_S,
    enrolment: tuple = (),
    only: tuple[str, ...] = (),
    detector: str = "auto",
) -> pd.DataFrame:
    """Recognise emotions over a long recording, in overlapping windows, where somebody speaks.

    Parameters
    ----------
    recording, model, sampling_rate, enrolment, only
        As for :func:`predict`; up to ``LONGEST_S``.
    window_s, hop_s
        Length of a window and from one to the next, in seconds.
    detector
        Of speech: see ``audio.voice_activity``.

    Returns
    -------
    pd.DataFrame
        One row per window: ``start_s``, ``end_s`` (s), ``speech`` (share of it in which somebody
        speaks), ``emotion``, ``probability`` and ``p_<emotion>…``. Windows with too little speech
        are left out; without any speech, there are no rows.
    """
    model, signal = opened(model), read_signal(recording, sampling_rate, LONGEST_S)
    known = [read_signal(clip, sampling_rate) for clip in enrolment]
    length, hop = round(window_s * audio.SAMPLING_RATE), round(hop_s * audio.SAMPLING_RATE)
    spoken, rows = np.zeros(len(signal) + hop + 1, int), []  # samples of speech until each sample
    for begin, stop in audio.voice_activity(signal, detector):
        spoken[begin + 1 : stop + 1] = 1
    spoken = spoken.cumsum()
    for start in range(0, max(len(signal) - length, 0) + hop, hop):
        end = min(start + length, len(signal))
        n_spoken = spoken[end] - spoken[start]
        if n_spoken >= 2 * audio.MIN_DURATION_S * audio.SAMPLING_RATE:
            values = model.probabilities([signal[start:end]], known)[0]
            values = _masked(values, model.emotions, only)
            times = start / audio.SAMPLING_RATE, end / audio.SAMPLING_RATE, n_spoken / (end - start)
            rows.append([*times, model.emotions[values.argmax()], values.max(), *values])
    columns = ["start_s", "end_s", "speech", "emotion", "probability"]
    return pd.DataFrame(rows, columns=columns + [f"p_{emotion}" for emotion in model.emotions])


def verdict(
    windows: pd.DataFrame,
    late_weight: float = 2.0,
    groups: dict[str, tuple[str, ...]] | None = None,
) -> dict[str, float]:
    """Summarise a timeline: the mean probability of each emotion, or of groups of them.

    Parameters
    ----------
    windows
        From :func:`timeline`.
    late_weight
        How many times the last window counts the first. The end of a call is more informative than
        its beginning.
    groups
        Name → emotions, e.g. ``SATISFACTION``. Emotions in no group are left out. By default each
        emotion is a group.

    Returns
    -------
    dict
        Name → share, highest first; they add up to 1. Empty for a timeline without rows.

    Raises
    ------
    ValueError
        If none of the model's emotions is in a group.
    """
    if windows.empty:
        return {}
    place = windows["start_s"] - windows["start_s"].min()
    weight = (1 + (late_weight - 1) * place / max(place.max(), 1e-9)) * windows["speech"]
    columns = windows.filter(regex="^p_")
    mean = pd.Series(np.average(columns, axis=0, weights=weight), columns.columns.str[2:])
    groups = groups or {emotion: (emotion,) for emotion in mean.index}
    shares = pd.Series({name: mean.reindex(own).sum() for name, own in groups.items()})
    require(shares.sum() > 0, f"the emotions {list(mean.index)} are in none of the groups {groups}")
    return (shares / shares.sum()).sort_values(ascending=False).to_dict()


def out_of_domain_warnings(signal: np.ndarray, model: SavedModel) -> list[str]:
    """Return in which way a clip differs from the training recordings.

    Parameters
    ----------
    signal
        One clip, at ``audio.SAMPLING_RATE``.
    model
        The ``recording_statistics`` of its card are name → percentiles 1 and 99 of the training
        clips. The level does not matter to a model of channel-normalised clips.
    """
    found, warnings = audio.recording_statistics(signal), []
    if all(reads.channel_normalised for reads in model.reads):
        del found["level_dbfs"]
    for name, (low, high) in model.card.get("recording_statistics", {}).items():
        if name in found and not low <= found[name] <= high:
            warnings.append(OUT_OF_DOMAIN[name].format(found[name], low, high))
    distance = model.distances([signal])
    if distance is not None and distance[0] > 1:
        warnings.append(
            f"its features are {distance[0]:.2f} times as far from the mean of the training clips "
            "as their 99th percentile"
        )
    return warnings


def find_model(name: str = "") -> Path:
    """Return the folder of a model: a path, a name in ``data/models``, or the first one there.

    Raises
    ------
    FileNotFoundError
        If there is none; the text names those that there are.
    """
    shelf = paths.PROJECT / "data/models"
    present = sorted(card.parent for card in shelf.glob("*/card.json"))
    for folder in [Path(name), shelf / name] if name else present:
        if (folder / "card.json").is_file():
            return folder
    raise FileNotFoundError(
        f"no model {name or 'in data/models'}: give the folder of one with --model (it holds "
        f"card.json); data/models has {', '.join(path.name for path in present) or 'none'}"
    )


def opened(model: str | Path | SavedModel) -> SavedModel:
    """Return a loaded model unchanged; load one that is given as a folder."""
    return model if isinstance(model, SavedModel) else artifacts.load(Path(model))


def read_signal(
    recording: str | Path | np.ndarray,
    sampling_rate: int | None = None,
    longest_s: float = audio.LONG_DURATION_S,
) -> np.ndarray:
    """Return a recording as a mono signal at the project's sampling rate.

    Parameters
    ----------
    recording, sampling_rate
        As for :func:`predict`.
    longest_s
        In seconds.

    Raises
    ------
    ValueError
        If it can't be decoded, is shorter than ``audio.MIN_DURATION_S``, longer than `longest_s`,
        silent, or louder than any recording.
    """
    if isinstance(recording, np.ndarray):
        signal, name = audio.remove_offset(_mono(recording, sampling_rate)), "the recording"
    else:
        signal = audio.load(recording, 0.0, longest_s + 1)  # a limit for memory, too
        name = Path(recording).name
    seconds = len(signal) / audio.SAMPLING_RATE
    require(
        audio.MIN_DURATION_S <= seconds <= longest_s,
        f"{name} is {seconds:.2f} s long or longer; expected {audio.MIN_DURATION_S} to "
        f"{longest_s:.0f} s. A timeline takes up to {LONGEST_S:.0f} s (--timeline; in the app, the "
        "page for long recordings)",
    )
    peak = np.abs(signal).max()
    require(
        peak <= LOUDEST,
        f"{name} holds NaN, or goes up to {peak:.3g} times full scale; expected floats of full "
        f"scale ±1, and at most {LOUDEST:.0f} times that: is it damaged?",
    )
    require(
        20 * np.log10(audio.frame_rms(signal).max() + 1e-10) >= audio.SILENT_DBFS,
        f"{name} is silent (nothing above {audio.SILENT_DBFS:.0f} dBFS)",
    )
    return signal


def _mono(samples: np.ndarray, sampling_rate: int | None) -> np.ndarray:
    """Return samples as one channel of floats at the project's sampling rate."""
    require(
        sampling_rate is not None and LOWEST_HZ <= sampling_rate <= HIGHEST_HZ,
        f"samples need their sampling rate, {LOWEST_HZ:,} to {HIGHEST_HZ:,} Hz; found "
        f"{sampling_rate}",
    )
    shape, integers = samples.shape, samples.dtype.kind in "iu"
    require(
        (integers or samples.dtype.kind == "f") and len(shape) in (1, 2) and 0 not in shape[1:],
        f"samples are of type {samples.dtype}, shape {shape}; expected integers, or floats of full "
        "scale ±1, of shape (n_samples,) or (n_samples, n_channels)",
    )
    signal = samples if len(shape) == 1 else samples.mean(axis=1)
    if integers:
        low, high = np.iinfo(samples.dtype).min, np.iinfo(samples.dtype).max + 1
        signal = (2.0 * signal - low - high) / (high - low)
    if sampling_rate != audio.SAMPLING_RATE and len(signal):
        signal = soxr.resample(signal, sampling_rate, audio.SAMPLING_RATE)
    return signal.clip(-1e30, 1e30).astype(np.float32)  # floats have no larger numbers


def _masked(values: np.ndarray, emotions: list[str], only: tuple[str, ...]) -> np.ndarray:
    """Set the probabilities of emotions that are not in `only` to 0, and scale the rest to 1."""
    strange = ", ".join(sorted(set(only) - set(emotions)))
    require(not strange, f"the model does not know {strange}; it knows {', '.join(emotions)}")
    kept = np.isin(emotions, only or emotions)
    values = np.where(kept, values, 0)
    return values / values.sum() if values.sum() > 0 else kept / kept.sum()


def main(arguments: list[str] | None = None) -> int:
    """Recognise emotions in recordings.

    Returns 0; 1 if a recording could not be read, 2 if nothing could be done.
    """
    parser = argparse.ArgumentParser("python -m helpers.predict", description=main.__doc__)
    for name, about in OPTIONS.items():
        parser.add_argument(name, **about)
    options, files, answers = parser.parse_args(arguments), [], []
    try:
        model = artifacts.load(find_model(options.model))
        options.only = tuple(filter(None, options.only.split(",")))
        options.enrol = tuple(read_signal(path) for path in options.enrol)
        _masked(np.ones(len(model.emotions)), model.emotions, options.only)
        for given in map(Path, options.recordings):
            inside = sorted(filter(audio.is_audio, given.rglob("*"))) if given.is_dir() else [given]
            require(inside, f"{given} holds no recordings ({', '.join(audio.AUDIO_SUFFIXES)})")
            files += inside
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for path in files:
        answers.append(_answer(path, model, options))
        print(json.dumps(answers[-1]) if options.json else _in_words(answers[-1]), flush=True)
    return int(any("error" in answer for answer in answers))


def _answer(path: Path, model: SavedModel, options: argparse.Namespace) -> dict:
    given = {"sampling_rate": audio.SAMPLING_RATE, "enrolment": options.enrol, "only": options.only}
    try:
        if not options.timeline:
            found = asdict(predict(path, model, **given, unsure_below=options.unsure))
        else:
            windows = timeline(path, model, **given)
            found = {"verdict": verdict(windows), "windows": windows.to_dict("records")}
    except (ValueError, OSError) as error:
        found = {"error": str(error)}
    return {"file": str(path)} | found


def _in_words(answer: dict) -> str:
    """Return an answer as a few lines of text."""
    shares = list(answer["verdict"].items())[:3] if "verdict" in answer else answer.get("top", [])
    words = ", ".join(f"{name} {share:.0%}" for name, share in shares) or "nobody speaks"
    lines = [f"{answer['emotion']} ({words})" if "emotion" in answer else words]
    for window in answer.get("windows", []):
        times = f"{window['start_s']:7.1f}–{window['end_s']:.1f} s"
        lines.append(f"{times}  {window['emotion']:<10} {window['probability']:.0%}")
    for warning in answer.get("warnings", []):
        lines.append(f"unlike the training recordings: {warning}")
    return f"{answer['file']}: " + (answer.get("error") or "\n  ".join(lines))


if __name__ == "__main__":
    sys.exit(main())
