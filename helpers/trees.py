"""Tree ensembles as plain arrays: forests and boosted trees of scikit-learn, XGBoost and LightGBM, all in one form.

An artefact may hold no pickles, and the libraries' own formats are read by code that trusts what it reads. Trees are simple: at
each node a column is compared with a threshold. So they are taken out of the fitted model, stored as arrays, checked when they
are read (every child is a later node, every column is there), and followed by a few lines of NumPy; for single clips that is
faster than the libraries, which start threads first.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from helpers.ensemble import softmax

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

ARRAYS = ("feature", "threshold", "left", "right", "value", "roots", "base", "columns")


@dataclass(frozen=True)
class Trees:
    """An ensemble of decision trees over all its nodes, numbered through.

    Attributes
    ----------
    feature : np.ndarray [shape=(n_nodes,), int32]
        Column that is compared; -1 at a leaf.
    threshold : np.ndarray [shape=(n_nodes,), float64]
    left, right : np.ndarray [shape=(n_nodes,), int32]
        Node that follows; 0 at a leaf.
    value : np.ndarray [shape=(n_nodes, n_classes), float64]
        What a leaf says: shares of the classes (forest), or what is added to their logits (boosting).
    roots : np.ndarray [shape=(n_trees,), int32]
    base : np.ndarray [shape=(n_classes,), float64]
        Logits to begin with.
    columns : np.ndarray [shape=(n_columns,), int32]
        Of the input, those that the trees know.
    boosted
        Whether leaves are added and go through a softmax, or are averaged.
    strict
        Whether a value that equals the threshold goes right (XGBoost) or left.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    roots: np.ndarray
    base: np.ndarray
    columns: np.ndarray
    boosted: bool
    strict: bool

    def __post_init__(self) -> None:
        n, inner = len(self.feature), self.feature >= 0
        nodes = np.arange(n)[inner]
        good = (
            self.value.ndim == 2
            and all(len(a) == n for a in (self.threshold, self.left, self.right, self.value))
            and self.base.shape == (self.value.shape[1],)
            and len(self.roots) > 0
            and (self.columns >= 0).all()
            and (self.feature < len(self.columns)).all()
            and ((self.roots >= 0) & (self.roots < n)).all()
            and all(
                ((side[inner] > nodes) & (side[inner] < n)).all()
                for side in (self.left, self.right)
            )
            and np.isfinite(self.value).all()
            and not np.isnan(self.threshold).any()
        )
        if not good:
            raise ValueError(
                "these arrays are no trees: a child is no later node, a column is not there, or shapes do not fit"
            )

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return probabilities, shape ``(n_rows, n_classes)``, of inputs of shape ``(n_rows, n_columns of the model)``."""
        rows = np.arange(len(inputs))[:, None]
        inputs = np.asarray(inputs, np.float32)[:, self.columns]
        at = np.broadcast_to(self.roots, (len(inputs), len(self.roots)))
        while (inner := self.feature[at] >= 0).any():
            found, limit = inputs[rows, np.maximum(self.feature[at], 0)], self.threshold[at]
            goes_left = found < limit if self.strict else found <= limit
            at = np.where(inner, np.where(goes_left, self.left[at], self.right[at]), at)
        if self.boosted:
            return softmax(self.base + self.value[at].sum(axis=1))
        return self.value[at].mean(axis=1)


def from_estimator(model: "BaseEstimator") -> Trees:
    """Take the trees out of a fitted classifier, or out of a pipeline that selects columns first.

    Raises
    ------
    ValueError
        If it is no ensemble of trees, or its pipeline does something else than select columns.
    """
    steps = [step for _, step in model.steps] if hasattr(model, "steps") else [model]
    *selectors, classifier = steps
    if not all(hasattr(step, "get_support") for step in selectors):
        raise ValueError(
            f"{[type(step).__name__ for step in selectors]} does more than select columns"
        )
    columns = np.arange(steps[0].n_features_in_)
    for step in selectors:
        columns = columns[step.get_support()]
    kind = type(classifier).__name__
    if kind in ("RandomForestClassifier", "ExtraTreesClassifier"):
        parts, base, boosted = (
            [_of_sklearn(tree.tree_) for tree in classifier.estimators_],
            None,
            False,
        )
    elif kind == "HistGradientBoostingClassifier":
        n = len(classifier.classes_)
        parts = [
            _of_histogram(tree.nodes, k, n)
            for trees in classifier._predictors
            for k, tree in enumerate(trees)
        ]
        base, boosted = classifier._baseline_prediction.ravel(), True
    elif kind == "XGBClassifier":
        parts, base = _of_xgboost(classifier)
        boosted = True
    elif kind == "LGBMClassifier":
        n = len(classifier.classes_)
        trees = classifier.booster_.dump_model()["tree_info"]
        parts, base, boosted = (
            [_of_lightgbm(tree["tree_structure"], i % n, n) for i, tree in enumerate(trees)],
            None,
            True,
        )
    else:
        raise ValueError(f"{kind} is no ensemble of trees that is known here")
    starts = np.cumsum([0, *[len(part[0]) for part in parts[:-1]]])
    feature, threshold, left, right, value = (
        np.concatenate(arrays) for arrays in zip(*parts, strict=True)
    )
    shift = np.repeat(starts, [len(part[0]) for part in parts])
    inner = feature >= 0
    return Trees(
        feature.astype(np.int32),
        threshold.astype(np.float64),
        np.where(inner, left + shift, 0).astype(np.int32),
        np.where(inner, right + shift, 0).astype(np.int32),
        value.astype(np.float64),
        starts.astype(np.int32),
        np.zeros(value.shape[1]) if base is None else np.asarray(base, np.float64),
        columns.astype(np.int32),
        boosted,
        kind == "XGBClassifier",
    )


def _of_sklearn(tree) -> tuple[np.ndarray, ...]:
    shares = tree.value[:, 0] / tree.value[:, 0].sum(axis=1, keepdims=True)
    return (
        np.where(tree.children_left < 0, -1, tree.feature),
        tree.threshold,
        tree.children_left,
        tree.children_right,
        shares,
    )


def _of_histogram(nodes: np.ndarray, k: int, n: int) -> tuple[np.ndarray, ...]:
    leaf = nodes["is_leaf"].astype(bool)
    value = np.zeros((len(nodes), n))
    value[leaf, k] = nodes["value"][leaf]
    return (
        np.where(leaf, -1, nodes["feature_idx"]),
        np.where(leaf, 0, nodes["num_threshold"]),
        nodes["left"].astype(int),
        nodes["right"].astype(int),
        value,
    )


def _of_xgboost(classifier) -> tuple[list[tuple[np.ndarray, ...]], np.ndarray]:
    learner = json.loads(classifier.get_booster().save_raw("json"))["learner"]
    model, n, parts = learner["gradient_booster"]["model"], len(classifier.classes_), []
    for tree, k in zip(model["trees"], model["tree_info"], strict=True):
        left = np.array(tree["left_children"])
        leaf, number = left < 0, np.array(tree["split_conditions"], np.float32)
        value = np.zeros((len(left), n))
        value[leaf, k] = number[leaf]
        parts.append(
            (
                np.where(leaf, -1, tree["split_indices"]),
                np.where(leaf, 0, number),
                left,
                np.array(tree["right_children"]),
                value,
            )
        )
    base = json.loads(learner["learner_model_param"]["base_score"].replace("E", "e"))
    return parts, np.broadcast_to(np.asarray(base, float), n)


def _of_lightgbm(structure: dict, k: int, n: int) -> tuple[np.ndarray, ...]:
    feature, threshold, left, right, value = [], [], [], [], []

    def walk(node: dict) -> int:
        at = len(feature)
        is_leaf = "split_feature" not in node
        feature.append(-1 if is_leaf else node["split_feature"])
        threshold.append(0.0 if is_leaf else node["threshold"])
        left.append(0)
        right.append(0)
        value.append(np.eye(n)[k] * node["leaf_value"] if is_leaf else np.zeros(n))
        if not is_leaf:
            left[at], right[at] = walk(node["left_child"]), walk(node["right_child"])
        return at

    walk(structure)
    return (
        np.array(feature),
        np.array(threshold, float),
        np.array(left),
        np.array(right),
        np.array(value),
    )
