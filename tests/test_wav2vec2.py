"""Pretrained speech encoders, by tiny random ones of the same classes: padding, storing, fine-tuning, missing weights."""

import http.server
import itertools
import json
import threading

import joblib
import numpy as np
import pytest
import torch
import transformers
from conftest import harmonic_tone, interrupt_training, make_utterances, noise, write_audio

from helpers import audio, cache, pretrained, splits, training, wav2vec2
from helpers.experiment import Part, cross_validate
from helpers.paths import PROJECT

KINDS = ["wav2vec2", "hubert", "wavlm", "whisper"]
LENGTHS = (16_000, 9_000, 23_456, 40_001, 5_000)


@pytest.fixture(autouse=True)
def models(tmp_path_factory, monkeypatch):
    """Tiny models are made once for all tests; nothing is looked up on a network."""
    monkeypatch.setenv("SER_MODELS", str(tmp_path_factory.getbasetemp() / "models"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def random_clips(lengths=LENGTHS, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(3000 * rng.standard_normal(n) + 200).astype(np.int16) for n in lengths]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_embedding_and_a_batch_agrees_with_single_clips(kind):
    encoder, clips = wav2vec2.SpeechEncoder(f"tiny-random-{kind}").eval(), random_clips()
    together = wav2vec2.pooled(encoder, clips)
    assert together.shape == (len(clips), encoder.n_layers, 2 * encoder.n_units)
    alone = np.concatenate([wav2vec2.pooled(encoder, [clip]) for clip in clips])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
def test_an_encoder_is_that_of_transformers(kind):
    name = f"tiny-random-{kind}"
    encoder, clip = wav2vec2.SpeechEncoder(name).eval(), random_clips()[0]
    folder = pretrained.locate(name)
    processor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    plain = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        output = plain(
            processor(clip / 32768, sampling_rate=16_000, return_tensors="pt").input_values.float(),
            output_hidden_states=True,
        )
    states = [*output.hidden_states[:-1], output.last_hidden_state]
    expected = torch.stack(
        [torch.cat([s.mean(1), s.std(1, unbiased=False)], dim=1) for s in states], dim=1
    )
    np.testing.assert_allclose(wav2vec2.pooled(encoder, [clip]), expected.numpy(), atol=1e-5)


def test_without_its_own_normalisation_padding_would_matter():
    encoder, clips = wav2vec2.SpeechEncoder("tiny-random-wav2vec2").eval(), random_clips()
    alone = wav2vec2.pooled(encoder, clips[1:2])
    first, norm = encoder.model.feature_extractor.conv_layers[0], encoder.norm
    first.layer_norm = torch.nn.GroupNorm(len(norm.weight), len(norm.weight), norm.eps)
    assert np.abs(wav2vec2.pooled(encoder, clips)[1] - alone[0]).max() > 1e-3


@pytest.mark.parametrize(("kind", "standardised"), [("wav2vec2", True), ("wavlm", False)])
def test_samples_are_normalised_as_the_checkpoint_asks(kind, standardised):
    name = f"tiny-random-{kind}"
    encoder, clips = wav2vec2.SpeechEncoder(name), random_clips()
    inputs, n_samples = encoder.batch(clips)
    for row, clip, n in zip(inputs, clips, n_samples, strict=True):
        own = row[:n].numpy()
        if standardised:
            assert abs(own.mean()) < 1e-4 and abs(own.std() - 1) < 1e-3
        else:
            np.testing.assert_allclose(own, clip / 32768, atol=1e-6)
        assert not row[n:].any()
    # and the fine-tuned network, which standardises on its own device, hears the same
    net = wav2vec2.FineTuned(4, (0,), name, "").eval()
    heard = {}
    net.encoder.forward = lambda signals, n: (
        heard.update(signals=signals) or ((torch.zeros(5, 3, 32),), torch.ones(5, 3))
    )
    net.embed(torch.tensor(wav2vec2.padded(clips)))
    longest = heard["signals"].shape[1]
    np.testing.assert_allclose(heard["signals"].numpy(), inputs[:, :longest].numpy(), atol=1e-5)
    assert (
        longest == n_samples.max() <= inputs.shape[1] < longest + wav2vec2.STEP
        and inputs.shape[1] % wav2vec2.STEP == 0
    )


def test_embeddings_are_stored_by_content_and_damage_is_mended(monkeypatch):
    clips = random_clips()
    first = wav2vec2.embeddings("tiny-random-wav2vec2", clips, "cpu", batch_s=2)
    stored = sorted((cache.stored_at("embeddings", "x").parent.parent).rglob("*.npz"))
    assert len(stored) == len(clips)
    stored[0].write_bytes(b"cut short")
    computed, batch = [], wav2vec2.SpeechEncoder.batch
    monkeypatch.setattr(
        wav2vec2.SpeechEncoder,
        "batch",
        lambda self, some: computed.extend(some) or batch(self, some),
    )
    again = wav2vec2.embeddings("tiny-random-wav2vec2", [clips[i] for i in (3, 0, 1, 2, 4)], "cpu")
    np.testing.assert_allclose(again, first[[3, 0, 1, 2, 4]], atol=1e-5)
    assert len(computed) == 1, "only the damaged one is computed again"


@pytest.mark.parametrize("lengths", [[], [5], [5, 5, 5], list(range(1, 60))])
def test_batches_by_length_hold_every_row_once_and_little_padding(lengths):
    lengths = [16_000 * n for n in lengths]
    batches = wav2vec2.by_length(lengths, batch_s=100)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[row] for row in batch) * len(batch) <= 100 * 16_000


def test_preparing_cuts_long_clips_and_joins_their_predictions(tmp_path):
    utterances = make_utterances(4, 1, ("happy", "sad"))
    for i in range(len(utterances)):
        seconds = 9.0 if i == 0 else 1.0
        path = write_audio(
            tmp_path / f"{i}.wav",
            np.concatenate(
                [
                    np.zeros(8000, np.float32),
                    harmonic_tone(120 + i, seconds),
                    np.zeros(16_000, np.float32),
                ]
            ),
        )
        utterances.loc[i, "path"] = str(path)
    pieces, clips = wav2vec2.prepare(utterances, "energy", longest_s=4, overlap_s=1, n_jobs=1)
    long = pieces[pieces["parent_id"] == utterances["utterance_id"][0]]
    assert long["utterance_id"].tolist() == [
        f"{utterances['utterance_id'][0]}#{i}" for i in (1, 2, 3)
    ]
    assert (pieces["duration_s"] <= 4.001).all() and (
        pieces["before_s"] - pieces["after_s"]
    ).between(1.2, 1.5).all()
    assert [len(clip) / 16_000 for clip in clips] == pytest.approx(pieces["duration_s"].tolist())
    folds = splits.make_folds(utterances, n_folds=2)
    rows = wav2vec2.pieces_of_folds(folds, pieces)
    assert len(rows) == len(folds) + 2 * folds["fold"].nunique() and list(rows.columns) == list(
        folds.columns
    )
    predictions = (
        rows[rows["role"] != "train"]
        .rename(columns={"emotion": "truth"})
        .drop(columns="speaker")
        .assign(variant="inductive", pretrained=False, p_happy=0.5, p_sad=0.5)
    )
    mine = predictions["utterance_id"].str.contains("#")
    predictions.loc[mine, "p_happy"] = [0.2, 0.4, 0.9] * (mine.sum() // 3)
    predictions["p_sad"] = 1 - predictions["p_happy"]
    whole = wav2vec2.mean_over_pieces(predictions, pieces)
    assert not whole.duplicated(["utterance_id", "fold", "role"]).any() and list(
        whole.columns
    ) == list(predictions.columns)
    np.testing.assert_allclose(
        whole.loc[whole["utterance_id"] == utterances["utterance_id"][0], "p_happy"], 0.5
    )
    with pytest.raises(ValueError, match="have no pieces"):
        wav2vec2.pieces_of_folds(folds, pieces.iloc[3:])


def fine_tuned(rank: int = 0, **more) -> training.Network:
    weights = pretrained.fingerprint(pretrained.locate("tiny-random-wav2vec2"))
    options = {"encoder": "tiny-random-wav2vec2", "weights": weights, "rank": rank}
    return training.Network(
        "fine-tuned",
        wav2vec2.FineTuned,
        options,
        **{"epochs": 3, "batch_size": 4, "device": "cpu", "precision": "float32"} | more,
    )


def spoken_parts(n: int = 12) -> tuple[Part, Part, np.ndarray]:
    inputs = wav2vec2.padded(random_clips([4_000 + 300 * i for i in range(n)]))
    part = Part(
        inputs,
        np.arange(n) % 3,
        np.repeat(["a", "b"], n // 2),
        np.array([f"x/{i}" for i in range(n)]),
    )
    return part, part, inputs


@pytest.mark.parametrize("rank", [0, 2])
def test_fine_tuning_goes_on_after_an_interruption_with_the_same_bits(rank, monkeypatch):
    train, valid, test = spoken_parts()
    whole = fine_tuned(rank).fit_predict(train, valid, test, 3, seed=1)
    assert whole["notes"]["curves"][0]["train_loss"] != whole["notes"]["curves"][2]["train_loss"]
    for path in whole["scratch"].glob("*"):
        path.unlink()
    interrupt_training(monkeypatch, fine_tuned(rank), (train, valid, test, 3, 1), epochs=2)
    assert np.array_equal(
        fine_tuned(rank).fit_predict(train, valid, test, 3, seed=1)["test"], whole["test"]
    )


@pytest.mark.parametrize("rank", [0, 2])
def test_only_what_learns_is_stored_and_restores_the_whole(rank):
    train, valid, test = spoken_parts()
    model = fine_tuned(rank, epochs=1)
    outcome = model.fit_predict(train, valid, test, 3, seed=1)
    assert not any("feature_extractor" in name for name in outcome["weights"])
    assert sum(v.size for v in outcome["weights"].values()) < (40_000 if rank == 0 else 12_000)
    net = model.restore(outcome["weights"], 3, test.shape[1:])
    with torch.inference_mode():
        np.testing.assert_allclose(
            net(torch.tensor(test)).softmax(1).numpy(), outcome["test"], atol=1e-5
        )
    with pytest.raises(RuntimeError, match="do not fit"):
        net.load_state_dict({"head.0.weight": net.head[0].weight})


def test_low_layers_learn_slowly_and_the_ears_not_at_all():
    net = wav2vec2.FineTuned(3, (0,), "tiny-random-wav2vec2", "", decay=0.5, body_rate=0.1)
    groups = net.parameter_groups(1.0)
    assert [g["lr"] for g in groups] == pytest.approx([1, 0.1, 0.05, 0.025, 0.0125])
    learning = {id(p) for g in groups for p in g["params"]}
    assert learning == {id(p) for p in net.parameters() if p.requires_grad}
    assert len(learning) == sum(len(g["params"]) for g in groups), "none twice"
    assert not any(p.requires_grad for p in net.encoder.model.feature_extractor.parameters())
    rates = [group["lr"] for group in training._optimiser(fine_tuned(), net).param_groups]
    assert rates[0] > rates[1] > rates[-1]


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
@pytest.mark.parametrize("rank", [0, 2])
def test_everything_that_is_said_to_learn_gets_a_gradient(kind, rank):
    net = wav2vec2.FineTuned(3, (0,), f"tiny-random-{kind}", "", rank=rank)
    training._optimiser(fine_tuned(), net).zero_grad()
    for _ in range(2):  # an adapter's first half learns once its second is no longer zero
        net(torch.tensor(wav2vec2.padded(random_clips()))).square().sum().backward()
        with torch.no_grad():
            for p in net.parameters():
                if p.requires_grad and p.grad is not None:
                    p -= 0.1 * p.grad.sign()
    silent = [
        name
        for name, p in net.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert not silent


def test_padding_changes_no_logit_of_a_fine_tuned_network():
    net, clips = (
        wav2vec2.FineTuned(3, (0,), "tiny-random-wav2vec2", "").eval(),
        wav2vec2.padded(random_clips()),
    )
    longer = np.pad(clips, ((0, 0), (0, 5_000)), constant_values=wav2vec2.PADDING)
    with torch.inference_mode():
        torch.testing.assert_close(
            net(torch.tensor(clips)), net(torch.tensor(longer)), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_near_and_as_blind_to_padding(kind):
    encoder, clips = wav2vec2.SpeechEncoder(f"tiny-random-{kind}").eval(), random_clips()
    exact = wav2vec2.pooled(encoder, clips)
    near = wav2vec2.pooled(encoder.halve(), clips)
    assert (
        (encoder.precision == torch.bfloat16)
        == training.has_bfloat16("cpu")
        == (np.abs(near - exact).max() > 0)
    )
    assert np.abs(near - exact).mean() < 0.02 * np.abs(exact).mean()
    alone = np.concatenate([wav2vec2.pooled(encoder, [clip]) for clip in clips])
    assert np.abs(near - alone).mean() < 0.01 * np.abs(exact).mean()


def test_whisper_reads_half_a_minute_of_each_clip(monkeypatch):
    sizes = []
    real = wav2vec2.pooled
    monkeypatch.setattr(
        wav2vec2, "pooled", lambda net, clips: sizes.append(len(clips)) or real(net, clips)
    )
    wav2vec2.embeddings(
        "tiny-random-whisper", random_clips([4_000, 5_000, 6_000]), "cpu", batch_s=60
    )
    assert sizes == [2, 1], "two are a minute, however short"
    with pytest.raises(ValueError, match=r"reads 30 s, a clip has 30\.1 s"):
        wav2vec2.embeddings("tiny-random-whisper", random_clips([481_600]), "cpu")


def test_whisper_and_other_weights_are_refused():
    with pytest.raises(ValueError, match="use its embeddings"):
        wav2vec2.FineTuned(3, (0,), "tiny-random-whisper", "")
    with pytest.raises(ValueError, match="has other weights"):
        wav2vec2.FineTuned(3, (0,), "tiny-random-wav2vec2", "0123")


def test_fine_tuned_network_goes_the_common_road():
    utterances = make_utterances(8, 2, ("happy", "sad"))
    inputs = wav2vec2.padded(random_clips([4_000] * len(utterances)))
    folds = splits.make_folds(utterances, n_folds=2)
    table, record = cross_validate(
        fine_tuned(epochs=1), inputs, utterances["utterance_id"], folds, pretrained=True
    )
    assert table["pretrained"].all() and set(record["folds"]) == {"1", "2"}
    normalised, _ = training.speaker_normalised(
        fine_tuned(epochs=1), inputs, utterances["utterance_id"], folds, record
    )
    assert (normalised["variant"] == "speaker-normalised").all()


# where weights come from


def test_weights_that_cannot_be_had_are_named_with_the_place_to_put_them(tmp_path, monkeypatch):
    monkeypatch.setenv("SER_MODELS", str(tmp_path / "mine"))
    with pytest.raises(pretrained.WeightsMissing) as error:
        pretrained.locate("facebook/wav2vec2-base")
    place = str(tmp_path / "mine/facebook/wav2vec2-base")
    for word in ("facebook/wav2vec2-base", "config.json", "model.safetensors", place, "SER_MODELS"):
        assert word in str(error.value)


def test_a_folder_of_ones_own_and_an_incomplete_one(tmp_path, monkeypatch):
    tiny = pretrained.locate("tiny-random-hubert")
    monkeypatch.setenv("SER_MODELS", str(tmp_path))
    (tmp_path / "somebody").mkdir()
    (tmp_path / "somebody/hubert").symlink_to(tiny)
    assert pretrained.locate("somebody/hubert") == tiny and pretrained.locate(str(tiny)) == tiny
    (tmp_path / "somebody/half").mkdir()
    (tmp_path / "somebody/half/config.json").write_text("{}")
    with pytest.raises(pretrained.WeightsMissing):
        pretrained.locate("somebody/half")


def test_tiny_models_are_the_same_every_time_and_marked(tmp_path, monkeypatch):
    before = torch.get_rng_state()
    first = pretrained.fingerprint(pretrained.locate("tiny-random-wavlm"))
    assert pretrained.is_untrained(pretrained.locate("tiny-random-wavlm")) and torch.equal(
        before, torch.get_rng_state()
    )
    monkeypatch.setenv("SER_MODELS", str(tmp_path))
    assert pretrained.fingerprint(pretrained.locate("tiny-random-wavlm")) == first
    assert pretrained.fingerprint(pretrained.locate("tiny-random-hubert")) != first
    with pytest.raises(ValueError, match="tiny-random-whisper"):
        pretrained.locate("tiny-random-ear")


def test_weights_are_downloaded_once_from_the_hub(tmp_path, monkeypatch):
    source = pretrained.locate("tiny-random-wav2vec2")
    files, asked = (
        {path.name: path.read_bytes() for path in source.iterdir()}
        | {"flax_model.msgpack": b"x" * 10},
        [],
    )

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path) if "somebody" in self.path else None
            if "/tree/" in self.path:
                content = json.dumps(
                    [
                        {"type": "file", "path": name, "size": len(content), "oid": "1" * 40}
                        for name, content in files.items()
                    ]
                ).encode()
            elif self.path.startswith("/api/models/somebody/ears"):
                content = json.dumps(
                    {
                        "id": "somebody/ears",
                        "sha": "0" * 40,
                        "private": False,
                        "tags": [],
                        "downloads": 0,
                        "likes": 0,
                        "siblings": [{"rfilename": name} for name in files],
                    }
                ).encode()
            else:
                content = files.get(self.path.rsplit("/", 1)[-1])
            if content is None:
                return self.send_error(404)
            self.send_response(200)
            for name, value in {
                "Content-Length": len(content),
                "ETag": f'"{hash(content)}"',
                "X-Repo-Commit": "0" * 40,
                "Content-Type": "application/json",
            }.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("SER_MODELS", str(tmp_path / "mine"))
    try:
        folder = pretrained.locate("somebody/ears")
        assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
        assert not (folder / "flax_model.msgpack").exists(), "one kind of weights is enough"
        count = len(asked)
        assert pretrained.locate("somebody/ears") == folder and len(asked) == count, (
            "the second time nothing is asked for"
        )
    finally:
        server.shutdown()
        server.server_close()


# what happens to a clip before


def speech_and_silence() -> tuple[np.ndarray, list[tuple[float, float]]]:
    gap = noise(0.8, 0.0005)
    return np.concatenate([gap, harmonic_tone(150, 1.0), gap, harmonic_tone(180, 0.7), gap]), [
        (0.8, 1.8),
        (2.6, 3.3),
    ]


def test_energy_finds_what_is_loud():
    signal, expected = speech_and_silence()
    parts = audio.voice_activity(signal, "energy") / audio.SAMPLING_RATE
    assert np.abs(parts - expected).max() < 0.05
    assert len(audio.voice_activity(np.zeros(16_000, np.float32), "energy")) == 0


def test_silero_tells_speech_from_a_tone():
    from helpers import corpora, paths

    row = corpora.index("demo", paths.PROJECT / "data/demo").query("start_s.isna()").iloc[0]
    said, gap = audio.load(row["path"]), noise(1.0, 0.0005)
    threads = torch.get_num_threads()
    parts = audio.voice_activity(
        np.concatenate([gap, said, gap, harmonic_tone(440, 1.0), gap]), "silero"
    )
    assert torch.get_num_threads() == threads
    start, stop = 16_000, 16_000 + len(said)
    heard = sum(max(0, min(b, stop) - max(a, start)) for a, b in parts)
    assert heard > 0.5 * len(said) and (parts[:, 1] - parts[:, 0]).sum() < 1.3 * heard
    only = audio.voice_activity(said, "silero")
    assert only.min() >= 0 and only.max() <= len(said)


def test_pieces_of_a_long_recording_are_heard_as_the_whole(monkeypatch):
    silero_vad = pytest.importorskip("silero_vad")
    speech = audio.load(sorted((PROJECT / "data/demo").glob("Session*/sentences/wav/*/*"))[0])

    rng = np.random.default_rng(0)
    pauses = [rng.normal(0, 1e-3, n).astype(np.float32) for n in rng.integers(2_000, 40_000, 60)]
    signal = np.concatenate([part for pause in pauses for part in (speech, pause)])
    model = silero_vad.load_silero_vad(sequence=True)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 3)
    monkeypatch.setattr(audio._SideBySide, "shortest", len(signal) // 3)
    asked, forward = [], model.audio_forward
    monkeypatch.setattr(
        model,
        "audio_forward",
        lambda piece, **options: asked.append(len(piece)) or forward(piece, **options),
    )
    found, expected = audio._SideBySide(model).audio_forward(signal), forward(signal)
    assert len(asked) == 3 and max(asked) < 0.75 * len(signal)
    assert len(found) == len(expected) and (np.abs(found - expected) > 0.02).mean() < 0.02
    assert ((found > 0.5) == (expected > 0.5)).mean() > 0.999
    assert expected.min() < 0.3 and expected.max() > 0.7, "there was nothing to tell apart"


def test_without_the_detector_energy_takes_its_place(monkeypatch):
    signal, expected = speech_and_silence()
    monkeypatch.setattr(audio, "_silero", lambda: None)
    assert len(audio.voice_activity(signal)) == len(expected)
    with pytest.raises(ModuleNotFoundError, match="pip install silero-vad"):
        audio.voice_activity(signal, "silero")


def test_short_pauses_stay_and_margins_never_overlap():
    tone = harmonic_tone(150, 0.5)
    signal = np.concatenate([tone, np.zeros(3_200, np.float32), tone])  # 0.2 s
    assert len(audio.voice_activity(signal, "energy")) == 1
    parts = np.array([[1_000, 5_000], [10_000, 12_000], [15_000, 16_000]])
    ramp = np.arange(17_000, dtype=np.float32)
    kept = audio.speech_only(ramp, parts, margin_s=0.2)
    assert (np.diff(kept) > 0).all() and set(range(1_000, 5_000)) | set(
        range(15_000, 16_000)
    ) <= set(kept.astype(int))
    assert np.array_equal(audio.speech_only(ramp, np.zeros((0, 2), int)), ramp), (
        "nothing found is no reason to lose a clip"
    )


@pytest.mark.parametrize("seconds", [0.3, 6.99, 7.0, 7.01, 13.0, 13.1, 60.0])
def test_pieces_cover_everything_and_overlap(seconds):
    cuts = audio.pieces(round(seconds * 16_000))
    assert cuts[0].start == 0 and cuts[-1].stop == round(seconds * 16_000)
    assert all(cut.stop - cut.start <= 7 * 16_000 for cut in cuts)
    assert len(cuts) == max(1, int(np.ceil((seconds - 1) / 6 - 1e-9))), "as few as possible"
    assert all(a.stop - b.start >= 16_000 - 1 for a, b in itertools.pairwise(cuts))
    with pytest.raises(ValueError, match="can't overlap"):
        audio.pieces(16_000, 2, 2)


def test_converting_with_and_without_ffmpeg(tmp_path, monkeypatch, capsys):
    source = write_audio(tmp_path / "in/a/loud.flac", harmonic_tone(200, 1, rate=44_100), 44_100)
    (tmp_path / "in/b.m4a").write_bytes(b"no audio at all")
    monkeypatch.setattr("shutil.which", lambda name: None)
    target = audio.convert(source, tmp_path / "out/loud.wav")
    assert len(audio.load(target)) == 16_000 and not list(tmp_path.glob("out/.converting*"))
    with pytest.raises(ValueError, match=r"b\.m4a can't be decoded.*ffmpeg reads more formats"):
        audio.convert(tmp_path / "in/b.m4a", tmp_path / "out/b.wav")
    # a stand-in that takes ffmpeg's arguments: what it is told, and what is done about its errors
    program = tmp_path / "ffmpeg"
    program.write_text(f"""#!/bin/sh
echo "$@" >> {tmp_path}/calls
case "$*" in *b.m4a*) echo 'Invalid data' >&2; exit 1;; esac
for last; do :; done
cp {target} "$last"
""")
    program.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(program))
    monkeypatch.setattr("sys.argv", ["audio", str(tmp_path / "in"), str(tmp_path / "all")])
    monkeypatch.setattr(
        audio, "over_clips", lambda compute, rows, **more: [compute(*row) for row in rows]
    )
    with pytest.raises(SystemExit, match=r"b\.m4a.*Invalid data"):
        audio.main()
    assert (tmp_path / "all/a/loud.wav").is_file() and not (tmp_path / "all/b.wav").exists()
    assert (
        "1 of 2 recordings" in capsys.readouterr().out
        and "-ac 1 -ar 16000" in (tmp_path / "calls").read_text()
    )
