"""Mel-spectrogram images: one 8-bit lossless PNG per utterance, and reading them back as one array.

Conventions
-----------
A pixel is a mel band (rows, lowest at the bottom, as people draw it) in a frame (columns). Its value maps ``DB_MIN`` …
``DB_MAX`` (dB relative to full scale) to 1 … 255, the same for every clip: how loud a clip is stays visible. 0 is padding.
Files are at ``<folder>/<native emotion>/<stem>.png``, which any image-folder reader loads.
"""

import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, PngImagePlugin

from helpers import audio
from helpers.cache import code_with_parts, recipe_hash, stacked, write_atomically
from helpers.features import FrontEnd, mel_spectrogram
from helpers.parallel import over_clips

# 64 bands, a 40 ms frame every 20 ms: what a small network for speech needs, and no more. No zero-padding: bins of 25 Hz
# are finer than the window resolves
IMAGE = FrontEnd(n_mels=64, hop_length=320, n_fft=640)
FRAMES_PER_S = IMAGE.sampling_rate / IMAGE.hop_length
DB_MIN, DB_MAX = -100.0, -10.0  # dB; speech lies between
DB_STEP = (DB_MAX - DB_MIN) / 254  # dB from one grey level to the next


def mel_image(signal: np.ndarray, front_end: FrontEnd = IMAGE, trim: bool = True) -> np.ndarray:
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
    level = mel_spectrogram(audio.trim(signal, front_end.trim_db) if trim else signal, front_end)
    return np.clip(np.round(1 + (level.T[::-1] - DB_MIN) / DB_STEP), 1, 255).astype(np.uint8)


def padded_image(
    signal: np.ndarray, n_frames: int, front_end: FrontEnd = IMAGE, trim: bool = True
) -> np.ndarray:
    """Turn a signal into what :func:`read_images` makes of its image: :func:`mel_image`, padded or cut to one width."""
    return _padded(mel_image(signal, front_end, trim), n_frames)


def write_images(
    utterances: pd.DataFrame, folder: Path, front_end: FrontEnd = IMAGE, n_jobs: int = -1
) -> pd.DataFrame:
    """Write every utterance's image, in parallel; an image made with the same recipe is left as it is.

    Parameters
    ----------
    utterances
        With ``utterance_id``, ``tables.CLIP`` and ``emotion_native``.
    folder
        Where to write.

    Returns
    -------
    pd.DataFrame
        ``utterance_id``, ``image`` (path relative to `folder`) and ``n_frames``.
    """
    from helpers.tables import note_output  # late: who only reads a signal does not need tables

    recipe = recipe_hash(asdict(front_end), code_with_parts(mel_image), code_with_parts(audio.load))
    names = [
        f"{u.emotion_native}/{u.utterance_id.split('/', 1)[1]}.png" for u in utterances.itertuples()
    ]
    jobs = (
        (
            u.path,
            u.start_s,
            u.end_s,
            Path(folder) / name,
            recipe_hash(u.audio_hash, recipe),
            front_end,
        )
        for u, name in zip(utterances.itertuples(), names, strict=True)
    )
    widths = list(over_clips(_write_image, jobs, n_jobs, "images", len(names)))
    lost = (
        [name for name in names if not (Path(folder) / name).is_file()]
        if os.environ.get("SER_CLUSTER")
        else []
    )
    if lost:
        raise FileNotFoundError(
            f"{len(lost)} of {len(names)} images were written, and are not in {folder}, e.g. {lost[:3]}: "
            "the machines of SER_CLUSTER have to share that folder; set SER_WORK to one that they share"
        )
    for name in names:
        note_output(Path(folder) / name)
    return pd.DataFrame(
        {"utterance_id": utterances["utterance_id"].to_numpy(), "image": names, "n_frames": widths}
    )


def read_images(images: pd.DataFrame, folder: Path, n_frames: int) -> np.ndarray:
    """Read images into one array, padded or cut at the end to one width; a large one stays on disk (see ``cache.stacked``).

    Parameters
    ----------
    images
        As :func:`write_images` returns it.
    n_frames
        Width. Choose it without looking at test clips, e.g. as a round number of seconds times ``FRAMES_PER_S``.

    Returns
    -------
    np.ndarray [shape=(n_images, n_mels, n_frames), uint8]

    Raises
    ------
    ValueError
        If an image has another number of bands than the first, is missing or damaged.
    """
    files = [Path(folder) / name for name in images["image"]]
    key = recipe_hash(
        [str(file) for file in files],
        [file.stat().st_mtime_ns for file in files if file.is_file()],
        n_frames,
    )
    return stacked("images", key, _pixels(files, n_frames), len(files))


def _pixels(files: list[Path], n_frames: int) -> Iterator[np.ndarray]:
    """Read images one by one, padded or cut to one width."""
    n_bands = None
    for path in files:
        try:
            with Image.open(path) as file:
                pixels = np.asarray(file)
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path} can't be read ({error}): run notebook 04 again") from None
        n_bands = n_bands or len(pixels)
        if len(pixels) != n_bands:
            raise ValueError(
                f"{path} has {len(pixels)} bands, the others {n_bands}: "
                "run notebook 04 again, it writes them all alike"
            )
        yield _padded(pixels, n_frames)


def _padded(image: np.ndarray, n_frames: int) -> np.ndarray:
    return np.pad(image[:, :n_frames], ((0, 0), (0, max(n_frames - image.shape[1], 0))))


def _write_image(path, start_s, end_s, target: Path, recipe: str, front_end: FrontEnd) -> int:
    """Write one image with its recipe in it; return its width in frames."""
    try:
        with Image.open(target) as file:
            if file.info.get("recipe") == recipe:
                file.verify()  # cut short by a kill of the machine? then it is made again
                return file.width
    except (FileNotFoundError, SyntaxError, OSError):
        pass
    image = Image.fromarray(
        mel_image(audio.load(path, start_s, end_s, front_end.sampling_rate), front_end)
    )
    note = PngImagePlugin.PngInfo()
    note.add_text("recipe", recipe)
    write_atomically(
        target,
        lambda handle: image.save(
            handle, "PNG", compress_level=1, compress_type=zlib.Z_RLE, pnginfo=note
        ),
    )
    return image.width
