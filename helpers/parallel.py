"""The ways in which work is spread: many clips over processes, the few pieces of an answer over threads."""

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import joblib
from threadpoolctl import ThreadpoolController
from tqdm import tqdm

_ONE_AT_A_TIME = threading.Lock()


def over_clips(compute: Callable, arguments: Iterable[tuple], n_jobs: int = -1, progress: str = "clips") -> Iterator:
    """Call ``compute(*arguments)`` for every clip, in parallel; hand the results over in order, as they come.

    Clips travel in chunks: sending one costs the parent about as much as an image costs a worker. Any backend of joblib
    will do, so ``with joblib.parallel_config("dask"):`` sends them to a cluster.

    Parameters
    ----------
    compute
        A function of a module, so that workers can import it.
    arguments
        One tuple per clip.
    n_jobs
        Processes; -1 for all cores.
    progress
        Label of the progress bar.
    """
    arguments = list(arguments)
    size = min(max(len(arguments) // (8 * joblib.effective_n_jobs(n_jobs)), 1), 64)  # 8 chunks each, so that all end together
    chunks = [arguments[i: i + size] for i in range(0, len(arguments), size)]
    # "generator" hands chunks over as they are finished: the parent never holds more than a few
    finished = joblib.Parallel(n_jobs=n_jobs, return_as="generator", batch_size=1)(
        joblib.delayed(_each)(compute, chunk) for chunk in chunks)
    with tqdm(total=len(arguments), desc=progress, unit="clip", mininterval=1) as bar:
        for results in finished:
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
    import torch  # late: processes that compute features do without

    return ThreadPoolExecutor(joblib.cpu_count(), "side_by_side", initializer=lambda: torch.set_num_threads(1))


@functools.cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def _each(compute: Callable, chunk: list[tuple]) -> list:
    return [compute(*one) for one in chunk]
