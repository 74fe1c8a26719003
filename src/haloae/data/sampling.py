"""Tiles to learn from where images are large and few: none empty, no two alike."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from haloae.data.views import Size

THUMB = 8
"""Side of the picture that tiles are told apart by."""
EMPTY = 2 / 255
"""Standard deviation of a tile's brightness up to which there is nothing on it."""
ALIKE = 2 / 255
"""Root mean square difference of two tiles' pictures up to which they are taken for one."""


def places(size: Size, tile: Size, generator: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Top and left of tiles that do not overlap, in an order drawn at random.

    Args:
        size: (H, W) of the image; one that is smaller than a tile gives one, at its corner.
        tile: (H, W).
        generator: draws the order, and where the first tile lies.
    """
    rows, columns = (_starts(side, part, generator) for side, part in zip(size, tile, strict=True))
    for number in generator.permutation(len(rows) * len(columns)):
        yield rows[number // len(columns)], columns[number % len(columns)]


def _starts(side: int, tile: int, generator: np.random.Generator) -> list[int]:
    """Where tiles begin along a side; what is left over is before the first and after the last."""
    first = int(generator.integers(max(0, side - tile) % tile + 1))
    return [*range(first, max(1, side - tile + 1), tile)]


class Chooser:
    """Says of one tile after the other whether it is worth learning from."""

    def __init__(self) -> None:
        self._kept: list[NDArray[np.float32]] = []

    def wants(self, pixels: NDArray[np.float32]) -> bool:
        """True: it is neither empty nor like one that was wanted before.

        Args:
            pixels: (3, H, W) in [0, 1], each side at least `THUMB`.
        """
        if float(pixels.mean(0).std()) <= EMPTY:
            return False
        thumb = _thumb(pixels)
        if any(float(np.square(thumb - kept).mean()) <= ALIKE**2 for kept in self._kept):
            return False
        self._kept.append(thumb)
        return True


def _thumb(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(3, THUMB, THUMB) means of its blocks."""
    rows, columns = (
        np.arange(THUMB) * side // THUMB for side in (pixels.shape[1], pixels.shape[2])
    )
    sums = np.add.reduceat(np.add.reduceat(pixels, rows, 1), columns, 2)
    heights, widths = (
        np.diff([*starts, side])
        for starts, side in ((rows, pixels.shape[1]), (columns, pixels.shape[2]))
    )
    return np.asarray(sums / (heights[:, None] * widths), np.float32)
