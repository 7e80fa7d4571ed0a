"""One road from a model and its data to predictions, a run record and a saved model.

Every model of the project, classical or network, goes through :func:`cross_validate`. A model never
receives the test rows' emotions, so it can't learn from them; what it did with the other rows is
written down for the audit.
"""

import contextlib
import gzip
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from tqdm import tqdm

from helpers import artifacts, audit, cache, corpora, features, metrics, paths, splits, tables

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
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return FoldRows(*[a if a is None else np.concatenate([a, b]) for a, b in pairs])

    def with_copies(self) -> "FoldRows":
        """Return the rows and, below them, their copies (same speakers and emotions) as rows."""
        rows = replace(self, copies=None)
        if self.copies is not None:
            for inputs in np.moveaxis(self.copies, 1, 0):
                rows += replace(self, inputs=inputs, copies=None)
        return rows


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

    Warns
    -----
    UserWarning
        Where a fold trains on fewer than 2 clips of an emotion.
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
        self.speakers = known.loc[self.ids, "speaker"].to_numpy(str)
        self.classes = pd.Index(self.emotions).get_indexer(known.loc[self.ids, "emotion"])
        # in one order of memory, on which the hash of an array depends
        per_fold = inputs if isinstance(inputs, Mapping) else {0: inputs}
        self._inputs = {fold: np.ascontiguousarray(own[kept]) for fold, own in per_fold.items()}
        self.inputs = next(iter(self._inputs.values()))  # of the first fold, if each has its own
        self.copies = None if copies is None else np.ascontiguousarray(copies[kept])
        changed = [] if copies is None else np.moveaxis(self.copies, 1, 0)
        for array in [*self._inputs.values(), *changed]:
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(
                    f"the inputs hold {(~np.isfinite(array)).sum()} NaN or infinite values: run "
                    "notebook 03 again and look at its checks"
                )
            audit.require_clean(audit.audit_inputs(array, variant, self.speakers))
        for fold, rows in folds[folds["role"] == "train"].groupby("fold"):
            counts = rows["emotion"].value_counts().reindex(self.emotions, fill_value=0)
            if missing := list(counts.index[counts < 2]):
                warnings.warn(
                    f"fold {fold}: fewer than 2 training clips of {', '.join(missing)}, which "
                    "can't be recognised there. Make fewer folds, or choose a label set without "
                    "it.",
                    stacklevel=2,
                )

    def rows(self, fold: int, role: str) -> FoldRows:
        """Return the rows of one role in one fold."""
        chosen = self.folds[(self.folds["fold"] == fold) & (self.folds["role"] == role)]
        at = pd.Index(self.ids).get_indexer(chosen["utterance_id"])
        return FoldRows(
            self._inputs.get(fold, self.inputs)[at],
            self.classes[at],
            self.speakers[at],
            self.ids[at],
            None if self.copies is None else self.copies[at],
        )

    def everything(self) -> FoldRows:
        """Return all rows: what a final model is trained on."""
        return FoldRows(self.inputs, self.classes, self.speakers, self.ids, self.copies)

    def speaker_normalised(self) -> "Dataset":
        """Return the data, standardised over each speaker's clips, each copy by itself."""
        inputs, copies = features.normalise_by_speaker(self.inputs, self.speakers), self.copies
        if copies is not None:
            copies = features.normalise_by_speaker(copies, self.speakers)
        return Dataset(self.ids, inputs, self.folds, copies=copies, variant="speaker-normalised")


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
            run.train(model, data, n_jobs)
        elif getattr(model, "has_embeddings", False):
            run.train(model.head(), run.embedded(), n_jobs)
        else:
            run.train(model, data.speaker_normalised(), n_jobs)
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

    def train(self, model: Any, data: Dataset, n_jobs: int = 1) -> None:
        """Train a variant fold by fold, and add it if the audit finds no fault in its record."""
        key = cache.hash_of(model.recipe(), data.emotions)
        folds = sorted(data.folds["fold"].unique())
        n_jobs = 1 if getattr(model, "uses_gpu", False) else n_jobs
        jobs = (joblib.delayed(_outcome)(model, data, fold, self.seed, key) for fold in folds)
        done = joblib.Parallel(n_jobs, return_as="generator")(jobs)
        bar = tqdm(done, total=len(folds), desc=f"{model.name}, {data.variant}", unit="fold")
        record = {
            "model": model.name,
            "variant": data.variant,
            "seed": self.seed,
            "pretrained": self.pretrained,
            "folds": {},
            "inputs": {"shape": list(data.inputs.shape[1:]), "dtype": str(data.inputs.dtype)},
            "settings": model.recipe(),
        }
        columns, found = [f"p_{emotion}" for emotion in data.emotions], [self.predictions]
        for fold, outcome in zip(folds, bar, strict=True):
            rows, steps = data.folds[data.folds["fold"] == fold], {"notes": outcome["notes"]}
            for step, roles in outcome["steps"].items():
                own = [rows.loc[rows["role"] == role, "utterance_id"] for role in roles]
                steps[step] = pd.concat(own).tolist()
            if model is not self.model:  # a new head for what a network learnt from these rows
                earlier = self.records[0]["folds"][str(fold)]
                seen = (ids for step, ids in earlier.items() if step != "notes")
                steps["start"] = sorted(set().union(*seen))
            record["folds"][str(fold)] = steps
            for role in ("validation", "test"):
                table = rows[rows["role"] == role].rename(columns={"emotion": "truth"})
                table = table.assign(variant=data.variant, pretrained=self.pretrained)
                table[columns] = outcome[role]
                found.append(table)
        audit.require_clean(audit.audit_record(record, data.folds))
        order = ["utterance_id", "speaker", "fold", "role", "variant", "pretrained", "truth"]
        self.predictions = pd.concat(found, ignore_index=True)[order + columns]
        self.records.append(record)

    @property
    def curves(self) -> pd.DataFrame:
        """Learning curves of all folds (schema ``curves``); ``kept``: the epoch that predicts."""
        rows = []
        for record in self.records:
            for fold, steps in record["folds"].items():
                for row in steps["notes"].get("curves", []):
                    rows.append(
                        {
                            "model": record["model"],
                            "variant": record["variant"],
                            "fold": int(fold),
                            **row,
                            "kept": row["epoch"] == steps["notes"]["best_epoch"],
                        }
                    )
        return pd.DataFrame(rows)

    def test(self, variant: str = "inductive") -> pd.DataFrame:
        """Return the test rows of one variant."""
        return self.predictions.query("role == 'test' and variant == @variant")

    def outcome(self, fold: int) -> dict:
        """Return what the inductive model computed for one fold, with its weights."""
        key = cache.hash_of(self.model.recipe(), self.data.emotions)
        return _outcome(self.model, self.data, fold, self.seed, key)

    def network(self, fold: int):
        """Return the network that was trained for one fold, on the CPU, ready to predict."""
        return self.model.restore(
            self.outcome(fold)["weights"], self.data.n_classes, self.data.inputs.shape[1:]
        )

    def embedded(self) -> Dataset:
        """Return what each fold's network makes of every clip before its head, per speaker.

        A fold's network has not seen that fold's test speakers, but those of other folds: each
        fold's embeddings are for that fold alone.
        """
        arrays = {}
        for fold in sorted(self.data.folds["fold"].unique()):
            values = self.model.embed(self.network(fold), self.data.inputs)
            arrays[int(fold)] = features.normalise_by_speaker(values, self.data.speakers)
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
        print(f"{folder}/{stem}.parquet: {len(table)} rows,", ", ".join(table["variant"].unique()))

    def save_final(
        self, stem: str, corpus: str, labels: str, reads: artifacts.Input
    ) -> artifacts.SavedModel:
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
        key = cache.hash_of(self.data.emotions, self.data.inputs, self.records, repr(reads))
        with contextlib.suppress(artifacts.Refused):  # not there, damaged, or of other data
            return artifacts.load(target, key)
        model, data, space = self.model, self.data, "inputs"
        rows, n = data.everything(), data.n_classes
        parts = {data.variant: model.refit(self.records[0], rows, n, self.seed)}
        for record in self.records[1:]:  # of the speaker-normalised variant
            if getattr(model, "has_embeddings", False):
                values = parts[data.variant].embed(data.inputs)
                data = Dataset(data.ids, values, data.folds)
                model, space = model.head(), "embeddings"
            rows = data.speaker_normalised().everything()
            parts[record["variant"]] = model.refit(record, rows, n, self.seed)
        results = metrics.results_table(
            {stem: self.predictions}, data.folds, f"{corpus}, {labels}, seed {self.seed}"
        )
        utterances = tables.read_table(paths.work(corpus) / "utterances.parquet", "utterances")
        card = {
            "model": stem,
            "corpus": corpus,
            "labels": labels,
            "emotions": data.emotions,
            "licence": corpora.get(corpus).licence,
            "results": results[results["model"] == stem].to_dict("records"),
            "recording_statistics": artifacts.recording_bounds(utterances, data.ids),
            "key": key,
        }
        artifacts.save(target, parts, reads, card, data.inputs, data.speakers, space)
        return artifacts.load(target)


def fit_stored(
    model: Any,
    key: str,
    train: FoldRows,
    validation: FoldRows,
    test: np.ndarray,
    n_classes: int,
    seed: int,
) -> dict:
    """Return what ``model.fit_predict`` returns; computed once for the same key and data."""
    from helpers import estimators, nets, training  # late: they import this module

    versions = (VERSION, nets.VERSION, training.VERSION, estimators.VERSION)
    data = [
        train.inputs,
        train.classes,
        validation.inputs,
        validation.classes,
        train.speakers.tolist(),
        validation.speakers.tolist(),
        train.copies,
        validation.copies,
    ]

    finished = []

    def make() -> dict:
        made = model.fit_predict(train, validation, test, n_classes, seed)
        finished.append(made.get("checkpoint", ""))
        return {
            **{f"weights/{name}": values for name, values in made.get("weights", {}).items()},
            "validation": made["validation"].astype(np.float32),
            "test": made["test"].astype(np.float32),
            "text": np.array(json.dumps({"steps": made["steps"], "notes": made["notes"]})),
        }

    stored = cache.fetch("folds", versions, cache.hash_of(key, seed, data, test), make)
    for place in filter(None, finished):  # not before: a full disk would lose the training
        shutil.rmtree(place, ignore_errors=True)
    outcome = json.loads(str(stored.pop("text")))
    outcome |= {role: stored.pop(role) for role in ("validation", "test")}
    weights = {name.removeprefix("weights/"): values for name, values in stored.items()}
    return outcome | {"weights": weights}


def write_record(records: list[dict], path: Path) -> None:
    """Write run records, one per variant, as JSON (compressed if the path ends in ``.gz``)."""
    text = json.dumps(records).encode()
    text = gzip.compress(text, mtime=0) if path.suffix == ".gz" else text
    cache.write_atomically(path, lambda handle: handle.write(text))
    tables.note_output(path)


def _outcome(model: Any, data: Dataset, fold: int, seed: int, key: str) -> dict:
    train, validation, test = (data.rows(fold, role) for role in splits.ROLES)
    return fit_stored(model, key, train, validation, test.inputs, data.n_classes, seed + int(fold))
