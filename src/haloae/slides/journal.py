"""What is known of a slide's tiles so far, on disk: a run that is killed goes on from there.

Two files. One holds the map, rows of float32 cells, of which background takes no room on most
file systems; the other a line for each tile that was scored, written after its cells and with their
checksum. What was torn off by a kill, or by the power, does not count, and is done again.
"""

import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from haloae.errors import OutputError
from haloae.files import cannot_write
from haloae.slides.tiling import Tiling

CELLS, JOURNAL = "map.partial.f32", "tiles.partial.jsonl"
DTYPE = np.dtype("<f4")


class Tile(NamedTuple):
    """What is said of one tile."""

    number: int
    score: float
    """Mean of the highest values of what it delivers; NaN where it was not scored."""
    peak: float
    """Highest value of what it delivers; NaN where it was not scored."""
    reason: str = ""
    """Why it was not scored."""


class Journal:
    """Opened by `open_journal`."""

    def __init__(self, folder: Path, tiling: Tiling) -> None:
        self.folder = folder
        self.tiling = tiling
        self.shape = tiling.cells
        self.tiles: dict[int, Tile] = {}
        """By number: those that were scored, and those that cannot be."""
        self._cells = os.open(folder / CELLS, os.O_RDWR | os.O_CREAT, 0o666)
        self._lines = (folder / JOURNAL).open("a+b", buffering=0)

    def add(self, tile: Tile, delivered: NDArray[np.float32] | None) -> None:
        """Keep a tile: its cells, then its line.

        Raises:
            OutputError: the disk is full, or the like.
        """
        checksum = 0
        try:
            if delivered is not None:
                checksum = self._write_cells(tile.number, delivered)
            values = [tile.number, _number(tile.score), _number(tile.peak), tile.reason, checksum]
            line = f"{json.dumps(values)}\n".encode()
            if (written := self._lines.write(line)) != len(line):
                self._lines.write(line[written or 0 :])  # fails now, and says why
        except OSError as error:
            raise cannot_write(self.folder / CELLS, error) from error
        self.tiles[tile.number] = tile

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """(stop - start, w) cells of the map; 0 where nothing was scored."""
        return self._read(start * self.shape[1], (stop - start) * self.shape[1]).reshape(
            -1, self.shape[1]
        )

    def window(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """Cells of a part of the map; 0 where nothing was scored."""
        wide = columns.stop - columns.start
        starts = (row * self.shape[1] + columns.start for row in range(rows.start, rows.stop))
        return np.stack([self._read(start, wide) for start in starts])

    def _read(self, start: int, count: int) -> NDArray[np.float32]:
        data = os.pread(self._cells, count * DTYPE.itemsize, start * DTYPE.itemsize)
        return np.frombuffer(data.ljust(count * DTYPE.itemsize, b"\0"), DTYPE)

    def _write_cells(self, number: int, delivered: NDArray[np.float32]) -> int:
        rows, columns = self.tiling.cells_of(number)
        checksum = 0
        for row, values in zip(range(rows.start, rows.stop), delivered, strict=True):
            data = np.ascontiguousarray(values, DTYPE).tobytes()
            place = (row * self.shape[1] + columns.start) * DTYPE.itemsize
            written = os.pwrite(self._cells, data, place)
            if written != len(data):
                os.pwrite(self._cells, data[written:], place + written)
            checksum = zlib.crc32(data, checksum)
        return checksum

    def _is_whole(self, number: int, checksum: int) -> bool:
        rows, columns = self.tiling.cells_of(number)
        found = 0
        size = (columns.stop - columns.start) * DTYPE.itemsize
        for row in range(rows.start, rows.stop):
            place = (row * self.shape[1] + columns.start) * DTYPE.itemsize
            found = zlib.crc32(os.pread(self._cells, size, place), found)
        return found == checksum

    def _start(self, identity: Mapping[str, Any]) -> None:
        self._lines.write(f"{json.dumps(identity)}\n".encode())

    def _go_on(self, identity: Mapping[str, Any]) -> None:
        """Take over what earlier runs have left, as far as it is whole."""
        self._lines.seek(0)
        lines = self._lines.read().splitlines(keepends=True)
        if lines and lines[0].endswith(b"\n"):
            if json.loads(lines[0]) != identity:
                raise OutputError(
                    f"{self.folder}: what was begun there is of another slide, model or setting: "
                    f"give --overwrite in place of --resume, or choose another --out."
                )
        else:
            self._lines.truncate(0)
            self._start(identity)
            return
        size = len(lines[0])
        for line in lines[1:]:
            if not line.endswith(b"\n"):
                break
            number, score, peak, reason, checksum = json.loads(line)
            if reason or self._is_whole(number, checksum):
                nan = math.nan
                tile = Tile(number, nan if score is None else score, nan, reason)
                self.tiles[number] = tile if peak is None else tile._replace(peak=peak)
            size += len(line)
        self._lines.truncate(size)

    @classmethod
    def _opened(
        cls, folder: Path, tiling: Tiling, identity: Mapping[str, Any], *, goes_on: bool
    ) -> Self:
        try:
            if not goes_on:
                for name in (CELLS, JOURNAL):
                    (folder / name).unlink(missing_ok=True)
            journal = cls(folder, tiling)
            try:
                (journal._go_on if goes_on else journal._start)(identity)
            except BaseException:
                journal.close()
                raise
        except OSError as error:
            raise cannot_write(folder / JOURNAL, error) from error
        except ValueError as error:
            raise OutputError(
                f"{folder / JOURNAL}: damaged: give --overwrite in place of --resume."
            ) from error
        return journal

    def close(self) -> None:
        """Close both files."""
        os.close(self._cells)
        self._lines.close()


@contextmanager
def open_journal(
    folder: Path, tiling: Tiling, identity: Mapping[str, Any], *, goes_on: bool
) -> Iterator[Journal]:
    """The journal of a folder of results, removed once they are whole, kept if they are not.

    Args:
        folder: that results go to.
        tiling: of the slide.
        identity: what the results depend on, as JSON holds it.
        goes_on: True: with what is there; False: from the start.

    Raises:
        OutputError: what is there is of something else or damaged, or nothing can be written.
    """
    journal = Journal._opened(folder, tiling, identity, goes_on=goes_on)
    try:
        yield journal
    finally:
        journal.close()
    for name in (CELLS, JOURNAL):
        (folder / name).unlink(missing_ok=True)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
