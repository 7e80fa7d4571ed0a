"""How long does an answer take: a clip, a long recording, the command line from its start?

The clip is three seconds of speech, the recording ten minutes; both are made of a corpus's clips, whose silence is cut off.
Models are loaded before the clock starts, except for the command line. The first answers are not counted.

Run ``python benchmarks/prediction.py [--model DIR …] [--corpus demo|ravdess] [--repeats 100]``.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import artifacts, audio, corpora, predict
from helpers.paths import PROJECT

CLIP_S, LONG_S = 3.0, 600.0
MUST_CLIP_MS, MUST_REAL_TIME, MUST_START_S = 60.0, 50.0, 5.0


def speech(corpus: str, seconds: float) -> np.ndarray:
    """Return so many seconds of a corpus's clips, one after the other."""
    parts, n = [], 0
    for row in corpora.index(corpus).sample(frac=1, random_state=0).itertuples():
        parts.append(audio.trim(audio.load(row.path, row.start_s, row.end_s)))
        n += len(parts[-1])
        if n >= seconds * audio.SAMPLING_RATE:
            return np.concatenate(parts)[: round(seconds * audio.SAMPLING_RATE)]
    whole = np.concatenate(parts)
    return np.tile(whole, -(-round(seconds * audio.SAMPLING_RATE) // len(whole)))[: round(seconds * audio.SAMPLING_RATE)]


def seconds_of(work, repeats: int, warm_up: int = 3) -> np.ndarray:
    """Return the seconds of each call after the first few."""
    found = []
    for i in range(warm_up + repeats):
        began = time.perf_counter()
        work()
        if i >= warm_up:
            found.append(time.perf_counter() - began)
    return np.array(found)


def measure(folder: Path, clip: np.ndarray, recording: np.ndarray, repeats: int, detectors: list[str]) -> bool:
    """Print what a model takes; returns whether that is little enough."""
    model = artifacts.load(folder)
    members = list(getattr(model, "members", {})) or [model.card["model"]]
    print(f"\n{folder}: {len(members)} model(s): {', '.join(members)}")
    enrolment = [clip[i:] for i in range(0, 32_000, 8_000)]
    each = seconds_of(lambda: model.probabilities([clip]), repeats) * 1000
    whole = seconds_of(lambda: predict.predict(clip, model, audio.SAMPLING_RATE), repeats) * 1000
    known = seconds_of(lambda: model.probabilities([clip], enrolment), max(repeats // 5, 5)) * 1000
    print(f"  {CLIP_S:.0f} s clip, samples to probabilities: p50 {np.median(each):.1f} ms, p95 "
          f"{np.percentile(each, 95):.1f} ms (required: p50 {MUST_CLIP_MS:.0f} ms)")
    print(f"  the same with checks and warnings: p50 {np.median(whole):.1f} ms; with {len(enrolment)} clips of the speaker: "
          f"p50 {np.median(known):.1f} ms")
    good = np.median(each) <= MUST_CLIP_MS
    for detector in detectors:
        took = seconds_of(lambda how=detector: predict.timeline(recording, model, audio.SAMPLING_RATE, detector=how), 1, 1)
        rate = len(recording) / audio.SAMPLING_RATE / took[0]
        print(f"  {LONG_S / 60:.0f} minutes, timeline, speech found by {detector}: {took[0]:.1f} s, {rate:.0f} x real time "
              f"(required: {MUST_REAL_TIME:.0f} x)")
        good &= rate >= MUST_REAL_TIME
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "clip.wav"
        soundfile.write(path, clip, audio.SAMPLING_RATE)
        command = [sys.executable, "-m", "helpers.predict", str(path), "--model", str(folder)]
        starts = seconds_of(lambda: subprocess.run(command, cwd=PROJECT, check=True, capture_output=True), 5, 1)
    print(f"  command line, from its start to the answer: {np.median(starts):.1f} s (required: {MUST_START_S:.0f} s)")
    return bool(good and np.median(starts) <= MUST_START_S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=[""], help="folders of models, or their names in data/models")
    parser.add_argument("--corpus", default="demo", choices=["demo", "ravdess"], help="whose clips are spoken")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--detector", nargs="+", default=["silero", "energy"], choices=["silero", "energy"])
    options = parser.parse_args()
    clip, recording = (speech(options.corpus, seconds) for seconds in (CLIP_S, LONG_S))
    print(f"{os.cpu_count()} cores; speech of {options.corpus}")
    good = [measure(predict.find_model(name), clip, recording, options.repeats, options.detector) for name in options.model]
    return int(not all(good))


if __name__ == "__main__":
    sys.exit(main())
