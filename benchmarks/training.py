"""Time the training of ResNet18 on mel images against torchvision's ImageFolder and DataLoader.

The same images, the same size, the same network, the same optimiser and batches. *ImageFolder*
reads, pads and batches each image anew in every epoch, in as many workers as there are cores,
and computes in float32, as tutorials do. *Ours* reads them once into one tensor on the device,
and computes in bfloat16 where the device does; the row in float32 shows what is left without
that. An epoch is timed in each round; starting workers is part of an epoch of ImageFolder, as
it is in life."""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import timing
import torch
from torchvision import transforms
from torchvision.datasets import ImageFolder

from helpers import spectrograms, training
from helpers.experiment import FoldRows
from helpers.nets import MelResNet

N_FRAMES = 128
BATCH_SIZE = 32
REQUIRED = {"cpu": 1.5, "cuda": 10}


def ours(rows: FoldRows, n_classes: int, precision: str, device: str):
    """Return a function that trains one epoch with the project's loop."""
    settings = training.Network(
        "ResNet18",
        MelResNet,
        batch_size=BATCH_SIZE,
        optimiser="SGD",
        learning_rate=0.01,
        epochs=1000,
        precision=precision,
        device=device,
    )
    state = training.Trainer(settings, rows, rows, n_classes, seed=0)

    def epoch():
        state.train_epoch()
        synchronise(device)

    return epoch


def image_folder(folder: Path, n_classes: int, device: str):
    """Return a function that trains one epoch the usual way."""

    def to_width(image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(
            image[..., :N_FRAMES], (0, max(N_FRAMES - image.shape[-1], 0))
        )

    dataset = ImageFolder(
        folder, transforms.Compose([transforms.Grayscale(), transforms.PILToTensor(), to_width])
    )
    loader = torch.utils.data.DataLoader(
        dataset, BATCH_SIZE, shuffle=True, num_workers=timing.N_JOBS, pin_memory=device == "cuda"
    )
    net = MelResNet(n_classes, (spectrograms.IMAGE.n_mels, N_FRAMES)).to(device)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def epoch():
        net.train()
        for images, targets in loader:
            loss = torch.nn.functional.cross_entropy(
                net(images[:, 0].to(device)), targets.to(device)
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        synchronise(device)

    return epoch


def synchronise(device: str) -> None:
    """Wait until the GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Print clips per second in training; leave with 1 if the required ratio is missed."""
    options = timing.parser(__doc__.splitlines()[0], clips=200).parse_args()
    device = training.find_device().type
    clips = timing.read_clips(options.corpus, options.clips).assign(audio_hash="")
    clips = clips[clips["emotion_native"].map(clips["emotion_native"].value_counts()) > 1]
    with tempfile.TemporaryDirectory() as folder:
        images = spectrograms.write_images(clips, Path(folder) / "ours")
        for row, emotion in zip(images.itertuples(), clips["emotion_native"], strict=True):
            target = Path(folder) / "folders" / emotion
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(folder) / "ours" / row.image, target)
        classes = pd.factorize(clips["emotion_native"])[0]
        rows = FoldRows(
            spectrograms.read_images(images, Path(folder) / "ours", N_FRAMES),
            classes,
            np.repeat(["all"], len(clips)),
        )
        n_classes = classes.max() + 1
        roads = {
            "ours": ours(rows, n_classes, "auto", device),
            "ours, in float32": ours(rows, n_classes, "float32", device),
            "ImageFolder and DataLoader": image_folder(Path(folder) / "folders", n_classes, device),
        }
        seconds = timing.in_turns(roads, options.repeats)
    met = timing.report(seconds, clips, {"ImageFolder and DataLoader": REQUIRED[device]})
    print(f"\non {device}, images of {spectrograms.IMAGE.n_mels} x {N_FRAMES}")
    sys.exit(not met)


if __name__ == "__main__":
    main()
