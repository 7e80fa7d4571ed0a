"""Protocol cards: how each result of a table came about, as plain values for cards.json."""

import hashlib
from pathlib import Path

import pandas as pd

from helpers import audit, corpora, tables
from helpers.metrics import METRICS, MIN_SPEAKERS, N_BOOTSTRAP

STEPS = {  # steps of training → how a card says which rows they saw
    "fit": "weights fitted on {}",
    "augment": "augmented copies of {}",
    "stop": "stopped by {}",
    "select": "settings chosen by {}",
    "start": "inputs made by a model that had seen {}",
}


def protocol_cards(folder: Path, corpus: str, labels: str) -> list[dict]:
    """Write down how each result of ``results.csv`` came about.

    Parameters
    ----------
    folder
        ``SER_WORK/<corpus>/<labels>``: results, folds, predictions with provenance, run records.
    corpus, labels
        Names.

    Returns
    -------
    list of dict
        A card per row; what is not known is None.
    """
    results = tables.read_table(folder / "results.csv", "results")
    results = results.reindex(columns=list({**results, **METRICS}))  # an older one may have fewer
    folds = tables.read_table(folder / "folds.csv", "folds")
    about, cards = corpora.get(corpus), []
    counts = folds.drop_duplicates("utterance_id")["emotion"].value_counts()
    of_corpus = {
        "name": corpus,
        "title": about.title,
        "citation": about.citation,
        "licence": about.licence,
        "utterances": int(counts.sum()),
        "utterances of the release": sum(about.counts.values()) or None,
        "speakers": int(folds["speaker"].nunique()),
    }
    division = describe_folds(folds) | {"published": bool(about.folds)}
    names = ["uar", "uar_low", "uar_high", *list(METRICS)[1:]]
    for row in results.to_dict("records"):
        record = find_record(folder / f"records/{row['model']}.json", row["variant"])
        source = tables.provenance(folder / f"predictions/{row['model']}.parquet")
        inputs = [name.rsplit("/", 1)[-1] for name in source.get("inputs", {})]
        scores = {n: round(float(row[n]), 6) if pd.notna(row[n]) else None for n in names}
        interval = f"95 % by bootstrap over speakers, {N_BOOTSTRAP} draws"
        if scores["uar_low"] is None:
            interval = f"no interval below {MIN_SPEAKERS} speakers"
        cards.append(
            {
                "model": row["model"],
                "variant": row["variant"],
                "pretrained": bool(row["pretrained"]),
                "corpus": of_corpus,
                "label_set": {"name": labels, "utterances": counts.to_dict()},
                "folds": division,
                "features": {"tables": [name for name in inputs if "folds" not in name]}
                | record.get("inputs", {}),
                "made by": {
                    "notebook": source.get("notebook"),
                    "settings": record.get("settings"),
                    "members": source.get("parameters", {}).get("members"),
                },
                "selection": describe_selection(record, folds),
                "seeds": {"training": record.get("seed"), "bootstrap": 0},
                "versions": source.get("versions"),
                "results": {"n": int(row["n"]), **scores, "interval": interval},
            }
        )
    return cards


def find_record(path: Path, variant: str) -> dict:
    """Return the run record of a variant; empty if there is none."""
    records = audit.read_records(path) if path.is_file() else []
    return next((record for record in records if record["variant"] == variant), {})


def describe_folds(folds: pd.DataFrame) -> dict:
    """Say who is tested where, and whether speakers are disjoint."""
    rows = folds.sort_values(["fold", "utterance_id"])[["utterance_id", "fold", "role"]]
    digest = hashlib.sha256(rows.to_csv(index=False, lineterminator="\n").encode())
    tested = folds[folds["role"] == "test"].groupby("fold")["speaker"].unique()
    sides = folds.groupby(["fold", "speaker"])["role"].nunique()
    return {
        "number": int(folds["fold"].nunique()),
        "sha256": digest.hexdigest(),
        "test_speakers": {str(fold): sorted(names) for fold, names in tested.items()},
        "speakers_apart": bool((sides == 1).all()),
    }


def describe_selection(record: dict, folds: pd.DataFrame) -> str | None:
    """Say in words which rows each step of training saw (all folds alike); None if not known."""
    if not record:
        return None
    fold, steps = next(iter(record["folds"].items()))
    role = folds[folds["fold"] == int(fold)].set_index("utterance_id")["role"]
    said = []
    for step, sentence in STEPS.items():
        if steps.get(step):
            seen = role.reindex(steps[step]).unique()
            roles = [name for name in ("train", "validation", "test") if name in seen]
            said.append(sentence.format(" and ".join(roles)))
    n_tried = len(steps["notes"].get("tried", []))
    return "per fold: " + ", ".join(said) + (f", in {n_tried} trials" if n_tried else "")
