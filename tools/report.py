"""The report: executed notebooks as HTML, and one page with results, figures and links to them."""

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import jinja2
import pandas as pd

from helpers.metrics import METRICS, format_difference, format_uar
from tools.cards import protocol_cards
from tools.notebook import Notebook, Options, copy_matching, read_json, write

PACKAGES = ("numpy", "pandas", "scipy", "scikit-learn", "torch", "librosa", "xgboost", "lightgbm")
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=jinja2.select_autoescape(["html"]),
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"uar": format_uar, "difference": format_difference}


def write_report(books: list[Notebook], outcomes: dict[str, dict], options: Options) -> Path:
    """Write ``run.json``, each executed notebook as HTML, the figures and ``index.html``.

    Returns the last.
    """
    record = {
        "corpus": options.corpus,
        "labels": options.labels,
        "profile": options.profile,
        "device": device_name(options.device),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "date": datetime.now().isoformat(" ", "minutes"),
        "notebooks": outcomes,
        "seconds": round(sum(outcome.get("seconds", 0) for outcome in outcomes.values()), 1),
    }
    write(options.reports / "run.json", record)
    pages = [book.name for book in books if options.executed(book).is_file()]
    for name in pages:
        write_page(options.reports / f"{name}.ipynb", pages)
    folder = options.reports / "figures"
    copy_matching(options.work / "figures", folder, "[0-9][0-9]_*.png")
    drawn = sorted(path.name for path in folder.glob("*.png"))
    figures = {book.name: [n for n in drawn if n[:2] == book.number] for book in books}
    with contextlib.suppress(FileNotFoundError, ValueError):  # no results, or of an earlier version
        cards = protocol_cards(options.labelled, options.corpus, options.labels)
        write(options.labelled / "cards.json", cards)
    page = TEMPLATES.get_template("report.html").render(
        record,
        synthetic=options.about.synthetic,
        metrics=METRICS,
        books=books,
        pages=pages,
        figures=figures,
        groups=result_groups(options.labelled / "results.csv"),
    )
    write(options.reports / "index.html", page)
    return options.reports / "index.html"


def write_page(executed: Path, pages: list[str]) -> None:
    """Render an executed notebook as HTML, unless its page is newer."""
    target = executed.with_suffix(".html")
    if target.is_file() and target.stat().st_mtime >= executed.stat().st_mtime:
        return
    from nbconvert import HTMLExporter  # late: takes seconds, and often all pages are there

    page, _ = HTMLExporter(template_name="lab", embed_images=True).from_filename(str(executed))
    page = re.sub(
        r'href="(?:\./)?(\d\d_\w+)\.ipynb(?=["#])',
        lambda link: f'href="{link[1] if link[1] in pages else "index"}.html',
        page,
    )
    back = '<p style="font: 15px system-ui; margin: 1em 2em"><a href="index.html">← Results</a></p>'
    write(target, re.sub(r"<body[^>]*>", lambda body: body[0] + back, page, count=1))


def result_groups(path: Path) -> list[dict]:
    """Read results.csv, and the protocol cards next to it, into one group per variant.

    Returns
    -------
    list of dict
        ``variant``, ``protocols`` (str), ``rows`` (of the table, best model first), ``best`` (of
        each metric) and ``cards`` (by model).
    """
    if not path.is_file():
        return []
    cards, groups = read_json(path.with_name("cards.json")) or [], []
    table = pd.read_csv(path)
    table = table.reindex(columns=list({**table, **METRICS}))  # an earlier one may have fewer
    table["baseline"] = table["model"] == "majority"
    table = table.sort_values(["variant", "baseline", "uar"], ascending=[True, True, False])
    for variant, rows in table.groupby("variant"):
        models = rows[~rows["baseline"]]
        best = {name: m.better(models[name].dropna(), default=0) for name, m in METRICS.items()}
        groups.append(
            {
                "variant": variant,
                "rows": rows.to_dict("records"),
                "best": best,
                "protocols": models["protocol"].unique(),
                "cards": {card["model"]: card for card in cards if card["variant"] == variant},
            }
        )
    return groups


def device_name(asked: str) -> str:
    """Name what was computed on: the first NVIDIA GPU unless the CPU was asked for."""
    if asked != "cpu" and shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True).stdout.partition("\n")[0]
    return f"CPU, {os.cpu_count()} cores"
