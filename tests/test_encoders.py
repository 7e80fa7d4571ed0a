"""Pretrained encoders, by tiny random ones of the same classes: hidden states, clips, weights.

The network that is fine-tuned is defined in notebook 16; it is tested here with what it uses.
"""

import json

import numpy as np
import pytest
import torch
import transformers
from conftest import (
    harmonic_tone,
    interrupt_training,
    make_tiny_encoder,
    make_utterances,
    notebook_cells,
    write_audio,
)

from helpers import encoders, paths, training
from helpers.experiment import FoldRows

pytestmark = pytest.mark.usefixtures("finished_trainings_go")
LENGTHS = (16_000, 9_000, 23_456, 5_000)


@pytest.fixture(autouse=True)
def models(tmp_path_factory, monkeypatch):
    """Make tiny models once for all tests; look nothing up on a network."""
    folder = tmp_path_factory.getbasetemp() / "models"
    for kind in ("wav2vec2", "hubert", "wavlm", "whisper"):
        make_tiny_encoder(folder / f"tiny-random-{kind}")
    monkeypatch.setenv("SER_MODELS", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def FineTuned() -> type:
    return notebook_cells("16_fine_tuning", "trainable", "standardised", "FineTuned").FineTuned


def random_clips(lengths=LENGTHS, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(3000 * rng.standard_normal(n) + 200).astype(np.int16) for n in lengths]


def options(kind: str = "wav2vec2", **more) -> dict:
    settings = {"encoder": f"tiny-random-{kind}", "weights": "", "rank": 0}
    return settings | {"decay": 0.9, "body_rate": 0.05} | more


# hidden states


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm", "whisper"])
def test_embeddings_are_means_and_deviations_of_what_transformers_computes(kind, monkeypatch):
    monkeypatch.setattr(encoders, "has_bfloat16", lambda kind: False)
    clip, folder = random_clips()[0], encoders.locate(f"tiny-random-{kind}")
    values = transformers.AutoFeatureExtractor.from_pretrained(folder)(
        clip / 32768, sampling_rate=16_000, return_tensors="pt"
    )
    plain = transformers.AutoModel.from_pretrained(folder).eval()
    plain, n_frames = (plain.get_encoder(), 50) if kind == "whisper" else (plain, None)
    with torch.inference_mode():
        inputs = next(iter(values.values())).float()
        output = plain(inputs, output_hidden_states=True)
    states = torch.cat([*output.hidden_states[:-1], output.last_hidden_state])[:, :n_frames]
    expected = torch.cat([states.mean(1), states.std(1, unbiased=False)], dim=1)
    found = encoders.embeddings(folder.name, [clip], "cpu")
    assert found.shape == (1, 4, 64)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_embeddings_are_found_again_in_any_order(monkeypatch):
    clips = random_clips()
    first = encoders.embeddings("tiny-random-wav2vec2", clips, "cpu")
    monkeypatch.setattr(encoders.SpeechEncoder, "forward", None)  # nothing is computed
    again = encoders.embeddings("tiny-random-wav2vec2", clips[::-1], "cpu")
    np.testing.assert_array_equal(again[::-1], first)
    with pytest.raises(TypeError):
        encoders.embeddings("tiny-random-hubert", clips, "cpu")


def test_whisper_reads_thirty_seconds():
    with pytest.raises(ValueError, match=r"reads 30 s, a clip has 30\.1 s: cut clips"):
        encoders.embeddings("tiny-random-whisper", random_clips([481_600]), "cpu")


def test_weights_in_half_precision_are_loaded_in_single(tmp_path):
    folder = encoders.locate("tiny-random-hubert")
    transformers.AutoModel.from_pretrained(folder).half().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["dtype"] == "float16"
    assert next(encoders.load(str(tmp_path)).parameters()).dtype == torch.float32


# clips


def test_clips_lose_their_silence_and_long_ones_their_end(tmp_path):
    utterances = make_utterances(3, 1, ("happy", "sad"))
    gap = np.zeros(8_000, np.float32)
    for i in range(len(utterances)):
        tone = harmonic_tone(120 + i, 9.0 if i == 0 else 1.0)
        path = write_audio(tmp_path / f"{i}.wav", np.concatenate([gap, tone, gap, gap]))
        utterances.loc[i, "path"] = str(path)
    clips = encoders.prepare(utterances, longest_s=4, n_jobs=1)
    assert [len(clip) / 16_000 for clip in clips] == pytest.approx([4, *[1.0] * 5], abs=0.05)
    whole = encoders.prepare(utterances, n_jobs=1)[0]
    assert len(whole) / 16_000 == pytest.approx(9.0, abs=0.05) and whole.dtype == np.int16
    assert np.array_equal(whole[: len(clips[0])], clips[0])
    assert encoders.padded(clips).shape == (6, 64_000)
    assert (encoders.padded(clips)[-1, len(clips[-1]) :] == encoders.PADDING).all()


# fine-tuning


def network(build: type, rank: int = 0, **more) -> training.Network:
    settings = {"epochs": 3, "batch_size": 4, "device": "cpu", "precision": "float32"} | more
    return training.Network("fine-tuned", build, options(rank=rank), **settings)


def test_padding_does_not_count(FineTuned):
    clips = encoders.padded(random_clips())
    longer = np.pad(clips, ((0, 0), (0, 5_000)), constant_values=encoders.PADDING)
    for kind in ("wav2vec2", "wavlm"):
        net = FineTuned(3, (0,), **options(kind)).eval()
        with torch.inference_mode():
            together = net(torch.tensor(clips))
            torch.testing.assert_close(net(torch.tensor(longer)), together, atol=1e-5, rtol=0)
            alone = torch.cat([net(torch.tensor(clip[None])) for clip in clips])
        if kind == "wavlm":  # no group norm: a clip's own answer, whatever it is padded to
            torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rank", [0, 2])
def test_fine_tuning_resumes_with_the_same_bits_and_restores(FineTuned, rank, monkeypatch):
    test = encoders.padded(random_clips(range(4_000, 7_600, 300)))
    rows = FoldRows(test, np.arange(12) % 3, np.repeat(["a", "b"], 6))
    model, given = network(FineTuned, rank), (rows, rows, test, 3, 1)
    whole = model.fit_predict(*given)
    interrupt_training(monkeypatch, model, given, epochs=2)
    again = network(FineTuned, rank).fit_predict(*given)
    assert np.array_equal(again["test"], whole["test"])
    # only what learns is stored, and restores the whole network
    assert not any("feature_extractor" in name for name in whole["weights"])
    assert sum(v.size for v in whole["weights"].values()) < (40_000 if rank == 0 else 12_000)
    net = model.restore(whole["weights"], 3, test.shape[1:])
    with torch.inference_mode():
        probability = net(torch.tensor(test)).softmax(1).numpy()
    np.testing.assert_allclose(probability, whole["test"], atol=1e-5)
    with pytest.raises(RuntimeError, match="do not fit"):
        net.load_state_dict({"head.0.weight": net.head[0].weight})


def test_low_layers_learn_more_slowly_and_convolutions_not_at_all(FineTuned):
    net = FineTuned(3, (0,), **options(decay=0.5, body_rate=0.1))
    groups = net.parameter_groups(1.0)
    assert [g["lr"] for g in groups] == pytest.approx([1, 0.1, 0.05, 0.025, 0.0125])
    learning = [id(p) for g in groups for p in g["params"]]
    assert sorted(learning) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    assert not any(p.requires_grad for p in net.encoder.feature_extractor.parameters())


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
@pytest.mark.parametrize("rank", [0, 2])
def test_everything_that_learns_gets_a_gradient(FineTuned, kind, rank):
    net = FineTuned(3, (0,), **options(kind, rank=rank))
    learning = {name: p for name, p in net.named_parameters() if p.requires_grad}
    for _ in range(2):  # an adapter's first half learns once its second is no longer zero
        net(torch.tensor(encoders.padded(random_clips()))).square().sum().backward()
        with torch.no_grad():
            for p in learning.values():
                p -= 0 if p.grad is None else 0.1 * p.grad.sign()
    assert not [name for name, p in learning.items() if p.grad is None or not p.grad.any()]


def test_whisper_and_other_weights_are_refused(FineTuned):
    with pytest.raises(ValueError, match="use its embeddings"):
        FineTuned(3, (0,), **options("whisper"))
    with pytest.raises(ValueError, match="has other weights"):
        FineTuned(3, (0,), **options(weights="0123"))


# where weights come from


def test_missing_weights_are_named_with_the_place_to_put_them(tmp_path, monkeypatch):
    monkeypatch.setenv("SER_MODELS", str(tmp_path / "mine"))
    with pytest.raises(paths.Missing) as error:
        encoders.locate("facebook/wav2vec2-base")
    place = str(tmp_path / "mine/facebook/wav2vec2-base")
    for word in ("facebook/wav2vec2-base", "config.json", "model.safetensors", place, "SER_MODELS"):
        assert word in str(error.value)


def test_folders_with_weights_and_without(tmp_path, monkeypatch):
    tiny = encoders.locate("tiny-random-hubert")
    monkeypatch.setenv("SER_MODELS", str(tmp_path))
    (tmp_path / "somebody/half").mkdir(parents=True)
    (tmp_path / "somebody/hubert").symlink_to(tiny)
    assert encoders.locate("somebody/hubert") == tiny and encoders.locate(str(tiny)) == tiny
    (tmp_path / "somebody/half/config.json").write_text("{}")
    with pytest.raises(paths.Missing):
        encoders.locate("somebody/half")


@pytest.mark.parametrize("only_bin", [False, True])
def test_one_kind_of_weights_is_downloaded_from_the_hub(only_bin, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name, allow_patterns, ignore_patterns):
        asked.append((name, allow_patterns[-1]))
        (tmp_path / "config.json").write_text("{}")
        if only_bin == (allow_patterns[-1] == "pytorch_model*.bin"):
            (tmp_path / allow_patterns[-1].replace("*", "x")).write_bytes(b"x")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert encoders.locate("somebody/model") == tmp_path
    kinds = ["*.safetensors", "pytorch_model*.bin"][: 1 + only_bin]
    assert asked == [("somebody/model", kind) for kind in kinds]
