"""Using a saved model: emotions, with probabilities, of a file, an array or a long recording.

``predict_emotion(audio_path, model_path)`` is the short way and :func:`predict` the long one.
:func:`timeline` and :func:`verdict` are for recordings with many utterances. Inputs are computed by
the functions that computed the training inputs (``artifacts.Input``).

Run ``python -m helpers.predict FILE… [--model DIR] [--enrol FILE…] [--only happy sad] [--unsure P]
[--timeline]``.
"""

import argparse
import json
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import soxr

from helpers import artifacts, audio, corpora, paths

UNSURE = "unsure"
WINDOW_S, WINDOW_HOP_S = 4.0, 2.0  # of a timeline; an utterance of the corpora lasts 2 to 5 s
LONGEST_S = 2 * 3600.0  # of a recording
LOWEST_HZ, HIGHEST_HZ = 1_000, 1_000_000  # sampling rates
LOUDEST = 1000.0  # times full scale; more is no recording
SATISFACTION = {
    group: tuple(name for name, emotion in corpora.EMOTIONS.items() if emotion.group == group)
    for group in ("satisfied", "unsatisfied")
}
OUT_OF_DOMAIN = {
    "duration_s": "{:.1f} s long; training clips have {:.1f} to {:.1f}",
    "level_dbfs": "{:.0f} dBFS loud; training clips have {:.0f} to {:.0f}",
    "snr_db": "{:.0f} dB between speech and pauses; training clips have {:.0f} to {:.0f}",
    "bandwidth_hz": "{:,.0f} Hz of bandwidth; training clips have {:,.0f} to {:,.0f}",
}
# of the command
ARGUMENTS = {
    "recordings": {
        "nargs": "+",
        "type": Path,
        "metavar": "FILE",
        "help": "recordings, or folders of them",
    },
    "--model": {"default": "", "help": "folder of a model, or its name in data/models"},
    "--enrol": {
        "nargs": "+",
        "default": (),
        "type": Path,
        "metavar": "FILE",
        "help": "clips of the same speaker, or folders of them",
    },
    "--only": {
        "nargs": "+",
        "default": (),
        "metavar": "EMOTION",
        "help": "emotions to choose among",
    },
    "--unsure": {
        "type": float,
        "default": 0.0,
        "metavar": "P",
        "help": '"unsure" below this probability, 0 to 1',
    },
    "--timeline": {"action": "store_true", "help": "windows of a long recording, and a verdict"},
    "--json": {"action": "store_true", "help": "a line of JSON for each recording"},
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
        What is wrong with the recording, and how it differs from the training recordings: the
        answer is less reliable then.
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
    model: str | Path | artifacts.SavedModel,
    sampling_rate: int | None = None,
    enrolment: tuple = (),
    only: tuple[str, ...] = (),
    unsure_below: float = 0.0,
) -> Prediction:
    """Recognise the emotion of one clip.

    Parameters
    ----------
    recording
        A file, or samples, shape ``(n_samples,)``, ``(n_samples, n_channels)`` or
        ``(1, n_samples)``: floats of full scale ±1, or signed integers.
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
    model = opened(model)
    with warnings.catch_warnings(record=True, action="always") as told:
        signal = read_signal(recording, sampling_rate)
        known = [read_signal(clip, sampling_rate) for clip in enrolment]
    found = _probabilities(model, signal, known, only)
    top = list(found.nlargest(3).items())
    emotion, probability = top[0]
    return Prediction(
        emotion if probability >= unsure_below else UNSURE,
        probability,
        found.to_dict(),
        top,
        model.answering(known),
        [
            *{str(w.message): 0 for w in told if w.category is UserWarning},
            *out_of_domain_warnings(signal, model),
        ],
    )


def timeline(
    recording: str | Path | np.ndarray,
    model: str | Path | artifacts.SavedModel,
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
    spoken, rows = np.zeros(len(signal), bool), []
    for begin, stop in audio.voice_activity(signal, detector):
        spoken[begin:stop] = True
    for start in range(0, max(len(signal) - length, 0) + hop, hop):
        window, speech = signal[start : start + length], spoken[start : start + length]
        if speech.sum() >= 2 * audio.MIN_DURATION_S * audio.SAMPLING_RATE:
            found = _probabilities(model, window, known, only)
            times = np.array([start, start + len(window)]) / audio.SAMPLING_RATE
            rows.append([*times, speech.mean(), found.idxmax(), found.max(), *found])
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
    place = np.interp(windows["start_s"], windows["start_s"].agg(["min", "max"]), [1, late_weight])
    shares = windows.filter(regex="^p_").mul(place * windows["speech"], axis=0).sum()
    shares.index = shares.index.str.removeprefix("p_")
    if groups:
        shares = pd.Series({name: shares.reindex(own).sum() for name, own in groups.items()})
    artifacts.require(shares.sum() > 0, f"the model's emotions are in none of the groups {groups}")
    return (shares / shares.sum()).sort_values(ascending=False).to_dict()


def out_of_domain_warnings(signal: np.ndarray, model: artifacts.SavedModel) -> list[str]:
    """Return in which way a clip differs from the training recordings.

    Parameters
    ----------
    signal
        One clip, at ``audio.SAMPLING_RATE``.
    model
        The ``recording_statistics`` of its card are name → percentiles 1 and 99 of the training
        clips. The level does not matter to a model of channel-normalised clips.
    """
    found = audio.recording_statistics(signal)
    bounds = dict(model.card.get("recording_statistics", {}))
    if all(reads.channel_normalised for reads in model.reads):
        bounds.pop("level_dbfs", None)
    return [
        OUT_OF_DOMAIN[name].format(found[name], low, high)
        for name, (low, high) in bounds.items()
        if not low <= found[name] <= high
    ]


def find_model(name: str = "") -> Path:
    """Return the folder of a model: a path, or a name in ``data/models``; by default ravdess-8."""
    folder = Path(name or "ravdess-8")
    return folder if (folder / "card.json").is_file() else paths.PROJECT / "data/models" / folder


def opened(model: str | Path | artifacts.SavedModel) -> artifacts.SavedModel:
    """Return a loaded model unchanged; load one that is given as a folder."""
    return model if isinstance(model, artifacts.SavedModel) else artifacts.load(Path(model))


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
        # a limit for memory, too
        signal, name = audio.load(recording, 0.0, longest_s + 1), Path(recording).name
    seconds = len(signal) / audio.SAMPLING_RATE
    artifacts.require(
        audio.MIN_DURATION_S <= seconds <= longest_s,
        f"{name} is {seconds:.2f} s long or longer; expected {audio.MIN_DURATION_S} to "
        f"{longest_s:.0f} s. A timeline takes up to {LONGEST_S:.0f} s (--timeline; in the app, the "
        "page for long recordings)",
    )
    peak = np.abs(signal).max()
    artifacts.require(
        peak <= LOUDEST,
        f"{name} holds NaN, or goes up to {peak:.3g} times full scale; expected floats of full "
        f"scale ±1, and at most {LOUDEST:.0f} times that: is it damaged?",
    )
    artifacts.require(
        20 * np.log10(audio.frame_rms(signal).max() + 1e-10) >= audio.SILENT_DBFS,
        f"{name} is silent (nothing above {audio.SILENT_DBFS:.0f} dBFS)",
    )
    return signal


def _mono(samples: np.ndarray, sampling_rate: int | None) -> np.ndarray:
    """Return samples as one channel of floats at the project's sampling rate."""
    artifacts.require(
        sampling_rate is not None and LOWEST_HZ <= sampling_rate <= HIGHEST_HZ,
        f"samples need their sampling rate, {LOWEST_HZ:,} to {HIGHEST_HZ:,} Hz; found "
        f"{sampling_rate}",
    )
    artifacts.require(
        samples.dtype.kind in ("i", "f") and samples.ndim in (1, 2) and 0 not in samples.shape[1:],
        f"samples are of type {samples.dtype}, shape {samples.shape}; expected signed integers, or "
        "floats of full scale ±1, of shape (n_samples,) or (n_samples, n_channels)",
    )
    signal = samples.ravel() if 1 in samples.shape else samples
    signal = signal if signal.ndim == 1 else audio.mixed(signal)[0]
    if samples.dtype.kind == "i":
        signal = signal / -float(np.iinfo(samples.dtype).min)
    if sampling_rate != audio.SAMPLING_RATE and len(signal):
        signal = soxr.resample(signal, sampling_rate, audio.SAMPLING_RATE)
    return signal.clip(-1e30, 1e30).astype(np.float32)  # floats have no larger numbers


def _probabilities(
    model: artifacts.SavedModel, signal: np.ndarray, known: list[np.ndarray], only: tuple[str, ...]
) -> pd.Series:
    """Return emotion → probability; 0 for those that are not in `only`, scaled to add up to 1."""
    strange = ", ".join(sorted(set(only) - set(model.emotions)))
    artifacts.require(
        not strange, f"the model does not know {strange}; it knows {', '.join(model.emotions)}"
    )
    kept = np.isin(model.emotions, only or model.emotions)
    values = np.where(kept, model.probabilities([signal], known)[0], 0)
    values = values if values.sum() > 0 else kept
    return pd.Series(values / values.sum(), model.emotions)


def main(arguments: list[str] | None = None) -> int:
    """Recognise emotions in recordings; the exit code is 1 if one of them could not be answered."""
    parser = argparse.ArgumentParser("python -m helpers.predict", description=main.__doc__)
    for name, settings in ARGUMENTS.items():
        parser.add_argument(name, **settings)
    options, failed = parser.parse_args(arguments), False
    files, options.enrol = _recordings(options.recordings), _recordings(options.enrol)
    options.only = " ".join(options.only).replace(",", " ").split()
    try:
        artifacts.require(
            0 <= options.unsure <= 1,
            f"--unsure {options.unsure:g}: it is a probability, e.g. 0.5 for 50 %",
        )
        artifacts.require(files, f"there are no recordings ({', '.join(audio.AUDIO_SUFFIXES)})")
        model = artifacts.load(find_model(options.model))
    except ValueError as error:
        parser.error(str(error))
    for path in files:
        try:
            print(_answer(path, model, options), flush=True)
        except (ValueError, OSError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            failed = True
    return int(failed)


def _recordings(given: list[Path]) -> list[Path]:
    """Return files as they are, and the recordings in folders."""
    found = []
    for path in given:
        found += sorted(audio.files_below(path)) if path.is_dir() else [path]
    return found


def _answer(path: Path, model: artifacts.SavedModel, options: argparse.Namespace) -> str:
    """Return what the model answers for a recording, as a few lines of text or as JSON."""
    given = {"enrolment": options.enrol, "only": options.only}
    if options.timeline:
        windows = timeline(path, model, **given)
        answer = {"verdict": verdict(windows), "windows": windows.to_dict("records")}
        table = windows.iloc[:, :5].round(2).to_string(index=False)
        text = f"{_in_words(answer['verdict'])}\n{table}" if len(windows) else "nobody speaks"
    else:
        found = predict(path, model, unsure_below=options.unsure, **given)
        answer = asdict(found)
        lines = [f"{found.emotion} ({_in_words(dict(found.top))})", *found.warnings]
        text = "\n  warning: ".join(lines)
    return json.dumps({"file": str(path)} | answer) if options.json else f"{path}: {text}"


def _in_words(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())


if __name__ == "__main__":
    sys.exit(main())
