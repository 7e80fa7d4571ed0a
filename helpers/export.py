"""Networks as ONNX files with their front-end inside: samples in, probabilities out, without Python, torch or this project.

A network on mel images takes the trimming, the spectrogram and the grey levels along; a fine-tuned speech encoder its rounding
to 16 bits and its normalisation. One file is all that another program needs: input ``signal``, float32, mono, full scale ±1, at
16 kHz, of any length, shape ``(n_samples,)``; output ``probabilities``, float32, shape ``(n_emotions,)``. The order of the
emotions, the sampling rate, where the model comes from and its licence are in the file's metadata.

What a file computes is run by onnxruntime before it is written; it is not if it answers otherwise than the project does.

Run ``python -m helpers.export MODEL_FOLDER FILE.onnx`` to export a saved model.
"""

import argparse
import io
import json
import math
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from helpers import artifacts, audio, features, nets
from helpers.artifacts import Artifact, Average, NetworkPart
from helpers.cache import write_atomically
from helpers.features import FrontEnd
from helpers.spectrograms import DB_MIN, DB_STEP, IMAGE

OPSET = 18  # of 2022: onnxruntime reads it since 1.14
RMS_FRAME, RMS_HOP = 512, 160  # samples, of audio.frame_rms
SAME_PROBABILITY = 1e-4  # of the probe, between the file and the project
PIXELS_OFF = 1e-3  # share of the probe's pixels that may be one level off; see MelImage
TOLD = ("model", "corpus", "policy", "licence")  # of a card, in the file's metadata


def write_onnx(artifact: Artifact, path: Path) -> Path:
    """Write a model on mel images, its inductive variant, as one ONNX file that takes samples.

    Use it to run a model where there is no Python, or to hand it on in a format that others read. The file computes what
    ``Artifact.probabilities`` computes, from the trimming of silence to the softmax: the same to 1e-4 where the image is the
    same, and it is but for a pixel in one clip of ten (see :class:`MelImage`).

    Parameters
    ----------
    artifact
        From ``artifacts.load``.
    path
        Of the file; it appears when it is complete and was found to answer as `artifact` does.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If it is no network on mel images: the inputs of the others (descriptors, functionals) follow the pitch through a clip,
        by compiled code that no exporter reads. Or if the file answers otherwise than the artefact.
    """
    if isinstance(artifact, Average):
        raise ValueError(
            f"it is an average of {len(artifact.members)} models ({', '.join(artifact.members)}): export those of "
            "its members that are networks on mel images, one by one, from their own folders"
        )
    part = artifact.parts["inductive"]
    if artifact.input.kind != "image" or not isinstance(part, NetworkPart):
        about = part.described()
        what = about.get("build") or about.get("estimator") or about["kind"]
        raise ValueError(
            f"it is a model ({what}) on inputs of the kind {artifact.input.kind!r}: only networks on mel images "
            "(kind 'image') can be exported, and fine-tuned speech encoders (write_onnx_of_samples)"
        )
    net = part.net(len(artifact.emotions))
    for name, module in list(net.named_modules()):
        if type(module) in STAND_INS:
            net.set_submodule(name, STAND_INS[type(module)](module))
    mel, probe = (
        MelImage(**artifact.input.arguments, levelled=artifact.input.levelled),
        artifacts.probe_signal(),
    )
    image = mel(torch.tensor(probe)).numpy()
    off = np.abs(image.astype(int) - artifact.input(probe))
    if off.max() > 1 or off.mean() > PIXELS_OFF:
        raise ValueError(
            f"the probe's image is not this project's in {np.count_nonzero(off)} of {off.size} pixels, by up to "
            f"{off.max()} levels: nothing was written. MelImage does not do what spectrograms.padded_image does"
        )
    told = {name: artifact.card[name] for name in TOLD if name in artifact.card}
    return _write(
        _OnImages(mel, net),
        path,
        {"emotions": artifact.emotions} | told,
        probe,
        part.predictor(len(artifact.emotions))(image[None])[0],
    )


def write_onnx_of_samples(net: nn.Module, path: Path, metadata: dict) -> Path:
    """Write a fine-tuned speech encoder (wav2vec 2.0, HuBERT, WavLM) as one ONNX file that takes samples.

    The file rounds samples to 16 bits, as ``wav2vec2.prepare`` does, and standardises them if the checkpoint was trained so.
    What it doesn't do is to take out silent zones and to cut long clips: give it what ``prepare`` would give the network, at
    least the 25 ms that the encoder's first frame takes.

    Parameters
    ----------
    net : wav2vec2.FineTuned
        Trained, in float32.
    path
        Of the file; it appears when it is complete and was found to answer as `net` does.
    metadata
        What to write into the file: ``emotions`` in the order of the outputs, ``model``, ``corpus``, ``policy``, ``licence``, …
        Texts as they are, anything else as JSON.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If it is another network, if `metadata` names another number of emotions than it has outputs, or if the file answers
        otherwise than `net`. Whisper can't be exported since it can't be fine-tuned here: it wants half a minute of another
        mel-spectrogram for each clip. Networks on text, or on text and speech, read no samples.
    RuntimeError
        From torch, if the weights have more than 2 GB, the most that one ONNX file holds.
    """
    from helpers import wav2vec2  # late: a model on mel images needs none of it

    if not isinstance(net, wav2vec2.FineTuned):
        raise ValueError(
            f"it is a {type(net).__name__}: only wav2vec2.FineTuned reads samples; a saved network on mel images "
            "is exported by write_onnx"
        )
    n_classes = net.head[-1].out_features
    if len(metadata.get("emotions", ())) != n_classes:
        raise ValueError(
            f"its metadata names the emotions {metadata.get('emotions')}, it has {n_classes} outputs: name one "
            "for each, in their order"
        )
    probe, place, was_training = artifacts.probe_signal(), net.encoder.device, net.training
    clip = np.clip(np.round(probe * 32768), -32767, 32767).astype(np.int16)
    try:
        with torch.inference_mode():
            expected = net.cpu().eval()(torch.tensor(clip[None])).softmax(1)[0].numpy()
        return _write(_OnClips(net), path, metadata, probe, expected)
    finally:
        net.to(place).train(was_training)


class MelImage(nn.Module):
    """What ``spectrograms.padded_image`` does, of operations that ONNX has.

    Computed in float64: a grey level is decided by rounding, and the fewer errors before it, the fewer levels flip.

    Parameters
    ----------
    n_frames, front_end, trim
        See ``spectrograms.padded_image``.
    levelled
        Whether the signal goes through ``audio.levelled`` first.

    Shapes
    ------
    signal : float32 tensor (n_samples,)
    returns : uint8 tensor (n_mels, n_frames). Against ``padded_image``, which computes in float32, one pixel in 70,000 of real
        speech lies so near the edge of rounding that it is one level off; that moves a probability by up to some 1e-4
    """

    def __init__(
        self, n_frames: int, front_end: FrontEnd = IMAGE, trim: bool = True, levelled: bool = False
    ):
        super().__init__()
        self.front_end, self.trim, self.levelled = front_end, trim, levelled
        starts, samples = (
            np.arange(n_frames) * front_end.hop_length,
            np.arange(front_end.win_length),
        )
        turns = (
            samples[:, None]
            * np.arange(front_end.n_fft // 2 + 1)
            % front_end.n_fft
            / front_end.n_fft
        )
        window = features._window(front_end.win_length)
        waves = np.concatenate([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], axis=1) * (
            2 / window.sum(dtype=float)
        )
        bands = features._mel_filters(front_end, front_end.n_mels)[
            :, ::-1
        ]  # row 0 is the highest band
        constants = {
            "starts": starts,
            "places": starts[:, None] + samples,
            "window": window,
            "waves": waves,
            "bands": np.concatenate([bands, bands]).astype(float),
        }  # of the real and the imaginary parts
        if levelled:  # noise lies where the network sees it; behind that, it could only move the end of the trimming
            constants |= {
                "low_pass": audio.low_pass(),
                "noise": audio.noise_floor(int(starts[-1]) + 2 * audio.SAMPLING_RATE),
            }
        for name, values in constants.items():
            self.register_buffer(name, torch.tensor(values))

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        if self.levelled:
            signal = _trimmed(signal, audio.TRIM_DB)
            loudest = (_powers(signal).max() / RMS_FRAME).sqrt().clamp(min=1e-5)
            signal = signal.double() * (10 ** (audio.LEVEL_DBFS / 20) / loudest)
            # in float32, since onnxruntime convolves nothing else
            taps = self.low_pass[None, None].float()
            low = nn.functional.conv1d(
                signal[None, None].float(), taps, padding=taps.shape[2] // 2
            )[0, 0].double()
            signal = (low + torch.cat([self.noise, torch.zeros_like(low)])[: low.shape[0]]).float()
        if self.trim:
            signal = _trimmed(signal, self.front_end.trim_db)
        before = signal.new_zeros(self.front_end.win_length // 2)
        behind = signal.new_zeros(
            int(self.places.max()) + 1
        )  # so that every frame that the network may see is there
        frames = torch.cat([before, signal, behind])[self.places] * self.window
        power = ((frames.double() @ self.waves).square() @ self.bands).clamp(min=features._FLOOR)
        level = 10 / math.log(10) * power.log()  # log10 would be divided by a constant in float32
        image = (1 + (level - DB_MIN) / DB_STEP).round().clamp(1, 255)
        return (image * (self.starts <= signal.shape[0])[:, None]).to(torch.uint8).T


class _OnImages(nn.Module):
    """A network on mel images from samples on."""

    def __init__(self, image: MelImage, net: nn.Module):
        super().__init__()
        self.image, self.net = image, net

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        return self.net(self.image(signal)[None]).softmax(1)[0]


class _OnClips(nn.Module):
    """A network on int16 clips from samples on; see ``wav2vec2.prepare``."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        return self.net(
            (signal * 32768).round().clamp(-32767, 32767).to(torch.int16)[None]
        ).softmax(1)[0]


class _NormOfAll(nn.Module):
    """``nets.MaskedNorm`` in prediction, where steps can be normalised together and those of the padding set to 0 afterwards.

    It picks the heard steps, by an `if` on their number: an exporter that follows one example can't see the other way.
    """

    def __init__(self, norm: nets.MaskedNorm):
        super().__init__()
        self.norm = norm

    def forward(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return nn.BatchNorm1d.forward(self.norm, steps) * (mask > 0)


class _Scaled(nn.Module):
    """``nets.Scaler``; the exporter makes whole numbers of what it asks ``any`` of, and 0.9 is not nothing."""

    def __init__(self, scaler: nets.Scaler):
        super().__init__()
        self.scaler = scaler

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        values = ((inputs - self.scaler.mean) / self.scaler.std).clamp(-10, 10)
        return values * (inputs != 0).any(dim=-1, keepdim=True)


STAND_INS = {
    nets.MaskedNorm: _NormOfAll,
    nets.Scaler: _Scaled,
}  # compute the same, in a way that the exporter understands


def _powers(signal: torch.Tensor) -> torch.Tensor:
    """Powers of the frames of ``audio.frame_rms``, as differences of one running sum: a long signal costs little memory."""
    half = RMS_FRAME // 2
    total = nn.functional.pad(signal.double().square(), (half + 1, half)).cumsum(0)
    return total[RMS_FRAME::RMS_HOP] - total[:-RMS_FRAME:RMS_HOP]


def _trimmed(signal: torch.Tensor, top_db: float) -> torch.Tensor:
    """What ``audio.trim`` does."""
    power = _powers(signal)
    heard = (power >= power.max() * 10 ** (-top_db / 10)).nonzero()[
        :, 0
    ]  # all of them in a silent signal: 0 >= 0
    return signal[heard[0] * RMS_HOP : (heard[-1] + 1) * RMS_HOP]


def _write(
    model: nn.Module, path: Path, metadata: dict, probe: np.ndarray, expected: np.ndarray
) -> Path:
    """Export a module, compare what onnxruntime makes of it with the project's answer to the probe, and write the file."""
    content, fast = io.BytesIO(), torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        # that this exporter is the older one (the newer can't translate packed sequences or adaptive maxima), and that it
        # follows one example, which the comparison below answers for
        warnings.simplefilter("ignore")
        torch.backends.mha.set_fastpath_enabled(
            False
        )  # one operation of torch for a whole layer, which ONNX hasn't
        try:
            torch.onnx.export(
                model.eval(),
                (torch.tensor(probe),),
                content,
                dynamo=False,
                opset_version=OPSET,
                input_names=["signal"],
                output_names=["probabilities"],
                dynamic_axes={"signal": {0: "n_samples"}},
            )
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
    proto = onnx.load_from_string(content.getvalue())
    texts = metadata | {"sampling_rate": audio.SAMPLING_RATE}
    onnx.helper.set_model_props(
        proto,
        {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in texts.items()
        },
    )
    onnx.checker.check_model(proto, full_check=True)
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"signal": probe})
    if found.shape != expected.shape or not np.abs(found - expected).max() <= SAME_PROBABILITY:
        raise ValueError(
            f"as ONNX it answers the probe with {found.round(5).tolist()}, in this project with "
            f"{np.round(expected, 5).tolist()}: nothing was written. Install the versions of constraints.txt"
        )
    write_atomically(Path(path), lambda handle: handle.write(content))
    return Path(path)


def main() -> None:
    """Write a saved model on mel images as one ONNX file: samples in, probabilities out."""
    parser = argparse.ArgumentParser(prog="python -m helpers.export", description=main.__doc__)
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("file", type=Path, help="the ONNX file to write")
    options = parser.parse_args()
    try:
        path = write_onnx(artifacts.load(options.model), options.file)
    except (ValueError, OSError) as error:
        raise SystemExit(f"{options.model}: {error}") from None
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, answers as {options.model} does")


if __name__ == "__main__":
    main()
