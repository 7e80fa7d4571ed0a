"""Neural networks on mel-spectrogram images, sequences of descriptors and functionals.

Conventions
-----------
A network is built from the number of emotions and the shape of one input, and returns logits: the
softmax belongs to the loss and to the prediction. Where it has ``embed`` (inputs → one row per
clip) and ``head`` (row → logits), its embeddings can be used without its last layers. Where it has
``fit_inputs``, that learns from the training inputs how to scale them. A frame (step) that is 0
throughout is padding, and padding changes no prediction.
"""

import itertools

import numpy as np
import torch
from torch import nn

VERSION = 1


class EmotionNetwork(nn.Module):
    """What networks share; a subclass has ``embed`` and ``head``, or its own ``forward``."""

    def fit_inputs(self, inputs: torch.Tensor) -> None:
        """Fit ``scaler``, if the network has one, to the inputs of the training clips."""
        if getattr(self, "scaler", None) is not None:
            self.scaler.fit(inputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(inputs))


class MelCNN(EmotionNetwork):
    """A few convolutional layers on mel-spectrogram images.

    The four layers (16, 32, 64, 16 channels, 512 hidden units) are those of a widely copied IEMOCAP
    notebook. New are batch normalisation, and mean and maximum over the non-padded frames in place
    of flattening, so that the length of a clip does not matter. In training, batch normalisation
    still sees the padding.

    Parameters
    ----------
    n_classes
        Number of emotions.
    shape
        Of an image: bands, frames.
    channels
        Of each layer; each layer halves height and width.
    n_mfcc
        Rows that :meth:`transform` of a subclass makes of the bands (MFCC in notebook 07); 0 if it
        leaves the bands as they are.
    dropout
        Before and after the hidden layer.

    Shapes
    ------
    images : uint8 tensor (batch, n_bands, n_frames); columns that are 0 throughout are padding
    returns : logits (batch, n_classes)

    Raises
    ------
    ValueError
        If there are more layers than the image can be halved.
    """

    def __init__(
        self,
        n_classes: int,
        shape: tuple[int, int],
        channels: tuple[int, ...] = (16, 32, 64, 16),
        n_mfcc: int = 0,
        dropout: float = 0.4,
    ):
        super().__init__()
        n_rows, smallest = n_mfcc or shape[0], 2 ** len(channels)
        if min(n_rows, shape[1]) < smallest:
            raise ValueError(
                f"{len(channels)} layers halve {n_rows} rows and {shape[1]} frames to nothing: "
                f"give at least {smallest} of both, or fewer channels"
            )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(n_in, n_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(n_out),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )
            for n_in, n_out in itertools.pairwise((1, *channels))
        )
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(2 * channels[-1] * (n_rows // smallest), 512),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(512, n_classes),
        )

    def transform(self, maps: torch.Tensor) -> torch.Tensor:
        """Turn maps (batch, 1, n_bands, n_frames) into what the layers read: here, the bands."""
        return maps

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        maps, mask = valid_frames(images)
        maps = self.transform(maps) * mask
        for block in self.blocks:
            mask = nn.functional.max_pool2d(mask, (1, 2))
            maps = block(maps) * mask  # padding is 0 again, as at the edge of the image
        return mean_and_peak(maps.flatten(1, 2), mask[:, 0])  # (batch, 2 * channels * height)


class MelResNet(EmotionNetwork):
    """A residual network of torchvision on mel-spectrogram images of one channel.

    Average pooling uses the non-padded frames only. The head has 200 hidden units, as in the
    IEMOCAP notebooks.

    Parameters
    ----------
    n_classes
        Number of emotions.
    shape
        Of an image: bands, frames.
    depth
        18 or 34 layers.
    pretrained
        Start from ImageNet weights, which torchvision downloads. The network is then unfrozen in
        stages: the head alone for the first fifth of the training, with the last block until half
        of it, then everything.
    dropout
        Before the last layer.

    Shapes
    ------
    images : uint8 tensor (batch, n_bands, n_frames); columns that are 0 throughout are padding
    returns : logits (batch, n_classes)

    Raises
    ------
    FileNotFoundError
        If the ImageNet weights can't be downloaded; the text says where to put them.

    References
    ----------
    K. He et al., "Deep residual learning for image recognition", CVPR 2016.
    """

    def __init__(
        self,
        n_classes: int,
        shape: tuple[int, int],
        depth: int = 18,
        pretrained: bool = False,
        dropout: float = 0.5,
    ):
        super().__init__()
        from torchvision import models  # late: it takes seconds, and most networks do without it

        self.pretrained = pretrained
        weights = models.get_model_weights(f"resnet{depth}").DEFAULT if pretrained else None
        try:
            body = models.get_model(f"resnet{depth}", weights=weights)
        except OSError as error:
            raise FileNotFoundError(
                f"ImageNet weights of ResNet{depth} could not be downloaded ({error}). Fetch "
                f"{weights.url} elsewhere and put it to {torch.hub.get_dir()}/checkpoints/"
                f"{weights.url.rsplit('/', 1)[-1]}, or set PRETRAINED = False."
            ) from None
        first = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        if pretrained:  # a grey image is three equal channels, so their weights add up
            first.weight.data = body.conv1.weight.data.sum(dim=1, keepdim=True)
        self.stem = nn.Sequential(first, body.bn1, body.relu, body.maxpool)
        self.blocks = nn.ModuleList([body.layer1, body.layer2, body.layer3, body.layer4])
        self.head = nn.Sequential(
            nn.Linear(512, 200), nn.ReLU(), nn.Dropout(dropout), nn.Linear(200, n_classes)
        )

    def begin_epoch(self, share: float) -> None:
        """Unfreeze in stages, if the weights are pretrained."""
        if self.pretrained:
            nn.ModuleList([self.stem, *self.blocks[:3]]).requires_grad_(share >= 0.5)
            self.blocks[3].requires_grad_(share >= 0.2)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        maps, mask = valid_frames(images)
        for part in (self.stem, *self.blocks):
            maps = part(maps)
        mask = nn.functional.adaptive_max_pool2d(mask, (1, maps.shape[-1])).clamp(min=1e-6)
        return (maps.mean(dim=2, keepdim=True) * mask).sum(dim=(2, 3)) / mask.sum(dim=(2, 3))


class Scaler(nn.Module):
    """Standardises features with mean and standard deviation of the training clips.

    Values beyond ten standard deviations are clipped; rows of zeros are padding and stay so.
    """

    def __init__(self, n_features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("std", torch.ones(n_features))

    def fit(self, inputs: torch.Tensor) -> None:
        rows = inputs[inputs.any(dim=-1)].double()
        self.mean, self.std = rows.mean(dim=0).float(), rows.std(dim=0).clamp(min=1e-6).float()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return ((inputs - self.mean) / self.std).clamp(-10, 10) * inputs.any(dim=-1, keepdim=True)


class DNN(EmotionNetwork):
    """A multi-layer perceptron on functionals.

    Parameters
    ----------
    n_classes
        Number of emotions.
    shape
        Number of features, as a tuple of one.
    hidden
        Units of each hidden layer; the IEMOCAP notebooks had one layer of 300.
    dropout
        Before the first and after each hidden layer; the features of a clip are redundant, so half
        of them may be left out.

    Shapes
    ------
    inputs : float tensor (batch, n_features), not yet scaled
    returns : logits (batch, n_classes)
    """

    def __init__(
        self,
        n_classes: int,
        shape: tuple[int],
        hidden: tuple[int, ...] = (300,),
        dropout: float = 0.4,
    ):
        super().__init__()
        self.scaler = Scaler(shape[0])
        layers = [nn.Dropout(dropout)]
        for n_in, n_out in itertools.pairwise((shape[0], *hidden)):
            layers += [nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], n_classes))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(self.scaler(inputs))


class SequenceNetwork(EmotionNetwork):
    """What networks on sequences share: scaling, masks, and steps of mel images.

    A subclass has ``head`` and ``body(steps, mask)``. The latter turns steps (batch, n_features,
    n_steps) and their mask (batch, 1, n_steps; 0 in padding) into one row per clip. Use the mask in
    every statistic, attention and mean: then padding changes nothing, in training neither.

    Parameters
    ----------
    shape
        Of an input: steps, features. Of a mel image, which needs no scaling: bands, frames.
    images
        Whether inputs are mel images.
    input_dropout
        Share of the features that is left out of a whole clip at a time. Features are redundant,
        and without this a network overfits within a few epochs.

    Shapes
    ------
    inputs : float tensor (batch, n_steps, n_features), not yet scaled; steps of zeros are padding.
        Or uint8 images (batch, n_bands, n_frames); frames of zeros are padding
    returns : logits (batch, n_classes)
    """

    def __init__(self, shape: tuple[int, int], images: bool = False, input_dropout: float = 0.0):
        super().__init__()
        self.images, self.n_features = images, shape[0] if images else shape[1]
        self.scaler = None if images else Scaler(shape[1])
        self.input_dropout = nn.Dropout1d(input_dropout)

    def embed(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.images:
            steps, mask = (maps[:, 0] for maps in valid_frames(inputs))
        else:
            steps, mask = self.scaler(inputs).transpose(1, 2), inputs.any(dim=-1)[:, None].float()
        return self.body(self.input_dropout(steps), mask)


class MaskedNorm(nn.BatchNorm1d):
    """Batch normalisation over the non-padded steps only; padding comes out as 0."""

    def forward(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows = steps.transpose(1, 2)
        valid = mask[:, 0] > 0
        result = torch.zeros_like(rows)
        if valid.sum() > self.training:  # in training, a single step has no standard deviation
            result[valid] = super().forward(rows[valid]).to(rows.dtype)
        return result.transpose(1, 2)


class ConvStep(nn.Module):
    """Conv1D, masked batch normalisation and, if wanted, ReLU.

    Shapes
    ------
    steps : (batch, n_in, n_steps)
    mask : (batch, 1, n_steps), 1 where a step is no padding
    returns : steps (batch, n_out, n_steps / stride) and their mask
    """

    def __init__(self, n_in: int, n_out: int, width: int, stride: int = 1, active: bool = True):
        super().__init__()
        self.conv = nn.Conv1d(n_in, n_out, width, stride, padding=(width - 1) // 2, bias=False)
        self.norm, self.relu = MaskedNorm(n_out), nn.ReLU() if active else nn.Identity()

    def forward(self, steps: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mask = shortened(mask, self.conv.stride[0])
        return self.relu(self.norm(self.conv(steps), mask)), mask


class Recurrent(SequenceNetwork):
    """A bidirectional recurrent network, and the mean of what it returns for each step.

    Parameters
    ----------
    n_classes
        Number of emotions.
    shape, images, input_dropout
        See :class:`SequenceNetwork`.
    cell
        "LSTM" or "GRU".
    hidden, layers
        Units of each direction, and layers.
    dropout
        Between layers and before the last one.

    Raises
    ------
    ValueError
        If the cell is unknown.
    """

    def __init__(
        self,
        n_classes: int,
        shape: tuple[int, int],
        images: bool = False,
        cell: str = "LSTM",
        hidden: int = 128,
        layers: int = 1,
        input_dropout: float = 0.5,
        dropout: float = 0.5,
    ):
        super().__init__(shape, images, input_dropout)
        if cell not in ("LSTM", "GRU"):
            raise ValueError(f"unknown cell {cell!r}: choose LSTM or GRU")
        self.rnn = getattr(nn, cell)(
            self.n_features,
            hidden,
            layers,
            batch_first=True,
            bidirectional=True,
            dropout=dropout * (layers > 1),
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * hidden, n_classes))

    def body(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.pool(read(self.rnn, steps, mask), mask)

    def pool(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the mean over the steps that are no padding; a subclass may weight them."""
        return (steps * mask).sum(-1) / mask.sum(-1).clamp(min=1)


@torch.inference_mode()
def compute(
    net: nn.Module, inputs: np.ndarray, method: str = "forward", device: str | torch.device = "cpu"
) -> np.ndarray:
    """Apply a method of a network to rows, in batches, as in prediction.

    Parameters
    ----------
    net
        On the device.
    inputs : np.ndarray [shape=(n_rows, ...)]
    method
        "forward" for logits, "embed" for what the head reads.
    device
        Of the network.

    Returns
    -------
    np.ndarray [shape=(n_rows, n_units)]
    """
    apply, size = getattr(net.eval(), method), getattr(net, "largest_batch", 256)
    rows = [apply(batch.to(device)).cpu() for batch in torch.tensor(inputs).split(size)]
    return torch.cat(rows).numpy()


def valid_frames(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale grey levels to about -2..2, with padding at 0, and find the non-padded frames.

    Parameters
    ----------
    images : uint8 tensor (batch, n_bands, n_frames)
        Columns that are 0 throughout are padding.

    Returns
    -------
    maps : float tensor (batch, 1, n_bands, n_frames)
    mask : float tensor (batch, 1, 1, n_frames)
        1 where a frame is no padding.
    """
    mask = images.amax(dim=1).clamp(max=1).float()[:, None, None]
    return (images.float()[:, None] - 128) / 64 * mask, mask


def read(rnn: nn.RNNBase, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Apply a bidirectional recurrent layer to each clip up to its last non-padded step.

    Parameters
    ----------
    rnn
        With ``batch_first=True``.
    steps : tensor (batch, n_features, n_steps)
    mask : tensor (batch, 1, n_steps)
        1 where a step is no padding.

    Returns
    -------
    tensor (batch, 2 * hidden, n_steps)
        0 after the end of each clip.
    """
    numbers = torch.arange(1, mask.shape[-1] + 1, device=mask.device)
    lengths = ((mask[:, 0] > 0) * numbers).amax(dim=1).clamp(min=1).cpu()
    packed = nn.utils.rnn.pack_padded_sequence(
        steps.transpose(1, 2), lengths, batch_first=True, enforce_sorted=False
    )
    return nn.utils.rnn.pad_packed_sequence(
        rnn(packed)[0], batch_first=True, total_length=mask.shape[-1]
    )[0].transpose(1, 2)


def mean_and_peak(steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Pool the steps of each clip: mean and maximum over those that are no padding.

    Parameters
    ----------
    steps : tensor (batch, n_features, n_steps)
    mask : tensor (batch, 1, n_steps)
        1 where a step is no padding.

    Returns
    -------
    tensor (batch, 2 * n_features)
        0 for a clip without any non-padded step.
    """
    peak = torch.where(mask.any(-1), steps.masked_fill(mask == 0, float("-inf")).amax(-1), 0)
    return torch.cat([(steps * mask).sum(-1) / mask.sum(-1).clamp(min=1), peak], dim=1)


def shortened(steps: torch.Tensor, stride: int) -> torch.Tensor:
    """Take the maximum of each `stride` steps.

    Parameters
    ----------
    steps : tensor (batch, n_features, n_steps)
        Steps, or their mask.
    stride
        1 leaves them as they are.

    Returns
    -------
    tensor (batch, n_features, n_steps / stride)
        The number of steps is rounded up: the last ones count also if they are fewer than `stride`.
    """
    return nn.functional.max_pool1d(steps, stride, ceil_mode=True) if stride > 1 else steps
