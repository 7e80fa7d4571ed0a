"""Tables: checked, atomic, with their provenance; nothing is ever half-written."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import make_predictions, make_utterances

from helpers import cache, metrics, paths, splits, tables


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
    halves = [good[good["role"] == role].reset_index(drop=True) for role in ("validation", "test")]
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

    def full(*given, **named):
        handle = open(*given, **named)  # noqa: SIM115

        class Full(io.BufferedWriter):
            def write(self, content):
                super().write(bytes(content)[:10])
                raise OSError(errno.ENOSPC, "No space left on device")

        return Full(handle.detach())

    monkeypatch.setattr(cache, "open", full, raising=False)
    with pytest.raises(
        OSError, match=r"could not write .*folds.csv: No space left.*untouched.*SER_WORK"
    ) as caught:
        tables.write_table(folds.assign(emotion="sad"), path, "folds")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before and names(path.parent) == {"folds.csv", "folds.csv.json"}


def test_kill_while_writing_leaves_the_old_table(written):
    path, before = written
    script = (
        "import time; from pathlib import Path; from helpers import cache\n"
        "def slowly(handle):\n    handle.write(b'half'); handle.flush()\n"
        "    print('writing', flush=True); time.sleep(60)\n"
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


def test_record_tells_where_a_table_comes_from(written, folds, private_work):
    path, _ = written
    tables.read_table(path, "folds")
    target = private_work / "toy/four/predictions/m.parquet"
    tables.write_table(
        make_predictions(folds), target, "predictions", notebook="07_cnn", parameters={"SEED": 3}
    )
    record = tables.provenance(target)
    assert record["notebook"] == "07_cnn" and record["parameters"] == {"SEED": 3}
    assert record["inputs"] == {"toy/four/folds.csv": tables.file_hash(path)}
    assert "pandas" in record["versions"] and record["written"].startswith("20")


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
