"""One headless run of all notebooks, on a copy of the project with a cut-down demo corpus.

Then one with nothing to do, and the notebooks on results alone: from the committed predictions
without audio, and across three small corpora.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from conftest import PROJECT, RATE, harmonic_tone, noise, run_all, write_audio

from helpers import audit, metrics, tables


def test_all_notebooks_run_headlessly_and_then_are_fresh(project):
    numbers = [path.name[:2] for path in sorted((project / "notebooks").glob("*.ipynb"))]
    done, _ = run_all(project)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    reports = project / "reports/demo"
    record = json.loads((reports / "run.json").read_text(encoding="utf-8"))
    assert record["corpus"] == "demo" and record["profile"] == "quick"
    statuses = {name[:2]: outcome["status"] for name, outcome in record["notebooks"].items()}
    assert statuses == dict.fromkeys(numbers, "run") | {"20": "skipped"}, (
        "there is one corpus alone"
    )
    index = (reports / "index.html").read_text(encoding="utf-8")
    assert "ynthetic" in index, "results of synthetic speech must say so"
    for name, outcome in record["notebooks"].items():
        if outcome["status"] == "skipped":
            continue
        assert (
            f'href="{name}.html"' in index
            and (reports / f"{name}.html").is_file()
            and (reports / f"{name}.ipynb").is_file()
        )
    assert not [
        link
        for link in re.findall(r'(?:href|src)="([^"#:]+)"', index)
        if not (reports / link).is_file()
    ]

    work = project / "derived/demo/iemocap-4"
    with open(work / "results.csv", encoding="utf-8", newline="") as handle:
        results = list(csv.DictReader(handle))
    assert {"majority", "average_weighted"} <= {row["model"] for row in results}
    assert {row["variant"] for row in results} == {"inductive", "speaker-normalised"}
    assert all(
        0 <= float(row["uar"]) <= 1 and row["protocol"].startswith("demo, iemocap-4")
        for row in results
    )
    for path in (project / "notebooks").iterdir():
        assert path.read_bytes() == (PROJECT / "notebooks" / path.name).read_bytes(), "in place"
    top = {"data", "derived", "helpers", "notebooks", "pyproject.toml", "reports", "tools"}
    assert {path.name for path in project.iterdir()} == top

    again, seconds = run_all(project)
    assert again.returncode == 0, again.stderr[-3000:]
    table = again.stdout.partition("peak MB")[2]
    statuses = dict(re.findall(r"^(\d\d)_\w+ +(\w+)", table, re.M))
    assert statuses == dict.fromkeys(numbers, "fresh") | {"20": "skipped"}, again.stdout
    assert seconds < 30


def test_results_are_shown_again_without_audio(project):
    shutil.copytree(PROJECT / "data/results", project / "data/results")
    before = {path: path.stat().st_mtime_ns for path in (project / "data").rglob("*")}
    done, _ = run_all(project, "--corpus", "ravdess", "--published")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    record = json.loads((project / "reports/ravdess/run.json").read_text(encoding="utf-8"))
    ran = [name[:2] for name, o in record["notebooks"].items() if o["status"] == "run"]
    assert ran == ["18", "19", "20"]
    assert {path: path.stat().st_mtime_ns for path in (project / "data").rglob("*")} == before
    folder = project / "data/results/ravdess/ravdess-8"
    faults = tables.read_table(folder / "evaluation/faults.csv", "faults").set_index("fault")
    worst = faults["difference"].idxmax()
    shown = (project / "reports/ravdess/19_honest_evaluation.ipynb").read_text(encoding="utf-8")
    assert worst in shown and f"{100 * faults.loc[worst, 'uar']:.1f}" in shown, "as published"
    results = tables.read_table(folder / "results.csv", "results").set_index(["model", "variant"])[
        "uar"
    ]
    cards = json.loads((folder / "cards.json").read_text(encoding="utf-8"))
    assert {(c["model"], c["variant"]) for c in cards} == set(results.index)
    assert np.allclose(
        [c["results"]["uar"] for c in cards],
        [results[c["model"], c["variant"]] for c in cards],
        atol=1e-6,
    )


@pytest.fixture
def three_corpora(tmp_path) -> dict[str, str]:
    """Three folders in which pitch and length tell the emotion.

    Each has its own level, and an emotion that the others do not have.
    """
    for c, (corpus, extra) in enumerate(
        {"mine": "bored", "yours": "surprised", "theirs": "calm"}.items()
    ):
        for e, emotion in enumerate(["neutral", "sad", "angry", extra]):
            for s, k in [(s, k) for s in range(9) for k in range(2)]:
                seconds = 0.5 + 0.1 * e
                voice = harmonic_tone(100 + 40 * e + 4 * s + c, seconds, 0.1 + 0.2 * c) + noise(
                    seconds, 0.01, s + k
                )
                write_audio(tmp_path / corpus / emotion / f"s{s}_{k}.wav", voice, RATE)
    return {"SER_DATA": str(tmp_path)}


def test_cross_corpus_takes_any_corpora_and_leaves_one_out(project, three_corpora):
    names = ["mine", "yours", "theirs"]
    values = {
        "20": {"CORPORA": names, "MODELS": ["logistic regression"], "N_VALIDATION": 2, "N_JOBS": 1}
    }
    (project / "tools/profiles/three.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    done, _ = run_all(
        project, "--corpus", "mine", "--only", "20", "--profile", "three", **three_corpora
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    place = project / "derived/cross-corpus"
    results = tables.read_table(place / "matrix/results.csv", "results")
    assert set(results["model"].str.split(",").str[0]) == {
        f"{a} → {b}" for a in [*names, "others"] for b in names
    }
    assert set(results["variant"]) == {"inductive", "corpus-normalised", "speaker-normalised"}
    assert (results["n"] == 9 * 3 * 2).all(), "on the three emotions that all share"
    folds = tables.read_table(place / "others-to-mine/folds.csv", "folds")
    sides = folds["utterance_id"].str.split("/").str[0].groupby(folds["role"] == "test").unique()
    assert list(sides[True]) == ["mine"] and set(sides[False]) == {"yours", "theirs"}
    assert all(name.split()[0] in names for name in folds["speaker"]), (
        "s0 is somebody else in another corpus"
    )
    assert "fault" not in {
        finding.level for finding in audit.audit_folds(folds, folds[["utterance_id", "speaker"]])
    }
    emotions = metrics.probabilities(metrics.read_predictions(place / "others-to-mine")["average"])[
        1
    ]
    assert emotions == ["neutral", "sad", "angry"]


ELSEWHERE = """
import builtins
project, real = {project!r}, builtins.__import__

def imported(name, globals=None, *more, **named):
    if name.split(".")[0] in {{"fcntl", "resource", "pwd", "grp", "termios", "posix"}}:
        if str((globals or {{}}).get("__file__", "")).startswith(project):
            raise ModuleNotFoundError(name + ": not on this system")
    return real(name, globals, *more, **named)

builtins.__import__ = imported
"""


def test_nothing_needs_a_module_that_windows_lacks(project, tmp_path):
    """The commands and a notebook's kernel, where imports from the project of such modules fail."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    (place / "sitecustomize.py").write_text(ELSEWHERE.format(project=str(project)))
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(place), str(project)]),
        "SER_WORK": str(tmp_path),
    }

    def call(*command):
        done = subprocess.run(
            [sys.executable, *command], cwd=project, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    modules = [path.stem for path in sorted(project.glob("helpers/*.py"))]
    names = ", ".join(f"helpers.{name}" for name in modules if name != "__init__")
    call("-c", f"import {names}, tools.report, tools.publish")
    assert "Recognise" in call("-m", "helpers.predict", "--help")
    assert "Audit" in call("-m", "helpers.audit", "--help")
    assert "02_label_extraction" in call("tools/run.py", "--only", "2")
