"""A module that makes results was edited: can they change? Then its VERSION is raised.

``python tests/test_versions.py`` writes down what the modules are now.
"""

import importlib
import json
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from helpers import cache  # noqa: E402

PRODUCERS = ("artifacts", "audio", "audit", "augment", "encoders", "estimators", "experiment")
PRODUCERS += ("features", "nets", "spectrograms", "training")


def present() -> dict[str, list]:
    found = {}
    for name in PRODUCERS:
        version = importlib.import_module(f"helpers.{name}").VERSION
        found[name] = [version, cache.code_hash(PROJECT / f"helpers/{name}.py")]
    return found


def test_versions():
    recorded = json.loads(cache.VERSIONS.read_text("utf-8"))
    edited = [name for name, entry in present().items() if recorded.get(name) != entry]
    assert not edited, (
        f"results may change: helpers/{', '.join(edited)}.py was edited. Raise its VERSION if "
        "results can differ, so that stored ones are made again; then run "
        "python tests/test_versions.py"
    )


def test_a_comment_changes_nothing_and_code_does(tmp_path):
    module = tmp_path / "toy.py"
    hashes = []
    for text in ['"""A."""\nx = 1\n', '"""B."""\nx = 1  # why\n', "x = 2\n"]:
        module.write_text(text)
        hashes.append(cache.code_hash(module))
    assert hashes[0] != hashes[2] and cache.code_hash(module) == hashes[2]
    assert hashes[1] == hashes[0]


if __name__ == "__main__":
    text = json.dumps(present(), indent=1) + "\n"
    cache.VERSIONS.write_text(text, "utf-8")
    print(text)
