"""How long does an answer take: a clip, a long recording, the command line from its start?

The clip is three seconds of speech, the recording ten minutes; both are made of a corpus's clips, whose silence is cut off.
Models are loaded before the clock starts, except for the command line. The first answers are not counted. ``--like`` measures
an average of the same members as the published weighted one, with weights drawn at random: it knows nothing and takes as long,
and needs no training.

Run ``python benchmarks/prediction.py [--model DIR …] [--like data/results/ravdess/ravdess-8] [--corpus demo|ravdess]``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import artifacts, audio, corpora, ensemble, features, metrics, nets, predict
from helpers.artifacts import LinearPart, NetworkPart
from helpers.inputs import Input
from helpers.paths import PROJECT

LEAST = 0.05  # share below which notebook 18 leaves a member out
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
    return np.tile(whole, -(-round(seconds * audio.SAMPLING_RATE) // len(whole)))[
        : round(seconds * audio.SAMPLING_RATE)
    ]


def seconds_of(work, repeats: int, warm_up: int = 3) -> np.ndarray:
    """Return the seconds of each call after the first few."""
    found = []
    for i in range(warm_up + repeats):
        began = time.perf_counter()
        work()
        if i >= warm_up:
            found.append(time.perf_counter() - began)
    return np.array(found)


def measure(
    folder: Path, clip: np.ndarray, recording: np.ndarray, repeats: int, detectors: list[str]
) -> bool:
    """Print what a model takes; returns whether that is little enough."""
    model = artifacts.load(folder)
    members = list(getattr(model, "members", {})) or [model.card["model"]]
    print(f"\n{folder}: {len(members)} model(s): {', '.join(members)}")
    enrolment = [clip[i:] for i in range(0, 32_000, 8_000)]
    each = seconds_of(lambda: model.probabilities([clip]), repeats) * 1000
    whole = seconds_of(lambda: predict.predict(clip, model, audio.SAMPLING_RATE), repeats) * 1000
    known = seconds_of(lambda: model.probabilities([clip], enrolment), max(repeats // 5, 5)) * 1000
    print(
        f"  {CLIP_S:.0f} s clip, samples to probabilities: p50 {np.median(each):.1f} ms, p95 "
        f"{np.percentile(each, 95):.1f} ms (required: p50 {MUST_CLIP_MS:.0f} ms)"
    )
    print(
        f"  the same with checks and warnings: p50 {np.median(whole):.1f} ms; with {len(enrolment)} clips of the speaker: "
        f"p50 {np.median(known):.1f} ms"
    )
    good = np.median(each) <= MUST_CLIP_MS
    for detector in detectors:
        took = seconds_of(
            lambda how=detector: predict.timeline(
                recording, model, audio.SAMPLING_RATE, detector=how
            ),
            1,
            1,
        )
        rate = len(recording) / audio.SAMPLING_RATE / took[0]
        print(
            f"  {LONG_S / 60:.0f} minutes, timeline, speech found by {detector}: {took[0]:.1f} s, {rate:.0f} x real time "
            f"(required: {MUST_REAL_TIME:.0f} x)"
        )
        good &= rate >= MUST_REAL_TIME
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "clip.wav"
        soundfile.write(path, clip, audio.SAMPLING_RATE)
        command = [sys.executable, "-m", "helpers.predict", str(path), "--model", str(folder)]
        starts = seconds_of(
            lambda: subprocess.run(command, cwd=PROJECT, check=True, capture_output=True), 5, 1
        )
    print(
        f"  command line, from its start to the answer: {np.median(starts):.1f} s (required: {MUST_START_S:.0f} s)"
    )
    return bool(good and np.median(starts) <= MUST_START_S)


def like_published(results: Path, place: Path) -> Path:
    """Save an average of the published weighted average's members, as networks.json describes them; returns its folder."""
    singles = {
        name: table
        for name, table in metrics.read_predictions(results).items()
        if not name.startswith(("average", "text_"))
        and name not in ("ml_vote", "ml_weighted", "ml_stacked")
    }
    mean = ensemble.weighted_average(singles, least=LEAST)[1].groupby("variant").mean()
    shares = {
        variant: (row / row.sum())[row / row.sum() >= LEAST].to_dict()
        for variant, row in mean.iterrows()
    }
    networks = json.loads((results / "networks.json").read_text(encoding="utf-8"))
    emotions = corpora.emotion_order(next(iter(singles.values()))["truth"])
    about = {
        "model": "like the published one",
        "corpus": "none",
        "policy": "none",
        "emotions": emotions,
        "licence": "–",
    }
    members = {
        name: at_random(
            name, networks.get(name) or networks.get(f"{name}_mel"), about, place / "members" / name
        )
        for own in shares.values()
        for name in own
    }
    return artifacts.save_average(
        place / "average", members, shares, dict.fromkeys(shares, 1.0), about
    )


def at_random(name: str, network: dict | None, about: dict, place: Path) -> Path:
    """Save a member with weights drawn at random; of networks the description is given, the others are linear."""
    rng, n_classes = np.random.default_rng(0), len(about["emotions"])

    def linear(n: int) -> LinearPart:
        return LinearPart(
            np.zeros(n), np.ones(n), rng.normal(size=(n_classes, n)) / n, np.zeros(n_classes)
        )

    columns = list(features.functionals(artifacts.probe_signal()))[
        : network["inputs"]["shape"][0] if network else None
    ]
    inputs = Input("functionals", {"columns": columns}, name.endswith("_levelled"))
    if network is None:
        part, n, space = linear(len(columns)), len(columns), "inputs"
    else:
        shape, settings = tuple(network["inputs"]["shape"]), network["settings"]
        net = getattr(nets, settings["build"])(n_classes, shape, **settings["options"])
        weights = {key: value.numpy() for key, value in net.state_dict().items()}
        part = NetworkPart(settings["build"], settings["options"], shape, weights)
        if network["inputs"]["dtype"] == "uint8":
            inputs = Input("image", {"n_frames": shape[1]}, name.endswith("_levelled"))
        elif len(shape) == 2:
            inputs = Input(
                "sequence", {"n_steps": shape[0], "stride": 2}, name.endswith("_levelled")
            )
        n, space = (
            (shape[0], "inputs")
            if len(shape) == 1
            else (
                part.predictor(n_classes).embed(inputs(artifacts.probe_signal())[None]).shape[1],
                "embeddings",
            )
        )
    usual = {
        key: (np.zeros if key.endswith("mean") else np.ones)(n)
        for key in ("mean", "std", "clip_mean", "clip_std")
    }
    parts = {"inductive": part, "speaker-normalised": linear(n)}
    return artifacts.save(place, parts, inputs, about | {"model": name}, usual, space)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", nargs="+", default=[""], help="folders of models, or their names in data/models"
    )
    parser.add_argument(
        "--like",
        type=Path,
        help="a folder of published results: its weighted average is measured, too",
    )
    parser.add_argument(
        "--corpus", default="demo", choices=["demo", "ravdess"], help="whose clips are spoken"
    )
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument(
        "--detector", nargs="+", default=["silero", "energy"], choices=["silero", "energy"]
    )
    options = parser.parse_args()
    clip, recording = (speech(options.corpus, seconds) for seconds in (CLIP_S, LONG_S))
    print(f"{os.cpu_count()} cores; speech of {options.corpus}")
    with tempfile.TemporaryDirectory() as place:
        folders = [predict.find_model(name) for name in options.model]
        folders += [like_published(options.like, Path(place))] if options.like else []
        good = [
            measure(folder, clip, recording, options.repeats, options.detector)
            for folder in folders
        ]
    return int(not all(good))


if __name__ == "__main__":
    sys.exit(main())
