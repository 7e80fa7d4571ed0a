"""Tables: checked, atomic, with their provenance; nothing is ever half-written."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import make_predictions, make_utterances, write_audio

from helpers import audio, cache, metrics, paths, splits, tables, wav2vec2


@pytest.fixture
def folds() -> pd.DataFrame:
    return splits.make_folds(make_utterances(4, 2), n_folds=2)


@pytest.fixture
def written(folds, private_work):
    """A folds table under SER_WORK, and its bytes."""
    path = tables.write_table(folds, private_work / "toy/four/folds.csv", "folds")
    return path, path.read_bytes()


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_tables_come_back_as_they_were(folds, tmp_path):
    tables.write_table(folds, tmp_path / "folds.csv", "folds")
    pd.testing.assert_frame_equal(
        tables.read_table(tmp_path / "folds.csv", "folds"), folds, check_dtype=False
    )
    predictions = make_predictions(folds)
    tables.write_table(predictions, tmp_path / "p.parquet", "predictions")
    pd.testing.assert_frame_equal(
        tables.read_table(tmp_path / "p.parquet", "predictions"), predictions, check_dtype=False
    )
    utterances = make_utterances(4, 2).drop(columns="emotion")
    tables.write_table(utterances, tmp_path / "u.parquet", "utterances")
    pd.testing.assert_frame_equal(
        tables.read_table(tmp_path / "u.parquet", "utterances"), utterances, check_dtype=False
    )


def test_text_that_looks_like_nothing_survives_a_csv(folds, tmp_path):
    odd = folds.assign(speaker=folds["speaker"].replace({"s00": "NA", "s01": "01"}))
    tables.write_table(odd, tmp_path / "folds.csv", "folds")
    assert set(tables.read_table(tmp_path / "folds.csv", "folds")["speaker"]) == {
        "NA",
        "01",
        "s02",
        "s03",
    }


def test_speakers_that_are_numbers_stay_text(folds, tmp_path):
    numbered = folds.assign(speaker=folds["speaker"].str.replace("s", ""))
    tables.write_table(numbered, tmp_path / "folds.csv", "folds")
    assert set(tables.read_table(tmp_path / "folds.csv", "folds")["speaker"]) == {
        "00",
        "01",
        "02",
        "03",
    }


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"role": "holdout"}, "holdout"),
        ({"fold": [0, *[1] * 31, *[2] * 32]}, "greater_than_or_equal_to"),
        ({"utterance_id": "no corpus"}, "no corpus"),
        ({"extra": 1}, "extra"),
        ({"fold": 1}, "uniqueness"),
    ],
)
def test_invalid_table_is_refused_and_nothing_is_written(written, folds, change, shown):
    path, before = written
    with pytest.raises(
        ValueError,
        match=r"folds.csv is not a valid 'folds' table \(\d+ faults.*nothing was written",
    ) as caught:
        tables.write_table(folds.assign(**change), path, "folds")
    assert shown in str(caught.value) and len(str(caught.value).splitlines()) < 20
    assert path.read_bytes() == before and names(path.parent) == {"folds.csv", "folds.csv.json"}


def test_probabilities_out_of_range_and_doubled_rows_are_refused(folds, tmp_path):
    good = make_predictions(folds)
    doubled = pd.concat([good, good.head(1)], ignore_index=True)
    for bad in (good.assign(p_sad=np.float32(1.5)), good.assign(p_sad=np.float32("nan")), doubled):
        with pytest.raises(ValueError, match="not a valid 'predictions' table"):
            tables.write_table(bad, tmp_path / "p.parquet", "predictions")
    assert names(tmp_path) == set()


def test_index_of_a_table_does_not_matter(folds, tmp_path):
    good = make_predictions(folds)
    halves = [good[good["role"] == role].reset_index(drop=True) for role in ("valid", "test")]
    tables.write_table(pd.concat(halves), tmp_path / "p.parquet", "predictions")
    with pytest.raises(ValueError, match="not a valid 'predictions' table"):
        tables.write_table(pd.concat([good, good.head(1)]), tmp_path / "p.parquet", "predictions")


def test_results_without_intervals_come_back(folds, tmp_path):
    results = metrics.results_table({"m": make_predictions(folds)}, folds, "toy")
    assert results["uar_low"].isna().all(), "four speakers have no interval"
    tables.write_table(results, tmp_path / "results.csv", "results")
    pd.testing.assert_frame_equal(
        tables.read_table(tmp_path / "results.csv", "results"), results, check_dtype=False
    )


def test_table_on_disk_that_breaks_its_schema_is_refused(written):
    path, before = written
    path.write_bytes(before.replace(b"train", b"trian"))
    with pytest.raises(ValueError, match=r"(?s)not a valid 'folds' table.*trian"):
        tables.read_table(path, "folds")


def test_full_disk_leaves_the_old_table_and_no_rubbish(written, folds, monkeypatch):
    path, before = written
    real = os.fdopen

    def full(*given, **named):
        handle = real(*given, **named)

        class Full(io.BufferedWriter):
            def write(self, content):
                super().write(bytes(content)[:10])
                raise OSError(errno.ENOSPC, "No space left on device")

        return Full(handle.detach())

    monkeypatch.setattr(cache.os, "fdopen", full)
    with pytest.raises(
        OSError, match=r"could not write .*folds.csv: No space left.*untouched.*SER_WORK"
    ) as caught:
        tables.write_table(folds.assign(emotion="sad"), path, "folds")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before and names(path.parent) == {"folds.csv", "folds.csv.json"}


def test_full_disk_while_storing_a_result_leaves_no_rubbish(monkeypatch, private_work):
    key = cache.recipe_hash("x")

    def full(handle, **arrays):
        handle.write(b"PK half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(np, "savez", full)
        cache.fetch("toy", key, lambda: {"a": np.arange(3)})
    assert [p for p in (private_work / "cache").rglob("*") if p.is_file()] == []
    assert cache.fetch("toy", key, lambda: {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]


def test_kill_while_writing_leaves_the_old_table(written):
    path, before = written
    script = (
        "import time; from pathlib import Path; from helpers import cache\n"
        "def slowly(handle):\n    handle.write(b'half'); handle.flush(); print('writing', flush=True); time.sleep(60)\n"
        f"cache.write_atomically(Path({str(path)!r}), slowly)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=paths.PROJECT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == before
    left = names(path.parent) - {"folds.csv", "folds.csv.json"}
    assert all(name.startswith(".") for name in left), "readers skip hidden files"
    assert len(tables.read_table(path, "folds")) > 0


def test_sidecar_tells_where_a_table_comes_from(written, folds, private_work):
    path, _ = written
    tables.read_table(path, "folds")
    target = private_work / "toy/four/predictions/m.parquet"
    tables.write_table(
        make_predictions(folds), target, "predictions", notebook="07_cnn", parameters={"SEED": 3}
    )
    sidecar = tables.provenance(target)
    assert sidecar["notebook"] == "07_cnn" and sidecar["parameters"] == {"SEED": 3}
    assert sidecar["inputs"] == {"toy/four/folds.csv": tables.file_hash(path)} and sidecar[
        "sha256"
    ] == tables.file_hash(target)
    assert (
        sidecar["rows"] == len(make_predictions(folds))
        and sidecar["seconds"] >= 0
        and "pandas" in sidecar["versions"]
    )


@pytest.fixture
def stale(written, folds, private_work):
    """A predictions table whose folds changed after it was made."""
    path, _ = written
    tables.read_table(path, "folds")
    target = private_work / "toy/four/predictions/m.parquet"
    tables.write_table(make_predictions(folds), target, "predictions", notebook="07_cnn")
    tables.write_table(folds.iloc[::-1], path, "folds")
    return target


def test_stale_table_warns_interactively_and_names_the_notebook(stale):
    with pytest.warns(
        UserWarning, match=r"m.parquet was made by notebook 07_cnn from \['toy/four/folds.csv'\]"
    ):
        assert len(tables.read_table(stale, "predictions"))


def test_stale_table_stops_a_headless_run(stale, monkeypatch, tmp_path):
    monkeypatch.setenv("SER_RUN_LOG", str(tmp_path / "log"))
    with pytest.raises(ValueError, match="changed since: run that notebook again"):
        tables.read_table(stale, "predictions")


def test_fresh_table_gives_no_warning(written, folds, private_work):
    tables.read_table(written[0], "folds")
    target = tables.write_table(
        make_predictions(folds), private_work / "toy/four/m.parquet", "predictions"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tables.read_table(target, "predictions")


def test_damaged_table_says_which_and_what_to_do(folds, tmp_path):
    path = tables.write_table(folds, tmp_path / "folds.parquet", "folds")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(
        ValueError,
        match=r"folds.parquet is damaged .*Remove it and run the notebook that writes it again",
    ):
        tables.read_table(path, "folds")


def test_missing_table_names_the_notebook_that_writes_it(tmp_path):
    for schema, number in [
        ("utterances", "02"),
        ("functionals", "03"),
        ("images", "04"),
        ("folds", "05"),
        ("results", "18"),
    ]:
        with pytest.raises(
            FileNotFoundError, match=f"gone.csv is not there. Notebook {number} writes it"
        ):
            tables.read_table(tmp_path / "gone.csv", schema)


def test_run_log_tells_of_every_read_and_write(written, folds, monkeypatch, tmp_path):
    monkeypatch.setenv("SER_RUN_LOG", str(tmp_path / "log"))
    tables.read_table(written[0], "folds")
    tables.write_table(folds, tmp_path / "copy.csv", "folds")
    tables.note_output(tmp_path / "copy.csv.json")
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [(e["event"], os.path.basename(e["path"])) for e in events] == [
        ("read", "folds.csv"),
        ("write", "copy.csv"),
        ("write", "copy.csv.json"),
    ]
    assert events[0]["sha256"] == events[1]["sha256"] == tables.file_hash(tmp_path / "copy.csv")


def test_file_hash_notices_a_change_and_a_loss(tmp_path):
    path = tmp_path / "a"
    path.write_text("one")
    first = tables.file_hash(path)
    path.write_text("two!")
    assert tables.file_hash(path) != first
    path.unlink()
    with pytest.raises(FileNotFoundError):
        tables.file_hash(path)


# --- the store of costly results ----------------------------------------------------------------------------------


def test_stored_result_is_found_again_and_damage_is_mended():
    calls, key = [], cache.recipe_hash("x", 1)
    make = lambda: calls.append(1) or {"a": np.arange(5), "name": np.array("é")}  # noqa: E731
    for _ in range(2):
        assert cache.fetch("toy", key, make)["a"].tolist() == [0, 1, 2, 3, 4]
    assert len(calls) == 1
    stored = cache.stored_at("toy", key)
    whole = stored.read_bytes()
    for kept in (0, 10, len(whole) // 2, len(whole) - 5):
        stored.write_bytes(whole[:kept])
        assert str(cache.fetch("toy", key, make)["name"]) == "é"
    damaged = bytearray(whole)
    damaged[len(whole) // 3] ^= 0xFF
    stored.write_bytes(damaged)
    assert cache.fetch("toy", key, make)["a"].tolist() == [0, 1, 2, 3, 4]


def test_recipes_differ_exactly_when_content_does():
    different = [
        1,
        1.0,
        "1",
        True,
        None,
        [1],
        (1, 2),
        [1, 2, 3],
        {"a": 1},
        {"a": 2},
        {"b": 1},
        np.arange(3),
        np.arange(3.0),
        np.arange(3).reshape(3, 1),
        pd.Series([1, 2]),
        pd.Series([1, 3]),
        pd.DataFrame({"a": [1, 2]}),
        pd.DataFrame({"b": [1, 2]}),
        cache,
        cache.fetch,
        np.array(["a", "b"], object),
        np.array(["a", "c"], object),
    ]
    assert len({cache.recipe_hash(part) for part in different}) == len(different)
    assert cache.recipe_hash({"a": 1, "b": 2}) == cache.recipe_hash({"b": 2, "a": 1})
    assert cache.recipe_hash({"x", "y", "z"}) == cache.recipe_hash({"z", "y", "x"})
    assert cache.recipe_hash("ab", "c") != cache.recipe_hash("a", "bc")
    assert cache.recipe_hash(["a"], "b") != cache.recipe_hash(["a", "b"])
    assert cache.recipe_hash(np.arange(9)[::2]) == cache.recipe_hash(np.arange(9)[::2].copy())


def test_recipe_refuses_what_it_cannot_hash(tmp_path):
    with (
        open(tmp_path / "f", "w") as handle,
        pytest.raises(TypeError, match="a recipe can't hold TextIOWrapper"),
    ):
        cache.recipe_hash(handle)


def test_code_with_parts_follows_what_is_really_used():
    from helpers import nets, spectrograms

    def begins(thing):
        return [text.splitlines()[0] for text in cache.code_with_parts(thing)]

    parts = begins(spectrograms.padded_image)
    assert {"DB_MIN = -100.0", "TRIM_DB = 40.0"} <= set(parts)
    assert {"def trim", "def mel_spectrogram"} <= {line.partition("(")[0] for line in parts}
    assert not any(
        line.startswith(("def functionals", "def write_images", "def load")) for line in parts
    )
    assert "class ConvStep(nn.Module):" in begins(
        nets.ResNet1D
    ) and "class ConvStep(nn.Module):" not in begins(nets.Recurrent)


# --- tables in parts ----------------------------------------------------------------------------------------------


def make_frames(names, n_frames: int = 7) -> pd.DataFrame:
    """A descriptors table: `n_frames` rows per clip, all different."""
    values = np.arange(2 * n_frames * len(names), dtype=np.float32).reshape(-1, 2)
    table = pd.DataFrame(values, columns=["rms_db", "f0_st"])
    table.insert(0, "utterance_id", np.repeat([f"toy/{name}" for name in names], n_frames))
    return table


def test_parts_are_the_whole_table_and_come_back_in_parts(private_work):
    frames = make_frames("abcdef")
    whole = tables.write_table(frames, private_work / "toy/whole.parquet", "descriptors")
    parts = (make_frames("abcdef")[14 * i : 14 * (i + 1)] for i in range(3))
    path = tables.write_parts(
        parts,
        private_work / "toy/parts.parquet",
        "descriptors",
        notebook="03_x",
        parameters={"A": 1},
    )
    pd.testing.assert_frame_equal(
        tables.read_table(path, "descriptors"), tables.read_table(whole, "descriptors")
    )
    back = list(tables.read_parts(path, "descriptors"))
    assert len(back) == 3 and all(part.groupby("utterance_id").size().eq(7).all() for part in back)
    pd.testing.assert_frame_equal(
        pd.concat(back, ignore_index=True), tables.read_table(whole, "descriptors")
    )
    sidecar = tables.provenance(path)
    assert (sidecar["rows"], sidecar["columns"], sidecar["notebook"], sidecar["parameters"]) == (
        42,
        3,
        "03_x",
        {"A": 1},
    )
    assert sidecar["sha256"] == tables.file_hash(path)


def test_a_clip_in_two_row_groups_comes_back_whole(tmp_path):
    path = tmp_path / "d.parquet"
    make_frames("abcdef").to_parquet(path, row_group_size=10)  # as another program may write it
    back = list(tables.read_parts(path, "descriptors"))
    assert len(back) > 2 and all(part.groupby("utterance_id").size().eq(7).all() for part in back)
    pd.testing.assert_frame_equal(
        pd.concat(back, ignore_index=True), make_frames("abcdef"), check_dtype=False
    )


def test_wanted_columns_and_rows_alone_are_read(private_work):
    path = tables.write_parts(
        [make_frames("abc"), make_frames("de")], private_work / "toy/d.parquet", "descriptors"
    )
    assert list(tables.read_table(path, "descriptors", columns=["f0_st"])) == [
        "utterance_id",
        "f0_st",
    ]
    back = list(tables.read_parts(path, "descriptors", columns=["rms_db"], ids=["toy/e", "toy/b"]))
    assert pd.concat(back)["utterance_id"].unique().tolist() == ["toy/b", "toy/e"]
    assert (
        all(list(part) == ["utterance_id", "rms_db"] for part in back) and sum(map(len, back)) == 14
    )
    utterances = tables.write_table(
        make_utterances(4, 2).drop(columns="emotion"), private_work / "u.parquet", "utterances"
    )
    assert list(tables.read_table(utterances, "utterances", columns=["speaker"])) == [
        "utterance_id",
        "speaker",
    ]
    with pytest.raises(
        ValueError,
        match=r"d.parquet has 3 columns, and not pitch: ask for some that it has, e.g. rms_db",
    ):
        tables.read_table(path, "descriptors", columns=["pitch"])
    with pytest.raises(FileNotFoundError, match="Notebook 03 writes it"):
        list(tables.read_parts(private_work / "gone.parquet", "descriptors"))


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([], "there are no parts"),
        (
            [make_frames("ab"), make_frames("bc")],
            r"1 utterance\(s\) have rows in more than one part",
        ),
        (
            [make_frames("ab"), make_frames("c").drop(columns="f0_st")],
            r"part 2 has 2 columns, the first part 3.*f0_st",
        ),
        (
            [make_frames("ab"), make_frames("c").assign(rms_db="loud")],
            r"part 2 is not a valid 'descriptors' table",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, parts, text):
    path = tmp_path / "d.parquet"
    path.write_text("before")
    with pytest.raises(ValueError, match=text):
        tables.write_parts(parts, path, "descriptors")
    assert path.read_text() == "before" and names(tmp_path) == {"d.parquet"}


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np, pandas as pd
from helpers import tables
def part(i):
    table = pd.DataFrame(np.random.default_rng(i).random((20_000, 50), np.float32)).add_prefix("c")
    table.insert(0, "utterance_id", f"toy/{i}")
    return table
path = Path(sys.argv[1])
tables.write_parts(map(part, range(int(sys.argv[2]))), path, "descriptors")
assert sum(len(rows) for rows in tables.read_parts(path, "descriptors")) == 20_000 * int(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_does_not_grow_with_the_parts(tmp_path):
    def peak(n: int) -> float:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(tmp_path / f"{n}.parquet"), str(n)],
            cwd=paths.PROJECT,
            capture_output=True,
            text=True,
            check=True,
        )
        return float(done.stdout)

    few, many = peak(3), peak(60)  # 12 MB and 240 MB of numbers
    assert many < few + 60, f"{few:.0f} MB with 3 parts, {many:.0f} MB with 60"


def test_a_large_array_stays_on_disk_and_is_not_made_again(monkeypatch, private_work):
    rows = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    small = cache.stacked("toy", "a" * 32, iter(rows), 4)
    monkeypatch.setattr(cache, "LARGE_BYTES", 23)
    large = cache.stacked("toy", "a" * 32, iter(rows), 4)
    again = cache.stacked("toy", "a" * 32, iter(()), 4)
    assert (
        not isinstance(small, np.memmap)
        and isinstance(large, np.memmap)
        and isinstance(again, np.memmap)
    )
    assert (
        (small == rows).all()
        and (large == rows).all()
        and (again == rows).all()
        and large.dtype == np.uint8
    )


def test_clips_on_disk_are_read_one_by_one_and_loops_over_them_end(tmp_path):
    made = [np.arange(n, dtype=np.int16) - n for n in (3, 0, 5)]
    found = wav2vec2.Clips.write(tmp_path / "clips.int16", iter(made))
    assert (
        len(found) == 3
        and found.lengths.tolist() == [3, 0, 5]
        and found[-1].tolist() == made[2].tolist()
    )
    for one, other in zip(found, made, strict=True):
        assert one.dtype == np.int16 and one.tolist() == other.tolist()


def test_the_quality_report_names_some_of_many_clips_of_the_same_audio():
    n = 20_000
    table = pd.DataFrame(
        {"audio_hash": ["silence"] * n + ["", "", "own"], "quality": ["ok"] * (n + 2) + ["clipped"]}
    )
    ids = pd.Series([f"toy/{i}" for i in range(n + 3)])
    before = time.perf_counter()
    found = audio.same_audio(table, ids)
    assert time.perf_counter() - before < 10, "naming all of them would be 400 million names"
    assert found[0] == f"same audio as {', '.join(ids[1:11])} and {n - 11} more"
    assert (
        found[5]
        == f"same audio as {', '.join(ids[[0, 1, 2, 3, 4, 6, 7, 8, 9, 10]])} and {n - 11} more"
    )
    assert found[n:].tolist() == ["ok", "ok", "clipped"]


def test_measures_that_an_earlier_version_stored_are_found(tmp_path, monkeypatch):
    path = str(write_audio(tmp_path / "a.wav"))
    now = audio._stored_measure(path, np.nan, np.nan)
    stored = next((paths.work("cache") / "measures").rglob("*.npz"))
    np.savez(stored, **{name: np.array(value) for name, value in now.items()})
    monkeypatch.setattr(audio, "measure", None)  # not to be called
    monkeypatch.setattr(audio, "recipe_hash", lambda *parts: stored.stem)
    assert audio._stored_measure(path, np.nan, np.nan) == now and now["quality"] == "ok"
