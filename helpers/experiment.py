"""One road from a model and its inputs to a predictions table and a run record.

Every model of the project, classical or network, goes through :func:`cross_validate`. A model never receives the test rows'
emotions, so it can't learn from them; what it did with the other rows is written down for the audit.
"""

import gzip
import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import joblib
import numpy as np
import pandas as pd
from tqdm import tqdm

from helpers.audit import audit_inputs, audit_record, require_clean
from helpers.cache import fetch, recipe_hash, write_atomically
from helpers.corpora import emotion_order
from helpers.tables import note_output


@dataclass(frozen=True)
class Part:
    """The rows of one role in one fold.

    Attributes
    ----------
    inputs : np.ndarray [shape=(n_rows, ...)]
    classes : np.ndarray [shape=(n_rows,), int]
        Index of the emotion in the project's order.
    speakers : np.ndarray [shape=(n_rows,)]
    ids : np.ndarray [shape=(n_rows,)], optional
        Of the utterances, for messages.
    copies : np.ndarray [shape=(n_rows, n_copies, ...)], optional
        The same clips changed, each copy as a row of inputs: to be fitted on besides.
    """

    inputs: np.ndarray
    classes: np.ndarray
    speakers: np.ndarray
    ids: np.ndarray | None = None
    copies: np.ndarray | None = None

    def __add__(self, other: "Part") -> "Part":
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in vars(self)}
        return Part(
            **{
                name: np.concatenate(pair)
                for name, pair in pairs.items()
                if all(one is not None for one in pair)
            }
        )

    def with_copies(self) -> "Part":
        """Return the rows and below them their copies, which are of the same speakers and emotions, as rows."""
        if self.copies is None:
            return self
        n = 1 + self.copies.shape[1]
        return Part(
            np.concatenate([self.inputs, *np.moveaxis(self.copies, 1, 0)]),
            np.tile(self.classes, n),
            np.tile(self.speakers, n),
            None if self.ids is None else np.tile(self.ids, n),
        )


class Model(Protocol):
    """What ``cross_validate`` needs of a model."""

    name: str

    def recipe(self) -> dict:
        """Return everything that a result depends on, besides data and seed."""

    def fit_predict(
        self, train: Part, valid: Part, test: np.ndarray, n_classes: int, seed: int
    ) -> dict:
        """Return ``valid`` and ``test`` (probabilities of shape ``(n_rows, n_classes)``), ``steps`` (which roles each step
        saw: fit, stop, select) and ``notes`` (what was chosen, learning curves), all plain values. Optionally
        ``weights`` (name → array), and ``scratch``, a folder that is of no use once the result is stored."""


def cross_validate(
    model: Model,
    inputs: np.ndarray | dict[int, np.ndarray],
    utterance_ids: pd.Series,
    folds: pd.DataFrame,
    variant: str = "inductive",
    seed: int = 0,
    pretrained: bool = False,
    n_jobs: int = 1,
    made_by: dict | None = None,
    copies: np.ndarray | None = None,
) -> tuple[pd.DataFrame, dict]:
    """Train and predict fold by fold; a fold that was computed before is read from the cache.

    Parameters
    ----------
    model
        See :class:`Model`.
    inputs : np.ndarray [shape=(n_utterances, ...)], or dict of int to such arrays
        One row per utterance; for the variant *speaker-normalised* already standardised per speaker. Where each fold has
        inputs of its own, because a model made them: fold → array.
    utterance_ids
        The ids of the rows of `inputs`.
    folds
        The folds table; its utterances must be among `utterance_ids`.
    variant
        "inductive" or "speaker-normalised".
    seed
        Fold k uses ``seed + k``. It fixes every draw on one machine; another processor, GPU or library version may round
        differently.
    pretrained
        Whether the starting weights had seen other data.
    n_jobs
        Folds that run side by side.
    made_by
        Run record of the model that made the inputs; what it saw is written down as ``start``, and audited.
    copies : np.ndarray [shape=(n_utterances, n_copies, ...)], optional
        Changed copies of the same utterances as further rows to fit on. Of a fold, those of clips that it fits on are used.

    Returns
    -------
    predictions : pd.DataFrame
        Schema ``predictions``: valid and test rows of every fold.
    record : dict
        Ids that were used to fit, stop, select, start; settings chosen and learning curves. Audited before it is returned.

    Raises
    ------
    ValueError
        If the inputs were scaled with test rows, hold NaN, or do not cover the folds' utterances.
    """
    emotions = emotion_order(folds["emotion"])
    speakers = folds.drop_duplicates("utterance_id").set_index("utterance_id")["speaker"]
    position = _positions(utterance_ids, speakers.index)
    arrays = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
    for array in arrays + ([] if copies is None else [*np.moveaxis(copies, 1, 0)]):
        mine = array[position[speakers.index]]
        if mine.dtype.kind == "f" and not np.isfinite(mine).all():
            raise ValueError(
                f"{(~np.isfinite(mine)).any(axis=tuple(range(1, mine.ndim))).sum()} rows of the inputs hold NaN "
                "or infinite values: run notebook 03 again and look at its checks"
            )
        require_clean(audit_inputs(mine, variant, speakers.to_numpy(str)))

    _warn_of_missing_classes(model.name, folds, emotions)
    recipe = recipe_hash(model.recipe(), emotions)
    jobs = (
        joblib.delayed(_without_weights)(
            model,
            inputs[fold] if isinstance(inputs, dict) else inputs,
            position,
            rows,
            emotions,
            seed + int(fold),
            recipe,
            copies,
        )
        for fold, rows in folds.groupby("fold")
    )
    outcomes = list(
        tqdm(
            joblib.Parallel(n_jobs=n_jobs, return_as="generator")(jobs),
            total=folds["fold"].nunique(),
            desc=f"{model.name}, {variant}",
            unit="fold",
        )
    )
    example = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
    tables, record = (
        [],
        {
            "model": model.name,
            "variant": variant,
            "seed": seed,
            "pretrained": pretrained,
            "folds": {},
            "inputs": {"shape": list(example.shape[1:]), "dtype": str(example.dtype)},
            "settings": {name: value for name, value in model.recipe().items() if name != "code"},
        },
    )
    for (fold, rows), outcome in zip(folds.groupby("fold"), outcomes, strict=True):
        ids = {role: part["utterance_id"].tolist() for role, part in rows.groupby("role")}
        record["folds"][str(fold)] = {
            "notes": outcome["notes"],
            **{
                step: [i for role in roles for i in ids[role]]
                for step, roles in outcome["steps"].items()
            },
        }
        if made_by is not None:
            seen = [rows for step, rows in made_by["folds"][str(fold)].items() if step != "notes"]
            record["folds"][str(fold)]["start"] = sorted(set().union(*seen))
        for role in ("valid", "test"):
            part = rows.loc[rows["role"] == role, ["utterance_id", "fold", "role", "emotion"]]
            part = part.rename(columns={"emotion": "truth"}).assign(
                variant=variant, pretrained=pretrained
            )
            tables.append(
                part.assign(**{f"p_{e}": outcome[role][:, i] for i, e in enumerate(emotions)})
            )
    require_clean(audit_record(record, folds))
    columns = [
        "utterance_id",
        "fold",
        "role",
        "variant",
        "pretrained",
        "truth",
        *(f"p_{e}" for e in emotions),
    ]
    return pd.concat(tables, ignore_index=True)[columns], record


def write_record(records: list[dict], path: Path) -> None:
    """Write a model's run records, one per variant, as JSON (compressed if the path ends in ``.gz``), for the audit."""
    text = json.dumps(records).encode()
    text = gzip.compress(text, mtime=0) if path.suffix == ".gz" else text
    write_atomically(path, lambda handle: handle.write(text))
    note_output(path)


def fold_outcome(
    model: Model,
    inputs: np.ndarray,
    utterance_ids: pd.Series,
    folds: pd.DataFrame,
    fold: int,
    seed: int = 0,
    copies: np.ndarray | None = None,
) -> dict:
    """Return what a model computed for one fold, with its weights, to look inside; as :func:`cross_validate` stored it.

    Parameters
    ----------
    model, inputs, utterance_ids, folds, seed, copies
        As given to :func:`cross_validate`.
    fold
        Number of the fold.

    Returns
    -------
    dict
        ``valid`` and ``test`` (probabilities), ``steps``, ``notes`` and ``weights``.
    """
    emotions = emotion_order(folds["emotion"])
    rows = folds[folds["fold"] == fold]
    return _stored_fold(
        model,
        inputs,
        _positions(utterance_ids, rows["utterance_id"]),
        rows,
        emotions,
        seed + int(fold),
        recipe_hash(model.recipe(), emotions),
        copies,
    )


def stored_fit(
    model: Model, recipe: str, train: Part, valid: Part, test: np.ndarray, n_classes: int, seed: int
) -> dict:
    """Return what ``model.fit_predict`` returns; computed at most once for the same recipe, data and seed."""
    data = [getattr(p, name) for p in (train, valid) for name in ("inputs", "classes", "speakers")]
    data += [train.ids.tolist()] if getattr(model, "needs_ids", False) else []
    data += [part.copies for part in (train, valid) if part.copies is not None]
    scratch = []

    def compute() -> dict:
        outcome = model.fit_predict(train, valid, test, n_classes, seed)
        scratch.append(outcome.get("scratch"))
        return {
            "valid": outcome["valid"].astype(np.float32),
            "test": outcome["test"].astype(np.float32),
            "steps": np.array(json.dumps(outcome["steps"])),
            "notes": np.array(json.dumps(outcome["notes"])),
            **{f"weights/{name}": values for name, values in outcome.get("weights", {}).items()},
        }

    stored = fetch("folds", recipe_hash(recipe, seed, *data, test), compute)
    for folder in filter(None, scratch):
        shutil.rmtree(folder, ignore_errors=True)
    weights = {
        name.removeprefix("weights/"): values
        for name, values in stored.items()
        if name.startswith("weights/")
    }
    return {
        "valid": stored["valid"],
        "test": stored["test"],
        "weights": weights,
        "steps": json.loads(str(stored["steps"])),
        "notes": json.loads(str(stored["notes"])),
    }


def _positions(utterance_ids: pd.Series, wanted: pd.Index) -> pd.Series:
    """Return utterance id → row of the inputs."""
    position = pd.Series(np.arange(len(utterance_ids)), index=list(utterance_ids))
    unknown = pd.Index(wanted).difference(position.index)
    if len(unknown):
        raise ValueError(
            f"the folds name {len(unknown)} of {len(wanted)} utterances that have no inputs, e.g. "
            f"{list(unknown[:5])}: run notebooks 03 and 04 again"
        )
    return position


def _without_weights(*arguments) -> dict:
    """What crosses from a worker to the parent: the weights stay in the store."""
    return {name: value for name, value in _stored_fold(*arguments).items() if name != "weights"}


def _stored_fold(
    model: Model,
    inputs: np.ndarray,
    position: pd.Series,
    rows: pd.DataFrame,
    emotions: list[str],
    seed: int,
    recipe: str,
    copies: np.ndarray | None = None,
) -> dict:
    def part(role: str) -> Part:
        chosen = rows[rows["role"] == role]
        place = position[chosen["utterance_id"]]
        return Part(
            inputs[place],
            chosen["emotion"].map({e: i for i, e in enumerate(emotions)}).to_numpy(copy=True),
            chosen["speaker"].to_numpy(str),
            chosen["utterance_id"].to_numpy(str),
            None if copies is None else copies[place],
        )

    return stored_fit(
        model, recipe, part("train"), part("valid"), part("test").inputs, len(emotions), seed
    )


def _warn_of_missing_classes(model: str, folds: pd.DataFrame, emotions: list[str]) -> None:
    """Say which emotions no training speaker of a fold has: they can't be learnt there, and recall will be 0."""
    for fold, rows in folds[folds["role"] == "train"].groupby("fold"):
        missing = [e for e in emotions if e not in set(rows["emotion"])]
        if missing:
            warnings.warn(
                f"{model}, fold {fold}: no training clip of {', '.join(missing)}, so it can't be recognised there. "
                "Make folds with fewer parts, or choose a policy without it.",
                stacklevel=3,
            )
