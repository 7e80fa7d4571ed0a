"""Reading audio: any format that libsndfile decodes becomes one float32 mono signal at one sampling rate.

Conventions
-----------
``signal`` is float32, mono, shape ``(n_samples,)``, full scale ±1; ``sampling_rate`` is in Hz. A corpus's files are only
ever read.

Run ``python -m helpers.audio FOLDER TARGET`` to convert recordings that libsndfile does not read (m4a, webm, amr, video).
"""

import argparse
import functools
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import scipy.fft
import soundfile
import soxr
from numpy.lib.stride_tricks import sliding_window_view

from helpers.cache import fetch, recipe_hash
from helpers.parallel import over_clips, side_by_side

SAMPLING_RATE = (
    16_000  # Hz; speech below 8 kHz is what all corpora and all pretrained speech models share
)
MIN_DURATION_S = 0.2  # shorter clips hold no syllable
LONG_DURATION_S = 60.0  # longer ones are conversations, not utterances
TRIM_DB = 40.0  # leading and trailing frames this far below the loudest frame are silence
SILENT_DBFS = -60.0  # a clip whose loudest frame is below this holds no speech
CLIPPED_SHARE = 0.001  # share of samples at full scale from which a clip counts as clipped
SAME_SHOWN = 10  # clips of the same audio that the quality report names beside each: of thousands of empty ones, not all
PIECE_S = 7.0  # longer clips are cut for models whose cost grows with the square of the duration
PIECE_OVERLAP_S = 1.0  # so that no syllable falls between two pieces
LEVEL_DBFS, FLOOR_DBFS, TOP_HZ = (
    -20.0,
    -60.0,
    7_000.0,
)  # of a levelled clip: loudest 32 ms, noise floor, end of the band
KEPT_PAUSE_S = 0.3  # shorter pauses are part of how something is said
AUDIO_SUFFIXES = {".wav", ".flac", ".opus", ".ogg", ".mp3", ".aiff", ".aif", ".au"}
OTHER_SUFFIXES = {
    ".m4a",
    ".mp4",
    ".aac",
    ".webm",
    ".wma",
    ".amr",
    ".3gp",
    ".mov",
    ".mkv",
}  # read by ffmpeg alone


def is_audio(path: Path, suffixes: set[str] = AUDIO_SUFFIXES) -> bool:
    """Whether a name is that of an audio file; hidden ones, such as a file manager's stray "._x.wav", are none."""
    return path.suffix.lower() in suffixes and not path.name.startswith(".")


def load(
    path: str | Path,
    start_s: float | None = None,
    end_s: float | None = None,
    sampling_rate: int = SAMPLING_RATE,
) -> np.ndarray:
    """Decode an audio file, or a part of it, to a mono signal.

    Parameters
    ----------
    path
        Any format that libsndfile reads: wav, flac, ogg, opus, mp3, …
    start_s, end_s
        Cut this part out, in seconds; whole file by default.
    sampling_rate
        Of the returned signal, in Hz; resampled (soxr, high quality) where the file's differs.

    Returns
    -------
    np.ndarray [shape=(n_samples,), float32]
        Channels averaged.

    Raises
    ------
    ValueError
        If the file can't be decoded, holds no samples, or holds NaN or infinite samples; the text says which.
    FileNotFoundError
        If it is not there.
    """
    signal, native_rate, *_ = _decode(path, start_s, end_s)
    return _resample(signal, native_rate, sampling_rate)


def measure(path: str | Path, start_s: float | None = None, end_s: float | None = None) -> dict:
    """Describe a clip for the quality report; never raises on bad audio.

    Returns
    -------
    dict
        ``duration_s`` (NaN if unreadable), ``audio_hash`` (of the decoded samples, so that the same audio is
        recognised under another name or in another container), ``sampling_rate`` (Hz), ``channels``, ``peak_dbfs``,
        ``level_dbfs`` (loudest 32 ms), ``clipped_share`` (0–1), ``quality``: "ok", or the faults found, joined by "; ".
        Faults that start with "unusable" exclude the clip from the later notebooks.
    """
    nothing = {
        "duration_s": np.nan,
        "audio_hash": "",
        "sampling_rate": 0,
        "channels": 0,
        "peak_dbfs": np.nan,
        "level_dbfs": np.nan,
        "clipped_share": np.nan,
    }
    try:
        signal, native_rate, channels, short = _decode(path, start_s, end_s)
    except (ValueError, OSError) as error:
        return {**nothing, "quality": f"unusable: {str(error).splitlines()[0]}"}
    resampled = _resample(signal, native_rate, SAMPLING_RATE)
    level = 20 * np.log10(frame_rms(resampled).max() + 1e-10)
    clipped = float(np.mean(np.abs(signal) >= 0.999))
    duration = len(signal) / native_rate
    faults = [
        text
        for found, text in [
            (
                duration < MIN_DURATION_S,
                f"unusable: {duration:.2f} s, shorter than {MIN_DURATION_S} s",
            ),
            (level < SILENT_DBFS, f"unusable: silent (loudest 32 ms at {level:.0f} dBFS)"),
            (duration > LONG_DURATION_S, f"{duration:.0f} s long: cut it into utterances"),
            (short, "cut short: fewer samples than its header or its times promise"),
            (clipped > CLIPPED_SHARE, f"clipped ({clipped:.1%} of samples at full scale)"),
            (
                native_rate < SAMPLING_RATE,
                f"sampled at {native_rate} Hz: nothing above {native_rate // 2} Hz",
            ),
        ]
        if found
    ]
    return {
        "duration_s": duration,
        "audio_hash": hash_samples(resampled),
        "sampling_rate": native_rate,
        "channels": channels,
        "peak_dbfs": float(20 * np.log10(np.abs(signal).max() + 1e-10)),
        "level_dbfs": float(level),
        "clipped_share": clipped,
        "quality": "; ".join(faults) or "ok",
    }


def measure_all(utterances: pd.DataFrame, n_jobs: int = -1) -> pd.DataFrame:
    """Measure every utterance, in parallel; files that have not changed since are not opened again.

    Parameters
    ----------
    utterances
        With ``utterance_id``, ``path``, ``start_s`` and ``end_s`` (s, NaN for the whole file).

    Returns
    -------
    pd.DataFrame
        The columns of :func:`measure`, rows in the order of `utterances`. The quality of clips whose decoded audio is the
        same says so, with the other's id.
    """
    jobs = ((u.path, u.start_s, u.end_s) for u in utterances.itertuples())
    table = pd.DataFrame(over_clips(_stored_measure, jobs, n_jobs, "audio", len(utterances)))
    return table.assign(quality=same_audio(table, utterances["utterance_id"]))


def same_audio(table: pd.DataFrame, utterance_ids: pd.Series) -> pd.Series:
    """Return the quality of clips, of which those whose decoded audio is the same say so.

    Parameters
    ----------
    table
        With ``audio_hash`` and ``quality``, a row per clip.
    utterance_ids
        Of the rows.
    """
    ids, quality = utterance_ids.to_numpy(object), table["quality"].to_numpy(object, copy=True)
    twice = table.index[table["audio_hash"].duplicated(keep=False) & (table["audio_hash"] != "")]
    for same in table.loc[twice].groupby("audio_hash").groups.values():
        for i in same:
            others = [ids[j] for j in same[: SAME_SHOWN + 1] if j != i][:SAME_SHOWN]
            more = len(same) - 1 - len(others)
            quality[i] = (
                ("" if quality[i] == "ok" else quality[i] + "; ")
                + f"same audio as {', '.join(others)}"
                + (f" and {more} more" if more else "")
            )
    return pd.Series(quality, dtype=table["quality"].dtype)


def levelled(signal: np.ndarray) -> np.ndarray:
    """Take from a recording what tells of the microphone rather than of the voice: its level, its noise floor, its top band.

    Use it for models that meet other people's recordings: in one corpus loudness helps to tell angry from sad, in the next
    it tells how far away the microphone stood; and features of what is hardly there (the quietest frames, the band at the
    edge of a resampling filter) change with every format.

    Parameters
    ----------
    signal : np.ndarray [shape=(n_samples,)]
        Mono, at ``SAMPLING_RATE``.

    Returns
    -------
    np.ndarray [shape=(n_samples,), float32]
        Trimmed, its loudest 32 ms at ``LEVEL_DBFS``, nothing above ``TOP_HZ``, over white noise of ``FLOOR_DBFS``, which is
        always the same.
    """
    signal = trim(signal)
    signal = signal * (10 ** (LEVEL_DBFS / 20) / max(frame_rms(signal).max(), 1e-5))
    taps, n_fft = low_pass(), 1024  # short transforms fit into the cache (overlap-save)
    step, delay = n_fft - len(taps) + 1, len(taps) // 2
    padded = np.pad(signal.astype(float), (delay, delay + -len(signal) % step))
    pieces = sliding_window_view(padded, n_fft)[::step]
    filtered = scipy.fft.irfft(scipy.fft.rfft(pieces) * scipy.fft.rfft(taps, n_fft), n_fft)[
        :, len(taps) - 1 :
    ].ravel()
    return (filtered[: len(signal)] + noise_floor(len(signal))).astype(np.float32)


@functools.cache
def low_pass() -> np.ndarray:
    """Return the filter of :func:`levelled`: 129 symmetric taps (a sinc under a Hamming window), so that nothing is shifted."""
    taps = np.sinc(2 * TOP_HZ / SAMPLING_RATE * (np.arange(129) - 64)) * np.hamming(129)
    return taps / taps.sum()


def noise_floor(n_samples: int) -> np.ndarray:
    """Return the noise of :func:`levelled`: the beginning is the same, however long it is."""
    return _noise(1 << n_samples.bit_length())[:n_samples]


@functools.lru_cache(maxsize=4)
def _noise(n_samples: int) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(n_samples) * 10 ** (FLOOR_DBFS / 20)
    noise.setflags(write=False)  # everybody gets the same
    return noise


def traits(signal: np.ndarray) -> dict[str, float]:
    """Describe how a clip was recorded, to compare it with the training recordings.

    Returns
    -------
    dict
        ``duration_s``; ``level_dbfs`` (loudest 32 ms); ``snr_db`` (loudest against quietest tenth of the frames);
        ``bandwidth_hz`` (below which 99 % of the energy lie).
    """
    level = 20 * np.log10(frame_rms(signal) + 1e-5)  # digital silence counts as -100 dB
    spectrum = np.abs(np.fft.rfft(signal * np.hanning(len(signal)))) ** 2
    edge = np.searchsorted(np.cumsum(spectrum), 0.99 * spectrum.sum())
    low, high = np.percentile(level, [10, 90])
    return {
        "duration_s": len(signal) / SAMPLING_RATE,
        "level_dbfs": float(level.max()),
        "snr_db": float(high - low),
        "bandwidth_hz": float(edge * SAMPLING_RATE / len(signal)),
    }


def trim(signal: np.ndarray, top_db: float = TRIM_DB, hop_length: int = 160) -> np.ndarray:
    """Cut off leading and trailing silence: frames (32 ms every 10 ms) more than `top_db` dB below the loudest one.

    What ``librosa.effects.trim`` does, in half the time. A signal that is silent throughout is returned as it is.
    """
    rms = frame_rms(signal, hop_length=hop_length)
    heard = np.flatnonzero(rms > rms.max() * 10 ** (-top_db / 20))
    return signal[heard[0] * hop_length : (heard[-1] + 1) * hop_length] if len(heard) else signal


def voice_activity(signal: np.ndarray, method: str = "auto") -> np.ndarray:
    """Find the parts of a clip in which somebody speaks.

    Parameters
    ----------
    signal
        At ``SAMPLING_RATE``.
    method
        "silero": a small network that was trained to tell speech from everything else (Silero VAD, 2021; it comes with its
        package). "energy": frames within ``TRIM_DB`` of the loudest one, for quiet rooms. "auto": silero where it is installed.

    Returns
    -------
    np.ndarray [shape=(n_parts, 2), int]
        First sample of each part and the one after its last, in order, not overlapping; pauses shorter than ``KEPT_PAUSE_S``
        belong to a part. No rows where nobody speaks.

    Raises
    ------
    ModuleNotFoundError
        If silero is asked for and not installed.
    """
    detector = _silero() if method in ("auto", "silero") else None
    if method == "silero" and detector is None:
        raise ModuleNotFoundError(
            "silero-vad is not installed: pip install silero-vad, or use method='energy'"
        )
    if detector is not None:
        parts = np.array(detector(signal), int).reshape(-1, 2)
    else:
        rms = frame_rms(signal)
        heard = np.concatenate(
            [[0], rms > max(rms.max() * 10 ** (-TRIM_DB / 20), 10 ** (SILENT_DBFS / 20)), [0]]
        ).astype(int)
        parts = np.flatnonzero(np.diff(heard)).reshape(-1, 2) * 160
    if not len(parts):
        return parts
    gaps = parts[1:, 0] - parts[:-1, 1] >= KEPT_PAUSE_S * SAMPLING_RATE
    first, last = np.concatenate([[True], gaps]), np.concatenate([gaps, [True]])
    return np.stack([parts[first, 0], parts[last, 1]], axis=1).clip(0, len(signal))


def speech_only(signal: np.ndarray, parts: np.ndarray, margin_s: float = 0.1) -> np.ndarray:
    """Return a clip without its silent zones: the parts of :func:`voice_activity`, each with a margin, joined.

    A clip in which no speech was found is returned as it is: that a detector is deaf to a whisper is no reason to lose it.
    """
    margin = round(margin_s * SAMPLING_RATE)
    ends = [
        0,
        *((a[1] + b[0]) // 2 for a, b in itertools.pairwise(parts)),
        len(signal),
    ]  # margins never overlap
    kept = [
        signal[max(start - margin, ends[i]) : min(stop + margin, ends[i + 1])]
        for i, (start, stop) in enumerate(parts)
    ]
    return np.concatenate(kept) if kept else signal


def pieces(
    n_samples: int, longest_s: float = PIECE_S, overlap_s: float = PIECE_OVERLAP_S
) -> list[slice]:
    """Cut a long clip into as few pieces of equal length as possible, evenly spread, that overlap.

    Parameters
    ----------
    n_samples
        Of the clip, at ``SAMPLING_RATE``.
    longest_s, overlap_s
        A piece's length, and by how much neighbours overlap at least, in seconds.

    Returns
    -------
    list of slice
        One for a clip that is not too long; none of the clip's samples is lost.
    """
    if not 0 <= overlap_s < longest_s:
        raise ValueError(
            f"pieces of {longest_s} s can't overlap by {overlap_s} s: give an overlap of at least 0 and less "
            "than a piece"
        )
    length, overlap = round(longest_s * SAMPLING_RATE), round(overlap_s * SAMPLING_RATE)
    if n_samples <= length:
        return [slice(0, n_samples)]
    count = -(-(n_samples - overlap) // (length - overlap))
    return [
        slice(start, start + length)
        for start in np.linspace(0, n_samples - length, count).round().astype(int).tolist()
    ]


def convert(source: Path, target: Path) -> Path:
    """Write any recording as a 16 kHz, 16-bit mono wav: with ffmpeg where it is installed, else with libsndfile.

    Parameters
    ----------
    source
        Anything that ffmpeg decodes (also the sound of a video); without it, what libsndfile decodes.
    target
        The wav; it appears under its name only when it is complete.

    Raises
    ------
    ValueError
        If the recording can't be decoded; the text says by what, and why.
    """
    source, target = Path(source), Path(target)
    if not source.is_file():
        raise FileNotFoundError(f"{source} is not there")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting") as folder:
        whole = Path(folder) / "whole.wav"
        if program := shutil.which("ffmpeg"):
            done = subprocess.run(
                [
                    program,
                    "-nostdin",
                    "-v",
                    "error",
                    "-i",
                    source.resolve(),
                    "-vn",
                    "-ac",
                    "1",
                    "-ar",
                    str(SAMPLING_RATE),
                    "-c:a",
                    "pcm_s16le",
                    whole,
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode or not whole.is_file():
                why = done.stderr.strip().splitlines() or ["no sound in it"]
                raise ValueError(
                    f"{source.name} can't be decoded by ffmpeg ({why[-1]}): is it a recording, and complete?"
                )
        else:
            try:
                soundfile.write(whole, load(source), SAMPLING_RATE, subtype="PCM_16")
            except ValueError as error:
                raise ValueError(
                    f"{error} ffmpeg reads more formats, and is not installed."
                ) from None
        os.replace(whole, target)
    return target


def main() -> None:
    """Convert a folder of recordings, keeping its tree and names; what can't be converted is named at the end."""
    parser = argparse.ArgumentParser(prog="python -m helpers.audio", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="of recordings of any format")
    parser.add_argument("target", type=Path, help="folder of the 16 kHz wavs")
    options = parser.parse_args()
    known = AUDIO_SUFFIXES | OTHER_SUFFIXES
    sources = [path for path in sorted(options.folder.rglob("*")) if is_audio(path, known)]
    if not sources:
        raise SystemExit(f"{options.folder} holds no recordings ({', '.join(sorted(known))})")
    targets = [
        options.target / path.relative_to(options.folder).with_suffix(".wav") for path in sources
    ]
    if doubled := {target for target in targets if targets.count(target) > 1}:
        raise SystemExit(
            f"{len(doubled)} recordings differ in their suffix alone, e.g. {min(doubled)}: rename one of each"
        )
    faults = [
        fault
        for fault in over_clips(
            _converted, zip(sources, targets, strict=True), progress="converting"
        )
        if fault
    ]
    print(f"{len(sources) - len(faults)} of {len(sources)} recordings lie under {options.target}")
    if faults:
        raise SystemExit("\n".join(faults))


def frame_rms(signal: np.ndarray, frame_length: int = 512, hop_length: int = 160) -> np.ndarray:
    """Return the root mean square of each centred frame (32 ms every 10 ms by default), shape ``(n_frames,)``."""
    frames = sliding_window_view(np.pad(signal, frame_length // 2), frame_length)[::hop_length]
    return np.sqrt(np.einsum("ij,ij->i", frames, frames) / frame_length)


def hash_samples(signal: np.ndarray) -> str:
    """Hash the decoded samples at 16 bits, which is what survives a lossless change of container."""
    return hashlib.sha256(np.round(signal * 32767).astype("<i2").tobytes()).hexdigest()[:32]


def play(signal: np.ndarray, sampling_rate: int = SAMPLING_RATE) -> None:
    """Show an audio player in JupyterLab or Colab; do nothing in a headless run, whose outputs are published."""
    if not os.environ.get("SER_RUN_LOG"):
        from IPython.display import Audio, display

        display(Audio(signal, rate=sampling_rate))


def _converted(source: Path, target: Path) -> str:
    """Convert one recording; returns what went wrong."""
    try:
        convert(source, target)
    except (ValueError, OSError) as error:
        return f"{source}: {error}"
    return ""


@functools.cache
def _silero() -> Callable | None:
    """Return a function from a signal to the parts with speech; None where the package is not installed."""
    import torch  # late: it takes seconds, and most of this module does without

    threads = torch.get_num_threads()
    try:
        import silero_vad
    except ModuleNotFoundError:
        return None
    finally:
        torch.set_num_threads(threads)  # importing it sets them to one, for the whole process
    # the same answers in a sixth of the time, without a loop over frames
    model = _SideBySide(silero_vad.load_silero_vad(sequence=True))

    def detect(signal: np.ndarray) -> list[tuple[int, int]]:
        found = silero_vad.get_speech_timestamps_sequence(
            signal, model, sampling_rate=SAMPLING_RATE
        )
        return [(part["start"], part["end"]) for part in found]

    return detect


class _SideBySide:
    """Silero's model, going through a long recording in as many pieces as there are cores.

    A piece begins half a minute early, because the model remembers what it heard: then its answers are those of the whole
    to a few hundredths, but for some frames at the joint (after two seconds some would be 0.3 off).
    """

    frame, early, shortest = 512, 1024, 120 * SAMPLING_RATE  # samples, frames, samples

    def __init__(self, model):
        self.model = model

    def audio_forward(self, signal: np.ndarray, **options) -> np.ndarray:
        pieces = max(min(joblib.cpu_count(), len(signal) // self.shortest), 1)
        edges = np.linspace(0, -(-len(signal) // self.frame), pieces + 1).astype(int)

        def heard(i: int) -> np.ndarray:
            early = min(edges[i], self.early)
            piece = signal[(edges[i] - early) * self.frame : edges[i + 1] * self.frame]
            return self.model.audio_forward(piece, **options)[early:]

        return np.concatenate(side_by_side(heard, range(pieces))) if pieces > 1 else heard(0)


def _stored_measure(path: str, start_s: float, end_s: float) -> dict:
    stat = Path(path).stat() if path and Path(path).is_file() else None
    key = recipe_hash(
        str(path),
        stat and stat.st_mtime_ns,
        stat and stat.st_size,
        start_s,
        end_s,
        measure,
        _decode,
        hash_samples,
    )
    stored = fetch(
        "measures", key, lambda: {"row": np.array(json.dumps(measure(path, start_s, end_s)))}
    )
    if (
        "row" in stored
    ):  # one text is read in a fifth of the time that eight numbers, as earlier versions stored them, take
        return json.loads(stored["row"].item())
    return {name: value.item() for name, value in stored.items()}


def _decode(
    path: str | Path, start_s: float | None, end_s: float | None
) -> tuple[np.ndarray, int, int, bool]:
    """Return (mono signal, the file's sampling rate in Hz, number of channels, whether samples that should be there lack)."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path or 'its audio file'} is not there")
    path = Path(path)
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            begin = 0 if start_s is None or np.isnan(start_s) else round(start_s * rate)
            stop = file.frames if end_s is None or np.isnan(end_s) else round(end_s * rate)
            if begin >= file.frames > 0:
                raise ValueError(
                    f"{path.name} is {file.frames / rate:.2f} s long, but a part from {start_s:.2f} s "
                    "was asked for"
                )
            file.seek(begin)
            signal = file.read(max(stop - begin, 0), dtype="float32", always_2d=True)
            # libsndfile's own remarks: a wav whose header promises more data, an ogg stream without its end
            remarks = file.extra_info.lower()
            short = (
                stop > file.frames + 0.1 * rate
                or "(should be" in remarks
                or "end-of-stream" in remarks
            )
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"{path.name} can't be decoded ({error.error_string.rstrip('.')}; {path.stat().st_size} "
            "bytes): is it audio, and complete?"
        ) from None
    if signal.size == 0:
        raise ValueError(f"{path.name} holds no samples")
    if not np.isfinite(signal).all():
        raise ValueError(
            f"{path.name} holds {int((~np.isfinite(signal)).sum())} NaN or infinite samples"
        )
    return (
        signal.mean(axis=1) if signal.shape[1] > 1 else signal[:, 0],
        rate,
        signal.shape[1],
        short,
    )


def _resample(signal: np.ndarray, native_rate: int, sampling_rate: int) -> np.ndarray:
    if native_rate == sampling_rate:
        return signal
    return soxr.resample(signal, native_rate, sampling_rate).astype(np.float32)


if __name__ == "__main__":
    main()
