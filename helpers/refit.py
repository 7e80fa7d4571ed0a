"""The final model: trained on all speakers with what cross-validation froze, and saved as an artefact.

Apart from ``artifacts``, so that whoever only predicts does not wait for the training loop to be imported.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields, replace

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from helpers import artifacts, audio, augment, corpora, metrics, paths, protocol, tables
from helpers.artifacts import ClassicalPart, LinearPart, NetworkPart, PartOfArtifact, TreesPart
from helpers.audit import read_records
from helpers.cache import code, code_with_parts, fetch, recipe_hash
from helpers.corpora import emotion_order
from helpers.estimators import Classical, ClippedScaler, fit_seeded, linear_head
from helpers.experiment import Part
from helpers.features import normalise_by_speaker
from helpers.inputs import Input
from helpers.parallel import over_clips
from helpers.training import Network, Trainer
from helpers.trees import from_estimator


def hand_on(
    stem: str,
    model: Classical | Network,
    arrays: dict[str, np.ndarray],
    utterance_ids: pd.Series,
    folds: pd.DataFrame,
    inputs: Input,
    corpus: str,
    policy: str,
    seed: int = 0,
    records: str = "",
    copies: dict[str, np.ndarray] | None = None,
) -> artifacts.Artifact:
    """Refit a model on all speakers and save it as ``SER_WORK/<corpus>/<policy>/models/<stem>``, with its protocol cards.

    Call it when predictions and run records of the model are written. An artefact that was made of the same recipe, data and
    results is left as it is.

    Parameters
    ----------
    stem
        Name of its predictions and records.
    model
        As it was given to ``experiment.cross_validate``.
    arrays
        Variant → inputs, as they were given there. Without inputs for a speaker-normalised variant that was cross-validated,
        that variant is a new head on the embeddings, as in ``training.speaker_normalised``.
    utterance_ids, folds, seed
        As they were given there.
    inputs
        How a signal becomes a row of the inductive inputs.
    corpus, policy
        Names.
    records
        Name of the run records, if it is not `stem`.
    copies
        Variant → changed copies, as they were given there.

    Returns
    -------
    artifacts.Artifact
        The model, loaded again from what was saved.
    """
    folder = paths.work(corpus, policy)
    recorded = {
        record["variant"]: record
        for record in read_records(folder / f"records/{records or stem}.json")
    }
    predictions = tables.read_table(folder / f"predictions/{stem}.parquet", "predictions")
    emotions = emotion_order(folds["emotion"])
    once = folds.drop_duplicates("utterance_id").set_index("utterance_id").reindex(utterance_ids)
    classes, speakers = (
        once["emotion"].map(emotions.index).to_numpy(copy=True),
        once["speaker"].to_numpy(str),
    )
    copies = copies or {}
    recipe = recipe_hash(
        model.recipe(),
        arrays,
        copies,
        classes,
        speakers,
        [record["folds"] for record in recorded.values()],
        predictions,
        asdict(inputs),
        seed,
        code(refit),
        code(hand_on),
    )
    target = folder / "models" / stem
    if (made := artifacts.made_of(target, recipe)) is not None:
        return made

    def everything(values: np.ndarray, changed: np.ndarray | None = None) -> Part:
        return Part(values, classes, speakers, utterance_ids.to_numpy(str), changed)

    known = {variant: everything(values, copies.get(variant)) for variant, values in arrays.items()}
    parts = {
        variant: refit(model, recorded[variant], part, len(emotions), seed)
        for variant, part in known.items()
    }
    embedded = (
        isinstance(model, Network) and "speaker-normalised" in recorded.keys() - arrays.keys()
    )
    values = arrays["inductive"]
    if embedded:
        running = parts["inductive"].predictor(len(emotions))
        values = np.concatenate(
            [running.embed(batch) for batch in np.array_split(values, -(-len(values) // 64))]
        )
        normalised = everything(normalise_by_speaker(values, speakers))
        parts["speaker-normalised"] = refit(
            linear_head(stem), recorded["speaker-normalised"], normalised, len(emotions), seed
        )
    usual, farthest = artifacts.usual_speaker(values, speakers) if values.ndim == 2 else ({}, 1.0)
    results = metrics.results_table({stem: predictions}, folds, f"{corpus}, {policy}, seed {seed}")
    results = results[results["model"] == stem]
    about = {
        "model": stem,
        "corpus": corpus,
        "policy": policy,
        "emotions": emotions,
        "licence": corpora.get(corpus).licence,
        "protocol": protocol.cards(results, folds, folder, corpus, policy),
        "recipe": recipe,
        "traits": usual_traits(
            tables.read_table(paths.work(corpus) / "utterances.parquet", "utterances"),
            utterance_ids,
        ),
    }
    artifacts.save(
        target, parts, inputs, about, usual, "embeddings" if embedded else "inputs", farthest
    )
    return artifacts.made_of(target, recipe)


def read_clips(
    utterances: pd.DataFrame, inputs: Input, n_jobs: int = -1, speed: float = 1.0
) -> np.ndarray:
    """Return what a model reads of each utterance, from the audio itself; what was read before is not read again.

    Use it for inputs that no notebook has made a table of, e.g. ``levelled`` ones.

    Parameters
    ----------
    utterances
        With ``path``, ``start_s``, ``end_s`` and ``audio_hash``.
    inputs
        How a signal becomes an input.
    n_jobs
        Processes; -1 for all cores.
    speed
        At which the clips are played (see ``augment.played``).

    Returns
    -------
    np.ndarray [shape=(n_utterances, ...)]
    """

    def compute() -> dict[str, np.ndarray]:
        jobs = ((u.path, u.start_s, u.end_s, inputs, speed) for u in utterances.itertuples())
        return {"inputs": np.stack(list(over_clips(_described, jobs, n_jobs, inputs.kind)))}

    recipe = recipe_hash(
        utterances["audio_hash"].tolist(),
        asdict(inputs),
        code_with_parts(audio.levelled),
        code_with_parts(Input.represent),
        speed,
        code(augment.played),
    )
    return fetch("inputs", recipe, compute)["inputs"]


def read_voices(
    utterances: pd.DataFrame,
    inputs: Input,
    speeds: list[float],
    variants: Iterable[str],
    n_jobs: int = -1,
) -> dict[str, np.ndarray]:
    """Return what a model reads of each utterance when it is played at other speeds: more voices to learn from.

    Give it to ``experiment.cross_validate`` and :func:`hand_on` as copies.

    Parameters
    ----------
    utterances
        With ``path``, ``start_s``, ``end_s``, ``audio_hash`` and ``speaker``.
    inputs
        How a signal becomes a row of numbers.
    speeds
        See ``augment.played``; without any, there are no copies.
    variants
        In "speaker-normalised", each speaker at each speed is a speaker of their own.
    n_jobs
        Processes; -1 for all cores.

    Returns
    -------
    dict
        Variant → copies, shape ``(n_utterances, n_speeds, n_columns)``; empty without speeds.
    """
    speakers = utterances["speaker"].to_numpy(str)
    played = [read_clips(utterances, inputs, n_jobs, speed) for speed in speeds]
    own = {
        "inductive": lambda values: values,
        "speaker-normalised": lambda values: normalise_by_speaker(values, speakers),
    }
    return (
        {
            variant: np.stack([own[variant](values) for values in played], axis=1)
            for variant in variants
        }
        if played
        else {}
    )


def hand_on_average(
    stem: str,
    weights: dict[str, dict[str, float]],
    temperature: dict[str, float],
    cards: list[dict],
    corpus: str,
    policy: str,
) -> artifacts.Average:
    """Save an average of models that were handed on, as ``SER_WORK/<corpus>/<policy>/models/<stem>``.

    Parameters
    ----------
    stem
        Name of the artefact.
    weights, temperature
        As for ``artifacts.save_average``; members are names of other models there.
    cards
        Protocol cards of its cross-validated results.
    corpus, policy
        Names.

    Returns
    -------
    artifacts.Average
        The average, loaded again from what was saved.
    """
    folder = paths.work(corpus, policy) / "models"
    members = {
        name: folder / name
        for name in dict.fromkeys(name for own in weights.values() for name in own)
    }
    recipe = recipe_hash(
        weights,
        temperature,
        cards,
        [(place / "card.json").read_bytes() for place in members.values()],
        code(hand_on_average),
    )
    if (made := artifacts.made_of(folder / stem, recipe)) is None:
        first = artifacts.load(next(iter(members.values()))).card
        about = {
            name: first[name] for name in ("corpus", "policy", "emotions", "licence", "traits")
        }
        artifacts.save_average(
            folder / stem,
            members,
            weights,
            temperature,
            about | {"model": stem, "protocol": cards, "recipe": recipe},
        )
        made = artifacts.made_of(folder / stem, recipe)
    return made


def refit(
    model: Classical | Network, record: dict, everything: Part, n_classes: int, seed: int = 0
) -> PartOfArtifact:
    """Train the one model that is handed on: on all speakers, with the settings that cross-validation froze.

    Nothing is chosen here: a setting is the one that most folds chose (of drawn numbers, the median), and a network stops after
    the median of the folds' best epochs, on the same schedule. So there is no test of this very model; its cross-validated
    results are those of models like it that had seen fewer speakers.

    Parameters
    ----------
    model
        As it was given to ``experiment.cross_validate``.
    record
        The run record that came back.
    everything
        All rows of the corpus.
    n_classes, seed
        As in cross-validation.
    """
    notes = [fold["notes"] for fold in record["folds"].values()]
    setting = _frozen([note.get("setting", {}) for note in notes])
    if isinstance(model, Classical):
        names = {name.split("__")[-1]: name for name in model.grid}
        estimator = clone(model.estimator).set_params(
            **{names[name]: value for name, value in setting.items()}
        )
        return part_of(fit_seeded(estimator, everything, seed), n_classes)
    own = {
        name: value for name, value in setting.items() if name in {f.name for f in fields(model)}
    }
    options = model.options | {name: value for name, value in setting.items() if name not in own}
    network = replace(model, **own, options=options, trials=0, search={})
    trainer = Trainer(network, everything.with_copies(), everything, n_classes, seed)
    trainer.resume()
    last = round(float(np.median([note["best_epoch"] for note in notes])))
    with tqdm(
        total=last,
        initial=trainer.epoch,
        desc=f"{model.name}, all speakers",
        unit="epoch",
        mininterval=5,
    ) as bar:
        while trainer.epoch < last:
            if hasattr(trainer.bare_net(), "begin_epoch"):
                trainer.bare_net().begin_epoch(trainer.epoch / network.epochs)
            trainer.train_epoch()
            trainer.epoch += 1
            trainer.save()
            bar.update()
    weights = {name: value.cpu().numpy() for name, value in trainer.bare_net().state_dict().items()}
    options = {
        name: value for name, value in network.options.items() if name != "pretrained"
    }  # the weights are here now
    return NetworkPart(network.build.__name__, options, everything.inputs.shape[1:], weights)


def part_of(estimator: BaseEstimator, n_classes: int) -> PartOfArtifact:
    """Return how a fitted model of ``helpers.estimators`` is saved: linear ones and trees as arrays, everything else as skops.

    Parameters
    ----------
    estimator
        Its classes are numbers of emotions.
    n_classes
        Number of emotions.
    """
    if (linear := _linear(estimator, n_classes)) is not None:
        return linear
    last = _steps(estimator)[-1]
    if hasattr(last, "_optimizer"):
        last = copy.copy(
            last
        )  # of the MLP: of no use once it is fitted, and of a type that nobody vetted
        del last._optimizer
        estimator = Pipeline([*estimator.steps[:-1], (estimator.steps[-1][0], last)])
    try:
        return TreesPart(from_estimator(estimator))
    except ValueError:
        return ClassicalPart(estimator)


def _steps(estimator: BaseEstimator) -> list[BaseEstimator]:
    return [step for _, step in estimator.steps] if isinstance(estimator, Pipeline) else [estimator]


def _linear(estimator: BaseEstimator, n_classes: int) -> LinearPart | None:
    """Return scaling, a linear classifier and a temperature as one linear classifier; None if it is anything else."""
    sharpness = 1.0
    if isinstance(estimator, CalibratedClassifierCV):
        calibrated, *others = estimator.calibrated_classifiers_
        if others or calibrated.method != "temperature":
            return None
        sharpness, estimator = float(calibrated.calibrators[0].beta_), calibrated.estimator
    *before, last = _steps(estimator)
    if not (
        isinstance(last, (LogisticRegression, LinearDiscriminantAnalysis))
        and len(last.classes_) > 2
        and len(before) <= 1
        and all(
            type(step) in (StandardScaler, ClippedScaler) and step.with_mean and step.with_std
            for step in before
        )
    ):
        return None
    n = last.n_features_in_
    weights, bias = np.zeros((n_classes, n)), np.full(n_classes, -np.inf)
    weights[last.classes_], bias[last.classes_] = (
        sharpness * last.coef_,
        sharpness * last.intercept_,
    )
    if not before:
        return LinearPart(np.zeros(n), np.ones(n), weights, bias)
    return LinearPart(
        before[0].mean_,
        before[0].scale_,
        weights,
        bias,
        np.array(getattr(before[0], "limit", np.inf)),
    )


def usual_traits(utterances: pd.DataFrame, utterance_ids: pd.Series) -> dict[str, list[float]]:
    """Return within which bounds the training clips lie, for ``predict.doubts``: trait → percentiles 1 and 99.

    Parameters
    ----------
    utterances
        Schema ``utterances``.
    utterance_ids
        Of the training clips.
    """
    rows = utterances.set_index("utterance_id").loc[utterance_ids]

    def compute() -> dict[str, np.ndarray]:
        jobs = ((u.path, u.start_s, u.end_s, audio.traits) for u in rows.itertuples())
        table = pd.DataFrame(over_clips(_described, jobs, progress="recordings"))
        return {name: np.percentile(values, [1, 99]) for name, values in table.items()}

    stored = fetch(
        "traits", recipe_hash(rows["audio_hash"].tolist(), code_with_parts(audio.traits)), compute
    )
    return {name: bounds.tolist() for name, bounds in stored.items()}


def _described(
    path: str, start_s: float, end_s: float, describe: Callable, speed: float = 1
) -> np.ndarray | dict[str, float]:
    return describe(augment.played(audio.load(path, start_s, end_s), speed))


def _frozen(settings: list[dict]) -> dict:
    """Return the setting that most folds chose; of numbers that were drawn, the median."""
    frozen = {}
    for name in settings[0]:
        values = [setting[name] for setting in settings]
        most = max(values, key=values.count)
        drawn = all(isinstance(value, float) for value in values) and values.count(most) == 1
        frozen[name] = float(np.median(values)) if drawn else most
    return frozen
