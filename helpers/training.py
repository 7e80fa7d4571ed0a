"""The one training loop of all networks."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from helpers.experiment import Part


def find_device(name: str = "auto") -> torch.device:
    """Return the device to compute on; "auto" takes a GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


@dataclass(frozen=True)
class Network:
    """A network that ``experiment.cross_validate`` can run.

    Attributes
    ----------
    name
        As it appears in tables.
    build
        ``build(n_classes, n_bands)`` → an untrained module that takes a batch of inputs and returns logits.
    epochs
        At most so many; the learning rate rises and falls once over them (one cycle, Smith & Topin 2018).
    patience
        Epochs without a better negative log-likelihood on the valid speakers after which training stops. The best
        epoch's weights are kept.
    batch_size, learning_rate, weight_decay, label_smoothing
        Of AdamW and of the class-weighted cross-entropy.
    shift
        Training images are moved in time by up to so many pixels and in frequency by up to two, drawn anew each epoch: a
        voice is a little higher, a word a little later.
    device
        "auto" takes a GPU where there is one.
    """

    name: str
    build: Callable[[int, int], nn.Module]
    epochs: int = 40
    patience: int = 10
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    label_smoothing: float = 0.1
    shift: int = 8
    device: str = "auto"

    def recipe(self) -> dict:
        """Return everything a result depends on, for the cache; the device is not part of it."""
        settings = {k: v for k, v in vars(self).items() if k not in ("build", "device")}
        return settings | {"code": [self.build, Network.fit_predict, _train_epoch, _moved, _predict]}

    def fit_predict(self, train: Part, valid: Part, test: np.ndarray, n_classes: int, seed: int) -> dict:
        """Train with early stopping on the valid speakers, then predict valid and test rows."""
        device = find_device(self.device)
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        net = self.build(n_classes, train.inputs.shape[1]).to(device)
        images, targets = torch.tensor(train.inputs, device=device), torch.tensor(train.classes, device=device)
        frequency = torch.bincount(targets, minlength=n_classes).clamp(min=1)
        loss = nn.CrossEntropyLoss(weight=len(targets) / (n_classes * frequency.float()), label_smoothing=self.label_smoothing)
        optimiser = torch.optim.AdamW(net.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        n_steps = -(-len(images) // self.batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.learning_rate, self.epochs * n_steps)

        best, curves, waited = None, [], 0
        for epoch in tqdm(range(self.epochs), desc=f"{self.name}, seed {seed}", unit="epoch", mininterval=5, leave=False):
            train_loss = _train_epoch(net, images, targets, loss, optimiser, schedule, self.batch_size, self.shift, generator)
            probability = _predict(net, valid.inputs, device)
            nll = float(-np.log(probability[np.arange(len(probability)), valid.classes] + 1e-9).mean())
            recalls = [(probability[valid.classes == c].argmax(1) == c).mean() for c in np.unique(valid.classes)]
            curves.append({"epoch": epoch + 1, "train_loss": train_loss, "valid_nll": nll,
                           "valid_uar": float(np.mean(recalls))})
            if not np.isfinite(train_loss):
                raise ValueError(f"{self.name}: the loss became {train_loss} in epoch {epoch + 1}; lower the learning rate "
                                 f"({self.learning_rate})")
            waited = 0 if best is None or nll < best[0] else waited + 1
            if waited == 0:
                best = nll, epoch + 1, copy.deepcopy(net.state_dict())
            if waited >= self.patience:
                break
        net.load_state_dict(best[2])
        return {"valid": _predict(net, valid.inputs, device), "test": _predict(net, test, device),
                "steps": {"fit": ["train"], "stop": ["valid"]},
                "notes": {"best_epoch": best[1], "curves": curves, "parameters": sum(p.numel() for p in net.parameters())}}


def _train_epoch(net, images, targets, loss, optimiser, schedule, batch_size, shift, generator) -> float:
    """Run one epoch; return the mean training loss."""
    net.train()
    total = 0.0
    for rows in torch.randperm(len(images), generator=generator).split(batch_size):
        if len(rows) == 1:
            continue  # batch normalisation needs two
        value = loss(net(_moved(images[rows.to(images.device)], shift, generator)), targets[rows.to(images.device)])
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        total += value.item() * len(rows)
    return total / len(images)


def _moved(batch: torch.Tensor, shift: int, generator: torch.Generator) -> torch.Tensor:
    """Move each image of a batch in time and frequency; what comes in at the edge is silence."""
    if not shift:
        return batch
    n, bands, frames = batch.shape
    dy = torch.randint(-2, 3, (n, 1, 1), generator=generator).to(batch.device)
    dx = torch.randint(-shift, shift + 1, (n, 1, 1), generator=generator).to(batch.device)
    y = torch.arange(bands, device=batch.device).view(1, -1, 1) + dy
    x = torch.arange(frames, device=batch.device).view(1, 1, -1) + dx
    inside = (y >= 0) & (y < bands) & (x >= 0) & (x < frames)
    index = y.clamp(0, bands - 1) * frames + x.clamp(0, frames - 1)
    return torch.where(inside, batch.flatten(1).gather(1, index.flatten(1)).view_as(batch), 0)


@torch.inference_mode()
def _predict(net: nn.Module, inputs: np.ndarray, device: torch.device) -> np.ndarray:
    net.eval()
    batches = torch.tensor(inputs).split(256)
    return torch.cat([net(batch.to(device)).softmax(1) for batch in batches]).cpu().double().numpy()
