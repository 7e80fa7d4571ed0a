"""One headless run of all notebooks, on a copy of the project with a cut-down demo corpus; then one with nothing to do.

And the notebooks on results alone: from the committed predictions without audio, and across three small corpora.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from conftest import RATE, harmonic_tone, noise, write_audio

from helpers import audit, metrics, tables
from helpers.paths import PROJECT

TURNS = 6  # per dialogue
SESSIONS = 4  # of five: eight speakers, the fewest that get an interval
# As quick as the notebooks' code can be; the numbers are worth nothing here, and test_experiment.py tries every model
TINY = {
    "07": {"EPOCHS": 2, "PATIENCE": 2, "SECONDS": 0.64, "BATCH_SIZE": 32, "EPOCHS_WIDE": 1},
    "10": {"EPOCHS": 1, "TRIALS": 1, "VOICES": [1.1], "SPEAKER_NORMALISED": False},
    "12": {"EPOCHS": 1, "SECONDS": 0.64},
    **{
        number: {"EPOCHS": 1, "SECONDS": 0.64, "SPEAKER_NORMALISED": False}
        for number in ("13", "14")
    },
    "19": {"EPOCHS": 1, "TRANSFORMS": ["noise"], "SPEAKERS": [2, 4]},
    "11": {
        "SEARCH": False,
        "N_TREES": 10,
        "N_ROUNDS": 3,
        "K_BEST": 20,
        "MODELS": ["logistic regression", "extra trees", "XGBoost"],
        "VOICES": [1.1],
        "LEVELLED": "logistic regression",
    },
}


def cut(block_file, kept: int) -> list[str]:
    """Keep the first turns of an EmoEvaluation file; return their names."""
    header, *blocks = re.split(r"\n\n+", block_file.read_text(encoding="utf-8").strip())
    block_file.write_text("\n\n".join([header, *blocks[:kept]]) + "\n\n", encoding="utf-8")
    return [block.split("\t")[1] for block in blocks[:kept]]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, in a folder with spaces and accents."""
    target = tmp_path_factory.mktemp("run") / "projet à moi"
    for name in ("helpers", "notebooks"):
        shutil.copytree(
            PROJECT / name,
            target / name,
            ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"),
        )
    shutil.copy(PROJECT / "pyproject.toml", target)
    shutil.copytree(PROJECT / "data/demo", target / "data/demo")
    for session in sorted((target / "data/demo").glob("Session*"))[SESSIONS:]:
        shutil.rmtree(session)
    kept = {
        name
        for file in (target / "data/demo").glob("Session*/dialog/EmoEvaluation/*.txt")
        for name in cut(file, TURNS)
    }
    for clip in (target / "data/demo").glob("Session*/sentences/wav/*/*"):
        if clip.stem not in kept:
            clip.unlink()
    known = {path.name[:2] for path in (target / "notebooks").glob("*.ipynb")}
    quick = yaml.safe_load((target / "helpers/profiles/quick.yaml").read_text(encoding="utf-8"))
    tiny = {
        number: (quick.get(number) or {}) | TINY.get(number, {})
        for number in {*quick, *TINY} & {*known, "all"}
    }
    (target / "helpers/profiles/quick.yaml").write_text(yaml.safe_dump(tiny), encoding="utf-8")
    return target


def environment(project, **variables) -> dict[str, str]:
    # one process each: starting workers takes longer than what is to be done
    alone = {
        "SER_WORK": str(project / "derived"),
        "LOKY_MAX_CPU_COUNT": "1",
        "OMP_NUM_THREADS": "1",
    }
    return (
        {name: value for name, value in os.environ.items() if name != "SER_DATA"}
        | alone
        | variables
    )


def run_all(project, *options, **variables) -> tuple[subprocess.CompletedProcess, float]:
    started = time.monotonic()
    command = [sys.executable, "-m", "helpers.pipeline", *options]
    done = subprocess.run(
        command, cwd=project, env=environment(project, **variables), capture_output=True, text=True
    )
    return done, time.monotonic() - started


@pytest.mark.slow
def test_all_notebooks_run_headlessly_and_then_are_fresh(project):
    numbers = [path.name[:2] for path in sorted((project / "notebooks").glob("*.ipynb"))]
    committed = {path.name: path.read_bytes() for path in (project / "notebooks").iterdir()}
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
    assert {
        path.name: path.read_bytes() for path in (project / "notebooks").iterdir()
    } == committed, "never in place"
    assert {path.name for path in project.iterdir()} == {
        "data",
        "derived",
        "helpers",
        "notebooks",
        "pyproject.toml",
        "reports",
    }

    again, seconds = run_all(project)
    assert again.returncode == 0, again.stderr[-3000:]
    table = again.stdout.partition("peak MB")[2]
    statuses = dict(re.findall(r"^(\d\d)_\w+ +(\w+)", table, re.M))
    assert statuses == dict.fromkeys(numbers, "fresh") | {"20": "skipped"}, again.stdout
    assert seconds < 30


@pytest.mark.slow
def test_results_are_shown_again_without_audio(project):
    shutil.copytree(PROJECT / "data/results", project / "data/results")
    before = {path: path.stat().st_mtime_ns for path in (project / "data").rglob("*")}
    done, _ = run_all(project, "--corpus", "ravdess", "--published")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ran = [
        line.split()[0][:2]
        for line in done.stdout.splitlines()
        if re.match(r"\d\d_\w+ +run ", line)
    ]
    assert (
        ran == ["18", "19", "20"]
        and {path: path.stat().st_mtime_ns for path in (project / "data").rglob("*")} == before
    )
    folder = project / "data/results/ravdess/ravdess-8"
    faults = tables.read_table(folder / "evaluation/faults.csv", "faults").set_index("fault")
    worst = faults["difference"].idxmax()
    shown = (project / "reports/ravdess/19_honest_evaluation.ipynb").read_text(encoding="utf-8")
    assert f"The costliest fault is *{worst}*: {faults.loc[worst, 'uar']:.1%}" in shown, (
        "the same number as published"
    )
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
    """Folders of one's own: pitch and length tell the emotion; each has its own level, and an emotion that others lack."""
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


@pytest.mark.slow
def test_cross_corpus_takes_any_corpora_and_leaves_one_out(project, three_corpora):
    names = ["mine", "yours", "theirs"]
    values = {
        "20": {"CORPORA": names, "MODELS": ["logistic regression"], "N_VALID": 2, "N_JOBS": 1}
    }
    (project / "helpers/profiles/three.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
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
