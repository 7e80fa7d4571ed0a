"""Every published table is computed again from the published predictions, to 1e-9.

The tables under ``data/results`` are what README and docs print. A change of the metrics, of the
bootstrap or of the averages that moves one of these numbers fails here.
"""

import numpy as np
import pandas as pd
import pytest

from helpers import ensemble, metrics, paths, tables

RESULTS = paths.PROJECT / "data/results"
NUMBERS = [
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
FAULTS = {
    "(a) honest": ("a_honest", "a_honest"),
    "(b) random split": ("b_random_split", "a_honest"),
    "(c) augmented, then split": ("c_augmented_first", "a_honest"),
    "(d) rows stored twice": ("d_stored_twice", "a_honest"),
    "(e) epoch chosen on test": ("e_epoch_by_test", "a_honest"),
    "(f) weights carried over folds": ("f_weights_carried", "a_honest"),
    "(g) scaled before the split": ("g_scaled_before", "a_honest"),
    "(h) validation speakers from test": ("h_validation_from_test", "a_honest_searched"),
    "(i) stacked on other folds' rows": ("i_stacked_across", None),
}


def assert_same(found: pd.DataFrame, published: pd.DataFrame, columns: list[str]) -> None:
    found = found.reindex(published.index)
    apart = (found[columns] - published[columns]).abs()
    assert (found[columns].isna() == published[columns].isna()).all().all()
    assert np.nanmax(apart.to_numpy(float)) <= 1e-9, apart.max()


def members(folder) -> dict[str, pd.DataFrame]:
    """The single models of a folder: no averages, votes, or models of the text."""
    left_out = ("average", "text_", "ml_vote", "ml_weighted", "ml_stacked")
    found = metrics.read_predictions(folder)
    return {name: table for name, table in found.items() if not name.startswith(left_out)}


def test_rows(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["role"] == "test"]


test_rows.__test__ = False


@pytest.mark.parametrize("place", ["ravdess/ravdess-8", "emodb/emodb-7", "meld/meld-7"])
def test_results(place):
    published = tables.read_table(RESULTS / place / "results.csv", "results")
    folds = tables.read_table(RESULTS / place / "folds.csv", "folds")
    models = metrics.read_predictions(RESULTS / place)
    compared = metrics.read_predictions(RESULTS / place / "comparisons")
    listed = set(published["model"])  # of runs to compare, some tables list a few
    models |= {name: table for name, table in compared.items() if name in listed}
    found = metrics.results_table(models, folds, "")
    key = ["model", "variant"]
    assert set(map(tuple, found[key].to_numpy())) == set(map(tuple, published[key].to_numpy()))
    assert_same(found.set_index(key), published.set_index(key), NUMBERS)


@pytest.mark.parametrize("place", ["ravdess/ravdess-8", "emodb/emodb-7"])
def test_averages_are_those_of_the_published_members(place):
    singles = members(RESULTS / place)
    made = {
        "average_all": ensemble.average(singles),
        "average_weighted": ensemble.weighted_average(singles, least=0.05)[0],
    }
    for name, table in made.items():
        published = tables.read_table(RESULTS / place / f"{name}.parquet", "predictions")
        stack = ensemble.aligned({"made": table, "published": published})[1]
        assert np.abs(stack[0] - stack[1]).max() < 1e-5, name


def test_cross_corpus():
    published = tables.read_table(RESULTS / "cross-corpus/matrix/results.csv", "results")
    parts = []
    for place in sorted((RESULTS / "cross-corpus").glob("*-to-*")):
        folds = tables.read_table(place / "folds.csv", "folds")
        table = metrics.results_table(metrics.read_predictions(place), folds, "")
        names = {"average": "", "average_without_level": ", without level"}
        names["average_channel_normalised"] = ", channel-normalised"
        named = table[table["model"].isin(names)]
        direction = place.name.replace("-to-", " → ")
        parts.append(named.assign(model=direction + named["model"].map(names)))
    key = ["model", "variant"]
    found = pd.concat(parts).set_index(key)
    assert len(published) == len(published[key].drop_duplicates())
    assert_same(found, published.set_index(key), NUMBERS)


def test_faults():
    folder = RESULTS / "ravdess/ravdess-8"
    published = tables.read_table(folder / "evaluation/faults.csv", "faults").set_index("fault")
    assert set(published.index) == set(FAULTS)
    tables_of = {
        path.stem: tables.read_table(path, "predictions")
        for path in (folder / "evaluation").glob("[a-i]_*.parquet")
    }
    stacked = ensemble.stacked(ensemble.by_variant(members(folder))["inductive"])
    rows = {}
    for fault, (wrong, honest) in FAULTS.items():
        right = test_rows(tables_of[honest] if honest else stacked)
        table = test_rows(tables_of[wrong])
        table = table[table["utterance_id"].isin(right["utterance_id"])]
        pair = metrics.paired_difference(table, right)
        rows[fault] = metrics.evaluate(table) | {"honest": metrics.uar(right)} | pair
    found = pd.DataFrame(rows).T.astype(float)
    others = found.index != "(a) honest"
    found.loc[others, "p_holm"] = metrics.holm(found.loc[others, "p"])
    columns = ["uar", "uar_low", "uar_high", "honest", "difference", "low", "high", "p_holm"]
    assert_same(found, published, columns)
