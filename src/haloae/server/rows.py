"""An inspection and what was said of it, as rows of the store's tables and back."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from haloae.server.inspection import Box, Inspection

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
INSERT = """INSERT INTO inspections (
    id, time, source, recipe, model, image, score, p_value, threshold, verdict, reason, boxes
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"""
SELECT = """SELECT i.number, i.id, i.time, i.source, i.recipe, i.model, i.image, i.score,
    i.p_value, i.threshold, i.verdict, i.reason, i.boxes, r.word, r.tags, r.who, r.role, r.time
    FROM inspections i LEFT JOIN reviews r
    ON r.number = (SELECT max(number) FROM reviews WHERE inspection = i.id)"""


class Review(NamedTuple):
    """What a person said last of a verdict."""

    word: str
    """``confirm`` or ``overrule``."""
    tags: tuple[str, ...]
    who: str
    role: str
    time: datetime


@dataclass(frozen=True)
class Stored:
    """An inspection as it is stored."""

    number: int
    """In the order of storing, ascending."""
    inspection: Inspection
    review: Review | None
    """None: nobody has said anything of it."""

    def as_record(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        review = None
        if self.review is not None:
            review = self.review._asdict() | {"time": self.review.time.isoformat()}
        return self.inspection.as_record() | {"review": review}


def row_of(inspection: Inspection) -> tuple[Any, ...]:
    """The values of `INSERT`."""
    return (
        plain(inspection.id),
        microseconds(inspection.time),
        *map(plain, (inspection.source, inspection.recipe, inspection.model, inspection.image)),
        float(inspection.score),
        float(inspection.p_value),
        float(inspection.threshold),
        inspection.verdict,
        None if inspection.reason is None else plain(inspection.reason),
        json.dumps(inspection.boxes),
    )


def stored_of(row: Sequence[Any]) -> Stored:
    """What a row of `SELECT` says."""
    number, identity, time, *texts, reason, boxes, word, tags, who, role, said = row
    source, recipe, model, image, score, p_value, threshold, verdict = texts
    review = None
    if word is not None:
        review = Review(word, tuple(json.loads(tags)), who, role, moment(said))
    inspection = Inspection(
        id=identity,
        time=moment(time),
        source=source,
        recipe=recipe,
        model=model,
        image=image,
        score=score,
        p_value=p_value,
        threshold=threshold,
        verdict=verdict,
        reason=reason,
        boxes=tuple(Box(*box) for box in json.loads(boxes)),
    )
    return Stored(number, inspection, review)


def plain(text: str) -> str:
    """A text that any database can hold: undecodable bytes of a file's name are escaped."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def microseconds(time: datetime) -> int:
    """Since 1970, of a time with its zone."""
    return (time - EPOCH) // timedelta(microseconds=1)


def moment(since_1970: int) -> datetime:
    """The time of some microseconds, UTC."""
    return EPOCH + timedelta(microseconds=since_1970)


def now() -> int:
    """The present, in microseconds."""
    return microseconds(datetime.now(UTC))
