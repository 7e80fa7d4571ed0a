"""Reading audio: decoding, trimming, voice activity and channel normalisation.

Conventions
-----------
``signal`` is float32, mono, shape ``(n_samples,)``, full scale ±1; ``sampling_rate`` is in Hz. The
files of a corpus are only read, never written.
"""

import functools
import hashlib
import json
import os
import re
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import soxr
from numpy.lib.stride_tricks import sliding_window_view

from helpers.cache import hash_of, map_clips

VERSION = 1  # raise it when a change of this module changes results
SAMPLING_RATE = 16_000  # Hz; all corpora and all pretrained speech models have speech below 8 kHz
MIN_DURATION_S = 0.2  # shorter clips hold no syllable
LONG_DURATION_S = 60.0  # longer ones are conversations, not utterances
TRIM_DB = 40.0  # leading and trailing frames this far below the loudest frame are silence
SILENT_DBFS = -60.0  # a clip whose loudest frame is below this holds no speech
# of a channel-normalised signal: its loudest 32 ms, its noise floor, the upper end of its band
LEVEL_DBFS, FLOOR_DBFS, TOP_HZ = -20.0, -60.0, 7_000.0
KEPT_PAUSE_S = 0.3  # shorter pauses are part of how something is spoken
NATIVE = {".wav", ".flac", ".opus", ".ogg", ".oga", ".aiff", ".aif", ".au"}  # of libsndfile
AUDIO_SUFFIXES = NATIVE | {
    ".mp3",
    ".m4a",
    ".aac",
    ".amr",
    ".3gp",
    ".wma",
    ".webm",
    ".mp4",
    ".mov",
    ".mkv",
}
SYSTEM = {"__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
ENDLESS = 2**40  # samples; a header that says more does not know
CANCELLED = 0.001  # a mix of channels that has less than this of their power: -30 dB
# only files of this machine and formats of recordings: a playlist could name any other file
FFMPEG = [
    "-nostdin",
    "-hide_banner",
    "-protocol_whitelist",
    "file",
    "-format_whitelist",
    "aac,amr,asf,avi,flac,flv,matroska,mov,mp3,ogg,wav",
]


def scan(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield every file below a folder, and why it is not taken: "" for an audio file.

    Links to folders are followed, each folder is read once. What a system keeps for itself is not
    taken: hidden files and folders ("._x.wav", ".Trash-1000"), "__MACOSX" and the like.
    """
    read = {os.path.realpath(root)}
    for place, folders, files in os.walk(root, followlinks=True):
        for name in sorted(folders):
            real, why = os.path.realpath(os.path.join(place, name)), _hidden(name)
            if why or real in read:
                folders.remove(name)
                yield Path(place, name), why or "a link to a folder that is read already"
            read.add(real)
        folders.sort()
        for name in sorted(files):
            kind = "" if Path(name).suffix.lower() in AUDIO_SUFFIXES else "no audio file"
            yield Path(place, name), _hidden(name) or kind


def files_below(root: Path) -> Iterator[Path]:
    """Yield the audio files that :func:`scan` takes."""
    return (path for path, why in scan(root) if not why)


def shown(path: Path, root: Path) -> str:
    """Return a path below a root as text that can be printed, whatever its encoding."""
    return os.fsencode(path.relative_to(root)).decode("utf-8", "backslashreplace")


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
        Any format that libsndfile or FFmpeg reads: wav, flac, ogg, mp3, m4a, the sound of a video…
    start_s, end_s
        Cut this part out, in seconds; whole file by default.
    sampling_rate
        Of the returned signal, in Hz; resampled (soxr, high quality) where the file's differs.

    Returns
    -------
    np.ndarray [shape=(n_samples,), float32]
        Channels averaged; the louder one, if they cancel each other.

    Warns
    -----
    UserWarning
        If the file ends early, or its channels cancel each other.

    Raises
    ------
    ValueError
        If the file can't be decoded, holds no samples, or holds NaN or infinite samples; the text
        says which.
    FileNotFoundError
        If there is no such file.
    """
    signal, native_rate, _, remarks = _decode(path, start_s, end_s)
    if remarks:
        warnings.warn(f"{Path(path).name}: {remarks}", stacklevel=2)
    return remove_offset(soxr.resample(signal, native_rate, sampling_rate))


def remove_offset(signal: np.ndarray) -> np.ndarray:
    """Subtract the mean: a constant offset is no sound, and would count in levels and trimming.

    Parameters
    ----------
    signal : np.ndarray [shape=(n_samples,), float32]
    """
    return signal - np.float32(signal.mean(dtype=np.float64)) if len(signal) else signal


def measure(path: str | Path, start_s: float | None = None, end_s: float | None = None) -> dict:
    """Describe a clip for the quality report; never raises on bad audio.

    Returns
    -------
    dict
        ``duration_s`` (NaN if unreadable), ``audio_hash`` (of the decoded samples, so that the same
        audio is recognised under another name or in another container), ``sampling_rate`` (Hz),
        ``channels``, ``peak_dbfs``, ``level_dbfs`` (loudest 32 ms), ``clipped_share`` (0–1),
        ``quality``: "ok", or the faults found, joined by "; ". Faults that start with "unusable"
        exclude the clip from the later notebooks.
    """
    try:
        signal, native_rate, channels, remarks = _decode(path, start_s, end_s)
    except (ValueError, OSError) as error:
        return {
            "duration_s": np.nan,
            "audio_hash": "",
            "sampling_rate": 0,
            "channels": 0,
            "peak_dbfs": np.nan,
            "level_dbfs": np.nan,
            "clipped_share": np.nan,
            "quality": f"unusable: {str(error).splitlines()[0]}",
        }
    resampled = remove_offset(soxr.resample(signal, native_rate, SAMPLING_RATE))
    level = 20 * np.log10(frame_rms(resampled).max() + 1e-10)
    clipped = float(np.mean(np.abs(signal) >= 0.999))
    duration = len(signal) / native_rate
    possible = {
        f"unusable: {duration:.2f} s, shorter than {MIN_DURATION_S} s": duration < MIN_DURATION_S,
        f"unusable: silent (loudest 32 ms at {level:.0f} dBFS)": level < SILENT_DBFS,
        f"{duration:.0f} s long: cut it into utterances": duration > LONG_DURATION_S,
        remarks: bool(remarks),
        "cut short: its times promise more": duration < (end_s or 0) - (start_s or 0) - 0.1,
        f"clipped ({clipped:.1%} of samples at full scale)": clipped > 0.001,
        f"sampled at {native_rate} Hz: nothing above {native_rate // 2} Hz": native_rate
        < SAMPLING_RATE,
    }
    return {
        "duration_s": duration,
        "audio_hash": hash_samples(resampled),
        "sampling_rate": native_rate,
        "channels": channels,
        "peak_dbfs": float(20 * np.log10(np.abs(signal).max() + 1e-10)),
        "level_dbfs": float(level),
        "clipped_share": clipped,
        "quality": "; ".join(text for text, found in possible.items() if found) or "ok",
    }


def measure_all(utterances: pd.DataFrame, n_jobs: int = -1) -> pd.DataFrame:
    """Measure every utterance, in parallel; files that have not changed are not opened again.

    Parameters
    ----------
    utterances
        With ``utterance_id``, ``path``, ``start_s`` and ``end_s`` (s, NaN for the whole file).
    n_jobs
        Processes; -1 for all cores.

    Returns
    -------
    pd.DataFrame
        The columns of :func:`measure`, rows in the order of `utterances`. Where the decoded audio
        of clips is the same, the quality of each names the clip before it (of the first: the last).
    """
    clips = list(zip(utterances["path"], utterances["start_s"], utterances["end_s"], strict=True))
    texts = map_clips(
        _measured,
        clips,
        kind="measures",
        version=VERSION,
        keys=[_file_key(*clip) for clip in clips],
        n_jobs=n_jobs,
        progress="audio",
    )
    table = pd.DataFrame([json.loads(text.item()) for text in texts])
    ids = utterances["utterance_id"].reset_index(drop=True)
    alike = ids.groupby(table["audio_hash"].replace("", np.nan))  # unreadable clips are in no group
    other = alike.shift().fillna(alike.transform("last"))
    repeated = (table["quality"] + "; same audio as " + other).str.removeprefix("ok; ")
    return table.assign(quality=repeated.where(other.notna() & (other != ids), table["quality"]))


def map_signals(
    compute: Callable[[np.ndarray], np.ndarray],
    utterances: pd.DataFrame,
    kind: str,
    key: str,
    version: tuple[int, ...],
    *,
    n_jobs: int = -1,
    progress: str = "",
) -> Iterator[np.ndarray]:
    """Call ``compute(signal)`` for every utterance, in parallel; stored results are read.

    Parameters
    ----------
    compute
        A function of a module, or a ``functools.partial`` of one.
    utterances
        With ``path``, ``start_s``, ``end_s`` (s, NaN for the whole file) and ``audio_hash``.
    kind, n_jobs, progress
        As for ``cache.map_clips``.
    key
        What the result depends on besides the audio: the settings of `compute`.
    version
        Of the modules besides this one that `compute` depends on.
    """
    return map_clips(
        functools.partial(_of_file, compute),
        utterances[["path", "start_s", "end_s"]].itertuples(index=False, name=None),
        kind=kind,
        version=(VERSION, *version),
        keys=[hash_of(digest, key) for digest in utterances["audio_hash"]],
        n_jobs=n_jobs,
        progress=progress or kind,
    )


def channel_normalise(signal: np.ndarray) -> np.ndarray:
    """Remove from a recording what depends on the microphone: level, noise floor, bandwidth.

    Use it for models that are applied to recordings of other corpora. In one corpus loudness helps
    to tell angry from sad; in another it depends on the distance of the microphone. Features of the
    quietest frames, and of the band at the edge of a resampling filter, change with every format.

    Parameters
    ----------
    signal : np.ndarray [shape=(n_samples,)]
        Mono, at ``SAMPLING_RATE``.

    Returns
    -------
    np.ndarray [shape=(n_samples,), float32]
        Trimmed, its loudest 32 ms at ``LEVEL_DBFS``, nothing above ``TOP_HZ``, with white noise of
        ``FLOOR_DBFS`` added, which is the same for every signal.
    """
    signal = trim(signal)
    signal = signal * (10 ** (LEVEL_DBFS / 20) / max(frame_rms(signal).max(), 1e-5))
    # a low-pass of 129 symmetric taps: a sinc under a Hamming window, so that nothing is delayed
    taps = np.sinc(2 * TOP_HZ / SAMPLING_RATE * (np.arange(129) - 64)) * np.hamming(129)
    noise = np.random.default_rng(0).standard_normal(len(signal)) * 10 ** (FLOOR_DBFS / 20)
    return (np.convolve(signal, taps / taps.sum(), "same") + noise).astype(np.float32)


def recording_statistics(signal: np.ndarray) -> dict[str, float]:
    """Describe how a clip was recorded, to compare it with the training recordings.

    Returns
    -------
    dict
        ``duration_s``; ``level_dbfs`` (loudest 32 ms); ``snr_db`` (loudest against quietest tenth
        of the frames); ``bandwidth_hz`` (below which 99 % of the energy lie).
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
    """Cut off leading and trailing silence: frames more than `top_db` dB below the loudest one.

    Frames are 32 ms long. This is what ``librosa.effects.trim`` does, in half the time. A signal
    that is silent throughout is returned unchanged.
    """
    rms = frame_rms(signal, hop_length=hop_length)
    loud = np.flatnonzero(rms > rms.max() * 10 ** (-top_db / 20))
    return signal[loud[0] * hop_length : (loud[-1] + 1) * hop_length] if len(loud) else signal


def voice_activity(signal: np.ndarray, method: str = "auto") -> np.ndarray:
    """Find the parts of a clip in which somebody speaks.

    Parameters
    ----------
    signal
        At ``SAMPLING_RATE``.
    method
        "auto": a small network that was trained to detect speech (Silero VAD, 2021; its package
        includes the weights). "energy": frames within ``TRIM_DB`` of the loudest one, for quiet
        rooms.

    Returns
    -------
    np.ndarray [shape=(n_parts, 2), int]
        First sample of each part and the one after its last, in order, not overlapping; pauses
        shorter than ``KEPT_PAUSE_S`` belong to a part. No rows where nobody speaks.
    """
    if method == "auto":
        parts = pd.DataFrame(_silero()(signal), columns=["start", "end"], dtype=int).to_numpy()
    else:
        rms = frame_rms(signal)
        loud = rms > max(rms.max() * 10 ** (-TRIM_DB / 20), 10 ** (SILENT_DBFS / 20))
        parts = np.flatnonzero(np.diff(loud, prepend=False, append=False)).reshape(-1, 2) * 160
    kept = np.flatnonzero(parts[1:, 0] - parts[:-1, 1] < KEPT_PAUSE_S * SAMPLING_RATE)
    starts, stops = np.delete(parts[:, 0], kept + 1), np.delete(parts[:, 1], kept)
    return np.stack([starts, stops], axis=1).clip(0, len(signal))


def frame_rms(signal: np.ndarray, frame_length: int = 512, hop_length: int = 160) -> np.ndarray:
    """Return the root mean square of each centred frame, shape ``(n_frames,)``.

    By default, frames of 32 ms every 10 ms.
    """
    frames = sliding_window_view(np.pad(signal, frame_length // 2), frame_length)[::hop_length]
    return np.sqrt(np.einsum("ij,ij->i", frames, frames) / frame_length)


def hash_samples(signal: np.ndarray) -> str:
    """Hash the decoded samples at 16 bits: a lossless change of container keeps the hash."""
    return hashlib.sha256(np.round(signal * 32767).astype("<i2").tobytes()).hexdigest()[:32]


def play(signal: np.ndarray, sampling_rate: int = SAMPLING_RATE) -> None:
    """Show an audio player in JupyterLab or Colab; nothing in a headless run (``SER_RUN_LOG``)."""
    if not os.environ.get("SER_RUN_LOG"):
        from IPython.display import Audio, display

        display(Audio(signal, rate=sampling_rate))


@functools.cache
def _silero() -> functools.partial:
    """Return Silero's detector of speech in a signal."""
    import torch  # late: it takes seconds, and most of this module does not need it

    threads = torch.get_num_threads()
    import silero_vad

    torch.set_num_threads(threads)  # importing it set them to one, for the whole process
    return functools.partial(
        silero_vad.get_speech_timestamps,
        model=silero_vad.load_silero_vad(),
        sampling_rate=SAMPLING_RATE,
    )


def _of_file(compute: Callable, path: str, start_s: float, end_s: float) -> np.ndarray:
    return compute(load(path, start_s, end_s))


def _hidden(name: str) -> str:
    """Say why a name is not taken; an empty string if it may be."""
    if name.startswith(".") or name in SYSTEM:
        return "hidden, or of the system"
    return "its name is not UTF-8: rename it (convmv -r -f cp1252 -t utf8 --notest)" * any(
        "\udc80" <= character <= "\udcff" for character in name
    )


def _file_key(path: str, start_s: float, end_s: float) -> str:
    stat = Path(path).stat() if Path(path).is_file() else None
    return hash_of(str(path), stat and stat.st_mtime_ns, stat and stat.st_size, start_s, end_s)


def _measured(path: str, start_s: float, end_s: float) -> np.ndarray:
    return np.array(json.dumps(measure(path, start_s, end_s)))


def _decode(
    path: str | Path, start_s: float | None, end_s: float | None
) -> tuple[np.ndarray, int, int, str]:
    """Return mono signal, the file's sampling rate (Hz), number of channels, and remarks.

    libsndfile reads formats whose length it knows. FFmpeg reads the others: those of phones, the
    sound of videos, streams, and mp3, of which libsndfile estimates the length.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path or 'its audio file'} is not there")
    path = Path(path)
    try:
        header = soundfile.info(path)
        read = _read_by_ffmpeg if header.format == "MP3" or header.frames > ENDLESS else _read_part
    except soundfile.LibsndfileError:
        read = _read_by_ffmpeg
    try:
        channels, rate, short = read(path, start_s, end_s)
    except (soundfile.LibsndfileError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().rstrip(".").splitlines()[-1]
        raise ValueError(
            f"{path.name} can't be decoded ({reason}; {path.stat().st_size} bytes): is it audio, "
            "and complete?"
        ) from None
    if channels.size == 0:
        raise ValueError(f"{path.name} holds no samples")
    if n_bad := int((~np.isfinite(channels)).sum()):
        raise ValueError(f"{path.name} holds {n_bad} NaN or infinite samples")
    signal, cancel = mixed(channels)
    remarks = (
        "cut short: fewer samples than its header promises" * short,
        "its channels cancel when mixed: the louder is used" * cancel,
    )
    return signal, rate, channels.shape[1], "; ".join(filter(None, remarks))


def mixed(channels: np.ndarray) -> tuple[np.ndarray, bool]:
    """Mix channels, shape ``(n_samples, n_channels)``, to their mean.

    Where they cancel, as when the poles of one plug are swapped, the louder one is taken; the
    second result says so.
    """
    mean, power = channels.mean(axis=1), np.square(channels, dtype=np.float64).mean(axis=0)
    cancel = bool(np.square(mean, dtype=np.float64).mean() < CANCELLED * power.max())
    return channels[:, power.argmax()] if cancel else mean, cancel


def _read_part(
    path: Path, start_s: float | None, end_s: float | None
) -> tuple[np.ndarray, int, bool]:
    """Read samples (n, n_channels) with libsndfile; return also the rate, and whether some miss."""
    with soundfile.SoundFile(path) as file:
        rate = file.samplerate
        begin = 0 if pd.isna(start_s) else round(start_s * rate)
        stop = file.frames if pd.isna(end_s) else round(end_s * rate)
        if begin >= file.frames > 0:
            raise ValueError(
                f"{path.name} is {file.frames / rate:.2f} s long, but a part from "
                f"{start_s:.2f} s was asked for"
            )
        skipped = file.seek(begin) if file.seekable() else 0
        channels = file.read(max(stop - skipped, 0), dtype="float32", always_2d=True)
        # libsndfile's own remarks: a wav whose header promises more (a stream's says 2 to the 32nd
        # or so), an unfinished ogg
        promised = re.findall(r"(\d+) \(should be", file.extra_info)
        short = any(int(n) < 2**31 - 2**16 for n in promised)
        short = short or "end-of-stream" in file.extra_info.lower()
    return channels[begin - skipped :], rate, short


def _read_by_ffmpeg(
    path: Path, start_s: float | None, end_s: float | None
) -> tuple[np.ndarray, int, bool]:
    """Read as :func:`_read_part` does, what FFmpeg makes of a file."""
    import imageio_ffmpeg  # late: most files do without

    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder, "sound.wav")
        given = [imageio_ffmpeg.get_ffmpeg_exe(), *FFMPEG, "-i", f"file:{path}"]
        done = subprocess.run(
            [*given, "-vn", "-c:a", "pcm_f32le", str(wav)],
            check=True,
            capture_output=True,
            text=True,
            errors="replace",
        )
        promised = re.search(r"Duration: (\d+:\d+:[\d.]+)", done.stderr)
        promise = pd.Timedelta(promised[1]).total_seconds() if promised else 0
        # an estimate, or that of the pictures, says nothing
        known = not re.search("Estimating duration|Video:", done.stderr)
        early = known and soundfile.info(wav).duration < promise - 0.1
        channels, rate, short = _read_part(wav, start_s, end_s)
        return channels, rate, short or early
