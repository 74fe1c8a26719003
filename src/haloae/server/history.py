"""What the store holds, as the page, the reports and the exports ask for it."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from haloae.detection.prediction import VERDICTS
from haloae.errors import DataError
from haloae.server.audit import COLUMNS, Change, change_of, first_broken
from haloae.server.database import TO_REVIEW, connect, problem
from haloae.server.inspection import Inspection
from haloae.server.rows import SELECT, Stored, microseconds, moment, plain, stored_of

TIMEOUT = 2.0
"""Seconds that a question waits for who holds the file alone."""
AT_ONCE = 1000
"""Rows that are read at a time where all are wanted."""


class Counts(NamedTuple):
    """Inspections of a time, by verdict."""

    normal: int
    anomalous: int
    unusable: int

    @property
    def rate(self) -> float | None:
        """Share of anomalous ones among those that were judged; None: there is none."""
        judged = self.normal + self.anomalous
        return self.anomalous / judged if judged else None


class Gap(NamedTuple):
    """Inspections that were answered and could not be stored."""

    first: datetime
    last: datetime
    images: int
    reason: str


class History:
    """Answers questions about a store, from any thread, while it is written to.

    Every method raises `DataError` where the file cannot be read.

    Args:
        path: of the store's file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def last(self, count: int, *, recipe: str | None = None) -> list[Stored]:
        """The newest inspections, the newest first."""
        where, values = _of_recipe(recipe)
        return self._stored(f"WHERE {where} ORDER BY i.number DESC LIMIT ?", *values, count)

    def one(self, inspection: str) -> Stored | None:
        """The inspection of an id; None: it is not stored, or no more."""
        found = self._stored("WHERE i.id = ?", plain(inspection))
        return found[0] if found else None

    def newest(self) -> str:
        """Id of the inspection that was stored last; empty: there is none."""
        found = self._rows("SELECT id FROM inspections ORDER BY number DESC LIMIT 1", ())
        return found[0][0] if found else ""

    def after(self, inspection: str) -> Iterator[Inspection]:
        """What was stored after the inspection of an id, the oldest first; empty: all there are.

        None, where it is not stored, or no more.
        """
        first = self.one(inspection) if inspection else None
        if inspection and first is None:
            return
        after = first.number if first else 0
        while found := self._stored("WHERE i.number > ? ORDER BY i.number LIMIT ?", after, AT_ONCE):
            yield from (stored.inspection for stored in found)
            after = found[-1].number

    def counts(
        self, since: datetime, until: datetime | None = None, *, recipe: str | None = None
    ) -> Counts:
        """How many there were from a time on, such as a shift's begin, and before another."""
        where, values = _of_recipe(recipe)
        end = 2**62 if until is None else microseconds(until)
        of_verdicts = (
            f"SELECT i.verdict, count(*) FROM inspections i "  # noqa: S608
            f"WHERE i.time >= ? AND i.time < ? AND {where} GROUP BY i.verdict"
        )
        found = self._rows(of_verdicts, (microseconds(since), end, *values))
        by_verdict = dict(found)
        return Counts(*(by_verdict.get(verdict, 0) for verdict in VERDICTS))

    def to_review(self, count: int, *, recipe: str | None = None) -> list[Stored]:
        """The newest that nobody has reviewed and somebody should, the newest first.

        They are unusable or anomalous, or score within a tenth below their threshold.
        """
        where, values = _of_recipe(recipe)
        return self._stored(
            f"WHERE {TO_REVIEW} AND r.number IS NULL AND {where} ORDER BY i.number DESC LIMIT ?",
            *values,
            count,
        )

    def scores(self, recipe: str, model: str, count: int = 10_000) -> NDArray[np.float64]:
        """Scores of a model's newest inspections that could be judged, the newest first: (N,).

        Args:
            recipe: name of the recipe.
            model: sha256 of its model file.
            count: of scores, at most.
        """
        found = self._rows(
            "SELECT score FROM inspections WHERE recipe = ? AND model = ? "
            "AND verdict != 'unusable' ORDER BY number DESC LIMIT ?",
            (plain(recipe), model, count),
        )
        return np.array([score for (score,) in found], np.float64)

    def disagreements(self, *, recipe: str | None = None) -> Iterator[Stored]:
        """All inspections whose verdict a person has overruled, the oldest first."""
        return self._by_word("r.word = 'overrule'", recipe)

    def reviewed(self, *, recipe: str | None = None) -> Iterator[Stored]:
        """All inspections that a person has said something of, the oldest first."""
        return self._by_word("r.word IS NOT NULL", recipe)

    def _by_word(self, words: str, recipe: str | None) -> Iterator[Stored]:
        where, values = _of_recipe(recipe)
        after = 0
        while found := self._stored(
            f"WHERE {words} AND {where} AND i.number > ? ORDER BY i.number LIMIT ?",
            *values,
            after,
            AT_ONCE,
        ):
            yield from found
            after = found[-1].number

    def changes(self, count: int) -> list[Change]:
        """The newest entries of the audit, the newest first."""
        newest = f"SELECT {COLUMNS} FROM audit ORDER BY number DESC LIMIT ?"  # noqa: S608
        return [change_of(row) for row in self._rows(newest, (count,))]

    def first_broken(self) -> int | None:
        """Which entry of the audit, from 1, was changed or is not the one that was added there.

        None: none. That the newest are missing cannot be seen from those that are there.
        """
        return first_broken(self._rows(f"SELECT {COLUMNS} FROM audit ORDER BY number", ()))  # noqa: S608

    def gaps(self, count: int) -> list[Gap]:
        """The newest gaps, the newest first."""
        rows = self._rows(
            "SELECT first, last, images, reason FROM gaps ORDER BY number DESC LIMIT ?", (count,)
        )
        return [Gap(moment(first), moment(last), *rest) for first, last, *rest in rows]

    def _stored(self, rest: str, *values: object) -> list[Stored]:
        return [stored_of(row) for row in self._rows(f"{SELECT} {rest}", values)]

    def _rows(self, query: str, values: Sequence[object]) -> list[Any]:
        try:
            with closing(connect(self.path, timeout=TIMEOUT, query="?mode=ro")) as database:
                return database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise DataError(problem(self.path, error)) from error


def _of_recipe(recipe: str | None) -> tuple[str, tuple[str, ...]]:
    return ("i.recipe = ?", (plain(recipe),)) if recipe is not None else ("TRUE", ())
