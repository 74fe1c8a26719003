"""Many files in a folder a day, of which the oldest go."""

import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from haloae.files import sweep

DAY = re.compile(r"\d{4}-\d\d-\d\d")
TOGETHER = 1000
"""Files that are looked up at a time, to be removed one by one."""


class _File(NamedTuple):
    time: int
    """When it was written, in nanoseconds since 1970."""
    day: str
    name: str
    bytes: int


class Days:
    """Knows how many bytes there are of each day, and of nothing smaller: memory stays flat.

    Args:
        folder: that the days' folders are in, each called as in 2026-03-01.
        ours: names of the files that are counted and removed; nothing else is.
    """

    def __init__(self, folder: Path, ours: re.Pattern[str]) -> None:
        self._folder, self._ours = folder, ours
        self._bytes: dict[str, int] = {}
        self._oldest: deque[_File] = deque()
        """Some of the oldest day, the oldest first, once some are to be removed."""

    def find(self) -> None:
        """Take up what was written before.

        Raises:
            OSError: a folder cannot be read.
        """
        for day in (path for path in self._folder.iterdir() if DAY.fullmatch(path.name)):
            sweep(day)
            if found := sum(file.bytes for file in self._found(day.name)):
                self._bytes[day.name] = found

    def add(self, day: str, size: int) -> None:
        """A file of so many bytes was written to a day's folder."""
        self._bytes[day] = self._bytes.get(day, 0) + size

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(self._bytes.values())

    @property
    def first(self) -> str | None:
        """The oldest day that there may be files of; None: there are none."""
        return min(self._bytes, default=None)

    def remove_oldest(self) -> None:
        """Remove the oldest file, or find out that there is none of the first day any more.

        Raises:
            OSError: it cannot be removed.
        """
        first = min(self._bytes)
        if not self._oldest:
            files = sorted(self._found(first))
            self._bytes[first] = sum(file.bytes for file in files)
            self._oldest.extend(files[:TOGETHER])
        if self._oldest:
            file = self._oldest[0]
            (self._folder / file.day / file.name).unlink(missing_ok=True)
            self._oldest.popleft()
            self._bytes[file.day] = self._bytes.get(file.day, 0) - file.bytes
        else:
            del self._bytes[first]
        with suppress(OSError):  # there are others in it, or it is gone
            (self._folder / first).rmdir()

    def _found(self, day: str) -> Iterator[_File]:
        with suppress(FileNotFoundError), os.scandir(self._folder / day) as entries:
            for entry in entries:
                if self._ours.fullmatch(entry.name):
                    status = entry.stat(follow_symlinks=False)
                    yield _File(status.st_mtime_ns, day, entry.name, status.st_size)
