"""Trees that were taken out of a model answer as the model does, and arrays that are no trees are refused."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers import estimators, trees
from helpers.experiment import Part

FORESTS = ["random forest", "extra trees", "gradient boosting", "XGBoost", "LightGBM"]


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    classes = np.arange(240) % 4
    values = rng.normal(size=(240, 30)) + np.eye(30)[classes] * 2
    values[:, 5] = np.round(values[:, 5])  # many equal values, so that "<" and "<=" differ
    values[:, 6] = 0
    return values.astype(np.float32), classes


def fitted(name: str, rows):
    model = estimators.classical_models(30, n_trees=20, n_rounds=12, k_best=12, search=False)[name]
    return estimators.fit_seeded(
        model.estimator, Part(*rows, np.repeat(["a", "b", "c", "d"], 60)), 0
    )


@pytest.mark.parametrize("name", FORESTS)
def test_trees_answer_as_their_model(name, rows):
    model = fitted(name, rows)
    taken = trees.from_estimator(model)
    fresh = np.random.default_rng(1).normal(size=(300, 30)).astype(np.float32)
    fresh[:, 5] = np.round(fresh[:, 5])
    for values in (rows[0], fresh):
        found = taken.predict(values)
        assert np.abs(found - model.predict_proba(values)).max() < 1e-5 and np.allclose(
            found.sum(axis=1), 1
        )
    assert (taken.predict(fresh[:1]) == taken.predict(fresh)[:1]).all()


def test_other_models_are_refused(rows):
    with pytest.raises(ValueError, match="no ensemble of trees"):
        trees.from_estimator(LogisticRegression().fit(*rows))
    with pytest.raises(ValueError, match="more than select columns"):
        trees.from_estimator(make_pipeline(StandardScaler(), LogisticRegression()).fit(*rows))


@pytest.mark.parametrize(
    "damage",
    [
        {"left": np.full(1, 0)},
        {"right": 10**6},
        {"feature": 10**6},
        {"columns": -1},
        {"roots": 10**6},
        {"roots": -1},
        {"value": np.nan},
        {"threshold": np.nan},
        {"base": "short"},
        {"loop": True},
    ],
)
def test_arrays_that_are_no_trees_are_refused(rows, damage):
    taken = trees.from_estimator(fitted("extra trees", rows))
    ((name, value),) = damage.items()
    if name == "loop":
        changed = {"left": np.where(taken.feature >= 0, np.arange(len(taken.left)), 0)}
    elif name == "base":
        changed = {"base": taken.base[:1]}
    elif isinstance(value, np.ndarray):
        changed = {name: value}
    else:
        array = getattr(taken, name).copy()
        array[0] = value
        changed = {name: array}
    with pytest.raises(ValueError, match="no trees"):
        replace(taken, **changed)
