"""Metrics against numbers worked out by hand; ensembles that align by name."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pytest
from conftest import make_predictions, make_utterances
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score, f1_score

from helpers import ensemble, metrics, paths, splits, tables
from tools import cards

# 6 clips of two speakers: truth, P(neutral), P(sad), P(angry)
GOLDEN = [
    ("neutral", 0.8, 0.1, 0.1),
    ("neutral", 0.4, 0.5, 0.1),
    ("sad", 0.1, 0.9, 0.0),
    ("sad", 0.2, 0.6, 0.2),
    ("sad", 0.7, 0.2, 0.1),
    ("angry", 0.3, 0.3, 0.4),
]


@pytest.fixture
def golden() -> pd.DataFrame:
    rows = pd.DataFrame(GOLDEN, columns=["truth", "p_neutral", "p_sad", "p_angry"])
    rows = rows[["truth", "p_angry", "p_sad", "p_neutral"]]  # the order of columns must not matter
    return rows.assign(
        utterance_id=[f"toy/{i}" for i in range(6)],
        fold=[1, 1, 1, 2, 2, 2],
        role="test",
        speaker="a",
        variant="inductive",
        pretrained=False,
    )


@pytest.fixture(scope="module")
def folds() -> pd.DataFrame:
    return splits.make_folds(make_utterances(10, 4), n_folds=5)


@pytest.fixture
def models(folds) -> dict[str, pd.DataFrame]:
    return {
        name: make_predictions(folds, skill, seed)
        for name, skill, seed in [("good", 2.5, 1), ("fair", 1.2, 2), ("noise", 0, 3)]
    }


def test_of(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["role"] == "test"]


test_of.__test__ = False


def test_confusion_by_hand(golden):
    assert metrics.confusion(golden).to_numpy().tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 1]]
    assert (
        list(metrics.confusion(golden).index)
        == list(metrics.confusion(golden).columns)
        == ["neutral", "sad", "angry"]
    )


def test_all_metrics_by_hand(golden):
    found = metrics.evaluate(golden)
    assert found["n"] == 6 and found["wa"] == pytest.approx(4 / 6)
    assert found["uar"] == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)
    assert found["uar_fold_mean"] == pytest.approx(((1 / 2 + 1) / 2 + (1 / 2 + 1) / 2) / 2)
    assert found["macro_f1"] == pytest.approx((2 / 4 + 4 / 6 + 1) / 3)
    assert found["nll"] == pytest.approx(-np.log([0.8, 0.4, 0.9, 0.6, 0.2, 0.4]).mean())
    # confidences .8 .5 .9 .6 .7 .4, right: yes no yes yes no yes; 15 bins part them all
    assert found["ece"] == pytest.approx(np.mean([0.2, 0.5, 0.1, 0.4, 0.7, 0.6]))


def test_calibration_error_of_equal_confidences(golden):
    same = golden.assign(p_neutral=0.7, p_sad=0.2, p_angry=0.1)
    assert metrics.expected_calibration_error(same) == pytest.approx(abs(0.7 - 2 / 6))


def test_metrics_are_scikit_learns(models):
    for table in models.values():
        rows = test_of(table)
        rows = rows[
            (rows["truth"] != "happy") | (np.arange(len(rows)) % 3 == 0)
        ]  # so that shares differ
        found, guess = metrics.evaluate(rows), metrics.predicted(rows)
        assert found["uar"] == pytest.approx(balanced_accuracy_score(rows["truth"], guess))
        assert found["macro_f1"] == pytest.approx(f1_score(rows["truth"], guess, average="macro"))
        assert found["weighted_f1"] == pytest.approx(
            f1_score(rows["truth"], guess, average="weighted")
        )
        assert found["wa"] == pytest.approx((guess == rows["truth"]).mean())


def test_emotion_without_test_rows_is_left_out_of_the_mean(golden):
    rows = golden[golden["truth"] != "angry"]
    assert metrics.uar(rows) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert np.isfinite(metrics.evaluate(rows)["macro_f1"])


def test_interval_holds_the_value_and_is_reproducible(models):
    found = metrics.evaluate(test_of(models["fair"]))
    assert (
        found["uar_low"] < found["uar"] < found["uar_high"]
        and 0.02 < found["uar_high"] - found["uar_low"] < 0.4
    )
    assert metrics.evaluate(
        test_of(models["fair"]).sample(frac=1, random_state=0)
    ) == pytest.approx(found)


def test_interval_is_wide_where_speakers_differ(models):
    rows = test_of(models["good"]).copy()
    even = metrics.evaluate(rows)
    half = rows["speaker"] < "s05"
    columns = [c for c in rows if c.startswith("p_")]
    rows.loc[half, columns] = rows.loc[half, columns[::-1]].to_numpy()
    uneven = metrics.evaluate(rows)
    assert uneven["uar_high"] - uneven["uar_low"] > 2 * (even["uar_high"] - even["uar_low"])


def test_no_interval_below_eight_speakers(models):
    rows = test_of(models["fair"])
    few = rows[rows["speaker"] < "s07"]
    found = metrics.evaluate(few)
    assert np.isnan(found["uar_low"]) and np.isnan(found["uar_high"]) and found["uar"] > 0.25
    assert np.isnan(metrics.paired_difference(few, few)["p"])
    eight = rows[rows["speaker"] < "s08"]
    assert np.isfinite(metrics.evaluate(eight)["uar_low"])


def test_rows_of_two_variants_are_refused(models):
    both = pd.concat(
        [test_of(models["good"]), test_of(models["good"]).assign(variant="speaker-normalised")]
    )
    with pytest.raises(ValueError, match=r"160 utterances are predicted more than once"):
        metrics.evaluate(both)


def test_difference_of_a_table_with_itself_is_nothing(models):
    rows = test_of(models["fair"])
    found = metrics.paired_difference(rows, rows.sample(frac=1, random_state=1))
    assert found == {"difference": 0, "low": 0, "high": 0, "p": 1}


def test_difference_is_signed_and_paired(models):
    good, noise = test_of(models["good"]), test_of(models["noise"])
    there, back = (
        metrics.paired_difference(good, noise),
        metrics.paired_difference(noise, good),
    )
    assert (
        there["difference"] == pytest.approx(metrics.uar(good) - metrics.uar(noise))
        and there["low"] > 0.2
    )
    assert back["high"] == pytest.approx(-there["low"]) and there["p"] == back[
        "p"
    ] == pytest.approx(0.001)
    with pytest.raises(ValueError, match="different utterances"):
        metrics.paired_difference(good, noise.iloc[1:])


def test_holm_by_hand():
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert metrics.holm([0.5, 0.9]) == pytest.approx([1, 1]) and metrics.holm(
        [0.04]
    ) == pytest.approx([0.04])


def test_majority_baseline_is_at_chance(folds):
    table = metrics.majority(folds)
    tables.SCHEMAS["predictions"].validate(table)
    assert metrics.evaluate(test_of(table))["uar"] == pytest.approx(0.25)
    unbalanced = folds[
        ~((folds["emotion"] == "sad") & folds["utterance_id"].str.endswith(("_1", "_2", "_3")))
    ]
    first = metrics.majority(unbalanced).query("fold == 1")
    assert set(metrics.predicted(first)) != {"sad"} and first["p_sad"].max() == pytest.approx(
        1 / 13
    )


def test_results_table_is_sorted_and_valid(models, folds):
    table = metrics.results_table(models, folds, "toy, four")
    tables.SCHEMAS["results"].validate(table)
    assert table["model"].tolist()[:2] == ["good", "fair"] and set(table["model"]) == {
        *models,
        "majority",
    }
    assert (table["n"] == 160).all() and table["protocol"][0] == "toy, four, 5 folds, inductive"


# --- ensembles -----------------------------------------------------------------------------------


def test_average_aligns_by_name_and_key(models):
    straight = ensemble.average(models)
    columns = [c for c in models["fair"] if not c.startswith("p_")] + [
        c for c in models["fair"] if c.startswith("p_")
    ][::-1]
    turned = ensemble.average(
        models | {"fair": models["fair"].sample(frac=1, random_state=0)[columns]}
    )
    pd.testing.assert_frame_equal(turned, straight)
    row = straight.iloc[17]
    key = ["utterance_id", "fold", "role", "variant"]
    mean = np.mean([t.set_index(key).loc[tuple(row[key]), "p_sad"] for t in models.values()])
    assert row["p_sad"] == pytest.approx(mean, abs=1e-6)


def test_average_of_good_models_is_better_than_noise(models):
    assert (
        metrics.uar(test_of(ensemble.average(models))) > metrics.uar(test_of(models["noise"])) + 0.2
    )


def test_pretrained_member_makes_the_average_pretrained(models):
    assert not ensemble.average(models)["pretrained"].any()
    assert ensemble.average(models | {"fair": models["fair"].assign(pretrained=True)})[
        "pretrained"
    ].all()


@pytest.mark.parametrize("change", ["fold", "row", "role", "truth", "emotion", "name"])
def test_tables_that_do_not_belong_together_are_refused(models, change):
    other = models["fair"].copy()
    if change == "fold":
        other["fold"] = other["fold"] % 5 + 1
    elif change == "row":
        other = other.iloc[1:]
    elif change == "role":
        other["role"] = other["role"].map({"validation": "test", "test": "validation"})
    elif change == "truth":
        other.loc[0, "truth"] = "sad" if other.loc[0, "truth"] != "sad" else "angry"
    elif change == "emotion":
        other = other.drop(columns="p_sad")
    else:
        other = other.rename(columns={"p_happy": "p_joyful"})
    for combine in (ensemble.average, ensemble.weighted_average, ensemble.stacked):
        with pytest.raises(
            ValueError,
            match=r"fair and good (were made on different folds|have different emotions)",
        ):
            combine({"good": models["good"], "fair": other})


def test_each_variant_is_averaged_over_the_models_that_have_it(models):
    both = {
        "good": pd.concat([models["good"], models["good"].assign(variant="speaker-normalised")]),
        "fair": models["fair"],
    }
    averaged = ensemble.average(both)
    for variant, members in [
        ("inductive", {"good": models["good"], "fair": models["fair"]}),
        ("speaker-normalised", {"good": models["good"]}),
    ]:
        part = (
            averaged[averaged["variant"] == variant].drop(columns="variant").reset_index(drop=True)
        )
        pd.testing.assert_frame_equal(part, ensemble.average(members).drop(columns="variant"))
    _, weights = ensemble.weighted_average(both)
    assert weights.loc["inductive"].notna().all(axis=None)
    assert (weights.loc["speaker-normalised", "good"] > 0).all() and weights.loc[
        "speaker-normalised", "fair"
    ].isna().all()


def test_nothing_to_average_names_the_notebooks():
    with pytest.raises(ValueError, match=r"no predictions to average: .*07 to 14"):
        ensemble.average({})


def lied(table: pd.DataFrame) -> pd.DataFrame:
    """The same table, with every test row's truth replaced by another emotion."""
    emotions = sorted(set(table["truth"]))
    turned = table["truth"].map(dict(zip(emotions, emotions[1:] + emotions[:1], strict=True)))
    return table.assign(truth=table["truth"].where(table["role"] != "test", turned))


def test_weights_are_fitted_on_validation_rows_alone(models):
    table, weights = ensemble.weighted_average(models)
    other, same = ensemble.weighted_average({name: lied(t) for name, t in models.items()})
    pd.testing.assert_frame_equal(weights, same)
    assert not table["truth"].equals(other["truth"])
    pd.testing.assert_frame_equal(table.drop(columns="truth"), other.drop(columns="truth"))
    assert (weights["good"] > weights["fair"]).all() and (weights["fair"] > weights["noise"]).all()
    assert (weights >= 0).all(axis=None)


def test_weights_are_the_best_on_validation_rows(models):
    _, weights = ensemble.weighted_average(models, penalty=0)
    base, stack = ensemble.aligned(models)
    rows = np.flatnonzero((base["fold"] == 1) & (base["role"] == "validation"))
    best = weights.loc[("inductive", 1)].to_numpy()

    def surprise(weight):
        pooled = np.tensordot(weight, np.log(stack[:, rows] + 1e-3), axes=1)
        return -np.log(
            softmax(pooled, axis=1)[np.arange(len(rows)), metrics.truth_column(base)[rows]]
        ).mean()

    lowest = surprise(best)
    for step in (*np.eye(3), *-np.eye(3)):
        assert surprise(np.maximum(best + 0.02 * step, 0)) >= lowest - 1e-9


def test_an_unsure_model_alone_is_calibrated(models):
    unsure = models["good"].copy()
    columns = [c for c in unsure if c.startswith("p_")]
    unsure[columns] = unsure[columns] ** 0.3
    unsure[columns] = unsure[columns].div(unsure[columns].sum(axis=1), axis=0)
    table, weights = ensemble.weighted_average({"unsure": unsure})
    assert (weights["unsure"] > 1).all()
    assert metrics.expected_calibration_error(test_of(table)) < metrics.expected_calibration_error(
        test_of(unsure)
    )


def test_a_large_penalty_keeps_weights_equal(models):
    _, weights = ensemble.weighted_average(models, penalty=1e4)
    np.testing.assert_allclose(weights, 1 / 3, atol=1e-3)


def test_who_weighs_little_is_left_out_and_the_rest_fitted_again(models):
    _, weights = ensemble.weighted_average(models)
    share = weights.div(weights.sum(axis=1), axis=0)
    least = float((share["noise"].max() + share[["good", "fair"]].min(axis=None)) / 2)
    table, lean = ensemble.weighted_average(models, least=least)
    pair, fitted = ensemble.weighted_average({name: models[name] for name in ("good", "fair")})
    assert (lean["noise"] == 0).all()
    np.testing.assert_allclose(lean[["good", "fair"]], fitted, rtol=1e-6)
    pd.testing.assert_frame_equal(table, pair)
    _, all_of_them = ensemble.weighted_average(models, least=1.1)
    pd.testing.assert_frame_equal(all_of_them, weights)


def test_weights_of_a_fold_see_that_fold_alone(models):
    _, weights = ensemble.weighted_average(models)
    _, alone = ensemble.weighted_average({name: t[t["fold"] == 2] for name, t in models.items()})
    np.testing.assert_allclose(
        weights.loc[("inductive", 2)], alone.loc[("inductive", 2)], rtol=1e-6
    )


def test_stacking_is_fitted_on_validation_rows_of_its_fold_alone(models):
    table = ensemble.stacked(models)
    other = ensemble.stacked({name: lied(t) for name, t in models.items()})
    pd.testing.assert_frame_equal(table.drop(columns="truth"), other.drop(columns="truth"))
    alone = ensemble.stacked({name: t[t["fold"] == 2] for name, t in models.items()})
    both = table[table["fold"] == 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, both)
    np.testing.assert_allclose(metrics.probabilities(table)[0].sum(axis=1), 1, atol=1e-5)
    assert metrics.uar(test_of(table)) > 0.6


def test_stacking_without_validation_rows_of_an_emotion_gives_it_zero(models):
    kept = {
        name: t[~((t["role"] == "validation") & (t["truth"] == "sad") & (t["fold"] == 1))]
        for name, t in models.items()
    }
    table = ensemble.stacked(kept)
    assert (table.loc[table["fold"] == 1, "p_sad"] == 0).all() and (
        table.loc[table["fold"] == 2, "p_sad"] > 0
    ).all()


# --- the command ---------------------------------------------------------------------------------


def printed(folder) -> subprocess.CompletedProcess:
    command = [sys.executable, "tools/results.py", str(folder)]
    return subprocess.run(command, cwd=paths.PROJECT, capture_output=True, text=True)


def test_command_prints_results_of_a_folder(models, folds, tmp_path):
    for name in ("good", "fair"):
        tables.write_table(models[name], tmp_path / "toy/four" / f"{name}.parquet", "predictions")
    tables.write_table(folds, tmp_path / "toy/four/folds.csv", "folds")
    found = printed(tmp_path / "toy/four")
    assert found.returncode == 0, found.stderr
    line = next(line for line in found.stdout.splitlines() if line.split()[:1] == ["good"])
    assert round(metrics.uar(test_of(models["good"])), 4) in map(
        float, line.split()[3:5] + line.split()[4:6]
    )
    assert "160 utterances, 10 speakers, 5 fold(s)" in found.stdout and "majority" in found.stdout


def test_command_says_what_is_wrong_with_a_folder(tmp_path):
    found = printed(tmp_path)
    assert (
        found.returncode == 1
        and "holds no predictions (*.parquet)" in found.stderr
        and "Traceback" not in found.stderr
    )


# --- one of several, and runs that are compared --------------------------------------------------


def test_better_model_is_kept_per_fold_by_its_validation_rows_alone(models, folds):
    good, noise = models["good"], models["noise"]
    emotions = [c for c in good if c.startswith("p_")]
    bad_in_2 = good.copy()
    bad_in_2.loc[(bad_in_2["fold"] == 2) & (bad_in_2["role"] == "validation"), emotions] = (
        0.25  # its test rows stay better
    )
    kept, choice = ensemble.select_by_validation({"a": bad_in_2, "b": models["fair"]})
    assert choice.loc["inductive", "kept"].to_dict() == {1: "a", 2: "b", 3: "a", 4: "a", 5: "a"}
    keys = ["utterance_id", "fold", "role"]
    for fold, source in [(1, bad_in_2), (2, models["fair"])]:
        wanted = source[source["fold"] == fold].set_index(keys)[emotions]
        np.testing.assert_allclose(
            kept[kept["fold"] == fold].set_index(keys).loc[wanted.index, emotions],
            wanted,
            atol=1e-6,
        )
    # whatever the test rows say
    hidden = noise.copy()
    hidden.loc[hidden["role"] == "test", emotions] = good.loc[
        good["role"] == "test", emotions
    ].to_numpy()
    assert set(
        ensemble.select_by_validation({"hidden": hidden, "fair": models["fair"]})[1]["kept"]
    ) == {"fair"}


def test_compared_runs_are_paired_with_their_model(models, folds):
    compared = {"net__without_it": models["fair"], "alone": models["noise"]}
    table = metrics.comparisons_table({"net": models["good"]}, compared).set_index("model")
    wanted = metrics.paired_difference(test_of(models["good"]), test_of(models["fair"]))
    assert all(
        table.loc["net__without_it", key] == wanted[key] for key in ("difference", "low", "high")
    )
    assert np.isnan(table.loc["alone", "difference"]) and table.loc["alone", "uar"] == metrics.uar(
        test_of(models["noise"])
    )
    assert metrics.comparisons_table({}, {}).empty


# --- how scores are written ----------------------------------------------------------------------


def test_scores_are_written_in_per_cent_and_differences_in_points():
    row = {"uar": 0.5893, "uar_low": 0.543, "uar_high": 0.633}
    assert metrics.format_uar(row) == "58.9 % [54.3, 63.3]"
    assert metrics.format_uar(row | {"uar_low": np.nan}) == "58.9 %", "no interval is made up"
    pair = {"difference": 0.0261, "low": 0.009, "high": 0.0421}
    assert metrics.format_difference(pair) == "+2.6 [+0.9, +4.2]"
    assert metrics.format_difference(pair | {"low": np.nan}) == "+2.6"


def test_a_metric_is_declared_in_one_place(models, folds, monkeypatch, tmp_path):
    best = metrics.Metric("highest confidence", lambda rows: rows.filter(like="p_").max(axis=None))
    earlier = metrics.results_table(models, folds, "toy")
    monkeypatch.setitem(metrics.METRICS, "most", best)
    table = metrics.results_table(models, folds, "toy")
    tables.SCHEMAS["results"].validate(table)
    assert (table["most"] <= 1).all()
    with pytest.raises(pa.errors.SchemaErrors, match="high"):
        tables.SCHEMAS["results"].validate(table.assign(most="high"))
    tables.write_table(earlier, tmp_path / "results.csv", "results")  # before it was declared
    tables.write_table(folds, tmp_path / "folds.csv", "folds")
    (card, *_) = cards.protocol_cards(tmp_path, "demo", "iemocap-4")
    assert card["results"]["most"] is None and card["results"]["wa"] > 0
