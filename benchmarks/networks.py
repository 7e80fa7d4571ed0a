"""What every published network costs, beside what it recognises: parameters, seconds of training, clips per second.

Each network is built again from its published description, trained for an epoch and asked for predictions, one after the other
in the same run, on random inputs of the published shape and without padding: real clips are shorter, so recurrent networks
are a little faster than this. Seconds of training are seconds per epoch times the epochs that the published folds ran, all
folds together and one after the other; a searched network counts each trial with the epochs of the chosen one. Predicting the
valid clips after each epoch, and what is made once for all networks (features, images, augmented copies), is not in it.
Nothing is read but what is committed.
"""

import argparse
import json
import statistics
import sys
from time import perf_counter

import numpy as np
import timing
import torch

from helpers import augment, metrics, nets, paths, training
from helpers.experiment import Part
from helpers.tables import read_table

N_CLIPS = 320  # an epoch of so many is timed


def timed(compute, device: str, repeats: int) -> float:
    """Return the median of the seconds that something takes, after one time that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        start = perf_counter()
        compute()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(perf_counter() - start)
    return statistics.median(seconds[1:])


def cost(name: str, network: dict, n_classes: int, device: str, repeats: int) -> dict[str, float]:
    """Build one network again and time it."""
    rng, shape = np.random.default_rng(0), (N_CLIPS, *network["inputs"]["shape"])
    images = network["inputs"]["dtype"] == "uint8"
    inputs = (
        rng.integers(1, 255, shape).astype(np.uint8)
        if images
        else rng.normal(1, 1, shape).astype(np.float32)
    )
    part = Part(inputs, np.arange(N_CLIPS) % n_classes, np.repeat("speaker", N_CLIPS))
    settings = network["settings"]
    drawn = {k: v for k, v in settings["augment"].items() if k not in ("copies", "code")}
    model = training.Network(
        name,
        **settings
        | {
            "build": getattr(nets, settings["build"]),
            "trials": 0,
            "device": device,
            "augment": augment.Augmentation(**drawn),
            "options": settings["options"]
            | ({"pretrained": False} if settings["options"].get("pretrained") else {}),
        },
    )
    trainer = training.Trainer(model, part, part, n_classes, seed=0)
    trainer.schedule = torch.optim.lr_scheduler.ConstantLR(
        trainer.optimiser, 1.0
    )  # the real one ends after its epochs
    parameters = sum(p.numel() for p in trainer.bare_net().parameters())
    if parameters != network["parameters"]:
        sys.exit(
            f"{name}: {parameters} weights were built, {network['parameters']} were published: publish again"
        )
    per_clip = timed(trainer.train_epoch, device, repeats) / N_CLIPS
    trained = sum(
        epochs * clips for epochs, clips in zip(network["epochs"], network["clips"], strict=True)
    )
    return {
        "parameters": parameters,
        "training": per_clip * trained * max(network["settings"]["trials"], 1),
        "clips_per_s": N_CLIPS / timed(lambda: trainer.predict(inputs), device, repeats),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--results", default="data/results/ravdess/ravdess-8", help="a published folder"
    )
    options.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    options.add_argument(
        "--repeats", type=int, default=2, help="timed epochs, after one that is not counted"
    )
    options = options.parse_args()
    folder, device = paths.PROJECT / options.results, training.find_device(options.device).type
    networks = json.loads((folder / "networks.json").read_text(encoding="utf-8"))
    predictions = metrics.read_predictions(folder) | metrics.read_predictions(
        folder / "comparisons"
    )
    folds = read_table(folder / "folds.csv", "folds")
    rows = {}
    for name, network in networks.items():
        if name in predictions and hasattr(
            nets, network["settings"]["build"]
        ):  # not those that read text
            tested = predictions[name][predictions[name]["role"] == "test"]
            found = {variant: metrics.uar(part) for variant, part in tested.groupby("variant")}
            rows[name] = found | cost(
                name, network, folds["emotion"].nunique(), device, options.repeats
            )
            print(f"\r\033[K{name}", end="", file=sys.stderr, flush=True)
    kind = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{timing.N_JOBS} cores, {timing.processor()}"
    )
    print(
        f"\r\033[K{folder.parent.name} {folder.name}, on {kind}. UAR in %: inductive · speaker-normalised.\n",
        flush=True,
    )
    print("| network | parameters | training, s | clips/s | UAR % |\n|---|--:|--:|--:|--:|")
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["inductive"]):
        second = f" · {100 * row['speaker-normalised']:.1f}" if "speaker-normalised" in row else ""
        print(
            f"| {name} | {row['parameters']:,} | {row['training']:,.0f} | {row['clips_per_s']:,.0f} | "
            f"{100 * row['inductive']:.1f}{second} |"
        )


if __name__ == "__main__":
    main()
