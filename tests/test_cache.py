"""Stored results: found again, never damaged, made anew when their code changes."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from helpers import cache, paths


def twice(x: float) -> np.ndarray:
    return np.array([2 * x, os.getpid()])


def slow(x: float) -> np.ndarray:
    time.sleep(0.05)
    return np.array([2 * x])


def fatal(x: float) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_are_made_once_per_version_and_key():
    calls = []

    def make():
        calls.append(1)
        return {"values": np.arange(3.0)}

    for version, key in [(1, "a"), (1, "a"), (2, "a"), ((2, 1), "a"), (1, "b")]:
        assert cache.fetch("toy", version, key, make)["values"].tolist() == [0, 1, 2]
    assert len(calls) == 4


def test_damaged_results_are_made_again():
    cache.fetch("toy", 1, "a", lambda: {"values": np.zeros(1000)})
    (stored,) = paths.work("cache").rglob("*.npz")
    stored.write_bytes(stored.read_bytes()[:100])
    assert cache.fetch("toy", 1, "a", lambda: {"values": np.ones(1)})["values"] == 1
    with np.load(stored) as arrays:
        assert arrays["values"] == 1


def test_keys_tell_contents_apart_and_do_not_depend_on_order():
    different = [("ab", "c"), ("a", "bc"), (["a"], "b"), (1,), (1.0,), ("1",), (np.arange(2),)]
    different += [(np.arange(2.0),), (np.arange(2).reshape(2, 1),), ({"a": 1},), (None,)]
    assert len({cache.hash_of(*parts) for parts in different}) == len(different)
    assert cache.hash_of({"a": 1, "b": [2]}) == cache.hash_of({"b": [2], "a": 1})


def test_keys_are_the_same_in_another_process():
    code = "from helpers import cache; import numpy as np\n"
    code += "print(cache.hash_of({'b': 'x', 'a': 1.5}, np.arange(5), ['q']))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=paths.PROJECT, capture_output=True, text=True
    )
    assert done.stdout.strip() == cache.hash_of({"a": 1.5, "b": "x"}, np.arange(5), ["q"])


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_clips_come_in_order_and_are_stored_by_the_hundred(n_jobs, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 40)
    keys = [f"clip {i}" for i in range(100)]
    jobs = [(float(i),) for i in range(100)]
    options = {"kind": "toy", "version": 1, "keys": keys, "n_jobs": n_jobs}
    first = np.array(list(cache.map_clips(twice, jobs, **options)))
    assert first[:, 0].tolist() == [2 * i for i in range(100)]
    assert (len(set(first[:, 1])) > 1) == (n_jobs > 1), "one process, or several"
    assert len(list(paths.work("cache").rglob("*.npz"))) == 3
    again = np.array(list(cache.map_clips(twice, jobs[::-1], **options | {"keys": keys[::-1]})))
    assert (again == first[::-1]).all(), "stored clips are found in any order"
    more = list(cache.map_clips(twice, [*jobs, (100.0,)], **options | {"keys": [*keys, "new"]}))
    assert more[-1][0] == 200 and (np.array(more[:-1]) == first).all()


def test_a_file_cut_short_costs_its_clips_alone(monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 10)
    keys, jobs = [str(i) for i in range(20)], [(float(i),) for i in range(20)]
    options = {"kind": "toy", "version": 1, "keys": keys, "n_jobs": 1}
    list(cache.map_clips(twice, jobs, **options))
    stored = sorted(paths.work("cache").rglob("*.npz"))
    stored[0].write_bytes(stored[0].read_bytes()[:200])
    cache._shard.cache_clear()
    again = np.array(list(cache.map_clips(twice, jobs, **options)))
    assert again[:, 0].tolist() == [2 * i for i in range(20)]


def test_a_killed_process_is_told_in_words():
    with pytest.raises(ChildProcessError, match="ended from outside, mostly because memory"):
        list(cache.map_clips(fatal, [(1.0,)] * 40, n_jobs=2))


def test_a_full_disk_leaves_what_was_there(tmp_path):
    target = tmp_path / "file"
    target.write_text("before")

    def fill(handle):
        handle.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"could not write .*file: No space left.*SER_WORK"):
        cache.write_atomically(target, fill)
    assert target.read_text() == "before" and list(tmp_path.iterdir()) == [target]


def identity(code: str) -> str:
    """Return what identifies ``Net`` in a program that defines it, as a notebook does."""
    program = (
        "from helpers.cache import source_of\n" + textwrap.dedent(code) + "\nprint(source_of(Net))"
    )
    place = paths.work() / "program.py"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(program)
    own = {"PYTHONPATH": str(paths.PROJECT)}
    done = subprocess.run(
        [sys.executable, str(place)], env=os.environ | own, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


NOTEBOOK = '''
WIDTH = 3
def scale(x):
    return 2 * x
class Block:
    """Prose."""
    def go(self, x): return scale(x)  # a remark
class Net(Block):
    def forward(self, x): return self.go(x) * WIDTH
'''


@pytest.mark.parametrize(
    "old, new", [("2 * x", "3 * x"), ("WIDTH = 3", "WIDTH = 4"), ("(x) * W", "(x) + W")]
)
def test_a_class_of_a_notebook_is_known_by_its_source(old, new):
    before = identity(NOTEBOOK)
    assert identity(NOTEBOOK.replace(old, new)) != before
    assert identity(NOTEBOOK.replace("Prose.", "Better prose.").replace("# a remark", "")) == before


def test_a_class_of_a_module_is_known_by_its_name():
    assert cache.source_of(np.random.Generator) == "numpy.random._generator.Generator"


def test_an_edited_module_is_told(monkeypatch, tmp_path):
    (tmp_path / "toy.py").write_text("VERSION = 1\n")
    (tmp_path / "versions.json").write_text('{"toy": [1, "another hash"]}')
    monkeypatch.setattr(cache, "VERSIONS", tmp_path / "versions.json")
    cache.warn_of_edited_modules.cache_clear()
    with pytest.warns(UserWarning, match=r"helpers/toy.py was edited.*raise its VERSION \(now 1\)"):
        cache.warn_of_edited_modules()
    cache.warn_of_edited_modules.cache_clear()


# --- a Dask cluster -------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A scheduler and two workers, as processes of this machine."""
    pytest.importorskip("distributed", reason="Dask is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, tests = f"tcp://127.0.0.1:{port}", os.path.dirname(__file__)
    own = {"PYTHONPATH": os.pathsep.join([str(paths.PROJECT), tests]), "CUDA_VISIBLE_DEVICES": ""}

    def start(program, *options):
        command = [sys.executable, "-m", f"distributed.cli.{program}", *options, "--no-dashboard"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, cwd=tmp_path, env=os.environ | own, **quiet)

    scheduler = start("dask_scheduler", "--host", "127.0.0.1", "--port", str(port))
    workers = [start("dask_worker", address, "--nthreads", "1", "--no-nanny") for _ in range(2)]
    monkeypatch.setenv("SER_CLUSTER", address)
    monkeypatch.setattr(cache, "WAIT_S", 60)
    yield workers
    for process in [*workers, scheduler]:
        process.kill()
        process.wait()


def test_a_killed_worker_changes_nothing(cluster):
    from distributed import Client

    with Client(os.environ["SER_CLUSTER"], timeout=60, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
    killer = threading.Timer(2.0, cluster[0].kill)
    killer.start()
    jobs = [(float(i),) for i in range(120)]
    options = {"kind": "toy", "version": 1, "keys": [str(i) for i in range(120)]}
    found = np.array(list(cache.map_clips(slow, jobs, **options)))
    killer.join()
    assert found[:, 0].tolist() == [2 * i for i in range(120)]


def test_a_cluster_that_is_not_there_is_told(monkeypatch):
    pytest.importorskip("distributed", reason="Dask is not installed")
    monkeypatch.setattr(cache, "WAIT_S", 0.5)
    monkeypatch.setenv("SER_CLUSTER", "tcp://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"can't be used.*dask scheduler.*unset SER_CLUSTER"):
        list(cache.map_clips(twice, [(1.0,)]))
