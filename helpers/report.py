"""The report: each executed notebook as HTML, and one page with the results, the figures and links to all of them."""

import contextlib
import csv
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import jinja2

from helpers.notebooks import Notebook, Settings, is_added, mirror, read_json, write
from helpers.tables import file_hash

PACKAGES = [
    "numpy",
    "pandas",
    "scipy",
    "scikit-learn",
    "torch",
    "librosa",
    "xgboost",
    "lightgbm",
    "papermill",
]
COLUMNS = [
    ("UAR (95 % interval)", "uar", max),
    ("mean over folds", "uar_fold_mean", max),
    ("WA", "wa", max),
    ("macro-F1", "macro_f1", max),
    ("weighted F1", "weighted_f1", max),
    ("ECE", "ece", min),
    ("NLL", "nll", min),
]  # heading, column, the better one


def write_report(books: list[Notebook], outcomes: dict[str, dict], settings: Settings) -> Path:
    """Write ``run.json``, each executed notebook as HTML, the figures and ``index.html``; returns the last."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    record = {
        "corpus": settings.corpus,
        "policy": settings.policy or settings.default_policy,
        "profile": settings.profile,
        "device": device_name(settings.device),
        "versions": versions,
        "date": datetime.now().isoformat(" ", "minutes"),
        "notebooks": outcomes,
        "seconds": round(sum(outcome.get("seconds", 0) for outcome in outcomes.values()), 1),
    }
    write(settings.reports / "run.json", json.dumps(record, indent=1))
    pages = [book.name for book in books if settings.executed(book).is_file()]
    for book in books:
        if book.name in pages:
            write_page(book, settings.executed(book), pages)
    mirror(settings.work / "figures", settings.reports / "figures", "[0-9][0-9]_*.png")
    figures = {
        book.name: sorted(
            path.name for path in (settings.reports / "figures").glob(f"{book.number}_*.png")
        )
        for book in books
    }
    template = jinja2.Template(
        Path(__file__).with_name("report.html").read_text(encoding="utf-8"), autoescape=True
    )
    index = settings.reports / "index.html"
    write(
        index,
        template.render(
            record,
            synthetic=settings.synthetic,
            columns=COLUMNS,
            books=books,
            pages=pages,
            figures=figures,
            groups=result_groups(settings.policy_work / "results.csv"),
        ),
    )
    return index


def write_page(book: Notebook, executed: Path, pages: list[str]) -> None:
    """Render an executed notebook, with its prose as committed now, unless the page already shows just that."""
    target, committed = (
        executed.with_suffix(".html"),
        json.loads(book.path.read_text(encoding="utf-8"))["cells"],
    )
    prose = ["".join(cell["source"]) for cell in committed if cell["cell_type"] == "markdown"]
    mark = hashlib.sha256(f"{file_hash(executed)}{prose}{pages}".encode()).hexdigest()
    if target.is_file() and mark in target.read_text(encoding="utf-8")[-100:]:
        return
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.read(executed, 4)
    shown = [cell for cell in notebook.cells if cell.cell_type == "markdown" and not is_added(cell)]
    for cell, text in zip(shown, prose, strict=False) if len(shown) == len(prose) else ():
        cell.source = text
    page, _ = HTMLExporter(template_name="lab", embed_images=True).from_notebook_node(
        notebook, {"metadata": {"name": book.title, "path": str(book.path.parent)}}
    )
    page = re.sub(
        r'href="(?:\./)?(\d\d_[\w-]+)\.ipynb(?=["#])',
        lambda link: f'href="{link[1]}.html' if link[1] in pages else link[0],
        page,
    )
    page = re.sub(
        r"<body[^>]*>",
        r'\g<0><p style="font: 15px system-ui; margin: 1em 2em"><a href="index.html">'
        "← All results</a></p>",
        page,
        count=1,
    )
    write(target, f"{page}\n<!-- {mark} -->\n")


def result_groups(path: Path) -> list[dict]:
    """Read results.csv, and the protocol cards beside it, into one group per variant, best model first."""
    beside = path.with_name("cards.json")
    cards = {}
    if beside.is_file():
        from helpers import protocol  # late: it takes a second

        cards = {
            (card["model"], card["variant"]): protocol.text(card) for card in read_json(beside)
        }
    empty = {column: "" for _, column, _ in COLUMNS}  # a table of an earlier version may lack one
    with (
        open(path, encoding="utf-8", newline="")
        if path.is_file()
        else contextlib.nullcontext([]) as handle
    ):
        table = [empty | row for row in csv.DictReader(handle)]
    table.sort(key=lambda row: (row["model"] == "majority", -float(row["uar"])))
    groups = []
    for variant in sorted({row["variant"] for row in table}):
        rows = [row for row in table if row["variant"] == variant]
        models = [row for row in rows if row["model"] != "majority"]
        best = {
            column: better((float(row[column]) for row in models if row[column]), default=None)
            for _, column, better in COLUMNS
        }
        for row in rows:
            row["pretrained"] = row["pretrained"] == "True"
            row["card"] = cards.get((row["model"], row["variant"]), "")
            row["bar"] = [
                100 * float(row[name] or row["uar"]) for name in ("uar_low", "uar", "uar_high")
            ]
            row["cells"] = [
                {
                    "best": row in models and row[column] and float(row[column]) == best[column],
                    "text": f"{float(row[column]) * (1 if column == 'nll' else 100):.{1 + (column == 'nll')}f}"
                    if row[column]
                    else "–",
                }
                for _, column, _ in COLUMNS
            ]
            if row["uar_low"]:
                row["cells"][0]["text"] += " [{:.1f}–{:.1f}]".format(row["bar"][0], row["bar"][2])
        protocols = list(dict.fromkeys(row["protocol"] for row in models))
        groups.append({"variant": variant, "rows": rows, "protocols": protocols})
    return groups


def device_name(asked: str) -> str:
    """Name what was computed on: the first NVIDIA GPU unless the CPU was asked for."""
    if asked != "cpu" and shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True)
        if found.returncode == 0 and found.stdout.strip():
            return found.stdout.splitlines()[0]
    return f"CPU, {os.cpu_count()} cores"
