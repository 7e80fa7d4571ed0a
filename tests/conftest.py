"""What the tests share: signals, small corpora on disk, small tables. No test ever touches a
user's files."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import soundfile
import yaml

from helpers import tables
from helpers.paths import PROJECT

RATE = 16_000  # Hz
EMOTIONS = ("neutral", "happy", "sad", "angry")


@pytest.fixture(autouse=True)
def private_work(tmp_path_factory, monkeypatch) -> Path:
    """Give every test a work folder of its own, and no memory of what an earlier test read."""
    folder = tmp_path_factory.mktemp("ser-work")
    monkeypatch.setenv("SER_WORK", str(folder))
    for name in ("SER_RUN_LOG", "SER_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tables, "_READ", {})
    return folder


@pytest.fixture
def data_folder(tmp_path, monkeypatch) -> Path:
    """An empty ``SER_DATA``."""
    folder = tmp_path / "raw corpora"
    folder.mkdir()
    monkeypatch.setenv("SER_DATA", str(folder))
    return folder


LONG = ("test_run_all.py", "test_interruptions.py")
SESSIONS, TURNS = 4, 6  # of the demo corpus: eight speakers, the fewest that get an interval
# As quick as the notebooks' code can be; test_experiment.py tries every model
TINY = {
    "07": {"EPOCHS": 2, "PATIENCE": 2, "SECONDS": 0.64, "BATCH_SIZE": 32, "EPOCHS_WIDE": 1},
    "09": {
        "EPOCHS": 1,
        "SECONDS": 0.64,
        "BATCH_SIZE": 64,
        "N_JOBS": 1,
        "SPEAKER_NORMALISED": False,
    },
    "10": {"EPOCHS": 1, "TRIALS": 1, "SPEEDS": [1.1], "SPEAKER_NORMALISED": False},
    "11": {
        "SEARCH": False,
        "N_TREES": 10,
        "N_ROUNDS": 3,
        "K_BEST": 20,
        "MODELS": ["logistic regression", "extra trees", "XGBoost"],
    },
    "12": {"EPOCHS": 1, "SECONDS": 0.64},
    "13": {"EPOCHS": 1, "SECONDS": 0.64, "SPEAKER_NORMALISED": False},
    "14": {"EPOCHS": 1, "SECONDS": 0.64, "SPEAKER_NORMALISED": False},
    "19": {"EPOCHS": 1, "TRANSFORMS": ["noise"], "SPEAKERS": [2, 4]},
}


def pytest_collection_modifyitems(items) -> None:
    """Start with the longest files where several processes share the files."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.path.name not in LONG)


def pytest_runtest_setup(item) -> None:
    """Skip tests of a GPU where there is none, and say so."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no GPU on this machine")


def encoder_settings(encoder: Path) -> dict[str, dict]:
    """Return settings of notebooks 15 and 16, which the quick profile leaves out."""
    shared = {"ENCODER": str(encoder), "LONGEST_S": 3.0, "SPEAKER_NORMALISED": False}
    linear = {"LETTERS": str(encoder), "CLASSIFIERS": ["logistic regression"], "N_JOBS": 1}
    return {"15": shared | linear, "16": shared | {"EPOCHS": 1}}


@pytest.fixture
def finished_trainings_go(request, monkeypatch):
    """What stores a result removes the checkpoint; tests that store nothing do it here."""
    from helpers import training

    real = training.Network.fit_predict

    def fit_predict(*arguments, **named):
        outcome = real(*arguments, **named)
        shutil.rmtree(outcome.get("checkpoint", ""), ignore_errors=True)
        return outcome

    if "disk_is_full" not in request.node.name:
        monkeypatch.setattr(training.Network, "fit_predict", fit_predict)


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A copy of the project with a cut-down demo corpus, in a folder with spaces and accents."""
    target = tmp_path_factory.mktemp("run") / "projet à moi"
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("helpers", "tools", "notebooks", "data/demo"):
        shutil.copytree(PROJECT / name, target / name, ignore=ignored)
    shutil.copy(PROJECT / "pyproject.toml", target)
    demo, kept = target / "data/demo", set()
    for session in sorted(demo.glob("Session*"))[SESSIONS:]:
        shutil.rmtree(session)
    for file in demo.glob("Session*/dialog/EmoEvaluation/*.txt"):
        header, *blocks = re.split(r"\n\n+", file.read_text(encoding="utf-8").strip())
        text = "\n\n".join([header, *blocks[:TURNS]])
        file.write_text(f"{text}\n\n", encoding="utf-8")
        kept.update(block.split("\t")[1] for block in blocks[:TURNS])
    for clip in demo.glob("Session*/sentences/wav/*/*"):
        if clip.stem not in kept:
            clip.unlink()
    profile = target / "tools/profiles/quick.yaml"
    values = yaml.safe_load(profile.read_text(encoding="utf-8"))
    del values["skip"]
    encoder = make_tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny-random-wav2vec2")
    for number, tiny in (TINY | encoder_settings(encoder)).items():
        values[number] = values.get(number, {}) | tiny
    profile.write_text(yaml.safe_dump(values), encoding="utf-8")
    return target


SMALL = {  # settings of tiny encoders; each kind reads its own
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 99,
    "encoder_ffn_dim": 64,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def make_tiny_encoder(folder: Path) -> Path:
    """Make a very small wav2vec2, hubert, wavlm or whisper with random weights, once."""
    import torch
    import transformers

    kind = folder.name.removeprefix("tiny-random-")
    if not folder.is_dir():
        norm = "layer" if kind == "wavlm" else "group"  # after the first convolution
        config = transformers.AutoConfig.for_model(kind, **SMALL, feat_extract_norm=norm)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            transformers.AutoModel.from_config(config).save_pretrained(folder)
        whisper, others = (
            transformers.WhisperFeatureExtractor,
            transformers.Wav2Vec2FeatureExtractor,
        )
        reads = whisper if kind == "whisper" else others
        reads(do_normalize=kind != "wavlm").save_pretrained(folder)
    return folder


def notebook_cells(name: str, *defined: str) -> ModuleType:
    """Run the cells of a notebook that import, set parameters, or define these names."""
    module = sys.modules[name] = ModuleType(name)
    notebook = json.loads((PROJECT / f"notebooks/{name}.ipynb").read_text("utf-8"))
    starts = tuple(f"{kind} {one}" for one in defined for kind in ("def", "class"))
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        wanted = source.startswith("import ") or "parameters" in cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code" and (wanted or any(start in source for start in starts)):
            exec(source, vars(module))
    return module


def run_environment(project: Path, **variables: str) -> dict[str, str]:
    """Return the environment of a run: one process each, since starting workers takes longer."""
    ours = {"SER_WORK": str(project / "derived"), "LOKY_MAX_CPU_COUNT": "1", "OMP_NUM_THREADS": "1"}
    others = {name: value for name, value in os.environ.items() if not name.startswith("SER_")}
    return others | ours | variables


def run_all(project: Path, *options: str, **variables: str):
    """Call run.py; returns the finished process, and how many seconds it took."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "tools/run.py", *options],
        cwd=project,
        env=run_environment(project, **variables),
        capture_output=True,
        text=True,
    )
    return done, time.monotonic() - started


def real_corpus(name: str) -> Path:
    root = Path(os.environ.get("SER_DATA", "/nowhere")).resolve() / name
    if not root.is_dir():
        pytest.skip(f"needs real speech: set SER_DATA to the folder that holds {name}/")
    return root


@pytest.fixture
def ravdess_root() -> Path:
    return real_corpus("ravdess")


@pytest.fixture
def emodb_root() -> Path:
    return real_corpus("emodb")


def harmonic_tone(
    hertz: float, seconds: float = 1.0, level: float = 0.3, rate: int = RATE
) -> np.ndarray:
    """A voice-like tone: harmonics up to 4 kHz that fall by 6 dB per octave."""
    time = np.arange(round(seconds * rate)) / rate
    wave = sum(
        np.sin(2 * np.pi * k * hertz * time) / k
        for k in range(1, int(min(4000, 0.45 * rate) / hertz) + 1)
    )
    return (level * wave / np.abs(wave).max()).astype(np.float32)


def noise(seconds: float = 1.0, level: float = 0.1, seed: int = 0, rate: int = RATE) -> np.ndarray:
    return (
        (level * np.random.default_rng(seed).standard_normal(round(seconds * rate)))
        .clip(-0.99, 0.99)
        .astype(np.float32)
    )


def write_audio(path: Path, signal: np.ndarray | None = None, rate: int = RATE, **options) -> Path:
    """Write a signal (by default half a second of a tone that is different for every name)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if signal is None:
        signal = harmonic_tone(100 + sum(path.name.encode()) % 150, 0.5) + noise(
            0.5, 0.01, sum(path.as_posix().encode())
        )
    soundfile.write(path, signal, rate, **options)
    return path


def clips(**signals: np.ndarray | Path) -> pd.DataFrame:
    """Rows for ``measure_all`` and feature tables; the name of a clip is its hash."""
    names = list(signals)
    return pd.DataFrame(
        {
            "utterance_id": [f"toy/{n}" for n in names],
            "path": [str(signals[n]) for n in names],
            "start_s": np.nan,
            "end_s": np.nan,
            "audio_hash": names,
            "emotion_native": "neutral",
        }
    )


def make_utterances(
    n_speakers: int = 10,
    per_emotion: int = 3,
    emotions=EMOTIONS,
    per_group: int = 1,
    women: int | None = None,
) -> pd.DataFrame:
    """A balanced table of utterances: every speaker says every sentence in every emotion."""
    women = n_speakers // 2 if women is None else women
    rows = [
        {
            "utterance_id": f"toy/s{s:02d}_{emotion}_{i}",
            "path": "",
            "start_s": np.nan,
            "end_s": np.nan,
            "speaker": f"s{s:02d}",
            "sex": "female" if s < women else "male",
            "group": f"g{s // per_group:02d}",
            "sentence": f"sentence {i}",
            "text": "",
            "dialogue": "",
            "turn": np.nan,
            "emotion_native": emotion,
            "emotion": emotion,
            "intensity": "",
            "valence": np.nan,
            "arousal": np.nan,
            "dominance": np.nan,
            "duration_s": 1.0,
            "audio_hash": f"hash{s}{emotion}{i}",
            "quality": "ok",
        }
        for s in range(n_speakers)
        for emotion in emotions
        for i in range(per_emotion)
    ]
    table = pd.DataFrame(rows)
    return table.assign(group=table["speaker"]) if per_group == 1 else table


def make_features(
    utterances: pd.DataFrame, n_features: int = 12, strength: float = 1.0, seed: int = 0
) -> np.ndarray:
    """Noise in which each emotion has a direction of its own."""
    rng = np.random.default_rng(seed)
    codes = (
        utterances["emotion"]
        .map({e: i for i, e in enumerate(sorted(set(utterances["emotion"])))})
        .to_numpy()
    )
    centres = strength * rng.standard_normal((codes.max() + 1, n_features))
    return (5 + centres[codes] + rng.standard_normal((len(codes), n_features))).astype(np.float32)


def interrupt_training(monkeypatch, net, given: tuple, epochs: int) -> None:
    """Train a network, and stop it when so many epochs are stored."""
    from helpers.training import Trainer

    save = Trainer.save

    def save_and_stop(self):
        save(self)
        if self.epoch == epochs:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "save", save_and_stop)
        net.fit_predict(*given)


def make_predictions(
    folds: pd.DataFrame, skill: float = 2.0, seed: int = 0, variant: str = "inductive"
) -> pd.DataFrame:
    """A predictions table: random logits, to which the truth's gets `skill` added."""
    rng = np.random.default_rng(seed)
    rows = folds[folds["role"] != "train"].reset_index(drop=True)
    emotions = sorted(set(folds["emotion"]))
    logits = rng.standard_normal((len(rows), len(emotions)))
    logits += skill * (rows["emotion"].to_numpy(str)[:, None] == np.array(emotions))
    values = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    table = rows.rename(columns={"emotion": "truth"}).assign(variant=variant, pretrained=False)
    return table.assign(
        **{f"p_{e}": values[:, i].astype(np.float32) for i, e in enumerate(emotions)}
    )
