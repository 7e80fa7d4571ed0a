"""Folds keep speakers apart on any corpus, and the audit catches every planted fault."""

import numpy as np
import pandas as pd
import pytest
from conftest import EMOTIONS, make_features, make_utterances, notebook_cells
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler

from helpers import audit, corpora, splits
from helpers.estimators import Classical
from helpers.experiment import Dataset, cross_validate


def random_corpus(seed: int) -> pd.DataFrame:
    """Lone speakers or pairs, any mix of sexes, unbalanced emotions."""
    rng = np.random.default_rng(seed)
    per_group = int(rng.integers(1, 3))
    n_speakers = per_group * int(rng.integers(3, 13))
    women = int(rng.integers(0, n_speakers + 1))
    table = make_utterances(n_speakers, 5, per_group=per_group, women=women)
    share = table["emotion"].map(dict(zip(EMOTIONS, [0.9, 0.7, 0.5, 0.3], strict=True)))
    kept = (rng.random(len(table)) < share) | ~table.duplicated(["speaker", "emotion"])
    return table[kept].sample(frac=1, random_state=seed).reset_index(drop=True)


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


@pytest.mark.parametrize("seed", range(8))
def test_folds_of_any_corpus_keep_units_apart(seed):
    utterances = random_corpus(seed)
    folds = splits.make_folds(utterances, n_folds=5, n_validation=4, seed=seed)
    group = utterances.set_index("utterance_id")["group"]
    rows = folds.assign(group=folds["utterance_id"].map(group))
    assert set(folds["role"]) == set(splits.ROLES)
    assert rows.groupby(["fold", "group"])["role"].nunique().max() == 1, "a unit is on two sides"
    assert not folds.duplicated(["fold", "utterance_id"]).any()
    assert (folds.groupby("fold").size() == len(utterances)).all(), "each utterance has a role"
    assert (rows[rows["role"] == "test"].groupby("group")["fold"].nunique() == 1).all()
    assert set(rows.loc[rows["role"] == "test", "group"]) == set(group), "every unit is tested"
    assert (rows.groupby(["fold", "role"])["group"].nunique().unstack()["train"] >= 1).all()
    assert faults(audit.audit_folds(folds, utterances)) == []
    assert folds.equals(splits.make_folds(utterances, n_folds=5, n_validation=4, seed=seed))


def test_folds_are_those_of_the_published_results():
    """The draws of the first edition, which the published predictions are of."""
    folds = splits.make_folds(make_utterances(12, 1), n_folds=4, n_validation=4, seed=0)
    speakers = folds[folds["role"] != "train"].groupby(["fold", "role"])["speaker"]
    found = speakers.agg(lambda s: " ".join(sorted(set(s)))).unstack("role")
    assert " | ".join(found["test"]) == "s08 s09 s11 | s01 s03 s04 | s00 s02 s10 | s05 s06 s07"
    chosen = "s02 s04 s07 | s05 s09 s11 | s03 s06 s08 | s00 s01 s10"
    assert " | ".join(found["validation"]) == chosen


@pytest.mark.parametrize(("n_speakers", "women", "expected"), [(20, 10, 2), (20, 4, 2), (8, 0, 0)])
def test_validation_speakers_are_half_of_each_sex(n_speakers, women, expected):
    utterances = make_utterances(n_speakers, 1, women=women)
    folds = splits.make_folds(utterances, n_folds=4, n_validation=4 if women else 2)
    sex = utterances.drop_duplicates("speaker").set_index("speaker")["sex"]
    for _, rows in folds[folds["role"] == "validation"].groupby("fold"):
        assert (sex[rows["speaker"].unique()] == "female").sum() == expected
        assert rows["speaker"].nunique() == (4 if women else 2)


def test_published_folds_are_kept():
    utterances = make_utterances(24, 1)
    names = utterances["speaker"].map(lambda s: f"{int(s[1:]) + 1:02d}")
    published = corpora.get("ravdess").folds
    folds = splits.make_folds(utterances.assign(speaker=names, group=names), published)
    tested = folds[folds["role"] == "test"].groupby("fold")["speaker"]
    assert tested.agg(lambda s: tuple(sorted(set(s)))).to_dict() == published


def test_published_folds_that_do_not_match_are_refused():
    utterances = make_utterances(4)
    with pytest.raises(ValueError, match=r"not in any fold \['s03'\]"):
        splits.make_folds(utterances, {1: ("s00", "s01"), 2: ("s02",)})
    with pytest.raises(ValueError, match=r"in two folds \['s01'\]"):
        splits.make_folds(utterances, {1: ("s00", "s01"), 2: ("s01", "s02", "s03")})
    with pytest.raises(ValueError, match=r"found 1 speaker group\(s\) \['s00'\]"):
        splits.make_folds(make_utterances(1))


def test_two_speakers_train_on_one_and_say_so():
    utterances = make_utterances(2, 10, women=2)
    with pytest.warns(UserWarning, match="single speaker"):
        folds = splits.make_folds(utterances, {1: ("s00",), 2: ("s01",)})
    assert set(folds["role"]) == set(splits.ROLES)
    rows = folds.merge(utterances[["utterance_id", "sentence"]]).query("role != 'test'")
    sides = rows.groupby(["fold", "sentence"])["role"].nunique()
    assert sides.max() == 1, "validation sentences are not trained on"
    assert faults(audit.audit_folds(folds, utterances)) == []
    assert "speakers" in faults(audit.audit_folds(moved(folds, "test", "train"), utterances))
    assert "speakers" in faults(audit.audit_folds(moved(folds, "train", "test"), utterances))


def test_transfer_trains_on_one_corpus_and_tests_the_other():
    here, there = make_utterances(8), make_utterances(4)
    for column in ("utterance_id", "speaker", "group", "audio_hash"):
        there[column] = "x" + there[column]
    notebook = notebook_cells("20_cross_corpus", "transfer")
    notebook.N_VALIDATION = 2
    folds = notebook.transfer(here, there)
    tested = folds.loc[folds["role"] == "test", "utterance_id"]
    assert set(tested) == set(there["utterance_id"]) and len(folds) == len(here) + len(there)
    assert folds[folds["role"] == "validation"]["speaker"].nunique() == 2
    assert faults(audit.audit_folds(folds, pd.concat([here, there]))) == []
    with pytest.raises(AssertionError, match="on both sides"):
        notebook.transfer(here, make_utterances(4))


# --- planted faults ------------------------------------------------------------------------------


def test_clean_folds_pass(folded):
    report = audit.require_clean(audit.audit_folds(*folded))
    assert "fault" not in set(report["level"]) and len(report) >= 5


@pytest.mark.parametrize(
    ("old", "new"),
    [("test", "train"), ("train", "test"), ("validation", "train"), ("test", "validation")],
)
def test_leaked_speaker_is_caught(folded, old, new):
    folds, utterances = folded
    leaked = moved(folds, old, new)
    expected = r"speakers on two sides of a fold: 1, which concerns \d+% of the .*, e.g. s\d\d"
    with pytest.raises(ValueError, match=expected):
        audit.require_clean(audit.audit_folds(leaked, utterances))
    renamed = leaked.assign(speaker="somebody else")  # the utterances table knows better
    assert "speakers" in faults(audit.audit_folds(renamed, utterances))


def test_group_on_two_sides_is_caught():
    pairs = make_utterances(8, per_group=2)
    folds = splits.make_folds(pairs.assign(group=pairs["speaker"]), n_folds=4)
    expected = "groups of speakers who talk with each other"
    assert faults(audit.audit_folds(folds, pairs)) == [expected]


def test_duplicated_clip_is_caught_and_unreadable_ones_are_no_duplicates(folded):
    folds, utterances = folded
    first = folds[folds["fold"] == 1].drop_duplicates("role").set_index("role")["utterance_id"]
    hashes = utterances.set_index("utterance_id")["audio_hash"].copy()
    hashes[first["train"]] = hashes[first["test"]]
    doubled = utterances.assign(audio_hash=hashes.to_numpy())
    expected = r"recordings .same decoded audio. on two sides of a fold: 1,"
    with pytest.raises(ValueError, match=expected) as caught:
        audit.require_clean(audit.audit_folds(folds, doubled))
    assert first["train"] in str(caught.value) and first["test"] in str(caught.value)
    assert faults(audit.audit_folds(folds, utterances.assign(audio_hash=""))) == []


def test_augmented_copy_apart_from_its_parent_is_caught(folded):
    folds, utterances = folded
    parent = folds.query("fold == 1 and role == 'test'")["utterance_id"].iloc[0]
    new = {"utterance_id": f"{parent}_pitch", "speaker": "somebody"}
    child = utterances[utterances["utterance_id"] == parent].assign(
        parent_id=parent, audio_hash="other", group="somebody", **new
    )
    with_child = pd.concat([utterances.assign(parent_id=""), child], ignore_index=True)
    rows = folds[folds["utterance_id"] == parent].assign(**new)
    assert faults(audit.audit_folds(pd.concat([folds, rows]), with_child)) == []
    apart = pd.concat([folds, rows.assign(role="train")])
    assert faults(audit.audit_folds(apart, with_child)) == ["augmented copies and their parents"]


def test_folds_of_another_corpus_are_caught(folded):
    folds, utterances = folded
    others = utterances[utterances["speaker"] != "s03"]
    assert "known rows" in faults(audit.audit_folds(folds, others))


def test_warnings_name_what_they_concern(folded):
    folds, utterances = folded
    found = {f.check: f for f in audit.audit_folds(folds, utterances)}
    assert found["shared sentences"].level == "warning" and "100%" in found["shared sentences"].text
    own = utterances.assign(sentence=utterances["utterance_id"])
    levels = {f.check: f.level for f in audit.audit_folds(folds, own)}
    assert levels["shared sentences"] == "ok"
    here = (folds["fold"] == 2) & (folds["role"] == "validation") & (folds["emotion"] == "sad")
    sparse = {f.check: f.text for f in audit.audit_folds(folds[~here], utterances)}
    assert "fold 2 validation sad" in sparse["classes"]
    first = (folds["fold"] == 1) & (folds["role"] == "validation")
    twice = folds.assign(role=folds["role"].where(~first, "test"))
    tested = next(f for f in audit.audit_folds(twice, utterances) if f.check == "test rows")
    assert tested.level == "warning" and " 0 more than once" not in tested.text


def lda() -> Classical:
    return Classical("LDA", LinearDiscriminantAnalysis())


SCALERS = [
    StandardScaler(),
    StandardScaler(with_std=False),
    MinMaxScaler(),
    MinMaxScaler((-1, 1)),
    RobustScaler(),
]


@pytest.mark.parametrize("part", ["all", "half"])
@pytest.mark.parametrize("scaler", [*SCALERS, "per speaker"], ids=str)
def test_scaler_fitted_on_everything_is_caught_in_any_order_of_rows(folded, scaler, part):
    folds, utterances = folded
    values, speakers = make_features(utterances), utterances["speaker"].to_numpy(str)
    scaled = values.copy()
    if scaler != "per speaker":
        scaled = scaler.fit_transform(values)
    else:
        for speaker in np.unique(speakers):
            mine = speakers == speaker
            scaled[mine] = StandardScaler().fit_transform(values[mine])
    if part == "half":
        scaled[:, ::2] = values[:, ::2]
        assert faults(audit.audit_inputs(scaled, "speaker-normalised", speakers)) == ["scaling"]
    assert faults(audit.audit_inputs(values, "inductive", speakers)) == []
    assert faults(audit.audit_inputs(scaled, "inductive", speakers)) == ["scaling"]
    order = np.random.default_rng(1).permutation(len(utterances))
    ids = utterances["utterance_id"].iloc[order]
    with pytest.raises(ValueError, match="the leakage audit found 1 fault"):
        Dataset(ids, scaled[order].astype(np.float32), folds)


def test_variant_that_the_inputs_do_not_have_is_caught(folded):
    folds, utterances = folded
    values, ids = make_features(utterances), utterances["utterance_id"]
    with pytest.raises(
        ValueError, match="expected of the variant speaker-normalised: the rows of each speaker"
    ):
        Dataset(ids, values, folds, variant="speaker-normalised")
    speakers = utterances["speaker"].to_numpy(str)
    (finding,) = audit.audit_inputs(values, "corpus-normalised", speakers)
    assert finding.level == "not checked"


@pytest.mark.parametrize("step", ["fit", "stop", "select", "start"])
def test_run_record_that_saw_test_rows_is_caught(folded, step):
    folds, _ = folded
    ids = folds[folds["fold"] == 1].groupby("role")["utterance_id"].agg(list)
    steps = {"fit": ids["train"], "stop": ids["validation"], "select": ids["validation"]}
    steps["start"] = ids["train"]
    assert faults(audit.audit_record({"folds": {"1": steps}}, folds)) == []
    steps[step] = steps[step] + ids["test"][:1]
    assert faults(audit.audit_record({"folds": {"1": steps}}, folds)) == [step]


def test_model_that_says_it_saw_test_rows_is_stopped(folded):
    folds, utterances = folded

    class Cheat(Classical):
        def fit_predict(self, train, validation, test, n_classes, seed):
            outcome = super().fit_predict(train, validation, test, n_classes, seed)
            return outcome | {"steps": {"fit": ["train"], "stop": ["test"]}}

    data = Dataset(utterances["utterance_id"], make_features(utterances), folds)
    with pytest.raises(ValueError, match=r"stop saw test rows of fold\(s\) 1 \(\d+\), 2"):
        cross_validate(Cheat("cheat", lda().estimator), data)
