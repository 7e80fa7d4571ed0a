"""A content-addressed store for costly results: features of a clip, a trained fold.

A result is stored under a hash of everything it depends on (its *recipe*), so it is found again exactly when nothing
that matters has changed, on any run, in any order, and whoever asks. Values are dictionaries of arrays, kept as
``.npz`` without pickles; a file appears under its name only when it is complete.

One small file per clip is meant: any number of processes and machines write at once without a lock, whoever is killed loses
one clip, and a look-up costs a fraction of a millisecond. ``benchmarks/scale.py`` says what that comes to.
"""

import ast
import functools
import hashlib
import inspect
import itertools
import os
import re
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd

from helpers import paths

LARGE_BYTES = 1_000_000_000  # an array above that stays on disk


def recipe_hash(*parts) -> str:
    """Hash a recipe: numbers, strings, arrays, tables, modules (their source), and containers of them.

    Use it for the key of :func:`fetch`. Dictionaries are hashed in sorted order, so their order does not matter.

    Raises
    ------
    TypeError
        If a part is of a kind whose content can't be told, e.g. an open file.
    """
    digest = hashlib.sha256()
    for part in parts:
        _update(digest, part)
    return digest.hexdigest()[:32]


def fetch(
    kind: str, key: str, compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return the stored result, or compute and store it.

    Parameters
    ----------
    kind
        Sub-folder of ``SER_WORK/cache``, e.g. ``"functionals"``.
    key
        From :func:`recipe_hash`.
    compute
        Called without arguments when nothing is stored, or what is stored is damaged.
    """
    stored = stored_at(kind, key)
    try:
        with np.load(stored, allow_pickle=False) as arrays:
            return dict(arrays)
    except (FileNotFoundError, ValueError, EOFError, OSError, zipfile.BadZipFile):
        pass  # not there, or cut short by a full disk: compute it
    result = compute()
    write_atomically(stored, lambda handle: np.savez(handle, **result))
    return result


def stacked(kind: str, key: str, rows: Iterable[np.ndarray], n_rows: int) -> np.ndarray:
    """Stack rows of the same shape into one array; one above ``LARGE_BYTES`` is a file that is read where it is used.

    Parameters
    ----------
    kind, key
        As for :func:`fetch`. A large array that is stored is not made again.
    rows
        Made one by one.
    n_rows
        How many there are.

    Returns
    -------
    np.ndarray [shape=(n_rows, ...)]
        In memory, or mapped from a file under ``SER_WORK/cache`` and read-only.
    """
    stored = stored_at(kind, key).with_suffix(".npy")
    if stored.is_file():
        return np.load(stored, mmap_mode="r")
    rows = iter(rows)
    first = next(rows)
    shape = (n_rows, *first.shape)
    if first.nbytes * n_rows <= LARGE_BYTES:
        result = np.empty(shape, first.dtype)
        for i, row in enumerate(itertools.chain([first], rows)):
            result[i] = row
        return result

    def write(
        handle,
    ) -> (
        None
    ):  # by writing, not through the mapped file: its pages would count as this process's memory
        layout = {
            "descr": np.lib.format.dtype_to_descr(first.dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_2_0(handle, layout)
        for row in itertools.chain([first], rows):
            handle.write(np.ascontiguousarray(row).data)

    write_atomically(stored, write)
    return np.load(stored, mmap_mode="r")


@functools.cache
def code(thing: Callable | ModuleType) -> str:
    """Return the source of a function, class or module without comments and docstrings: better prose changes no recipe."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module))
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def code_with_parts(thing: Callable) -> list[str]:
    """Return the code of a function or class, and of whatever it names in this package, directly or through others.

    With it come the numbers, strings, tuples and dataclasses that it names; other constants belong into a recipe on their own.
    """
    package, found, waiting = thing.__module__.split(".")[0], {}, [thing]
    while waiting:
        part = waiting.pop()
        text, known = code(part), vars(sys.modules[part.__module__])
        found[part.__module__, part.__qualname__] = text
        named = {word: known[word] for word in set(re.findall(r"\w+", text)) if word in known}
        for module, name in set(re.findall(r"\b(\w+)\.(\w+)", text)):  # audio.trim
            if inspect.ismodule(known.get(module)) and known[module].__name__.startswith(
                f"{package}."
            ):
                named[name] = vars(known[module])[name]
        for name, value in named.items():
            value = inspect.unwrap(value) if callable(value) else value
            if isinstance(value, (bool, int, float, str, tuple)) or (
                is_dataclass(value) and not inspect.isclass(value)
            ):
                found[part.__module__, name] = f"{name} = {value!r}"
            elif (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__.split(
                "."
            )[0] == package:
                waiting += [value] if (value.__module__, value.__qualname__) not in found else []
    return [found[name] for name in sorted(found)]


def stored_at(kind: str, key: str) -> Path:
    """Return where a result lies (or would lie)."""
    return paths.work("cache") / kind / key[:2] / f"{key}.npz"


def write_atomically(path: Path, write: Callable) -> None:
    """Write a file under a temporary name beside it and rename it when it is complete.

    A kill or a full disk in the middle leaves what was there before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as handle:
            write(handle)
        os.chmod(temporary, 0o644)  # mkstemp makes it private; the work folder may be shared
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, temporary):
            raise  # of what makes the content, not of the disk
        raise OSError(
            error.errno,
            f"could not write {path}: {error.strerror}. What was there before is untouched; "
            "free some space or set SER_WORK to another disk, then run again.",
        ) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


@functools.cache
def _source(thing: Callable | ModuleType) -> str:
    return inspect.getsource(thing)  # a key per clip, of a corpus, must not read files


def _update(digest, part) -> None:
    # kind and length first, so that ("ab", "c") and ("a", "bc"), or ["a"], "b" and ["a", "b"], are not the same
    digest.update(
        f"{type(part).__name__}:{len(part) if hasattr(part, '__len__') else ''}:".encode()
    )
    if part is None or isinstance(part, (str, bytes, bool, int, float, np.generic)):
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    elif isinstance(part, np.ndarray):
        digest.update(f"{part.dtype}{part.shape}".encode())
        digest.update(
            repr(part.tolist()).encode()
            if part.dtype == object
            else np.ascontiguousarray(part).data
        )
    elif isinstance(part, (pd.DataFrame, pd.Series)):
        digest.update(
            repr(list(part.columns) if isinstance(part, pd.DataFrame) else [part.name]).encode()
        )
        digest.update(pd.util.hash_pandas_object(part).to_numpy().data)
    elif isinstance(part, dict):
        for name in sorted(part):
            _update(digest, name)
            _update(digest, part[name])
    elif isinstance(part, (list, tuple, set, frozenset)):
        for item in sorted(part) if isinstance(part, (set, frozenset)) else part:
            _update(digest, item)
    elif isinstance(part, ModuleType) or inspect.isroutine(part) or inspect.isclass(part):
        digest.update(_source(part).encode())
    else:
        raise TypeError(
            f"a recipe can't hold {type(part).__name__} ({part!r:.80}): its content can't be hashed. "
            "Give its parameters as numbers, strings, arrays or dictionaries instead."
        )
