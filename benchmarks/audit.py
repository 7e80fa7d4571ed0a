"""Is the same recording found under another name, and is a large table audited within a minute?

Every clip is degraded in ways that copies in the wild show; each degraded corpus is mixed with the originals, and
``fingerprint.same_recordings`` has to find every clip's own copy and no other pair. Then the command
``python -m helpers.audit`` runs on synthetic tables of 250,000 utterances.

Run ``python benchmarks/audit.py [--corpus demo|ravdess] [--clips N] [--rows 250000]``.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import soxr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import audio, corpora, fingerprint, paths
from helpers.parallel import over_clips

TRIM_S = 0.2
MUST_FIND, MUST_FALSE, MUST_SECONDS = 0.99, 1, 60.0
# in the release itself, under two names
KNOWN = {("ravdess/03-01-03-01-02-01-07", "ravdess/03-01-03-01-02-02-07")}


def degraded(signal: np.ndarray, how: str) -> tuple[np.ndarray, int, dict]:
    """Return a signal as it would be stored: samples, sampling rate in Hz, and options of the format."""
    rate, options = audio.SAMPLING_RATE, {"format": "FLAC"}
    if "trim" in how:
        signal = signal[round(TRIM_S * rate) + 37 :]  # no multiple of any hop
    if "8 kHz" in how:
        signal, rate = soxr.resample(signal, rate, 8000), 8000
    if "gain" in how:
        signal = signal * 0.1
    if "mp3" in how:
        options = {
            "format": "MP3",
            "subtype": "MPEG_LAYER_III",
            "compression_level": 0.9,
        }  # the lowest bit rates
    if "opus" in how:
        options = {"format": "OGG", "subtype": "OPUS", "compression_level": 0.9}
    return signal, rate, options


def write_copy(path: str, start_s: float, end_s: float, how: str, target: Path) -> None:
    signal, rate, options = degraded(audio.load(path, start_s, end_s), how)
    soundfile.write(target, signal, rate, **options)


def recognised(clips: pd.DataFrame) -> bool:
    """Print how many copies were found and how many pairs are false, by degradation; returns whether that is enough."""
    enough, stored = True, []
    for how in [
        "mp3",
        "opus",
        "8 kHz",
        "gain",
        "trim",
        "trim + 8 kHz + gain + mp3",
        "trim + 8 kHz + gain + opus",
    ]:
        with tempfile.TemporaryDirectory() as folder:
            targets = [Path(folder) / f"{i}.bin" for i in range(len(clips))]
            jobs = (
                (c.path, c.start_s, c.end_s, how, t)
                for c, t in zip(clips.itertuples(), targets, strict=True)
            )
            list(over_clips(write_copy, jobs, progress=how))
            copies = clips.assign(
                utterance_id="copy of " + clips["utterance_id"],
                path=[str(t) for t in targets],
                start_s=np.nan,
                end_s=np.nan,
            )
            found = fingerprint.same_recordings(pd.concat([clips, copies], ignore_index=True))
        pairs = [
            tuple(sorted(name.removeprefix("copy of ") for name in pair))
            for pair in zip(found["first"], found["second"], strict=True)
        ]
        own = {a for a, b in pairs if a == b}
        false = {pair for pair in pairs if pair[0] != pair[1]} - KNOWN
        share = len(own) / len(clips)
        enough &= share >= MUST_FIND and len(false) <= MUST_FALSE
        stored.append(
            {
                "copies": how,
                "found": f"{share:.2%}",
                "false pairs": len(false),
                "lowest correlation": round(found["correlation"].min(), 3),
            }
        )
    print(pd.DataFrame(stored).to_string(index=False))
    print(
        f"required: at least {MUST_FIND:.0%} found, at most {MUST_FALSE} false pair(s); {len(clips)} clips and their copies"
    )
    return enough


def large_tables(n_rows: int) -> bool:
    """Print how long the command takes on tables of so many utterances in five folds; returns whether that is short enough."""
    rng = np.random.default_rng(0)
    speaker = rng.integers(0, n_rows // 100, n_rows)
    rows = pd.DataFrame(
        {
            "utterance_id": [f"big/{i:07d}" for i in range(n_rows)],
            "speaker": [f"s{s}" for s in speaker],
            "sentence": [f"text {t}" for t in rng.integers(0, n_rows // 3, n_rows)],
            "audio_hash": [f"{h:032x}" for h in rng.permutation(n_rows)],
            "emotion": rng.choice(["neutral", "happy", "sad", "angry"], n_rows),
        }
    )
    part = speaker % 5
    folds = pd.concat(
        [
            rows[["utterance_id"]].assign(
                fold=k + 1,
                role=np.where(part == k, "test", np.where(part == (k + 1) % 5, "valid", "train")),
            )
            for k in range(5)
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        rows.to_csv(f"{folder}/utterances.csv", index=False)
        folds.to_csv(f"{folder}/folds.csv", index=False)
        start = time.perf_counter()
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "helpers.audit",
                f"{folder}/utterances.csv",
                f"{folder}/folds.csv",
            ],
            cwd=paths.PROJECT,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - start
    print(
        f"\naudit of {n_rows:,} utterances, {len(folds):,} rows of folds: {seconds:.1f} s (required: {MUST_SECONDS:.0f} s), "
        f"exit code {done.returncode}"
    )
    return done.returncode == 0 and seconds <= MUST_SECONDS


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", default="demo")
    parser.add_argument(
        "--clips", type=int, default=0, help="take so many, evenly spread; 0 for all"
    )
    parser.add_argument("--rows", type=int, default=250_000)
    options = parser.parse_args()
    clips = corpora.index(options.corpus)
    if options.clips:
        clips = clips.iloc[
            np.linspace(0, len(clips) - 1, options.clips).round().astype(int)
        ].reset_index(drop=True)
    return int(not (recognised(clips) & large_tables(options.rows)))


if __name__ == "__main__":
    sys.exit(main())
