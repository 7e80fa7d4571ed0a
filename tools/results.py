"""Print results again, computed from predictions: ``python tools/results.py [FOLDER …]``.

A folder holds predictions (*.parquet) and their ``folds.csv``; by default, all that are published.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers import metrics, paths, tables


def main(arguments: list[str]) -> None:
    """Print UAR and the other metrics of each folder, with 95 % intervals over speakers."""
    published = sorted(paths.PROJECT.glob("data/results/*/*/folds.csv"))
    for folder in map(Path, arguments or [path.parent for path in published]):
        models = metrics.read_predictions(folder)
        if not models:
            sys.exit(f"{folder} holds no predictions (*.parquet): give another folder")
        folds = tables.read_table(folder / "folds.csv", "folds")
        print(
            f"{folder}: {folds['utterance_id'].nunique()} utterances, "
            f"{folds['speaker'].nunique()} speakers, {folds['fold'].nunique()} fold(s)"
        )
        table = metrics.results_table(models, folds, "")
        print(table.drop(columns="protocol").round(4).to_string(index=False))
        compared = metrics.read_predictions(folder / "comparisons")
        table = metrics.comparisons_table(models, compared)
        print("Runs for comparison; difference: the model minus the run without")
        print(table.round(4).to_string(index=False), end="\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])
