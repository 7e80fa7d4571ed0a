"""What run_all.sh calls: notebooks through papermill, skipping what is fresh; then the report, and publishing.

A notebook that succeeded leaves a *stamp* under ``SER_WORK/<corpus>/runs/``: hashes of its code, of its parameter
values, of the helpers it imports, of every table it read and wrote (told by ``helpers.tables`` through the file that
``SER_RUN_LOG`` names) and of its executed copy in ``reports/<corpus>/``. It is skipped while all of these hold. The
stamp goes before the notebook starts and comes back when it has succeeded: a kill leaves nothing that looks finished.
"""

import argparse
import ast
import contextlib
import csv
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import jinja2
import psutil
import yaml

from helpers import paths
from helpers.cache import write_atomically
from helpers.tables import file_hash

UNTRACKED = {"plots", "pipeline"}  # they change how things look, not what comes out
PACKAGES = ["numpy", "pandas", "scipy", "scikit-learn", "torch", "librosa", "xgboost", "lightgbm", "papermill"]
COLUMNS = [("UAR (95 % interval)", "uar", max), ("mean over folds", "uar_fold_mean", max), ("WA", "wa", max),
           ("macro-F1", "macro_f1", max), ("ECE", "ece", min), ("NLL", "nll", min)]  # heading, column, the better one


class Refused(ValueError):
    """What is asked for can't be done; the text says what to do instead."""


@dataclass(frozen=True)
class Notebook:
    """A notebook as it is committed: title, code cells, and the literals of its parameters cell."""

    path: Path
    title: str
    code: tuple[str, ...]
    parameters: dict

    name = property(lambda self: self.path.stem)
    number = property(lambda self: self.path.name[:2])


@dataclass(frozen=True)
class Settings:
    """One call of run_all.sh: where things lie and what was asked for."""

    project: Path
    work: Path  # SER_WORK/<corpus>
    corpus: str
    policy: str = ""  # "" is the corpus's own first policy, whose name is default_policy
    default_policy: str = ""
    synthetic: bool = False
    profile: str = "full"
    device: str = "auto"
    allow_incomplete: bool = False
    first: str = ""
    only: tuple[str, ...] = ()
    force: bool = False
    fingerprint: Callable[[str], str] = str  # of the raw corpus of that name

    reports = property(lambda self: self.project / "reports" / self.corpus)
    policy_work = property(lambda self: self.work / (self.policy or self.default_policy))

    def executed(self, book: Notebook) -> Path:
        """Return where the executed copy of a notebook lies."""
        return self.reports / book.path.name

    def stamp(self, book: Notebook) -> Path:
        """Return where a notebook's stamp lies; what knows no label policy is not run again for another one."""
        policy = (self.policy or self.default_policy or "default") if "POLICY" in book.parameters else "any"
        return self.work / "runs" / policy / f"{book.name}.json"


def read_notebook(path: Path) -> Notebook:
    """Read a committed notebook; its parameters cell may hold nothing but ``NAME = literal`` lines."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = [(cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in cells]
    tagged = [source for _, source, tags in sources if "parameters" in tags]
    if len(tagged) != 1:
        raise Refused(f"{path.name}: found {len(tagged)} cells tagged 'parameters', expected one. Tag the cell with "
                      "the UPPERCASE literals (JupyterLab: property inspector, cell tags).")
    parameters = {}
    for node in ast.parse(tagged[0]).body:
        try:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            parameters[target.id] = ast.literal_eval(node.value)
        except (AttributeError, ValueError):
            raise Refused(f"{path.name}: the parameters cell holds {ast.unparse(node)!r}, expected only NAME = "
                          "literal. Derive values in a later cell: one derived here keeps its default.") from None
    title = re.search(r"^# +(.+)$", "\n".join(source for kind, source, _ in sources if kind == "markdown"), re.M)
    return Notebook(path, title[1].strip() if title else path.stem,
                    tuple(source for kind, source, _ in sources if kind == "code"), parameters)


def values_for(books: list[Notebook], settings: Settings, profile: dict) -> dict[str, dict]:
    """Return what is injected into each notebook: the profile's values, then what the command line says.

    A profile has values per notebook number, and under ``all`` for every notebook that has the name.

    Raises
    ------
    Refused
        If a value has no parameter of its name: papermill would print a warning and run with the default.
    """
    profile = {f"{key:02d}" if isinstance(key, int) else key: given or {} for key, given in profile.items()}  # 07
    numbers, known = [book.number for book in books], {name for book in books for name in book.parameters}
    if strange := profile.keys() - {*numbers, "all"}:
        raise Refused(f"profile {settings.profile!r} names notebooks {sorted(strange)}; there are 'all' and {numbers}.")
    if strange := profile.get("all", {}).keys() - known:
        raise Refused(f"profile {settings.profile!r} sets {sorted(strange)} for all; notebooks have {sorted(known)}.")
    options = {"POLICY": settings.policy, "DEVICE": settings.device, "ALLOW_INCOMPLETE": settings.allow_incomplete}
    options = {name: value for name, value in options.items() if value not in ("", "auto", False)}
    values = {}
    for book in books:
        general, asked = ({name: value for name, value in given.items() if name in book.parameters}
                          for given in (profile.get("all", {}), options))
        values[book.name] = general | profile.get(book.number, {}) | asked | {"CORPUS": settings.corpus}
        if strange := values[book.name].keys() - book.parameters.keys():
            raise Refused(f"{book.path.name} has no parameter {', '.join(sorted(strange))} (set by profile "
                          f"{settings.profile!r} or run_all.sh); its parameters cell has {', '.join(book.parameters)}.")
    return values


def helper_hashes(book: Notebook, folder: Path) -> dict[str, str]:
    """Return the hashes of the helpers modules that a notebook imports, directly or through others."""
    found, queue = {}, imported(re.sub(r"^(\s*)[%!].*$", r"\1pass", "\n".join(book.code), flags=re.M), book.path.name)
    while queue:
        source = folder / f"{(name := queue.pop())}.py"
        if name not in found | dict.fromkeys(UNTRACKED) and source.is_file():
            found[name] = file_hash(source)
            queue |= imported(source.read_text(encoding="utf-8"), source.name)
    return dict(sorted(found.items()))


def imported(source: str, where: str) -> set[str]:
    """Return the names that Python source imports from the helpers package."""
    try:
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    except SyntaxError as error:
        raise Refused(f"{where} is not Python: {error.msg} in {(error.text or '').strip()!r}.") from None
    names = set()
    for node in nodes:
        package = "helpers." * bool(getattr(node, "level", 0)) + (getattr(node, "module", "") or "")
        for alias in node.names:
            parts = [part for part in f"{package}.{alias.name}".split(".") if part]
            names.update(parts[1:2] if parts[0] == "helpers" else [])
    return names


def recipe(book: Notebook, values: dict, settings: Settings) -> dict:
    """Return what a notebook's outcome depends on besides its inputs."""
    return {"code": hashlib.sha256("\n# cell\n".join(book.code).encode()).hexdigest(),
            "values": json.loads(json.dumps(book.parameters | values)),  # as a stamp gives them back: tuples are lists
            "helpers": helper_hashes(book, settings.project / "helpers")}


def why_stale(book: Notebook, values: dict, settings: Settings) -> str:
    """Say why a notebook has to run; an empty string when its last run still holds."""
    stamp = _read_json(settings.stamp(book))
    if settings.force or not stamp:
        return "forced" if settings.force else "no finished run"
    for part, now in recipe(book, values, settings).items():
        if now != stamp[part]:
            return "its code changed" if part == "code" else f"{part} changed: " + ", ".join(
                sorted(name for name in now | stamp[part] if now.get(name) != stamp[part].get(name)))
    files = stamp["inputs"] | stamp["outputs"] | {str(settings.executed(book)): stamp["executed"]}
    for path, digest in files.items():
        try:
            now = settings.fingerprint(path[4:]) if path.startswith("raw:") else file_hash(Path(path))
        except FileNotFoundError:
            now = None
        if now != digest:
            return f"{Path(path).name} {'changed' if now else 'is gone'}"
    return ""


def execute(book: Notebook, values: dict, settings: Settings) -> dict:
    """Run one notebook into ``reports/`` and stamp it; returns status, reason, cells, seconds and peak_mb."""
    stamp = settings.stamp(book)
    log = stamp.with_suffix(".log")
    stamp.parent.mkdir(parents=True, exist_ok=True)
    settings.reports.mkdir(parents=True, exist_ok=True)
    for old in [stamp, log, *(settings.work / "figures").glob(f"{book.number}_*.png")]:
        old.unlink(missing_ok=True)  # a figure that it draws no longer must not stay in the report
    record = recipe(book, values, settings)  # now: somebody may edit the notebook while it runs
    os.environ["SER_RUN_LOG"] = str(log)
    try:
        with _Watch(book) as watch:
            fault = run_papermill(book, values, settings, watch)
        events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    finally:
        del os.environ["SER_RUN_LOG"]
        log.unlink(missing_ok=True)
    outcome = {"status": "failed" if fault else "run", "reason": fault, "cells": watch.cells,
               "seconds": round(watch.seconds(), 1), "peak_mb": round(watch.peak / 2**20)}
    skipped = [event["reason"] for event in events if event["event"] == "skipped"]
    if skipped and (not fault or fault.startswith("SystemExit")):
        return outcome | {"status": "skipped", "reason": skipped[0]}
    if not fault:
        written = {event["path"]: event["sha256"] for event in events if event["event"] == "write"}
        read = {event["path"]: event["sha256"] for event in reversed(events) if event["event"] == "read"}
        record |= {"inputs": {path: read[path] for path in read.keys() - written.keys()}, "outputs": written,
                   "executed": file_hash(settings.executed(book)), **outcome}
        _write(stamp, json.dumps(record, indent=1))
    return outcome


def run_papermill(book: Notebook, values: dict, settings: Settings, watch: "_Watch") -> str:
    """Execute a notebook into ``reports/``; returns what went wrong, or an empty string."""
    import papermill  # here and not above: takes seconds, and often nothing has to run
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from papermill.engines import NBClientEngine, papermill_engines

    class ThisPython(AsyncKernelManager):
        """Starts this very interpreter, whatever kernels the machine has registered."""

        kernel_spec = KernelSpec(**get_kernel_dict(["--log-level=CRITICAL"]))

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **options):
            complete = nb_man.cell_complete

            def cell_complete(cell, **more):
                complete(cell, **more)
                watch.cells += cell.cell_type == "code"

            nb_man.cell_complete = cell_complete
            return super().execute_managed_notebook(nb_man, kernel_name, kernel_manager_class=ThisPython, **options)

    papermill_engines.register("watched", Engine)
    try:
        papermill.execute_notebook(
            book.path, settings.executed(book), values, engine_name="watched", kernel_name="python3", language="python",
            cwd=book.path.parent, progress_bar=False, start_timeout=180)
    except papermill.PapermillExecutionError as error:
        return (f"{error.ename}: {error.evalue[:2000]}\nin cell [{error.exec_count}], which begins: "
                f"{error.source.strip().partition(chr(10))[0]}\nSee {settings.executed(book).with_suffix('.html')}")
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}\nafter {watch.cells} of {watch.total} cells (was memory short?)"
    return ""


class _Watch(threading.Thread):
    """Follows a running notebook: the memory of its kernel and the kernel's children, and the progress line."""

    def __init__(self, book: Notebook) -> None:
        super().__init__(daemon=True)
        self.label, self.total, self.cells, self.peak = book.name, len(book.code) + 1, 0, 0  # + the injected cell
        self.seen, self.over, self.started = set(), threading.Event(), time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def run(self) -> None:
        while not self.over.wait(0.5):
            children, memory = psutil.Process().children(recursive=True), 0
            self.seen.update(children)
            for child in children:
                with contextlib.suppress(psutil.Error):
                    memory += child.memory_info().rss
            self.peak = max(self.peak, memory)
            if sys.stdout.isatty():
                line = f"{self.label:<28} {self.cells:>3}/{self.total} cells {self.seconds():>8.0f} s"
                print(f"\r\033[K{line}", end="", flush=True)

    def __enter__(self) -> "_Watch":
        self.start()
        return self

    def __exit__(self, *error) -> None:
        self.over.set()
        self.join()
        for process in self.seen:  # workers can outlive a kernel that was stopped
            with contextlib.suppress(psutil.Error):
                process.kill()
        print("\r\033[K" if sys.stdout.isatty() else "", end="")


@contextlib.contextmanager
def locked(folder: Path):
    """Hold a corpus's work folder, so that two runs don't write into it at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+", encoding="utf-8") as handle:
        handle.seek(0)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"another run (process {handle.read().strip() or '?'}) works in {folder}. Wait for it, stop "
                          "it, or set SER_WORK to another folder.") from None
        handle.truncate(0)
        print(os.getpid(), file=handle, flush=True)
        yield


def run(books: list[Notebook], settings: Settings) -> dict[str, dict]:
    """Run what is stale among the chosen notebooks, in order, up to the first failure; one outcome per notebook."""
    profile = settings.project / f"helpers/profiles/{settings.profile}.yaml"
    values = values_for(books, settings, yaml.safe_load(profile.read_text(encoding="utf-8")) or {})
    numbers, outcomes, failed = [book.number for book in books], {}, False
    if strange := {*settings.only, settings.first} - {*numbers, ""}:
        raise Refused(f"there is no notebook {', '.join(sorted(strange))}; there are {', '.join(numbers)}.")
    for book in books:
        stamp = _read_json(settings.stamp(book))
        outcome = {"reason": ""} | {key: stamp[key] for key in ("cells", "seconds", "peak_mb") if stamp}
        if failed or book.number < settings.first or book.number not in (settings.only or numbers):
            outcome["status"] = "earlier" if stamp else "not run"
        elif not (reason := why_stale(book, values[book.name], settings)):
            outcome["status"] = "fresh"
        else:
            if not sys.stdout.isatty():
                print(f"{book.name:<28} starts ({reason})", flush=True)
            outcome = execute(book, values[book.name], settings)
            failed = outcome["status"] == "failed"
            print(f"{book.name:<28} {outcome['cells']:>3} cells {outcome['seconds']:>12.1f} s  {outcome['status']}",
                  *outcome["reason"].splitlines(), sep="\n    ", flush=True)
        outcomes[book.name] = outcome
    return outcomes


def result_groups(path: Path) -> list[dict]:
    """Read results.csv into one group per variant, best model first, as the report and README show it."""
    with open(path, encoding="utf-8", newline="") if path.is_file() else contextlib.nullcontext([]) as handle:
        table = sorted(csv.DictReader(handle), key=lambda row: (row["model"] == "majority", -float(row["uar"])))
    groups = []
    for variant in sorted({row["variant"] for row in table}):
        rows = [row for row in table if row["variant"] == variant]
        models = [row for row in rows if row["model"] != "majority"]
        best = {column: better((float(row[column]) for row in models if row[column]), default=None)
                for _, column, better in COLUMNS}
        for row in rows:
            row["pretrained"] = row["pretrained"] == "True"
            row["bar"] = [100 * float(row[name] or row["uar"]) for name in ("uar_low", "uar", "uar_high")]
            row["cells"] = [{"best": row in models and row[column] and float(row[column]) == best[column], "text":
                             f"{float(row[column]) * (1 if column == 'nll' else 100):.{1 + (column == 'nll')}f}"
                             if row[column] else "–"} for _, column, _ in COLUMNS]
            if row["uar_low"]:
                row["cells"][0]["text"] += " [{:.1f}–{:.1f}]".format(row["bar"][0], row["bar"][2])
        protocols = list(dict.fromkeys(row["protocol"] for row in models))
        groups.append({"variant": variant, "rows": rows, "protocols": protocols})
    return groups


def write_report(books: list[Notebook], outcomes: dict[str, dict], settings: Settings) -> Path:
    """Write ``run.json``, each executed notebook as HTML, the figures and ``index.html``; returns the last."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    record = {"corpus": settings.corpus, "policy": settings.policy or settings.default_policy,
              "profile": settings.profile, "device": device_name(settings.device), "versions": versions,
              "date": datetime.now().isoformat(" ", "minutes"), "notebooks": outcomes,
              "seconds": round(sum(outcome.get("seconds", 0) for outcome in outcomes.values()), 1)}
    _write(settings.reports / "run.json", json.dumps(record, indent=1))
    pages = [book.name for book in books if settings.executed(book).is_file()]
    for book in books:
        if book.name in pages:
            write_page(book, settings.executed(book), pages)
    _mirror(settings.work / "figures", settings.reports / "figures", "[0-9][0-9]_*.png")
    figures = {book.name: sorted(path.name for path in (settings.reports / "figures").glob(f"{book.number}_*.png"))
               for book in books}
    template = jinja2.Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"), autoescape=True)
    index = settings.reports / "index.html"
    _write(index, template.render(record, synthetic=settings.synthetic, columns=COLUMNS, books=books, pages=pages,
                                  figures=figures, groups=result_groups(settings.policy_work / "results.csv")))
    return index


def write_page(book: Notebook, executed: Path, pages: list[str]) -> None:
    """Render an executed notebook, with its prose as committed now, unless the page already shows just that."""
    target, committed = executed.with_suffix(".html"), json.loads(book.path.read_text(encoding="utf-8"))["cells"]
    prose = ["".join(cell["source"]) for cell in committed if cell["cell_type"] == "markdown"]
    mark = hashlib.sha256(f"{file_hash(executed)}{prose}{pages}".encode()).hexdigest()
    if target.is_file() and mark in target.read_text(encoding="utf-8")[-100:]:
        return
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.read(executed, 4)
    shown = [cell for cell in notebook.cells if cell.cell_type == "markdown" and not _is_added(cell)]
    for cell, text in zip(shown, prose, strict=False) if len(shown) == len(prose) else ():
        cell.source = text
    page, _ = HTMLExporter(template_name="lab", embed_images=True).from_notebook_node(
        notebook, {"metadata": {"name": book.title, "path": str(book.path.parent)}})
    page = re.sub(r'href="(?:\./)?(\d\d_[\w-]+)\.ipynb(?=["#])',
                  lambda link: f'href="{link[1]}.html' if link[1] in pages else link[0], page)
    page = re.sub(r"<body[^>]*>", r'\g<0><p style="font: 15px system-ui; margin: 1em 2em"><a href="index.html">'
                  "← All results</a></p>", page, count=1)
    _write(target, f"{page}\n<!-- {mark} -->\n")


def device_name(asked: str) -> str:
    """Name what was computed on: the first NVIDIA GPU unless the CPU was asked for."""
    if asked != "cpu" and shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True)
        if found.returncode == 0 and found.stdout.strip():
            return found.stdout.splitlines()[0]
    return f"CPU, {os.cpu_count()} cores"


def publish(books: list[Notebook], outcomes: dict[str, dict], settings: Settings) -> None:
    """Copy what this run made to where it is committed: notebooks, figures, predictions, the tables of README.

    Raises
    ------
    Refused
        If a notebook did not succeed, ran with other values than its defaults, or changed since; nothing is copied.
    """
    import nbformat

    ready, faults = {}, []
    for book in books:
        status = outcomes[book.name]["status"]
        if status in ("failed", "skipped"):
            faults.append(f"{book.name}: {status} ({outcomes[book.name]['reason']})")
        if status not in ("run", "fresh"):
            continue
        used = _read_json(settings.stamp(book))["values"]
        faults += [f"{book.name}: {name} was {used[name]!r}, its default is {default!r}"
                   for name, default in json.loads(json.dumps(book.parameters)).items()
                   if name != "DEVICE" and used[name] != default]
        ready[book.path] = nbformat.read(book.path, 4)
        if not take_outputs(ready[book.path], nbformat.read(settings.executed(book), 4), settings):
            faults.append(f"{book.name}: its code is not the code that ran; run it again")
    if faults:
        raise Refused("nothing was published, because of\n  " + "\n  ".join(faults))
    rewrite_readme(settings.project / "README.md", books, outcomes, settings)  # first: it may refuse
    for path, notebook in ready.items():
        _write(path, nbformat.writes(notebook) + "\n")
        _mirror(settings.work / "figures", settings.project / "figures", f"{path.name[:2]}_*.png")
    results = settings.project / "data/results" / settings.corpus / settings.policy_work.name
    for source in [*(settings.policy_work / "predictions").glob("*.parquet"), settings.policy_work / "results.csv",
                   settings.policy_work / "folds.csv", settings.reports / "run.json"]:
        if source.is_file():
            _write(results / source.name, source.read_bytes())


def take_outputs(notebook, executed, settings: Settings) -> bool:
    """Give a committed notebook the outputs of its executed copy; False when that ran other code.

    Equal runs give equal bytes, and nothing tells of the machine: metadata, progress bars and folders are dropped.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    done = [cell for cell in executed.cells if cell.cell_type == "code" and not _is_added(cell)]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {"tags": ["parameters"]} if "parameters" in cell.metadata.get("tags", []) else {}
    for count, (cell, run_cell) in enumerate(zip(cells, done, strict=False), start=1):
        cell.execution_count, cell.outputs = count, []
        for output in run_cell.outputs:
            if output.output_type == "stream":
                if output.name == "stderr":  # progress bars: "12%|███   |" drawn again and again
                    lines = re.split(r"[\r\n]", output.text)
                    lines = [line for line in lines if not re.search(r"\d%\||\dit \[", line)]
                    output.text = "\n".join(lines) if any(line.strip() for line in lines) else ""
                output.text = without_places(output.text, settings)
                if cell.outputs and cell.outputs[-1].get("name") == output.name:
                    cell.outputs[-1].text += output.text
                    continue
            elif output.output_type == "execute_result":
                output.execution_count = count
            for kind, content in output.get("data", {}).items():
                output.data[kind] = without_places(content, settings) if kind.startswith("text/") else content
            if output.get("text") != "" and "application/vnd.jupyter.widget-view+json" not in output.get("data", {}):
                cell.outputs.append(output)
    return [cell.source for cell in cells] == [cell.source for cell in done]


def without_places(text: str, settings: Settings) -> str:
    """Replace the folders of this machine in a text by what a reader knows."""
    places = {settings.work.parent: "SER_WORK", paths.data(): "SER_DATA", Path(sys.prefix): ".venv",
              settings.project: ".", Path.home(): "~"}
    for place in sorted(places.keys() - {Path("/")}, key=lambda place: -len(str(place))):
        text = text.replace(f"{place}/", "" if places[place] == "." else f"{places[place]}/")
        text = re.sub(rf"{re.escape(str(place))}\b", places[place], text)
    return re.sub(r"[\w/.~-]*/ipykernel_\d+/\d+\.py", "cell", text)


def rewrite_readme(readme: Path, books: list[Notebook], outcomes: dict[str, dict], settings: Settings) -> None:
    """Write the results and the cost of the published run between their marks in README."""
    results = []
    for group in result_groups(settings.policy_work / "results.csv"):
        results += [f"**{group['variant'].capitalize()}** (in %, NLL in nats)", "", "| model | " + " | ".join(
                    heading for heading, _, _ in COLUMNS) + " |", "|---" + "|--:" * len(COLUMNS) + "|"]
        for row in group["rows"]:
            cells = [f"**{cell['text']}**" if cell["best"] else cell["text"] for cell in row["cells"]]
            results.append(f"| {row['model']}{' (pretrained)' if row['pretrained'] else ''} | {' | '.join(cells)} |")
        results += ["", *(f"<sub>{protocol}</sub>  " for protocol in group["protocols"]), ""]
    cost = ["| notebook | seconds | peak memory |", "|---|--:|--:|"]
    for book in books:
        outcome = {"seconds": 0, "peak_mb": 0} | outcomes[book.name]
        figures = f"{outcome['seconds']:.0f} | {outcome['peak_mb'] / 1024:.1f} GB"
        cost.append(f"| [{book.title}](notebooks/{book.path.name}) | {figures} |")
    cost += ["", f"Measured on: {device_name(settings.device)}."]
    text = readme.read_text(encoding="utf-8")
    for block, lines in {"results": results, "cost": cost}.items():
        before, begin, rest = text.partition(f"<!-- {block}:begin -->\n")
        _, end, after = rest.partition(f"<!-- {block}:end -->")
        if not end:
            raise Refused(f"{readme} has no lines <!-- {block}:begin --> and <!-- {block}:end -->; put them where the "
                          "table shall stand.")
        text = before + begin + "\n".join([*lines, ""]) + end + after
    _write(readme, text)


def badges(project: Path, check: bool = False) -> list[str]:
    """Write the repository's address of pyproject.toml into badges and bootstrap cells; returns what differed."""
    url = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    url, differing = url.rstrip("/").removesuffix(".git"), []
    for path in [*sorted((project / "notebooks").glob("*.ipynb")), project / "README.md"]:
        before = path.read_text(encoding="utf-8")
        own = path.name if path.suffix == ".ipynb" else r"\g<1>"  # a badge opens the notebook that it stands in
        after = re.sub(r"(?<=colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+/blob/main/notebooks/([\w-]+\.ipynb)",
                       rf"{'/'.join(url.split('/')[-2:])}/blob/main/notebooks/{own}", before)
        after = re.sub(r'(REPOSITORY = \\?")[^"\\]*', rf"\g<1>{url}", after)
        if after != before:
            differing.append(path.name)
            if not check:
                _write(path, after)
    return differing


def _is_added(cell) -> bool:
    return not {"injected-parameters", "papermill-error-cell-tag"}.isdisjoint(cell.metadata.get("tags", []))


def _mirror(source: Path, target: Path, pattern: str) -> None:
    wanted = {path.name: path for path in source.glob(pattern)}
    for gone in [path for path in target.glob(pattern) if path.name not in wanted]:
        gone.unlink()
    for name, path in wanted.items():
        _write(target / name, path.read_bytes())


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _write(path: Path, content: str | bytes) -> None:
    write_atomically(path, lambda handle: handle.write(content.encode() if isinstance(content, str) else content))


def settings_from(options: argparse.Namespace) -> Settings:
    """Check the options against what there is."""
    from helpers import corpora  # late: badges need no corpora

    try:
        corpus = corpora.get(options.corpus)
        if options.corpus not in corpora.CORPORA:
            corpora.locate(options.corpus)  # a folder of one's own, or a slip of the pen
    except (ValueError, FileNotFoundError) as error:
        raise Refused(str(error)) from None
    profile = options.profile or ("quick" if options.corpus == "demo" else "full")
    profiles = sorted(path.stem for path in (paths.PROJECT / "helpers/profiles").glob("*.yaml"))
    policies = ["", corpus.default_policy, *corpus.policies]
    for kind, name, known in [("profile", profile, profiles), ("label policy", options.policy, policies)]:
        if name not in known:
            raise Refused(f"there is no {kind} {name!r}; there are {', '.join(dict.fromkeys(filter(None, known)))}.")
    return Settings(
        project=paths.PROJECT, work=paths.work(options.corpus), corpus=options.corpus, synthetic=corpus.synthetic,
        policy="" if options.policy == corpus.default_policy else options.policy, default_policy=corpus.default_policy,
        profile=profile, device=options.device, allow_incomplete=options.allow_incomplete, force=options.force,
        first=options.first and options.first.zfill(2), fingerprint=corpora.fingerprint,
        only=tuple(number.strip().zfill(2) for number in options.only.split(",") if number.strip()))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns 0 when nothing failed, 1 when something did, 2 for a wrong option."""
    parser = argparse.ArgumentParser(prog="run_all.sh", allow_abbrev=False)
    parser.add_argument("command", nargs="?", choices=["run", "badges"], default="run")
    parser.add_argument("--corpus", default="demo")
    parser.add_argument("--from", dest="first", default="")
    for option in ("--policy", "--profile", "--only"):
        parser.add_argument(option, default="")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    for flag in ("--force", "--allow-incomplete", "--publish", "--check"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args(arguments)
    if options.command == "badges":
        differing = badges(paths.PROJECT, options.check)
        print("differ:" if options.check else "rewritten:", ", ".join(differing) or "none")
        return int(options.check and bool(differing))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends the kernel too
    for name, place in {"SER_DATA": paths.data(), "SER_WORK": paths.work()}.items():
        if os.environ.get(name):
            os.environ[name] = str(place)  # kernels work in another folder: a relative one would be lost on them
    code = 2
    try:
        settings = settings_from(options)
        books = [read_notebook(path) for path in sorted((settings.project / "notebooks").glob("[0-9][0-9]_*.ipynb"))]
        with locked(settings.work):
            outcomes = run(books, settings)
            print_table(outcomes, write_report(books, outcomes, settings))
            code = int(any(outcome["status"] == "failed" for outcome in outcomes.values()))
            if options.publish:
                code = 1
                publish(books, outcomes, settings)
                code = 0
    except Refused as refusal:
        print(f"run_all.sh: {refusal}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nrun_all.sh: interrupted; started again it continues with this notebook.", file=sys.stderr)
        code = 130
    return code


def print_table(outcomes: dict[str, dict], index: Path) -> None:
    """Print what became of every notebook, the total and where the report lies."""
    print(f"\n{'notebook':<28} {'status':<8} {'cells':>5} {'seconds':>9} {'peak MB':>8}")
    for name, outcome in outcomes.items():
        shown = {"cells": "–", "seconds": "–", "peak_mb": "–"} | outcome
        print(f"{name:<28} {shown['status']:<8} {shown['cells']:>5} {shown['seconds']:>9} {shown['peak_mb']:>8}"
              + f"  {shown['reason']}" * (shown["status"] == "skipped"))
    done = [outcome["seconds"] for outcome in outcomes.values() if outcome["status"] in ("run", "failed", "skipped")]
    print(f"{'total of this run':<43} {sum(done):>9.1f}\n\nReport: {index}")


if __name__ == "__main__":
    sys.exit(main())
