"""The map of a slide as a file that viewers of slides open: OME-TIFF, tiled, with smaller sizes."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from haloae.errors import MissingExtraError
from haloae.files import cannot_write, writing
from haloae.slides.journal import Journal

PART = 128
"""Side of the file's own tiles, in cells, where the map has as many both ways."""
FULL = 65535
Band = NDArray[np.uint16]


def write_heatmap(
    journal: Journal, path: Path, *, threshold: float, microns: tuple[float, float] | None
) -> None:
    """Write the whole map, in constant memory.

    A pixel a cell, 16 bits: half the range is the threshold, and the map is cut off at twice that,
    as in the maps that `haloae predict` writes. A cell of a smaller size is the highest of four.
    Rows are filled up with zeros to whole tiles of the file: libtiff, which is what OpenSlide reads
    with, shows 16 bits wrongly in a tile that ends early.

    Args:
        journal: of the slide.
        path: of the file.
        threshold: the pixel threshold.
        microns: across and down, of one cell; None: not known.

    Raises:
        OutputError: the disk is full, or the like; what stood at `path` is untouched.
    """
    try:
        import tifffile
    except ImportError as error:
        raise MissingExtraError("tifffile", "slides", error) from error
    metadata: dict[str, object] = {"axes": "YX", "Name": "anomaly map"}
    if microns:
        for axis, size in zip("XY", microns, strict=True):
            metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    try:
        with writing(path) as new, tempfile.TemporaryFile(dir=path.parent) as scratch:
            sizes = _sizes(journal.shape)
            levels = _Levels(journal, scratch, sizes, max(threshold, 1e-30))
            with tifffile.TiffWriter(new, ome=True, bigtiff=True) as file:
                for number, shape in enumerate(sizes):
                    file.write(
                        levels.parts(number),
                        shape=shape,
                        dtype=np.uint16,
                        tile=(part_of(shape),) * 2,
                        photometric="minisblack",
                        compression="zlib",
                        subifds=0 if number else len(sizes) - 1,
                        subfiletype=1 if number else 0,
                        metadata=None if number else metadata,
                    )
    except OSError as error:
        raise cannot_write(path, error) from error


def _sizes(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """With whole tiles in each row, then halved until it fits into one tile of the file."""
    side = part_of(shape)
    sizes = [(shape[0], -(-shape[1] // side) * side)]
    while max(sizes[-1]) > PART:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def part_of(shape: tuple[int, int]) -> int:
    """Side of the file's own tiles, not larger than the picture."""
    return max(16, min(PART, min(shape) // 16 * 16))


class _Levels:
    """The sizes one after the other, each made from the one before while that is written."""

    def __init__(
        self, journal: Journal, scratch: IO[bytes], sizes: list[tuple[int, int]], threshold: float
    ) -> None:
        self.journal = journal
        self.sizes = sizes
        self.threshold = threshold
        self._scratch = scratch.fileno()
        self._starts = np.cumsum([0] + [2 * high * wide for high, wide in sizes[1:]]).tolist()

    def parts(self, level: int) -> Iterator[Band]:
        """The tiles of one size, row by row, those at the end filled up with zeros."""
        high, wide = self.sizes[level]
        side = part_of((high, wide))
        for top in range(0, high, side):
            band = self._rows(level, top, min(top + side, high))
            if level + 1 < len(self.sizes):
                self._keep_smaller(level + 1, top // 2, band)
            for left in range(0, wide, side):
                part = np.zeros((side, side), np.uint16)
                inside = band[:, left : left + side]
                part[: inside.shape[0], : inside.shape[1]] = inside
                yield part

    def _rows(self, level: int, start: int, stop: int) -> Band:
        if level == 0:
            shares = np.clip(self.journal.rows(start, stop) / (2 * self.threshold), 0, 1)
            lacking = self.sizes[0][1] - shares.shape[1]
            return np.pad((shares * FULL).round().astype(np.uint16), ((0, 0), (0, lacking)))
        wide = self.sizes[level][1]
        place = self._starts[level - 1] + 2 * start * wide
        data = os.pread(self._scratch, 2 * (stop - start) * wide, place)
        return np.frombuffer(data, np.uint16).reshape(-1, wide)

    def _keep_smaller(self, level: int, start: int, band: Band) -> None:
        even = np.pad(band, [(0, side % 2) for side in band.shape])
        smaller = even.reshape(even.shape[0] // 2, 2, -1, 2).max((1, 3))
        data = smaller.tobytes()
        place = self._starts[level - 1] + 2 * start * smaller.shape[1]
        while data:
            written = os.pwrite(self._scratch, data, place)
            data, place = data[written:], place + written
