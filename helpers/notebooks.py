"""A committed notebook, what one call of run_all.sh asks of it, and the small files around them."""

import ast
import json
import re
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
    options = {"POLICY": settings.policy, "DEVICE": settings.device, "ALLOW_INCOMPLETE": settings.allow_incomplete,
               "PUBLISHED": settings.published}
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


def is_added(cell) -> bool:
    return not {"injected-parameters", "papermill-error-cell-tag"}.isdisjoint(cell.metadata.get("tags", []))


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
    write_atomically(path, lambda handle: handle.write(content.encode() if isinstance(content, str) else content))
