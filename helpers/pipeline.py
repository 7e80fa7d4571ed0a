"""What run_all.sh calls: notebooks through papermill, skipping what is fresh; then the report, and publishing.

A notebook that succeeded leaves a *stamp* under ``SER_WORK/<corpus>/runs/``: hashes of its code, of its parameter
values, of the helpers it imports, of every table it read and wrote (told by ``helpers.tables`` through the file that
``SER_RUN_LOG`` names) and of its executed copy in ``reports/<corpus>/``. It is skipped while all of these hold. The
stamp goes before the notebook starts and comes back when it has succeeded: a kill leaves nothing that looks finished.
"""

import argparse
import ast
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import yaml

from helpers import mirror, paths
from helpers.notebooks import (
    Notebook,
    Refused,
    Settings,
    read_json,
    read_notebook,
    values_for,
    write,
)
from helpers.publish import badges, publish
from helpers.report import write_report
from helpers.tables import file_hash

# of helpers.pretrained, helpers.text and helpers.corpora
SKIPPED = {
    "WeightsMissing": "weights missing",
    "TextMissing": "no text",
    "CorporaMissing": "one corpus alone",
}
PROCESSES = ".processes.json"  # in a corpus's work folder: what the run there has started
UNTRACKED = {
    "plots",
    "pipeline",
    "mirror",
}  # they change how things look or where they lie, not what comes out
COST = ("longest", "largest_mb")  # s and MB: what a notebook took at most with the same values


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns 0 when nothing failed, 1 when something did, 2 for a wrong option."""
    parser = argparse.ArgumentParser(prog="run_all.sh", allow_abbrev=False)
    parser.add_argument("command", nargs="?", choices=["run", "badges"], default="run")
    parser.add_argument("--corpus", default="demo")
    parser.add_argument("--from", dest="first", default="")
    for option in ("--policy", "--profile", "--only"):
        parser.add_argument(option, default="")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    for flag in ("--force", "--allow-incomplete", "--published", "--publish", "--check"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args(arguments)
    if options.command == "badges":
        differing = badges(paths.PROJECT, options.check)
        print("differ:" if options.check else "rewritten:", ", ".join(differing) or "none")
        return int(options.check and bool(differing))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends the kernel too
    for name, place in {
        "SER_DATA": paths.data(),
        "SER_WORK": paths.work(),
        "SER_MIRROR": paths.mirror(),
    }.items():
        if os.environ.get(name):
            os.environ[name] = str(
                place
            )  # kernels work in another folder: a relative one would be lost on them
    code = 2
    try:
        settings = settings_from(options)
        books = [
            read_notebook(path)
            for path in sorted((settings.project / "notebooks").glob("[0-9][0-9]_*.ipynb"))
        ]
        with locked(settings.work):
            bring_back()
            outcomes = run(books, settings)
            print_table(outcomes, write_report(books, outcomes, settings))
            mirror.push(wait=600)
            code = int(any(outcome["status"] == "failed" for outcome in outcomes.values()))
            if options.publish:
                code = 1
                publish(books, outcomes, settings)
                code = 0
    except Refused as refusal:
        print(f"run_all.sh: {refusal}", file=sys.stderr)
    except OSError as error:  # a full disk, mostly
        code = 1
        print(f"run_all.sh: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(
            "\nrun_all.sh: interrupted; started again it continues with this notebook.",
            file=sys.stderr,
        )
        code = 130
    return code


def bring_back() -> None:
    """Start from what the mirror has; without it, hours might go by on what was computed before."""
    try:
        mirror.start()
    except (OSError, ValueError) as error:
        raise Refused(str(error)) from None


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
    for kind, name, known in [
        ("profile", profile, profiles),
        ("label policy", options.policy, policies),
    ]:
        if name not in known:
            raise Refused(
                f"there is no {kind} {name!r}; there are {', '.join(dict.fromkeys(filter(None, known)))}."
            )
    return Settings(
        project=paths.PROJECT,
        work=paths.work(options.corpus),
        corpus=options.corpus,
        synthetic=corpus.synthetic,
        policy="" if options.policy == corpus.default_policy else options.policy,
        default_policy=corpus.default_policy,
        profile=profile,
        device=options.device,
        allow_incomplete=options.allow_incomplete,
        force=options.force,
        published=options.published,
        first=options.first and options.first.zfill(2),
        fingerprint=corpora.fingerprint,
        only=tuple(number.strip().zfill(2) for number in options.only.split(",") if number.strip()),
    )


def run(books: list[Notebook], settings: Settings) -> dict[str, dict]:
    """Run what is stale among the chosen notebooks, in order, up to the first failure; one outcome per notebook."""
    profile = settings.project / f"helpers/profiles/{settings.profile}.yaml"
    values = values_for(books, settings, yaml.safe_load(profile.read_text(encoding="utf-8")) or {})
    numbers, outcomes, failed = [book.number for book in books], {}, False
    if strange := {*settings.only, settings.first} - {*numbers, ""}:
        raise Refused(
            f"there is no notebook {', '.join(sorted(strange))}; there are {', '.join(numbers)}."
        )
    wanted = settings.only or [
        book.number for book in books if "PUBLISHED" in book.parameters or not settings.published
    ]
    for book in books:
        stamp = read_json(settings.stamp(book))
        outcome = {"reason": ""} | {
            key: stamp[key] for key in ("cells", "seconds", "peak_mb", *COST) if key in stamp
        }
        lacking = read_json(skipped_stamp(book, settings))
        if failed or book.number < settings.first or book.number not in wanted:
            outcome["status"] = "earlier" if stamp else "not run"
        elif (
            lacking
            and book.number not in settings.only
            and not why_stale(book, values[book.name], settings, lacking)
        ):
            outcome |= {key: lacking[key] for key in ("status", "reason", "cells", "peak_mb")} | {
                "seconds": 0.0
            }
        elif not (reason := why_stale(book, values[book.name], settings)):
            outcome["status"] = "fresh"
        else:
            if not sys.stdout.isatty():
                print(f"{book.name:<28} starts ({reason})", flush=True)
            outcome = execute(book, values[book.name], settings)
            failed = outcome["status"] == "failed"
            print(
                f"{book.name:<28} {outcome['cells']:>3} cells {outcome['seconds']:>12.1f} s  {outcome['status']}",
                *outcome["reason"].splitlines(),
                sep="\n    ",
                flush=True,
            )
            mirror.push()
        outcomes[book.name] = outcome
    return outcomes


def why_stale(book: Notebook, values: dict, settings: Settings, stamp: dict | None = None) -> str:
    """Say why a notebook has to run; an empty string when its last run (or that of `stamp`) still holds."""
    stamp = read_json(settings.stamp(book)) if stamp is None else stamp
    if settings.force or not stamp:
        return "forced" if settings.force else "no finished run"
    for part, now in recipe(book, values, settings).items():
        if now != stamp[part]:
            return (
                "its code changed"
                if part == "code"
                else f"{part} changed: "
                + ", ".join(
                    sorted(
                        name for name in now | stamp[part] if now.get(name) != stamp[part].get(name)
                    )
                )
            )
    if "at_hand" in stamp and stamp["at_hand"] != at_hand():
        return "what it lacked may be there now"
    files = stamp["inputs"] | stamp["outputs"] | {str(settings.executed(book)): stamp["executed"]}
    for path, digest in files.items():
        try:
            now = (
                settings.fingerprint(path[4:]) if path.startswith("raw:") else file_hash(Path(path))
            )
        except FileNotFoundError:
            now = None
        if now != digest:
            return f"{Path(path).name} {'changed' if now else 'is gone'}"
    return ""


def at_hand() -> str:
    """Hash the names of the corpora and pretrained models on this machine: a notebook that lacked one is tried again then."""
    hub = (
        os.environ.get("HF_HUB_CACHE")
        or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser() / "hub"
    )
    names = [
        str(path)
        for place in (paths.data(), paths.models(), Path(hub))
        for pattern in ("*", "*/*")
        for path in sorted(place.glob(pattern))
    ]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def skipped_stamp(book: Notebook, settings: Settings) -> Path:
    """Return where it is written down that a notebook was skipped for what it lacks."""
    return settings.stamp(book).with_suffix(".skipped.json")


def recipe(book: Notebook, values: dict, settings: Settings) -> dict:
    """Return what a notebook's outcome depends on besides its inputs."""
    return {
        "code": hashlib.sha256("\n# cell\n".join(book.code).encode()).hexdigest(),
        "values": json.loads(
            json.dumps(book.parameters | values)
        ),  # as a stamp gives them back: tuples are lists
        "helpers": helper_hashes(book, settings.project / "helpers"),
    }


def helper_hashes(book: Notebook, folder: Path) -> dict[str, str]:
    """Return the hashes of the helpers modules that a notebook imports, directly or through others."""
    found, queue = (
        {},
        {
            *imported(
                re.sub(r"^(\s*)[%!].*$", r"\1pass", "\n".join(book.code), flags=re.M),
                book.path.name,
            )
        },
    )
    while queue:
        source = folder / f"{(name := queue.pop())}.py"
        if name not in found | dict.fromkeys(UNTRACKED) and source.is_file():
            found[name] = file_hash(source)
            queue |= imported(source.read_text(encoding="utf-8"), source.name)
    return dict(sorted(found.items()))


@functools.cache  # most notebooks lead to the same modules, and parsing each anew would be most of a run with nothing to do
def imported(source: str, where: str) -> frozenset[str]:
    """Return the names that Python source imports from the helpers package."""
    try:
        nodes = [
            node
            for node in ast.walk(ast.parse(source))
            if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
    except SyntaxError as error:
        raise Refused(
            f"{where} is not Python: {error.msg} in {(error.text or '').strip()!r}."
        ) from None
    names = set()
    for node in nodes:
        package = "helpers." * bool(getattr(node, "level", 0)) + (getattr(node, "module", "") or "")
        for alias in node.names:
            parts = [part for part in f"{package}.{alias.name}".split(".") if part]
            names.update(parts[1:2] if parts[0] == "helpers" else [])
    return frozenset(names)


def execute(book: Notebook, values: dict, settings: Settings) -> dict:
    """Run one notebook into ``reports/`` and stamp it; returns status, reason, cells, seconds and peak_mb."""
    stamp = settings.stamp(book)
    log = stamp.with_suffix(".log")
    stamp.parent.mkdir(parents=True, exist_ok=True)
    settings.reports.mkdir(parents=True, exist_ok=True)
    cost = stamp.with_suffix(".cost.json")  # stays when a run fails
    before = read_json(cost) or read_json(stamp)
    for old in [
        stamp,
        skipped_stamp(book, settings),
        log,
        *(settings.work / "figures").glob(f"{book.number}_*.png"),
    ]:
        old.unlink(missing_ok=True)  # a figure that it draws no longer must not stay in the report
    record = recipe(book, values, settings)  # now: somebody may edit the notebook while it runs
    os.environ["SER_RUN_LOG"] = str(log)
    try:
        with _Watch(book, settings.work / PROCESSES) as watch:
            fault = run_papermill(book, values, settings, watch)
        events = (
            [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            if log.exists()
            else []
        )
    finally:
        del os.environ["SER_RUN_LOG"]
        log.unlink(missing_ok=True)
    outcome = {
        "status": "failed" if fault else "run",
        "reason": fault,
        "cells": watch.cells,
        "seconds": round(watch.seconds(), 1),
        "peak_mb": round(watch.peak / 2**20),
    }
    # a run from the cache is shorter and smaller: what they cost is the longest and the largest with these values
    before = before if before.get("values") == record["values"] else {"seconds": 0}
    outcome["longest"] = max(outcome["seconds"], before.get("longest", before["seconds"]))
    outcome["largest_mb"] = max(
        outcome["peak_mb"], before.get("largest_mb", before.get("peak_mb", 0))
    )
    kind, _, text = fault.partition(": ")
    if kind in SKIPPED:  # nothing is wrong with the notebook
        outcome |= {"status": "skipped", "reason": f"{SKIPPED[kind]}: {text.splitlines()[0]}"}
    if outcome["status"] != "failed":
        written = {event["path"]: event["sha256"] for event in events if event["event"] == "write"}
        read = {
            event["path"]: event["sha256"] for event in reversed(events) if event["event"] == "read"
        }
        record |= {
            "inputs": {path: read[path] for path in read.keys() - written.keys()},
            "outputs": written,
            "executed": file_hash(settings.executed(book)),
            **outcome,
        }
        if outcome["status"] == "skipped":
            write(
                skipped_stamp(book, settings), json.dumps(record | {"at_hand": at_hand()}, indent=1)
            )
            return outcome
        write(stamp, json.dumps(record, indent=1))
        write(
            cost,
            json.dumps(
                {"values": record["values"]} | {key: outcome[key] for key in (*COST, "seconds")}
            ),
        )
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
            return super().execute_managed_notebook(
                nb_man, kernel_name, kernel_manager_class=ThisPython, **options
            )

    papermill_engines.register("watched", Engine)
    try:
        papermill.execute_notebook(
            book.path,
            settings.executed(book),
            values,
            engine_name="watched",
            kernel_name="python3",
            language="python",
            cwd=book.path.parent,
            progress_bar=False,
            start_timeout=180,
        )
    except papermill.PapermillExecutionError as error:
        return (
            f"{error.ename}: {error.evalue[:2000]}\nin cell [{error.exec_count}], which begins: "
            f"{error.source.strip().partition(chr(10))[0]}\nSee {settings.executed(book).with_suffix('.html')}"
        )
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}\nafter {watch.cells} of {watch.total} cells (was memory short?)"
    return ""


class _Watch(threading.Thread):
    """Follows a running notebook: the memory of its kernel and the kernel's children, and the progress line."""

    def __init__(self, book: Notebook, record: Path) -> None:
        super().__init__(daemon=True)
        self.record = record
        self.label, self.total, self.cells, self.peak = (
            book.name,
            len(book.code) + 1,
            0,
            0,
        )  # + the injected cell
        self.seen, self.over, self.started = set(), threading.Event(), time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def run(self) -> None:
        while not self.over.wait(0.5):
            children, memory = psutil.Process().children(recursive=True), 0
            if not self.seen.issuperset(children):
                self.seen.update(children)
                with contextlib.suppress(
                    OSError, psutil.Error
                ):  # of a full disk the notebook tells
                    write(
                        self.record,
                        json.dumps({child.pid: child.create_time() for child in self.seen}),
                    )
            for child in children:
                with contextlib.suppress(psutil.Error):
                    memory += child.memory_info().rss
            self.peak = max(self.peak, memory)
            if sys.stdout.isatty():
                line = (
                    f"{self.label:<28} {self.cells:>3}/{self.total} cells {self.seconds():>8.0f} s"
                )
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
        self.record.unlink(missing_ok=True)
        print("\r\033[K" if sys.stdout.isatty() else "", end="")


@contextlib.contextmanager
def locked(folder: Path):
    """Hold a corpus's work folder, so that two runs don't write into it at once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    except OSError as error:
        raise Refused(
            f"can't write into {folder} ({error.strerror}): set SER_WORK to a folder that can be written"
        ) from None
    with open(folder / ".lock", "a+", encoding="utf-8") as handle:
        handle.seek(0)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(
                f"another run (process {handle.read().strip() or '?'}) works in {folder}. Wait for it, stop "
                "it, or set SER_WORK to another folder."
            ) from None
        end_leftovers(folder / PROCESSES)
        handle.truncate(0)
        print(os.getpid(), file=handle, flush=True)
        yield


def end_leftovers(record: Path) -> None:
    """End what a killed run left: a worker would go on with its fold for minutes, and the new run begins the same one."""
    for pid, created in read_json(record).items():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(int(pid))
            if abs(process.create_time() - created) < 0.1:  # else somebody else has the number now
                process.kill()
                process.wait(10)
    record.unlink(missing_ok=True)


def print_table(outcomes: dict[str, dict], index: Path) -> None:
    """Print what became of every notebook, the total and where the report lies."""
    print(f"\n{'notebook':<28} {'status':<8} {'cells':>5} {'seconds':>9} {'peak MB':>8}")
    for name, outcome in outcomes.items():
        shown = {"cells": "–", "seconds": "–", "peak_mb": "–"} | outcome
        print(
            f"{name:<28} {shown['status']:<8} {shown['cells']:>5} {shown['seconds']:>9} {shown['peak_mb']:>8}"
            + f"  {shown['reason']}" * (shown["status"] == "skipped")
        )
    done = [
        outcome["seconds"]
        for outcome in outcomes.values()
        if outcome["status"] in ("run", "failed", "skipped")
    ]
    print(f"{'total of this run':<43} {sum(done):>9.1f}\n\nReport: {index}")


if __name__ == "__main__":
    sys.exit(main())
