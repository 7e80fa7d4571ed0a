"""Hygiene of the notebooks: what a reader, papermill and a diff rely on.

Each message says how to mend it. How long cells and notebooks may be is tested in test_budget.py.
"""

import ast
import json
import re
import sys
from pathlib import Path

import pytest

from helpers.paths import PROJECT

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
IMPORT_NAMES = {
    "scikit-learn": "sklearn",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "ipykernel": "IPython",
}


def cells(path: Path, kind: str = "") -> list[dict]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if kind in ("", cell["cell_type"])]


def text(cell: dict) -> str:
    return "".join(cell["source"])


def python(cell: dict) -> ast.Module:
    return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", text(cell), flags=re.M))


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 8
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert len(set(numbers)) == len(numbers), "two notebooks have the same number: rename one"


@every_notebook
def test_name_and_title_have_the_same_number(path):
    assert re.fullmatch(r"\d\d_[a-z0-9_]+\.ipynb", path.name), (
        f"{path.name}: name it NN_what_it_does.ipynb"
    )
    title = text(cells(path)[0]).splitlines()[0]
    wanted = f"# {path.name[:2]} · "
    assert re.fullmatch(wanted + r"\S.+", title), (
        f"{path.name}: its first line is {title!r}, make it '{wanted}…'"
    )


@every_notebook
def test_opening_says_question_claims_and_cost(path):
    opening = text(cells(path)[0])
    words = " ".join(opening.split())
    for part in ("**Question.**", "**What we show**", "**Reads**", "**Writes**", "**Runs in**"):
        assert part in words, f"{path.name}: the first cell has no {part}"
    assert f"/blob/main/notebooks/{path.name})" in opening, (
        f"{path.name}: its badge opens another notebook"
    )
    assert 2 <= len(re.findall(r"^- ", opening, re.M)) <= 6, (
        f"{path.name}: say in 2 to 6 bullets what is shown"
    )


@every_notebook
def test_links_to_neighbours_are_right(path):
    at = NOTEBOOKS.index(path)
    neighbours = [other.name for other in NOTEBOOKS[max(at - 1, 0) : at + 2] if other != path]
    links = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", text(cells(path)[0]))
    assert links == neighbours, (
        f"{path.name}: its first cell links to {links}; previous and next are {neighbours}"
    )
    for link in re.findall(
        r"\]\((?!https?://|#)([^)#\s]+)", "\n".join(text(c) for c in cells(path, "markdown"))
    ):
        assert (path.parent / link).exists(), f"{path.name}: links to {link}, which is not there"


@every_notebook
def test_one_parameters_cell_of_commented_literals(path):
    tagged = [cell for cell in cells(path, "code") if "parameters" in tags(cell)]
    assert len(tagged) == 1, (
        f"{path.name}: tag exactly one code cell 'parameters' (JupyterLab: property inspector)"
    )
    lines = text(tagged[0]).splitlines()
    for node in python(tagged[0]).body:
        own = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        assert isinstance(node, ast.Assign) and re.match(r"[A-Z][A-Z0-9_]* += ", own), (
            f"{path.name}: {own!r} is not NAME = literal, in capitals"
        )
        ast.literal_eval(node.value)
        assert "# " in own, f"{path.name}: {own!r} has no comment"
    assert text(tagged[0]).startswith("CORPUS"), f"{path.name}: the first parameter is CORPUS"


@every_notebook
def test_bootstrap_cell_is_the_same_in_all_and_collapsed(path):
    first, own = (cells(notebook, "code")[0] for notebook in (NOTEBOOKS[0], path))
    assert text(first).startswith("# bootstrap") and "google.colab" in text(first)
    assert text(own) == text(first), f"{path.name}: copy the first code cell of {NOTEBOOKS[0].name}"
    assert own["metadata"].get("jupyter", {}).get("source_hidden"), (
        f"{path.name}: collapse the first code cell (JupyterLab: blue bar)"
    )


@every_notebook
def test_nothing_that_hides_or_chains(path):
    code = "\n".join(text(cell) for cell in cells(path, "code"))
    for forbidden in (
        "%run",
        'filterwarnings("ignore")',
        "filterwarnings('ignore')",
        'simplefilter("ignore")',
        "%store",
        "except:",
        "matplotlib inline",
        "if TEST",
    ):
        assert forbidden not in code, (
            f"{path.name}: uses {forbidden}; notebooks hand over files only, and show what happens"
        )
    assert not any("injected-parameters" in tags(cell) for cell in cells(path)), (
        f"{path.name}: was run in place by papermill; remove the cell tagged injected-parameters"
    )


@every_notebook
def test_code_is_explained(path):
    code, prose = cells(path, "code"), cells(path, "markdown")
    assert len(prose) >= len(code), (
        f"{path.name}: {len(prose)} markdown cells for {len(code)} code cells: say what each does"
    )
    assert all(text(cell).strip() for cell in cells(path)), f"{path.name}: remove its empty cells"


PHRASES = (Path(__file__).parent / "phrases.txt").read_text(encoding="utf-8").splitlines()


@every_notebook
def test_prose_uses_the_terms_of_the_field(path):
    prose = "\n".join(text(cell) for cell in cells(path, "markdown"))
    found = []
    for line in PHRASES:
        phrase, _, instead = line.partition(" -> ")
        if re.search(rf"(?<!\w){phrase}(?!\w)", prose, re.I):
            found.append(f"{phrase!r} (rather: {instead})")
    assert not found, f"{path.name}: {', '.join(found)}"


@every_notebook
def test_every_assertion_says_what_is_wrong(path):
    for cell in cells(path, "code"):
        bare = [n for n in ast.walk(python(cell)) if isinstance(n, ast.Assert) and n.msg is None]
        assert not bare, f"{path.name}: no text in: {', '.join(map(ast.unparse, bare))}"


@every_notebook
def test_code_is_python_without_type_hints(path):
    for cell in cells(path, "code"):
        for node in ast.walk(python(cell)):
            hinted = (
                isinstance(node, ast.AnnAssign)
                or getattr(node, "returns", None)
                or getattr(node, "annotation", None)
            )
            assert not hinted, (
                f"{path.name}: type hint in the cell that begins {text(cell).splitlines()[0]!r}"
            )


@every_notebook
def test_no_absolute_paths(path):
    for cell in cells(path, "code")[1:]:
        nodes = list(ast.walk(python(cell)))
        # f"{folder}/name" is fine
        pieces = [
            part for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values[1:]
        ]
        strings = [
            n.value
            for n in nodes
            if isinstance(n, ast.Constant) and isinstance(n.value, str) and n not in pieces
        ]
        absolute = [s for s in strings if re.match(r"(/|~/|[A-Za-z]:\\)\w", s)]
        assert not absolute, f"{path.name}: absolute path {absolute}: use helpers.paths"


def allowed_imports() -> set[str]:
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    packages = [re.match(r"[\w.-]+", line)[0] for line in lines if re.match(r"[\w.-]+", line)]
    return (
        {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in packages}
        | {"helpers"}
        | set(sys.stdlib_module_names)
    )


@every_notebook
def test_imports_are_ours_or_required(path):
    found = set()
    for cell in cells(path, "code"):
        for node in ast.walk(python(cell)):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    strange = found - allowed_imports()
    assert not strange, f"{path.name}: imports {sorted(strange)}, not in requirements.txt"


def outputs(path: Path) -> list[dict]:
    return [output for cell in cells(path, "code") for output in cell["outputs"]]


@every_notebook
def test_committed_outputs_are_those_of_one_clean_run(path):
    counts = [cell["execution_count"] for cell in cells(path, "code")]
    if outputs(path) or any(counts):
        assert counts == list(range(1, len(counts) + 1)), (
            f"{path.name}: not executed in order; ./run_all.sh --publish does"
        )
    assert not [o for o in outputs(path) if o["output_type"] == "error"], (
        f"{path.name}: holds an error; run it again"
    )


@every_notebook
def test_committed_outputs_render_everywhere(path):
    assert path.stat().st_size < 3e6, (
        f"{path.name}: {path.stat().st_size / 1e6:.1f} MB; draw fewer or smaller figures"
    )
    shown = json.dumps(outputs(path))
    assert "widget-view" not in shown and "<audio" not in shown and '"audio/' not in shown, (
        f"{path.name}: holds a widget or an audio player, which GitHub does not show"
    )
    assert set(json.loads(path.read_text(encoding="utf-8"))["metadata"]) <= {
        "kernelspec",
        "language_info",
    }, f"{path.name}: ./run_all.sh --publish strips what tells of the machine"


@every_notebook
def test_no_numbers_of_results_in_prose(path):
    for cell in cells(path, "markdown"):
        found = re.findall(r"\bUAR (?:of )?[.\d]+|\b\d+[.,]\d+ ?%", text(cell))
        assert not found, (
            f"{path.name}: {found} is typed into prose; use plots.show_markdown with variables"
        )


def test_no_file_mentions_the_machine_it_was_made_on():
    ignored = {
        ".git",
        ".venv",
        "reports",
        "raw",
        "work",
        "__pycache__",
        ".pytest_cache",
        ".ruff_cache",
        ".ipynb_checkpoints",
    }
    known = {
        ".py",
        ".md",
        ".ipynb",
        ".toml",
        ".txt",
        ".sh",
        ".yaml",
        ".yml",
        ".json",
        ".csv",
        ".html",
        "",
    }
    place = re.compile(r"(?<![\w.~}])/" + r"work/|/work" + r"/(main|shared)\b")
    guilty = [
        str(path.relative_to(PROJECT))
        for path in PROJECT.rglob("*")
        if path.is_file()
        and path.suffix in known
        and not ignored & set(path.relative_to(PROJECT).parts)
        and place.search(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert not guilty, (
        f"replace the folders of this machine in {guilty}; for notebooks, publishing does it"
    )
