"""A committed notebook, what one call of run_all.sh asks of it, and the small files around them."""

import argparse
import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

from helpers import paths
from helpers.cache import write_atomically


class Refused(Exception):
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


class Options(argparse.Namespace):
    """The command line of run_all.sh, and where the files of such a run lie.

    Its ``labels`` is the name of a label set; ``about`` is the corpus's record in helpers.corpora.
    """

    work = property(lambda self: paths.work(self.corpus))
    labelled = property(lambda self: paths.work(self.corpus, self.labels))
    reports = property(lambda self: paths.reports(self.corpus))

    def executed(self, book: Notebook) -> Path:
        """Return where the executed copy of a notebook lies."""
        return self.reports / book.path.name

    def stamp(self, book: Notebook) -> Path:
        """Return where a notebook's stamp lies: one for each label set, if it knows label sets."""
        labels = (self.labels or "default") if "LABELS" in book.parameters else "any"
        return self.work / "runs" / labels / f"{book.name}.json"


def read_notebooks() -> list[Notebook]:
    """Read all committed notebooks, in order."""
    return [read_notebook(path) for path in sorted(paths.PROJECT.glob("notebooks/[0-9]*.ipynb"))]


def read_notebook(path: Path) -> Notebook:
    """Read a committed notebook.

    Raises
    ------
    Refused
        If it has no parameters cell, or that holds anything but ``NAME = literal`` lines.
    """
    code, prose, tagged = [], [], []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        (code if cell["cell_type"] == "code" else prose).append(source)
        if "parameters" in cell["metadata"].get("tags", []):
            tagged.append(source)
    if len(tagged) != 1:
        raise Refused(
            f"{path.name}: found {len(tagged)} cells tagged 'parameters', expected one. Tag the "
            "cell with the UPPERCASE literals (JupyterLab: property inspector, cell tags)."
        )
    parameters = {}
    for node in ast.parse(tagged[0]).body:
        try:
            parameters[node.targets[0].id] = ast.literal_eval(node.value)
        except (AttributeError, ValueError):
            raise Refused(
                f"{path.name}: the parameters cell holds {ast.unparse(node)!r}, expected only NAME "
                "= literal. Derive values in a later cell: one derived here keeps its default."
            ) from None
    title = re.search(r"^# +(.+)$", "\n".join(prose), re.M)
    return Notebook(path, title[1].strip() if title else path.stem, tuple(code), parameters)


def values_for(books: list[Notebook], options: Options, profile: dict) -> dict[str, dict]:
    """Return what is injected into each notebook: the profile's values, then the command line's.

    A profile has values per notebook number, and under ``all`` for every notebook with the name.

    Raises
    ------
    Refused
        If a value has no parameter of its name: papermill would run with the default.
    """
    usual = {"LABELS": options.about.default_labels, "DEVICE": "auto"}
    usual |= {"ALLOW_INCOMPLETE": False, "PUBLISHED": False}
    asked = {"CORPUS": options.corpus}
    for name, default in usual.items():
        if (value := getattr(options, name.lower())) != default:
            asked[name] = value
    general, values = profile.get("all", {}), {}
    known = {"all"}.union(*([book.number, *book.parameters] for book in books))
    if strange := {*profile, *general} - known:
        raise Refused(
            f"profile {options.profile!r} sets {', '.join(sorted(map(str, strange)))}; the "
            f"notebooks and their parameters are {', '.join(sorted(known))}."
        )
    for book in books:
        own = profile.get(book.number) or {}
        if strange := own.keys() - book.parameters.keys():
            raise Refused(
                f"{book.path.name} has no parameter {', '.join(sorted(strange))}, which profile "
                f"{options.profile!r} sets; it has {', '.join(book.parameters)}."
            )
        given = general | own | asked
        values[book.name] = {name: given[name] for name in book.parameters if name in given}
    return values


def read_json(path: Path) -> dict:
    """Return what a JSON file holds; an empty dict if it is not there or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def write(path: Path, content: str | bytes | dict | list) -> None:
    """Write a small file: text, bytes, or anything else as JSON."""
    if isinstance(content, (dict, list)):
        content = json.dumps(content, indent=1) + "\n"
    if isinstance(content, str):
        content = content.encode()
    write_atomically(path, lambda handle: handle.write(content))


def copy_matching(source: Path, target: Path, pattern: str) -> None:
    """Make a folder's files of a pattern those of another folder; the others stay."""
    for old in target.glob(pattern):
        if not (source / old.name).is_file():
            old.unlink()
    for path in source.glob(pattern):
        write(target / path.name, path.read_bytes())
