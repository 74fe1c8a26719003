"""The file of the store: its tables and their versions, and what is wrong with it in a sentence.

SQLite in WAL mode: one writes, any number read meanwhile, and what was committed outlives the
process, however it ends.
"""

import sqlite3
from contextlib import suppress
from pathlib import Path

from haloae.data.images import shown_path
from haloae.errors import OutputError
from haloae.files import require_room

APPLICATION = 0x48414C4F
"""In the file's header: it is a store of haloae."""
NEAR = 0.9
"""A score of this share of the threshold is near it; it stands in an index, too."""
TO_REVIEW = f"(verdict != 'normal' OR score >= {NEAR} * threshold)"
"""What somebody should look at; it stands in an index, too."""
VERSIONS = (
    f"""
    CREATE TABLE identity AS SELECT lower(hex(randomblob(16))) AS id; -- of this file among others
    CREATE TABLE inspections (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        time INTEGER NOT NULL, -- microseconds since 1970, UTC
        source TEXT NOT NULL,
        recipe TEXT NOT NULL,
        model TEXT NOT NULL,
        image TEXT NOT NULL,
        score REAL NOT NULL,
        p_value REAL NOT NULL,
        threshold REAL NOT NULL,
        verdict TEXT NOT NULL CHECK (verdict IN ('normal', 'anomalous', 'unusable')),
        reason TEXT,
        boxes TEXT NOT NULL -- JSON: left, top, right, bottom, peak of each
    );
    CREATE INDEX by_time ON inspections (time, recipe, verdict);
    CREATE INDEX by_recipe ON inspections (recipe, number);
    CREATE INDEX to_review ON inspections (number) WHERE {TO_REVIEW};
    CREATE TABLE reviews ( -- of one inspection, the last counts
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        inspection TEXT NOT NULL,
        time INTEGER NOT NULL,
        who TEXT NOT NULL,
        role TEXT NOT NULL,
        word TEXT NOT NULL CHECK (word IN ('confirm', 'overrule')),
        tags TEXT NOT NULL -- JSON: a list of words
    );
    CREATE INDEX by_inspection ON reviews (inspection, number);
    CREATE TABLE gaps ( -- inspections that could not be stored, and are nowhere
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        first INTEGER NOT NULL, -- time of the first and of the last of them
        last INTEGER NOT NULL,
        images INTEGER NOT NULL,
        reason TEXT NOT NULL
    );
    CREATE TABLE audit (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        time INTEGER NOT NULL,
        who TEXT NOT NULL,
        role TEXT NOT NULL,
        action TEXT NOT NULL,
        subject TEXT NOT NULL,
        before TEXT NOT NULL, -- JSON
        after TEXT NOT NULL, -- JSON
        seal TEXT NOT NULL -- sha256 over the entry and the seal of the one before it
    );
    CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit
        BEGIN SELECT RAISE(ABORT, 'the audit is only added to'); END;
    CREATE TRIGGER audit_stays BEFORE UPDATE ON audit
        BEGIN SELECT RAISE(ABORT, 'the audit is only added to'); END;
    """,
)
"""What makes each version of the tables out of the one before."""
UNREADY = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR)
"""What passes."""
WORDS = {
    sqlite3.SQLITE_FULL: "the disk is full: free some space",
    sqlite3.SQLITE_BUSY: "another program holds it: close that",
    sqlite3.SQLITE_LOCKED: "another program holds it: close that",
    sqlite3.SQLITE_IOERR: "its disk fails or is full: check it, and free some space",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: check its folder and permissions",
    sqlite3.SQLITE_READONLY: "it cannot be written to: check its folder and permissions",
    sqlite3.SQLITE_PERM: "it cannot be written to: check its folder and permissions",
    sqlite3.SQLITE_CORRUPT: "it is damaged: move it away, and a new one is made",
    sqlite3.SQLITE_NOTADB: "it is no database: move it away, or choose another file",
}
"""By SQLite's own code."""


def code_of(error: sqlite3.Error) -> int:
    """SQLite's primary result code of an error."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def problem(path: Path, error: sqlite3.Error) -> str:
    """One sentence: what is wrong with the file, and the way out."""
    return f"{shown_path(path)}: {WORDS.get(code_of(error), str(error))}."


def connect(path: Path, *, timeout: float, query: str = "") -> sqlite3.Connection:
    """A connection that any thread may use, one at a time; it commits when it is told to.

    Args:
        path: of the file.
        timeout: seconds to wait for others.
        query: of SQLite's address of a file, such as ``?mode=ro``.
    """
    return sqlite3.connect(
        f"{path.absolute().as_uri()}{query}",
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
    )


def open_database(path: Path, *, timeout: float) -> sqlite3.Connection:
    """The connection that writes; tables that are missing or older are brought up to date.

    Args:
        path: of the file, which is made where there is none.
        timeout: seconds to wait for others.

    Raises:
        OutputError: the file is of a newer version, or is something else.
        sqlite3.Error: it cannot be opened or written.
    """
    require_room(path)
    with suppress(OSError):  # what is wrong with it, SQLite says
        path.parent.mkdir(parents=True, exist_ok=True)
    database = connect(path, timeout=timeout)
    try:
        version = _version(path, database)
        database.execute("PRAGMA auto_vacuum = INCREMENTAL")
        (mode,) = database.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise OutputError(f"{shown_path(path)}: its disk has no shared memory: choose another.")
        # A commit is in the system's hands and outlives this process; `Store` has it on the disk
        # within a second, and where nothing waits for it.
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA wal_autocheckpoint = 0")
        database.execute("PRAGMA journal_size_limit = 67108864")
        if version < len(VERSIONS):
            _migrate(database, version)
    except BaseException:
        database.close()
        raise
    return database


def _version(path: Path, database: sqlite3.Connection) -> int:
    ((application,), (version,), (tables,)) = (
        database.execute(query).fetchone()
        for query in (
            "PRAGMA application_id",
            "PRAGMA user_version",
            "SELECT count(*) FROM sqlite_master",
        )
    )
    if tables and application != APPLICATION:
        raise OutputError(
            f"{shown_path(path)}: is a database of another program: choose another file."
        )
    if version > len(VERSIONS):
        raise OutputError(
            f"{shown_path(path)}: has version {version}, and this haloae knows up to "
            f"{len(VERSIONS)}: upgrade haloae, or choose another file."
        )
    return int(version)


def _migrate(database: sqlite3.Connection, version: int) -> None:
    database.executescript(
        f"BEGIN IMMEDIATE; {''.join(VERSIONS[version:])}"
        f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {len(VERSIONS)}; COMMIT;"
    )


class Transaction:
    """All that is done inside is committed together, or undone."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._database.execute("COMMIT")
        finally:
            if self._database.in_transaction:
                with suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")


def used_bytes(database: sqlite3.Connection) -> int:
    """Of a database's file, what is in use."""
    pages, free, size = (
        database.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def remove_oldest(database: sqlite3.Connection, *, before: int, most: int) -> int:
    """Remove the oldest inspections, and what was said of them, and give their room back.

    Args:
        database: to remove them from.
        before: microseconds since 1970; younger ones stay.
        most: of them that are removed.

    Returns:
        how many were.
    """
    oldest = "SELECT id FROM inspections WHERE time < ? ORDER BY time LIMIT ?"
    going = database.execute(oldest, (before, most)).fetchall()
    if going:
        with Transaction(database):
            database.executemany("DELETE FROM reviews WHERE inspection = ?", going)
            database.executemany("DELETE FROM inspections WHERE id = ?", going)
            database.execute("DELETE FROM gaps WHERE last < (SELECT min(time) FROM inspections)")
        database.execute("PRAGMA incremental_vacuum").fetchall()
    return len(going)


def remove_remains(path: Path) -> None:
    """Of a file that somebody has removed: a new one of its name would take them for its own."""
    for end in ("-wal", "-shm"):
        with suppress(OSError):
            path.with_name(path.name + end).unlink()
