"""Time the mel-spectrogram images against the usual specshow and savefig.

All roads begin at the file, end at a PNG file, and every round writes to an empty folder. *As notebooks do it* loads with
librosa's defaults, draws 128 mel bands with time and mel axes, switches the axes off, saves with a tight box and closes the
figure, clip after clip in one process. The second row gives the same drawing all cores, as ours has: that one carries the
required ratio.
"""

import sys
import tempfile
from pathlib import Path

import librosa
import matplotlib
import numpy as np
import timing

from helpers import features, spectrograms

FRONT_END = features.FrontEnd()
REQUIRED = 20


def as_notebooks_do(path: str, folder: str) -> None:
    """Draw one clip the usual way, the figure closed."""
    matplotlib.use("agg")  # before pyplot comes: workers have no screen
    import matplotlib.pyplot as plt

    y, sr = librosa.load(path)
    mel = librosa.feature.melspectrogram(y=y, sr=sr, n_mels=FRONT_END.n_mels)
    plt.figure(figsize=(10, 4))
    librosa.display.specshow(librosa.power_to_db(mel, ref=np.max), sr=sr, x_axis="time", y_axis="mel")
    plt.axis("off")
    plt.savefig(Path(folder) / f"{Path(path).stem}.png", bbox_inches="tight", pad_inches=0)
    plt.close()


def main() -> None:
    """Print the speeds; leave with 1 if the required ratio is missed."""
    options = timing.parser(__doc__.splitlines()[0]).parse_args()
    clips = timing.read_clips(options.corpus, options.clips).assign(audio_hash="")

    def write_ours():
        with tempfile.TemporaryDirectory() as folder:
            spectrograms.write_images(clips, Path(folder), FRONT_END)

    def write_usual(n_jobs):
        def write():
            with tempfile.TemporaryDirectory() as folder:
                timing.over_clips(lambda path: as_notebooks_do(path, folder), clips, n_jobs)()

        return write

    roads = {"ours": write_ours, "specshow, as notebooks do it": write_usual(1),
             "specshow, all cores": write_usual(timing.N_JOBS)}
    seconds = timing.in_turns(roads, options.repeats)
    sys.exit(not timing.report(seconds, clips, {"specshow, all cores": REQUIRED}))


if __name__ == "__main__":
    main()
