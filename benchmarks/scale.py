"""Time and memory as a corpus grows: is time linear, does memory stay flat, do two workers of a cluster do the work of two?

Clips repeat, under ids and hashes of their own, and every measurement begins with an empty work folder: all is computed. It
is made in a process of its own, since a peak of memory never falls again; starting the processes is not in the time. What 64
clips take is not growth (a table's columns are described however few its rows): time per clip is that of the others. Each kind
of work is what the notebooks do: tables are written in parts, images one by one, embeddings (of a very small network) of
clips that lie on disk. As there, the rows come from a table that another process has written, without the columns that
nobody asks for. ``again`` is the same once more, found in the cache (descriptors, which no cache keeps, are made once).

``--paper`` adds what MSP-Podcast would cost, worked out from the rates of this very run.

Run ``python benchmarks/scale.py``; ``--sizes 100 1000 --embeddings 100 1000 --rows 25000 --clips 400`` takes some minutes.
"""

import argparse
import math
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import timing
from audit import large_tables
from joblib.externals.loky import get_reusable_executor

from helpers import audio, features, paths, spectrograms, tables

FEW = 64  # clips whose time is what any corpus takes
SHORT, STEADY = (
    1_000,
    5,
)  # up to so many clips, the median of so many rounds: seconds alone would be mostly chance
LINEAR, FLAT, TWO_WORKERS, MUST_SECONDS = 0.15, 1.3, 1.6, 60.0
COLUMNS = [
    *tables.CLIP,
    "speaker",
    "emotion_native",
    "duration_s",
    "level_dbfs",
    "quality",
]  # what notebook 03 reads
KINDS = ("functionals", "descriptors", "images", "embeddings")
CORES, NODES = 16, 4  # of the machines that --paper reckons with
MSP_CLIPS, MSP_HOURS = 264_705, 400  # MSP-Podcast


def repeated(corpus: str, n: int, number: int = 0) -> pd.DataFrame:
    """Return `n` rows, each clip as often as needed, no two with the same id or hash; those of another number have others."""
    rows = timing.read_clips(corpus, min(n, 200))
    rows = rows.iloc[np.arange(n) % len(rows)].reset_index(drop=True)
    return rows.assign(
        audio_hash=[f"{number:x}{i:031x}" for i in range(n)],
        utterance_id=[f"big/{i:07d}" for i in range(n)],
        duration_s=1.0,
        level_dbfs=-25.0,
        quality="ok",
    ).drop(columns="votes")


def write_rows(corpus: str, numbers: dict[int, int], folder: str) -> None:
    """Write tables of utterances, each named by the number that its hashes begin with; `numbers` says how long each is."""
    for number, n in numbers.items():
        tables.write_table(
            repeated(corpus, n, number), Path(folder) / f"{number}.parquet", "utterances"
        )


def work(kind: str, rows: pd.DataFrame, folder: Path) -> None:
    """Do one kind of work on all rows."""
    if kind == "functionals":
        tables.write_parts(
            features.functionals_parts(rows), folder / "functionals.parquet", "functionals"
        )
    elif kind == "descriptors":
        tables.write_parts(
            features.descriptors_parts(rows), folder / "descriptors.parquet", "descriptors"
        )
    elif kind == "images":
        spectrograms.write_images(rows, folder / "images")
    else:
        from helpers import (
            wav2vec2,
        )  # here: what it imports would be most of the memory of the others

        clips = wav2vec2.prepare(rows, "energy")[1]
        # clips repeat, and what is stored is found by its samples: the last ones tell them apart. Each time they are one more,
        # since the clips of a corpus hardly share their lengths, and a processor makes its kernels anew for every one
        number = int(rows["audio_hash"].iloc[0][0], 16)
        marked = (
            np.append(clip, [number, i % 200] + [i // 200] * (1 + i // 200))
            for i, clip in enumerate(clips)
        )
        apart = wav2vec2.Clips.write(folder / "apart.int16", marked)
        wav2vec2.embeddings("tiny-random-wav2vec2", apart, "cpu")


def measure(kind: str, corpus: str, n: int, rounds: int, folder: str) -> dict:
    """Do the work in this process, which nothing else has used; return seconds, peak memory (MB) and bytes on disk."""
    os.environ["SER_WORK"] = folder
    place = Path(folder)
    seconds, peak = {"few": [], "whole": [], "again": []}, 0

    def read(number: int) -> pd.DataFrame:
        return tables.read_table(place / f"{number}.parquet", "utterances", COLUMNS)

    work(kind, read(0), place / "warm")
    for number in range(1, 2 * rounds + 1, 2):
        few, rows = read(number), read(number + 1)
        runs = [("few", few, f"few {number}"), ("whole", rows, "whole"), ("again", rows, "whole")]
        for name, some, where in runs[: 2 if kind == "descriptors" else 3]:
            start = time.perf_counter()
            work(kind, some, place / where)
            seconds[name].append(time.perf_counter() - start)
            if (
                name == "whole" and not peak
            ):  # of the first time: whoever does it again does so in another process
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = {
        name: float(np.median(found)) if found else math.nan for name, found in seconds.items()
    }
    get_reusable_executor().shutdown()
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    peak *= unit / 1e6
    written, stored = (
        sum(file.stat().st_size for file in (place / part).rglob("*") if file.is_file())
        for part in ("whole", f"cache/{kind}")
    )
    return {
        "kind": kind,
        "clips": n,
        "peak": peak,
        "written": written / n,
        "stored": stored / (FEW + rounds * (FEW + n)),
        "audio_s": audio_seconds(corpus),
    } | seconds


def audio_seconds(corpus: str) -> float:
    """Return the mean duration of the clips, in seconds."""
    return float(
        np.mean([len(audio.load(path)) for path in timing.read_clips(corpus, 200)["path"]])
        / audio.SAMPLING_RATE
    )


def growth(corpus: str, sizes: dict[str, list[int]]) -> tuple[pd.DataFrame, bool]:
    """Print how time and memory grow, for every kind of work; return the figures, and whether they are as required."""
    print(
        f"{'':14}{'clips':>8}{'seconds':>10}{'clips/s':>9}{'against linear':>16}{'again':>9}{'peak, MB':>10}"
        f"{'× smallest':>12}{'written/clip':>14}{'stored/clip':>13}"
    )
    rows, missed = [], []
    for kind in sizes:
        for n in sizes[kind]:
            rounds = STEADY if n <= SHORT else 1
            numbers = {0: FEW} | {
                number: n if number % 2 == 0 else FEW for number in range(1, 2 * rounds + 1)
            }
            with tempfile.TemporaryDirectory() as folder:
                for task in (
                    (write_rows, corpus, numbers, folder),
                    (measure, kind, corpus, n, rounds, folder),
                ):
                    with ProcessPoolExecutor(
                        1, mp_context=get_context("spawn")
                    ) as process:  # each new, with nothing in it
                        result = process.submit(*task).result()
                rows.append(result)
            now, first = rows[-1], next(row for row in rows if row["kind"] == kind)
            each, at_first = (
                (row["whole"] - row["few"]) / (row["clips"] - FEW) for row in (now, first)
            )
            bent = each / at_first - 1
            grown = now["peak"] / first["peak"]
            print(
                f"{kind:14}{n:8,}{now['whole']:10.1f}{n / now['whole']:9.1f}{bent:+16.0%}{now['again']:9.1f}"
                f"{now['peak']:10.0f}{grown:12.2f}{now['written'] / 1e3:11.1f} kB{now['stored'] / 1e3:10.1f} kB",
                flush=True,
            )
            missed += [f"{kind} of {n:,}: time"] * (abs(bent) > LINEAR) + [
                f"{kind} of {n:,}: memory"
            ] * (grown > FLAT)
    print(
        f"required: time per clip within {LINEAR:.0%} of that of the fewest clips, the parent's peak within {FLAT} × of "
        "theirs; " + (f"MISSED: {', '.join(missed)}" if missed else "met")
    )
    return pd.DataFrame(rows), not missed


def two_workers(corpus: str, n: int) -> tuple[float, bool]:
    """Print how much faster two workers of a Dask cluster are than one; return it, and whether that is enough."""
    seconds = {}
    for n_workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
            free.close()
            address = f"tcp://127.0.0.1:{port}"
            environment = os.environ | {"PYTHONPATH": str(paths.PROJECT), "OMP_NUM_THREADS": "1"}
            commands = [
                ["dask_scheduler", "--host", "127.0.0.1", "--port", port],
                *[["dask_worker", address, "--nthreads", "1", "--no-nanny"]] * n_workers,
            ]
            started = [
                subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        f"distributed.cli.{command[0]}",
                        *command[1:],
                        "--no-dashboard",
                    ],
                    cwd=folder,
                    env=environment,
                    stderr=subprocess.DEVNULL,
                )
                for command in commands
            ]
            try:
                from distributed import Client

                with Client(address, timeout=30, set_as_default=False) as client:
                    client.wait_for_workers(n_workers, timeout=60)
                os.environ |= {"SER_CLUSTER": address, "SER_WORK": folder}
                work(
                    "functionals",
                    repeated(corpus, 64).assign(audio_hash="warm"),
                    Path(folder) / "warm",
                )
                start = time.perf_counter()
                work("functionals", repeated(corpus, n), Path(folder) / "whole")
                seconds[n_workers] = time.perf_counter() - start
            finally:
                for process in started:
                    process.kill()
                    process.wait()
                os.environ.pop("SER_CLUSTER", None)
    ratio = seconds[1] / seconds[2]
    print(
        f"\nfunctionals of {n:,} clips, one Dask worker {seconds[1]:.1f} s, two {seconds[2]:.1f} s: {ratio:.2f} × "
        f"(required: {TWO_WORKERS} ×)"
    )
    return ratio, ratio >= TWO_WORKERS


def many_rows(n: int) -> bool:
    """Print how long tables of so many utterances take to check, write, read and report on; return whether all are quick."""
    from helpers.corpora import get, index, validate

    print(
        f"\n{n:,} utterances: seconds (required: {MUST_SECONDS:.0f} each, for what does not decode the audio)"
    )
    seconds, rng = {}, np.random.default_rng(0)

    def timed(name: str, run):
        start = time.perf_counter()
        result = run()
        seconds[name] = time.perf_counter() - start
        print(f"  {name:58}{seconds[name]:8.1f}", flush=True)
        return result

    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"SER_WORK": f"{folder}/work", "SER_DATA": folder}
        root = Path(folder) / "big"
        for emotion in ("happy", "sad"):
            (root / emotion).mkdir(parents=True)
        soundfile.write(f"{folder}/short.wav", np.zeros(16), audio.SAMPLING_RATE)
        content = Path(f"{folder}/short.wav").read_bytes()
        for i in range(n):
            (root / ("happy", "sad")[i % 2] / f"s{i % 1000:04d}_{i:07d}.wav").write_bytes(content)
        rows = timed("names of files → labelled rows", lambda: index("big"))
        assert len(rows) == n and get("big").name == "big"
        timed("what is missing, unexpected, invalid", lambda: validate("big"))
        hashes = [f"{h:x}" for h in rng.integers(0, n // 2, n)]
        measured = pd.DataFrame({"duration_s": 1.0, "quality": "ok", "audio_hash": hashes})
        measured["quality"] = timed(
            "quality report: clips of the same audio (most of them)",
            lambda: audio.same_audio(measured, rows["utterance_id"]),
        )
        table = rows.drop(columns="votes").join(measured)
        place = paths.work("big") / "utterances.parquet"
        timed(
            "utterances, checked and written",
            lambda: tables.write_table(table, place, "utterances"),
        )
        timed("utterances, read and checked", lambda: tables.read_table(place, "utterances"))
    return large_tables(n) & (max(seconds.values()) <= MUST_SECONDS)


def on_paper(figures: pd.DataFrame, scaled: float) -> None:
    """Print what MSP-Podcast costs, from the rates of the largest size of each kind, and of a network of wav2vec 2.0's size."""
    from embeddings import base_size

    from helpers import wav2vec2

    largest = figures.sort_values("clips").groupby("kind").last()
    rate = (
        largest["clips"] * largest["audio_s"] / largest["whole"]
    )  # × real time, on this machine's cores
    size = dict(largest["written"] / largest["audio_s"] * MSP_HOURS * 3600 / 1e9)
    # a row, however long the clip; clips that repeat compress well, others hardly
    size["functionals"] = (
        4 * len(features.functionals(np.zeros(audio.SAMPLING_RATE, np.float32))) * MSP_CLIPS / 1e9
    )
    size["cache of functionals"] = largest.loc["functionals", "stored"] * MSP_CLIPS / 1e9
    with tempfile.TemporaryDirectory() as folder:
        encoder = wav2vec2.SpeechEncoder(base_size(folder)).eval().halve()
        clips = [
            (audio.load(path) * 32767).astype("int16")
            for path in timing.read_clips("demo", 24)["path"]
        ]
        wav2vec2.pooled(encoder, clips[:1])
        start = time.perf_counter()
        for clip in clips:
            wav2vec2.pooled(encoder, [clip])
        rate["embeddings"] = (
            sum(map(len, clips)) / audio.SAMPLING_RATE / (time.perf_counter() - start)
        )
        size["embeddings"] = encoder.n_layers * 2 * encoder.n_units * 4 * MSP_CLIPS / 1e9
    machines = {
        f"{timing.N_JOBS} cores": 1.0,
        f"{CORES} cores": CORES / timing.N_JOBS,
        f"{NODES} nodes of {CORES}": NODES * CORES / timing.N_JOBS * min(scaled / 2, 1),
    }
    print(
        f"\nMSP-Podcast, {MSP_CLIPS:,} segments, about {MSP_HOURS} h, in hours; from the rates above, by number of cores, "
        "and on the cluster to what two workers gained (embeddings: of a network of wav2vec 2.0's size)\n\n"
        f"| | × real time | {' | '.join(machines)} | memory of the parent | on disk |"
    )
    print("|---|" + "--:|" * (len(machines) + 3))
    for kind in KINDS:
        peak = f"{largest.loc[kind, 'peak'] / 1e3:.1f} GB"
        hours = " | ".join(f"{MSP_HOURS / rate[kind] / factor:.2g}" for factor in machines.values())
        print(f"| {kind} | {rate[kind]:,.0f} | {hours} | {peak} | {size[kind]:.1f} GB |")
    print(
        f"\nThe cache of the functionals: {size['cache of functionals']:.1f} GB in {MSP_CLIPS:,} files; it may be removed."
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", default="demo", help="demo (default, bundled), or a corpus under SER_DATA"
    )
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[500, 5_000, 50_000],
        help="clips, of features and images",
    )
    parser.add_argument(
        "--embeddings", type=int, nargs="+", default=[500, 5_000], help="clips, of embeddings"
    )
    parser.add_argument(
        "--clips", type=int, default=2_000, help="clips for one and two Dask workers; 0: left out"
    )
    parser.add_argument(
        "--rows", type=int, default=250_000, help="utterances of tables without audio; 0: left out"
    )
    parser.add_argument("--paper", action="store_true", help="what MSP-Podcast would cost")
    options = parser.parse_args()
    print(
        f"{timing.N_JOBS} processes, {timing.processor()}, load {os.getloadavg()[0]:.1f}, clips of "
        f"{audio_seconds(options.corpus):.1f} s\n"
    )
    sizes = dict.fromkeys(KINDS[:-1], options.sizes) | {"embeddings": options.embeddings}
    figures, met = growth(options.corpus, sizes)
    scaled, enough = two_workers(options.corpus, options.clips) if options.clips else (2.0, True)
    if options.paper:
        on_paper(figures, scaled)
    quick = many_rows(options.rows) if options.rows else True
    return int(not (met and enough and quick))


if __name__ == "__main__":
    sys.exit(main())
