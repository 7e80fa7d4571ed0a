"""Network architectures; all return logits (softmax is part of the loss, and of the prediction, never of the net)."""

import torch
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
    n_bands
        Height of the images in pixels.
    dropout
        Before and after the hidden layer.

    Shapes
    ------
    images : uint8 tensor (batch, n_bands, n_frames); columns that are 0 throughout are padding
    returns : logits (batch, n_classes)
    """

    channels = (16, 32, 64, 16)

    def __init__(self, n_classes: int, n_bands: int, dropout: float = 0.4):
        super().__init__()
        layers, previous = [], 1
        for width in self.channels:
            layers += [nn.Conv2d(previous, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                       nn.MaxPool2d(2)]
            previous = width
        self.convolutions = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * previous * (n_bands // 16), 512), nn.ReLU(),
                                  nn.Dropout(dropout), nn.Linear(512, n_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        heard = images.amax(dim=1, keepdim=True).float().clamp(max=1)  # (batch, 1, n_frames): 1 where not padding
        maps = self.convolutions((images.float().unsqueeze(1) - 128) / 64)  # (batch, 16, n_bands/16, n_frames/16)
        maps = maps.flatten(1, 2)
        mask = nn.functional.adaptive_max_pool1d(heard, maps.shape[-1])
        mean = (maps * mask).sum(-1) / mask.sum(-1).clamp(min=1)
        peak = (maps * mask).amax(-1)  # after ReLU everything is at least 0, so masked frames never win
        return self.head(torch.cat([mean, peak], dim=1))
