"""The final model: trained on all speakers with what cross-validation froze, to be saved as an artefact.

Apart from ``artifacts``, so that whoever only predicts does not wait for the training loop to be imported.
"""

from dataclasses import fields, replace

import numpy as np
from sklearn.base import clone

from helpers.artifacts import NetworkPart, PartOfArtifact, part_of
from helpers.estimators import Classical
from helpers.estimators import _fit as fit_seeded
from helpers.experiment import Part
from helpers.training import Network, Trainer


def refit(model: Classical | Network, record: dict, everything: Part, n_classes: int, seed: int = 0) -> PartOfArtifact:
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
        estimator = clone(model.estimator).set_params(**{names[name]: value for name, value in setting.items()})
        return part_of(fit_seeded(estimator, everything, seed))
    own = {name: value for name, value in setting.items() if name in {f.name for f in fields(model)}}
    options = model.options | {name: value for name, value in setting.items() if name not in own}
    network = replace(model, **own, options=options, trials=0, search={})
    trainer = Trainer(network, everything, everything, n_classes, seed)
    for _ in range(round(float(np.median([note["best_epoch"] for note in notes])))):
        if hasattr(trainer.bare_net(), "begin_epoch"):
            trainer.bare_net().begin_epoch(trainer.epoch / network.epochs)
        trainer.train_epoch()
        trainer.epoch += 1
    weights = {name: value.cpu().numpy() for name, value in trainer.bare_net().state_dict().items()}
    return NetworkPart(network.build.__name__, network.options, everything.inputs.shape[1:], weights)


def _frozen(settings: list[dict]) -> dict:
    """Return the setting that most folds chose; of numbers that were drawn, the median."""
    frozen = {}
    for name in settings[0]:
        values = [setting[name] for setting in settings]
        most = max(values, key=values.count)
        drawn = all(isinstance(value, float) for value in values) and values.count(most) == 1
        frozen[name] = float(np.median(values)) if drawn else most
    return frozen
