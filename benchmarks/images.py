"""Time the mel-spectrogram images against the usual specshow and savefig.

All roads begin at an audio file, end at a PNG file, and every round writes to an empty folder,
in memory where the system has such a place: what a disk takes to make a file is nobody's merit,
and varies most. *As notebooks do it* loads with librosa's defaults, draws as many mel bands as
ours with time and mel axes, switches the axes off, saves with a tight box and closes the
figure, clip after clip in one process. The second row gives the same drawing all cores, as ours
has: that one carries the required ratio. Clips are stored as 16-bit wav beforehand, the format
in which the corpora are released; ``--as-stored`` leaves them as FLAC or Opus, whose decoding
no road can avoid."""

import os
import sys
import tempfile
from pathlib import Path

import librosa
import matplotlib
import numpy as np
import pandas as pd
import soundfile
import timing

from helpers import spectrograms

N_MELS = spectrograms.IMAGE.n_mels
REQUIRED = 10
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None


def as_notebooks_do(path: str, folder: str) -> None:
    """Draw one clip the usual way, the figure closed."""
    matplotlib.use("agg")  # before pyplot comes: workers have no screen
    import matplotlib.pyplot as plt

    y, sr = librosa.load(path)
    mel = librosa.feature.melspectrogram(y=y, sr=sr, n_mels=N_MELS)
    plt.figure(figsize=(10, 4))
    librosa.display.specshow(
        librosa.power_to_db(mel, ref=np.max), sr=sr, x_axis="time", y_axis="mel"
    )
    plt.axis("off")
    plt.savefig(Path(folder) / f"{Path(path).stem}.png", bbox_inches="tight", pad_inches=0)
    plt.close()


def as_wav(clips: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Store clips as 16-bit wav and return their table with the new paths."""
    paths = [str(folder / f"{i}.wav") for i in range(len(clips))]
    for source, target in zip(clips["path"], paths, strict=True):
        signal, sampling_rate = soundfile.read(source)
        soundfile.write(target, signal, sampling_rate, subtype="PCM_16")
    return clips.assign(path=paths)


def main() -> None:
    """Print the speeds; leave with 1 if the required ratio is missed."""
    parser = timing.parser(__doc__.splitlines()[0], clips=400)
    parser.add_argument(
        "--as-stored", action="store_true", help="read the files as they are, not as wav"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        clips = timing.read_clips(options.corpus, options.clips).assign(audio_hash="")
        clips = clips if options.as_stored else as_wav(clips, Path(folder))

        def write_ours():
            with tempfile.TemporaryDirectory(dir=folder) as target:
                os.environ["SER_WORK"] = target  # nothing is found in the cache
                spectrograms.write_images(clips, Path(target))

        def write_usual(n_jobs):
            def write():
                with tempfile.TemporaryDirectory(dir=folder) as target:
                    timing.over_clips(lambda path: as_notebooks_do(path, target), clips, n_jobs)()

            return write

        roads = {
            "ours": write_ours,
            "specshow, as notebooks do it": write_usual(1),
            "specshow, all cores": write_usual(timing.N_JOBS),
        }
        seconds = timing.in_turns(roads, options.repeats)
        sys.exit(
            not timing.report(
                seconds, clips, {} if options.as_stored else {"specshow, all cores": REQUIRED}
            )
        )


if __name__ == "__main__":
    main()
