"""The tables that notebooks exchange: declared, written atomically, with a provenance record.

Conventions
-----------
The key of every row is ``utterance_id`` = ``<corpus>/<stem>``. A table ``x.parquet`` has a record
``x.parquet.json``: which notebook wrote it, when, with which parameters and versions, and from
which inputs (with their hashes).
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pandera.pandas as pa
import pyarrow

from helpers import cache, paths

PACKAGES = {  # imported as → installed as: what can move a digit
    "numpy": "numpy",
    "pandas": "pandas",
    "sklearn": "scikit-learn",
    "torch": "torch",
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "transformers": "transformers",
    "librosa": "librosa",
}
MAKERS = {  # schema → the notebook that writes such tables
    "utterances": "02",
    "functionals": "03",
    "descriptors": "03",
    "images": "04",
    "folds": "05",
    "feature_ranking": "06",
    "predictions": "07 to 17, by the model's name,",
    "results": "18",
}
_READ: dict[str, str] = {}  # inputs this process has read, with their hashes

_ID = pa.Column(str, pa.Check.str_matches(r"^[^/]+/.+$"))
_UNIQUE_ID = pa.Column(str, pa.Check.str_matches(r"^[^/]+/.+$"), unique=True)

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
            "role": pa.Column(str, pa.Check.isin(["train", "validation", "test"])),
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
            "speaker": pa.Column(str),
            "fold": pa.Column(int, pa.Check.ge(1)),
            "role": pa.Column(str, pa.Check.isin(["validation", "test"])),
            "variant": pa.Column(
                str, pa.Check.isin(["inductive", "corpus-normalised", "speaker-normalised"])
            ),
            "pretrained": pa.Column(bool),
            "truth": pa.Column(str),
            r"^p_.+$": pa.Column("float32", pa.Check.in_range(-1e-6, 1 + 1e-6), regex=True),
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
                for name in ["train_loss", "validation_nll", "validation_uar", "learning_rate"]
            },
            "kept": pa.Column(bool),
        },
        strict=True,
        unique=["model", "variant", "fold", "epoch"],
        coerce=True,
    ),
    "label_predictions": pa.DataFrameSchema(
        {  # of many small runs: labels alone
            "curve": pa.Column(str),
            "setting": pa.Column(str),
            "n": pa.Column(int, pa.Check.ge(0)),
            "draw": pa.Column(int, pa.Check.ge(0)),
            "utterance_id": _ID,
            "speaker": pa.Column(str),
            "truth": pa.Column(str),
            "prediction": pa.Column(str),
        },
        strict=True,
        unique=["curve", "setting", "n", "draw", "utterance_id"],
        coerce=True,
    ),
    "faults": pa.DataFrameSchema(
        {  # the score with a mistake in the evaluation, and the honest one
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
    "results": pa.DataFrameSchema(  # with a column for each of metrics.METRICS
        {
            "model": pa.Column(str),
            "variant": pa.Column(str),
            "pretrained": pa.Column(bool),
            "n": pa.Column(int),
            r"^(?!(model|variant|pretrained|n|protocol)$).*$": pa.Column(
                float, regex=True, nullable=True
            ),
            "protocol": pa.Column(str),
        },
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
    """Check a table against its schema and write it with a provenance record.

    Parameters
    ----------
    frame
        The table; its index is not written.
    path
        Ending in ``.parquet`` or ``.csv``.
    schema
        A name in ``SCHEMAS``.
    notebook, parameters
        Who wrote it and with which settings; kept in the record.

    Raises
    ------
    ValueError
        If the table breaks its schema; up to ten offending cells are shown, and nothing is written.
    """
    path = Path(path)
    frame = _validated(frame, schema, path, "nothing was written")
    if path.suffix == ".parquet":
        cache.write_atomically(path, lambda handle: frame.to_parquet(handle, index=False))
    else:
        cache.write_atomically(
            path, lambda handle: frame.to_csv(handle, index=False, lineterminator="\n")
        )
    versions = {
        package: importlib.metadata.version(package)
        for name, package in PACKAGES.items()
        if name in sys.modules
    }
    record = {
        "notebook": notebook,
        "parameters": parameters or {},
        "inputs": {name: digest for name, digest in _READ.items() if name != _name(path)},
        "written": datetime.now(UTC).isoformat("T", "seconds"),
        "versions": {"python": platform.python_version()} | versions,
    }
    text = json.dumps(record, indent=1, default=str).encode()
    cache.write_atomically(path.with_name(path.name + ".json"), lambda handle: handle.write(text))
    note_output(path)
    return path


def read_table(path: Path, schema: str) -> pd.DataFrame:
    """Read a table and check it; warn when one of its inputs has changed since it was written.

    Parameters
    ----------
    path, schema
        As for :func:`write_table`.

    Raises
    ------
    FileNotFoundError
        If the table is not there; the message names the notebook that writes it.
    ValueError
        If it breaks its schema or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there. Notebook {MAKERS.get(schema, '?')} writes it: run that first "
            "(or ./run_all.sh, which runs what is missing)."
        )
    again = "run the notebook that writes it again"
    if path.suffix == ".parquet":
        try:
            frame = pd.read_parquet(path)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{path} is damaged ({error}). Remove it and {again}.") from None
        pyarrow.default_memory_pool().release_unused()  # often more than the table itself
    else:
        frame = _read_csv(path, schema)
    frame = _validated(frame, schema, path, again)
    note_input(_name(path), file_hash(path), str(path.resolve()))
    if changed := _changed_inputs(path):
        warnings.warn(
            f"{path.name} was made by notebook {provenance(path).get('notebook') or '?'} from "
            f"{changed}, which changed since: run that notebook again.",
            stacklevel=2,
        )
    return frame


def provenance(path: Path) -> dict:
    """Return a table's provenance record; empty when it has none."""
    record = Path(path).with_name(Path(path).name + ".json")
    return json.loads(record.read_text("utf-8")) if record.is_file() else {}


def file_hash(path: Path) -> str:
    """Return the sha256 of a file's content."""
    stat = os.stat(path)
    return _file_hash(str(path), stat.st_mtime_ns, stat.st_size)


def note_input(name: str, digest: str, logged_as: str = "") -> None:
    """Remember that this process read something, for the records of what it writes later."""
    _READ[name] = digest
    _log("read", logged_as or name, digest)


def note_output(path: Path) -> None:
    """Tell a headless run of an output, so that its loss is noticed."""
    _log("write", str(Path(path).resolve()))


@functools.lru_cache(maxsize=4096)  # a corpus of images must not fill the memory
def _file_hash(path: str, mtime_ns: int, size: int) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _read_csv(path: Path, schema: str) -> pd.DataFrame:
    """Read text as text (speaker "01" is not 1, an emotion may be "null"), empty numbers as NaN."""
    declared = SCHEMAS[schema].columns
    text = {name: str for name, column in declared.items() if "str" in str(column.dtype)}
    numbers = pd.read_csv(path, nrows=0).columns.difference(list(text))
    return pd.read_csv(
        path, dtype=text, keep_default_na=False, na_values=dict.fromkeys(numbers, "")
    )


def _validated(frame: pd.DataFrame, schema: str, path: Path, consequence: str) -> pd.DataFrame:
    try:
        return SCHEMAS[schema].validate(frame.reset_index(drop=True), lazy=True, inplace=True)
    except pa.errors.SchemaErrors as errors:
        cases = errors.failure_cases[["column", "check", "failure_case", "index"]].head(10)
        raise ValueError(
            f"{path.name} is not a valid {schema!r} table ({len(errors.failure_cases)} faults, the "
            f"first ten below); {consequence}.\n{cases.to_string(index=False)}"
        ) from None


def _name(path: Path) -> str:
    """Name an input by its place under SER_WORK, so that the folder can move."""
    path, root = Path(path).resolve(), paths.work()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _changed_inputs(path: Path) -> list[str]:
    recorded = provenance(path).get("inputs", {}).items()
    return [
        name
        for name, digest in recorded
        if not name.startswith("raw:")
        and (place := paths.work() / name).is_file()
        and file_hash(place) != digest
    ]


def _log(event: str, path: str, digest: str = "") -> None:
    if log := os.environ.get("SER_RUN_LOG"):
        line = {"event": event, "path": path, "sha256": digest or file_hash(path)}
        with open(log, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")
