"""Architectures: padding counts for nothing, scalers learn from what they are given, gradients reach every weight."""

import numpy as np
import pytest
import torch

from helpers import nets

SHAPES = {
    "MelCNN": (32, 48),
    "MelResNet": (32, 48),
    "DNN": (20,),
    "MeansConv": (40,),
    "Recurrent": (24, 20),
    "ResNet1D": (24, 20),
    "AlexNet1D": (24, 20),
    "Transformer": (24, 20),
    "ConvLSTM": (24, 20),
}
IMAGE_NETS = ["MelCNN", "MelResNet"]
SEQUENCE_NETS = [
    ("Recurrent", {"hidden": 8}),
    ("Recurrent", {"hidden": 8, "cell": "GRU"}),
    ("Recurrent", {"hidden": 8, "layers": 2}),
    ("Recurrent", {"hidden": 8, "pooling": "attention"}),
    ("ResNet1D", {"width": 8}),
    ("AlexNet1D", {"width": 8}),
    ("Transformer", {"width": 16}),
    ("ConvLSTM", {"width": 16}),
]


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
        torch.testing.assert_close(
            net(images), net(torch.nn.functional.pad(images, (0, padding))), atol=1e-5, rtol=1e-5
        )
        alone = torch.cat([net(image[None]) for image in images])
        torch.testing.assert_close(net(images), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", IMAGE_NETS)
def test_silent_image_gives_finite_logits(name):
    assert torch.isfinite(build(name).eval()(torch.zeros(2, 32, 48, dtype=torch.uint8))).all()


def without_dropout(net: torch.nn.Module) -> torch.nn.Module:
    for part in net.modules():
        for name in ("dropout", "p"):
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


@pytest.mark.parametrize("images", [False, True], ids=["sequences", "images"])
@pytest.mark.parametrize("padding", [1, 64])
@pytest.mark.parametrize(("name", "options"), SEQUENCE_NETS)
def test_more_padding_changes_nothing_in_training_nor_in_prediction(name, options, padding, images):
    clips = clips_of_different_lengths(images)
    wider = torch.nn.functional.pad(clips, (0, padding) if images else (0, 0, 0, padding))
    results = []
    for inputs in (clips, wider):
        torch.manual_seed(0)
        net = without_dropout(getattr(nets, name)(3, inputs.shape[1:], images=images, **options))
        net.fit_inputs(inputs)
        loss = torch.nn.functional.cross_entropy(net(inputs), torch.tensor([0, 1, 2, 0, 1, 2]))
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in net.parameters()])
        net.eval()
        with torch.inference_mode():
            results.append(
                (
                    loss.detach(),
                    gradient,
                    net(inputs),
                    torch.cat([net(clip[None]) for clip in inputs]),
                )
            )
            statistics = [
                value
                for key, value in net.state_dict().items()
                if "running" in key or "scaler" in key
            ]
        results[-1] += (
            torch.cat([value.flatten() for value in statistics]) if statistics else torch.zeros(1),
        )
    for first, second in zip(
        *results, strict=True
    ):  # loss, gradient, logits, logits one by one, batch statistics
        torch.testing.assert_close(first, second, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(results[0][2], results[0][3], atol=2e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "options"), SEQUENCE_NETS)
def test_sequence_networks_agree_on_a_gpu(name, options):
    torch.manual_seed(0)
    net, clips = getattr(nets, name)(3, (24, 20), **options).eval(), clips_of_different_lengths()
    with torch.inference_mode():
        wanted = net(clips)
        torch.testing.assert_close(net.cuda()(clips.cuda()).cpu(), wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("name", "options"), SEQUENCE_NETS)
def test_what_is_heard_does_count(name, options):
    torch.manual_seed(0)
    net = getattr(nets, name)(3, (24, 20), **options).eval()
    clips = clips_of_different_lengths()
    with torch.inference_mode():
        assert (net(clips[:1, :7]) - net(clips[:1, :4])).abs().max() > 1e-5


@pytest.mark.parametrize(("name", "options"), SEQUENCE_NETS)
def test_clip_without_any_sound_gives_finite_logits_and_gradients(name, options):
    net = getattr(nets, name)(3, (24, 20), **options)
    clips = clips_of_different_lengths()
    clips[3] = 0
    net(clips).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    assert torch.isfinite(net.eval()(torch.zeros(2, 24, 20))).all()


def test_attention_adds_up_to_one_over_what_is_heard():
    attention, steps = nets.Attention(8), torch.randn(4, 8, 10)
    mask = torch.ones(4, 1, 10)
    mask[0, :, 3:] = 0
    weights = attention.weights(steps, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 1))
    assert not weights[0, :, 3:].any() and (weights[1:] > 0).all()


def test_masked_norm_is_batch_normalisation_of_what_is_heard():
    steps, mask = torch.randn(4, 3, 10) * 5 + 2, torch.ones(4, 1, 10)
    mask[0, :, 3:] = 0
    result = nets.MaskedNorm(3)(steps, mask)
    heard = result.transpose(1, 2)[mask[:, 0] > 0]
    torch.testing.assert_close(heard.mean(dim=0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(heard.std(dim=0, correction=0), torch.ones(3), atol=1e-3, rtol=0)
    assert not result[0, :, 3:].any()


def test_cell_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="unknown cell 'RNN': choose LSTM or GRU"):
        build("Recurrent", cell="RNN")


def test_mfcc_are_those_of_the_images_levels():
    import scipy.fft

    images = draw("MelCNN")
    images[0, :, 20:] = 0
    mfcc = nets.MFCC(32, 13)
    level = (images.float() - 128) / 64
    wanted = torch.tensor(
        scipy.fft.dct(level.numpy()[:, ::-1], axis=1, norm="ortho")[:, :13].copy()
    )
    mfcc.fit(images)
    heard = torch.cat([wanted[0, :, :20].T, *wanted[1:].transpose(1, 2)])
    torch.testing.assert_close(mfcc.scaler.mean, heard.mean(dim=0), atol=1e-4, rtol=1e-4)
    found = mfcc(level[:, None])[1, 0]
    torch.testing.assert_close(
        found,
        (wanted[1] - mfcc.scaler.mean[:, None]) / mfcc.scaler.std[:, None],
        atol=1e-3,
        rtol=1e-3,
    )


@pytest.mark.parametrize("options", [{"channels": (4, 8)}, {"n_mfcc": 20, "channels": (4, 8, 8)}])
def test_cnn_of_any_depth_on_bands_or_mfcc_minds_no_padding(options):
    net, images = build("MelCNN", **options), draw("MelCNN")
    images[:, :, 40:] = 0
    net.fit_inputs(images)
    net(images)
    net.eval()
    with torch.inference_mode():
        torch.testing.assert_close(
            net(images), net(torch.nn.functional.pad(images, (0, 16))), atol=1e-5, rtol=1e-4
        )


def test_scaler_learns_from_what_is_no_padding():
    rows = draw("Recurrent", 30)
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


def test_recurrent_network_leaves_features_out_of_whole_clips():
    net = build("Recurrent")
    seen = []
    net.input_dropout.register_forward_hook(
        lambda _, given, result: seen.append((result == 0) & (given[0] != 0))
    )
    net.fit_inputs(draw("Recurrent", 40, seed=1))
    net(draw("Recurrent"))
    gone = seen[0]  # (batch, features, steps)
    assert gone.any() and not gone.all() and torch.equal(gone.any(dim=2), gone.all(dim=2))


def test_resnets_have_the_depths_they_say():
    def convolutions(depth):
        layers = build("MelResNet", depth=depth).modules()
        return sum(isinstance(m, torch.nn.Conv2d) and m.kernel_size != (1, 1) for m in layers)

    assert (
        convolutions(18) == 17 and convolutions(34) == 33
    )  # the last layer of the name is the linear one


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
    monkeypatch.setattr(
        weights.__class__, "get_state_dict", lambda self, *a, **k: torch.load(target)
    )
    return state


def test_pretrained_weights_are_used_and_unfrozen_in_stages(imagenet_file):
    net = build("MelResNet", pretrained=True)
    assert torch.equal(net.stem[0].weight, imagenet_file["conv1.weight"].sum(dim=1, keepdim=True))
    assert torch.equal(net.blocks[2][0].conv1.weight, imagenet_file["layer3.0.conv1.weight"])
    trained = {}
    for share in (0.0, 0.3, 0.5):
        net.begin_epoch(share)
        trained[share] = [
            name
            for name, part in [
                ("stem", net.stem),
                ("block 3", net.blocks[2]),
                ("block 4", net.blocks[3]),
                ("head", net.head),
            ]
            if all(p.requires_grad for p in part.parameters())
        ]
    assert trained == {
        0.0: ["head"],
        0.3: ["block 4", "head"],
        0.5: ["stem", "block 3", "block 4", "head"],
    }


def test_weights_that_cannot_be_had_are_named_with_the_place_to_put_them(tmp_path, monkeypatch):
    from urllib.error import URLError

    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    message = r"ImageNet weights of ResNet18.*Fetch https.*put it to .*hub/checkpoints/resnet18"
    with pytest.raises(FileNotFoundError, match=message):
        build("MelResNet", pretrained=True)
