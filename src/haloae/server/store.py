"""Every inspection, what people said of it, and every change of a threshold or model: kept.

What was added is in the file when `Store.add` returns: killing the process loses nothing, and a
power cut the last second. Where the file cannot be written (a full disk, another program that
holds it), inspections wait in memory, as many as there is room for; `Store.state` says what is not
stored, nothing else waits, and what was dropped in the end is on record as a gap.
"""

import json
import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, RLock, Thread
from typing import Any, Literal, NamedTuple, Self, get_args

from haloae.data.images import shown_path
from haloae.errors import ConfigError, DataError, OutputError
from haloae.server.audit import append
from haloae.server.database import (
    UNREADY,
    Transaction,
    code_of,
    connect,
    open_database,
    problem,
    remove_oldest,
    remove_remains,
    used_bytes,
)
from haloae.server.history import Gap, History
from haloae.server.inspection import Inspection
from haloae.server.rows import INSERT, microseconds, now, plain, row_of
from haloae.server.safety import Role

log = logging.getLogger(__name__)

Word = Literal["confirm", "overrule"]
"""What a person says of a verdict."""
MOST_WAITING = 20_000
"""Inspections that wait in memory, about 1 kB each."""
TOGETHER = 500
"""Rows that are written or removed at a time, so that nothing waits long."""
TIMEOUT = 0.1
"""Seconds that an inspection waits for another program that holds the file; the next do not."""
BREATH = 1.0
"""Seconds between two looks at what is to be done."""
RETAINED = 60
"""Looks between two at what is too old or too much."""
UNFIT = (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError, OverflowError)
"""What is wrong with one inspection rather than with the file."""


class StoreState(NamedTuple):
    """How the store is."""

    stored: int
    """Inspections, since it was opened."""
    waiting: int
    """Inspections in memory, that are stored once it is possible."""
    lost: int
    """Inspections since it was opened that are neither."""
    problem: str | None
    """Why they are not stored, in a sentence; None: all are."""
    since: datetime | None
    """When that began, UTC."""
    bytes: int
    """Of the file, as far as it is in use."""
    gap: Gap | None
    """Of the lost ones, those that are not on record yet."""

    @property
    def words(self) -> str | None:
        """What is not stored, in a sentence for people; None: all that comes is."""
        if self.problem is None or self.since is None:
            return None
        lost = f" and {self.lost} lost" if self.lost else ""
        return (
            f"not stored since {self.since:%H:%M} UTC, {self.waiting} inspections waiting{lost}: "
            f"{self.problem}"
        )


class Store:
    """Writes, from any thread; `history` reads.

    Args:
        path: of the database; it is made where there is none.
        days: inspections older than that are removed, with what was said of them.
        most_bytes: the oldest are removed where the file's content takes more.
        most_waiting: inspections that wait in memory where they cannot be stored; of more, the
            oldest are lost.

    Raises:
        OutputError: the file cannot be had, is of a newer version, or is something else. A full
            disk, and a program that holds the file, are waited for.
    """

    def __init__(
        self,
        path: Path,
        *,
        days: float = 365,
        most_bytes: int = 2**32,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self.path = path
        self.history = History(path)
        self._days, self._most_bytes, self._most_waiting = days, most_bytes, most_waiting
        self._lock = RLock()
        self._database: sqlite3.Connection | None = None
        self._waiting: deque[Inspection] = deque()
        self._gap: Gap | None = None
        self._problem: str | None = None
        self._since: datetime | None = None
        self._stored = self._lost = self._bytes = 0
        self._is_dirty = False
        self._is_closed = Event()
        try:
            self._open()
        except sqlite3.Error as error:
            if code_of(error) not in UNREADY:
                raise OutputError(problem(path, error)) from error
            self._fail(error)
        self._keeper = Thread(target=self._keep, name="store", daemon=True)
        self._keeper.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, inspection: Inspection) -> None:
        """Store an inspection, or have it wait; never raises."""
        with self._lock:
            self._waiting.append(inspection)
            if self._problem is None:
                self._write()
            while len(self._waiting) > self._most_waiting:
                self._drop(self._waiting.popleft(), self._problem or "")

    def review(
        self, inspection: str, *, word: Word, tags: Sequence[str] = (), who: str, role: Role
    ) -> None:
        """Keep what a person says of a verdict; the last word on an inspection counts.

        Args:
            inspection: its id.
            word: whether the verdict is right.
            tags: what it is, in words.
            who: says so.
            role: that they have.

        Raises:
            ConfigError: no such word.
            DataError: the inspection is not stored.
            OutputError: the word cannot be stored.
        """
        if word not in get_args(Word):
            raise ConfigError(f"a verdict is confirmed or overruled: {word!r} is neither.")

        def write(database: sqlite3.Connection) -> None:
            known = "SELECT 1 FROM inspections WHERE id = ?"
            if database.execute(known, (plain(inspection),)).fetchone() is None:
                raise DataError(f"inspection {inspection}: is not stored, or no more.")
            database.execute(
                "INSERT INTO reviews (inspection, time, who, role, word, tags) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (plain(inspection), now(), plain(who), role, word, json.dumps(list(tags))),
            )

        self._record(write)

    def audit(
        self,
        action: str,
        subject: str,
        *,
        before: Any,  # noqa: ANN401 - any JSON
        after: Any,  # noqa: ANN401
        who: str,
        role: Role,
    ) -> None:
        """Put a change on record, before it is made: what cannot be recorded is not to be done.

        Args:
            action: such as ``threshold`` or ``model``.
            subject: such as a recipe's name.
            before: what it was, plain values.
            after: what it becomes.
            who: changes it.
            role: that they have.

        Raises:
            OutputError: the entry cannot be stored.
        """
        texts = (who, role, action, subject)
        self._record(lambda database: append(database, texts, before, after))

    def state(self) -> StoreState:
        """How it is, at this moment."""
        with self._lock:
            counts = (self._stored, len(self._waiting), self._lost)
            return StoreState(*counts, self._problem, self._since, self._bytes, self._gap)

    def close(self) -> None:
        """Write what waits, if it can be; what cannot is lost, and the log says how many."""
        self._is_closed.set()
        self._keeper.join()
        with self._lock:
            self._write()
            if self._waiting:
                log.error("%d inspections are lost: %s", len(self._waiting), self._problem)
            self._shut()

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = open_database(self.path, timeout=TIMEOUT)
            self._bytes = used_bytes(self._database)
        return self._database

    def _shut(self) -> None:
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def _write(self) -> None:
        """Store what waits, in the order in which it came."""
        try:
            database = self._open()
            while self._waiting or self._gap:
                batch = [self._waiting[i] for i in range(min(TOGETHER, len(self._waiting)))]
                unfit = self._write_batch(database, batch)
                for _ in batch:
                    self._waiting.popleft()
                self._gap = None
                self._stored += len(batch) - len(unfit)
                for inspection, reason in unfit:
                    self._drop(inspection, reason)
        except (sqlite3.Error, OutputError) as error:
            self._fail(error)
        else:
            if self._problem is not None:
                log.warning("%s: inspections are stored again.", shown_path(self.path))
            self._problem = self._since = None

    def _write_batch(
        self, database: sqlite3.Connection, batch: Sequence[Inspection]
    ) -> list[tuple[Inspection, str]]:
        """All of it or nothing, but for inspections that no table could hold, with the reason."""
        unfit = []
        self._is_dirty = True
        with Transaction(database):
            for inspection in batch:
                try:
                    database.execute(INSERT, row_of(inspection))
                except UNFIT as error:
                    unfit.append((inspection, f"it does not fit the table ({error})."))
            if self._gap:
                gap = "INSERT INTO gaps (first, last, images, reason) VALUES (?, ?, ?, ?)"
                first, last, *rest = self._gap
                database.execute(gap, (microseconds(first), microseconds(last), *rest))
        return unfit

    def _drop(self, inspection: Inspection, reason: str) -> None:
        first, _, images, _ = self._gap or (inspection.time, None, 0, None)
        self._gap = Gap(first, inspection.time, images + 1, reason)
        self._lost += 1

    def _fail(self, error: sqlite3.Error | OutputError) -> None:
        said = str(error) if isinstance(error, OutputError) else problem(self.path, error)
        if self._problem is None:
            self._since = datetime.now(UTC)
            log.error("inspections are not stored: %s", said)
        self._problem = said

    def _record(self, write: Callable[[sqlite3.Connection], None]) -> None:
        """Write what a person did, and have the disk keep it before anything else is done."""
        with self._lock:
            try:
                database = self._open()
                self._write()
                database.execute("PRAGMA synchronous = FULL")
                try:
                    with Transaction(database):
                        write(database)
                finally:
                    database.execute("PRAGMA synchronous = NORMAL")
            except sqlite3.Error as error:
                raise OutputError(problem(self.path, error)) from error

    def _keep(self) -> None:
        looks = 0
        while not self._is_closed.is_set():
            with self._lock:
                if self._database is not None and not self.path.exists():
                    log.warning("%s: is gone, and is made anew.", shown_path(self.path))
                    self._shut()
                    remove_remains(self.path)
                if self._problem is not None or self._database is None:
                    self._write()
            if self._problem is None:
                try:
                    if looks % RETAINED == 0:
                        self.retain()
                    self._sync()
                except (sqlite3.Error, OutputError) as error:
                    log.warning("%s", error)
                    self._is_dirty = True
            looks += 1
            self._is_closed.wait(BREATH)

    def _sync(self) -> None:
        """Have the disk keep what was committed, while others go on writing."""
        if self._is_dirty:
            self._is_dirty = False
            with closing(connect(self.path, timeout=TIMEOUT, query="?mode=rw")) as database:
                database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def retain(self) -> None:
        """Remove what is too old or too much, the oldest first.

        Raises:
            sqlite3.Error: it cannot be removed now.
        """
        too_old = now() - round(self._days * 86_400e6)
        is_removing = True
        while is_removing and not self._is_closed.is_set():
            with self._lock:
                database = self._open()
                self._bytes = used_bytes(database)
                limit = 2**62 if self._bytes > self._most_bytes else too_old
                is_removing = remove_oldest(database, before=limit, most=TOGETHER) > 0
                self._is_dirty |= is_removing
