"""Reading audio: any format that libsndfile decodes becomes one float32 mono signal at one sampling rate.

Conventions
-----------
``signal`` is float32, mono, shape ``(n_samples,)``, full scale ±1; ``sampling_rate`` is in Hz. Audio files are only
ever read.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import soxr
from numpy.lib.stride_tricks import sliding_window_view

from helpers.cache import fetch, recipe_hash
from helpers.parallel import over_clips

SAMPLING_RATE = 16_000  # Hz; speech below 8 kHz is what all corpora and all pretrained speech models share
MIN_DURATION_S = 0.2  # shorter clips hold no syllable
LONG_DURATION_S = 60.0  # longer ones are conversations, not utterances
TRIM_DB = 40.0  # leading and trailing frames this far below the loudest frame are silence
SILENT_DBFS = -60.0  # a clip whose loudest frame is below this holds no speech
CLIPPED_SHARE = 0.001  # share of samples at full scale from which a clip counts as clipped
AUDIO_SUFFIXES = {".wav", ".flac", ".opus", ".ogg", ".mp3", ".aiff", ".aif", ".au"}


def is_audio(path: Path) -> bool:
    """Whether a name is that of an audio file; hidden ones, such as a file manager's stray "._x.wav", are none."""
    return path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")


def load(path: str | Path, start_s: float | None = None, end_s: float | None = None,
         sampling_rate: int = SAMPLING_RATE) -> np.ndarray:
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
    nothing = {"duration_s": np.nan, "audio_hash": "", "sampling_rate": 0, "channels": 0, "peak_dbfs": np.nan,
               "level_dbfs": np.nan, "clipped_share": np.nan}
    try:
        signal, native_rate, channels, short = _decode(path, start_s, end_s)
    except (ValueError, OSError) as error:
        return {**nothing, "quality": f"unusable: {str(error).splitlines()[0]}"}
    resampled = _resample(signal, native_rate, SAMPLING_RATE)
    level = 20 * np.log10(frame_rms(resampled).max() + 1e-10)
    clipped = float(np.mean(np.abs(signal) >= 0.999))
    duration = len(signal) / native_rate
    faults = [text for found, text in [
        (duration < MIN_DURATION_S, f"unusable: {duration:.2f} s, shorter than {MIN_DURATION_S} s"),
        (level < SILENT_DBFS, f"unusable: silent (loudest 32 ms at {level:.0f} dBFS)"),
        (duration > LONG_DURATION_S, f"{duration:.0f} s long: cut it into utterances"),
        (short, "cut short: fewer samples than its header or its times promise"),
        (clipped > CLIPPED_SHARE, f"clipped ({clipped:.1%} of samples at full scale)"),
        (native_rate < SAMPLING_RATE, f"sampled at {native_rate} Hz: nothing above {native_rate // 2} Hz"),
    ] if found]
    return {"duration_s": duration, "audio_hash": hash_samples(resampled), "sampling_rate": native_rate,
            "channels": channels, "peak_dbfs": float(20 * np.log10(np.abs(signal).max() + 1e-10)),
            "level_dbfs": float(level), "clipped_share": clipped, "quality": "; ".join(faults) or "ok"}


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
    rows = over_clips(_stored_measure, ((u.path, u.start_s, u.end_s) for u in utterances.itertuples()), n_jobs, "audio")
    table = pd.DataFrame(rows)
    ids = utterances["utterance_id"].to_numpy(str)
    heard = table["audio_hash"] != ""
    for _, same in table[heard].groupby("audio_hash").groups.items():
        for i in same if len(same) > 1 else []:
            others = ", ".join(ids[j] for j in same if j != i)
            old = table.loc[i, "quality"]
            table.loc[i, "quality"] = ("" if old == "ok" else old + "; ") + f"same audio as {others}"
    return table


def trim(signal: np.ndarray, top_db: float = TRIM_DB, hop_length: int = 160) -> np.ndarray:
    """Cut off leading and trailing silence: frames (32 ms every 10 ms) more than `top_db` dB below the loudest one.

    What ``librosa.effects.trim`` does, in half the time. A signal that is silent throughout is returned as it is.
    """
    rms = frame_rms(signal, hop_length=hop_length)
    heard = np.flatnonzero(rms > rms.max() * 10 ** (-top_db / 20))
    return signal[heard[0] * hop_length: (heard[-1] + 1) * hop_length] if len(heard) else signal


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


def _stored_measure(path: str, start_s: float, end_s: float) -> dict:
    stat = Path(path).stat() if path and Path(path).is_file() else None
    key = recipe_hash(str(path), stat and stat.st_mtime_ns, stat and stat.st_size, start_s, end_s, measure, _decode,
                      hash_samples)
    stored = fetch("measures", key, lambda: {k: np.array(v) for k, v in measure(path, start_s, end_s).items()})
    return {name: value.item() for name, value in stored.items()}


def _decode(path: str | Path, start_s: float | None, end_s: float | None) -> tuple[np.ndarray, int, int, bool]:
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
                raise ValueError(f"{path.name} is {file.frames / rate:.2f} s long, but a part from {start_s:.2f} s "
                                 "was asked for")
            file.seek(begin)
            signal = file.read(max(stop - begin, 0), dtype="float32", always_2d=True)
            # libsndfile's own remarks: a wav whose header promises more data, an ogg stream without its end
            remarks = file.extra_info.lower()
            short = stop > file.frames + 0.1 * rate or "(should be" in remarks or "end-of-stream" in remarks
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path.name} can't be decoded ({error.error_string.rstrip('.')}; {path.stat().st_size} "
                         "bytes): is it audio, and complete?") from None
    if signal.size == 0:
        raise ValueError(f"{path.name} holds no samples")
    if not np.isfinite(signal).all():
        raise ValueError(f"{path.name} holds {int((~np.isfinite(signal)).sum())} NaN or infinite samples")
    return signal.mean(axis=1) if signal.shape[1] > 1 else signal[:, 0], rate, signal.shape[1], short


def _resample(signal: np.ndarray, native_rate: int, sampling_rate: int) -> np.ndarray:
    if native_rate == sampling_rate:
        return signal
    return soxr.resample(signal, native_rate, sampling_rate).astype(np.float32)
