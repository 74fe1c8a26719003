"""Watches a folder that something else writes images to."""

import errno
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event
from time import monotonic, time
from typing import Annotated, NamedTuple

from pydantic import Field

from haloae.data.folders import find_images
from haloae.data.images import shown_path
from haloae.data.limits import current_limits
from haloae.errors import ConfigError
from haloae.files import read_regular, writing
from haloae.server.database import Transaction, connect
from haloae.server.kinds import make_folder, one_line
from haloae.server.sources.base import Images, Source, Taken, register_source

log = logging.getLogger(__name__)

REFUSED = "refused"
"""Folder below `move_to` for what is no image."""
KEPT_DAYS = 7
"""Files that have gone are remembered for so long: a share that is away for a while comes back."""
DAY = 86_400.0


class Version(NamedTuple):
    """What tells a file from one that was written in its place later."""

    bytes: int
    changed: int
    """Nanoseconds."""


@register_source("folder")
class Folder(Source):
    """Inspects every image file in a folder, and in those below it, once.

    A file is finished when neither its size nor its time changes for `settle` seconds. One that is
    written anew is inspected anew. Who writes slowly, or with pauses, writes under another name
    (``a.png.part``, ``.a.png``) and renames.
    """

    live = False

    path: Path
    move_to: Path | None = None
    """Where inspected files go, those that are no image into ``refused`` in there; None: files are
    left as they are, and nothing but `memory` tells which of them are done."""
    settle: Annotated[float, Field(gt=0, le=3600)] = 1.0
    """Seconds."""

    def check(self) -> None:
        """See `Settings.check`; the folder itself may come later."""
        if self.move_to is None:
            return
        watched, goal = self.path.resolve(), self.move_to.resolve()
        if watched.is_relative_to(goal) or goal.is_relative_to(watched):
            raise ConfigError(
                f"{shown_path(self.move_to)}: what is moved there would be found again: give a "
                f"move_to outside of {shown_path(self.path)}."
            )
        make_folder(self.move_to / REFUSED)

    def images(self, stop: Event, memory: Path) -> Images:
        """See `Source.images`: oldest first; a missing folder is an error."""
        with _opened(memory) as done:
            watch = _Watch(self.path, self.settle, done)
            while not stop.is_set():
                began = monotonic()
                finished, handled = watch.look()
                for name, version in handled.items() if self.move_to else ():
                    self._put_away(name, version, done, was_read=True)
                for name, version in finished:
                    if version.bytes > (most := current_limits().bytes):
                        done.say(f"{shown_path(self.path / name)}: is over {most:,} bytes")
                        done.add(name, version)
                        self._put_away(name, version, done, was_read=False)
                    elif (image := _read(self.path / name, version, done)) is not None:
                        was_read = yield Taken(image, shown_path(self.path / name))
                        done.add(name, version)
                        self._put_away(name, version, done, was_read=was_read)
                yield None
                stop.wait(max(self.settle / 2, 2 * (monotonic() - began) if not finished else 0))

    def _put_away(self, name: str, version: Version, done: "_Done", *, was_read: bool) -> None:
        """Move a file, under a name that nothing has there; one that stays is tried again."""
        if self.move_to is None:
            return
        folder = self.move_to if was_read else self.move_to / REFUSED
        goal, number = folder / name, 1
        while os.path.lexists(goal):
            number += 1
            goal = (folder / name).with_stem(f"{Path(name).stem}-{number}")
        try:
            goal.parent.mkdir(parents=True, exist_ok=True)
            if _version(self.path / name) == version:
                _move(self.path / name, goal)
                done.forget([name])
        except FileNotFoundError:  # somebody took it, or the folder is gone, for a while perhaps
            pass
        except OSError as error:
            done.say(f"{shown_path(self.path / name)}: cannot be moved ({one_line(error)})")


def _move(path: Path, goal: Path) -> None:
    """To another disk, too: whole, or not at all.

    Raises:
        OSError: it cannot be moved.
    """
    try:
        path.rename(goal)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with writing(goal) as copy:
            shutil.copy2(path, copy)
        path.unlink()


def _read(path: Path, version: Version, done: "_Done") -> bytes | None:
    """A file's bytes; None: it has gone or changed since, and is looked at again."""
    try:
        image = read_regular(path, most=current_limits().bytes)
        return image if _version(path) == version else None
    except OSError as error:
        done.say(f"{shown_path(path)}: cannot be read ({error.strerror})")
        return None


def _version(path: Path) -> Version:
    status = path.stat()
    return Version(status.st_size, status.st_mtime_ns)


class _Watch:
    """Which files are finished, from looking again and again."""

    def __init__(self, folder: Path, settle: float, done: "_Done") -> None:
        self._folder, self._settle, self._done = folder, settle, done
        self._waiting: dict[str, tuple[Version, float]] = {}
        self._handled: dict[str, Version] = {}
        self._pruned = 0.0

    def look(self) -> tuple[list[tuple[str, Version]], dict[str, Version]]:
        """Files to inspect, oldest first; those that are done and still there.

        Raises:
            DataError: the folder is missing or cannot be read.
        """
        now = monotonic()
        waiting: dict[str, tuple[Version, float]] = {}
        handled: dict[str, Version] = {}
        for path in find_images(self._folder).images:
            name = path.relative_to(self._folder).as_posix()
            try:
                version = _version(path)
            except OSError:  # gone since
                continue
            if self._handled.get(name) == version or self._done.has(name, version):
                handled[name] = version
                continue
            before, since = self._waiting.get(name, (None, now))
            waiting[name] = (version, since if before == version else now)
        self._waiting, self._handled = waiting, handled
        self._prune(now)
        settled = [
            (name, version)
            for name, (version, since) in waiting.items()
            if now - since >= self._settle and version.bytes
        ]
        return sorted(settled, key=lambda each: (each[1].changed, each[0])), handled

    def _prune(self, now: float) -> None:
        """Forget once a day what has gone; an empty folder may be a share that is not there."""
        there = self._waiting.keys() | self._handled.keys()
        if there and (not self._pruned or now - self._pruned > DAY):
            self._pruned = now
            old = self._done.before(time() - KEPT_DAYS * DAY)
            self._done.forget([name for name in old if name not in there])


@contextmanager
def _opened(memory: Path) -> Iterator["_Done"]:
    with closing(connect(memory, timeout=10)) as connection:
        yield _Done(connection)


class _Done:
    """Files that were inspected, kept on disk.

    Where the disk is full, they are kept in memory until it is not: inspection goes on.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._unwritten: dict[str, Version] = {}
        self._said: set[str] = set()
        # Unlike a write-ahead log, it is read on a full disk, too.
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS done"
            " (name TEXT PRIMARY KEY, bytes INTEGER, changed INTEGER, time REAL)"
        )

    def has(self, name: str, version: Version) -> bool:
        """True: this very version of the file was inspected."""
        if self._unwritten.get(name) == version:
            return True
        query = "SELECT bytes, changed FROM done WHERE name = ?"
        return bool(self._connection.execute(query, (_text(name),)).fetchone() == version)

    def add(self, name: str, version: Version) -> None:
        """Note that it was inspected."""
        self._unwritten[name] = version
        rows = [(_text(each), *found, time()) for each, found in self._unwritten.items()]
        if self._write("INSERT OR REPLACE INTO done VALUES (?, ?, ?, ?)", rows):
            self._unwritten.clear()

    def forget(self, names: Sequence[str]) -> None:
        """They have gone."""
        for name in names:
            self._unwritten.pop(name, None)
        self._write("DELETE FROM done WHERE name = ?", [(_text(name),) for name in names])

    def before(self, when: float) -> list[str]:
        """Names of those that were inspected before a time."""
        found = self._connection.execute("SELECT name FROM done WHERE time < ?", (when,))
        return [os.fsdecode(name) for (name,) in found]

    def say(self, trouble: str) -> None:
        """Log what is wrong, once."""
        if trouble not in self._said:
            log.warning("%s: the others are inspected.", trouble)
            self._said.add(trouble)

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> bool:
        try:
            with Transaction(self._connection):
                self._connection.executemany(statement, rows)
        except sqlite3.Error as error:
            self.say(f"what was inspected cannot be noted ({one_line(error)})")
            return False
        return True


def _text(name: str) -> bytes:
    """As SQLite takes it, whatever bytes the file system allows in names."""
    return os.fsencode(name)
