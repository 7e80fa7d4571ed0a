"""Time the mel-spectrogram images against the usual specshow and savefig.

Both roads begin at the file, with the project's decoder and its trimming of silence, end at a PNG file, and use as many
processes as there are cores. Both draw the same mel bands: 128, of the same window, hop and FFT. The usual road draws a
figure of matplotlib's default size without axes and closes it. Nothing is reused: every round writes to an empty folder.
"""

import sys
import tempfile
from pathlib import Path

import librosa
import matplotlib
import timing

from helpers import audio, features, spectrograms

FRONT_END = features.FrontEnd()
REQUIRED = 20


def specshow(path: str, folder: str) -> None:
    """Draw one clip the usual way."""
    matplotlib.use("agg")  # before pyplot comes: workers have no screen
    import matplotlib.pyplot as plt

    fe = FRONT_END
    y = audio.trim(audio.load(path), fe.trim_db)
    mel = librosa.feature.melspectrogram(y=y, sr=fe.sampling_rate, n_fft=fe.n_fft, win_length=fe.win_length,
                                         hop_length=fe.hop_length, n_mels=fe.n_mels)
    figure = plt.figure()
    axes = figure.add_axes((0, 0, 1, 1))
    librosa.display.specshow(librosa.power_to_db(mel), sr=fe.sampling_rate, hop_length=fe.hop_length, ax=axes)
    axes.set_axis_off()
    plt.savefig(Path(folder) / f"{Path(path).stem}.png")
    plt.close(figure)


def main() -> None:
    """Print the speeds; leave with 1 if the required ratio is missed."""
    options = timing.parser(__doc__.splitlines()[0]).parse_args()
    clips = timing.read_clips(options.corpus, options.clips).assign(audio_hash="")

    def write_ours():
        with tempfile.TemporaryDirectory() as folder:
            spectrograms.write_images(clips, Path(folder), FRONT_END)

    def write_usual():
        with tempfile.TemporaryDirectory() as folder:
            timing.over_clips(lambda path: specshow(path, folder), clips)()

    seconds = timing.in_turns({"ours": write_ours, "specshow and savefig": write_usual}, options.repeats)
    sys.exit(not timing.report(seconds, clips, {"specshow and savefig": REQUIRED}))


if __name__ == "__main__":
    main()
