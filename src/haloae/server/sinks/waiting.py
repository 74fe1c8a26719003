"""Inspections that wait to be delivered: in memory, in order, and on disk too where asked."""

import json
import sqlite3
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from itertools import takewhile
from pathlib import Path
from threading import Condition, Thread
from typing import NamedTuple

from haloae.server.database import Transaction, connect
from haloae.server.kinds import one_line
from haloae.server.sinks.base import Item

PATIENCE = 1.0
"""Seconds that a start waits for the disk."""
AGAIN = 2.0
"""Seconds until a disk that is full or broken is tried again."""


class Entry(NamedTuple):
    """An item with its number, which grows from one to the next."""

    number: int
    item: Item


class Waiting:
    """A queue with a bound; who puts something into it waits for nobody.

    With a file, a thread writes down at once what is put and what is done, so that it is found
    again after a process was killed, and which item was the last, so that who has those that came
    in the last moment puts them anew. A file that cannot be written stops nothing: `trouble` says
    so.

    Args:
        most: items.
        most_bytes: of their images.
        file: an SQLite database; None: in memory alone.

    Raises:
        sqlite3.Error: the file is no database, or cannot be opened.
    """

    def __init__(self, *, most: int, most_bytes: int, file: Path | None = None) -> None:
        self.trouble: str | None = None
        """Why nothing is kept on disk at the moment."""
        self._most, self._most_bytes = most, most_bytes
        self._changed = Condition()
        self._is_closed = False
        entries, self.mark = ([], None) if file is None else _read(file)
        """Id of the last item that was put, as the file says at first; None: nothing was."""
        self._entries = deque(entries)
        self._bytes = 0
        self._last = self._written = self._entries[-1].number if self._entries else 0
        self._done = self._forgotten = self._entries[0].number - 1 if self._entries else 0
        self._writer: Thread | None = None
        if file is not None:
            # A daemon: a disk that hangs must not keep the process.
            self._writer = Thread(target=self._write, args=(file,), name=str(file), daemon=True)
            self._writer.start()

    def __len__(self) -> int:
        return len(self._entries)

    def begin_after(self, identity: str) -> None:
        """Begin a new queue with what comes after an item; soon, this is in the file."""
        with self._changed:
            self.mark = identity
            self._last += 1  # a number without an item
            self._changed.notify_all()
            if self._writer is not None:
                self._changed.wait_for(
                    lambda: self._written == self._last or self.trouble, PATIENCE
                )

    def put(self, item: Item) -> bool:
        """Add one; False: there is no room, or all is closed."""
        with self._changed:
            size = self._bytes + item.size
            is_full = len(self._entries) >= self._most or size > self._most_bytes
            if self._is_closed or (is_full and self._entries):
                return False
            self._last += 1
            self.mark = item.record["id"]
            self._entries.append(Entry(self._last, item))
            self._bytes = size
            self._changed.notify_all()
            return True

    def first(self, timeout: float) -> Entry | None:
        """The one that waits longest, which stays; None: there is none for so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._entries, timeout)
            return self._entries[0] if self._entries else None

    def remove_first(self) -> None:
        """It has been delivered, or never will be."""
        with self._changed:
            entry = self._entries.popleft()
            self._bytes -= entry.item.size
            self._done = entry.number
            self._changed.notify_all()

    def close(self, timeout: float) -> None:
        """Take no more, and write down what is left.

        Args:
            timeout: seconds that the disk may take.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._writer is not None:
            self._writer.join(timeout)

    def _has_changed(self) -> bool:
        """True: the file is not as the queue is, or all is closed."""
        is_new = self._last > self._written or self._done > self._forgotten
        return is_new or self._is_closed

    def _write(self, file: Path) -> None:
        """Keep the file as the queue is, by a thread of its own, until all is closed."""
        connection: sqlite3.Connection | None = None
        is_closed = False
        while not is_closed:
            with self._changed:
                self._changed.wait_for(self._has_changed)
                is_closed, last, done = self._is_closed, self._last, self._done
                mark = self.mark
                newest = takewhile(lambda e: e.number > self._written, reversed(self._entries))
                new = [*newest][::-1]
            try:
                connection = connection or _opened(file)
                _write_down(connection, new, done, mark)
                with self._changed:
                    self._written, self._forgotten, self.trouble = last, done, None
                    self._changed.notify_all()
            except sqlite3.Error as error:
                self.trouble = f"what waits is not kept on disk ({one_line(error)})"
                if connection is not None:
                    connection.close()
                connection = None
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed, AGAIN)
        if connection is not None:
            connection.close()


def _opened(file: Path) -> sqlite3.Connection:
    connection = connect(file, timeout=10)
    try:
        # Unlike a write-ahead log, it is read on a full disk, too.
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS waiting (number INTEGER PRIMARY KEY, record TEXT NOT NULL)"
        )
        connection.execute("CREATE TABLE IF NOT EXISTS mark (only INTEGER PRIMARY KEY, id TEXT)")
    except BaseException:
        connection.close()
        raise
    return connection


def _read(file: Path) -> tuple[list[Entry], str | None]:
    if not file.exists() or not file.stat().st_size:  # the disk may be too full to begin one
        return [], None
    with closing(_opened(file)) as connection:
        rows = connection.execute("SELECT number, record FROM waiting ORDER BY number").fetchall()
        marks = connection.execute("SELECT id FROM mark").fetchall()
    entries = [Entry(number, Item(json.loads(text))) for number, text in rows]
    return entries, marks[0][0] if marks else None


def _write_down(
    connection: sqlite3.Connection, new: Sequence[Entry], done: int, mark: str | None
) -> None:
    """All of it or nothing."""
    rows = [(entry.number, json.dumps(entry.item.record)) for entry in new]
    with Transaction(connection):
        connection.execute("DELETE FROM waiting WHERE number <= ?", (done,))
        connection.executemany("INSERT OR REPLACE INTO waiting VALUES (?, ?)", rows)
        connection.execute("INSERT OR REPLACE INTO mark VALUES (1, ?)", (mark,))
