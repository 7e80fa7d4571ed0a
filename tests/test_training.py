"""The training loop: it learns, stops, resumes to the same bits, and says what is wrong."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import interrupt_training, make_utterances

from helpers import experiment, explain, nets, paths, splits, training
from helpers.augment import Augmentation
from helpers.estimators import linear_head
from helpers.experiment import Part, cross_validate
from helpers.features import normalise_by_speaker
from helpers.nets import MelCNN
from helpers.training import Network


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These networks are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def setup():
    utterances = make_utterances(10, 4)
    return utterances["utterance_id"], splits.make_folds(utterances, n_folds=5)


def pictures(n: int = 48, frames: int = 32, seed: int = 0) -> Part:
    """Images with a bright stripe whose height is the class."""
    rng = np.random.default_rng(seed)
    classes = np.arange(n) % 3
    images = rng.integers(1, 120, (n, 32, frames)).astype(np.uint8)
    for image, c in zip(images, classes, strict=True):
        image[4 + 10 * c : 8 + 10 * c] = 230
    return Part(images, classes, np.repeat(["a", "b"], n // 2))


class Plain(torch.nn.Module):
    """Nothing that compares clips or draws numbers: parts of a batch must add up to the whole."""

    def __init__(self, n_classes: int, shape: tuple[int, int]):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(shape[0] * shape[1], n_classes)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images.float() / 255)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (
            nets.MelResNet(4, (64, 32), dropout=0.0),
            torch.randint(1, 255, (8, 64, 32), dtype=torch.uint8),
        ),
        lambda: (
            nets.MelResNet(4, (64, 160), dropout=0.0),
            torch.randint(1, 255, (4, 64, 160), dtype=torch.uint8),
        ),
        lambda: (torch.nn.Conv1d(32, 32, 16, padding=8, groups=4), torch.randn(5, 32, 124)),
        lambda: (torch.nn.Conv1d(128, 128, 16, padding=8, groups=16), torch.randn(5, 128, 124)),
    ],
)
def test_half_precision_is_near_single_precision_on_this_processor(make):
    torch.manual_seed(0)
    for _ in range(3):  # some libraries are wrong now and then
        net, inputs = make()
        exact = net(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            near = net(inputs)
        near.float().square().mean().backward()
        assert (near.float() - exact).abs().mean() < 0.15 * exact.abs().mean()
        assert all(torch.isfinite(weights.grad).all() for weights in net.parameters())


def test_a_batch_in_parts_teaches_the_same():
    train, valid, test = pictures(), pictures(24, seed=1), pictures(24, seed=2)
    losses = []
    for parts in (1, 4):
        net = Network(
            "plain",
            Plain,
            epochs=3,
            batch_size=16,
            accumulate=parts,
            device="cpu",
            precision="float32",
        )
        losses.append(
            [
                row["train_loss"]
                for row in net.fit_predict(train, valid, test.inputs, 3, seed=5)["notes"]["curves"]
            ]
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert "accumulate" not in Network("plain", Plain).recipe(), (
        "what was trained before is found again"
    )
    with pytest.raises(ValueError, match=r"in 16 part\(s\): each needs at least 2"):
        Network("plain", Plain, batch_size=16, accumulate=16, device="cpu").fit_predict(
            train, valid, test.inputs, 3, seed=5
        )


def test_network_learns_and_is_deterministic():
    net = Network("CNN", MelCNN, epochs=8, patience=8, batch_size=16, device="cpu")
    train, valid, test = pictures(), pictures(24, seed=1), pictures(24, seed=2)
    outcomes = []
    for _ in range(2):
        outcomes.append(net.fit_predict(train, valid, test.inputs, 3, seed=5))
        shutil.rmtree(
            outcomes[-1]["scratch"]
        )  # else the second run would read the first one's checkpoint
    assert (
        np.array_equal(outcomes[0]["test"], outcomes[1]["test"])
        and outcomes[0]["notes"] == outcomes[1]["notes"]
    )
    assert not np.array_equal(
        outcomes[0]["test"], net.fit_predict(train, valid, test.inputs, 3, seed=6)["test"]
    )
    assert np.mean(outcomes[0]["test"].argmax(axis=1) == test.classes) > 0.8
    np.testing.assert_allclose(outcomes[0]["test"].sum(axis=1), 1, atol=1e-5)
    assert outcomes[0]["steps"] == {"fit": ["train"], "stop": ["valid"]}


def test_network_stops_when_valid_gets_no_better_and_keeps_its_best_epoch():
    valid = pictures(24, seed=1)
    wrong = Part(valid.inputs, (valid.classes + 1) % 3, valid.speakers)
    net = Network("CNN", MelCNN, epochs=12, patience=2, device="cpu")
    notes = net.fit_predict(pictures(), wrong, wrong.inputs, 3, 0)["notes"]
    losses = [epoch["valid_nll"] for epoch in notes["curves"]]
    assert len(losses) < 12 and notes["best_epoch"] == 1 + int(np.argmin(losses)) == len(losses) - 2


def test_network_keeps_its_predictions_of_the_best_epoch():
    net = Network("CNN", MelCNN, epochs=6, patience=6, device="cpu")
    valid = pictures(24, seed=1)
    outcome = net.fit_predict(pictures(), valid, valid.inputs, 3, 0)
    nll = -np.log(outcome["valid"][np.arange(24), valid.classes] + 1e-9).mean()
    assert nll == pytest.approx(
        min(epoch["valid_nll"] for epoch in outcome["notes"]["curves"]), rel=1e-6
    )


def test_one_training_row_over_a_full_batch_is_no_problem():
    train = pictures(48)
    odd = Part(train.inputs[:33], train.classes[:33], train.speakers[:33])
    assert np.isfinite(
        Network("CNN", MelCNN, epochs=1, device="cpu").fit_predict(odd, odd, odd.inputs, 3, 0)[
            "test"
        ]
    ).all()


@pytest.mark.parametrize(("batch_size", "clips"), [(1, 24), (32, 1)])
def test_batches_of_a_single_clip_are_refused(batch_size, clips):
    net = Network("CNN", MelCNN, epochs=1, batch_size=batch_size, device="cpu")
    part = pictures()
    few = Part(part.inputs[:clips], part.classes[:clips], part.speakers[:clips])
    with pytest.raises(
        ValueError, match=f"CNN: {clips} training clips in batches of {batch_size}.*at least 2"
    ):
        net.fit_predict(few, part, part.inputs, 3, 0)


def test_cross_validation_of_a_network_is_cached(setup):
    ids, folds = setup
    images, calls = (
        np.random.default_rng(0).integers(1, 255, (len(ids), 16, 16)).astype(np.uint8),
        [],
    )

    class CountingNetwork(Network):
        def fit_predict(self, *given):
            calls.append(1)
            return super().fit_predict(*given)

    net = CountingNetwork("CNN", MelCNN, epochs=1, device="cpu", batch_size=64)
    first, record = cross_validate(net, images, ids, folds)
    assert cross_validate(net, images, ids, folds)[0].equals(first) and len(calls) == 5
    assert "curves" in record["folds"]["1"]["notes"]


def test_recipe_of_a_network_knows_its_settings_but_not_its_name_and_device():
    recipes = [
        experiment.recipe_hash(Network(**{"name": "CNN", "build": MelCNN} | options).recipe())
        for options in (
            {},
            {"name": "net", "device": "cpu"},
            {"precision": "float32"},
            {"trials": 2},
            {"epochs": 3},
            {"augment": Augmentation(shift=2)},
            {"learning_rate": 1e-4},
            {"label_smoothing": 0.0},
            {"optimiser": "SGD"},
            {"schedule": "step"},
            {"options": {"dropout": 0.1}},
            {"class_weights": False},
        )
    ]
    assert recipes[0] == recipes[1] and len(set(recipes)) == 11


@pytest.mark.parametrize(
    ("optimiser", "schedule"),
    [("SGD", "one-cycle"), ("RMSprop", "cosine"), ("Adam", "step"), ("AdamW", "constant")],
)
def test_every_optimiser_and_schedule_learns(optimiser, schedule):
    rate = {"SGD": 0.03}.get(optimiser, 0.002)
    net = Network(
        "CNN",
        MelCNN,
        epochs=8,
        patience=8,
        batch_size=16,
        device="cpu",
        optimiser=optimiser,
        schedule=schedule,
        learning_rate=rate,
    )
    notes = net.fit_predict(pictures(), valid := pictures(24, seed=1), valid.inputs, 3, 0)["notes"]
    assert max(epoch["valid_uar"] for epoch in notes["curves"]) > 0.8
    rates = [epoch["learning_rate"] for epoch in notes["curves"]]
    falling = rates == sorted(rates, reverse=True) and rates[0] == rate
    assert {
        "one-cycle": rates[0] == pytest.approx(rate / 25) and rates[-1] < 0.2 * max(rates),
        "cosine": falling and rates[-1] < 0.05 * rate,
        "step": falling and rates[-1] == pytest.approx(rate / 16),
        "constant": set(rates) == {rate},
    }[schedule]


def test_bfloat16_learns_as_well_as_float32():
    test = pictures(24, seed=2)
    for precision in ("bf16", "float32"):
        net = Network(
            "CNN", MelCNN, epochs=8, patience=8, batch_size=16, device="cpu", precision=precision
        )
        outcome = net.fit_predict(pictures(), pictures(24, seed=1), test.inputs, 3, 0)
        assert np.mean(outcome["test"].argmax(axis=1) == test.classes) > 0.8, precision
        assert all(values.dtype in (np.float32, np.int64) for values in outcome["weights"].values())


def test_network_is_told_when_an_epoch_begins():
    class Staged(MelCNN):
        def begin_epoch(self, share):
            self.blocks.requires_grad_(share >= 0.5)
            told.append(share)

    told = []
    net = Network(
        "CNN", Staged, epochs=4, patience=4, device="cpu", optimiser="SGD", learning_rate=0.01
    )
    given = pictures(), pictures(24, seed=1), 3, 0
    training_ = training.Trainer(net, *given)
    before = training_.net.blocks[0][0].weight.detach().clone()
    training_.run()
    assert told == [0, 0.25, 0.5, 0.75]
    assert not torch.equal(training_.net.blocks[0][0].weight, before)
    frozen = training.Trainer(
        Network("CNN", Staged, epochs=20, patience=1, device="cpu", optimiser="SGD"), *given
    )
    before = frozen.net.blocks[0][0].weight.detach().clone()
    frozen.settings = net
    frozen.net.begin_epoch(0)
    frozen.train_epoch()
    assert torch.equal(frozen.net.blocks[0][0].weight, before)


def test_unknown_optimiser_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match="unknown optimiser 'adam': choose one of SGD, RMSprop, Adam, AdamW"
    ):
        Network("CNN", MelCNN, optimiser="adam")


def test_class_weights_make_rare_classes_count():
    """With labels that inputs don't tell, a network answers with the classes' shares, or with equal ones if weighted."""
    rng = np.random.default_rng(0)
    classes = np.array([0] * 90 + [1] * 6)
    train, other = (
        Part(rng.integers(100, 140, (96, 16, 16)).astype(np.uint8), classes, np.repeat(["a"], 96))
        for _ in range(2)
    )
    share = {}
    for weighted in (True, False):
        net = Network(
            "CNN",
            MelCNN,
            epochs=20,
            patience=20,
            device="cpu",
            class_weights=weighted,
            label_smoothing=0.0,
        )
        share[weighted] = net.fit_predict(train, other, other.inputs, 2, 0)["test"][:, 1].mean()
    assert share[False] < 0.2 < 0.4 < share[True] < 0.6


# --- resume -------------------------------------------------------------------------------------------------------

RUN = """
import sys
import numpy as np, torch
sys.path.insert(0, "tests")
from test_training import pictures
from helpers.augment import Augmentation
from helpers.nets import MelCNN
from helpers.training import Network
torch.set_num_threads(1)
net = Network("CNN", MelCNN, epochs=14, patience=14, batch_size=8, device="cpu", augment=Augmentation(shift=3))
outcome = net.fit_predict(pictures(96, 64), pictures(24, 64, seed=1), pictures(24, 64, seed=2).inputs, 3, seed=5)
np.savez(sys.argv[1], test=outcome["test"], curves=[e["train_loss"] for e in outcome["notes"]["curves"]])
"""


def run_to_end(work: Path, target: Path, kills: list[str]) -> int:
    """Run the training, killed with SIGKILL as soon as each of these checkpoints is there; return how often it was killed."""
    environment = os.environ | {"SER_WORK": str(work), "PYTHONPATH": str(paths.PROJECT)}
    killed = 0
    for awaited in [*kills, None]:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(target)],
            cwd=paths.PROJECT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and not (
            awaited and list(work.glob(f"checkpoints/*/{awaited}"))
        ):
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        errors = process.communicate()[1]
        assert process.returncode in (0, -signal.SIGKILL), errors
    return killed


def test_killed_and_continued_training_ends_with_the_same_bits(tmp_path):
    assert run_to_end(tmp_path / "whole", tmp_path / "whole.npz", []) == 0
    assert (
        run_to_end(
            tmp_path / "killed", tmp_path / "killed.npz", ["epoch_0002.ckpt", "epoch_0007.ckpt"]
        )
        == 2
    )
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "killed.npz") as killed:
        assert len(whole["curves"]) == 14
        assert np.array_equal(whole["test"], killed["test"]) and np.array_equal(
            whole["curves"], killed["curves"]
        )


@pytest.fixture
def interrupted(monkeypatch):
    """A training stopped after its fifth epoch, and what the uninterrupted one predicts."""
    net = Network("CNN", MelCNN, epochs=8, patience=8, batch_size=16, device="cpu")
    given = pictures(), pictures(24, seed=1), pictures(24, seed=2).inputs, 3, 0
    whole = net.fit_predict(*given)
    folder = whole["scratch"]
    shutil.rmtree(folder)
    interrupt_training(monkeypatch, net, given, epochs=5)
    return net, given, whole, folder


def epochs_trained(monkeypatch) -> list:
    """Count epochs from here on."""
    calls, original = (
        [],
        training.Trainer.require_finite,
    )  # each epoch calls it; itself it is not part of the recipe
    monkeypatch.setattr(
        training.Trainer,
        "require_finite",
        lambda self, *given: calls.append(1) or original(self, *given),
    )
    return calls


def test_two_checkpoints_are_kept_and_the_last_is_continued(interrupted, monkeypatch):
    net, given, whole, folder = interrupted
    assert [path.name for path in sorted(folder.iterdir())] == [
        "epoch_0004.ckpt",
        "epoch_0005.ckpt",
    ]
    calls = epochs_trained(monkeypatch)
    assert np.array_equal(net.fit_predict(*given)["test"], whole["test"]) and len(calls) == 3


@pytest.mark.parametrize(
    "harm",
    [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:5000] + b"x" + b[5001:]],
    ids=["cut in half", "empty", "one byte changed"],
)
def test_damaged_checkpoint_is_passed_over_for_the_one_before(
    interrupted, harm, monkeypatch, capsys
):
    net, given, whole, folder = interrupted
    last = folder / "epoch_0005.ckpt"
    last.write_bytes(harm(last.read_bytes()))
    calls = epochs_trained(monkeypatch)
    assert np.array_equal(net.fit_predict(*given)["test"], whole["test"]) and len(calls) == 4
    assert "epoch_0005.ckpt is damaged" in capsys.readouterr().out


def test_checkpoint_of_another_configuration_is_refused_with_the_difference(interrupted):
    *_, folder = interrupted
    other = training.Trainer(
        Network("CNN", MelCNN, epochs=9, patience=8, batch_size=16, device="cpu"),
        pictures(),
        pictures(24, seed=1),
        3,
        1,
    )
    with pytest.raises(
        ValueError,
        match=r"another configuration.*epochs: 8 there, 9 here; seed: 0 there, 1 here.*remove",
    ):
        training.read_checkpoint(folder, other.identity)


def test_finished_folds_leave_no_checkpoints(setup, private_work):
    ids, folds = setup
    images = np.random.default_rng(0).integers(1, 255, (len(ids), 16, 16)).astype(np.uint8)
    cross_validate(
        Network("CNN", MelCNN, epochs=1, device="cpu", batch_size=64), images, ids, folds
    )
    assert not list((private_work / "checkpoints").iterdir())


# --- several processes, a GPU ---------------------------------------------------------------------------------------

SHARED = """
import sys
import numpy as np
import pandas as pd
sys.path.insert(0, "tests")
from test_training import pictures
from helpers.experiment import Part
from helpers.nets import DNN
from helpers.training import Network
train, valid = (Part(p.inputs.reshape(len(p.inputs), -1)[:, ::9].astype(np.float32), p.classes, p.speakers)
                for p in (pictures(52), pictures(24, seed=1)))
net = Network("DNN", DNN, {"dropout": 0.0}, epochs=4, patience=4, batch_size=16, device="cpu", learning_rate=1e-3,
              precision="float32")
outcome = net.fit_predict(train, valid, valid.inputs, 3, seed=5)
import accelerate
if accelerate.PartialState().is_main_process:
    np.savez(sys.argv[1], test=outcome["test"], n=accelerate.PartialState().num_processes)
"""


def test_two_processes_train_the_same_network_as_one(tmp_path):
    """With batches divided among them; sums in another order round differently, so not to the bit."""
    (tmp_path / "shared.py").write_text(SHARED)
    found = {}
    for n, launch in {
        1: [],
        2: ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    }.items():
        environment = os.environ | {
            "SER_WORK": str(tmp_path / f"work{n}"),
            "PYTHONPATH": str(paths.PROJECT),
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [sys.executable, *launch, str(tmp_path / "shared.py"), str(tmp_path / f"{n}.npz")],
            cwd=paths.PROJECT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        with np.load(tmp_path / f"{n}.npz") as stored:
            found[n] = stored["test"]
            assert stored["n"] == n
    np.testing.assert_allclose(found[1], found[2], atol=1e-4)


@pytest.mark.gpu
def test_gpu_agrees_with_cpu_within_tolerance():
    given = pictures(), pictures(24, seed=1), pictures(24, seed=2).inputs, 3, 0
    found = {
        device: Network(
            "CNN",
            MelCNN,
            {"dropout": 0.0},
            epochs=3,
            patience=3,
            batch_size=16,
            device=device,
            precision="float32",
        ).fit_predict(*given)["test"]
        for device in ("cpu", "cuda")
    }
    np.testing.assert_allclose(found["cpu"], found["cuda"], atol=0.02)


@pytest.mark.gpu
def test_bfloat16_on_a_gpu_learns_as_well():
    net = Network(
        "CNN", MelCNN, epochs=8, patience=8, batch_size=16, device="cuda", precision="bf16"
    )
    test = pictures(24, seed=2)
    outcome = net.fit_predict(pictures(), pictures(24, seed=1), test.inputs, 3, 0)
    assert np.mean(outcome["test"].argmax(axis=1) == test.classes) > 0.8


# --- search, looking inside ---------------------------------------------------------------------------------------


def test_search_chooses_by_valid_speakers_and_stores_its_trials(setup, monkeypatch):
    net = Network(
        "CNN",
        MelCNN,
        epochs=3,
        patience=3,
        batch_size=16,
        device="cpu",
        trials=4,
        search={"learning_rate": (1e-6, 1e-2), "dropout": [0.0, 0.4]},
    )
    given = pictures(), pictures(24, seed=1), pictures(24, seed=2).inputs, 3, 0
    outcome = net.fit_predict(*given)
    tried = outcome["notes"]["tried"]
    assert tried[0]["learning_rate"] == net.learning_rate  # it begins with the network as it is
    assert len(tried) == 4 and outcome["steps"] == {
        "fit": ["train"],
        "stop": ["valid"],
        "select": ["valid"],
    }
    best = min(tried, key=lambda trial: trial["valid_nll"])
    assert outcome["notes"]["setting"] == {
        name: best[name] for name in ("learning_rate", "dropout")
    }
    assert best["valid_nll"] == min(epoch["valid_nll"] for epoch in outcome["notes"]["curves"])
    calls = epochs_trained(monkeypatch)
    assert np.array_equal(net.fit_predict(*given)["test"], outcome["test"]) and not calls


def test_restored_network_predicts_as_the_trained_one(setup):
    ids, folds = setup
    images = np.random.default_rng(0).integers(1, 255, (len(ids), 16, 16)).astype(np.uint8)
    net = Network("CNN", MelCNN, epochs=2, device="cpu", batch_size=64)
    table, _ = cross_validate(net, images, ids, folds)
    outcome = experiment.fold_outcome(net, images, ids, folds, fold=2)
    emotions = [name for name in table if name.startswith("p_")]
    wanted = table.query("fold == 2 and role == 'test'")
    rows = folds.query("fold == 2 and role == 'test'")["utterance_id"]
    assert list(rows) == list(wanted["utterance_id"])
    trained = net.restore(outcome["weights"], len(emotions), images.shape[1:])
    with torch.inference_mode():
        found = trained(torch.tensor(images[[list(ids).index(i) for i in rows]])).softmax(1).numpy()
    np.testing.assert_allclose(found, wanted[emotions], atol=1e-5)


def test_embeddings_are_what_the_head_of_each_fold_gets(setup):
    ids, folds = setup
    images = np.random.default_rng(0).integers(1, 255, (len(ids), 16, 16)).astype(np.uint8)
    net = Network("CNN", MelCNN, epochs=2, device="cpu", batch_size=64)
    table, record = cross_validate(net, images, ids, folds)
    found = training.embeddings(net, images, ids, folds)
    emotions = [name for name in table if name.startswith("p_")]
    assert list(found) == sorted(folds["fold"].unique()) and all(
        len(rows) == len(ids) for rows in found.values()
    )
    for fold, rows in found.items():
        wanted = table.query("fold == @fold and role == 'test'")
        head = net.restore(
            experiment.fold_outcome(net, images, ids, folds, fold)["weights"],
            len(emotions),
            (16, 16),
        ).head
        with torch.inference_mode():
            own = (
                head(torch.tensor(rows[pd.Index(ids).get_indexer(wanted["utterance_id"])]))
                .softmax(1)
                .numpy()
            )
        np.testing.assert_allclose(own, wanted[emotions], atol=1e-5)
    # and a new head on them, standardised per speaker: each fold fits on its own, and what made them counts as seen
    speakers = (
        folds.drop_duplicates("utterance_id")
        .set_index("utterance_id")["speaker"]
        .loc[ids]
        .to_numpy(str)
    )
    scaled = {fold: normalise_by_speaker(rows, speakers) for fold, rows in found.items()}
    again, second = cross_validate(
        linear_head("CNN"), scaled, ids, folds, "speaker-normalised", made_by=record
    )
    assert len(again) == len(table) and set(again["variant"]) == {"speaker-normalised"}
    short, its_record = training.speaker_normalised(net, images, ids, folds, record)
    assert short.equals(again) and its_record == second
    for fold, rows in folds.groupby("fold"):
        assert set(second["folds"][str(fold)]["start"]) == set(
            rows.loc[rows["role"] != "test", "utterance_id"]
        )
    wrong = {
        "folds": record["folds"]
        | {"1": {"fit": folds.query("fold == 1 and role == 'test'")["utterance_id"].tolist()}}
    }
    with pytest.raises(ValueError, match="start saw test rows"):
        cross_validate(linear_head("CNN"), scaled, ids, folds, "speaker-normalised", made_by=wrong)


def test_grad_cam_finds_the_stripe():
    net = Network("CNN", MelCNN, epochs=10, patience=10, batch_size=16, device="cpu")
    test = pictures(6, seed=2)
    outcome = net.fit_predict(pictures(), pictures(24, seed=1), test.inputs, 3, 0)
    trained = net.restore(outcome["weights"], 3, test.inputs.shape[1:])
    maps = explain.grad_cam(trained, trained.blocks[0], test.inputs, test.classes)
    assert maps.shape == test.inputs.shape and maps.min() >= 0 and maps.max() == pytest.approx(1)
    rows = np.arange(32)
    inside = [np.abs(rows - (6 + 10 * c)) <= 5 for c in test.classes]
    on_stripe = [
        image[mask].mean() / image.mean() for image, mask in zip(maps, inside, strict=True)
    ]
    assert np.mean(on_stripe) > 1.5


def test_surest_right_answers_are_found_per_emotion():
    rows = pd.DataFrame(
        {"utterance_id": list("abcde"), "emotion": ["sad", "sad", "angry", "angry", "happy"]}
    )
    probability = np.array(
        [[0.6, 0.3, 0.1], [0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.8, 0.1, 0.1], [0.9, 0.1, 0.0]]
    )
    found = explain.surest(probability, rows, ["sad", "angry", "happy"])
    assert found["utterance_id"].to_dict() == {
        "sad": "b",
        "angry": "c",
    }  # d is surer, but wrong; happy was never right
    assert found["p"].to_dict() == {"sad": 0.7, "angry": 0.5}


def test_permutation_importance_finds_the_family_that_counts():
    rng = np.random.default_rng(0)
    inputs, classes = rng.standard_normal((200, 6)).astype(np.float32), rng.integers(0, 2, 200)
    inputs[:, 2] += 4 * classes
    net = torch.nn.Linear(6, 2)
    with torch.no_grad():
        net.weight[:] = torch.tensor([[0, 0, -1.0, 0, 0, 0], [0, 0, 1.0, 0, 0, 0]])
        net.bias[:] = torch.tensor([2.0, -2.0])
    rises = explain.permutation_importance(
        net, inputs, classes, ["a", "a", "b", "b", "c", "c"], n_repeats=3
    )
    assert rises["b"].min() > 0.5 and np.abs([*rises["a"], *rises["c"]]).max() < 1e-6
    assert len(set(rises["b"])) == 3


# --- bad input ----------------------------------------------------------------------------------------------------


def test_loss_that_is_no_number_names_epoch_batch_and_clips():
    class Spoilt(MelCNN):
        def forward(self, images):
            return super().forward(images) * (torch.nan if (images == 231).any() else 1)

    train = pictures(32)
    train.inputs[7, 5, 5] = 231
    train = Part(
        train.inputs, train.classes, train.speakers, np.array([f"toy/clip{i}" for i in range(32)])
    )
    net = Network("CNN", Spoilt, epochs=2, batch_size=4, device="cpu")
    message = (
        r"loss became nan in epoch 1, batch \d of 8. Its clips: .*toy/clip7.*Lower LEARNING_RATE"
    )
    with pytest.raises(ValueError, match=message):
        net.fit_predict(train, train, train.inputs, 3, 0)


def test_out_of_memory_says_which_setting_to_lower():
    class Greedy(MelCNN):
        def forward(self, images):
            return torch.empty(2**60)

    with pytest.raises(MemoryError, match=r"CNN: out of memory .*Lower BATCH_SIZE \(32\)"):
        Network("CNN", Greedy, epochs=1, device="cpu").fit_predict(
            pictures(), pictures(), pictures().inputs, 3, 0
        )


def test_emotion_without_training_clips_is_named_and_the_rest_is_learnt(setup):
    ids, folds = setup
    images = np.random.default_rng(0).integers(1, 255, (len(ids), 16, 16)).astype(np.uint8)
    folds = folds[
        ~((folds["fold"] == 2) & (folds["role"] == "train") & (folds["emotion"] == "sad"))
    ]
    with pytest.warns(UserWarning, match="CNN, fold 2: no training clip of sad"):
        table, _ = cross_validate(
            Network("CNN", MelCNN, epochs=1, device="cpu"), images, ids, folds
        )
    assert np.isfinite(table["p_sad"]).all()


def test_fold_with_a_single_test_speaker_is_no_problem():
    utterances = make_utterances(4, 4)
    folds = splits.make_folds(utterances, n_folds=4)
    assert (folds[folds["role"] == "test"].groupby("fold")["speaker"].nunique() == 1).all()
    images = np.random.default_rng(0).integers(1, 255, (len(utterances), 16, 16)).astype(np.uint8)
    table, _ = cross_validate(
        Network("CNN", MelCNN, epochs=1, device="cpu"), images, utterances["utterance_id"], folds
    )
    assert len(table.query("role == 'test'")) == len(utterances)


def test_attention_weights_are_those_of_each_clip():
    from helpers.nets import Recurrent

    torch.manual_seed(0)
    net = Recurrent(3, (10, 4), hidden=8, pooling="attention")
    clips = np.random.default_rng(0).normal(size=(5, 10, 4)).astype(np.float32)
    clips[2, 6:] = 0
    weights = explain.attention_weights(net, clips)
    assert weights.shape == (5, 10) and not weights[2, 6:].any() and (weights[2, :6] > 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        weights[2, :6], explain.attention_weights(net, clips[2:3, :6])[0], rtol=1e-4
    )
    assert not net.attention._forward_hooks
