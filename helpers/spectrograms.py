"""Mel-spectrogram images: one 8-bit lossless PNG per utterance, and reading them as one array.

Conventions
-----------
A pixel is a mel band (rows, the lowest at the bottom) in a frame (columns). Its value maps
``DB_MIN`` … ``DB_MAX`` (dB relative to full scale) to 1 … 255, the same for every clip, so the
loudness of a clip stays visible. 0 is padding. Files are at ``<folder>/<stem>.png``; their names
hold no label.
"""

import functools
import io
import zlib
from pathlib import Path

import librosa
import numpy as np
import pandas as pd
from PIL import Image

from helpers import audio, cache, features

VERSION = 1  # raise it when a change of this module changes results
# 64 bands and a 40 ms frame every 20 ms suffice for a small network. No zero-padding: bins of 25 Hz
# are finer than the window resolves
IMAGE = features.FrontEnd(n_mels=64, hop_length=320, n_fft=640)
FRAMES_PER_S = IMAGE.sampling_rate / IMAGE.hop_length
DB_MIN, DB_MAX = -100.0, -10.0  # dB; speech lies between
DB_STEP = (DB_MAX - DB_MIN) / 254  # dB from one grey level to the next


def mel_image(
    signal: np.ndarray, front_end: features.FrontEnd = IMAGE, trim: bool = True
) -> np.ndarray:
    """Turn a signal into an image.

    Parameters
    ----------
    signal : np.ndarray [shape=(n_samples,)]
        Mono, at ``front_end.sampling_rate``.
    front_end
        Analysis parameters.
    trim
        Cut off leading and trailing silence first.

    Returns
    -------
    np.ndarray [shape=(n_mels, n_frames), uint8]
        Row 0 is the highest band.
    """
    level = features.mel_spectrogram(
        audio.trim(signal, front_end.trim_db) if trim else signal, front_end
    )
    return np.clip(np.round(1 + (level.T[::-1] - DB_MIN) / DB_STEP), 1, 255).astype(np.uint8)


def padded_image(
    signal: np.ndarray, n_frames: int, front_end: features.FrontEnd = IMAGE, trim: bool = True
) -> np.ndarray:
    """Turn a signal into an image of one width: as :func:`read_images` reads its file.

    Parameters
    ----------
    signal, front_end, trim
        As for :func:`mel_image`.
    n_frames
        Width.

    Returns
    -------
    np.ndarray [shape=(n_mels, n_frames), uint8]
    """
    return librosa.util.fix_length(mel_image(signal, front_end, trim), size=n_frames)


def write_images(
    utterances: pd.DataFrame, folder: Path, front_end: features.FrontEnd = IMAGE, n_jobs: int = -1
) -> pd.DataFrame:
    """Write every utterance's image; computed in parallel, files that are right are left alone.

    Parameters
    ----------
    utterances
        With ``utterance_id``, ``path``, ``start_s``, ``end_s`` and ``audio_hash``.
    folder
        Where to write.
    front_end
        Analysis parameters.
    n_jobs
        Processes; -1 for all cores.

    Returns
    -------
    pd.DataFrame
        ``utterance_id``, ``image`` (file name in `folder`) and ``n_frames``.
    """
    from helpers.tables import note_output  # late: reading a signal does not need tables

    compute, versions = functools.partial(_png, front_end), (features.VERSION, VERSION)
    contents = audio.map_signals(
        compute, utterances, "images", repr(front_end), versions, n_jobs=n_jobs
    )
    rows = []
    for utterance_id, content in zip(utterances["utterance_id"], contents, strict=True):
        name, png = f"{utterance_id.split('/', 1)[1]}.png", content.tobytes()
        path = Path(folder) / name
        if not path.is_file() or path.read_bytes() != png:
            cache.write_atomically(path, lambda handle, png=png: handle.write(png))
        note_output(path)
        rows.append((utterance_id, name, Image.open(io.BytesIO(png)).width))
    return pd.DataFrame(rows, columns=["utterance_id", "image", "n_frames"])


def read_images(images: pd.DataFrame, folder: Path, n_frames: int) -> np.ndarray:
    """Read images into one array, padded or cut at the end to one width.

    Parameters
    ----------
    images
        As :func:`write_images` returns it.
    folder
        In which the files are.
    n_frames
        Width. Choose it without looking at test clips, e.g. as a round number of seconds times
        ``FRAMES_PER_S``.

    Returns
    -------
    np.ndarray [shape=(n_images, n_mels, n_frames), uint8]

    Raises
    ------
    ValueError
        If an image is missing or damaged, or has another number of bands than the first.
    """
    stack = []
    for name in images["image"]:
        path = Path(folder) / name
        try:
            stack.append(librosa.util.fix_length(np.asarray(Image.open(path)), size=n_frames))
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path} can't be read ({error}): run notebook 04 again") from None
        if len(stack[-1]) != len(stack[0]):
            raise ValueError(
                f"{path} has {len(stack[-1])} bands, the others {len(stack[0])}: run notebook 04 "
                "again, it writes them all alike"
            )
    return np.stack(stack)


def _png(front_end: features.FrontEnd, signal: np.ndarray) -> np.ndarray:
    """Return the bytes of a clip's image file, uint8."""
    image, file = Image.fromarray(mel_image(signal, front_end)), io.BytesIO()
    image.save(file, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return np.frombuffer(file.getvalue(), np.uint8)
