"""Folds keep speakers apart on any corpus, and the audit catches every planted fault."""

import numpy as np
import pandas as pd
import pytest
from conftest import EMOTIONS, make_features, make_utterances
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.preprocessing import StandardScaler

from helpers import audit, corpora, splits
from helpers.estimators import Classical
from helpers.experiment import cross_validate

N_RANDOM = 12
LDA = Classical("LDA", LinearDiscriminantAnalysis())


def random_corpus(seed: int) -> pd.DataFrame:
    """A corpus of random size and shape: lone speakers or pairs, any mix of sexes, unbalanced emotions."""
    rng = np.random.default_rng(seed)
    per_group = int(rng.integers(1, 3))
    n_speakers = per_group * int(rng.integers(3, 13))
    table = make_utterances(
        n_speakers, 5, per_group=per_group, women=int(rng.integers(0, n_speakers + 1))
    )
    kept = rng.random(len(table)) < table["emotion"].map(
        dict(zip(EMOTIONS, [0.9, 0.7, 0.5, 0.3], strict=True))
    )
    return (
        table[kept | ~table.duplicated(["speaker", "emotion"])]
        .sample(frac=1, random_state=seed)
        .reset_index(drop=True)
    )


@pytest.fixture
def folded():
    utterances = make_utterances(12)
    return splits.make_folds(utterances, n_folds=4), utterances


def moved(folds: pd.DataFrame, old: str, new: str) -> pd.DataFrame:
    """One row of the first fold changes sides."""
    row = folds.index[(folds["fold"] == 1) & (folds["role"] == old)][0]
    return folds.assign(role=folds["role"].where(folds.index != row, new))


def faults(findings) -> list[str]:
    return [f.check for f in findings if f.level == "fault"]


@pytest.mark.parametrize("seed", range(N_RANDOM))
def test_folds_of_any_corpus_keep_units_apart(seed):
    utterances = random_corpus(seed)
    folds = splits.make_folds(utterances, n_folds=5, n_valid=4, seed=seed)
    group = utterances.set_index("utterance_id")["group"]
    rows = folds.assign(group=folds["utterance_id"].map(group))
    assert set(folds["role"]) == set(splits.ROLES)
    assert rows.groupby(["fold", "group"])["role"].nunique().max() == 1, "a unit is on two sides"
    assert not folds.duplicated(["fold", "utterance_id"]).any()
    assert (folds.groupby("fold").size() == len(utterances)).all(), (
        "every utterance has a role in every fold"
    )
    assert (rows[rows["role"] == "test"].groupby("group")["fold"].nunique() == 1).all()
    assert set(rows.loc[rows["role"] == "test", "group"]) == set(group), "every unit is tested"
    assert (rows.groupby(["fold", "role"])["group"].nunique().unstack()["train"] >= 1).all()
    assert faults(audit.audit_folds(folds, utterances)) == []


@pytest.mark.parametrize("seed", range(N_RANDOM))
def test_folds_are_deterministic(seed):
    utterances = random_corpus(seed)
    folds = splits.make_folds(utterances, seed=seed)
    assert folds.equals(splits.make_folds(utterances, seed=seed))
    other = splits.make_folds(utterances.iloc[::-1], seed=seed).sort_values(
        ["fold", "utterance_id"], ignore_index=True
    )
    units = [
        folds[folds["role"] == "test"].groupby("fold")["speaker"].agg(set).map(sorted).tolist(),
        other[other["role"] == "test"].groupby("fold")["speaker"].agg(set).map(sorted).tolist(),
    ]
    assert all(set().union(*found) == set(utterances["speaker"]) for found in units)


@pytest.mark.parametrize(("women", "expected"), [(10, 2), (14, 2), (4, 2)])
def test_valid_speakers_are_half_of_each_sex(women, expected):
    utterances = make_utterances(20, 1, women=women)
    folds = splits.make_folds(utterances, n_folds=5, n_valid=4)
    sex = utterances.drop_duplicates("speaker").set_index("speaker")["sex"]
    for _, rows in folds[folds["role"] == "valid"].groupby("fold"):
        assert (sex[rows["speaker"].unique()] == "female").sum() == expected


def test_one_sex_alone_works_too():
    folds = splits.make_folds(make_utterances(8, 1, women=0), n_folds=4, n_valid=2)
    assert (folds[folds["role"] == "valid"].groupby("fold")["speaker"].nunique() == 2).all()


def test_published_folds_are_kept():
    utterances = make_utterances(24, 1).assign(
        speaker=lambda t: t["speaker"].map(lambda s: f"{int(s[1:]) + 1:02d}")
    )
    published = corpora.get("ravdess").folds
    folds = splits.make_folds(utterances.assign(group=utterances["speaker"]), published)
    found = (
        folds[folds["role"] == "test"]
        .groupby("fold")["speaker"]
        .agg(lambda s: tuple(sorted(set(s))))
        .to_dict()
    )
    assert found == published


def test_published_folds_that_do_not_match_are_refused():
    utterances = make_utterances(4)
    with pytest.raises(ValueError, match=r"not in any fold \['s03'\]"):
        splits.make_folds(utterances, {1: ("s00", "s01"), 2: ("s02",)})
    with pytest.raises(ValueError, match=r"in two folds \['s01'\]"):
        splits.make_folds(utterances, {1: ("s00", "s01"), 2: ("s01", "s02", "s03")})


def test_single_group_is_refused():
    with pytest.raises(ValueError, match=r"found 1 speaker group\(s\) \['s00'\]"):
        splits.make_folds(make_utterances(1))


def test_two_speakers_train_on_one_and_say_so():
    utterances = make_utterances(2, 10, women=2)
    with pytest.warns(UserWarning, match="single speaker"):
        folds = splits.make_folds(utterances, {1: ("s00",), 2: ("s01",)})
    assert set(folds["role"]) == set(splits.ROLES)
    sentence = folds["utterance_id"].map(utterances.set_index("utterance_id")["sentence"])
    sides = (
        folds.assign(sentence=sentence)[folds["role"] != "test"]
        .groupby(["fold", "sentence"])["role"]
        .nunique()
    )
    assert sides.max() == 1, "valid sentences are not trained on"
    assert faults(audit.audit_folds(folds, utterances)) == []


def test_summary_counts_every_row(folded):
    folds, utterances = folded
    summary = splits.fold_summary(folds).xs("utterances", axis=1, level=1)
    assert (summary.sum(axis=1) == len(utterances)).all() and list(summary.columns) == list(
        splits.ROLES
    )


def test_transfer_trains_on_one_corpus_and_tests_the_other():
    here, there = (
        make_utterances(8),
        make_utterances(4).assign(
            utterance_id=lambda t: "other/" + t["utterance_id"].str.split("/").str[1],
            group=lambda t: "x" + t["group"],
            speaker=lambda t: "x" + t["speaker"],
            audio_hash=lambda t: "x" + t["audio_hash"],
        ),
    )
    folds = splits.make_transfer(here, there, n_valid=2)
    assert set(folds.loc[folds["role"] == "test", "utterance_id"]) == set(there["utterance_id"])
    assert folds[folds["role"] == "valid"]["speaker"].nunique() == 2 and len(folds) == len(
        here
    ) + len(there)
    assert faults(audit.audit_folds(folds, pd.concat([here, there]))) == []
    with pytest.raises(ValueError, match=r"4 speaker group\(s\) are on both sides"):
        splits.make_transfer(here, make_utterances(4))


# --- planted faults -----------------------------------------------------------------------------------------------


def test_clean_folds_pass(folded):
    report = audit.require_clean(audit.audit_folds(*folded))
    assert "fault" not in set(report["level"]) and len(report) >= 5


@pytest.mark.parametrize(
    ("old", "new"), [("test", "train"), ("train", "test"), ("valid", "train"), ("test", "valid")]
)
def test_leaked_speaker_is_caught(folded, old, new):
    folds, utterances = folded
    with pytest.raises(
        ValueError,
        match=r"speakers on two sides of a fold: 1, which concerns \d+% of the .*, e.g. s\d\d",
    ):
        audit.require_clean(audit.audit_folds(moved(folds, old, new), utterances))


def test_leaked_speaker_is_caught_although_the_folds_table_says_otherwise(folded):
    folds, utterances = folded
    leaked = moved(folds, "test", "train")
    leaked.loc[(leaked["role"] == "train") & (leaked["fold"] == 1), "speaker"] = "somebody else"
    assert "speakers" in faults(audit.audit_folds(leaked, utterances))


def test_single_training_speaker_does_not_excuse_a_leak_into_test():
    utterances = make_utterances(2, 10)
    with pytest.warns(UserWarning, match="single speaker"):
        folds = splits.make_folds(utterances)
    assert "speakers" in faults(audit.audit_folds(moved(folds, "test", "train"), utterances))
    assert "speakers" in faults(audit.audit_folds(moved(folds, "train", "test"), utterances))


def test_group_on_two_sides_is_caught():
    pairs = make_utterances(8, per_group=2)
    folds = splits.make_folds(pairs.assign(group=pairs["speaker"]), n_folds=4)
    assert faults(audit.audit_folds(folds, pairs)) == [
        "groups of speakers who talk with each other"
    ]


def test_duplicated_clip_is_caught(folded):
    folds, utterances = folded
    ids = [
        folds.query("fold == 1 and role == @role")["utterance_id"].iloc[0]
        for role in ("train", "test")
    ]
    hashes = utterances.set_index("utterance_id")["audio_hash"]
    hashes[ids[0]] = hashes[ids[1]]
    utterances["audio_hash"] = hashes.to_numpy()
    with pytest.raises(
        ValueError, match=r"recordings .same decoded audio. on two sides of a fold: 1,"
    ) as caught:
        audit.require_clean(audit.audit_folds(folds, utterances))
    assert all(i in str(caught.value) for i in ids)


def test_unreadable_clips_are_no_duplicates(folded):
    folds, utterances = folded
    assert faults(audit.audit_folds(folds, utterances.assign(audio_hash=""))) == []


def test_augmented_copy_apart_from_its_parent_is_caught(folded):
    folds, utterances = folded
    parent = folds.query("fold == 1 and role == 'test'")["utterance_id"].iloc[0]
    child = utterances[utterances["utterance_id"] == parent].assign(
        utterance_id=f"{parent}_pitch",
        parent_id=parent,
        audio_hash="other",
        speaker="somebody",
        group="somebody",
    )
    with_child = pd.concat([utterances.assign(parent_id=""), child], ignore_index=True)
    rows = folds[folds["utterance_id"] == parent].assign(
        utterance_id=f"{parent}_pitch", speaker="somebody"
    )
    together = pd.concat([folds, rows], ignore_index=True)
    assert faults(audit.audit_folds(together, with_child)) == []
    apart = pd.concat([folds, rows.assign(role="train")], ignore_index=True)
    assert faults(audit.audit_folds(apart, with_child)) == ["augmented copies and their parents"]


def test_folds_of_another_corpus_are_caught(folded):
    folds, utterances = folded
    assert "known rows" in faults(
        audit.audit_folds(folds, utterances[utterances["speaker"] != "s03"])
    )


def test_row_that_is_never_tested_or_twice_is_told(folded):
    folds, utterances = folded
    twice = folds.assign(
        role=folds["role"].where(~((folds["fold"] == 1) & (folds["role"] == "valid")), "test")
    )
    finding = next(f for f in audit.audit_folds(twice, utterances) if f.check == "test rows")
    assert finding.level == "warning" and " 0 more than once" not in finding.text


def test_shared_sentences_and_missing_classes_are_told(folded):
    folds, utterances = folded
    texts = {f.check: f for f in audit.audit_folds(folds, utterances)}
    assert texts["shared sentences"].level == "warning" and "100%" in texts["shared sentences"].text
    own = utterances.assign(sentence=utterances["utterance_id"])
    assert {f.check: f.level for f in audit.audit_folds(folds, own)}["shared sentences"] == "ok"
    sparse = folds[
        ~((folds["fold"] == 2) & (folds["role"] == "valid") & (folds["emotion"] == "sad"))
    ]
    assert "fold 2 valid: sad" in next(
        f.text for f in audit.audit_folds(sparse, utterances) if f.check == "classes"
    )


@pytest.mark.parametrize("fault", ["everything", "per speaker"])
def test_scaler_fitted_on_everything_is_caught(folded, fault):
    folds, utterances = folded
    values, speakers = make_features(utterances), utterances["speaker"].to_numpy(str)
    scaled = StandardScaler().fit_transform(values)
    if fault == "per speaker":
        scaled = np.concatenate(
            [StandardScaler().fit_transform(values[speakers == s]) for s in np.unique(speakers)]
        )
    assert faults(audit.audit_inputs(values, "inductive", speakers)) == []
    assert faults(audit.audit_inputs(scaled, "inductive", speakers)) == ["scaling"]
    with pytest.raises(ValueError, match="the leakage audit found 1 fault"):
        cross_validate(LDA, scaled.astype(np.float32), utterances["utterance_id"], folds)


def test_scaler_fitted_on_everything_is_caught_in_any_order_of_rows(folded):
    folds, utterances = folded
    scaled = StandardScaler().fit_transform(make_features(utterances))
    order = np.random.default_rng(1).permutation(len(utterances))
    with pytest.raises(ValueError, match="put the scaler into the pipeline"):
        cross_validate(LDA, scaled[order], utterances["utterance_id"].iloc[order], folds)


def test_variant_that_the_inputs_do_not_have_is_caught(folded):
    folds, utterances = folded
    with pytest.raises(ValueError, match="not standardised per speaker"):
        cross_validate(
            LDA, make_features(utterances), utterances["utterance_id"], folds, "speaker-normalised"
        )


@pytest.mark.parametrize("step", ["fit", "stop", "select", "start"])
def test_run_record_that_saw_test_rows_is_caught(folded, step):
    folds, _ = folded
    ids = {
        role: folds.query("fold == 1 and role == @role")["utterance_id"].tolist()
        for role in splits.ROLES
    }
    clean = {
        "folds": {
            "1": {
                "fit": ids["train"],
                "stop": ids["valid"],
                "select": ids["valid"],
                "start": ids["train"],
            }
        }
    }
    assert faults(audit.audit_record(clean, folds)) == []
    clean["folds"]["1"][step] = clean["folds"]["1"][step] + ids["test"][:1]
    assert faults(audit.audit_record(clean, folds)) == [step]


def test_model_that_says_it_saw_test_rows_is_stopped(folded):
    folds, utterances = folded

    class Cheat(Classical):
        def fit_predict(self, train, valid, test, n_classes, seed):
            outcome = super().fit_predict(train, valid, test, n_classes, seed)
            return outcome | {"steps": {"fit": ["train"], "stop": ["test"]}}

    with pytest.raises(ValueError, match=r"stop saw test rows of fold\(s\) 1 \(\d+\), 2"):
        cross_validate(
            Cheat("cheat", LDA.estimator),
            make_features(utterances),
            utterances["utterance_id"],
            folds,
        )
