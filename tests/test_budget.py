"""The project stays small: every figure below may only fall.

The budget is for readers. ``helpers/`` is to be read in an evening, a notebook cell at a glance.
When a figure is exceeded, first look for code to remove; a limit is raised only with a reason in
the commit.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
LINE = 100  # columns, of Python files and of notebooks
LIMITS = {
    "helpers: statements": 2750,  # 2,600 and 150 for what people bring
    "helpers: modules": 24,
    "tools and app: statements": 700,
    "benchmarks: statements": 600,
    "helpers: lines of the longest function": 60,
    "helpers: comprehensions per 100 statements": 7,
    "helpers: functions of complexity above 10": 0,
    "notebooks: code lines": 6000,
    "notebooks: code lines of one": 450,
    "notebooks: lines of a cell": 25,
    "lines above 100 columns": 0,
    "README: lines": 250,
    "README: words per sentence": 18,
}


def is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def trees(*places: str) -> dict[str, ast.Module]:
    found = [path for place in places for path in sorted(PROJECT.glob(place))]
    return {path.name: ast.parse(path.read_text(encoding="utf-8")) for path in found}


def n_statements(tree: ast.AST) -> int:
    return sum(isinstance(node, ast.stmt) and not is_docstring(node) for node in ast.walk(tree))


def n_comprehensions(tree: ast.AST) -> int:
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    return sum(isinstance(node, kinds) for node in ast.walk(tree))


def function_lines(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    docstring = first.end_lineno - first.lineno + 1 if is_docstring(first) else 0
    return function.end_lineno - function.lineno + 1 - docstring


def longest_function() -> int:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for tree in trees("helpers/*.py").values() for node in ast.walk(tree)]
    return max(function_lines(node) for node in nodes if isinstance(node, kinds))


def n_complex_functions() -> int:
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "C901"]
    command += ["--config", "lint.mccabe.max-complexity=10", "--output-format", "json", "helpers"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    return len(json.loads(done.stdout))


def code_cells(path: Path) -> list[list[str]]:
    """Code lines of each cell, without bootstrap, *Checks* and solutions, blanks and comments."""
    counted, section = [], ""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            headings = re.findall(r"^#{1,3} +(.+)$", source, re.M)
            section = headings[-1] if headings else section
        elif "bootstrap" in source[:80] or "REPOSITORY =" in source:
            continue
        elif not re.match(r"Checks|Solution", section):
            lines = [line for line in source.splitlines() if line.strip()]
            counted.append([line for line in lines if not line.lstrip().startswith("#")])
    return counted


def notebooks() -> dict[str, list[list[str]]]:
    return {path.stem: code_cells(path) for path in sorted(PROJECT.glob("notebooks/*.ipynb"))}


def words_per_sentence(markdown: str) -> float:
    """Mean over sentences of running text: no code, tables, headings or pictures."""
    text = re.sub(r"```.*?```|<!--.*?-->|<[^>]+>", "", markdown, flags=re.S)
    lines = [line for line in text.splitlines() if not re.match(r"\s*(\||#|!\[|\[!)", line)]
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", "\n".join(lines))
    paragraphs = re.split(r"\n\s*\n|\n\s*[-*] |\n\d+\. ", text)
    sentences = [
        s for p in paragraphs for s in re.split(r"(?<=[.!?:])\s+", p) if len(s.split()) > 2
    ]
    return sum(len(s.split()) for s in sentences) / len(sentences)


def n_long_lines() -> int:
    sources = [*PROJECT.glob("*.py"), *PROJECT.glob("[bdht]*/*.py")]
    texts = [path.read_text(encoding="utf-8") for path in sources]
    for path in PROJECT.glob("notebooks/*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return sum(len(line) > LINE for text in texts for line in text.splitlines())


def measured() -> dict[str, float]:
    helpers = trees("helpers/*.py")
    statements = sum(map(n_statements, helpers.values()))
    books = notebooks()
    sizes = [sum(map(len, cells)) for cells in books.values()]
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    return {
        "helpers: statements": statements,
        "helpers: modules": len(helpers),
        "tools and app: statements": sum(map(n_statements, trees("tools/*.py", "app.py").values())),
        "benchmarks: statements": sum(map(n_statements, trees("benchmarks/*.py").values())),
        "helpers: lines of the longest function": longest_function(),
        "helpers: comprehensions per 100 statements": 100
        * sum(map(n_comprehensions, helpers.values()))
        / statements,
        "helpers: functions of complexity above 10": n_complex_functions(),
        "notebooks: code lines": sum(sizes),
        "notebooks: code lines of one": max(sizes),
        "notebooks: lines of a cell": max(len(cell) for cells in books.values() for cell in cells),
        "lines above 100 columns": n_long_lines(),
        "README: lines": len(readme.splitlines()),
        "README: words per sentence": words_per_sentence(readme),
    }


MEASURED = measured()


@pytest.mark.parametrize("what", LIMITS)
def test_budget(what):
    assert MEASURED[what] <= LIMITS[what], (
        f"{what}: {MEASURED[what]:g}, at most {LIMITS[what]}. Remove something before you add."
    )


def test_code_is_formatted():
    command = [sys.executable, "-m", "ruff", "format", "--check", "."]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, f"run: ruff format .\n{done.stdout[-2000:]}"


def test_code_is_linted():
    command = [sys.executable, "-m", "ruff", "check", "."]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, f"run: ruff check .\n{done.stdout[-2000:]}"


if __name__ == "__main__":
    for name, number in MEASURED.items():
        print(f"{name:<45} {number:>8.5g}  of {LIMITS[name]}")
