"""What a trained model bases its answers on: where it looks on an image or in time, and which features it would miss."""

import warnings

import numpy as np
import pandas as pd
import torch
from captum.attr import FeaturePermutation, LayerGradCam
from torch import nn

from helpers import audio
from helpers.artifacts import Artifact, Average

OCCLUDED_DB = 40.0  # so much quieter: like a pause. Digital silence is found in no recording, and would itself be conspicuous
FLANK_S = 0.01  # of a window that is made quiet; an edge would be a click


def grad_cam(
    net: nn.Module, layer: nn.Module, images: np.ndarray, classes: np.ndarray
) -> np.ndarray:
    """Return, for each pixel, how much its surroundings raised the score of a class (Grad-CAM).

    Use it to see whether a network looks at the voice or at something that it should not know of. It is coarse: as fine as
    the layer's maps.

    Parameters
    ----------
    net
        A trained network, in evaluation mode, on the CPU.
    layer
        The convolutional part whose maps are weighed; a late one.
    images : np.ndarray [shape=(n_images, n_bands, n_frames), uint8]
    classes : np.ndarray [shape=(n_images,), int]
        The class to explain, per image.

    Returns
    -------
    np.ndarray [shape as images, float32]
        0 to 1, 1 being the highest of each image.

    References
    ----------
    R. Selvaraju et al., "Grad-CAM: Visual explanations from deep networks via gradient-based localization", ICCV 2017.
    """
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # images are whole numbers; the gradient is that of the maps
        explainer = LayerGradCam(net, layer)
        maps = explainer.attribute(
            torch.tensor(images), torch.tensor(np.asarray(classes)), relu_attributions=True
        )
    maps = nn.functional.interpolate(maps.detach(), images.shape[1:], mode="bilinear")[:, 0]
    return (maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-9)).numpy()


def occlusion(
    model: Artifact | Average,
    signal: np.ndarray,
    emotion: str,
    enrolment: list[np.ndarray] | None = None,
    only: tuple[str, ...] = (),
    window_s: float = 0.3,
    n_most: int = 32,
) -> pd.DataFrame:
    """Return how much less probable an emotion gets when a short part of a clip is made quiet, for parts all along the clip.

    Use it to see where a model of any kind listens: it needs nothing but its answers. It says where, not why; and a clip with
    a part made quiet is one that nobody said.

    Parameters
    ----------
    model
        What ``artifacts.load`` returned.
    signal : np.ndarray [shape=(n_samples,), float32]
        At ``audio.SAMPLING_RATE``.
    emotion
        The one to explain, usually the answer.
    enrolment, only
        As for ``predict.predict``: other clips of the speaker, and the emotions to choose among.
    window_s
        Length of a part, in seconds; neighbours overlap by half. In clips that would need more than `n_most` parts they are
        longer.
    n_most
        Parts at most: the model answers once for each.

    Returns
    -------
    pd.DataFrame
        One row per part: ``start_s``, ``end_s`` (s) and ``fall``, by which the probability falls, -1 to 1. Where it is below 0,
        the part spoke for another emotion.

    Raises
    ------
    ValueError
        If the model does not know the emotion, or it is none of `only`.

    References
    ----------
    M. D. Zeiler and R. Fergus, "Visualizing and understanding convolutional networks", ECCV 2014.
    """
    kept = [i for i, name in enumerate(model.emotions) if not only or name in only]
    if emotion not in [model.emotions[i] for i in kept]:
        raise ValueError(
            f"{emotion!r} is none of the emotions to choose among: "
            f"{', '.join(model.emotions[i] for i in kept)}"
        )
    seconds = len(signal) / audio.SAMPLING_RATE
    window_s = min(max(window_s, 2 * seconds / (n_most + 1)), seconds)
    n_parts = min(int(np.ceil(2 * (seconds - window_s) / window_s)) + 1, n_most)
    starts = np.linspace(0, seconds - window_s, n_parts)
    time = np.arange(len(signal)) / audio.SAMPLING_RATE
    inside = (
        np.minimum(time - start, start + window_s - time) / FLANK_S for start in starts
    )  # 1: a flank's width within
    quiet = 10 ** (-OCCLUDED_DB / 20)
    occluded = [
        (signal * (1 - (1 - quiet) * np.sin(np.pi / 2 * depth.clip(0, 1)) ** 2)).astype(np.float32)
        for depth in inside
    ]
    values = model.probabilities([signal, *occluded], enrolment)
    share = values[:, model.emotions.index(emotion)] / values[:, kept].sum(axis=1).clip(1e-12)
    return pd.DataFrame(
        {"start_s": starts, "end_s": starts + window_s, "fall": share[0] - share[1:]}
    )


def attention_weights(net: nn.Module, inputs: np.ndarray) -> np.ndarray:
    """Return how much each step of a clip counted in a network that ends in attention over its steps.

    Use it to see where a network listens; a step of a network read both ways knows of the whole clip, so take it as a hint.

    Parameters
    ----------
    net
        Trained, with a part ``attention`` (``nets.Attention``).
    inputs : np.ndarray [shape=(n_clips, ...)]

    Returns
    -------
    np.ndarray [shape=(n_clips, n_steps)]
        Weights that add up to 1 for each clip; 0 on padding.
    """
    seen = []
    hook = net.attention.register_forward_hook(
        lambda part, given, _: seen.append(part.weights(*given)[:, 0].numpy())
    )
    try:
        with torch.inference_mode():
            net.eval()(torch.tensor(inputs))
    finally:
        hook.remove()
    return seen[0]


def surest(probability: np.ndarray, rows: pd.DataFrame, emotions: list[str]) -> pd.DataFrame:
    """Return, for each emotion that was recognised at all, the clip that was recognised with the highest probability.

    Parameters
    ----------
    probability : np.ndarray [shape=(n_rows, n_emotions)]
    rows
        ``utterance_id, emotion`` of each row.
    emotions
        Of the columns.

    Returns
    -------
    pd.DataFrame
        Index emotion; ``utterance_id`` and ``p``.
    """
    right = (
        probability.argmax(axis=1)
        == rows["emotion"].map({e: i for i, e in enumerate(emotions)}).to_numpy()
    )
    found = rows[["utterance_id", "emotion"]].assign(p=probability.max(axis=1))[right]
    return found.sort_values("p").drop_duplicates("emotion", keep="last").set_index("emotion")


def permutation_importance(
    net: nn.Module,
    inputs: np.ndarray,
    classes: np.ndarray,
    families: list[str],
    n_repeats: int = 5,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return how much worse a network gets when a family of features is shuffled among the clips.

    Use it with families of related features: shuffling one of many that say the same changes nothing.

    Parameters
    ----------
    net
        A trained network, in evaluation mode, on the CPU.
    inputs : np.ndarray [shape=(n_clips, n_features), float32]
        Rows it was not trained on.
    classes : np.ndarray [shape=(n_clips,), int]
    families
        The family of each feature.
    n_repeats
        Shuffles per family.

    Returns
    -------
    dict of str to np.ndarray [shape=(n_repeats,)]
        Rise of the negative log-likelihood (nats) per family.

    References
    ----------
    L. Breiman, "Random forests", Machine Learning 45, 2001.
    """
    names = sorted(set(families))
    mask = torch.tensor([[names.index(family) for family in families]])
    targets = torch.tensor(np.asarray(classes))

    def gain(rows: torch.Tensor) -> torch.Tensor:
        return -nn.functional.cross_entropy(net(rows), targets)

    torch.manual_seed(seed)
    with torch.inference_mode():
        rises = [
            FeaturePermutation(gain).attribute(torch.tensor(inputs), feature_mask=mask)[0]
            for _ in range(n_repeats)
        ]
    first = [families.index(name) for name in names]
    return {
        name: np.array([float(rise[column]) for rise in rises])
        for name, column in zip(names, first, strict=True)
    }
