"""Results of costly steps, found again by what they depend on; and how work is spread.

A result is stored under its *kind*, the *version* of the code that makes it and a *key*, a hash of
its data and settings. Versions are numbers that a person raises (``VERSION`` in each module that
makes results); ``tests/test_versions.py`` fails when such a module was edited and its number was
not. What is stored is arrays, without pickles, in a few files per kind: a trained fold is one file,
results of clips share a file by the hundred. The folder may be removed at any time.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

import joblib
import numpy as np
import threadpoolctl
from tqdm import tqdm

from helpers import paths

SHARD = 256  # clips whose results share a file
FEW = 32  # clips for which starting processes costs more than it saves
WAIT_S = 10  # s; how long a Dask scheduler, and then its first worker, may take to answer
VERSIONS = Path(__file__).with_name("versions.json")  # module → [version, hash of its code]


def hash_of(*parts) -> str:
    """Hash numbers, strings, arrays, and containers of them: the key of :func:`fetch`."""
    return joblib.hash(parts)


def source_of(thing: Callable) -> str:
    """Return what identifies a class or function in a key.

    One of an importable module goes by its name: a version number stands for its code. One that
    is defined in a notebook goes by its source, with that of the notebook's own classes and
    functions that it names, and the values of its UPPERCASE constants. A ``functools.partial``
    adds its arguments.
    """
    if isinstance(thing, functools.partial):
        return f"{source_of(thing.func)}{thing.args}{sorted(thing.keywords.items())}"
    if thing.__module__ != "__main__":
        return f"{thing.__module__}.{thing.__qualname__}"
    main = vars(sys.modules["__main__"])
    defined, found, waiting = {}, {}, [thing.__name__]
    for cell in main.get("In") or [Path(main["__file__"]).read_text("utf-8")]:
        with contextlib.suppress(SyntaxError):  # a magic; it defines nothing
            nodes = (n for n in code_of(cell).body if isinstance(n, ast.ClassDef | ast.FunctionDef))
            defined.update((node.name, node) for node in nodes)
    while waiting:
        name = waiting.pop()
        if name in defined and name not in found:
            found[name] = ast.unparse(defined[name])
            waiting += [n.id for n in ast.walk(defined[name]) if isinstance(n, ast.Name)]
        elif name.isupper() and isinstance(main.get(name), (int, float, str, tuple)):
            found[name] = repr(main[name])
    return repr(sorted(found.items()))


def fetch(
    kind: str,
    version: int | tuple[int, ...],
    key: str,
    make: Callable[[], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Return the stored result, or make and store it.

    Parameters
    ----------
    kind
        Folder of ``SER_WORK/cache``, e.g. ``"folds"``.
    version
        Version number of the code that makes the result, or of several modules.
    key
        From :func:`hash_of`.
    make
        Called without arguments when nothing is stored, or what is stored is damaged.
    """
    stored = _folder(kind, version) / f"{key}.npz"
    not_there = contextlib.suppress(ValueError, EOFError, OSError, zipfile.BadZipFile)
    with not_there, np.load(stored, allow_pickle=False) as arrays:
        return dict(arrays)
    result = make()  # also where what is there was cut short
    write_atomically(stored, lambda handle: np.savez(handle, **result))
    return result


def map_clips(
    compute: Callable,
    arguments: Iterable[tuple],
    *,
    kind: str = "",
    version: int | tuple[int, ...] = 0,
    keys: list[str] | None = None,
    n_jobs: int = -1,
    progress: str = "clips",
) -> Iterator:
    """Call ``compute(*arguments)`` for every clip, and yield the results in order.

    With ``SER_CLUSTER`` (the address of a Dask scheduler, ``tcp://host:8786``) its workers compute;
    they see audio under the same paths. What a worker had not finished when it died goes to
    another one.

    Parameters
    ----------
    compute
        A function of a module, so that processes can import it. It returns an array where results
        are stored, and anything that can be pickled otherwise.
    arguments
        One tuple per clip.
    kind, version, keys
        As for :func:`fetch`, with a key per clip: results are stored, and clips whose result is
        stored are not computed again. This process writes, so a kill loses at most ``SHARD`` clips.
    n_jobs
        Processes; -1 for all cores, 1 for none. Few clips are computed in this process.
    progress
        Label of the progress bar.

    Raises
    ------
    ChildProcessError
        If a process was killed, mostly because memory ran short.
    ConnectionError, ModuleNotFoundError
        If the cluster can't be used; the text says why.
    """
    arguments = list(arguments)
    stored = _stored_shards(kind, version) if kind else {}
    with tqdm(total=len(arguments), desc=progress, unit="clip", mininterval=1) as bar:
        for begin in range(0, len(arguments), SHARD):
            jobs = dict(enumerate(arguments[begin : begin + SHARD], start=begin))
            results = {i: _read(stored, keys[i]) for i in jobs} if kind else dict.fromkeys(jobs)
            missing = [i for i in jobs if results[i] is None]
            made = _computed(compute, [jobs[i] for i in missing], n_jobs)
            results.update(zip(missing, made, strict=True))
            if kind and missing:
                _write_shard(kind, version, {keys[i]: results[i] for i in missing})
            bar.update(len(jobs))
            yield from results.values()


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name in its folder and rename it when it is complete.

    A kill or a full disk in the middle leaves what was there before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as handle:
            write(handle)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise  # of what makes the content, not of the disk
        raise OSError(
            error.errno,
            f"could not write {path}: {error.strerror}. What was there before is untouched; free "
            "some space or set SER_WORK to another disk, then run again.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def code_hash(path: Path) -> str:
    """Hash a module's code without comments and docstrings."""
    return hashlib.sha256(ast.unparse(code_of(path.read_text("utf-8"))).encode()).hexdigest()[:16]


def code_of(source: str, where: str = "<unknown>") -> ast.Module:
    """Parse Python code without its comments and docstrings; ``where`` is for syntax errors."""
    tree = ast.parse(source, where)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


@functools.cache
def warn_of_edited_modules() -> None:
    """Warn where a module that makes results was edited and its version was not raised."""
    for name, (version, expected) in json.loads(VERSIONS.read_text("utf-8")).items():
        if code_hash(VERSIONS.with_name(f"{name}.py")) != expected:
            warnings.warn(
                f"helpers/{name}.py was edited, and results that are stored may be of the code "
                f"before: raise its VERSION (now {version}) if they can change, then run "
                "python tests/test_versions.py",
                stacklevel=2,
            )


def _folder(kind: str, version: int | tuple[int, ...]) -> Path:
    warn_of_edited_modules()
    return paths.work("cache") / kind / f"v{'.'.join(map(str, np.atleast_1d(version)))}"


def _stored_shards(kind: str, version: int | tuple[int, ...]) -> dict[str, Path]:
    """Return key → file of all results of clips that are stored."""
    found = {}
    for path in sorted(_folder(kind, version).glob("*.clips.npz")):
        # of a file that was cut short, the clips are computed again
        with contextlib.suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(path) as file:
            found.update(dict.fromkeys((name[:-4] for name in file.namelist()), path))
    return found


@functools.lru_cache(maxsize=2)
def _shard(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _read(stored: dict[str, Path], key: str) -> np.ndarray | None:
    try:
        return _shard(stored[key])[key] if key in stored else None
    except (ValueError, OSError, zipfile.BadZipFile):
        return None


def _write_shard(kind: str, version: int | tuple[int, ...], results: dict[str, np.ndarray]) -> None:
    path = _folder(kind, version) / f"{hash_of(sorted(results))}.clips.npz"
    write_atomically(path, lambda handle: np.savez(handle, **results))


def _computed(compute: Callable, jobs: list[tuple], n_jobs: int) -> list:
    """Compute some clips: in this process, in several, or on a cluster."""
    if address := os.environ.get("SER_CLUSTER") if n_jobs != 1 else None:
        with _cluster(address) as client:
            return client.gather(client.map(lambda job: compute(*job), jobs, pure=False))
    if n_jobs == 1 or len(jobs) <= FEW:
        with threadpoolctl.threadpool_limits(1, "blas"):  # as in a process; more are slower
            return list(itertools.starmap(compute, jobs))
    try:
        return joblib.Parallel(n_jobs)(joblib.delayed(compute)(*job) for job in jobs)
    except joblib.externals.loky.process_executor.TerminatedWorkerError as error:
        raise ChildProcessError(
            "a process that worked on clips was ended from outside, mostly because memory ran "
            "short: close other programs, or take fewer processes (N_JOBS in notebooks), and run "
            "this again; what was stored is not computed again"
        ) from error


def _cluster(address: str):
    """Connect with a Dask scheduler whose workers find this project."""
    try:
        from distributed import Client

        client = Client(address, timeout=WAIT_S, set_as_default=False)
        client.wait_for_workers(1, timeout=WAIT_S)
        found = client.run(importlib.util.find_spec, "helpers")
        if None in found.values():
            raise ImportError("a worker does not find the project")
        return client
    except (ImportError, OSError, ValueError) as error:
        raise ConnectionError(
            f"SER_CLUSTER={address} can't be used ({type(error).__name__}: {error}). Expected: "
            "Dask (pip install 'dask[distributed]'), a scheduler that runs there (dask scheduler), "
            "and workers, started in the project's folder: PYTHONPATH=. dask worker "
            f"{address} --nworkers auto --nthreads 1. Or unset SER_CLUSTER."
        ) from error
