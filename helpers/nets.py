"""Network architectures; all return logits (softmax is part of the loss, and of the prediction, never of the net).

Networks on images are made of ``embed``, which turns an image into a row of numbers, and ``head``, which makes logits of it.
"""

import itertools

import numpy as np
import scipy.fft
import torch
from torch import nn


class MelCNN(nn.Module):
    """A few convolutional layers on mel-spectrogram images, or on the MFCC of these images.

    The four layers (16, 32, 64, 16 channels, 512 hidden units) of a widely copied IEMOCAP notebook, with what made them
    train: batch normalisation, and mean and maximum over the *heard* frames in place of flattening, so that a clip's
    length does not matter and padding counts for nothing in prediction (in training, batch normalisation still sees it).

    Parameters
    ----------
    n_classes
        Number of emotions.
    shape
        Of an image: bands, frames.
    channels
        Of each layer; each halves height and width.
    n_mfcc
        Read so many MFCC (the cosine transform over an image's bands) in place of the bands; 0: the bands.
    dropout
        Before and after the hidden layer.

    Shapes
    ------
    images : uint8 tensor (batch, n_bands, n_frames); columns that are 0 throughout are padding
    returns : logits (batch, n_classes)
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
        self.mfcc = MFCC(shape[0], n_mfcc) if n_mfcc else None
        height = (n_mfcc or shape[0]) // 2 ** len(channels)
        if min(height, shape[1] // 2 ** len(channels)) < 1:
            raise ValueError(
                f"{len(channels)} layers halve {n_mfcc or shape[0]} rows and {shape[1]} frames to nothing: give "
                f"at least {2 ** len(channels)} of both, or fewer channels"
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
            nn.Linear(2 * channels[-1] * height, 512),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(512, n_classes),
        )

    def fit_inputs(self, images: torch.Tensor) -> None:
        if self.mfcc is not None:
            self.mfcc.fit(images)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        maps, mask = _heard(images)
        if self.mfcc is not None:
            maps = self.mfcc(maps) * mask
        for block in (
            self.blocks
        ):  # halves height and width; padding is set back to 0 each time, as at the image's edge
            mask = nn.functional.max_pool2d(mask, (1, 2))
            maps = block(maps) * mask
        maps, mask = (
            maps.flatten(1, 2),
            mask[:, 0],
        )  # (batch, channels * height, n_frames / 2 ** n_layers)
        mean = maps.sum(-1) / mask.sum(-1).clamp(min=1)
        peak = maps.amax(-1)  # after ReLU nothing is below 0, so a padded frame never wins
        return torch.cat([mean, peak], dim=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(images))


class MFCC(nn.Module):
    """Mel-frequency cepstral coefficients of mel images, standardised with the training clips' mean and deviation."""

    def __init__(self, n_bands: int, n_mfcc: int):
        super().__init__()
        cosines = scipy.fft.dct(np.eye(n_bands), norm="ortho")[
            ::-1, :n_mfcc
        ]  # images have the highest band first
        self.register_buffer("cosines", torch.tensor(cosines.copy(), dtype=torch.float))
        self.scaler = Scaler(n_mfcc)

    def fit(self, images: torch.Tensor) -> None:
        maps, mask = _heard(images)
        self.scaler.fit(maps[:, 0].transpose(1, 2)[mask[:, 0, 0] > 0] @ self.cosines)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.scaler(maps.transpose(2, 3) @ self.cosines).transpose(2, 3)


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
        body = _imagenet_resnet(depth) if pretrained else getattr(models, f"resnet{depth}")()
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
    from torchvision import models

    weights = models.get_model_weights(f"resnet{depth}").DEFAULT
    try:
        return models.get_model(f"resnet{depth}", weights=weights)
    except OSError as error:
        place = f"{torch.hub.get_dir()}/checkpoints/{weights.url.rsplit('/', 1)[-1]}"
        raise FileNotFoundError(
            f"ImageNet weights of ResNet{depth} could not be downloaded ({error}). Fetch {weights.url} "
            f"elsewhere and put it to {place}, or set PRETRAINED = False."
        ) from None


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

    def fit_inputs(self, inputs: torch.Tensor) -> None:
        self.scaler.fit(inputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(self.scaler(inputs))


class SequenceNetwork(nn.Module):
    """What the networks on sequences share: they see what was heard, and a part of each clip's own length.

    A subclass has ``body``, which turns steps into other steps, and a ``head``. Padding reaches no statistic, no weight of
    attention and no mean: in training as in prediction, more of it changes nothing.

    Parameters
    ----------
    shape
        Of an input: steps, features. For mel images, which need no scaling: bands, frames.
    images
        Inputs are mel images.
    input_dropout
        Share of the features that is left out of a whole clip at a time; there are dozens that say nearly the same, and
        without this a network overfits within a few epochs.

    Shapes
    ------
    inputs : float tensor (batch, n_steps, n_features), not yet scaled; steps of zeros are padding. Or uint8 images
        (batch, n_bands, n_frames); frames of zeros are padding
    returns : logits (batch, n_classes)
    """

    head: nn.Module

    def __init__(self, shape: tuple[int, int], images: bool = False, input_dropout: float = 0.0):
        super().__init__()
        self.images, self.n_features = images, shape[0] if images else shape[1]
        self.scaler = None if images else Scaler(shape[1])
        self.input_dropout = nn.Dropout1d(input_dropout)

    def fit_inputs(self, inputs: torch.Tensor) -> None:
        if self.scaler is not None:
            self.scaler.fit(inputs)

    def embed(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.images:
            maps, heard = _heard(inputs)
            steps, mask = maps[:, 0], heard[:, 0]
        else:
            steps, mask = self.scaler(inputs).transpose(1, 2), inputs.any(dim=-1)[:, None].float()
        return self.body(self.input_dropout(steps), mask)

    def body(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Turn (batch, n_features, n_steps) and a mask (batch, 1, n_steps) into one row per clip."""
        raise NotImplementedError

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(inputs))


class MaskedNorm(nn.BatchNorm1d):
    """Batch normalisation over the steps that were heard, those alone; padding comes out as 0."""

    def forward(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows = steps.transpose(1, 2)
        heard = mask[:, 0] > 0
        result = torch.zeros_like(rows)
        if (
            heard.sum() > self.training
        ):  # one step alone has no deviation: there is nothing to learn from
            result[heard] = super().forward(rows[heard]).to(rows.dtype)
        return result.transpose(1, 2)


class ConvStep(nn.Module):
    """Conv1D, masked batch normalisation and, if wanted, ReLU; with a stride, the mask becomes shorter too."""

    def __init__(self, n_in: int, n_out: int, width: int, stride: int = 1, active: bool = True):
        super().__init__()
        self.conv = nn.Conv1d(n_in, n_out, width, stride, padding=(width - 1) // 2, bias=False)
        self.norm, self.active, self.stride = MaskedNorm(n_out), active, stride

    def forward(self, steps: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mask = _shortened(mask, self.stride)
        steps = self.norm(self.conv(steps), mask)
        return (steps.relu() if self.active else steps), mask


class AlexNet1D(SequenceNetwork):
    """AlexNet with Conv1D: five convolutions, three of them followed by pooling, and two hidden layers.

    Against the original: strides for sequences of a hundred steps, batch normalisation, mean and maximum over the heard steps
    in place of flattening, and hidden layers of 256 in place of 4096.

    Parameters
    ----------
    n_classes
        Number of emotions.
    shape, images, input_dropout
        See :class:`SequenceNetwork`.
    width
        Channels of the first layer, 64 in the original; the others go with it.
    dropout
        Before each hidden layer.

    References
    ----------
    A. Krizhevsky, I. Sutskever, G. E. Hinton, "ImageNet classification with deep convolutional neural networks", NeurIPS 2012.
    """

    def __init__(
        self,
        n_classes: int,
        shape: tuple[int, int],
        images: bool = False,
        width: int = 64,
        input_dropout: float = 0.2,
        dropout: float = 0.5,
    ):
        super().__init__(shape, images, input_dropout)
        self.layers = nn.ModuleList(
            [
                ConvStep(self.n_features, width, 11, 2),
                ConvStep(width, 3 * width, 5),
                ConvStep(3 * width, 6 * width, 3),
                ConvStep(6 * width, 4 * width, 3),
                ConvStep(4 * width, 4 * width, 3),
            ]
        )
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(8 * width, 256),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, n_classes),
        )

    def body(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            steps, mask = layer(steps, mask)
            if i in (0, 1, 4):
                steps, mask = _shortened(steps, 2), _shortened(mask, 2)
        return mean_and_peak(steps, mask)


class ResNet1D(SequenceNetwork):
    """A residual network with Conv1D: four stages of two blocks, each half as long and, up to a limit, twice as wide.

    Parameters
    ----------
    n_classes
        Number of emotions.
    shape, images, input_dropout
        See :class:`SequenceNetwork`.
    width
        Channels of the first stage; the others have 2, 4 and 4 times as many.
    dropout
        Before the last layer.

    References
    ----------
    K. He et al., "Deep residual learning for image recognition", CVPR 2016.
    """

    def __init__(
        self,
        n_classes: int,
        shape: tuple[int, int],
        images: bool = False,
        width: int = 64,
        input_dropout: float = 0.2,
        dropout: float = 0.5,
    ):
        super().__init__(shape, images, input_dropout)
        self.stem = ConvStep(self.n_features, width, 7, 2)
        widths = [width, width, 2 * width, 4 * width, 4 * width]
        self.blocks = nn.ModuleList(
            block
            for i, (n_in, n_out) in enumerate(itertools.pairwise(widths))
            for block in (
                ResidualBlock(n_in, n_out, 1 if i == 0 else 2),
                ResidualBlock(n_out, n_out),
            )
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(8 * width, n_classes))

    def body(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        steps, mask = self.stem(steps, mask)
        for block in self.blocks:
            steps, mask = block(steps, mask)
        return mean_and_peak(steps, mask)


class ResidualBlock(nn.Module):
    """Two convolutions, whose result is added to what came in."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1):
        super().__init__()
        self.first, self.second = (
            ConvStep(n_in, n_out, 3, stride),
            ConvStep(n_out, n_out, 3, active=False),
        )
        self.short = (
            ConvStep(n_in, n_out, 1, stride, active=False) if stride > 1 or n_in != n_out else None
        )

    def forward(self, steps: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        result, shorter = self.second(*self.first(steps, mask))
        return (
            result + (steps if self.short is None else self.short(steps, mask)[0])
        ).relu(), shorter


class Recurrent(SequenceNetwork):
    """A recurrent network, read both ways.

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
    pooling
        "mean" over the steps, or "attention": a mean whose weights are learnt.
    dropout
        Between layers and before the last one.
    """

    def __init__(
        self,
        n_classes: int,
        shape: tuple[int, int],
        images: bool = False,
        cell: str = "LSTM",
        hidden: int = 128,
        layers: int = 1,
        pooling: str = "mean",
        input_dropout: float = 0.5,
        dropout: float = 0.5,
    ):
        super().__init__(shape, images, input_dropout)
        self.rnn = _both_ways(cell, self.n_features, hidden, layers, dropout * (layers > 1))
        self.attention = Attention(2 * hidden) if pooling == "attention" else None
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * hidden, n_classes))

    def body(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        steps = read(self.rnn, steps, mask)
        return (
            (steps * mask).sum(-1) / mask.sum(-1).clamp(min=1)
            if self.attention is None
            else self.attention(steps, mask)
        )


class Attention(nn.Module):
    """A mean over the heard steps whose weights are learnt: some moments tell more than others.

    References
    ----------
    S. Mirsamadi, E. Barsoum, C. Zhang, "Automatic speech emotion recognition using recurrent neural networks with local
    attention", ICASSP 2017.
    """

    def __init__(self, n_features: int):
        super().__init__()
        self.score = nn.Sequential(nn.Conv1d(n_features, 64, 1), nn.Tanh(), nn.Conv1d(64, 1, 1))

    def weights(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the weights (batch, 1, n_steps): they add up to 1 over the heard steps and are 0 elsewhere."""
        scores = self.score(steps).float().masked_fill(mask == 0, -1e9)
        return scores.softmax(dim=-1) * mask

    def forward(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (steps * self.weights(steps, mask)).sum(-1)


class Transformer(SequenceNetwork):
    """A small Transformer encoder: in each layer every heard step attends to every other.

    Parameters
    ----------
    n_classes
        Number of emotions.
    shape, images, input_dropout
        See :class:`SequenceNetwork`.
    width, heads, layers
        Units of a step, heads of attention, layers.
    dropout
        Inside the layers and before the last one.

    References
    ----------
    A. Vaswani et al., "Attention is all you need", NeurIPS 2017.
    """

    def __init__(
        self,
        n_classes: int,
        shape: tuple[int, int],
        images: bool = False,
        width: int = 128,
        heads: int = 4,
        layers: int = 2,
        input_dropout: float = 0.3,
        dropout: float = 0.3,
    ):
        super().__init__(shape, images, input_dropout)
        self.stem = ConvStep(
            self.n_features, width, 5, 2
        )  # neighbours first, and half as many steps
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.attention = nn.LayerNorm(width), Attention(width)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, n_classes))

    def body(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        steps, mask = self.stem(steps, mask)
        rows = steps.transpose(1, 2)
        rows = rows + _positions(rows.shape[1], rows.shape[2]).to(rows)
        hidden = mask[:, 0] == 0
        hidden[:, 0] = False  # a clip without any sound attends to its first step, not to nothing
        rows = self.norm(self.encoder(rows, src_key_padding_mask=hidden))
        return self.attention(rows.transpose(1, 2), mask)


class ConvLSTM(SequenceNetwork):
    """LSTM, two wide convolutions, two more LSTMs: a known RAVDESS network on log-mel spectrograms.

    Against the original: a quarter of its units, read both ways; the convolutions take every second step, so that the later
    LSTMs read a quarter of them; mean and maximum over the heard steps in place of the last step; one hidden layer of 256
    in place of 2048 and 512.

    Parameters
    ----------
    n_classes
        Number of emotions.
    shape, images, input_dropout
        See :class:`SequenceNetwork`.
    width
        Units of the first LSTM, both ways together; 256 in the original.
    dropout
        Before and after the hidden layer.
    """

    def __init__(
        self,
        n_classes: int,
        shape: tuple[int, int],
        images: bool = False,
        width: int = 64,
        input_dropout: float = 0.0,
        dropout: float = 0.4,
    ):
        super().__init__(shape, images, input_dropout)
        self.first = _both_ways("LSTM", self.n_features, width // 2)
        self.convs = nn.ModuleList(
            [ConvStep(width, 2 * width, 9, 2), ConvStep(2 * width, 4 * width, 9, 2)]
        )
        self.second, self.third = (
            _both_ways("LSTM", 4 * width, width),
            _both_ways("LSTM", 2 * width, width),
        )
        self.norm = MaskedNorm(2 * width)
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(4 * width, 256),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(256, n_classes),
        )

    def body(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        steps = read(self.first, steps, mask)
        for conv in self.convs:
            steps, mask = conv(steps, mask)
        steps = self.norm(read(self.second, steps, mask), mask)
        return mean_and_peak(read(self.third, steps, mask), mask)


class MeansConv(nn.Module):
    """Conv1D over a row of means, as if neighbours in the table were neighbours in sound: of MFCC and mel bands, they are.

    The network that a wav2vec project shipped in the end: 256, 256, 128 and 64 channels with pooling, and a hidden layer of 32.

    Parameters
    ----------
    n_classes
        Number of emotions.
    shape
        Number of features, as a tuple of one.
    dropout
        After each pooling and before the last layer.

    Shapes
    ------
    inputs : float tensor (batch, n_features), not yet scaled
    returns : logits (batch, n_classes)
    """

    def __init__(self, n_classes: int, shape: tuple[int], dropout: float = 0.2):
        super().__init__()
        if shape[0] < 16:
            raise ValueError(
                f"{shape[0]} features are halved four times to nothing: give at least 16"
            )
        self.scaler = Scaler(shape[0])
        layers, widths = [], (1, 256, 256, 128, 64)
        for n_in, n_out in itertools.pairwise(widths):
            layers += [
                nn.Conv1d(n_in, n_out, 5, padding=2, bias=False),
                nn.BatchNorm1d(n_out),
                nn.ReLU(),
                nn.MaxPool1d(2),
                nn.Dropout(dropout),
            ]
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(64 * (shape[0] // 16), 32), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(32, n_classes))

    def fit_inputs(self, inputs: torch.Tensor) -> None:
        self.scaler.fit(inputs)

    def embed(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(self.scaler(inputs)[:, None])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(inputs))


def read(rnn: nn.RNNBase, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Let a recurrent layer read each clip up to its last heard step, forwards and backwards.

    Shapes
    ------
    steps : (batch, n_features, n_steps)
    mask : (batch, 1, n_steps), 1 where a step is no padding
    returns : (batch, 2 * hidden, n_steps), 0 behind each clip's end
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
    """Return mean and maximum over the heard steps, (batch, 2 * n_features)."""
    peak = steps.masked_fill(mask == 0, float("-inf")).amax(-1)
    peak = torch.where(mask.any(-1), peak, 0)  # a clip without any sound
    return torch.cat([(steps * mask).sum(-1) / mask.sum(-1).clamp(min=1), peak], dim=1)


def _both_ways(
    cell: str, n_features: int, hidden: int, layers: int = 1, dropout: float = 0.0
) -> nn.RNNBase:
    if cell not in ("LSTM", "GRU"):
        raise ValueError(f"unknown cell {cell!r}: choose LSTM or GRU")
    return getattr(nn, cell)(
        n_features, hidden, layers, batch_first=True, bidirectional=True, dropout=dropout
    )


def _shortened(steps: torch.Tensor, stride: int) -> torch.Tensor:
    """Take the highest of each `stride` steps; the last ones count also if they are fewer."""
    return nn.functional.max_pool1d(steps, stride, ceil_mode=True) if stride > 1 else steps


def _positions(n_steps: int, width: int) -> torch.Tensor:
    """Return sines and cosines that tell a Transformer which step is which, (n_steps, width)."""
    angles = torch.arange(n_steps)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
