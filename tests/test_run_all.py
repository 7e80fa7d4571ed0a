"""One headless run of all notebooks, on a copy of the project with a cut-down demo corpus; then one with nothing to do."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import yaml

from helpers.paths import PROJECT

TURNS = 6  # per dialogue
# As quick as the notebooks' code can be; the numbers are worth nothing here, and test_experiment.py tries every model
TINY = {"07": {"EPOCHS": 2, "PATIENCE": 2, "SECONDS": 0.64, "BATCH_SIZE": 32, "EPOCHS_WIDE": 1},
        "10": {"EPOCHS": 1, "TRIALS": 1, "SPEAKER_NORMALISED": False},
        "12": {"EPOCHS": 1, "SECONDS": 0.64},
        **{number: {"EPOCHS": 1, "SECONDS": 0.64, "SPEAKER_NORMALISED": False} for number in ("13", "14")},
        "19": {"EPOCHS": 1, "TRANSFORMS": ["noise"], "SPEAKERS": [2, 4]},
        "11": {"SEARCH": False, "N_TREES": 10, "N_ROUNDS": 3, "K_BEST": 20,
               "MODELS": ["logistic regression", "extra trees", "XGBoost"]}}


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
        shutil.copytree(PROJECT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy(PROJECT / "pyproject.toml", target)
    shutil.copytree(PROJECT / "data/demo", target / "data/demo")
    kept = {name for file in (target / "data/demo").glob("Session*/dialog/EmoEvaluation/*.txt") for name in cut(file, TURNS)}
    for clip in (target / "data/demo").glob("Session*/sentences/wav/*/*"):
        if clip.stem not in kept:
            clip.unlink()
    known = {path.name[:2] for path in (target / "notebooks").glob("*.ipynb")}
    quick = yaml.safe_load((target / "helpers/profiles/quick.yaml").read_text(encoding="utf-8"))
    tiny = {number: (quick.get(number) or {}) | TINY.get(number, {}) for number in {*quick, *TINY} & {*known, "all"}}
    (target / "helpers/profiles/quick.yaml").write_text(yaml.safe_dump(tiny), encoding="utf-8")
    return target


def run_all(project) -> tuple[subprocess.CompletedProcess, float]:
    # one process each: starting workers takes longer than what is to be done
    environment = os.environ | {"SER_WORK": str(project / "derived"), "LOKY_MAX_CPU_COUNT": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("SER_DATA", None)
    started = time.monotonic()
    command = [sys.executable, "-m", "helpers.pipeline"]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
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
    assert statuses == dict.fromkeys(numbers, "run") | {"20": "skipped"}, "there is one corpus alone"
    index = (reports / "index.html").read_text(encoding="utf-8")
    assert "ynthetic" in index, "results of synthetic speech must say so"
    for name, outcome in record["notebooks"].items():
        if outcome["status"] == "skipped":
            continue
        assert f'href="{name}.html"' in index and (reports / f"{name}.html").is_file() and (reports / f"{name}.ipynb").is_file()
    assert not [link for link in re.findall(r'(?:href|src)="([^"#:]+)"', index) if not (reports / link).is_file()]

    work = project / "derived/demo/iemocap-4"
    with open(work / "results.csv", encoding="utf-8", newline="") as handle:
        results = list(csv.DictReader(handle))
    assert {"majority", "average_weighted"} <= {row["model"] for row in results}
    assert {row["variant"] for row in results} == {"inductive", "speaker-normalised"}
    assert all(0 <= float(row["uar"]) <= 1 and row["protocol"].startswith("demo, iemocap-4") for row in results)
    assert {path.name: path.read_bytes() for path in (project / "notebooks").iterdir()} == committed, "never in place"
    assert {path.name for path in project.iterdir()} == {"data", "derived", "helpers", "notebooks", "pyproject.toml", "reports"}

    again, seconds = run_all(project)
    assert again.returncode == 0, again.stderr[-3000:]
    statuses = [line.split()[1] for line in again.stdout.splitlines() if re.match(r"\d\d_", line)]
    assert [status for status in statuses if status != "skipped"] == ["fresh"] * (len(numbers) - 1), again.stdout
    assert seconds < 20
