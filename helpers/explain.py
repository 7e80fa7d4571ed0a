"""What a trained network bases its answers on: where it looks on an image, and which features it would miss."""

import warnings

import numpy as np
import pandas as pd
import torch
from captum.attr import FeaturePermutation, LayerGradCam
from torch import nn


def grad_cam(net: nn.Module, layer: nn.Module, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
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
        warnings.simplefilter("ignore", UserWarning)  # images are whole numbers; the gradient is that of the maps
        explainer = LayerGradCam(net, layer)
        maps = explainer.attribute(torch.tensor(images), torch.tensor(np.asarray(classes)), relu_attributions=True)
    maps = nn.functional.interpolate(maps.detach(), images.shape[1:], mode="bilinear")[:, 0]
    return (maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-9)).numpy()


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
    hook = net.attention.register_forward_hook(lambda part, given, _: seen.append(part.weights(*given)[:, 0].numpy()))
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
    right = probability.argmax(axis=1) == rows["emotion"].map({e: i for i, e in enumerate(emotions)}).to_numpy()
    found = rows[["utterance_id", "emotion"]].assign(p=probability.max(axis=1))[right]
    return found.sort_values("p").drop_duplicates("emotion", keep="last").set_index("emotion")


def permutation_importance(net: nn.Module, inputs: np.ndarray, classes: np.ndarray, families: list[str], n_repeats: int = 5,
                           seed: int = 0) -> dict[str, np.ndarray]:
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
        rises = [FeaturePermutation(gain).attribute(torch.tensor(inputs), feature_mask=mask)[0] for _ in range(n_repeats)]
    first = [families.index(name) for name in names]
    return {name: np.array([float(rise[column]) for rise in rises]) for name, column in zip(names, first, strict=True)}
