"""Every change of a threshold or model, by whom: only added to, and each entry seals those before.

The tables refuse to change or remove an entry. Who gets round that with another program breaks the
chain of seals: each is a hash over its entry and the seal of the one before.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple

from haloae.server.rows import moment, now, plain

COLUMNS = "time, who, role, action, subject, before, after, seal"


class Change(NamedTuple):
    """An entry of the audit."""

    time: datetime
    who: str
    role: str
    action: str
    """Such as ``threshold`` or ``model``."""
    subject: str
    """Such as a recipe's name."""
    before: Any
    """Plain values, as JSON holds them."""
    after: Any


def append(
    database: sqlite3.Connection, texts: Sequence[str], before: object, after: object
) -> None:
    """Add an entry, inside a transaction.

    Args:
        database: to add it to.
        texts: who, role, action, subject.
        before: plain values.
        after: plain values.
    """
    last = database.execute("SELECT seal FROM audit ORDER BY number DESC LIMIT 1").fetchone()
    entry = (now(), *map(plain, texts), json.dumps(before), json.dumps(after))
    seal = _seal(last[0] if last else "", entry)
    marks = ", ".join("?" * (len(entry) + 1))
    database.execute(f"INSERT INTO audit ({COLUMNS}) VALUES ({marks})", (*entry, seal))  # noqa: S608


def change_of(row: Sequence[Any]) -> Change:
    """What a row of `COLUMNS` says."""
    time, *words, before, after, _ = row
    who, role, action, subject = words
    return Change(moment(time), who, role, action, subject, json.loads(before), json.loads(after))


def first_broken(rows: Iterable[Sequence[Any]]) -> int | None:
    """Which entry, from 1, is not what was added after those before it; None: all are.

    Args:
        rows: all, of `COLUMNS`, the oldest first.
    """
    before = ""
    for place, (*entry, seal) in enumerate(rows, start=1):
        if seal != _seal(before, entry):
            return place
        before = seal
    return None


def _seal(before: str, entry: Sequence[Any]) -> str:
    return sha256(json.dumps([before, *entry]).encode()).hexdigest()
