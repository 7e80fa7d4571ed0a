"""Runs that are killed, run out of disk, may not write, or meet each other.

Nothing is lost, and nothing is computed twice. ``python -m pytest -m slow
tests/test_interruptions.py`` kills a run of all notebooks twenty times.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_all, run_environment

N_KILLS = 20
NOTEBOOK = "11"  # trains many folds in little time


def stored(work: Path) -> dict[str, tuple[int, int]]:
    """What is in the store, and which file it is: what is computed again gets a new one."""
    found = {}
    for path in (work / "cache").rglob("[!.]*.npz"):
        found[path.relative_to(work).as_posix()] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


def start(project: Path, log: Path, *options: str, **variables: str) -> subprocess.Popen:
    with open(log, "w", encoding="utf-8") as handle:
        return subprocess.Popen(
            [sys.executable, "tools/run.py", *options],
            cwd=project,
            stdout=handle,
            stderr=subprocess.STDOUT,
            env=run_environment(project, **variables),
            start_new_session=True,
        )


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def finished(project, tmp_path_factory) -> Path:
    """The work folder of a run that nothing disturbs."""
    work = tmp_path_factory.mktemp("finished")
    done, _ = run_all(project, "--only", f"02,03,05,{NOTEBOOK}", SER_WORK=str(work))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return work


@pytest.fixture
def unfinished(finished, tmp_path) -> Path:
    """A copy of it, in which one notebook has not run yet."""
    work = tmp_path / "work"
    shutil.copytree(finished, work)
    shutil.rmtree(work / "cache/folds")
    for path in [*work.glob(f"demo/runs/*/{NOTEBOOK}_*"), *work.glob("demo/*/predictions/ml_*")]:
        path.unlink()
    return work


def test_killed_twice_the_results_are_the_same_and_no_fold_is_computed_twice(
    project, finished, unfinished, tmp_path
):
    log, before = tmp_path / "log", stored(unfinished)
    options, variables = ("--only", NOTEBOOK), {"SER_WORK": str(unfinished)}
    for _ in range(2):
        process = start(project, log, *options, **variables)
        while len(stored(unfinished)) < len(before) + 3:
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        second, _ = run_all(project, *options, **variables)
        assert second.returncode == 2
        assert f"another run (process {process.pid}) works in" in second.stderr
        kill(process)
        now = stored(unfinished)
        assert {name: now.get(name) for name in before} == before
        assert "outcome" not in next(unfinished.glob(f"demo/runs/*/{NOTEBOOK}_*.json")).read_text()
        before = now
    done, _ = run_all(project, *options, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    now = stored(unfinished)
    assert {name: now.get(name) for name in before} == before
    predictions = list(finished.glob("demo/*/predictions/ml_*.parquet"))
    assert len(predictions) > 3
    for path in predictions:
        again = unfinished / path.relative_to(finished)
        pd.testing.assert_frame_equal(pd.read_parquet(path), pd.read_parquet(again))


@pytest.mark.slow
def test_killed_at_random_moments_the_results_are_the_same(project, tmp_path):
    whole, work, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    seconds = run_all(project, SER_WORK=str(whole))[1]
    seed = int.from_bytes(os.urandom(4))
    shares = np.random.default_rng(seed).dirichlet(np.ones(N_KILLS))
    moments = 8 + shares * 0.6 * seconds  # 8 s until anything happens
    before, ran, n_kills = {}, set(), 0
    for moment in [*moments, None]:
        process = start(project, log, SER_WORK=str(work))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        if process.poll() is None:
            kill(process)
            n_kills += 1
        said = log.read_text()
        assert not ran & set(re.findall(r"^(\d\d_\w+) +starts", said, re.M)), f"{seed}: {said}"
        ran |= set(re.findall(r"^(\d\d_\w+) +run ", said, re.M))
        now = stored(work)
        assert {name: now.get(name) for name in before} == before, f"computed again (seed {seed})"
        before = now
        if process.returncode == 0:
            break
    assert n_kills >= N_KILLS / 2 and process.returncode == 0, f"{n_kills} kills, seed {seed}"
    first, second = [next(folder.glob("demo/*/results.csv")) for folder in (whole, work)]
    assert first.read_bytes() == second.read_bytes() and len(first.read_bytes()) > 1000, seed


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte; only root may make one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a small disk can't be made here ({made.stderr.strip()})")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_full_disk_is_told_and_the_run_goes_on_when_there_is_space(project, finished, small_disk):
    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", small_disk], check=True)

    options, variables = ("--only", "02,03"), {"SER_WORK": str(small_disk)}
    full, _ = run_all(project, *options, **variables)
    said = full.stdout + full.stderr
    assert full.returncode == 1 and "No space left on device" in said, said
    assert "free some space" in said and "Traceback" not in full.stderr
    remount("size=200m")
    done, _ = run_all(project, *options, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"02_\w+ +fresh", done.stdout), done.stdout
    for name in ("utterances", "functionals", "descriptors"):
        tables = [folder / f"demo/{name}.parquet" for folder in (small_disk, finished)]
        pd.testing.assert_frame_equal(*map(pd.read_parquet, tables))

    before = {path: path.stat().st_mtime_ns for path in small_disk.rglob("*")}
    remount("ro")
    refused, _ = run_all(project, *options, **variables)
    remount("rw")
    assert refused.returncode == 2 and "Read-only file system" in refused.stderr
    assert "SER_WORK" in refused.stderr and "Traceback" not in refused.stderr
    assert {path: path.stat().st_mtime_ns for path in small_disk.rglob("*")} == before
