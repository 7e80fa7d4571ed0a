"""Using a trained model: a file, an array or a long recording in; an emotion, its probability and what to doubt out.

``predict_emotion(audio_path, model_path)`` is the short way, ``predict`` the whole one; :func:`timeline` and :func:`verdict`
are for recordings with many utterances. The same functions that made the training inputs make these (``inputs``).

Run ``python -m helpers.predict FILE… [--model DIR] [--enrol FILE…] [--only happy,sad] [--timeline] [--json]``.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import soxr
from tqdm import tqdm

from helpers import artifacts, audio, inputs, paths
from helpers.artifacts import Artifact, Average
from helpers.inputs import Clips

UNSURE = "unsure"
WINDOW_S, WINDOW_HOP_S = (
    4.0,
    2.0,
)  # of a timeline; an utterance of the training corpora lasts 2 to 5 s
AT_ONCE = 16  # windows of a timeline that are worked through together
MANY = 10  # times so many, processes read them: five minutes
LONGEST_S = 4 * 3600.0  # of a recording
LARGEST_DECODED = 2**29  # samples of all channels: 2 GB; compressed silence grows without end
LOWEST_HZ, HIGHEST_HZ = 1_000, 1_000_000  # sampling rates
LONGER = ": a timeline takes longer ones (in the browser, the page for long recordings)"
LOUDEST = 1000.0  # times full scale; more is no recording
LATE_WEIGHT = 2.0  # the last window of a call counts so many times the first
SATISFACTION = {
    "satisfied": ("happy", "excited", "neutral", "calm"),
    "unsatisfied": ("angry", "frustrated", "sad", "disgust"),
}


@dataclass(frozen=True)
class Prediction:
    """What a model says of a clip.

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
        "inductive", or "speaker-normalised" where enrolment clips were given and the model has that variant.
    warnings
        In what the clip does not resemble the training recordings: reasons to doubt the answer.
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
        Any format that libsndfile decodes, any sampling rate, any number of channels.
    model_path
        Folder of an artefact.
    """
    found = predict(audio_path, model_path)
    return found.emotion, found.probability


def predict(
    recording: str | Path | np.ndarray,
    model: str | Path | Artifact | Average,
    sampling_rate: int | None = None,
    enrolment: tuple = (),
    only: tuple[str, ...] = (),
    unsure_below: float = 0.0,
) -> Prediction:
    """Recognise the emotion of one clip.

    Parameters
    ----------
    recording
        A file, or samples: shape ``(n_samples,)`` or ``(n_samples, n_channels)``, floats of full scale ±1, or integers.
    model
        A folder, or what ``artifacts.load`` returned (which is faster for many clips).
    sampling_rate
        Of samples that are given as an array, in Hz.
    enrolment
        Other recordings of the same speaker, as many and as mixed as there are: the speaker-normalised variant answers then.
        Clips of one emotion alone may do harm (notebook 19).
    only
        Emotions to choose among; the others' probabilities are set to 0, and what is left adds up to 1.
    unsure_below
        Probability below which the answer is "unsure".

    Raises
    ------
    ValueError
        If the recording can't be decoded, is shorter than ``audio.MIN_DURATION_S`` or silent; if `only` names emotions that the
        model does not know.
    """
    model = opened(model)
    clips = Clips([read_signal(recording, sampling_rate)])
    known = [read_signal(clip, sampling_rate) for clip in enrolment]
    values = _masked(model.probabilities(clips, known)[0], model.emotions, only)
    order = np.argsort(-values, kind="stable")
    best = model.emotions[order[0]]
    return Prediction(
        best if values[order[0]] >= unsure_below else UNSURE,
        float(values[order[0]]),
        dict(zip(model.emotions, values.tolist(), strict=True)),
        [(model.emotions[i], float(values[i])) for i in order[:3]],
        artifacts.answering(model.variants, known),
        doubts(clips, model),
    )


def timeline(
    recording: str | Path | np.ndarray,
    model: str | Path | Artifact | Average,
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
        As for :func:`predict`.
    window_s, hop_s
        Length of a window and from one to the next, in seconds.
    detector
        Of speech: see ``audio.voice_activity``.

    Returns
    -------
    pd.DataFrame
        One row per window: ``start_s``, ``end_s`` (s), ``speech`` (share of it in which somebody speaks), ``emotion``,
        ``probability`` and ``p_<emotion>…``. Windows with too little speech are not in it; without any, there are no rows.
    """
    model, signal = opened(model), read_signal(recording, sampling_rate, LONGEST_S)
    parts = audio.voice_activity(signal, detector)
    spoken = np.zeros(len(signal) + 1, np.int64)
    for start, stop in parts:
        spoken[start + 1 : stop + 1] = 1
    spoken = spoken.cumsum()
    length, hop = round(window_s * audio.SAMPLING_RATE), round(hop_s * audio.SAMPLING_RATE)
    begins = np.arange(0, max(len(signal) - length, 0) + hop, hop)
    ends = np.minimum(begins + length, len(signal))
    heard = (spoken[ends] - spoken[begins]) / audio.SAMPLING_RATE
    kept = np.flatnonzero(
        (heard >= 2 * audio.MIN_DURATION_S) & (ends - begins >= min(length, len(signal)) // 2)
    )
    known = Clips([read_signal(clip, sampling_rate) for clip in enrolment]) if enrolment else None
    chunks = [
        [signal[begins[i] : ends[i]] for i in kept[first : first + AT_ONCE]]
        for first in range(0, len(kept), AT_ONCE)
    ]
    wanted = model.inputs_of(artifacts.answering(model.variants, known))
    read = inputs.read_ahead(chunks, wanted) if len(chunks) >= MANY else map(Clips, chunks)
    values = np.array(
        [
            _masked(row, model.emotions, only)
            for clips in read
            for row in model.probabilities(clips, known)
        ]
    )
    values = values.reshape(-1, len(model.emotions))
    table = pd.DataFrame(
        {
            "start_s": begins[kept] / audio.SAMPLING_RATE,
            "end_s": ends[kept] / audio.SAMPLING_RATE,
            "speech": heard[kept] * audio.SAMPLING_RATE / np.maximum(ends - begins, 1)[kept],
            "emotion": [model.emotions[i] for i in values.argmax(axis=1)] if len(kept) else [],
            "probability": values.max(axis=1, initial=0),
        }
    )
    return table.assign(**{f"p_{e}": values[:, i] for i, e in enumerate(model.emotions)})


def verdict(
    windows: pd.DataFrame,
    late_weight: float = LATE_WEIGHT,
    groups: dict[str, tuple[str, ...]] | None = None,
) -> dict[str, float]:
    """Sum up a timeline: the mean probability of each emotion, or of groups of them.

    Parameters
    ----------
    windows
        From :func:`timeline`.
    late_weight
        How many times the last window counts the first: how a call ends says more than how it begins.
    groups
        Name → emotions, e.g. ``SATISFACTION``; what is in no group is left out. By default each emotion for itself.

    Returns
    -------
    dict
        Name → share, highest first; they add up to 1. Empty for a timeline without rows.
    """
    columns = [c for c in windows if c.startswith("p_")]
    if windows.empty:
        return {}
    place = (windows["start_s"] - windows["start_s"].min()) / max(
        windows["start_s"].max() - windows["start_s"].min(), 1e-9
    )
    weight = (1 + (late_weight - 1) * place.to_numpy()) * windows["speech"].to_numpy()
    mean = pd.Series(np.average(windows[columns], axis=0, weights=weight), [c[2:] for c in columns])
    groups = groups or {emotion: (emotion,) for emotion in mean.index}
    shares = pd.Series(
        {name: mean.reindex(emotions).fillna(0).sum() for name, emotions in groups.items()}
    )
    if shares.sum() == 0:
        raise ValueError(
            f"the model's emotions ({', '.join(mean.index)}) are in none of the groups {list(groups)}"
        )
    return (shares / shares.sum()).sort_values(ascending=False).to_dict()


def doubts(clips: Clips, model: Artifact | Average) -> list[str]:
    """Say in what a clip lies outside of the training recordings.

    Parameters
    ----------
    clips
        One clip.
    model
        Its card's ``traits`` are name → [lowest, highest] of the training clips (percentiles 1 and 99). Of the level, a model
        of levelled clips hears nothing.
    """
    units = {
        "duration_s": "{:.1f} s long",
        "level_dbfs": "{:.0f} dBFS loud",
        "snr_db": "{:.0f} dB between speech and pauses",
        "bandwidth_hz": "{:,.0f} Hz of bandwidth",
    }
    found = audio.traits(clips.signals[0])
    if all(own.levelled for own in model.inputs):
        del found["level_dbfs"]
    said = []
    for name, (low, high) in model.card.get("traits", {}).items():
        if name in found and not low <= found[name] <= high:
            number = units[name].split(" ")[0]
            said.append(
                f"{units[name].format(found[name])}; training clips have {number.format(low)} to {number.format(high)}"
            )
    distance = model.distances(clips)
    if distance is not None and distance[0] > 1:
        said.append(
            f"its features lie {distance[0]:.2f} times as far from the mean of the training clips as the farthest "
            "hundredth of those"
        )
    return said


def find_model(name: str = "") -> Path:
    """Return the folder of a model: a path, a name under ``data/models``, or the only (or first) one there.

    Raises
    ------
    FileNotFoundError
        If there is none; the text names those that there are.
    """
    shelf = paths.PROJECT / "data/models"
    there = sorted(path.parent for path in shelf.glob("*/card.json"))
    for place in [Path(name), shelf / name] if name else there:
        if (place / "card.json").is_file():
            return place
    raise FileNotFoundError(
        f"no model {name or 'in data/models'}: give the folder of one with --model (it holds card.json)"
        + (f"; data/models has {', '.join(p.name for p in there)}" if there else "")
    )


def main(arguments: list[str] | None = None) -> int:
    """Recognise emotions in recordings; returns 0, 1 if one could not be read, 2 if nothing could be done."""
    parser = argparse.ArgumentParser(prog="python -m helpers.predict", description=main.__doc__)
    parser.add_argument(
        "recordings", nargs="+", type=Path, metavar="FILE", help="recordings, or folders of them"
    )
    parser.add_argument("--model", default="", help="folder of a model, or its name in data/models")
    parser.add_argument(
        "--enrol",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="other clips of the same speaker",
    )
    parser.add_argument("--only", default="", help="emotions to choose among, separated by commas")
    parser.add_argument(
        "--unsure", type=float, default=0.0, metavar="P", help='say "unsure" below this probability'
    )
    parser.add_argument(
        "--timeline", action="store_true", help="windows of a long recording, and a verdict"
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON for each recording")
    options = parser.parse_args(arguments)
    only = tuple(filter(None, options.only.split(",")))
    try:
        model = artifacts.load(find_model(options.model))
        files = [path for given in options.recordings for path in _recordings(given)]
        enrolment = tuple(audio.load(path) for path in options.enrol)
        _masked(np.ones(len(model.emotions)), model.emotions, only)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    failed = 0
    for path in tqdm(files, unit="file", disable=len(files) < 3 or not sys.stderr.isatty()):
        try:
            if options.timeline:
                windows = timeline(path, model, audio.SAMPLING_RATE, enrolment=enrolment, only=only)
                answer = {
                    "file": str(path),
                    "verdict": verdict(windows),
                    "windows": windows.to_dict("records"),
                }
            else:
                found = predict(path, model, audio.SAMPLING_RATE, enrolment, only, options.unsure)
                answer = {"file": str(path)} | asdict(found)
        except (ValueError, OSError) as error:
            failed, answer = failed + 1, {"file": str(path), "error": str(error)}
        tqdm.write(json.dumps(answer) if options.json else _in_words(answer))
    return int(failed > 0)


def _in_words(answer: dict) -> str:
    """Say an answer in a few lines."""
    if "error" in answer:
        return f"{answer['file']}: {answer['error']}"
    if "windows" in answer:
        lines = [
            f"  {w['start_s']:7.1f}–{w['end_s']:.1f} s  {w['emotion']:<10} {w['probability']:.0%}"
            for w in answer["windows"]
        ]
        shares = list(answer["verdict"].items())[:3]
        whole = ", ".join(f"{name} {share:.0%}" for name, share in shares) or "nobody speaks"
        return "\n".join([f"{answer['file']}: {whole}", *lines])
    first, *others = [f"{emotion} {p:.0%}" for emotion, p in answer["top"]]
    said = (
        [UNSURE, ", ".join([first, *others])]
        if answer["emotion"] == UNSURE
        else [first, ", ".join(others)]
    )
    return "\n".join(
        [
            "{}: {}  ({})".format(answer["file"], *said),
            *(f"  unlike the training recordings: {warning}" for warning in answer["warnings"]),
        ]
    )


def _recordings(given: Path) -> list[Path]:
    if not given.is_dir():
        return [given]
    found = sorted(path for path in given.rglob("*") if audio.is_audio(path))
    if not found:
        raise FileNotFoundError(
            f"{given} holds no recordings ({', '.join(sorted(audio.AUDIO_SUFFIXES))})"
        )
    return found


def opened(model: str | Path | Artifact | Average) -> Artifact | Average:
    """Return a model that was loaded as it is, and load one that is given as a folder; the last few stay in memory."""
    if isinstance(model, (Artifact, Average)):
        return model
    card = Path(model) / "card.json"
    return _loaded(str(Path(model).resolve()), os.stat(card).st_mtime_ns if card.is_file() else 0)


@lru_cache(maxsize=4)
def _loaded(folder: str, _changed: int) -> Artifact | Average:
    return artifacts.load(Path(folder))


def read_signal(
    recording: str | Path | np.ndarray,
    sampling_rate: int | None = None,
    longest_s: float = audio.LONG_DURATION_S,
) -> np.ndarray:
    """Return a recording as a mono signal at the project's rate; refuse what holds no speech, is too long or too large.

    Parameters
    ----------
    recording, sampling_rate
        As for :func:`predict`.
    longest_s
        In seconds.

    Raises
    ------
    ValueError
        If it can't be decoded, or is shorter than ``audio.MIN_DURATION_S``, longer than `longest_s`, silent, or louder than any
        recording.
    """
    if isinstance(recording, np.ndarray):
        signal, name = _mono(recording, sampling_rate), "the recording"
    else:
        _require_modest(Path(recording), longest_s)
        signal, name = audio.load(recording), Path(recording).name
    seconds = len(signal) / audio.SAMPLING_RATE
    if not audio.MIN_DURATION_S <= seconds <= longest_s:
        raise ValueError(
            f"{name} is {seconds:.2f} s long; expected {audio.MIN_DURATION_S} to {longest_s:.0f} s"
            + (LONGER if seconds > longest_s else "")
        )
    peak = max(signal.max(), -signal.min())  # no copy: hours of it are a gigabyte
    if not peak <= LOUDEST:  # a damaged file of floats; resampled, it may hold NaN
        raise ValueError(
            f"{name} goes up to {peak:.3g} times full scale; expected floats of full scale ±1, and no more than "
            f"{LOUDEST:.0f} times that: is it damaged?"
        )
    if 20 * np.log10(audio.frame_rms(signal).max() + 1e-10) < audio.SILENT_DBFS:
        raise ValueError(f"{name} is silent (nothing above {audio.SILENT_DBFS:.0f} dBFS)")
    return signal


def _mono(samples: np.ndarray, sampling_rate: int | None) -> np.ndarray:
    """Return samples as one channel of floats at the project's rate."""
    if sampling_rate is None or not LOWEST_HZ <= sampling_rate <= HIGHEST_HZ:
        raise ValueError(
            f"samples need their sampling rate, {LOWEST_HZ:,} to {HIGHEST_HZ:,} Hz; found {sampling_rate}"
        )
    if samples.dtype.kind not in "fiu" or samples.ndim not in (1, 2) or 0 in samples.shape[1:]:
        raise ValueError(
            f"samples are of type {samples.dtype}, shape {samples.shape}; expected integers, or floats of full "
            "scale ±1, of shape (n_samples,) or (n_samples, n_channels)"
        )
    signal = samples if samples.ndim == 1 else samples.mean(axis=1)
    if samples.dtype.kind in "iu":
        middle, half = (
            (128, 128) if samples.dtype == np.uint8 else (0, np.iinfo(samples.dtype).max + 1.0)
        )
        signal = (signal - middle) / half
    with np.errstate(over="ignore"):  # doubles that are too large for floats count as infinite
        signal = signal.astype(np.float32)
    if not np.isfinite(signal).all():
        raise ValueError(
            f"samples of shape {samples.shape} hold {int((~np.isfinite(signal)).sum())} NaN or infinite values: "
            "expected floats of full scale ±1"
        )
    if sampling_rate != audio.SAMPLING_RATE and len(signal):
        signal = soxr.resample(signal, sampling_rate, audio.SAMPLING_RATE).astype(np.float32)
    return signal


def _require_modest(path: Path, longest_s: float) -> None:
    """Refuse, by its header alone, a file that would take too long or too much memory to decode."""
    try:
        header = soundfile.info(path)
    except (soundfile.LibsndfileError, OSError):
        return  # whoever reads it says why
    if not LOWEST_HZ <= header.samplerate <= HIGHEST_HZ:
        raise ValueError(
            f"{path.name} is sampled at {header.samplerate} Hz; expected {LOWEST_HZ:,} to {HIGHEST_HZ:,}: is it "
            "damaged?"
        )
    if header.frames / header.samplerate > longest_s:
        raise ValueError(
            f"{path.name} is {header.frames / header.samplerate:.0f} s long; expected at most {longest_s:.0f} s"
            + (LONGER if longest_s < LONGEST_S else ": give a part of it")
        )
    if header.frames * header.channels > LARGEST_DECODED:
        raise ValueError(
            f"{path.name} would take {header.frames * header.channels / 2**28:.0f} GB of memory: give a part of "
            "it, or one channel, or a lower sampling rate"
        )


def _masked(values: np.ndarray, emotions: list[str], only: tuple[str, ...]) -> np.ndarray:
    """Leave some emotions alone, and make them add up to 1."""
    if strange := set(only) - set(emotions):
        raise ValueError(
            f"the model does not know {', '.join(sorted(strange))}; it knows {', '.join(emotions)}"
        )
    kept = np.array([not only or emotion in only for emotion in emotions])
    values = np.where(kept, values, 0)
    return values / values.sum() if values.sum() > 0 else kept / kept.sum()


if __name__ == "__main__":
    try:
        status = main()
    except BrokenPipeError:  # whoever read the answers has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)
