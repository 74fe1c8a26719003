"""Inspections as files: a folder a day, a line of JSON each, and the images; the oldest go."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from haloae.files import require_room, write_atomic
from haloae.server.days import DAY, Days
from haloae.server.kinds import make_folder
from haloae.server.sinks.base import Connection, Item, Sink, register_sink

RECORDS = "inspections.jsonl"
LONGEST_LINE = 2**20
"""Bytes."""
IMAGES = re.compile(r"\d{6}\.\d{6}-[0-9a-f]{32}\.[a-z]{3,4}")
"""What, beside records, is deleted when it is old: nothing that anybody else has put there."""
SUFFIXES = {
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpg",
    b"II": "tif",
    b"MM": "tif",
    b"RIFF": "webp",
    b"GIF8": "gif",
    b"BM": "bmp",
    **dict.fromkeys((b"P%d" % digit for digit in range(1, 7)), "pnm"),
}
"""Of image files, by how they begin."""


@register_sink("folder")
class Folder(Sink):
    """Writes ``2026-03-01/inspections.jsonl`` and the images beside it.

    A line is the record, and under ``file`` the name of its image or null. Days are UTC. A folder
    never holds more than `most_bytes`: the oldest images go first, then the oldest records.
    """

    keeps = True
    wants_image = True

    path: Path
    images: Literal["all", "not_normal", "none"] = "all"
    """Of which inspections the image is kept; ``not_normal``: anomalous and unusable ones."""
    most_days: Annotated[int, Field(ge=1, le=36_500)] = 90
    """Today is the first."""
    most_bytes: Annotated[int, Field(ge=2**16)] = 50 * 2**30

    def check(self) -> None:
        """See `Settings.check`."""
        make_folder(self.path)

    @contextmanager
    def opened(self) -> Iterator[Connection]:
        """See `Sink.opened`."""
        yield _Days(self)


class _Days(Connection):
    """The folder, and what it knows to be in there."""

    def __init__(self, settings: Folder) -> None:
        self._settings = settings
        self._images = Days(settings.path, IMAGES)
        self._records: dict[str, int] = {}
        """Bytes by day, oldest first."""
        settings.path.mkdir(parents=True, exist_ok=True)
        for day in sorted(each for each in settings.path.iterdir() if DAY.fullmatch(each.name)):
            require_room(day, of_folder=True)
            if (records := day / RECORDS).exists():
                self._records[day.name] = records.lstat().st_size
        self._images.find()
        self._make_room(0, datetime.now(UTC))

    def deliver(self, item: Item) -> None:
        """The image first, so that a line never names one that is not there."""
        time = datetime.fromisoformat(item.record["time"]).astimezone(UTC)
        folder = self._settings.path / f"{time:%Y-%m-%d}"
        image = self._wanted(item)
        stem = f"{time:%H%M%S.%f}-{item.record['id']}"
        name = f"{stem}.{suffix_of(image)}" if image else _found(folder, stem, item)
        line = json.dumps(item.record | {"file": name}).encode() + b"\n"
        self._make_room(len(line) + len(image), time)
        folder.mkdir(parents=True, exist_ok=True)
        # It is there where only the line had failed.
        if image and name and not (folder / name).exists():
            write_atomic(folder / name, image, durable=False)
            self._images.add(folder.name, len(image))
        self._records[folder.name] = _append(folder / RECORDS, line, item.record["id"])

    def _wanted(self, item: Item) -> bytes:
        """The image, if it is to be kept; else nothing."""
        wanted, verdict = self._settings.images, item.record["verdict"]
        if wanted == "none" or (wanted == "not_normal" and verdict == "normal"):
            return b""
        image = item.image()
        return image if len(image) <= self._settings.most_bytes // 2 else b""

    def _make_room(self, needed: int, now: datetime) -> None:
        """Delete what is too old, and the oldest until there is room."""
        first = f"{now - timedelta(days=self._settings.most_days - 1):%Y-%m-%d}"
        while (oldest := self._images.first) and (oldest < first or self._is_over(needed)):
            self._images.remove_oldest()
        for day in [*self._records]:
            if day < first or self._is_over(needed):
                self._delete(day, RECORDS)
                del self._records[day]

    def _is_over(self, needed: int) -> bool:
        found = self._images.bytes + sum(self._records.values())
        return found + needed > self._settings.most_bytes

    def _delete(self, day: str, name: str) -> None:
        folder = self._settings.path / day
        (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # something else is in there
            folder.rmdir()


def _found(folder: Path, stem: str, item: Item) -> str | None:
    """The image of an item that has lost it, in a kill, after it was written."""
    names = () if item.size else (f"{stem}.{suffix}" for suffix in dict.fromkeys(SUFFIXES.values()))
    return next((name for name in names if (folder / name).is_file()), None)


def _append(path: Path, line: bytes, identity: str) -> int:
    """Add a line after the last whole one, unless it is there; the file's size then."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags, 0o666), "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LONGEST_LINE))
        whole, _, rest = file.read().rpartition(b"\n")
        torn = len(rest)  # by a process that was killed, or a full disk
        file.truncate(size - torn)
        if identity.encode() in whole:  # which comes again after a kill
            return size - torn
        file.seek(size - torn)
        file.write(line)
        return size - torn + len(line)


def suffix_of(image: bytes) -> str:
    """What the name of an image file ends in, by how it begins."""
    found = (suffix for start, suffix in SUFFIXES.items() if image.startswith(start))
    return next(found, "bin")
