"""run.py, report.py and publish.py on tiny made-up notebooks.

Most tests run the cells in this process in place of papermill.
"""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
from conftest import make_predictions, make_utterances

from helpers import corpora, paths, tables
from helpers.splits import make_folds
from tools import notebook, publish, report, run

ROOT = Path(run.__file__).parent.parent
LOG = """import hashlib, json, os, pathlib
def log(event, path, sha256=""):
    if not path.startswith("raw:"):
        sha256 = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    line = json.dumps({"event": event, "path": path, "sha256": sha256})
    print(line, file=open(os.environ["SER_RUN_LOG"], "a"))
"""
READ_AND_WRITE = (
    LOG
    + """if IN: log('read', IN)
if OUT:
    pathlib.Path(OUT).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(OUT).write_text(f'{pathlib.Path(IN).read_text() if IN else ""}{EPOCHS}')
    log('write', OUT)
    log('read', OUT)"""
)
RESULTS = """model,variant,pretrained,n,uar,uar_low,uar_high,uar_fold_mean,wa,macro_f1,\
weighted_f1,ece,nll,protocol
svm,inductive,False,96,0.61,0.55,0.68,0.60,0.62,0.6,0.61,0.05,1.02,"demo, four"
average,inductive,False,96,0.662,0.6,0.72,0.65,0.66,0.65,0.66,0.03,0.91,"demo, four"
majority,inductive,False,96,0.25,,,0.25,0.31,0.12,0.15,,,"demo, four"
svm,speaker-normalised,False,96,0.7,0.64,0.77,0.69,0.7,0.7,0.71,0.06,0.9,"demo, four, normalised"
"""


def write_notebook(project: Path, name: str, *cells: str, **parameters) -> Path:
    """Write a notebook: a heading, its parameters cell, and the given code cells."""
    literals = {"CORPUS": "demo", "EPOCHS": 5, **parameters}
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_markdown_cell(f"# {name[:2]} · On {name[3:]}", id="title")]
    code = ["\n".join(f"{key} = {value!r}" for key, value in literals.items()), *cells]
    for number, source in enumerate(code):
        book.cells.append(nbformat.v4.new_code_cell(source, id=f"cell-{number}"))
    book.cells[1].metadata["tags"] = ["parameters"]
    path = project / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)
    return path


def run_here(book, values, executed) -> str:
    """Execute the cells in this process, with values injected after the parameters."""
    copy, names = nbformat.read(book.path, 4), {}
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    injected = nbformat.v4.new_code_cell(source, id="injected")
    injected.metadata["tags"] = ["injected-parameters"]
    copy.cells.insert(2, injected)
    copy.metadata["papermill"] = {"start_time": time.time()}
    fault = ""
    for count, cell in enumerate(cell for cell in copy.cells if cell.cell_type == "code"):
        cell.execution_count = count + 3
        try:
            exec(cell.source, names)
        except FileNotFoundError as error:
            fault = f"{type(error).__name__}: {error}\nin cell [{cell.execution_count}]"
            break
    copy.cells[-1].outputs = names.get("outputs", [])
    nbformat.write(copy, executed)
    return fault


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project of two notebooks, the second reading what the first writes."""
    monkeypatch.setattr(run, "run_papermill", run_here)
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers/base.py").write_text('"""Base."""\nONE = 1  # one')
    (tmp_path / "helpers/model.py").write_text("from helpers.base import (\n    ONE,\n)")
    (tmp_path / "helpers/plots.py").write_text("COLOUR = 1")
    (tmp_path / "helpers/corpora.py").write_text("CORPORA: dict = {'demo': 1}\nA = 1")
    write_profile(tmp_path, "{}")
    imports = "if False:\n    from helpers import corpora, model as m, plots\n"
    table = str(paths.work("demo") / "table.txt")
    write_notebook(tmp_path, "01_first", READ_AND_WRITE, IN="", OUT=table)
    write_notebook(tmp_path, "02_second", imports + READ_AND_WRITE, IN=table, OUT="")
    return tmp_path


def write_profile(project: Path, text: str) -> None:
    (project / "tools/profiles").mkdir(parents=True, exist_ok=True)
    (project / "tools/profiles/full.yaml").write_text(text)


def options_of(**given) -> notebook.Options:
    options = run.parse([])
    about = corpora.Corpus("demo", "Demo", label_sets={"four": {}}, synthetic=True)
    usual = {"about": about, "labels": "four", "profile": "full", "device": "cpu"}
    for name, value in (usual | given).items():
        setattr(options, name, value)
    return options


def statuses(**given) -> dict[str, str]:
    """Run the project; returns status by notebook number."""
    outcomes = run.run(notebook.read_notebooks(), options_of(**given))
    return {name[:2]: outcome["status"] for name, outcome in outcomes.items()}


# Parameters


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("'02': {EPOCH: 3}", r"02_second.ipynb has no parameter EPOCH.* it has CORPUS, EPOCHS, IN"),
        ("all: {EPOCH: 3}", r"profile 'full' sets EPOCH"),
        ("'03': {EPOCHS: 3}", r"profile 'full' sets 03"),
    ],
)
def test_unknown_profile_value_fails_before_anything_runs(project, profile, message):
    write_profile(project, profile)
    with pytest.raises(notebook.Refused, match=message):
        statuses()
    assert not (paths.work("demo") / "table.txt").exists()


def test_profile_values_reach_the_notebook(project):
    write_profile(project, "{all: {EPOCHS: 2}, '01': {EPOCHS: 7}}")
    assert statuses() == {"01": "run", "02": "run"}
    assert (paths.work("demo") / "table.txt").read_text() == "7"


def test_a_profile_may_skip_a_notebook_unless_it_is_asked_for(project, capsys):
    write_profile(project, "skip: {'02': it teaches nothing here}")
    assert statuses() == {"01": "run", "02": "skipped"}
    assert "it teaches nothing here" in capsys.readouterr().out
    assert statuses(only="02")["02"] == "run"


def test_options_go_where_a_notebook_has_them_and_before_the_profile(project):
    write_notebook(project, "03_third", "", LABELS="", DEVICE="auto")
    options = options_of(labels="two", device="cpu", allow_incomplete=True)
    profile = {"03": {"DEVICE": "cuda"}}
    values = notebook.values_for(notebook.read_notebooks(), options, profile)
    assert values["01_first"] == {"CORPUS": "demo"}
    assert values["03_third"] == {"CORPUS": "demo", "LABELS": "two", "DEVICE": "cpu"}


@pytest.mark.parametrize("derived", ["EPOCHS = 5 * 2 ** 1", "EPOCHS: int = 5", "print(5)"])
def test_parameters_that_are_no_literals_are_refused(project, derived):
    path = write_notebook(project, "03_third")
    path.write_text(path.read_text().replace("EPOCHS = 5", derived))
    with pytest.raises(notebook.Refused, match=r"(?s)expected only NAME.*literal"):
        notebook.read_notebook(path)


def test_notebook_without_parameters_cell_is_refused(project):
    path = write_notebook(project, "03_third")
    path.write_text(path.read_text().replace('"parameters"', '"parameter"'))
    with pytest.raises(notebook.Refused, match="found 0 cells tagged 'parameters', expected one"):
        notebook.read_notebook(path)


def test_unknown_notebook_number_is_refused(project):
    with pytest.raises(notebook.Refused, match="no notebook 09; there are 01, 02"):
        statuses(only="01,09")
    assert statuses(only="1") == {"01": "run", "02": "not run"}
    assert statuses(**{"from": "02"}) == {"01": "earlier", "02": "run"}


def test_published_takes_the_notebooks_that_can_show_published_results(project):
    write_notebook(project, "03_third", "", PUBLISHED=False)
    assert statuses(published=True) == {"01": "not run", "02": "not run", "03": "run"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"corpus": "a/b"}, "corpus name 'a/b'"),
        ({"corpus": "nowhere"}, "nowhere"),
        ({"profile": "slow"}, r"--profile slow: it does not exist; there are full"),
        ({"labels": "six"}, r"--labels six: it does not exist; there are "),
    ],
)
def test_options_are_checked_against_what_there_is(project, data_folder, given, message):
    options = run.parse(
        [f"--{name}={value}" for name, value in ({"profile": "full"} | given).items()]
    )
    with pytest.raises(notebook.Refused, match=message):
        run.prepare(options)


# Freshness


def test_fresh_notebooks_are_skipped(project):
    assert statuses() == {"01": "run", "02": "run"}
    assert statuses() == {"01": "fresh", "02": "fresh"}
    assert statuses(force=True) == {"01": "run", "02": "run"}


CHANGES = {
    "code": ("01", lambda p: append_code(p / "notebooks/01_first.ipynb")),
    "parameter": ("02", lambda p: write_profile(p, "'02': {EPOCHS: 9}")),
    "input": ("01 02", lambda p: write_profile(p, "'01': {EPOCHS: 9}")),
    "imported module": ("02", lambda p: (p / "helpers/base.py").write_text("ONE = 2")),
    "comment": ("", lambda p: (p / "helpers/base.py").write_text('"""B."""\nONE = 1\n# two')),
    "plots": ("", lambda p: (p / "helpers/plots.py").write_text("COLOUR = 2")),
    "other corpora": ("", lambda p: (p / "helpers/corpora.py").write_text("CORPORA = {}\nA = 1")),
    "code of corpora": ("02", lambda p: (p / "helpers/corpora.py").write_text("A = 2")),
    "output gone": ("01", lambda p: (paths.work("demo") / "table.txt").unlink()),
    "copy gone": ("02", lambda p: (p / "reports/demo/02_second.ipynb").unlink()),
    "broken stamp": (
        "01",
        lambda p: (paths.work("demo") / "runs/any/01_first.json").write_text('{"made_'),
    ),
}


def append_code(path: Path) -> None:
    book = nbformat.read(path, 4)
    book.cells[-1].source += "\n"
    nbformat.write(book, path)


@pytest.mark.parametrize("kind", CHANGES)
def test_what_makes_a_notebook_run_again(project, kind):
    expected, change = CHANGES[kind]
    statuses()
    change(project)
    ran = [number for number, status in statuses().items() if status == "run"]
    assert ran == expected.split()
    assert statuses() == {"01": "fresh", "02": "fresh"}


@pytest.mark.parametrize(
    "changed",
    [
        {"label_sets": {"four": {}, "six": {}}},
        {"sexes": lambda speaker: "female"},
        {"members": ("ravdess",)},
    ],
    ids=["label sets", "a function", "members"],
)
def test_the_corpus_own_record_makes_a_notebook_run_again(project, changed):
    own = {"label_sets": {"four": {}}, "sexes": lambda speaker: "male", "synthetic": True}
    assert statuses(about=corpora.Corpus("demo", "Demo", **own))["02"] == "run"
    assert statuses(about=corpora.Corpus("demo", "Demo", **own))["02"] == "fresh"
    about = corpora.Corpus("demo", "Demo", **own | changed)
    assert statuses(about=about) == {"01": "fresh", "02": "run"}


def test_changed_raw_corpus_makes_a_notebook_run_again(project, monkeypatch):
    write_notebook(project, "01_first", LOG + "log('read', 'raw:demo', 'old')")
    for state, status in [("old", "run"), ("old", "fresh"), ("new", "run")]:
        monkeypatch.setattr(corpora, "fingerprint", lambda name, state=state: state)
        assert statuses(only="01")["01"] == status


def test_another_label_set_runs_only_what_knows_label_sets(project):
    write_notebook(project, "02_second", "", LABELS="")
    assert statuses() == {"01": "run", "02": "run"}
    assert statuses(labels="two") == {"01": "fresh", "02": "run"}


def test_stamps_hold_when_the_work_folder_moves(project, private_work, monkeypatch):
    book = notebook.read_notebooks()[0]
    statuses(only="01")
    stamp = json.loads(options_of().stamp(book).read_text())
    assert "demo/table.txt" in stamp["files"]
    moved = private_work.rename(private_work.with_name(f"{private_work.name} moved"))
    monkeypatch.setenv("SER_WORK", str(moved))
    assert statuses(only="01")["01"] == "fresh"


def test_imports_are_found_in_every_spelling():
    source = (
        "import helpers.a.b, numpy\nfrom helpers import c as x, d\nfrom helpers.e import f\n"
        "def later():\n    from helpers import (\n        g,\n        h,\n    )"
    )
    assert {"a", "c", "d", "e", "g", "h"} <= set(run.parsed(source, "here")[1])


def test_code_that_is_not_python_is_told(project, capsys):
    write_notebook(project, "01_first", "x = = 1")
    with pytest.raises(SyntaxError, match=r"01_first.ipynb"):
        statuses()


def test_notebook_that_misses_something_is_tried_again_when_it_may_be_there(
    project, capsys, monkeypatch
):
    monkeypatch.setenv("SER_MODELS", str(project / "models"))
    missing = "class Missing(FileNotFoundError): pass"
    write_notebook(project, "02_second", missing, "raise Missing('put them into SER_MODELS')")
    write_notebook(project, "03_third", "x = 1")
    assert statuses() == {"01": "run", "02": "skipped", "03": "run"}
    capsys.readouterr()
    outcomes = run.run(notebook.read_notebooks(), options_of())
    assert [outcome["status"] for outcome in outcomes.values()] == ["fresh", "skipped", "fresh"]
    assert "starts" not in capsys.readouterr().out
    run.print_outcomes(outcomes)
    assert "missing: put them into SER_MODELS" in capsys.readouterr().out
    (project / "models/facebook").mkdir(parents=True)
    assert statuses() == {"01": "fresh", "02": "skipped", "03": "fresh"}
    assert "02_second                    starts" in capsys.readouterr().out
    write_notebook(project, "02_second", "x = 2")
    assert statuses()["02"] == "run" and statuses()["02"] == "fresh"


def test_what_a_run_cost_survives_a_failure(project, monkeypatch):
    options, book = options_of(), notebook.read_notebooks()[0]
    run.run([book], options)
    stamp = json.loads(options.stamp(book).read_text())
    stamp["cost"] |= {"longest": 500.0, "largest_mb": 70000}
    options.stamp(book).write_text(json.dumps(stamp))
    (paths.work("demo") / "table.txt").unlink()  # so that it has to run
    with monkeypatch.context() as patch:
        patch.setattr(run, "run_papermill", lambda *arguments: "ValueError: no")
        assert run.run([book], options)["01_first"]["status"] == "failed"
    again = run.run([book], options)["01_first"]
    assert (again["longest"], again["largest_mb"]) == (500, 70000) and again["seconds"] < 500
    write_profile(project, "'01': {EPOCHS: 9}")
    assert run.run([book], options)["01_first"]["longest"] < 500, "of other values"


# One run at a time


def test_second_run_is_locked_out(tmp_path):
    refused = pytest.raises(notebook.Refused, match=f"another run .process {os.getpid()}.")
    with run.locked(tmp_path), refused, run.locked(tmp_path):
        pass
    with run.locked(tmp_path):  # and let in again afterwards
        pass
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize(
    "left",
    ["", "x y", f"{os.getpid()} 1.0", "99999999 1.0"],
    ids=["empty", "no numbers", "number of another process", "no such process"],
)
def test_lock_of_a_run_that_ended_is_taken_over(tmp_path, left):
    (tmp_path / ".lock").write_text(left)
    with run.locked(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} ")


def test_what_a_killed_run_left_is_ended_and_nothing_else(tmp_path):
    def sleeper(folder: str) -> subprocess.Popen:
        environment = os.environ | {"SER_RUN_LOG": str(tmp_path / folder / "runs/any/01.log")}
        command = [sys.executable, "-c", "print(1, flush=True); import time; time.sleep(600)"]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        process.stdout.readline()
        return process

    left, other = sleeper("demo"), sleeper("demo2")
    with run.locked(tmp_path / "demo"):
        assert not psutil.pid_exists(left.pid)
        assert other.poll() is None
    other.kill()
    other.wait()


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(notebook.Refused, match="set SER_WORK"), run.locked(tmp_path / "file/demo"):
        pass


def test_memory_and_time_of_what_is_started_are_noted(tmp_path):
    code = f"""
import json, pathlib, subprocess, sys
from tools import run
child = "import time; x = b'x' * 100_000_000; time.sleep(2)"
with run.watched(pathlib.Path({str(tmp_path)!r})) as spent:
    subprocess.run([sys.executable, "-c", child], check=True)
print(json.dumps(spent))
"""
    # In a process of its own: this one may have workers of earlier tests, which would count.
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    spent = json.loads(done.stdout)
    assert 2 <= spent["seconds"] < 30 and 80 < spent["peak_mb"] < 1000


# Report


def test_report_shows_results_and_where_things_are(project):
    options, books = options_of(), notebook.read_notebooks()
    outcomes = run.run(books, options)
    (options.work / "figures").mkdir()
    (options.work / "figures/02_loss curve.png").write_bytes(b"png")
    options.labelled.mkdir()
    (options.labelled / "results.csv").write_text(RESULTS)
    shutil.copy(ROOT / "data/results/ravdess/ravdess-8/cards.json", options.labelled)
    cards = json.loads((options.labelled / "cards.json").read_text())
    cards[0] |= {"model": "svm", "variant": "inductive"}
    (options.labelled / "cards.json").write_text(json.dumps(cards))
    page = report.write_report(books, outcomes, options).read_text()
    assert "these numbers say nothing about real speech" in page
    assert "<b>66.2 % [60.0, 72.0]</b>" in page and "<b>61.0" not in page, "the best is bold"
    assert page.index("average") < page.index("majority") < page.index("Speaker-normalised")
    words = " ".join(page.split())
    assert "svm, inductive: UAR 67.3 %" in words
    assert "24 speakers. Label set ravdess-8: neutral 96" in words
    links = re.findall(r'(?:href|src)="([^"#]+)"', page)
    figure = "figures/02_loss%20curve.png"
    assert {"01_first.html", "02_second.html", figure, "run.json"} <= set(links)
    for link in links:
        assert (options.reports / link.replace("%20", " ")).is_file()
    record = json.loads((options.reports / "run.json").read_text())
    assert record["labels"] == "four" and record["versions"]["python"]
    assert record["notebooks"]["01_first"].keys() >= {"status", "seconds", "peak_mb"}
    (options.work / "figures/02_loss curve.png").unlink()
    earlier = [line.split(",") for line in RESULTS.splitlines()]
    without_f1 = "\n".join(",".join(row[:10] + row[11:]) for row in earlier)
    (options.labelled / "results.csv").write_text(without_f1)
    page = report.write_report(books, outcomes, options).read_text()
    assert "<b>66.2 % [60.0, 72.0]</b>" in page, "of a table of an earlier version"
    assert not list((options.reports / "figures").iterdir()), "it is drawn no longer"


def test_links_between_pages_lead_to_pages(project):
    path = write_notebook(project, "03_third", "x = 1")
    text = path.read_text().replace("On third", "[2](02_second.ipynb) [4](04_fourth.ipynb)")
    path.write_text(text)
    options, books = options_of(), notebook.read_notebooks()
    report.write_report(books, run.run(books, options), options)
    page = (options.reports / "03_third.html").read_text()
    assert 'href="02_second.html"' in page and "04_fourth.ipynb" not in page
    assert page.count('href="index.html"') == 2


# Publishing

PICTURE = base64.b64encode(b"/root/ is no folder in a picture").decode()
OUTPUTS = (
    """outputs = [
    dict(output_type='stream', name='stdout', text=f'{WORK}/demo/a.csv\\nand on\\n'),
    dict(output_type='stream', name='stderr', text=
         ' 50%|█████     | 4/9 [00:01, 9it/s]\\n'
         f'{HERE}/helpers/x.py:1: UserWarning: short\\n'),
    dict(output_type='stream', name='stderr', text='100%|██████████| 9/9 [00:01, 9it/s]'),
    dict(output_type='execute_result', execution_count=12, metadata={},
         data={'text/plain': f"'{HERE}'", 'image/png': """
    + repr(PICTURE)
    + """}),
    dict(output_type='display_data', metadata={},
         data={'application/vnd.jupyter.widget-view+json': {'model_id': '1'}, 'text/plain': '0%'})]
from nbformat import from_dict; outputs = [from_dict(o) for o in outputs]"""
)
TELL = (
    LOG
    + """for pattern in ('*/*/*/*.parquet', '*/*/*.csv', '*/*/*/faults.csv'):
    for path in pathlib.Path(WORK).glob(pattern):
        if 'renamed' not in path.name:
            log('write', str(path))"""
)
MARKS = "".join(
    f"<!-- {name}:begin -->\nOLD\n<!-- {name}:end -->\n"
    for name in ("results", "comparisons", "talk", "faults", "cost")
)


@pytest.fixture
def publishable(project, monkeypatch) -> notebook.Options:
    monkeypatch.setattr(publish, "SHOWN", "demo")
    (project / "notebooks/02_second.ipynb").unlink()
    places = {"HERE": str(project), "WORK": str(paths.work())}
    write_notebook(project, "01_first", TELL, OUTPUTS, **places, DEVICE="auto")
    (project / "docs").mkdir()
    (project / "docs/results.md").write_text(f"a\n{MARKS}b")
    marks = MARKS.replace("results", "summary").replace("talk", "more")
    (project / "README.md").write_text(f"{marks}c")
    options = options_of()
    folds = make_folds(make_utterances(10, 4), n_folds=5)
    tables.write_table(folds, options.labelled / "folds.csv", "folds")
    skills = {"predictions/net": 2.5, "predictions/renamed": 1.0, "untrained/random": 0.0}
    for name, skill in (skills | {"comparisons/net__without_it": 1.0}).items():
        table = make_predictions(folds, skill)
        tables.write_table(table, options.labelled / f"{name}.parquet", "predictions")
    talk = paths.work("talk", "seven")
    tables.write_table(table, talk / "predictions/words.parquet", "predictions")
    other = RESULTS.replace("average", "of words").replace("demo, four", "talk, seven")
    (talk / "results.csv").write_text(other)
    row = {"fault": "(b) at random", "n": 40, "uar": 0.9, "uar_low": 0.8, "uar_high": 1.0}
    row |= {"honest": 0.5, "difference": 0.4, "low": 0.3, "high": 0.5, "p_holm": 0.01}
    faults = pd.DataFrame([row | {"audit": "speakers"}])
    tables.write_table(faults, options.labelled / "evaluation/faults.csv", "faults")
    (options.labelled / "results.csv").write_text(RESULTS)
    (options.labelled / "cards.json").write_text("[]")
    return options


def run_and_publish(options: notebook.Options) -> str:
    books = notebook.read_notebooks()
    outcomes = run.run(books, options)
    report.write_report(books, outcomes, options)
    publish.publish(books, outcomes, options)
    return (paths.PROJECT / "notebooks/01_first.ipynb").read_text()


def test_published_notebook_is_normalised(publishable):
    text = run_and_publish(publishable)
    code = [cell for cell in nbformat.reads(text, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3], "no injected cell, from one"
    assert [cell.id for cell in code] == ["cell-0", "cell-1", "cell-2"]
    assert "papermill" not in text
    assert [cell.metadata for cell in code] == [{"tags": ["parameters"]}, {}, {}]
    outputs = code[-1].outputs
    assert [output.get("text") or output.data["text/plain"] for output in outputs] == [
        "SER_WORK/demo/a.csv\nand on\n",
        "./helpers/x.py:1: UserWarning: short\n",
        "'.'",
    ]
    assert outputs[-1].execution_count == 3
    assert outputs[-1].data["image/png"] == PICTURE, "colours stay what they are"
    assert run_and_publish(publishable) == text, "publishing again gives the same bytes"


def test_published_files_and_tables(publishable, project):
    run_and_publish(publishable)
    results = project / "data/results/demo/four"
    found = {path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file()}
    assert found == {
        "net.parquet",
        "comparisons/net__without_it.parquet",
        "evaluation/faults.csv",
        "folds.csv",
        "results.csv",
        "run.json",
        "cards.json",
    }
    talk = project / "data/results/talk/seven"
    assert sorted(path.name for path in talk.iterdir()) == ["results.csv", "words.parquet"]
    page = (project / "docs/results.md").read_text()
    assert "| average | **66.2 % [60.0, 72.0]** |" in page and "OLD" not in page
    own, _, others = page.partition("<!-- talk:begin -->")
    assert "of words" not in own and "| of words | **66.2 % [60.0, 72.0]** |" in others
    interval = r"\[[+\d.]+, [+\d.]+\]"
    compared = rf"\| net__without_it \| inductive \| [\d.]+ % {interval} \| \+[\d.]+ {interval} \|"
    assert re.search(compared, page)
    fault = "| (b) at random | 90.0 % [80.0, 100.0] | 50.0 | +40.0 [+30.0, +50.0] | speakers |"
    assert fault in page and fault in (project / "README.md").read_text()
    assert "| 01 · On first |" in page and page.endswith("<!-- cost:end -->\nb")


def test_tables_are_filled_again_from_what_is_published(publishable, project):
    run_and_publish(publishable)
    page = project / "docs/results.md"
    first = page.read_text()
    page.write_text(re.sub(r"(?s)(:begin -->\n).*?(<!-- \w+:end)", r"\1\2", first))
    shutil.rmtree(publishable.work)
    publish.write_tables(notebook.read_notebooks())
    assert page.read_text() == first


def test_another_corpus_than_the_notebooks_show_leaves_predictions_and_its_own_table(
    publishable, project
):
    shown = run_and_publish(publishable)
    page = (project / "docs/results.md").read_text()
    about = corpora.Corpus("talk", "Talk", label_sets={"seven": {}})
    other = options_of(corpus="talk", labels="seven", about=about, allow_incomplete=True)
    folds = make_folds(make_utterances(10, 4), n_folds=5)
    tables.write_table(folds, other.labelled / "folds.csv", "folds")
    (project / "docs/results.md").write_text(page.replace("talk:", "chat:"))
    with pytest.raises(notebook.Refused, match="no lines <!-- talk:begin -->"):
        run_and_publish(other)
    assert not (project / "data/results/talk/seven/folds.csv").exists()
    (project / "docs/results.md").write_text(page.replace("of words", "of an earlier run"))
    assert run_and_publish(other) == shown, "notebooks stay those of their own corpus"
    talk = {path.name for path in (project / "data/results/talk/seven").iterdir()}
    assert {"folds.csv", "results.csv", "words.parquet"} <= talk
    assert not (project / "data/models/seven").exists()
    assert (project / "docs/results.md").read_text() == page
    write_profile(project, "'01': {EPOCHS: 1}")
    with pytest.raises(notebook.Refused, match="01_first: EPOCHS was 1, its default is 5"):
        run_and_publish(other)


def test_what_was_not_run_keeps_what_was_published(publishable, project):
    first = run_and_publish(publishable)
    results = project / "data/results/demo/four"
    published = json.loads((results / "run.json").read_text())["notebooks"]["01_first"]
    publishable.stamp(notebook.read_notebooks()[0]).unlink()
    write_notebook(project, "02_second", "x = 1", DEVICE="auto")
    assert run_and_publish(options_of(only="02")) == first
    record = json.loads((results / "run.json").read_text())["notebooks"]
    assert record["02_second"]["status"] == "run" and record["01_first"] == published
    page = (project / "docs/results.md").read_text()
    size = published["largest_mb"] / 1024
    assert f"| 01 · On first | {published['longest']:.0f} | {size:.1f} GB |" in page
    assert "| 02 · On second |" in page


def test_small_model_is_published_in_place_of_the_one_before(publishable, project):
    source = publishable.labelled / "models/average_small"
    target = project / "data/models/four"
    (source / "member").mkdir(parents=True)
    (source / "card.json").write_text("{}")
    (source / "member/inductive.safetensors").write_bytes(b"weights")
    target.mkdir(parents=True)
    (target / "of_an_older_run.json").write_bytes(b"x")
    run_and_publish(publishable)
    found = [path.relative_to(target) for path in target.rglob("*") if path.is_file()]
    assert sorted(map(Path.as_posix, found)) == ["card.json", "member/inductive.safetensors"]
    (source / "member/inductive.safetensors").write_bytes(bytes(6_000_000))
    before = (project / "docs/results.md").read_text()
    with pytest.raises(notebook.Refused, match=r"6\.0 MB, at most 5"):
        run_and_publish(publishable)
    assert (target / "member/inductive.safetensors").read_bytes() == b"weights"
    assert (project / "docs/results.md").read_text() == before


def test_publishing_refuses_other_values_than_the_defaults(publishable, project):
    write_profile(project, "'01': {EPOCHS: 1}")
    before = (project / "notebooks/01_first.ipynb").read_text()
    with pytest.raises(publish.NotPublished, match="01_first: EPOCHS was 1, its default is 5"):
        run_and_publish(publishable)
    assert (project / "notebooks/01_first.ipynb").read_text() == before


def test_publishing_refuses_code_that_did_not_run(publishable, project):
    books = notebook.read_notebooks()
    outcomes = run.run(books, publishable)
    append_code(project / "notebooks/01_first.ipynb")
    with pytest.raises(publish.NotPublished, match="not the code that ran"):
        publish.publish(books, outcomes, publishable)


def test_publishing_refuses_a_failure(publishable, project):
    outcomes = {"01_first": {"status": "failed", "reason": "KeyError: 'well'"}}
    with pytest.raises(publish.NotPublished, match=r"01_first: failed .KeyError"):
        publish.publish(notebook.read_notebooks(), outcomes, publishable)


def test_badges_follow_the_address_in_pyproject(project):
    url = 'Repository = "https://github.com/me/mine.git"'
    (project / "pyproject.toml").write_text(f"[project.urls]\n{url}\n")
    colab = "https://colab.research.google.com/github/a/b/blob/main/notebooks/{}.ipynb"
    badge = f"[![Colab](b.svg)]({colab})"
    path = write_notebook(project, "01_first", 'REPOSITORY = "https://github.com/a/b"')
    path.write_text(path.read_text().replace("On first", badge.format("01_first")))
    (project / "README.md").write_text(badge.format("01_first"))
    publish.write_badges()
    text = path.read_text() + (project / "README.md").read_text()
    assert text.count("github/me/mine/blob/main/notebooks/01_first.ipynb") == 2
    assert notebook.read_notebook(path).code[1] == 'REPOSITORY = "https://github.com/me/mine"'


# The real thing, in a process of its own


@pytest.fixture
def real(tmp_path) -> Path:
    """A copy of the helpers and tools in a project of its own, with empty profiles."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("helpers", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for profile in (tmp_path / "tools/profiles").iterdir():
        profile.write_text("{}")
    (tmp_path / "pyproject.toml").write_text("")
    shutil.copy(ROOT / "run_all.sh", tmp_path)
    return tmp_path


def start(project: Path, *options: str, home: Path | None = None) -> subprocess.Popen:
    environment = os.environ | {"SER_WORK": "work", "HOME": str(home or Path.home())}
    return subprocess.Popen(
        [sys.executable, "tools/run.py", *options],
        cwd=project,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_failure_is_told_and_the_next_run_resumes_there(real, tmp_path):
    kernel = tmp_path / "home/.local/share/jupyter/kernels/python3/kernel.json"  # another Python
    kernel.parent.mkdir(parents=True)
    kernel.write_text('{"argv": ["/bin/false"], "display_name": "Python 3", "language": "python"}')
    first = (
        f"import os, sys\nassert sys.executable == {sys.executable!r}\n"
        f"assert os.getcwd() == {str(real / 'notebooks')!r}\n"
        "assert os.path.isabs(os.environ['SER_WORK'])\n"
        "assert os.environ['SER_CORPUS'] == 'demo' and os.environ['SER_LABELS']"
    )
    write_notebook(real, "01_first", first)
    write_notebook(real, "02_second", "deep = {}", "# looks it up\ndeep['well']")
    process = start(real, home=tmp_path / "home")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1, output
    assert "KeyError: 'well'" in output and "in cell [4], which begins: # looks it up" in output
    page = (real / "reports/demo/index.html").read_text()
    assert "02_second failed" in page
    assert "KeyError" in (real / "reports/demo/02_second.html").read_text()

    write_notebook(real, "02_second", "deep = {'well': 1}", "deep['well']")
    process = start(real)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert re.search(r"01_first +fresh", output) and re.search(r"02_second +run", output)

    started = time.monotonic()
    process = start(real)
    output = process.communicate(timeout=60)[0]
    assert re.search(r"02_second +fresh", output) and process.returncode == 0
    assert time.monotonic() - started < 20, "nothing to do must not take long"


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_killed_run_leaves_nothing_that_looks_finished(real, kind):
    note = "import os, pathlib, time\npathlib.Path('../pid').write_text(str(os.getpid()))\n"
    write_notebook(real, "01_first", f"{note}time.sleep(60)")
    process = start(real)
    deadline = time.monotonic() + 60
    while not (real / "pid").exists() or not (real / "pid").read_text():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(kind)
    process.communicate(timeout=30)
    assert process.returncode == (130 if kind == signal.SIGTERM else -signal.SIGKILL)
    kernel = int((real / "pid").read_text())
    while psutil.pid_exists(kernel) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(kernel), "the kernel ends with the run"
    stamp = json.loads((real / "work/demo/runs/any/01_first.json").read_text())
    assert "outcome" not in stamp
    with run.locked(real / "work/demo"):  # and the lock went with the process
        pass


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--help"], 0, "Usage: ./run_all.sh"),
        (["--colour", "red"], 2, "unknown option '--colour'"),
        (["--corpus"], 2, "needs a value"),
    ],
)
def test_run_all_answers_without_an_environment(real, options, code, text):
    found = subprocess.run(
        [real / "run_all.sh", *options],
        cwd="/",
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert found.returncode == code and text in found.stdout + found.stderr
    assert not (real / ".venv").exists()
