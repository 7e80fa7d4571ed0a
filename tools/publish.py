"""Publishing: what a run made goes to where it is committed, without traces of the machine.

Run ``python tools/publish.py tables`` to fill the tables of ``docs/`` from ``data/results`` again.
"""

import json
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers import metrics, paths, tables
from tools.notebook import (
    Notebook,
    Options,
    Refused,
    copy_matching,
    read_json,
    read_notebooks,
    write,
)
from tools.report import TEMPLATES, result_groups

SHOWN = "ravdess"  # the corpus whose results the committed notebooks show
LARGEST_MODEL_MB = 5  # it is in every copy of the project
PUBLISHED = r"[^/]+/[^/]+/(folds\.csv|results\.csv|[^/]+\.parquet|(comparisons|evaluation)/[^/]+)"
PROGRESS = r"^.*(\d%\||\dit \[).*(\n|$)"  # "12%|███   |" or "12it [00:01, 9it/s]"
WIDGET = "application/vnd.jupyter.widget-view+json"


SUMMARY = {  # model → what README's table calls it
    "majority": "always the training shares",
    "cnn": "CNN on mel-spectrograms (notebook 07)",
    "gru_channel_normalised": "GRU on low-level descriptors (14)",
    "dnn": "DNN on functionals (10)",
    "ml_svm": "SVM on functionals (11)",
    "ml_lda": "LDA with speed perturbation (11)",
    "average_small": "average of three small models (18)",
    "average_weighted": "weighted average of all models (18)",
}


class NotPublished(Refused):
    """What was asked to be published can't be."""


def publish(books: list[Notebook], outcomes: dict[str, dict], options: Options) -> None:
    """Copy what this run made to where it is committed: notebooks, figures, predictions, tables.

    What is there of notebooks that were not run here stays. Of another corpus than the one that
    the notebooks show, only predictions and results are copied.

    Raises
    ------
    NotPublished
        If a notebook failed, ran with other values than its defaults, or changed since, if the
        small model is too large, or a table has no place in ``docs/``; nothing is copied.
    """
    shown = options.corpus == SHOWN
    ready, faults = with_all_outputs(books, outcomes, options)
    model = options.labelled / "models/average_small"
    megabytes = sum(path.stat().st_size for path in model.rglob("*")) / 1e6
    if megabytes > LARGEST_MODEL_MB:
        faults.append(
            f"{model} has {megabytes:.1f} MB, at most {LARGEST_MODEL_MB} are published: take "
            "smaller members (SMALL in notebook 18)"
        )
    if faults:
        raise NotPublished("nothing was published, because of\n  " + "\n  ".join(faults))
    pages_with("results" if shown else options.corpus)
    results = paths.PROJECT / "data/results"
    for source, target in results_of(books, options).items():
        write(results / target, source.read_bytes())
    about = results / options.corpus / options.labels / "run.json"
    write(about, with_earlier(read_json(options.reports / "run.json"), read_json(about)))
    if (options.labelled / "cards.json").is_file():
        shutil.copy(options.labelled / "cards.json", about.with_name("cards.json"))
    if shown:
        for path, text in ready.items():
            write(path, text)
            copy_matching(
                options.work / "figures", paths.PROJECT / "figures", f"{path.name[:2]}_*.png"
            )
        if megabytes:
            target = paths.PROJECT / "data/models" / options.labels
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(model, target)
    write_tables(books)


def with_all_outputs(
    books: list[Notebook], outcomes: dict[str, dict], options: Options
) -> tuple[dict[Path, str], list[str]]:
    """Return the notebooks that ran, with their outputs, and what speaks against publishing."""
    ready, faults = {}, []
    for book in books:
        if outcomes[book.name]["status"] == "failed":
            faults.append(f"{book.name}: failed ({outcomes[book.name]['reason']})")
        elif outcomes[book.name]["status"] in ("run", "fresh"):
            faults += other_values(book, options)
            ready[book.path] = with_outputs(book, options)
            if not ready[book.path]:
                faults.append(f"{book.name}: its code is not the code that ran; run it again")
    return ready, faults


def other_values(book: Notebook, options: Options) -> list[str]:
    """Return which values of a notebook were not its defaults, and can be seen in its results."""
    free = {"DEVICE", "CORPUS"}
    if options.corpus != SHOWN:
        free.add("ALLOW_INCOMPLETE")
    used = read_json(options.stamp(book))["made_from"]
    defaults = json.loads(json.dumps(book.parameters))
    return [
        f"{book.name}: {name} was {used[name]!r}, its default is {default!r}"
        for name, default in defaults.items()
        if name not in free and used[name] != default
    ]


def with_earlier(record: dict, before: dict) -> dict:
    """Return a run's record, with what was published of notebooks that did not run."""
    done = {name: o for name, o in record["notebooks"].items() if o["status"] != "not run"}
    return record | {"notebooks": before.get("notebooks", {}) | done}


def results_of(books: list[Notebook], options: Options) -> dict[Path, str]:
    """Return which tables are published, and where to, below ``data/results``.

    Of what the notebooks wrote last: predictions, runs for comparison, folds, results, and what the
    evaluation rests on; of another corpus, too, if a notebook has results of one.
    """
    found = {}
    for book in books:
        for name in read_json(options.stamp(book)).get("files", {}):
            place = name.replace("/predictions/", "/")
            if re.fullmatch(PUBLISHED, place):
                found[paths.work() / name] = place
    return found


def with_outputs(book: Notebook, options: Options) -> str:
    """Return a committed notebook with the outputs of its executed copy; "" if its code differs.

    Equal runs give equal bytes: execution counts are those of one clean run, and folders, progress
    bars, widgets and what papermill noted are left out.
    """
    import nbformat  # late: it takes a second

    notebook = nbformat.read(book.path, 4)
    code, done = code_cells(notebook), code_cells(nbformat.read(options.executed(book), 4))
    if [cell.source for cell in code] != [cell.source for cell in done]:
        return ""
    for count, (cell, run_cell) in enumerate(zip(code, done, strict=True), start=1):
        cell.execution_count, cell.outputs = count, []
        for output in run_cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
            for kind, content in output.get("data", {}).items():
                if kind.startswith("text/"):
                    output.data[kind] = without_places(content)
            if "text" in output:
                output.text = without_places(re.sub(PROGRESS, "", output.text, flags=re.M))
            if output.get("text") != "" and WIDGET not in output.get("data", {}):
                cell.outputs.append(output)
    return nbformat.writes(notebook) + "\n"


def code_cells(notebook: dict) -> list[dict]:
    """Return the code cells of a notebook, without the one that papermill adds."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in code if "injected-parameters" not in cell.metadata.get("tags", [])]


def without_places(text: str) -> str:
    """Replace the folders of this machine in a text by what a reader knows."""
    places = {paths.work(): "SER_WORK", paths.data(): "SER_DATA", Path(sys.prefix): ".venv"}
    places |= {paths.PROJECT: ".", Path.home(): "~"}
    for place in sorted(places.keys() - {Path("/")}, key=lambda place: -len(str(place))):
        text = re.sub(rf"{re.escape(str(place))}\b(?![\w-])", places[place], text)
    return re.sub(r"[\w/.~-]*/ipykernel_\d+/\d+\.py", "cell", text)


def write_tables(books: list[Notebook]) -> None:
    """Write the tables of ``data/results`` between the marks of their names, in docs and README."""
    for block, text in blocks(books).items():
        for page in pages_with(block):
            marks = rf"(?<=<!-- {block}:begin -->\n).*?(?=<!-- {block}:end -->)"
            old = page.read_text(encoding="utf-8")
            write(page, re.sub(marks, lambda _, new=text: new, old, flags=re.S))


def pages_with(block: str) -> list[Path]:
    """Return the pages with the marks of a table."""
    found = []
    for page in [paths.PROJECT / "README.md", *sorted(paths.PROJECT.glob("docs/*.md"))]:
        text = page.read_text(encoding="utf-8")
        if f"<!-- {block}:begin -->\n" in text and f"<!-- {block}:end -->" in text:
            found.append(page)
    if not found:
        raise NotPublished(
            f"docs/ has no lines <!-- {block}:begin --> and <!-- {block}:end -->; put them where "
            "the table shall stand."
        )
    return found


def blocks(books: list[Notebook]) -> dict[str, str]:
    """Return the tables of ``data/results`` as Markdown, by the names of their marks."""
    macros, found = TEMPLATES.get_template("tables.md").module, {}
    for path in sorted(paths.PROJECT.glob("data/results/*/*/results.csv")):
        folder, corpus = path.parent, path.parent.parent.name
        text = macros.results(result_groups(path), metrics.METRICS)
        if corpus != SHOWN:
            found[corpus] = text
            continue
        compared = metrics.comparisons_table(
            metrics.read_predictions(folder), metrics.read_predictions(folder / "comparisons")
        )
        faults = tables.read_table(folder / "evaluation/faults.csv", "faults")
        rows = tables.read_table(path, "results").set_index(["variant", "model"]).to_dict("index")
        found |= {
            "summary": macros.summary(SUMMARY, rows),
            "results": text,
            "comparisons": macros.comparisons(compared.to_dict("records")),
            "faults": macros.faults(faults.to_dict("records")),
            "cost": macros.cost(books, read_json(folder / "run.json")),
        }
    return found


def write_badges() -> None:
    """Write the repository's address of pyproject.toml into badges and bootstrap cells."""
    address = r'^Repository = "https://github.com/([^/]+/[^/".]+)'
    name = re.search(address, (paths.PROJECT / "pyproject.toml").read_text("utf-8"), re.M)[1]
    place = r'(REPOSITORY = \\?"https://github.com/|colab\.research\.google\.com/github/)'
    for path in [*sorted(paths.PROJECT.glob("notebooks/*.ipynb")), paths.PROJECT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        write(path, re.sub(place + r"[\w.-]+/[\w.-]+", rf"\g<1>{name}", text))


if __name__ == "__main__":
    write_tables(read_notebooks())
