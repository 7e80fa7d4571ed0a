"""The mirror, with real files, real kills, folders that go away, and a stand-in for Colab."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import interrupt_training
from test_pipeline import HELPERS, real, start, write_notebook  # noqa: F401 (real is a fixture)

from helpers import mirror, paths
from helpers.paths import PROJECT

WORK = """import os, random, sys, time
from pathlib import Path
from helpers import mirror, paths
mirror.PART_BYTES, mirror.KEPT_S, mirror.SMALL_PARTS = 40_000, 0, 4
def write(path, version):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("." + path.name)
    temporary.write_text(f"{path.name} {version}\\n" * 200)
    os.replace(temporary, path)
"""


@pytest.fixture
def place(private_work, tmp_path, monkeypatch) -> Path:
    """A mirror, and a project without reports; returns the mirror's folder."""
    monkeypatch.setenv("SER_MIRROR", str(tmp_path / "drive/mirror"))
    (tmp_path / "drive").mkdir()
    monkeypatch.setattr(paths, "PROJECT", tmp_path / "project")
    monkeypatch.setattr(mirror, "PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(mirror, "KEPT_S", 0)
    new_session(monkeypatch)
    return tmp_path / "drive/mirror"


def new_session(monkeypatch, work: Path | None = None) -> None:
    """Forget what this process knows, and go on in another work folder."""
    fresh = {
        "thread": None,
        "waiting": set(),
        "rests_until": 0.0,
        "failing": False,
        "watching": False,
    }
    for name, value in fresh.items():
        monkeypatch.setattr(mirror._NOW, name, value)
    if work:
        monkeypatch.setenv("SER_WORK", str(work))


def write(name: str, text: str) -> Path:
    path = paths.work() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def files(folder: Path | None = None) -> dict[str, str]:
    folder = folder or paths.work()
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def parts(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def push_all() -> None:
    mirror.push(wait=60)
    assert mirror._NOW.thread is None, "the push has ended"


def wait_for_the_end() -> None:
    deadline = time.monotonic() + 20
    while mirror._NOW.thread is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


# What comes back


def test_what_was_pushed_comes_back_with_its_times(place, monkeypatch, tmp_path):
    for number in range(300):
        write(f"cache/functionals/{number:03d}.npz", f"clip {number}")
    old = write("demo/täble é.parquet", "rows")
    os.utime(old, ns=(10**18 + 7, 10**18 + 7))
    for name in (
        "demo/.hidden",
        "demo/.lock",
        ".mirror/x",
        "demo/runs/any/01_first.log",
        ".ipynb_checkpoints/a.json",
    ):
        write(name, "nobody's result")
    (paths.PROJECT / "reports/demo").mkdir(parents=True)
    (paths.PROJECT / "reports/demo/01_first.ipynb").write_text("executed")
    push_all()
    assert len(parts(place)) == 1, "many small files are one file there"
    before = files() | {"demo/runs/any/01_first.log": None}
    del before["demo/runs/any/01_first.log"]

    shutil.rmtree(paths.PROJECT / "reports")
    new_session(monkeypatch, tmp_path / "another disk")
    assert mirror.restore() == 302
    assert (
        files() == before
        and (paths.work() / "demo/täble é.parquet").stat().st_mtime_ns == 10**18 + 7
    )
    assert files(paths.PROJECT / "reports") == {"demo/01_first.ipynb": "executed"}
    assert mirror.restore() == 0
    push_all()
    assert len(parts(place)) == 1, "nothing is new"


def test_only_what_changed_goes_there(place):
    write("a.csv", "1" * 1000)
    write("b.csv", "2" * 1000)
    push_all()
    write("a.csv", "3" * 500)
    push_all()
    first, second = parts(place)
    assert 500 < (place / second).stat().st_size < 1000 < (place / first).stat().st_size


def test_removed_files_stay_removed_and_useless_parts_go(place, monkeypatch, tmp_path):
    write("a.csv", "a")
    push_all()
    write("b.csv", "b")
    write("a.csv", "changed")
    push_all()
    (paths.work() / "a.csv").unlink()
    push_all()
    assert mirror.restore() == 0 and files() == {"b.csv": "b"}, (
        "what was removed in this session is not brought back"
    )
    push_all()
    assert [name[:8] for name in parts(place)] == ["00000002", "00000003"], (
        "the first part is of no use any more"
    )
    new_session(monkeypatch, tmp_path / "other")
    assert mirror.restore() == 1 and files() == {"b.csv": "b"}
    (paths.work() / "b.csv").unlink()
    for _ in range(3):
        push_all()
    new_session(monkeypatch, tmp_path / "third")
    assert mirror.restore() == 0 and files() == {}


def test_superseded_part_stays_a_while(place, monkeypatch):
    monkeypatch.setattr(mirror, "KEPT_S", 600)
    for text in ("one", "two", "three"):
        write("a.csv", text)
        push_all()
    assert len(parts(place)) == 3
    monkeypatch.setattr(mirror, "KEPT_S", 0)
    push_all()
    assert len(parts(place)) == 1


def test_newer_local_work_stays_and_older_is_replaced(place, monkeypatch, tmp_path):
    for name in ("newer.csv", "older.csv", "same.csv"):
        os.utime(write(name, "mirrored"), (10**9, 10**9))
    push_all()
    new_session(monkeypatch, tmp_path / "other")
    for name, seconds in {
        "newer.csv": 10**9 + 5,
        "older.csv": 10**9 - 5,
        "same.csv": 10**9,
    }.items():
        os.utime(write(name, "of here"), (seconds, seconds))
    assert mirror.restore() == 1
    assert files() == {"newer.csv": "of here", "older.csv": "mirrored", "same.csv": "of here"}
    push_all()
    new_session(monkeypatch, tmp_path / "third")
    mirror.restore()
    assert files()["newer.csv"] == "of here"


def test_a_machine_that_did_not_restore_takes_nothing_away(place, monkeypatch, tmp_path):
    write("old.csv", "of yesterday")
    push_all()
    new_session(monkeypatch, tmp_path / "other")
    write("new.csv", "of today")
    push_all()
    push_all()
    new_session(monkeypatch, tmp_path / "third")
    mirror.restore()
    assert files() == {"old.csv": "of yesterday", "new.csv": "of today"}


def test_many_small_parts_become_one(place, monkeypatch, tmp_path):
    monkeypatch.setattr(mirror, "SMALL_PARTS", 5)
    for number in range(7):
        write(f"{number}.csv", str(number))
        push_all()
    push_all()
    assert len(parts(place)) <= 2
    expected = files()
    new_session(monkeypatch, tmp_path / "other")
    mirror.restore()
    assert files() == expected and len(expected) == 7


def test_parts_mostly_out_of_date_are_written_anew(place, monkeypatch, tmp_path):
    monkeypatch.setattr(mirror, "PART_BYTES", 200_000)
    for first in range(12):
        for number in range(first, 20):
            write(f"{number}.csv", f"{first:05d}" * 1000)
        push_all()
    push_all()
    assert sum(path.stat().st_size for path in place.iterdir()) < 450_000, (
        "870,000 were written, 100,000 are of use"
    )
    expected = files()
    new_session(monkeypatch, tmp_path / "other")
    mirror.restore()
    assert files() == expected


def test_stamps_come_after_what_they_vouch_for_and_removals_last(place, monkeypatch):
    write("gone.csv", "x")
    push_all()
    monkeypatch.setattr(mirror, "PART_BYTES", 1)
    for name in ("a.csv", "demo/runs/any/01_first.json", "z.csv"):
        write(name, "x")
    (paths.work() / "gone.csv").unlink()
    push_all()
    with mirror._record() as (record, _):
        names = [name for (name,) in record.execute("SELECT name FROM last ORDER BY part, name")]
    assert names == [
        "work/a.csv",
        "work/z.csv",
        "work/demo/runs/any/01_first.json",
        "work/gone.csv",
    ]


# Checkpoints


def test_a_path_is_pushed_without_looking_at_the_rest(place, monkeypatch, tmp_path):
    write("checkpoints/x/epoch_0001.ckpt", "1")
    push_all()
    mirror._NOW.rests_until = 0.0
    write("elsewhere.csv", "not looked at")
    write("checkpoints/x2/epoch_0001.ckpt", "of another fold")
    (paths.work() / "checkpoints/x/epoch_0001.ckpt").unlink()
    write("checkpoints/x/epoch_0002.ckpt", "2")
    scanned = []
    monkeypatch.setattr(
        mirror, "_scan", lambda place, scan=mirror._scan: scanned.append(place) or scan(place)
    )
    mirror.push(paths.work("checkpoints/x"))
    assert scanned == [paths.work("checkpoints/x")]
    new_session(monkeypatch, tmp_path / "other")
    mirror.restore()
    assert files() == {"checkpoints/x/epoch_0002.ckpt": "2"}


def test_checkpoints_in_quick_succession_wait_for_each_other(place):
    for epoch in range(1, 6):
        mirror.push(write(f"checkpoints/x/{epoch}.ckpt", "x").parent)
    assert len(parts(place)) == 1, "the first went at once"
    mirror._NOW.rests_until = 0.0
    mirror.push(write("checkpoints/y/1.ckpt", "y").parent)
    with mirror._record() as (record, _):
        assert record.execute("SELECT count(*) FROM last").fetchone() == (6,), (
            "the next push brought what waited"
        )


def test_interrupted_training_goes_on_on_another_machine(place, monkeypatch, tmp_path):
    from test_training import Network, Plain, pictures

    from helpers.training import Trainer

    train, valid, test = pictures(), pictures(24, seed=1), pictures(24, seed=2)
    net = Network(
        "plain", Plain, epochs=6, patience=6, batch_size=16, device="cpu", precision="float32"
    )
    monkeypatch.setattr(mirror, "CHECKPOINTS_S", 0)
    assert not [text for text in net.recipe()["code"] if "mirror" in text], (
        "what was trained before is found again"
    )
    undisturbed = net.fit_predict(train, valid, test.inputs, 3, 5)
    wait_for_the_end()

    new_session(monkeypatch, tmp_path / "second")
    shutil.rmtree(place)
    interrupt_training(monkeypatch, net, (train, valid, test.inputs, 3, 5), 4)
    wait_for_the_end()
    new_session(monkeypatch, tmp_path / "third")
    mirror.restore()
    assert sorted(path.name for path in paths.work("checkpoints").rglob("*.ckpt")) == [
        "epoch_0003.ckpt",
        "epoch_0004.ckpt",
    ]
    epochs, save = [], Trainer.save
    monkeypatch.setattr(Trainer, "save", lambda self: epochs.append(self.epoch) or save(self))
    again = net.fit_predict(train, valid, test.inputs, 3, 5)
    assert epochs == [5, 6] and np.array_equal(again["test"], undisturbed["test"])


# What goes wrong


def test_mount_that_drops_is_told_once_and_made_up_for(place, monkeypatch, capsys, tmp_path):
    write("a.csv", "a")
    push_all()
    place.parent.rename(tmp_path / "unplugged")
    for number in range(3):
        write(f"{number}.csv", "while it was gone")
        started = time.monotonic()
        mirror.push(wait=60)
        mirror.push(write("checkpoints/x/1.ckpt", "1"))
        assert time.monotonic() - started < 2
    told = capsys.readouterr().err
    assert told.count("can't be written to") == 1 and str(place) in told and "Work goes on" in told
    assert not place.parent.exists(), "nothing is made where the Drive was"
    (tmp_path / "unplugged").rename(place.parent)
    push_all()
    assert "what was missing is there" in capsys.readouterr().err
    expected = files()
    new_session(monkeypatch, tmp_path / "other")
    mirror.restore()
    assert files() == expected and len(expected) == 5


def test_checkpoint_that_failed_goes_with_the_next_one(place, monkeypatch, tmp_path):
    place.parent.rename(tmp_path / "unplugged")
    mirror.push(write("checkpoints/x/1.ckpt", "x").parent)
    (tmp_path / "unplugged").rename(place.parent)
    mirror._NOW.rests_until = 0.0
    mirror.push(write("checkpoints/y/1.ckpt", "y").parent)
    wait_for_the_end()
    expected = files()
    new_session(monkeypatch, tmp_path / "other")
    mirror.restore()
    assert files() == expected and len(expected) == 2


def test_an_empty_mount_point_is_not_taken_for_the_mirror(place, capsys, tmp_path):
    write("a.csv", "a")
    push_all()
    place.rename(tmp_path / "away")
    place.mkdir()
    mirror.push(wait=60)
    assert "is it mounted?" in capsys.readouterr().err and parts(place) == []


@pytest.mark.parametrize("failures, told", [(2, 0), (9, 1)])
def test_copying_is_tried_again(place, monkeypatch, capsys, failures, told):
    copy, left = shutil.copyfile, [failures]

    def fragile(source, target):
        if left[0]:
            left[0] -= 1
            Path(target).write_bytes(Path(source).read_bytes()[:50])
            raise OSError(107, "Transport endpoint is not connected")
        return copy(source, target)

    monkeypatch.setattr(mirror.shutil, "copyfile", fragile)
    write("a.csv", "a" * 500)
    mirror.push(wait=60)
    assert capsys.readouterr().err.count("can't be written to") == told
    assert [name.startswith(".") for name in parts(place)] == [bool(told)], (
        "what is not complete has a temporary name"
    )
    with mirror._record() as (record, _):
        assert record.execute("SELECT count(*) FROM parts").fetchone() == (1 - told,)


def test_a_hanging_mount_does_not_hold_up_training(place, monkeypatch):
    hangs, deliver = threading.Event(), mirror._deliver
    monkeypatch.setattr(
        mirror, "_deliver", lambda spool, target: hangs.wait(30) and deliver(spool, target)
    )
    started = time.monotonic()
    mirror.push(write("checkpoints/x/1.ckpt", "1"), wait=0.2)
    for epoch in range(2, 20):
        mirror.push(write(f"checkpoints/x/{epoch}.ckpt", "1"))
    assert time.monotonic() - started < 2
    hangs.set()
    wait_for_the_end()
    push_all()
    assert len(files()) == 19 and mirror.restore() == 0 and len(parts(place)) == 2


@pytest.mark.parametrize(
    "damage, expected",
    [
        (
            lambda content: content[: len(content) // 2],
            "damaged and passed over; what only it held will be computed again",
        ),
        (lambda content: content[:-1], "damaged and passed over"),
        (lambda content: b"", ""),  # about to be deleted
        (
            lambda content: content.replace(b"AAAA", b"AABA", 1),
            "1 file will be computed again, of ravdess/functionals.parquet",
        ),
    ],
    ids=["half", "a byte short", "empty", "bits changed"],
)
def test_damaged_part_is_passed_over(place, monkeypatch, tmp_path, capsys, damage, expected):
    write("demo/good.csv", "good")
    push_all()
    write("ravdess/functionals.parquet", "A" * 4000)
    push_all()
    part = place / parts(place)[1]
    part.write_bytes(damage(part.read_bytes()))
    new_session(monkeypatch, tmp_path / "other")
    assert mirror.restore() == 1 and files() == {"demo/good.csv": "good"}
    told = capsys.readouterr().err
    assert expected in told and (part.name in told) == bool(expected)
    write("ravdess/functionals.parquet", "computed again")
    push_all()
    new_session(monkeypatch, tmp_path / "third")
    mirror.restore()
    assert files() == {"demo/good.csv": "good", "ravdess/functionals.parquet": "computed again"}


def test_no_damage_stops_a_restore(place, monkeypatch, tmp_path):
    for number in range(20):
        write(f"{number}.csv", f"{number} " * 50)
    push_all()
    expected, part, chance = files(), place / parts(place)[0], random.Random(0)
    whole = part.read_bytes()
    for trial in range(300):
        content = bytearray(whole)
        for _ in range(chance.choice([1, 3, 30])):
            content[-chance.randrange(1, chance.choice([2500, len(content)]))] = chance.randrange(
                256
            )  # the list is at its end
        part.write_bytes(content[: len(content) if trial % 3 else chance.randrange(len(content))])
        new_session(monkeypatch, tmp_path / f"machine {trial}")
        mirror.restore()
        assert files().items() <= expected.items(), "what comes back is as it was"


def test_a_name_that_leads_elsewhere_is_refused(place, tmp_path):
    for name in ("work/../../stolen", "work//etc/x", "elsewhere/x", "work/"):
        with pytest.raises(ValueError, match="not made here"):
            mirror._place(name)
    with pytest.raises(ValueError, match="not mirrored"):
        mirror._name(tmp_path / "x")


def test_mirror_inside_the_work_folder_is_refused(place, monkeypatch):
    monkeypatch.setenv("SER_MIRROR", str(paths.work("mirror")))
    with pytest.raises(ValueError, match="set it to a folder elsewhere"):
        mirror.start()


def test_mirror_out_of_reach_stops_the_start(place, monkeypatch):
    monkeypatch.setenv("SER_MIRROR", str(place.parent / "not mounted/mirror"))
    with pytest.raises(OSError, match="Mount it"):
        mirror.start()
    assert not (place.parent / "not mounted").exists()


def test_spoilt_record_is_made_again(place, monkeypatch, tmp_path):
    write("a.csv", "a")
    push_all()
    record = next(paths.work(".mirror").glob("*.sqlite"))
    record.write_bytes(b"no database" * 1000)
    write("b.csv", "b")
    push_all()
    assert len(parts(place)) == 2 and mirror.restore() == 0
    (paths.work() / "a.csv").unlink()
    push_all()
    new_session(monkeypatch, tmp_path / "other")
    mirror.restore()
    assert files() == {"b.csv": "b"}, "what was found here is known to have been here"


def test_part_that_somebody_deleted_is_brought_again(place, monkeypatch, tmp_path):
    for name in "ab":
        write(f"{name}.csv", name)
        push_all()
    (place / parts(place)[0]).unlink()
    (place / "photos.zip").write_bytes(b"of somebody else")
    push_all()
    new_session(monkeypatch, tmp_path / "other")
    assert mirror.restore() == 2 and files() == {"a.csv": "a", "b.csv": "b"}
    assert (place / "photos.zip").exists()


def test_nothing_happens_without_a_mirror(private_work, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("was called")

    for name in ("Thread", "Lock"):
        monkeypatch.setattr(mirror.threading, name, never)
    monkeypatch.setattr(mirror, "_record", never)
    write("a.csv", "a")
    for value in (None, ""):
        if value is not None:
            monkeypatch.setenv("SER_MIRROR", value)
        mirror.start()
        mirror.push()
        mirror.push(paths.work("a.csv"))
    assert [path.name for path in private_work.iterdir()] == [
        "a.csv"
    ] and mirror._NOW.waiting == set()


def test_files_that_change_while_they_are_read_wait_for_the_next_push(place, monkeypatch, tmp_path):
    growing = write("growing.bin", "1")
    write("steady.csv", "steady")
    copy = shutil.copyfileobj

    def while_somebody_writes(source, target, length):
        copy(source, target, length)
        if source.name == str(growing):
            with open(growing, "a") as handle:
                handle.write("2")

    with monkeypatch.context() as patch:
        patch.setattr(mirror.shutil, "copyfileobj", while_somebody_writes)
        push_all()
    new_session(monkeypatch, tmp_path / "other")
    assert mirror.restore() == 1 and files() == {"steady.csv": "steady"}


# Several processes, and kills


def process(script: str, **variables: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(PROJECT)} | variables
    return subprocess.Popen(
        [sys.executable, "-c", WORK + script],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_killed_at_any_moment_the_mirror_is_whole(place, monkeypatch, tmp_path):
    """Each file that comes back is one that was written, none is missing that was there before, and in the end all is right."""
    script = """
print("begins", flush=True)
for version in range(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000):
    for number in random.sample(range(60), 15):
        write(paths.work("cache") / f"{number}.txt", f"{os.getpid()} {version}")
    write(paths.work("passing") / f"{os.getpid()} {version}.txt", version)
    for old in list(paths.work("passing").iterdir())[:-3]:
        old.unlink()
    mirror.push(wait=60)
"""
    for number in range(60):
        write(f"cache/{number}.txt", f"{number}.txt 0\n" * 200)
    push_all()
    chance, pushed = random.Random(1), 0
    for trial in range(12):
        worker = process(script)
        assert worker.stdout.readline() == "begins\n"
        time.sleep(chance.uniform(0.02, 0.6))
        worker.send_signal(signal.SIGKILL)
        assert worker.wait() == -signal.SIGKILL
        pushed = max(pushed, *(int(name.lstrip(".")[:8]) for name in parts(place)))
        with monkeypatch.context() as patch:
            new_session(patch, tmp_path / f"machine {trial}")
            mirror.restore()
            found = files()
        assert len([name for name in found if name.startswith("cache/")]) == 60, (
            "nothing is missing"
        )
        for name, text in found.items():
            lines = text.splitlines()
            assert (
                len(lines) == 200 and len(set(lines)) == 1 and text.startswith(Path(name).name)
            ), f"{name} is not whole"
    assert pushed > 12, "pushes were under way"
    push_all()
    expected = files()
    new_session(monkeypatch, tmp_path / "last")
    mirror.restore()
    assert files() == expected


def test_killed_while_restoring_it_goes_on(place, monkeypatch, tmp_path):
    for number in range(400):
        write(f"{number}.txt", f"{number}" * 300)
    monkeypatch.setattr(mirror, "PART_BYTES", 100_000)
    push_all()
    expected, other = files(), str(tmp_path / "other")
    for seconds in (0.0, 0.02, 0.05):
        worker = process("print('begins', flush=True)\nmirror.restore()", SER_WORK=other)
        assert worker.stdout.readline() == "begins\n"
        time.sleep(seconds)
        worker.kill()
        worker.wait()
    new_session(monkeypatch, Path(other))
    assert files().items() <= expected.items(), "what has a name is whole"
    mirror.restore()
    assert files() == expected


def test_processes_push_side_by_side(place, monkeypatch, tmp_path):
    script = """
for version in range(8):
    mirror._NOW.rests_until = 0.0
    path = paths.work("checkpoints") / f"fold {os.getppid()} {sys.stdin.fileno()} {os.getpid()}" / f"epoch_{version}.ckpt"
    write(path, version)
    for old in sorted(path.parent.glob("*.ckpt"))[:-2]:
        old.unlink()
    mirror.push(path.parent, wait=60)
mirror.push(wait=60)
"""
    workers = [process(script) for _ in range(3)]
    for worker in workers:
        output = worker.communicate(timeout=120)[0]
        assert worker.returncode == 0 and output == "", output
    expected = files()
    assert len(expected) == 6
    new_session(monkeypatch, tmp_path / "other")
    mirror.restore()
    assert files() == expected


# The pipeline


def first_cell() -> str:
    cells = json.loads((PROJECT / "notebooks/01_audio_analysis.ipynb").read_text(encoding="utf-8"))[
        "cells"
    ]
    return next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_restored_run_is_fresh(real, tmp_path):  # noqa: F811
    away = tmp_path / "drive"
    away.mkdir()
    head = "from helpers import paths, tables\nimport pandas as pd\ntable = paths.work('demo') / 'functionals.parquet'\n"
    write_notebook(
        real,
        "01_first",
        first_cell(),
        head + "frame = pd.DataFrame({'utterance_id': ['demo/a'], 'energy': [1.5]})",
        "tables.write_table(frame.astype({'energy': 'float32'}), table, 'functionals')",
    )
    write_notebook(
        real, "02_second", first_cell(), head + "tables.read_table(table, 'functionals')"
    )

    def run(mirrored: str) -> list[str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SER_MIRROR", mirrored)
            worker = start(real)
            output = worker.communicate(timeout=120)[0]
        assert worker.returncode == 0, output
        return re.findall(r"^0\d_\w+ +(run|fresh)", output, re.M)

    assert run("drive/mirror") == ["run", "run"] and parts(away / "mirror")
    for lost in ("work", "reports"):
        shutil.rmtree(real / lost)
    assert run(str(away / "mirror")) == ["fresh", "fresh"]
    assert (real / "reports/demo/02_second.html").is_file() and (
        real / "work/demo/functionals.parquet"
    ).is_file()

    for lost in ("work", "reports"):
        shutil.rmtree(real / lost)
    part = next(
        path
        for path in away.glob("mirror/*.zip")
        if b"runs/any/02_second.json" in path.read_bytes()
    )
    part.unlink()
    assert run(str(away / "mirror")) == ["fresh", "run"], (
        "what the mirror lost is run again, and nothing else"
    )


def test_run_without_its_mirror_is_refused(real, tmp_path):  # noqa: F811
    write_notebook(real, "01_first", "x = 1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SER_MIRROR", str(tmp_path / "nowhere/mirror"))
        worker = start(real)
        output = worker.communicate(timeout=60)[0]
    assert worker.returncode == 2 and "run_all.sh: SER_MIRROR is" in output and "Mount it" in output
    assert not (real / "reports").exists()


# Colab

COLAB = """
import json, os, shutil, subprocess, sys, types
from pathlib import Path
content, calls = Path(sys.argv[1]), []
def mount(place):
    calls.append(["mount", place])
    (content / "drive/MyDrive").mkdir(parents=True)
    if (content / "in the cloud").exists():
        (content / "in the cloud").rename(content / "drive/MyDrive/kept")
def run(command, check):
    calls.append([str(part) for part in command])
    if command[0] == "git":
        shutil.copytree(os.environ["ORIGIN"], command[-1])
google = types.ModuleType("google.colab")
google.drive = types.SimpleNamespace(mount=mount)
sys.modules["google.colab"] = google
subprocess.run = run
os.chdir(content)
exec(Path("cell.py").read_text())
from helpers import mirror, paths
found = sorted(path.name for path in paths.work().rglob("*.csv"))
(paths.work() / "of this session.csv").write_text("x") if os.environ.get("SER_MIRROR") else None
mirror.push(wait=60)
print(json.dumps({"calls": calls, "work": str(paths.work()), "mirror": os.environ.get("SER_MIRROR"), "found": found,
                  "project": str(paths.PROJECT), "watching": mirror._NOW.watching}))
"""


@pytest.fixture
def colab(tmp_path):
    """Run the notebooks' first cell as on Colab, whose /content is a folder here; returns what happened."""
    content, origin = tmp_path / "content", tmp_path / "origin"
    content.mkdir()
    (origin / "helpers").mkdir(parents=True)
    for name in ("__init__.py", "paths.py", "mirror.py"):
        text = (HELPERS / name).read_text(encoding="utf-8").replace('"/content', f'"{content}')
        (origin / "helpers" / name).write_text(text, encoding="utf-8")
    (content / "cell.py").write_text(
        first_cell().replace('"/content', f'"{content}'), encoding="utf-8"
    )

    def session(code: int = 0, **variables: str) -> dict:
        environment = {"PATH": os.environ["PATH"], "ORIGIN": str(origin), **variables}
        done = subprocess.run(
            [sys.executable, "-c", COLAB, content], env=environment, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
        return (
            json.loads(done.stdout) | {"told": done.stderr} if code == 0 else {"told": done.stderr}
        )

    session.content = content
    return session


def lose(colab) -> None:
    """The machine is gone; what lies on the Drive is kept."""
    if (colab.content / "drive/MyDrive/kept").exists():
        (colab.content / "drive/MyDrive/kept").rename(colab.content / "in the cloud")
    for name in ("drive", "work", "ser-notebooks"):
        shutil.rmtree(colab.content / name, ignore_errors=True)


def test_first_cell_on_a_fresh_machine_without_a_drive(colab):
    happened = colab()
    git, pip = happened["calls"]
    assert git[:2] == ["git", "clone"] and pip[1:4] == ["-m", "pip", "install"]
    assert happened["project"] == str(colab.content / "ser-notebooks") and happened["work"] == str(
        colab.content / "work"
    )
    assert happened["mirror"] is None and not happened["watching"] and happened["told"] == ""


def test_first_cell_mounts_the_drive_for_its_mirror_and_brings_work_back(colab):
    place = str(colab.content / "drive/MyDrive/kept")
    happened = colab(SER_MIRROR=place)
    assert (
        ["mount", str(colab.content / "drive")] in happened["calls"]
        and happened["found"] == []
        and happened["watching"]
    )
    lose(colab)
    happened = colab(SER_MIRROR=place)
    assert (
        happened["found"] == ["of this session.csv"] and "bringing back 1 file" in happened["told"]
    )
    (again,) = colab(SER_MIRROR=place)["calls"]
    assert again[1:3] == ["-m", "pip"], "neither mounted nor cloned twice"


def test_first_cell_takes_a_mounted_drive_unless_told_not_to(colab):
    (colab.content / "drive/MyDrive").mkdir(parents=True)
    assert (
        colab(SER_MIRROR="")["mirror"] == ""
        and list((colab.content / "drive/MyDrive").iterdir()) == []
    )
    happened = colab()
    assert (
        happened["mirror"] == str(colab.content / "drive/MyDrive/ser-mirror")
        and happened["mirror"] in happened["told"]
    )
    assert parts(Path(happened["mirror"]))
    assert not [call for call in happened["calls"] if call[0] == "mount"]


def test_first_cell_of_a_headless_run_leaves_all_to_run_all(colab):
    shutil.copytree(colab.content.parent / "origin", colab.content / "ser-notebooks")
    (colab.content / "drive/MyDrive").mkdir(parents=True)
    happened = colab(SER_RUN_LOG=str(colab.content / "log"), SER_WORK=str(colab.content / "work"))
    assert happened["calls"] == [] and happened["mirror"] is None and not happened["watching"]
