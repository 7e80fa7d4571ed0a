"""A committed notebook, what one call of run_all.sh asks of it, and the small files around them.

Run ``python -m helpers.notebooks NOTEBOOK [NAME=VALUE ...]`` to execute a notebook's cells in this very process. It is for
networks that are trained over several GPUs or machines, where ``accelerate launch`` starts the same program once for each.
"""

import ast
import io
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from helpers.cache import write_atomically


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
    published: bool = False
    force: bool = False
    fingerprint: Callable[[str], str] = str  # of the raw corpus of that name

    reports = property(lambda self: self.project / "reports" / self.corpus)
    policy_work = property(lambda self: self.work / (self.policy or self.default_policy))

    def executed(self, book: Notebook) -> Path:
        """Return where the executed copy of a notebook lies."""
        return self.reports / book.path.name

    def stamp(self, book: Notebook) -> Path:
        """Return where a notebook's stamp lies; what knows no label policy is not run again for another one."""
        policy = (
            (self.policy or self.default_policy or "default")
            if "POLICY" in book.parameters
            else "any"
        )
        return self.work / "runs" / policy / f"{book.name}.json"


def read_notebook(path: Path) -> Notebook:
    """Read a committed notebook; its parameters cell may hold nothing but ``NAME = literal`` lines."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = [
        (cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", []))
        for cell in cells
    ]
    tagged = [source for _, source, tags in sources if "parameters" in tags]
    if len(tagged) != 1:
        raise Refused(
            f"{path.name}: found {len(tagged)} cells tagged 'parameters', expected one. Tag the cell with "
            "the UPPERCASE literals (JupyterLab: property inspector, cell tags)."
        )
    parameters = {}
    for node in ast.parse(tagged[0]).body:
        try:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            parameters[target.id] = ast.literal_eval(node.value)
        except (AttributeError, ValueError):
            raise Refused(
                f"{path.name}: the parameters cell holds {ast.unparse(node)!r}, expected only NAME = "
                "literal. Derive values in a later cell: one derived here keeps its default."
            ) from None
    title = re.search(
        r"^# +(.+)$", "\n".join(source for kind, source, _ in sources if kind == "markdown"), re.M
    )
    return Notebook(
        path,
        title[1].strip() if title else path.stem,
        tuple(source for kind, source, _ in sources if kind == "code"),
        parameters,
    )


def values_for(books: list[Notebook], settings: Settings, profile: dict) -> dict[str, dict]:
    """Return what is injected into each notebook: the profile's values, then what the command line says.

    A profile has values per notebook number, and under ``all`` for every notebook that has the name.

    Raises
    ------
    Refused
        If a value has no parameter of its name: papermill would print a warning and run with the default.
    """
    profile = {
        f"{key:02d}" if isinstance(key, int) else key: given or {} for key, given in profile.items()
    }  # 07
    numbers, known = (
        [book.number for book in books],
        {name for book in books for name in book.parameters},
    )
    if strange := profile.keys() - {*numbers, "all"}:
        raise Refused(
            f"profile {settings.profile!r} names notebooks {sorted(strange)}; there are 'all' and {numbers}."
        )
    if strange := profile.get("all", {}).keys() - known:
        raise Refused(
            f"profile {settings.profile!r} sets {sorted(strange)} for all; notebooks have {sorted(known)}."
        )
    options = {
        "POLICY": settings.policy,
        "DEVICE": settings.device,
        "ALLOW_INCOMPLETE": settings.allow_incomplete,
        "PUBLISHED": settings.published,
    }
    options = {name: value for name, value in options.items() if value not in ("", "auto", False)}
    values = {}
    for book in books:
        general, asked = (
            {name: value for name, value in given.items() if name in book.parameters}
            for given in (profile.get("all", {}), options)
        )
        values[book.name] = (
            general | profile.get(book.number, {}) | asked | {"CORPUS": settings.corpus}
        )
        if strange := values[book.name].keys() - book.parameters.keys():
            raise Refused(
                f"{book.path.name} has no parameter {', '.join(sorted(strange))} (set by profile "
                f"{settings.profile!r} or run_all.sh); its parameters cell has {', '.join(book.parameters)}."
            )
    return values


def is_added(cell) -> bool:
    return not {"injected-parameters", "papermill-error-cell-tag"}.isdisjoint(
        cell.metadata.get("tags", [])
    )


def mirror(source: Path, target: Path, pattern: str) -> None:
    wanted = {path.name: path for path in source.glob(pattern)}
    for gone in [path for path in target.glob(pattern) if path.name not in wanted]:
        gone.unlink()
    for name, path in wanted.items():
        write(target / name, path.read_bytes())


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def write(path: Path, content: str | bytes) -> None:
    write_atomically(
        path, lambda handle: handle.write(content.encode() if isinstance(content, str) else content)
    )


def execute_here(book: Notebook, values: dict) -> None:
    """Execute a notebook's code cells in this process.

    Parameters
    ----------
    book
        From :func:`read_notebook`.
    values
        In place of the parameters of these names. ``N_JOBS`` is 1 unless given: the processes work on one fold together.
    """
    if strange := sorted(set(values) - set(book.parameters)):
        raise Refused(
            f"{book.path.name} has no parameter {', '.join(strange)}; it has {', '.join(book.parameters)}"
        )
    values = {
        name: value for name, value in {"N_JOBS": 1, **values}.items() if name in book.parameters
    }
    names, given = {"__name__": "__main__"}, False
    for number, code in enumerate(book.code, start=1):
        exec(
            compile(
                re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.M),
                f"{book.name}, cell {number}",
                "exec",
            ),
            names,
        )
        if not given and set(book.parameters) <= set(names):
            names.update(values)
            given = True


def main(arguments: list[str]) -> None:
    """Execute a notebook; values are Python literals, or text."""
    if not arguments or any("=" not in argument for argument in arguments[1:]):
        raise SystemExit(__doc__)
    os.environ.setdefault("MPLBACKEND", "agg")
    if os.environ.get("RANK", "0") != "0":
        sys.stdout = io.StringIO()  # one of the processes speaks for all
    values = {}
    for name, text in (argument.split("=", 1) for argument in arguments[1:]):
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    execute_here(read_notebook(Path(arguments[0])), values)


if __name__ == "__main__":
    main(sys.argv[1:])
