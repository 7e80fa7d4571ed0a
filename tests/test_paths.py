"""Results on a disk that outlives the machine: copied as they come, and brought back."""

import os
import threading

import pytest

from helpers import paths


@pytest.fixture
def drive(tmp_path, monkeypatch):
    monkeypatch.setenv("SER_MIRROR", str(tmp_path / "drive"))
    monkeypatch.setattr(paths, "PROJECT", tmp_path / "project")
    return tmp_path / "drive"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_without_a_mirror_nothing_happens(private_work):
    assert paths.mirror() is None
    paths.copy_to_mirror()
    paths.start_mirror()
    assert not list(private_work.rglob("*"))


def test_work_comes_back_on_a_new_machine(drive, private_work, monkeypatch, tmp_path):
    write(private_work / "demo/folds.csv", "a fold")
    write(private_work / "checkpoints/x/last.ckpt", "a state")
    write(paths.reports("demo") / "index.html", "a report")
    write(private_work / "demo/.folds.csv.tmp", "half")
    paths.copy_to_mirror()
    assert not list(drive.rglob(".*")), "what is half written stays where it is"
    monkeypatch.setenv("SER_WORK", str(tmp_path / "new machine"))
    (paths.reports("demo") / "index.html").unlink()
    paths.start_mirror()
    assert (tmp_path / "new machine/demo/folds.csv").read_text() == "a fold"
    assert (tmp_path / "new machine/checkpoints/x/last.ckpt").read_text() == "a state"
    assert (paths.reports("demo") / "index.html").is_file()
    assert sum(thread.name == "mirror" for thread in threading.enumerate()) == 1


def test_the_newer_file_wins_on_either_side(drive, private_work):
    here, there = private_work / "demo/a.csv", drive / "work/demo/a.csv"
    write(here, "old")
    write(there, "new")
    os.utime(here, (1e9, 1e9))
    paths.copy_to_mirror()
    assert there.read_text() == "new"
    assert paths.copy_newer(drive / "work", private_work) == 1 and here.read_text() == "new"
    assert paths.copy_newer(drive / "work", private_work) == 0, "times are kept"


def test_checkpoints_of_trainings_that_ended_go(drive, private_work):
    state = write(private_work / "checkpoints/x/last.ckpt", "a state")
    paths.copy_to_mirror()
    state.unlink()
    state.parent.rmdir()
    paths.copy_to_mirror()
    assert not (drive / "work/checkpoints/x").exists()


def test_a_copy_that_breaks_leaves_what_was_there(drive, private_work, monkeypatch):
    write(drive / "work/a.csv", "before")
    os.utime(drive / "work/a.csv", (1e9, 1e9))
    write(private_work / "a.csv", "after")

    def broken(source, target):
        write(target, "ha")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paths.shutil, "copy2", broken)
    with pytest.raises(OSError, match="No space left"):
        paths.copy_to_mirror()
    assert (drive / "work/a.csv").read_text() == "before"
    assert [path.name for path in (drive / "work").iterdir()] == ["a.csv"]


def test_on_colab_the_drive_is_the_mirror(tmp_path, monkeypatch):
    (tmp_path / "drive/MyDrive").mkdir(parents=True)
    monkeypatch.setattr(paths, "COLAB", tmp_path)
    monkeypatch.setattr(paths, "PROJECT", tmp_path / "project")
    monkeypatch.delenv("SER_WORK")
    monkeypatch.setenv("SER_MIRROR", "")  # so that it is as before afterwards
    monkeypatch.delenv("SER_MIRROR")
    paths.start_mirror()
    assert paths.work() == tmp_path / "ser-work"
    assert paths.mirror() == tmp_path / "drive/MyDrive/ser-notebooks" and paths.mirror().is_dir()
