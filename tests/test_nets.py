"""Networks: padding changes nothing, scalers learn from inputs, every weight gets a gradient."""

import itertools
from types import ModuleType
from urllib.error import URLError

import numpy as np
import pytest
import scipy.fft
import torch
import torchvision
from conftest import notebook_cells

from helpers import nets

SHAPES = {"MelCNN": (32, 48), "MelResNet": (32, 48), "DNN": (20,), "Recurrent": (24, 20)}
IMAGE_NETS = ["MelCNN", "MelResNet"]


class Convolutions(nets.SequenceNetwork):
    """The building blocks of the networks that notebooks define."""

    def __init__(self, n_classes: int, shape: tuple[int, int], images: bool = False):
        super().__init__(shape, images, 0.2)
        self.first = nets.ConvStep(self.n_features, 8, 5, 2)
        self.second = nets.ConvStep(8, 8, 3, active=False)
        self.head = torch.nn.Linear(16, n_classes)

    def body(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        steps, mask = self.second(*self.first(steps, mask))
        return nets.mean_and_peak(nets.shortened(steps, 2), nets.shortened(mask, 2))


SEQUENCE_NETS = [
    (nets.Recurrent, {"hidden": 8}),
    (nets.Recurrent, {"hidden": 8, "cell": "GRU"}),
    (nets.Recurrent, {"hidden": 8, "layers": 2}),
    (notebook_cells("14_recurrent_attention", "Attention").AttentiveLSTM, {"hidden": 8}),
    (Convolutions, {}),
]
IDS = ["LSTM", "GRU", "two layers", "attention", "convolutions"]
every_sequence_net = pytest.mark.parametrize(("network", "options"), SEQUENCE_NETS, ids=IDS)


@pytest.fixture(scope="module")
def notebook() -> ModuleType:
    return notebook_cells("07_cnn", "MfccCNN")


def build(name: str, n_classes: int = 3, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return getattr(nets, name)(n_classes, SHAPES[name], **options)


def draw(name: str, n: int = 6, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    if name in IMAGE_NETS:
        return torch.from_numpy(rng.integers(1, 255, (n, *SHAPES[name])).astype(np.uint8))
    return torch.from_numpy(rng.normal(5, 2, (n, *SHAPES[name])).astype(np.float32))


@pytest.mark.parametrize("name", SHAPES)
def test_logits_have_a_column_per_class_and_gradients_reach_every_weight(name):
    net = build(name)
    logits = net(draw(name))
    assert logits.shape == (6, 3) and logits.dtype == torch.float32
    logits.square().sum().backward()
    gradients = {weight: p.grad for weight, p in net.named_parameters()}
    assert not [weight for weight, grad in gradients.items() if grad is None or not grad.any()]


@pytest.mark.parametrize("name", ["MelCNN", "MelResNet", "Recurrent"])
def test_logits_are_what_the_head_makes_of_the_embeddings(name):
    net, inputs = build(name).eval(), draw(name)
    with torch.inference_mode():
        torch.testing.assert_close(net.head(net.embed(inputs)), net(inputs))
    assert not hasattr(nets.DNN, "embed")


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [16, 64])
@pytest.mark.parametrize("frames", [48, 44])
@pytest.mark.parametrize("options", [{}, {"channels": (4, 8)}, {"n_mfcc": 20, "channels": (4, 8)}])
def test_padding_of_images_does_not_change_the_cnns_logits(padding, frames, options, notebook):
    torch.manual_seed(0)
    kind = notebook.MfccCNN if "n_mfcc" in options else nets.MelCNN
    net = kind(3, SHAPES["MelCNN"], **options)
    images = torch.nn.functional.pad(draw("MelCNN")[:, :, :frames], (0, -frames % 16))
    wider = torch.nn.functional.pad(images, (0, padding))
    net.fit_inputs(images)
    net(images)  # batch statistics that are not 0 and 1
    net.eval()
    with torch.inference_mode():
        torch.testing.assert_close(net(images), net(wider), atol=1e-5, rtol=1e-4)
        alone = torch.cat([net(image[None]) for image in images])
        torch.testing.assert_close(net(images), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", IMAGE_NETS)
def test_silent_image_gives_finite_logits(name):
    assert torch.isfinite(build(name).eval()(torch.zeros(2, 32, 48, dtype=torch.uint8))).all()


def test_more_layers_than_an_image_can_be_halved_are_refused():
    with pytest.raises(ValueError, match=r"4 layers halve 13 rows and 48 frames to nothing: .*16"):
        build("MelCNN", n_mfcc=13)


def test_mfcc_are_those_of_the_images(notebook):
    images = draw("MelCNN")
    images[0, :, 20:] = 0
    mfcc = notebook.MfccCNN(3, (32, 48), 13, channels=(4, 8))
    level = (images.float() - 128) / 64
    wanted = scipy.fft.dct(level.numpy()[:, ::-1], axis=1, norm="ortho")[:, :13]
    wanted = torch.tensor(wanted.copy())
    mfcc.fit_inputs(images)
    valid = torch.cat([wanted[0, :, :20].T, *wanted[1:].transpose(1, 2)])
    torch.testing.assert_close(mfcc.scaler.mean, valid.mean(dim=0), atol=1e-4, rtol=1e-4)
    scaled = (wanted[1] - mfcc.scaler.mean[:, None]) / mfcc.scaler.std[:, None]
    torch.testing.assert_close(mfcc.transform(level[:, None])[1, 0], scaled, atol=1e-3, rtol=1e-3)


def test_resnets_have_the_depths_they_say():
    def convolutions(depth):
        layers = build("MelResNet", depth=depth).modules()
        return sum(isinstance(m, torch.nn.Conv2d) and m.kernel_size != (1, 1) for m in layers)

    # the last layer of the name is the linear one
    assert convolutions(18) == 17 and convolutions(34) == 33


@pytest.fixture
def imagenet_file(tmp_path, monkeypatch):
    """A file as torchvision would download it, with random weights in it; and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = torchvision.models.get_model_weights("resnet18").DEFAULT
    target = tmp_path / "hub/checkpoints" / weights.url.rsplit("/", 1)[-1]
    target.parent.mkdir(parents=True)
    torch.manual_seed(1)
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, target)
    read = lambda self, *a, **k: torch.load(target)  # noqa: E731
    monkeypatch.setattr(weights.__class__, "get_state_dict", read)
    return state


def test_pretrained_weights_are_used_and_unfrozen_in_stages(imagenet_file):
    net = build("MelResNet", pretrained=True)
    grey = imagenet_file["conv1.weight"].sum(dim=1, keepdim=True)
    assert torch.equal(net.stem[0].weight, grey)
    assert torch.equal(net.blocks[2][0].conv1.weight, imagenet_file["layer3.0.conv1.weight"])
    parts = {"stem": net.stem, "block 3": net.blocks[2], "block 4": net.blocks[3], "head": net.head}
    trained = {}
    for share in (0.0, 0.3, 0.5):
        net.begin_epoch(share)
        trained[share] = [
            name for name, part in parts.items() if all(p.requires_grad for p in part.parameters())
        ]
    assert trained == {0.0: ["head"], 0.3: ["block 4", "head"], 0.5: list(parts)}


def test_weights_that_cannot_be_had_are_named_with_the_place_to_put_them(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    message = r"ImageNet weights of ResNet18.*Fetch https.*put it to .*hub/checkpoints/resnet18"
    with pytest.raises(FileNotFoundError, match=message):
        build("MelResNet", pretrained=True)


# --- functionals ----------------------------------------------------------------------------------


def test_scaler_learns_from_what_is_no_padding():
    rows = draw("Recurrent", 30)
    rows[:10, 5:] = 0
    scaler = nets.Scaler(20)
    scaler.fit(rows)
    valid = rows.flatten(0, 1)
    valid = valid[valid.any(dim=1)]
    torch.testing.assert_close(scaler.mean, valid.mean(dim=0))
    torch.testing.assert_close(scaler.std, valid.std(dim=0))
    scaled = scaler(rows)
    assert not scaled[:10, 5:].any() and scaled[10:].flatten(0, 1).mean().abs() < 0.05


def test_scaler_is_part_of_the_weights_and_constant_columns_do_no_harm():
    net = build("DNN")
    inputs = draw("DNN", 30)
    inputs[:, 3] = 7
    net.fit_inputs(inputs)
    assert torch.isfinite(net(inputs)).all() and torch.isfinite(net(inputs + 1)).all()
    assert torch.equal(net.state_dict()["scaler.mean"], inputs.double().mean(dim=0).float())


# --- sequences ------------------------------------------------------------------------------------


def without_dropout(net: torch.nn.Module) -> torch.nn.Module:
    for part, name in itertools.product(net.modules(), ("dropout", "p")):
        if isinstance(getattr(part, name, None), float):
            setattr(part, name, 0.0)
    return net


def clips_of_different_lengths(images: bool = False) -> torch.Tensor:
    if images:
        clips = draw("MelCNN")
        clips[0, :, 13:], clips[1, :, 40:], clips[2, :, 31:] = 0, 0, 0
    else:
        clips = draw("Recurrent")
        clips[0, 7:], clips[1, 20:], clips[2, 15:] = 0, 0, 0
    return clips


def trained_once(network, options, inputs, images) -> list[torch.Tensor]:
    """Return loss, gradient, logits, logits one by one, and batch statistics."""
    torch.manual_seed(0)
    net = without_dropout(network(3, inputs.shape[1:], images=images, **options))
    net.fit_inputs(inputs)
    loss = torch.nn.functional.cross_entropy(net(inputs), torch.tensor([0, 1, 2, 0, 1, 2]))
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in net.parameters()])
    net.eval()
    state = net.state_dict()
    statistics = [state[name].flatten() for name in state if "running" in name or "scaler" in name]
    with torch.inference_mode():
        alone = torch.cat([net(clip[None]) for clip in inputs])
        return [loss.detach(), gradient, net(inputs), alone, torch.cat([*statistics, loss[None]])]


@pytest.mark.parametrize("images", [False, True], ids=["sequences", "images"])
@pytest.mark.parametrize("padding", [1, 64])
@every_sequence_net
def test_more_padding_changes_nothing_in_training_nor_in_prediction(
    network, options, padding, images
):
    clips = clips_of_different_lengths(images)
    wider = torch.nn.functional.pad(clips, (0, padding) if images else (0, 0, 0, padding))
    results = [trained_once(network, options, inputs, images) for inputs in (clips, wider)]
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(results[0][2], results[0][3], atol=2e-5, rtol=1e-4)


@pytest.mark.gpu
@every_sequence_net
def test_sequence_networks_agree_on_a_gpu(network, options):
    torch.manual_seed(0)
    net, clips = network(3, (24, 20), **options).eval(), clips_of_different_lengths()
    with torch.inference_mode():
        wanted = net(clips)
        found = net.cuda()(clips.cuda()).cpu()
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


@every_sequence_net
def test_non_padded_steps_do_count(network, options):
    torch.manual_seed(0)
    net, clips = network(3, (24, 20), **options).eval(), clips_of_different_lengths()
    with torch.inference_mode():
        assert (net(clips[:1, :7]) - net(clips[:1, :4])).abs().max() > 1e-5


@every_sequence_net
def test_clip_without_any_sound_gives_finite_logits_and_gradients(network, options):
    net, clips = network(3, (24, 20), **options), clips_of_different_lengths()
    clips[3] = 0
    net(clips).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    assert torch.isfinite(net.eval()(torch.zeros(2, 24, 20))).all()


def test_attention_sums_to_one_over_non_padded_steps():
    attention = notebook_cells("14_recurrent_attention", "Attention").Attention(8)
    steps = torch.randn(4, 8, 10)
    mask = torch.ones(4, 1, 10)
    mask[0, :, 3:] = 0
    weights = attention.weights(steps, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 1))
    assert not weights[0, :, 3:].any() and (weights[1:] > 0).all()


def test_masked_norm_is_batch_normalisation_of_non_padded_steps():
    steps, mask = torch.randn(4, 3, 10) * 5 + 2, torch.ones(4, 1, 10)
    mask[0, :, 3:] = 0
    result = nets.MaskedNorm(3)(steps, mask)
    valid = result.transpose(1, 2)[mask[:, 0] > 0]
    torch.testing.assert_close(valid.mean(dim=0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(valid.std(dim=0, correction=0), torch.ones(3), atol=1e-3, rtol=0)
    assert not result[0, :, 3:].any()


def test_shortened_steps_keep_the_last_ones():
    steps = torch.arange(5.0).view(1, 1, 5)
    assert nets.shortened(steps, 2).flatten().tolist() == [1, 3, 4]
    assert nets.shortened(steps, 1) is steps


def test_unknown_cell_is_refused():
    with pytest.raises(ValueError, match="unknown cell 'RNN': choose LSTM or GRU"):
        build("Recurrent", cell="RNN")


def test_recurrent_network_leaves_features_out_of_whole_clips():
    net, seen = build("Recurrent"), []

    def compare(_, given, result):
        seen.append((result == 0) & (given[0] != 0))

    net.input_dropout.register_forward_hook(compare)
    net.fit_inputs(draw("Recurrent", 40, seed=1))
    net(draw("Recurrent"))
    gone = seen[0]  # (batch, features, steps)
    assert gone.any() and not gone.all() and torch.equal(gone.any(dim=2), gone.all(dim=2))
