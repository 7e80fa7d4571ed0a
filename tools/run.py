"""What run_all.sh calls: notebooks through papermill, skipping what is fresh; then the report.

A notebook that succeeded leaves a *stamp* under ``SER_WORK/<corpus>/runs/``: its parameter values,
and hashes of its code, of the helpers that it imports, of every table that it read and wrote (told
by ``helpers.tables`` through the file that ``SER_RUN_LOG`` names) and of its executed copy in
``reports/<corpus>/``. It is skipped while all of these hold. Before a notebook starts, its stamp is
reduced to what earlier runs cost: a kill leaves nothing that looks finished.
"""

import argparse
import ast
import contextlib
import functools
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers import corpora, paths, tables
from helpers.cache import code_of, hash_of
from tools.notebook import Notebook, Options, Refused, read_json, read_notebooks, values_for, write
from tools.publish import publish, write_badges
from tools.report import write_report

MISSING = "Missing"  # of helpers.paths: nothing is wrong with the notebook
AVAILABLE = "available:"  # stands in a stamp for which corpora and models there are
EXIT_CODES = {Refused: 2, KeyboardInterrupt: 130}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0: nothing failed, 1: something did, 2: refused, 130: interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends the kernel too
    options = parse(arguments)
    try:
        if options.command == "badges":
            write_badges()
            return 0
        prepare(options)
        books = read_notebooks()
        with locked(options.work):
            outcomes = run(books, options)
            index = write_report(books, outcomes, options)
            print(f"\n{'notebook':<28} {'status':<8} {'seconds':>9} {'peak MB':>8}")
            print_outcomes(outcomes)
            print(f"\nReport: {index}")
            paths.copy_to_mirror()
            if options.publish:
                publish(books, outcomes, options)
    except (Refused, OSError, SyntaxError, KeyboardInterrupt) as error:  # OSError: a full disk
        text = str(error) or "interrupted; started again it continues with this notebook."
        print(f"\nrun_all.sh: {text}", file=sys.stderr)
        return EXIT_CODES.get(type(error), 1)
    return int(any(outcome["status"] == "failed" for outcome in outcomes.values()))


def parse(arguments: list[str] | None) -> Options:
    """Read the command line; ``run_all.sh --help`` explains the options."""
    parser = argparse.ArgumentParser(prog="run_all.sh", allow_abbrev=False)
    parser.add_argument("command", nargs="?", choices=["run", "badges"], default="run")
    parser.add_argument("--corpus", default="demo")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    for option in ("--labels", "--profile", "--from", "--only"):
        parser.add_argument(option, default="")
    for flag in ("--force", "--allow-incomplete", "--published", "--publish"):
        parser.add_argument(flag, action="store_true")
    return parser.parse_args(arguments, Options())


def prepare(options: Options) -> None:
    """Check the options, fill in what was not given, and tell kernels through the environment."""
    try:
        paths.start_mirror()  # without what it has, hours might go by on what was computed before
        options.about = corpora.get(options.corpus)
        if options.corpus not in corpora.CORPORA:
            corpora.locate(options.corpus)  # a folder of the user's, or a slip of the pen
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from None
    options.labels = options.labels or options.about.default_labels
    options.profile = options.profile or ("quick" if options.corpus == "demo" else "full")
    profiles = [path.stem for path in sorted(paths.PROJECT.glob("tools/profiles/*.yaml"))]
    label_sets = dict.fromkeys([options.about.default_labels, *options.about.label_sets])
    for name, known in {"profile": profiles, "labels": label_sets}.items():
        if (given := getattr(options, name)) not in known:
            raise Refused(f"--{name} {given}: it does not exist; there are {', '.join(known)}.")
    os.environ |= {
        "SER_CORPUS": options.corpus,
        "SER_LABELS": options.labels,
        "SER_DATA": str(paths.data()),  # kernels work in another folder than the caller
        "SER_WORK": str(paths.work()),
        "SER_MODELS": str(paths.models()),
        "JUPYTER_PREFER_ENV_PATH": "1",  # this very Python, whatever kernels are registered
        "JUPYTER_PATH": "",
    }


def run(books: list[Notebook], options: Options) -> dict[str, dict]:
    """Run what is stale among the chosen notebooks, in order, up to the first failure.

    Returns
    -------
    dict
        An outcome per notebook: ``status`` (run, fresh, skipped, failed, earlier, not run), and,
        where it ran now or earlier, ``reason``, ``seconds``, ``peak_mb``, and what it cost at most
        with the same parameters: ``longest`` (s) and ``largest_mb``.
    """
    profile = paths.PROJECT / f"tools/profiles/{options.profile}.yaml"
    profiled = yaml.safe_load(profile.read_text(encoding="utf-8")) or {}
    skipped = profiled.pop("skip", {})  # number -> reason
    values = values_for(books, options, profiled)
    wanted, outcomes, failed = chosen(books, options), {}, False
    for book in books:
        outcome = read_json(options.stamp(book)).get("outcome", {"status": ""})
        if failed or book.number not in wanted:
            outcome["status"] = "earlier" if outcome["status"] == "run" else "not run"
        elif book.number in skipped and not options.only:
            outcome = {"status": "skipped", "reason": skipped[book.number]}
            print_outcomes({book.name: outcome})
        elif reason := why_stale(book, values[book.name], options):
            print(f"{book.name:<28} starts ({reason})", flush=True)
            outcome = execute(book, values[book.name], options)
            failed = outcome["status"] == "failed"
            print_outcomes({book.name: outcome})
        elif outcome["status"] == "run":
            outcome["status"] = "fresh"
        outcomes[book.name] = outcome
    return outcomes


def chosen(books: list[Notebook], options: Options) -> list[str]:
    """Return the numbers of the notebooks that the command line asks for."""
    numbers, first = [book.number for book in books], getattr(options, "from").zfill(2)
    only = [number.strip().zfill(2) for number in options.only.split(",") if number.strip()]
    if strange := {first, *only} - {"00", *numbers}:
        raise Refused(
            f"there is no notebook {', '.join(sorted(strange))}; there are {', '.join(numbers)}."
        )
    if options.published and not only:
        only = [book.number for book in books if "PUBLISHED" in book.parameters]
    return [number for number in only or numbers if number >= first]


def why_stale(book: Notebook, values: dict, options: Options) -> str:
    """Say why a notebook has to run; an empty string when its last run still holds."""
    stamp = read_json(options.stamp(book))
    if options.force or "outcome" not in stamp:
        return "forced" if options.force else "no finished run"
    now, before = made_from(book, values, options), stamp["made_from"]
    if changed := [name for name in now if now[name] != before.get(name)]:
        return f"changed: {', '.join(changed)}"
    for name, digest in stamp["files"].items():
        if (found := hash_now(name)) != digest:
            return f"{name} {'changed' if found else 'is gone'}"
    return ""


def hash_now(name: str) -> str:
    """Return the hash of what a stamp names; "" where it is not there.

    That is a file, a raw corpus (``raw:<name>``), or which corpora and models there are.
    """
    if name == AVAILABLE:
        return available()
    try:
        if name.startswith("raw:"):
            return corpora.fingerprint(name.removeprefix("raw:"))
        return tables.file_hash(paths.work() / name)  # an absolute path stays what it is
    except FileNotFoundError:
        return ""


def available() -> str:
    """Hash the names of the corpora and pretrained models on this machine."""
    hub = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser() / "hub"
    places = (paths.data(), paths.models(), Path(os.environ.get("HF_HUB_CACHE") or hub))
    names = [sorted(map(str, place.glob(p))) for place in places for p in ("*", "*/*")]
    return hash_of(names)


def made_from(book: Notebook, values: dict, options: Options) -> dict:
    """Return what a notebook's outcome depends on besides files, by name.

    Names in capitals are those of parameters. Of the helpers that it imports, directly or through
    others, comments and docstrings do not count, and of the records of corpora only this corpus's.
    """
    code = "\n# cell\n".join(book.code)
    found = json.loads(json.dumps(book.parameters | values))  # as a stamp gives them back
    found["code"] = hash_of(code)
    queue = parsed(re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.M), book.path.name)[1]
    while queue:
        name, *queue = queue
        path = paths.PROJECT / f"helpers/{name}.py"
        # plots change how things look, not what comes out
        if f"helpers.{name}" not in found and name != "plots" and path.is_file():
            code, imports = parsed(path.read_text(encoding="utf-8"), path.name)
            if name == "corpora":
                code += described(options.about)
            found[f"helpers.{name}"] = hash_of(code)
            queue += imports
    return found


def described(corpus: corpora.Corpus) -> str:
    """Return what a corpus's record says, and those of its members, the code of functions too."""
    records = [corpus, *map(corpora.get, corpus.members)]
    functions = [(r.sexes.__code__.co_code, r.sexes.__code__.co_consts) for r in records]
    return re.sub(r" at 0x\w+", "", repr([records, functions]))  # where a function lies


@functools.cache  # most notebooks lead to the same modules, and parsing takes time
def parsed(source: str, where: str) -> tuple[str, list[str]]:
    """Return code without comments, docstrings and ``CORPORA``, and the helpers that it imports."""
    statements = [ast.unparse(node) for node in code_of(source, where).body]
    code = "\n".join(text for text in statements if not re.match(r"CORPORA\b[^=\n]* =", text))
    names = re.findall(r"\bhelpers\.(\w+)", code)
    for clause in re.findall(r"\bfrom helpers import (.+)", code):
        names += re.findall(r"(\w+)(?: as \w+)?", clause)
    return code, names


def execute(book: Notebook, values: dict, options: Options) -> dict:
    """Run one notebook into ``reports/`` and stamp it; returns its outcome."""
    path, executed = options.stamp(book), options.executed(book)
    log = path.with_suffix(".log")
    stamp = {"made_from": made_from(book, values, options)}  # now: it may be edited while it runs
    stamp["cost"] = earlier_cost(read_json(path), stamp["made_from"])
    write(path, stamp)
    log.unlink(missing_ok=True)
    executed.parent.mkdir(parents=True, exist_ok=True)
    for figure in (options.work / "figures").glob(f"{book.number}_*.png"):
        figure.unlink()  # one that is drawn no longer must not stay in the report
    os.environ["SER_RUN_LOG"] = str(log)
    with watched(options.work) as spent:
        fault = run_papermill(book, values, executed)
    del os.environ["SER_RUN_LOG"]
    kind, _, text = fault.partition(": ")
    outcome = {"status": "failed" if fault else "run", "reason": fault, **spent}
    if kind == MISSING:
        outcome |= {"status": "skipped", "reason": f"missing: {text.splitlines()[0]}"}
    # a run from the cache is shorter and smaller: the cost is the longest and the largest
    outcome["longest"] = max(outcome["seconds"], stamp["cost"].get("longest", 0))
    outcome["largest_mb"] = max(outcome["peak_mb"], stamp["cost"].get("largest_mb", 0))
    if outcome["status"] != "failed":
        files = logged(log) | {executed.as_posix(): tables.file_hash(executed)}
        if kind == MISSING:
            files[AVAILABLE] = available()
        write(path, stamp | {"files": files, "outcome": outcome, "cost": outcome})
    return outcome


def earlier_cost(before: dict, now: dict) -> dict:
    """Return what earlier runs cost; nothing if they had other parameters."""
    known = before.get("made_from", {})
    same = all(known.get(name) == value for name, value in now.items() if name.isupper())
    return before.get("cost", {}) if same else {}


def logged(log: Path) -> dict[str, str]:
    """Return hashes of the files that a notebook read and wrote, as it left them.

    Names are places below SER_WORK where possible: it may move.
    """
    files, work = {}, f"{paths.work().as_posix()}/"
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        event = json.loads(line)
        name = event["path"].replace("\\", "/").removeprefix(work)
        if event["event"] == "write" or name not in files:
            files[name] = event["sha256"]
    return files


def run_papermill(book: Notebook, values: dict, executed: Path) -> str:
    """Execute a notebook; returns what went wrong, or an empty string."""
    import papermill  # here and not above: takes seconds, and often nothing has to run

    try:
        papermill.execute_notebook(
            book.path,
            executed,
            values,
            kernel_name="python3",
            language="python",
            cwd=book.path.parent,
            coalesce_streams=True,
            extra_arguments=["--log-level=CRITICAL"],
            progress_bar=sys.stdout.isatty(),
            start_timeout=180,
            shutdown_kernel="immediate",  # a polite end takes seconds
        )
    except papermill.PapermillExecutionError as error:
        return (
            f"{error.ename}: {error.evalue[:2000]}\nin cell [{error.exec_count}], which begins: "
            f"{error.source.strip().splitlines()[0]}\nSee {executed.with_suffix('.html')}"
        )
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}\nWas memory short?"
    return ""


@contextlib.contextmanager
def watched(folder: Path):
    """Follow what is started meanwhile for a corpus's work folder, and end what is left of it.

    Yields a dict that holds ``seconds`` and ``peak_mb``, of all processes together, afterwards.
    """
    spent, over, started = {"peak_mb": 0}, threading.Event(), time.monotonic()
    thread = threading.Thread(target=follow, args=(spent, over), daemon=True)
    thread.start()
    try:
        yield spent
    finally:
        over.set()
        thread.join()
        spent["seconds"] = round(time.monotonic() - started, 1)
        end_leftovers(folder)


def follow(spent: dict, over: threading.Event) -> None:
    """Note the largest memory of this process's children until it is over."""
    while not over.wait(0.5):
        with contextlib.suppress(psutil.Error):  # one that ends just now
            children = psutil.Process().children(recursive=True)
            memory = sum(child.memory_info().rss for child in children)
            spent["peak_mb"] = max(spent["peak_mb"], round(memory / 2**20))


def end_leftovers(folder: Path) -> None:
    """End processes that a notebook of this folder left: workers can outlive a killed kernel.

    They would go on with their fold for minutes, while the new run begins the same one.
    """
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # of somebody else
            log = process.environ().get("SER_RUN_LOG", "")
            if log.startswith(f"{folder}{os.sep}") and process.pid != os.getpid():
                process.kill()
                process.wait(10)


@contextlib.contextmanager
def locked(folder: Path):
    """Hold a corpus's work folder, so that two runs don't write into it at once."""
    lock, own = folder / ".lock", psutil.Process()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if lock.exists():
            refuse_if_running(lock)
            lock.unlink()
        with open(lock, "x", encoding="utf-8") as handle:
            handle.write(f"{own.pid} {own.create_time()}")
    except OSError as error:
        raise Refused(
            f"can't write into {folder} ({error.strerror}): set SER_WORK to a folder that can be "
            "written"
        ) from None
    end_leftovers(folder)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def refuse_if_running(lock: Path) -> None:
    """Refuse a folder whose lock names a process that lives, and is not another one by now."""
    pid, _, created = lock.read_text(encoding="utf-8").partition(" ")
    with contextlib.suppress(psutil.Error, ValueError):  # ended, or killed while it wrote
        process = psutil.Process(int(pid))
        if process.status() != "zombie" and abs(process.create_time() - float(created)) < 0.1:
            raise Refused(
                f"another run (process {pid}) works in {lock.parent}. Wait for it, stop it, or set "
                "SER_WORK to another folder."
            )


def print_outcomes(outcomes: dict[str, dict]) -> None:
    """Print a line for every notebook."""
    for name, outcome in outcomes.items():
        seconds, peak = outcome.get("seconds", "–"), outcome.get("peak_mb", "–")
        row = f"{name:<28} {outcome['status']:<8} {seconds:>9} {peak:>8}"
        print(row, *outcome.get("reason", "").splitlines(), sep="\n    ", flush=True)


if __name__ == "__main__":
    sys.exit(main())
