"""Network architectures; all return logits (softmax is part of the loss, and of the prediction, never of the net)."""

import itertools

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

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mask = images.amax(dim=1).clamp(max=1).float()[:, None, None]  # (batch, 1, 1, n_frames): 1 where not padding
        maps = (images.float()[:, None] - 128) / 64 * mask
        for block in self.blocks:  # halves height and width; padding is set back to 0 each time, as at the image's edge
            mask = nn.functional.max_pool2d(mask, (1, 2))
            maps = block(maps) * mask
        maps, mask = maps.flatten(1, 2), mask[:, 0]  # (batch, 16 * n_bands / 16, n_frames / 16)
        mean = maps.sum(-1) / mask.sum(-1).clamp(min=1)
        peak = maps.amax(-1)  # after ReLU nothing is below 0, so a padded frame never wins
        return self.head(torch.cat([mean, peak], dim=1))
