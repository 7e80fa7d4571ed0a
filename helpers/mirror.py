"""A copy of the work on a slow disk that outlives the machine: Google Drive beside a Colab session, say.

Nothing happens, and nothing is spent, unless ``SER_MIRROR`` names a folder. Then :func:`start` brings back at the start of a
session what the mirror has, and :func:`push` brings there what is new in ``SER_WORK`` and ``reports``.

Conventions
-----------
The mirror is a log of *parts*, each a zip of many files, because a Drive takes about as long for a small file as for a large
one. A part is made on the local disk, copied there under a temporary name and renamed when it is complete. In it,
``contents.json`` lists the files that it brings (size and time of change) and those that were removed since; of a file, the
newest part that mentions it is right. So each part stands for itself: whichever arrive, in whatever moment the machine is
lost, there is no index that could contradict them. A part in which nothing is of use any more is deleted after a while.

Names are ``work/<path under SER_WORK>`` and ``reports/<path>``. Stamps hold absolute paths (``helpers.pipeline``): restored to
other folders than they came from, notebooks run again, from the cache.

What the mirror holds is written down in ``SER_WORK/.mirror``, so that a push reads nothing there but the names of the parts.
That folder may be removed at any time: it is made again from the parts.
"""

import errno
import itertools
import json
import os
import re
import shutil
import sqlite3
import struct
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

from helpers import paths

COLAB = Path("/content")
CONTENTS = "contents.json"
PART = r"\d{8}-[0-9a-f]{6}\.zip"  # the newest has the highest number
PART_BYTES = 256 * 2**20  # of files, at most, in a part of several
FILE_BYTES = 4096  # what a file costs beyond its size
SMALL_PARTS = 64  # so many are made one
PAUSES_S = (0.5, 1.0, 2.0)  # between tries when the mount drops
CHECKPOINTS_S = 30  # a checkpoint sooner after a push waits for the next one
ALL_S = 300  # between pushes of everything that is new
KEPT_S = 600  # how long a superseded part stays: a Drive deletes sooner than it uploads

# size is NULL where the part says that the file was removed. here: this machine has had that version, so if it is gone, then
# somebody removed it. A part whose contents can't be read is known as damaged.
TABLES = """
CREATE TABLE IF NOT EXISTS parts (part TEXT PRIMARY KEY, damaged INT, useless_since REAL);
CREATE TABLE IF NOT EXISTS entries (name TEXT, part TEXT, size INT, mtime_ns INT, here INT, PRIMARY KEY (name, part))
    WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_part ON entries (part);
CREATE TEMP VIEW last AS SELECT * FROM entries e WHERE NOT EXISTS (SELECT 1 FROM entries WHERE name = e.name AND part > e.part);
CREATE TEMP TABLE found (name TEXT PRIMARY KEY, size INT, mtime_ns INT) WITHOUT ROWID;
"""
_NOW = SimpleNamespace(
    gate=threading.Lock(),
    thread=None,
    waiting=set(),
    rests_until=0.0,
    failing=False,
    watching=False,
)


def start() -> None:
    """Bring back what the mirror has, and from now on push what is new every few minutes, as long as this process lives.

    On Colab, derived files are put on the machine's own disk first, and the Drive is the mirror if it is mounted. In a notebook
    that run_all.sh runs, this does nothing: run_all.sh has done it.

    Raises
    ------
    OSError
        If the mirror can't be reached: better now than after hours of computing what it has.
    """
    if os.environ.get("SER_RUN_LOG"):
        return
    if "google.colab" in sys.modules:
        _settle_on_colab()
    if os.environ.get("SER_MIRROR"):
        os.environ["SER_MIRROR"] = str(
            paths.mirror()
        )  # a relative one would mean another folder to a worker
        restore()
        if not _NOW.watching:
            _NOW.watching = True
            threading.Thread(target=_watch, daemon=True).start()


def push(*places: Path, wait: float = 5.0) -> None:
    """Bring to the mirror what is new, changed or gone since the last push; never raises, and never keeps its caller long.

    It is done in the background, where a mount that drops is tried again a few times. What fails is told once, and done by a
    later push; so is what is handed over by path within ``CHECKPOINTS_S`` of the last one.

    Parameters
    ----------
    places
        Files and folders under ``SER_WORK`` to look at; all of ``SER_WORK`` and ``reports`` if none is given.
    wait
        For so many seconds at most.
    """
    if not os.environ.get("SER_MIRROR"):
        return
    with _NOW.gate:
        _NOW.waiting.update(places or _roots().values())
        thread = _NOW.thread if _NOW.thread and _NOW.thread.is_alive() else None
        if places and (thread or time.monotonic() < _NOW.rests_until):
            return
        if thread is None:
            _NOW.rests_until = 0.0
            thread = _NOW.thread = threading.Thread(target=_push_waiting, daemon=True)
            thread.start()
    if not (places and _NOW.failing):
        thread.join(wait)


def restore() -> int:
    """Bring back what the mirror has and this machine lacks; return the number of files.

    A file that is newer here stays, and one that was removed here stays removed. What is damaged there is passed over and told.

    Raises
    ------
    OSError
        If the mirror can't be reached. What came before is complete; called again it goes on.
    """
    brought, lost, started = 0, [], time.monotonic()
    with _record() as (record, mirror):
        try:
            record.execute(
                "DELETE FROM parts WHERE damaged"
            )  # perhaps it could not be read just then
            _retrying(_catch_up, record, mirror)
            query = "SELECT part, name, size, mtime_ns FROM last WHERE NOT here AND size IS NOT NULL ORDER BY part, name"
            missing = [row for row in record.execute(query).fetchall() if _is_lacking(*row[1:])]
            if missing:
                _say(
                    f"bringing back {_count(missing)}, {sum(row[2] for row in missing) / 1e6:,.1f} MB, from {mirror}"
                )
            for part, rows in itertools.groupby(missing, key=lambda row: row[0]):
                spool = _retrying(
                    shutil.copyfile, mirror / part, _folder() / "spool.zip"
                )  # whole: bits are slow there
                good, bad = _unpack(spool, [row[1:] for row in rows])
                spool.unlink()
                record.executemany(
                    "UPDATE entries SET here = 1 WHERE part = ? AND name = ?",
                    [(part, name) for name in good],
                )
                record.commit()
                brought += len(good)
                lost += bad
                if bad:
                    _say(f"{mirror / part} is damaged: {_count(bad)} of it can't be brought back")
        except OSError as error:
            raise OSError(
                f"SER_MIRROR is {mirror}, and can't be read from, or SER_WORK can't be written to: {error}. "
                f"{brought:,} files were brought back. Mount it (or make room), then start again; or unset "
                "SER_MIRROR to go on without it."
            ) from None
    if lost:
        kinds = sorted({"/".join(name.split("/")[1:3]) for name in lost})
        _say(
            f"{_count(lost)} will be computed again, of {', '.join(kinds[:10])}{' …' * (len(kinds) > 10)}"
        )
    if missing:
        _say(f"{brought:,} are back after {time.monotonic() - started:.0f} s")
    return brought


# What runs in the background


def _push_waiting() -> None:
    """Push what callers have handed over, until nothing is due or the mirror fails."""
    while True:
        with _NOW.gate:
            if not (
                _NOW.waiting
                and (time.monotonic() >= _NOW.rests_until or _NOW.waiting >= {*_roots().values()})
            ):
                _NOW.thread = None
                return
            places, _NOW.waiting, _NOW.rests_until = (
                _NOW.waiting,
                set(),
                time.monotonic() + CHECKPOINTS_S,
            )
        try:
            _push(places)
        except (OSError, sqlite3.Error, ValueError) as error:
            with _NOW.gate:
                _NOW.waiting |= places
                _NOW.thread = None
            if not _NOW.failing:
                _say(
                    f"{os.environ.get('SER_MIRROR')} can't be written to ({error}). Work goes on; a later push brings what is "
                    "missing there."
                )
            _NOW.failing = True
            return
        if _NOW.failing:
            _say("the mirror can be written to again, and what was missing is there.")
            _NOW.failing = False


def _watch() -> None:
    """Push everything every few minutes, or less often where that takes long."""
    pause = ALL_S
    while True:
        time.sleep(pause)
        started = time.monotonic()
        push(wait=3600)
        pause = max(ALL_S, 20 * (time.monotonic() - started))


def _push(places: set[Path]) -> None:
    with _record() as (record, mirror):
        _retrying(_catch_up, record, mirror)
        for place in places:
            record.executemany("REPLACE INTO found VALUES (?, ?, ?)", _scan(place))
        record.execute(
            "REPLACE INTO entries SELECT name, part, size, mtime_ns, 1 FROM found CROSS JOIN last "
            "USING (name, size, mtime_ns) WHERE NOT here"
        )
        again = _to_rewrite(record) if places >= {*_roots().values()} else []
        changed = record.execute(
            "SELECT name, found.size FROM found LEFT JOIN last USING (name, size, mtime_ns) "
            f"WHERE part IS NULL OR part IN ({','.join('?' * len(again))}) "
            "ORDER BY name LIKE '%/runs/%', name",
            again,
        ).fetchall()  # a stamp vouches for tables: it comes after them
        gone = {
            name
            for place in places
            for (name,) in record.execute(
                "SELECT name FROM last WHERE name >= :at AND name < :at || '0' "  # in ASCII, 0 comes after /
                "AND (name = :at OR substr(name, length(:at) + 1, 1) = '/') AND here AND size IS NOT NULL "
                "AND name NOT IN (SELECT name FROM found)",
                {"at": _name(place)},
            )
        }
        record.commit()
        for chosen, removed in _batches(changed, sorted(gone)):
            _add_part(record, mirror, chosen, removed)
        _clear(record, mirror)


def _batches(
    changed: list[tuple[str, int]], removed: list[str]
) -> Iterator[tuple[list[str], list[str]]]:
    """Divide what is to be pushed into parts. Removals come last: what took a file's place is there by then."""
    batch, filled = [], 0
    for name, size in changed:
        if batch and filled + size + FILE_BYTES > PART_BYTES:
            yield batch, []
            batch, filled = [], 0
        batch.append(name)
        filled += size + FILE_BYTES
    if batch or removed:
        yield batch, removed


def _to_rewrite(record: sqlite3.Connection) -> list[str]:
    """Return parts whose files shall go into new ones, since small parts are many or most of their files are out of date."""
    of_use = (
        "EXISTS (SELECT 1 FROM found WHERE name = e.name AND size = e.size AND mtime_ns = e.mtime_ns) "
        "AND NOT EXISTS (SELECT 1 FROM entries WHERE name = e.name AND part > e.part)"
    )
    rows = record.execute(
        f"SELECT part, sum(size + :more), sum((size + :more) * ({of_use})) FROM entries e "
        "WHERE size IS NOT NULL GROUP BY part",
        {"more": FILE_BYTES},
    ).fetchall()
    rows = [row for row in rows if row[2]]
    held, used = sum(row[1] for row in rows), sum(row[2] for row in rows)
    poor = [part for part, all_of_it, rest in rows if rest < max(all_of_it, PART_BYTES / 2) / 2]
    return poor if len(poor) > SMALL_PARTS or held - used > used + PART_BYTES else []


# Parts


def _add_part(
    record: sqlite3.Connection, mirror: Path, names: list[str], removed: list[str]
) -> None:
    """Make a part here, bring it there, and write down what it holds."""
    spool, files = _folder() / "spool.zip", {}
    with zipfile.ZipFile(spool, "w") as zipped:
        for name in names:
            try:
                with (
                    open(_place(name), "rb") as source,
                    zipped.open(zipfile.ZipInfo(name), "w", force_zip64=True) as target,
                ):
                    before = os.fstat(source.fileno())
                    shutil.copyfileobj(source, target, 2**20)
                    after = os.fstat(source.fileno())
            except FileNotFoundError:
                continue  # removed meanwhile
            if (before.st_size, before.st_mtime_ns) == (
                after.st_size,
                after.st_mtime_ns,
            ):  # else somebody is writing it
                files[name] = [before.st_size, before.st_mtime_ns]
        zipped.writestr(
            CONTENTS, json.dumps({"files": files, "removed": removed}), zipfile.ZIP_DEFLATED
        )
    if files or removed:
        last = record.execute("SELECT max(part) FROM parts").fetchone()[0] or "0-"
        part = f"{int(last.partition('-')[0]) + 1:08d}-{os.urandom(3).hex()}.zip"  # so that two machines don't take the same
        _retrying(_deliver, spool, mirror / part)
        _note(record, part, files, removed, here=1)
    spool.unlink()


def _deliver(spool: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}")
    shutil.copyfile(spool, temporary)
    if temporary.stat().st_size != spool.stat().st_size:
        raise OSError(
            f"{temporary} has {temporary.stat().st_size} bytes after copying {spool.stat().st_size}"
        )
    os.replace(temporary, target)


def _unpack(spool: Path, rows: list[tuple[str, int, int]]) -> tuple[list[str], list[str]]:
    """Unpack files of a part; return the names of the good ones, and of those that are damaged."""
    good, bad = [], []
    try:
        zipped = zipfile.ZipFile(spool)
    except Exception as error:
        if not _is_damage(error):
            raise
        return [], [name for name, *_ in rows]
    with zipped:
        for name, size, mtime_ns in rows:
            place = _place(name)
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.with_name(f".{place.name}.part")
            try:
                with zipped.open(name) as source, open(temporary, "wb") as target:
                    shutil.copyfileobj(
                        source, target, 2**20
                    )  # zipfile compares the checksum at the end
                if temporary.stat().st_size != size:
                    raise zipfile.BadZipFile
                os.utime(temporary, ns=(mtime_ns, mtime_ns))
                os.replace(temporary, place)
                good.append(name)
            except Exception as error:
                if not _is_damage(error):
                    raise
                bad.append(name)
            finally:
                temporary.unlink(missing_ok=True)
    return good, bad


def _clear(record: sqlite3.Connection, mirror: Path) -> None:
    """Delete parts that have been of no use for a while, the oldest first: a later one may say that its files are gone."""
    of_use = (
        "damaged OR EXISTS (SELECT 1 FROM last l WHERE l.part = parts.part AND (size IS NOT NULL "
        "OR EXISTS (SELECT 1 FROM entries WHERE name = l.name AND part < l.part)))"
    )
    now = time.time()
    record.execute(
        f"UPDATE parts SET useless_since = CASE WHEN {of_use} THEN NULL ELSE coalesce(useless_since, ?) END",
        [now],
    )
    record.commit()
    old = record.execute(
        "SELECT part FROM parts WHERE useless_since <= ? ORDER BY part", [now - KEPT_S]
    ).fetchall()
    for (part,) in old:
        with open(mirror / part, "wb"):
            pass  # a Drive's bin counts as space: let what goes there be empty
        (mirror / part).unlink()
        _forget(record, part)


# What is known of the mirror


def _catch_up(record: sqlite3.Connection, mirror: Path) -> None:
    """Make the record agree with the parts that are there, whoever brought or deleted them."""
    known = {part for (part,) in record.execute("SELECT part FROM parts")}
    if not mirror.is_dir() and not known:
        mirror.mkdir()  # without parents: where nothing is mounted, it would be made on this very disk
    names = {entry.name for entry in os.scandir(mirror)}
    parts = {name for name in names if re.fullmatch(PART, name)}
    if known and not parts:
        raise OSError(
            f"it is empty, but had {len(known)} parts: is it mounted? If you emptied it, remove {_folder()}"
        )
    for part in sorted(known - parts):
        _forget(record, part)
    for part in sorted(parts - known):
        try:
            with zipfile.ZipFile(mirror / part) as zipped:
                contents = json.loads(zipped.read(CONTENTS))
            _note(record, part, contents["files"], contents["removed"], here=0)
        except Exception as error:
            if not _is_damage(error):
                raise
            if (mirror / part).stat().st_size:  # else it was about to be deleted
                _say(
                    f"{mirror / part} is damaged and passed over; what only it held will be computed again. Remove it."
                )
            record.execute("INSERT INTO parts VALUES (?, 1, NULL)", [part])
            record.commit()
    for name in names:
        if (
            re.fullmatch(rf"\.{PART}", name)
            and (mirror / name).stat().st_mtime < time.time() - 3600
        ):
            (mirror / name).unlink(missing_ok=True)  # its writer was killed


def _note(
    record: sqlite3.Connection,
    part: str,
    files: dict[str, list[int]],
    removed: list[str],
    here: int,
) -> None:
    record.execute("INSERT INTO parts VALUES (?, 0, NULL)", [part])
    rows = files | dict.fromkeys(removed, (None, None))
    record.executemany(
        "INSERT INTO entries VALUES (?, ?, ?, ?, ?)",
        [(name, part, size, mtime_ns, here) for name, (size, mtime_ns) in rows.items()],
    )
    record.commit()


def _forget(record: sqlite3.Connection, part: str) -> None:
    record.execute("DELETE FROM entries WHERE part = ?", [part])
    record.execute("DELETE FROM parts WHERE part = ?", [part])
    record.commit()


@contextmanager
def _record() -> Iterator[tuple[sqlite3.Connection, Path]]:
    """Open what is known of the mirror, for one process at a time."""
    import fcntl  # late: not every system has it, and without a mirror it is not needed

    mirror, folder = paths.mirror(), _folder()
    if inside := [root for root in _roots().values() if mirror.is_relative_to(root)]:
        raise ValueError(
            f"SER_MIRROR ({mirror}) lies in {inside[0]}, which it is to mirror: set it to a folder elsewhere"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        file = folder / f"{sha256(str(mirror).encode()).hexdigest()[:12]}.sqlite"
        try:
            record = _opened(file)
        except sqlite3.DatabaseError:
            file.unlink()
            record = _opened(file)
        try:
            yield record, mirror
        finally:
            record.close()


def _opened(file: Path) -> sqlite3.Connection:
    record = sqlite3.connect(file)
    record.execute(
        "PRAGMA synchronous = OFF"
    )  # what a loss of power would spoil is made again from the parts
    record.executescript(TABLES)
    return record


# Places and names


def _roots() -> dict[str, Path]:
    return {"work": paths.work(), "reports": paths.reports("")}


def _folder() -> Path:
    return paths.work(".mirror")


def _name(place: Path) -> str:
    for root, folder in _roots().items():
        if place.is_relative_to(folder):
            return f"{root}/{place.relative_to(folder).as_posix()}".removesuffix("/.")
    raise ValueError(f"{place} is not mirrored: it lies neither in SER_WORK nor in reports")


def _place(name: str) -> Path:
    root, _, rest = name.partition("/")
    if root not in _roots() or not rest or rest.startswith("/") or ".." in rest.split("/"):
        raise ValueError(f"a mirror that names {name!r} was not made here")
    return _roots()[root] / rest


def _scan(place: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and time of each file in a folder, or of one file; those that are nobody's result are left out."""
    for folder, inner, files in (
        [(place.parent, [], [place.name])] if place.is_file() else os.walk(place)
    ):
        inner[:] = [name for name in inner if not name.startswith(".")]
        at = _name(Path(folder))
        for file in files:
            if not file.startswith(".") and not file.endswith(".log"):
                try:
                    stat = os.stat(f"{folder}/{file}")
                except FileNotFoundError:  # removed meanwhile
                    continue
                yield f"{at}/{file}", stat.st_size, stat.st_mtime_ns


def _is_lacking(name: str, size: int, mtime_ns: int) -> bool:
    try:
        return _place(name).stat().st_mtime_ns < mtime_ns
    except FileNotFoundError:
        return True


# Small things


def _settle_on_colab() -> None:
    """Put derived files on the machine's own disk, and a copy on the Drive where that is mounted or asked for."""
    os.environ.setdefault("SER_WORK", str(COLAB / "work"))
    drive = COLAB / "drive"
    if not (drive / "MyDrive").is_dir() and Path(os.environ.get("SER_MIRROR", "")).is_relative_to(
        drive
    ):
        sys.modules["google.colab"].drive.mount(str(drive))
    elif (drive / "MyDrive").is_dir() and "SER_MIRROR" not in os.environ:
        os.environ["SER_MIRROR"] = str(drive / "MyDrive/ser-mirror")
        _say(
            f"{os.environ['SER_MIRROR']} gets a copy of what is derived; to have none, set it to nothing before"
        )


def _is_damage(error: Exception) -> bool:
    """Whether an error is of those that reading a damaged zip raises; EINVAL: it was told to seek to where nothing can be."""
    kinds = (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        KeyError,
        ValueError,
        RuntimeError,
    )
    return isinstance(error, kinds) or (isinstance(error, OSError) and error.errno == errno.EINVAL)


def _retrying(action: Callable, *arguments):
    for pause in (*PAUSES_S, None):
        try:
            return action(*arguments)
        except OSError:
            if pause is None:
                raise
            time.sleep(pause)


def _count(rows: list) -> str:
    return "1 file" if len(rows) == 1 else f"{len(rows):,} files"


def _say(text: str) -> None:
    print(f"SER_MIRROR: {text}", file=sys.stderr, flush=True)
