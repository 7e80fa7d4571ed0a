"""Runs that are killed, run out of disk, may not write, or meet each other: nothing is lost, nothing computed twice.

``SER_TEST_KILLS=20 python -m pytest tests/test_interruptions.py`` kills a run of all notebooks twenty times.
"""
# ruff: noqa: F811 (project is a fixture)

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from test_run_all import environment, project, run_all  # noqa: F401

KILLS = int(os.environ.get("SER_TEST_KILLS", "3"))
ONLY = [] if KILLS >= 20 else ["--only", "02,03,05,10,11,18"]  # of each kind of work one


def stored(work: Path) -> dict[str, tuple[int, int]]:
    """What is in the store, and which file it is: whatever is computed again gets a new one."""
    return {
        str(path.relative_to(work)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in (work / "cache").rglob("*.npz")
        if not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def whole(project, tmp_path_factory) -> tuple[Path, float]:
    """The work folder of a run that nothing disturbs, and how many seconds it took."""
    work = tmp_path_factory.mktemp("whole")
    done, seconds = run_all(project, *ONLY, SER_WORK=str(work))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    shutil.rmtree(project / "reports")
    return work, seconds


def start(project: Path, log: Path, *options: str, **variables: str) -> subprocess.Popen:
    with open(log, "w", encoding="utf-8") as handle:
        return subprocess.Popen(
            [sys.executable, "-m", "helpers.pipeline", *options],
            cwd=project,
            stdout=handle,
            stderr=subprocess.STDOUT,
            env=environment(project, **variables),
            start_new_session=True,
        )


@pytest.mark.slow
def test_killed_at_random_moments_the_results_are_the_same_and_nothing_is_computed_twice(
    project, whole, tmp_path
):
    undisturbed, seconds = whole
    seed = int.from_bytes(os.urandom(4))
    moments = (
        8 + np.random.default_rng(seed).dirichlet(np.ones(KILLS)) * 0.6 * seconds
    )  # 8 s until anything happens
    work, log, before, finished, kills = tmp_path / "killed", tmp_path / "log", {}, set(), 0
    for moment in [*moments, None]:
        process = start(project, log, *ONLY, SER_WORK=str(work))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        said = log.read_text()
        assert not finished & set(re.findall(r"^(\d\d_\w+) +starts", said, re.M)), (
            f"seed {seed}: {said}"
        )
        finished |= set(re.findall(r"^(\d\d_\w+) .* run$", said, re.M))
        now = stored(work)
        assert {name: now.get(name) for name in before} == before, (
            f"stored results were computed again (seed {seed})"
        )
        before = now
        if process.returncode == 0:
            break
    print(f"killed {kills} times (seed {seed})")
    assert kills >= KILLS / 2, f"it was too quick to be killed {KILLS} times (seed {seed})"
    assert process.returncode == 0, log.read_text()
    results = [
        next((place / "demo").glob("*/results.csv")).read_bytes() for place in (undisturbed, work)
    ]
    assert results[0] == results[1] and len(results[0]) > 1000, f"seed {seed}"
    there, expected = (
        {name for name in stored(place) if "/fingerprints/" not in name}
        for place in (work, undisturbed)
    )
    assert there == expected, (
        "the same folds and features, no others (05 listens to clips that it makes anew each time)"
    )


@pytest.mark.slow
def test_processes_that_a_killed_run_left_do_not_work_on_beside_the_next(project, tmp_path):
    log, work = tmp_path / "log", tmp_path / "work"
    process = start(project, log, "--only", "02,03", SER_WORK=str(work))
    record = work / "demo/.processes.json"
    while not record.exists() or len(record.read_text()) < 10:
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    record.write_text(
        json.dumps({left.pid: psutil.Process(left.pid).create_time(), os.getpid(): 1.0})
    )
    done, _ = run_all(project, "--only", "02", SER_WORK=str(work))
    assert done.returncode == 0, done.stdout + done.stderr
    assert left.wait(10) == -signal.SIGKILL, (
        "and this process, which merely has the number of another, goes on"
    )


@pytest.mark.slow
def test_a_second_run_on_the_same_corpus_is_refused_in_words(project, tmp_path):
    log, variables = tmp_path / "log", {"SER_WORK": str(tmp_path / "work")}
    process = start(project, log, "--only", "02", **variables)
    while (
        not (tmp_path / "work/demo/.lock").exists()
        or not (tmp_path / "work/demo/.lock").read_text().strip()
    ):
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    second, _ = run_all(project, "--only", "02", **variables)
    assert (
        second.returncode == 2 and f"another run (process {process.pid}) works in" in second.stderr
    )
    assert process.wait(120) == 0, log.read_text()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte; only root may make one."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"a small disk can't be made here ({made.stderr.strip()})")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.slow
def test_full_disk_is_told_and_the_run_goes_on_when_there_is_space(project, whole, small_disk):
    variables = {"SER_WORK": str(small_disk)}
    full, _ = run_all(project, "--only", "02,03", **variables)
    said = full.stdout + full.stderr
    assert (
        full.returncode == 1 and "No space left on device" in said and "free some space" in said
    ), said
    assert "Traceback" not in full.stderr
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    done, _ = run_all(project, "--only", "02,03", **variables)
    assert done.returncode == 0 and re.search(r"02_\w+ +fresh", done.stdout), (
        done.stdout + done.stderr
    )
    for name in ("utterances", "functionals", "descriptors"):
        assert (small_disk / f"demo/{name}.parquet").read_bytes() == (
            whole[0] / f"demo/{name}.parquet"
        ).read_bytes()


@pytest.mark.slow
def test_read_only_work_folder_is_told_and_left_as_it_is(project, small_disk):
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    variables = {"SER_WORK": str(small_disk)}
    assert run_all(project, "--only", "02", **variables)[0].returncode == 0
    before = {path: path.stat().st_mtime_ns for path in small_disk.rglob("*")}
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    refused, _ = run_all(project, "--only", "02,03", **variables)
    assert (
        refused.returncode == 2
        and "Read-only file system" in refused.stderr
        and "SER_WORK" in refused.stderr
    )
    assert (
        "Traceback" not in refused.stderr
        and {path: path.stat().st_mtime_ns for path in small_disk.rglob("*")} == before
    )
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    again, _ = run_all(project, "--only", "02", **variables)
    assert again.returncode == 0 and re.search(r"02_\w+ +fresh", again.stdout), (
        again.stdout + again.stderr
    )
