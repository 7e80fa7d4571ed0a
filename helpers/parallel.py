"""The one way in which work on many clips is spread over processes."""

from collections.abc import Callable, Iterable, Iterator

import joblib
from tqdm import tqdm


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


def _each(compute: Callable, chunk: list[tuple]) -> list:
    return [compute(*one) for one in chunk]
