"""Where things lie.

Environment variables move the folders that can grow large:

``SER_DATA``
    folder of the raw corpora, one sub-folder each; only ever read, except by a download (default ``data/raw``).
``SER_WORK``
    folder of everything that is derived from them (default ``data/work``).
``SER_MODELS``
    folder of pretrained models that were put there by hand, one sub-folder each (default ``SER_WORK/pretrained``).
``SER_MIRROR``
    folder on a disk that outlives the machine, to which results are brought as they come (``helpers.mirror``; default: none).
"""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def data() -> Path:
    """Return the folder of the raw corpora (``SER_DATA``)."""
    return Path(os.environ.get("SER_DATA") or PROJECT / "data/raw").expanduser().resolve()


def work(corpus: str = "", policy: str = "") -> Path:
    """Return the folder of derived files (``SER_WORK``), of a corpus, or of one label policy of a corpus."""
    root = Path(os.environ.get("SER_WORK") or PROJECT / "data/work").expanduser().resolve()
    return root / corpus / policy


def models() -> Path:
    """Return the folder of pretrained models (``SER_MODELS``)."""
    return Path(os.environ.get("SER_MODELS") or work("pretrained")).expanduser().resolve()


def mirror() -> Path | None:
    """Return the folder that keeps a copy of what is derived (``SER_MIRROR``); None if there is none."""
    place = os.environ.get("SER_MIRROR")
    return Path(place).expanduser().resolve() if place else None


def reports(corpus: str) -> Path:
    """Return the folder of a corpus's executed notebooks and its report."""
    return PROJECT / "reports" / corpus
