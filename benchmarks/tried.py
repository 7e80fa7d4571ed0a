"""What was tried on the way to the recipe of the classical models, each alone, and what it brought on *valid* speakers.

Every configuration is fitted on a fold's train speakers and judged on its valid speakers, who are another four in every fold;
nobody looks at test here, but in the last row, which is what was published in the end. A difference is in pairs, on the same
clips, against the configuration named beside it, with a 95 % interval over speakers. A change would be kept where one variant's
whole interval is above zero and the other's mean, if it is there, is not below. (In other corpora folds may share valid
speakers; an interval draws a speaker with all answers about them.)

One classifier judges features: linear discriminant analysis with a fixed shrinkage. openSMILE's ComParE 2016 functionals are
measured with the same classifier where it is installed (``pip install --group benchmark``; its licence is non-commercial).

Run ``python benchmarks/tried.py [--corpus ravdess] [--clipping] [--write]``; ``--write`` puts the table where it is committed,
``--clipping`` leaves out all rows but those of clipped values, and adds their likelihood. What is computed lies in SER_WORK.
"""

import argparse
import sys
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.linalg
import timing
from scipy.stats import norm
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.covariance import shrunk_covariance
from sklearn.feature_selection import SelectKBest, VarianceThreshold
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from helpers import (
    audio,
    augment,
    cache,
    corpora,
    ensemble,
    experiment,
    features,
    metrics,
    nets,
    paths,
    refit,
    tables,
    training,
)
from helpers.cache import code
from helpers.estimators import Classical, ShrunkLDA, anova, classical_models
from helpers.inputs import Input
from helpers.parallel import over_clips

PLAIN, LEVELLED = Input("functionals"), Input("functionals", levelled=True)
VOICES, SPEEDS = (
    (0.9, 1.1),
    (0.88, 0.94, 1.06, 1.12),
)  # of linear models and the DNN, and of networks
VARIANTS = [
    ("inductive", "inductive", ""),
    ("speaker-normalised", "normalised", "_n"),
]  # name, column, end of other columns
FIRST, KEPT = "LDA on the functionals", "with voices at 0.9 and 1.1"
CLIPPED = ", no value beyond five deviations"
ADOPTED = [FIRST, KEPT, "DNN, with voices"]
# networks of notebooks 10, 07 and 14 as they come; they stop by the valid speakers, who judge here, which flatters them beside
# the others
DNN = training.Network(
    "DNN",
    nets.DNN,
    options={"hidden": [300], "dropout": 0.5},
    epochs=30,
    patience=8,
    batch_size=32,
    learning_rate=0.001,
    weight_decay=0.1,
)
CNN = training.Network("CNN", nets.MelCNN, epochs=60, patience=15)
GRU = training.Network(
    "GRU",
    nets.Recurrent,
    {"cell": "GRU"},
    epochs=40,
    patience=15,
    learning_rate=0.002,
    weight_decay=0.05,
    precision="float32",
)
PICTURE = Input("image", {"n_frames": 160}, levelled=True)
SEQUENCE = Input("sequence", {"n_steps": 80, "stride": 2}, levelled=True)


@dataclass(frozen=True)
class Finer:
    """LDA on finer classes, an emotion and something else that is known of training clips; probabilities are added up."""

    name: str
    finer: dict[str, int]  # utterance id → which of an emotion's classes

    def recipe(self) -> dict:
        return {"finer": sorted(self.finer.items()), "code": [ShrunkLDA, code(Finer.fit_predict)]}

    def fit_predict(self, train, valid, test, n_classes, seed):
        rows, n = train.with_copies(), 1 + max(self.finer.values())
        model = make_pipeline(StandardScaler(), ShrunkLDA(0.35))
        model.fit(rows.inputs, rows.classes * n + [self.finer[i] for i in rows.ids])
        emotion_of = np.eye(n_classes)[model.classes_ // n]

        def answer(inputs):
            summed = model.predict_proba(inputs) @ (
                emotion_of / emotion_of.sum(axis=0)
            )  # as likely, however many classes
            return summed / summed.sum(axis=1, keepdims=True)

        return {
            "valid": answer(valid.inputs),
            "test": answer(test),
            "steps": {"fit": ["train"]},
            "notes": {},
        }


@dataclass(frozen=True)
class Moved:
    """LDA whose means move, without labels, to the valid speaker's own clips (MAP adaptation; Gauvain & Lee 1994)."""

    name: str
    relevance: float  # so many clips weigh as much as what was learnt from others
    sharpness: float = 0.3  # of the scores: with so many columns the plain ones are far too sure

    def recipe(self) -> dict:
        return {
            "relevance": self.relevance,
            "sharpness": self.sharpness,
            "code": [code(Moved.fit_predict), code(Moved.answer)],
        }

    def fit_predict(self, train, valid, test, n_classes, seed):
        rows = train.with_copies()
        scaler = StandardScaler().fit(rows.inputs)
        values = scaler.transform(rows.inputs).astype(np.float32)
        means = np.stack([values[rows.classes == i].mean(axis=0) for i in range(n_classes)])
        rest = values - means[rows.classes]
        root = scipy.linalg.cholesky(
            shrunk_covariance((rest.T @ rest / len(rest)).astype(np.float64), 0.35), lower=True
        )

        def white(array):
            return scipy.linalg.solve_triangular(root, array.T, lower=True).T

        result, means = np.zeros((len(valid.inputs), n_classes)), white(means)
        for speaker in np.unique(valid.speakers):
            clips, moved = white(scaler.transform(valid.inputs[valid.speakers == speaker])), means
            for _ in range(5):
                share = self.answer(clips, moved)
                moved = (self.relevance * means + share.T @ clips) / (
                    self.relevance + share.sum(axis=0)[:, None]
                )
            result[valid.speakers == speaker] = self.answer(clips, moved)
        # nobody looks at test here: not adapted
        return {
            "valid": result,
            "test": self.answer(white(scaler.transform(test)), means),
            "steps": {"fit": ["train"]},
            "notes": {},
        }

    def answer(self, clips, means):
        return ensemble.softmax(
            self.sharpness * (clips @ means.T - 0.5 * np.square(means).sum(axis=1))
        )


@dataclass(frozen=True)
class Drawn:
    """In place of ``augment.Copies``: in each epoch, each clip is heard at a speed that is drawn anew."""

    ids: pd.Index
    versions: np.ndarray  # (n_speeds, n_clips, ...)

    def recipe(self) -> str:
        return f"v{[1.0, *SPEEDS]}"  # what the clips themselves are is part of every fold's key

    def epoch(self, number: int, ids: np.ndarray) -> np.ndarray:
        rows = self.ids.get_indexer(list(ids))
        return self.versions[
            np.random.default_rng(number).integers(len(self.versions), size=len(rows)), rows
        ]


class Ranks(TransformerMixin, BaseEstimator):
    """Each column as a normal distribution, by the ranks of the rows that were fitted on."""

    def fit(self, values, classes=None):
        self.ordered_ = np.sort(values, axis=0)
        return self

    def transform(self, values):
        places = np.column_stack(
            [
                np.searchsorted(own, column)
                for own, column in zip(self.ordered_.T, values.T, strict=True)
            ]
        )
        return norm.ppf(np.clip((places + 0.5) / (len(self.ordered_) + 1), 0.002, 0.998)).astype(
            np.float32
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", default="ravdess", help="one with published folds, under SER_DATA"
    )
    parser.add_argument(
        "--clipping",
        action="store_true",
        help="only what clipped values bring, with the likelihood",
    )
    parser.add_argument(
        "--write", action="store_true", help="write tried.csv beside the published results"
    )
    options = parser.parse_args()
    if options.clipping and options.write:
        parser.error("--clipping measures some rows: tried.csv is written of all")
    place = (
        paths.PROJECT / "data/results" / options.corpus / corpora.get(options.corpus).default_policy
    )
    folds = tables.read_table(place / "folds.csv", "folds")
    utterances = corpora.index(options.corpus)
    utterances = utterances[utterances["utterance_id"].isin(folds["utterance_id"])].reset_index(
        drop=True
    )
    utterances["audio_hash"] = audio.measure_all(utterances)["audio_hash"].to_numpy()
    trials = Trials(utterances, folds, place)
    if options.clipping:
        trials.clipping()
        print(f"\n{options.corpus}, valid speakers, mean negative log-likelihood in nats:\n")
        for name, found in trials.done.items():
            nats = {
                variant: metrics.negative_log_likelihood(table) for variant, table in found.items()
            }
            print(f"{name:<75}", *(f"{variant} {value:.3f}  " for variant, value in nats.items()))
        return 0
    rows = pd.DataFrame([*trials.run(), final(place, folds)])
    if options.write:
        rows.to_csv(place / "tried.csv", index=False, float_format="%.5f")
    print(
        f"\n{options.corpus}: UAR on valid speakers in %, differences in points [95 % interval over speakers]\n"
    )
    print("\n".join(lines(rows)))
    return 0


def final(place: Path, folds: pd.DataFrame) -> dict:
    """Return the row of what was published in the end: the one that is of test speakers."""
    table = tables.read_table(place / "average_weighted.parquet", "predictions").query(
        "role == 'test'"
    )
    speaker_of = folds.drop_duplicates("utterance_id").set_index("utterance_id")["speaker"]
    row = {
        "configuration": "on **test** speakers: average_weighted, as published",
        "against": "",
        "kept": "final",
    }
    for variant, column, tail in VARIANTS:
        found = metrics.evaluate(table[table["variant"] == variant], speaker_of)
        row |= {
            column: found["uar"],
            f"low{tail}": found["uar_low"],
            f"high{tail}": found["uar_high"],
        }
    return row


def lines(rows: pd.DataFrame) -> list[str]:
    """Return what was tried as a table for people."""
    found = [
        "| configuration | against | inductive | speaker-normalised | s | kept |",
        "|---|---|--:|--:|--:|---|",
    ]
    for row in rows.itertuples():
        cells = [
            "" if np.isnan(uar) else f"{100 * uar:.1f}{between(*difference)}"
            for uar, *difference in (
                (row.inductive, row.difference, row.low, row.high),
                (row.normalised, row.difference_n, row.low_n, row.high_n),
            )
        ]
        seconds = "" if np.isnan(row.seconds) else f"{row.seconds:.0f}"
        found.append(
            f"| {row.configuration} | {row.against} | {' | '.join(cells)} | {seconds} | {row.kept} |"
        )
    return found


def between(difference: float, low: float, high: float) -> str:
    """Write a difference with its interval; without a difference, the interval of the figure itself."""
    if np.isnan(low):
        return ""
    return (
        f" [{100 * low:.1f}–{100 * high:.1f}]"
        if np.isnan(difference)
        else f" ({metrics.in_points(difference, low, high)})"
    )


class Trials:
    """The configurations, and the predictions of those that others are compared with."""

    def __init__(self, utterances: pd.DataFrame, folds: pd.DataFrame, place: Path):
        self.utterances, self.folds, self.ids, self.place = (
            utterances,
            folds,
            utterances["utterance_id"],
            place,
        )
        self.speakers = utterances["speaker"].to_numpy(str)
        self.speaker_of = folds.drop_duplicates("utterance_id").set_index("utterance_id")["speaker"]
        self.done, self.rows = {}, []

    def run(self) -> list[dict]:
        plain, levelled = self.read(PLAIN), self.read(LEVELLED)
        voices = [self.read(PLAIN, speed) for speed in VOICES]
        levelled_voices = [self.read(LEVELLED, speed) for speed in VOICES]
        lda = ShrunkLDA(0.35)
        self.add(FIRST, "", plain, lda)
        for shrinkage in (0.1, 0.2, 0.5):
            self.add(f"shrinkage {shrinkage}", FIRST, plain, ShrunkLDA(shrinkage))
        self.add("levelled clips", FIRST, levelled, lda)
        self.add("levelled ones beside", FIRST, np.concatenate([plain, levelled], axis=1), lda)
        for name, values in more_functionals(self.utterances).items():
            self.add(
                f"{name} ({values.shape[1]}) beside",
                FIRST,
                np.concatenate([plain, values], axis=1),
                lda,
            )
        for k in (500, 1000):
            best = make_pipeline(VarianceThreshold(), SelectKBest(anova, k=k))
            self.add(f"the best {k} columns", FIRST, plain, lda, before=best)
        self.add("ranks in place of values", FIRST, plain, lda, before=Ranks())
        self.add("logistic regression", FIRST, plain, logistic())
        self.add("SVM, RBF kernel", FIRST, plain, svm(plain.shape[1]))
        for name, speeds in {
            KEPT: VOICES,
            "voices at 0.85 and 1.15": (0.85, 1.15),
            "voices at 0.8 and 1.2": (0.8, 1.2),
            "voices at 0.8, 0.9, 1.1 and 1.2": (0.8, 0.9, 1.1, 1.2),
        }.items():
            self.add(
                name,
                FIRST if name == KEPT else KEPT,
                plain,
                lda,
                [self.read(PLAIN, speed) for speed in speeds],
            )
        for shrinkage in (0.2, 0.5):
            self.add(f"kept, shrinkage {shrinkage}", KEPT, plain, ShrunkLDA(shrinkage), voices)
        self.add("kept, ranks in place of values", KEPT, plain, lda, voices, before=Ranks())
        self.add(
            "kept, levelled ones beside",
            KEPT,
            np.concatenate([plain, levelled], axis=1),
            lda,
            [np.concatenate(pair, axis=1) for pair in zip(voices, levelled_voices, strict=True)],
        )
        self.add("kept, levelled clips", KEPT, levelled, lda, levelled_voices)
        self.add("kept, logistic regression", KEPT, plain, logistic(), voices)
        self.add("kept, SVM", KEPT, plain, svm(plain.shape[1]), voices)
        self.add(
            "kept, MLP",
            KEPT,
            plain,
            MLPClassifier((256,), learning_rate_init=3e-4, batch_size=64, max_iter=20, alpha=10),
            voices,
        )
        for what in ("sex", "intensity"):
            finer = dict(zip(self.ids, pd.factorize(self.utterances[what])[0], strict=True))
            self.add(
                f"kept, emotion and {what} as classes", KEPT, plain, Finer(what, finer), voices
            )
        self.add("kept, answers at three speeds multiplied", KEPT, plain, lda, voices, played=True)
        for relevance in (10, 160):
            self.add(
                f"kept, means that move to the speaker, relevance {relevance}",
                KEPT,
                plain,
                Moved("moved", relevance),
                voices,
                variants=VARIANTS[1:],
            )
        self.clipping()
        self.add("DNN", FIRST, plain, DNN)
        self.add("DNN, with voices", "DNN", plain, DNN, voices)
        self.published("GRU, levelled clips", FIRST, "gru_levelled")
        self.network("GRU, levelled clips, with voices", "GRU, levelled clips", SEQUENCE, GRU)
        self.published("CNN, levelled clips", FIRST, "cnn_levelled")
        self.network(
            "CNN, levelled clips, with voices", "CNN, levelled clips", PICTURE, CNN, shift=8
        )
        self.product("kept × kept, levelled clips", KEPT, [KEPT, "kept, levelled clips"])
        three, members = (
            "kept × kept, levelled clips × DNN, with voices",
            [KEPT, "kept, levelled clips", "DNN, with voices"],
        )
        self.product(three, "kept × kept, levelled clips", members)
        self.product(f"{three} × GRU", three, [*members, "GRU, levelled clips"])
        self.product(
            f"{three} × GRU, with voices",
            f"{three} × GRU",
            [*members, "GRU, levelled clips, with voices"],
        )
        self.product("kept × kept, logistic regression", KEPT, [KEPT, "kept, logistic regression"])
        if (theirs := compare(self.utterances)) is not None:
            self.add(
                f"ComParE 2016 ({theirs.shape[1]}) in place of the functionals ({plain.shape[1]})",
                FIRST,
                theirs,
                lda,
            )
            self.add(
                "ComParE 2016 in place, shrinkage 0.5", "shrinkage 0.5", theirs, ShrunkLDA(0.5)
            )
            changed = [compare(self.utterances, speed) for speed in VOICES]
            self.add("kept, ComParE 2016 in place", KEPT, theirs, lda, changed)
            self.add(
                "kept, ComParE 2016 beside",
                KEPT,
                np.concatenate([plain, theirs], axis=1),
                lda,
                [np.concatenate(pair, axis=1) for pair in zip(voices, changed, strict=True)],
            )
        else:
            print(
                "openSMILE is not installed: ComParE 2016 was left out (pip install --group benchmark)",
                file=sys.stderr,
            )
        return self.rows

    def clipping(self) -> None:
        """Measure the linear models as notebook 11 searches and calibrates them, with any values and with clipped ones."""
        plain, voices = self.read(PLAIN), [self.read(PLAIN, speed) for speed in VOICES]
        for name, scaler, copies in (
            ("LDA", "estimator__clippedscaler", []),
            ("LDA", "estimator__clippedscaler", voices),
            ("logistic regression", "clippedscaler", voices),
        ):
            clipped = replace(classical_models(plain.shape[1])[name], refit=False)
            free = replace(
                clipped, estimator=clone(clipped.estimator).set_params(**{scaler: StandardScaler()})
            )
            searched = f"searched {name}{', with voices' if copies else ''}"
            self.add(searched, "", plain, free, copies)
            self.add(f"{searched}{CLIPPED}", searched, plain, clipped, copies)

    def read(self, inputs: Input, speed: float = 1.0) -> np.ndarray:
        return refit.read_clips(self.utterances, inputs, speed=speed)

    def add(
        self,
        name: str,
        against: str,
        values: np.ndarray,
        classifier: BaseEstimator | experiment.Model,
        copies: list[np.ndarray] = (),
        before: TransformerMixin | None = None,
        variants: list[tuple] = VARIANTS,
        played: bool = False,
    ) -> None:
        """Fit on train, predict valid, in both variants; note what it brought. With `played`, the copies are answered, too."""
        model = (
            classifier
            if not isinstance(classifier, BaseEstimator)
            else Classical(
                name,
                make_pipeline(*([before] if before else []), StandardScaler(), classifier),
                refit=False,
            )
        )
        start, found = time.perf_counter(), {}
        for variant, *_ in variants:

            def prepared(array, known=variant != "inductive"):
                return (
                    features.normalise_by_speaker(array, self.speakers)
                    if known
                    else array.astype(np.float32)
                )

            ours, own = prepared(values), [prepared(copy) for copy in copies]
            changed = np.stack(own, axis=1) if own else None

            def answered(inputs, variant=variant, changed=changed):
                table, _ = experiment.cross_validate(
                    model, inputs, self.ids, self.folds, variant, n_jobs=-1, copies=changed
                )
                return table[table["role"] == "valid"]

            found[variant] = answered(ours)
            if played:
                others = [
                    answered(
                        {
                            fold: np.where(self.is_valid(fold), copy, ours)
                            for fold in self.folds["fold"].unique()
                        }
                    )
                    for copy in own
                ]
                base, stack = ensemble.aligned(dict(enumerate([found[variant], *others])))
                # the clip as it is counts as much as all its copies together
                weights = np.array([1, *[1 / len(own)] * len(own)]) / 2
                found[variant] = ensemble.with_probabilities(base, ensemble.pool(stack, weights))
        self.note(name, against, found, time.perf_counter() - start)

    def is_valid(self, fold: int) -> np.ndarray:
        """Whether each utterance is of a fold's valid speakers, shape ``(n_utterances, 1)``."""
        rows = self.folds[(self.folds["fold"] == fold) & (self.folds["role"] == "valid")]
        return self.ids.isin(rows["utterance_id"]).to_numpy()[:, None]

    def published(self, name: str, against: str, stem: str) -> None:
        """Take what a notebook published; the seconds of networks are in the project's README."""
        table = tables.read_table(self.place / f"{stem}.parquet", "predictions").query(
            "role == 'valid'"
        )
        self.note(
            name,
            against,
            {variant: table[table["variant"] == variant] for variant, *_ in VARIANTS},
            np.nan,
        )

    def network(
        self, name: str, against: str, inputs: Input, network: training.Network, shift: int = 0
    ) -> None:
        """Train a network on clips whose speed is drawn anew in each epoch; speaker-normalised as the notebooks do it."""
        start, versions = (
            time.perf_counter(),
            np.stack([self.read(inputs, speed) for speed in (1.0, *SPEEDS)]),
        )
        drawn = Drawn(pd.Index(self.ids), versions)
        network = replace(network, augment=augment.Augmentation(drawn, shift=shift))
        table, record = experiment.cross_validate(
            network, versions[0], self.ids, self.folds, n_jobs=-1
        )
        known, _ = training.speaker_normalised(network, versions[0], self.ids, self.folds, record)
        found = {
            "inductive": table.query("role == 'valid'"),
            "speaker-normalised": known.query("role == 'valid'"),
        }
        self.note(name, against, found, time.perf_counter() - start)

    def product(self, name: str, against: str, members: list[str]) -> None:
        """Multiply the members' probabilities; all count the same, so that nothing is fitted on the rows that judge."""
        start, found = time.perf_counter(), {}
        for variant, own in ensemble.by_variant(
            {member: pd.concat(self.done[member].values()) for member in members}
        ).items():
            base, stack = ensemble.aligned(own)
            found[variant] = ensemble.with_probabilities(
                base, ensemble.pool(stack, np.ones(len(members)))
            )
        self.note(name, against, found, time.perf_counter() - start)

    def note(self, name: str, against: str, found: dict[str, pd.DataFrame], seconds: float) -> None:
        self.done[name] = found
        # what cross-validation found in its store took no time now: the seconds are those of the first run
        recipe = cache.recipe_hash(name, *(table.to_numpy(str) for table in found.values()))
        seconds = float(
            cache.fetch("tried", recipe, lambda: {"seconds": np.array(seconds)})["seconds"]
        )
        row = {"configuration": name, "against": against}
        for variant, column, tail in VARIANTS:
            if variant not in found:
                row |= dict.fromkeys(
                    [f"{key}{tail}" for key in ("difference", "low", "high")] + [column], np.nan
                )
                continue
            row[column] = metrics.uar(found[variant])
            other = self.done[against][variant] if against else None
            difference = (
                {}
                if other is None
                else metrics.paired_difference(found[variant], other, self.speaker_of)
            )
            row |= {
                f"{key}{tail}": difference.get(key, np.nan) for key in ("difference", "low", "high")
            }
        gained = (row["low"] > 0 and not row["difference_n"] < 0) or (
            row["low_n"] > 0 and not row["difference"] < 0
        )
        kept = (
            "yes"
            if name in ADOPTED
            else "for its likelihood"
            if name.endswith(CLIPPED)
            else ""
            if not against
            else "would be"
            if gained
            else "no"
        )
        self.rows.append(row | {"seconds": seconds, "kept": kept})
        print(lines(pd.DataFrame(self.rows[-1:]))[-1], flush=True)


def logistic() -> LogisticRegression:
    return LogisticRegression(C=0.01, class_weight="balanced", max_iter=100, tol=1e-3)


def svm(n_columns: int) -> CalibratedClassifierCV:
    kernel = SVC(C=10, gamma=0.2 / n_columns, class_weight="balanced")
    return CalibratedClassifierCV(kernel, method="temperature", ensemble=False)


def more_functionals(utterances: pd.DataFrame) -> dict[str, np.ndarray]:
    """Compute, from the same descriptors, functionals that the project does not have."""

    def compute() -> dict[str, np.ndarray]:
        jobs = ((u.path, u.start_s, u.end_s) for u in utterances.itertuples())
        found = list(
            over_clips(of_one_clip, jobs, progress="more functionals", total=len(utterances))
        )
        return {name: np.stack([one[name] for one in found]) for name in found[0]}

    recipe = cache.recipe_hash(
        utterances["audio_hash"].tolist(), cache.code_with_parts(of_one_clip)
    )
    return cache.fetch("tried", recipe, compute)


def of_one_clip(path: str, start_s: float, end_s: float) -> dict[str, np.ndarray]:
    front_end = features.FrontEnd()
    curves, names = features.Analysis(audio.load(path, start_s, end_s)).describe(front_end)
    curves, names = curves[:, front_end.n_mels :].astype(np.float64), names[front_end.n_mels :]
    present = np.isfinite(curves)
    mean = np.where(present, curves, 0).sum(axis=0) / present.sum(axis=0).clip(min=1)
    filled = np.where(present, curves, mean)
    spread = filled.std(axis=0) + 1e-6
    thirds = np.array_split(filled, 3)
    voiced = present[:, names.index("f0_st")]
    spoken = filled[voiced] if voiced.sum() > 4 else filled
    slow = [
        i
        for i, name in enumerate(names)
        if name.startswith("band") or name in ("rms_db", "f0_st", "flux_db")
    ]
    spectrum = np.abs(
        np.fft.rfft((filled - mean)[:, slow] * np.hanning(len(filled))[:, None], 512, axis=0)
    ) ** 2 / len(filled)
    hertz = np.fft.rfftfreq(512, front_end.hop_length / front_end.sampling_rate)
    octaves = [
        spectrum[(hertz >= low) & (hertz < 2 * low)].mean(axis=0)
        for low in (0.7, 1.4, 2.8, 5.6, 11.2)
    ]
    cepstrum = filled[
        :, [i for i, name in enumerate(names) if name.startswith("mfcc") or name == "f0_st"]
    ]
    both = np.concatenate(
        [cepstrum, 3 * np.gradient(cepstrum, axis=0) if len(cepstrum) > 1 else 0 * cepstrum], axis=1
    )
    covariance = np.cov(both.T)
    power, axes = np.linalg.eigh(
        covariance + 0.01 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    )
    logarithm = (axes * np.log(np.maximum(power, 1e-6))) @ axes.T
    return {
        name: np.nan_to_num(values).astype(np.float32)
        for name, values in {
            "mean and deviation of each third": np.concatenate(
                [
                    *(part.mean(axis=0) - mean for part in thirds),
                    *(part.std(axis=0) for part in thirds),
                ]
            ),
            "skewness and kurtosis": np.concatenate(
                [(((filled - mean) / spread) ** k).mean(axis=0) for k in (3, 4)]
            ),
            "percentiles of voiced frames": np.percentile(spoken, [10, 50, 90], axis=0).ravel(),
            "modulation spectrum": 10 * np.log10(np.concatenate(octaves) + 1e-6),
            "logarithm of the covariance of MFCC": logarithm[np.triu_indices(len(logarithm))],
        }.items()
    }


def compare(utterances: pd.DataFrame, speed: float = 1.0) -> np.ndarray | None:
    """Return openSMILE's ComParE 2016 functionals of the trimmed clips; None where it is not installed."""
    if timing.smile() is None:
        return None
    jobs = ((u.path, u.start_s, u.end_s, speed) for u in utterances.itertuples())
    recipe = cache.recipe_hash(
        utterances["audio_hash"].tolist(), speed, version("opensmile"), cache.code(smiled)
    )
    return cache.fetch(
        "tried",
        recipe,
        lambda: {
            "values": np.stack(
                list(over_clips(smiled, jobs, progress="ComParE 2016", total=len(utterances)))
            )
        },
    )["values"]


def smiled(path: str, start_s: float, end_s: float, speed: float) -> np.ndarray:
    signal = augment.played(audio.trim(audio.load(path, start_s, end_s)), speed)
    return np.nan_to_num(timing.smile()(signal, audio.SAMPLING_RATE).ravel()).astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
