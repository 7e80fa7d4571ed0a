"""The one training loop of all networks, on Hugging Face Accelerate: a CPU, a GPU, or several of them alike.

Conventions
-----------
Inputs lie as one tensor on the device (uint8 for images) and are augmented there in batches; nothing is done clip by clip
within an epoch. After each epoch everything that decides how training goes on is stored, so that a killed run continues
where it stopped and, on a CPU, ends with the same bits as one that was never interrupted.
"""

import copy
import hashlib
import io
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from tqdm import tqdm

from helpers import mirror, paths
from helpers.augment import Augmentation
from helpers.cache import code, code_with_parts, recipe_hash, write_atomically
from helpers.estimators import linear_head
from helpers.experiment import Part, cross_validate, fold_outcome, stored_fit
from helpers.features import normalise_by_speaker

OPTIMISERS = {
    "SGD": torch.optim.SGD,
    "RMSprop": torch.optim.RMSprop,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
}
SCHEDULES = ("one-cycle", "cosine", "step", "constant")


def find_device(name: str = "auto") -> torch.device:
    """Return the device to compute on; "auto" takes a GPU where there is one."""
    return torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    )


def has_bfloat16(kind: str) -> bool:
    """Whether a kind of device ("cpu" or "cuda") of this machine computes in bfloat16: a network trains about twice as fast."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported()
    abilities = getattr(torch.cpu, "get_capabilities", dict)()
    return abilities.get("avx512_bf16", False) or abilities.get("amx_bf16", False)


@dataclass(frozen=True)
class Network:
    """A network that ``experiment.cross_validate`` can run.

    Attributes
    ----------
    name
        As it appears in tables.
    build
        ``build(n_classes, shape, **options)`` → an untrained module that takes a batch of inputs of this shape and returns
        logits. If it has a method ``fit_inputs``, that is given the training inputs first (to learn how to scale them); if it
        has a method ``begin_epoch``, that is told before each epoch which share of the training is over (to unfreeze layers);
        if it has a method ``parameter_groups``, that says which parts learn at which rate. ``largest_batch``, if it has one, is
        how many clips it predicts at a time.
    options
        Passed on to `build`.
    epochs
        At most so many.
    patience
        Epochs without a better negative log-likelihood on the valid speakers (emotions weighted as in training) after which
        training stops. The best epoch's weights are kept.
    batch_size, accumulate
        Clips, at least 2 for each process; over several processes it is divided among them. A batch that does not fit into
        memory is passed through in so many parts, whose gradients add up to those of the whole.
    optimiser, momentum, weight_decay
        A name in ``OPTIMISERS``; momentum is for SGD and RMSprop.
    learning_rate, schedule
        Highest learning rate, and how it changes from batch to batch: "one-cycle" (rises and falls once; Smith & Topin
        2018), "cosine" (falls), "step" (halved four times, at equal distances), "constant".
    label_smoothing, class_weights
        Of the cross-entropy; rare emotions count more if weights are on.
    clip
        Largest norm of the gradient.
    augment
        What is done to training inputs, drawn anew each epoch.
    search, trials
        Settings to choose per fold, on its valid speakers, in so many trials: name of an attribute or option → list of
        choices, or (lowest, highest) on a logarithmic scale. The first trial is the network as it is, as far as that lies
        within; half are drawn at random, the others where earlier ones did well (Optuna's TPE; Bergstra et al. 2011).
    device, precision
        "auto" takes a GPU where there is one, and bfloat16 where the GPU or the CPU computes in it; else "float32", "bf16".
    """

    name: str
    build: Callable[..., nn.Module]
    options: dict = field(default_factory=dict)
    epochs: int = 40
    patience: int = 10
    batch_size: int = 32
    accumulate: int = 1
    optimiser: str = "AdamW"
    momentum: float = 0.9
    weight_decay: float = 1e-2
    learning_rate: float = 3e-3
    schedule: str = "one-cycle"
    label_smoothing: float = 0.1
    class_weights: bool = True
    clip: float = 5.0
    augment: Augmentation = Augmentation()  # noqa: RUF009 (frozen)
    search: dict = field(default_factory=dict)
    trials: int = 0
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        for value, known, what in [
            (self.optimiser, OPTIMISERS, "optimiser"),
            (self.schedule, SCHEDULES, "schedule"),
            (self.precision, ("auto", "float32", "bf16"), "precision"),
        ]:
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}: choose one of {', '.join(known)}")

    def recipe(self) -> dict:
        """Return everything a result depends on, for the cache; the name, the device and what is left to it are no part."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)} | {
            "augment": self.augment.recipe(),
            "build": self.build.__qualname__,
        }
        left = {"precision": "auto", "accumulate": 1}
        for name in (
            "name",
            "device",
            *(name for name, value in left.items() if settings[name] == value),
        ):
            del settings[name]
        loop = [
            Trainer.__init__,
            Trainer.run,
            Trainer.train_epoch,
            Trainer.copies,
            Trainer.loss,
            Trainer.predict,
            _optimiser,
            _schedule,
            *([Network._search] if self.trials else []),
        ]
        return settings | {"code": [*code_with_parts(self.build), *map(code, loop)]}

    @property
    def needs_ids(self) -> bool:
        """Whether a result depends on which clips the rows are, besides on the rows."""
        return self.augment.copies is not None

    def fit_predict(
        self, train: Part, valid: Part, test: np.ndarray, n_classes: int, seed: int
    ) -> dict:
        """Train with early stopping on the valid speakers, then predict valid and test rows."""
        if self.trials:
            return self._search(train, valid, test, n_classes, seed)
        augmented = self.augment.copies is not None or train.copies is not None
        with _speaking_of_memory(self):
            training = Trainer(self, train.with_copies(), valid, n_classes, seed)
            training.run()
            return {
                "valid": training.predict(valid.inputs),
                "test": training.predict(test),
                "steps": {"fit": ["train"], "stop": ["valid"]}
                | ({"augment": ["train"]} if augmented else {}),
                "notes": training.notes(),
                "scratch": training.folder,
                "weights": {
                    name: value.cpu().numpy()
                    for name, value in training.bare_net().state_dict().items()
                },
            }

    def restore(
        self, weights: dict[str, np.ndarray], n_classes: int, shape: tuple[int, ...]
    ) -> nn.Module:
        """Return the network with the weights of ``experiment.fold_outcome``, on the CPU, ready to predict."""
        net = self.build(n_classes, shape, **self.options)
        net.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
        return net.eval()

    def _search(
        self, train: Part, valid: Part, test: np.ndarray, n_classes: int, seed: int
    ) -> dict:
        """Let a tuner choose; each trial is stored, so that an interrupted search goes on with the next one."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        outcomes, settings = [], []

        def objective(trial: "optuna.Trial") -> float:
            chosen = {
                name: trial.suggest_categorical(name, values)
                if isinstance(values, list)
                else trial.suggest_float(name, *values, log=True)
                for name, values in self.search.items()
            }
            own = {
                name: value
                for name, value in chosen.items()
                if name in {f.name for f in fields(self)}
            }
            rest = {name: value for name, value in chosen.items() if name not in own}
            candidate = replace(self, **own, options=self.options | rest, trials=0, search={})
            outcomes.append(
                stored_fit(
                    candidate, recipe_hash(candidate.recipe()), train, valid, test, n_classes, seed
                )
            )
            settings.append(chosen)
            return min(row["valid_nll"] for row in outcomes[-1]["notes"]["curves"])

        study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.trials // 2)
        )
        own = {f.name: getattr(self, f.name) for f in fields(self)} | self.options
        study.enqueue_trial(
            {
                name: own[name]
                for name, values in self.search.items()
                if name in own
                and (
                    own[name] in values
                    if isinstance(values, list)
                    else values[0] <= own[name] <= values[1]
                )
            }
        )
        study.optimize(objective, n_trials=self.trials)
        best = outcomes[study.best_trial.number]
        tried = [
            {**setting, "valid_nll": trial.value}
            for setting, trial in zip(settings, study.trials, strict=True)
        ]
        return best | {
            "steps": best["steps"] | {"select": ["valid"]},
            "notes": best["notes"] | {"setting": settings[study.best_trial.number], "tried": tried},
        }


def embeddings(
    model: Network,
    inputs: np.ndarray,
    utterance_ids: pd.Series,
    folds: pd.DataFrame,
    seed: int = 0,
) -> dict[int, np.ndarray]:
    """Return what each fold's trained network makes of every clip before its head: features that it found by itself.

    Use them as inputs of another model, e.g. standardised per speaker.

    Parameters
    ----------
    model, inputs, utterance_ids, folds, seed
        As given to ``experiment.cross_validate``. The network must have a method ``embed``.

    Returns
    -------
    dict of int to np.ndarray [shape=(n_utterances, n_units)]
        Fold → embeddings, in the order of `inputs`. A fold's network has not seen that fold's test speakers, but those of other
        folds, so never mix them.
    """
    result, n_classes, device = {}, folds["emotion"].nunique(), find_device(model.device)
    for fold in tqdm(sorted(folds["fold"].unique()), desc=f"{model.name}, embeddings", unit="fold"):
        weights = fold_outcome(model, inputs, utterance_ids, folds, fold, seed)["weights"]
        net = model.restore(weights, n_classes, inputs.shape[1:]).to(device)
        with torch.inference_mode():
            parts = [
                net.embed(torch.tensor(batch, device=device)).cpu().numpy()
                for batch in np.array_split(
                    inputs, -(-len(inputs) // getattr(net, "largest_batch", 256))
                )
            ]
        result[int(fold)] = np.concatenate(parts)
    return result


def speaker_normalised(
    model: Network,
    inputs: np.ndarray,
    utterance_ids: pd.Series,
    folds: pd.DataFrame,
    record: dict,
    seed: int = 0,
) -> tuple[pd.DataFrame, dict]:
    """Return the speaker-normalised variant of a network that was trained inductively, without training it again.

    Its :func:`embeddings` are standardised over all clips of a speaker, which takes away what is the speaker's own, and a new
    head, a logistic regression, is fitted on that.

    Parameters
    ----------
    model, inputs, utterance_ids, folds, seed
        As given to ``experiment.cross_validate``. The network must have a method ``embed``.
    record
        The run record that came back; what the network saw is audited with what the head saw.

    Returns
    -------
    predictions, record
        As ``experiment.cross_validate`` returns them.
    """
    speakers = (
        folds.drop_duplicates("utterance_id")
        .set_index("utterance_id")["speaker"]
        .reindex(utterance_ids)
    )
    parts = {
        fold: normalise_by_speaker(values, speakers.to_numpy(str))
        for fold, values in embeddings(model, inputs, utterance_ids, folds, seed).items()
    }
    return cross_validate(
        linear_head(model.name),
        parts,
        utterance_ids,
        folds,
        "speaker-normalised",
        seed,
        record["pretrained"],
        made_by=record,
    )


def curves_table(records: list[dict]) -> pd.DataFrame:
    """Return the learning curves of all folds of several runs as one table.

    Parameters
    ----------
    records
        Run records from ``experiment.cross_validate``.

    Returns
    -------
    pd.DataFrame
        ``model``, ``variant``, ``fold``, ``epoch``, ``train_loss`` (nats, with smoothing and class weights), ``valid_nll``
        (nats), ``valid_uar``, ``learning_rate`` (at its start), ``kept`` (the epoch whose weights predict).
    """
    rows = [
        {
            "model": record["model"],
            "variant": record["variant"],
            "fold": int(fold),
            **row,
            "kept": row["epoch"] == steps["notes"]["best_epoch"],
        }
        for record in records
        for fold, steps in record["folds"].items()
        for row in steps["notes"]["curves"]
    ]
    return pd.DataFrame(rows)


def memory_used() -> str:
    """Say how much memory this process, its workers and the GPU have taken at most so far."""
    import resource

    peak = (
        max(
            resource.getrusage(who).ru_maxrss
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        / 1024
    )
    now = sum(p.memory_info().rss for p in psutil.Process().children(recursive=True)) / 2**20
    gpu = (
        f", {torch.cuda.max_memory_allocated() / 2**20:.0f} MB on the GPU"
        if torch.cuda.is_available()
        else ""
    )
    return f"peak of this process {peak:.0f} MB, workers now {now:.0f} MB{gpu}"


class Trainer:
    """One network being trained on one fold: its state, and what to do with it; :class:`Network` is what notebooks use."""

    def __init__(self, settings: Network, train: Part, valid: Part, n_classes: int, seed: int):
        self.settings, self.train, self.valid, self.seed = settings, train, valid, seed
        self.accelerator = _accelerator(settings.device)
        self.device = self.accelerator.device
        self.bf16 = (
            has_bfloat16(self.device.type)
            if settings.precision == "auto"
            else settings.precision == "bf16"
        )
        self.rank, self.n_processes = self.accelerator.process_index, self.accelerator.num_processes
        self.n_parts = self.n_processes * settings.accumulate
        if min(settings.batch_size, len(train.inputs)) < 2 * self.n_parts:
            raise ValueError(
                f"{settings.name}: {len(train.inputs)} training clips in batches of {settings.batch_size}, over "
                f"{self.n_processes} process(es), in {settings.accumulate} part(s): each needs at least 2 at a "
                "time, since batch normalisation compares clips. Raise BATCH_SIZE, or give more training clips."
            )
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        net = settings.build(n_classes, train.inputs.shape[1:], **settings.options)
        if hasattr(net, "fit_inputs"):
            net.fit_inputs(torch.tensor(train.inputs))
        net = net.to(
            memory_format=torch.channels_last
        )  # convolutions on a CPU are a third faster so
        self.inputs = torch.tensor(train.inputs, device=self.device)
        self.targets = torch.tensor(train.classes, device=self.device)
        frequency = torch.bincount(self.targets, minlength=n_classes).clamp(min=1)
        self.weights = len(self.targets) / (n_classes * frequency.float())
        if not settings.class_weights:
            self.weights = torch.ones_like(self.weights)
        optimiser = _optimiser(settings, net)
        self.net, self.optimiser = self.accelerator.prepare(net, optimiser)
        n_steps = -(-len(self.inputs) // settings.batch_size) * settings.epochs
        self.schedule = _schedule(settings, optimiser, n_steps)
        self.epoch, self.curves, self.waited, self.best = 0, [], 0, None
        self.identity = self.identify()
        self.folder = paths.work("checkpoints") / recipe_hash(self.identity)

    def identify(self) -> dict:
        """What must be the same for a checkpoint to be continued."""
        recipe = self.settings.recipe()
        data = [
            getattr(part, name)
            for part in (self.train, self.valid)
            for name in ("inputs", "classes")
        ]
        data += [self.train.ids.tolist()] if self.settings.needs_ids else []
        return {
            **{k: repr(v) for k, v in recipe.items() if k != "code"},
            "code": recipe_hash(recipe["code"]),
            "data": recipe_hash(data),
            "seed": self.seed,
            "device": self.device.type,
            "bf16": self.bf16,
            "processes": self.n_processes,
        }

    def run(self) -> None:
        """Train until the last epoch or until patience is out, from the last checkpoint if there is one."""
        self.resume()
        bar = tqdm(
            range(self.settings.epochs),
            initial=self.epoch,
            desc=f"{self.settings.name}, seed {self.seed}",
            unit="epoch",
            mininterval=5,
            leave=False,
            disable=None if self.rank == 0 else True,
        )
        while self.epoch < self.settings.epochs and self.waited < self.settings.patience:
            rate = self.schedule.get_last_lr()[0]
            if hasattr(self.bare_net(), "begin_epoch"):
                self.bare_net().begin_epoch(self.epoch / self.settings.epochs)
            loss = self.train_epoch()
            probability = self.predict(self.valid.inputs)
            surprise = -np.log(probability[np.arange(len(probability)), self.valid.classes] + 1e-9)
            nll = float(
                np.average(surprise, weights=self.weights.cpu().numpy()[self.valid.classes])
            )
            recalls = [
                (probability[self.valid.classes == c].argmax(1) == c).mean()
                for c in np.unique(self.valid.classes)
            ]
            self.epoch += 1
            self.curves.append(
                {
                    "epoch": self.epoch,
                    "train_loss": loss,
                    "valid_nll": nll,
                    "valid_uar": float(np.mean(recalls)),
                    "learning_rate": rate,
                }
            )
            self.waited = 0 if self.best is None or nll < self.best["nll"] else self.waited + 1
            if self.waited == 0:
                self.best = {
                    "nll": nll,
                    "epoch": self.epoch,
                    "net": copy.deepcopy(self.bare_net().state_dict()),
                }
            self.save()
            bar.set_postfix(
                loss=f"{loss:.3f}", valid_uar=f"{self.curves[-1]['valid_uar']:.3f}", refresh=False
            )
            bar.update()
        bar.close()
        self.bare_net().load_state_dict(self.best["net"])

    def train_epoch(self) -> float:
        """Run one epoch; return the mean training loss."""
        settings = self.settings
        self.net.train()
        inputs = self.copies() if settings.augment.copies else self.inputs
        batches = [
            rows
            for rows in torch.randperm(len(self.inputs), generator=self.generator).split(
                settings.batch_size
            )
            if len(rows) >= 2 * self.n_parts
        ]  # batch normalisation needs two
        losses = torch.zeros(len(batches), device=self.device)
        for i, rows in enumerate(batches):
            # every process draws for the whole batch and keeps its share, so that all see the same random numbers
            rows = rows.to(self.device)
            batch, partners, own = settings.augment(inputs[rows], self.generator)
            self.optimiser.zero_grad()
            for part in range(settings.accumulate):
                share = slice(self.rank + part * self.n_processes, None, self.n_parts)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                    logits = self.net(batch[share])
                value = self.loss(logits, self.targets[rows], share, own)
                if partners is not None:
                    value = value + self.loss(logits, self.targets[rows][partners], share, 1 - own)
                self.accelerator.backward(
                    value * self.n_processes
                )  # gradients are averaged over processes
                losses[i] += value.detach()
            self.accelerator.clip_grad_norm_(self.net.parameters(), settings.clip)
            self.optimiser.step()
            self.schedule.step()
        losses = self.accelerator.reduce(
            losses, "sum"
        )  # one transfer an epoch: a GPU never waits for a batch's loss
        self.require_finite(losses.cpu(), batches)
        sizes = torch.tensor([len(rows) for rows in batches], dtype=torch.float)
        return float((losses.cpu() * sizes).sum() / sizes.sum())

    def copies(self) -> torch.Tensor:
        """Return this epoch's augmented copies of the training clips."""
        copies = torch.tensor(
            self.settings.augment.copies.epoch(self.epoch, self.train.ids), device=self.device
        )
        if copies.shape != self.inputs.shape or copies.dtype != self.inputs.dtype:
            raise ValueError(
                f"{self.settings.name}: augmented copies are {tuple(copies.shape)} {copies.dtype}, the clips "
                f"themselves {tuple(self.inputs.shape)} {self.inputs.dtype}: represent them in the same way"
            )
        return copies

    def loss(
        self, logits: torch.Tensor, targets: torch.Tensor, share: slice, amount: torch.Tensor | None
    ) -> torch.Tensor:
        """Return this process's part of the whole batch's mean cross-entropy; `amount` is how much of each clip counts."""
        each = nn.functional.cross_entropy(
            logits.float(),
            targets[share],
            self.weights,
            reduction="sum" if amount is None else "none",
            label_smoothing=self.settings.label_smoothing,
        )
        return (each if amount is None else (each * amount[share]).sum()) / self.weights[
            targets
        ].sum()

    def require_finite(self, losses: torch.Tensor, batches: list[torch.Tensor]) -> None:
        """Stop on a loss that is no number, and say where it came from."""
        wrong = (~torch.isfinite(losses)).nonzero().flatten().tolist()
        if wrong:
            rows = batches[wrong[0]].tolist()
            ids = [
                str(self.train.ids[r]) if self.train.ids is not None else f"row {r}" for r in rows
            ]
            raise ValueError(
                f"{self.settings.name}: the loss became {losses[wrong[0]]:g} in epoch {self.epoch + 1}, batch {wrong[0] + 1} "
                f"of {len(batches)}. Its clips: {', '.join(ids[:10])}{' …' if len(ids) > 10 else ''}. Lower LEARNING_RATE "
                f"({self.settings.learning_rate:g}), or look at these clips' inputs."
            )

    @torch.inference_mode()
    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return probabilities, shape ``(n_rows, n_classes)``; always computed in float32."""
        net = self.bare_net().eval()
        batches = torch.tensor(inputs).split(getattr(net, "largest_batch", 256))
        return (
            torch.cat([net(batch.to(self.device)).softmax(1).cpu() for batch in batches])
            .double()
            .numpy()
        )

    def bare_net(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.net)

    def notes(self) -> dict:
        """What the run record keeps."""
        return {
            "best_epoch": self.best["epoch"],
            "curves": self.curves,
            "parameters": sum(p.numel() for p in self.bare_net().parameters()),
        }

    def save(self) -> None:
        """Store this epoch's end; the checkpoint before it stays until this one is complete."""
        if self.rank == 0:
            state = {
                "identity": self.identity,
                "net": self.bare_net().state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "schedule": self.schedule.state_dict(),
                "epoch": self.epoch,
                "curves": self.curves,
                "waited": self.waited,
                "best": self.best,
                "generator": self.generator.get_state(),
                "random": torch.get_rng_state(),
                "random_gpu": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            }
            write_checkpoint(state, self.folder / f"epoch_{self.epoch:04d}.ckpt")
            for old in sorted(self.folder.glob("epoch_*.ckpt"))[:-2]:
                old.unlink()
            mirror.push(self.folder, wait=1)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Continue from the last complete checkpoint."""
        state = read_checkpoint(self.folder, self.identity)
        if state is None:
            return
        self.bare_net().load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.epoch, self.curves, self.waited, self.best = (
            state[k] for k in ("epoch", "curves", "waited", "best")
        )
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        if state["random_gpu"] is not None:
            torch.cuda.set_rng_state(state["random_gpu"])


def write_checkpoint(state: dict, path: Path) -> None:
    """Write a training state atomically, with a checksum in front."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    write_atomically(path, lambda handle: handle.write(hashlib.sha256(content).digest() + content))


def read_checkpoint(folder: Path, identity: dict) -> dict | None:
    """Return the last complete training state in a folder; None if there is none.

    A checkpoint that is damaged (its checksum differs) is passed over for the one before it.

    Raises
    ------
    ValueError
        If it was written by another configuration; the differences are named.
    """
    for path in sorted(folder.glob("epoch_*.ckpt"), reverse=True):
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            tqdm.write(
                f"{path} is damaged ({len(content)} bytes): the checkpoint before it is used"
            )
            continue
        state = torch.load(io.BytesIO(content[32:]), weights_only=True, map_location="cpu")
        found = state["identity"]
        differences = [
            f"{name}: {found.get(name)} there, {identity.get(name)} here"
            for name in sorted({*found, *identity})
            if found.get(name) != identity.get(name)
        ]
        if differences:
            raise ValueError(
                f"{path} is of another configuration, so training can't go on from it. {'; '.join(differences)}. "
                f"Use the same settings, or remove {folder} to train anew."
            )
        return state
    return None


def _accelerator(device: str) -> Accelerator:
    """Return an Accelerator for this device, or for the processes that ``accelerate launch`` or ``torchrun`` started."""
    if AcceleratorState._shared_state and not AcceleratorState().use_distributed:
        AcceleratorState._reset_state(
            reset_partial_state=True
        )  # else the first network's device would bind all that follow
    return Accelerator(
        cpu=find_device(device).type == "cpu", mixed_precision="no"
    )  # precision is set where it is used


def _optimiser(settings: Network, net: nn.Module) -> torch.optim.Optimizer:
    more = {"momentum": settings.momentum} if settings.optimiser in ("SGD", "RMSprop") else {}
    parts = (
        net.parameter_groups(settings.learning_rate)
        if hasattr(net, "parameter_groups")
        else net.parameters()
    )
    return OPTIMISERS[settings.optimiser](
        parts, lr=settings.learning_rate, weight_decay=settings.weight_decay, **more
    )


def _schedule(
    settings: Network, optimiser: torch.optim.Optimizer, n_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    schedulers = torch.optim.lr_scheduler
    if settings.schedule == "one-cycle":  # momentum stays: RMSprop and SGD as their settings say
        return schedulers.OneCycleLR(
            optimiser,
            [group["lr"] for group in optimiser.param_groups],
            n_steps,
            cycle_momentum=settings.optimiser in ("Adam", "AdamW"),
        )
    if settings.schedule == "cosine":
        return schedulers.CosineAnnealingLR(optimiser, n_steps)
    if settings.schedule == "step":
        return schedulers.StepLR(optimiser, -(-n_steps // 5), 0.5)
    return schedulers.ConstantLR(optimiser, 1.0)


@contextmanager
def _speaking_of_memory(settings: Network):
    """Turn an allocator's error into one that says which setting to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not isinstance(
            error, (torch.OutOfMemoryError, MemoryError)
        ) and "allocate memory" not in str(error):
            raise
        raise MemoryError(
            f"{settings.name}: out of memory ({str(error).splitlines()[0]}). Lower BATCH_SIZE "
            f"({settings.batch_size}), make the inputs smaller, or run fewer folds at once (N_JOBS)."
        ) from error
