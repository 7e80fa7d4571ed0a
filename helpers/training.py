"""The training loop of all networks, in plain PyTorch on one device.

Conventions
-----------
Inputs are one tensor on the device (uint8 for images). After each epoch everything that decides how
training goes on is stored. A training that was interrupted continues from there and, on a CPU, ends
with the same bits as one that was not.
"""

import copy
import functools
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from tqdm import tqdm

from helpers import artifacts, cache, estimators, experiment, nets, paths

VERSION = 1
OPTIMISERS = {
    "SGD": functools.partial(torch.optim.SGD, momentum=0.9),
    "RMSprop": functools.partial(torch.optim.RMSprop, momentum=0.9),
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
}
SCHEDULES = {  # name → scheduler of an optimiser for so many batches
    "one-cycle": lambda optimiser, n_steps: torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        [group["lr"] for group in optimiser.param_groups],
        n_steps,
        cycle_momentum="betas" in optimiser.defaults,  # that of SGD and RMSprop stays as set
    ),
    "cosine": torch.optim.lr_scheduler.CosineAnnealingLR,
    "step": lambda optimiser, n: torch.optim.lr_scheduler.StepLR(optimiser, -(-n // 5), 0.5),
    "constant": lambda optimiser, _: torch.optim.lr_scheduler.ConstantLR(optimiser, 1.0),
}


def find_device(name: str = "auto") -> torch.device:
    """Return the device to compute on: "auto" (a GPU if there is one), "cpu", "cuda", …"""
    return torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    )


def has_bfloat16(kind: str) -> bool:
    """Return whether a kind of device ("cpu" or "cuda") computes in bfloat16 on this machine.

    Where it does, a network trains about twice as fast.
    """
    if kind == "cuda":
        return torch.cuda.is_bf16_supported()
    abilities = getattr(torch.cpu, "get_capabilities", dict)()
    return abilities.get("avx512_bf16", False) or abilities.get("amx_bf16", False)


@dataclass(frozen=True)
class Network:
    """A network that ``experiment.cross_validate`` can train.

    Attributes
    ----------
    name
        As it appears in tables.
    build
        ``build(n_classes, shape, **options)`` → an untrained module that turns a batch of inputs of
        this shape into logits; a class of ``helpers.nets`` or of a notebook. It may have methods
        ``fit_inputs(inputs)`` (called first, with the training inputs, to learn how to scale them),
        ``begin_epoch(share)`` (called before each epoch with the share of epochs that are over, to
        unfreeze layers), ``parameter_groups(learning_rate)`` (parameters with learning rates) and
        ``embed(inputs)`` (what its head reads), and an attribute ``largest_batch`` (clips that it
        predicts at a time).
    options
        Passed on to `build`.
    epochs
        At most so many.
    patience
        Epochs without a better negative log-likelihood on the validation speakers (emotions are
        weighted as in training) after which training stops. The best epoch's weights are kept.
    batch_size
        Clips of a batch.
    optimiser, weight_decay
        A name in ``OPTIMISERS``, which also set the momentum of SGD and RMSprop.
    learning_rate, schedule
        Highest learning rate, and how it changes from batch to batch: "one-cycle" (rises and falls
        once; Smith & Topin 2018), "cosine" (falls), "step" (halved four times, at equal distances)
        or "constant".
    label_smoothing, class_weights
        Of the cross-entropy; with class weights, rare emotions count more.
    clip
        Largest norm of the gradient.
    shift
        Images are shifted in time by up to so many pixels, and in frequency by up to two, anew in
        each epoch.
    search
        Settings (name of an attribute or option → value) of which each fold chooses one: the one
        with the lowest negative log-likelihood on its validation speakers.
    device, precision
        "auto": a GPU if there is one, and bfloat16 where the device computes in it; else "cpu" or
        "cuda", "float32".

    Raises
    ------
    ValueError
        If the optimiser, the schedule or the precision is unknown.
    """

    name: str
    build: Callable[..., nn.Module]
    options: dict = field(default_factory=dict)
    epochs: int = 40
    patience: int = 10
    batch_size: int = 32
    optimiser: str = "AdamW"
    weight_decay: float = 1e-2
    learning_rate: float = 3e-3
    schedule: str = "one-cycle"
    label_smoothing: float = 0.1
    class_weights: bool = True
    clip: float = 5.0
    shift: int = 0
    search: list[dict] = field(default_factory=list)
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        known = {"optimiser": OPTIMISERS, "schedule": SCHEDULES, "precision": ("auto", "float32")}
        for what, names in known.items():
            if (value := getattr(self, what)) not in names:
                raise ValueError(f"unknown {what} {value!r}: choose one of {', '.join(names)}")
        # now: a process that trains a fold can't read the source of a class of the notebook
        vars(self)["source"] = cache.source_of(self.build)

    def recipe(self) -> dict:
        """Return everything that a result depends on, besides data and seed."""
        no_part = {"name": self.name, "device": self.device, "precision": "auto"}
        settings = {k: v for k, v in vars(self).items() if k not in no_part or v != no_part[k]}
        settings["build"] = settings.pop("source")
        modules = {base.__module__ for base in getattr(self.build, "__mro__", ())}
        own = [name for name in sorted(modules) if name.startswith("helpers.")]
        return settings | {"versions": {n: getattr(sys.modules[n], "VERSION", 0) for n in own}}

    @property
    def uses_gpu(self) -> bool:
        """Whether it trains on a GPU, where folds are trained one after the other."""
        return find_device(self.device).type != "cpu"

    @property
    def has_embeddings(self) -> bool:
        """Whether the network has a method ``embed``."""
        return hasattr(self.build, "embed")

    def fit_predict(
        self,
        train: experiment.FoldRows,
        validation: experiment.FoldRows,
        test: np.ndarray,
        n_classes: int,
        seed: int,
    ) -> dict:
        """Train with early stopping on the validation speakers, then predict their and test rows.

        Returns
        -------
        dict
            ``validation`` and ``test`` (probabilities, shape ``(n_rows, n_classes)``), ``steps``
            (which roles each step saw), ``notes`` (learning curves), ``weights`` and
            ``checkpoint``, the folder to remove when all this is stored.

        Raises
        ------
        ValueError
            If batches are too small, a loss is not finite, or an option is not for these inputs.
        MemoryError
            If memory ran out; the text says which setting to lower.
        """
        if self.search:
            return self._search(train, validation, test, n_classes, seed)
        try:
            trainer = Trainer(self, train.with_copies(), validation, n_classes, seed)
            trainer.run()
            return {
                "validation": trainer.predict(validation.inputs),
                "test": trainer.predict(test),
                "steps": {"fit": ["train"], "stop": ["validation"]}
                | ({} if train.copies is None else {"augment": ["train"]}),
                "notes": {
                    "best_epoch": trainer.best["epoch"],
                    "curves": trainer.curves,
                    "parameters": sum(p.numel() for p in trainer.net.parameters()),
                },
                "weights": trainer.arrays(),
                "checkpoint": trainer.checkpoint.parent,  # fit_stored removes it
            }
        except (RuntimeError, MemoryError) as error:
            reasons = ("out of memory", "allocate memory", "enough memory")  # PyTorch's words
            if isinstance(error, RuntimeError) and not any(r in str(error) for r in reasons):
                raise
            raise MemoryError(
                f"{self.name}: out of memory ({str(error).splitlines()[0]}). Lower BATCH_SIZE "
                f"({self.batch_size}), make the inputs smaller, or train fewer folds in parallel "
                "(N_JOBS)."
            ) from error

    def refit(
        self, record: dict, rows: experiment.FoldRows, n_classes: int, seed: int = 0
    ) -> artifacts.Part:
        """Train the final model: on all speakers, with the settings that cross-validation chose.

        Nothing is chosen here. Of searched settings it has the one whose loss is lowest on average
        over the folds; training stops after the median of the folds' best epochs, on the same
        schedule.

        Parameters
        ----------
        record
            Run record of the cross-validation.
        rows
            All rows of the corpus.
        n_classes, seed
            As in cross-validation.

        Returns
        -------
        artifacts.Part

        Raises
        ------
        artifacts.Refused
            If the network is not of ``helpers.nets``, so that it could not be loaded again.
        """
        network = self._chosen(estimators.frozen_setting(record))
        about = {
            # what could not be loaded again is refused before training
            "build": artifacts.network_class(self.build).__name__,
            # it has weights
            "options": {k: v for k, v in network.options.items() if k != "pretrained"},
            "shape": list(rows.inputs.shape[1:]),
        }
        trainer = Trainer(network, rows.with_copies(), rows, n_classes, seed)
        best = [fold["notes"]["best_epoch"] for fold in record["folds"].values()]
        trainer.run(round(float(np.median(best))))
        return artifacts.Part(trainer.arrays(), about, n_classes)

    def restore(
        self, weights: dict[str, np.ndarray], n_classes: int, shape: tuple[int, ...]
    ) -> nn.Module:
        """Return the network with the weights of a fold, on the CPU, ready to predict."""
        net = self.build(n_classes, shape, **self.options)
        net.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
        return net.eval()

    def embed(self, net: nn.Module, inputs: np.ndarray) -> np.ndarray:
        """Compute what the head of a fold's network reads, shape ``(n_rows, n_units)``.

        Parameters
        ----------
        net
            Of the fold, from :meth:`restore`.
        inputs : np.ndarray [shape=(n_rows, ...)]
        """
        device = find_device(self.device)
        return nets.compute(net.to(device), inputs, "embed", device)

    def head(self) -> estimators.Classical:
        """Return a model for embeddings that were changed, e.g. standardised per speaker."""
        return estimators.Classical(
            self.name,
            LogisticRegression(class_weight="balanced", max_iter=500),
            {"C": [0.01, 0.001, 0.1]},
        )

    def _chosen(self, setting: dict) -> "Network":
        """Return the network with settings of its search, and without the search."""
        own = {name: value for name, value in setting.items() if name in vars(self)}
        options = self.options | {name: v for name, v in setting.items() if name not in own}
        chosen = copy.copy(self)  # keeps the source, which dataclasses.replace would read again
        vars(chosen).update(own, options=options, search=[])
        return chosen

    def _search(
        self,
        train: experiment.FoldRows,
        validation: experiment.FoldRows,
        test: np.ndarray,
        n_classes: int,
        seed: int,
    ) -> dict:
        """Try every setting; each is stored, so an interrupted search goes on with the next."""
        outcomes, losses, rows = [], [], (train, validation, test)
        for setting in self.search:
            network = self._chosen(setting)
            key = cache.hash_of(network.recipe())
            outcomes.append(experiment.fit_stored(network, key, *rows, n_classes, seed))
            losses.append(min(e["validation_nll"] for e in outcomes[-1]["notes"]["curves"]))
        best = int(np.argmin(losses))
        outcomes[best]["steps"]["select"] = ["validation"]
        outcomes[best]["notes"] |= estimators.search_notes(self.search, losses)
        return outcomes[best]


class Trainer:
    """The training of one network on one fold; notebooks use :class:`Network`.

    Parameters
    ----------
    settings
        The network.
    train, validation
        Rows to learn from, and to stop by.
    n_classes
        Number of emotions.
    seed
        Of weights and draws.

    Raises
    ------
    ValueError
        If batches would hold fewer than two clips.
    """

    def __init__(
        self,
        settings: Network,
        train: experiment.FoldRows,
        validation: experiment.FoldRows,
        n_classes: int,
        seed: int,
    ):
        if min(settings.batch_size, len(train.inputs)) < 2:
            raise ValueError(
                f"{settings.name}: {len(train.inputs)} training clips in batches of "
                f"{settings.batch_size}: a batch needs at least 2, since batch normalisation "
                "compares clips. Raise BATCH_SIZE, or give more training clips."
            )
        self.settings, self.train, self.validation = settings, train, validation
        self.device = find_device(settings.device)
        self.bf16 = settings.precision == "auto" and has_bfloat16(self.device.type)
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        net = settings.build(n_classes, train.inputs.shape[1:], **settings.options)
        if hasattr(net, "fit_inputs"):
            net.fit_inputs(torch.tensor(train.inputs))
        # convolutions on a CPU are a third faster with channels last
        self.net = net.to(self.device, memory_format=torch.channels_last)
        self.inputs = torch.tensor(train.inputs, device=self.device)
        self.targets = torch.tensor(train.classes, device=self.device)
        frequency = torch.bincount(self.targets, minlength=n_classes).clamp(min=1).float()
        balanced = len(self.targets) / (n_classes * frequency)
        self.weights = balanced if settings.class_weights else torch.ones_like(frequency)
        self.loss = nn.CrossEntropyLoss(
            self.weights, reduction="sum", label_smoothing=settings.label_smoothing
        )
        rate = settings.learning_rate
        own = getattr(net, "parameter_groups", lambda rate: net.parameters())  # of its layers
        self.optimiser = OPTIMISERS[settings.optimiser](
            own(rate), lr=rate, weight_decay=settings.weight_decay
        )
        n_steps = -(-len(self.inputs) // settings.batch_size) * settings.epochs
        self.schedule = SCHEDULES[settings.schedule](self.optimiser, n_steps)
        self.epoch, self.curves, self.best = 0, [], None
        key = cache.hash_of(  # of another setting: elsewhere
            [settings.recipe(), VERSION, nets.VERSION, seed, self.device.type, self.bf16],
            vars(train),
            vars(validation),
        )
        self.checkpoint = paths.work("checkpoints") / key / "last.ckpt"

    def run(self, n_epochs: int = 0) -> None:
        """Train, from the last checkpoint if there is one.

        Parameters
        ----------
        n_epochs
            Train so many epochs without validation. 0: train until the last epoch or until patience
            is out, and return to the weights of the best epoch.
        """
        self.resume()
        epochs = range(self.epoch, n_epochs or self.settings.epochs)
        for _ in tqdm(epochs, self.settings.name, unit="epoch", mininterval=5, leave=False):
            if self.best and self.epoch - self.best["epoch"] >= self.settings.patience:
                break
            self.train_epoch()
            if not n_epochs:
                self.validate()
            self.save()
        if self.best:
            self.net.load_state_dict(self.best["net"])

    def train_epoch(self) -> None:
        """Train one epoch, and extend the learning curves."""
        settings = self.settings
        if hasattr(self.net, "begin_epoch"):
            self.net.begin_epoch(self.epoch / settings.epochs)
        self.net.train()
        order = torch.randperm(len(self.inputs), generator=self.generator)
        batches = [b for b in order.split(settings.batch_size) if len(b) > 1]
        losses, rate = torch.zeros(len(batches), device=self.device), self.schedule.get_last_lr()[0]
        for i, rows in enumerate(batches):
            rows = rows.to(self.device)
            batch, targets = self.inputs[rows], self.targets[rows]
            if settings.shift:
                batch = shift_images(batch, settings.shift, self.generator)
            self.optimiser.zero_grad()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                logits = self.net(batch)
            loss = self.loss(logits.float(), targets) / self.weights[targets].sum()
            loss.backward()
            losses[i] = loss.detach()
            nn.utils.clip_grad_norm_(self.net.parameters(), settings.clip)
            self.optimiser.step()
            self.schedule.step()
        self.epoch += 1
        losses = losses.cpu().numpy()  # once an epoch: a GPU does not wait for a batch's loss
        self.require_finite(losses, batches)
        loss = float(np.average(losses, weights=list(map(len, batches))))
        self.curves.append({"epoch": self.epoch, "train_loss": loss, "learning_rate": rate})

    def require_finite(self, losses: np.ndarray, batches: list[torch.Tensor]) -> None:
        """Stop on a loss that is not finite, and name its clips."""
        wrong = np.flatnonzero(~np.isfinite(losses))
        if len(wrong):
            rows, ids = batches[wrong[0]].numpy(), self.train.ids
            clips = ", ".join(map(str, (rows if ids is None else ids[rows])[:10]))
            raise ValueError(
                f"{self.settings.name}: the loss became {losses[wrong[0]]:g} in epoch "
                f"{self.epoch}, batch {wrong[0] + 1} of {len(batches)}. Its clips: {clips}"
                f"{' …' if len(rows) > 10 else ''}. Lower LEARNING_RATE "
                f"({self.settings.learning_rate:g}), or look at the inputs of these clips."
            )

    def validate(self) -> None:
        """Extend the learning curves, and keep the weights if the epoch is the best one so far."""
        probability, truth = self.predict(self.validation.inputs), self.validation.classes
        losses = -np.log(probability[np.arange(len(truth)), truth] + 1e-9)
        nll = float(np.average(losses, weights=self.weights.cpu().numpy()[truth]))
        recalls = [(probability[truth == c].argmax(1) == c).mean() for c in np.unique(truth)]
        self.curves[-1] |= {"validation_nll": nll, "validation_uar": float(np.mean(recalls))}
        if self.best is None or nll < self.best["nll"]:
            self.best = {
                "nll": nll,
                "epoch": self.epoch,
                "net": copy.deepcopy(self.net.state_dict()),
            }

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Compute probabilities, shape ``(n_rows, n_classes)``, always in float32."""
        logits = torch.tensor(nets.compute(self.net, inputs, device=self.device))
        return logits.softmax(1).double().numpy()

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the weights as arrays."""
        return {name: value.cpu().numpy() for name, value in self.net.state_dict().items()}

    def save(self) -> None:
        """Store the end of an epoch, in place of that of the epoch before."""
        state = {
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "epoch": self.epoch,
            "curves": self.curves,
            "best": self.best,
            "generator": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "random_gpu": torch.cuda.get_rng_state_all(),
        }
        cache.write_atomically(self.checkpoint, lambda file: torch.save(state, file))

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one."""
        try:
            damaged = zipfile.ZipFile(self.checkpoint).testzip()  # compares checksums
        except FileNotFoundError:
            return
        except zipfile.BadZipFile as error:
            damaged = error
        if damaged:
            tqdm.write(f"{self.checkpoint} is damaged ({damaged}): training starts anew")
            return
        state = torch.load(self.checkpoint, "cpu", weights_only=True)
        for name in ("net", "optimiser", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.epoch, self.curves, self.best = state["epoch"], state["curves"], state["best"]
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        torch.cuda.set_rng_state_all(state["random_gpu"])


def shift_images(batch: torch.Tensor, shift: int, generator: torch.Generator) -> torch.Tensor:
    """Move each image of a batch in time and frequency; what enters at the edge is silence.

    Parameters
    ----------
    batch : uint8 tensor (n_clips, n_bands, n_frames)
    shift
        Largest shift in time, in pixels; in frequency it is two.
    generator
        Of the training, on the CPU.

    Returns
    -------
    uint8 tensor (n_clips, n_bands, n_frames)

    Raises
    ------
    ValueError
        If the inputs are not images.
    """
    if batch.dtype != torch.uint8:
        raise ValueError(
            f"shift is for images (uint8); these inputs are {batch.dtype} of shape "
            f"{tuple(batch.shape)}: set shift=0, others can be augmented by copies"
        )
    n, bands, frames = batch.shape
    ys = torch.randint(-2, 3, (n,), generator=generator) + 2
    xs = torch.randint(-shift, shift + 1, (n,), generator=generator) + shift
    padded = torch.nn.functional.pad(batch, (shift, shift, 2, 2))
    places = zip(padded, ys, xs, strict=True)
    return torch.stack([image[y : y + bands, x : x + frames] for image, y, x in places])
