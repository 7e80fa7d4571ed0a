"""The ways in which work is spread: many clips over processes or a cluster, the few pieces of an answer over threads.

With ``SER_CLUSTER`` (``tcp://host:8786``, the address of a Dask scheduler) clips go to its workers instead of to processes of
this machine. Audio is addressed by path: every worker has to see it under the same one. Results come back to whoever asked.
What a worker stores or writes itself lies under the asker's ``SER_WORK``, which the machines should share.
"""

import functools
import hashlib
import importlib.util
import itertools
import os
import platform
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError
from threadpoolctl import ThreadpoolController
from tqdm import tqdm

from helpers import paths

CHUNK = 32  # clips that travel together: sending one alone costs the parent about as much as an image costs a worker
ROUND = (
    10  # chunks per worker that are under way, or done and not yet taken: the parent holds no more
)
WAIT_S = 10  # s; how long a scheduler, and then its first worker, may take to answer

_ONE_AT_A_TIME = threading.Lock()


def over_clips(
    compute: Callable,
    arguments: Iterable[tuple],
    n_jobs: int = -1,
    progress: str = "clips",
    total: int | None = None,
    together: int = CHUNK,
) -> Iterator:
    """Call ``compute(*arguments)`` for every clip, in parallel; hand the results over in order, as they come.

    However many clips there are, and however slowly results are taken, no more than ``ROUND`` chunks of them per worker are
    held. What a worker of a cluster had not finished when it died is computed by another one.

    Parameters
    ----------
    compute
        A function of a module, so that workers can import it.
    arguments
        One tuple per clip.
    n_jobs
        Processes; -1 for all cores. With ``SER_CLUSTER``: 1 for none, and any other number for all of the cluster's workers.
    progress
        Label of the progress bar.
    total
        How many clips there are. With it, `arguments` may come from a generator that is asked for them as they are needed.
    together
        Clips that travel in one chunk, at most.

    Raises
    ------
    ChildProcessError
        If a process was killed.
    ConnectionError, ModuleNotFoundError, FileNotFoundError, RuntimeError
        If the cluster can't be used: the text says what it lacks.
    """
    if total is None:
        arguments = list(arguments)
        total = len(arguments)
    address = os.environ.get("SER_CLUSTER") if n_jobs != 1 else None
    chunks = (
        _on_cluster(address, compute, iter(arguments), total, together)
        if address
        else _in_processes(n_jobs, compute, iter(arguments), total, together)
    )
    with tqdm(total=total, desc=progress, unit="clip", mininterval=1) as bar:
        for results in chunks:
            bar.update(len(results))
            yield from results


def side_by_side(compute: Callable, items: list) -> list:
    """Call ``compute(item)`` for each item, in as many threads as there are cores; return the results in order.

    For pieces of milliseconds in which NumPy or torch do most of the work. Meanwhile their own threads rest: those of
    different libraries wait for each other busily, which costs half the time of a short answer. Callers take turns.

    Parameters
    ----------
    compute
        Must not call this function itself.
    items
        Any.
    """
    with _ONE_AT_A_TIME, _libraries().limit(limits=1, user_api="blas"):
        return list(_threads().map(compute, items))


@functools.cache
def _threads() -> ThreadPoolExecutor:
    def rest() -> None:
        import torch  # late: it would be most of the memory of a process that computes features, and of its start

        torch.set_num_threads(1)

    return ThreadPoolExecutor(joblib.cpu_count(), "side_by_side", initializer=rest)


@functools.cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def _each(compute: Callable, chunk: list[tuple]) -> list:
    return [compute(*one) for one in chunk]


def _chunk_size(total: int, together: int, n_workers: int) -> int:
    return min(
        max(total // (8 * n_workers), 1), together
    )  # 8 chunks each, so that all end together


def _in_processes(
    n_jobs: int, compute: Callable, arguments: Iterator[tuple], total: int, together: int
) -> Iterator[list]:
    n_workers = joblib.effective_n_jobs(n_jobs)
    size = _chunk_size(total, together, n_workers)
    left = -(-total // size)
    while (
        left > 0
    ):  # joblib hands out chunks however few results are taken: rounds are what keeps memory flat
        now = min(left, ROUND * n_workers)
        try:
            yield from joblib.Parallel(n_jobs, return_as="generator", batch_size=1)(
                joblib.delayed(_each)(compute, list(itertools.islice(arguments, size)))
                for _ in range(now)
            )
        except TerminatedWorkerError as error:
            raise ChildProcessError(
                "a process that worked on clips was ended from outside, mostly because memory ran short: "
                "close other programs, or take fewer processes (N_JOBS in notebooks), and run this again; "
                "what was stored is not computed again"
            ) from error
        left -= now


def _on_cluster(
    address: str, compute: Callable, arguments: Iterator[tuple], total: int, together: int
) -> Iterator[list]:
    """Send chunks to the workers of a Dask scheduler.

    Not through joblib's own backend for Dask: with joblib 1.6 whoever takes the results waits for ever when Dask gives a task
    up, because no worker can import it or because several died of it.
    """
    with _cluster(address) as client:
        n_workers = sum(client.ncores().values())
        size, waiting = _chunk_size(total, together, n_workers), deque()
        code, work = _code(), str(paths.work())
        for _ in range(-(-total // size)):
            chunk = list(itertools.islice(arguments, size))
            waiting.append(
                client.submit(
                    _each_there, code, work, _first_file(chunk), compute, chunk, pure=False
                )
            )
            if len(waiting) == ROUND * n_workers:
                yield _result(client, waiting.popleft())
        while waiting:
            yield _result(client, waiting.popleft())


def _result(client, future) -> list:
    """Wait for a chunk as long as there are workers."""
    while True:
        try:
            return future.result(timeout=WAIT_S)
        except TimeoutError:
            if future.done():
                raise  # the clip's own
            if not client.ncores():
                raise ConnectionError(
                    f"all workers of SER_CLUSTER={client.scheduler.address} are gone: start some, then run "
                    "this again; their logs say why, and what was stored is not computed again"
                ) from None


@contextmanager
def _cluster(address: str) -> Iterator:
    """Connect with a Dask scheduler, and say in words what is wrong with its workers."""
    try:
        from distributed import Client, KilledWorker
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"SER_CLUSTER is set to {address}, and Dask is not installed: pip install --group cluster, "
            "or unset SER_CLUSTER to compute on this machine"
        ) from None
    place = f"SER_CLUSTER={address}"
    try:
        client = Client(address, timeout=WAIT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no Dask scheduler answers at {place} ({error}): start one (dask scheduler), give its address "
            "as tcp://host:8786, or unset SER_CLUSTER to compute on this machine"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=WAIT_S)
        except TimeoutError:
            raise ConnectionError(
                f"the scheduler at {place} has no workers after {WAIT_S} s: start some, in the project's "
                f"folder: PYTHONPATH=. dask worker {address} --nworkers auto --nthreads 1"
            ) from None
        # asked beforehand: a worker that can't import what it is sent ends without an answer
        if lacking := [
            worker
            for worker, found in client.run(importlib.util.find_spec, "helpers").items()
            if found is None
        ]:
            raise ModuleNotFoundError(
                f"{len(lacking)} worker(s) of {place} do not find this project, e.g. {lacking[0]}: start "
                f"them in its folder, as PYTHONPATH=. dask worker {address} --nworkers auto --nthreads 1"
            )
        try:
            yield client
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"a worker of {place} lacks {error.name}: it needs the packages of requirements.txt, in "
                "the versions that are here"
            ) from error
        except KilledWorker as error:
            raise RuntimeError(
                f"{error.allowed_failures + 1} workers of {place} died of the same clips, the last one at "
                f"{error.last_worker.address}: memory is probably short there, so start fewer workers per "
                "machine; its log says more"
            ) from error


def _each_there(code: str, work: str, file: str, compute: Callable, chunk: list[tuple]) -> list:
    """Compute a chunk on a machine of the cluster, once it is known that it has the same code and sees the same files."""
    here = f"the worker on {platform.node()}, started in {os.getcwd()},"
    if code != _code():
        raise RuntimeError(
            f"{here} has other code in {paths.PROJECT / 'helpers'} than whoever asked: bring it up to date "
            "there, and start its workers again"
        )
    if file and not os.path.isfile(file):
        raise FileNotFoundError(
            f"{here} does not see {file}: every machine of the cluster needs the corpora under the same "
            "path (a shared folder, or a copy)"
        )
    os.environ["SER_WORK"] = work
    with _libraries().limit(
        limits=1, user_api="blas"
    ):  # as in joblib's processes: with more, the last bits differ
        return _each(compute, chunk)


def _first_file(chunk: list[tuple]) -> str:
    """Return a file that a chunk names, for a worker to look whether it sees it, too: what is nowhere is another matter."""
    texts = (
        value for one in chunk for value in one if isinstance(value, str) and os.path.isabs(value)
    )
    return next(filter(os.path.isfile, texts), "")


@functools.cache
def _code() -> str:
    """Hash this package: a result is stored under a recipe that whoever asks has made from the code."""
    files = sorted((paths.PROJECT / "helpers").glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
