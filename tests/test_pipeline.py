"""The pipeline on tiny made-up notebooks; most tests replace papermill by running the cells in this process."""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import make_predictions, make_utterances
from PIL import Image

from helpers import experiment, notebooks, pipeline, publish, report, tables
from helpers.splits import make_folds

HELPERS = Path(pipeline.__file__).parent
ROOT = HELPERS.parent
LOG = "import json, os\ndef log(**line): print(json.dumps(line), file=open(os.environ['SER_RUN_LOG'], 'a'))\n"
READ_AND_WRITE = (
    LOG
    + """import hashlib, pathlib
digest = lambda path: hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
if IN: log(event='read', path=IN, sha256=digest(IN))
if OUT:
    pathlib.Path(OUT).write_text(f'{pathlib.Path(IN).read_text() if IN else ""}{EPOCHS}')
    log(event='write', path=OUT, sha256=digest(OUT))
    log(event='read', path=OUT, sha256=digest(OUT))"""
)
CORPORA = """from types import SimpleNamespace as Record
CORPORA = {"demo": Record(default_policy="four", policies={"four": {}, "two": {}}, synthetic=True)}
get = CORPORA.__getitem__
def fingerprint(name): return "as it was"
"""
RESULTS = """model,variant,pretrained,n,uar,uar_low,uar_high,uar_fold_mean,wa,macro_f1,weighted_f1,ece,nll,protocol
svm,inductive,False,96,0.61,0.55,0.68,0.60,0.62,0.6,0.61,0.05,1.02,"demo, four"
average,inductive,False,96,0.662,0.6,0.72,0.65,0.66,0.65,0.66,0.03,0.91,"demo, four"
majority,inductive,False,96,0.25,,,0.25,0.31,0.12,0.15,,,"demo, four"
svm,speaker-normalised,False,96,0.7,0.64,0.77,0.69,0.7,0.7,0.71,0.06,0.9,"demo, four, normalised"
"""


def write_notebook(project: Path, name: str, *cells: str, **parameters) -> Path:
    """Write a notebook: a heading, its parameters cell, and the given code cells."""
    literals = {"CORPUS": "demo", "EPOCHS": 5, **parameters}
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell(f"# {name[:2]} · On {name[3:]}")]
    )
    code = ["\n".join(f"{key} = {value!r}" for key, value in literals.items()), *cells]
    notebook.cells += [
        nbformat.v4.new_code_cell(source, id=f"cell-{number}") for number, source in enumerate(code)
    ]
    notebook.cells[1].metadata["tags"] = ["parameters"]
    path = project / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def run_here(book, values, settings, watch) -> str:
    """Stand in for papermill: execute the cells in this process, with values injected after the parameters."""
    notebook, names = nbformat.read(book.path, 4), {}
    injected = nbformat.v4.new_code_cell(
        "\n".join(f"{k} = {v!r}" for k, v in values.items()), id="injected"
    )
    injected.metadata["tags"] = ["injected-parameters"]
    notebook.cells.insert(2, injected)
    notebook.metadata["papermill"] = {"start_time": time.time()}
    for count, cell in enumerate(c for c in notebook.cells if c.cell_type == "code"):
        cell.execution_count = count + 3
        cell.metadata["papermill"] = {"duration": time.time()}
        try:
            exec(cell.source, names)
        except FileNotFoundError as error:
            nbformat.write(notebook, settings.executed(book))
            return f"{type(error).__name__}: {error}\nin cell [{cell.execution_count}]"
        watch.cells += 1
    notebook.cells[-1].outputs = names.get("outputs", [])
    nbformat.write(notebook, settings.executed(book))
    return ""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project of two notebooks, the second reading what the first writes."""
    monkeypatch.setattr(pipeline, "run_papermill", run_here)
    (tmp_path / "helpers/profiles").mkdir(parents=True)
    (tmp_path / "helpers/profiles/full.yaml").write_text("{}")
    (tmp_path / "helpers/base.py").write_text("ONE = 1")
    (tmp_path / "helpers/model.py").write_text("from helpers.base import ONE")
    (tmp_path / "helpers/plots.py").write_text("COLOUR = 1")
    imports = "if False:\n    from helpers import model, plots\n"
    table = str(tmp_path / "table.txt")
    write_notebook(tmp_path, "01_first", READ_AND_WRITE, IN="", OUT=table)
    write_notebook(tmp_path, "02_second", imports + READ_AND_WRITE, IN=table, OUT="")
    return tmp_path


def settings_of(project: Path, **options) -> notebooks.Settings:
    places = {"project": project, "work": project / "work/demo"}
    return notebooks.Settings(**places, corpus="demo", default_policy="four", **options)


def run(project: Path, **options) -> dict[str, str]:
    """Run the project; returns status by notebook number."""
    settings = settings_of(project, **options)
    outcomes = pipeline.run(books_of(project), settings)
    return {name[:2]: outcome["status"] for name, outcome in outcomes.items()}


def books_of(project: Path) -> list[notebooks.Notebook]:
    return [
        notebooks.read_notebook(path) for path in sorted((project / "notebooks").glob("*.ipynb"))
    ]


# Parameters


@pytest.mark.parametrize(
    "profile, message",
    [
        ("'02': {EPOCH: 3}", r"02_second.ipynb has no parameter EPOCH .*CORPUS, EPOCHS, IN, OUT"),
        ("all: {EPOCH: 3}", r"sets \['EPOCH'\] for all"),
        ("'03': {EPOCHS: 3}", r"names notebooks \['03'\]"),
    ],
)
def test_unknown_profile_value_fails_before_anything_runs(project, profile, message):
    (project / "helpers/profiles/full.yaml").write_text(profile)
    with pytest.raises(notebooks.Refused, match=message):
        run(project)
    assert not (project / "table.txt").exists()


def test_profile_values_reach_the_notebook(project):
    (project / "helpers/profiles/full.yaml").write_text(
        "{all: {EPOCHS: 2}, 01: {EPOCHS: 7}}"
    )  # 01: a number
    assert run(project) == {"01": "run", "02": "run"}
    assert (project / "table.txt").read_text() == "7"


def test_options_go_only_where_a_notebook_has_them(project):
    write_notebook(project, "03_third", "", POLICY="", DEVICE="auto")
    settings = settings_of(project, policy="two", device="cpu", allow_incomplete=True)
    values = notebooks.values_for(books_of(project), settings, {"03": {"DEVICE": "cuda"}})
    assert values["01_first"] == {"CORPUS": "demo"}
    assert values["03_third"] == {"CORPUS": "demo", "POLICY": "two", "DEVICE": "cpu"}


def test_derived_value_in_the_parameters_cell_is_refused(project):
    path = write_notebook(project, "03_third")
    path.write_text(path.read_text().replace("EPOCHS = 5", "EPOCHS = 5 * 2 ** 1"))
    with pytest.raises(notebooks.Refused, match="expected only NAME = literal"):
        notebooks.read_notebook(path)


def test_unknown_notebook_number_is_refused(project):
    with pytest.raises(notebooks.Refused, match="no notebook 09; there are 01, 02"):
        run(project, only=("01", "09"))
    assert run(project, only=("01",)) == {"01": "run", "02": "not run"}
    assert run(project, first="02") == {"01": "earlier", "02": "run"}


# Freshness


def test_fresh_notebooks_are_skipped(project):
    assert run(project) == {"01": "run", "02": "run"}
    assert run(project) == {"01": "fresh", "02": "fresh"}
    assert run(project, force=True) == {"01": "run", "02": "run"}


@pytest.mark.parametrize(
    "change, expected",
    [
        (
            lambda p: write_notebook(
                p, "01_first", READ_AND_WRITE + "\n", IN="", OUT=str(p / "table.txt")
            ),
            {"01": "run", "02": "fresh"},
        ),
        (
            lambda p: (p / "helpers/profiles/full.yaml").write_text("'02': {EPOCHS: 9}"),
            {"01": "fresh", "02": "run"},
        ),
        (
            lambda p: (p / "helpers/profiles/full.yaml").write_text("'01': {EPOCHS: 9}"),
            {"01": "run", "02": "run"},
        ),
        (lambda p: (p / "helpers/base.py").write_text("ONE = 2"), {"01": "fresh", "02": "run"}),
        (
            lambda p: (p / "helpers/plots.py").write_text("COLOUR = 2"),
            {"01": "fresh", "02": "fresh"},
        ),
        (lambda p: (p / "table.txt").unlink(), {"01": "run", "02": "fresh"}),
        (lambda p: (p / "reports/demo/02_second.ipynb").unlink(), {"01": "fresh", "02": "run"}),
        (
            lambda p: (p / "work/demo/runs/any/01_first.json").write_text('{"code":'),
            {"01": "run", "02": "fresh"},
        ),
    ],
    ids=[
        "text",
        "parameter",
        "input",
        "imported module",
        "plots",
        "output gone",
        "executed copy gone",
        "broken stamp",
    ],
)
def test_what_makes_a_notebook_run_again(project, change, expected):
    run(project)
    change(project)
    assert run(project) == expected
    assert run(project) == {"01": "fresh", "02": "fresh"}


def test_changed_raw_corpus_makes_a_notebook_run_again(project):
    write_notebook(project, "01_first", LOG + "log(event='read', path='raw:demo', sha256='old')")
    assert run(project, fingerprint=lambda name: "old", only=("01",))["01"] == "run"
    assert run(project, fingerprint=lambda name: "old", only=("01",))["01"] == "fresh"
    assert run(project, fingerprint=lambda name: "new", only=("01",))["01"] == "run"


def test_another_policy_runs_only_what_knows_policies(project):
    write_notebook(project, "02_second", "", POLICY="")
    assert run(project) == {"01": "run", "02": "run"}
    assert run(project, policy="two") == {"01": "fresh", "02": "run"}


def test_imports_are_found_in_every_spelling():
    source = (
        "import helpers.a.b, numpy\nfrom helpers import c as x, d\nfrom helpers.e import f\n"
        "from . import g\nfrom .h import i"
    )
    assert pipeline.imported(source, "here") == {"a", "c", "d", "e", "g", "h"}


@pytest.mark.parametrize(
    ("kind", "reason"), [("WeightsMissing", "weights missing"), ("TextMissing", "no text")]
)
def test_notebook_that_lacks_something_is_skipped_until_it_may_be_there(
    project, capsys, monkeypatch, kind, reason
):
    monkeypatch.setenv("SER_MODELS", str(project / "models"))
    write_notebook(
        project,
        "02_second",
        f"class {kind}(FileNotFoundError): pass",
        f"raise {kind}('put them into SER_MODELS')",
    )
    write_notebook(project, "03_third", "x = 1")
    tried, run_papermill = [], pipeline.run_papermill
    monkeypatch.setattr(
        pipeline,
        "run_papermill",
        lambda book, *rest: tried.append(book.number) or run_papermill(book, *rest),
    )
    assert run(project) == {"01": "run", "02": "skipped", "03": "run"}
    assert run(project) == {"01": "fresh", "02": "skipped", "03": "fresh"} and tried == [
        "01",
        "02",
        "03",
    ]
    pipeline.print_table(
        pipeline.run(books_of(project), settings_of(project)), project / "index.html"
    )
    assert f"{reason}: put them into SER_MODELS" in capsys.readouterr().out
    assert run(project, only=("02",)) == {
        "01": "earlier",
        "02": "skipped",
        "03": "earlier",
    } and tried[3:] == ["02"]
    (project / "models/facebook").mkdir(parents=True)
    assert run(project) == {"01": "fresh", "02": "skipped", "03": "fresh"} and tried[4:] == ["02"]
    assert run(project) == {"01": "fresh", "02": "skipped", "03": "fresh"} and len(tried) == 5
    write_notebook(project, "02_second", "x = 2")
    assert (
        run(project) == {"01": "fresh", "02": "run", "03": "fresh"}
        and run(project)["02"] == "fresh"
    )


def test_what_a_run_cost_survives_a_failure(project):
    settings, book = settings_of(project), books_of(project)[0]
    pipeline.run([book], settings)
    cost = settings.stamp(book).with_suffix(".cost.json")
    cost.write_text(
        json.dumps(json.loads(cost.read_text()) | {"longest": 500.0, "largest_mb": 70000})
    )
    (project / "table.txt").unlink()  # so that it has to run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run_papermill", lambda *arguments: "ValueError: no")
        assert pipeline.run([book], settings)["01_first"]["status"] == "failed"
    again = pipeline.run([book], settings)["01_first"]
    assert (
        (again["longest"], again["largest_mb"]) == (500, 70000)
        and again["seconds"] < 500
        and again["peak_mb"] < 70000
    )


def test_second_run_is_locked_out(tmp_path):
    refused = pytest.raises(notebooks.Refused, match=f"process {os.getpid()}")
    with pipeline.locked(tmp_path), refused, pipeline.locked(tmp_path):
        pass
    with pipeline.locked(tmp_path):  # and let in again afterwards
        pass


# Report


def test_report_shows_results_and_where_things_are(project):
    settings = settings_of(project, synthetic=True)
    books = books_of(project)
    outcomes = pipeline.run(books, settings)
    (settings.work / "figures").mkdir()
    (settings.work / "figures/02_loss curve.png").write_bytes(b"png")
    settings.policy_work.mkdir()
    (settings.policy_work / "results.csv").write_text(RESULTS)
    page = report.write_report(books, outcomes, settings).read_text()
    assert "these numbers say nothing about real speech" in page
    assert "<b>66.2 [60.0–72.0]</b>" in page and "<b>61.0" not in page, (
        "the best model of a variant is bold"
    )
    assert page.index("average") < page.index("majority") < page.index("Speaker-normalised")
    links = re.findall(r'(?:href|src)="([^"#]+)"', page)
    assert {"01_first.html", "02_second.html", "figures/02_loss%20curve.png", "run.json"} <= set(
        links
    )
    assert not [
        link for link in links if not (settings.reports / link.replace("%20", " ")).is_file()
    ]
    record = json.loads((settings.reports / "run.json").read_text())
    assert record["policy"] == "four" and record["versions"]["python"]
    assert record["notebooks"]["01_first"].keys() >= {"status", "seconds", "peak_mb"}
    (settings.work / "figures/02_loss curve.png").unlink()
    report.write_report(books, outcomes, settings)
    assert not list((settings.reports / "figures").iterdir()), (
        "a figure that is drawn no longer is shown no longer"
    )
    earlier = [line.split(",") for line in RESULTS.splitlines()]
    (settings.policy_work / "results.csv").write_text(
        "\n".join(",".join(row[:10] + row[11:]) for row in earlier)
    )
    assert (
        "<b>66.2 [60.0–72.0]</b>" in report.write_report(books, outcomes, settings).read_text()
    ), "of a version before"


# Publishing

OUTPUTS = """outputs = [
    dict(output_type='stream', name='stdout', text=f'{HERE}/work/demo/a.csv\\n'),
    dict(output_type='stream', name='stderr', text='\\r  0%|          | 0/9\\r100%|██████████| 9/9 [00:01, 9it/s]\\n'),
    dict(output_type='stream', name='stdout', text='and on\\n'),
    dict(output_type='stream', name='stderr', text=f'{HERE}/helpers/x.py:1: UserWarning: short\\n'),
    dict(output_type='execute_result', execution_count=12, metadata={}, data={'text/plain': f"'{HERE}'"}),
    dict(output_type='display_data', metadata={},
         data={'application/vnd.jupyter.widget-view+json': {'model_id': '1'}, 'text/plain': '0%'})]
from nbformat import from_dict; outputs = [from_dict(o) for o in outputs]"""


@pytest.fixture
def publishable(project) -> notebooks.Settings:
    (project / "notebooks/02_second.ipynb").unlink()
    work = project / "work"
    tell = (
        LOG
        + """import hashlib, pathlib
patterns = '*/*/*/*.parquet', '*/*/*.csv', '*/*/*/faults.csv'
for path in [p for pattern in patterns for p in pathlib.Path(HERE, 'work').glob(pattern)]:
    if 'renamed' not in path.name:
        log(event='write', path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())"""
    )
    write_notebook(project, "01_first", tell, OUTPUTS, HERE=str(project), DEVICE="auto")
    (project / "README.md").write_text(
        "a\n<!-- results:begin -->\nOLD\n<!-- results:end -->\nb\n"
        "<!-- comparisons:begin -->\n<!-- comparisons:end -->\n"
        "<!-- talk:begin -->\n<!-- talk:end -->\n<!-- faults:begin -->\n<!-- faults:end -->\n"
        "<!-- cost:begin -->\n<!-- cost:end -->\nc"
    )
    settings = settings_of(project, device="cpu")
    folds = make_folds(make_utterances(10, 4), n_folds=5)
    tables.write_table(folds, settings.policy_work / "folds.csv", "folds", notebook="test")
    for name, skill in {
        "predictions/net": 2.5,
        "predictions/renamed": 1.0,
        "comparisons/net__without_it": 1.0,
        "untrained/random": 0.0,
    }.items():
        table = make_predictions(folds, skill)
        tables.write_table(
            table, settings.policy_work / f"{name}.parquet", "predictions", notebook="test"
        )
    tables.write_table(
        table, work / "talk/seven/predictions/words.parquet", "predictions", notebook="test"
    )
    (work / "talk/seven/results.csv").write_text(
        RESULTS.replace("average", "of words").replace("demo, four", "talk, seven")
    )
    fold = {
        "fit": ["a", "b"],
        "notes": {"parameters": 9, "curves": [{}, {}], "setting": {"epochs": 5, "dropout": 0.3}},
    }
    faults = pd.DataFrame(
        [
            {
                "fault": "(b) at random",
                "n": 40,
                "uar": 0.9,
                "uar_low": 0.8,
                "uar_high": 1.0,
                "honest": 0.5,
                "difference": 0.4,
                "low": 0.3,
                "high": 0.5,
                "p_holm": 0.01,
                "audit": "speakers",
            }
        ]
    )
    tables.write_table(
        faults, settings.policy_work / "evaluation/faults.csv", "faults", notebook="test"
    )
    record = {
        "variant": "inductive",
        "inputs": {"shape": [4, 5]},
        "folds": {"1": fold, "2": fold},
        "settings": {
            "build": "MelCNN",
            "search": {"epochs": [1]},
            "trials": 2,
            "epochs": 9,
            "options": {"hidden": 4},
        },
    }
    experiment.write_record([record], settings.policy_work / "records/net.json")
    experiment.write_record(
        [record | {"settings": {"estimator": "LDA"}}], settings.policy_work / "records/lda.json"
    )
    (settings.policy_work / "results.csv").write_text(RESULTS)
    return settings


def run_and_publish(settings: notebooks.Settings) -> str:
    books = books_of(settings.project)
    outcomes = pipeline.run(books, settings)
    report.write_report(books, outcomes, settings)
    publish.publish(books, outcomes, settings)
    return (settings.project / "notebooks/01_first.ipynb").read_text()


def test_published_notebook_is_normalised(publishable):
    text = run_and_publish(publishable)
    notebook = nbformat.reads(text, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3], (
        "no injected cell, counted from one"
    )
    assert [cell.id for cell in code] == ["cell-0", "cell-1", "cell-2"]
    assert "papermill" not in text and [cell.metadata for cell in code] == [
        {"tags": ["parameters"]},
        {},
        {},
    ]
    outputs = code[-1].outputs
    assert [output.get("text") or output.data["text/plain"] for output in outputs] == [
        "SER_WORK/demo/a.csv\nand on\n",
        "helpers/x.py:1: UserWarning: short\n",
        "'.'",
    ]
    assert outputs[-1].execution_count == 3
    assert run_and_publish(publishable) == text, "publishing again gives the same bytes"


def test_published_pictures_have_a_palette_and_look_the_same():
    figure, axis = plt.subplots()
    axis.imshow(np.linspace(0, 1, 400).reshape(20, 20), cmap="magma")
    drawn = io.BytesIO()
    figure.savefig(drawn)
    plt.close(figure)
    given = base64.b64encode(drawn.getvalue()).decode()
    found = publish.in_few_colours(given)
    before, after = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(x))).convert("RGB"), int)
        for x in (given, found)
    )
    assert len(found) < len(given) and np.abs(before - after).mean() < 2
    assert (
        np.percentile(np.abs(before - after), 99.9) < 30
        and len(np.unique(after.reshape(-1, 3), axis=0)) <= 256
    )


def test_published_files_and_readme(publishable):
    run_and_publish(publishable)
    results = publishable.project / "data/results/demo/four"
    assert {str(path.relative_to(results)) for path in results.rglob("*") if path.is_file()} == {
        "net.parquet",
        "comparisons/net__without_it.parquet",
        "evaluation/faults.csv",
        "folds.csv",
        "results.csv",
        "run.json",
        "networks.json",
    }
    talk = publishable.project / "data/results/talk/seven"
    assert sorted(path.name for path in talk.iterdir()) == ["results.csv", "words.parquet"]
    assert json.loads((results / "networks.json").read_text()) == {
        "net": {
            "inputs": {"shape": [4, 5]},
            "parameters": 9,
            "epochs": [2, 2],
            "clips": [2, 2],
            "settings": {
                "build": "MelCNN",
                "trials": 2,
                "epochs": 5,
                "options": {"hidden": 4, "dropout": 0.3},
            },
        }
    }
    readme = (publishable.project / "README.md").read_text()
    assert "| average | **66.2 [60.0–72.0]** |" in readme and "OLD" not in readme
    own, _, others = readme.partition("<!-- talk:begin -->")
    assert (
        "of words" not in own
        and "| of words | **66.2 [60.0–72.0]** |" in others
        and "talk, seven" in others
    )
    assert re.search(
        r"\| net__without_it \| inductive \| [\d.]+ \[[\d.–]+\] \| \+[\d.]+ \[\+[\d.]+, \+[\d.]+\] \|",
        readme,
    )
    assert (
        "| (b) at random | 90.0 [80.0–100.0] | 50.0 | +40.0 [+30.0, +50.0] | speakers |" in readme
    )
    assert "[01 · On first](notebooks/01_first.ipynb)" in readme and readme.endswith(
        "<!-- cost:end -->\nc"
    )


def test_another_corpus_than_the_notebooks_show_leaves_predictions_and_a_table_of_its_own(
    publishable,
):
    notebook = run_and_publish(publishable)
    readme = (publishable.project / "README.md").read_text()
    folds = make_folds(make_utterances(10, 4), n_folds=5)
    other = replace(
        publishable,
        corpus="talk",
        work=publishable.work.parent / "talk",
        policy="",
        default_policy="seven",
        allow_incomplete=True,
    )
    tables.write_table(folds, other.policy_work / "folds.csv", "folds", notebook="test")
    with pytest.raises(notebooks.Refused, match="no lines <!-- talk:begin -->"):
        (publishable.project / "README.md").write_text(readme.replace("talk:", "chat:"))
        run_and_publish(other)
    assert not (publishable.project / "data/results/talk/seven/folds.csv").exists()
    (publishable.project / "README.md").write_text(readme.replace("of words", "of an earlier run"))
    assert run_and_publish(other) == notebook, "notebooks stay those of their own corpus"
    talk = publishable.project / "data/results/talk/seven"
    assert {"folds.csv", "results.csv", "words.parquet"} <= {path.name for path in talk.iterdir()}
    assert not (publishable.project / "data/models/seven").exists()
    assert (publishable.project / "README.md").read_text() == readme
    (publishable.project / "helpers/profiles/full.yaml").write_text("'01': {EPOCHS: 1}")
    with pytest.raises(notebooks.Refused, match="01_first: EPOCHS was 1, its default is 5"):
        run_and_publish(other)


def test_what_was_not_run_keeps_what_was_published(publishable):
    results = publishable.project / "data/results/demo/four"
    first = run_and_publish(publishable)
    published, nets = (
        json.loads((results / "run.json").read_text()),
        (results / "networks.json").read_text(),
    )
    publishable.stamp(books_of(publishable.project)[0]).unlink()
    shutil.rmtree(publishable.policy_work / "records")
    write_notebook(publishable.project, "02_second", "x = 1", DEVICE="auto")
    assert run_and_publish(replace(publishable, only=("02",))) == first
    record = json.loads((results / "run.json").read_text())["notebooks"]
    assert record["02_second"]["status"] == "run"
    about = {name: published[name] for name in ("date", "device")}
    assert record["01_first"] == about | published["notebooks"]["01_first"]
    assert (results / "networks.json").read_text() == nets
    readme = (publishable.project / "README.md").read_text()
    seconds = published["notebooks"]["01_first"]["longest"]
    size = published["notebooks"]["01_first"]["largest_mb"] / 1024
    assert f"[01 · On first](notebooks/01_first.ipynb) | {seconds:.0f} | {size:.1f} GB |" in readme
    assert "02 · On second" in readme


def test_card_of_a_model_that_was_not_trained_here_is_the_published_one_if_results_agree():
    card = {"variant": "inductive", "made by": {"notebook": "07"}, "results": {"uar": 0.5}}
    published = [{"model": name} | card for name in "abc"]
    here = [
        card | {"made by": {"notebook": notebook}, "results": {"uar": uar}}
        for card, notebook, uar in zip(published, [None, "08", None], [0.5, 0.5, 0.6], strict=True)
    ]
    assert publish.with_earlier_cards(here, published) == [published[0], here[1], here[2]]
    assert publish.with_earlier_cards(here, []) == here


def test_small_model_is_published_in_place_of_the_one_before(publishable):
    source, target = (
        publishable.policy_work / "models/average_small",
        publishable.project / "data/models/four",
    )
    (source / "member").mkdir(parents=True)
    (source / "card.json").write_text("{}")
    (source / "member/inductive.safetensors").write_bytes(b"weights")
    target.mkdir(parents=True)
    (target / "of_an_older_run.skops").write_bytes(b"x")
    run_and_publish(publishable)
    assert sorted(
        path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()
    ) == ["card.json", "member/inductive.safetensors"]
    (source / "member/inductive.safetensors").write_bytes(bytes(6_000_000))
    before = (publishable.project / "README.md").read_text()
    with pytest.raises(notebooks.Refused, match=r"6\.0 MB, at most 5"):
        run_and_publish(publishable)
    assert (target / "member/inductive.safetensors").read_bytes() == b"weights"
    assert (publishable.project / "README.md").read_text() == before


def test_publishing_refuses_other_values_than_the_defaults(publishable):
    (publishable.project / "helpers/profiles/full.yaml").write_text("'01': {EPOCHS: 1}")
    before = (publishable.project / "notebooks/01_first.ipynb").read_text()
    with pytest.raises(notebooks.Refused, match="01_first: EPOCHS was 1, its default is 5"):
        run_and_publish(publishable)
    assert (publishable.project / "notebooks/01_first.ipynb").read_text() == before


def test_publishing_refuses_code_that_did_not_run(publishable):
    books = books_of(publishable.project)
    outcomes = pipeline.run(books, publishable)
    write_notebook(
        publishable.project,
        "01_first",
        "x = 2",
        OUTPUTS,
        HERE=str(publishable.project),
        DEVICE="auto",
    )
    with pytest.raises(notebooks.Refused, match="not the code that ran"):
        publish.publish(books, outcomes, publishable)


def test_badges_follow_the_address_in_pyproject(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[project.urls]\nRepository = "https://github.com/me/mine.git"\n'
    )
    badge = "[![Colab](badge.svg)](https://colab.research.google.com/github/a/b/blob/main/notebooks/{}.ipynb)"
    path = write_notebook(tmp_path, "01_first", 'REPOSITORY = "https://github.com/a/b"')
    path.write_text(path.read_text().replace("On first", badge.format("00_renamed")))
    (tmp_path / "README.md").write_text(badge.format("01_first"))
    assert (
        publish.badges(tmp_path, check=True)
        == ["01_first.ipynb", "README.md"]
        == publish.badges(tmp_path)
    )
    assert publish.badges(tmp_path, check=True) == []
    text = path.read_text() + (tmp_path / "README.md").read_text()
    assert text.count("github/me/mine/blob/main/notebooks/01_first.ipynb") == 2
    assert notebooks.read_notebook(path).code[1] == 'REPOSITORY = "https://github.com/me/mine"'


# The real thing, in a process of its own


@pytest.fixture
def real(tmp_path) -> Path:
    """A copy of the package in a project of its own, with a made-up registry of corpora."""
    (tmp_path / "helpers").mkdir()
    for name in (
        "__init__.py",
        "paths.py",
        "cache.py",
        "tables.py",
        "pipeline.py",
        "notebooks.py",
        "report.py",
        "publish.py",
        "mirror.py",
        "report.html",
    ):
        shutil.copy(HELPERS / name, tmp_path / "helpers")
    shutil.copytree(HELPERS / "profiles", tmp_path / "helpers/profiles")
    for profile in (tmp_path / "helpers/profiles").iterdir():
        profile.write_text("{}")
    (tmp_path / "helpers/corpora.py").write_text(CORPORA)
    shutil.copy(ROOT / "run_all.sh", tmp_path)
    return tmp_path


def start(project: Path, *options: str, home: Path | None = None) -> subprocess.Popen:
    environment = {**os.environ, "SER_WORK": "work", "HOME": str(home or Path.home())}
    return subprocess.Popen(
        [sys.executable, "-m", "helpers.pipeline", *options],
        cwd=project,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_failure_is_told_and_the_next_run_resumes_there(real, tmp_path):
    kernel = tmp_path / "home/.local/share/jupyter/kernels/python3/kernel.json"  # of another Python
    kernel.parent.mkdir(parents=True)
    kernel.write_text('{"argv": ["/bin/false"], "display_name": "Python 3", "language": "python"}')
    write_notebook(
        real,
        "01_first",
        f"import os, sys\nassert sys.executable == {sys.executable!r}\n"
        f"assert os.getcwd() == {str(real / 'notebooks')!r} and os.path.isabs(os.environ['SER_WORK'])",
    )
    write_notebook(real, "02_second", "deep = {}", "# looks it up\ndeep['well']")
    process = start(real, home=tmp_path / "home")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1, output
    assert "KeyError: 'well'" in output and "in cell [4], which begins: # looks it up" in output
    page = (real / "reports/demo/index.html").read_text()
    assert (
        "02_second failed" in page
        and "KeyError" in (real / "reports/demo/02_second.html").read_text()
    )

    write_notebook(real, "02_second", "deep = {'well': 1}", "deep['well']")
    process = start(real)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert re.search(r"01_first +fresh", output) and re.search(r"02_second +run", output)

    started = time.monotonic()
    process = start(real)
    assert (
        re.search(r"02_second +fresh", process.communicate(timeout=60)[0])
        and process.returncode == 0
    )
    assert time.monotonic() - started < 15, "nothing to do must not take long"


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_killed_run_leaves_nothing_that_looks_finished(real, kind):
    write_notebook(
        real,
        "01_first",
        "import os, pathlib, time\n"
        "pathlib.Path('../pid').write_text(str(os.getpid()))\ntime.sleep(60)",
    )
    process = start(real)
    deadline = time.monotonic() + 60
    while not (real / "pid").exists() or not (real / "pid").read_text():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(kind)
    process.communicate(timeout=30)
    assert process.returncode == (130 if kind == signal.SIGTERM else -signal.SIGKILL)
    kernel = int((real / "pid").read_text())
    while Path(f"/proc/{kernel}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{kernel}").exists(), "the kernel ends with the run"
    settings = notebooks.Settings(
        project=real, work=real / "work/demo", corpus="demo", default_policy="four"
    )
    book = notebooks.read_notebook(real / "notebooks/01_first.ipynb")
    assert pipeline.why_stale(book, {"CORPUS": "demo"}, settings) == "no finished run"
    with pipeline.locked(settings.work):  # and the lock went with the process
        pass


@pytest.mark.parametrize(
    "options, code, text",
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
