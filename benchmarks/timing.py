"""What the benchmarks share: the clips, timing in turns, the table, and whether the required
ratios are met."""

import argparse
import functools
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # the scripts are run from anywhere, helpers not installed
os.environ.setdefault("TQDM_DISABLE", "1")

import joblib
import numpy as np
import pandas as pd
import soundfile

from helpers import corpora

N_JOBS = joblib.cpu_count()


def parser(description: str, clips: int = 100) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have; `clips` is how many by default."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument(
        "--corpus", default="demo", help="demo (default, bundled), or a corpus under SER_DATA"
    )
    options.add_argument(
        "--clips",
        type=int,
        default=clips,
        help=f"how many, spread evenly over the corpus (default {clips})",
    )
    options.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="timed rounds, after one that is not counted (default 3)",
    )
    return options


@functools.cache
def smile():
    """Return openSMILE's analyser for ComParE 2016; None where it is not installed."""
    try:
        import opensmile
    except ImportError:
        return None
    return opensmile.Smile(opensmile.FeatureSet.ComParE_2016, opensmile.FeatureLevel.Functionals)


def read_clips(corpus: str, n: int) -> pd.DataFrame:
    """Return `n` utterances, spread evenly over a corpus (so over its speakers and emotions).

    Whole files only: a part of a longer recording would be cheap for whoever reads only the part.
    """
    utterances = corpora.index(corpus)[lambda u: u["start_s"].isna()]
    chosen = np.linspace(0, len(utterances) - 1, min(n, len(utterances))).round().astype(int)
    return utterances.iloc[chosen].reset_index(drop=True)


def over_clips(compute: Callable, clips: pd.DataFrame, n_jobs: int = N_JOBS) -> Callable[[], None]:
    """Return a function that calls ``compute(path)`` for every clip, by default on all cores."""

    def run():
        joblib.Parallel(n_jobs=n_jobs, batch_size=4)(
            joblib.delayed(compute)(path) for path in clips["path"]
        )

    return run


def in_turns(roads: dict[str, Callable[[], None]], repeats: int) -> pd.DataFrame:
    """Time every road once in each round, so that other load of the machine falls on all alike.

    The first round is not counted: in it processes start, import and compile, and files come into
    memory.

    Returns
    -------
    pd.DataFrame
        Seconds; a row per round, a column per road.
    """
    rounds = []
    for _ in range(repeats + 1):
        seconds = {}
        for name, run in roads.items():
            start = perf_counter()
            run()
            seconds[name] = perf_counter() - start
        rounds.append(seconds)
    return pd.DataFrame(rounds[1:])


def report(seconds: pd.DataFrame, clips: pd.DataFrame, required: dict[str, float]) -> bool:
    """Print each road's speed, and how many times as fast the first one is (median over rounds).

    Parameters
    ----------
    seconds
        From :func:`in_turns`; the first column is ours.
    clips
        The clips that were worked through.
    required
        Road → ratio that ours must reach.

    Returns
    -------
    bool
        Whether ours reaches them all.
    """
    audio_s = sum(soundfile.info(path).duration for path in clips["path"])
    ratios = seconds.div(seconds.iloc[:, 0], axis=0)
    print(
        f"{len(clips)} clips of {audio_s / len(clips):.1f} s, {N_JOBS} processes, "
        f"median of {len(seconds)} rounds; {processor()}, load {os.getloadavg()[0]:.1f}\n"
    )
    print(f"{'':42}{'clips/s':>9}{'× real time':>13}{'ours is faster':>24}{'required':>10}")
    missed = []
    for name, median in seconds.median().items():
        ratio = ratios[name].median()
        spread = (
            f"{ratio:.1f} × ({ratios[name].min():.1f}–{ratios[name].max():.1f})"
            if name != seconds.columns[0]
            else ""
        )
        needed = f"{required[name]:g} ×" if name in required else ""
        print(
            f"{name:42}{len(clips) / median:9.1f}{audio_s / median:13.0f}{spread:>24}{needed:>10}"
        )
        if ratio < required.get(name, 0):
            missed.append(name)
    if required:
        print("\n" + (f"MISSED: {', '.join(missed)}" if missed else "all required ratios are met"))
    return not missed


@functools.cache
def processor() -> str:
    """Name the processor where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
