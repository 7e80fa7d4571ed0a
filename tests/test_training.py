"""The training loop: it learns, stops, resumes to the same bits, and says what is wrong."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import interrupt_training, make_utterances

from helpers import artifacts, cache, nets, paths, splits, training
from helpers.experiment import Dataset, FoldRows, cross_validate
from helpers.nets import MelCNN
from helpers.training import Network

SMALL = {"epochs": 8, "patience": 8, "batch_size": 16, "device": "cpu"}

pytestmark = pytest.mark.usefixtures("finished_trainings_go")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These networks are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(n: int = 48, frames: int = 32, seed: int = 0) -> FoldRows:
    """Images with a bright stripe whose height is the class."""
    rng = np.random.default_rng(seed)
    classes = np.arange(n) % 3
    images = rng.integers(1, 120, (n, 32, frames)).astype(np.uint8)
    for image, c in zip(images, classes, strict=True):
        image[4 + 10 * c : 8 + 10 * c] = 230
    return FoldRows(images, classes, np.repeat(["a", "b"], n // 2))


def given(seed: int = 0) -> tuple:
    """Arguments of fit_predict."""
    return pictures(), pictures(24, seed=1), pictures(24, seed=2).inputs, 3, seed


def right(outcome: dict) -> float:
    return np.mean(outcome["test"].argmax(axis=1) == pictures(24, seed=2).classes)


def dataset(n_speakers: int = 10, n_folds: int = 5, without: str = "") -> Dataset:
    utterances = make_utterances(n_speakers, 4)
    folds = splits.make_folds(utterances, n_folds=n_folds)
    gone = (folds["fold"] == 2) & (folds["role"] == "train") & (folds["emotion"] == without)
    images = np.random.default_rng(0).integers(1, 255, (len(utterances), 16, 16)).astype(np.uint8)
    return Dataset(utterances["utterance_id"], images, folds[~gone])


class Plain(torch.nn.Module):
    """A network that is no class of ``helpers.nets``."""

    def __init__(self, n_classes: int, shape: tuple[int, int]):
        super().__init__()
        linear = torch.nn.Linear(shape[0] * shape[1], n_classes)
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), linear)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images.float() / 255)


# --- learning -------------------------------------------------------------------------------------


def test_network_learns_and_is_deterministic():
    net, outcomes = Network("CNN", MelCNN, **SMALL), []
    for _ in range(2):
        outcomes.append(net.fit_predict(*given(5)))
    assert np.array_equal(outcomes[0]["test"], outcomes[1]["test"])
    assert outcomes[0]["notes"] == outcomes[1]["notes"]
    assert not np.array_equal(outcomes[0]["test"], net.fit_predict(*given(6))["test"])
    assert right(outcomes[0]) > 0.8
    np.testing.assert_allclose(outcomes[0]["test"].sum(axis=1), 1, atol=1e-5)
    assert outcomes[0]["steps"] == {"fit": ["train"], "stop": ["validation"]}


def test_network_stops_when_validation_gets_no_better_and_keeps_its_best_epoch():
    train, validation, test, *_ = given()
    wrong = FoldRows(validation.inputs, (validation.classes + 1) % 3, validation.speakers)
    net = Network("CNN", MelCNN, epochs=12, patience=2, device="cpu")
    notes = net.fit_predict(train, wrong, test, 3, 0)["notes"]
    losses = [epoch["validation_nll"] for epoch in notes["curves"]]
    assert len(losses) < 12
    assert notes["best_epoch"] == 1 + int(np.argmin(losses)) == len(losses) - 2


def test_network_predicts_with_the_weights_of_the_best_epoch():
    outcome = Network("CNN", MelCNN, epochs=6, patience=6, device="cpu").fit_predict(*given())
    classes = pictures(24, seed=1).classes
    nll = -np.log(outcome["validation"][np.arange(24), classes] + 1e-9).mean()
    lowest = min(epoch["validation_nll"] for epoch in outcome["notes"]["curves"])
    assert nll == pytest.approx(lowest, rel=1e-6)


@pytest.mark.parametrize(
    ("optimiser", "schedule"),
    [("SGD", "one-cycle"), ("RMSprop", "cosine"), ("Adam", "step"), ("AdamW", "constant")],
)
def test_every_optimiser_and_schedule_learns(optimiser, schedule):
    rate = {"SGD": 0.03}.get(optimiser, 0.002)
    how = {"optimiser": optimiser, "schedule": schedule, "learning_rate": rate}
    curves = Network("CNN", MelCNN, **SMALL, **how).fit_predict(*given())["notes"]["curves"]
    assert max(epoch["validation_uar"] for epoch in curves) > 0.8
    rates = [epoch["learning_rate"] for epoch in curves]
    falling = rates == sorted(rates, reverse=True) and rates[0] == rate
    if schedule == "one-cycle":
        assert rates[0] == pytest.approx(rate / 25) and rates[-1] < 0.2 * max(rates)
    elif schedule == "cosine":
        assert falling and rates[-1] < 0.05 * rate
    elif schedule == "step":
        assert falling and rates[-1] == pytest.approx(rate / 16)
    else:
        assert set(rates) == {rate}


def test_network_is_told_when_an_epoch_begins():
    shares = []

    class Staged(MelCNN):
        def begin_epoch(self, share):
            self.blocks.requires_grad_(share >= 0.5)
            shares.append(share)

    settings = {"epochs": 4, "patience": 4, "device": "cpu", "optimiser": "SGD"}
    net = Network("CNN", Staged, learning_rate=0.01, **settings)
    trainer = training.Trainer(net, pictures(), pictures(24, seed=1), 3, 0)
    before = trainer.net.blocks[0][0].weight.detach().clone()
    trainer.train_epoch()
    trainer.train_epoch()
    assert torch.equal(trainer.net.blocks[0][0].weight, before), "it is frozen"
    trainer.train_epoch()
    assert not torch.equal(trainer.net.blocks[0][0].weight, before)
    assert shares == [0, 0.25, 0.5]


def test_class_weights_make_rare_classes_count():
    """With labels that inputs don't tell, a network predicts the classes' shares, or equal ones."""
    rng = np.random.default_rng(0)
    classes, speakers = np.array([0] * 90 + [1] * 6), np.repeat(["a"], 96)
    train, other = (
        FoldRows(rng.integers(100, 140, (96, 16, 16)).astype(np.uint8), classes, speakers)
        for _ in range(2)
    )
    share = {}
    for weighted in (True, False):
        how = {"class_weights": weighted, "label_smoothing": 0.0}
        net = Network("CNN", MelCNN, epochs=20, patience=20, device="cpu", **how)
        share[weighted] = net.fit_predict(train, other, other.inputs, 2, 0)["test"][:, 1].mean()
    assert share[False] < 0.2 < 0.4 < share[True] < 0.6


def test_images_are_shifted_in_time_and_frequency_and_silence_enters():
    batch = torch.randint(1, 255, (64, 8, 20), dtype=torch.uint8)
    moved = training.shift_images(batch, 3, torch.Generator().manual_seed(0))
    assert moved.shape == batch.shape and moved.dtype == torch.uint8
    found = []
    for old, new in zip(torch.nn.functional.pad(batch, (3, 3, 2, 2)), moved, strict=True):
        places = [(y, x) for y in range(5) for x in range(7)]
        found += [(y, x) for y, x in places if torch.equal(old[y : y + 8, x : x + 20], new)]
    assert len(found) == 64
    assert {y for y, _ in found} == set(range(5)) and {x for _, x in found} == set(range(7))
    again = training.shift_images(batch, 3, torch.Generator().manual_seed(0))
    assert torch.equal(moved, again)


def test_shift_of_anything_but_images_is_refused():
    with pytest.raises(ValueError, match=r"shift is for images \(uint8\).*float32.*\(4, 10, 6\)"):
        training.shift_images(torch.ones(4, 10, 6), 2, torch.Generator())


def test_images_are_shifted_and_nothing_else():
    shifted = Network("CNN", MelCNN, {"dropout": 0.0}, shift=3, **SMALL).fit_predict(*given())
    plain = Network("CNN", MelCNN, {"dropout": 0.0}, **SMALL).fit_predict(*given())
    assert right(shifted) > 0.8 and not np.array_equal(shifted["test"], plain["test"])
    rows = FoldRows(pictures().inputs.astype(np.float32), *given()[0].classes[None], None)
    with pytest.raises(ValueError, match="shift is for images"):
        Network("plain", Plain, shift=3, device="cpu").fit_predict(rows, rows, rows.inputs, 3, 0)


def test_copies_of_the_training_clips_are_learnt_from():
    train, *rest = given()
    blank = FoldRows(np.full_like(train.inputs, 9), train.classes, train.speakers)
    with_copies = dataclasses.replace(blank, copies=train.inputs[:, None])
    outcome = Network("CNN", MelCNN, **SMALL).fit_predict(with_copies, *rest)
    assert right(outcome) > 0.6 and outcome["steps"]["augment"] == ["train"]


# --- precision, devices ---------------------------------------------------------------------------

needs_bfloat16 = pytest.mark.skipif(
    not training.has_bfloat16("cpu"), reason="this processor does not compute in bfloat16"
)


@needs_bfloat16
def test_bfloat16_learns_as_well_as_float32():
    outcome = Network("CNN", MelCNN, **SMALL).fit_predict(*given())
    assert right(outcome) > 0.8
    assert all(values.dtype in (np.float32, np.int64) for values in outcome["weights"].values())


@needs_bfloat16
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nets.MelResNet(4, (64, 32), dropout=0.0), (8, 64, 32)),
        (lambda: nets.MelResNet(4, (64, 160), dropout=0.0), (4, 64, 160)),
        (lambda: torch.nn.Conv1d(32, 32, 16, padding=8, groups=4), (5, 32, 124)),
        (lambda: torch.nn.Conv1d(128, 128, 16, padding=8, groups=16), (5, 128, 124)),
    ],
    ids=["short images", "images", "4 groups", "16 groups"],
)
def test_half_precision_is_near_single_precision_on_this_processor(make, shape):
    torch.manual_seed(0)
    images = len(shape) == 3 and shape[1] == 64
    for _ in range(3):  # some libraries are wrong now and then
        net = make()
        inputs = torch.randint(1, 255, shape, dtype=torch.uint8) if images else torch.randn(shape)
        exact = net(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            near = net(inputs)
        near.float().square().mean().backward()
        assert (near.float() - exact).abs().mean() < 0.15 * exact.abs().mean()
        assert all(torch.isfinite(weights.grad).all() for weights in net.parameters())


@pytest.mark.gpu
def test_gpu_agrees_with_cpu_within_tolerance():
    found = {}
    for device in ("cpu", "cuda"):
        how = SMALL | {"epochs": 3, "device": device, "precision": "float32"}
        found[device] = Network("CNN", MelCNN, {"dropout": 0.0}, **how).fit_predict(*given())
    np.testing.assert_allclose(found["cpu"]["test"], found["cuda"]["test"], atol=0.02)


@pytest.mark.gpu
def test_bfloat16_on_a_gpu_learns_as_well():
    net = Network("CNN", MelCNN, **SMALL | {"device": "cuda"})
    assert net.uses_gpu and right(net.fit_predict(*given())) > 0.8


# --- resume ---------------------------------------------------------------------------------------

LONG = {"epochs": 14, "patience": 14, "batch_size": 8, "device": "cpu", "shift": 3}
RUN = """
import sys
import numpy as np, torch
sys.path.insert(0, "tests")
from test_training import long_training
torch.set_num_threads(1)
np.savez(sys.argv[1], **long_training())
"""


def long_training() -> dict[str, np.ndarray]:
    rows = pictures(96, 64), pictures(24, 64, seed=1), pictures(24, 64, seed=2).inputs
    outcome = Network("CNN", MelCNN, **LONG).fit_predict(*rows, 3, seed=5)
    losses = [epoch["train_loss"] for epoch in outcome["notes"]["curves"]]
    return {"test": outcome["test"], "losses": np.array(losses)}


def run_to_end(work: Path, target: Path, kills: list[int]) -> int:
    """Run the training, each time killed after so many epochs; return how often it was killed."""
    environment = os.environ | {"SER_WORK": str(work), "PYTHONPATH": str(paths.PROJECT)}
    command, killed = [sys.executable, "-c", RUN, str(target)], 0
    for n_epochs in [*kills, 10**9]:
        process = subprocess.Popen(
            command, cwd=paths.PROJECT, env=environment, stderr=subprocess.PIPE, text=True
        )
        seen = {path.stat().st_mtime_ns for path in work.glob("checkpoints/*/*.ckpt")}
        n_epochs += len(seen)
        while process.poll() is None and len(seen) < n_epochs:
            seen |= {path.stat().st_mtime_ns for path in work.glob("checkpoints/*/*.ckpt")}
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        errors = process.communicate()[1]
        assert process.returncode in (0, -signal.SIGKILL), errors
    return killed


def test_killed_and_continued_training_ends_with_the_same_bits(tmp_path):
    assert run_to_end(tmp_path / "killed", tmp_path / "killed.npz", [3]) == 1
    whole = long_training()
    with np.load(tmp_path / "killed.npz") as killed:
        assert len(whole["losses"]) == 14
        assert np.array_equal(whole["test"], killed["test"])
        assert np.array_equal(whole["losses"], killed["losses"])


@pytest.fixture
def interrupted(monkeypatch, finished_trainings_go):
    """A training stopped after its fifth epoch, and what the uninterrupted one predicts."""
    net = Network("CNN", MelCNN, **SMALL)
    whole = net.fit_predict(*given())
    interrupt_training(monkeypatch, net, given(), epochs=5)
    return net, whole


def last_checkpoint() -> Path:
    (found,) = paths.work("checkpoints").glob("*/*")
    return found


@pytest.fixture
def epochs_trained(monkeypatch) -> list:
    """The numbers of the epochs that are trained."""
    numbers, original = [], training.Trainer.train_epoch

    def counted(self):
        original(self)
        numbers.append(self.epoch)

    monkeypatch.setattr(training.Trainer, "train_epoch", counted)
    return numbers


def test_the_checkpoint_is_continued(interrupted, epochs_trained):
    net, whole = interrupted
    assert last_checkpoint().is_file()
    outcome = net.fit_predict(*given())
    assert np.array_equal(outcome["test"], whole["test"]) and epochs_trained[-3:] == [6, 7, 8]
    assert outcome["notes"] == whole["notes"]


@pytest.mark.parametrize(
    "harm",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b[:5000] + bytes([b[5000] ^ 1]) + b[5001:],
        lambda b: b[:100] + b"x" + b[101:],
    ],
    ids=["cut in half", "empty", "one bit changed", "one byte of the beginning changed"],
)
def test_damaged_checkpoint_is_told_and_not_used(interrupted, harm, epochs_trained, capsys):
    net, whole = interrupted
    last = last_checkpoint()
    last.write_bytes(harm(last.read_bytes()))
    assert np.array_equal(net.fit_predict(*given())["test"], whole["test"])
    assert epochs_trained[-8:] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert "last.ckpt is damaged" in capsys.readouterr().out


@pytest.mark.usefixtures("interrupted")
def test_another_configuration_never_continues_a_checkpoint():
    for other, seed in [({"epochs": 9}, 0), ({}, 1), ({"learning_rate": 0.01}, 0)]:
        net = Network("CNN", MelCNN, **SMALL | other)
        trainer = training.Trainer(net, pictures(), pictures(24, seed=1), 3, seed)
        assert trainer.checkpoint != last_checkpoint()
        trainer.resume()
        assert trainer.epoch == 0


def test_finished_folds_leave_no_checkpoints(private_work):
    cross_validate(Network("CNN", MelCNN, epochs=1, device="cpu", batch_size=64), dataset())
    assert not list((private_work / "checkpoints").iterdir())


def test_a_training_is_not_lost_when_the_disk_is_full_at_its_end(monkeypatch, epochs_trained):
    net, real = (
        Network("CNN", MelCNN, epochs=2, device="cpu", batch_size=64),
        cache.write_atomically,
    )

    def full(path, write):
        if "folds" in path.parts:
            raise OSError(28, "no space left")
        real(path, write)

    monkeypatch.setattr(cache, "write_atomically", full)
    with pytest.raises(OSError, match="no space left"):
        cross_validate(net, dataset())
    assert last_checkpoint().is_file()
    monkeypatch.setattr(cache, "write_atomically", real)
    before = len(epochs_trained)
    data = dataset()
    cross_validate(net, data)
    n_folds = data.folds["fold"].nunique()
    assert len(epochs_trained) - before == 2 * (n_folds - 1), "the first fold was finished"


# --- recipes, notebooks' classes ------------------------------------------------------------------


def test_recipe_knows_the_settings_but_not_name_and_device():
    changes = [
        {},
        {"name": "net", "device": "cpu"},
        {"precision": "float32"},
        {"search": [{"dropout": 0.1}]},
        {"epochs": 3},
        {"shift": 2},
        {"learning_rate": 1e-4},
        {"label_smoothing": 0.0},
        {"optimiser": "SGD"},
        {"schedule": "step"},
        {"options": {"dropout": 0.1}},
        {"class_weights": False},
        {"build": nets.MelResNet},
    ]
    networks = [Network(**{"name": "CNN", "build": MelCNN} | change) for change in changes]
    keys = [cache.hash_of(network.recipe()) for network in networks]
    assert keys[0] == keys[1] and len(set(keys)) == len(changes) - 1
    assert not {"name", "device", "precision"} & set(networks[0].recipe())


NOTEBOOK = """
import linecache, sys
sys.path.insert(0, "tests")
from test_training import dataset
from helpers import training
from helpers.experiment import cross_validate
CELL = '''
from helpers import nets
class Own(nets.MelCNN):
    def forward(self, images):
        return super().forward(images) * SCALE
SCALE = 1.0
'''
linecache.cache["<cell>"] = (len(CELL), None, CELL.splitlines(True), "<cell>")
exec(compile(CELL, "<cell>", "exec"))
if __name__ == "__main__":
    settings = dict(epochs=2, device="cpu", batch_size=64)
    net = training.Network("own", Own, **settings)
    data = dataset(4, 2)
    first = cross_validate(net, data, n_jobs=2)
    training.Trainer.train_epoch = None  # nothing is trained again
    assert cross_validate(net, data, n_jobs=1).predictions.equals(first.predictions)
    search = [{"dropout": 0.1}, {"dropout": 0.2}]
    searched = training.Network("own", Own, **settings, search=search)
    records = cross_validate(searched, data, n_jobs=2).records
    assert len(records[0]["folds"]["1"]["notes"]["tried"]) == 2
"""


def test_a_class_of_a_notebook_trains_in_processes_and_its_folds_are_found_again(tmp_path):
    """Processes can't read its source, as they can't that of a cell."""
    (tmp_path / "notebook.py").write_text(NOTEBOOK)
    environment = os.environ | {"PYTHONPATH": str(paths.PROJECT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "notebook.py")],
        cwd=paths.PROJECT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# --- search, cross-validation, final model --------------------------------------------------------


def test_search_chooses_by_validation_speakers_and_stores_its_trials(epochs_trained):
    space = [{}, {"learning_rate": 1e-5}, {"learning_rate": 1e-5, "dropout": 0.0}]
    net = Network("CNN", MelCNN, **SMALL | {"epochs": 3}, search=space)
    outcome = net.fit_predict(*given())
    notes, tried = outcome["notes"], outcome["notes"]["tried"]
    assert [{k: v for k, v in one.items() if k != "validation_nll"} for one in tried] == space
    assert outcome["steps"] == {"fit": ["train"], "stop": ["validation"], "select": ["validation"]}
    losses = [one["validation_nll"] for one in tried]
    assert losses[0] == min(losses) < min(losses[1:]) and notes["setting"] == {}
    assert losses[0] == min(epoch["validation_nll"] for epoch in notes["curves"])
    plain = Network("CNN", MelCNN, **SMALL | {"epochs": 3}).fit_predict(*given())
    np.testing.assert_allclose(plain["test"], outcome["test"], atol=1e-6)
    epochs_trained.clear()
    assert np.array_equal(net.fit_predict(*given())["test"], outcome["test"])
    assert not epochs_trained


def test_restored_network_predicts_as_the_trained_one_and_embeds_for_its_head():
    data = dataset()
    net = Network("CNN", MelCNN, epochs=2, device="cpu", batch_size=64)
    run = cross_validate(net, data)
    trained, test = run.network(2), data.rows(2, "test")
    with torch.inference_mode():
        found = trained(torch.tensor(test.inputs)).softmax(1).numpy()
    wanted = run.test().query("fold == 2").filter(like="p_").to_numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    rows = net.embed(trained, test.inputs)
    with torch.inference_mode():
        again = trained.head(torch.tensor(rows)).softmax(1).numpy()
    np.testing.assert_allclose(again, wanted, atol=1e-5)
    assert net.has_embeddings and not Network("DNN", nets.DNN).has_embeddings
    assert net.head().name == "CNN"


def record_of(*best_epochs: int, **setting) -> dict:
    tried = [setting | {"validation_nll": 1.0}]
    notes = [{"best_epoch": epoch, "tried": tried} for epoch in best_epochs]
    return {"folds": {str(i): {"notes": note} for i, note in enumerate(notes)}}


def test_final_network_is_trained_for_the_median_of_the_folds_epochs(epochs_trained):
    rows, record = pictures(), record_of(2, 5, 3, dropout=0.2, learning_rate=0.002)
    net = Network("CNN", MelCNN, {"channels": [4, 4]}, search=[{"dropout": 0.2}], **SMALL)
    part = net.refit(record, rows, 3, seed=1)
    assert epochs_trained == [1, 2, 3] and part.network["build"] == "MelCNN"
    assert part.network["options"] == {"channels": [4, 4], "dropout": 0.2}
    alone = Network("CNN", MelCNN, part.network["options"], learning_rate=0.002, **SMALL)
    trainer = training.Trainer(alone, rows, pictures(24, seed=1), 3, 1)
    for _ in range(3):
        trainer.train_epoch()
    assert all((part.arrays[name] == value).all() for name, value in trainer.arrays().items())
    assert (part(rows.inputs).argmax(axis=1) == rows.classes).mean() > 0.5


def test_killed_final_training_goes_on_from_its_last_epoch(private_work, monkeypatch):
    net, record = Network("CNN", MelCNN, **SMALL), record_of(5, 5)
    whole = net.refit(record, pictures(), 3, seed=1)
    monkeypatch.setenv("SER_WORK", str(private_work / "other"))
    save, epochs = training.Trainer.save, []

    def killed(self):
        save(self)
        epochs.append(self.epoch)
        if epochs == [1, 2, 3]:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.Trainer, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        net.refit(record, pictures(), 3, seed=1)
    resumed = net.refit(record, pictures(), 3, seed=1)
    assert epochs == [1, 2, 3, 4, 5]
    assert all((resumed.arrays[name] == value).all() for name, value in whole.arrays.items())


def test_a_network_that_could_not_be_loaded_again_is_refused_before_it_is_trained(epochs_trained):
    with pytest.raises(artifacts.Refused, match=r"move the class to helpers/nets\.py"):
        Network("plain", Plain, **SMALL).refit(record_of(2), pictures(), 3)
    assert not epochs_trained


# --- bad input ------------------------------------------------------------------------------------


def test_unknown_optimiser_is_refused_with_the_known_ones():
    message = "unknown optimiser 'adam': choose one of SGD, RMSprop, Adam, AdamW"
    with pytest.raises(ValueError, match=message):
        Network("CNN", MelCNN, optimiser="adam")
    with pytest.raises(ValueError, match="unknown precision 'half': choose one of auto, float32"):
        Network("CNN", MelCNN, precision="half")


@pytest.mark.parametrize(("batch_size", "clips"), [(1, 24), (32, 1)])
def test_batches_of_a_single_clip_are_refused(batch_size, clips):
    net = Network("CNN", MelCNN, epochs=1, batch_size=batch_size, device="cpu")
    train, *rest = given()
    few = FoldRows(train.inputs[:clips], train.classes[:clips], train.speakers[:clips])
    message = f"CNN: {clips} training clips in batches of {batch_size}.*at least 2"
    with pytest.raises(ValueError, match=message):
        net.fit_predict(few, *rest)


def test_one_training_row_over_a_full_batch_is_no_problem():
    train, *rest = given()
    odd = FoldRows(train.inputs[:33], train.classes[:33], train.speakers[:33])
    outcome = Network("CNN", MelCNN, epochs=1, device="cpu").fit_predict(odd, *rest)
    assert np.isfinite(outcome["test"]).all()


def test_loss_that_is_not_finite_names_epoch_batch_and_clips():
    class Spoilt(MelCNN):
        def forward(self, images):
            return super().forward(images) * (torch.nan if (images == 231).any() else 1)

    rows = pictures(32)
    rows.inputs[7, 5, 5] = 231
    named = dataclasses.replace(rows, ids=np.array([f"toy/clip{i}" for i in range(32)]))
    net = Network("CNN", Spoilt, epochs=2, batch_size=4, device="cpu")
    message = r"loss became nan in epoch 1, batch \d of 8. Its clips: .*{}.*Lower LEARNING_RATE"
    with pytest.raises(ValueError, match=message.format("toy/clip7")):
        net.fit_predict(named, rows, rows.inputs, 3, 0)
    with pytest.raises(ValueError, match=message.format("7")):
        net.fit_predict(rows, rows, rows.inputs, 3, 0)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("can't allocate memory: you tried to allocate 9 bytes"), MemoryError),
        (torch.OutOfMemoryError("CUDA out of memory"), MemoryError),
        (MemoryError("no"), MemoryError),
        (RuntimeError("an illegal memory access was encountered"), RuntimeError),
    ],
)
def test_out_of_memory_says_which_setting_to_lower(error, raised):
    class Greedy(MelCNN):
        def forward(self, images):
            raise error

    message = r"CNN: out of memory \(.*\). Lower BATCH_SIZE \(32\)"
    net = Network("CNN", Greedy, epochs=1, device="cpu")
    with pytest.raises(raised, match=message if raised is MemoryError else str(error)):
        net.fit_predict(*given())


def test_memory_that_a_processor_does_not_have_is_explained():
    class Greedy(MelCNN):
        def forward(self, images):
            return torch.empty(2**60)

    with pytest.raises(MemoryError, match="out of memory"):
        Network("CNN", Greedy, epochs=1, device="cpu").fit_predict(*given())


def test_emotion_without_training_clips_is_named_and_the_rest_is_learnt():
    with pytest.warns(UserWarning, match="fold 2: fewer than 2 training clips of sad"):
        run = cross_validate(Network("CNN", MelCNN, epochs=1, device="cpu"), dataset(without="sad"))
    assert np.isfinite(run.predictions["p_sad"]).all()


def test_fold_with_a_single_test_speaker_is_no_problem():
    data = dataset(4, 4)
    tested = data.folds[data.folds["role"] == "test"]
    assert (tested.groupby("fold")["speaker"].nunique() == 1).all()
    run = cross_validate(Network("CNN", MelCNN, epochs=1, device="cpu"), data)
    assert len(run.test()) == len(data.ids)
