"""The protocol card: what a reader has to know beside a number, as JSON and in words.

Two results can be compared when their cards agree in corpus, label policy, folds, variant and pretraining. Cards are written
beside ``results.csv`` as ``cards.json`` and shown in the report, one for each row.
"""

import hashlib
from pathlib import Path

import pandas as pd

from helpers import corpora
from helpers.audit import read_records
from helpers.metrics import MIN_SPEAKERS, N_BOOTSTRAP
from helpers.tables import provenance

STEPS = {
    "fit": "weights fitted on {}",
    "augment": "augmented copies of {}",
    "stop": "stopped by {}",
    "select": "settings chosen by {}",
    "start": "inputs made by a model that had seen {}",
}
METRICS = (
    "uar",
    "uar_low",
    "uar_high",
    "uar_fold_mean",
    "wa",
    "macro_f1",
    "weighted_f1",
    "ece",
    "nll",
)


def cards(
    results: pd.DataFrame,
    folds: pd.DataFrame,
    folder: Path,
    corpus: str,
    policy: str,
    members: dict[str, list[str]] | None = None,
    seed: int = 0,
) -> list[dict]:
    """Write down how each result of a table came about.

    Parameters
    ----------
    results
        Schema ``results``.
    folds
        The folds table.
    folder
        ``SER_WORK/<corpus>/<policy>``: predictions with their sidecars, and run records.
    corpus, policy
        Names.
    members
        Of each average: the models that it is of.
    seed
        Of the bootstrap.

    Returns
    -------
    list of dict
        A card per row, plain values; :func:`text` says it in words. What is not known is ``None``.
    """
    division, about = _division(folds), corpora.get(corpus)
    counts = folds.drop_duplicates("utterance_id")["emotion"].value_counts()
    found = []
    for row in results.to_dict("records"):
        recorded = folder / f"records/{row['model']}.json"
        records = read_records(recorded) if recorded.is_file() else []
        record = next((record for record in records if record["variant"] == row["variant"]), {})
        source = provenance(folder / f"predictions/{row['model']}.parquet")
        found.append(
            {
                "model": row["model"],
                "variant": row["variant"],
                "pretrained": bool(row["pretrained"]),
                "corpus": {
                    "name": corpus,
                    "title": about.title,
                    "citation": about.citation,
                    "licence": about.licence,
                    "utterances": int(counts.sum()),
                    "utterances of the release": sum(about.counts.values()) or None,
                    "speakers": int(folds["speaker"].nunique()),
                },
                "label_policy": {
                    "name": policy,
                    "utterances": {e: int(counts[e]) for e in corpora.emotion_order(counts.index)},
                },
                "folds": division | {"published": bool(about.folds)},
                "features": {
                    "tables": [
                        name.rsplit("/", 1)[-1]
                        for name in source.get("inputs", {})
                        if "folds" not in name
                    ],
                    **record.get("inputs", {}),
                },
                "made by": {
                    "notebook": source.get("notebook"),
                    "settings": record.get("settings"),
                    "members": (members or {}).get(row["model"]),
                },
                "selection": _selection(record, folds),
                "seeds": {"training": record.get("seed"), "bootstrap": seed},
                "versions": source.get("versions"),
                "results": {
                    "n": int(row["n"]),
                    **{
                        name: round(float(row[name]), 6) if pd.notna(row[name]) else None
                        for name in METRICS
                    },
                    "interval": f"95 % by bootstrap over speakers, {N_BOOTSTRAP} draws"
                    if pd.notna(row["uar_low"])
                    else f"no interval below {MIN_SPEAKERS} speakers",
                },
            }
        )
    return found


def text(card: dict) -> str:
    """Say a card in a few sentences."""
    corpus, folds, result, made = card["corpus"], card["folds"], card["results"], card["made by"]
    whole = corpus["utterances of the release"]
    size = f"{corpus['utterances']} utterances" + (
        f" (release: {whole})" if whole and whole != corpus["utterances"] else ""
    )
    percent = {
        name: f"{100 * value:.1f} %"
        for name, value in result.items()
        if name in METRICS and value is not None
    }
    low_to_high = f"{percent['uar_low']} to {percent['uar_high']}: " if "uar_low" in percent else ""
    lines = [
        f"{card['model']}, {card['variant']}{', pretrained elsewhere' if card['pretrained'] else ''}: UAR {percent['uar']} "
        f"({low_to_high}{result['interval']}), mean over folds {percent['uar_fold_mean']}, WA {percent['wa']}, macro-F1 "
        f"{percent['macro_f1']}, ECE {percent['ece']}, NLL {result['nll']:.3f} nats, on {result['n']} test utterances.",
        f"{corpus['title']}: {size}, {corpus['speakers']} speakers; {card['label_policy']['name']}: "
        + ", ".join(f"{emotion} {n}" for emotion, n in card["label_policy"]["utterances"].items())
        + ".",
        f"{folds['number']} fold(s), {'published' if folds['published'] else 'drawn here'} (sha256 {folds['sha256'][:12]}), "
        f"test speakers {'; '.join(' '.join(names) for names in folds['test_speakers'].values())}. Speakers apart: "
        f"{'yes' if folds['speakers_apart'] else 'NO'}.",
    ]
    if card["selection"]:
        lines.append(f"{card['selection'].capitalize()}.")
    if made["members"]:
        lines.append(f"Average of {', '.join(made['members'])}.")
    elif card["features"]["tables"]:
        inputs = [
            *card["features"]["tables"],
            *[f"{card['features'][k]}" for k in ("shape", "dtype") if k in card["features"]],
        ]
        lines.append(f"Inputs: {', '.join(inputs)}.")
    lines.append(
        f"Notebook {made['notebook'] or '–'}; seeds: training {card['seeds']['training']}, bootstrap "
        f"{card['seeds']['bootstrap']}."
    )
    if card["versions"]:
        lines.append(
            "Versions: "
            + ", ".join(f"{name} {version}" for name, version in card["versions"].items())
            + "."
        )
    return "\n".join(lines)


def _division(folds: pd.DataFrame) -> dict:
    """Say who is tested where, and whether speakers are apart."""
    rows = folds.sort_values(["fold", "utterance_id"])[["utterance_id", "fold", "role"]]
    digest = hashlib.sha256(rows.to_csv(index=False, lineterminator="\n").encode())
    people = folds[folds["role"] == "test"].groupby("fold")["speaker"].unique()
    return {
        "number": int(folds["fold"].nunique()),
        "sha256": digest.hexdigest(),
        "test_speakers": {int(fold): sorted(map(str, names)) for fold, names in people.items()},
        "speakers_apart": bool((folds.groupby(["fold", "speaker"])["role"].nunique() == 1).all()),
    }


def _selection(record: dict, folds: pd.DataFrame) -> str | None:
    """Say in words which rows each step of training saw; None without a run record."""
    for fold, steps in record.get("folds", {}).items():
        role = folds[folds["fold"] == int(fold)].set_index("utterance_id")["role"]
        said = []
        for step, sentence in STEPS.items():
            if steps.get(step):
                seen = set(role.reindex([i for i in steps[step] if i in role.index]))
                said.append(
                    sentence.format(
                        " and ".join(name for name in ("train", "valid", "test") if name in seen)
                    )
                )
        tried = len(steps.get("notes", {}).get("tried", []))
        return (
            "per fold: " + ", ".join(said) + (f", in {tried} trials" if tried else "")
        )  # all folds alike
    return None
