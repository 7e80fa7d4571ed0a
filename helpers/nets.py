"""Network architectures; all return logits (softmax is part of the loss, and of the prediction, never of the net).

Networks on images are made of ``embed``, which turns an image into a row of numbers, and ``head``, which makes logits of it.
"""

import itertools

import torch
import torchvision
from torch import nn


class MelCNN(nn.Module):
    """Four convolutional layers on mel-spectrogram images.

    The four layers (16, 32, 64, 16 channels, 512 hidden units) of a widely copied IEMOCAP notebook, with what made them
    train: batch normalisation, and mean and maximum over the *heard* frames in place of flattening, so that a clip's
    length does not matter and padding counts for nothing.

    Parameters
    ----------
    n_classes
        Number of emotions.
    shape
        Of an image: bands, frames.
    dropout
        Before and after the hidden layer.

    Shapes
    ------
    images : uint8 tensor (batch, n_bands, n_frames); columns that are 0 throughout are padding
    returns : logits (batch, n_classes)
    """

    channels = (16, 32, 64, 16)

    def __init__(self, n_classes: int, shape: tuple[int, int], dropout: float = 0.4):
        super().__init__()
        widths = (1, *self.channels)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(), nn.MaxPool2d(2))
            for n_in, n_out in itertools.pairwise(widths))
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * self.channels[-1] * (shape[0] // 16), 512), nn.ReLU(),
                                  nn.Dropout(dropout), nn.Linear(512, n_classes))

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        maps, mask = _heard(images)
        for block in self.blocks:  # halves height and width; padding is set back to 0 each time, as at the image's edge
            mask = nn.functional.max_pool2d(mask, (1, 2))
            maps = block(maps) * mask
        maps, mask = maps.flatten(1, 2), mask[:, 0]  # (batch, 16 * n_bands / 16, n_frames / 16)
        mean = maps.sum(-1) / mask.sum(-1).clamp(min=1)
        peak = maps.amax(-1)  # after ReLU nothing is below 0, so a padded frame never wins
        return torch.cat([mean, peak], dim=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(images))


class MelResNet(nn.Module):
    """A residual network of torchvision on mel-spectrogram images of one channel.

    Average pooling takes the heard frames alone. The head has 200 hidden units, as in the IEMOCAP notebooks.

    Parameters
    ----------
    n_classes
        Number of emotions.
    shape
        Of an image: bands, frames.
    depth
        18 or 34 layers.
    pretrained
        Start from ImageNet weights, which torchvision downloads; the network is then unfrozen in stages: the head alone for
        the first fifth of the training, with the last block until half of it, then everything.
    dropout
        Before the last layer.

    Shapes
    ------
    images : uint8 tensor (batch, n_bands, n_frames); columns that are 0 throughout are padding
    returns : logits (batch, n_classes)

    References
    ----------
    K. He et al., "Deep residual learning for image recognition", CVPR 2016.
    """

    def __init__(self, n_classes: int, shape: tuple[int, int], depth: int = 18, pretrained: bool = False, dropout: float = 0.5):
        super().__init__()
        self.pretrained = pretrained
        body = _imagenet_resnet(depth) if pretrained else getattr(torchvision.models, f"resnet{depth}")()
        first = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        if pretrained:  # a grey image is three equal channels, so their weights add up
            first.weight.data = body.conv1.weight.data.sum(dim=1, keepdim=True)
        self.stem = nn.Sequential(first, body.bn1, body.relu, body.maxpool)
        self.blocks = nn.ModuleList([body.layer1, body.layer2, body.layer3, body.layer4])
        self.head = nn.Sequential(nn.Linear(512, 200), nn.ReLU(), nn.Dropout(dropout), nn.Linear(200, n_classes))

    def begin_epoch(self, share: float) -> None:
        """Unfreeze in stages, if the weights are pretrained."""
        if self.pretrained:
            self.stem.requires_grad_(share >= 0.5)
            self.blocks[:3].requires_grad_(share >= 0.5)
            self.blocks[3].requires_grad_(share >= 0.2)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        maps, mask = _heard(images)
        maps = self.stem(maps)
        for block in self.blocks:
            maps = block(maps)
        mask = nn.functional.adaptive_max_pool2d(mask, (1, maps.shape[-1])).clamp(min=1e-6)
        return (maps.mean(dim=2, keepdim=True) * mask).sum(dim=(2, 3)) / mask.sum(dim=(2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(images))


def _heard(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale grey levels to about -2..2, with padding at 0.

    Returns maps (batch, 1, n_bands, n_frames), and a mask (batch, 1, 1, n_frames) that is 1 where a frame is no padding.
    """
    mask = images.amax(dim=1).clamp(max=1).float()[:, None, None]
    return (images.float()[:, None] - 128) / 64 * mask, mask


def _imagenet_resnet(depth: int) -> nn.Module:
    """A ResNet with ImageNet weights; says where to put them if they can't be downloaded."""
    weights = torchvision.models.get_model_weights(f"resnet{depth}").DEFAULT
    try:
        return torchvision.models.get_model(f"resnet{depth}", weights=weights)
    except OSError as error:
        place = f"{torch.hub.get_dir()}/checkpoints/{weights.url.rsplit('/', 1)[-1]}"
        raise FileNotFoundError(f"ImageNet weights of ResNet{depth} could not be downloaded ({error}). Fetch {weights.url} "
                                f"elsewhere and put it to {place}, or set PRETRAINED = False.") from None


class Scaler(nn.Module):
    """Standardises features with mean and standard deviation of the training clips; rows of zeros are padding and stay so."""

    def __init__(self, n_features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("std", torch.ones(n_features))

    def fit(self, inputs: torch.Tensor) -> None:
        rows = inputs.flatten(0, -2).double()
        rows = rows[rows.any(dim=1)]
        self.mean, self.std = rows.mean(dim=0).float(), rows.std(dim=0).clamp(min=1e-6).float()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return ((inputs - self.mean) / self.std).clamp(-10, 10) * inputs.any(dim=-1, keepdim=True)


class DNN(nn.Module):
    """A multi-layer perceptron on functionals.

    Parameters
    ----------
    n_classes
        Number of emotions.
    shape
        Number of features, as a tuple of one.
    hidden
        Units of each hidden layer; the IEMOCAP notebooks had one of 300.
    dropout
        Before the first and after each hidden layer; features of a clip are redundant, so half may go.

    Shapes
    ------
    inputs : float tensor (batch, n_features), not yet scaled
    returns : logits (batch, n_classes)
    """

    def __init__(self, n_classes: int, shape: tuple[int], hidden: tuple[int, ...] = (300,), dropout: float = 0.4):
        super().__init__()
        self.scaler = Scaler(shape[0])
        layers = [nn.Dropout(dropout)]
        for n_in, n_out in itertools.pairwise((shape[0], *hidden)):
            layers += [nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], n_classes))

    def fit_inputs(self, inputs: torch.Tensor) -> None:
        self.scaler.fit(inputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(self.scaler(inputs))


class LSTM(nn.Module):
    """A recurrent network on sequences of features, read both ways, padded to one length but never reading the padding.

    Parameters
    ----------
    n_classes
        Number of emotions.
    shape
        Of a sequence: steps, features.
    hidden, layers
        Units of each direction, and layers of the LSTM. The IEMOCAP notebooks had 70 and 2, in one direction.
    input_dropout
        Share of the features that is left out of a whole clip at a time; there are hundreds, which say nearly the same, and
        without this the network overfits within a few epochs.
    dropout
        Between layers and before the last one.

    Shapes
    ------
    inputs : float tensor (batch, n_steps, n_features), not yet scaled; steps of zeros at the end are padding
    returns : logits (batch, n_classes), from the mean over the steps
    """

    def __init__(self, n_classes: int, shape: tuple[int, int], hidden: int = 128, layers: int = 1, input_dropout: float = 0.5,
                 dropout: float = 0.5):
        super().__init__()
        self.scaler = Scaler(shape[1])
        self.input_dropout = nn.Dropout1d(input_dropout)
        self.lstm = nn.LSTM(shape[1], hidden, layers, batch_first=True, bidirectional=True, dropout=dropout * (layers > 1))
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * hidden, n_classes))

    def fit_inputs(self, inputs: torch.Tensor) -> None:
        self.scaler.fit(inputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(1, inputs.shape[1] + 1, device=inputs.device)
        lengths = (inputs.any(dim=-1) * steps).amax(dim=1).clamp(min=1)
        scaled = self.input_dropout(self.scaler(inputs).transpose(1, 2)).transpose(1, 2)  # Dropout1d wants features first
        packed = nn.utils.rnn.pack_padded_sequence(scaled, lengths.cpu(), batch_first=True, enforce_sorted=False)
        outputs, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.head(outputs.sum(dim=1) / lengths[:, None])
