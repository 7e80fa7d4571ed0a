"""Where things lie, and the copy of results on a disk that outlives the machine.

Environment variables move the folders that can grow large:

``SER_DATA``
    folder of the raw corpora, one sub-folder each; only read, except by a download (default
    ``data/raw``).
``SER_WORK``
    folder of everything that is derived from them (default ``data/work``).
``SER_MODELS``
    folder of pretrained models that were put there by hand (default ``SER_WORK/pretrained``).
``SER_MIRROR``
    folder on a disk that outlives the machine, such as a mounted Drive: results and checkpoints
    are copied there as they come, and back when a new machine starts (default: none).
"""

import atexit
import os
import shutil
import threading
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
COLAB = Path("/content")
COPY_EVERY_S = 300  # between copies to the mirror


class Missing(FileNotFoundError):
    """What a notebook can't do without is not on this machine: run_all.sh skips the notebook."""


def data() -> Path:
    """Return the folder of the raw corpora (``SER_DATA``)."""
    return _folder("SER_DATA", PROJECT / "data/raw")


def work(corpus: str = "", labels: str = "") -> Path:
    """Return the folder of derived files (``SER_WORK``), of a corpus, or of a label set of it."""
    return _folder("SER_WORK", PROJECT / "data/work") / corpus / labels


def models() -> Path:
    """Return the folder of pretrained models (``SER_MODELS``)."""
    return _folder("SER_MODELS", work("pretrained"))


def mirror() -> Path | None:
    """Return the folder that keeps a copy of the work (``SER_MIRROR``); None if there is none."""
    return _folder("SER_MIRROR", PROJECT) if os.environ.get("SER_MIRROR") else None


def reports(corpus: str) -> Path:
    """Return the folder of a corpus's executed notebooks and its report."""
    return PROJECT / "reports" / corpus


def start_mirror() -> None:
    """Bring back earlier work from the mirror, and from now on copy there what is new.

    Does nothing without ``SER_MIRROR``. On Colab with a mounted Drive, the Drive is the mirror, and
    derived files go to the machine's own disk, which is faster. In a notebook that run_all.sh
    runs, run_all.sh has done it.
    """
    if "SER_RUN_LOG" in os.environ:
        return
    drive = COLAB / "drive/MyDrive"
    if drive.is_dir():
        os.environ.setdefault("SER_WORK", str(COLAB / "ser-work"))
        os.environ.setdefault("SER_MIRROR", str(drive / "ser-notebooks"))
    if place := mirror():
        place.mkdir(parents=True, exist_ok=True)  # a Drive that is not mounted is noticed here
        n_files = copy_newer(place / "work", work()) + copy_newer(place / "reports", reports(""))
        print(f"{n_files} files came back from {place}")
        if not any(thread.name == "mirror" for thread in threading.enumerate()):
            threading.Thread(target=_keep_copying, name="mirror", daemon=True).start()
            atexit.register(copy_to_mirror)


def copy_to_mirror() -> None:
    """Copy to the mirror what is new under ``SER_WORK`` and in ``reports``."""
    if place := mirror():
        copy_newer(work(), place / "work")
        copy_newer(reports(""), place / "reports")
        for old in (place / "work/checkpoints").glob("*"):  # of trainings that have ended
            if not (work("checkpoints") / old.name).is_dir():
                shutil.rmtree(old, ignore_errors=True)


def copy_newer(source: Path, target: Path) -> int:
    """Copy files that the target does not have, or has older; return how many.

    Each is copied under a temporary name and renamed when it is complete, so that a machine that is
    lost in the middle leaves no torn file. Times are kept. Hidden files stay where they are.
    """
    n_copied = 0
    for file in sorted(path for path in source.rglob("[!.]*") if path.is_file()):
        copy = target / file.relative_to(source)
        if copy.is_file() and copy.stat().st_mtime >= file.stat().st_mtime - 1:
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        temporary = copy.with_name(f".{copy.name}.{os.getpid()}")
        try:
            shutil.copy2(file, temporary)
            os.replace(temporary, copy)
            n_copied += 1
        except FileNotFoundError:
            pass  # gone meanwhile: a checkpoint whose training ended
        finally:
            temporary.unlink(missing_ok=True)
    return n_copied


def _folder(variable: str, default: Path) -> Path:
    return Path(os.environ.get(variable) or default).expanduser().resolve()


def _keep_copying() -> None:
    while not threading.Event().wait(COPY_EVERY_S):
        try:
            copy_to_mirror()
        except OSError as error:  # a Drive that is full, or away for a while: it is tried again
            print(f"the copy to {mirror()} failed ({error}); it is tried again in 5 minutes")
