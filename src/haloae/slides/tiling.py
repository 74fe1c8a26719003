"""Where the tiles of a huge image lie, what of each is delivered, and what that costs."""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from haloae.config import Config
from haloae.errors import ImageError
from haloae.slides.reader import Slide

COLUMNS = 16
"""Tiles go down the image in bands so wide: what neighbours share is decoded once."""
MOST_COST = 1.6
"""Pixels computed for one that is delivered."""


class Tiling(NamedTuple):
    """Equal squares whose inner squares, the cores, cover an image without gap or overlap.

    All in pixels at the scale that the image is scored at.
    """

    side: int
    overlap: int
    """That two neighbours share."""
    stride: int
    """Pixels a cell of the map."""
    scale: float
    width: int
    """Of the image."""
    height: int

    @classmethod
    def of(cls, config: Config, slide: Slide) -> Self:
        """As a detector was fitted to see images.

        Raises:
            ImageError: a tile is larger than the image.
        """
        stride = config.network.stride
        scale = 1.0
        # An eighth, whole cells on either side.
        overlap = config.image_size // (16 * stride) * 2 * stride
        width, height = (max(1, round(side * scale)) for side in slide.levels[0][:2])
        if config.image_size > min(width, height):
            raise ImageError(
                f"{slide.name}: is {width}×{height} pixels, and a tile of this model has "
                f"{config.image_size}×{config.image_size}: score it with `haloae predict`."
            )
        return cls(config.image_size, overlap, stride, scale, width, height)

    @property
    def core(self) -> int:
        """Side of what is delivered of a tile."""
        return self.side - self.overlap

    @property
    def margin(self) -> int:
        """What is computed around the core, on each side."""
        return self.overlap // 2

    @property
    def cost(self) -> float:
        """Pixels computed for one that is delivered."""
        return (self.side / self.core) ** 2

    @property
    def rows(self) -> int:
        """Of tiles."""
        return -(-self.height // self.core)

    @property
    def columns(self) -> int:
        """Of tiles."""
        return -(-self.width // self.core)

    @property
    def count(self) -> int:
        """Of tiles."""
        return self.rows * self.columns

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of the map of the whole image."""
        return -(-self.height // self.stride), -(-self.width // self.stride)

    def place(self, number: int) -> tuple[int, int]:
        """Left and top edge of a tile's core."""
        row, column = divmod(number, self.columns)
        return column * self.core, row * self.core

    def box(self, number: int) -> tuple[int, int, int, int]:
        """Left, top, width and height of a core, within the image."""
        x, y = self.place(number)
        return x, y, min(self.core, self.width - x), min(self.core, self.height - y)

    def cells_of(self, number: int) -> tuple[slice, slice]:
        """Rows and columns of the whole map that a tile delivers."""
        x, y, width, height = self.box(number)
        rows = slice(y // self.stride, -(-(y + height) // self.stride))
        return rows, slice(x // self.stride, -(-(x + width) // self.stride))

    def delivered(self, number: int, tile_map: NDArray[np.float32]) -> NDArray[np.float32]:
        """The part of a tile's map that belongs to its core.

        Args:
            number: of the tile.
            tile_map: (side / stride, side / stride).
        """
        rows, columns = self.cells_of(number)
        first = self.margin // self.stride
        high, wide = rows.stop - rows.start, columns.stop - columns.start
        return tile_map[first : first + high, first : first + wide]

    def with_content(self, mask: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Numbers of the tiles whose core has any, in the order that they are to be read in.

        Args:
            mask: of the whole image, of any size.
        """
        wide = _any_within(mask, self.columns, self.core * mask.shape[1] / self.width, axis=1)
        found = _any_within(wide, self.rows, self.core * mask.shape[0] / self.height, axis=0)
        rows, columns = np.nonzero(found)
        order = np.lexsort((columns, rows, columns // COLUMNS))
        return (rows * self.columns + columns)[order]


def _any_within(
    mask: NDArray[np.bool_], count: int, step: float, *, axis: int
) -> NDArray[np.bool_]:
    """Whether any is True within each of `count` parts of an axis, each `step` long."""
    edges = np.arange(count + 1) * step
    first = np.minimum(np.floor(edges[:-1] + 1e-9).astype(int), mask.shape[axis] - 1)
    last = np.clip(np.ceil(edges[1:] - 1e-9).astype(int), first + 1, mask.shape[axis])
    sums = np.insert(np.cumsum(mask, axis=axis, dtype=np.int32), 0, 0, axis=axis)
    return np.asarray(np.take(sums, last, axis) > np.take(sums, first, axis))
