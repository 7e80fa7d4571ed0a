"""Memory as a corpus grows, and the speed of two Dask workers against one.

Clips of a corpus repeat, under ids and hashes of their own, and the work folder is empty: every
result is computed. Memory is the peak of the parent and its workers together, measured in a process
of its own.

Run ``python benchmarks/scale.py [--clips 5000] [--cluster-clips 1500]``.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import timing

from helpers import features, paths, spectrograms

MOST_GB, TWO_WORKERS = 2.0, 1.6


def repeated(corpus: str, n: int) -> pd.DataFrame:
    """Return `n` rows, each clip as often as needed, no two with the same id or hash."""
    rows = timing.read_clips(corpus, min(n, 200))
    rows = rows.iloc[np.arange(n) % len(rows)].reset_index(drop=True)
    names = [f"{i:032x}" for i in range(n)]
    return rows.assign(audio_hash=names, utterance_id=[f"big/{name}" for name in names])


@contextmanager
def peak_memory():
    """Yield a list that holds, afterwards, the highest memory of this process and its workers."""
    over, peak = threading.Event(), [0]

    def watch() -> None:
        while not over.wait(0.2):
            now = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                with suppress(psutil.Error):
                    now += process.memory_info().rss
            peak[0] = max(peak[0], now)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def features_and_images(corpus: str, n: int, folder: str) -> tuple[float, float]:
    """Compute functionals and images of so many clips; return seconds and peak memory (GB)."""
    os.environ["SER_WORK"] = folder
    rows, start = repeated(corpus, n), time.perf_counter()
    with peak_memory() as peak:
        features.functionals_table(rows)
        spectrograms.write_images(rows, Path(folder) / "images")
    return time.perf_counter() - start, peak[0] / 1e9


def on_a_cluster(corpus: str, n: int, n_workers: int) -> float:
    """Return the seconds that so many Dask workers take for the functionals of `n` clips."""
    from distributed import Client

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = f"tcp://127.0.0.1:{port}"
    own = os.environ | {"PYTHONPATH": str(paths.PROJECT), "OMP_NUM_THREADS": "1"}
    commands = [["dask_scheduler", "--host", "127.0.0.1", "--port", port]]
    commands += [["dask_worker", address, "--nthreads", "1", "--no-nanny"]] * n_workers
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for program, *options in commands:
            command = [
                sys.executable,
                "-m",
                f"distributed.cli.{program}",
                *options,
                "--no-dashboard",
            ]
            quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
            started.append(subprocess.Popen(command, cwd=folder, env=own, **quiet))
        try:
            with Client(address, timeout=30, set_as_default=False) as client:
                client.wait_for_workers(n_workers, timeout=60)
            os.environ |= {"SER_CLUSTER": address, "SER_WORK": folder}
            features.functionals_table(repeated(corpus, 64).assign(audio_hash="warm"))
            start = time.perf_counter()
            features.functionals_table(repeated(corpus, n))
            return time.perf_counter() - start
        finally:
            os.environ.pop("SER_CLUSTER", None)
            for process in started:
                process.kill()
                process.wait()


def main() -> int:
    """Print both figures; returns 1 if one of them is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="demo", help="demo (default), or one under SER_DATA")
    parser.add_argument("--clips", type=int, default=5_000, help="for memory")
    parser.add_argument("--cluster-clips", type=int, default=1_500, help="for the workers")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process,
    ):
        job = process.submit(features_and_images, options.corpus, options.clips, folder)
        seconds, peak = job.result()
    print(
        f"functionals and images of {options.clips:,} clips: {seconds:.0f} s, peak {peak:.2f} GB "
        f"(required: at most {MOST_GB} GB)"
    )
    one, two = (on_a_cluster(options.corpus, options.cluster_clips, n) for n in (1, 2))
    print(
        f"functionals of {options.cluster_clips:,} clips: one Dask worker {one:.1f} s, two "
        f"{two:.1f} s: {one / two:.2f} × (required: {TWO_WORKERS} ×)"
    )
    return int(peak > MOST_GB or one / two < TWO_WORKERS)


if __name__ == "__main__":
    sys.exit(main())
