"""One road from a model and its data to predictions, a run record and a saved model.

Every model of the project, classical or network, goes through :func:`cross_validate`. A model never
receives the test rows' emotions, so it can't learn from them; what it did with the other rows is
written down for the audit.
"""

import gzip
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from tqdm import tqdm

from helpers import artifacts, audit, cache, corpora, metrics, paths, tables
from helpers.features import normalise_by_speaker

VERSION = 1


@dataclass(frozen=True)
class FoldRows:
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
        The same clips changed, each copy as a row of inputs: further rows to fit on.
    """

    inputs: np.ndarray
    classes: np.ndarray
    speakers: np.ndarray
    ids: np.ndarray | None = None
    copies: np.ndarray | None = None

    def __add__(self, other: "FoldRows") -> "FoldRows":
        both = {}
        for name, mine in vars(self).items():
            theirs = getattr(other, name)
            both[name] = None if mine is None or theirs is None else np.concatenate([mine, theirs])
        return FoldRows(**both)

    def with_copies(self) -> "FoldRows":
        """Return the rows and, below them, their copies (same speakers and emotions) as rows."""
        if self.copies is None:
            return self
        n = 1 + self.copies.shape[1]
        ids = None if self.ids is None else np.tile(self.ids, n)
        inputs = np.concatenate([self.inputs, *np.moveaxis(self.copies, 1, 0)])
        return FoldRows(inputs, np.tile(self.classes, n), np.tile(self.speakers, n), ids)


class Dataset:
    """Ids, inputs and folds that belong together; checked once, here.

    Parameters
    ----------
    ids
        The utterance of each row of inputs. Rows of utterances that are in no fold are left out.
    inputs : np.ndarray [shape=(n_utterances, ...)], or mapping of fold to such arrays
        The latter where a model made inputs of its own for each fold.
    folds
        The folds table; all its utterances must be among `ids`.
    copies : np.ndarray [shape=(n_utterances, n_copies, ...)], optional
        Changed copies of the same utterances as further rows to fit on. Of a fold, those of clips
        that it fits on are used.
    variant
        "inductive", or what was done to the inputs: "speaker-normalised", "corpus-normalised".

    Raises
    ------
    ValueError
        If utterances of the folds have no inputs, or inputs hold NaN or were scaled with test rows.
    """

    def __init__(
        self,
        ids: Sequence[str],
        inputs: np.ndarray | Mapping[int, np.ndarray],
        folds: pd.DataFrame,
        *,
        copies: np.ndarray | None = None,
        variant: str = "inductive",
    ):
        self.folds, self.variant = folds, variant
        self.emotions = corpora.emotion_order(folds["emotion"])
        self.n_classes = len(self.emotions)
        known = folds.drop_duplicates("utterance_id").set_index("utterance_id")
        unknown = known.index.difference(list(ids))
        if len(unknown):
            raise ValueError(
                f"the folds name {len(unknown)} of {len(known)} utterances that have no inputs, "
                f"e.g. {list(unknown[:5])}: run notebooks 03 and 04 again"
            )
        kept = np.flatnonzero(pd.Index(ids).isin(known.index))
        self.ids = np.asarray(ids, str)[kept]
        self.position = pd.Series(np.arange(len(self.ids)), index=self.ids)
        self.speakers = known.loc[self.ids, "speaker"].to_numpy(str)
        emotion = known.loc[self.ids, "emotion"].to_numpy(object)
        self.classes = pd.Index(self.emotions).get_indexer(emotion)
        per_fold = inputs if isinstance(inputs, Mapping) else {0: inputs}
        self._arrays = {fold: _taken(array, kept) for fold, array in per_fold.items()}
        self.copies = None if copies is None else _taken(copies, kept)
        changed = [] if self.copies is None else list(np.moveaxis(self.copies, 1, 0))
        for array in [*self._arrays.values(), *changed]:
            self._check(array)

    @property
    def inputs(self) -> np.ndarray:
        """Inputs of all utterances (of the first fold, where each has its own)."""
        return next(iter(self._arrays.values()))

    def rows(self, fold: int, role: str) -> FoldRows:
        """Return the rows of one role in one fold."""
        chosen = self.folds[(self.folds["fold"] == fold) & (self.folds["role"] == role)]
        return self._at(self.position[chosen["utterance_id"]].to_numpy(), fold)

    def everything(self) -> FoldRows:
        """Return all rows: what a final model is trained on."""
        return self._at(np.arange(len(self.ids)), 0)

    def speaker_normalised(self) -> "Dataset":
        """Return the data with inputs standardised over each speaker's clips, each copy by itself."""
        arrays = {f: normalise_by_speaker(a, self.speakers) for f, a in self._arrays.items()}
        copies = None
        if self.copies is not None:
            own = np.moveaxis(self.copies, 1, 0)
            copies = np.stack([normalise_by_speaker(c, self.speakers) for c in own], axis=1)
        inputs = arrays if len(arrays) > 1 else next(iter(arrays.values()))
        return Dataset(self.ids, inputs, self.folds, copies=copies, variant="speaker-normalised")

    def _at(self, place: np.ndarray, fold: int) -> FoldRows:
        inputs = self._arrays.get(fold, self.inputs)[place]
        copies = None if self.copies is None else self.copies[place]
        return FoldRows(inputs, self.classes[place], self.speakers[place], self.ids[place], copies)

    def _check(self, array: np.ndarray) -> None:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            n_wrong = (~np.isfinite(array)).any(axis=tuple(range(1, array.ndim))).sum()
            raise ValueError(
                f"{n_wrong} rows of the inputs hold NaN or infinite values: run notebook 03 again "
                "and look at its checks"
            )
        audit.require_clean(audit.audit_inputs(array, self.variant, self.speakers))


def cross_validate(
    model: Any,
    data: Dataset,
    *,
    variants: Sequence[str] | None = None,
    seed: int = 0,
    n_jobs: int = 1,
    pretrained: bool = False,
) -> "Run":
    """Train and predict fold by fold; a fold that was computed before is read from the cache.

    Parameters
    ----------
    model
        ``training.Network``, ``estimators.Classical``, or anything with ``name``, ``recipe()`` and
        ``fit_predict(train, validation, test, n_classes, seed)``.
    data
        Ids, inputs and folds.
    variants
        By default that of the data alone. With "speaker-normalised" as the second one, a network's
        embeddings are standardised per speaker and a logistic regression is fitted on them; a model
        without embeddings is trained on inputs that are standardised per speaker.
    seed
        Fold k uses ``seed + k``. It fixes every draw on one machine; another processor, GPU or
        library version may round differently.
    n_jobs
        Folds trained in parallel; on a GPU one after the other.
    pretrained
        Whether the starting weights, or the model that made the inputs, had seen other data.

    Returns
    -------
    Run
        Predictions of validation and test rows, and records, which have been audited.
    """
    run = Run(model, data, seed, pretrained)
    for variant in variants or (data.variant,):
        if variant == data.variant:
            run.add(*_predictions(model, data, seed, n_jobs, pretrained))
        elif getattr(model, "has_embeddings", False):
            table, record = _predictions(model.head(), run.embedded(), seed, n_jobs, pretrained)
            for fold, steps in record["folds"].items():
                steps["start"] = seen_by(run.records[0], fold)
            run.add(table, record)
        else:
            run.add(*_predictions(model, data.speaker_normalised(), seed, n_jobs, pretrained))
    return run


class Run:
    """What a model did with a data set: predictions, records, curves, and what to do with them.

    Attributes
    ----------
    predictions : pd.DataFrame
        Validation and test rows of every fold and variant (schema ``predictions``).
    records : list of dict
        One per variant: the ids that each step of each fold saw, settings and learning curves.
    """

    def __init__(self, model: Any, data: Dataset, seed: int, pretrained: bool):
        self.model, self.data, self.seed, self.pretrained = model, data, seed, pretrained
        self.predictions, self.records = pd.DataFrame(), []

    def add(self, predictions: pd.DataFrame, record: dict) -> None:
        """Add a variant, if the audit finds no fault in its record."""
        audit.require_clean(audit.audit_record(record, self.data.folds))
        self.predictions = pd.concat([self.predictions, predictions], ignore_index=True)
        self.records.append(record)

    @property
    def variants(self) -> list[str]:
        """Names of the variants."""
        return [record["variant"] for record in self.records]

    @property
    def curves(self) -> pd.DataFrame:
        """Learning curves of all folds (schema ``curves``); ``kept`` marks the epoch that predicts."""
        rows = []
        for record in self.records:
            about = {"model": record["model"], "variant": record["variant"]}
            for fold, steps in record["folds"].items():
                for row in steps["notes"].get("curves", []):
                    kept = row["epoch"] == steps["notes"]["best_epoch"]
                    rows.append(about | {"fold": int(fold)} | row | {"kept": kept})
        return pd.DataFrame(rows)

    def test(self, variant: str = "inductive") -> pd.DataFrame:
        """Return the test rows of one variant."""
        table = self.predictions
        return table[(table["role"] == "test") & (table["variant"] == variant)]

    def outcome(self, fold: int) -> dict:
        """Return what the inductive model computed for one fold, with its weights."""
        return _fold(self.model, self.data, fold, self.seed, _key(self.model, self.data))

    def network(self, fold: int):
        """Return the network that was trained for one fold, on the CPU, ready to predict."""
        weights = self.outcome(fold)["weights"]
        return self.model.restore(weights, self.data.n_classes, self.data.inputs.shape[1:])

    def embedded(self) -> Dataset:
        """Return what each fold's network makes of every clip before its head, per speaker.

        A fold's network has not seen that fold's test speakers, but those of other folds: each
        fold's embeddings are for that fold alone.
        """
        arrays = {}
        for fold in sorted(self.data.folds["fold"].unique()):
            weights = self.outcome(fold)["weights"]
            values = self.model.embed(weights, self.data.inputs, self.data.n_classes)
            arrays[int(fold)] = normalise_by_speaker(values, self.data.speakers)
        return Dataset(self.data.ids, arrays, self.data.folds, variant="speaker-normalised")

    def save(
        self,
        stem: str,
        corpus: str,
        labels: str,
        notebook: str,
        parameters: dict | None = None,
        folder: str = "predictions",
    ) -> None:
        """Write predictions, records and learning curves under ``SER_WORK/<corpus>/<labels>``."""
        place, about = paths.work(corpus, labels), {"notebook": notebook, "parameters": parameters}
        table = self.predictions
        tables.write_table(table, place / folder / f"{stem}.parquet", "predictions", **about)
        write_record(self.records, place / f"records/{stem}.json")
        if len(self.curves):
            tables.write_table(self.curves, place / f"curves/{stem}.csv", "curves", **about)
        print(f"{folder}/{stem}.parquet: {len(table)} rows, {', '.join(self.variants)}")

    def save_final(
        self, stem: str, corpus: str, labels: str, reads: artifacts.Input
    ) -> artifacts.Artifact:
        """Train the model on all speakers and save it as ``models/<stem>``, with a card.

        Nothing is chosen here: settings are those that most folds chose, and a network stops after
        the median of the folds' best epochs. So nobody is left to test this very model on; its card
        has the cross-validated results of its siblings. Call it after :meth:`save`.

        Parameters
        ----------
        stem
            Name of the predictions.
        corpus, labels
            Names.
        reads
            How a signal becomes a row of the (inductive) inputs.
        """
        target = paths.work(corpus, labels) / "models" / stem
        key = cache.hash_of(
            _key(self.model, self.data), self.data.inputs, self.records, self.seed, repr(reads)
        )
        if artifacts.is_made_of(target, key):
            return artifacts.load(target)
        parts, space, values = {}, "inputs", self.data.inputs
        n, everything = self.data.n_classes, self.data.everything()
        for record in self.records:
            model, rows = self.model, everything
            if record["variant"] != self.data.variant:
                if getattr(self.model, "has_embeddings", False):
                    space, model = "embeddings", self.model.head()
                    values = parts["inductive"].predictor(n).embed(self.data.inputs)
                    normalised = normalise_by_speaker(values, self.data.speakers)
                    rows = FoldRows(normalised, rows.classes, rows.speakers, rows.ids)
                else:
                    rows = self.data.speaker_normalised().everything()
            parts[record["variant"]] = model.refit(record, rows, n, self.seed)
        about = self._card(stem, corpus, labels) | {"key": key}
        artifacts.save(target, parts, reads, about, values, self.data.speakers, space)
        return artifacts.load(target)

    def _card(self, stem: str, corpus: str, labels: str) -> dict:
        """Return what a saved model's card says of it."""
        about = f"{corpus}, {labels}, seed {self.seed}"
        results = metrics.results_table({stem: self.predictions}, self.data.folds, about)
        results = results[results["model"] == stem]
        utterances = tables.read_table(paths.work(corpus) / "utterances.parquet", "utterances")
        return {
            "model": stem,
            "corpus": corpus,
            "labels": labels,
            "emotions": self.data.emotions,
            "licence": corpora.get(corpus).licence,
            "results": results.to_dict("records"),
            "recording_statistics": artifacts.recording_bounds(utterances, self.data.ids),
        }


def fit_stored(
    model: Any,
    key: str,
    train: FoldRows,
    validation: FoldRows,
    test: np.ndarray,
    n_classes: int,
    seed: int,
) -> dict:
    """Return what ``model.fit_predict`` returns; computed at most once for the same key and data."""
    data = [vars(rows)[name] for rows in (train, validation) for name in ("inputs", "classes")]
    data += [train.speakers.tolist(), validation.speakers.tolist(), train.copies, validation.copies]
    data += [train.ids.tolist()] if getattr(model, "needs_ids", False) else []
    scratch = []

    def make() -> dict:
        outcome = model.fit_predict(train, validation, test, n_classes, seed)
        scratch.append(outcome.get("scratch"))
        text = json.dumps({name: outcome[name] for name in ("steps", "notes")})
        result = {f"weights/{name}": v for name, v in outcome.get("weights", {}).items()}
        for role in ("validation", "test"):
            result[role] = outcome[role].astype(np.float32)
        return result | {"text": np.array(text)}

    stored = cache.fetch("folds", _versions(), cache.hash_of(key, seed, data, test), make)
    for folder in filter(None, scratch):
        shutil.rmtree(folder, ignore_errors=True)
    outcome = {role: stored[role] for role in ("validation", "test")}
    outcome |= json.loads(str(stored["text"]))
    names = [name for name in stored if name.startswith("weights/")]
    return outcome | {"weights": {name.removeprefix("weights/"): stored[name] for name in names}}


def write_record(records: list[dict], path: Path) -> None:
    """Write run records, one per variant, as JSON (compressed if the path ends in ``.gz``)."""
    text = json.dumps(records).encode()
    text = gzip.compress(text, mtime=0) if path.suffix == ".gz" else text
    cache.write_atomically(path, lambda handle: handle.write(text))
    tables.note_output(path)


def seen_by(record: dict, fold: str) -> list[str]:
    """Return the ids that a fold of a run record saw in any step."""
    steps = record["folds"][fold]
    return sorted(set().union(*(ids for step, ids in steps.items() if step != "notes")))


def _taken(array: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return rows in one order of memory, on which the hash of an array depends."""
    return np.ascontiguousarray(array if len(kept) == len(array) else array[kept])


def _versions() -> tuple[int, ...]:
    from helpers import estimators, nets, training  # late: they import this module

    return (VERSION, nets.VERSION, training.VERSION, estimators.VERSION)


def _key(model: Any, data: Dataset) -> str:
    return cache.hash_of(model.recipe(), data.emotions)


def _fold(model: Any, data: Dataset, fold: int, seed: int, key: str) -> dict:
    train, validation = data.rows(fold, "train"), data.rows(fold, "validation")
    test = data.rows(fold, "test").inputs
    return fit_stored(model, key, train, validation, test, data.n_classes, seed + int(fold))


def _fold_without_weights(*arguments) -> dict:
    """Return what crosses from a process to its parent: the weights stay in the cache."""
    return {name: value for name, value in _fold(*arguments).items() if name != "weights"}


def _predictions(
    model: Any, data: Dataset, seed: int, n_jobs: int, pretrained: bool
) -> tuple[pd.DataFrame, dict]:
    """Run all folds of one variant; return predictions and the run record."""
    _warn_of_missing_classes(model.name, data)
    folds, key = sorted(data.folds["fold"].unique()), _key(model, data)
    n_jobs = 1 if getattr(model, "uses_gpu", False) else n_jobs
    jobs = (joblib.delayed(_fold_without_weights)(model, data, f, seed, key) for f in folds)
    done = joblib.Parallel(n_jobs, return_as="generator")(jobs)
    bar = tqdm(done, total=len(folds), desc=f"{model.name}, {data.variant}", unit="fold")
    record = {
        "model": model.name,
        "variant": data.variant,
        "seed": seed,
        "pretrained": pretrained,
        "folds": {},
        "inputs": {"shape": list(data.inputs.shape[1:]), "dtype": str(data.inputs.dtype)},
        "settings": model.recipe(),
    }
    columns, found = [f"p_{emotion}" for emotion in data.emotions], []
    for fold, outcome in zip(folds, bar, strict=True):
        rows = data.folds[data.folds["fold"] == fold]
        steps = {"notes": outcome["notes"]}
        for step, roles in outcome["steps"].items():
            own = [rows.loc[rows["role"] == role, "utterance_id"] for role in roles]
            steps[step] = pd.concat(own).tolist()
        record["folds"][str(fold)] = steps
        for role in ("validation", "test"):
            table = rows[rows["role"] == role].rename(columns={"emotion": "truth"})
            table = table.assign(variant=data.variant, pretrained=pretrained)
            table[columns] = outcome[role]
            found.append(table)
    order = ["utterance_id", "speaker", "fold", "role", "variant", "pretrained", "truth"]
    return pd.concat(found, ignore_index=True)[order + columns], record


def _warn_of_missing_classes(name: str, data: Dataset) -> None:
    """Say which emotions no training speaker of a fold has: their recall will be 0."""
    for fold, rows in data.folds[data.folds["role"] == "train"].groupby("fold"):
        missing = [emotion for emotion in data.emotions if emotion not in set(rows["emotion"])]
        if missing:
            warnings.warn(
                f"{name}, fold {fold}: no training clip of {', '.join(missing)}, so it can't be "
                "recognised there. Make fewer folds, or choose a label set without it.",
                stacklevel=4,
            )
