"""A copy of every box's store in one PostgreSQL, for who looks at several lines.

Each box keeps its own file, and nothing waits for the network: what is new in the file follows,
in order, whenever the database can be reached, from where it stopped. The database itself says how
far each box has come, so nothing is doubled or left out, however either side ends. What all boxes
have stored is read back likewise, while somebody looks at it.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from haloae.errors import ConfigError, MissingExtraError
from haloae.server.database import connect, problem
from haloae.server.history import Counts
from haloae.server.kinds import BackOff
from haloae.server.rows import microseconds, moment

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)

AT_ONCE = 500
"""Rows that are sent together."""
BREATH = 2.0
"""Seconds between two looks at what is new."""
BACK_OFF = BackOff(first=BREATH)
"""Between two tries to reach a database that cannot be."""
PATIENCE = 10
"""Seconds that a connection may take, and that one is kept over which nothing comes."""
LOOKED_AT = 10.0
"""Seconds after a look at what all boxes have stored, in which it is read anew."""
FRESH = timedelta(seconds=BREATH)
"""What was read so short ago is as it is now."""
LONGEST = 30_000
"""Milliseconds that a statement may take."""
TABLES = {
    "inspections": (
        "id text NOT NULL, time bigint NOT NULL, source text NOT NULL, recipe text NOT NULL, "
        "model text NOT NULL, image text NOT NULL, score float8 NOT NULL, p_value float8 NOT NULL, "
        "threshold float8 NOT NULL, verdict text NOT NULL, reason text, boxes text NOT NULL"
    ),
    "reviews": (
        "inspection text NOT NULL, time bigint NOT NULL, who text NOT NULL, role text NOT NULL, "
        "word text NOT NULL, tags text NOT NULL"
    ),
    "gaps": (
        "first bigint NOT NULL, last bigint NOT NULL, images int NOT NULL, reason text NOT NULL"
    ),
    "audit": (
        "time bigint NOT NULL, who text NOT NULL, role text NOT NULL, action text NOT NULL, "
        "subject text NOT NULL, before text NOT NULL, after text NOT NULL, seal text NOT NULL"
    ),
}
"""The store's tables, in the schema ``haloae``; before these columns, each has ``box``, ``store``,
the id of the box's file, and ``number``, which are its key."""


ALL_BOXES = """
    WITH RECURSIVE boxes AS ( -- a step each, as there are few, with a great many rows
        (SELECT box FROM haloae.inspections ORDER BY box LIMIT 1)
        UNION ALL
        SELECT (SELECT min(box) FROM haloae.inspections WHERE box > boxes.box)
        FROM boxes WHERE box IS NOT NULL
    )
    SELECT box, (SELECT max(time) FROM haloae.inspections i WHERE i.box = boxes.box), counts.*,
        (SELECT coalesce(sum(images), 0)::int FROM haloae.gaps g
            WHERE g.box = boxes.box AND g.last >= %(since)s)
    FROM boxes, LATERAL (
        SELECT count(*) FILTER (WHERE verdict = 'normal'),
            count(*) FILTER (WHERE verdict = 'anomalous'),
            count(*) FILTER (WHERE verdict = 'unusable')
        FROM haloae.inspections i WHERE i.box = boxes.box AND i.time >= %(since)s
    ) AS counts
    WHERE box IS NOT NULL ORDER BY box"""


class BoxCounts(NamedTuple):
    """What a box has stored since some time."""

    box: str
    last: datetime
    """When it inspected the last image that is in the database, UTC."""
    counts: Counts
    lost: int
    """Inspections that it could not store."""


class AllBoxes(NamedTuple):
    """What was in the database at some time."""

    read: datetime
    since: datetime
    """From when on inspections are counted."""
    boxes: tuple[BoxCounts, ...]
    """By name."""


class MirrorState(NamedTuple):
    """How the copy is."""

    sent: int
    """Rows, since it was begun."""
    problem: str | None
    """Why nothing can be sent, in a sentence; None: it can."""


class Mirror:
    """Sends what is new in a store's file to PostgreSQL, in a thread of its own.

    Args:
        path: of the store's file.
        url: ``postgresql://USER:PASSWORD@HOST/DATABASE``; it is never logged.
        box: what this box is called there.
        on_problem: is told why nothing can be sent, once, and with None that it can again.

    Raises:
        ConfigError: that is no such URL.
        MissingExtraError: psycopg is not installed.
    """

    def __init__(
        self,
        path: Path,
        url: str,
        *,
        box: str,
        on_problem: Callable[[str | None], None] = lambda problem: None,
    ) -> None:
        try:
            import psycopg
            from psycopg.conninfo import conninfo_to_dict
        except ImportError as error:
            raise MissingExtraError("psycopg", "postgres", error) from error
        try:
            told = conninfo_to_dict(url)
        except psycopg.Error:
            raise ConfigError(
                "the database's URL is not of the form postgresql://USER:PASSWORD@HOST/DATABASE."
            ) from None  # which quotes it, with the password
        self._path, self._url, self.box = path, url, box
        self._on_problem = on_problem
        self._name = f"database {told.get('dbname', '')} on {told.get('host', 'this machine')}"
        self._sent = 0
        self._problem: str | None = None
        self._wanted = datetime.now(UTC), -LOOKED_AT
        """From when on, and when somebody last looked."""
        self._all_boxes: AllBoxes | None = None
        self._asked = time.monotonic()
        """When something was last asked of the database; it is, all the time."""
        self._is_closed = Event()
        self._thread = Thread(target=self._keep, name="mirror", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def state(self) -> MirrorState:
        """How it is, at this moment."""
        problem = self._problem
        if problem is None and time.monotonic() - self._asked > LONGEST / 1000 + PATIENCE:
            problem = f"{self._name}: does not answer: check it and the network."
        return MirrorState(self._sent, problem)

    def all_boxes(self, since: datetime) -> AllBoxes | None:
        """What all boxes had stored when it was last read; nobody waits for the database here.

        Args:
            since: from when on inspections are to be counted, from the next reading on.

        Returns:
            None: it was not read yet.
        """
        self._wanted = since, time.monotonic()
        return self._all_boxes

    def close(self) -> None:
        """Stop; what is not sent yet is sent when the next begins."""
        self._is_closed.set()
        self._thread.join(PATIENCE)

    def _keep(self) -> None:
        import psycopg

        pauses = BACK_OFF.pauses()
        while not self._is_closed.is_set():
            try:
                self._asked = time.monotonic()
                with psycopg.connect(
                    self._url,
                    connect_timeout=PATIENCE,
                    tcp_user_timeout=1000 * PATIENCE,
                    keepalives_idle=PATIENCE,
                    keepalives_interval=PATIENCE,
                    options=f"-c statement_timeout={LONGEST}",
                ) as target:
                    _prepare(target)
                    pauses = BACK_OFF.pauses()
                    while not self._is_closed.is_set():
                        self._send(target)
                        self._read(target)
                        self._works()
                        self._is_closed.wait(BREATH)
            except psycopg.Error as error:
                reason = error.sqlstate or type(error).__name__  # its words may hold the password
                said = f"{self._name}: nothing can be sent ({reason}): check it and the network."
                self._fail(said)
            except sqlite3.Error as error:
                self._fail(problem(self._path, error))
            self._is_closed.wait(next(pauses))

    def _works(self) -> None:
        if self._problem is not None:
            self._problem = None
            self._on_problem(None)

    def _fail(self, said: str) -> None:
        if self._problem is None:
            log.warning("%s", said)
        if self._problem != said:
            self._problem = said
            self._on_problem(said)

    def _read(self, target: "psycopg.Connection[Any]") -> None:
        """What all boxes have stored, if somebody looks at it."""
        since, looked = self._wanted
        known, now = self._all_boxes, datetime.now(UTC)
        is_new = known is not None and known.since == since and now - known.read < FRESH
        if is_new or time.monotonic() - looked > LOOKED_AT:
            return
        with target.transaction():
            rows = target.execute(ALL_BOXES, {"since": microseconds(since)}).fetchall()
        boxes = tuple(
            BoxCounts(box, moment(last), Counts(*counts), lost) for box, last, *counts, lost in rows
        )
        self._all_boxes = AllBoxes(now, since, boxes)

    def _send(self, target: "psycopg.Connection[Any]") -> None:
        """All that is new, of every table."""
        for table, columns in TABLES.items():
            names = ["number", *(column.split()[0] for column in columns.split(", "))]
            while rows := self._new(target, table, names):
                with target.transaction(), target.cursor() as cursor:
                    marks = ", ".join(["%s"] * (len(names) + 2))
                    cursor.executemany(
                        f"INSERT INTO haloae.{table} (box, store, {', '.join(names)}) "  # noqa: S608
                        f"VALUES ({marks}) ON CONFLICT DO NOTHING",
                        rows,
                    )
                self._sent += len(rows)
                self._read(target)
                if self._is_closed.is_set():
                    return

    def _new(
        self, target: "psycopg.Connection[Any]", table: str, names: Sequence[str]
    ) -> list[tuple[Any, ...]]:
        """Rows that are not there yet, the oldest first."""
        self._asked = time.monotonic()
        with closing(connect(self._path, timeout=1, query="?mode=ro")) as source:
            (store,) = source.execute("SELECT id FROM identity").fetchone()
            newest = f"SELECT max(number) FROM haloae.{table} WHERE box = %s AND store = %s"  # noqa: S608
            found = target.execute(newest, (self.box, store)).fetchone()
            target.commit()
            rows = source.execute(
                f"SELECT {', '.join(names)} FROM {table} WHERE number > ? "  # noqa: S608
                f"ORDER BY number LIMIT ?",
                ((found and found[0]) or 0, AT_ONCE),
            ).fetchall()
        return [(self.box, store, *row) for row in rows]


def _prepare(target: "psycopg.Connection[Any]") -> None:
    """Make the tables, unless they are there."""
    with target.transaction():
        # One box at a time: two that make the same table would fail.
        target.execute("SELECT pg_advisory_xact_lock(1212238911)")
        target.execute("SET LOCAL statement_timeout = 0")  # for an index of what is there already
        target.execute("CREATE SCHEMA IF NOT EXISTS haloae")
        for table, columns in TABLES.items():
            target.execute(
                f"CREATE TABLE IF NOT EXISTS haloae.{table} (box text NOT NULL, "
                f"store text NOT NULL, number bigint NOT NULL, {columns}, "
                f"PRIMARY KEY (box, store, number))"
            )
        for table in ("inspections", "reviews", "audit"):
            target.execute(f"CREATE INDEX IF NOT EXISTS {table}_by_time ON haloae.{table} (time)")
        target.execute(
            "CREATE INDEX IF NOT EXISTS inspections_by_box "
            "ON haloae.inspections (box, time, verdict)"
        )
