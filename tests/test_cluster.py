"""Clips on a Dask cluster: a real scheduler and workers, one of which is killed; the same result, or an error in words."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import clips, harmonic_tone, noise, write_audio

from helpers import audio, features, parallel, paths, spectrograms, tables, wav2vec2
from helpers.parallel import over_clips

distributed = pytest.importorskip(
    "distributed", reason="Dask is not installed: pip install --group cluster"
)


class Cluster:
    """A scheduler and its workers, as processes of this machine."""

    def __init__(self, folder: Path):
        self.folder, self.workers = folder, []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        self.scheduler = self.start(
            "dask_scheduler", "--host", "127.0.0.1", "--port", self.address.rsplit(":", 1)[1]
        )

    def start(self, program: str, *options: str, see_project: bool = True) -> subprocess.Popen:
        code = (
            os.pathsep.join([str(paths.PROJECT), str(Path(__file__).parent)]) if see_project else ""
        )
        own = {
            "PYTHONPATH": code,
            "SER_WORK": str(self.folder / "own"),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
        }
        command = [sys.executable, "-m", f"distributed.cli.{program}", *options, "--no-dashboard"]
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=os.environ | own, stdout=log, stderr=log
            )

    def with_workers(self, n: int, see_project: bool = True) -> str:
        """Start workers until there are so many; return the address."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < n:
            self.workers.append(
                self.start(
                    "dask_worker",
                    self.address,
                    "--nthreads",
                    "1",
                    "--no-nanny",
                    see_project=see_project,
                )
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with distributed.Client(self.address, timeout=5, set_as_default=False) as client:
                    if n:
                        client.wait_for_workers(n, timeout=60)
                    return self.address
            except OSError:
                time.sleep(0.5)  # the scheduler is starting
        raise AssertionError((self.folder / "log").read_text()[-3000:])

    def stop(self) -> None:
        for process in [*self.workers, self.scheduler]:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    started = Cluster(tmp_path_factory.mktemp("cluster"))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> pd.DataFrame:
    """A hundred short clips, all different."""
    folder = tmp_path_factory.mktemp("spoken")

    def signal_of(i: int) -> np.ndarray:
        return harmonic_tone(90 + i, 0.5 + 0.005 * i) + noise(0.5 + 0.005 * i, 0.01, i)

    return clips(
        **{f"c{i:03d}": write_audio(folder / f"c{i:03d}.wav", signal_of(i)) for i in range(100)}
    )


def there(path: str) -> tuple[str, int]:
    """What a worker does in some tests: it says who it is."""
    return path, os.getpid()


def fatal(path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_changes_no_bit(cluster, spoken, private_work, monkeypatch, tmp_path):
    alone = tables.write_parts(
        features.functionals_parts(spoken, n_jobs=2), tmp_path / "alone.parquet", "functionals"
    )
    monkeypatch.setenv("SER_WORK", str(tmp_path / "work"))  # nothing is found there
    monkeypatch.setenv("SER_CLUSTER", cluster.with_workers(2))
    stored, at_kill = tmp_path / "work/cache/functionals", []

    def kill() -> None:
        while not at_kill:
            done = len(list(stored.rglob("*.npz")))
            if done >= 10:
                cluster.workers[0].kill()
                at_kill.append(done)
            time.sleep(0.005)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    together = tables.write_parts(
        features.functionals_parts(spoken), tmp_path / "together.parquet", "functionals"
    )
    killer.join(60)
    assert at_kill[0] < len(spoken) and cluster.workers[0].wait() == -signal.SIGKILL
    assert tables.file_hash(alone) == tables.file_hash(together)
    table = tables.read_table(together, "functionals")
    assert (
        table["utterance_id"].tolist() == spoken["utterance_id"].tolist()
        and table["f0_st__mean"].nunique() > 50
    )
    assert len(list(stored.rglob("*.npz"))) == len(spoken), (
        "what workers found out is stored where whoever asked stores it"
    )


def test_both_workers_compute_and_results_are_in_order(cluster, spoken, monkeypatch):
    monkeypatch.setenv("SER_CLUSTER", cluster.with_workers(2))
    found = list(over_clips(there, [(path,) for path in spoken["path"]] * 5, progress="who"))
    assert [path for path, _ in found] == spoken["path"].tolist() * 5
    assert {pid for _, pid in found} == {worker.pid for worker in cluster.workers}
    assert [pid for _, pid in over_clips(there, [("a",), ("b",)], n_jobs=1)] == [os.getpid()] * 2, (
        "one process: this one"
    )


def test_descriptors_measures_and_images_are_those_of_one_machine(
    cluster, spoken, private_work, monkeypatch, tmp_path
):
    few = spoken.head(20)
    here = features.descriptors_table(few, n_jobs=2), audio.measure_all(few, n_jobs=2)
    spectrograms.write_images(few, tmp_path / "here", n_jobs=2)
    monkeypatch.setenv("SER_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("SER_CLUSTER", cluster.with_workers(1))
    pd.testing.assert_frame_equal(features.descriptors_table(few), here[0], check_exact=True)
    pd.testing.assert_frame_equal(audio.measure_all(few), here[1], check_exact=True)
    for name in spectrograms.write_images(few, tmp_path / "there")["image"]:
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_images_that_lie_elsewhere_are_missed(cluster, spoken, monkeypatch, tmp_path):
    monkeypatch.setenv("SER_CLUSTER", cluster.with_workers(1))
    with pytest.raises(
        FileNotFoundError,
        match=r"20 of 20 images were written, and are not in only_there.*have to share",
    ):
        spectrograms.write_images(
            spoken.head(20), Path("only_there")
        )  # relative: each process's own folder


def test_embeddings_are_those_of_one_machine(cluster, spoken, private_work, monkeypatch, tmp_path):
    cut = wav2vec2.prepare(spoken.head(12), "energy", n_jobs=1)[1]
    here = wav2vec2.embeddings("tiny-random-wav2vec2", cut, "cpu", batch_s=3)
    monkeypatch.setenv("SER_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("SER_CLUSTER", cluster.with_workers(1))
    made = wav2vec2.embeddings("tiny-random-wav2vec2", cut, "cpu", batch_s=3)
    assert here.shape == (12, 4, 64) and np.abs(here).mean() > 0.1
    np.testing.assert_allclose(made, here, atol=1e-6)
    assert len(list((tmp_path / "work/cache/embeddings").rglob("*.npz"))) == 12


def test_clips_that_end_every_worker_are_named_as_that(cluster, monkeypatch):
    monkeypatch.setenv("SER_CLUSTER", cluster.with_workers(2))
    with pytest.raises(
        RuntimeError, match=r"2 workers of SER_CLUSTER=tcp://\S+ died of the same clips.*memory is"
    ):
        list(over_clips(fatal, [("a",)]))


def test_an_error_of_a_clip_comes_back_as_it_was(cluster, spoken, monkeypatch, tmp_path):
    monkeypatch.setenv("SER_CLUSTER", cluster.with_workers(1))
    with pytest.raises(FileNotFoundError, match=r"gone\.wav is not there"):
        list(over_clips(audio.load, [(str(tmp_path / "gone.wav"),)]))
    target = tmp_path / "f.parquet"
    target.write_text("what was there before")
    lost = spoken.head(3).assign(path=str(tmp_path / "gone.wav"))
    with pytest.raises(FileNotFoundError, match=r"gone\.wav is not there"):
        tables.write_parts(features.functionals_parts(lost), target, "functionals")
    assert target.read_text() == "what was there before"


def test_a_cluster_that_can_not_be_used_says_what_it_lacks(monkeypatch, tmp_path):
    monkeypatch.setattr(parallel, "WAIT_S", 2)
    for address in ("tcp://127.0.0.1:9", "nonsense://here"):
        monkeypatch.setenv("SER_CLUSTER", address)
        with pytest.raises(
            ConnectionError,
            match=rf"no Dask scheduler answers at SER_CLUSTER={address} .*unset SER_CLUSTER",
        ):
            list(over_clips(there, [("a",)]))
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(
        ModuleNotFoundError,
        match=r"SER_CLUSTER is set .* Dask is not installed: pip install --group cluster",
    ):
        list(over_clips(there, [("a",)]))


def test_workers_that_are_not_there_die_or_lack_the_project(monkeypatch, tmp_path):
    monkeypatch.setattr(parallel, "WAIT_S", 2)
    alone = Cluster(tmp_path)
    try:
        monkeypatch.setenv("SER_CLUSTER", alone.with_workers(0))
        with pytest.raises(
            ConnectionError, match=r"has no workers after 2 s: .* PYTHONPATH=. dask worker tcp://"
        ):
            list(over_clips(there, [("a",)]))
        alone.with_workers(1)
        with pytest.raises(
            ConnectionError, match=r"all workers of SER_CLUSTER=tcp://\S+ are gone: start some"
        ):
            list(over_clips(fatal, [("a",)]))
        alone.with_workers(1, see_project=False)
        with pytest.raises(
            ModuleNotFoundError,
            match=r"1 worker\(s\) of SER_CLUSTER=tcp://\S+ do not find this project",
        ):
            list(over_clips(there, [("a",)]))
    finally:
        alone.stop()


def test_a_machine_with_other_code_or_without_the_corpus_says_so(private_work, spoken, tmp_path):
    path, code = spoken.loc[0, "path"], parallel._code()
    chunk = [(path,), (str(tmp_path / "nowhere.wav"),)]
    assert parallel._first_file(chunk) == parallel._first_file(chunk[::-1]) == path
    assert parallel._first_file([(1, "a")]) == ""
    assert parallel._each_there(code, str(private_work), path, there, [(path,)]) == [
        (path, os.getpid())
    ]
    with pytest.raises(
        RuntimeError, match=r"the worker on .* has other code in .*helpers than whoever asked"
    ):
        parallel._each_there("other", str(private_work), path, there, [(path,)])
    with pytest.raises(
        FileNotFoundError,
        match=r"does not see /elsewhere/a.wav: every machine .* under the same path",
    ):
        parallel._each_there(
            code, str(private_work), "/elsewhere/a.wav", there, [("/elsewhere/a.wav",)]
        )


def test_no_more_is_computed_than_is_taken():
    asked, n = [], 20 * parallel.CHUNK * parallel.ROUND

    def numbers():
        for i in range(n):
            asked.append(i)
            yield i, 2

    results = over_clips(pow, numbers(), n_jobs=2, total=n)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    time.sleep(2)  # enough for all of them
    assert len(asked) <= 2 * parallel.CHUNK * parallel.ROUND < n
    assert list(results) == [i * i for i in range(3, n)] and len(asked) == n


NOTEBOOK = """
from pathlib import Path
from accelerate import PartialState
state = PartialState(cpu=True)
(Path(FOLDER) / f"{state.process_index} of {state.num_processes}").write_text(f"{CORPUS} {N_JOBS}")
"""


def test_accelerate_runs_a_notebook_in_every_process(tmp_path):
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": "# 01 · Two processes"},
        {
            "cell_type": "code",
            "metadata": {"tags": ["parameters"]},
            "outputs": [],
            "execution_count": None,
            "source": 'CORPUS = "ravdess"  # corpus\nFOLDER = ""  # where\nN_JOBS = -1  # processes',
        },
        {
            "cell_type": "code",
            "metadata": {},
            "outputs": [],
            "execution_count": None,
            "source": NOTEBOOK,
        },
    ]
    book = tmp_path / "01_two.ipynb"
    book.write_text(
        json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    command = [
        "accelerate.commands.launch",
        "--config_file",
        "accelerate.yaml",
        "--main_process_port",
        "0",
        "-m",
        "helpers.notebooks",
        str(book),
        "CORPUS=demo",
        f"FOLDER={tmp_path}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=paths.PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name: path.read_text() for path in tmp_path.glob("* of *")} == {
        "0 of 2": "demo 1",
        "1 of 2": "demo 1",
    }
