"""Is every input, however damaged, answered or refused with a clear error, without a crash, a hang or growing memory?

Files are truncated, bit-flipped, emptied, given another file's header or an absurd one, cut down to one sample, filled with
NaN; arrays likewise. Each goes through ``predict.predict`` and through the entry of the browser app, in a process of its own
that a watchdog kills when it hangs. Unusual but valid recordings have to be answered like the plain one.

Run ``python benchmarks/damage.py [--inputs 10000] [--model DIR] [--corpus demo|ravdess]``.
"""

import argparse
import io
import multiprocessing
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import soundfile
import soxr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import artifacts, audio, corpora, predict

RATE = audio.SAMPLING_RATE
LONGEST_S = 60.0  # for one input; then it counts as a hang
MUST_GROW_MB, MUST_DIFFER = 50.0, 0.05
FORMATS = [
    ("wav", "PCM_16"),
    ("wav", "FLOAT"),
    ("wav", "PCM_U8"),
    ("flac", "PCM_16"),
    ("mp3", "MPEG_LAYER_III"),
    ("ogg", "OPUS"),
    ("ogg", "VORBIS"),
    ("aiff", "PCM_24"),
    ("au", "ULAW"),
    ("w64", "PCM_32"),
]
KINDS = [
    "truncated",
    "bit-flipped",
    "header bit-flipped",
    "zero-length",
    "another header",
    "absurd header",
    "one sample",
    "NaN",
    "noise",
    "array",
    "swapped blocks",
]
LOSSY = (
    "8-bit",
    "8-bit, louder",
    "mp3",
    "opus",
)  # louder: at full level, as one would record in 8 bits
UNUSUAL = [
    "384 kHz",
    "24 channels",
    "8-bit",
    "8-bit, louder",
    "64-bit float",
    "mp3",
    "opus",
    "as array",
    "24 channels as array",
]


def encoded(signal: np.ndarray, kind: str, subtype: str, rate: int = RATE) -> bytes:
    """Return a recording as the bytes of a file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, signal, rate, format=kind.upper(), subtype=subtype)
    return buffer.getvalue()


def mutated(
    i: int, signal: np.ndarray, seed: int
) -> tuple[str, str, bytes | tuple[int, np.ndarray]]:
    """Return the i-th damaged input: what was done, the suffix of the file, its bytes; or a rate and an array."""
    rng = np.random.default_rng([seed, i])
    kind, subtype = FORMATS[rng.integers(len(FORMATS))]
    content = bytearray(encoded(signal, kind, subtype))
    what = KINDS[i % len(KINDS)]
    match what:
        case "truncated":
            content = content[: rng.integers(0, len(content))]
        case "bit-flipped" | "header bit-flipped":
            for at in rng.integers(
                0, len(content) if what == "bit-flipped" else 64, rng.integers(1, 50)
            ):
                content[at] ^= 1 << rng.integers(0, 8)
        case "zero-length":
            content = bytearray(rng.integers(0, 3) * b"\0")
        case "another header":
            other = encoded(signal, *FORMATS[rng.integers(len(FORMATS))])
            n = rng.integers(4, 128)
            content[:n] = other[:n]
        case "absurd header":
            kind, rate = "wav", int(rng.choice([0, 1, 7, 2**31 - 1, 2**32 - 1]))
            channels = int(rng.choice([0, 1, 1024, 65535]))
            header = struct.pack(
                "<4sI4s4sIHHIIHH4sI",
                b"RIFF",
                2**32 - 1,
                b"WAVE",
                b"fmt ",
                16,
                1,
                channels,
                rate,
                0,
                int(rng.integers(0, 65536)),
                int(rng.choice([0, 1, 8, 16, 64, 65535])),
                b"data",
                2**32 - 1,
            )
            content = bytearray(header + bytes(content[44:]))
        case "one sample":
            content = bytearray(encoded(signal[:1], "wav", "FLOAT"))
        case "NaN":
            damaged = signal.copy()
            damaged[rng.integers(0, len(signal), rng.integers(1, 500))] = rng.choice(
                [np.nan, np.inf, -np.inf, 1e30]
            )
            kind, content = "wav", bytearray(encoded(damaged, "wav", "FLOAT"))
        case "noise":
            content = bytearray(rng.bytes(rng.integers(0, 20_000)))
        case "swapped blocks":
            a, b = sorted(rng.integers(0, len(content), 2))
            content = content[b:] + content[a:b] + content[:a]
        case "array":
            shapes = [(0,), (1,), (RATE,), (RATE, 2), (2, RATE), (10, 10, 10), (RATE, 0)]
            array = rng.standard_normal(shapes[rng.integers(len(shapes))]) * rng.choice(
                [0, 0.1, np.nan, 1e30]
            )
            kinds = [np.float32, np.float64, np.int16, np.uint8, np.complex64, bool, object]
            with np.errstate(invalid="ignore", over="ignore"):
                array = array.astype(kinds[rng.integers(len(kinds))])
            return what, "", (int(rng.choice([0, -1, 8000, RATE, 48_000, 10**9])), array)
    return what, kind, bytes(content)


def ask(entry: str, model_folder: str, signal: np.ndarray, numbers: range, seed: int, pipe) -> None:
    """Put inputs through an entry, in a process of its own; what came of each goes through the pipe."""
    model = artifacts.load(Path(model_folder))
    if entry == "app":
        from helpers import app
    with tempfile.TemporaryDirectory() as folder:
        for i in numbers:
            what, suffix, content = mutated(i, signal, seed)
            given = content
            if suffix:
                given = Path(folder) / f"damaged.{suffix}"
                given.write_bytes(content)
            pipe.send(("starts", i, what))
            try:
                if entry == "app":
                    shown = app.answer(given, model, look=False)
                    if shown.error:
                        raise ValueError(shown.error)
                    found = shown.prediction
                else:
                    found = (
                        predict.predict(given, model)
                        if suffix
                        else predict.predict(given[1], model, given[0])
                    )
                values = list(found.probabilities.values())
                outcome = (
                    "answered"
                    if abs(sum(values) - 1) < 1e-6 and min(values) >= 0
                    else f"BAD ANSWER {values}"
                )
            except ValueError as error:
                outcome = "refused" if len(str(error)) > 15 else f"UNCLEAR ERROR {error!r}"
            except Exception as error:
                outcome = f"OTHER ERROR {type(error).__name__}: {str(error)[:200]}"
            pipe.send((outcome, i, what))
            if i % 100 == 0:
                pipe.send(("memory", i, psutil.Process().memory_info().rss / 2**20))
    pipe.send(("done", 0, ""))


def survived(entry: str, model_folder: Path, signal: np.ndarray, n: int, seed: int) -> bool:
    """Put `n` damaged inputs through an entry and print what came of them; returns whether all was well."""
    counts, faults, memory, at, began = Counter(), [], [], 0, time.time()
    context = multiprocessing.get_context("spawn")
    while at < n:
        ours, theirs = context.Pipe()
        worker = context.Process(
            target=ask, args=(entry, str(model_folder), signal, range(at, n), seed, theirs)
        )
        worker.start()
        theirs.close()
        doing, alive = "starting", True
        while alive:
            try:
                if not ours.poll(LONGEST_S + 60 * (doing == "starting")):
                    faults.append(f"HANG in input {at}: {doing}")
                    worker.kill()
                    break
                said, i, what = ours.recv()
            except EOFError:
                worker.join()
                faults.append(f"CRASH (exit {worker.exitcode}) in input {at}: {doing}")
                break
            if said == "starts":
                at, doing = i, what
            elif said == "memory":
                memory.append((i, what))
            elif said == "done":
                at, alive = n, False
            else:
                counts[what, said if said in ("answered", "refused") else "FAULT"] += 1
                if said not in ("answered", "refused"):
                    faults.append(f"{said} in input {i}: {what}")
        worker.join()
        at += at < n  # after the one that did harm
    print(f"\n{entry}: {sum(counts.values())} inputs in {time.time() - began:.0f} s")
    for what in sorted({what for what, _ in counts}):
        print(
            f"  {what:<20}"
            + ", ".join(f"{counts[what, said]} {said}" for said in ("answered", "refused", "FAULT"))
        )
    settled = [mb for i, mb in memory if i >= n // 5] or [0.0]
    growth = np.mean(settled[-5:]) - np.mean(settled[:5])
    print(
        f"  memory: {settled[0]:.0f} MB after a fifth, {settled[-1]:.0f} MB at the end ({growth:+.1f} MB)"
    )
    print(
        "\n".join(f"  {fault}" for fault in faults[:20]) or "  no crash, no hang, every error clear"
    )
    return not faults and growth <= MUST_GROW_MB


def as_unusual(signal: np.ndarray, how: str, folder: Path) -> tuple[Path | np.ndarray, int | None]:
    """Return a clip as a valid but unusual recording: a file, or an array and its rate."""
    match how:
        case "384 kHz":
            content = encoded(soxr.resample(signal, RATE, 384_000), "wav", "FLOAT", 384_000)
        case "24 channels":
            content = encoded(np.repeat(signal[:, None], 24, axis=1), "wav", "PCM_16")
        case "8-bit":
            content = encoded(signal, "wav", "PCM_U8")
        case "8-bit, louder":
            content = encoded(signal, "wav", "PCM_U8")
        case "64-bit float":
            content = encoded(signal, "wav", "DOUBLE")
        case "mp3":
            content = encoded(signal, "mp3", "MPEG_LAYER_III")
        case "opus":
            content = encoded(signal, "ogg", "OPUS")
        case "as array":
            return signal.astype(np.float64), RATE
        case "24 channels as array":
            return np.repeat(signal[:, None], 24, axis=1), RATE
    path = folder / "unusual.bin"
    path.write_bytes(content)
    return path, None


def unusual_are_answered(
    model: artifacts.Artifact | artifacts.Average, clips: list[np.ndarray]
) -> bool:
    """Print how far answers to valid but unusual recordings lie from those to a plain wav; returns whether near enough.

    The plain wav is 16 kHz, one channel, 32-bit float, once of the same samples (as decoded from the unusual file), once of
    those before they were encoded: what 8 bits and lossy formats take away can't be given back.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, clip in enumerate(clips):
            for how in UNUSUAL:
                signal = clip / np.abs(clip).max() * 0.9 if how.endswith("louder") else clip
                recording, rate = as_unusual(signal, how, Path(folder))
                found = predict.predict(recording, model, rate)
                decoded = audio.load(recording) if rate is None else signal
                for against, samples in (("same samples", decoded), ("before encoding", signal)):
                    plain = Path(folder) / "plain.wav"
                    plain.write_bytes(encoded(samples, "wav", "FLOAT"))
                    expected = predict.predict(plain, model)
                    far = max(
                        abs(found.probabilities[e] - p) for e, p in expected.probabilities.items()
                    )
                    rows.append((how, against, far, found.emotion == expected.emotion, number))
    table = pd.DataFrame(
        rows, columns=["recording", "plain wav of", "difference", "same label", "clip"]
    )
    found = table.groupby(["plain wav of", "recording"], sort=False).agg(
        median=("difference", "median"),
        largest=("difference", "max"),
        same_label=("same label", "mean"),
    )
    print(
        f"\nvalid but unusual, {len(clips)} clips: difference of the probabilities from those of a plain wav"
    )
    print(found.round(3).to_string())
    lossless = [how for how in UNUSUAL if how not in LOSSY]
    must = pd.concat([found.loc["same samples"], found.loc["before encoding"].loc[lossless]])
    good = bool((must["largest"] <= MUST_DIFFER).all() and (must["same_label"] == 1).all())
    print(
        f"required: at most {MUST_DIFFER} and the same label, for the same samples; lossless formats also before encoding: "
        f"{'met' if good else 'NOT MET'}"
    )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--model", default="", help="folder of a model, or its name in data/models")
    parser.add_argument(
        "--corpus", default="demo", choices=["demo", "ravdess"], help="whose clips are damaged"
    )
    parser.add_argument(
        "--clips", type=int, default=40, help="clips for valid but unusual recordings"
    )
    parser.add_argument("--entries", default="predict,app")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = predict.find_model(options.model)
    table = corpora.index(options.corpus).sample(options.clips, random_state=options.seed)
    clips = [audio.load(row.path, row.start_s, row.end_s) for row in table.itertuples()]
    print(f"model {folder}; clips of {options.corpus}")
    good = unusual_are_answered(artifacts.load(folder), clips)
    short = audio.trim(clips[0])[
        : round(0.8 * RATE)
    ]  # decoding and damage are the matter here, so clips may be short
    for entry in options.entries.split(","):
        good &= survived(entry, folder, short, options.inputs, options.seed)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
