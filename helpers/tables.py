"""The tables that notebooks hand to each other: declared, written atomically, with their provenance beside them.

Conventions
-----------
The key of every row is ``utterance_id`` = ``<corpus>/<stem>``. A table ``x.parquet`` has a sidecar ``x.parquet.json``:
which notebook wrote it, with which parameters, from which inputs (with their hashes), in how many seconds.

A table that is too large for memory is written in parts and read in parts (row groups of one parquet file), or with only the
columns that are wanted.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pyarrow
import pyarrow.parquet

from helpers import paths
from helpers.cache import write_atomically

# imported as → installed as: what can move a digit
PACKAGES = {
    "numpy": "numpy",
    "pandas": "pandas",
    "sklearn": "scikit-learn",
    "torch": "torch",
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "transformers": "transformers",
    "librosa": "librosa",
}
CLIP = [
    "path",
    "start_s",
    "end_s",
    "audio_hash",
]  # of the utterances: what features are computed from, and found again by
_STARTED = time.time()
_READ: dict[str, str] = {}  # inputs this process has read, with their hashes

_ID = pa.Column(str, pa.Check.str_matches(r"^[^/]+/.+$"))
_UNIQUE_ID = pa.Column(str, pa.Check.str_matches(r"^[^/]+/.+$"), unique=True)
_PROBABILITY = pa.Column("float32", pa.Check.in_range(-1e-6, 1 + 1e-6), regex=True)
_ROLE = pa.Column(str, pa.Check.isin(["train", "valid", "test"]))

SCHEMAS = {
    "utterances": pa.DataFrameSchema(
        {
            "utterance_id": _UNIQUE_ID,
            "path": pa.Column(str),
            "start_s": pa.Column(float, nullable=True),
            "end_s": pa.Column(float, nullable=True),
            "speaker": pa.Column(str),
            "sex": pa.Column(str, pa.Check.isin(["female", "male", "unknown"])),
            "group": pa.Column(str),
            "sentence": pa.Column(str),
            "text": pa.Column(str),
            "dialogue": pa.Column(str),
            "turn": pa.Column(float, nullable=True),
            "emotion_native": pa.Column(str),
            "intensity": pa.Column(str),
            "valence": pa.Column(float, nullable=True),
            "arousal": pa.Column(float, nullable=True),
            "dominance": pa.Column(float, nullable=True),
            "duration_s": pa.Column(float, pa.Check.ge(0), nullable=True),
            "audio_hash": pa.Column(str),
            "quality": pa.Column(str),
        },
        strict=False,
        coerce=True,
    ),
    "functionals": pa.DataFrameSchema(
        {
            "utterance_id": _UNIQUE_ID,
            r"^(?!utterance_id).*$": pa.Column("float32", regex=True),
        },
        strict=True,
    ),
    "descriptors": pa.DataFrameSchema(
        {  # a row per frame
            "utterance_id": _ID,
            r"^(?!utterance_id).*$": pa.Column("float32", regex=True, nullable=True),
        },
        strict=True,
    ),
    "images": pa.DataFrameSchema(
        {
            "utterance_id": _UNIQUE_ID,
            "image": pa.Column(str, unique=True),
            "n_frames": pa.Column(int, pa.Check.ge(1)),
        },
        strict=True,
        coerce=True,
    ),
    "folds": pa.DataFrameSchema(
        {
            "utterance_id": _ID,
            "emotion": pa.Column(str),
            "speaker": pa.Column(str),
            "fold": pa.Column(int, pa.Check.ge(1)),
            "role": _ROLE,
        },
        strict=True,
        unique=["utterance_id", "fold"],
        coerce=True,
    ),
    "feature_ranking": pa.DataFrameSchema(
        {
            "feature": pa.Column(str, unique=True),
            "family": pa.Column(str),
            "anova_f": pa.Column(float, pa.Check.ge(0)),
            "mutual_information": pa.Column(float, pa.Check.ge(0)),
        },
        strict=True,
        coerce=True,
    ),
    "predictions": pa.DataFrameSchema(
        {
            "utterance_id": _ID,
            "fold": pa.Column(int, pa.Check.ge(1)),
            "role": pa.Column(str, pa.Check.isin(["valid", "test"])),
            "variant": pa.Column(
                str, pa.Check.isin(["inductive", "corpus-normalised", "speaker-normalised"])
            ),
            "pretrained": pa.Column(bool),
            "truth": pa.Column(str),
            r"^p_.+$": _PROBABILITY,
        },
        strict=True,
        unique=["utterance_id", "fold", "role", "variant"],
        coerce=True,
    ),
    "curves": pa.DataFrameSchema(
        {
            "model": pa.Column(str),
            "variant": pa.Column(str),
            "fold": pa.Column(int),
            "epoch": pa.Column(int, pa.Check.ge(1)),
            **{
                name: pa.Column(float)
                for name in ["train_loss", "valid_nll", "valid_uar", "learning_rate"]
            },
            "kept": pa.Column(bool),
        },
        strict=True,
        unique=["model", "variant", "fold", "epoch"],
        coerce=True,
    ),
    "guesses": pa.DataFrameSchema(
        {  # of many small runs: labels alone
            "curve": pa.Column(str),
            "setting": pa.Column(str),
            "n": pa.Column(int, pa.Check.ge(0)),
            "draw": pa.Column(int, pa.Check.ge(0)),
            "utterance_id": _ID,
            "truth": pa.Column(str),
            "guess": pa.Column(str),
        },
        strict=True,
        unique=["curve", "setting", "n", "draw", "utterance_id"],
        coerce=True,
    ),
    "faults": pa.DataFrameSchema(
        {  # what is reported with a fault, and what is honest
            "fault": pa.Column(str, unique=True),
            "n": pa.Column(int),
            **{
                name: pa.Column(float, nullable=True)
                for name in [
                    "uar",
                    "uar_low",
                    "uar_high",
                    "honest",
                    "difference",
                    "low",
                    "high",
                    "p_holm",
                ]
            },
            "audit": pa.Column(str),
        },
        strict=True,
        coerce=True,
    ),
    "results": pa.DataFrameSchema(
        {
            "model": pa.Column(str),
            "variant": pa.Column(str),
            "pretrained": pa.Column(bool),
            "n": pa.Column(int),
            **{
                name: pa.Column(float, nullable=True)
                for name in [
                    "uar",
                    "uar_low",
                    "uar_high",
                    "uar_fold_mean",
                    "wa",
                    "macro_f1",
                    "weighted_f1",
                    "ece",
                    "nll",
                ]
            },
            "protocol": pa.Column(str),
        },
        strict=True,
        unique=["model", "variant"],
        coerce=True,
    ),
}


def write_table(
    frame: pd.DataFrame,
    path: Path,
    schema: str,
    *,
    notebook: str = "",
    parameters: dict | None = None,
) -> Path:
    """Check a table against its schema and write it with a provenance sidecar.

    Parameters
    ----------
    frame
        The table; its index is not written.
    path
        Ending in ``.parquet`` or ``.csv``.
    schema
        A name in ``SCHEMAS``.
    notebook, parameters
        Who wrote it and with which settings; kept in the sidecar.

    Raises
    ------
    ValueError
        If the table breaks its schema; up to ten offending rows are shown, and nothing is written.
    """
    path = Path(path)
    frame = _validated(frame, schema, path, "nothing was written")
    if path.suffix == ".parquet":
        write_atomically(path, lambda handle: frame.to_parquet(handle, index=False))
    else:
        write_atomically(
            path, lambda handle: frame.to_csv(handle, index=False, lineterminator="\n")
        )
    return _with_provenance(path, schema, frame.shape, notebook, parameters)


def write_parts(
    parts: Iterable[pd.DataFrame],
    path: Path,
    schema: str,
    *,
    notebook: str = "",
    parameters: dict | None = None,
) -> Path:
    """Write a table part by part, as the parts are made: no more than one of them is in memory.

    The table appears under its name when the last part is written. What went wrong before leaves what was there.

    Parameters
    ----------
    parts
        Tables with the same columns; all rows of an utterance are in one of them. E.g. ``features.functionals_parts``.
    path
        Ending in ``.parquet``. Each part is a row group of it, so keep parts to some megabytes, not less.
    schema, notebook, parameters
        As for :func:`write_table`.

    Raises
    ------
    ValueError
        If a part breaks the schema, has other columns than the first one, or rows of an utterance that an earlier part has; or
        if there are none.
    """
    path, n_rows, seen, columns = Path(path), 0, [], []

    def write(handle) -> None:
        nonlocal n_rows
        writer = None
        try:
            for part in parts:
                where = path.with_name(f"{path.name}, part {len(seen) + 1}")
                rows = pyarrow.Table.from_pandas(
                    _validated(part, schema, where, "nothing was written"), preserve_index=False
                )
                if writer is None:
                    # numbers hardly repeat: dictionaries and statistics of them cost time and memory, and gain nothing
                    names = [
                        field.name
                        for field in rows.schema
                        if not pyarrow.types.is_floating(field.type)
                    ]
                    writer = pyarrow.parquet.ParquetWriter(
                        handle, rows.schema, use_dictionary=names, write_statistics=names
                    )
                    columns.extend(rows.column_names)
                if rows.column_names != columns:
                    strange = sorted({*columns} ^ {*rows.column_names})[:10] or "their order"
                    raise ValueError(
                        f"{where} has {len(rows.column_names)} columns, the first part {len(columns)}; the "
                        f"difference is {strange}: nothing was written. Make all parts with the same settings."
                    )
                writer.write_table(rows)
                n_rows += rows.num_rows
                seen.append(
                    pd.util.hash_array(part["utterance_id"].unique().astype(object))
                )  # eight bytes each
                del part, rows  # before the next one is made
                pyarrow.default_memory_pool().release_unused()
        finally:
            if writer:
                writer.close()
        if writer is None:
            raise ValueError(f"{path.name}: there are no parts, so nothing was written")
        ids = np.concatenate(seen)
        if doubled := len(ids) - len(np.unique(ids)):
            raise ValueError(
                f"{path.name}: {doubled} utterance(s) have rows in more than one part: nothing was written. Give "
                "each utterance once, with all of its rows in one part."
            )

    write_atomically(path, write)
    return _with_provenance(path, schema, (n_rows, len(columns)), notebook, parameters)


def _with_provenance(
    path: Path, schema: str, shape: tuple[int, int], notebook: str, parameters: dict | None
) -> Path:
    """Write a table's sidecar, and tell the run log of both."""
    sidecar = {
        "table": path.name,
        "schema": schema,
        "rows": shape[0],
        "columns": shape[1],
        "sha256": file_hash(path),
        "notebook": notebook,
        "parameters": parameters or {},
        "inputs": {name: digest for name, digest in _READ.items() if name != _name(path)},
        "seconds": round(time.time() - _STARTED, 1),
        "written": datetime.now(UTC).isoformat("T", "seconds"),
        "versions": {
            "python": platform.python_version(),
            **{
                package: importlib.metadata.version(package)
                for name, package in PACKAGES.items()
                if name in sys.modules
            },
        },
    }
    text = json.dumps(sidecar, indent=1, default=str).encode()
    write_atomically(path.with_name(path.name + ".json"), lambda handle: handle.write(text))
    _log("write", str(path.resolve()), sidecar["sha256"])
    return path


def read_table(path: Path, schema: str, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a table and check it; tell when one of *its* inputs has changed since it was written.

    Interactively a stale table gives a warning that names the notebook to run again; in a headless run it stops.

    Parameters
    ----------
    path, schema
        As for :func:`write_table`.
    columns
        Load these alone, beside ``utterance_id``, from a parquet file; all by default.

    Raises
    ------
    FileNotFoundError
        If the table is not there; the message names the notebook that writes it.
    ValueError
        If it breaks its schema, or is stale in a headless run.
    """
    path = Path(path)
    _require(path, schema)
    if path.suffix == ".parquet":
        frame = _loaded(
            path, lambda: pd.read_parquet(path, columns=columns and _with_id(columns, path))
        )
    else:
        frame = _read_csv(path, schema)
    frame = _validated(
        frame, schema, path, "run the notebook that writes it again", columns is None
    )
    _note_read(path)
    pyarrow.default_memory_pool().release_unused()  # what reading took besides, often more than the table
    return frame


def read_parts(
    path: Path,
    schema: str,
    columns: list[str] | None = None,
    ids: Iterable[str] | None = None,
) -> Iterator[pd.DataFrame]:
    """Read a parquet table part by part, each checked as :func:`read_table` does: no more than one is in memory.

    Parameters
    ----------
    path, schema, columns
        As for :func:`read_table`.
    ids
        Rows of these utterances alone; all by default.

    Yields
    ------
    pd.DataFrame
        Some rows, in the order of the table; all rows of an utterance are in one part. No part is empty.
    """
    path, wanted, rest = Path(path), None if ids is None else pd.Index(ids), None
    _require(path, schema)
    _note_read(path)
    names = columns and _with_id(columns, path)
    with _loaded(path, lambda: pyarrow.parquet.ParquetFile(path)) as file:
        for group in range(file.num_row_groups):
            part = _loaded(path, lambda group=group: file.read_row_group(group, names)).to_pandas()
            part = part if wanted is None else part[part["utterance_id"].isin(wanted)]
            part = part if rest is None else pd.concat([rest, part])
            if len(part) and group < file.num_row_groups - 1:
                # a file that was written in one piece may have an utterance in two row groups: its rows wait for the others
                waits = part["utterance_id"] == part["utterance_id"].iloc[-1]
                rest, part = part[waits], part[~waits]
            if len(part):
                yield _validated(
                    part, schema, path, "run the notebook that writes it again", columns is None
                )


def _require(path: Path, schema: str) -> None:
    if not path.is_file():
        maker = {
            "utterances": "02",
            "functionals": "03",
            "descriptors": "03",
            "images": "04",
            "folds": "05",
            "feature_ranking": "06",
            "predictions": "07 to 14, by the model's name,",
            "results": "18",
        }
        raise FileNotFoundError(
            f"{path} is not there. Notebook {maker.get(schema, '?')} writes it: run that first "
            "(or ./run_all.sh, which runs what is missing)."
        )


def _loaded(path: Path, load: Callable):
    """Load something from a parquet file, or say that it is damaged."""
    try:
        return load()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(
            f"{path} is damaged ({error}). Remove it and run the notebook that writes it again."
        ) from None


def _with_id(columns: list[str], path: Path) -> list[str]:
    known = pyarrow.parquet.read_schema(path).names
    if lacking := [name for name in columns if name not in known]:
        raise ValueError(
            f"{path} has {len(known)} columns, and not {', '.join(lacking[:10])}: ask for some that it has, e.g. "
            f"{', '.join(known[1:4])}"
        )
    return list(dict.fromkeys(["utterance_id", *columns]))


def _note_read(path: Path) -> None:
    """Remember that a table was read, and tell when it is stale."""
    note_input(_name(path), file_hash(path), str(path.resolve()))
    changed = [
        name
        for name, digest in provenance(path).get("inputs", {}).items()
        if not name.startswith("raw:") and _changed(name, digest)
    ]
    if changed:
        message = (
            f"{path.name} was made by notebook {provenance(path).get('notebook') or '?'} from {changed}, which "
            f"changed since: run that notebook again (or remove {path}, if it no longer writes it)."
        )
        if os.environ.get("SER_RUN_LOG"):
            raise ValueError(message)
        warnings.warn(message, stacklevel=3)


def provenance(path: Path) -> dict:
    """Return a table's sidecar; empty when it has none."""
    sidecar = Path(path).with_name(Path(path).name + ".json")
    return json.loads(sidecar.read_text()) if sidecar.is_file() else {}


def file_hash(path: Path) -> str:
    """Return the sha256 of a file's content."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    stat = path.stat()
    return _file_hash(str(path), stat.st_mtime_ns, stat.st_size)


def note_input(name: str, digest: str, logged_as: str = "") -> None:
    """Remember that this process read something, for the sidecars of what it writes later."""
    _READ[name] = digest
    _log("read", logged_as or name, digest)


def note_output(path: Path) -> None:
    """Tell the run log of an output that is no table (an image, say), so that its loss is noticed."""
    if os.environ.get("SER_RUN_LOG"):
        _log("write", str(Path(path).resolve()), file_hash(path))


@lru_cache(maxsize=4096)  # a corpus of images must not fill the memory
def _file_hash(path: str, mtime_ns: int, size: int) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _read_csv(path: Path, schema: str) -> pd.DataFrame:
    """Read text as text (speaker "01" is not 1, an emotion may be called "null"), and empty cells of numbers as NaN."""
    columns = SCHEMAS[schema].columns
    text = [name for name, column in columns.items() if "str" in str(column.dtype)]
    return pd.read_csv(
        path,
        dtype=dict.fromkeys(text, str),
        keep_default_na=False,
        na_values={name: [""] for name in columns if name not in text},
    )


def _validated(
    frame: pd.DataFrame, schema: str, path: Path, consequence: str, whole: bool = True
) -> pd.DataFrame:
    """Return a table as its schema wants it; one that was not read whole may lack columns."""
    declared = SCHEMAS[schema]
    if not whole:
        there = {
            name: column
            for name, column in declared.columns.items()
            if column.regex or name in frame
        }
        declared = declared.remove_columns([name for name in declared.columns if name not in there])
        declared = declared.update_columns(
            {name: {"required": False} for name, column in there.items() if column.regex}
        )
    try:
        return declared.validate(frame.reset_index(drop=True), lazy=True, inplace=True)
    except pa.errors.SchemaErrors as errors:
        cases = errors.failure_cases[["column", "check", "failure_case", "index"]].head(10)
        raise ValueError(
            f"{path.name} is not a valid {schema!r} table ({len(errors.failure_cases)} faults, the first "
            f"ten below); {consequence}.\n{cases.to_string(index=False)}"
        ) from None


def _name(path: Path) -> str:
    """Name an input by its place under SER_WORK, so that the folder can move."""
    path = Path(path).resolve()
    return (
        path.relative_to(paths.work()).as_posix()
        if path.is_relative_to(paths.work())
        else str(path)
    )


def _changed(name: str, digest: str) -> bool:
    path = paths.work() / name
    return path.is_file() and file_hash(path) != digest


def _log(event: str, path: str, digest: str) -> None:
    if log := os.environ.get("SER_RUN_LOG"):
        with open(log, "a", encoding="utf-8") as handle:
            handle.write(json.dumps({"event": event, "path": path, "sha256": digest}) + "\n")
