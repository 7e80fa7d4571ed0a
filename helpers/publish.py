"""Publishing: what a run made goes to where it is committed, with nothing in it that tells of the machine."""

import base64
import io
import json
import math
import re
import shutil
import sys
import tomllib
from pathlib import Path

from PIL import Image

from helpers import paths
from helpers.notebooks import Notebook, Refused, Settings, is_added, mirror, read_json, write
from helpers.report import COLUMNS, device_name, result_groups
from helpers.tables import read_table

LARGEST_MODEL = 5e6  # bytes; whoever clones the project gets it


def publish(books: list[Notebook], outcomes: dict[str, dict], settings: Settings) -> None:
    """Copy what this run made to where it is committed: notebooks, figures, predictions, the tables of README.

    What is there of notebooks that were not run here stays, and so do their parts of the tables. Of another corpus than the
    one that the notebooks show (the default of their ``CORPUS``), only predictions and the table of results are copied; that
    table goes between the marks in README that bear the corpus's name.

    Raises
    ------
    Refused
        If a notebook did not succeed, ran with other values than its defaults, or changed since; nothing is copied.
    """
    import nbformat

    aside = any(book.parameters["CORPUS"] != settings.corpus for book in books)
    free = (
        {"DEVICE", "CORPUS", "ALLOW_INCOMPLETE"} if aside else {"DEVICE"}
    )  # what is to be seen in no result, or in its card
    ready, faults = {}, []
    for book in books:
        status = outcomes[book.name]["status"]
        if status == "failed":
            faults.append(f"{book.name}: {status} ({outcomes[book.name]['reason']})")
        if status not in ("run", "fresh"):
            continue
        used = read_json(settings.stamp(book))["values"]
        faults += [
            f"{book.name}: {name} was {used[name]!r}, its default is {default!r}"
            for name, default in json.loads(json.dumps(book.parameters)).items()
            if name not in free and used[name] != default
        ]
        ready[book.path] = nbformat.read(book.path, 4)
        if not take_outputs(ready[book.path], nbformat.read(settings.executed(book), 4), settings):
            faults.append(f"{book.name}: its code is not the code that ran; run it again")
    if faults:
        raise Refused("nothing was published, because of\n  " + "\n  ".join(faults))
    results = settings.project / "data/results" / settings.corpus / settings.policy_work.name
    record = with_earlier(read_json(settings.reports / "run.json"), read_json(results / "run.json"))
    cards = with_earlier_cards(
        read_json(settings.policy_work / "cards.json"), read_json(results / "cards.json")
    )
    # first what may refuse
    if aside:
        rewrite_readme(
            settings.project / "README.md",
            {settings.corpus: results_lines(settings.policy_work / "results.csv")},
        )
    else:
        publish_model(
            settings.policy_work / "models/average_small",
            settings.project / "data/models" / settings.policy_work.name,
        )
        rewrite_readme(
            settings.project / "README.md", readme_blocks(books, record["notebooks"], settings)
        )
        for path, notebook in ready.items():
            write(path, nbformat.writes(notebook) + "\n")
            mirror(
                settings.work / "figures", settings.project / "figures", f"{path.name[:2]}_*.png"
            )
    for source, target in results_of(books, settings).items():
        write(settings.project / "data/results" / target, source.read_bytes())
    write(results / "run.json", json.dumps(record, indent=1))
    known = {
        name: network
        for name, network in (
            read_json(results / "networks.json") | networks(settings.policy_work / "records")
        ).items()
        if any(
            (folder / f"{name}.parquet").is_file() for folder in (results, results / "comparisons")
        )
    }
    write(results / "networks.json", json.dumps(known, indent=1, sort_keys=True) + "\n")
    if cards:
        write(results / "cards.json", json.dumps(cards, indent=1))


def with_earlier(record: dict, before: dict) -> dict:
    """Return a run's record, where notebooks that it did not run keep what was published of them, with its date and machine."""
    about = {name: before[name] for name in ("date", "device") if name in before}
    earlier = {name: about | entry for name, entry in before.get("notebooks", {}).items()}
    return record | {
        "notebooks": {
            name: earlier.get(name, entry) if entry["status"] == "not run" else entry
            for name, entry in record["notebooks"].items()
        }
    }


def with_earlier_cards(cards: list[dict], before: list[dict]) -> list[dict]:
    """Return protocol cards; of a model that was not trained here, the published card, if it tells of the same results."""
    earlier = {(card["model"], card["variant"]): card for card in before}
    found = []
    for card in cards:
        other = earlier.get((card["model"], card["variant"]), card)
        unknown = card["made by"]["notebook"] is None
        found.append(other if unknown and other["results"] == card["results"] else card)
    return found


def publish_model(source: Path, target: Path) -> None:
    """Copy the small trained model to where it is committed, in place of the one before.

    Raises
    ------
    Refused
        If it is larger than ``LARGEST_MODEL``.
    """
    files = [path for path in source.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    if size > LARGEST_MODEL:
        raise Refused(
            f"{source} has {size / 1e6:.1f} MB, at most {LARGEST_MODEL / 1e6:.0f} are published: take smaller "
            "members (SMALL in notebook 18)"
        )
    if files:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)


def results_of(books: list[Notebook], settings: Settings) -> dict[Path, Path]:
    """Return which tables are published, and where to, below ``data/results``: what the notebooks say they wrote last.

    Predictions, runs to compare, folds, results, and what evaluation they rest on; of another corpus, too, if
    a notebook has results of one.
    """
    found = {}
    for path in (
        Path(path) for book in books for path in read_json(settings.stamp(book)).get("outputs", {})
    ):
        if path.is_relative_to(settings.work.parent):
            corpus, *place = path.relative_to(settings.work.parent).parts
            match place:
                case [policy, "folds.csv" | "results.csv" as name]:
                    found[path] = Path(corpus, policy, name)
                case [policy, "predictions", name] if name.endswith(".parquet"):
                    found[path] = Path(corpus, policy, name)
                case [policy, "comparisons" | "evaluation" as inner, name]:
                    found[path] = Path(corpus, policy, inner, name)
    return found


def networks(records: Path) -> dict[str, dict]:
    """Return what each trained network was, from its run records: what ``benchmarks/networks.py`` needs to build it again.

    Returns
    -------
    dict
        Name of the predictions → ``inputs`` (shape of one, type), ``settings`` and ``parameters`` (of the first fold, if it
        was searched), ``epochs`` (per fold, as run) and ``clips`` (per fold, trained on).
    """
    found = {}
    for path in sorted(records.glob("*.json")):
        for record in json.loads(path.read_text(encoding="utf-8")):
            if "build" in record.get("settings", {}) and record["variant"] == "inductive":
                steps = record["folds"].values()
                first = next(iter(steps))["notes"]
                settings = {k: v for k, v in record["settings"].items() if k != "search"}
                chosen = first.get("setting", {})
                settings |= {k: v for k, v in chosen.items() if k in settings}
                settings["options"] = settings["options"] | {
                    k: v for k, v in chosen.items() if k not in settings
                }
                found[path.stem] = {
                    "inputs": record["inputs"],
                    "settings": settings,
                    "parameters": first["parameters"],
                    "epochs": [len(step["notes"]["curves"]) for step in steps],
                    "clips": [len(step["fit"]) for step in steps],
                }
    return found


def results_lines(path: Path) -> list[str]:
    """Return the results of results.csv as tables for README, one per variant."""
    lines = []
    for group in result_groups(path):
        lines += [
            f"**{group['variant'].capitalize()}** (in %, NLL in nats)",
            "",
            "| model | " + " | ".join(heading for heading, _, _ in COLUMNS) + " |",
            "|---" + "|--:" * len(COLUMNS) + "|",
        ]
        for row in group["rows"]:
            cells = [
                f"**{cell['text']}**" if cell["best"] else cell["text"] for cell in row["cells"]
            ]
            lines.append(
                f"| {row['model']}{' (pretrained)' if row['pretrained'] else ''} | {' | '.join(cells)} |"
            )
        lines += ["", *(f"<sub>{protocol}</sub>  " for protocol in group["protocols"]), ""]
    return lines


def comparison_lines(folder: Path) -> list[str]:
    """Return the runs that were made to be compared as a table for README."""
    from helpers.metrics import comparisons_table, read_predictions  # late: it takes seconds

    lines = [
        "| run | variant | UAR (95 % interval) | what is left out is worth |",
        "|---|---|--:|--:|",
    ]
    compared = read_predictions(folder / "comparisons")
    if not compared:
        return lines
    try:
        table = comparisons_table(
            read_predictions(folder), compared, read_table(folder / "folds.csv", "folds")
        )
    except ValueError as error:
        raise Refused(f"nothing was published: {error}") from None
    for row in (100 * table.set_index(["model", "variant"])).round(1).itertuples():
        known = math.isfinite(row.uar_low)  # no interval below eight speakers
        uar = f"{row.uar:.1f}" + f" [{row.uar_low:.1f}–{row.uar_high:.1f}]" * known
        worth = (
            f"{row.difference:+.1f}" + f" [{row.low:+.1f}, {row.high:+.1f}]" * known
        ) * math.isfinite(row.difference)
        lines.append(f"| {row.Index[0]} | {row.Index[1]} | {uar} | {worth} |")
    return lines


def fault_lines(path: Path) -> list[str]:
    """Return what faults are worth as a table for README."""
    lines = [
        "| | would have been reported: UAR (95 % interval) | honest | inflation, points | what the audit names |",
        "|---|--:|--:|--:|---|",
    ]
    for row in read_table(path, "faults").itertuples():
        known = math.isfinite(row.uar_low)
        uar = (
            f"{100 * row.uar:.1f}" + f" [{100 * row.uar_low:.1f}–{100 * row.uar_high:.1f}]" * known
        )
        worth = (
            f"{100 * row.difference:+.1f}"
            + f" [{100 * row.low:+.1f}, {100 * row.high:+.1f}]" * known
        )
        lines.append(f"| {row.fault} | {uar} | {100 * row.honest:.1f} | {worth} | {row.audit} |")
    return lines


def take_outputs(notebook, executed, settings: Settings) -> bool:
    """Give a committed notebook the outputs of its executed copy; False when that ran other code.

    Equal runs give equal bytes, and nothing tells of the machine: metadata, progress bars and folders are dropped.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    done = [cell for cell in executed.cells if cell.cell_type == "code" and not is_added(cell)]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = (
            {"tags": ["parameters"]} if "parameters" in cell.metadata.get("tags", []) else {}
        )
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
                output.data[kind] = (
                    without_places(content, settings)
                    if kind.startswith("text/")
                    else in_few_colours(content)
                    if kind == "image/png"
                    else content
                )
            if output.get(
                "text"
            ) != "" and "application/vnd.jupyter.widget-view+json" not in output.get("data", {}):
                cell.outputs.append(output)
    return [cell.source for cell in cells] == [cell.source for cell in done]


def in_few_colours(picture: str) -> str:
    """Return a PNG (base64) with a palette: 256 colours are enough for a figure, and take a third of the bytes."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        image = Image.alpha_composite(
            Image.new("RGBA", image.size, "white"), image.convert("RGBA")
        ).convert("RGB")
    target = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(target, "PNG", optimize=True)
    smaller = base64.b64encode(target.getvalue()).decode()
    return min(smaller, picture, key=len)


def without_places(text: str, settings: Settings) -> str:
    """Replace the folders of this machine in a text by what a reader knows."""
    places = {
        settings.work.parent: "SER_WORK",
        paths.data(): "SER_DATA",
        Path(sys.prefix): ".venv",
        settings.project: ".",
        Path.home(): "~",
    }
    for place in sorted(places.keys() - {Path("/")}, key=lambda place: -len(str(place))):
        text = text.replace(f"{place}/", "" if places[place] == "." else f"{places[place]}/")
        text = re.sub(rf"{re.escape(str(place))}\b", places[place], text)
    return re.sub(r"[\w/.~-]*/ipykernel_\d+/\d+\.py", "cell", text)


def readme_blocks(
    books: list[Notebook], outcomes: dict[str, dict], settings: Settings
) -> dict[str, list[str]]:
    """Return what README says of the published run: the results and the cost, by the name of the marks they stand between.

    Results of other corpora than the run's own go into a block of their own.
    """
    cost = ["| notebook | seconds | peak memory |", "|---|--:|--:|"]
    for book in books:
        outcome = {"longest": 0, "peak_mb": 0} | outcomes[book.name]
        figures = f"{outcome['longest']:.0f} | {outcome.get('largest_mb', outcome['peak_mb']) / 1024:.1f} GB"
        if outcome["status"] == "skipped":
            figures = "skipped | –"
        cost.append(f"| [{book.title}](notebooks/{book.path.name}) | {figures} |")
    cost += [
        "",
        f"The longest run of each, on: {device_name(settings.device)}. With its folds stored, a run takes seconds.",
    ]
    blocks = {
        "results": results_lines(settings.policy_work / "results.csv"),
        "comparisons": comparison_lines(settings.policy_work),
        "cost": cost,
    }
    for path, target in results_of(books, settings).items():
        if target.name == "results.csv" and target.parts[0] != settings.corpus:
            blocks[target.parts[0]] = results_lines(path)
        elif target.name == "faults.csv":
            blocks["faults"] = fault_lines(path)
    return blocks


def rewrite_readme(readme: Path, blocks: dict[str, list[str]]) -> None:
    """Write lines between the marks of their names in README; what is outside of the marks stays."""
    text = readme.read_text(encoding="utf-8")
    for block, lines in blocks.items():
        before, begin, rest = text.partition(f"<!-- {block}:begin -->\n")
        _, end, after = rest.partition(f"<!-- {block}:end -->")
        if not end:
            raise Refused(
                f"{readme} has no lines <!-- {block}:begin --> and <!-- {block}:end -->; put them where the "
                "table shall stand."
            )
        text = before + begin + "\n".join([*lines, ""]) + end + after
    write(readme, text)


def badges(project: Path, check: bool = False) -> list[str]:
    """Write the repository's address of pyproject.toml into badges and bootstrap cells; returns what differed."""
    url = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "urls"
    ]["Repository"]
    url, differing = url.rstrip("/").removesuffix(".git"), []
    for path in [*sorted((project / "notebooks").glob("*.ipynb")), project / "README.md"]:
        before = path.read_text(encoding="utf-8")
        own = (
            path.name if path.suffix == ".ipynb" else r"\g<1>"
        )  # a badge opens the notebook that it stands in
        after = re.sub(
            r"(?<=colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+/blob/main/notebooks/([\w-]+\.ipynb)",
            rf"{'/'.join(url.split('/')[-2:])}/blob/main/notebooks/{own}",
            before,
        )
        after = re.sub(r'(REPOSITORY = \\?")[^"\\]*', rf"\g<1>{url}", after)
        if after != before:
            differing.append(path.name)
            if not check:
                write(path, after)
    return differing
