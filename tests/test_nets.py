"""Architectures: padding counts for nothing, scalers learn from what they are given, gradients reach every weight."""

import numpy as np
import pytest
import torch

from helpers import nets

SHAPES = {"MelCNN": (32, 48), "MelResNet": (32, 48), "DNN": (20,), "LSTM": (12, 20)}
IMAGE_NETS = ["MelCNN", "MelResNet"]


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
    silent = [weight for weight, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


@pytest.mark.parametrize("padding", [16, 64])
@pytest.mark.parametrize("frames", [48, 44])
def test_padding_of_images_does_not_change_the_cnns_logits(padding, frames):
    net = build("MelCNN")
    images = draw("MelCNN")[:, :, :frames]
    images = torch.nn.functional.pad(images, (0, -frames % 16))
    net(images)  # batch statistics that are not 0 and 1
    net.eval()
    with torch.inference_mode():
        torch.testing.assert_close(net(images), net(torch.nn.functional.pad(images, (0, padding))), atol=1e-5, rtol=1e-5)
        alone = torch.cat([net(image[None]) for image in images])
        torch.testing.assert_close(net(images), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", IMAGE_NETS)
def test_silent_image_gives_finite_logits(name):
    assert torch.isfinite(build(name).eval()(torch.zeros(2, 32, 48, dtype=torch.uint8))).all()


@pytest.mark.parametrize("layers", [1, 2])
def test_padding_of_sequences_does_not_change_the_lstms_logits(layers):
    net = build("LSTM", layers=layers)
    net.fit_inputs(draw("LSTM", 40, seed=1))
    net.eval()
    sequences = draw("LSTM")
    sequences[0, 4:] = 0
    sequences[1, 9:] = 0
    with torch.inference_mode():
        wanted = net(sequences)
        torch.testing.assert_close(net(torch.nn.functional.pad(sequences, (0, 0, 0, 7))), wanted, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(net(sequences[:1, :4]), wanted[:1], atol=1e-6, rtol=1e-5)
        assert (net(sequences[:1, :5]) - net(sequences[:1, :3])).abs().max() > 1e-5  # while what is heard does count


def test_scaler_learns_from_what_is_no_padding():
    rows = draw("LSTM", 30)
    rows[:10, 5:] = 0
    scaler = nets.Scaler(20)
    scaler.fit(rows)
    heard = rows.flatten(0, 1)
    heard = heard[heard.any(dim=1)]
    torch.testing.assert_close(scaler.mean, heard.mean(dim=0))
    torch.testing.assert_close(scaler.std, heard.std(dim=0))
    scaled = scaler(rows)
    assert not scaled[:10, 5:].any() and scaled[10:].flatten(0, 1).mean().abs() < 0.05


def test_scaler_is_part_of_the_weights_and_constant_columns_do_no_harm():
    net = build("DNN")
    inputs = draw("DNN", 30)
    inputs[:, 3] = 7
    net.fit_inputs(inputs)
    assert torch.isfinite(net(inputs)).all() and torch.isfinite(net(inputs + 1)).all()
    assert torch.equal(net.state_dict()["scaler.mean"], inputs.double().mean(dim=0).float())


def test_lstm_leaves_features_out_of_whole_clips():
    net = build("LSTM")
    seen = []
    net.input_dropout.register_forward_hook(lambda _, given, result: seen.append((result == 0) & (given[0] != 0)))
    net.fit_inputs(draw("LSTM", 40, seed=1))
    net(draw("LSTM"))
    gone = seen[0]  # (batch, features, steps)
    assert gone.any() and not gone.all() and torch.equal(gone.any(dim=2), gone.all(dim=2))


def test_resnets_have_the_depths_they_say():
    def convolutions(depth):
        layers = build("MelResNet", depth=depth).modules()
        return sum(isinstance(m, torch.nn.Conv2d) and m.kernel_size != (1, 1) for m in layers)

    assert convolutions(18) == 17 and convolutions(34) == 33  # the last layer of the name is the linear one


@pytest.fixture
def imagenet_file(tmp_path, monkeypatch):
    """A file as torchvision would download it, with random weights in it; and no network."""
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = torchvision.models.get_model_weights("resnet18").DEFAULT
    target = tmp_path / "hub/checkpoints" / weights.url.rsplit("/", 1)[-1]
    target.parent.mkdir(parents=True)
    torch.manual_seed(1)
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, target)
    monkeypatch.setattr(weights.__class__, "get_state_dict", lambda self, *a, **k: torch.load(target))
    return state


def test_pretrained_weights_are_used_and_unfrozen_in_stages(imagenet_file):
    net = build("MelResNet", pretrained=True)
    assert torch.equal(net.stem[0].weight, imagenet_file["conv1.weight"].sum(dim=1, keepdim=True))
    assert torch.equal(net.blocks[2][0].conv1.weight, imagenet_file["layer3.0.conv1.weight"])
    trained = {}
    for share in (0.0, 0.3, 0.5):
        net.begin_epoch(share)
        trained[share] = [name for name, part in [("stem", net.stem), ("block 3", net.blocks[2]), ("block 4", net.blocks[3]),
                                                  ("head", net.head)] if all(p.requires_grad for p in part.parameters())]
    assert trained == {0.0: ["head"], 0.3: ["block 4", "head"], 0.5: ["stem", "block 3", "block 4", "head"]}


def test_weights_that_cannot_be_had_are_named_with_the_place_to_put_them(tmp_path, monkeypatch):
    from urllib.error import URLError

    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    message = r"ImageNet weights of ResNet18.*Fetch https.*put it to .*hub/checkpoints/resnet18"
    with pytest.raises(FileNotFoundError, match=message):
        build("MelResNet", pretrained=True)
